//! To which list the deliveries of each dataset went: what is on record is true of that list alone.

use std::fmt;

use sqlx::{PgConnection, PgPool};

use crate::error::Result;

/// A list, and how rows are sent to it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Destination {
    /// Whose rows.
    pub dataset: String,
    /// LabKey's address.
    pub server: String,
    /// The project or folder.
    pub folder: String,
    /// The list's schema.
    pub schema: String,
    /// The list's name.
    pub list: String,
    /// `merge` or `insert`.
    pub mode: String,
}

impl Destination {
    /// Whether both are the same list, and rows are sent to it in the same way. LabKey's names have no case.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let names =
            |one: &Self| [&one.server, &one.folder, &one.schema, &one.list, &one.mode].map(|s| s.to_lowercase());
        names(self) == names(other)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{} in {} of {} ({})", self.schema, self.list, self.folder, self.server, self.mode)
    }
}

/// Where the rows of each dataset went that may be there. A database that was never brought up to date knows of none.
///
/// # Errors
/// A database out of reach.
pub async fn destinations(pool: &PgPool) -> Result<Vec<Destination>> {
    let is_there = "-- labkey.has_destinations\nSELECT to_regclass('labkey_destinations') IS NOT NULL";
    if !sqlx::query_scalar(is_there).fetch_one(pool).await? {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_as(
        "-- labkey.destinations
        SELECT * FROM labkey_destinations known WHERE EXISTS (
            SELECT FROM labkey_deliveries WHERE dataset = known.dataset AND attempts > 0
                AND (removed_at IS NULL OR doubted_until IS NOT NULL))",
    )
    .fetch_all(pool)
    .await?)
}

/// Remembers where deliveries go from now on.
///
/// # Errors
/// A database out of reach.
pub async fn go_to(pool: &PgPool, to: &Destination) -> Result<()> {
    sqlx::query(
        "-- labkey.go_to
        INSERT INTO labkey_destinations (dataset, server, folder, schema, list, mode) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (dataset) DO UPDATE SET server = excluded.server, folder = excluded.folder,
            schema = excluded.schema, list = excluded.list, mode = excluded.mode",
    )
    .bind(&to.dataset)
    .bind(&to.server)
    .bind(&to.folder)
    .bind(&to.schema)
    .bind(&to.list)
    .bind(&to.mode)
    .execute(pool)
    .await?;
    Ok(())
}

/// Forgets where the deliveries of a dataset went, and answers with it.
///
/// # Errors
/// A database out of reach.
pub async fn forget_destination(connection: &mut PgConnection, dataset: &str) -> Result<Option<Destination>> {
    let sql = "-- labkey.forget_destination\nDELETE FROM labkey_destinations WHERE dataset = $1 RETURNING *";
    Ok(sqlx::query_as(sql).bind(dataset).fetch_optional(connection).await?)
}

/// Forgets all deliveries of a dataset, so that none of its rows has one, and answers with their number. Locks in the
/// order in which submissions are removed.
///
/// # Errors
/// A database out of reach.
pub async fn forget_deliveries(connection: &mut PgConnection, dataset: &str) -> Result<u64> {
    let unplan = "-- labkey.unplan_all
        UPDATE submissions SET labkey_planned = false WHERE dataset = $1 AND labkey_planned";
    sqlx::query(unplan).bind(dataset).execute(&mut *connection).await?;
    let forget = "-- labkey.forget_all\nDELETE FROM labkey_deliveries WHERE dataset = $1";
    Ok(sqlx::query(forget).bind(dataset).execute(connection).await?.rows_affected())
}
