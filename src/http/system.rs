//! Is it alive, is it ready, what does it count, which version is it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde::Serialize;

use super::Http;
use super::problem::Problem;
use crate::error::Error;
use crate::telemetry;

/// Tells that the process lives; asks nothing of the database.
#[utoipa::path(get, path = "/healthz", operation_id = "get_health", tag = "system",
    responses((status = 200, description = "The process lives", body = String, content_type = "text/plain", example = "ok")))]
pub async fn healthz() -> &'static str {
    "ok"
}

/// Tells whether requests can be served: the database answers, is up to date, and takes writes.
#[utoipa::path(get, path = "/readyz", operation_id = "get_readiness", tag = "system",
    responses((status = 200, description = "Requests are served", body = String, content_type = "text/plain", example = "ready")))]
pub async fn readyz(State(http): State<Http>) -> Result<&'static str, Problem> {
    if !http.app.is_ready.load(Ordering::Acquire) {
        return Err(super::not_ready().into());
    }
    let is_read_only = "-- system.ready\nSELECT current_setting('transaction_read_only')::boolean";
    let answer = sqlx::query_scalar::<_, bool>(is_read_only).fetch_one(&http.app.pool);
    let what = match tokio::time::timeout(Duration::from_secs(3), answer).await {
        Ok(Ok(false)) => return Ok("ready"),
        Ok(Ok(true)) => "the database takes no writes, as a standby does",
        Ok(Err(error)) => {
            tracing::warn!(%error, "the database does not answer");
            UNREACHABLE
        }
        Err(_) => UNREACHABLE,
    };
    Err(Error::Busy { what, retry_after: Duration::from_secs(5) }.into())
}

const UNREACHABLE: &str = "the database does not answer";

/// Everything that is counted, in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", operation_id = "get_metrics", tag = "system",
    responses((status = 200, description = "Prometheus text format", body = String, content_type = "text/plain")))]
pub async fn metrics(State(http): State<Http>) -> impl IntoResponse {
    let pool = &http.app.pool;
    let idle = pool.num_idle();
    let used = (pool.size() as usize).saturating_sub(idle);
    let queue = http.app.config.ingest.queue.saturating_sub(http.app.ingest.queue.available_permits());
    for (gauge, value) in [
        (metrics::gauge!(telemetry::POOL_CONNECTIONS, "state" => "idle"), idle),
        (metrics::gauge!(telemetry::POOL_CONNECTIONS, "state" => "used"), used),
        (metrics::gauge!(telemetry::INGEST_QUEUE), queue),
    ] {
        gauge.set(u32::try_from(value).unwrap_or(u32::MAX));
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], http.metrics.render())
}

/// Which program answers.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Version {
    /// Always `nvd-support-car`.
    #[schema(example = "nvd-support-car")]
    name: &'static str,
    /// The version of the service.
    #[schema(example = "0.1.0")]
    version: &'static str,
}

/// The version of the service.
#[utoipa::path(get, path = "/version", operation_id = "get_version", tag = "system",
    responses((status = 200, description = "The version", body = Version)))]
pub async fn version() -> Json<Version> {
    Json(Version { name: env!("CARGO_PKG_NAME"), version: env!("CARGO_PKG_VERSION") })
}
