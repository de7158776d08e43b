//! Jobs: work that survives its process. Any worker of any replica claims what is due, and takes over what its worker
//! has stopped renewing.

mod lease;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, PgPool};
use uuid::Uuid;

use crate::error::Result;
pub use lease::{Lease, Progress};

/// A job as it is stored.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Job {
    /// Grows with time.
    pub id: Uuid,
    /// What kind of work it is.
    pub kind: String,
    /// What it works on.
    pub payload: Value,
    /// `pending`, `running`, `completed`, `failed` or `cancelled`.
    pub state: String,
    /// How often it was claimed.
    pub attempt: i32,
    /// How often it may be.
    pub max_attempts: i32,
    /// See [`Progress`].
    pub progress: Value,
    /// Whether somebody asked to stop it.
    pub cancel_requested: bool,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// What it has to tell at its end.
    pub report: Option<Value>,
    /// When it may begin.
    pub run_at: DateTime<Utc>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it was first claimed.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

impl Job {
    /// Whether it has ended, well or not.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        !matches!(self.state.as_str(), "pending" | "running")
    }
}

const COLUMNS: &str = "id, kind, payload, state, attempt, max_attempts, progress, cancel_requested, error, report, \
                       run_at, created_at, started_at, finished_at";

/// A job to be made.
#[derive(Debug)]
pub struct NewJob<'a> {
    /// Its id, of version 7.
    pub id: Uuid,
    /// What kind of work it is.
    pub kind: &'a str,
    /// What it works on.
    pub payload: Value,
    /// How often it may be tried.
    pub max_attempts: i32,
    /// At most one job of that key is ever made.
    pub dedupe_key: Option<&'a str>,
    /// Of jobs of that key one works at a time, and at most one more waits to begin.
    pub alone_key: Option<&'a str>,
}

/// Makes a job, in the caller's transaction; false when there is one of its dedupe key, or one of its alone key that has
/// not begun.
///
/// # Errors
/// A database out of reach.
pub async fn enqueue(connection: &mut PgConnection, job: &NewJob<'_>) -> Result<bool> {
    let made = sqlx::query(
        "-- jobs.enqueue
        INSERT INTO jobs (id, kind, payload, max_attempts, dedupe_key, alone_key) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT DO NOTHING",
    )
    .bind(job.id)
    .bind(job.kind)
    .bind(&job.payload)
    .bind(job.max_attempts)
    .bind(job.dedupe_key)
    .bind(job.alone_key)
    .execute(connection)
    .await?;
    Ok(made.rows_affected() == 1)
}

/// The job of that dedupe key.
///
/// # Errors
/// A database out of reach.
pub async fn by_dedupe_key(connection: &mut PgConnection, key: &str) -> Result<Option<Job>> {
    let sql = format!("-- jobs.by_dedupe_key\nSELECT {COLUMNS} FROM jobs WHERE dedupe_key = $1");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(key).fetch_optional(connection).await?)
}

/// Lets no job begin or end until the transaction ends.
///
/// # Errors
/// A database out of reach.
pub async fn hold(connection: &mut PgConnection) -> Result<()> {
    sqlx::query("-- jobs.hold\nLOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE").execute(connection).await?;
    Ok(())
}

/// The jobs of that alone key that wait or run: first one that has begun, then one that has not.
///
/// # Errors
/// A database out of reach.
pub async fn unfinished(connection: &mut PgConnection, alone_key: &str) -> Result<Vec<Job>> {
    let sql = format!(
        "-- jobs.unfinished
        SELECT {COLUMNS} FROM jobs WHERE alone_key = $1 AND state IN ('pending', 'running') ORDER BY attempt DESC"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(alone_key).fetch_all(connection).await?)
}

/// All jobs of a kind that wait or run.
///
/// # Errors
/// A database out of reach.
pub async fn unfinished_of(pool: &PgPool, kind: &str) -> Result<Vec<Uuid>> {
    let ids = sqlx::query_scalar(
        "-- jobs.unfinished_of\nSELECT id FROM jobs WHERE kind = $1 AND state IN ('pending', 'running') ORDER BY id",
    );
    Ok(ids.bind(kind).fetch_all(pool).await?)
}

/// The job of that id.
///
/// # Errors
/// A database out of reach.
pub async fn by_id<'e>(connection: impl PgExecutor<'e>, id: Uuid) -> Result<Option<Job>> {
    let sql = format!("-- jobs.by_id\nSELECT {COLUMNS} FROM jobs WHERE id = $1");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_optional(connection).await?)
}

/// Jobs, newest first.
///
/// # Errors
/// A database out of reach.
pub async fn list(pool: &PgPool, state: Option<&str>, before: Option<Uuid>, limit: i64) -> Result<Vec<Job>> {
    let sql = format!(
        "-- jobs.list
        SELECT {COLUMNS} FROM jobs WHERE ($1::text IS NULL OR state = $1) AND ($2::uuid IS NULL
            OR (created_at, id) < {}) ORDER BY created_at DESC, id DESC LIMIT $3",
        super::place_of("jobs", "$2")
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(state).bind(before).bind(limit).fetch_all(pool).await?)
}

/// Takes the next job of some kinds that is due, or that its worker has left, for the time of a lease. One whose key
/// another job has begun to work on waits for its end. With `only`, that job or none.
///
/// # Errors
/// A database out of reach.
pub async fn claim(
    pool: &PgPool,
    worker: &str,
    lease: Duration,
    kinds: &[&str],
    only: Option<Uuid>,
) -> Result<Option<Job>> {
    let sql = format!(
        "-- jobs.claim
        WITH due AS (
            SELECT id AS due_id FROM jobs AS due
            WHERE kind = ANY($3) AND ($4::uuid IS NULL OR id = $4)
              AND ((state = 'pending' AND run_at <= now()) OR (state = 'running' AND lease_until < now()))
              AND (attempt > 0 OR NOT EXISTS (
                SELECT FROM jobs AS begun
                WHERE begun.alone_key = due.alone_key AND begun.attempt > 0 AND begun.state IN ('pending', 'running')))
            ORDER BY priority DESC, run_at LIMIT 1 FOR UPDATE SKIP LOCKED)
        UPDATE jobs SET state = 'running', attempt = attempt + 1, worker = $1, progress = '{{}}',
            lease_until = now() + $2 * interval '1 second', started_at = coalesce(started_at, now())
        FROM due WHERE id = due_id
        RETURNING {COLUMNS}"
    );
    let claimed = sqlx::query_as(AssertSqlSafe(sql)).bind(worker).bind(lease.as_secs_f64()).bind(kinds).bind(only);
    Ok(claimed.fetch_optional(pool).await?)
}

/// Remembers what an attempt has to tell, before it ends; nothing when the job is somebody else's now.
///
/// # Errors
/// A database out of reach.
pub async fn report(pool: &PgPool, lease: &Lease, report: &Value) -> Result<()> {
    sqlx::query("-- jobs.report\nUPDATE jobs SET report = $3 WHERE id = $1 AND attempt = $2 AND state = 'running'")
        .bind(lease.id)
        .bind(lease.attempt)
        .bind(report)
        .execute(pool)
        .await?;
    Ok(())
}

/// What a heartbeat learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// Go on.
    GoOn,
    /// Somebody asked to stop.
    Cancel,
    /// The job is somebody else's now.
    Lost,
}

/// Renews a lease, tells how far the work is, and learns whether it shall stop.
///
/// # Errors
/// A database out of reach.
pub async fn beat(pool: &PgPool, lease: &Lease, length: Duration) -> Result<Beat> {
    let cancel: Option<bool> = sqlx::query_scalar(
        "-- jobs.beat
        UPDATE jobs SET lease_until = now() + $3 * interval '1 second', progress = $4
        WHERE id = $1 AND attempt = $2 AND state = 'running' RETURNING cancel_requested",
    )
    .bind(lease.id)
    .bind(lease.attempt)
    .bind(length.as_secs_f64())
    .bind(lease.progress.to_json())
    .fetch_optional(pool)
    .await?;
    Ok(match cancel {
        None => Beat::Lost,
        Some(true) => Beat::Cancel,
        Some(false) => Beat::GoOn,
    })
}

/// Ends a job well, in the transaction that records what it did; false when it is somebody else's now.
///
/// # Errors
/// A database out of reach.
pub async fn complete(connection: &mut PgConnection, lease: &Lease) -> Result<bool> {
    lease.progress.enter("done");
    end(connection, lease, "completed", None).await
}

/// Ends a job that was cancelled or cannot succeed; false when it is somebody else's now.
///
/// # Errors
/// A database out of reach.
pub async fn fail(connection: &mut PgConnection, lease: &Lease, state: &str, error: &str) -> Result<bool> {
    end(connection, lease, state, Some(error)).await
}

async fn end(connection: &mut PgConnection, lease: &Lease, state: &str, error: Option<&str>) -> Result<bool> {
    let ended = sqlx::query(
        "-- jobs.end
        UPDATE jobs SET state = $3, error = $4, progress = $5, finished_at = now(), lease_until = NULL
        WHERE id = $1 AND attempt = $2 AND state = 'running'",
    )
    .bind(lease.id)
    .bind(lease.attempt)
    .bind(state)
    .bind(error)
    .bind(lease.progress.to_json())
    .execute(connection)
    .await?;
    Ok(ended.rows_affected() == 1)
}

/// Gives a job back, to be tried again after a while, or at once to be ended where somebody asked to stop it; false when it is
/// somebody else's now.
///
/// # Errors
/// A database out of reach.
pub async fn retry(pool: &PgPool, lease: &Lease, after: Duration, error: &str) -> Result<bool> {
    let given = sqlx::query(
        "-- jobs.retry
        UPDATE jobs SET state = 'pending', error = $4, lease_until = NULL,
            run_at = CASE WHEN cancel_requested THEN now() ELSE now() + $3 * interval '1 second' END
        WHERE id = $1 AND attempt = $2 AND state = 'running'",
    )
    .bind(lease.id)
    .bind(lease.attempt)
    .bind(after.as_secs_f64())
    .bind(error)
    .execute(pool)
    .await?;
    Ok(given.rows_affected() == 1)
}

/// Gives a job back for a reason that is not its own: to be done again after a while, while this attempt does not count.
/// False when it is somebody else's now.
///
/// # Errors
/// A database out of reach.
pub async fn give_back(pool: &PgPool, lease: &Lease, after: Duration, reason: &str) -> Result<bool> {
    let given = sqlx::query(
        "-- jobs.give_back
        UPDATE jobs SET state = 'pending', error = $4, run_at = now() + $3 * interval '1 second', lease_until = NULL,
            max_attempts = max_attempts + 1
        WHERE id = $1 AND attempt = $2 AND state = 'running'",
    )
    .bind(lease.id)
    .bind(lease.attempt)
    .bind(after.as_secs_f64())
    .bind(reason)
    .execute(pool)
    .await?;
    Ok(given.rows_affected() == 1)
}

/// Asks to stop a job: one that waits ends at once, one that runs as soon as its worker hears of it. False when there
/// is no such job.
///
/// # Errors
/// A database out of reach.
pub async fn cancel(pool: &PgPool, id: Uuid) -> Result<bool> {
    let found = sqlx::query(
        "-- jobs.cancel
        UPDATE jobs SET
            cancel_requested = cancel_requested OR state IN ('pending', 'running'),
            finished_at = CASE WHEN state = 'pending' THEN now() ELSE finished_at END,
            state = CASE WHEN state = 'pending' THEN 'cancelled' ELSE state END
        WHERE id = $1",
    )
    .bind(id)
    .execute(pool)
    .await?;
    Ok(found.rows_affected() == 1)
}

/// Forgets jobs that ended long ago and that nothing points at.
///
/// # Errors
/// A database out of reach.
pub async fn forget(pool: &PgPool, days: u32) -> Result<u64> {
    let forgotten = sqlx::query(
        "-- jobs.forget
        DELETE FROM jobs WHERE finished_at < now() - $1 * interval '1 day'
          AND NOT EXISTS (SELECT FROM exports WHERE exports.job_id = jobs.id)
          AND NOT EXISTS (SELECT FROM extract_runs WHERE extract_runs.job_id = jobs.id)",
    )
    .bind(f64::from(days))
    .execute(pool)
    .await?;
    Ok(forgotten.rows_affected())
}
