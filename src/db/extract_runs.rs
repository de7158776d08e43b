//! Runs of extracts. The state of a run is that of its job; one without a job waits for the run before it.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use uuid::Uuid;

use crate::error::Result;

/// A run as it is stored, with the state of its job.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Run {
    /// `run_` and letters.
    pub id: String,
    /// Unset when the extract was removed.
    pub extract_id: Option<String>,
    /// Who does it; unset while it waits.
    pub job_id: Option<Uuid>,
    /// The configuration as it was when the run was made.
    pub config: Value,
    /// `manual` or `schedule`.
    pub cause: String,
    /// `pending`, `queued`, `running`, `completed`, `failed` or `cancelled`.
    pub status: String,
    /// How far the job is.
    pub progress: Option<Value>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// Which attempt it is.
    pub attempt: i32,
    /// Rows of all data files, once complete; so are the next two.
    pub records: Option<i64>,
    /// Bytes of all artifacts.
    pub bytes: Option<i64>,
    /// When the state was taken that it holds.
    pub snapshot_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was first begun.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// When its files are removed.
    pub expires_at: Option<DateTime<Utc>>,
    /// When they were.
    pub expired_at: Option<DateTime<Utc>>,
    /// How often all of it was downloaded.
    pub download_count: i64,
    /// When it was last downloaded.
    pub last_accessed_at: Option<DateTime<Utc>>,
}

const STATUS: &str = "CASE WHEN r.cancelled_at IS NOT NULL THEN 'cancelled' WHEN r.job_id IS NULL THEN 'pending'
    WHEN j.state = 'pending' THEN 'queued' ELSE j.state END";

/// Whether a run is under way or about to be.
const IS_ACTIVE: &str = "j.state IN ('pending', 'running')";

/// Whether a run waits for the one before it.
const IS_WAITING: &str = "r.job_id IS NULL AND r.cancelled_at IS NULL";

fn select() -> String {
    format!(
        "SELECT r.id, r.extract_id, r.job_id, r.config, r.cause, {STATUS} AS status, j.progress, j.error,
            coalesce(j.attempt, 0) AS attempt, r.records, r.bytes, r.snapshot_at, r.created_at, j.started_at,
            coalesce(r.cancelled_at, j.finished_at) AS completed_at, r.expires_at, r.expired_at, r.download_count,
            r.last_accessed_at
        FROM extract_runs r LEFT JOIN jobs j ON j.id = r.job_id"
    )
}

/// A run to be made.
#[derive(Debug)]
pub struct NewRun<'n> {
    /// `run_` and letters.
    pub id: &'n str,
    /// The extract.
    pub extract_id: &'n str,
    /// Its configuration.
    pub config: &'n Value,
    /// `manual` or `schedule`.
    pub cause: &'n str,
}

/// Makes a run that waits.
///
/// # Errors
/// A database out of reach.
pub async fn insert(connection: &mut PgConnection, run: &NewRun<'_>) -> Result<()> {
    sqlx::query(
        "-- extract_runs.insert\nINSERT INTO extract_runs (id, extract_id, config, cause) VALUES ($1, $2, $3, $4)",
    )
    .bind(run.id)
    .bind(run.extract_id)
    .bind(run.config)
    .bind(run.cause)
    .execute(connection)
    .await?;
    Ok(())
}

/// The run of that id.
///
/// # Errors
/// A database out of reach.
pub async fn by_id(pool: &PgPool, id: &str) -> Result<Option<Run>> {
    let sql = format!("-- extract_runs.by_id\n{} WHERE r.id = $1", select());
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_optional(pool).await?)
}

/// Which runs [`list`] answers with; `None` does not filter.
#[derive(Debug, Default)]
pub struct Filter<'f> {
    /// Of that extract.
    pub extract_id: Option<&'f str>,
    /// In that state.
    pub status: Option<&'f str>,
    /// After the place of one that was made then and has that id.
    pub before: Option<(DateTime<Utc>, &'f str)>,
    /// At most so many.
    pub limit: i64,
}

/// Runs, newest first.
///
/// # Errors
/// A database out of reach.
pub async fn list(pool: &PgPool, filter: &Filter<'_>) -> Result<Vec<Run>> {
    let sql = format!(
        "-- extract_runs.list
        {} WHERE ($1::text IS NULL OR r.extract_id = $1) AND ($2::text IS NULL OR {STATUS} = $2)
          AND ($3::timestamptz IS NULL OR (r.created_at, r.id) < ($3, $4))
        ORDER BY r.created_at DESC, r.id DESC LIMIT $5",
        select()
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(filter.extract_id)
        .bind(filter.status)
        .bind(filter.before.map(|(time, _)| time))
        .bind(filter.before.map(|(_, id)| id))
        .bind(filter.limit)
        .fetch_all(pool)
        .await?)
}

/// The run of an extract that is under way or about to be, if any.
///
/// # Errors
/// A database out of reach.
pub async fn active(connection: &mut PgConnection, extract: &str) -> Result<Option<Run>> {
    let sql = format!("-- extract_runs.active\n{} WHERE r.extract_id = $1 AND {IS_ACTIVE} LIMIT 1", select());
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(extract).fetch_optional(connection).await?)
}

/// The run of an extract that has waited longest, if any.
///
/// # Errors
/// A database out of reach.
pub async fn waiting(connection: &mut PgConnection, extract: &str) -> Result<Option<String>> {
    let sql = format!(
        "-- extract_runs.waiting
        SELECT r.id FROM extract_runs r WHERE r.extract_id = $1 AND {IS_WAITING} ORDER BY r.created_at, r.id LIMIT 1"
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).bind(extract).fetch_optional(connection).await?)
}

/// Extracts that have a run which waits for nothing any more.
///
/// # Errors
/// A database out of reach.
pub async fn ready_extracts(pool: &PgPool) -> Result<Vec<String>> {
    let sql = format!(
        "-- extract_runs.ready_extracts
        SELECT DISTINCT r.extract_id FROM extract_runs r WHERE {IS_WAITING} AND r.extract_id IS NOT NULL
          AND NOT EXISTS (SELECT FROM extract_runs o JOIN jobs j ON j.id = o.job_id
                          WHERE o.extract_id = r.extract_id AND {IS_ACTIVE})"
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(pool).await?)
}

/// Gives a run its job.
///
/// # Errors
/// A database out of reach.
pub async fn queue(connection: &mut PgConnection, id: &str, job: Uuid) -> Result<()> {
    sqlx::query("-- extract_runs.queue\nUPDATE extract_runs SET job_id = $2 WHERE id = $1")
        .bind(id)
        .bind(job)
        .execute(connection)
        .await?;
    Ok(())
}

/// Cancels all runs of an extract that wait, and answers with their number.
///
/// # Errors
/// A database out of reach.
pub async fn cancel_waiting(connection: &mut PgConnection, extract: &str) -> Result<u64> {
    let sql = format!(
        "-- extract_runs.cancel_waiting
        UPDATE extract_runs r SET cancelled_at = now() WHERE r.extract_id = $1 AND {IS_WAITING}"
    );
    Ok(sqlx::query(AssertSqlSafe(sql)).bind(extract).execute(connection).await?.rows_affected())
}

/// What is recorded when a run has ended.
#[derive(Debug)]
pub struct Ended {
    /// Rows of all data files; none when it failed, as the next two.
    pub records: Option<i64>,
    /// Bytes of all artifacts.
    pub bytes: Option<i64>,
    /// When the state was taken that it holds.
    pub snapshot_at: Option<DateTime<Utc>>,
    /// When its files are removed.
    pub expires_at: DateTime<Utc>,
}

/// Records the end of a run.
///
/// # Errors
/// A database out of reach.
pub async fn end(connection: &mut PgConnection, id: &str, ended: &Ended) -> Result<()> {
    sqlx::query(
        "-- extract_runs.end
        UPDATE extract_runs SET records = $2, bytes = $3, snapshot_at = $4, expires_at = $5 WHERE id = $1",
    )
    .bind(id)
    .bind(ended.records)
    .bind(ended.bytes)
    .bind(ended.snapshot_at)
    .bind(ended.expires_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Counts a download of all artifacts.
///
/// # Errors
/// A database out of reach.
pub async fn count_download(pool: &PgPool, id: &str) -> Result<()> {
    sqlx::query(
        "-- extract_runs.count_download
        UPDATE extract_runs SET download_count = download_count + 1, last_accessed_at = now() WHERE id = $1",
    )
    .bind(id)
    .execute(pool)
    .await?;
    Ok(())
}

/// Runs whose time is over and whose files are still there.
///
/// # Errors
/// A database out of reach.
pub async fn expired(pool: &PgPool) -> Result<Vec<String>> {
    let runs = sqlx::query_scalar(
        "-- extract_runs.expired\nSELECT id FROM extract_runs WHERE expires_at < now() AND expired_at IS NULL",
    );
    Ok(runs.fetch_all(pool).await?)
}

/// Records that the files of a run are gone.
///
/// # Errors
/// A database out of reach.
pub async fn expire(pool: &PgPool, id: &str) -> Result<()> {
    sqlx::query("-- extract_runs.expire\nUPDATE extract_runs SET expired_at = now() WHERE id = $1")
        .bind(id)
        .execute(pool)
        .await?;
    Ok(())
}

/// Forgets runs whose files were removed so many days ago, and runs that were cancelled then.
///
/// # Errors
/// A database out of reach.
pub async fn forget(pool: &PgPool, days: u32) -> Result<u64> {
    let forgotten = sqlx::query(
        "-- extract_runs.forget
        DELETE FROM extract_runs r WHERE coalesce(r.expired_at, r.cancelled_at, (SELECT j.finished_at FROM jobs j
            WHERE j.id = r.job_id AND j.state = 'cancelled')) < now() - $1 * interval '1 day'",
    )
    .bind(f64::from(days))
    .execute(pool)
    .await?;
    Ok(forgotten.rows_affected())
}

/// Removes all runs of an extract, and answers with their ids.
///
/// # Errors
/// A database out of reach.
pub async fn delete_of(connection: &mut PgConnection, extract: &str) -> Result<Vec<String>> {
    let deleted =
        sqlx::query_scalar("-- extract_runs.delete_of\nDELETE FROM extract_runs WHERE extract_id = $1 RETURNING id");
    Ok(deleted.bind(extract).fetch_all(connection).await?)
}

/// Runs whose files must stay, with the attempt that wrote them; without one while a job may be writing, and where it
/// failed after any of them.
///
/// # Errors
/// A database out of reach.
pub async fn in_use(pool: &PgPool) -> Result<Vec<(String, Option<i32>)>> {
    Ok(sqlx::query_as(
        "-- extract_runs.in_use
        SELECT r.id, CASE WHEN j.state = 'completed' THEN j.attempt END
        FROM extract_runs r JOIN jobs j ON j.id = r.job_id WHERE r.expired_at IS NULL AND j.state <> 'cancelled'",
    )
    .fetch_all(pool)
    .await?)
}
