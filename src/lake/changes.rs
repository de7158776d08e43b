//! What has to be done: the submissions that a snapshot sees, compared with those that each partition holds.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};

use super::manifest::{File, Ids, Manifest, Partition, digest};
use super::partition::{self, Span, label, path};
use crate::config::Temporal;
use crate::dataset::{Cell, sql};
use crate::db::lake::Visible;
use crate::export::spec::TIME_COLUMN;

/// Small files of one folder from which its partition is written anew instead of getting another.
const SMALL_FILES: usize = 8;

/// What is done with a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is written for the first time.
    New,
    /// It gets the rows of further submissions.
    Add,
    /// It is written anew: rows left it, a file of it is lost, cut short or lacks a column, it has too many small files or
    /// folders of other names, or somebody wishes it.
    Rewrite,
    /// Nothing of it is left.
    Remove,
}

impl Action {
    /// As it is told to people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Add => "add",
            Self::Rewrite => "rewrite",
            Self::Remove => "remove",
        }
    }
}

/// One partition that has to change.
#[derive(Debug)]
pub struct Task {
    /// What is done.
    pub action: Action,
    /// The folder; empty when time is not cut.
    pub path: String,
    /// The span in names of files.
    pub label: String,
    /// The time that it covers.
    pub span: Option<Span>,
    /// All submissions that it will hold, by id.
    pub all: Vec<Visible>,
    /// The ids of those whose rows are read; all when absent.
    pub added: Option<Vec<i64>>,
    /// The files that stay.
    pub kept: Vec<File>,
}

impl Task {
    /// The rows that are read.
    #[must_use]
    pub fn rows(&self) -> u64 {
        let is_read = |submission: &&Visible| match &self.added {
            Some(added) => added.binary_search(&submission.id).is_ok(),
            None => true,
        };
        self.all.iter().filter(is_read).map(|submission| submission.rows.unsigned_abs()).sum()
    }

    /// The rows that are read, as SQL. Those of one submission lie together, and the primary key finds them.
    #[must_use]
    pub fn conditions(&self) -> Vec<String> {
        let time = sql::quoted(TIME_COLUMN);
        let moment = |time: DateTime<Utc>| sql::literal(&Cell::Timestamp(time.timestamp_micros()));
        match (&self.added, self.span, self.all.first().zip(self.all.last())) {
            (Some(added), ..) => {
                let ids: Vec<String> = added.iter().map(i64::to_string).collect();
                vec![format!("submission_id = ANY('{{{}}}'::bigint[])", ids.join(","))]
            }
            (None, Some(span), Some((first, last))) => vec![
                format!("submission_id BETWEEN {} AND {}", first.id, last.id),
                format!("{time} >= {} AND {time} < {}", moment(span.start), moment(span.end)),
            ],
            _ => Vec::new(),
        }
    }

    /// The partition as it is with these new files.
    #[must_use]
    pub fn done(&self, files: Vec<File>) -> Partition {
        Partition {
            path: self.path.clone(),
            start: self.span.map(|span| span.start),
            end: self.span.map(|span| span.end),
            submissions: Ids(self.all.iter().map(|submission| submission.id).collect()),
            digest: digest(&self.all),
            files: self.kept.iter().cloned().chain(files).collect(),
        }
    }
}

/// Which partitions are looked at, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Choice {
    /// Partitions that end after that time.
    pub from: Option<DateTime<Utc>>,
    /// Partitions that begin before that time.
    pub to: Option<DateTime<Utc>>,
    /// Whether all of them are written anew.
    pub overwrite: bool,
    /// Bytes below which a file is small.
    pub small: u64,
}

/// What is wrong with files that a manifest names.
#[derive(Debug, Default)]
pub struct Flaws {
    /// Paths of those that do not lie where the manifest says.
    pub damaged: HashSet<String>,
    /// Submissions with values of columns that the files lack: a replica with an older definition has written them.
    pub lacking: HashSet<i64>,
}

impl Flaws {
    fn touch(&self, held: &Partition) -> bool {
        let is_useless = |file: &File| partition::is_misnamed(&file.path) || self.damaged.contains(&file.path);
        held.files.iter().any(is_useless) || self.lack(held)
    }

    fn lack(&self, held: &Partition) -> bool {
        !self.lacking.is_empty() && held.submissions.0.iter().any(|id| self.lacking.contains(id))
    }
}

/// What has to be done, in the order of time, and how many partitions need nothing.
#[must_use]
pub fn compare(
    visible: &[Visible],
    manifest: &Manifest,
    flaws: &Flaws,
    temporal: Option<Temporal>,
    choice: &Choice,
) -> (Vec<Task>, usize) {
    let mut now: BTreeMap<Option<Span>, Vec<Visible>> = BTreeMap::new();
    for submission in visible {
        let span = temporal.map(|temporal| Span::of(temporal.0, submission.created_at));
        now.entry(span).or_default().push(*submission);
    }
    let held: HashMap<&str, &Partition> =
        manifest.partitions.iter().map(|partition| (partition.path.as_str(), partition)).collect();
    // Partitions of which the database has nothing any more.
    for partition in &manifest.partitions {
        let span = partition.start.zip(partition.end).map(|(start, end)| Span { start, end });
        now.entry(span).or_default();
    }
    let mut unchanged = 0;
    let mut tasks = Vec::new();
    for (span, all) in now {
        let is_chosen = span.is_none_or(|span| span.overlaps(choice.from, choice.to));
        let path = temporal.zip(span).map(|(temporal, span)| path(temporal, &span)).unwrap_or_default();
        let label = temporal.zip(span).map(|(temporal, span)| label(temporal, &span)).unwrap_or_default();
        let held = held.get(path.as_str()).copied();
        // Columns that are in the manifest after this run must be in all files.
        if !is_chosen && !held.is_some_and(|held| flaws.lack(held)) {
            continue;
        }
        match decide(&all, held, flaws, choice) {
            Some((action, added)) => {
                let kept = held.filter(|_| action == Action::Add).map(|held| held.files.clone());
                tasks.push(Task { action, path, label, span, all, added, kept: kept.unwrap_or_default() });
            }
            None => unchanged += 1,
        }
    }
    (tasks, unchanged)
}

/// What is done with a partition, and which submissions are added to it; nothing where it is as it should be.
fn decide(
    all: &[Visible],
    held: Option<&Partition>,
    flaws: &Flaws,
    choice: &Choice,
) -> Option<(Action, Option<Vec<i64>>)> {
    let Some(held) = held else { return Some((Action::New, None)) };
    if all.is_empty() {
        return Some((Action::Remove, None));
    }
    let has = |submission: &&Visible| held.submissions.0.binary_search(&submission.id).is_ok();
    let (known, added): (Vec<&Visible>, Vec<&Visible>) = all.iter().partition(has);
    if choice.overwrite || flaws.touch(held) || known.len() != held.submissions.0.len() || digest(known) != held.digest
    {
        return Some((Action::Rewrite, None));
    }
    if added.is_empty() {
        return None;
    }
    if crowd(&held.files, choice.small) >= SMALL_FILES {
        return Some((Action::Rewrite, None));
    }
    Some((Action::Add, Some(added.into_iter().map(|submission| submission.id).collect())))
}

/// The number of small files in the folder that has most of them.
fn crowd(files: &[File], small: u64) -> usize {
    let mut folders: HashMap<&str, usize> = HashMap::new();
    for file in files.iter().filter(|file| file.bytes < small) {
        *folders.entry(file.path.rsplit_once('/').map_or("", |(folder, _)| folder)).or_default() += 1;
    }
    folders.into_values().max().unwrap_or_default()
}
