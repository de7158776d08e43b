//! Deliveries whose submission was removed or replaced here, and that have to leave LabKey too.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use super::{DOUBT, Delivery, WORK};
use crate::dataset::{Dataset, sql};
use crate::error::Result;

/// Says that the rows of a submission are going: what LabKey may have of them will be looked up and removed there. What
/// was sent may be there, whatever is known of its last request. Part of the transaction that removes them.
///
/// # Errors
/// A database out of reach.
pub async fn withdraw(connection: &mut PgConnection, submission: i64) -> Result<()> {
    sqlx::query(
        "-- labkey.forget
        DELETE FROM labkey_deliveries
        WHERE submission_id = $1 AND doubted_until IS NULL AND state = 'pending' AND attempts = 0",
    )
    .bind(submission)
    .execute(&mut *connection)
    .await?;
    let sql = format!(
        "-- labkey.withdraw
        UPDATE labkey_deliveries SET withdrawn_at = now(), error = NULL,
            state = CASE WHEN state IN ('pending', 'failed') THEN 'unknown' ELSE state END,
            doubted_until = CASE WHEN state IN ('in_flight', 'unknown') THEN now() + {DOUBT} ELSE doubted_until END
        WHERE submission_id = $1 AND withdrawn_at IS NULL"
    );
    sqlx::query(AssertSqlSafe(sql)).bind(submission).execute(connection).await?;
    Ok(())
}

/// Deliveries that were withdrawn, and that LabKey may still have; not those that were sent less than `settle` ago and
/// whose end is unknown.
///
/// # Errors
/// A database out of reach.
pub async fn withdrawn(
    pool: &PgPool,
    dataset: &str,
    settle: Duration,
    after: i64,
    limit: i64,
) -> Result<Vec<Delivery>> {
    let sql = format!(
        "-- labkey.withdrawn
        SELECT {WORK} FROM labkey_deliveries
        WHERE dataset = $1 AND id > $2 AND withdrawn_at IS NOT NULL AND removed_at IS NULL AND state <> 'in_flight'
          AND (state <> 'unknown' OR sent_at < now() - $4 * interval '1 second')
        ORDER BY id LIMIT $3"
    );
    let found = sqlx::query_as(AssertSqlSafe(sql)).bind(dataset).bind(after).bind(limit).bind(settle.as_secs_f64());
    Ok(found.fetch_all(pool).await?)
}

/// Withdrawn deliveries of one prefix that LabKey still has.
///
/// # Errors
/// A database out of reach.
pub async fn withdrawn_of(pool: &PgPool, dataset: &str, prefix: &str) -> Result<Vec<Delivery>> {
    let sql = format!(
        "-- labkey.withdrawn_of
        SELECT {WORK} FROM labkey_deliveries
        WHERE dataset = $1 AND record_prefix = $2 AND withdrawn_at IS NOT NULL AND removed_at IS NULL ORDER BY id"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(dataset).bind(prefix).fetch_all(pool).await?)
}

/// The record keys among those of a withdrawn delivery that rows have which are delivered under them now.
///
/// # Errors
/// A database out of reach.
pub async fn record_keys_kept(pool: &PgPool, dataset: &Dataset, gone: &Delivery) -> Result<HashSet<String>> {
    let sql = format!(
        "-- labkey.record_keys_kept
        SELECT d.record_prefix || '-' || t.ordinal FROM labkey_deliveries d JOIN {} t
            ON t.submission_id = d.submission_id AND t.ordinal BETWEEN d.first_ordinal AND d.last_ordinal
        WHERE d.dataset = $1 AND d.record_prefix = $2 AND d.withdrawn_at IS NULL AND d.state <> 'failed'
          AND t.ordinal BETWEEN $3 AND $4",
        sql::quoted(&dataset.table)
    );
    let kept = sqlx::query_scalar(AssertSqlSafe(sql)).bind(&dataset.name).bind(&gone.record_prefix);
    let kept: Vec<String> = kept.bind(gone.first_ordinal).bind(gone.last_ordinal).fetch_all(pool).await?;
    Ok(kept.into_iter().collect())
}

/// Says that LabKey has no row of withdrawn deliveries any more, or why it still does.
///
/// # Errors
/// A database out of reach.
pub async fn removed(pool: &PgPool, ids: &[i64], refusal: Option<&str>) -> Result<()> {
    sqlx::query(
        "-- labkey.removed
        UPDATE labkey_deliveries SET error = $2, removed_at = CASE WHEN $2::text IS NULL THEN now() END
        WHERE id = ANY($1) AND withdrawn_at IS NOT NULL",
    )
    .bind(ids)
    .bind(refusal)
    .execute(pool)
    .await?;
    Ok(())
}
