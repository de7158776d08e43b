//! Delivery to LabKey: starting it, looking at it, and steering what was refused.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Http;
use super::fields::Fields;
use super::jobs::JobStatus;
use super::problem::Problem;
use crate::db::jobs::{self, Job};
use crate::db::labkey;
use crate::db::labkey::log::{self, Refused};
use crate::error::{Error, Result};
use crate::jobs::enqueue_sync;
use crate::jobs::sync::configured;
use crate::labkey::list::List;
use crate::labkey::preflight::{self, ListCheck};
use crate::labkey::report::DatasetReport;
use crate::labkey::{Labkey, sync};

/// How often the end of a sync is looked for.
const POLL: Duration = Duration::from_millis(100);

/// Which datasets are delivered, and whether for good.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SyncQuery {
    /// That dataset only.
    dataset: Option<String>,
    /// Sends nothing: compares the lists with what would be sent, and lets LabKey check the next rows.
    #[serde(default)]
    dry_run: bool,
}

/// What a sync did.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = SyncReport)]
pub struct SyncBody {
    /// Rows that LabKey took.
    #[schema(example = 12_000, minimum = 0)]
    uploaded: u64,
    /// Rows that LabKey refused.
    #[schema(example = 0, minimum = 0)]
    failed: u64,
    /// Rows that still are to be delivered.
    #[schema(example = 0, minimum = 0)]
    remaining: u64,
    /// Whether nothing was sent.
    dry_run: bool,
    /// What went wrong, of all datasets.
    errors: Vec<String>,
    /// From beginning to end.
    #[schema(example = 0.9, minimum = 0)]
    duration_seconds: f64,
    /// The same for each dataset.
    datasets: Vec<DatasetReport>,
}

impl SyncBody {
    fn of(datasets: Vec<DatasetReport>, dry_run: bool, started: Instant) -> Self {
        let errors = datasets.iter().flat_map(|one| one.errors.iter().map(|error| format!("{}: {error}", one.dataset)));
        Self {
            uploaded: datasets.iter().map(|one| one.uploaded).sum(),
            failed: datasets.iter().map(|one| one.failed).sum(),
            remaining: datasets.iter().map(|one| one.remaining).sum(),
            dry_run,
            errors: errors.collect(),
            duration_seconds: (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
            datasets,
        }
    }
}

/// A sync that takes longer than a request may.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = SyncJob)]
pub struct SyncJobBody {
    /// Ask `GET /jobs/{id}` how far it is.
    job_id: Uuid,
    /// All jobs of this sync, one for each dataset.
    job_ids: Vec<Uuid>,
    /// Where the first of them is.
    #[schema(value_type = JobStatus)]
    status: String,
}

/// Delivers what is pending to LabKey.
///
/// It goes on until nothing is pending. When that takes longer than a request may, the answer is 202 with the job.
#[utoipa::path(post, path = "/labkey/sync", operation_id = "sync_labkey", tag = "labkey", params(SyncQuery),
    responses((status = 200, description = "The sync has ended, well or not: see `errors`", body = SyncBody),
        (status = 202, description = "It goes on in the background", body = SyncJobBody,
            headers(("Location" = String, description = "The job"))),
        (status = 502, description = "LabKey does not let us in, or its answer cannot be understood")))]
pub async fn sync_labkey(State(http): State<Http>, Query(query): Query<SyncQuery>) -> Result<Response, Problem> {
    let labkey = configured(&http.app)?;
    let lists = wanted(&http, &labkey, query.dataset.as_deref())?;
    let started = Instant::now();
    if query.dry_run {
        let mut reports = Vec::new();
        for list in lists {
            reports.push(sync::rehearse(&http.app.pool, &labkey, list).await?);
        }
        return Ok(Json(SyncBody::of(reports, true, started)).into_response());
    }
    let mut waiting = Vec::new();
    for list in lists {
        waiting.push(begin(&http, &list.dataset.name).await?);
    }
    http.app.wake_workers();
    let deadline = started + labkey.config.sync_wait;
    let mut ended = Vec::new();
    for (mut job, mut is_new) in waiting {
        let mut before = DatasetReport::default();
        while !job.has_ended() {
            if Instant::now() >= deadline {
                return Ok(accepted(&http, &job).await?);
            }
            tokio::time::sleep(POLL).await;
            job = find(&http, job.id).await?;
            // One that ran before may have looked for the last time before our rows came.
            if job.state == "completed" && !is_new {
                before = report(&job);
                (job, is_new) = begin(&http, &before.dataset).await?;
                http.app.wake_workers();
            }
        }
        ended.push(report(&job).after(before));
    }
    Ok(Json(SyncBody::of(ended, false, started)).into_response())
}

async fn begin(http: &Http, dataset: &str) -> Result<(Job, bool)> {
    let mut connection = http.app.pool.acquire().await?;
    enqueue_sync(&mut connection, dataset).await
}

async fn find(http: &Http, id: Uuid) -> Result<Job> {
    let job = jobs::by_id(&http.app.pool, id).await?;
    job.ok_or_else(|| Error::NotFound { what: "job", name: id.to_string() })
}

async fn accepted(http: &Http, first: &Job) -> Result<Response> {
    let unfinished = jobs::unfinished_of(&http.app.pool, &first.kind).await?;
    let body = SyncJobBody { job_id: first.id, job_ids: unfinished, status: first.state.clone() };
    Ok((StatusCode::ACCEPTED, [(LOCATION, format!("/jobs/{}", first.id))], Json(body)).into_response())
}

/// What a job told; at least why it failed.
fn report(job: &Job) -> DatasetReport {
    let told = job.report.clone().and_then(|report| serde_json::from_value(report).ok());
    let mut report: DatasetReport = told.unwrap_or_default();
    if report.dataset.is_empty() {
        let dataset = job.payload.get("dataset").and_then(serde_json::Value::as_str);
        report.dataset = dataset.unwrap_or_default().to_owned();
        report.errors.extend(job.error.clone());
    }
    report
}

fn wanted<'l>(http: &Http, labkey: &'l Labkey, dataset: Option<&str>) -> Result<Vec<&'l List>> {
    match dataset {
        Some(name) => {
            super::datasets::find(http, name)?;
            Ok(vec![labkey.list(name)?])
        }
        None => Ok(labkey.lists.iter().collect()),
    }
}

/// Why LabKey cannot be used.
#[derive(utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "describes the words of `FailureKind::as_str`")]
pub enum LabkeyReason {
    /// Something in the request was refused.
    Invalid,
    /// A key is there already.
    Duplicate,
    /// The list, the project or the address is not as configured.
    Configuration,
    /// The user may not do this.
    Permission,
    /// The key or the password is not accepted.
    Authentication,
    /// The security context was not accepted.
    SecurityContext,
    /// LabKey does not answer, or is at its limits.
    Unavailable,
    /// Nobody knows whether it was done.
    Unknown,
}

/// Whether requests are sent to LabKey.
#[derive(utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = LabkeyBreaker)]
#[expect(dead_code, reason = "describes the words of `breaker`")]
pub enum BreakerState {
    /// They are.
    Closed,
    /// LabKey is left alone for a while, because it did not answer.
    Open,
}

/// Whether LabKey can be delivered to.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = LabkeyStatus)]
pub struct StatusBody {
    /// Whether LabKey answers and knows us.
    connected: bool,
    /// The server.
    #[schema(example = "https://labkey.example.org")]
    server_url: String,
    /// The project or folder of the lists.
    #[schema(example = "/NVD/Metagenomics")]
    project_path: String,
    /// As whom we are known there.
    #[schema(required, example = "nvd-bot@example.org")]
    user: Option<String>,
    /// Why LabKey cannot be used.
    #[schema(required, value_type = Option<LabkeyReason>)]
    reason: Option<&'static str>,
    /// The same in words.
    #[schema(required)]
    problem: Option<String>,
    /// Whether requests are sent at all.
    #[schema(value_type = BreakerState)]
    breaker: &'static str,
    /// Whether rows are delivered by themselves.
    auto_upload: bool,
    /// How each list compares with what would be sent, if LabKey could be asked, and with where rows went before.
    lists: Vec<ListStatus>,
}

/// One list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = LabkeyListStatus)]
pub struct ListStatus {
    /// What was found there.
    #[serde(flatten)]
    check: ListCheck,
    /// When a sync of it last ended.
    #[schema(required)]
    last_sync: Option<DateTime<Utc>>,
    /// When one last ended well.
    #[schema(required)]
    last_success: Option<DateTime<Utc>>,
    /// Why the last one stopped; none when it did not.
    #[schema(required)]
    last_error: Option<String>,
}

/// Asks LabKey who we are, and compares its lists with what would be sent.
#[utoipa::path(get, path = "/labkey/status", operation_id = "get_labkey_status", tag = "labkey",
    responses((status = 200, description = "What was found, good or not", body = StatusBody)))]
pub async fn labkey_status(State(http): State<Http>) -> Result<Json<StatusBody>, Problem> {
    let labkey = configured(&http.app)?;
    let mut status = StatusBody {
        connected: false,
        server_url: labkey.config.server_url.clone().unwrap_or_default(),
        project_path: labkey.config.project_path.clone().unwrap_or_default(),
        user: None,
        reason: None,
        problem: None,
        breaker: "closed",
        auto_upload: labkey.config.auto_upload,
        lists: Vec::new(),
    };
    let before = labkey::destinations(&http.app.pool).await?;
    let checks = match preflight::all(&labkey, &before).await {
        Ok((user, checks)) => {
            status.connected = true;
            status.user = Some(user.email);
            checks
        }
        Err(failure) => {
            status.reason = Some(failure.kind.as_str());
            status.problem = Some(failure.reason);
            labkey.lists.iter().map(|list| ListCheck::of(list).after(&labkey, &before)).collect()
        }
    };
    let syncs = labkey::last_syncs(&http.app.pool).await?;
    status.lists = checks.into_iter().map(|check| list_status(check, &syncs)).collect();
    if labkey.client.is_paused() {
        status.breaker = "open";
    }
    Ok(Json(status))
}

fn list_status(check: ListCheck, syncs: &[labkey::LastSync]) -> ListStatus {
    let last = syncs.iter().find(|sync| sync.dataset == check.dataset);
    ListStatus {
        last_sync: last.map(|sync| sync.synced_at),
        last_success: last.and_then(|sync| sync.succeeded_at),
        last_error: last.and_then(|sync| sync.problem.clone()),
        check,
    }
}

/// How many rows are where, and since when.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
#[schema(as = LabkeyCounts)]
pub struct Counts {
    /// Rows that LabKey has.
    #[schema(example = 120_000, minimum = 0)]
    uploaded_count: i64,
    /// Rows that still are to be delivered.
    #[schema(example = 0, minimum = 0)]
    pending_count: i64,
    /// Rows that LabKey refused.
    #[schema(example = 1, minimum = 0)]
    failed_count: i64,
    /// When rows were last delivered.
    #[schema(required)]
    last_sync_time: Option<DateTime<Utc>>,
    /// When the oldest pending row was taken in.
    #[schema(required)]
    oldest_pending_time: Option<DateTime<Utc>>,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.uploaded_count += other.uploaded_count;
        self.pending_count += other.pending_count;
        self.failed_count += other.failed_count;
        self.last_sync_time = self.last_sync_time.max(other.last_sync_time);
        self.oldest_pending_time = self.oldest_pending_time.into_iter().chain(other.oldest_pending_time).min();
    }
}

impl From<labkey::Stats> for Counts {
    fn from(stats: labkey::Stats) -> Self {
        Self {
            uploaded_count: stats.uploaded,
            pending_count: stats.pending,
            failed_count: stats.failed,
            last_sync_time: stats.last_delivered,
            oldest_pending_time: stats.oldest_pending,
        }
    }
}

/// The numbers of all datasets together, and of each.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
#[schema(as = LabkeyStats)]
pub struct StatsBody {
    #[serde(flatten)]
    all: Counts,
    /// The same for each dataset.
    datasets: Vec<DatasetStats>,
}

/// The numbers of one dataset.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = LabkeyDatasetStats)]
pub struct DatasetStats {
    /// The dataset's name.
    #[schema(example = "gottcha2")]
    dataset: String,
    #[serde(flatten)]
    counts: Counts,
}

/// Counts rows by what became of them.
#[utoipa::path(get, path = "/labkey/stats", operation_id = "get_labkey_stats", tag = "labkey",
    responses((status = 200, description = "The numbers", body = StatsBody)))]
pub async fn labkey_stats(State(http): State<Http>) -> Result<Json<StatsBody>, Problem> {
    let labkey = configured(&http.app)?;
    let mut body = StatsBody::default();
    for list in &labkey.lists {
        let counts = labkey::stats(&http.app.pool, &list.dataset.name, labkey.since).await?.into();
        body.all.add(&counts);
        body.datasets.push(DatasetStats { dataset: list.dataset.name.clone(), counts });
    }
    Ok(Json(body))
}

/// What LabKey refused and shall be tried again; all of it when nothing is said.
#[derive(utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LabkeyRetryRequest)]
#[expect(dead_code, reason = "describes the JSON that `retry_labkey` reads")]
pub struct RetryRequest {
    /// Of that dataset.
    #[schema(example = "gottcha2")]
    dataset: Option<String>,
    /// That delivery.
    delivery_id: Option<i64>,
    /// Whose reason contains this text.
    #[schema(example = "Could not convert")]
    reason: Option<String>,
}

/// What will be tried again.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = LabkeyRetry)]
pub struct RetryBody {
    /// Deliveries.
    #[schema(example = 1, minimum = 0)]
    deliveries: i64,
    /// Their rows.
    #[schema(example = 1, minimum = 0)]
    rows: i64,
}

/// Takes refused rows up again. The next sync asks LabKey whether it has them, and sends what it has not.
#[utoipa::path(post, path = "/labkey/retry", operation_id = "retry_labkey", tag = "labkey",
    request_body = RetryRequest,
    responses((status = 200, description = "They are pending again", body = RetryBody)))]
pub async fn retry_labkey(
    State(http): State<Http>,
    Json(request): Json<serde_json::Value>,
) -> Result<Json<RetryBody>, Problem> {
    configured(&http.app)?;
    let mut fields = Fields::of(request)?;
    let dataset: Option<String> = fields.take("dataset");
    let reason: Option<String> = fields.take("reason");
    let delivery = fields.take("delivery_id");
    fields.finish()?;
    if let Some(name) = &dataset {
        super::datasets::find(&http, name)?;
    }
    let which = Refused { dataset: dataset.as_deref(), delivery, reason: reason.as_deref() };
    let (deliveries, rows) = log::retry(&http.app.pool, &which).await?;
    tracing::info!(deliveries, rows, "refused deliveries are tried again");
    Ok(Json(RetryBody { deliveries, rows }))
}
