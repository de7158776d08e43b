//! Keys that all replicas share, made once and kept in the database.

use sqlx::PgPool;

use crate::error::Result;

/// The key of that name, which is `new` when there was none.
///
/// # Errors
/// A database out of reach.
pub async fn keep(pool: &PgPool, name: &str, new: &[u8]) -> Result<Vec<u8>> {
    sqlx::query("-- keys.keep\nINSERT INTO keys (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
        .bind(name)
        .bind(new)
        .execute(pool)
        .await?;
    Ok(sqlx::query_scalar("-- keys.find\nSELECT value FROM keys WHERE name = $1").bind(name).fetch_one(pool).await?)
}
