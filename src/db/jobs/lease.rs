//! The right to work on a job, and how far the work is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuardRef};
use uuid::Uuid;

use crate::error::{Error, Result};

/// How far a job is: written by the work, read by its heartbeat.
#[derive(Debug, Default)]
pub struct Progress {
    phase: Mutex<&'static str>,
    rows: AtomicU64,
    bytes: AtomicU64,
    files: AtomicU64,
    total: AtomicU64,
    schemas: Mutex<Schemas>,
}

/// How far work on several datasets is.
#[derive(Debug, Clone, Default)]
struct Schemas {
    total: usize,
    completed: usize,
    current: Option<String>,
}

impl Progress {
    /// A new phase begins.
    pub fn enter(&self, phase: &'static str) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// So many rows are expected, if that is known.
    pub fn expect_rows(&self, total: Option<u64>) {
        self.total.store(total.unwrap_or_default(), Ordering::Relaxed);
    }

    /// So many datasets are worked on.
    pub fn expect_schemas(&self, total: usize) {
        *self.schemas() = Schemas { total, ..Schemas::default() };
    }

    /// Work on a dataset begins.
    pub fn enter_schema(&self, name: &str) {
        self.schemas().current = Some(name.to_owned());
    }

    /// Work on a dataset has ended.
    pub fn leave_schema(&self) {
        let mut schemas = self.schemas();
        schemas.current = None;
        schemas.completed += 1;
    }

    fn schemas(&self) -> MutexGuard<'_, Schemas> {
        self.schemas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More rows were read.
    pub fn add_rows(&self, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// More bytes were written.
    pub fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Another file is written.
    pub fn add_file(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    /// Files written so far.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.files.load(Ordering::Relaxed)
    }

    /// Rows read so far, and rows expected: 0 when unknown.
    #[must_use]
    pub fn rows(&self) -> (u64, u64) {
        (self.rows.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// As it is stored: `{phase, rows, bytes, total_rows}`, and what is known of datasets when there are several.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let (rows, total) = self.rows();
        let phase = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let total = (total > 0).then_some(total);
        let mut progress =
            json!({"phase": phase, "rows": rows, "bytes": self.bytes.load(Ordering::Relaxed), "total_rows": total});
        let schemas = self.schemas().clone();
        if schemas.total > 0 {
            progress["schemas_total"] = schemas.total.into();
            progress["schemas_completed"] = schemas.completed.into();
            progress["current_schema"] = schemas.current.into();
        }
        progress
    }
}

/// The right to work on a job for a while. Writes of another attempt are refused.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The job.
    pub id: Uuid,
    /// The attempt that this is.
    pub attempt: i32,
    /// How far the work is.
    pub progress: Arc<Progress>,
    cancel: CancellationToken,
}

impl Lease {
    /// The lease of an attempt.
    #[must_use]
    pub fn new(id: Uuid, attempt: i32) -> Self {
        Self { id, attempt, progress: Arc::default(), cancel: CancellationToken::new() }
    }

    /// The right to do a part of the work, which stops with the whole and can be stopped alone.
    #[must_use]
    pub fn part(&self) -> Self {
        Self { progress: Arc::clone(&self.progress), cancel: self.cancel.child_token(), ..*self }
    }

    /// Stops the work when it is dropped, unless it is disarmed before.
    #[must_use]
    pub fn guard(&self) -> DropGuardRef<'_> {
        self.cancel.drop_guard_ref()
    }

    /// Waits for something, but no longer than the work goes on.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the work shall stop.
    pub async fn unless_cancelled<T>(&self, waiting: impl Future<Output = T>) -> Result<T> {
        self.cancel.run_until_cancelled(waiting).await.ok_or(Error::Cancelled)
    }

    /// Waits until the work shall stop.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Whether the work shall stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Tells the work to stop.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }
}
