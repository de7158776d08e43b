//! Background work: how far it is, and stopping it.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::header::LINK;
use axum::http::{StatusCode, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{AppendHeaders, IntoResponse};
use chrono::{DateTime, Utc};
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::problem::Problem;
use super::{Http, exports};
use crate::db::jobs::{self, Job};
use crate::error::{Error, Result};
use crate::jobs::Work;
use crate::labkey::report::DatasetReport;
use crate::lake;

/// How often a stream of events looks for news.
const POLL: Duration = Duration::from_millis(500);

/// How far a job is.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = JobProgress)]
pub struct ProgressBody {
    /// What it is doing: `snapshot`, `reading`, `manifest`, `done`; of a sync `check`, `reconcile`, `deliver`, `done`; of a
    /// partitioned dataset `comparing`, `writing`, `catalogue`, `waiting for readers`, `done`.
    #[schema(required, example = "reading")]
    phase: Option<String>,
    /// Rows read.
    #[schema(example = 1_200_000, minimum = 0)]
    rows: u64,
    /// Bytes written.
    #[schema(example = 54_000_000, minimum = 0)]
    bytes: u64,
    /// Rows that are expected, if that is known.
    #[schema(required, example = 2_000_000)]
    total_rows: Option<u64>,
    /// Of the expected rows.
    #[schema(required, example = 60.0, minimum = 0, maximum = 100)]
    percent: Option<f64>,
}

/// Where a job is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// It waits for a worker, or for its next attempt.
    Pending,
    /// A worker is at it.
    Running,
    /// It is done.
    Completed,
    /// It was given up.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

impl JobStatus {
    /// As it is stored.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a job has to tell.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[schema(as = JobReport)]
pub enum Report {
    /// A sync with LabKey.
    Sync(Box<DatasetReport>),
    /// A run of a partitioned dataset.
    Lake(lake::Report),
}

impl Report {
    fn of(kind: &str, told: Value) -> Option<Self> {
        match kind {
            Work::LAKE => serde_json::from_value(told).ok().map(Self::Lake),
            Work::LABKEY_SYNC => serde_json::from_value(told).ok().map(Self::Sync),
            _ => None,
        }
    }
}

/// A job.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Job)]
pub struct JobBody {
    /// Its id.
    job_id: Uuid,
    /// What kind of work it is.
    #[schema(example = "export")]
    kind: String,
    /// Where it is.
    #[schema(value_type = JobStatus)]
    status: String,
    /// The export of the catalogue that it writes, if it is one.
    #[schema(required)]
    export_id: Option<Uuid>,
    /// How far it is.
    progress: ProgressBody,
    /// How often it was tried.
    #[schema(example = 1, minimum = 0)]
    attempt: i32,
    /// How often it may be tried.
    #[schema(example = 5, minimum = 1)]
    max_attempts: i32,
    /// Whether somebody asked to stop it.
    cancel_requested: bool,
    /// Why the last attempt failed.
    #[schema(required)]
    error: Option<String>,
    /// What a sync with LabKey did, once it has ended; what a run of a partitioned dataset did.
    #[schema(required)]
    report: Option<Report>,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When it was first begun.
    #[schema(required)]
    started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[schema(required)]
    finished_at: Option<DateTime<Utc>>,
}

/// A page of jobs, newest first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct JobList(Vec<JobBody>);

/// Which jobs are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// In that state; in any unless told.
    status: Option<JobStatus>,
    /// At most so many, 100 unless told.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Where the page before ended: the `job_id` of its last entry. The `Link` header has the whole address.
    cursor: Option<Uuid>,
}

/// Lists jobs, newest first.
#[utoipa::path(get, path = "/jobs", operation_id = "list_jobs", tag = "jobs", params(ListQuery),
    responses((status = 200, description = "A page of jobs", body = JobList,
        headers(("Link" = String, description = "The next page, `rel=\"next\"`")))))]
pub async fn list_jobs(
    State(http): State<Http>,
    uri: Uri,
    Query(query): Query<ListQuery>,
) -> Result<impl IntoResponse, Problem> {
    let limit = super::limit(query.limit, 100)?;
    let found = jobs::list(&http.app.pool, query.status.map(JobStatus::as_str), query.cursor, limit).await?;
    let full = i64::try_from(found.len()).is_ok_and(|count| count == limit);
    let next = found.last().filter(|_| full).map(|last| (LINK, super::next_page(&uri, last.id)));
    let mut page = Vec::new();
    for job in found {
        page.push(body(&http, job).await?);
    }
    Ok((AppendHeaders(next), Json(JobList(page))))
}

/// One job, and how far it is.
#[utoipa::path(get, path = "/jobs/{id}", operation_id = "get_job", tag = "jobs",
    params(("id" = Uuid, Path, description = "The job's id")),
    responses((status = 200, description = "The job", body = JobBody)))]
pub async fn get_job(State(http): State<Http>, Path(id): Path<Uuid>) -> Result<Json<JobBody>, Problem> {
    let job = find(&http, id).await?;
    Ok(Json(body(&http, job).await?))
}

/// Stops a job: one that waits at once, one that runs within seconds. One that has ended stays as it is.
#[utoipa::path(post, path = "/jobs/{id}/cancel", operation_id = "cancel_job", tag = "jobs",
    params(("id" = Uuid, Path, description = "The job's id")),
    responses((status = 202, description = "It is stopped, or will be", body = JobBody)))]
pub async fn cancel_job(State(http): State<Http>, Path(id): Path<Uuid>) -> Result<impl IntoResponse, Problem> {
    if !jobs::cancel(&http.app.pool, id).await? {
        return Err(not_found(id).into());
    }
    let job = find(&http, id).await?;
    Ok((StatusCode::ACCEPTED, Json(body(&http, job).await?)))
}

/// Follows a job: server-sent events `progress`, each a job as JSON, until it has ended or the service stops.
#[utoipa::path(get, path = "/jobs/{id}/events", operation_id = "follow_job", tag = "jobs",
    params(("id" = Uuid, Path, description = "The job's id")),
    responses((status = 200, description = "Events, the last of which is the job as it ended",
        content_type = "text/event-stream", body = String)))]
pub async fn follow_job(State(http): State<Http>, Path(id): Path<Uuid>) -> Result<impl IntoResponse, Problem> {
    find(&http, id).await?;
    Ok(Sse::new(events(http, id)).keep_alive(KeepAlive::default()))
}

fn events(http: Http, id: Uuid) -> impl Stream<Item = Result<Event, Infallible>> {
    // What was told last, and whether that was the end.
    stream::unfold((http, String::new(), false), move |(http, mut told, ended)| async move {
        if ended {
            return None;
        }
        loop {
            match look(&http, id).await {
                Ok((text, ended)) if text != told || ended => {
                    told.clone_from(&text);
                    let event = Event::default().event("progress").data(text);
                    return Some((Ok(event), (http, told, ended)));
                }
                // While the database is away the job goes on, or is taken over.
                Err(error) if !error.is_retryable() => return None,
                _ => {}
            }
            // Whoever follows asks again, and finds another replica or this one started anew.
            http.app.stopping.run_until_cancelled(tokio::time::sleep(POLL)).await?;
        }
    })
}

/// A job as it is told, and whether it has ended.
async fn look(http: &Http, id: Uuid) -> Result<(String, bool)> {
    let job = find(http, id).await?;
    let ended = job.has_ended();
    let text = serde_json::to_string(&body(http, job).await?);
    Ok((text.map_err(|error| Error::Internal(format!("a job cannot be written: {error}")))?, ended))
}

async fn find(http: &Http, id: Uuid) -> Result<Job> {
    jobs::by_id(&http.app.pool, id).await?.ok_or_else(|| not_found(id))
}

fn not_found(id: Uuid) -> Error {
    Error::NotFound { what: "job", name: id.to_string() }
}

async fn body(http: &Http, job: Job) -> Result<JobBody> {
    let export_id = exports::export_of(http, &job).await?;
    let number = |name: &str| job.progress.get(name).and_then(Value::as_u64);
    let (rows, total_rows) = (number("rows").unwrap_or_default(), number("total_rows"));
    let percent = total_rows.map(|total| super::percent(rows, total));
    Ok(JobBody {
        job_id: job.id,
        export_id,
        progress: ProgressBody {
            phase: job.progress.get("phase").and_then(Value::as_str).map(str::to_owned),
            rows,
            bytes: number("bytes").unwrap_or_default(),
            total_rows,
            percent,
        },
        report: job.report.and_then(|told| Report::of(&job.kind, told)),
        kind: job.kind,
        status: job.state,
        attempt: job.attempt,
        max_attempts: job.max_attempts,
        cancel_requested: job.cancel_requested,
        error: job.error,
        created_at: job.created_at,
        started_at: job.started_at,
        finished_at: job.finished_at,
    })
}
