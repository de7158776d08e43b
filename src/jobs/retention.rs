//! What is cleared away: exports whose time is over, files that no export points at, jobs of long ago. It may run at any
//! time, anywhere, and twice.

use std::collections::{HashMap, HashSet};

use chrono::{TimeDelta, Utc};
use uuid::Uuid;

use crate::app::App;
use crate::db::{export_jobs, exports, jobs};
use crate::error::Result;
use crate::telemetry;

/// Age of a file that no export points at, from which nobody can still be writing it.
const ORPHAN: TimeDelta = TimeDelta::days(1);

/// Days for which finished jobs are remembered.
const JOBS: u32 = 30;

/// Clears away what is due, and logs what could not be.
pub async fn run(app: &App) {
    for (what, result) in [("exports", expire(app).await), ("orphans", sweep(app).await), ("ages", measure(app).await)]
    {
        if let Err(error) = result {
            tracing::warn!(what, error = error.report(), "clearing away failed; it is tried again");
        }
    }
    if let Err(error) = jobs::forget(&app.pool, JOBS).await {
        tracing::warn!(error = error.report(), "old jobs could not be forgotten");
    }
}

/// Removes exports whose time is over: the files first, so that no file is ever without its row for good.
///
/// # Errors
/// A database or a storage out of reach.
pub async fn expire(app: &App) -> Result<()> {
    for export in exports::expired(&app.pool, app.config.export.keep_at_least).await? {
        remove(app, &export).await?;
        tracing::info!(export = %export.id, dataset = export.dataset, "export removed: its time is over");
    }
    for job in export_jobs::expired(&app.pool).await? {
        app.storage.delete(&format!("{}/{}", job.dataset, job.export_id)).await?;
        export_jobs::expire(&app.pool, job.number).await?;
        tracing::info!(export_job = job.number, dataset = job.dataset, "files removed: their time is over");
    }
    Ok(())
}

/// Removes an export: its files, then its row.
///
/// # Errors
/// A database or a storage out of reach.
pub async fn remove(app: &App, export: &exports::Export) -> Result<bool> {
    app.storage.delete(&format!("{}/{}", export.dataset, export.id)).await?;
    exports::delete(&app.pool, export.id).await
}

/// Removes files that no export points at, and reports files that are missing.
///
/// # Errors
/// A database or a storage out of reach.
pub async fn sweep(app: &App) -> Result<()> {
    // Before the list of exports, which therefore knows all that is listed.
    let listed = app.storage.list("").await?;
    let in_use: HashMap<Uuid, Option<String>> = exports::in_use(&app.pool).await?.into_iter().collect();
    let newest = Utc::now() - ORPHAN;
    let mut removed = 0;
    for file in &listed {
        let Some(prefix) = attempt_of(&file.name) else { continue };
        let keep = match in_use.get(&prefix.1) {
            Some(None) => true,
            Some(Some(used)) => *used == prefix.0,
            None => false,
        };
        if !keep && file.modified < newest {
            removed += app.storage.delete(&prefix.0).await?;
        }
    }
    if removed > 0 {
        tracing::info!(files = removed, "files that no export pointed at were removed");
    }
    report_missing(app, &in_use, &listed.into_iter().map(|file| file.name).collect()).await
}

/// The folder of an attempt, `dataset/export/attempt`, and its export. Other files in the storage are not ours.
fn attempt_of(name: &str) -> Option<(String, Uuid)> {
    let mut parts = name.split('/');
    let (dataset, export, attempt) = (parts.next()?, parts.next()?, parts.next()?);
    let id = Uuid::parse_str(export).ok()?;
    attempt.parse::<u32>().ok()?;
    parts.next()?;
    Some((format!("{dataset}/{export}/{attempt}"), id))
}

async fn report_missing(app: &App, in_use: &HashMap<Uuid, Option<String>>, listed: &HashSet<String>) -> Result<()> {
    let complete: Vec<Uuid> = in_use.iter().filter(|(_, prefix)| prefix.is_some()).map(|(id, _)| *id).collect();
    let mut missing = 0;
    for file in exports::files(&app.pool, &complete).await? {
        let Some(Some(prefix)) = in_use.get(&file.export_id) else { continue };
        let name = format!("{prefix}/{}", file.name);
        // Written after the listing, perhaps.
        if !listed.contains(&name) && !app.storage.exists(&name).await? {
            missing += 1;
            tracing::error!(export = %file.export_id, file = file.name, "a file of an export is missing from the storage");
        }
    }
    telemetry::missing_files(missing);
    Ok(())
}

/// Tells the age of the newest export of each dataset: the number to be alerted by.
async fn measure(app: &App) -> Result<()> {
    for (dataset, seconds) in exports::ages(&app.pool).await? {
        telemetry::newest_export(&dataset, seconds);
    }
    Ok(())
}
