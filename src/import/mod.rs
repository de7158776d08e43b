//! Results of finished runs to a service: found in a folder by a layout, sent as `send` sends, written down in a journal.
//!
//! [`layout`] tells whose result a file is, [`journal`] remembers what is stored, [`report`] says how it ended. Without
//! keys the content decides what is there already, so that a journal spares time and no more.

pub mod journal;
pub mod layout;
pub mod report;

use std::collections::BTreeMap;
use std::fs::DirEntry;
use std::io;
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;

use crate::dataset::Datasets;
use crate::send::check::Rules;
use crate::send::outcome::{Exit, Refusal};
use crate::send::progress::Progress;
use crate::send::upload::Uploader;
use crate::send::{self, Parcel};
use journal::{Entry, Journal};
use layout::{Find, Layout};
use report::Report;

/// A folder of runs, and what is known of all its files.
#[derive(Debug)]
pub struct Import {
    /// The folder.
    pub folder: String,
    /// Where results are in it.
    pub layout: Layout,
    /// Values for columns that the rows lack, such as the run; what the layout finds comes on top.
    pub columns: Vec<(String, String)>,
    /// All datasets.
    pub datasets: Datasets,
}

impl Import {
    /// The result files in the folder, in the order of their names, and what below it cannot be read.
    ///
    /// # Errors
    /// A folder that cannot be read itself.
    pub fn find(&self) -> Result<(Vec<Find>, Vec<Refusal>), Refusal> {
        let (mut files, mut unread) = (Vec::new(), Vec::new());
        walk(Path::new(&self.folder), "", &mut files, &mut unread)
            .map_err(|error| Refusal::unreadable(&self.folder, &error))?;
        files.sort();
        Ok((self.layout.choose(&files), unread))
    }

    /// What is about to be done, in words: the layout, and what it finds of which run.
    #[must_use]
    pub fn plan(&self, finds: &[Find]) -> String {
        let mut runs: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for find in finds {
            let run = self.columns_of(find).find(|(name, _)| *name == "run_id").map_or("no run", |(_, run)| run);
            *runs.entry((run, find.dataset.as_str())).or_default() += 1;
        }
        let mut text = format!("{}\n{} files in {}\n", self.layout, finds.len(), self.folder);
        for ((run, dataset), files) in runs {
            text.push_str(&format!("  {run}: {files} of {dataset}\n"));
        }
        if let Some(find) = finds.first() {
            let columns: Vec<String> = self.columns_of(find).map(|(name, value)| format!("{name} {value}")).collect();
            text.push_str(&format!("for example {}: {}\n", find.file, columns.join(", ")));
        }
        text
    }

    /// Sends what was found to `uploader`, or only checks it, and tells how it ended, also for what is `unread`.
    ///
    /// # Errors
    /// A journal that cannot be written: then nothing more is sent.
    pub async fn send(
        &self,
        finds: Vec<Find>,
        mut unread: Vec<Refusal>,
        uploader: Option<&Uploader>,
        journal: &mut Journal,
        concurrency: usize,
    ) -> Result<(Exit, Report), Refusal> {
        let mut report = Report::default();
        let mut parcels = Vec::new();
        let mut entries = BTreeMap::new();
        for find in finds {
            let file = Path::new(&self.folder).join(&find.file).display().to_string();
            let columns = self.columns_of(&find).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            let entry = match Entry::of(&file, &find.dataset, columns) {
                Ok(entry) => entry,
                Err(error) => {
                    unread.push(Refusal::unreadable(&file, &error));
                    continue;
                }
            };
            if journal.has(&entry) {
                report.in_journal += 1;
                continue;
            }
            let rules = Rules {
                datasets: self.datasets.clone(),
                dataset: Some(find.dataset),
                columns: entry.columns.clone(),
                key: None,
                job: None,
            };
            entries.insert(file.clone(), entry);
            parcels.push(Parcel { file, rules: Arc::new(rules) });
        }
        let progress = Arc::new(Progress::new(parcels.len()));
        let mut worst = Exit::Stored;
        for result in unread.into_iter().map(Err) {
            worst = worst.max(send::tell(&result, &progress));
            report.add(&result);
        }
        let mut results = Box::pin(send::each(parcels, uploader, concurrency, &progress));
        while let Some((parcel, result)) = results.next().await {
            worst = worst.max(send::tell(&result, &progress));
            if let Ok(sent) = &result
                && let Some(receipt) = &sent.receipt
                && let Some(entry) = entries.remove(&parcel.file)
            {
                journal.add(entry, receipt)?;
            }
            report.add(&result);
        }
        Ok((worst, report))
    }

    /// The columns of a file: what holds for all, then what its path says.
    fn columns_of<'a>(&'a self, find: &'a Find) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = self.columns.iter().chain(&find.columns);
        all.map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// Adds the files below `folder`, each by its path below it, and what below it cannot be read. Links to folders are not
/// followed, hidden ones not opened.
fn walk(folder: &Path, prefix: &str, files: &mut Vec<String>, unread: &mut Vec<Refusal>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if let Err(error) = add(&entry, prefix, files, unread) {
            unread.push(Refusal::unreadable(&entry.path().display().to_string(), &error));
        }
    }
    Ok(())
}

fn add(entry: &DirEntry, prefix: &str, files: &mut Vec<String>, unread: &mut Vec<Refusal>) -> io::Result<()> {
    let name = entry.file_name();
    if name.as_encoded_bytes().starts_with(b".") {
        return Ok(());
    }
    let name = name.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its name is not UTF-8"))?;
    let path = format!("{prefix}{name}");
    if entry.file_type()?.is_dir() {
        return walk(&entry.path(), &format!("{path}/"), files, unread);
    }
    // Where a link leads nowhere, opening it will say so.
    if entry.path().metadata().map_or(true, |target| target.is_file()) {
        files.push(path);
    }
    Ok(())
}
