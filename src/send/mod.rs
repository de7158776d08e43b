//! Result files to a service: each is checked before, sent until it is stored, and stored once.
//!
//! [`files`] finds them, [`content`] opens them, [`check`] reads them by the service's own rules, [`upload`] sends
//! them, [`outcome`] says how it ended. No database is needed.

pub mod access;
pub mod check;
pub mod content;
mod csv;
pub mod files;
mod guess;
pub mod job;
pub mod outcome;
pub mod progress;
pub mod upload;

use std::sync::Arc;

use futures_util::{StreamExt, stream};

use check::{Checked, Rules};
use outcome::{Exit, Refusal};
use progress::Progress;
use upload::Uploader;

/// Checks all files, sends them to `uploader` if there is one, and answers with the worst that happened.
pub async fn send(files: Vec<String>, rules: Rules, uploader: Option<&Uploader>, concurrency: usize) -> Exit {
    let progress = Arc::new(Progress::new(files.len()));
    let rules = Arc::new(rules);
    let work = stream::iter(files).map(|file| one(file, &rules, uploader, &progress));
    let exits = work.buffer_unordered(concurrency);
    exits.fold(Exit::Stored, |worst, exit| async move { worst.max(exit) }).await
}

async fn one(file: String, rules: &Arc<Rules>, uploader: Option<&Uploader>, progress: &Arc<Progress>) -> Exit {
    progress.checking(&file);
    let done = check_and_send(file, rules, uploader, progress).await;
    progress.file_done();
    match done {
        Ok(line) => {
            progress.say(&line);
            Exit::Stored
        }
        Err(refusal) => {
            refusal.lines.iter().for_each(|line| progress.warn(line));
            refusal.exit
        }
    }
}

async fn check_and_send(
    file: String,
    rules: &Arc<Rules>,
    uploader: Option<&Uploader>,
    progress: &Arc<Progress>,
) -> Result<String, Refusal> {
    let checking = tokio::task::spawn_blocking({
        let (rules, file) = (Arc::clone(rules), file.clone());
        move || rules.check(&file)
    });
    let checked = checking.await.map_err(|_| Refusal::new(Exit::Data, &file, "cannot be checked"))??;
    let checked = Arc::new(checked);
    match uploader {
        Some(uploader) => {
            let receipt = uploader.send(&checked, progress).await?;
            Ok(format!("{}: {}", checked.content.name, receipt.tell()))
        }
        None => Ok(format!("{}: {}", checked.content.name, would(&checked))),
    }
}

/// What a dry run says of a file that can be sent.
fn would(checked: &Checked) -> String {
    let key = checked.key.as_ref().map_or_else(
        || "without a key: the content decides whether it is there already".to_owned(),
        |key| format!("under the key {key}"),
    );
    format!("good, {} rows for {}, {key}", checked.summary.rows, checked.dataset.name)
}
