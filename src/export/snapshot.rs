//! One state of the database, read by several connections side by side.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};
use tokio::sync::mpsc;

use super::decode::Decoder;
use super::spec::Plan;
use crate::dataset::Dataset;
use crate::db::jobs::Progress;
use crate::db::{self, Guess};
use crate::error::Result;
use arrow::array::RecordBatch;

/// What readers hand to their encoder.
pub enum Read {
    /// Rows of that range.
    Batch(usize, RecordBatch),
    /// The range is read.
    End(usize),
}

/// A state of the database that does not change while it is read: by one export after the other, or by several side by
/// side. It lives for as long as somebody holds it.
pub struct Snapshot {
    pool: PgPool,
    /// Connections that see the state and have nothing to read.
    idle: Mutex<Vec<PoolConnection<Postgres>>>,
    id: String,
    /// When it was taken.
    pub taken_at: DateTime<Utc>,
}

/// What is known of a table before it is read.
#[derive(Debug, Clone)]
pub struct Table {
    /// Its pages.
    pub pages: i64,
    /// Its rows.
    pub rows: u64,
    /// When its earliest and its latest row was stored.
    pub time: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// What is guessed of its columns.
    pub guesses: Vec<Guess>,
}

impl Snapshot {
    /// Takes the state of now.
    ///
    /// # Errors
    /// A database out of reach.
    pub async fn take(pool: &PgPool) -> Result<Arc<Self>> {
        let mut first = connection(pool).await?;
        begin(&mut first).await?;
        let sql = "-- export.snapshot\nSELECT pg_export_snapshot(), now()";
        let (id, taken_at) = sqlx::query_as(sql).fetch_one(&mut *first).await?;
        Ok(Arc::new(Self { pool: pool.clone(), idle: Mutex::new(vec![first]), id, taken_at }))
    }

    /// What is known of the table of a dataset.
    ///
    /// # Errors
    /// A database out of reach.
    pub async fn table(&self, dataset: &Dataset) -> Result<Table> {
        let mut connection = self.connection().await?;
        let (rows, first, last): (i64, Option<DateTime<Utc>>, Option<DateTime<Utc>>) = sqlx::query_as(
            "-- export.table
            SELECT coalesce(sum(rows), 0)::bigint, min(created_at), max(created_at) FROM submissions
            WHERE dataset = $1 AND rows > 0",
        )
        .bind(&dataset.name)
        .fetch_one(&mut *connection)
        .await?;
        // After the snapshot: pages that come later hold no row of it.
        let pages = db::pages(&mut connection, &dataset.table).await?;
        let guesses = db::guesses(&mut connection, &dataset.table).await?;
        self.give_back(connection);
        Ok(Table { pages, rows: rows.unsigned_abs(), time: first.zip(last), guesses })
    }

    /// A connection that sees this state.
    ///
    /// # Errors
    /// A database out of reach.
    pub async fn connection(&self) -> Result<PoolConnection<Postgres>> {
        if let Some(idle) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(idle);
        }
        let mut another = connection(&self.pool).await?;
        begin(&mut another).await?;
        let adopt = format!("-- export.adopt\nSET TRANSACTION SNAPSHOT '{}'", self.id);
        db::execute_generated(&mut another, adopt).await?;
        Ok(another)
    }

    /// Takes a connection back that has read to the end.
    pub fn give_back(&self, connection: PoolConnection<Postgres>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
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
    // The work is bounded by the job; server-wide limits for web requests must not end it. Compiling the query costs more
    // than it saves where a range is small, and 200 ms where it is not. Rows shall come in the order of the pages.
    for setting in [
        "statement_timeout = 0",
        "idle_in_transaction_session_timeout = 0",
        "jit = off",
        "synchronize_seqscans = off",
        "max_parallel_workers_per_gather = 0",
    ] {
        db::execute_generated(connection, format!("-- export.settings\nSET LOCAL {setting}")).await?;
    }
    Ok(())
}

/// Reads ranges of a table, one after the other, and hands their batches over.
pub struct RangeReader<'r> {
    /// What is read.
    pub plan: Plan,
    /// How far the export is.
    pub progress: &'r Progress,
    /// Where batches go.
    pub output: &'r mpsc::Sender<Read>,
}

impl RangeReader<'_> {
    /// Reads one range of these pages, or all of the table. False when nobody takes its rows any more.
    ///
    /// # Errors
    /// A database that fails.
    pub async fn read(
        &mut self,
        connection: &mut PoolConnection<Postgres>,
        range: usize,
        pages: Option<(i64, i64)>,
    ) -> Result<bool> {
        // Rows found in another way than page by page have no order in which to go on after some of them.
        if pages.is_none() {
            self.plan = self.plan.without_quads();
        }
        let mut taken = 0;
        loop {
            let mut decoder = Decoder::new(&self.plan);
            let mut known = taken;
            let mut copy = db::copy_out(connection, self.plan.copy_out(pages)).await?;
            while let Some(bytes) = copy.next().await.transpose()? {
                if let Some(batch) = decoder.feed(&bytes)? {
                    let Some(rows) = self.hand_over(range, &batch, &mut known).await else { return Ok(false) };
                    taken += rows;
                }
            }
            if decoder.is_uneven() {
                self.plan = self.plan.without_quads();
                continue;
            }
            if let Some(batch) = decoder.finish()?
                && self.hand_over(range, &batch, &mut known).await.is_none()
            {
                return Ok(false);
            }
            return Ok(self.output.send(Read::End(range)).await.is_ok());
        }
    }

    /// Hands over what is new of a batch, whose first rows are `known`; the number of new rows if somebody takes them.
    async fn hand_over(&self, range: usize, batch: &RecordBatch, known: &mut usize) -> Option<usize> {
        let old = batch.num_rows().min(*known);
        *known -= old;
        let rows = batch.num_rows() - old;
        if rows > 0 {
            self.progress.add_rows(rows as u64);
            self.output.send(Read::Batch(range, batch.slice(old, rows))).await.ok()?;
        }
        Some(rows)
    }
}
