//! `import`: results of finished runs to a running service.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::send::{self, Destination};
use crate::config::Config;
use crate::import::Import as Work;
use crate::import::journal::Journal;
use crate::import::layout::Layout;
use crate::send::outcome::{Exit, Refusal};
use crate::send::upload::Uploader;

/// Which results to send, where to, and how.
#[derive(Debug, Args)]
pub struct Import {
    /// Folder whose folders are runs; with --run-id it is one run.
    #[arg(value_name = "DIR")]
    folder: String,
    /// Where results are below the folder.
    #[arg(long, value_enum, default_value = "nvd")]
    layout: LayoutName,
    /// Rule in place of the layout, such as 'stast={run}/{sample}/*.blast.tsv'; may be repeated.
    #[arg(long = "pattern", value_name = "DATASET=PATTERN")]
    patterns: Vec<String>,
    /// Pipeline run of all files.
    #[arg(long)]
    run_id: Option<String>,
    /// Experiment number of all files.
    #[arg(long)]
    experiment: Option<String>,
    #[command(flatten)]
    to: Destination,
    /// Where to write down what is stored, so that another import passes it over.
    #[arg(long, value_name = "FILE", default_value = "nvd-import.jsonl")]
    journal: PathBuf,
    /// How long to go on trying.
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = humantime::parse_duration)]
    max_time: Duration,
    /// Check the files and send nothing.
    #[arg(long)]
    dry_run: bool,
}

/// The layouts that are known.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LayoutName {
    /// Results of NVD 2 and 3.
    Nvd,
}

/// Finds, checks and sends the files, and tells how it ended.
pub async fn run(config: crate::Result<Config>, options: Import) -> Exit {
    prepare_and_send(config, options).await.unwrap_or_else(|refusal| send::refused(&refusal))
}

async fn prepare_and_send(config: crate::Result<Config>, options: Import) -> Result<Exit, Refusal> {
    let datasets = send::datasets(config)?;
    let layout = match options.layout {
        _ if !options.patterns.is_empty() => {
            let wrong = |reason| Refusal::new(Exit::Configuration, "--pattern", reason);
            Layout::parse(&options.patterns).map_err(wrong)?
        }
        LayoutName::Nvd => Layout::nvd(options.run_id.is_some()),
    };
    if let Some(unknown) = layout.datasets().find(|name| datasets.get(name).is_none()) {
        let known = datasets.names().join(", ");
        let reason = format!("there is no dataset `{unknown}`, there are {known}");
        return Err(Refusal::new(Exit::Configuration, "--pattern", reason));
    }
    let given = [("run_id", options.run_id), ("experiment", options.experiment)];
    let columns = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    let import = Work { folder: options.folder, layout, columns, datasets };
    let (finds, unread) = import.find()?;
    print(&import.plan(&finds));
    if finds.is_empty() {
        let reason = "holds no result where the layout has them; if it is a single run, say --run-id";
        let mut refusal = Refusal::new(Exit::Data, &import.folder, reason);
        refusal.lines.extend(unread.into_iter().flat_map(|unread| unread.lines));
        return Err(refusal);
    }
    let (uploader, mut journal) = if options.dry_run {
        (None, Journal::none())
    } else {
        let access = options.to.access()?;
        let journal = Journal::open(&options.journal, access.url.as_str())?;
        let uploader = Uploader::new(access, options.max_time).map_err(|error| send::configuration(&error))?;
        (Some(uploader), journal)
    };
    let (exit, report) = import.send(finds, unread, uploader.as_ref(), &mut journal, options.to.concurrency()).await?;
    print(&format!("\n{report}"));
    Ok(exit)
}

fn print(text: &str) {
    // Whoever closed the pipe does not want to read it.
    drop(super::print(text));
}
