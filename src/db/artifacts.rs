//! The files that runs of extracts have written.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use super::jobs::Lease;
use crate::error::{Error, Result};

/// An artifact as it is stored.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Artifact {
    /// `artifact_` and letters.
    pub id: String,
    /// The run that wrote it.
    pub run_id: String,
    /// The attempt that wrote it.
    pub attempt: i32,
    /// `describe`, `data`, `archive` or `manifest`.
    pub kind: String,
    /// The dataset of a data file.
    pub schema: Option<String>,
    /// Its name.
    pub name: String,
    /// Where it lies in the storage.
    pub path: String,
    /// Its rows.
    pub rows: i64,
    /// Its size.
    pub bytes: i64,
    /// The digest of its bytes.
    pub sha256: Vec<u8>,
    /// When it was complete.
    pub created_at: DateTime<Utc>,
    /// How often it was downloaded.
    pub download_count: i64,
    /// When it was last downloaded.
    pub last_accessed_at: Option<DateTime<Utc>>,
}

/// Records an artifact of the attempt that holds the lease.
///
/// # Errors
/// [`Error::Cancelled`] when the job is somebody else's now; a database out of reach.
pub async fn insert(connection: &mut PgConnection, lease: &Lease, artifact: &Artifact) -> Result<()> {
    let inserted = sqlx::query(
        "-- artifacts.insert
        INSERT INTO extract_artifacts (id, run_id, attempt, kind, schema, name, path, rows, bytes, sha256)
        SELECT $3, $4, $2, $5, $6, $7, $8, $9, $10, $11 FROM jobs
        WHERE id = $1 AND attempt = $2 AND state = 'running'",
    )
    .bind(lease.id)
    .bind(lease.attempt)
    .bind(&artifact.id)
    .bind(&artifact.run_id)
    .bind(&artifact.kind)
    .bind(&artifact.schema)
    .bind(&artifact.name)
    .bind(&artifact.path)
    .bind(artifact.rows)
    .bind(artifact.bytes)
    .bind(&artifact.sha256)
    .execute(connection)
    .await?;
    if inserted.rows_affected() == 1 { Ok(()) } else { Err(Error::Cancelled) }
}

/// The artifacts of some runs, in the order in which they were written.
///
/// # Errors
/// A database out of reach.
pub async fn of_runs(pool: &PgPool, runs: &[String]) -> Result<Vec<Artifact>> {
    let found = sqlx::query_as(
        "-- artifacts.of_runs
        SELECT * FROM extract_artifacts WHERE run_id = ANY($1) ORDER BY run_id, created_at, name",
    );
    Ok(found.bind(runs).fetch_all(pool).await?)
}

/// The artifact of that id.
///
/// # Errors
/// A database out of reach.
pub async fn by_id(pool: &PgPool, id: &str) -> Result<Option<Artifact>> {
    let found = sqlx::query_as("-- artifacts.by_id\nSELECT * FROM extract_artifacts WHERE id = $1");
    Ok(found.bind(id).fetch_optional(pool).await?)
}

/// Counts a download.
///
/// # Errors
/// A database out of reach.
pub async fn count_download(pool: &PgPool, id: &str) -> Result<()> {
    sqlx::query(
        "-- artifacts.count_download
        UPDATE extract_artifacts SET download_count = download_count + 1, last_accessed_at = now() WHERE id = $1",
    )
    .bind(id)
    .execute(pool)
    .await?;
    Ok(())
}

/// Forgets the artifacts that earlier attempts of a run have left; those of all attempts when `before` is none.
///
/// # Errors
/// A database out of reach.
pub async fn delete_before(connection: &mut PgConnection, run: &str, before: Option<i32>) -> Result<()> {
    sqlx::query(
        "-- artifacts.delete_before
        DELETE FROM extract_artifacts WHERE run_id = $1 AND ($2::int IS NULL OR attempt < $2)",
    )
    .bind(run)
    .bind(before)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets one artifact of a run, because it went into another.
///
/// # Errors
/// A database out of reach.
pub async fn delete(connection: &mut PgConnection, id: &str) -> Result<()> {
    sqlx::query("-- artifacts.delete\nDELETE FROM extract_artifacts WHERE id = $1")
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}
