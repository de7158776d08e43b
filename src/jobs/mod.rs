//! Durable background work: what kinds there are ([`Work`]), who does it ([`worker`]), what starts by itself
//! ([`schedule`]), and what is cleared away ([`retention`]).

mod export;
pub mod retention;
pub mod schedule;
pub mod worker;

use serde::{Deserialize, Serialize};
use serde_json::Value;
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
        /// Hours until it may be removed.
        retention_hours: u32,
    },
}

impl Work {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Export { .. } => "export",
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
    /// Hours until it may be removed.
    pub retention_hours: u32,
    /// Who asked for it, and how, when it is not for the catalogue.
    pub asked: Option<Asked<'a>>,
    /// At most one export of that key is ever made.
    pub dedupe_key: Option<&'a str>,
}

/// A wish for an export outside the catalogue.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The wish as it was sent.
    pub request: &'a Value,
    /// The name of the access token.
    pub client: &'a str,
}

/// Makes an export and its job, in the caller's transaction. With a key that was used before: the job of then.
///
/// # Errors
/// A key that was used for another export, a database out of reach.
pub async fn enqueue_export(app: &App, connection: &mut sqlx::PgConnection, new: &NewExport<'_>) -> Result<Job> {
    let (job, export) = (Uuid::now_v7(), Uuid::now_v7());
    let work = Work::Export { export_id: export, retention_hours: new.retention_hours };
    let internal = |error: serde_json::Error| Error::Internal(format!("a job cannot be stored: {error}"));
    let spec = serde_json::to_value(new.spec).map_err(internal)?;
    let job = NewJob {
        id: job,
        kind: work.kind(),
        payload: serde_json::to_value(&work).map_err(internal)?,
        max_attempts: app.config.export.max_attempts,
        dedupe_key: new.dedupe_key,
    };
    if jobs::enqueue(connection, &job).await? {
        db::exports::insert(connection, export, job.id, &new.dataset.name, &spec).await?;
        if let Some(asked) = &new.asked {
            db::export_jobs::insert(connection, export, asked.request, asked.client).await?;
        }
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
