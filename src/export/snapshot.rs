//! One state of the database, read by several connections side by side.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};
use tokio::sync::mpsc;

use super::decode::Decoder;
use super::spec::Plan;
use crate::dataset::Dataset;
use crate::db;
use crate::db::jobs::Progress;
use crate::error::Result;
use arrow::array::RecordBatch;

/// What readers hand to their encoder.
pub enum Read {
    /// Rows of that range.
    Batch(usize, RecordBatch),
    /// The range is read.
    End(usize),
}

/// A state of the database that does not change while it is read.
pub struct Snapshot {
    pool: PgPool,
    /// Holds the state until all readers have it.
    holder: PoolConnection<Postgres>,
    id: String,
    /// When it was taken.
    pub taken_at: DateTime<Utc>,
    /// Pages of the table.
    pub pages: i64,
    /// Rows of the table.
    pub rows: u64,
    /// Columns that hardly any row fills, as far as PostgreSQL's statistics know.
    pub sparse: Vec<String>,
}

impl Snapshot {
    /// Takes the state of now.
    ///
    /// # Errors
    /// A database out of reach.
    pub async fn take(pool: &PgPool, dataset: &Dataset) -> Result<Self> {
        let mut holder = connection(pool).await?;
        begin(&mut holder).await?;
        let (id, taken_at, rows): (String, DateTime<Utc>, i64) = sqlx::query_as(
            "-- export.snapshot
            SELECT pg_export_snapshot(), now(), coalesce((SELECT sum(rows) FROM submissions WHERE dataset = $1), 0)::bigint",
        )
        .bind(&dataset.name)
        .fetch_one(&mut *holder)
        .await?;
        // After the snapshot: pages that come later hold no row of it.
        let pages = db::pages(&mut holder, &dataset.table).await?;
        let sparse = db::sparse_columns(&mut holder, &dataset.table).await?;
        Ok(Self { pool: pool.clone(), holder, id, taken_at, pages, rows: rows.unsigned_abs(), sparse })
    }

    /// Connections that all see this state, which needs no holding any more.
    ///
    /// # Errors
    /// A database out of reach.
    pub async fn readers(self, count: usize) -> Result<Vec<PoolConnection<Postgres>>> {
        let mut readers = Vec::new();
        for _ in 1..count {
            let mut reader = connection(&self.pool).await?;
            begin(&mut reader).await?;
            let adopt = format!("-- export.adopt\nSET TRANSACTION SNAPSHOT '{}'", self.id);
            db::execute_generated(&mut reader, adopt).await?;
            readers.push(reader);
        }
        readers.push(self.holder);
        Ok(readers)
    }
}

/// A connection that is not used again: one that ends within a COPY would have to read all the rest.
async fn connection(pool: &PgPool) -> Result<PoolConnection<Postgres>> {
    let mut connection = pool.acquire().await?;
    connection.close_on_drop();
    Ok(connection)
}

async fn begin(connection: &mut PoolConnection<Postgres>) -> Result<()> {
    sqlx::query("-- export.begin\nBEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut **connection).await?;
    // The work is bounded by the job; a server-wide limit for web requests must not end it.
    // Compiling the query costs more than it saves where a range is small, and 200 ms where it is not.
    for setting in ["-- export.patience\nSET LOCAL statement_timeout = 0", "-- export.jit\nSET LOCAL jit = off"] {
        sqlx::query(setting).execute(&mut **connection).await?;
    }
    Ok(())
}

/// Reads one range of the table and hands its batches over.
///
/// # Errors
/// A database that fails.
pub async fn read(
    connection: &mut PoolConnection<Postgres>,
    plan: &Plan,
    range: usize,
    pages: Option<(i64, i64)>,
    progress: &Arc<Progress>,
    output: &mpsc::Sender<Read>,
) -> Result<bool> {
    let mut decoder = Decoder::new(plan);
    let mut copy = db::copy_out(connection, plan.copy_out(pages)).await?;
    while let Some(bytes) = copy.next().await.transpose()? {
        if let Some(batch) = decoder.feed(&bytes)? {
            progress.add_rows(batch.num_rows() as u64);
            if output.send(Read::Batch(range, batch)).await.is_err() {
                return Ok(false);
            }
        }
    }
    if let Some(batch) = decoder.finish()? {
        progress.add_rows(batch.num_rows() as u64);
        if output.send(Read::Batch(range, batch)).await.is_err() {
            return Ok(false);
        }
    }
    Ok(output.send(Read::End(range)).await.is_ok())
}
