//! The wire: every route of the API on one page. `problem` alone gives errors their statuses.

pub mod auth;
mod datasets;
mod deliveries;
mod docs;
mod download;
mod drain;
mod export_jobs;
mod export_tables;
mod exports;
mod extract_docs;
mod extract_runs;
mod extracts;
mod fields;
mod ingest;
mod jobs;
mod key;
mod labkey;
mod links;
mod problem;
mod query;
mod submissions;
mod system;
mod trace;
mod zip;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Uri;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::Value;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::config::Scope;
use crate::dataset::Datasets;
use crate::dataset::definition::is_identifier;
use crate::error::{Error, Result};
use crate::telemetry;
use auth::Tokens;
use problem::Problem;

/// What handlers need.
#[derive(Clone)]
pub struct Http {
    app: App,
    tokens: Arc<Tokens>,
    metrics: PrometheusHandle,
    /// Places for ZIPs under way.
    zips: Arc<Semaphore>,
}

/// Routes that need a token with that scope, in the order of the documentation.
fn secured() -> [(Scope, OpenApiRouter<Http>); 3] {
    let ingest = OpenApiRouter::new()
        .routes(routes!(ingest::ingest_gottcha2))
        .routes(routes!(ingest::ingest_stast))
        .routes(routes!(ingest::ingest_results))
        .routes(routes!(ingest::ingest_dataset))
        .routes(routes!(ingest::put_submission));
    let read = OpenApiRouter::new()
        .routes(routes!(submissions::list_submissions))
        .routes(routes!(submissions::get_submission))
        .routes(routes!(jobs::list_jobs))
        .routes(routes!(jobs::get_job))
        .routes(routes!(jobs::follow_job))
        .routes(routes!(export_jobs::create_export_job, export_jobs::list_export_jobs))
        .routes(routes!(export_jobs::get_export_job, export_jobs::delete_export_job))
        .routes(routes!(export_tables::list_export_tables))
        .routes(routes!(export_tables::list_export_formats))
        .routes(routes!(extracts::list_extracts))
        .routes(routes!(extracts::get_extract))
        .routes(routes!(extract_runs::list_extract_runs))
        .routes(routes!(extract_runs::get_extract_run))
        .routes(routes!(labkey::labkey_status))
        .routes(routes!(labkey::labkey_stats))
        .routes(routes!(deliveries::list_deliveries))
        .routes(routes!(deliveries::list_failures));
    let operate = OpenApiRouter::new()
        .routes(routes!(submissions::delete_submission))
        .routes(routes!(exports::trigger_export))
        .routes(routes!(exports::delete_export))
        .routes(routes!(jobs::cancel_job))
        .routes(routes!(extracts::create_extract))
        .routes(routes!(extracts::update_extract, extracts::delete_extract))
        .routes(routes!(extracts::run_extract))
        .routes(routes!(extracts::cancel_extract))
        .routes(routes!(labkey::sync_labkey))
        .routes(routes!(labkey::retry_labkey));
    [(Scope::Ingest, ingest), (Scope::Read, read), (Scope::Operate, operate)]
}

/// Routes that need scope `read`, unless exports are public.
fn catalogue() -> OpenApiRouter<Http> {
    OpenApiRouter::new().routes(routes!(exports::list_exports)).routes(routes!(exports::get_export))
}

/// Routes whose handler lets signed links pass as well as tokens.
fn linked() -> OpenApiRouter<Http> {
    OpenApiRouter::new()
        .routes(routes!(download::download_export))
        .routes(routes!(export_jobs::download_export_job))
        .routes(routes!(extract_runs::download_extract_run))
        .routes(routes!(extract_runs::download_extract_artifact))
}

/// Routes that anybody may ask.
fn open() -> OpenApiRouter<Http> {
    OpenApiRouter::new()
        .routes(routes!(datasets::list_datasets))
        .routes(routes!(datasets::get_dataset))
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
        .routes(routes!(system::metrics))
        .routes(routes!(system::version))
}

/// The whole service as an axum router.
///
/// # Errors
/// Tokens that cannot be used, metrics that cannot be recorded.
pub fn router(app: App) -> Result<Router> {
    let pages = docs::pages(openapi(&app.datasets), app.config.server.redoc_bundle.clone());
    let tokens = Arc::new(Tokens::new(&app.config)?);
    let idle = app.config.ingest.idle_timeout;
    let http = Http { app, tokens, metrics: telemetry::metrics()?, zips: Arc::new(Semaphore::new(zip::ZIPS)) };
    let mut router: Router<Http> = open().into();
    let ready = from_fn_with_state(http.clone(), require_ready);
    let token = |scope| from_fn_with_state((http.clone(), scope), auth::require);
    for (scope, routes) in secured() {
        router = router.merge(Router::from(routes.route_layer(ready.clone()).route_layer(token(scope))));
    }
    let mut catalogue = catalogue().route_layer(ready.clone());
    if !http.app.config.auth.public_exports {
        catalogue = catalogue.route_layer(token(Scope::Read));
    }
    router = router.merge(Router::from(catalogue)).merge(Router::from(linked().route_layer(ready)));
    Ok(router
        .with_state(http)
        .merge(pages)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(query::readable))
        .layer(from_fn(trace::record))
        .layer(from_fn(carry_on))
        .layer(from_fn(problem::render))
        .layer(from_fn_with_state(idle, drain::leftover))
        .layer(from_fn(links::host))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid)))
}

/// The OpenAPI description of the whole service.
#[must_use]
pub fn openapi(datasets: &Datasets) -> Value {
    let secured = secured().map(|(_, routes)| routes).into_iter().chain([catalogue(), linked()]);
    docs::complete(secured.map(OpenApiRouter::into_openapi).collect(), open().into_openapi(), datasets)
}

/// Carries a request that may change something to its end, also when its client goes away meanwhile. So no transaction is left
/// half way, and an upload is within the bounds, counted and logged for as long as it is at work.
async fn carry_on(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let carried = tokio::spawn(next.run(request)).await;
    carried
        .unwrap_or_else(|error| Problem::from(Error::Internal(format!("a request broke off: {error}"))).into_response())
}

/// Refuses data requests until the database is up to date.
async fn require_ready(State(http): State<Http>, request: Request, next: Next) -> Result<Response, Problem> {
    if http.app.is_ready.load(Ordering::Acquire) { Ok(next.run(request).await) } else { Err(not_ready().into()) }
}

fn not_ready() -> Error {
    Error::Busy { what: "the database is not ready yet", retry_after: Duration::from_secs(5) }
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    Problem::from(Error::Internal(format!("a handler panicked: {text}"))).into_response()
}

/// The page size that a request asks for.
fn limit(asked: Option<i64>, usual: i64) -> Result<i64> {
    let limit = asked.unwrap_or(usual);
    if (1..=1000).contains(&limit) { Ok(limit) } else { Err(Error::parameter("limit", "must be between 1 and 1000")) }
}

/// A share in percent, with one digit.
fn percent(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a percentage")]
    let share = part as f64 / whole.max(1) as f64;
    (share * 1000.0).round().min(1000.0) / 10.0
}

/// Where a page ended whose entries have ids that do not grow with time. The entry need not be there any more.
struct Cursor {
    /// When its last entry was made.
    created_at: DateTime<Utc>,
    /// The id of that.
    id: String,
}

impl Cursor {
    fn parse(text: &str) -> Result<Self> {
        let read = |text: &str| {
            let (micros, id) = text.split_once('_').filter(|(_, id)| is_identifier(id))?;
            // As the description has it; later times than 16 digits tell are no cursor's.
            let is_number = micros.len() <= 16 && micros.bytes().all(|byte| byte.is_ascii_digit());
            let created_at = DateTime::from_timestamp_micros(micros.parse().ok().filter(|_| is_number)?)?;
            Some(Self { created_at, id: id.to_owned() })
        };
        read(text).ok_or_else(|| Error::parameter("cursor", "must be one that the `Link` header of a page had"))
    }

    /// For a query: the time and the id.
    fn place(&self) -> (DateTime<Utc>, &str) {
        (self.created_at, &self.id)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}_{}", self.created_at.timestamp_micros(), self.id)
    }
}

/// The value of a `Link` header that leads to the page after `cursor`.
fn next_page(uri: &Uri, cursor: impl std::fmt::Display) -> String {
    let query = uri.query().unwrap_or_default();
    let kept = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="));
    let pairs: Vec<String> = kept.map(str::to_owned).chain([format!("cursor={cursor}")]).collect();
    format!("<{}?{}>; rel=\"next\"", uri.path(), pairs.join("&"))
}
