//! Export jobs: exactly the rows and columns that a user asks for, in his format, for some hours.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::header::{LINK, LOCATION};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::{Extension, Json};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::auth::{self, Client};
use super::download::{self, DownloadQuery, FileContent, Stored};
use super::fields::Fields;
use super::problem::Problem;
use super::{Http, key, links};
use crate::config::{Compression, Format, Scope};
use crate::dataset::{Dataset, Fault};
use crate::db::export_jobs::{self, ExportJob, Filter};
use crate::db::{exports, jobs};
use crate::error::{Error, Result};
use crate::export::filters::RowFilter;
use crate::export::spec::ExportSpec;
use crate::jobs::{self as work, Asked, NewExport};

/// Where an export job is.
#[derive(Debug, Clone, Copy, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportJobStatus {
    /// It waits to be written.
    Pending,
    /// It is being written.
    Running,
    /// It can be downloaded.
    Completed,
    /// It was given up.
    Failed,
    /// Somebody stopped it.
    Cancelled,
    /// Its time is over, and its file is removed.
    Expired,
}

impl ExportJobStatus {
    /// As the database tells it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

/// What is wanted of a table.
#[derive(utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the JSON that `wish` reads")]
pub struct ExportJobRequest {
    /// The dataset's name, or its table's; `GET /api/v1/export/tables` lists them.
    #[schema(example = "gottcha2")]
    table_name: String,
    /// The form of the file.
    format: Format,
    /// These columns, in this order; all when absent.
    #[schema(min_items = 1, example = json!(["sample_id", "taxid", "rel_abundance"]))]
    columns: Option<Vec<String>>,
    /// At most so many rows, the earliest stored.
    #[schema(example = 10_000, minimum = 1)]
    row_limit: Option<u64>,
    /// Which rows; all when absent.
    filters: Option<RowFilter>,
    /// Whether a text file is compressed with gzip. Parquet is compressed inside in any case.
    compress: Option<bool>,
    /// Hours until the file is removed; `export.job_retention_hours` when absent.
    #[schema(example = 24, minimum = 1, maximum = 8760)]
    expires_in_hours: Option<u32>,
}

/// How far an export job is.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExportJobProgress)]
pub struct ProgressBody {
    /// What it is doing: `snapshot`, `reading`, `manifest`, `done`.
    #[schema(required, example = "reading")]
    phase: Option<String>,
    /// Rows so far.
    #[schema(example = 1_200_000, minimum = 0)]
    rows_exported: u64,
    /// Rows that are expected; null when only reading can tell, as with filters.
    #[schema(required, example = 2_000_000)]
    estimated_total: Option<u64>,
    /// Of the expected rows.
    #[schema(required, example = 60.0, minimum = 0, maximum = 100)]
    percent: Option<f64>,
}

/// An export that a user asked for. What is known only at its end is null before.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExportJob)]
pub struct ExportJobBody {
    /// From 1, growing with time.
    #[schema(example = 1, minimum = 1)]
    id: i64,
    /// Where it is.
    #[schema(value_type = ExportJobStatus)]
    status: String,
    /// As it was asked for; so are the following.
    #[schema(value_type = String, example = "gottcha2")]
    table_name: Value,
    /// The form of the file.
    #[schema(value_type = Format)]
    format: Value,
    /// These columns; null for all.
    #[schema(required, value_type = Option<Vec<String>>)]
    columns: Value,
    /// At most so many rows.
    #[schema(required, value_type = Option<u64>, minimum = 1)]
    row_limit: Value,
    /// Which rows; null for all.
    #[schema(required, value_type = Option<RowFilter>)]
    filters: Value,
    /// Whether a text file is compressed with gzip.
    compress: bool,
    /// How far it is.
    progress: ProgressBody,
    /// A link that works without headers for a while.
    #[schema(required)]
    download_url: Option<String>,
    /// The name of the file, or of the ZIP of several when it grew beyond `export.file_size`.
    #[schema(required, example = "gottcha2_20261121_050000.csv")]
    file_name: Option<String>,
    /// Where the file lies in the storage.
    #[schema(required)]
    file_path: Option<String>,
    /// Its size.
    #[schema(required, example = 90_211_004, minimum = 0)]
    file_size_bytes: Option<i64>,
    /// SHA-256 of the file in hexadecimal; null when there are several.
    #[schema(required)]
    sha256: Option<String>,
    /// Its rows.
    #[schema(required, example = 10_000, minimum = 0)]
    row_count: Option<i64>,
    /// Why the last attempt failed.
    #[schema(required)]
    error_message: Option<String>,
    /// The name of the access token that asked for it.
    created_by: String,
    /// When it was asked for.
    created_at: DateTime<Utc>,
    /// When it was first begun.
    #[schema(required)]
    started_at: Option<DateTime<Utc>>,
    /// When it was complete.
    #[schema(required)]
    completed_at: Option<DateTime<Utc>>,
    /// When its file is removed.
    #[schema(required)]
    expires_at: Option<DateTime<Utc>>,
}

/// A page of export jobs, newest first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExportJobList)]
pub struct ExportJobList(Vec<ExportJobBody>);

/// Asks for an export. It is written in the background.
///
/// With an `Idempotency-Key` that was used before, the answer is the export job of then.
#[utoipa::path(post, path = "/api/v1/export/jobs", operation_id = "create_export_job", tag = "export jobs",
    request_body = ExportJobRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "At most one export of this key is made")),
    responses((status = 202, description = "An export job was made, or found", body = ExportJobBody,
        headers(("Location" = String, description = "The export job"))),
        (status = 409, description = "The key was used for another export")))]
pub async fn create_export_job(
    State(http): State<Http>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> Result<impl IntoResponse, Problem> {
    let wish = wish(&http, request.clone())?;
    let key = key::of(&headers)?.map(|key| format!("export-job:{key}"));
    let mut transaction = http.app.pool.begin().await?;
    let new = NewExport {
        dataset: &wish.dataset,
        spec: &wish.spec,
        retention_hours: wish.hours,
        notify: &[],
        asked: Some(Asked { request: &request, client: &client.0 }),
        dedupe_key: key.as_deref(),
    };
    let job = work::enqueue_export(&http.app, &mut transaction, &new).await?;
    // As it is made: once that is visible, a worker may have begun.
    let made = export_jobs::by_job(&mut transaction, job.id).await?;
    transaction.commit().await?;
    http.app.wake_workers();
    let made = made.ok_or_else(|| Error::Conflict("the export job of this key was removed; send a new key".into()))?;
    let location = format!("/api/v1/export/jobs/{}", made.number);
    Ok((StatusCode::ACCEPTED, [(LOCATION, location)], Json(body(&http, &headers, made).await?)))
}

/// A checked wish.
struct Wish {
    dataset: Arc<Dataset>,
    spec: ExportSpec,
    hours: u32,
}

fn wish(http: &Http, request: Value) -> Result<Wish> {
    let config = &http.app.config.export;
    let mut fields = Fields::of(request)?;
    let table: Option<String> = fields.require("table_name");
    let dataset = table.as_ref().and_then(|table| dataset(http, table));
    if table.is_some() && dataset.is_none() {
        fields.fault("table_name", "is no table; GET /api/v1/export/tables lists them");
    }
    let format: Format = fields.require("format").unwrap_or_default();
    let compress = fields.take("compress").unwrap_or(false);
    let mut spec = ExportSpec {
        format,
        compression: match format {
            Format::Parquet => None,
            _ if compress => Some(Compression::Gzip),
            _ => Some(Compression::None),
        },
        columns: fields.take("columns"),
        row_limit: positive(&mut fields, "row_limit"),
        ..ExportSpec::default()
    };
    let filters: Map<String, Value> = fields.take("filters").unwrap_or_default();
    let faults = spec.filter_by("filters", &filters);
    let is_ordered = faults.is_empty();
    fields.faults(faults);
    let hours = positive(&mut fields, "expires_in_hours").unwrap_or_else(|| config.job_retention_hours.into());
    let hours = u32::try_from(hours).ok().filter(|hours| *hours <= 8760);
    if hours.is_none() {
        fields.fault("expires_in_hours", "must be at most 8760");
    }
    // What the dataset says of it, together with what is wrong already.
    if let Some(dataset) = &dataset
        && is_ordered
        && let Err(Error::Faults(faults)) = spec.plan(dataset, (config.compression, config.compression_level))
    {
        fields.faults(faults);
    }
    fields.finish()?;
    let missing = || Error::Faults(vec![Fault::of_parameter("table_name", "is required")]);
    Ok(Wish { dataset: dataset.ok_or_else(missing)?, spec, hours: hours.unwrap_or(config.job_retention_hours) })
}

/// A whole number from 1.
fn positive(fields: &mut Fields, name: &str) -> Option<u64> {
    let number: i64 = fields.take(name)?;
    let number = u64::try_from(number).ok().filter(|number| *number > 0);
    if number.is_none() {
        fields.fault(name, "must be at least 1");
    }
    number
}

/// The dataset of that name, or whose table has it.
fn dataset(http: &Http, name: &str) -> Option<Arc<Dataset>> {
    let datasets = &http.app.datasets;
    datasets.get(name).or_else(|| datasets.iter().find(|dataset| dataset.table == name)).cloned()
}

/// Which export jobs are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// In that state; in any unless told.
    status: Option<ExportJobStatus>,
    /// Of that dataset or table.
    table_name: Option<String>,
    /// At most so many, 100 unless told.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Where the page before ended: the `id` of its last entry. The `Link` header has the whole address.
    cursor: Option<i64>,
}

/// Lists export jobs, newest first.
#[utoipa::path(get, path = "/api/v1/export/jobs", operation_id = "list_export_jobs", tag = "export jobs", params(ListQuery),
    responses((status = 200, description = "A page of export jobs", body = ExportJobList,
        headers(("Link" = String, description = "The next page, `rel=\"next\"`")))))]
pub async fn list_export_jobs(
    State(http): State<Http>,
    uri: Uri,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<impl IntoResponse, Problem> {
    let limit = super::limit(query.limit, 100)?;
    let dataset = match &query.table_name {
        None => None,
        Some(table) => Some(
            dataset(&http, table)
                .ok_or_else(|| Error::parameter("table_name", "is no table; GET /api/v1/export/tables lists them"))?,
        ),
    };
    let filter = Filter {
        dataset: dataset.as_ref().map(|dataset| dataset.name.as_str()),
        status: query.status.map(ExportJobStatus::as_str),
        before: query.cursor,
        limit,
    };
    let found = export_jobs::list(&http.app.pool, &filter).await?;
    let full = i64::try_from(found.len()).is_ok_and(|count| count == limit);
    let next = found.last().filter(|_| full).map(|last| (LINK, super::next_page(&uri, last.number)));
    let mut page = Vec::new();
    for job in found {
        page.push(body(&http, &headers, job).await?);
    }
    Ok((AppendHeaders(next), Json(ExportJobList(page))))
}

/// One export job, and how far it is.
#[utoipa::path(get, path = "/api/v1/export/jobs/{id}", operation_id = "get_export_job", tag = "export jobs",
    params(("id" = i64, Path, description = "The export job's id")),
    responses((status = 200, description = "The export job", body = ExportJobBody)))]
pub async fn get_export_job(
    State(http): State<Http>,
    headers: HeaderMap,
    Path(id): Path<i64>,
) -> Result<Json<ExportJobBody>, Problem> {
    let job = find(&http, id).await?;
    Ok(Json(body(&http, &headers, job).await?))
}

/// Removes an export job and its file; one that is still to be written is cancelled.
///
/// With scope `read` those that the same token asked for; with scope `operate` any.
#[utoipa::path(delete, path = "/api/v1/export/jobs/{id}", operation_id = "delete_export_job", tag = "export jobs",
    params(("id" = i64, Path, description = "The export job's id")),
    responses((status = 204, description = "Removed")))]
pub async fn delete_export_job(
    State(http): State<Http>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    Path(id): Path<i64>,
) -> Result<StatusCode, Problem> {
    let job = find(&http, id).await?;
    if *job.client != *client.0 {
        auth::authorize(&http, &headers, Scope::Operate).await?;
    }
    // A worker that writes it hears of it, and cleans up what it has written by then.
    jobs::cancel(&http.app.pool, job.job_id).await?;
    if !exports::delete(&http.app.pool, job.export_id).await? {
        return Err(not_found(id).into());
    }
    http.app.storage.delete(&work::export_folder(&job.dataset, job.export_id)).await?;
    tracing::info!(export_job = id, dataset = job.dataset, "export job removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Downloads what an export job wrote.
///
/// `download_url` of an export job leads here, and works without a token for a while. Files in a bucket are answered
/// with a redirect to it; others with the bytes, in ranges where asked for.
#[utoipa::path(get, path = "/api/v1/export/jobs/{id}/download", operation_id = "download_export_job", tag = "export jobs",
    params(("id" = i64, Path, description = "The export job's id"), DownloadQuery),
    responses((status = 200, description = "The file, or a ZIP of several", content_type = "application/octet-stream", body = FileContent),
        (status = 409, description = "It is still to be written, or never will be"),
        (status = 410, description = "Its time is over, or its file is gone from the storage")))]
pub async fn download_export_job(
    State(http): State<Http>,
    method: Method,
    headers: HeaderMap,
    Path(id): Path<i64>,
    Query(query): Query<DownloadQuery>,
) -> Result<Response, Problem> {
    query.allow(&http, &headers, &path(id)).await?;
    let job = find(&http, id).await?;
    if job.status == "expired" {
        return Err(Error::Gone("the time of this export job is over and its file is removed: ask again".into()).into());
    }
    let Some(prefix) = &job.prefix else {
        return Err(Error::Conflict(format!(
            "this export job is {}; GET /api/v1/export/jobs/{id} says more",
            job.status
        ))
        .into());
    };
    let files = download::files(&http, job.export_id, prefix).await?;
    Ok(download::send(&http, &method, &headers, files, query.number(), &archive_name(&job)).await?)
}

/// The path of an export job's download.
fn path(id: i64) -> String {
    format!("/api/v1/export/jobs/{id}/download")
}

/// The name of several files when they are downloaded as one.
fn archive_name(job: &ExportJob) -> String {
    format!("{}_{}.zip", job.dataset, job.number)
}

async fn find(http: &Http, id: i64) -> Result<ExportJob> {
    export_jobs::by_number(&http.app.pool, id).await?.ok_or_else(|| not_found(id))
}

fn not_found(id: i64) -> Error {
    Error::NotFound { what: "export job", name: id.to_string() }
}

async fn body(http: &Http, headers: &HeaderMap, job: ExportJob) -> Result<ExportJobBody> {
    let is_complete = job.status == "completed";
    let files = match &job.prefix {
        Some(prefix) if is_complete => download::files(http, job.export_id, prefix).await?,
        _ => Vec::new(),
    };
    let only = if let [only] = files.as_slice() { Some(only) } else { None };
    let file_name = is_complete.then(|| only.map_or_else(|| archive_name(&job), |file| file.name.clone()));
    let download_url = match &file_name {
        Some(name) => Some(links::make(&http.app, &links::base(&http.app, headers), &path(job.number), name).await?),
        None => None,
    };
    let asked = |name: &str| job.request.get(name).cloned().unwrap_or(Value::Null);
    Ok(ExportJobBody {
        id: job.number,
        table_name: asked("table_name"),
        format: asked("format"),
        columns: asked("columns"),
        row_limit: asked("row_limit"),
        filters: asked("filters"),
        compress: job.request.get("compress").and_then(Value::as_bool).unwrap_or_default(),
        progress: progress(&job),
        download_url,
        file_path: only.map(|file: &Stored| file.path.clone()),
        sha256: only.map(|file| data_encoding::HEXLOWER.encode(&file.sha256)),
        file_name,
        file_size_bytes: job.bytes,
        row_count: job.rows,
        error_message: job.error,
        created_by: job.client,
        status: job.status,
        created_at: job.created_at,
        started_at: job.started_at,
        completed_at: job.completed_at,
        expires_at: job.expires_at,
    })
}

fn progress(job: &ExportJob) -> ProgressBody {
    let number = |name: &str| job.progress.get(name).and_then(Value::as_u64);
    let (rows, total) = match job.rows {
        Some(rows) => (rows.unsigned_abs(), Some(rows.unsigned_abs())),
        None => (number("rows").unwrap_or_default(), number("total_rows")),
    };
    ProgressBody {
        phase: job.progress.get("phase").and_then(Value::as_str).map(str::to_owned),
        rows_exported: rows,
        estimated_total: total,
        percent: if job.rows.is_some() { Some(100.0) } else { total.map(|total| super::percent(rows, total)) },
    }
}
