//! The job that writes one export, and records it in the transaction that ends the job.

use std::time::Instant;

use chrono::DateTime;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{export_folder, notice};

use crate::app::App;
use crate::db::exports::{self, Completed, ExportFile};
use crate::db::jobs::{self, Lease};
use crate::error::{Error, Result};
use crate::export::spec::ExportSpec;
use crate::export::{self, Exported, Target};
use crate::telemetry;

/// Writes the export; false when the job had become somebody else's, and nothing was recorded.
pub async fn run(app: &App, lease: &Lease, id: Uuid, retention_hours: u32, webhooks: &[String]) -> Result<bool> {
    let started = Instant::now();
    let Some(export) = exports::by_id(&app.pool, id).await? else {
        return Err(Error::NotFound { what: "export", name: id.to_string() });
    };
    let result = write(app, lease, &export, retention_hours, webhooks).await;
    let counted = result.as_ref().map(|done| done.as_ref().map(|done| (done.stats.rows, done.bytes)));
    telemetry::exported(&export.dataset, &counted, started.elapsed());
    Ok(result?.is_some())
}

async fn write(
    app: &App,
    lease: &Lease,
    export: &exports::Export,
    retention_hours: u32,
    webhooks: &[String],
) -> Result<Option<Exported>> {
    let config = &app.config.export;
    let dataset = app.datasets.get(&export.dataset);
    let dataset = dataset.ok_or_else(|| Error::NotFound { what: "dataset", name: export.dataset.clone() })?;
    let spec: ExportSpec = serde_json::from_value(export.spec.clone())
        .map_err(|error| Error::Internal(format!("a stored export cannot be read: {error}")))?;
    let plan = spec.plan(dataset, (config.compression, config.compression_level))?;
    // Each attempt has a folder of its own: what a dead attempt still writes is in nobody's way.
    let prefix = format!("{}/{}", export_folder(&export.dataset, export.id), lease.attempt);
    let target = Target::new(export.id.to_string(), &app.storage, prefix);
    let exported = export::run(&app.pool, config, plan, &target, lease).await?;
    let done = completed(export.id, target.prefix, retention_hours, &exported);
    let mut transaction = app.pool.begin().await?;
    if !exports::complete(&mut transaction, export.id, &done).await? {
        transaction.rollback().await?;
        // It was removed while it was written.
        app.storage.delete(&export_folder(&export.dataset, export.id)).await?;
        return Err(Error::Cancelled);
    }
    if !jobs::complete(&mut transaction, lease).await? {
        transaction.rollback().await?;
        app.storage.delete(&done.prefix).await?;
        return Ok(None);
    }
    notify(app, &mut transaction, export.id, webhooks, Ok((done.rows, done.bytes))).await?;
    transaction.commit().await?;
    app.wake_workers();
    tracing::info!(export = %export.id, dataset = export.dataset, rows = done.rows, bytes = done.bytes, "export complete");
    Ok(Some(exported))
}

/// Tells webhooks how an export has ended: with so many rows and bytes, or why not.
pub async fn notify(
    app: &App,
    connection: &mut PgConnection,
    id: Uuid,
    webhooks: &[String],
    result: Result<(u64, u64), &str>,
) -> Result<()> {
    if webhooks.is_empty() {
        return Ok(());
    }
    let dataset = exports::by_id(&app.pool, id).await?.map(|export| export.dataset).unwrap_or_default();
    let base = json!({"export_id": id, "table": dataset, "status_url": format!("/exports/{id}")});
    let (event, text, more) = match result {
        Ok((rows, bytes)) => (
            "export.completed",
            format!("Export of {dataset} completed: {rows} rows, {}", bytesize::ByteSize(bytes)),
            json!({"status": "completed", "rows": rows, "bytes": bytes}),
        ),
        Err(error) => (
            "export.failed",
            format!("Export of {dataset} failed: {error}"),
            json!({"status": "failed", "error": error}),
        ),
    };
    notice::enqueue(app, connection, webhooks, event, &text, &[base, more]).await
}

fn completed(id: Uuid, prefix: String, retention_hours: u32, exported: &Exported) -> Completed {
    let files = (1..).zip(&exported.files).map(|(number, (name, file))| ExportFile {
        export_id: id,
        number,
        name: name.clone(),
        rows: file.stats.rows.cast_signed(),
        bytes: file.bytes.cast_signed(),
        sha256: file.sha256.to_vec(),
        min_time: file.stats.time.and_then(|(min, _)| DateTime::from_timestamp_micros(min)),
        max_time: file.stats.time.and_then(|(_, max)| DateTime::from_timestamp_micros(max)),
    });
    Completed {
        rows: exported.stats.rows,
        bytes: exported.bytes,
        csv_bytes: exported.stats.csv_bytes,
        prefix,
        snapshot_at: exported.snapshot_at,
        retention_hours,
        files: files.collect(),
    }
}
