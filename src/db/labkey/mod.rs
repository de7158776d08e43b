//! Deliveries to LabKey: ranges of rows, and how far each is. What is not planned yet is found through the submissions.

mod destinations;
pub mod log;
mod plan;
mod stats;
mod withdrawn;

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgPool};

use crate::dataset::{Dataset, sql};
use crate::error::Result;

pub use destinations::{Destination, destinations, forget_deliveries, forget_destination, go_to};
pub use plan::{Planned, Successor, next_unplanned, plan, plan_one, successors, unplan, unplan_before};
pub use stats::{LastSync, Stats, any_work, last_syncs, record, stats};
pub use withdrawn::{record_keys_kept, removed, withdraw, withdrawn, withdrawn_of};

/// How long a request that was given up for lost is looked for.
const DOUBT: &str = "interval '1 hour'";

/// A delivery as work: what is to be sent, and what it is called.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Delivery {
    /// Grows with time.
    pub id: i64,
    /// Its name in LabKey.
    pub key: uuid::Uuid,
    /// Whose rows.
    pub submission_id: i64,
    /// What the record keys of its rows begin with.
    pub record_prefix: String,
    /// Its first row.
    pub first_ordinal: i32,
    /// Its last row.
    pub last_ordinal: i32,
    /// Its rows.
    pub rows: i32,
    /// How often it was sent.
    pub attempts: i32,
    /// Seconds since it was last sent, if it was.
    pub age: Option<f64>,
    /// Whether its submission was removed or replaced here, or others have taken its place.
    pub is_withdrawn: bool,
}

const WORK: &str = "id, key, submission_id, record_prefix, first_ordinal, last_ordinal, rows, attempts, \
                    extract(epoch FROM now() - sent_at)::double precision AS age, \
                    withdrawn_at IS NOT NULL AS is_withdrawn";

/// Which deliveries `d` are looked for since an earlier request may still arrive: those that seem to be settled.
const DOUBTED: &str = "d.doubted_until IS NOT NULL AND \
                       CASE WHEN d.withdrawn_at IS NULL THEN d.state = 'completed' ELSE d.removed_at IS NOT NULL END";

/// Deliveries of a dataset in a state, in their order, after that one. Pending ones wait until LabKey holds the rows no
/// more whose place they take.
///
/// # Errors
/// A database out of reach.
pub async fn in_state(pool: &PgPool, dataset: &str, state: State, after: i64, limit: i64) -> Result<Vec<Delivery>> {
    let sql = format!(
        "-- labkey.in_state
        SELECT {WORK} FROM labkey_deliveries d
        WHERE dataset = $1 AND state = $2 AND id > $3 AND withdrawn_at IS NULL
          AND ($2 <> 'pending' OR NOT EXISTS (SELECT FROM labkey_deliveries old WHERE old.dataset = $1
              AND old.record_prefix = d.record_prefix AND old.withdrawn_at IS NOT NULL AND old.removed_at IS NULL))
        ORDER BY id LIMIT $4"
    );
    let found = sqlx::query_as(AssertSqlSafe(sql)).bind(dataset).bind(state.as_str()).bind(after).bind(limit);
    Ok(found.fetch_all(pool).await?)
}

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is to be sent.
    Pending,
    /// It is being sent.
    InFlight,
    /// It was sent, and nobody knows whether LabKey has it.
    Unknown,
    /// LabKey has it.
    Completed,
    /// LabKey refused it.
    Failed,
}

impl State {
    /// The state as it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InFlight => "in_flight",
            Self::Unknown => "unknown",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// Takes pending deliveries in hand, and answers with those that were there to be taken.
///
/// # Errors
/// A database out of reach.
pub async fn claim(pool: &PgPool, ids: &[i64], holder: &str) -> Result<Vec<Delivery>> {
    let sql = format!(
        "-- labkey.claim
        UPDATE labkey_deliveries SET state = 'in_flight', holder = $2, attempts = attempts + 1, sent_at = now()
        WHERE id = ANY($1) AND state = 'pending' AND withdrawn_at IS NULL RETURNING {WORK}"
    );
    let mut claimed: Vec<Delivery> = sqlx::query_as(AssertSqlSafe(sql)).bind(ids).bind(holder).fetch_all(pool).await?;
    claimed.sort_by_key(|one| one.id);
    Ok(claimed)
}

/// How LabKey took the deliveries of one request.
#[derive(Debug, Default)]
pub struct Outcome<'o> {
    /// LabKey's transaction.
    pub transaction: Option<&'o str>,
    /// The request's size.
    pub bytes: Option<usize>,
    /// Why they are refused, or in doubt.
    pub error: Option<&'o str>,
}

/// Says how deliveries in hand ended, or that it is unknown; answers with how many still were in hand.
///
/// # Errors
/// A database out of reach.
pub async fn conclude(pool: &PgPool, ids: &[i64], holder: &str, state: State, how: &Outcome<'_>) -> Result<u64> {
    let marked = sqlx::query(
        "-- labkey.conclude
        UPDATE labkey_deliveries SET state = $3, transaction_id = coalesce($4, transaction_id),
            request_bytes = coalesce($5, request_bytes), error = $6,
            finished_at = CASE WHEN $3 IN ('completed', 'failed') THEN now() END
        WHERE id = ANY($1) AND holder = $2 AND state IN ('in_flight', 'unknown')",
    )
    .bind(ids)
    .bind(holder)
    .bind(state.as_str())
    .bind(how.transaction)
    .bind(how.bytes.and_then(|bytes| i64::try_from(bytes).ok()))
    .bind(how.error)
    .execute(pool)
    .await?;
    Ok(marked.rows_affected())
}

/// Makes deliveries that LabKey does not have pending again; those that were withdrawn meanwhile are looked up instead,
/// since an earlier request may have brought them. `is_doubted` are those of which LabKey may still get the rows. Answers
/// with how many were withdrawn.
///
/// # Errors
/// A database out of reach.
pub async fn release(pool: &PgPool, ids: &[i64], holder: &str, is_doubted: bool) -> Result<usize> {
    let sql = format!(
        "-- labkey.release
        UPDATE labkey_deliveries SET state = CASE WHEN withdrawn_at IS NULL THEN 'pending' ELSE 'unknown' END,
            holder = NULL, doubted_until = CASE WHEN $3 THEN now() + {DOUBT} ELSE doubted_until END
        WHERE id = ANY($1) AND holder = $2 AND state IN ('in_flight', 'unknown') RETURNING withdrawn_at IS NOT NULL"
    );
    let released = sqlx::query_scalar(AssertSqlSafe(sql)).bind(ids).bind(holder).bind(is_doubted);
    let is_withdrawn: Vec<bool> = released.fetch_all(pool).await?;
    Ok(is_withdrawn.into_iter().filter(|is_withdrawn| *is_withdrawn).count())
}

/// Cuts a pending delivery in two before the row at `middle`, which has `before` rows before it; none when it is no more
/// what it was, since somebody else has cut it, has it in hand or removes its submission, which would leave the second half
/// behind. The rows of both have been sent as often as the whole. Where a request of the whole may still arrive, it stays on
/// record as one whose rows have to leave, and both halves are new.
///
/// # Errors
/// A database out of reach.
pub async fn split(pool: &PgPool, delivery: &Delivery, middle: i32, before: i32) -> Result<Option<[Delivery; 2]>> {
    let sql = format!(
        "-- labkey.split
        WITH kept AS (SELECT FROM submissions WHERE id = $6 FOR KEY SHARE),
        whole AS (
            UPDATE labkey_deliveries SET
                last_ordinal = CASE WHEN doubted_until IS NULL THEN $2 - 1 ELSE last_ordinal END,
                rows = CASE WHEN doubted_until IS NULL THEN $3 ELSE rows END,
                state = CASE WHEN doubted_until IS NULL THEN state ELSE 'unknown' END,
                withdrawn_at = CASE WHEN doubted_until IS NOT NULL THEN now() END,
                removed_at = CASE WHEN doubted_until IS NOT NULL THEN now() END
            WHERE id = $1 AND state = 'pending' AND last_ordinal = $4 AND rows = $3 + $5 AND EXISTS (SELECT FROM kept)
            RETURNING *, doubted_until IS NULL AS is_kept)
        INSERT INTO labkey_deliveries
            (dataset, submission_id, record_prefix, first_ordinal, last_ordinal, rows, attempts, sent_at)
        SELECT dataset, submission_id, record_prefix, half.first, half.last, half.rows,
            CASE WHEN is_kept THEN attempts ELSE 0 END, CASE WHEN is_kept THEN sent_at END
        FROM whole CROSS JOIN LATERAL (VALUES (first_ordinal, $2 - 1, $3), ($2, $4, $5)) half (first, last, rows)
        WHERE half.first = $2 OR NOT is_kept
        RETURNING {WORK}"
    );
    let mut made: Vec<Delivery> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(delivery.id)
        .bind(middle)
        .bind(before)
        .bind(delivery.last_ordinal)
        .bind(delivery.rows - before)
        .bind(delivery.submission_id)
        .fetch_all(pool)
        .await?;
    made.sort_by_key(|half| half.first_ordinal);
    let Some(second) = made.pop() else { return Ok(None) };
    let kept = || Delivery { last_ordinal: middle - 1, rows: before, ..delivery.clone() };
    Ok(Some([made.pop().unwrap_or_else(kept), second]))
}

/// The ordinal of the row of a delivery that has `before` of its rows before it.
///
/// # Errors
/// A database out of reach.
pub async fn ordinal_at(pool: &PgPool, dataset: &Dataset, delivery: &Delivery, before: i32) -> Result<Option<i32>> {
    let sql = format!(
        "-- labkey.ordinal_at
        SELECT ordinal FROM {} WHERE submission_id = $1 AND ordinal BETWEEN $2 AND $3 ORDER BY ordinal OFFSET $4 LIMIT 1",
        sql::quoted(&dataset.table)
    );
    let found = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(delivery.submission_id)
        .bind(delivery.first_ordinal)
        .bind(delivery.last_ordinal)
        .bind(i64::from(before));
    Ok(found.fetch_optional(pool).await?)
}

/// Takes in hand what an earlier sync left: whatever was in flight is unknown now. The caller is the only sync of the
/// dataset.
///
/// # Errors
/// A database out of reach.
pub async fn take_over(pool: &PgPool, dataset: &str, holder: &str) -> Result<u64> {
    let taken = sqlx::query(
        "-- labkey.take_over
        UPDATE labkey_deliveries SET state = 'unknown', holder = $2
        WHERE dataset = $1 AND state IN ('in_flight', 'unknown') AND removed_at IS NULL AND holder IS DISTINCT FROM $2",
    );
    Ok(taken.bind(dataset).bind(holder).execute(pool).await?.rows_affected())
}

/// Deliveries that LabKey has, or has no more, and of which an earlier request may still arrive.
///
/// # Errors
/// A database out of reach.
pub async fn doubted(pool: &PgPool, dataset: &str, after: i64, limit: i64) -> Result<Vec<Delivery>> {
    let sql = format!(
        "-- labkey.doubted
        SELECT {WORK} FROM labkey_deliveries d WHERE dataset = $1 AND id > $2 AND {DOUBTED} ORDER BY id LIMIT $3"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(dataset).bind(after).bind(limit).fetch_all(pool).await?)
}

/// Begins the doubt about deliveries of which LabKey may still get the rows once more.
///
/// # Errors
/// A database out of reach.
pub async fn doubt(pool: &PgPool, ids: &[i64]) -> Result<()> {
    let sql = format!(
        "-- labkey.doubt
        UPDATE labkey_deliveries SET doubted_until = now() + {DOUBT} WHERE id = ANY($1)"
    );
    sqlx::query(AssertSqlSafe(sql)).bind(ids).execute(pool).await?;
    Ok(())
}

/// Takes a completed delivery in hand again, which LabKey does not have as it should; false when it was withdrawn meanwhile.
///
/// # Errors
/// A database out of reach.
pub async fn reopen(pool: &PgPool, id: i64, holder: &str) -> Result<bool> {
    let sql = "-- labkey.reopen
        UPDATE labkey_deliveries SET state = 'unknown', holder = $2
        WHERE id = $1 AND state = 'completed' AND withdrawn_at IS NULL";
    Ok(sqlx::query(sql).bind(id).bind(holder).execute(pool).await?.rows_affected() == 1)
}

/// Ends the doubt about deliveries that were looked for, if their time is over. Where rows are `merged`, a late request of a
/// withdrawn one may have changed or removed those that took its place: they are pending once more.
///
/// # Errors
/// A database out of reach.
pub async fn trust(pool: &PgPool, ids: &[i64], merged: bool) -> Result<()> {
    let mut transaction = pool.begin().await?;
    if merged {
        let sql = "-- labkey.send_again
            UPDATE labkey_deliveries one SET state = 'pending', holder = NULL FROM labkey_deliveries gone
            WHERE gone.id = ANY($1) AND gone.doubted_until < now() AND gone.withdrawn_at IS NOT NULL
              AND one.dataset = gone.dataset AND one.record_prefix = gone.record_prefix
              AND one.submission_id <> gone.submission_id AND one.state = 'completed' AND one.withdrawn_at IS NULL";
        sqlx::query(sql).bind(ids).execute(&mut *transaction).await?;
    }
    let sql = "-- labkey.trust
        UPDATE labkey_deliveries SET doubted_until = NULL WHERE id = ANY($1) AND doubted_until < now()";
    sqlx::query(sql).bind(ids).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(())
}

impl Delivery {
    /// The time since it was last sent.
    #[must_use]
    pub fn since_sent(&self) -> Duration {
        Duration::try_from_secs_f64(self.age.unwrap_or(f64::MAX)).unwrap_or(Duration::MAX)
    }

    /// What its rows are called in LabKey, by the attempt that brought them.
    pub fn delivery_keys(&self) -> impl Iterator<Item = String> {
        (1..=self.attempts.max(1)).map(|attempt| format!("{}.{attempt}", self.key))
    }

    /// What they are called when the last attempt brought them.
    #[must_use]
    pub fn delivery_key(&self) -> String {
        format!("{}.{}", self.key, self.attempts.max(1))
    }

    /// The keys of its rows in LabKey, and of any that may lie between.
    pub fn record_keys(&self) -> impl Iterator<Item = String> {
        (self.first_ordinal..=self.last_ordinal).map(|ordinal| format!("{}-{ordinal}", self.record_prefix))
    }
}
