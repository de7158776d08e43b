//! Runs of extracts: how one begins, waits for the one before it, and ends. [`run`] is the job, [`config`] what an operator
//! sets.

pub mod config;
mod contents;
mod run;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::PgConnection;

pub use run::run;

use super::{Work, enqueue, notice};
use crate::app::App;
use crate::db::extract_runs::{self, Ended, NewRun, Run};
use crate::db::extracts::{self, Extract};
use crate::db::{artifacts, jobs, schedules};
use crate::error::{Error, Result};
use crate::telemetry;
use config::ExtractConfig;

/// The folder of all runs in the storage.
pub const FOLDER: &str = "extracts";

/// What makes a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A request, which waits for the run before it or not.
    Manual {
        /// Whether it may wait.
        wait: bool,
    },
    /// A tick of its schedule.
    Schedule,
}

/// A new id: what it is of, and 16 letters and digits that nobody can guess.
///
/// # Errors
/// A system without random bytes.
pub fn new_id(of: &str) -> Result<String> {
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(|error| Error::Internal(format!("no random bytes: {error}")))?;
    Ok(format!("{of}_{}", data_encoding::BASE32_NOPAD.encode(&random).to_ascii_lowercase()))
}

/// The extract of that id.
///
/// # Errors
/// When there is none, or the database is out of reach.
pub async fn find(app: &App, id: &str) -> Result<Extract> {
    extracts::by_id(&app.pool, id).await?.ok_or_else(|| not_found(id))
}

fn not_found(id: &str) -> Error {
    Error::NotFound { what: "extract", name: id.to_owned() }
}

/// Makes a run of an extract, in the caller's transaction, and answers with its id.
///
/// # Errors
/// An extract that is disabled, or has a run already; a database out of reach.
pub async fn start(app: &App, connection: &mut PgConnection, extract: &str, cause: Cause) -> Result<String> {
    let extract = extracts::lock(connection, extract).await?.ok_or_else(|| not_found(extract))?;
    let config = ExtractConfig::read(&extract.config)?;
    if !config.enabled {
        return Err(Error::Conflict(format!("the extract `{}` is disabled; set `enabled` first", extract.name)));
    }
    if cause != (Cause::Manual { wait: true })
        && let Some(active) = extract_runs::active(connection, &extract.id).await?
    {
        let name = &extract.name;
        return Err(Error::Conflict(format!(
            "the extract `{name}` is already running: {} is {}; add ?wait=true to run after it",
            active.id, active.status
        )));
    }
    let id = new_id("run")?;
    let cause = if cause == Cause::Schedule { "schedule" } else { "manual" };
    let new = NewRun { id: &id, extract_id: &extract.id, config: &extract.config, cause };
    extract_runs::insert(connection, &new).await?;
    extracts::count_run(connection, &extract.id).await?;
    promote(app, connection, &extract.id).await?;
    Ok(id)
}

/// Under which the ticks of an extract are remembered.
#[must_use]
pub fn schedule_name(extract: &str) -> String {
    format!("extract:{extract}")
}

/// Makes the run of a tick, unless another replica has. A tick that finds the extract running is passed over.
///
/// # Errors
/// A database out of reach.
pub async fn act(app: &App, extract: &Extract, schedule: &str, tick: DateTime<Utc>) -> Result<()> {
    let mut transaction = app.pool.begin().await?;
    if !schedules::take(&mut transaction, schedule, tick).await? {
        return Ok(());
    }
    match start(app, &mut transaction, &extract.id, Cause::Schedule).await {
        Ok(run) => tracing::info!(extract = extract.name, run, %tick, "scheduled run made"),
        Err(Error::Conflict(reason)) => tracing::warn!(extract = extract.name, %tick, reason, "a run was left out"),
        Err(error) => return Err(error),
    }
    transaction.commit().await?;
    app.wake_workers();
    Ok(())
}

/// Queues the run of an extract that has waited longest, unless another is under way. The caller holds the extract's lock.
async fn promote(app: &App, connection: &mut PgConnection, extract: &str) -> Result<()> {
    if extract_runs::active(connection, extract).await?.is_some() {
        return Ok(());
    }
    let Some(run) = extract_runs::waiting(connection, extract).await? else { return Ok(()) };
    let work = Work::Extract { run_id: run.clone() };
    let job = enqueue(connection, &work, app.config.export.max_attempts).await?;
    extract_runs::queue(connection, &run, job).await
}

/// Queues every run that waits for nothing any more, because the job of the one before it was cancelled elsewhere.
///
/// # Errors
/// A database out of reach.
pub async fn promote_all(app: &App) -> Result<()> {
    for extract in extract_runs::ready_extracts(&app.pool).await? {
        let mut transaction = app.pool.begin().await?;
        if extracts::lock(&mut transaction, &extract).await?.is_some() {
            promote(app, &mut transaction, &extract).await?;
        }
        transaction.commit().await?;
        app.wake_workers();
    }
    Ok(())
}

/// Cancels the run of an extract and those that wait for it, and answers with the id of the one under way, if any.
///
/// # Errors
/// An extract that is not running; a database out of reach.
pub async fn cancel(app: &App, extract: &str) -> Result<Option<String>> {
    let mut transaction = app.pool.begin().await?;
    let extract = extracts::lock(&mut transaction, extract).await?.ok_or_else(|| not_found(extract))?;
    let waiting = extract_runs::cancel_waiting(&mut transaction, &extract.id).await?;
    let active = extract_runs::active(&mut transaction, &extract.id).await?;
    transaction.commit().await?;
    match &active {
        Some(Run { job_id: Some(job), .. }) => drop(jobs::cancel(&app.pool, *job).await?),
        _ if waiting == 0 => return Err(Error::Conflict(format!("the extract `{}` is not running", extract.name))),
        _ => {}
    }
    Ok(active.map(|run| run.id))
}

/// Removes an extract: with the files of its runs, or without.
///
/// # Errors
/// One that is running; a database or a storage out of reach.
pub async fn remove(app: &App, id: &str, keep_files: bool) -> Result<()> {
    let mut transaction = app.pool.begin().await?;
    let extract = extracts::lock(&mut transaction, id).await?.ok_or_else(|| not_found(id))?;
    let is_waiting = extract_runs::waiting(&mut transaction, id).await?.is_some();
    if is_waiting || extract_runs::active(&mut transaction, id).await?.is_some() {
        let name = extract.name;
        return Err(Error::Conflict(format!("the extract `{name}` is running: POST /api/extracts/{id}/cancel first")));
    }
    let runs = if keep_files { Vec::new() } else { extract_runs::delete_of(&mut transaction, id).await? };
    extracts::delete(&mut transaction, id).await?;
    schedules::forget(&mut transaction, &schedule_name(id)).await?;
    transaction.commit().await?;
    for run in runs {
        app.storage.delete(&format!("{FOLDER}/{run}")).await?;
    }
    Ok(())
}

/// Records in the transaction that ends its job that a run failed or was cancelled. What a failed run has finished stays
/// for a look at it; what a cancelled one has is nobody's any more.
///
/// # Errors
/// A database out of reach.
pub async fn ended(app: &App, connection: &mut PgConnection, run: &str, state: &str, error: &str) -> Result<()> {
    let Some(run) = extract_runs::by_id(&app.pool, run).await? else { return Ok(()) };
    let config = ExtractConfig::read(&run.config)?;
    telemetry::extracted(state);
    if state == "failed" {
        let expires_at = Utc::now() + TimeDelta::days(config.retention_days.into());
        let ended = Ended { records: None, bytes: None, snapshot_at: None, expires_at };
        extract_runs::end(connection, &run.id, &ended).await?;
        notify(app, connection, &run, &config, Err(error)).await?;
    } else {
        artifacts::delete_before(connection, &run.id, None).await?;
    }
    let Some(extract) = &run.extract_id else { return Ok(()) };
    if extracts::lock(connection, extract).await?.is_some() {
        if state == "failed" {
            extracts::count_end(connection, extract, false).await?;
        }
        promote(app, connection, extract).await?;
    }
    Ok(())
}

/// Tells the webhooks of an extract how a run has ended: with so many records and bytes, or why not.
async fn notify(
    app: &App,
    connection: &mut PgConnection,
    run: &Run,
    config: &ExtractConfig,
    result: std::result::Result<(u64, u64), &str>,
) -> Result<()> {
    let status_url = format!("/api/data/extract_runs/{}", run.id);
    let base = json!({"extract_id": run.extract_id, "name": config.name, "run_id": run.id, "status_url": status_url});
    let (event, text, more): (_, _, Value) = match result {
        Ok((records, bytes)) => (
            "extract.completed",
            format!("Extract \"{}\" completed: {records} records, {}", config.name, bytesize::ByteSize(bytes)),
            json!({"status": "completed", "records": records, "bytes": bytes}),
        ),
        Err(error) => (
            "extract.failed",
            format!("Extract \"{}\" failed: {error}", config.name),
            json!({"status": "failed", "error": error}),
        ),
    };
    notice::enqueue(app, connection, &config.notify, event, &text, &[base, more]).await
}
