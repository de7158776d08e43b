//! `export`: one export from the command line, with a progress bar on a terminal. `lake` writes partitioned ones.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use uuid::Uuid;

use super::lake::{self, Partitioned};
use crate::app::App;
use crate::config::{Compression, Config, Format};
use crate::db::exports;
use crate::db::jobs::{self, Job, Lease, Progress};
use crate::error::{Error, Result};
use crate::export::spec::ExportSpec;
use crate::export::{self as engine, Target};
use crate::jobs::worker::Workers;
use crate::jobs::{NewExport, enqueue_export};
use crate::serve::Database;
use crate::storage::Storage;

/// How often the bar moves.
pub(super) const POLL: Duration = Duration::from_millis(200);

/// How long a job of ours may take to stop.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What to export, and where to.
#[derive(Debug, Args)]
pub struct Export {
    /// The dataset; several, or patterns such as "gottcha*", where partitions are written.
    #[arg(required = true, value_name = "DATASET")]
    tables: Vec<String>,
    /// Folder or URL to write to (s3://bucket/prefix, az://, gs://). Without it the export goes to the configured
    /// storage, and into the catalogue.
    #[arg(short, long, value_name = "DIR|URL")]
    output: Option<String>,
    /// The form of the files.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// How they are compressed.
    #[arg(long, value_enum)]
    compression: Option<Compression>,
    /// The level of zstd or gzip.
    #[arg(long, value_name = "N")]
    level: Option<i32>,
    /// These columns only, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    columns: Option<Vec<String>>,
    /// At most so many rows.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Rows stored at that time or later (RFC 3339).
    #[arg(long, value_name = "TIME")]
    from: Option<DateTime<Utc>>,
    /// Rows stored before that time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    to: Option<DateTime<Utc>>,
    /// Rows with that value; may be repeated for other columns.
    #[arg(long = "filter", value_name = "COLUMN=VALUE", value_parser = super::parse_column)]
    filters: Vec<(String, String)>,
    /// Also export submission_id and ordinal, which name a row for ever.
    #[arg(long)]
    service_columns: bool,
    /// Also export what became of each row in LabKey.
    #[arg(long)]
    labkey_columns: bool,
    #[command(flatten)]
    partitioned: Partitioned,
}

impl Export {
    /// Refuses two values for one column, which no row has.
    fn check_filters(&self) -> Result<()> {
        let mut columns = HashSet::new();
        match self.filters.iter().find(|(column, _)| !columns.insert(column)) {
            Some((column, _)) => {
                Err(Error::parameter("--filter", format!("names `{column}` twice, and no row has two values")))
            }
            None => Ok(()),
        }
    }

    fn spec(&self) -> ExportSpec {
        let filters = self.filters.iter().map(|(column, value)| (column.clone(), Value::from(value.as_str())));
        ExportSpec {
            format: self.format,
            compression: self.compression,
            compression_level: self.level,
            columns: self.columns.clone(),
            row_limit: self.limit,
            from: self.from,
            to: self.to,
            filters: filters.collect(),
            service_columns: self.service_columns,
            labkey_columns: self.labkey_columns,
        }
    }
}

/// Exports, and answers with what to print.
///
/// # Errors
/// A wish that cannot be met, a database or a storage that fails, Ctrl-C.
pub async fn run(config: Config, wish: &Export) -> Result<String> {
    wish.output.as_deref().map_or(Ok(()), super::check_output)?;
    wish.check_filters()?;
    let database = Database::open(&config).await?;
    let app = App::new(config, &database.url)?;
    let done = export(&app, wish).await;
    app.pool.close().await;
    database.close().await?;
    done
}

async fn export(app: &App, wish: &Export) -> Result<String> {
    app.prepare().await?;
    let spec = wish.spec();
    if wish.partitioned.is_wanted()? {
        return lake::run(app, &wish.tables, wish.output.as_deref(), &spec, &wish.partitioned).await;
    }
    let [table] = wish.tables.as_slice() else {
        return Err(Error::Environment("several datasets are written with --temporal or --partition-by only".into()));
    };
    let dataset = app.datasets.get(table);
    let dataset = dataset.ok_or_else(|| Error::NotFound { what: "dataset", name: table.clone() })?;
    let config = &app.config.export;
    let plan = spec.plan(dataset, (config.compression, config.compression_level))?;
    let started = Instant::now();
    let (rows, bytes, files) = match &wish.output {
        Some(output) => {
            let storage = Storage::open(output)?;
            let lease = Lease::new(Uuid::now_v7(), 1);
            let target = Target::new(lease.id.to_string(), &storage, String::new());
            let bar = bar();
            let exporting = engine::run(&app.pool, config, plan, &target, &lease);
            let exported = tokio::select! {
                exported = exporting => exported,
                interrupted = interrupted(&lease, &bar) => interrupted,
            };
            bar.finish_and_clear();
            let exported = exported?;
            let files: Vec<String> = exported
                .files
                .iter()
                .map(|(name, _)| format!("{}/{name}", storage.url().trim_end_matches('/')))
                .collect();
            (exported.stats.rows, exported.bytes, files)
        }
        None => {
            catalogued(
                app,
                &NewExport {
                    dataset,
                    spec: &spec,
                    retention_hours: config.retention_days.saturating_mul(24),
                    notify: &[],
                    asked: None,
                    dedupe_key: None,
                },
            )
            .await?
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    let size = bytesize::ByteSize(bytes);
    Ok(format!("{table}: {rows} rows, {size} in {seconds:.1} s\n{}\n", files.join("\n")))
}

/// Moves the bar for as long as nobody interrupts; then stops the work, which is waited for elsewhere.
async fn interrupted<T>(lease: &Lease, bar: &ProgressBar) -> Result<T> {
    let mut interrupted = std::pin::pin!(super::interrupted());
    loop {
        tokio::select! {
            () = tokio::time::sleep(POLL) => show(bar, &lease.progress),
            () = &mut interrupted => {
                lease.cancel();
                // The engine sees it at once, and cleans up.
                tokio::time::sleep(PATIENCE).await;
                return Err(Error::Cancelled);
            }
        }
    }
}

/// Exports by a job, as the service does; whichever worker claims it, the one here or a running service's.
async fn catalogued(app: &App, new: &NewExport<'_>) -> Result<(u64, u64, Vec<String>)> {
    let mut transaction = app.pool.begin().await?;
    let job = enqueue_export(app, &mut transaction, new).await?;
    transaction.commit().await?;
    app.is_ready.store(true, std::sync::atomic::Ordering::Release);
    // The jobs of others would be written to the storage of this process.
    let workers = Workers::only(app, &job);
    let ended = watch(app, job.id).await;
    workers.stop(PATIENCE).await;
    let job = ended?;
    if job.state != "completed" {
        let reason = job.error.unwrap_or_default();
        return Err(Error::Environment(format!("the export was not made: it is {}: {reason}", job.state)));
    }
    let gone = || Error::Internal("the export vanished".into());
    let export = exports::by_job(&app.pool, job.id).await?.ok_or_else(gone)?;
    let folder = format!("{}/{}", app.storage.url().trim_end_matches('/'), export.prefix.unwrap_or_default());
    let files = exports::files(&app.pool, &[export.id]).await?;
    let files = files.iter().map(|file| format!("{folder}/{}", file.name)).collect();
    Ok((export.rows.unwrap_or_default().unsigned_abs(), export.bytes.unwrap_or_default().unsigned_abs(), files))
}

/// Shows how far a job is until it has ended. Ctrl-C asks it to stop.
pub(super) async fn watch(app: &App, id: Uuid) -> Result<Job> {
    let bar = bar();
    let ended = tokio::select! {
        ended = follow(app, id, &bar) => ended,
        () = super::interrupted() => {
            jobs::cancel(&app.pool, id).await?;
            follow(app, id, &bar).await
        }
    };
    bar.finish_and_clear();
    ended
}

/// Moves the bar until a job has ended.
async fn follow(app: &App, id: Uuid, bar: &ProgressBar) -> Result<Job> {
    loop {
        let job = jobs::by_id(&app.pool, id).await?;
        let job = job.ok_or_else(|| Error::NotFound { what: "job", name: id.to_string() })?;
        if job.has_ended() {
            return Ok(job);
        }
        let number = |name: &str| job.progress.get(name).and_then(Value::as_u64).unwrap_or_default();
        bar.set_length(number("total_rows"));
        bar.set_position(number("rows"));
        tokio::time::sleep(POLL).await;
    }
}

pub(super) fn show(bar: &ProgressBar, progress: &Progress) {
    let (rows, total) = progress.rows();
    bar.set_length(total);
    bar.set_position(rows);
    bar.set_message(format!("{} files", progress.files()));
}

/// Rows, rate and time to go, on standard error; nothing when that is no terminal.
pub(super) fn bar() -> ProgressBar {
    let template = "{prefix}{bar:40} {human_pos}/{human_len} rows  {msg}  {per_sec}  {eta} to go";
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
