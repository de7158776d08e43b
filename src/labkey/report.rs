//! What a sync has to tell.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Errors of a report at most.
const ERRORS: usize = 20;

/// What a sync did for one dataset.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = LabkeyDatasetReport)]
pub struct DatasetReport {
    /// The dataset's name.
    #[schema(example = "gottcha2")]
    pub dataset: String,
    /// Rows that LabKey took.
    #[schema(example = 12_000, minimum = 0)]
    pub uploaded: u64,
    /// Rows that LabKey refused.
    #[schema(example = 1, minimum = 0)]
    pub failed: u64,
    /// Rows that still are to be delivered.
    #[schema(example = 0, minimum = 0)]
    pub remaining: u64,
    /// Ranges of rows that LabKey took.
    #[schema(example = 96, minimum = 0)]
    pub deliveries: u64,
    /// Ranges of rows of which nobody knew whether LabKey had them, until it was asked.
    #[schema(example = 0, minimum = 0)]
    pub reconciled: u64,
    /// Rows removed from LabKey, because their submission was removed or replaced here.
    #[schema(example = 0, minimum = 0)]
    pub removed: u64,
    /// What went wrong, at most 20 lines.
    pub errors: Vec<String>,
    /// From beginning to end.
    #[schema(example = 0.9, minimum = 0)]
    pub duration_seconds: f64,
    /// Why rows stay in LabKey that were removed or replaced here, if they do. Successors wait for that.
    #[serde(skip)]
    pub stays: Option<String>,
}

impl DatasetReport {
    /// The report of this sync, or of this attempt, and of the one before it as one.
    #[must_use]
    pub fn after(mut self, before: Self) -> Self {
        self.uploaded += before.uploaded;
        self.failed += before.failed;
        self.deliveries += before.deliveries;
        self.reconciled += before.reconciled;
        self.removed += before.removed;
        self.duration_seconds += before.duration_seconds;
        let mut errors = before.errors;
        for error in self.errors {
            if errors.len() < ERRORS && !errors.contains(&error) {
                errors.push(error);
            }
        }
        Self { errors, ..self }
    }
}

/// Counts while a sync runs.
#[derive(Debug)]
pub(super) struct Tally {
    started: Instant,
    pub uploaded: AtomicU64,
    pub failed: AtomicU64,
    pub deliveries: AtomicU64,
    pub reconciled: AtomicU64,
    pub removed: AtomicU64,
    errors: Mutex<Vec<String>>,
    stays: Mutex<Option<String>>,
}

impl Tally {
    pub(super) fn new() -> Self {
        let zero = AtomicU64::default;
        Self {
            started: Instant::now(),
            uploaded: zero(),
            failed: zero(),
            deliveries: zero(),
            reconciled: zero(),
            removed: zero(),
            errors: Mutex::default(),
            stays: Mutex::default(),
        }
    }

    pub(super) fn error(&self, text: impl Into<String>) {
        let (text, mut errors) = (text.into(), self.errors.lock().unwrap_or_else(PoisonError::into_inner));
        if errors.len() < ERRORS && !errors.contains(&text) {
            errors.push(text);
        }
    }

    /// Rows stay in LabKey that are to be removed there.
    pub(super) fn stays(&self, why: String) {
        self.error(why.as_str());
        *self.stays.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    pub(super) fn report(&self, dataset: &str, remaining: u64) -> DatasetReport {
        let number = |count: &AtomicU64| count.load(Ordering::Relaxed);
        DatasetReport {
            dataset: dataset.to_owned(),
            uploaded: number(&self.uploaded),
            failed: number(&self.failed),
            remaining,
            deliveries: number(&self.deliveries),
            reconciled: number(&self.reconciled),
            removed: number(&self.removed),
            errors: self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            duration_seconds: (self.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
            stays: self.stays.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
