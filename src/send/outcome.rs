//! How sending ends: the exit codes that a submit file can act on, and what is said of a refused file.

use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;

use crate::dataset::Fault;
use crate::error::Error;

/// How the command ends; of several files the one with the highest code decides. The codes are those of `sysexits.h`.
///
/// Trying again outranks bad data, so that a job runs again for what can still be stored, and then ends with the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Everything is stored, now or before.
    Stored = 0,
    /// The data are bad, or missing; sending them again will not help.
    Data = 65,
    /// It was not possible in the given time; another try may succeed.
    TryAgain = 75,
    /// The token does not allow it.
    NotAllowed = 77,
    /// Nothing can be sent with these options and this environment.
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why something was not stored.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// How the command ends for it.
    pub exit: Exit,
    /// What is said, each line complete by itself.
    pub lines: Vec<String>,
}

impl Refusal {
    /// A refusal with one line about `name`.
    #[must_use]
    pub fn new(exit: Exit, name: &str, reason: impl std::fmt::Display) -> Self {
        Self { exit, lines: vec![format!("{name}: {reason}")] }
    }

    /// What the check of the file `name` complains of.
    #[must_use]
    pub fn of_data(name: &str, error: &Error) -> Self {
        match error {
            Error::Faults(faults) => Self::of_faults(name, faults),
            error => Self::new(Exit::Data, name, error),
        }
    }

    /// The faults of the file `name` as `name:line:column: field: reason`, which editors can jump to.
    #[must_use]
    pub fn of_faults(name: &str, faults: &[Fault]) -> Self {
        Self { exit: Exit::Data, lines: faults.iter().map(|fault| place(name, fault)).collect() }
    }

    /// A file that cannot be read.
    #[must_use]
    pub fn unreadable(name: &str, error: &std::io::Error) -> Self {
        Self::new(Exit::Data, name, format!("cannot be read: {error}"))
    }

    /// A file of the environment, such as a token's, that cannot be read.
    #[must_use]
    pub fn environment(path: &Path, error: &std::io::Error) -> Self {
        Self::new(Exit::Configuration, &path.display().to_string(), format!("cannot be read: {error}"))
    }
}

fn place(name: &str, fault: &Fault) -> String {
    let mut text = name.to_owned();
    for number in [fault.line, fault.column].into_iter().flatten() {
        text = format!("{text}:{number}");
    }
    let field = fault.field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default();
    // The rules speak of query parameters, which are options here.
    let reason = fault.reason.replace("?sample_id=", "--sample-id").replace("?run_id=", "--run-id");
    format!("{text}: {field}{reason}")
}

/// What the service says of a stored file.
#[derive(Debug, Clone, Deserialize)]
pub struct Receipt {
    /// The submission.
    pub submission_id: i64,
    /// The key under which it is stored.
    pub key: String,
    /// Rows stored.
    pub rows: u64,
    /// Rows that were there before.
    pub duplicates: u64,
    /// SHA-256 of the decompressed content.
    pub sha256: String,
    /// Whether it had been stored before.
    pub replayed: bool,
}

impl Receipt {
    /// The receipt in words.
    #[must_use]
    pub fn tell(&self) -> String {
        let done = if self.replayed { "already there" } else { "stored" };
        let known =
            if self.duplicates > 0 { format!(" ({} more were there before)", self.duplicates) } else { String::new() };
        format!("{done}, {} rows{known}, submission {}, key {}", self.rows, self.submission_id, self.key)
    }
}
