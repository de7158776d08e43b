//! `convert`: files to partitioned Parquet, without a service and a database.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytesize::ByteSize;
use chrono::NaiveDate;
use clap::Args;

use crate::config::{Config, Partitioning, Temporal};
use crate::convert::inputs::Choice;
use crate::convert::{self, News, Outcome, Wish};
use crate::dataset::{Dataset, Datasets, Mistake};
use crate::error::{Error, Result};

/// What to convert, and where to.
#[derive(Debug, Args)]
pub struct Convert {
    /// Files or quoted patterns: CSV, TSV, JSON or JSON lines, plain or compressed by gzip or zstd.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// The folder to write to: DIR/DATASET/year=2026/month=11/day=20/...
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The dataset whose rows these are.
    #[arg(long, value_name = "NAME", conflicts_with = "schema")]
    dataset: Option<String>,
    /// A definition of the dataset, as in datasets.dir; without one the columns are told from the values, and printed.
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// A value for a column that the rows lack; may be repeated.
    #[arg(long = "column", value_name = "COLUMN=VALUE", value_parser = super::parse_column)]
    values: Vec<(String, String)>,
    /// How time is cut: that of the first column with a time, else the date in the file's name, else its last change.
    #[arg(long, value_name = "LEVELS", default_value = "year,month,day")]
    temporal: Temporal,
    /// Cut it by the values of these columns too, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,...")]
    partition_by: Vec<String>,
    /// Only files of that day: the date in the name, else the day of the last change in UTC (YYYY-MM-DD).
    #[arg(long, value_name = "DATE")]
    date: Option<NaiveDate>,
    /// All files that a quoted pattern matches; without it only those of the newest date in their names.
    #[arg(long, conflicts_with = "date")]
    historical: bool,
    /// Read and check everything, print what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Converts, and prints what becomes of each file.
///
/// # Errors
/// A definition that cannot be used, a folder that cannot be written to, Ctrl-C.
pub async fn run(config: Config, options: Convert) -> Result<ExitCode> {
    let output = options.output.to_string_lossy();
    super::check_output(&output)?;
    if output.contains("://") {
        return Err(Error::Environment("--output is no folder: converted files are written to folders only".into()));
    }
    let dataset = match (&options.dataset, &options.schema) {
        (Some(name), _) => Some(named(&config, name)?),
        (None, Some(file)) => Some(Arc::new(defined(file)?)),
        (None, None) => None,
    };
    let wish = Wish {
        output: options.output,
        dataset,
        values: options.values,
        partitioning: Partitioning { temporal: Some(options.temporal), by: options.partition_by, keep_columns: false },
        choice: Choice { date: options.date, historical: options.historical },
        is_preview: options.dry_run,
        config: config.export,
    };
    let stop = Arc::new(AtomicBool::new(false));
    tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            super::interrupted().await;
            stop.store(true, Ordering::Relaxed);
        }
    });
    let tell = |news: News| match news {
        // Whoever closed the pipe does not want to read it.
        News::Result(line) => drop(super::print(&format!("{line}\n"))),
        News::Trouble(line) => eprintln!("{line}"),
    };
    let outcome = convert::run(&options.files, &wish, &stop, tell).await?;
    super::print(&told(&outcome, wish.is_preview))?;
    Ok(if outcome.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn named(config: &Config, name: &str) -> Result<Arc<Dataset>> {
    let datasets = Datasets::load(config.datasets.dir.as_deref()).map_err(Error::Definitions)?;
    let dataset = datasets.get(name).map(Arc::clone);
    dataset.ok_or_else(|| Error::NotFound { what: "dataset", name: name.to_owned() })
}

fn defined(file: &Path) -> Result<Dataset> {
    let name = file.display().to_string();
    let mistake =
        |error: std::io::Error| Error::Definitions(vec![Mistake::new(&name, format!("cannot be read: {error}"))]);
    let text = std::fs::read_to_string(file).map_err(mistake)?;
    Dataset::parse(&name, &text).map_err(Error::Definitions)
}

fn told(outcome: &Outcome, is_preview: bool) -> String {
    let done = if is_preview { "files would be converted" } else { "files converted" };
    let mut text = format!(
        "{} {done}, {} rows, {} -> {}; {} skipped, {} failed",
        outcome.converted,
        outcome.rows,
        ByteSize(outcome.text_bytes),
        ByteSize(outcome.bytes),
        outcome.skipped,
        outcome.failed
    );
    if outcome.left_out > 0 {
        text.push_str(&format!(", {} left out (--historical takes all that a pattern matches)", outcome.left_out));
    }
    if is_preview {
        text.push_str("; nothing was written");
    }
    text + "\n"
}
