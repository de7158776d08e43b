//! Extracts: named configurations that run on demand or by themselves, and what they ask for.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::header::{ETAG, IF_MATCH, LINK, LOCATION};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{AppendHeaders, IntoResponse};
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::Fields;
use super::problem::Problem;
use super::{Cursor, Http};
use crate::dataset::Fault;
use crate::db::extracts::{self, Extract};
use crate::db::schedules;
use crate::error::{Error, Result};
use crate::jobs::extract::config::{ExtractConfig, ExtractFormat, Include};
use crate::jobs::extract::{self, Cause};

/// Checks the type of one field.
pub type Check = fn(&mut Fields, &str);

/// What only the service sets: clients send it back as they got it. It is looked at by its type alone.
pub const READ_ONLY: [(&str, Check); 8] = [
    ("id", leave::<String>),
    ("total_runs", leave::<i64>),
    ("successful_runs", leave::<i64>),
    ("failed_runs", leave::<i64>),
    ("last_run_at", leave::<DateTime<Utc>>),
    ("next_run_at", leave::<DateTime<Utc>>),
    ("created_at", leave::<DateTime<Utc>>),
    ("updated_at", leave::<DateTime<Utc>>),
];

fn leave<T: DeserializeOwned>(fields: &mut Fields, name: &str) {
    fields.take::<T>(name);
}

/// What was asked for.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Success<T> {
    /// Always true: errors are problems.
    #[schema(example = true)]
    success: bool,
    /// What was asked for.
    data: T,
}

impl<T> Success<T> {
    /// An answer with that.
    pub const fn of(data: T) -> Json<Self> {
        Json(Self { success: true, data })
    }
}

/// An extract.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Extract)]
pub struct ExtractBody {
    /// `extract_` and letters.
    #[schema(example = "extract_k4mzq2x7ahd3wq5b")]
    id: String,
    /// What is extracted, how, and when.
    #[serde(flatten)]
    config: ExtractConfig,
    /// Grows with each change; `PUT` has to name it.
    #[schema(example = 1, minimum = 1)]
    version: i64,
    /// Runs that were made.
    #[schema(example = 12, minimum = 0)]
    total_runs: i64,
    /// Runs that completed.
    #[schema(example = 11, minimum = 0)]
    successful_runs: i64,
    /// Runs that failed.
    #[schema(example = 1, minimum = 0)]
    failed_runs: i64,
    /// When the last run was made.
    #[schema(required)]
    last_run_at: Option<DateTime<Utc>>,
    /// When it runs by itself next.
    #[schema(required)]
    next_run_at: Option<DateTime<Utc>>,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When it was last changed.
    updated_at: DateTime<Utc>,
}

fn body(extract: Extract) -> Result<ExtractBody> {
    let config = ExtractConfig::read(&extract.config)?;
    let timing = if config.enabled && config.schedule_enabled { config.timing().ok().flatten() } else { None };
    Ok(ExtractBody {
        id: extract.id,
        next_run_at: timing.and_then(|timing| timing.next(Utc::now())),
        config,
        version: extract.version,
        total_runs: extract.total_runs,
        successful_runs: extract.successful_runs,
        failed_runs: extract.failed_runs,
        last_run_at: extract.last_run_at,
        created_at: extract.created_at,
        updated_at: extract.updated_at,
    })
}

/// Lays the fields of a request over a configuration. What is absent stays; null is the default.
fn lay_over(fields: &mut Fields, config: &mut ExtractConfig) {
    let usual = ExtractConfig::default();
    fields.set("name", &mut config.name, usual.name);
    fields.set("description", &mut config.description, usual.description);
    fields.set::<ExtractFormat>("format", &mut config.format, usual.format);
    fields.set::<Vec<Include>>("include", &mut config.include, usual.include);
    fields.set("schemas", &mut config.schemas, usual.schemas);
    fields.set("filter", &mut config.filter, usual.filter);
    fields.set("compress", &mut config.compress, usual.compress);
    fields.set("split_files", &mut config.split_files, usual.split_files);
    fields.set("schedule", &mut config.schedule, usual.schedule);
    fields.set("timezone", &mut config.timezone, usual.timezone);
    fields.set("schedule_enabled", &mut config.schedule_enabled, usual.schedule_enabled);
    fields.set("retention_days", &mut config.retention_days, usual.retention_days);
    fields.set("enabled", &mut config.enabled, usual.enabled);
    fields.set("notify", &mut config.notify, usual.notify);
}

/// Checks a request that was laid over a configuration, and gives what is stored.
fn checked(http: &Http, mut fields: Fields, config: &ExtractConfig, known: &[Fault]) -> Result<Value> {
    if fields.is_right() {
        fields.faults(config.faults(&http.app).into_iter().filter(|fault| !known.contains(fault)).collect());
    }
    fields.finish()?;
    serde_json::to_value(config).map_err(|error| Error::Internal(format!("an extract cannot be stored: {error}")))
}

/// Makes an extract.
#[utoipa::path(post, path = "/api/data/extracts", operation_id = "create_extract", tag = "extracts",
    request_body(content = ref("#/components/schemas/ExtractRequest")),
    responses((status = 201, description = "The extract", body = Success<ExtractBody>,
        headers(("Location" = String, description = "The extract"), ("ETag" = String, description = "Its version"))),
        (status = 409, description = "There is an extract of that name")))]
pub async fn create_extract(
    State(http): State<Http>,
    Json(request): Json<Value>,
) -> Result<impl IntoResponse, Problem> {
    let mut fields = Fields::of(request)?;
    let mut config = ExtractConfig::default();
    lay_over(&mut fields, &mut config);
    let stored = checked(&http, fields, &config, &[])?;
    let id = extract::new_id("extract")?;
    let made = extracts::insert(&http.app.pool, &id, &config.name, &stored).await?;
    let headers = [(LOCATION, format!("/api/data/extracts/{id}")), (ETAG, tag(made.version))];
    Ok((StatusCode::CREATED, headers, Success::of(body(made)?)))
}

/// The version as it stands in `ETag` and `If-Match`.
fn tag(version: i64) -> String {
    format!("\"{version}\"")
}

/// Where a page begins, and how long it is.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// At most so many, 100 unless told.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Where the page before ended. Its `Link` header has the whole address.
    #[param(pattern = "^[0-9]{1,16}_[a-z][a-z0-9_]{0,47}$")]
    cursor: Option<String>,
}

/// Lists extracts, newest first.
#[utoipa::path(get, path = "/api/data/extracts", operation_id = "list_extracts", tag = "extracts", params(PageQuery),
    responses((status = 200, description = "A page of extracts", body = Success<Vec<ExtractBody>>,
        headers(("Link" = String, description = "The next page, `rel=\"next\"`")))))]
pub async fn list_extracts(
    State(http): State<Http>,
    uri: Uri,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, Problem> {
    let limit = super::limit(query.limit, 100)?;
    let cursor = query.cursor.as_deref().map(Cursor::parse).transpose()?;
    let found = extracts::list(&http.app.pool, cursor.as_ref().map(Cursor::place), limit).await?;
    let full = i64::try_from(found.len()).is_ok_and(|count| count == limit);
    let cursor = |last: &Extract| Cursor { created_at: last.created_at, id: last.id.clone() };
    let next = found.last().filter(|_| full).map(|last| (LINK, super::next_page(&uri, cursor(last))));
    let page = found.into_iter().map(body).collect::<Result<Vec<_>>>()?;
    Ok((AppendHeaders(next), Success::of(page)))
}

/// One extract.
#[utoipa::path(get, path = "/api/data/extracts/{id}", operation_id = "get_extract", tag = "extracts",
    params(("id" = String, Path, description = "The extract's id")),
    responses((status = 200, description = "The extract", body = Success<ExtractBody>,
        headers(("ETag" = String, description = "Its version")))))]
pub async fn get_extract(State(http): State<Http>, Path(id): Path<String>) -> Result<impl IntoResponse, Problem> {
    let found = extract::find(&http.app, &id).await?;
    Ok(([(ETAG, tag(found.version))], Success::of(body(found)?)))
}

/// Changes an extract: fields that are left out stay as they are.
///
/// The version that was read has to be named, by `If-Match` or as `version`, so that two editors do not overwrite each
/// other.
#[utoipa::path(put, path = "/api/data/extracts/{id}", operation_id = "update_extract", tag = "extracts",
    request_body(content = ref("#/components/schemas/ExtractChange")),
    params(("id" = String, Path, description = "The extract's id"),
        ("If-Match" = Option<String>, Header, description = "The version that was read, as `ETag` has it",
            pattern = r#"^(W/)?"?[0-9]{1,18}"?$"#)),
    responses((status = 200, description = "The extract as it is now", body = Success<ExtractBody>,
        headers(("ETag" = String, description = "Its version"))),
        (status = 409, description = "There is an extract of that name"),
        (status = 412, description = "Somebody else has changed it since; read it again")))]
pub async fn update_extract(
    State(http): State<Http>,
    headers: HeaderMap,
    Path(id): Path<String>,
    Json(request): Json<Value>,
) -> Result<impl IntoResponse, Problem> {
    let found = extract::find(&http.app, &id).await?;
    let mut fields = Fields::of(request)?;
    let version = version(&headers, &mut fields)?;
    for (name, leave) in READ_ONLY {
        leave(&mut fields, name);
    }
    let before = ExtractConfig::read(&found.config)?;
    let mut config = before.clone();
    lay_over(&mut fields, &mut config);
    // What is wrong already, as with a dataset that is gone, must not keep an extract from being disabled.
    let stored = checked(&http, fields, &config, &before.faults(&http.app))?;
    let mut transaction = http.app.pool.begin().await?;
    let changed = extracts::update(&mut transaction, &id, version, &config.name, &stored).await?;
    let changed = changed.ok_or_else(|| {
        let now = found.version;
        Error::Outdated(format!(
            "the extract is not at version {version} any more: it was at {now} just now; read it again"
        ))
    })?;
    if is_rescheduled(&before, &config) {
        // What it missed while it did not run by itself, it shall not make up for.
        schedules::change(&mut transaction, &extract::schedule_name(&id), Utc::now()).await?;
    }
    transaction.commit().await?;
    Ok(([(ETAG, tag(changed.version))], Success::of(body(changed)?)))
}

fn is_rescheduled(before: &ExtractConfig, now: &ExtractConfig) -> bool {
    let of = |config: &ExtractConfig| {
        (config.schedule.clone(), config.timezone.clone(), config.schedule_enabled, config.enabled)
    };
    of(before) != of(now)
}

/// The version that an editor has read.
fn version(headers: &HeaderMap, fields: &mut Fields) -> Result<i64> {
    let read: Option<i64> = fields.take("version");
    if let Some(tag) = headers.get(IF_MATCH) {
        let tag = tag.to_str().unwrap_or_default().trim().trim_start_matches("W/").trim_matches('"');
        return tag
            .parse()
            .map_err(|_| Error::parameter("If-Match", "is no version of an extract; send `ETag` as you got it"));
    }
    read.ok_or_else(|| {
        Error::parameter("version", "is required: the version that you have read, here or as `If-Match`")
    })
}

/// What becomes of the files of an extract that is removed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// Whether runs and their files stay until their time is over; `false` removes them at once.
    #[serde(default)]
    #[param(default = false)]
    keep_files: bool,
}

/// Removes an extract with its runs and their files, or keeps those until their time is over.
#[utoipa::path(delete, path = "/api/data/extracts/{id}", operation_id = "delete_extract", tag = "extracts",
    params(("id" = String, Path, description = "The extract's id"), DeleteQuery),
    responses((status = 204, description = "Removed"), (status = 409, description = "It is running")))]
pub async fn delete_extract(
    State(http): State<Http>,
    Path(id): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<StatusCode, Problem> {
    extract::remove(&http.app, &id, query.keep_files).await?;
    tracing::info!(extract = id, keep_files = query.keep_files, "extract removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Whether a run may wait.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RunQuery {
    /// Whether it may begin after the one under way; `false` refuses it. `?wait` alone means `true`.
    #[param(value_type = Option<bool>)]
    wait: Option<String>,
}

/// A run that was made.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExtractStarted)]
pub struct StartedBody {
    /// The run.
    #[schema(example = "run_x3q7dk2mzp5wa4hc")]
    run_id: String,
    /// What happens.
    #[schema(example = "Extract queued for execution")]
    message: &'static str,
    /// Where to ask how far it is.
    #[schema(example = "/api/data/extract_runs/run_x3q7dk2mzp5wa4hc")]
    status_url: String,
}

/// Runs an extract, in the background.
#[utoipa::path(post, path = "/api/extracts/{id}/run", operation_id = "run_extract", tag = "extracts",
    params(("id" = String, Path, description = "The extract's id"), RunQuery),
    responses((status = 202, description = "A run was made", body = Success<StartedBody>,
        headers(("Location" = String, description = "The run"))),
        (status = 409, description = "The extract is disabled, or already running")))]
pub async fn run_extract(
    State(http): State<Http>,
    Path(id): Path<String>,
    Query(query): Query<RunQuery>,
) -> Result<impl IntoResponse, Problem> {
    let wait = match query.wait.as_deref() {
        None | Some("false" | "0") => false,
        Some("" | "true" | "1") => true,
        Some(_) => return Err(Error::parameter("wait", "must be true or false").into()),
    };
    let mut transaction = http.app.pool.begin().await?;
    let run_id = extract::start(&http.app, &mut transaction, &id, Cause::Manual { wait }).await?;
    transaction.commit().await?;
    http.app.wake_workers();
    let status_url = format!("/api/data/extract_runs/{run_id}");
    let message = "Extract queued for execution";
    let started = StartedBody { run_id, message, status_url: status_url.clone() };
    Ok((StatusCode::ACCEPTED, [(LOCATION, status_url)], Success::of(started)))
}

/// A run that is stopped.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExtractCancelled)]
pub struct CancelledBody {
    /// The run that was under way; null when there were only some that waited.
    #[schema(required)]
    run_id: Option<String>,
    /// What happens.
    #[schema(example = "Extract is being cancelled")]
    message: &'static str,
}

/// Stops the run of an extract, and those that wait for it.
#[utoipa::path(post, path = "/api/extracts/{id}/cancel", operation_id = "cancel_extract", tag = "extracts",
    params(("id" = String, Path, description = "The extract's id")),
    responses((status = 202, description = "It is stopped, or will be within seconds", body = Success<CancelledBody>),
        (status = 409, description = "The extract is not running")))]
pub async fn cancel_extract(State(http): State<Http>, Path(id): Path<String>) -> Result<impl IntoResponse, Problem> {
    let run_id = extract::cancel(&http.app, &id).await?;
    let cancelled = CancelledBody { run_id, message: "Extract is being cancelled" };
    Ok((StatusCode::ACCEPTED, Success::of(cancelled)))
}
