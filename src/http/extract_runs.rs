//! Runs of extracts: how far they are, and their files.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::header::{LINK, RANGE};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{AppendHeaders, IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::download::{self, FileContent, Stored};
use super::extract_docs::{ArtifactKind, ExtractCause, StorageBackend};
use super::extracts::Success;
use super::links::Proof;
use super::problem::Problem;
use super::{Cursor, Http, auth, links, zip};
use crate::config::Scope;
use crate::db::artifacts::{self, Artifact};
use crate::db::extract_runs::{self, Filter, Run};
use crate::error::{Error, Result};
use crate::export::manifest::media_type;
use crate::export::zip::Entry;
use crate::jobs::extract::config::ExtractConfig;

/// Where a run is.
#[derive(Debug, Clone, Copy, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExtractRunStatus {
    /// It waits for the run before it.
    Pending,
    /// It waits for a worker.
    Queued,
    /// A worker is at it.
    Running,
    /// Its files can be downloaded.
    Completed,
    /// It was given up; what it had written by then can be downloaded.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

impl ExtractRunStatus {
    /// As the database tells it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How far a run is.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExtractProgress)]
pub struct ProgressBody {
    /// What it is doing: `snapshot`, `exported_describe`, `exporting_data`, `archiving`, `manifest`, `done`.
    #[schema(required, example = "exporting_data")]
    phase: Option<String>,
    /// Datasets of the run.
    #[schema(example = 10, minimum = 0)]
    schemas_total: u64,
    /// Datasets that are written.
    #[schema(example = 5, minimum = 0)]
    schemas_completed: u64,
    /// The dataset that is being written.
    #[schema(required, example = "gottcha2")]
    current_schema: Option<String>,
    /// Rows so far.
    #[schema(example = 12_500, minimum = 0)]
    records_exported: u64,
}

/// A file that a run has written.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExtractArtifact)]
pub struct ArtifactBody {
    /// `artifact_` and letters.
    #[schema(example = "artifact_p5wa4hcx3q7dk2mz")]
    id: String,
    /// Its name.
    #[schema(example = "gottcha2.jsonl.gz")]
    name: String,
    /// What is in it.
    #[schema(value_type = ArtifactKind)]
    kind: String,
    /// The dataset of a data file.
    #[schema(required, example = "gottcha2")]
    schema: Option<String>,
    /// Its media type.
    #[schema(example = "application/gzip")]
    content_type: &'static str,
    /// Its size.
    #[schema(example = 90_211_004, minimum = 0)]
    size_bytes: i64,
    /// Its rows.
    #[schema(example = 2_000_000, minimum = 0)]
    rows: i64,
    /// SHA-256 of its bytes, in hexadecimal.
    sha256: String,
    /// Where it lies in the storage.
    #[schema(example = "extracts/run_x3q7dk2mzp5wa4hc/1/gottcha2.jsonl.gz")]
    storage_path: String,
    /// The kind of storage.
    #[schema(value_type = StorageBackend)]
    storage_backend: &'static str,
    /// Whether its run failed, so that others are missing.
    partial: bool,
    /// A link that works without headers for a while.
    download_url: String,
    /// How often it was downloaded.
    #[schema(example = 3, minimum = 0)]
    download_count: i64,
    /// When it was last downloaded.
    #[schema(required)]
    last_accessed_at: Option<DateTime<Utc>>,
    /// When it was complete.
    created_at: DateTime<Utc>,
    /// When it is removed.
    #[schema(required)]
    expires_at: Option<DateTime<Utc>>,
}

/// A run of an extract. What is known only at its end is null before.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExtractRun)]
pub struct RunBody {
    /// `run_` and letters.
    #[schema(example = "run_x3q7dk2mzp5wa4hc")]
    id: String,
    /// The extract; null when it was removed.
    #[schema(required)]
    extract_id: Option<String>,
    /// The job that does it; null while it waits for the run before it.
    #[schema(required)]
    job_id: Option<Uuid>,
    /// Where it is.
    #[schema(value_type = ExtractRunStatus)]
    status: String,
    /// How far it is, in percent.
    #[schema(example = 45, minimum = 0, maximum = 100)]
    progress: u64,
    /// How far it is.
    progress_detail: ProgressBody,
    /// What was extracted, and how.
    config: ExtractConfig,
    /// What made it.
    #[schema(value_type = ExtractCause)]
    cause: String,
    /// Rows of all data files.
    #[schema(required, example = 2_000_000, minimum = 0)]
    records_exported: Option<i64>,
    /// Size of all artifacts.
    #[schema(required, example = 90_211_004, minimum = 0)]
    size_bytes: Option<i64>,
    /// Why the last attempt failed.
    #[schema(required)]
    error_message: Option<String>,
    /// Its files, in the order in which they were complete.
    artifacts: Vec<ArtifactBody>,
    /// A link to all files as one ZIP, which works without headers for a while.
    #[schema(required)]
    download_url: Option<String>,
    /// How often all files were downloaded as one.
    #[schema(example = 1, minimum = 0)]
    download_count: i64,
    /// When they last were.
    #[schema(required)]
    last_accessed_at: Option<DateTime<Utc>>,
    /// When the one state was taken that all files hold.
    #[schema(required)]
    snapshot_at: Option<DateTime<Utc>>,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When it was first begun.
    #[schema(required)]
    started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[schema(required)]
    completed_at: Option<DateTime<Utc>>,
    /// When its files are removed.
    #[schema(required)]
    expires_at: Option<DateTime<Utc>>,
}

/// Which runs are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Of that extract.
    extract_id: Option<String>,
    /// In that state; in any unless told.
    status: Option<ExtractRunStatus>,
    /// At most so many, 100 unless told.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Where the page before ended. Its `Link` header has the whole address.
    #[param(pattern = "^[0-9]{1,16}_[a-z][a-z0-9_]{0,47}$")]
    cursor: Option<String>,
}

/// Lists runs, newest first.
#[utoipa::path(get, path = "/api/data/extract_runs", operation_id = "list_extract_runs", tag = "extracts",
    params(ListQuery),
    responses((status = 200, description = "A page of runs", body = Success<Vec<RunBody>>,
        headers(("Link" = String, description = "The next page, `rel=\"next\"`")))))]
pub async fn list_extract_runs(
    State(http): State<Http>,
    uri: Uri,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<impl IntoResponse, Problem> {
    let limit = super::limit(query.limit, 100)?;
    let cursor = query.cursor.as_deref().map(Cursor::parse).transpose()?;
    let filter = Filter {
        extract_id: query.extract_id.as_deref(),
        status: query.status.map(ExtractRunStatus::as_str),
        before: cursor.as_ref().map(Cursor::place),
        limit,
    };
    let found = extract_runs::list(&http.app.pool, &filter).await?;
    let full = i64::try_from(found.len()).is_ok_and(|count| count == limit);
    let cursor = |last: &Run| Cursor { created_at: last.created_at, id: last.id.clone() };
    let next = found.last().filter(|_| full).map(|last| (LINK, super::next_page(&uri, cursor(last))));
    Ok((AppendHeaders(next), Success::of(bodies(&http, &headers, found).await?)))
}

/// One run, and how far it is.
#[utoipa::path(get, path = "/api/data/extract_runs/{runId}", operation_id = "get_extract_run", tag = "extracts",
    params(("runId" = String, Path, description = "The run's id")),
    responses((status = 200, description = "The run", body = Success<RunBody>)))]
pub async fn get_extract_run(
    State(http): State<Http>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Success<RunBody>>, Problem> {
    let run = find(&http, &id).await?;
    let body = bodies(&http, &headers, vec![run]).await?.pop();
    Ok(Success::of(body.ok_or_else(|| not_found(&id))?))
}

/// Downloads all files of a run as one ZIP, which is made while it is sent.
#[utoipa::path(get, path = "/api/extracts/runs/{runId}/download", operation_id = "download_extract_run", tag = "extracts",
    params(("runId" = String, Path, description = "The run's id"), Proof),
    responses((status = 200, description = "The ZIP", content_type = "application/octet-stream", body = FileContent),
        (status = 206, description = "A range of a ZIP that is an archive already",
            content_type = "application/octet-stream", body = FileContent),
        (status = 302, description = "It is an archive already and lies in a bucket, at the address in `Location`"),
        (status = 409, description = "The run has not ended, or was cancelled"),
        (status = 410, description = "Its time is over, or it is gone from the storage"),
        (status = 416, description = "The archive has no such range")))]
pub async fn download_extract_run(
    State(http): State<Http>,
    method: Method,
    headers: HeaderMap,
    Path(id): Path<String>,
    Query(proof): Query<Proof>,
) -> Result<Response, Problem> {
    allow(&http, &headers, &run_path(&id), &proof).await?;
    let run = find(&http, &id).await?;
    check_downloadable(&run)?;
    let files = artifacts::of_runs(&http.app.pool, std::slice::from_ref(&run.id)).await?;
    let name = archive_name(&run)?;
    let archive = files.iter().find(|file| file.kind == "archive" && run.status == "completed");
    let answer = match archive {
        Some(archive) => download::send_one(&http, &method, &headers, &stored(archive, name)).await?,
        None => {
            let entries = files.into_iter().map(|file| Entry { name: file.name, path: file.path });
            zip::answer(&http, &method, &name, entries.collect()).await?
        }
    };
    if is_first_part(&method, &headers) {
        extract_runs::count_download(&http.app.pool, &run.id).await?;
    }
    Ok(answer)
}

/// Downloads one file of a run.
///
/// Files in a bucket are answered with a redirect to it; others with the bytes, in ranges where asked for.
#[utoipa::path(get, path = "/api/extracts/artifacts/{artifactId}/download", operation_id = "download_extract_artifact",
    tag = "extracts", params(("artifactId" = String, Path, description = "The artifact's id"), Proof),
    responses((status = 200, description = "The file", content_type = "application/octet-stream", body = FileContent),
        (status = 409, description = "The run has not ended, or was cancelled"),
        (status = 410, description = "Its time is over, or it is gone from the storage")))]
pub async fn download_extract_artifact(
    State(http): State<Http>,
    method: Method,
    headers: HeaderMap,
    Path(id): Path<String>,
    Query(proof): Query<Proof>,
) -> Result<Response, Problem> {
    allow(&http, &headers, &artifact_path(&id), &proof).await?;
    let artifact = artifacts::by_id(&http.app.pool, &id).await?;
    let artifact = artifact.ok_or_else(|| Error::NotFound { what: "artifact", name: id.clone() })?;
    let run = find(&http, &artifact.run_id).await?;
    check_downloadable(&run)?;
    let answer = download::send_one(&http, &method, &headers, &stored(&artifact, artifact.name.clone())).await?;
    if is_first_part(&method, &headers) {
        artifacts::count_download(&http.app.pool, &id).await?;
    }
    Ok(answer)
}

async fn allow(http: &Http, headers: &HeaderMap, path: &str, proof: &Proof) -> Result<()> {
    if !links::check(&http.app, path, proof).await? {
        auth::authorize(http, headers, Scope::Read).await?;
    }
    Ok(())
}

/// Files of a run that failed can be had too: they tell how far it came.
fn check_downloadable(run: &Run) -> Result<()> {
    if run.expired_at.is_some() || run.expires_at.is_some_and(|end| end < Utc::now()) {
        return Err(Error::Gone(
            "the time of this run is over and its files are removed: run the extract again".into(),
        ));
    }
    if ["completed", "failed"].contains(&run.status.as_str()) {
        return Ok(());
    }
    Err(Error::Conflict(format!("this run is {}; GET /api/data/extract_runs/{} says more", run.status, run.id)))
}

/// Whether a request begins a download, as opposed to those that go on with one.
fn is_first_part(method: &Method, headers: &HeaderMap) -> bool {
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
    *method == Method::GET && range.is_none_or(|range| range.starts_with("bytes=0-"))
}

fn run_path(id: &str) -> String {
    format!("/api/extracts/runs/{id}/download")
}

fn artifact_path(id: &str) -> String {
    format!("/api/extracts/artifacts/{id}/download")
}

fn stored(artifact: &Artifact, name: String) -> Stored {
    Stored { name, path: artifact.path.clone(), bytes: artifact.bytes, sha256: artifact.sha256.clone() }
}

/// `Name-YYYY-MM-DD-runid8.zip`, of letters that every system takes.
fn archive_name(run: &Run) -> Result<String> {
    let config = ExtractConfig::read(&run.config)?;
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || "._-".contains(letter) { letter } else { '-' };
    let name: String = config.name.chars().map(plain).collect();
    let id: String = run.id.chars().take(8).collect();
    let partial = if run.status == "completed" { "" } else { "-partial" };
    Ok(format!("{name}-{}-{id}{partial}.zip", run.created_at.format("%Y-%m-%d")))
}

async fn find(http: &Http, id: &str) -> Result<Run> {
    extract_runs::by_id(&http.app.pool, id).await?.ok_or_else(|| not_found(id))
}

fn not_found(id: &str) -> Error {
    Error::NotFound { what: "extract run", name: id.to_owned() }
}

async fn bodies(http: &Http, headers: &HeaderMap, found: Vec<Run>) -> Result<Vec<RunBody>> {
    let ids: Vec<String> = found.iter().map(|run| run.id.clone()).collect();
    let mut files: HashMap<String, Vec<Artifact>> = HashMap::new();
    for artifact in artifacts::of_runs(&http.app.pool, &ids).await? {
        files.entry(artifact.run_id.clone()).or_default().push(artifact);
    }
    let base = links::base(&http.app, headers);
    let mut bodies = Vec::new();
    for run in found {
        // What was removed, or is about to be, is not shown.
        let is_shown = run.expired_at.is_none() && run.status != "cancelled";
        let files = files.remove(&run.id).filter(|_| is_shown).unwrap_or_default();
        bodies.push(body(http, &base, run, files).await?);
    }
    Ok(bodies)
}

async fn body(http: &Http, base: &str, run: Run, files: Vec<Artifact>) -> Result<RunBody> {
    let is_downloadable = check_downloadable(&run).is_ok();
    let download_url = if is_downloadable {
        Some(links::make(&http.app, base, &run_path(&run.id), &archive_name(&run)?).await?)
    } else {
        None
    };
    let mut artifacts = Vec::new();
    for file in files {
        artifacts.push(artifact(http, base, &run, file).await?);
    }
    let config = ExtractConfig::read(&run.config)?;
    let progress_detail = progress(run.progress.as_ref());
    Ok(RunBody {
        progress: if run.status == "completed" { 100 } else { percent(run.progress.as_ref(), &progress_detail) },
        progress_detail,
        config,
        artifacts,
        download_url,
        id: run.id,
        extract_id: run.extract_id,
        job_id: run.job_id,
        status: run.status,
        cause: run.cause,
        records_exported: run.records,
        size_bytes: run.bytes,
        error_message: run.error,
        download_count: run.download_count,
        last_accessed_at: run.last_accessed_at,
        snapshot_at: run.snapshot_at,
        created_at: run.created_at,
        started_at: run.started_at,
        completed_at: run.completed_at,
        expires_at: run.expires_at,
    })
}

async fn artifact(http: &Http, base: &str, run: &Run, file: Artifact) -> Result<ArtifactBody> {
    Ok(ArtifactBody {
        download_url: links::make(&http.app, base, &artifact_path(&file.id), &file.name).await?,
        content_type: media_type(&file.name),
        sha256: data_encoding::HEXLOWER.encode(&file.sha256),
        storage_backend: if http.app.storage.is_local() { "local" } else { "object" },
        partial: run.status == "failed",
        expires_at: run.expires_at,
        id: file.id,
        name: file.name,
        kind: file.kind,
        schema: file.schema,
        size_bytes: file.bytes,
        rows: file.rows,
        storage_path: file.path,
        download_count: file.download_count,
        last_accessed_at: file.last_accessed_at,
        created_at: file.created_at,
    })
}

fn progress(stored: Option<&Value>) -> ProgressBody {
    let member = |name: &str| stored.and_then(|stored| stored.get(name));
    let number = |name: &str| member(name).and_then(Value::as_u64).unwrap_or_default();
    let text = |name: &str| member(name).and_then(Value::as_str).map(str::to_owned);
    ProgressBody {
        phase: text("phase"),
        schemas_total: number("schemas_total"),
        schemas_completed: number("schemas_completed"),
        current_schema: text("current_schema"),
        records_exported: number("rows"),
    }
}

/// Of the expected rows; of the datasets where a filter leaves open how many rows there are. The end is not reached
/// before the run is complete.
fn percent(stored: Option<&Value>, detail: &ProgressBody) -> u64 {
    let total = stored.and_then(|stored| stored.get("total_rows")).and_then(Value::as_u64);
    let (part, whole) =
        total.map_or((detail.schemas_completed, detail.schemas_total), |total| (detail.records_exported, total));
    (part * 100).checked_div(whole).unwrap_or_default().min(99)
}
