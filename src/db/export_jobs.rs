//! Exports that a user asked for: each is an export with a number, outside the catalogue, that is gone after hours.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use uuid::Uuid;

use crate::error::Result;

/// An export job as it is stored, with its export and the state of the job that writes it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ExportJob {
    /// From 1, growing with time.
    pub number: i64,
    /// The export.
    pub export_id: Uuid,
    /// Who writes it.
    pub job_id: Uuid,
    /// The dataset's name.
    pub dataset: String,
    /// The wish as it was sent.
    pub request: Value,
    /// The name of the access token.
    pub client: String,
    /// `pending`, `running`, `completed`, `failed`, `cancelled`, or `expired`.
    pub status: String,
    /// How far the job is.
    pub progress: Value,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// Rows of all files, once complete; so are the following.
    pub rows: Option<i64>,
    /// Bytes of all files.
    pub bytes: Option<i64>,
    /// The folder of the files.
    pub prefix: Option<String>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it was first begun.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was complete.
    pub completed_at: Option<DateTime<Utc>>,
    /// When its files are removed.
    pub expires_at: Option<DateTime<Utc>>,
}

const STATUS: &str = "CASE WHEN e.expires_at < now() THEN 'expired' ELSE j.state END";

fn select() -> String {
    format!(
        "SELECT x.number, x.export_id, e.job_id, e.dataset, x.request, x.client, {STATUS} AS status, j.progress, j.error,
            e.rows, e.bytes, e.prefix, e.created_at, j.started_at, e.completed_at, e.expires_at
        FROM export_jobs x JOIN exports e ON e.id = x.export_id JOIN jobs j ON j.id = e.job_id"
    )
}

/// Makes an export one that a user asked for.
///
/// # Errors
/// A database out of reach.
pub async fn insert(connection: &mut PgConnection, export: Uuid, request: &Value, client: &str) -> Result<()> {
    sqlx::query("-- export_jobs.insert\nINSERT INTO export_jobs (export_id, request, client) VALUES ($1, $2, $3)")
        .bind(export)
        .bind(request)
        .bind(client)
        .execute(connection)
        .await?;
    Ok(())
}

/// The export job of that number.
///
/// # Errors
/// A database out of reach.
pub async fn by_number(pool: &PgPool, number: i64) -> Result<Option<ExportJob>> {
    let sql = format!("-- export_jobs.by_number\n{} WHERE x.number = $1", select());
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(number).fetch_optional(pool).await?)
}

/// The export job that a job writes.
///
/// # Errors
/// A database out of reach.
pub async fn by_job(connection: &mut PgConnection, job: Uuid) -> Result<Option<ExportJob>> {
    let sql = format!("-- export_jobs.by_job\n{} WHERE e.job_id = $1", select());
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(job).fetch_optional(connection).await?)
}

/// Which export jobs [`list`] answers with; `None` does not filter.
#[derive(Debug, Default)]
pub struct Filter<'f> {
    /// Of that dataset.
    pub dataset: Option<&'f str>,
    /// In that state.
    pub status: Option<&'f str>,
    /// With a smaller number.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: i64,
}

/// Export jobs, newest first.
///
/// # Errors
/// A database out of reach.
pub async fn list(pool: &PgPool, filter: &Filter<'_>) -> Result<Vec<ExportJob>> {
    let sql = format!(
        "-- export_jobs.list
        {} WHERE ($1::text IS NULL OR e.dataset = $1) AND ($2::text IS NULL OR {STATUS} = $2)
          AND ($3::bigint IS NULL OR x.number < $3) ORDER BY x.number DESC LIMIT $4",
        select()
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(filter.dataset)
        .bind(filter.status)
        .bind(filter.before)
        .bind(filter.limit)
        .fetch_all(pool)
        .await?)
}

/// Export jobs whose time is over and whose files are still there.
///
/// # Errors
/// A database out of reach.
pub async fn expired(pool: &PgPool) -> Result<Vec<ExportJob>> {
    let sql = format!("-- export_jobs.expired\n{} WHERE e.expires_at < now() AND x.expired_at IS NULL", select());
    Ok(sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await?)
}

/// Records that the files are gone.
///
/// # Errors
/// A database out of reach.
pub async fn expire(pool: &PgPool, number: i64) -> Result<()> {
    sqlx::query("-- export_jobs.expire\nUPDATE export_jobs SET expired_at = now() WHERE number = $1")
        .bind(number)
        .execute(pool)
        .await?;
    Ok(())
}
