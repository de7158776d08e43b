//! Rows -> partitioned datasets: folders of files as Hive lays them out, which grow by what is new.
//!
//! [`run`] brings one dataset up to date. It takes a snapshot, compares the submissions that the snapshot sees with those
//! that the [`manifest`] names ([`changes`]), and writes what differs, partition by partition, by the engine of exports
//! ([`write`]). A submission is committed with its rows and never changes, so that nothing is missed or repeated however
//! transactions overlap. New files come first, then the manifest, then the [`catalogue`]; files that were replaced stay for
//! a while.

pub mod catalogue;
pub mod changes;
pub mod manifest;
pub mod partition;
mod place;
mod write;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};

use crate::config::{ExportConfig, Format, Partitioning};
use crate::dataset::{Dataset, Fault};
use crate::db::jobs::Lease;
use crate::db::lake::{self as db, Lock};
use crate::error::{Error, Result};
use crate::export::snapshot::Snapshot;
use crate::export::spec::{ExportSpec, Plan};
use changes::{Action, Choice, Flaws, Task};
use manifest::{File, Manifest, Retired};
pub use place::{Found, Place, is_of_a_run, refuse_keys, run_digits};
use write::Writing;

/// The folder of the service's own partitioned datasets in the storage of exports.
pub const FOLDER: &str = "lake";

/// Partitions after which a run that only adds, and may be interrupted, makes sure of what it has.
const CHUNK: usize = 16;

/// A file smaller than this part of `export.file_size` is small.
const SMALL: u64 = 4;

/// Bytes in the database that become one byte in a file, roughly: for estimates where there is no file yet.
const SHRINKS: u64 = 8;

/// What is wanted of one dataset.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Its columns, and the form of its files.
    plan: Plan,
    partitioning: Partitioning,
    choice: Choice,
    /// Whether partitions that are finished stay when the rest fails, as long as a run only adds.
    pub historical: bool,
    /// Partitions that are written at once.
    pub jobs: usize,
    /// How long files that were replaced stay.
    pub grace: Duration,
}

impl Wish {
    /// Checks what is wanted: the form and the times of a specification, in partitions. Times choose whole partitions.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn new(
        dataset: &Arc<Dataset>,
        spec: &ExportSpec,
        partitioning: &Partitioning,
        overwrite: bool,
        config: &ExportConfig,
    ) -> Result<Self> {
        let mut faults = partition::faults(dataset, partitioning);
        let whole = "cannot be chosen in a partitioned dataset, which holds whole submissions";
        for (field, is_set) in [
            ("columns", spec.columns.is_some()),
            ("row_limit", spec.row_limit.is_some()),
            ("filters", !spec.filters.is_empty()),
            ("labkey_columns", spec.labkey_columns),
        ] {
            if is_set {
                faults.push(Fault::of_parameter(field, whole));
            }
        }
        faults.extend(spec.faults_of_times());
        if !faults.is_empty() {
            return Err(Error::Faults(faults));
        }
        let rows = ExportSpec { from: None, to: None, service_columns: true, ..spec.clone() };
        let mut plan = rows.plan(dataset, (config.compression, config.compression_level))?;
        plan.is_searched = true;
        if partitioning.keep_columns {
            let levels = partitioning.temporal.iter().flat_map(|temporal| temporal.levels());
            levels.for_each(|level| plan.add_time_part(level.as_str()));
        } else {
            plan.leave_out(&partitioning.by);
        }
        let small = config.file_size.as_u64() / SMALL;
        Ok(Self {
            plan,
            partitioning: partitioning.clone(),
            choice: Choice { from: spec.from, to: spec.to, overwrite, small },
            historical: false,
            jobs: config.connections,
            grace: Duration::ZERO,
        })
    }

    /// Whose rows.
    #[must_use]
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.plan.dataset
    }

    /// Whether that form and that cut are those of the wish.
    fn fits(&self, manifest: &Manifest) -> bool {
        (manifest.format, &manifest.partitioning) == (self.plan.format, &self.partitioning)
    }
}

/// What was done with one partition, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// Its folder.
    pub path: String,
    /// What was done.
    pub action: Action,
    /// Its first moment.
    pub start: Option<DateTime<Utc>>,
    /// The first moment after it.
    pub end: Option<DateTime<Utc>>,
    /// Rows written.
    pub rows: u64,
    /// Bytes written; an estimate where nothing was.
    pub bytes: u64,
    /// The files that were written.
    pub files: Vec<File>,
}

/// A run in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = LakeReport)]
pub struct Report {
    /// The dataset's name.
    #[schema(example = "gottcha2")]
    pub dataset: String,
    /// Partitions that were changed.
    #[schema(example = 1)]
    pub partitions: usize,
    /// Partitions that held what they should.
    #[schema(example = 399)]
    pub unchanged: usize,
    /// Files that were written.
    #[schema(example = 1)]
    pub files: usize,
    /// Their rows.
    #[schema(example = 25_000)]
    pub rows: u64,
    /// Their bytes.
    #[schema(example = 1_203_114)]
    pub bytes: u64,
    /// Files that were replaced.
    #[schema(example = 0)]
    pub replaced: usize,
    /// The manifest, which names all files of the dataset, in the storage of exports.
    #[schema(example = "lake/gottcha2/_manifest.json")]
    pub manifest: String,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The dataset's name.
    pub dataset: String,
    /// Partitions that were changed, in the order of time.
    pub partitions: Vec<Done>,
    /// Partitions that hold what they should.
    pub unchanged: usize,
    /// Files that were replaced.
    pub replaced: usize,
}

impl Outcome {
    /// The run in numbers.
    #[must_use]
    pub fn report(&self, place: &Place<'_>) -> Report {
        let files = self.partitions.iter().map(|done| done.files.len()).sum();
        Report {
            dataset: self.dataset.clone(),
            partitions: self.partitions.len(),
            unchanged: self.unchanged,
            files,
            rows: self.partitions.iter().map(|done| done.rows).sum(),
            bytes: self.partitions.iter().map(|done| done.bytes).sum(),
            replaced: self.replaced,
            manifest: place.name(&format!("{}/{}", self.dataset, manifest::FILE)),
        }
    }
}

/// Tells what a run would do, and writes nothing.
///
/// # Errors
/// What [`run`] refuses; a database or a storage out of reach.
pub async fn preview(pool: &PgPool, wish: &Wish, place: &Place<'_>) -> Result<Outcome> {
    let (manifest, _) = place.manifest(pool, wish).await?;
    let damaged = place::damaged(&manifest, &place.files(&manifest.dataset).await?);
    let mut flaws = Flaws { damaged, ..Flaws::default() };
    let snapshot = Snapshot::take(pool).await?;
    let table = snapshot.table(wish.dataset()).await?;
    let mut connection = snapshot.connection().await?;
    let visible = db::visible(&mut connection, wish.dataset()).await?;
    flaws.lacking = lacking(&mut connection, wish, &manifest).await?;
    let (tasks, unchanged) = changes::compare(&visible, &manifest, &flaws, wish.partitioning.temporal, &wish.choice);
    let (rows, bytes) = match manifest.size() {
        (0, _) => (table.rows.max(1), table.pages.unsigned_abs() * 8192 / SHRINKS),
        size => size,
    };
    let share = |task: &Task| u128::from(task.rows()) * u128::from(bytes) / u128::from(rows);
    let estimate =
        |task: &Task| Done { bytes: u64::try_from(share(task)).unwrap_or(u64::MAX), ..done(task, Vec::new()) };
    let partitions = tasks.iter().map(estimate).collect();
    Ok(Outcome { dataset: wish.dataset().name.clone(), partitions, unchanged, replaced: 0 })
}

/// Brings a dataset at a place up to date.
///
/// # Errors
/// A place where something else lies, or that another process writes to; a database or a storage that fails, or
/// [`Error::Cancelled`]. What is not in the manifest by then is removed again.
pub async fn run(
    pool: &PgPool,
    config: &ExportConfig,
    wish: &Wish,
    place: &Place<'_>,
    lease: &Lease,
) -> Result<Outcome> {
    let lock = place.lock(pool, &wish.dataset().name, lease).await?;
    let (manifest, found) = place.manifest(pool, wish).await?;
    let (unsaved, replaced) = (Vec::new(), Vec::new());
    let mut run = Run { pool, config, wish, place, lease, lock, manifest, unsaved, replaced, is_marked: false };
    let outcome = run.bring_up_to_date(found).await;
    if outcome.is_err()
        && let Err(error) = run.clean_up().await
    {
        // The next run sweeps what is left.
        tracing::warn!(error = error.report(), dataset = wish.dataset().name, "unfinished files could not be removed");
    }
    outcome
}

/// A run under way.
struct Run<'r> {
    pool: &'r PgPool,
    config: &'r ExportConfig,
    wish: &'r Wish,
    place: &'r Place<'r>,
    lease: &'r Lease,
    lock: Lock,
    /// The dataset with all that is written.
    manifest: Manifest,
    /// Files that are written, and that the manifest in the storage does not name yet.
    unsaved: Vec<String>,
    /// Files that it still names, and that the next one will not.
    replaced: Vec<String>,
    /// Whether the manifest in the storage is an empty one that this run has put there.
    is_marked: bool,
}

impl Run<'_> {
    async fn bring_up_to_date(&mut self, found: Found) -> Result<Outcome> {
        let (wish, progress) = (self.wish, &self.lease.progress);
        progress.enter("comparing");
        let files = self.place.files(&wish.dataset().name).await?;
        let mut flaws = Flaws { damaged: place::damaged(&self.manifest, &files), ..Flaws::default() };
        for path in &flaws.damaged {
            tracing::warn!(path, "a file is lost or was cut short: its partition is written anew");
        }
        let is_outdated = match found {
            Found::Ours => {
                self.place.sweep(&self.manifest, &files).await?;
                self.drop_leftovers().await?
            }
            Found::Empty => {
                // From here on, whatever lies there is ours.
                self.is_marked = true;
                self.place.save(&self.manifest).await?;
                self.place.sweep(&self.manifest, &files).await?;
                true
            }
            Found::Foreign(files) => {
                self.replaced = files;
                true
            }
        };
        let snapshot = self.lease.unless_cancelled(Snapshot::take(self.pool)).await??;
        let table = self.lease.unless_cancelled(snapshot.table(wish.dataset())).await??;
        let mut connection = self.lease.unless_cancelled(snapshot.connection()).await??;
        let visible = self.lease.unless_cancelled(db::visible(&mut connection, wish.dataset())).await??;
        flaws.lacking = self.lease.unless_cancelled(lacking(&mut connection, wish, &self.manifest)).await??;
        snapshot.give_back(connection);
        let (tasks, unchanged) =
            changes::compare(&visible, &self.manifest, &flaws, wish.partitioning.temporal, &wish.choice);
        drop(visible);
        progress.expect_rows(Some(tasks.iter().map(Task::rows).sum()));
        progress.enter("writing");
        let taken_at = snapshot.taken_at;
        let writing = Writing { config: self.config, wish, place: self.place, lease: self.lease, snapshot, table };
        let partitions = self.carry_out(&writing, tasks).await?;
        drop(writing);
        let columns = manifest::columns(&wish.plan);
        let partition_columns = manifest::partition_columns(wish.dataset(), &wish.partitioning);
        let is_told = self.manifest.columns == columns && self.manifest.partition_columns == partition_columns;
        if is_outdated || !partitions.is_empty() || !is_told {
            self.manifest.columns = columns;
            self.manifest.partition_columns = partition_columns;
            self.manifest.snapshot_at = Some(taken_at);
            self.switch().await?;
        }
        progress.enter("catalogue");
        catalogue::renew(self.pool, self.place, self.lease).await?;
        let replaced = self.manifest.retired.len();
        self.wait_for_readers().await?;
        Ok(Outcome { dataset: wish.dataset().name.clone(), partitions, unchanged, replaced })
    }

    /// Removes what a run that was killed has replaced, once no catalogue names it any more.
    async fn drop_leftovers(&mut self) -> Result<bool> {
        if self.manifest.retired.is_empty() {
            return Ok(false);
        }
        if let Err(error) = catalogue::renew(self.pool, self.place, self.lease).await {
            // That of another dataset, perhaps: no reason to leave out new rows of this one.
            tracing::warn!(%error, "the catalogue cannot be renewed; files that were replaced stay");
            return Ok(false);
        }
        self.drop_retired().await
    }

    /// Writes several partitions at once. After a fault, those under way are broken off, and all are waited for.
    async fn carry_out(&mut self, writing: &Writing<'_>, tasks: Vec<Task>) -> Result<Vec<Done>> {
        // Where rows leave a partition, those in their place may come to another: neither may be named without the other.
        let only_adds = tasks.iter().all(|task| matches!(task.action, Action::New | Action::Add));
        let is_gradual = self.wish.historical && only_adds && self.replaced.is_empty();
        let mut fault = None;
        let mut partitions = Vec::new();
        let mut since_switch = 0;
        let mut written =
            stream::iter(tasks.into_iter().map(|task| writing.partition(task))).buffer_unordered(self.wish.jobs.max(1));
        while let Some(result) = written.next().await {
            match result {
                Ok((task, files)) => {
                    self.unsaved.extend(files.iter().map(|file| file.path.clone()));
                    self.replaced.extend(self.manifest.replace(task.done(files.clone())));
                    partitions.push(done(&task, files));
                    since_switch += 1;
                }
                Err(error) => {
                    self.lease.cancel();
                    fault.get_or_insert(error);
                }
            }
            if is_gradual && since_switch >= CHUNK && fault.is_none() {
                since_switch = 0;
                self.manifest.snapshot_at = Some(writing.snapshot.taken_at);
                if let Err(error) = self.switch().await {
                    self.lease.cancel();
                    fault = Some(error);
                }
            }
        }
        partitions.sort_by(|one, other| one.path.cmp(&other.path));
        fault.map_or(Ok(partitions), Err)
    }

    /// Makes what is written the dataset.
    async fn switch(&mut self) -> Result<()> {
        if self.lease.is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.lock.check().await?;
        // From here on it may be the dataset, also where the answer of the storage is lost. What is not, the next run sweeps.
        self.unsaved.clear();
        self.is_marked = false;
        // Until now readers were sent to them.
        let at = Utc::now();
        self.manifest.retired.extend(self.replaced.drain(..).map(|path| Retired { path, at }));
        self.place.save(&self.manifest).await
    }

    /// Removes files whose time is over; says whether there were any.
    async fn drop_retired(&mut self) -> Result<bool> {
        let over = Utc::now() - self.wish.grace;
        let (gone, kept): (Vec<Retired>, Vec<Retired>) =
            std::mem::take(&mut self.manifest.retired).into_iter().partition(|file| file.at <= over);
        self.manifest.retired = kept;
        for file in &gone {
            self.place.delete(&self.manifest.dataset, &file.path).await?;
        }
        Ok(!gone.is_empty())
    }

    /// Lets those who read replaced files come to their end, then removes the files.
    async fn wait_for_readers(&mut self) -> Result<()> {
        let Some(latest) = self.manifest.retired.iter().map(|file| file.at).max() else { return Ok(()) };
        self.lease.progress.enter("waiting for readers");
        let wait = (latest + self.wish.grace - Utc::now()).to_std().unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // All is written; the next run removes them.
            () = self.lease.cancelled() => return Ok(()),
        }
        self.drop_retired().await?;
        self.lock.check().await?;
        self.place.save(&self.manifest).await
    }

    async fn clean_up(&mut self) -> Result<()> {
        let dataset = &self.manifest.dataset;
        for path in &self.unsaved {
            self.place.delete(dataset, path).await?;
        }
        if self.is_marked {
            // Who has lost the lock removes no manifest that another has put there since.
            self.lock.check().await?;
            self.place.forget(dataset).await?;
        }
        Ok(())
    }
}

/// Submissions with values of columns that the files of the manifest lack, as those that an older replica has written.
async fn lacking(connection: &mut PgConnection, wish: &Wish, manifest: &Manifest) -> Result<HashSet<i64>> {
    if manifest.partitions.is_empty() {
        return Ok(HashSet::new());
    }
    let is_new = |name: &&String| manifest.columns.iter().all(|column| column.name != **name);
    let columns = manifest::columns(&wish.plan).into_iter().map(|column| column.name);
    // The time's parts are in the files of such a manifest, and no columns of the table.
    let of_table = |name: &String| wish.dataset().columns.iter().any(|column| column.name == *name);
    let columns: Vec<String> = columns.filter(|name| is_new(&name) && of_table(name)).collect();
    if columns.is_empty() {
        return Ok(HashSet::new());
    }
    db::with_values(connection, wish.dataset(), &columns).await
}

fn done(task: &Task, files: Vec<File>) -> Done {
    Done {
        path: task.path.clone(),
        action: task.action,
        start: task.span.map(|span| span.start),
        end: task.span.map(|span| span.end),
        rows: task.rows(),
        bytes: files.iter().map(|file| file.bytes).sum(),
        files,
    }
}

/// Whether a form has a catalogue for analysts.
const fn is_columnar(format: Format) -> bool {
    matches!(format, Format::Parquet)
}
