//! A file before it is sent: its dataset, its parameters, its key, and every row, by the service's own rules.

use std::collections::HashSet;
use std::sync::Arc;

use super::content::{Content, LIMITS};
use super::guess;
use super::job::Job;
use super::outcome::{Exit, Refusal};
use crate::dataset::params::Params;
use crate::dataset::{Dataset, Datasets};
use crate::error::Error;
use crate::ingest::key;
use crate::ingest::rows::{self, Summary};

/// What holds for every file of one call.
#[derive(Debug)]
pub struct Rules {
    /// All datasets.
    pub datasets: Datasets,
    /// The dataset, if it was named.
    pub dataset: Option<String>,
    /// Values for columns that the rows lack.
    pub columns: Vec<(String, String)>,
    /// The key, if it was given.
    pub key: Option<String>,
    /// The HTCondor job that this runs in.
    pub job: Option<Job>,
}

/// A file that can be sent.
#[derive(Debug)]
pub struct Checked {
    /// What to send.
    pub content: Content,
    /// Where it belongs.
    pub dataset: Arc<Dataset>,
    /// Under which key; without one the content is the key.
    pub key: Option<String>,
    /// Values for columns that its rows lack.
    pub columns: Vec<(String, String)>,
    /// What it holds.
    pub summary: Summary,
}

impl Rules {
    /// Opens the file `argument` and reads it to its end.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn check(&self, argument: &str) -> Result<Checked, Refusal> {
        let content = Content::open(argument).map_err(|error| Refusal::unreadable(argument, &error))?;
        let name = content.name.clone();
        let dataset = self.dataset(&content)?;
        let params = Params::parse(&dataset, &self.columns).map_err(|faults| Refusal::of_faults(&name, &faults))?;
        let key = self.key.clone().or_else(|| self.job.as_ref().and_then(|job| job.key(argument)));
        let summary = read(&dataset, params, &content).map_err(|error| Refusal::of_data(&name, &error))?;
        if summary.rows == 0 && key.is_none() && summary.sample_id.is_none() {
            let reason = "holds no rows: say whose result it is, with --sample-id or --key";
            return Err(Refusal::new(Exit::Data, &name, reason));
        }
        Ok(Checked { content, dataset, key, columns: self.columns.clone(), summary })
    }

    /// Refuses keys that the service would not take as they are, and files whose keys would be the same.
    ///
    /// # Errors
    /// Control characters in a key, or in the name of a file in a job; two files of one name in a job, where the name is what
    /// tells them apart.
    pub fn check_keys(&self, files: &[String]) -> Result<(), Refusal> {
        let refuse = |name: &str, reason: String| Refusal::new(Exit::Configuration, name, reason);
        if let Some(key) = &self.key {
            return key::check(key).map_err(|reason| refuse("--key", reason));
        }
        let mut seen = HashSet::new();
        for file in files {
            let Some(key) = self.job.as_ref().and_then(|job| job.key(file)) else { continue };
            key::check(&key).map_err(|reason| {
                refuse(file, format!("its name makes no key: {reason}; rename it, or send it by itself with --key"))
            })?;
            if !seen.insert(key) {
                let reason = "another file has the same name, and so the same key in this job: rename it, or send it \
                              by itself with --key";
                return Err(refuse(file, reason.to_owned()));
            }
        }
        Ok(())
    }

    fn dataset(&self, content: &Content) -> Result<Arc<Dataset>, Refusal> {
        let known = self.datasets.names().join(", ");
        let configuration = |reason: String| Refusal::new(Exit::Configuration, &content.name, reason);
        match &self.dataset {
            Some(name) => self.datasets.get(name).map(Arc::clone).ok_or_else(|| {
                configuration(format!(
                    "there is no dataset `{name}`, there are {known}; \
                     definitions of your own are found with --set datasets.dir=DIR"
                ))
            }),
            None => guess::dataset(&self.datasets, content).ok_or_else(|| {
                configuration(format!("its first line does not tell the dataset: say --dataset, one of {known}"))
            }),
        }
    }
}

fn read(dataset: &Arc<Dataset>, params: Params, content: &Content) -> Result<Summary, Error> {
    let job = rows::Job {
        dataset: Arc::clone(dataset),
        params,
        format: None,
        submission: 0,
        limits: LIMITS,
        max_rows: i32::MAX as u64,
    };
    let (magic, rows) = content.rows()?;
    let mut checked = rows::decode(&job, Arc::default(), magic, rows, |_| true);
    if let Err(Error::Faults(faults)) = &mut checked
        && content.is_csv()
    {
        // The characters were counted in the line as it is sent.
        faults.iter_mut().for_each(|fault| fault.column = None);
    }
    checked
}
