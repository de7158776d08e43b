//! Errors on the wire: the one place where an [`enum@Error`] becomes a status and an RFC 9457 body.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tower_http::request_id::RequestId;

use crate::dataset::Fault;
use crate::error::Error;

/// The media type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What every error looks like: an RFC 9457 problem.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// The kind of problem; `about:blank` means that the status says it.
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    kind: &'static str,
    /// The meaning of the status.
    #[schema(example = "Unprocessable Entity")]
    title: String,
    /// The HTTP status.
    #[schema(example = 422, minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong, where, and what to do.
    #[schema(example = "line 17, column 42: `read_count` must be at least 0")]
    detail: String,
    /// The path of the request.
    #[schema(example = "/ingest-gottcha2")]
    instance: String,
    /// The id under which the service's log speaks of this request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    request_id: Option<String>,
    /// The first faults of rows and parameters, at most 20.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Fault>,
}

/// An error on its way to the client. The cause of a 5xx stays in the response's extensions, for the log.
#[derive(Debug, Clone)]
pub struct Problem(pub Arc<Error>);

impl<E: Into<Error>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self(Arc::new(error.into()))
    }
}

impl IntoResponse for Problem {
    /// Only status and headers: [`render`] writes the body, which names the request.
    fn into_response(self) -> Response {
        let mut response = status(&self.0).into_response();
        let headers = response.headers_mut();
        if matches!(*self.0, Error::Unauthorized) {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"nvd-support-car\""));
        }
        if let Some(after) = self.0.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The status of each error.
fn status(error: &Error) -> StatusCode {
    match error {
        Error::Body(_) | Error::Disconnected => StatusCode::BAD_REQUEST,
        Error::Faults(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Error::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        Error::Idle(_) => StatusCode::REQUEST_TIMEOUT,
        Error::Conflict(_) | Error::Cancelled => StatusCode::CONFLICT,
        Error::Gone(_) => StatusCode::GONE,
        Error::Outdated(_) => StatusCode::PRECONDITION_FAILED,
        Error::NotFound { .. } => StatusCode::NOT_FOUND,
        Error::Unauthorized => StatusCode::UNAUTHORIZED,
        Error::Forbidden(_) | Error::Link(_) => StatusCode::FORBIDDEN,
        Error::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
        Error::Labkey(failure) if !failure.is_passing() => StatusCode::BAD_GATEWAY,
        Error::Busy { .. } => StatusCode::SERVICE_UNAVAILABLE,
        error if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Gives every error, also those of axum itself (404, 405, rejected extractors), the same body.
pub async fn render(request: Request, next: Next) -> Response {
    let instance = request.uri().path().to_owned();
    let request_id =
        request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok()).map(str::to_owned);
    let response = next.run(request).await;
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) || is_problem(&response) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let (detail, errors) = match parts.extensions.get::<Problem>() {
        Some(Problem(error)) => match &**error {
            Error::Faults(faults) => (error.to_string(), faults.clone()),
            // Only the log may know what broke.
            Error::Internal(_) | Error::Migration(_) => {
                ("internal error; the log says more under this request id".to_owned(), Vec::new())
            }
            error => (error.to_string(), Vec::new()),
        },
        None => (foreign_detail(status, body).await, Vec::new()),
    };
    let title = status.canonical_reason().unwrap_or("Error").to_owned();
    let problem =
        ProblemBody { kind: "about:blank", title, status: status.as_u16(), detail, instance, request_id, errors };
    parts.headers.remove(axum::http::header::CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    let body = Json(problem).into_response().into_body();
    Response::from_parts(parts, body)
}

fn is_problem(response: &Response) -> bool {
    response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM_JSON)
}

/// What an error that is not ours says: axum's rejections explain themselves in a short text.
async fn foreign_detail(status: StatusCode, body: Body) -> String {
    let text = to_bytes(body, 4096).await.unwrap_or_default();
    match (status, std::str::from_utf8(&text)) {
        (_, Ok(text)) if !text.trim().is_empty() => text.trim().to_owned(),
        (StatusCode::NOT_FOUND, _) => "there is nothing at this path; /swagger-ui lists what there is".to_owned(),
        (StatusCode::METHOD_NOT_ALLOWED, _) => {
            "this path does not take this method; `Allow` lists those it takes".to_owned()
        }
        _ => status.canonical_reason().unwrap_or("error").to_owned(),
    }
}
