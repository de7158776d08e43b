//! Extracts: named configurations of what is extracted, and how often each was run.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

use crate::error::{Error, Result};

/// An extract as it is stored.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Extract {
    /// `extract_` and letters.
    pub id: String,
    /// Unique among all extracts.
    pub name: String,
    /// All that an operator sets.
    pub config: Value,
    /// Grows with each change.
    pub version: i64,
    /// Runs that were made.
    pub total_runs: i64,
    /// Runs that completed.
    pub successful_runs: i64,
    /// Runs that failed.
    pub failed_runs: i64,
    /// When the last run was made.
    pub last_run_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When its configuration was last changed.
    pub updated_at: DateTime<Utc>,
}

/// Makes an extract.
///
/// # Errors
/// A name that is taken, a database out of reach.
pub async fn insert(pool: &PgPool, id: &str, name: &str, config: &Value) -> Result<Extract> {
    sqlx::query_as("-- extracts.insert\nINSERT INTO extracts (id, name, config) VALUES ($1, $2, $3) RETURNING *")
        .bind(id)
        .bind(name)
        .bind(config)
        .fetch_one(pool)
        .await
        .map_err(|error| name_is_taken(error, name))
}

fn name_is_taken(error: sqlx::Error, name: &str) -> Error {
    match &error {
        sqlx::Error::Database(cause) if cause.is_unique_violation() => {
            Error::Conflict(format!("there is an extract of the name `{name}` already"))
        }
        _ => error.into(),
    }
}

/// The extract of that id.
///
/// # Errors
/// A database out of reach.
pub async fn by_id(pool: &PgPool, id: &str) -> Result<Option<Extract>> {
    let found = sqlx::query_as("-- extracts.by_id\nSELECT * FROM extracts WHERE id = $1");
    Ok(found.bind(id).fetch_optional(pool).await?)
}

/// The extract of that id, locked for the transaction: whoever makes, ends or cancels runs of it waits for each other.
///
/// # Errors
/// A database out of reach.
pub async fn lock(connection: &mut PgConnection, id: &str) -> Result<Option<Extract>> {
    let found = sqlx::query_as("-- extracts.lock\nSELECT * FROM extracts WHERE id = $1 FOR UPDATE");
    Ok(found.bind(id).fetch_optional(connection).await?)
}

/// Extracts, newest first, after the place of one that was made then and has that id.
///
/// # Errors
/// A database out of reach.
pub async fn list(pool: &PgPool, before: Option<(DateTime<Utc>, &str)>, limit: i64) -> Result<Vec<Extract>> {
    Ok(sqlx::query_as(
        "-- extracts.list
        SELECT * FROM extracts WHERE $1::timestamptz IS NULL OR (created_at, id) < ($1, $2)
        ORDER BY created_at DESC, id DESC LIMIT $3",
    )
    .bind(before.map(|(time, _)| time))
    .bind(before.map(|(_, id)| id))
    .bind(limit)
    .fetch_all(pool)
    .await?)
}

/// Extracts that shall run by themselves.
///
/// # Errors
/// A database out of reach.
pub async fn scheduled(pool: &PgPool) -> Result<Vec<Extract>> {
    Ok(sqlx::query_as(
        "-- extracts.scheduled
        SELECT * FROM extracts WHERE config @> '{\"enabled\": true, \"schedule_enabled\": true}' ORDER BY id",
    )
    .fetch_all(pool)
    .await?)
}

/// Changes an extract that is still at `version`; `None` when it is not.
///
/// # Errors
/// A name that is taken, a database out of reach.
pub async fn update(
    connection: &mut PgConnection,
    id: &str,
    version: i64,
    name: &str,
    config: &Value,
) -> Result<Option<Extract>> {
    sqlx::query_as(
        "-- extracts.update
        UPDATE extracts SET name = $3, config = $4, version = version + 1, updated_at = now()
        WHERE id = $1 AND version = $2 RETURNING *",
    )
    .bind(id)
    .bind(version)
    .bind(name)
    .bind(config)
    .fetch_optional(connection)
    .await
    .map_err(|error| name_is_taken(error, name))
}

/// Counts a run that was made.
///
/// # Errors
/// A database out of reach.
pub async fn count_run(connection: &mut PgConnection, id: &str) -> Result<()> {
    sqlx::query(
        "-- extracts.count_run
        UPDATE extracts SET total_runs = total_runs + 1, last_run_at = now() WHERE id = $1",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Counts the end of a run, well or not.
///
/// # Errors
/// A database out of reach.
pub async fn count_end(connection: &mut PgConnection, id: &str, succeeded: bool) -> Result<()> {
    sqlx::query(
        "-- extracts.count_end
        UPDATE extracts SET successful_runs = successful_runs + $2::int, failed_runs = failed_runs + 1 - $2::int
        WHERE id = $1",
    )
    .bind(id)
    .bind(succeeded)
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes an extract; its runs stay without it.
///
/// # Errors
/// A database out of reach.
pub async fn delete(connection: &mut PgConnection, id: &str) -> Result<()> {
    sqlx::query("-- extracts.delete\nDELETE FROM extracts WHERE id = $1").bind(id).execute(connection).await?;
    Ok(())
}
