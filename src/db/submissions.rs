//! Submissions: one row for each result file that was taken in, written and removed together with its rows.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use super::{execute_generated, labkey};
use crate::dataset::{Dataset, sql};
use crate::error::Result;

/// A submission as it is stored.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Submission {
    /// Grows with time, with gaps.
    pub id: i64,
    /// The dataset's name.
    pub dataset: String,
    /// The client's key, or `sha256:` and the fingerprint.
    pub key: String,
    /// SHA-256 over dataset, parameters and content.
    pub fingerprint: Vec<u8>,
    /// SHA-256 of the decompressed content.
    pub sha256: Vec<u8>,
    /// Rows stored.
    pub rows: i64,
    /// Rows passed over because their unique key was there already.
    pub duplicates: i64,
    /// Decompressed bytes.
    pub bytes: i64,
    /// The sample that all rows share.
    pub sample_id: Option<String>,
    /// The run that all rows share.
    pub run_id: Option<String>,
    /// The name of the access token.
    pub client: String,
    /// When the transaction began.
    pub created_at: DateTime<Utc>,
}

/// A submission to be written.
#[derive(Debug)]
pub struct NewSubmission {
    /// From [`reserve`].
    pub id: i64,
    /// The dataset's name.
    pub dataset: String,
    /// The key under which it is known.
    pub key: String,
    /// SHA-256 over dataset, parameters and content.
    pub fingerprint: [u8; 32],
    /// SHA-256 of the decompressed content.
    pub sha256: [u8; 32],
    /// Rows stored.
    pub rows: u64,
    /// Rows passed over.
    pub duplicates: u64,
    /// Decompressed bytes.
    pub bytes: u64,
    /// The sample that all rows share.
    pub sample_id: Option<String>,
    /// The run that all rows share.
    pub run_id: Option<String>,
    /// The name of the access token.
    pub client: String,
}

/// An id for a submission that is about to arrive. An id that is not used leaves a gap.
///
/// # Errors
/// A database out of reach.
pub async fn reserve(connection: &mut PgConnection) -> Result<i64> {
    Ok(sqlx::query_scalar("-- submissions.reserve\nSELECT nextval('submissions_id_seq')").fetch_one(connection).await?)
}

/// The submission of that key, if any.
///
/// # Errors
/// A database out of reach.
pub async fn by_key(connection: &mut PgConnection, dataset: &str, key: &str) -> Result<Option<Submission>> {
    Ok(sqlx::query_as("-- submissions.by_key\nSELECT * FROM submissions WHERE dataset = $1 AND key = $2")
        .bind(dataset)
        .bind(key)
        .fetch_optional(connection)
        .await?)
}

/// The submission of that id, if any.
///
/// # Errors
/// A database out of reach.
pub async fn by_id(pool: &PgPool, id: i64) -> Result<Option<Submission>> {
    Ok(sqlx::query_as("-- submissions.by_id\nSELECT * FROM submissions WHERE id = $1")
        .bind(id)
        .fetch_optional(pool)
        .await?)
}

/// What is stored of a dataset.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Total {
    /// The dataset's name.
    pub dataset: String,
    /// Its rows.
    pub rows: i64,
    /// When the earliest was stored.
    pub first: DateTime<Utc>,
    /// When the latest was stored.
    pub last: DateTime<Utc>,
}

/// What is stored of each dataset that has rows.
///
/// # Errors
/// A database out of reach.
pub async fn totals(pool: &PgPool) -> Result<Vec<Total>> {
    Ok(sqlx::query_as(
        "-- submissions.totals
        SELECT dataset, sum(rows)::bigint AS rows, min(created_at) AS first, max(created_at) AS last FROM submissions
        WHERE rows > 0 GROUP BY dataset",
    )
    .fetch_all(pool)
    .await?)
}

/// Which submissions [`list`] answers with; `None` does not filter.
#[derive(Debug, Default)]
pub struct Filter {
    /// Of that dataset.
    pub dataset: Option<String>,
    /// All of whose rows are of that sample.
    pub sample_id: Option<String>,
    /// All of whose rows are of that run.
    pub run_id: Option<String>,
    /// Taken in at that time or later.
    pub since: Option<DateTime<Utc>>,
    /// With a smaller id.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: i64,
}

/// Submissions, newest first.
///
/// # Errors
/// A database out of reach.
pub async fn list(pool: &PgPool, filter: &Filter) -> Result<Vec<Submission>> {
    Ok(sqlx::query_as(
        "-- submissions.list
        SELECT * FROM submissions
        WHERE ($1::text IS NULL OR dataset = $1)
          AND ($2::text IS NULL OR sample_id = $2)
          AND ($3::text IS NULL OR run_id = $3)
          AND ($4::timestamptz IS NULL OR created_at >= $4)
          AND ($5::bigint IS NULL OR id < $5)
        ORDER BY id DESC LIMIT $6",
    )
    .bind(&filter.dataset)
    .bind(&filter.sample_id)
    .bind(&filter.run_id)
    .bind(filter.since)
    .bind(filter.before)
    .bind(filter.limit)
    .fetch_all(pool)
    .await?)
}

/// Whether a dataset has any.
///
/// # Errors
/// A database out of reach.
pub async fn any(connection: &mut PgConnection, dataset: &str) -> Result<bool> {
    let any = sqlx::query_scalar("-- submissions.any\nSELECT EXISTS (SELECT FROM submissions WHERE dataset = $1)");
    Ok(any.bind(dataset).fetch_one(connection).await?)
}

/// Writes submissions, but for those whose key is taken. Waits for other transactions that are writing the same keys.
///
/// # Errors
/// A database out of reach.
pub async fn insert(connection: &mut PgConnection, new: &[&NewSubmission]) -> Result<Vec<Submission>> {
    fn column<'n, T>(new: &[&'n NewSubmission], value: impl Fn(&'n NewSubmission) -> T) -> Vec<T> {
        new.iter().map(|new| value(new)).collect()
    }
    Ok(sqlx::query_as(
        "-- submissions.insert
        INSERT INTO submissions
            (id, dataset, key, fingerprint, sha256, rows, duplicates, bytes, sample_id, run_id, client)
        SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bytea[], $5::bytea[], $6::bigint[], $7::bigint[],
            $8::bigint[], $9::text[], $10::text[], $11::text[])
        ON CONFLICT (dataset, key) DO NOTHING
        RETURNING *",
    )
    .bind(column(new, |new| new.id))
    .bind(column(new, |new| new.dataset.as_str()))
    .bind(column(new, |new| new.key.as_str()))
    .bind(column(new, |new| &new.fingerprint[..]))
    .bind(column(new, |new| &new.sha256[..]))
    .bind(column(new, |new| new.rows.cast_signed()))
    .bind(column(new, |new| new.duplicates.cast_signed()))
    .bind(column(new, |new| new.bytes.cast_signed()))
    .bind(column(new, |new| new.sample_id.as_deref()))
    .bind(column(new, |new| new.run_id.as_deref()))
    .bind(column(new, |new| new.client.as_str()))
    .fetch_all(connection)
    .await?)
}

/// The submission of that key, locked against change until the transaction ends.
///
/// # Errors
/// A database out of reach.
pub async fn lock(connection: &mut PgConnection, dataset: &str, key: &str) -> Result<Option<Submission>> {
    Ok(sqlx::query_as("-- submissions.lock\nSELECT * FROM submissions WHERE dataset = $1 AND key = $2 FOR UPDATE")
        .bind(dataset)
        .bind(key)
        .fetch_optional(connection)
        .await?)
}

/// Removes a submission and its rows, here and at the next sync in LabKey; false when it is not there.
///
/// # Errors
/// A database out of reach.
pub async fn delete(connection: &mut PgConnection, dataset: &Dataset, id: i64) -> Result<bool> {
    let deleted = sqlx::query("-- submissions.delete\nDELETE FROM submissions WHERE id = $1 AND dataset = $2")
        .bind(id)
        .bind(&dataset.name)
        .execute(&mut *connection)
        .await?;
    if deleted.rows_affected() == 0 {
        return Ok(false);
    }
    labkey::withdraw(connection, id).await?;
    let table = sql::quoted(&dataset.table);
    let rows = format!("-- submissions.delete_rows\nDELETE FROM {table} WHERE submission_id = {id}");
    execute_generated(connection, rows).await?;
    Ok(true)
}

/// The temporary table that rows with a unique key are copied into first. It hides any table of its name, which no
/// dataset can have: names of tables begin with a letter.
pub const INCOMING: &str = "_incoming";

/// Makes [`INCOMING`] in the shape of the dataset's table, until the transaction ends.
///
/// # Errors
/// A database out of reach.
pub async fn create_incoming(connection: &mut PgConnection, dataset: &Dataset) -> Result<()> {
    let table = sql::quoted(&dataset.table);
    let create = format!(
        "-- submissions.create_incoming\nCREATE TEMP TABLE {INCOMING} (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DROP"
    );
    execute_generated(connection, create).await?;
    Ok(())
}

/// Moves the rows of [`INCOMING`] whose unique key is not there yet, and answers with their number. A second call moves
/// those whose key has become free meanwhile.
///
/// # Errors
/// A database out of reach.
pub async fn take_incoming(connection: &mut PgConnection, dataset: &Dataset) -> Result<u64> {
    let columns = sql::row_columns(dataset);
    let unique = sql::quoted_list(dataset.unique.iter().map(String::as_str));
    // The order of the key, so that two bodies with the same keys wait for each other instead of deadlocking.
    let take = format!(
        "-- submissions.take_incoming\nINSERT INTO {} ({columns}) SELECT {columns} FROM {INCOMING} ORDER BY {unique}, ordinal ON CONFLICT DO NOTHING",
        sql::quoted(&dataset.table)
    );
    execute_generated(connection, take).await
}
