//! Files that never went through the service -> partitioned datasets.
//!
//! [`run`] finds the files ([`inputs`]), reads each row by row by the rules of `ingest` ([`source`]: [`table`], [`document`]),
//! and writes what each holds into partitions ([`partitions`], [`columns`]) as the lake has them: the same paths, manifests and
//! catalogue. A file without a definition gets one from its values ([`infer`]). A file is taken in whole or not at all, and
//! once: the digest of its text is remembered. What is wrong with one file stops none of the others.

mod columns;
mod dataset;
mod document;
pub mod infer;
pub mod inputs;
mod partitions;
mod source;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::config::{ExportConfig, Partitioning};
use crate::dataset::{Dataset, Fault};
use crate::error::{Error, Result};
use crate::lake::manifest::ColumnNote;
use crate::lake::{Place, catalogue, refuse_keys};
use crate::storage::Storage;
use dataset::{Converted, Taken};
use infer::Profile;
use inputs::{Choice, Input};
use source::{Digest, Source};

/// The beginning of the README beside the data.
const README: &str = include_str!("README.md");

/// Keeps two from writing to one folder; the system takes it away with the process.
const LOCK: &str = ".nvd-support-car.lock";

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The folder that datasets lie in.
    pub output: PathBuf,
    /// Whose rows the files hold; told from the files when absent.
    pub dataset: Option<Arc<Dataset>>,
    /// Values for columns that the rows lack.
    pub values: Vec<(String, String)>,
    /// How datasets are cut.
    pub partitioning: Partitioning,
    /// Which files.
    pub choice: Choice,
    /// Whether nothing is written.
    pub is_preview: bool,
    /// How Parquet is written.
    pub config: ExportConfig,
}

/// How it ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Files that were converted, or would be.
    pub converted: usize,
    /// Files that had been converted before.
    pub skipped: usize,
    /// Files that were left out by the choice.
    pub left_out: usize,
    /// Files and arguments that something is wrong with.
    pub failed: usize,
    /// Rows of converted files.
    pub rows: u64,
    /// Their text, in bytes.
    pub text_bytes: u64,
    /// Bytes written.
    pub bytes: u64,
}

/// What is told while it goes on.
pub enum News {
    /// Of a result.
    Result(String),
    /// Of something that is wrong.
    Trouble(String),
}

/// A file that could be read, with the digest of its text. It is opened when its rows are wanted: there may be many.
#[derive(Clone)]
struct Known {
    input: Input,
    digest: Digest,
    /// The texts of earlier files that lie nowhere any more, and that its own begins with.
    grown_from: Vec<String>,
}

/// Converts files, and tells of each as it is done.
///
/// # Errors
/// A folder that cannot be written to, or that another process writes to; an interruption. Whatever is wrong with a file is
/// told and counted.
pub async fn run(arguments: &[String], wish: &Wish, stop: &Arc<AtomicBool>, tell: impl FnMut(News)) -> Result<Outcome> {
    refuse_others(wish).await?;
    let found = inputs::find(arguments, wish.choice);
    let outcome = Outcome { left_out: found.left_out, failed: found.faults.len(), ..Outcome::default() };
    let mut telling = Telling { outcome, tell };
    found.faults.into_iter().for_each(|fault| (telling.tell)(News::Trouble(fault)));
    let _lock = if wish.is_preview { None } else { Some(lock(wish)?) };
    let mut groups: BTreeMap<String, Vec<Known>> = BTreeMap::new();
    for input in found.inputs {
        let name = input.name.clone();
        let stem = infer::identifier(&input.stem());
        let stop = Arc::clone(stop);
        match blocking(move || {
            source::digest(&input, &stop).map(|digest| Known { input, digest, grown_from: Vec::new() })
        })
        .await?
        {
            Ok(known) => {
                let group = wish.dataset.as_ref().map_or(stem, |dataset| dataset.name.clone());
                groups.entry(group).or_default().push(known);
            }
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => telling.refuse(&name, &error),
        }
    }
    let mut rest = Rest::default();
    let mut ended = Ok(());
    for (name, files) in groups {
        match Converted::open(wish, &name).await {
            Ok(mut dataset) => {
                ended = group(wish, &name, files, &mut dataset, stop, &mut telling).await;
                rest.add(dataset);
            }
            Err(error) => telling.refuse_all(&files, &error),
        }
        if ended.is_err() {
            break;
        }
    }
    // Whatever has stopped the run: what the manifests name by now is what the catalogue has to name.
    let renewed = if wish.is_preview { Ok(()) } else { rest.finish(wish).await };
    ended.and(renewed)?;
    Ok(telling.outcome)
}

/// What is left to do when the manifests are written.
#[derive(Default)]
struct Rest {
    /// Whether there is a dataset to describe.
    is_begun: bool,
    /// Files that no manifest names. They go when the catalogue does not name them either.
    unnamed: Vec<String>,
}

impl Rest {
    fn add(&mut self, dataset: Converted<'_>) {
        self.is_begun |= dataset.is_begun();
        self.unnamed.extend(dataset.into_unnamed());
    }

    /// Renews the catalogue, also where nothing was converted: the run before may have been killed. Then removes files.
    async fn finish(self, wish: &Wish) -> Result<()> {
        if self.is_begun {
            renew_catalogue(wish).await?;
        }
        let storage = Storage::open(&wish.output.to_string_lossy())?;
        for file in self.unnamed {
            storage.delete_file(&file).await?;
        }
        Ok(())
    }
}

/// Converts the files of one dataset.
async fn group(
    wish: &Wish,
    name: &str,
    mut files: Vec<Known>,
    dataset: &mut Converted<'_>,
    stop: &Arc<AtomicBool>,
    telling: &mut Telling<impl FnMut(News)>,
) -> Result<()> {
    dataset.note_paths(&files).await?;
    let displaced = dataset.displaced(&files);
    files.retain(|file| !telling.skip(dataset, file));
    look_for_growth(&mut files, &displaced, stop).await?;
    let definition = match &wish.dataset {
        Some(definition) => Ok(Arc::clone(definition)),
        None => told_from(wish, name, dataset, &mut files, stop, telling).await?,
    };
    if files.is_empty() {
        return Ok(());
    }
    if let Err(error) = definition.and_then(|definition| dataset.prepare(&definition)) {
        telling.refuse_all(&files, &error);
        return Ok(());
    }
    let mut twins = Vec::new();
    for file in files {
        // It may be the same as one that was taken in just now.
        if telling.skip(dataset, &file) {
            twins.push(file);
            continue;
        }
        let input = file.input.clone();
        match dataset.take_in(file, stop).await {
            Ok(taken) => telling.count(&taken, &input, wish.is_preview),
            Err(Error::Cancelled) => {
                dataset.save().await?;
                return Err(Error::Cancelled);
            }
            Err(error) => telling.refuse(&input.name, &error),
        }
    }
    dataset.note_paths(&twins).await?;
    dataset.save().await
}

/// Finds out which files have grown since they were converted under another name. They come first: the file that has the name
/// by now may replace a part of the rows.
async fn look_for_growth(
    files: &mut [Known],
    displaced: &BTreeMap<u64, Vec<String>>,
    stop: &Arc<AtomicBool>,
) -> Result<()> {
    for file in files.iter_mut() {
        let lengths: Vec<u64> = displaced.range(..file.digest.bytes).map(|(length, _)| *length).collect();
        if lengths.is_empty() {
            continue;
        }
        let (input, stop) = (file.input.clone(), Arc::clone(stop));
        match blocking(move || source::beginnings(&input, &lengths, &stop)).await? {
            Ok(found) => {
                let texts = displaced.values().flatten().filter(|text| found.contains(text));
                file.grown_from = texts.cloned().collect();
            }
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            // It is told when its rows are read.
            Err(_) => {}
        }
    }
    files.sort_by_key(|file| file.grown_from.is_empty());
    Ok(())
}

/// The definition that files tell. Those that cannot be read, that contradict earlier ones, or that make none by themselves
/// are refused, and go out of the list.
async fn told_from(
    wish: &Wish,
    name: &str,
    dataset: &Converted<'_>,
    files: &mut Vec<Known>,
    stop: &Arc<AtomicBool>,
    telling: &mut Telling<impl FnMut(News)>,
) -> Result<Result<Arc<Dataset>>> {
    let earlier: Vec<&ColumnNote> = dataset.columns().collect();
    let complete = |profile: &mut Profile| {
        wish.values.iter().for_each(|(column, value)| profile.observe_value(column, value));
        profile.remember(&earlier);
    };
    let mut profile = Profile::default();
    for file in std::mem::take(files) {
        let (input, stop) = (file.input.clone(), Arc::clone(stop));
        let seen = blocking(move || Source::open(&input, &stop).and_then(|source| Profile::of(&source))).await?;
        // Each has its own say: one that contradicts makes none of the others wrong.
        let allowed = seen.and_then(|seen| {
            let mut alone = seen.clone();
            complete(&mut alone);
            alone.remembered().try_for_each(|(column, kind)| dataset.check_kind(column, kind))?;
            if !alone.is_empty() {
                alone.definition(name)?;
            }
            Ok(seen)
        });
        match allowed {
            Ok(seen) => {
                profile.add(seen);
                files.push(file);
            }
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => telling.refuse(&file.input.name, &error),
        }
    }
    complete(&mut profile);
    let definition = profile.definition(name);
    if let Some((_, text)) = definition.as_ref().ok().filter(|_| !files.is_empty()) {
        let told =
            format!("# {name}: told from {} files; save it, and name it with --schema, to say more", files.len());
        (telling.tell)(News::Result(format!("{told}\n{text}")));
    }
    Ok(definition.map(|(definition, _)| Arc::new(definition)))
}

/// Tells what becomes of files, and counts it.
struct Telling<T> {
    outcome: Outcome,
    tell: T,
}

impl<T: FnMut(News)> Telling<T> {
    /// Says what was made of a file.
    fn count(&mut self, taken: &Taken, input: &Input, is_preview: bool) {
        self.outcome.converted += 1;
        self.outcome.rows += taken.rows;
        self.outcome.text_bytes += taken.text_bytes;
        self.outcome.bytes += taken.bytes;
        (self.tell)(News::Result(taken.told(input, is_preview)));
    }

    /// Whether a file was converted before, which is said.
    fn skip(&mut self, dataset: &Converted<'_>, file: &Known) -> bool {
        let Some(line) = dataset.known(&file.digest) else { return false };
        self.outcome.skipped += 1;
        (self.tell)(News::Result(format!("{}: {line}", file.input.name)));
        true
    }

    /// Says what is wrong with a file, a line for each place.
    fn refuse(&mut self, name: &str, error: &Error) {
        self.outcome.failed += 1;
        match error {
            Error::Faults(faults) => faults.iter().for_each(|fault| (self.tell)(News::Trouble(place(name, fault)))),
            error => (self.tell)(News::Trouble(format!("{name}: {}", error.report()))),
        }
    }

    fn refuse_all(&mut self, files: &[Known], error: &Error) {
        files.iter().for_each(|file| self.refuse(&file.input.name, error));
    }
}

/// A fault as `name:line:column: field: reason`, which editors can jump to.
fn place(name: &str, fault: &Fault) -> String {
    let numbers = [fault.line, fault.column].into_iter().flatten();
    let place = numbers.fold(name.to_owned(), |place, number| format!("{place}:{number}"));
    let field = fault.field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default();
    // The rules speak of query parameters and routes, which are options here.
    let reason = fault
        .reason
        .replace("send it in every row, or once as ?", "write it in every row, or say --column ")
        .replace("or send it once as ?", "or say --column ")
        .replace("is neither a parameter of this route nor a column", "is no column");
    format!("{place}: {field}{reason}")
}

fn lock(wish: &Wish) -> Result<fs::File> {
    let folder = &wish.output;
    let cannot = |error: std::io::Error| Error::Environment(format!("{} cannot be written: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(cannot)?;
    let file = fs::File::create(folder.join(LOCK)).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Conflict(format!(
            "another process is writing to {}; try again when it has ended",
            folder.display()
        ))),
        Err(fs::TryLockError::Error(error)) => Err(cannot(error)),
    }
}

/// Refuses a folder in which the catalogue would take the place of somebody's own files or datasets, and one whose path readers
/// would take for a part of the data.
async fn refuse_others(wish: &Wish) -> Result<()> {
    // As it is called in the catalogue; as it would be, where it is not there yet.
    let path = wish.output.canonicalize().or_else(|_| std::path::absolute(&wish.output));
    refuse_keys(&path.unwrap_or_else(|_| wish.output.clone()).to_string_lossy())?;
    if !wish.output.is_dir() {
        return Ok(());
    }
    let storage = Storage::open(&wish.output.to_string_lossy())?;
    let place = Place { storage: &storage, folder: "" };
    catalogue::refuse_others(&place, None, true).await
}

/// Writes the catalogue of all datasets in the folder.
async fn renew_catalogue(wish: &Wish) -> Result<()> {
    let storage = Storage::open(&wish.output.to_string_lossy())?;
    let place = Place { storage: &storage, folder: "" };
    catalogue::renew_alone(&place, README).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(format!("converting failed: {error}")))
}
