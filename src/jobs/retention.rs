//! What is cleared away: exports and runs whose time is over, files that nothing points at, jobs of long ago. It may run at any
//! time, anywhere, and twice.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use chrono::{TimeDelta, Utc};
use uuid::Uuid;

use super::{Work, export_folder, extract};
use crate::app::App;
use crate::db::{artifacts, export_jobs, exports, extract_runs, jobs, keys, lake};
use crate::error::Result;
use crate::telemetry;

/// Age of a file that no export points at, from which nobody can still be writing it.
const ORPHAN: TimeDelta = TimeDelta::days(1);

/// The file in the storage that says which database knows what lies there.
const OWNER: &str = "_database";

/// Days for which finished jobs are remembered.
const JOBS: u32 = 30;

/// Clears away what is due, and logs what could not be.
pub async fn run(app: &App) {
    for (what, result) in [("exports", expire(app).await), ("orphans", sweep(app).await)] {
        if let Err(error) = result {
            tracing::warn!(what, error = error.report(), "clearing away failed; it is tried again");
        }
    }
    if let Err(error) = jobs::forget(&app.pool, JOBS).await {
        tracing::warn!(error = error.report(), "old jobs could not be forgotten");
    }
}

/// Removes exports whose time is over: the files first, so that no file is ever without its row for good. One that cannot be
/// removed holds up none of the others.
///
/// # Errors
/// The first of those, or a database out of reach.
pub async fn expire(app: &App) -> Result<()> {
    let mut fault = None;
    for export in exports::expired(&app.pool, app.config.export.keep_at_least).await? {
        match remove(app, &export).await {
            Ok(_) => tracing::info!(export = %export.id, dataset = export.dataset, "export removed: its time is over"),
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    for job in export_jobs::expired(&app.pool).await? {
        match app.storage.delete(&export_folder(&job.dataset, job.export_id)).await {
            Ok(_) => {
                export_jobs::expire(&app.pool, job.number).await?;
                tracing::info!(export_job = job.number, dataset = job.dataset, "files removed: their time is over");
            }
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    for run in extract_runs::expired(&app.pool).await? {
        match app.storage.delete(&format!("{}/{run}", extract::FOLDER)).await {
            Ok(_) => {
                extract_runs::expire(&app.pool, &run).await?;
                tracing::info!(run, "artifacts removed: their time is over");
            }
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    extract_runs::forget(&app.pool, JOBS).await?;
    fault.map_or(Ok(()), Err)
}

/// Removes an export: its files, then its row.
///
/// # Errors
/// A database or a storage out of reach.
pub async fn remove(app: &App, export: &exports::Export) -> Result<bool> {
    app.storage.delete(&export_folder(&export.dataset, export.id)).await?;
    exports::delete(&app.pool, export.id).await
}

/// Removes files that no export points at, and reports files that are missing. Nothing is removed where another database, or an
/// earlier one that was lost, has written: it knows files that this one does not.
///
/// # Errors
/// A database or a storage out of reach.
pub async fn sweep(app: &App) -> Result<()> {
    // Before the list of exports, which therefore knows all that is listed.
    let listed = app.storage.list("").await?;
    let exports = exports::in_use(&app.pool).await?.into_iter().map(|(id, prefix)| (id.to_string(), prefix));
    let runs = extract_runs::in_use(&app.pool).await?.into_iter().map(|(id, attempt)| {
        let prefix = attempt.map(|attempt| format!("{}/{id}/{attempt}", extract::FOLDER));
        (id, prefix)
    });
    let in_use: HashMap<String, Option<String>> = exports.chain(runs).collect();
    let newest = Utc::now() - ORPHAN;
    let mut removed = 0;
    let attempts: Vec<_> = listed.iter().filter_map(|file| Some((file, attempt_of(app, &file.name)?))).collect();
    let may_be_ours = attempts.is_empty() || attempts.iter().any(|(_, (_, id))| in_use.contains_key(id));
    if is_ours(app, may_be_ours).await? {
        for (file, (prefix, id)) in attempts {
            let keep = match in_use.get(&id) {
                Some(None) => true,
                Some(Some(used)) => *used == prefix,
                None => false,
            };
            if !keep && file.modified < newest {
                removed += app.storage.delete(&prefix).await?;
            }
        }
    }
    if removed > 0 {
        tracing::info!(files = removed, "files that nothing pointed at were removed");
    }
    report_missing(app, &in_use, &listed.into_iter().map(|file| file.name).collect()).await
}

/// Whether this database knows what lies in the storage. Where nobody has said so yet, it is told there if `may_be`.
async fn is_ours(app: &App, may_be: bool) -> Result<bool> {
    let database = keys::database(&app.pool).await?;
    let owner = match app.storage.get(OWNER).await? {
        Some(owner) => Some(String::from_utf8_lossy(&owner).trim().to_owned()),
        None if may_be => {
            app.storage.put(OWNER, format!("{database}\n").into()).await?;
            Some(database.clone())
        }
        None => None,
    };
    let is_ours = owner.as_ref() == Some(&database);
    if !is_ours {
        tracing::warn!(
            database,
            owner,
            "the storage holds exports of another database, and nothing is swept: give each database a storage of its own, or \
             write the name of this one to the file {OWNER} there"
        );
    }
    Ok(is_ours)
}

/// The folder of an attempt, `dataset/export/attempt` or `extracts/run/attempt`, and whose it is. Other files in the
/// storage are not ours.
fn attempt_of(app: &App, name: &str) -> Option<(String, String)> {
    let mut parts = name.split('/');
    let (folder, id, attempt) = (parts.next()?, parts.next()?, parts.next()?);
    let is_run = folder == extract::FOLDER && id.starts_with("run_");
    if !is_run {
        app.datasets.get(folder)?;
        Uuid::parse_str(id).ok()?;
    }
    attempt.parse::<u32>().ok()?;
    parts.next()?;
    Some((format!("{folder}/{id}/{attempt}"), id.to_owned()))
}

async fn report_missing(app: &App, in_use: &HashMap<String, Option<String>>, listed: &HashSet<String>) -> Result<()> {
    let complete = in_use.iter().filter(|(_, prefix)| prefix.is_some());
    let (exports, runs): (Vec<_>, Vec<_>) = complete.partition(|(id, _)| Uuid::parse_str(id).is_ok());
    let exports: Vec<Uuid> = exports.iter().filter_map(|(id, _)| Uuid::parse_str(id).ok()).collect();
    let runs: Vec<String> = runs.into_iter().map(|(id, _)| id.clone()).collect();
    let mut names: Vec<String> =
        artifacts::of_runs(&app.pool, &runs).await?.into_iter().map(|file| file.path).collect();
    for file in exports::files(&app.pool, &exports).await? {
        let Some(Some(prefix)) = in_use.get(&file.export_id.to_string()) else { continue };
        names.push(format!("{prefix}/{}", file.name));
    }
    let mut missing = 0;
    for name in names {
        // Written after the listing, perhaps.
        if !listed.contains(&name) && !app.storage.exists(&name).await? {
            missing += 1;
            tracing::error!(file = name, "a file that was written is missing from the storage");
        }
    }
    telemetry::missing_files(missing);
    Ok(())
}

/// Seconds from one telling of ages to the next.
const AGE_SECONDS: f64 = 15.0;

/// Tells the age of the newest whole export of each dataset, and when the partitioned ones were brought up to date: the numbers
/// to be alerted by. While the database is away exports get older, too.
pub async fn measure(app: &App) {
    if !app.is_ready.load(Ordering::Acquire) {
        return;
    }
    match exports::ages(&app.pool, app.datasets.names()).await {
        Ok(ages) => ages.iter().for_each(|(dataset, seconds)| telemetry::newest_export(dataset, *seconds)),
        Err(error) if error.is_retryable() => {
            app.datasets.names().iter().for_each(|dataset| telemetry::newest_export_ages(dataset, AGE_SECONDS));
        }
        Err(error) => tracing::warn!(error = error.report(), "the age of exports cannot be told"),
    }
    match lake::updated(&app.pool, Work::LAKE).await {
        Ok(times) => times.iter().for_each(|(dataset, at)| telemetry::lake_updated(dataset, *at)),
        Err(error) if error.is_retryable() => {}
        Err(error) => tracing::warn!(error = error.report(), "the age of partitioned datasets cannot be told"),
    }
}
