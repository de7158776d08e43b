//! Queries of requests, before their values are read.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;

/// Refuses a query that is no UTF-8. What reads its values would put the same sign for every byte that it cannot read, and
/// two samples would become one.
pub async fn readable(request: Request, next: Next) -> Response {
    let query = request.uri().query().unwrap_or_default();
    if percent_decode_str(query).decode_utf8().is_err() {
        return (StatusCode::BAD_REQUEST, "the query is not UTF-8: percent-encode the bytes of UTF-8").into_response();
    }
    next.run(request).await
}
