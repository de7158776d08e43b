//! One dataset of converted files: what it holds, what it refuses, and one more file taken in.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use chrono::Utc;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;

use super::inputs::Input;
use super::partitions::{Cut, Partitions, is_unfinished};
use super::source::{Digest, Source};
use super::{Known, Wish, blocking, infer};
use crate::dataset::params::Params;
use crate::dataset::{Dataset, Kind};
use crate::error::{Error, Result};
use crate::export::parquet::Layout;
use crate::export::spec::{ExportSpec, Plan, TIME_COLUMN};
use crate::ingest::rows::Job;
use crate::lake::manifest::{self, ColumnNote, Manifest, Partition};
use crate::lake::partition::{self, Span};
use crate::lake::{Place, is_of_a_run, run_digits};
use crate::send::content::LIMITS;
use crate::storage::{Listed, Storage};

/// Threads that encode.
const THREADS: usize = 2;

/// A manifest is written no more often: it grows with the files, and what it does not name yet is done again.
const PAUSE: Duration = Duration::from_secs(1);

/// Rows after which somebody may stop the work.
const ROWS_BETWEEN_CHECKS: u64 = 4096;

/// One dataset.
pub struct Converted<'w> {
    wish: &'w Wish,
    name: String,
    root: PathBuf,
    held: Option<Manifest>,
    ready: Option<Ready>,
    /// Files that the manifest on the disk still names.
    gone: Vec<String>,
    /// Files that it does not name, and the catalogue maybe does: replaced ones, and what killed runs have left.
    unnamed: Vec<String>,
    saved: Option<Instant>,
    /// Whether a manifest lies on the disk.
    has_manifest: bool,
}

/// What is needed to take files in.
#[derive(Clone)]
struct Ready {
    plan: Arc<Plan>,
    params: Params,
}

/// What became of a file.
pub struct Taken {
    /// Its rows.
    pub rows: u64,
    /// Its text, in bytes.
    pub text_bytes: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Rows of what lay there before, in other partitions: they stay.
    pub kept: u64,
    partitions: Vec<Partition>,
}

impl<'w> Converted<'w> {
    /// Looks at what lies in the folder of a dataset.
    ///
    /// # Errors
    /// Something else lies there.
    pub async fn open(wish: &'w Wish, name: &str) -> Result<Self> {
        let root = wish.output.join(name);
        let (gone, unnamed) = (Vec::new(), Vec::new());
        let mut opened = Self {
            wish,
            name: name.to_owned(),
            root,
            held: None,
            ready: None,
            gone,
            unnamed,
            saved: None,
            has_manifest: false,
        };
        if !opened.root.is_dir() {
            return Ok(opened);
        }
        let storage = Storage::open(&wish.output.to_string_lossy())?;
        opened.held = Manifest::load(&storage, name).await?;
        opened.has_manifest = opened.held.is_some();
        let place = opened.root.display();
        let why = match &opened.held {
            Some(held) if held.source != manifest::FILES => "holds rows of the service",
            Some(held) if held.partitioning != wish.partitioning => "is cut in another way",
            _ => "",
        };
        if !why.is_empty() {
            return Err(Error::Conflict(format!("{place} {why}: choose another folder")));
        }
        let files = Place { storage: &storage, folder: "" }.files(name).await?;
        for Listed { name: file, .. } in files {
            let is_known =
                file == manifest::FILE || opened.held.iter().flat_map(Manifest::files).any(|known| known.path == file);
            if !is_known && !is_of_a_run(name, &file) {
                if opened.held.is_none() {
                    return Err(Error::Conflict(format!(
                        "{place} holds files that this command did not write: choose another folder"
                    )));
                }
            } else if !is_known {
                // A manifest comes before the first of them: it is lost.
                if opened.held.is_none() && !is_unfinished(&file) {
                    return Err(Error::Conflict(format!(
                        "{place} holds converted files, and no {} that says which: put its newest copy back, or choose another \
                         folder",
                        manifest::FILE
                    )));
                }
                opened.unnamed.push(file);
            }
        }
        Ok(opened)
    }

    /// Whether something was converted into it, now or earlier.
    pub fn is_begun(&self) -> bool {
        self.held.as_ref().is_some_and(|held| !held.inputs.is_empty())
    }

    /// The files in its folder that no manifest names, as paths in the folder of all datasets.
    pub fn into_unnamed(self) -> impl Iterator<Item = String> {
        self.unnamed.into_iter().map(move |file| format!("{}/{file}", self.name))
    }

    /// What is said of a file that need not be read again.
    pub fn known(&self, digest: &Digest) -> Option<String> {
        let sha256 = data_encoding::HEXLOWER.encode(&digest.sha256);
        let schema = self.schema();
        let held = self.held.as_ref()?;
        let is_it = |known: &&manifest::Input| known.sha256 == sha256 && known.schema == schema && !known.is_partial;
        let known = held.inputs.iter().find(is_it)?;
        let is_there = |path: &String| {
            let file = held.files().find(|file| file.path == *path);
            let size = fs::metadata(self.root.join(path)).map(|metadata| metadata.len()).ok();
            file.map(|file| file.bytes) == size && size.is_some() && !partition::is_misnamed(path)
        };
        known
            .files
            .iter()
            .all(is_there)
            .then(|| format!("already exists, skipping ({} rows from {})", known.rows, known.name))
    }

    /// Takes down where the texts of files lie that were converted before. What else their paths have left goes out, and a
    /// changed file displaces rows only whose text lies nowhere else.
    ///
    /// # Errors
    /// A disk that takes no more.
    pub async fn note_paths(&mut self, files: &[Known]) -> Result<()> {
        let found: Vec<manifest::Input> = files.iter().map(|file| self.input(file)).collect();
        let Some(held) = &mut self.held else { return Ok(()) };
        let before = held.inputs.clone();
        self.gone.extend(held.note_paths(&found));
        if held.inputs == before { Ok(()) } else { self.save().await }
    }

    /// The texts of earlier files that lie nowhere any more, by their lengths.
    pub fn displaced(&self, files: &[Known]) -> BTreeMap<u64, Vec<String>> {
        let found: Vec<manifest::Input> = files.iter().map(|file| self.input(file)).collect();
        let mut displaced: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for input in self.held.iter().flat_map(|held| held.displaced(&found)) {
            if let Some(bytes) = input.bytes {
                displaced.entry(bytes).or_default().push(input.sha256.clone());
            }
        }
        displaced
    }

    /// What the manifest says of a file, of which no rows are taken yet.
    fn input(&self, file: &Known) -> manifest::Input {
        manifest::Input {
            name: file.input.path.to_string_lossy().into_owned(),
            also: Vec::new(),
            sha256: data_encoding::HEXLOWER.encode(&file.digest.sha256),
            is_partial: false,
            bytes: Some(file.digest.bytes),
            schema: self.schema(),
            values: Some(self.values()),
            rows: 0,
            files: Vec::new(),
            day: self.wish.partitioning.temporal.map_or_else(String::new, |temporal| {
                partition::path(temporal, &Span::of(temporal.0, file.input.midnight()))
            }),
        }
    }

    /// The columns of earlier files, and of their folders.
    pub fn columns(&self) -> impl Iterator<Item = &ColumnNote> {
        let columns = self.held.iter().flat_map(|held| held.columns.iter().chain(&held.partition_columns));
        columns.filter(|column| column.name != "extra")
    }

    /// Checks that a column is of the kind that it has in earlier files.
    ///
    /// # Errors
    /// It is of another.
    pub fn check_kind(&self, column: &str, kind: Kind) -> Result<()> {
        match self.columns().find(|held| held.name == column && held.kind != kind) {
            Some(held) => Err(Error::Conflict(format!(
                "`{column}` is of kind {:?} in {}, and of kind {kind:?} here: choose another folder, or a definition that says \
                 the same",
                held.kind,
                self.root.display(),
            ))),
            None => Ok(()),
        }
    }

    /// Makes ready for rows of that definition.
    ///
    /// # Errors
    /// Columns that cannot be cut by, values for columns that there are none, a kind that earlier files have otherwise.
    pub fn prepare(&mut self, dataset: &Arc<Dataset>) -> Result<()> {
        let (wish, config) = (self.wish, &self.wish.config);
        let faults = partition::faults(dataset, &wish.partitioning);
        if !faults.is_empty() {
            return Err(Error::Faults(faults));
        }
        let mut plan = ExportSpec::default().plan(dataset, (config.compression, config.compression_level))?;
        plan.is_searched = true;
        plan.leave_out(&[TIME_COLUMN.to_owned()]);
        plan.leave_out(&wish.partitioning.by);
        let mut columns = manifest::columns(&plan);
        let mut partition_columns = manifest::partition_columns(dataset, &wish.partitioning);
        let mut all = columns.iter().chain(&partition_columns);
        all.try_for_each(|column| self.check_kind(&column.name, column.kind))?;
        let params = Params::parse(dataset, &wish.values).map_err(Error::Faults)?;
        if wish.dataset.is_none() {
            let all = columns.iter_mut().chain(&mut partition_columns);
            all.for_each(|column| column.header = infer::header(dataset, &column.name));
        }
        // The kinds of an earlier version's folders are not known, and stay so: their values may be anything.
        let new = || Manifest { partition_columns, ..Manifest::new(&plan, &wish.partitioning, manifest::FILES) };
        let mut held = self.held.take().unwrap_or_else(new);
        held.columns.retain(|known| columns.iter().all(|column| column.name != known.name));
        held.columns = columns.into_iter().chain(held.columns).collect();
        held.title.clone_from(&dataset.title);
        held.description.clone_from(&dataset.description);
        self.held = Some(held);
        self.ready = Some(Ready { plan: Arc::new(plan), params });
        Ok(())
    }

    /// The values of columns that rows lack, sorted.
    fn values(&self) -> Vec<(String, String)> {
        let mut values = self.wish.values.clone();
        values.sort();
        values
    }

    /// Changes when rows would be read otherwise. What a definition that was told from files says follows from them.
    fn schema(&self) -> String {
        let mut digest = Sha256::new();
        for column in self.wish.dataset.iter().flat_map(|dataset| &dataset.columns) {
            digest.update(format!("{} {:?} {:?}\n", column.name, column.kind, column.aliases));
        }
        digest.update(format!("{:?}", self.values()));
        data_encoding::HEXLOWER.encode(&digest.finalize()[..16])
    }

    /// Takes a file in: its rows are in partitions, and the manifest names them soon.
    ///
    /// # Errors
    /// The faults of the file, a disk that takes no more, [`Error::Cancelled`].
    pub async fn take_in(&mut self, file: Known, stop: &Arc<AtomicBool>) -> Result<Taken> {
        let internal = || Error::Internal("a dataset was not made ready".into());
        let ready = self.ready.clone().ok_or_else(internal)?;
        let wish = self.wish.clone();
        let (root, stop) = (self.root.clone(), Arc::clone(stop));
        let (input, grown_from) = (self.input(&file), file.grown_from.clone());
        let announced = self.held.clone().filter(|_| !self.has_manifest && !self.wish.is_preview);
        let name = self.name.clone();
        let announce = move |wish: &Wish| match announced {
            Some(manifest) => {
                let storage = Storage::open(&wish.output.to_string_lossy())?;
                Handle::current().block_on(manifest.save(&storage, &name))
            }
            None => Ok(()),
        };
        let mut taken = blocking(move || convert(&file, &ready, &wish, root, &stop, announce)).await??;
        if self.wish.is_preview {
            return Ok(taken);
        }
        self.has_manifest = true;
        let files = taken.partitions.iter().flat_map(|part| &part.files).map(|file| file.path.clone()).collect();
        let input = manifest::Input { rows: taken.rows, files, ..input };
        let held = self.held.as_mut().ok_or_else(internal)?;
        self.gone.extend(held.adopt(input.clone(), taken.partitions.clone(), &grown_from));
        taken.kept = held.rows_of_earlier(&input);
        held.snapshot_at = Some(Utc::now());
        if self.saved.is_none_or(|saved| saved.elapsed() > PAUSE) {
            self.save().await?;
        }
        Ok(taken)
    }

    /// Makes what was taken in the dataset.
    ///
    /// # Errors
    /// A disk that takes no more.
    pub async fn save(&mut self) -> Result<()> {
        let Some(held) = self.held.as_ref().filter(|held| !self.wish.is_preview && !held.inputs.is_empty()) else {
            return Ok(());
        };
        let storage = Storage::open(&self.wish.output.to_string_lossy())?;
        held.save(&storage, &self.name).await?;
        self.unnamed.append(&mut self.gone);
        self.saved = Some(Instant::now());
        self.has_manifest = true;
        Ok(())
    }
}

/// Reads a file to its end and writes its rows; before files get their names, `announce` puts a manifest beside them, by which
/// the next run knows that they are ours. After a fault nothing of it is
/// left.
fn convert(
    file: &Known,
    ready: &Ready,
    wish: &Wish,
    root: PathBuf,
    stop: &Arc<AtomicBool>,
    announce: impl FnOnce(&Wish) -> Result<()>,
) -> Result<Taken> {
    let dataset = &ready.plan.dataset;
    let sha256 = data_encoding::HEXLOWER.encode(&file.digest.sha256);
    let notes = [
        ("nvd.dataset", dataset.name.clone()),
        ("nvd.service_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("nvd.input_sha256", sha256),
    ];
    let layout = Layout::new(&ready.plan, &notes, THREADS)?;
    let by = wish.partitioning.by.iter().filter_map(|name| dataset.position(name)).collect();
    let cut = Cut {
        plan: &ready.plan,
        layout: &layout,
        root: &root,
        temporal: wish.partitioning.temporal,
        by,
        time: dataset.columns.iter().position(|column| column.kind == Kind::Timestamp),
        fallback: file.input.midnight(),
        row_group: wish.config.batch_size,
        run: run_digits(),
        is_preview: wish.is_preview,
    };
    let job = Job {
        dataset: Arc::clone(dataset),
        params: ready.params.clone(),
        format: None,
        submission: 0,
        limits: LIMITS,
        max_rows: u64::MAX,
    };
    let mut partitions = Partitions::new(&cut);
    let rows = Source::open(&file.input, stop)?.rows(&job, |number, row| {
        if number % ROWS_BETWEEN_CHECKS == 0 && stop.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        partitions.push(row)
    })?;
    if !file.input.is_unchanged() {
        return Err(Error::Body("was changed while it was read: try again when it is complete".into()));
    }
    announce(wish)?;
    let partitions = partitions.finish()?;
    let bytes = partitions.iter().flat_map(|part| &part.files).map(|file| file.bytes).sum();
    Ok(Taken { rows, text_bytes: file.digest.bytes, bytes, kept: 0, partitions })
}

impl Taken {
    /// What is said of it: rows, sizes and reduction, then each file.
    #[must_use]
    pub fn told(&self, input: &Input, is_preview: bool) -> String {
        let (text, bytes) = (ByteSize(self.text_bytes), ByteSize(self.bytes));
        let packed = if input.bytes == self.text_bytes {
            String::new()
        } else {
            format!(" ({} as it lies)", ByteSize(input.bytes))
        };
        let mut told = match is_preview {
            true => format!("{}: would write {} rows, {text}{packed} -> {bytes}", input.name, self.rows),
            false => format!("{}: {} rows, {text}{packed} -> {bytes}", input.name, self.rows),
        };
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let share = self.bytes as f64 / self.text_bytes.max(1) as f64;
        if self.bytes < self.text_bytes {
            _ = write!(told, ", {:.1} % less", 100.0 * (1.0 - share));
        }
        for file in self.partitions.iter().flat_map(|partition| &partition.files) {
            _ = write!(told, "\n  {}  {} rows  {}", file.path, file.rows, ByteSize(file.bytes));
        }
        if self.kept > 0 {
            _ = write!(told, "\n  {} rows of its earlier content stay in other partitions", self.kept);
        }
        told
    }
}
