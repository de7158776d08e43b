//! Making deliveries: cutting submissions into ranges of rows.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgPool};

use super::{Delivery, WORK};
use crate::dataset::{Dataset, sql};
use crate::error::Result;

/// Submissions for which deliveries are made by one statement, unless their rows are many.
const PLAN_SUBMISSIONS: i64 = 500;

/// Rows after which such a statement takes no further submission.
const PLAN_ROWS: i64 = 200_000;

/// What record keys of a submission `s` begin with.
const PREFIX: &str = "left(encode(sha256(convert_to(s.dataset || chr(10) || s.key, 'UTF8')), 'hex'), 32)";

/// What [`plan`] has made.
#[derive(Debug, Default)]
pub struct Planned {
    /// Deliveries.
    pub deliveries: i64,
    /// Submissions that were looked at and have no rows in the table.
    pub missing: i64,
}

/// Makes deliveries of at most `batch` rows for the next submissions that have none. Rows that replace others are left until
/// LabKey holds the others no more, and submissions whose rows are not in the table until they are.
///
/// # Errors
/// A database out of reach.
pub async fn plan(pool: &PgPool, dataset: &Dataset, batch: usize, since: Option<DateTime<Utc>>) -> Result<Planned> {
    let sql = format!(
        "-- labkey.plan
        WITH candidates AS (
            SELECT id, sum(rows) OVER (ORDER BY id) - rows AS before FROM (
                SELECT s.id, s.rows FROM submissions s
                WHERE s.dataset = $1 AND NOT s.labkey_planned AND s.rows > 0 AND s.id > $6
                  AND ($2::timestamptz IS NULL OR s.created_at >= $2)
                  AND NOT EXISTS (SELECT FROM labkey_deliveries old WHERE old.dataset = $1
                      AND old.record_prefix = {PREFIX} AND old.withdrawn_at IS NOT NULL AND old.removed_at IS NULL)
                ORDER BY s.id LIMIT $3) AS free),
        chosen AS (
            SELECT s.id, {PREFIX} AS prefix FROM submissions s
            WHERE NOT s.labkey_planned AND s.id IN (SELECT id FROM candidates WHERE before < $4) FOR UPDATE),
        parts AS (
            SELECT submission_id, prefix, ordinal,
                (row_number() OVER (PARTITION BY submission_id ORDER BY ordinal) - 1) / $5 AS part
            FROM {} JOIN chosen ON chosen.id = submission_id),
        made AS (
            INSERT INTO labkey_deliveries (dataset, submission_id, record_prefix, first_ordinal, last_ordinal, rows)
            SELECT $1, submission_id, prefix, min(ordinal), max(ordinal), count(*) FROM parts
            GROUP BY submission_id, prefix, part ORDER BY submission_id, part RETURNING submission_id),
        marked AS (
            UPDATE submissions SET labkey_planned = true WHERE id IN (SELECT submission_id FROM made) RETURNING id)
        SELECT (SELECT count(*) FROM made), count(*) - (SELECT count(*) FROM marked), max(id) FROM chosen",
        sql::quoted(&dataset.table)
    );
    let (mut planned, mut after) = (Planned::default(), 0);
    // Submissions whose rows are missing hold up none behind them.
    while planned.deliveries == 0 {
        let (deliveries, missing, last): (i64, i64, Option<i64>) = sqlx::query_as(AssertSqlSafe(sql.clone()))
            .bind(&dataset.name)
            .bind(since)
            .bind(PLAN_SUBMISSIONS)
            .bind(PLAN_ROWS)
            .bind(i64::try_from(batch).unwrap_or(i64::MAX))
            .bind(after)
            .fetch_one(pool)
            .await?;
        let Some(last) = last else { break };
        planned = Planned { deliveries, missing: planned.missing + missing };
        after = last;
    }
    Ok(planned)
}

/// Takes back what was planned of submissions from before `since`, unless some of it was sent: those are delivered to their end.
/// Locks in the order in which submissions are removed.
///
/// # Errors
/// A database out of reach.
pub async fn unplan_before(pool: &PgPool, dataset: &str, since: DateTime<Utc>) -> Result<()> {
    let sql = "-- labkey.unplan_before
        WITH old AS (
            SELECT s.id FROM submissions s
            WHERE s.created_at < $2 AND s.id IN (SELECT submission_id FROM labkey_deliveries
                WHERE dataset = $1 AND state = 'pending' AND attempts = 0)
              AND NOT EXISTS (SELECT FROM labkey_deliveries d
                  WHERE d.submission_id = s.id AND (d.state <> 'pending' OR d.attempts > 0))
            FOR UPDATE),
        taken_back AS (
            DELETE FROM labkey_deliveries USING old WHERE submission_id = old.id)
        UPDATE submissions SET labkey_planned = false FROM old WHERE submissions.id = old.id";
    sqlx::query(sql).bind(dataset).bind(since).execute(pool).await?;
    Ok(())
}

/// What would be the first deliveries of submissions that have none, for a look at their rows.
///
/// # Errors
/// A database out of reach.
pub async fn next_unplanned(
    pool: &PgPool,
    dataset: &str,
    batch: usize,
    since: Option<DateTime<Utc>>,
) -> Result<Vec<Delivery>> {
    Ok(sqlx::query_as(
        "-- labkey.next_unplanned
        SELECT 0::bigint AS id, gen_random_uuid() AS key, id AS submission_id, 'rehearsal-' || id AS record_prefix,
            1 AS first_ordinal, least(rows + duplicates, $3)::integer AS last_ordinal,
            least(rows, $3)::integer AS rows, 1 AS attempts, NULL::double precision AS age, false AS is_withdrawn
        FROM submissions WHERE dataset = $1 AND NOT labkey_planned AND rows > 0
          AND ($2::timestamptz IS NULL OR created_at >= $2)
        ORDER BY id LIMIT 100",
    )
    .bind(dataset)
    .bind(since)
    .bind(i64::try_from(batch).unwrap_or(i64::MAX))
    .fetch_all(pool)
    .await?)
}

/// A submission that has no delivery yet, since LabKey holds the rows whose place it takes.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Successor {
    /// The submission.
    pub submission_id: i64,
    /// What the record keys of both begin with.
    pub record_prefix: String,
}

/// Successors of at most `batch` rows whose predecessors have no more rows either, which LabKey does not refuse to remove;
/// not those of which some were sent less than `settle` ago and their end is unknown.
///
/// # Errors
/// A database out of reach.
pub async fn successors(
    pool: &PgPool,
    dataset: &str,
    batch: usize,
    since: Option<DateTime<Utc>>,
    settle: Duration,
    limit: i64,
) -> Result<Vec<Successor>> {
    let sql = format!(
        "-- labkey.successors
        WITH old AS (
            SELECT record_prefix FROM labkey_deliveries
            WHERE dataset = $1 AND withdrawn_at IS NOT NULL AND removed_at IS NULL
            GROUP BY record_prefix HAVING sum(rows) <= $2 AND bool_and(error IS NULL AND state <> 'in_flight'
                AND (state <> 'unknown' OR sent_at < now() - $5 * interval '1 second')))
        SELECT s.id AS submission_id, old.record_prefix FROM submissions s JOIN old ON old.record_prefix = {PREFIX}
        WHERE s.dataset = $1 AND NOT s.labkey_planned AND s.rows BETWEEN 1 AND $2
          AND ($3::timestamptz IS NULL OR s.created_at >= $3)
        ORDER BY s.id LIMIT $4"
    );
    let found = sqlx::query_as(AssertSqlSafe(sql));
    let batch = i64::try_from(batch).unwrap_or(i64::MAX);
    let found = found.bind(dataset).bind(batch).bind(since).bind(limit).bind(settle.as_secs_f64());
    Ok(found.fetch_all(pool).await?)
}

/// Makes the one delivery of a successor; none when the submission is gone, was planned meanwhile, or has no rows in the table.
///
/// # Errors
/// A database out of reach.
pub async fn plan_one(pool: &PgPool, dataset: &Dataset, successor: &Successor) -> Result<Option<Delivery>> {
    let sql = format!(
        "-- labkey.plan_one
        WITH chosen AS (SELECT id FROM submissions WHERE id = $2 AND NOT labkey_planned FOR UPDATE),
        made AS (
            INSERT INTO labkey_deliveries (dataset, submission_id, record_prefix, first_ordinal, last_ordinal, rows)
            SELECT $1, submission_id, $3, min(ordinal), max(ordinal), count(*) FROM {} JOIN chosen ON chosen.id = submission_id
            GROUP BY submission_id RETURNING *),
        marked AS (
            UPDATE submissions SET labkey_planned = true WHERE id IN (SELECT submission_id FROM made))
        SELECT {WORK} FROM made",
        sql::quoted(&dataset.table)
    );
    let made = sqlx::query_as(AssertSqlSafe(sql));
    let made = made.bind(&dataset.name).bind(successor.submission_id).bind(&successor.record_prefix);
    Ok(made.fetch_optional(pool).await?)
}

/// Takes the delivery of a successor back that LabKey does not have.
///
/// # Errors
/// A database out of reach.
pub async fn unplan(pool: &PgPool, submission: i64, holder: &str) -> Result<()> {
    sqlx::query(
        "-- labkey.unplan
        WITH taken_back AS (
            DELETE FROM labkey_deliveries
            WHERE submission_id = $1 AND (state = 'pending' OR (state IN ('in_flight', 'unknown') AND holder = $2))
            RETURNING submission_id)
        UPDATE submissions SET labkey_planned = false FROM taken_back WHERE id = submission_id",
    )
    .bind(submission)
    .bind(holder)
    .execute(pool)
    .await?;
    Ok(())
}
