//! The catalogue of exports, and asking for one.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::header::{LINK, LOCATION};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{AppendHeaders, IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::jobs::JobStatus;
use super::problem::Problem;
use super::{Http, download, key, links};
use crate::config::Partitioning;
use crate::db::exports::{self, Export, ExportFile, Filter};
use crate::db::jobs;
use crate::error::{Error, Result};
use crate::export::spec::{Compression, ExportSpec, Format};
use crate::jobs::lake::{self, LakeRun};
use crate::jobs::{self as work, NewExport, retention};

/// One file of an export.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExportFile)]
pub struct FileBody {
    /// Its name.
    #[schema(example = "gottcha2_20261121_050000.parquet")]
    file_name: String,
    /// Its rows.
    #[schema(example = 2_000_000, minimum = 0)]
    rows: i64,
    /// Its size.
    #[schema(example = 90_211_004, minimum = 0)]
    size_bytes: i64,
    /// SHA-256 of its bytes, in hexadecimal.
    sha256: String,
    /// When the earliest of its rows was stored.
    #[schema(required)]
    min_time: Option<DateTime<Utc>>,
    /// When the latest of its rows was stored.
    #[schema(required)]
    max_time: Option<DateTime<Utc>>,
}

/// An export. What is known only at its end is null before.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Export)]
pub struct ExportBody {
    /// Grows with time.
    id: Uuid,
    /// The job that writes it.
    job_id: Uuid,
    /// The dataset's name.
    #[schema(example = "gottcha2")]
    table: String,
    /// The state of its job.
    #[schema(value_type = JobStatus)]
    status: String,
    /// The form of its files.
    #[schema(value_type = Format)]
    format: Value,
    /// How it is compressed.
    #[schema(value_type = Compression)]
    compression: String,
    /// Whether all rows and columns of the dataset were asked for: no `columns`, `filters`, `from`, `to` or `row_limit`.
    whole: bool,
    /// A link that works without headers for a while: for pandas, DuckDB, Polars, curl.
    #[schema(required)]
    download_url: Option<String>,
    /// The name of its file, or of its first one.
    #[schema(required, example = "gottcha2_20261121_050000.parquet")]
    file_name: Option<String>,
    /// Rows of all files.
    #[schema(required, example = 2_000_000, minimum = 0)]
    rows: Option<i64>,
    /// Size of all files.
    #[schema(required, example = 90_211_004, minimum = 0)]
    size_bytes: Option<i64>,
    /// SHA-256 of its file in hexadecimal; null when there are several.
    #[schema(required)]
    sha256: Option<String>,
    /// How many times larger the same rows are as CSV, estimated.
    #[schema(required, example = 4.1)]
    compression_ratio: Option<f64>,
    /// When the state was taken that it holds.
    #[schema(required)]
    snapshot_at: Option<DateTime<Utc>>,
    /// When it was asked for.
    created_at: DateTime<Utc>,
    /// When it was complete.
    #[schema(required)]
    completed_at: Option<DateTime<Utc>>,
    /// When it may be removed.
    #[schema(required)]
    expires_at: Option<DateTime<Utc>>,
    /// Its files, in order.
    files: Vec<FileBody>,
}

/// A page of exports, newest first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ExportList(Vec<ExportBody>);

/// In which state exports are wanted.
#[derive(Debug, Clone, Copy, Default, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportFilter {
    /// That wait to be written.
    Pending,
    /// That are being written.
    Running,
    /// That can be downloaded.
    #[default]
    Completed,
    /// That were given up.
    Failed,
    /// That somebody stopped.
    Cancelled,
    /// Every one.
    All,
}

impl ExportFilter {
    /// The state as it is stored; none for every state.
    const fn state(self) -> Option<&'static str> {
        match self {
            Self::Pending => Some("pending"),
            Self::Running => Some("running"),
            Self::Completed => Some("completed"),
            Self::Failed => Some("failed"),
            Self::Cancelled => Some("cancelled"),
            Self::All => None,
        }
    }
}

/// Which exports are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Of that dataset.
    table: Option<String>,
    /// At most so many, 10 unless told.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// In that state: `completed` unless told; `all` for every state.
    #[serde(default)]
    #[param(required = false)]
    status: ExportFilter,
    /// Of all rows and columns (`true`), or of some (`false`); both unless told.
    whole: Option<bool>,
    /// Where the page before ended: the `id` of its last entry. The `Link` header has the whole address.
    cursor: Option<Uuid>,
}

/// Lists exports, newest first.
///
/// The address of the next page, if there is one, stands in the `Link` header with `rel="next"`.
#[utoipa::path(get, path = "/exports", operation_id = "list_exports", tag = "exports", params(ListQuery),
    responses((status = 200, description = "A page of exports", body = ExportList,
        headers(("Link" = String, description = "The next page, `rel=\"next\"`")))))]
pub async fn list_exports(
    State(http): State<Http>,
    uri: Uri,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<impl IntoResponse, Problem> {
    let limit = super::limit(query.limit, 10)?;
    if let Some(name) = &query.table {
        super::datasets::find(&http, name)?;
    }
    let filter = Filter {
        dataset: query.table.as_deref(),
        status: query.status.state(),
        whole: query.whole,
        before: query.cursor,
        limit,
    };
    let found = exports::list(&http.app.pool, &filter).await?;
    let full = i64::try_from(found.len()).is_ok_and(|count| count == limit);
    let next = found.last().filter(|_| full).map(|last| (LINK, super::next_page(&uri, last.id)));
    Ok((AppendHeaders(next), Json(ExportList(bodies(&http, &headers, found).await?))))
}

/// One export.
#[utoipa::path(get, path = "/exports/{id}", operation_id = "get_export", tag = "exports",
    params(("id" = Uuid, Path, description = "The export's id")),
    responses((status = 200, description = "The export", body = ExportBody)))]
pub async fn get_export(
    State(http): State<Http>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<Json<ExportBody>, Problem> {
    let export = find(&http, id).await?;
    let body = bodies(&http, &headers, vec![export]).await?.pop();
    Ok(Json(body.ok_or_else(|| not_found(id))?))
}

/// Removes an export and its files. One that is still to be written has to be cancelled first.
#[utoipa::path(delete, path = "/exports/{id}", operation_id = "delete_export", tag = "exports",
    params(("id" = Uuid, Path, description = "The export's id")),
    responses((status = 204, description = "Removed"), (status = 409, description = "It is still to be written")))]
pub async fn delete_export(State(http): State<Http>, Path(id): Path<Uuid>) -> Result<StatusCode, Problem> {
    let export = find(&http, id).await?;
    if ["pending", "running"].contains(&export.status.as_str()) {
        return Err(Error::Conflict(format!(
            "this export is {}: POST /jobs/{}/cancel first",
            export.status, export.job_id
        ))
        .into());
    }
    if !retention::remove(&http.app, &export).await? {
        return Err(not_found(id).into());
    }
    tracing::info!(export = %id, dataset = export.dataset, "export removed");
    Ok(StatusCode::NO_CONTENT)
}

/// An export that is asked for: a dataset, and which of its rows and columns in which form.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub struct ExportRequest {
    /// The dataset's name.
    #[schema(example = "gottcha2")]
    table: String,
    /// What of it.
    #[serde(flatten)]
    spec: ExportSpec,
    /// Brings the partitioned dataset in `lake/` of the storage up to date instead, cut like this. It takes `format`,
    /// `compression` and `compression_level`, and `from` and `to`, which choose whole partitions.
    partition: Option<Partitioning>,
    /// Whether partitions are written anew, and what else lies in the dataset's folder is replaced.
    #[serde(default)]
    overwrite: bool,
}

/// An export that was asked for.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = TriggeredExport)]
pub struct TriggerBody {
    /// Ask `GET /jobs/{id}` how far it is.
    job_id: Uuid,
    /// The export that it writes; null where it brings a partitioned dataset up to date.
    #[schema(required)]
    export_id: Option<Uuid>,
    /// `pending`, unless the same was asked for before.
    #[schema(value_type = JobStatus)]
    status: String,
    /// The dataset's name.
    #[schema(example = "gottcha2")]
    table: String,
    /// When it was made.
    created_at: DateTime<Utc>,
}

/// Asks for an export. It is written in the background.
///
/// With an `Idempotency-Key` that was used before, the answer is the job of then. With `partition`, the partitioned
/// dataset in `lake/` of the storage is brought up to date: twice is as good as once, and needs no key.
#[utoipa::path(post, path = "/exports/trigger", operation_id = "trigger_export", tag = "exports",
    request_body = ExportRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "At most one export of this key is made")),
    responses((status = 202, description = "A job was made, or found", body = TriggerBody,
        headers(("Location" = String, description = "The job"))),
        (status = 409, description = "The key was used for another export, a run that is cut otherwise is under way, or the \
        storage lies below a folder `NAME=VALUE`, where there are no partitioned datasets")))]
pub async fn trigger_export(
    State(http): State<Http>,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> Result<Response, Problem> {
    let request = parse(request)?;
    let dataset = super::datasets::find(&http, &request.table)?;
    let key = key::of(&headers)?.map(|key| format!("trigger:{key}"));
    if let Some(partitioning) = request.partition {
        let run = LakeRun { dataset: request.table, spec: request.spec, partitioning, overwrite: request.overwrite };
        return trigger_lake(&http, run).await;
    }
    let config = &http.app.config.export;
    request.spec.plan(&dataset, (config.compression, config.compression_level))?;
    let mut transaction = http.app.pool.begin().await?;
    let new = NewExport {
        dataset: &dataset,
        spec: &request.spec,
        retention_hours: config.retention_days.saturating_mul(24),
        notify: &[],
        asked: None,
        dedupe_key: key.as_deref(),
    };
    let job = work::enqueue_export(&http.app, &mut transaction, &new).await?;
    transaction.commit().await?;
    http.app.wake_workers();
    let export = exports::by_job(&http.app.pool, job.id).await?;
    let body = TriggerBody {
        job_id: job.id,
        export_id: export.map(|export| export.id),
        status: job.state,
        table: request.table,
        created_at: job.created_at,
    };
    Ok(accepted(body))
}

fn accepted(body: TriggerBody) -> Response {
    (StatusCode::ACCEPTED, [(LOCATION, format!("/jobs/{}", body.job_id))], Json(body)).into_response()
}

/// Asks for a run of a partitioned dataset. The same wish that waits already is that job.
async fn trigger_lake(http: &Http, run: LakeRun) -> Result<Response, Problem> {
    run.wish(&http.app.config, &http.app.datasets)?;
    lake::place(&http.app).check()?;
    let table = run.dataset.clone();
    let mut transaction = http.app.pool.begin().await.map_err(Error::from)?;
    let job = lake::enqueue(&http.app, &mut transaction, run).await?;
    transaction.commit().await.map_err(Error::from)?;
    http.app.wake_workers();
    Ok(accepted(TriggerBody { job_id: job.id, export_id: None, status: job.state, table, created_at: job.created_at }))
}

/// Reads a request, and says which field is wrong. (serde's flattening would let unknown fields pass.)
fn parse(mut request: Value) -> Result<ExportRequest> {
    let table = request.as_object_mut().and_then(|fields| fields.remove("table"));
    let Some(Value::String(table)) = table else {
        return Err(Error::parameter("table", "is required: the name of a dataset; GET /datasets lists them"));
    };
    let mut take = |field: &str| request.as_object_mut().and_then(|fields| fields.remove(field));
    let (partition, overwrite) = (take("partition"), take("overwrite"));
    let partition = match partition.filter(|partition| !partition.is_null()) {
        Some(partition) => Some(
            serde_path_to_error::deserialize(partition)
                .map_err(|error| Error::parameter(&format!("partition.{}", error.path()), error.inner().to_string()))?,
        ),
        None => None,
    };
    let overwrite = match overwrite {
        None => false,
        Some(Value::Bool(overwrite)) if !overwrite || partition.is_some() => overwrite,
        Some(_) => return Err(Error::parameter("overwrite", "is true or false, and goes together with `partition`")),
    };
    let spec: ExportSpec = serde_path_to_error::deserialize(request)
        .map_err(|error| Error::parameter(&error.path().to_string(), error.inner().to_string()))?;
    Ok(ExportRequest { table, spec, partition, overwrite })
}

/// The export of that id. The file of an export job is its user's, also where anybody may read exports.
pub async fn find(http: &Http, id: Uuid) -> Result<Export> {
    exports::catalogued(&http.app.pool, id).await?.ok_or_else(|| not_found(id))
}

fn not_found(id: Uuid) -> Error {
    Error::NotFound { what: "export", name: id.to_string() }
}

async fn bodies(http: &Http, headers: &HeaderMap, found: Vec<Export>) -> Result<Vec<ExportBody>> {
    let ids: Vec<Uuid> = found.iter().map(|export| export.id).collect();
    let files = exports::files(&http.app.pool, &ids).await?;
    let base = links::base(&http.app, headers);
    let mut bodies = Vec::new();
    for export in found {
        let files: Vec<&ExportFile> = files.iter().filter(|file| file.export_id == export.id).collect();
        let link = match (export.completed_at, files.as_slice()) {
            (None, _) => None,
            (_, [only]) => Some(links::make(&http.app, &base, &download::path(export.id), &only.name).await?),
            _ => Some(links::make(&http.app, &base, &download::path(export.id), &archive_name(&export)).await?),
        };
        bodies.push(body(http, export, &files, link));
    }
    Ok(bodies)
}

fn body(http: &Http, export: Export, files: &[&ExportFile], download_url: Option<String>) -> ExportBody {
    let hex = |file: &&ExportFile| data_encoding::HEXLOWER.encode(&file.sha256);
    let format = export.spec.get("format").and_then(|format| Format::deserialize(format).ok()).unwrap_or_default();
    let compression = export.spec.get("compression").and_then(Value::as_str);
    let compression = compression.unwrap_or(http.app.config.export.compression.of_files(format).as_str()).to_owned();
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let ratio = |(csv, bytes): (i64, i64)| (csv as f64 / bytes.max(1) as f64 * 100.0).round() / 100.0;
    ExportBody {
        id: export.id,
        job_id: export.job_id,
        table: export.dataset,
        status: export.status,
        format: export.spec.get("format").cloned().unwrap_or_else(|| "parquet".into()),
        compression,
        whole: export.whole,
        download_url,
        file_name: files.first().map(|file| file.name.clone()),
        rows: export.rows,
        size_bytes: export.bytes,
        sha256: files.first().filter(|_| files.len() == 1).map(hex),
        compression_ratio: export.csv_bytes.zip(export.bytes).map(ratio),
        snapshot_at: export.snapshot_at,
        created_at: export.created_at,
        completed_at: export.completed_at,
        expires_at: export.expires_at,
        files: files
            .iter()
            .map(|file| FileBody {
                file_name: file.name.clone(),
                rows: file.rows,
                size_bytes: file.bytes,
                sha256: hex(file),
                min_time: file.min_time,
                max_time: file.max_time,
            })
            .collect(),
    }
}

/// The name of an export of several files when it is downloaded as one.
pub fn archive_name(export: &Export) -> String {
    format!("{}_{}.zip", export.dataset, export.id)
}

/// The export that a job writes.
pub async fn export_of(http: &Http, job: &jobs::Job) -> Result<Option<Uuid>> {
    Ok(exports::by_job(&http.app.pool, job.id).await?.map(|export| export.id))
}
