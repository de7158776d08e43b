//! What a partitioned dataset is compared with: the submissions that a snapshot sees. And the lock that keeps two from
//! writing one dataset.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres};

use crate::dataset::{Dataset, sql};
use crate::error::Result;

/// A submission that has rows. Its rows were stored at the same moment, that of its transaction.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub struct Visible {
    /// Its id.
    pub id: i64,
    /// Its rows.
    pub rows: i64,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
}

/// The submissions of a dataset that this connection's snapshot sees, by id.
///
/// # Errors
/// A database out of reach.
pub async fn visible(connection: &mut PgConnection, dataset: &Dataset) -> Result<Vec<Visible>> {
    let submissions = sqlx::query_as(
        "-- lake.visible\nSELECT id, rows, created_at FROM submissions WHERE dataset = $1 AND rows > 0 ORDER BY id",
    );
    Ok(submissions.bind(&dataset.name).fetch_all(connection).await?)
}

/// The submissions whose rows have a value in one of some columns. All of the table is looked through.
///
/// # Errors
/// A database out of reach.
pub async fn with_values(connection: &mut PgConnection, dataset: &Dataset, columns: &[String]) -> Result<HashSet<i64>> {
    let conditions: Vec<String> = columns.iter().map(|column| format!("{} IS NOT NULL", sql::quoted(column))).collect();
    let statement = format!(
        "-- lake.with_values\nSELECT DISTINCT submission_id FROM {} WHERE {}",
        sql::quoted(&dataset.table),
        conditions.join(" OR ")
    );
    let ids: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_all(connection).await?;
    Ok(ids.into_iter().collect())
}

/// The values of some columns, as text, and how many rows have them. Null and the empty text are one.
///
/// # Errors
/// A database out of reach.
pub async fn values(
    connection: &mut PgConnection,
    dataset: &Dataset,
    columns: &[String],
    conditions: &[String],
    limit: usize,
) -> Result<Vec<(Vec<Option<String>>, i64)>> {
    let values: Vec<String> =
        columns.iter().map(|column| format!("nullif({}::text, '')", sql::quoted(column))).collect();
    let conditions = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") };
    let statement = format!(
        "-- lake.values\nSELECT ARRAY[{}], count(*) FROM {} WHERE {conditions} GROUP BY 1 ORDER BY 1 LIMIT {limit}",
        values.join(", "),
        sql::quoted(&dataset.table),
    );
    Ok(sqlx::query_as(AssertSqlSafe(statement)).fetch_all(connection).await?)
}

/// The right to write a dataset, or a catalogue, held by a connection for as long as it lives. It goes by the name, since one
/// folder may have several addresses, and all who may write to it use this database.
pub struct Lock(PoolConnection<Postgres>);

impl Lock {
    /// Takes it; `None` when another has it.
    ///
    /// # Errors
    /// A database out of reach.
    pub async fn take(pool: &PgPool, name: &str) -> Result<Option<Self>> {
        let mut connection = pool.acquire().await?;
        // The lock ends with the connection, however this process ends.
        connection.close_on_drop();
        let lock = sqlx::query_scalar("-- lake.lock\nSELECT pg_try_advisory_lock(hashtextextended($1, 6))");
        let is_taken: bool = lock.bind(name).fetch_one(&mut *connection).await?;
        Ok(is_taken.then_some(Self(connection)))
    }

    /// Makes sure that it is still held.
    ///
    /// # Errors
    /// A connection that has ended.
    pub async fn check(&mut self) -> Result<()> {
        sqlx::query("-- lake.check\nSELECT 1").execute(&mut *self.0).await?;
        Ok(())
    }
}

/// When jobs of that kind last brought each dataset up to date, in seconds since 1970.
///
/// # Errors
/// A database out of reach.
pub async fn updated(pool: &PgPool, kind: &str) -> Result<Vec<(String, f64)>> {
    let sql = "-- lake.updated
        SELECT payload->>'dataset', extract(epoch FROM max(finished_at))::float8 FROM jobs
        WHERE kind = $1 AND state = 'completed' AND payload ? 'dataset' GROUP BY 1";
    Ok(sqlx::query_as(sql).bind(kind).fetch_all(pool).await?)
}
