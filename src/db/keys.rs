//! Keys that all replicas share, made once and kept in the database.

use sqlx::PgPool;
use uuid::Uuid;

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

/// What tells this database from others, as hexadecimal digits. It came with partitioned datasets, hence its name.
///
/// # Errors
/// A database out of reach.
pub async fn database(pool: &PgPool) -> Result<String> {
    let key = keep(pool, "lake", Uuid::now_v7().as_bytes()).await?;
    Ok(data_encoding::HEXLOWER.encode(&key))
}
