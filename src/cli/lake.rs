//! `export --temporal`, `export --partition-by`: partitioned datasets from the command line, one after the other.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Instant;

use bytesize::ByteSize;
use chrono::{NaiveDate, NaiveTime};
use clap::Args;
use uuid::Uuid;

use super::export::{POLL, bar, show};
use crate::app::App;
use crate::config::{Partitioning, Temporal};
use crate::dataset::Dataset;
use crate::db::jobs::Lease;
use crate::error::{Error, Result};
use crate::export::spec::ExportSpec;
use crate::lake::{self, Outcome, Place, Wish};
use crate::storage::Storage;

/// How datasets are cut, and which partitions are written.
#[derive(Debug, Args)]
pub struct Partitioned {
    /// Keep a partitioned dataset in DIR/DATASET, cut by the time of storing: year,month,day down to hour,minute. What
    /// is there already stays.
    #[arg(long, value_name = "LEVELS")]
    temporal: Option<Temporal>,
    /// Cut it by the values of these columns too, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,...")]
    partition_by: Vec<String>,
    /// Keep the columns of the partitions in the files.
    #[arg(long)]
    keep_partition_columns: bool,
    /// Write partitions anew, and replace whatever else lies in DIR/DATASET.
    #[arg(long)]
    overwrite: bool,
    /// Only partitions with rows of that day in UTC (YYYY-MM-DD).
    #[arg(long, conflicts_with_all = ["from", "to"], value_name = "DATE")]
    date: Option<NaiveDate>,
    /// Make sure of what is written every few partitions, where rows are only added: a run that is interrupted goes on
    /// where it was.
    #[arg(long)]
    historical: bool,
    /// Print what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Partitions that are written at once; export.connections unless told.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: Option<u8>,
}

impl Partitioned {
    /// Whether partitions are wanted at all.
    ///
    /// # Errors
    /// Options for partitions where none are wanted.
    pub fn is_wanted(&self) -> Result<bool> {
        let flags = [self.keep_partition_columns, self.overwrite, self.historical, self.dry_run];
        let is_wanted = self.temporal.is_some() || !self.partition_by.is_empty();
        if !is_wanted && (flags.contains(&true) || self.date.is_some() || self.jobs.is_some()) {
            let reason = "--keep-partition-columns, --overwrite, --date, --historical, --dry-run and --jobs need \
                          --temporal or --partition-by";
            return Err(Error::Environment(reason.into()));
        }
        Ok(is_wanted)
    }

    fn wish(&self, app: &App, dataset: &Arc<Dataset>, spec: &ExportSpec) -> Result<Wish> {
        let mut spec = spec.clone();
        if let Some(date) = self.date {
            let midnight = |date: NaiveDate| date.and_time(NaiveTime::MIN).and_utc();
            (spec.from, spec.to) = (Some(midnight(date)), date.succ_opt().map(midnight));
        }
        let partitioning = Partitioning {
            temporal: self.temporal,
            by: self.partition_by.clone(),
            keep_columns: self.keep_partition_columns,
        };
        let config = &app.config;
        let mut wish = Wish::new(dataset, &spec, &partitioning, self.overwrite, &config.export)?;
        wish.historical = self.historical;
        wish.grace = config.lake.grace;
        wish.jobs = self.jobs.map_or(wish.jobs, usize::from);
        Ok(wish)
    }
}

/// The datasets whose names one of the patterns matches.
///
/// # Errors
/// A pattern that is none, or that no dataset matches.
pub fn matching<'a>(app: &'a App, patterns: &[String]) -> Result<Vec<&'a Arc<Dataset>>> {
    let mut wanted = Vec::new();
    for text in patterns {
        let pattern = glob::Pattern::new(text).map_err(|error| Error::parameter(text, error.to_string()))?;
        if !app.datasets.names().iter().any(|name| pattern.matches(name)) {
            return Err(Error::NotFound { what: "dataset", name: text.clone() });
        }
        wanted.push(pattern);
    }
    let is_wanted = |dataset: &&Arc<Dataset>| wanted.iter().any(|pattern| pattern.matches(&dataset.name));
    Ok(app.datasets.iter().filter(is_wanted).collect())
}

/// Writes the datasets, and answers with what to print. What is in the way of one stops none of the others.
///
/// # Errors
/// A folder where something else lies, before any work; or all that failed, at the end.
pub async fn run(
    app: &App,
    patterns: &[String],
    output: Option<&str>,
    spec: &ExportSpec,
    wish: &Partitioned,
) -> Result<String> {
    let storage = output.map_or_else(|| Ok(app.storage.clone()), Storage::open)?;
    let folder = if output.is_some() { "" } else { lake::FOLDER };
    let place = Place { storage: &storage, folder };
    let datasets = matching(app, patterns)?;
    let mut faults = Vec::new();
    let mut wishes = Vec::new();
    for dataset in &datasets {
        match wish.wish(app, dataset, spec) {
            Ok(wish) => wishes.push(wish),
            Err(error) => faults.push(format!("{}: {}", dataset.name, error.report())),
        }
    }
    for wish in &wishes {
        place.manifest(&app.pool, wish).await?;
    }
    let mut text = String::new();
    for each in &wishes {
        let started = Instant::now();
        let name = &each.dataset().name;
        let result =
            if wish.dry_run { lake::preview(&app.pool, each, &place).await } else { write(app, each, &place).await };
        match result {
            Ok(outcome) => text.push_str(&told(&outcome, wish.dry_run, started.elapsed().as_secs_f64())),
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => faults.push(format!("{name}: {}", error.report())),
        }
    }
    if faults.is_empty() {
        return Ok(text);
    }
    super::print(&text)?;
    Err(Error::Environment(format!(
        "{} of {} datasets were not written\n{}",
        faults.len(),
        datasets.len(),
        faults.join("\n")
    )))
}

/// Writes one dataset while a bar moves. Ctrl-C breaks it off, and it cleans up.
async fn write(app: &App, wish: &Wish, place: &Place<'_>) -> Result<Outcome> {
    let lease = Lease::new(Uuid::now_v7(), 1);
    let name = &wish.dataset().name;
    let bar = bar().with_prefix(format!("{name} "));
    let is_terminal = std::io::stderr().is_terminal();
    if !is_terminal {
        eprintln!("{name}: begins");
    }
    let mut running = std::pin::pin!(lake::run(&app.pool, &app.config.export, wish, place, &lease));
    let mut interrupted = std::pin::pin!(super::interrupted());
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            () = tokio::time::sleep(POLL) => show(&bar, &lease.progress),
            () = &mut interrupted, if !lease.is_cancelled() => lease.cancel(),
        }
    };
    bar.finish_and_clear();
    let outcome = ended?;
    if lease.is_cancelled() {
        return Err(Error::Cancelled);
    }
    if !is_terminal {
        eprintln!("{name}: done");
    }
    Ok(outcome)
}

/// What became of a dataset: a line for each partition, a line for each file, and a line in sum.
fn told(outcome: &Outcome, is_preview: bool, seconds: f64) -> String {
    let mut text = String::new();
    let (mut rows, mut bytes, mut files) = (0, 0, 0);
    for done in &outcome.partitions {
        rows += done.rows;
        bytes += done.bytes;
        files += done.files.len();
        let about = if is_preview { "about " } else { "" };
        let path = if done.path.is_empty() { "all rows" } else { &done.path };
        _ = writeln!(text, "{:8}{path}  {} rows  {about}{}", done.action.as_str(), done.rows, ByteSize(done.bytes));
        for file in &done.files {
            _ = writeln!(
                text,
                "        {}  {} rows  {}  sha256:{}",
                file.path,
                file.rows,
                ByteSize(file.bytes),
                file.sha256
            );
        }
    }
    let name = &outcome.dataset;
    if outcome.unchanged > 0 {
        _ = writeln!(text, "{name}: {} partitions already exist, skipping", outcome.unchanged);
    }
    let (partitions, size) = (outcome.partitions.len(), ByteSize(bytes));
    if is_preview {
        _ = writeln!(
            text,
            "{name}: would write {partitions} partitions, {rows} rows, about {size}; nothing was written"
        );
    } else {
        _ = writeln!(text, "{name}: {partitions} partitions, {files} files, {rows} rows, {size} in {seconds:.1} s");
    }
    text
}
