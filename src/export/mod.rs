//! Rows -> files: a consistent snapshot of a dataset, written to storage as a whole or not at all.
//!
//! [`run`] writes one dataset with its [`manifest`], which comes last. [`write`] writes the files of one dataset from a
//! [`snapshot`] that may serve several. Several connections read ranges of the table and decode them ([`decode`]);
//! beside each, a thread encodes ([`encode`]: [`parquet`], [`text`]); one thread puts the parts together in order
//! ([`files`]), and its bytes are uploaded as they come. Bounded channels lie between them, so that memory does not grow
//! with the table.

mod backlog;
pub mod decode;
pub mod encode;
pub mod files;
pub mod filters;
pub mod manifest;
pub mod parquet;
pub mod snapshot;
pub mod spec;
pub mod text;
mod upload;
pub mod yaml;
pub mod zip;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::config::ExportConfig;
use crate::db::jobs::Lease;
use crate::error::{Error, Result};
use crate::storage::Storage;
use backlog::Backlog;
use encode::{Encoder, Limits, Part, Stats};
use files::{Encoded, Written};
use manifest::Manifest;
use parquet::Layout;
use snapshot::{RangeReader, Read, Snapshot, Table};
use spec::Plan;
use upload::FileNames;

/// Batches between a connection and its encoder.
const BATCHES_IN_FLIGHT: usize = 2;

/// Parts between the encoders and the writer.
const PARTS_IN_FLIGHT: usize = 1;

/// Pieces of half a megabyte between the writer and the uploader, and uploads of parts at the same time.
const PIECES_IN_FLIGHT: usize = 2;

/// Ranges of pages that hold about the rows of one row group.
const RANGES: usize = 4;

/// Rows of a part of a text file, which is held in memory as it is.
const TEXT_ROWS: usize = 10_000;

/// Bytes of such a part, where rows are long.
const TEXT_BYTES: usize = 16 * 1024 * 1024;

/// Digits of its id in the names of an export that has no folder of its own. Files of partitioned datasets have twelve, by
/// which a run knows what it may remove.
const DIGITS: usize = 8;

/// What an export wrote.
#[derive(Debug, Clone)]
pub struct Exported {
    /// The files, in order.
    pub files: Vec<(String, Written)>,
    /// When the state was taken that they hold.
    pub snapshot_at: DateTime<Utc>,
    /// What is known of all rows.
    pub stats: Stats,
    /// The size of all files.
    pub bytes: u64,
}

/// What an export is called, and where it goes.
pub struct Target<'t> {
    /// Its name for people and programs: an id.
    pub id: String,
    /// Where to write.
    pub storage: &'t Storage,
    /// The folder of this attempt; the root of the storage when empty.
    pub prefix: String,
    /// The files that are finished, or may be.
    written: Mutex<Vec<String>>,
}

impl<'t> Target<'t> {
    /// A target in which nothing is written yet.
    #[must_use]
    pub fn new(id: String, storage: &'t Storage, prefix: String) -> Self {
        Self { id, storage, prefix, written: Mutex::default() }
    }

    /// The name of a file in the storage, which is remembered.
    pub fn name(&self, file: &str) -> String {
        let name = if self.prefix.is_empty() { file.to_owned() } else { format!("{}/{file}", self.prefix) };
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        name
    }

    /// The end of the id, by which files of one export are told from those of others.
    fn digits(&self) -> &str {
        self.id.get(self.id.len().saturating_sub(DIGITS)..).unwrap_or_default()
    }

    /// Removes all files again.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn remove(&self) -> Result<()> {
        let written = std::mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner));
        for name in written {
            self.storage.delete_file(&name).await?;
        }
        Ok(())
    }
}

/// Writes the state of now of a dataset to a folder of the storage: all files and the manifest, or nothing.
///
/// # Errors
/// A database or a storage that fails, or [`Error::Cancelled`].
pub async fn run(
    pool: &PgPool,
    config: &ExportConfig,
    plan: Plan,
    target: &Target<'_>,
    lease: &Lease,
) -> Result<Exported> {
    let written = write_with_manifest(pool, config, plan, target, lease).await;
    if written.is_err()
        && let Err(error) = target.remove().await
    {
        // The sweep finds what is left.
        tracing::warn!(%error, prefix = target.prefix, "an unfinished export could not be removed");
    }
    written
}

async fn write_with_manifest(
    pool: &PgPool,
    config: &ExportConfig,
    plan: Plan,
    target: &Target<'_>,
    lease: &Lease,
) -> Result<Exported> {
    let progress = &lease.progress;
    progress.enter("snapshot");
    let snapshot = lease.unless_cancelled(Snapshot::take(pool)).await??;
    let table = lease.unless_cancelled(snapshot.table(&plan.dataset)).await??;
    let limit = plan.row_limit.map(|limit| limit.min(table.rows));
    progress.expect_rows(if plan.has_all_rows() { Some(table.rows) } else { limit });
    progress.enter("reading");
    let mut stem = format!("{}_{}", plan.dataset.name, snapshot.taken_at.format("%Y%m%d_%H%M%S"));
    let mut name = manifest::FILE.to_owned();
    // A folder of its own has one export; any other may have several, also of the same second.
    if target.prefix.is_empty() {
        stem = format!("{stem}_{}", target.digits());
        name = format!("{stem}.{name}");
    }
    let exported = write(snapshot, &table, config, plan.clone(), &stem, target, lease).await?;
    progress.enter("manifest");
    let manifest = Manifest::new(&plan, &target.id, &exported).to_json()?;
    target.storage.put(&target.name(&name), manifest).await?;
    Ok(exported)
}

/// Writes the files of a dataset, named after `stem`. The snapshot is let go as soon as the table is read, unless the
/// caller keeps it for others.
///
/// # Errors
/// A database or a storage that fails, or [`Error::Cancelled`]. Files that are finished by then stay: the target knows them.
pub async fn write(
    snapshot: Arc<Snapshot>,
    table: &Table,
    config: &ExportConfig,
    mut plan: Plan,
    stem: &str,
    target: &Target<'_>,
    lease: &Lease,
) -> Result<Exported> {
    plan.expect(&table.guesses);
    let snapshot_at = snapshot.taken_at;
    let ranges = Arc::new(Ranges::new(&plan, config, table));
    let mut connections = Vec::new();
    for _ in 0..ranges.readers(config) {
        connections.push(lease.unless_cancelled(snapshot.connection()).await??);
    }
    // One thread more than readers, since the shares of the columns are never equal.
    let layout = Layout::new(&plan, &manifest::notes(&plan, &target.id, snapshot_at), connections.len() + 1)?;
    let plan = Arc::new(plan);
    let layout = Arc::new(layout);
    // Whoever fails stops the others, which may wait for what will never come, before anybody takes a part for the whole.
    let part = lease.part();
    let mut work = JoinSet::new();
    let (to_writer, encoded) = mpsc::channel(PARTS_IN_FLIGHT);
    // Text is written in the order of the table; the parts of it that are not due wait in memory, so they are few.
    let tickets = plan.is_ordered().then(|| files::tickets(connections.len()));
    let backlog = Arc::new(Backlog::new(ranges.limits.bytes));
    let encoders = if plan.is_ordered() { connections.len() } else { 1 };
    let mut to_encoders = Vec::new();
    for _ in 0..encoders {
        let (to_encoder, batches) = mpsc::channel(BATCHES_IN_FLIGHT);
        to_encoders.push(to_encoder);
        let encoding = EncoderThread {
            plan: Arc::clone(&plan),
            layout: Arc::clone(&layout),
            limits: ranges.limits,
            backlog: Arc::clone(&backlog),
            output: to_writer.clone(),
            lease: part.clone(),
        };
        work.spawn_blocking(move || or_stop(&encoding.lease, || encoding.run(batches)));
    }
    for (index, connection) in connections.into_iter().enumerate() {
        let reading = Reader {
            plan: Arc::clone(&plan),
            ranges: Arc::clone(&ranges),
            tickets: tickets.clone(),
            lease: part.clone(),
            snapshot: Arc::clone(&snapshot),
        };
        work.spawn(reading.run(connection, to_encoders[index % encoders].clone()));
    }
    drop((to_encoders, to_writer, snapshot));
    let (to_uploader, mut output) = mpsc::channel(PIECES_IN_FLIGHT);
    let writing = (Arc::clone(&plan), Arc::clone(&layout), config.file_size.as_u64(), part.clone());
    work.spawn_blocking(move || {
        or_stop(&writing.3, || {
            let turns = (tickets.as_deref(), &*backlog);
            files::write(&writing.0, &writing.1, writing.2, encoded, turns, &to_uploader)
        })
    });
    let names = FileNames { stem, extension: plan.extension() };
    let uploaded = upload::run(target, &names, &mut output, &part).await;
    if uploaded.is_err() {
        part.cancel();
    }
    // Whoever still works finds that nobody listens, and ends.
    drop(output);
    let worked = finish(work).await;
    // What broke the upload off says more than that it was broken off.
    let files = match (uploaded, worked) {
        (Err(error @ Error::Cancelled), _) if lease.is_cancelled() => return Err(error),
        (_, Err(error)) if !matches!(error, Error::Internal(_)) => return Err(error),
        (Err(Error::Cancelled), Err(error)) => return Err(error),
        (Err(error), _) | (_, Err(error)) => return Err(error),
        (Ok(files), Ok(())) => files,
    };
    let mut stats = Stats::default();
    files.iter().for_each(|(_, file)| stats.add(&file.stats));
    let bytes = files.iter().map(|(_, file)| file.bytes).sum();
    Ok(Exported { files, snapshot_at, stats, bytes })
}

/// Stops the work of all where this part of it fails or panics.
fn or_stop(lease: &Lease, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let guard = lease.guard();
    work()?;
    guard.disarm();
    Ok(())
}

/// The first error of all that work, once all have ended.
async fn finish(mut work: JoinSet<Result<()>>) -> Result<()> {
    let mut first: Result<()> = Ok(());
    while let Some(ended) = work.join_next().await {
        let ended = ended.unwrap_or_else(|error| Err(Error::Internal(format!("exporting failed: {error}"))));
        // That somebody else had gone is no reason where there is another.
        let is_better =
            |error: &Error| !matches!(error, Error::Internal(_)) && matches!(first, Err(Error::Internal(_)));
        if let Err(error) = ended
            && (first.is_ok() || is_better(&error))
        {
            first = Err(error);
        }
    }
    first
}

/// How the table is cut into ranges of pages.
struct Ranges {
    /// The pages of the table, where they are read one after the other.
    pages: Option<i64>,
    step: i64,
    count: usize,
    next: AtomicUsize,
    limits: Limits,
}

impl Ranges {
    fn new(plan: &Plan, config: &ExportConfig, table: &Table) -> Self {
        let bytes = usize::try_from(config.batch_bytes.as_u64()).unwrap_or(usize::MAX);
        let (rows, limits) = if plan.is_ordered() {
            let rows = TEXT_ROWS.min(config.batch_size);
            // A range that turns out a little longer shall not leave a tiny part.
            (rows, Limits { rows: rows + rows / 4, bytes: bytes.min(TEXT_BYTES) })
        } else {
            // Short, so that no reader works on alone for long at the end of the table.
            ((config.batch_size / RANGES).max(1), Limits { rows: config.batch_size, bytes })
        };
        let whole = plan.row_limit.is_some() || plan.is_lookup || table.pages == 0 || table.rows == 0;
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an estimate")]
        let step = (table.pages as f64 * rows as f64 / table.rows as f64).ceil() as i64;
        let step = if whole { i64::MAX } else { step.max(1) };
        let count = if whole { 1 } else { usize::try_from((table.pages + step - 1) / step).unwrap_or(1) };
        Self { pages: (!whole).then_some(table.pages), step, count, next: AtomicUsize::new(0), limits }
    }

    fn readers(&self, config: &ExportConfig) -> usize {
        config.connections.clamp(1, self.count.max(1))
    }

    /// The next range, and its pages; none where all of the table is one range that an index may find.
    fn next(&self) -> Option<(usize, Option<(i64, i64)>)> {
        let range = self.next.fetch_add(1, Ordering::Relaxed);
        if range >= self.count {
            return None;
        }
        let Some(pages) = self.pages else { return Some((range, None)) };
        let first = i64::try_from(range).ok()? * self.step;
        Some((range, Some((first, (first + self.step).min(pages)))))
    }
}

struct Reader {
    plan: Arc<Plan>,
    ranges: Arc<Ranges>,
    tickets: Option<Arc<Semaphore>>,
    lease: Lease,
    snapshot: Arc<Snapshot>,
}

impl Reader {
    /// Reads ranges until none is left, or until the work shall stop, however long PostgreSQL is silent.
    async fn run(self, connection: PoolConnection<Postgres>, output: mpsc::Sender<Read>) -> Result<()> {
        // Dropped before the channel is: an encoder must not take the end of a reader that failed for the end of its rows.
        let guard = self.lease.guard();
        // That the work was stopped is known to whoever stopped it.
        if let Ok(read) = self.lease.unless_cancelled(self.read(connection, &output)).await {
            read?;
        }
        guard.disarm();
        Ok(())
    }

    /// A connection that ends within a COPY is not used again.
    async fn read(&self, mut connection: PoolConnection<Postgres>, output: &mpsc::Sender<Read>) -> Result<()> {
        let plan = Plan::clone(&self.plan);
        let mut reader = RangeReader { plan, progress: &self.lease.progress, output };
        loop {
            if let Some(tickets) = &self.tickets {
                let ticket = tokio::select! {
                    ticket = tickets.acquire() => ticket,
                    () = output.closed() => return Ok(()),
                };
                let Ok(ticket) = ticket else { return Ok(()) };
                ticket.forget();
            }
            let Some((range, pages)) = self.ranges.next() else {
                // Others may be waiting for a ticket only to find the same.
                self.tickets.iter().for_each(|tickets| tickets.add_permits(1));
                break;
            };
            if !reader.read(&mut connection, range, pages).await? {
                return Ok(());
            }
        }
        self.snapshot.give_back(connection);
        Ok(())
    }
}

/// What a thread that encodes works with.
struct EncoderThread {
    plan: Arc<Plan>,
    layout: Arc<Layout>,
    limits: Limits,
    backlog: Arc<Backlog>,
    output: mpsc::Sender<Encoded>,
    lease: Lease,
}

impl EncoderThread {
    fn run(&self, mut batches: mpsc::Receiver<Read>) -> Result<()> {
        let mut encoder = Encoder::new(&self.plan, &self.layout, self.limits);
        while let Some(read) = batches.blocking_recv() {
            match read {
                Read::Batch(range, batch) => {
                    let range = if self.plan.is_ordered() { range } else { 0 };
                    self.send_part(range, encoder.write(&batch)?)?;
                }
                Read::End(range) if self.plan.is_ordered() => {
                    self.send_part(range, encoder.finish()?)?;
                    self.send(Encoded::End(range))?;
                }
                Read::End(_) => {}
            }
        }
        self.send_part(0, encoder.finish()?)
    }

    fn send_part(&self, range: usize, part: Option<Part>) -> Result<()> {
        let Some(part) = part else { return Ok(()) };
        let held = self.backlog.enter(range, part.waiting_bytes(), &self.lease);
        self.send(Encoded::Part(range, part, held))
    }

    fn send(&self, message: Encoded) -> Result<()> {
        let gone = |_| Error::Internal("the writer ended before the encoders".into());
        self.output.blocking_send(message).map_err(gone)
    }
}
