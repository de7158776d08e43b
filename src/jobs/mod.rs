//! Durable background work: what kinds there are ([`Work`]), who does it ([`worker`]), what starts by itself
//! ([`schedule`]), who is told how it ended ([`notice`]), and what is cleared away ([`retention`]).

mod export;
pub mod extract;
pub mod lake;
pub mod notice;
pub mod retention;
pub mod schedule;
pub mod sync;
pub mod timing;
pub mod worker;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;
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
        /// The webhooks that hear how it ends.
        #[serde(default)]
        notify: Vec<String>,
    },
    /// Do one run of an extract.
    Extract {
        /// Which one.
        run_id: String,
    },
    /// Tell a webhook something.
    Notice(notice::Notice),
    /// Bring a partitioned dataset up to date.
    Lake(Box<lake::LakeRun>),
    /// Deliver to LabKey what is pending.
    LabkeySync {
        /// Of which dataset.
        dataset: String,
    },
}

/// How often a sync is tried before it waits for its next turn.
const SYNC_ATTEMPTS: i32 = 5;

/// What one worker does: work that takes time, deliveries, and what must not wait for either.
pub const EXPORTS: &[&str] = &[Work::EXPORT, Work::EXTRACT, Work::LAKE];
/// See [`EXPORTS`].
pub const SYNCS: &[&str] = &[Work::LABKEY_SYNC];
/// See [`EXPORTS`].
pub const NOTICES: &[&str] = &[Work::NOTICE];

impl Work {
    /// What an export is called among jobs.
    pub const EXPORT: &str = "export";
    /// What a run of an extract is called among jobs.
    pub const EXTRACT: &str = "extract";
    /// What a notice is called among jobs.
    pub const NOTICE: &str = "notice";
    /// What a run of a partitioned dataset is called among jobs.
    pub const LAKE: &str = "lake";
    /// What a delivery to LabKey is called among jobs.
    pub const LABKEY_SYNC: &str = "labkey_sync";

    const fn kind(&self) -> &'static str {
        match self {
            Self::Export { .. } => Self::EXPORT,
            Self::Extract { .. } => Self::EXTRACT,
            Self::Notice(_) => Self::NOTICE,
            Self::Lake(_) => Self::LAKE,
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
    /// Hours until it may be removed.
    pub retention_hours: u32,
    /// The webhooks that hear how it ends.
    pub notify: &'a [String],
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

/// The folder of the storage in which all attempts of an export lie.
#[must_use]
pub fn export_folder(dataset: &str, export: Uuid) -> String {
    format!("{dataset}/{export}")
}

/// Makes an export and its job, in the caller's transaction. With a key that was used before: the job of then.
///
/// # Errors
/// A key that was used for another export, a database out of reach.
pub async fn enqueue_export(app: &App, connection: &mut PgConnection, new: &NewExport<'_>) -> Result<Job> {
    let (job, export) = (Uuid::now_v7(), Uuid::now_v7());
    let work = Work::Export { export_id: export, retention_hours: new.retention_hours, notify: new.notify.to_vec() };
    // As it is configured now: the catalogue says how the export is compressed, also when that has changed.
    let usual = app.config.export.compression.of_files(new.spec.format);
    let spec = stored(&ExportSpec { compression: new.spec.compression.or(Some(usual)), ..new.spec.clone() })?;
    let job = NewJob {
        id: job,
        kind: work.kind(),
        payload: stored(&work)?,
        max_attempts: app.config.export.max_attempts,
        dedupe_key: new.dedupe_key,
        alone_key: None,
    };
    if jobs::enqueue(connection, &job).await? {
        db::exports::insert(connection, export, job.id, &new.dataset.name, &spec).await?;
        if let Some(asked) = &new.asked {
            db::export_jobs::insert(connection, export, asked.request, asked.client).await?;
        }
    } else if let Some(key) = new.dedupe_key {
        // As it was asked for: what is usual may have changed since.
        let what = match db::exports::is_same(connection, key, &new.dataset.name, &stored(new.spec)?).await? {
            Some(true) => None,
            Some(false) => Some("another export"),
            None => Some("an export that has been removed"),
        };
        if let Some(what) = what {
            return Err(Error::Conflict(format!("this Idempotency-Key was used for {what}; send a new one")));
        }
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
pub async fn enqueue_sync(connection: &mut PgConnection, dataset: &str) -> Result<(Job, bool)> {
    let key = sync_key(dataset);
    if let Some(job) = jobs::unfinished(connection, &key).await?.pop() {
        return Ok((job, false));
    }
    let work = Work::LabkeySync { dataset: dataset.to_owned() };
    enqueue_alone(connection, &work, &key, SYNC_ATTEMPTS).await
}

/// Of that key there is one sync of a dataset at a time.
fn sync_key(dataset: &str) -> String {
    format!("labkey_sync:{dataset}")
}

/// Makes a job that works alone: a new one, which waits for one that has begun, or one that waits already. Says whether it
/// is new. Either begins after this.
async fn enqueue_alone(
    connection: &mut PgConnection,
    work: &Work,
    key: &str,
    max_attempts: i32,
) -> Result<(Job, bool)> {
    let payload = stored(work)?;
    loop {
        let job = NewJob {
            id: Uuid::now_v7(),
            kind: work.kind(),
            payload: payload.clone(),
            max_attempts,
            dedupe_key: None,
            alone_key: Some(key),
        };
        let is_new = jobs::enqueue(connection, &job).await?;
        let found = match is_new {
            // Whoever has begun it by now.
            true => jobs::by_id(&mut *connection, job.id).await?,
            // None when it has begun between the two statements.
            false => jobs::unfinished(connection, key).await?.into_iter().find(|job| job.attempt == 0),
        };
        if let Some(job) = found {
            return Ok((job, is_new));
        }
    }
}

/// Makes a job, in the caller's transaction, and answers with its id.
async fn enqueue(connection: &mut PgConnection, work: &Work, max_attempts: i32) -> Result<Uuid> {
    let id = Uuid::now_v7();
    let job = NewJob { id, kind: work.kind(), payload: stored(work)?, max_attempts, dedupe_key: None, alone_key: None };
    jobs::enqueue(connection, &job).await?;
    Ok(id)
}

fn stored(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| Error::Internal(format!("a job cannot be stored: {error}")))
}

/// Reads what a job is to do.
fn work_of(job: &Job) -> Result<Work> {
    serde_json::from_value(job.payload.clone())
        .map_err(|error| Error::Internal(format!("a stored job cannot be read: {error}")))
}

/// Records what follows from the end of a job that failed or was cancelled, in the transaction that ends it.
async fn ended(app: &App, connection: &mut PgConnection, job: &Job, state: &str, error: &str) -> Result<()> {
    match work_of(job) {
        Ok(Work::Extract { run_id }) => extract::ended(app, connection, &run_id, state, error).await,
        Ok(Work::Export { export_id, notify, .. }) if state == "failed" => {
            export::notify(app, connection, export_id, &notify, Err(error)).await
        }
        _ => Ok(()),
    }
}

/// Removes what a job that was cancelled had written by then.
async fn clean_up(app: &App, job: &Job) {
    let removing = async {
        let folder = match work_of(job)? {
            Work::Extract { run_id } => Some(format!("{}/{run_id}", extract::FOLDER)),
            Work::Export { export_id, .. } => {
                let export = db::exports::by_id(&app.pool, export_id).await?;
                export.map(|export| export_folder(&export.dataset, export_id))
            }
            _ => None,
        };
        match folder {
            Some(folder) => app.storage.delete(&folder).await.map(drop),
            None => Ok(()),
        }
    };
    if let Err(error) = removing.await {
        // The sweep finds what is left.
        tracing::warn!(error = error.report(), job = %job.id, "what a cancelled job had written could not be removed");
    }
}
