//! The catalogue of exports and their files.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use uuid::Uuid;

use crate::error::Result;

/// An export as it is stored, with the state of its job.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Export {
    /// Grows with time.
    pub id: Uuid,
    /// Who writes it.
    pub job_id: Uuid,
    /// The dataset's name.
    pub dataset: String,
    /// What is wanted.
    pub spec: Value,
    /// Whether all rows and columns are wanted.
    pub whole: bool,
    /// `pending`, `running`, `completed`, `failed` or `cancelled`.
    pub status: String,
    /// Rows of all files, once complete; so are the following.
    pub rows: Option<i64>,
    /// Bytes of all files.
    pub bytes: Option<i64>,
    /// What the same rows take as CSV, estimated.
    pub csv_bytes: Option<i64>,
    /// The folder of the files.
    pub prefix: Option<String>,
    /// When the state was taken that the files hold.
    pub snapshot_at: Option<DateTime<Utc>>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it was complete.
    pub completed_at: Option<DateTime<Utc>>,
    /// When it may be removed.
    pub expires_at: Option<DateTime<Utc>>,
}

/// One file of a complete export.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ExportFile {
    /// Whose file.
    pub export_id: Uuid,
    /// From 1.
    pub number: i32,
    /// Its name in the folder.
    pub name: String,
    /// Its rows.
    pub rows: i64,
    /// Its size.
    pub bytes: i64,
    /// The digest of its bytes.
    pub sha256: Vec<u8>,
    /// The earliest time of storing among its rows.
    pub min_time: Option<DateTime<Utc>>,
    /// The latest.
    pub max_time: Option<DateTime<Utc>>,
}

/// What is recorded when an export is complete.
#[derive(Debug)]
pub struct Completed {
    /// Rows of all files.
    pub rows: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// What the same rows take as CSV, estimated.
    pub csv_bytes: u64,
    /// The folder of the files.
    pub prefix: String,
    /// When the state was taken that the files hold.
    pub snapshot_at: DateTime<Utc>,
    /// Hours until it may be removed.
    pub retention_hours: u32,
    /// The files.
    pub files: Vec<ExportFile>,
}

/// Whether all rows and columns of a dataset are wanted: nothing in the specification leaves any out.
const WHOLE: &str = "NOT e.spec ?| ARRAY['columns', 'filters', 'from', 'row_limit', 'to']";

fn select() -> String {
    format!(
        "SELECT e.id, e.job_id, e.dataset, e.spec, {WHOLE} AS whole, j.state AS status, e.rows, e.bytes, e.csv_bytes,
        e.prefix, e.snapshot_at, e.created_at, e.completed_at, e.expires_at FROM exports e JOIN jobs j ON j.id = e.job_id"
    )
}

/// What users asked for by an export job is not in the catalogue.
const CATALOGUED: &str = "NOT EXISTS (SELECT FROM export_jobs x WHERE x.export_id = e.id)";

/// Which exports [`list`] answers with; `None` does not filter.
#[derive(Debug, Default)]
pub struct Filter<'f> {
    /// Of that dataset.
    pub dataset: Option<&'f str>,
    /// In that state.
    pub status: Option<&'f str>,
    /// Of all rows and columns, or of some.
    pub whole: Option<bool>,
    /// Asked for before that one.
    pub before: Option<Uuid>,
    /// At most so many.
    pub limit: i64,
}

/// Makes an export that is to be written.
///
/// # Errors
/// A database out of reach.
pub async fn insert(connection: &mut PgConnection, id: Uuid, job: Uuid, dataset: &str, spec: &Value) -> Result<()> {
    sqlx::query("-- exports.insert\nINSERT INTO exports (id, job_id, dataset, spec) VALUES ($1, $2, $3, $4)")
        .bind(id)
        .bind(job)
        .bind(dataset)
        .bind(spec)
        .execute(connection)
        .await?;
    Ok(())
}

/// Whether the export that was made under a dedupe key is of that dataset and specification, whatever its compression where
/// the specification has none; `None` when it has been removed.
///
/// # Errors
/// A database out of reach.
pub async fn is_same(connection: &mut PgConnection, key: &str, dataset: &str, spec: &Value) -> Result<Option<bool>> {
    let is_same = sqlx::query_scalar(
        "-- exports.is_same
        SELECT e.dataset = $2 AND CASE WHEN $3 ? 'compression' THEN e.spec ELSE e.spec - 'compression' END = $3
        FROM exports e JOIN jobs j ON j.id = e.job_id WHERE j.dedupe_key = $1",
    );
    Ok(is_same.bind(key).bind(dataset).bind(spec).fetch_optional(connection).await?)
}

/// Exports, newest first.
///
/// # Errors
/// A database out of reach.
pub async fn list(pool: &PgPool, filter: &Filter<'_>) -> Result<Vec<Export>> {
    let sql = format!(
        "-- exports.list
        {} WHERE ($1::text IS NULL OR e.dataset = $1) AND ($2::text IS NULL OR j.state = $2)
          AND ($3::bool IS NULL OR ({WHOLE}) = $3) AND {CATALOGUED}
          AND ($4::uuid IS NULL OR (e.created_at, e.id) < {})
        ORDER BY e.created_at DESC, e.id DESC LIMIT $5",
        select(),
        super::place_of("exports", "$4")
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(filter.dataset)
        .bind(filter.status)
        .bind(filter.whole)
        .bind(filter.before)
        .bind(filter.limit)
        .fetch_all(pool)
        .await?)
}

/// The export of that id.
///
/// # Errors
/// A database out of reach.
pub async fn by_id(pool: &PgPool, id: Uuid) -> Result<Option<Export>> {
    let sql = format!("-- exports.by_id\n{} WHERE e.id = $1", select());
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_optional(pool).await?)
}

/// The export of that id that the catalogue has: no file of an export job.
///
/// # Errors
/// A database out of reach.
pub async fn catalogued(pool: &PgPool, id: Uuid) -> Result<Option<Export>> {
    let sql = format!("-- exports.catalogued\n{} WHERE e.id = $1 AND {CATALOGUED}", select());
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_optional(pool).await?)
}

/// The export of the catalogue that a job writes.
///
/// # Errors
/// A database out of reach.
pub async fn by_job(pool: &PgPool, job: Uuid) -> Result<Option<Export>> {
    let sql = format!("-- exports.by_job\n{} WHERE e.job_id = $1 AND {CATALOGUED}", select());
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(job).fetch_optional(pool).await?)
}

/// The files of some exports, in order.
///
/// # Errors
/// A database out of reach.
pub async fn files(pool: &PgPool, exports: &[Uuid]) -> Result<Vec<ExportFile>> {
    Ok(sqlx::query_as(
        "-- exports.files
        SELECT * FROM export_files WHERE export_id = ANY($1) ORDER BY export_id, number",
    )
    .bind(exports)
    .fetch_all(pool)
    .await?)
}

/// Records a complete export with its files; false when it is not there any more.
///
/// # Errors
/// A database out of reach.
pub async fn complete(connection: &mut PgConnection, id: Uuid, done: &Completed) -> Result<bool> {
    let completed = sqlx::query(
        "-- exports.complete
        UPDATE exports SET rows = $2, bytes = $3, csv_bytes = $4, prefix = $5, snapshot_at = $6, completed_at = now(),
            expires_at = now() + $7 * interval '1 hour' WHERE id = $1",
    )
    .bind(id)
    .bind(done.rows.cast_signed())
    .bind(done.bytes.cast_signed())
    .bind(done.csv_bytes.cast_signed())
    .bind(&done.prefix)
    .bind(done.snapshot_at)
    .bind(f64::from(done.retention_hours))
    .execute(&mut *connection)
    .await?;
    if completed.rows_affected() == 0 {
        return Ok(false);
    }
    for file in &done.files {
        sqlx::query(
            "-- exports.add_file
            INSERT INTO export_files (export_id, number, name, rows, bytes, sha256, min_time, max_time)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(id)
        .bind(file.number)
        .bind(&file.name)
        .bind(file.rows)
        .bind(file.bytes)
        .bind(&file.sha256)
        .bind(file.min_time)
        .bind(file.max_time)
        .execute(&mut *connection)
        .await?;
    }
    Ok(true)
}

/// Removes an export from the catalogue; false when it is not there.
///
/// # Errors
/// A database out of reach.
pub async fn delete(pool: &PgPool, id: Uuid) -> Result<bool> {
    let deleted = sqlx::query("-- exports.delete\nDELETE FROM exports WHERE id = $1").bind(id).execute(pool).await?;
    Ok(deleted.rows_affected() == 1)
}

/// Complete exports whose time is over, but for the newest `keep` whole ones of each dataset in the catalogue; and what
/// nobody will ask for any more: failed ones, and export jobs that expired long ago.
///
/// # Errors
/// A database out of reach.
pub async fn expired(pool: &PgPool, keep: u32) -> Result<Vec<Export>> {
    let sql = format!(
        "-- exports.expired
        WITH ranked AS (
            SELECT id, row_number() OVER (PARTITION BY dataset ORDER BY completed_at DESC) AS place
            FROM exports e WHERE completed_at IS NOT NULL AND {WHOLE} AND {CATALOGUED})
        {} LEFT JOIN ranked ON ranked.id = e.id
        WHERE (e.expires_at < now() AND coalesce(ranked.place > $1, {CATALOGUED}))
           OR (j.state IN ('failed', 'cancelled') AND j.finished_at < now() - interval '7 days')
           OR EXISTS (SELECT FROM export_jobs x WHERE x.export_id = e.id AND x.expired_at < now() - interval '30 days')",
        select()
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(i64::from(keep)).fetch_all(pool).await?)
}

/// Exports whose files must stay: complete ones with their folder, and those that a job may be writing, without.
///
/// # Errors
/// A database out of reach.
pub async fn in_use(pool: &PgPool) -> Result<Vec<(Uuid, Option<String>)>> {
    Ok(sqlx::query_as(
        "-- exports.in_use
        SELECT e.id, e.prefix FROM exports e JOIN jobs j ON j.id = e.job_id LEFT JOIN export_jobs x ON x.export_id = e.id
        WHERE x.expired_at IS NULL AND j.state IN ('pending', 'running', 'completed')",
    )
    .fetch_all(pool)
    .await?)
}

/// Seconds since the newest complete export of each dataset that is whole; where there is none since its first rows were
/// stored, and 0 where it has none.
///
/// # Errors
/// A database out of reach.
pub async fn ages(pool: &PgPool, datasets: &[String]) -> Result<Vec<(String, f64)>> {
    let sql = format!(
        "-- exports.ages
        SELECT name, coalesce(extract(epoch FROM now() - coalesce(newest, first))::float8, 0)
        FROM unnest($1) AS name,
        LATERAL (SELECT max(completed_at) AS newest FROM exports e WHERE dataset = name AND {WHOLE} AND {CATALOGUED}) AS whole,
        LATERAL (SELECT min(created_at) AS first FROM submissions WHERE dataset = name AND rows > 0 AND newest IS NULL) AS rows"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(datasets).fetch_all(pool).await?)
}
