//! The job that delivers what is pending of one dataset to LabKey.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use chrono::Utc;

use crate::app::App;
use crate::db::jobs::{self, Lease};
use crate::db::labkey::{self as deliveries, Destination};
use crate::error::{Error, Result};
use crate::labkey::{Labkey, preflight, sync};
use crate::telemetry;

/// Delivers; false when the job had become somebody else's.
pub async fn run(app: &App, lease: &Lease, dataset: &str) -> Result<bool> {
    let labkey = configured(app)?;
    let list = match labkey.list(dataset) {
        Ok(list) => list,
        Err(error) => {
            deliveries::record(&app.pool, dataset, Some((error.reason(), &error.to_string()))).await?;
            return Err(error);
        }
    };
    let (report, result) = sync::run(&app.pool, &labkey, list, lease, &|| app.ingest.is_busy()).await;
    // An attempt before this one may have told something.
    let before = jobs::by_id(&app.pool, lease.id).await?.and_then(|job| job.report);
    let before = before.and_then(|before| serde_json::from_value(before).ok()).unwrap_or_default();
    let report = report.after(before);
    let told = serde_json::to_value(&report)
        .map_err(|error| Error::Internal(format!("a report cannot be stored: {error}")))?;
    jobs::report(&app.pool, lease, &told).await?;
    match &result {
        Err(Error::Cancelled) => {}
        Err(error) => {
            telemetry::labkey_error(dataset, error.reason());
            deliveries::record(&app.pool, dataset, Some((error.reason(), &error.to_string()))).await?;
        }
        Ok(()) => {
            let stays = report.stays.as_deref().map(|why| ("removal", why));
            deliveries::record(&app.pool, dataset, stays).await?;
        }
    }
    tracing::info!(
        dataset,
        uploaded = report.uploaded,
        failed = report.failed,
        remaining = report.remaining,
        reconciled = report.reconciled,
        seconds = report.duration_seconds,
        "LabKey sync ended"
    );
    result?;
    jobs::complete(&mut *app.pool.acquire().await?, lease).await
}

/// Looks at all lists once when the service starts, so that its log and metrics tell what is to be mended before there
/// are rows to deliver.
pub async fn preflight(app: App) {
    let Some(labkey) = &app.labkey else { return };
    // Before the database is there it is LabKey alone that is looked at.
    let before = deliveries::destinations(&app.pool).await.unwrap_or_default();
    match preflight::all(labkey, &before).await {
        Ok((user, checks)) => {
            tracing::info!(user = user.email, lists = checks.len(), "LabKey is there");
            for (list, check) in labkey.lists.iter().zip(checks) {
                let Err(failure) = check.target(list) else { continue };
                telemetry::labkey_error(&check.dataset, failure.kind.as_str());
                tracing::error!(dataset = check.dataset, problem = failure.reason, "rows will not be delivered");
            }
        }
        Err(failure) => tracing::error!(problem = failure.reason, "LabKey cannot be used"),
    }
}

/// Forgets which list the rows of a dataset went to, and answers with it and with how many deliveries are forgotten: all, so
/// that every row is pending again, or none when `keeps` says that it is the same list under another name.
///
/// # Errors
/// A dataset that is not delivered, a sync of it that runs, a database out of reach.
pub async fn restart(app: &App, dataset: &str, keeps: bool) -> Result<(Option<Destination>, u64)> {
    configured(app)?.list(dataset)?;
    let mut transaction = app.pool.begin().await?;
    let forgotten = if keeps { 0 } else { deliveries::forget_deliveries(&mut transaction, dataset).await? };
    let before = deliveries::forget_destination(&mut transaction, dataset).await?;
    // At the end, since no work goes on meanwhile. A sync that began before is found, and one that comes later finds this.
    jobs::hold(&mut transaction).await?;
    let syncs = jobs::unfinished(&mut transaction, &super::sync_key(dataset)).await?;
    if syncs.iter().any(|sync| sync.state == "running") {
        return Err(Error::Conflict(format!("a sync of {dataset} runs: stop it, or wait for its end")));
    }
    transaction.commit().await?;
    Ok((before, forgotten))
}

/// The configured LabKey server.
///
/// # Errors
/// When there is none.
pub fn configured(app: &App) -> Result<Arc<Labkey>> {
    let reason = "LabKey is not configured: set labkey.server_url, labkey.project_path and labkey.api_key";
    app.labkey.clone().ok_or_else(|| Error::Conflict(reason.into()))
}

/// Tells metrics what waits for LabKey; nothing while the database is away.
pub async fn measure(app: &App) {
    let Some(labkey) = app.labkey.as_ref().filter(|_| app.is_ready.load(Ordering::Acquire)) else { return };
    telemetry::labkey_paused(labkey.client.is_paused());
    for list in &labkey.lists {
        let dataset = &list.dataset.name;
        let Ok(stats) = deliveries::stats(&app.pool, dataset, labkey.since).await else { return };
        let age = stats.oldest_pending.map_or(0, |oldest| (Utc::now() - oldest).num_seconds());
        let age = f64::from(u32::try_from(age).unwrap_or_default());
        telemetry::labkey_waiting(dataset, stats.pending, stats.failed, age);
    }
}
