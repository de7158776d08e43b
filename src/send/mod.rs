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

use futures_util::{Stream, StreamExt, stream};

use check::{Checked, Rules};
use outcome::{Exit, Receipt, Refusal};
use progress::Progress;
use upload::Uploader;

/// A file to send, and what holds for it.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// The file.
    pub file: String,
    /// Its dataset, columns and key.
    pub rules: Arc<Rules>,
}

/// A file that is stored, or that could be.
#[derive(Debug)]
pub struct Sent {
    /// What is said of it.
    pub line: String,
    /// Its rows.
    pub rows: u64,
    /// What the service says; absent when nothing was sent.
    pub receipt: Option<Receipt>,
}

/// Checks all files, sends them to `uploader` if there is one, and answers with the worst that happened.
pub async fn send(files: Vec<String>, rules: Rules, uploader: Option<&Uploader>, concurrency: usize) -> Exit {
    let progress = Arc::new(Progress::new(files.len()));
    let rules = Arc::new(rules);
    let parcels = files.into_iter().map(|file| Parcel { file, rules: Arc::clone(&rules) }).collect();
    let results = each(parcels, uploader, concurrency, &progress);
    results.fold(Exit::Stored, |worst, (_, result)| std::future::ready(worst.max(tell(&result, &progress)))).await
}

/// Checks and sends files, so many at once, and hands over what became of each.
pub fn each(
    parcels: Vec<Parcel>,
    uploader: Option<&Uploader>,
    concurrency: usize,
    progress: &Arc<Progress>,
) -> impl Stream<Item = (Parcel, Result<Sent, Refusal>)> {
    let work = stream::iter(parcels).map(move |parcel| async move {
        progress.checking(&parcel.file);
        let result = check_and_send(&parcel, uploader, progress).await;
        progress.file_done();
        (parcel, result)
    });
    work.buffer_unordered(concurrency)
}

/// Says what became of a file.
pub fn tell(result: &Result<Sent, Refusal>, progress: &Progress) -> Exit {
    match result {
        Ok(sent) => {
            progress.say(&sent.line);
            Exit::Stored
        }
        Err(refusal) => {
            refusal.lines.iter().for_each(|line| progress.warn(line));
            refusal.exit
        }
    }
}

async fn check_and_send(
    parcel: &Parcel,
    uploader: Option<&Uploader>,
    progress: &Arc<Progress>,
) -> Result<Sent, Refusal> {
    let checking = tokio::task::spawn_blocking({
        let parcel = parcel.clone();
        move || parcel.rules.check(&parcel.file)
    });
    let checked = checking.await.map_err(|_| Refusal::new(Exit::Data, &parcel.file, "cannot be checked"))??;
    let checked = Arc::new(checked);
    let receipt = match uploader {
        Some(uploader) => Some(uploader.send(&checked, progress).await?),
        None => None,
    };
    let said = receipt.as_ref().map_or_else(|| would(&checked), Receipt::tell);
    Ok(Sent { line: format!("{}: {said}", checked.content.name), rows: checked.summary.rows, receipt })
}

/// What a dry run says of a file that can be sent.
fn would(checked: &Checked) -> String {
    let key = checked.key.as_ref().map_or_else(
        || "without a key: the content decides whether it is there already".to_owned(),
        |key| format!("under the key {key}"),
    );
    format!("good, {} rows for {}, {key}", checked.summary.rows, checked.dataset.name)
}
