//! `send`: result files to a running service.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::Config;
use crate::dataset::Datasets;
use crate::error::Error;
use crate::send::access::Access;
use crate::send::check::Rules;
use crate::send::files;
use crate::send::job::Job;
use crate::send::outcome::{Exit, Refusal};
use crate::send::upload::Uploader;

/// What to send, where to, and how.
#[derive(Debug, Args)]
pub struct Send {
    /// Files or quoted patterns; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Dataset of the rows; told from the first line when absent.
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Sample of all rows that name none.
    #[arg(long)]
    sample_id: Option<String>,
    /// Pipeline run of all rows that name none.
    #[arg(long)]
    run_id: Option<String>,
    /// Experiment number of all rows that name none.
    #[arg(long)]
    experiment: Option<String>,
    /// BLAST task of all rows that name none.
    #[arg(long)]
    task: Option<String>,
    /// Version of the tool that wrote the file.
    #[arg(long)]
    tool_version: Option<String>,
    /// Version of the database that the tool searched.
    #[arg(long)]
    db_version: Option<String>,
    #[command(flatten)]
    to: Destination,
    /// Name of this file for ever; in an HTCondor job GlobalJobId and file name when absent, else the content.
    #[arg(long)]
    key: Option<String>,
    /// How long to go on trying.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    max_time: Duration,
    /// Check the files and send nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Where to send, and how much at once.
#[derive(Debug, Args)]
pub struct Destination {
    /// Address of the service (also NVD_SUPPORT_URL).
    #[arg(long)]
    url: Option<String>,
    /// File with the token (else NVD_BEARER_TOKEN, else the first credential in _CONDOR_CREDS).
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Files that are checked and sent at once.
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
}

impl Destination {
    /// Address and token.
    pub fn access(&self) -> Result<Access, Refusal> {
        Access::find(self.url.clone(), self.token_file.clone())
    }

    /// Files at once.
    pub fn concurrency(&self) -> usize {
        usize::from(self.concurrency)
    }
}

/// Checks and sends the files, and tells how it ended.
pub async fn run(config: crate::Result<Config>, options: Send) -> Exit {
    prepare_and_send(config, options).await.unwrap_or_else(|refusal| refused(&refusal))
}

/// Says why nothing can be sent at all.
pub fn refused(refusal: &Refusal) -> Exit {
    refusal.lines.iter().for_each(|line| eprintln!("error: {line}"));
    refusal.exit
}

/// The datasets that the configuration knows.
pub fn datasets(config: crate::Result<Config>) -> Result<Datasets, Refusal> {
    let config = config.map_err(|error| configuration(&error))?;
    Datasets::load(config.datasets.dir.as_deref()).map_err(|found| configuration(&Error::Definitions(found)))
}

async fn prepare_and_send(config: crate::Result<Config>, options: Send) -> Result<Exit, Refusal> {
    let datasets = datasets(config)?;
    let files = files::expand(&options.files)?;
    let rules = Rules {
        dataset: options.dataset.clone(),
        columns: options.columns(),
        key: options.checked_key(&files)?,
        job: Job::current(),
        datasets,
    };
    rules.check_keys(&files)?;
    let uploader = if options.dry_run {
        None
    } else {
        let uploader = Uploader::new(options.to.access()?, options.max_time);
        Some(uploader.map_err(|error| configuration(&error))?)
    };
    Ok(crate::send::send(files, rules, uploader.as_ref(), options.to.concurrency()).await)
}

impl Send {
    /// The columns that are given for all rows.
    fn columns(&self) -> Vec<(String, String)> {
        let given = [
            ("sample_id", &self.sample_id),
            ("run_id", &self.run_id),
            ("experiment", &self.experiment),
            ("task", &self.task),
            ("tool_version", &self.tool_version),
            ("db_version", &self.db_version),
        ];
        given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))).collect()
    }

    /// The key, which can name one file only.
    fn checked_key(&self, files: &[String]) -> Result<Option<String>, Refusal> {
        let refuse = |reason: &str| Err(Refusal::new(Exit::Configuration, "--key", reason));
        match &self.key {
            Some(_) if files.len() > 1 => refuse("names one file, and there are several: send them one by one"),
            // They would vanish from the path.
            Some(key) if ["", ".", ".."].contains(&key.trim()) => refuse("is no name for a file"),
            key => Ok(key.clone()),
        }
    }
}

/// A refusal of the configuration.
pub fn configuration(error: &Error) -> Refusal {
    Refusal { exit: Exit::Configuration, lines: vec![error.to_string()] }
}
