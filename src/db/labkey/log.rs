//! The record of deliveries as people see it: the audit trail, what LabKey refused, and trying that again.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use crate::error::Result;

/// A delivery as it is stored, with the names of what it delivers.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Entry {
    /// Grows with time.
    pub id: i64,
    /// Its name in LabKey.
    pub key: Uuid,
    /// The dataset's name.
    pub dataset: String,
    /// Whose rows.
    pub submission_id: i64,
    /// The submission's key; none when it was removed.
    pub submission_key: Option<String>,
    /// The sample that all rows of the submission share.
    pub sample_id: Option<String>,
    /// Its first row.
    pub first_ordinal: i32,
    /// Its last row.
    pub last_ordinal: i32,
    /// Its rows.
    pub rows: i32,
    /// `pending`, `in_flight`, `unknown`, `completed` or `failed`.
    pub state: String,
    /// How often it was sent.
    pub attempts: i32,
    /// LabKey's transaction.
    pub transaction_id: Option<String>,
    /// The size of the request that carried it.
    pub request_bytes: Option<i64>,
    /// LabKey's own words.
    pub error: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last sent.
    pub sent_at: Option<DateTime<Utc>>,
    /// When it was completed or refused.
    pub finished_at: Option<DateTime<Utc>>,
    /// When its submission was removed or replaced here, or others took its place.
    pub withdrawn_at: Option<DateTime<Utc>>,
    /// Since when LabKey has its rows no more.
    pub removed_at: Option<DateTime<Utc>>,
}

/// Which deliveries [`list`] answers with; `None` does not filter.
#[derive(Debug, Default)]
pub struct Filter {
    /// Of that dataset.
    pub dataset: Option<String>,
    /// In that state.
    pub state: Option<&'static str>,
    /// Of that submission.
    pub submission: Option<i64>,
    /// With a smaller id.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: i64,
}

/// Deliveries, newest first.
///
/// # Errors
/// A database out of reach.
pub async fn list(pool: &PgPool, filter: &Filter) -> Result<Vec<Entry>> {
    Ok(sqlx::query_as(
        "-- labkey.list
        SELECT d.*, s.key AS submission_key, s.sample_id FROM (
            SELECT id, key, dataset, submission_id, first_ordinal, last_ordinal, rows, state, attempts, transaction_id,
                request_bytes, error, created_at, sent_at, finished_at, withdrawn_at, removed_at FROM labkey_deliveries
            WHERE ($1::text IS NULL OR dataset = $1)
              AND ($2::text IS NULL OR state = $2)
              AND ($3::bigint IS NULL OR submission_id = $3)
              AND ($4::bigint IS NULL OR id < $4)
            ORDER BY id DESC LIMIT $5) d
        LEFT JOIN submissions s ON s.id = d.submission_id ORDER BY d.id DESC",
    )
    .bind(&filter.dataset)
    .bind(filter.state)
    .bind(filter.submission)
    .bind(filter.before)
    .bind(filter.limit)
    .fetch_all(pool)
    .await?)
}

/// Which refused deliveries [`retry`] takes up again; `None` does not filter.
#[derive(Debug, Default)]
pub struct Refused<'r> {
    /// Of that dataset.
    pub dataset: Option<&'r str>,
    /// That one.
    pub delivery: Option<i64>,
    /// Whose reason contains that.
    pub reason: Option<&'r str>,
}

/// Takes refused deliveries up again: LabKey is asked for their rows before they are sent. Answers with deliveries and
/// rows.
///
/// # Errors
/// A database out of reach.
pub async fn retry(pool: &PgPool, which: &Refused<'_>) -> Result<(i64, i64)> {
    Ok(sqlx::query_as(
        "-- labkey.retry
        WITH again AS (
            UPDATE labkey_deliveries SET state = 'unknown', holder = NULL
            WHERE state = 'failed' AND withdrawn_at IS NULL AND ($1::text IS NULL OR dataset = $1) AND ($2::bigint IS NULL OR id = $2)
              AND ($3::text IS NULL OR strpos(error, $3) > 0)
            RETURNING rows)
        SELECT count(*), coalesce(sum(rows), 0)::bigint FROM again",
    )
    .bind(which.dataset)
    .bind(which.delivery)
    .bind(which.reason)
    .fetch_one(pool)
    .await?)
}
