//! One log line and one count for each request. The cause of a 5xx is logged here, once.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use tower_http::request_id::RequestId;

use super::problem::Problem;
use crate::telemetry;

/// Logs and counts a request.
pub async fn record(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let id = request
        .extensions()
        .get::<RequestId>()
        .and_then(|id| id.header_value().to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let duration = started.elapsed();
    let problem = response.extensions().get::<Problem>();
    if let Some(Problem(error)) = problem.filter(|_| status >= 500) {
        let cause = std::error::Error::source(&**error).map(ToString::to_string).unwrap_or_default();
        tracing::error!(request_id = id, %method, route, status, cause, "{error}");
    }
    let reason = problem.map(|Problem(error)| error.reason()).unwrap_or_default();
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(request_id = id, %method, route, status, reason, milliseconds, "request");
    let labels = [("method", label(&method).to_owned()), ("route", route)];
    metrics::histogram!(telemetry::HTTP_SECONDS, &labels).record(duration);
    let [method, route] = labels;
    metrics::counter!(telemetry::HTTP_REQUESTS, "method" => method.1, "route" => route.1, "status" => status.to_string()).increment(1);
    response
}

/// The method as a label. Clients make up others as they like, and each label is kept for ever.
fn label(method: &Method) -> &str {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    if known.contains(method) { method.as_str() } else { "other" }
}
