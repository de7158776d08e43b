//! Rows into a table by COPY, in PostgreSQL's binary format.
//!
//! Source: <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format".

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use sqlx::PgConnection;

use crate::dataset::{Dataset, Fault, sql};
use crate::error::{Error, Result};

/// The signature, no flags, no header extension.
const HEADER: &[u8; 19] = b"PGCOPY\n\xFF\r\n\0\0\0\0\0\0\0\0\0";

/// The end of the data: a field count of -1.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// Whole rows as COPY takes them, without the header and the trailer of the format.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Positions of the columns of the dataset that the rows carry, besides those of the service.
    pub columns: Arc<[usize]>,
    /// The bytes.
    pub bytes: Bytes,
}

/// Sends rows of a dataset into `table`, its own or one of its shape, and answers with the number that PostgreSQL took.
/// Batches in a row that carry the same columns are one COPY.
///
/// # Errors
/// What the batches say in place of one, after which nothing more is asked of them; what PostgreSQL says, as
/// [`refused`] tells it. Some rows may be there then: the transaction must not be committed.
pub async fn fill(
    connection: &mut PgConnection,
    dataset: &Dataset,
    table: &str,
    mut batches: impl Stream<Item = Result<Batch>> + Unpin,
) -> Result<u64> {
    let mut rows = 0;
    let mut next = batches.next().await.transpose()?;
    while let Some(first) = next.take() {
        let mut copy = connection.copy_in_raw(&sql::copy_in(dataset, table, &first.columns)).await?;
        copy.send(HEADER.as_slice()).await?;
        copy.send(first.bytes).await?;
        loop {
            match batches.next().await.transpose() {
                Ok(Some(batch)) if batch.columns == first.columns => drop(copy.send(batch.bytes).await?),
                Ok(other) => {
                    next = other;
                    break;
                }
                Err(error) => {
                    // Not by `abort`: when PostgreSQL has refused a row already, sqlx 0.9.0 reads one answer too few then, and
                    // whoever has the connection next gets all answers one too late. The transaction ends with the error.
                    drop(copy.finish().await);
                    return Err(error);
                }
            }
        }
        copy.send(TRAILER.as_slice()).await?;
        rows += copy.finish().await.map_err(|error| refused(error.into(), rows))?;
    }
    Ok(rows)
}

/// Turns data that PostgreSQL itself refuses (what our own checks let pass) into a fault of the caller's row.
/// `before` rows of the body had been copied by earlier statements.
pub fn refused(error: Error, before: u64) -> Error {
    let Error::Database(sqlx::Error::Database(refusal)) = &error else {
        return error;
    };
    let code = refusal.code().unwrap_or_default();
    // 22 data exception, 23 integrity, 54 program limit such as a key too long for its index.
    if !["22", "23", "54"].iter().any(|class| code.starts_with(class)) {
        return error;
    }
    let refusal = refusal.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
    let context = refusal.and_then(|refusal| refusal.r#where()).unwrap_or_default();
    // "COPY table, line 7, column name"; the header of the format counts as no line.
    let row = context.split(", ").find_map(|part| part.strip_prefix("line "));
    let row = row.and_then(|row| row.split(':').next()).and_then(|row| row.parse::<u64>().ok());
    let row = row.map_or_else(|| "a row".to_owned(), |row| format!("row {}", before + row));
    let reason = format!("{row} cannot be stored by PostgreSQL (SQLSTATE {code})");
    Error::Faults(vec![Fault { line: None, column: None, field: None, reason }])
}
