//! What is stored already: a line for each file, written when its receipt has arrived.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::send::outcome::{Exit, Receipt, Refusal};

/// A file as it is when it is found. The same file with other columns, or changed since, is another entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    file: String,
    bytes: u64,
    modified: DateTime<Utc>,
    dataset: String,
    /// The values for columns that its rows lack.
    pub columns: Vec<(String, String)>,
}

/// A line of the journal.
#[derive(Serialize, Deserialize)]
struct Line {
    /// The service that has it.
    url: String,
    #[serde(flatten)]
    entry: Entry,
    submission_id: i64,
    rows: u64,
    sha256: String,
}

/// An open journal. Only one process has it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    url: String,
    file: Option<File>,
    known: HashSet<Entry>,
}

impl Entry {
    /// The entry of a file.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn of(file: &str, dataset: &str, columns: Vec<(String, String)>) -> io::Result<Self> {
        let path = std::fs::canonicalize(file)?;
        let metadata = path.metadata()?;
        Ok(Self {
            file: path.display().to_string(),
            bytes: metadata.len(),
            modified: metadata.modified()?.into(),
            dataset: dataset.to_owned(),
            columns,
        })
    }
}

impl Journal {
    /// A journal that knows nothing and keeps nothing, for a dry run.
    #[must_use]
    pub fn none() -> Self {
        Self { path: PathBuf::new(), url: String::new(), file: None, known: HashSet::new() }
    }

    /// Opens a journal of what the service at `url` has, and makes it if there is none.
    ///
    /// # Errors
    /// When it cannot be read or written, or another process has it.
    pub fn open(path: &Path, url: &str) -> Result<Self, Refusal> {
        let refuse = |reason: String| Refusal::new(Exit::Configuration, &path.display().to_string(), reason);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| refuse(format!("cannot be opened: {error}")))?;
        // Where files cannot be locked, nobody can tell.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(refuse("another import writes to it".to_owned()));
        }
        let mut text = Vec::new();
        let read = file.rewind().and_then(|()| file.read_to_end(&mut text));
        read.map_err(|error| refuse(format!("cannot be read: {error}")))?;
        // The last line may have been cut off, within a letter too; its file is sent again, which is harmless.
        let text = String::from_utf8_lossy(&text);
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").map_err(|error| refuse(format!("cannot be written: {error}")))?;
        }
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let known = lines.filter(|line| line.url == url).map(|line| line.entry).collect();
        Ok(Self { path: path.to_owned(), url: url.to_owned(), file: Some(file), known })
    }

    /// Whether the service has that file.
    #[must_use]
    pub fn has(&self, entry: &Entry) -> bool {
        self.known.contains(entry)
    }

    /// Writes down that the service has a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, entry: Entry, receipt: &Receipt) -> Result<(), Refusal> {
        let line = Line {
            url: self.url.clone(),
            entry,
            submission_id: receipt.submission_id,
            rows: receipt.rows,
            sha256: receipt.sha256.clone(),
        };
        let written = serde_json::to_vec(&line).map_err(io::Error::other).and_then(|mut text| {
            text.push(b'\n');
            self.file.as_mut().map_or(Ok(()), |file| file.write_all(&text))
        });
        written.map_err(|error| {
            Refusal::new(Exit::TryAgain, &self.path.display().to_string(), format!("cannot be written: {error}"))
        })
    }
}
