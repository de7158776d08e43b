//! Durable background work: what kinds there are ([`Work`]), who does it ([`worker`]), what starts by itself
//! ([`schedule`]), and what is cleared away ([`retention`]).

mod export;
pub mod retention;
pub mod schedule;
pub mod sync;
pub mod worker;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::app::App;
use crate::dataset::Dataset;
use crate::db;
use crate::db::jobs::{self, Job, NewJob};
use crate::error::{Error, Result};
use crate::export::spec::ExportSpec;

/// What a job is to do, as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// Write one export.
    Export {
        /// Which one.
        export_id: Uuid,
        /// Days until it may be removed.
        retention_days: u32,
    },
    /// Deliver to LabKey what is pending.
    LabkeySync {
        /// Of which dataset.
        dataset: String,
    },
}

/// How often a sync is tried before it waits for its next turn.
const SYNC_ATTEMPTS: i32 = 5;

impl Work {
    /// What an export is called among jobs.
    pub const EXPORT: &str = "export";
    /// What a delivery to LabKey is called among jobs.
    pub const LABKEY_SYNC: &str = "labkey_sync";

    const fn kind(&self) -> &'static str {
        match self {
            Self::Export { .. } => Self::EXPORT,
            Self::LabkeySync { .. } => Self::LABKEY_SYNC,
        }
    }
}

/// An export that somebody asks for.
#[derive(Debug)]
pub struct NewExport<'a> {
    /// Whose rows.
    pub dataset: &'a Dataset,
    /// Which of them, and in which form; already checked.
    pub spec: &'a ExportSpec,
    /// Days until it may be removed.
    pub retention_days: u32,
    /// At most one export of that key is ever made.
    pub dedupe_key: Option<&'a str>,
}

/// Makes an export and its job, in the caller's transaction. With a key that was used before: the job of then.
///
/// # Errors
/// A key that was used for another export, a database out of reach.
pub async fn enqueue_export(app: &App, connection: &mut sqlx::PgConnection, new: &NewExport<'_>) -> Result<Job> {
    let (job, export) = (Uuid::now_v7(), Uuid::now_v7());
    let work = Work::Export { export_id: export, retention_days: new.retention_days };
    let internal = |error: serde_json::Error| Error::Internal(format!("a job cannot be stored: {error}"));
    let spec = serde_json::to_value(new.spec).map_err(internal)?;
    let job = NewJob {
        id: job,
        kind: work.kind(),
        payload: serde_json::to_value(&work).map_err(internal)?,
        max_attempts: app.config.export.max_attempts,
        dedupe_key: new.dedupe_key,
        alone_key: None,
    };
    if jobs::enqueue(connection, &job).await? {
        db::exports::insert(connection, export, job.id, &new.dataset.name, &spec).await?;
    } else if let Some(key) = new.dedupe_key
        && !db::exports::is_same(connection, key, &new.dataset.name, &spec).await?
    {
        return Err(Error::Conflict("this Idempotency-Key was used for another export; send a new one".into()));
    }
    let made = match new.dedupe_key {
        Some(key) => jobs::by_dedupe_key(connection, key).await?,
        None => jobs::by_id(connection, job.id).await?,
    };
    made.ok_or_else(|| Error::Internal("a job vanished".into()))
}

/// Makes a sync of a dataset, in the caller's transaction; the one that waits or runs when there is one, since it goes
/// on until nothing is pending. Says whether it is a new one.
///
/// # Errors
/// A database out of reach.
pub async fn enqueue_sync(connection: &mut sqlx::PgConnection, dataset: &str) -> Result<(Job, bool)> {
    let work = Work::LabkeySync { dataset: dataset.to_owned() };
    let payload =
        serde_json::to_value(&work).map_err(|error| Error::Internal(format!("a job cannot be stored: {error}")))?;
    let key = format!("labkey_sync:{dataset}");
    loop {
        let job = NewJob {
            id: Uuid::now_v7(),
            kind: work.kind(),
            payload: payload.clone(),
            max_attempts: SYNC_ATTEMPTS,
            dedupe_key: None,
            alone_key: Some(&key),
        };
        let is_new = jobs::enqueue(connection, &job).await?;
        // None when it has ended between the two statements.
        if let Some(job) = jobs::unfinished(connection, &key).await? {
            return Ok((job, is_new));
        }
    }
}
