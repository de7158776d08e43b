//! What a partitioned dataset says of itself: which files it consists of, and which submissions each partition holds.
//!
//! It lies beside the data under a name that readers of folders pass over, and is replaced as a whole: what it names is
//! the dataset, and whatever else lies there is not, or not any more.

use std::collections::HashSet;
use std::path::Path;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::config::{Format, Partitioning};
use crate::dataset::{Dataset, Kind};
use crate::db::lake::Visible;
use crate::error::{Error, Result};
use crate::export::spec::Plan;
use crate::storage::Storage;
use sha2::{Digest, Sha256};

/// Its name in the folder of the dataset.
pub const FILE: &str = "_manifest.json";

/// The source of a dataset that never was in a database.
pub const FILES: &str = "files";

/// The form of manifests that this version writes and reads.
const VERSION: u32 = 1;

/// What helps against a manifest that somebody has damaged.
const AGAIN: &str = "put its newest copy back, or move its folder away and write the dataset anew";

/// A partitioned dataset.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// The form of this file.
    pub version: u32,
    /// The dataset's name.
    pub dataset: String,
    /// What the dataset is called for people.
    pub title: String,
    /// What one row is.
    pub description: String,
    /// The database that it was written from: ids of submissions mean something there only. [`FILES`] where there was none.
    pub source: String,
    /// When the state was taken that it holds.
    pub snapshot_at: Option<DateTime<Utc>>,
    /// The form of its files.
    pub format: Format,
    /// How it is cut.
    pub partitioning: Partitioning,
    /// The columns of files that are written now; earlier files may lack some.
    pub columns: Vec<ColumnNote>,
    /// The columns whose values have folders. Unknown of manifests of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partition_columns: Vec<ColumnNote>,
    /// Its partitions, in the order of their paths.
    pub partitions: Vec<Partition>,
    /// The files that its rows were taken from, where they never were in a database.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
    /// Files that belonged to it, and stay for a while for those who are reading them.
    pub retired: Vec<Retired>,
}

/// A column, for readers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnNote {
    /// Its name.
    pub name: String,
    /// The type of its values.
    pub kind: Kind,
    /// What it means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The unit of its values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// What files call it that rows are taken from, where its name was told from them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

/// The rows of a span of time, or all of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Partition {
    /// Its folder; empty when time is not cut.
    pub path: String,
    /// Its first moment.
    pub start: Option<DateTime<Utc>>,
    /// The first moment after it.
    pub end: Option<DateTime<Utc>>,
    /// The submissions whose rows it holds.
    pub submissions: Ids,
    /// The digest of their ids and times: an id that was given twice, as after a restored backup, is noticed.
    pub digest: String,
    /// Its files.
    pub files: Vec<File>,
}

/// One file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct File {
    /// Where it lies in the folder of the dataset.
    pub path: String,
    /// Its rows.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// The digest of its bytes.
    pub sha256: String,
    /// The digest of its columns, as [`schema`] gives it: files with the same one have the same columns.
    pub schema: String,
    /// When the earliest of its rows was stored.
    pub min_time: Option<DateTime<Utc>>,
    /// When the latest was.
    pub max_time: Option<DateTime<Utc>>,
}

/// A file that rows were taken from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Where it lay.
    pub name: String,
    /// Where else its text lay: a copy, or the file after it was renamed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// The digest of its text, decompressed.
    pub sha256: String,
    /// Whether another input has replaced a part of its rows: then it is not known any more, but the rest is of this text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_partial: bool,
    /// Bytes of that text. Unknown of inputs of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What its rows were read as: another definition, another digest.
    pub schema: String,
    /// The values of columns that its rows lack, sorted: with others the same text is other rows. Unknown of inputs of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<(String, String)>>,
    /// Its rows.
    pub rows: u64,
    /// The files that hold them, as paths in the folder of the dataset.
    pub files: Vec<String>,
    /// The partition of its day. Told by the file as it was found, and not kept.
    #[serde(skip)]
    pub day: String,
}

/// A file that is no part of the dataset any more.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Retired {
    /// Where it lies in the folder of the dataset.
    pub path: String,
    /// Since when.
    pub at: DateTime<Utc>,
}

impl ColumnNote {
    fn new(dataset: &Dataset, name: &str, kind: Kind) -> Self {
        let known = dataset.columns.iter().find(|known| known.name == name);
        Self {
            name: name.to_owned(),
            kind,
            description: known.map(|known| known.description.clone()),
            unit: known.and_then(|known| known.unit.clone()),
            header: None,
        }
    }
}

impl Input {
    /// Whether it holds the same rows as another, however these are read.
    fn is_same(&self, other: &Self) -> bool {
        let has_values = self.schema == other.schema || self.values.is_some() && self.values == other.values;
        self.sha256 == other.sha256 && has_values
    }

    /// The paths of its text.
    fn paths(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.name).chain(&self.also)
    }

    fn has_path(&self, path: &String) -> bool {
        self.paths().any(|known| known == path)
    }

    /// Adds a path of its text.
    fn add_path(&mut self, path: &String) {
        if !self.has_path(path) {
            self.also.push(path.clone());
        }
    }

    /// Takes a path away from it, since another text lies there. Answers whether that was its last one with a file; then it
    /// keeps it, for the rows that stay.
    fn lose_path(&mut self, path: &String) -> bool {
        if !self.has_path(path) {
            return false;
        }
        let is_there = |other: &&String| *other != path && Path::new(other).try_exists().unwrap_or(true);
        let mut others: Vec<String> = self.paths().filter(is_there).cloned().collect();
        let is_last = others.is_empty();
        if is_last {
            others.push(path.clone());
        }
        self.name = others.remove(0);
        self.also = others;
        is_last
    }
}

impl Partition {
    fn has(&self, path: &str) -> bool {
        self.files.iter().any(|file| file.path == path)
    }
}

impl Manifest {
    /// The manifest of a dataset of which nothing is written yet.
    #[must_use]
    pub fn new(plan: &Plan, partitioning: &Partitioning, source: &str) -> Self {
        Self {
            version: VERSION,
            dataset: plan.dataset.name.clone(),
            title: plan.dataset.title.clone(),
            description: plan.dataset.description.clone(),
            source: source.to_owned(),
            snapshot_at: None,
            format: plan.format,
            partitioning: partitioning.clone(),
            columns: columns(plan),
            partition_columns: partition_columns(&plan.dataset, partitioning),
            partitions: Vec::new(),
            inputs: Vec::new(),
            retired: Vec::new(),
        }
    }

    /// Reads the manifest in a folder, if there is one.
    ///
    /// # Errors
    /// A storage out of reach, a file that is no manifest of this version.
    pub async fn load(storage: &Storage, folder: &str) -> Result<Option<Self>> {
        let name = format!("{folder}/{FILE}");
        let Some(text) = storage.get(&name).await? else { return Ok(None) };
        let at = format!("{}/{name}", storage.url());
        let read: Self = serde_json::from_slice(&text)
            .map_err(|error| Error::Environment(format!("{at} cannot be read: {error}; {AGAIN}")))?;
        if read.version != VERSION {
            return Err(Error::Environment(format!(
                "{at} is of version {}, this program reads {VERSION}",
                read.version
            )));
        }
        Ok(Some(read))
    }

    /// Puts it into its folder, in the place of an earlier one.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn save(&self, storage: &Storage, folder: &str) -> Result<()> {
        let text = serde_json::to_vec_pretty(self);
        let text = text.map_err(|error| Error::Internal(format!("a manifest cannot be written: {error}")))?;
        storage.put(&format!("{folder}/{FILE}"), Bytes::from(text)).await
    }

    /// All files of the dataset.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.partitions.iter().flat_map(|partition| &partition.files)
    }

    /// Rows and bytes of all files.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        self.files().fold((0, 0), |(rows, bytes), file| (rows + file.rows, bytes + file.bytes))
    }

    /// Takes down where the texts of inputs lie, as far as it holds them: each path is one more of its text, and of no other.
    /// What they displace goes out; the answer names these files.
    pub fn note_paths(&mut self, found: &[Input]) -> Vec<String> {
        for input in found {
            if let Some(held) = self.inputs.iter_mut().find(|held| held.is_same(input)) {
                held.add_path(&input.name);
            }
        }
        let mut gone = Vec::new();
        // Only now: each of two files may have got the text of the other.
        for input in found {
            let is_known = |held: &&Input| held.is_same(input) && !held.is_partial;
            let Some(held) = self.inputs.iter().find(is_known) else { continue };
            if self.inputs.iter().all(|other| other.is_same(input) || !other.has_path(&input.name)) {
                continue;
            }
            let is_folder = |partition: &&Partition| held.files.iter().any(|file| partition.has(file));
            let folders = self.partitions.iter().filter(is_folder).map(|partition| partition.path.clone()).collect();
            gone.extend(self.displace(input, folders));
        }
        self.drop_files(&gone);
        gone
    }

    /// The inputs whose texts lie nowhere any more, since others, found ones among them, have taken their paths.
    pub fn displaced(&self, found: &[Input]) -> impl Iterator<Item = &Input> {
        let is_displaced = move |(at, input): &(usize, &Input)| {
            let is_taken = |path: &String| {
                found.iter().any(|other| other.name == *path && !other.is_same(input))
                    || self.inputs[at + 1..].iter().any(|later| later.has_path(path))
            };
            let is_there = |path: &&String| Path::new(path).try_exists().unwrap_or(true);
            input.paths().any(is_taken) && input.paths().filter(is_there).all(is_taken)
        };
        self.inputs.iter().enumerate().filter(is_displaced).map(|(_, input)| input)
    }

    /// Adds what was made of an input. What was made of the same text goes out, under whatever name, or of a text that it has
    /// grown from, and what the input displaces; the answer names these files.
    pub fn adopt(&mut self, mut input: Input, partitions: Vec<Partition>, grown_from: &[String]) -> Vec<String> {
        let mut gone = Vec::new();
        self.inputs.retain_mut(|earlier| {
            let is_same = earlier.is_same(&input);
            let is_grown = grown_from.contains(&earlier.sha256) && earlier.values == input.values;
            if is_same || is_grown {
                gone.append(&mut earlier.files);
            }
            // A partial one has kept a path that another text has by now.
            if is_same && !earlier.is_partial {
                earlier.paths().for_each(|path| input.add_path(path));
            }
            !is_same && !is_grown
        });
        let folders = partitions.iter().map(|partition| partition.path.clone()).collect();
        gone.extend(self.displace(&input, folders));
        self.drop_files(&gone);
        self.inputs.push(input);
        for partition in partitions {
            match self.partitions.binary_search_by(|known| known.path.cmp(&partition.path)) {
                Ok(known) => self.partitions[known].files.extend(partition.files),
                Err(place) => self.partitions.insert(place, partition),
            }
        }
        gone
    }

    /// Rows that earlier texts of an input's path still have in the dataset.
    pub fn rows_of_earlier(&self, input: &Input) -> u64 {
        let earlier = self.inputs.iter().filter(|known| !known.is_same(input) && known.has_path(&input.name));
        let files: HashSet<&String> = earlier.flat_map(|known| &known.files).collect();
        self.files().filter(|file| files.contains(&file.path)).map(|file| file.rows).sum()
    }

    /// Takes files out of its partitions.
    fn drop_files(&mut self, gone: &[String]) {
        for held in &mut self.partitions {
            held.files.retain(|file| !gone.contains(&file.path));
        }
        self.partitions.retain(|partition| !partition.files.is_empty());
    }

    /// Takes the path of an input away from all other texts. What those that lie nowhere else have in the input's folders goes
    /// out, or in the folder of its day when it has no rows; the answer names these files.
    fn displace(&mut self, input: &Input, mut folders: Vec<String>) -> Vec<String> {
        if folders.is_empty() {
            folders.push(input.day.clone());
        }
        let mut gone = Vec::new();
        self.inputs.retain_mut(|earlier| {
            if earlier.is_same(input) || !earlier.lose_path(&input.name) {
                return true;
            }
            // Only the values of columns that it lacks were others.
            let is_same_text = earlier.sha256 == input.sha256;
            let (out, kept): (Vec<String>, _) = std::mem::take(&mut earlier.files).into_iter().partition(|file| {
                is_same_text || self.partitions.iter().any(|held| folders.contains(&held.path) && held.has(file))
            });
            earlier.files = kept;
            if !out.is_empty() {
                earlier.is_partial = true;
            }
            gone.extend(out);
            !earlier.files.is_empty()
        });
        gone
    }

    /// Puts a partition into its place. Its earlier files go out unless it still names them; the answer names these.
    pub fn replace(&mut self, partition: Partition) -> Vec<String> {
        let mut gone = Vec::new();
        let place = self.partitions.binary_search_by(|known| known.path.cmp(&partition.path));
        if let Ok(known) = place {
            let earlier = self.partitions.remove(known);
            let is_gone = |file: &File| partition.files.iter().all(|kept| kept.path != file.path);
            gone.extend(earlier.files.into_iter().filter(is_gone).map(|file| file.path));
        }
        if !partition.files.is_empty() {
            let (Ok(place) | Err(place)) = place;
            self.partitions.insert(place, partition);
        }
        gone
    }
}

/// The columns of a plan, for readers.
#[must_use]
pub fn columns(plan: &Plan) -> Vec<ColumnNote> {
    plan.columns.iter().map(|column| ColumnNote::new(&plan.dataset, &column.name, column.kind)).collect()
}

/// The columns whose values have folders, for readers.
#[must_use]
pub fn partition_columns(dataset: &Dataset, partitioning: &Partitioning) -> Vec<ColumnNote> {
    let known = partitioning.by.iter().filter_map(|name| dataset.columns.iter().find(|column| column.name == *name));
    known.map(|column| ColumnNote::new(dataset, &column.name, column.kind)).collect()
}

/// The digest of the names and types of columns.
#[must_use]
pub fn schema(columns: &[ColumnNote]) -> String {
    let mut digest = Sha256::new();
    for column in columns {
        digest.update(format!("{} {:?}\n", column.name, column.kind));
    }
    data_encoding::HEXLOWER.encode(&digest.finalize()[..4])
}

/// The digest of submissions, in the order of their ids.
#[must_use]
pub fn digest<'v>(submissions: impl IntoIterator<Item = &'v Visible>) -> String {
    let mut digest = Sha256::new();
    for submission in submissions {
        digest.update(submission.id.to_be_bytes());
        digest.update(submission.created_at.timestamp_micros().to_be_bytes());
        digest.update(submission.rows.to_be_bytes());
    }
    data_encoding::HEXLOWER.encode(&digest.finalize()[..16])
}

/// Ids in their order, written as ranges: `5,7-9`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ids(pub Vec<i64>);

impl From<Ids> for String {
    fn from(ids: Ids) -> Self {
        let mut ranges: Vec<(i64, i64)> = Vec::new();
        for id in ids.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == id => *last = id,
                _ => ranges.push((id, id)),
            }
        }
        let ranges = ranges.into_iter().map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        ranges.collect::<Vec<_>>().join(",")
    }
}

impl TryFrom<String> for Ids {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut ids = Vec::new();
        for range in text.split(',').filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            match (first.parse::<i64>(), last.parse::<i64>()) {
                (Ok(first), Ok(last)) if first <= last && ids.last().is_none_or(|before| *before < first) => {
                    ids.extend(first..=last);
                }
                _ => return Err(format!("`{range}` is no range of ids")),
            }
        }
        Ok(Self(ids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_as_ranges_and_read_back() {
        for (ids, text) in [(vec![], ""), (vec![5], "5"), (vec![5, 7, 8, 9], "5,7-9"), (vec![1, 2, 4], "1-2,4")] {
            assert_eq!(String::from(Ids(ids.clone())), text);
            assert_eq!(Ids::try_from(text.to_owned()), Ok(Ids(ids)));
        }
        for text in ["x", "3-1", "2,1", "1--2"] {
            assert!(Ids::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
