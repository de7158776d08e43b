//! Numbers of rows by what became of them, and how the last syncs ended.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use super::DOUBTED;
use crate::error::Result;

/// What is known of the deliveries of one dataset.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub struct Stats {
    /// Rows that LabKey has.
    pub uploaded: i64,
    /// Rows that are to be sent, or in doubt.
    pub pending: i64,
    /// Rows that LabKey refused.
    pub failed: i64,
    /// When the oldest pending row was taken in.
    pub oldest_pending: Option<DateTime<Utc>>,
    /// When a delivery was last completed.
    pub last_delivered: Option<DateTime<Utc>>,
}

/// Counts rows by what became of them. Rows taken in before `since` do not count as pending.
///
/// # Errors
/// A database out of reach.
pub async fn stats(pool: &PgPool, dataset: &str, since: Option<DateTime<Utc>>) -> Result<Stats> {
    Ok(sqlx::query_as(
        "-- labkey.stats
        WITH sent AS (
            SELECT coalesce(sum(rows) FILTER (WHERE state = 'completed'), 0)::bigint AS uploaded,
                coalesce(sum(rows) FILTER (WHERE state IN ('pending', 'in_flight', 'unknown')), 0)::bigint AS pending,
                coalesce(sum(rows) FILTER (WHERE state = 'failed'), 0)::bigint AS failed,
                min(submission_id) FILTER (WHERE state IN ('pending', 'in_flight', 'unknown')) AS oldest,
                max(finished_at) FILTER (WHERE state = 'completed') AS last_delivered
            FROM labkey_deliveries WHERE dataset = $1 AND withdrawn_at IS NULL),
        unplanned AS (
            SELECT coalesce(sum(rows), 0)::bigint AS pending, min(created_at) AS oldest FROM submissions
            WHERE dataset = $1 AND NOT labkey_planned AND rows > 0 AND ($2::timestamptz IS NULL OR created_at >= $2))
        SELECT sent.uploaded, sent.pending + unplanned.pending AS pending, sent.failed, sent.last_delivered,
            least((SELECT created_at FROM submissions WHERE id = sent.oldest), unplanned.oldest) AS oldest_pending
        FROM sent, unplanned",
    )
    .bind(dataset)
    .bind(since)
    .fetch_one(pool)
    .await?)
}

/// Whether anything of a dataset is to be done: sent, looked up, or removed.
///
/// # Errors
/// A database out of reach.
pub async fn any_work(connection: &mut PgConnection, dataset: &str, since: Option<DateTime<Utc>>) -> Result<bool> {
    let sql = format!(
        "-- labkey.any_work
        SELECT EXISTS (SELECT FROM labkey_deliveries
                WHERE dataset = $1 AND state IN ('pending', 'in_flight', 'unknown') AND removed_at IS NULL)
            OR EXISTS (SELECT FROM labkey_deliveries
                WHERE dataset = $1 AND withdrawn_at IS NOT NULL AND removed_at IS NULL)
            OR EXISTS (SELECT FROM labkey_deliveries d WHERE dataset = $1 AND {DOUBTED})
            OR EXISTS (SELECT FROM submissions
                WHERE dataset = $1 AND NOT labkey_planned AND rows > 0 AND ($2::timestamptz IS NULL OR created_at >= $2))"
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).bind(dataset).bind(since).fetch_one(connection).await?)
}

/// How the last sync of a dataset ended.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct LastSync {
    /// The dataset's name.
    pub dataset: String,
    /// When it ended.
    pub synced_at: DateTime<Utc>,
    /// When one last ended well.
    pub succeeded_at: Option<DateTime<Utc>>,
    /// Why it stopped.
    pub problem: Option<String>,
    /// A word for that.
    pub reason: Option<String>,
}

/// Remembers how a sync ended.
///
/// # Errors
/// A database out of reach.
pub async fn record(pool: &PgPool, dataset: &str, problem: Option<(&str, &str)>) -> Result<()> {
    sqlx::query(
        "-- labkey.record
        INSERT INTO labkey_datasets AS known (dataset, synced_at, succeeded_at, reason, problem)
        VALUES ($1, now(), CASE WHEN $2::text IS NULL THEN now() END, $2, $3)
        ON CONFLICT (dataset) DO UPDATE SET synced_at = excluded.synced_at,
            succeeded_at = coalesce(excluded.succeeded_at, known.succeeded_at),
            reason = excluded.reason, problem = excluded.problem",
    )
    .bind(dataset)
    .bind(problem.map(|(reason, _)| reason))
    .bind(problem.map(|(_, problem)| problem))
    .execute(pool)
    .await?;
    Ok(())
}

/// How the last syncs ended.
///
/// # Errors
/// A database out of reach.
pub async fn last_syncs(pool: &PgPool) -> Result<Vec<LastSync>> {
    let sql = "-- labkey.last_syncs\nSELECT * FROM labkey_datasets ORDER BY dataset";
    Ok(sqlx::query_as(sql).fetch_all(pool).await?)
}
