//! The rows of one file into partitions. Whatever their order, few rows wait in memory and few files are open.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::columns::{Columns, Mapping};
use crate::config::Temporal;
use crate::dataset::{Cell, Row};
use crate::error::{Error, Result};
use crate::export::decode::BATCH;
use crate::export::parquet::{self, Layout};
use crate::export::spec::Plan;
use crate::lake::manifest::{self, File, Ids, Partition};
use crate::lake::partition::{Span, folder, label, path};

/// Bytes of rows that wait in memory.
const WAITING: usize = 64 * 1024 * 1024;

/// Files that are open at once.
const OPEN: usize = 256;

/// Bytes of an open file that wait in memory.
const BUFFER: usize = 64 * 1024;

/// Folders that the rows of one file may need.
const FOLDERS: usize = 10_000;

/// How rows are laid out.
pub struct Cut<'c> {
    /// The columns of the files.
    pub plan: &'c Plan,
    /// How they are encoded.
    pub layout: &'c Layout,
    /// The folder of the dataset.
    pub root: &'c Path,
    /// How time is cut.
    pub temporal: Option<Temporal>,
    /// The columns whose values have folders, as positions.
    pub by: Vec<usize>,
    /// The column with the time of a row, as position.
    pub time: Option<usize>,
    /// The time of rows that have none.
    pub fallback: DateTime<Utc>,
    /// Rows of one row group.
    pub row_group: usize,
    /// The digits that all names of files share.
    pub run: String,
    /// Whether files are measured only.
    pub is_preview: bool,
}

/// Rows on their way. What is dropped before [`Partitions::finish`] leaves nothing.
pub struct Partitions<'c> {
    cut: &'c Cut<'c>,
    mapping: Mapping,
    folders: HashMap<Key, usize>,
    parts: Vec<Part>,
    /// The folder of the row before: most rows follow their like.
    last: Option<(Key, usize)>,
    waiting: usize,
    open: usize,
    finished: bool,
}

/// What tells folders apart.
type Key = (Option<Span>, Vec<Option<String>>);

/// The rows of one folder.
struct Part {
    span: Option<Span>,
    /// The partition, and the folder in it.
    path: String,
    folder: String,
    columns: Columns,
    times: Option<(i64, i64)>,
    rows: u64,
    open: Option<(parquet::File<Digesting>, PathBuf)>,
    files: Vec<File>,
}

impl<'c> Partitions<'c> {
    /// No rows yet.
    #[must_use]
    pub fn new(cut: &'c Cut<'c>) -> Self {
        Self {
            cut,
            mapping: Mapping::new(cut.plan),
            folders: HashMap::new(),
            parts: Vec::new(),
            last: None,
            waiting: 0,
            open: 0,
            finished: false,
        }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// A value that makes no folder, too many folders, a disk that takes no more.
    pub fn push(&mut self, row: &Row<'_>) -> Result<()> {
        let time = self.cut.time.and_then(|position| match row.cell(position) {
            Cell::Timestamp(micros) => Some(*micros),
            _ => None,
        });
        let index = self.part(row, time)?;
        let part = &mut self.parts[index];
        let before = part.columns.bytes;
        part.columns.push(row);
        self.waiting += part.columns.bytes - before;
        if let Some(time) = time {
            let (min, max) = part.times.unwrap_or((time, time));
            part.times = Some((min.min(time), max.max(time)));
        }
        if part.columns.rows >= self.cut.row_group {
            self.flush(index)?;
        }
        // Down to a half, the largest first, so that row groups are as large as they can be.
        if self.waiting > WAITING {
            let mut largest: Vec<usize> = (0..self.parts.len()).collect();
            largest.sort_by_key(|index| std::cmp::Reverse(self.parts[*index].columns.bytes));
            for index in largest {
                self.flush(index)?;
                if self.waiting <= WAITING / 2 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The folder that a row belongs to.
    fn part(&mut self, row: &Row<'_>, time: Option<i64>) -> Result<usize> {
        let moment = time.and_then(DateTime::from_timestamp_micros).unwrap_or(self.cut.fallback);
        let values = |by: &[usize]| by.iter().map(|position| text(row.cell(*position))).collect::<Vec<_>>();
        if let Some(((span, held), index)) = &self.last
            && span.is_none_or(|span| span.start <= moment && moment < span.end)
            && held.iter().zip(&self.cut.by).all(|(held, position)| *held == text(row.cell(*position)))
        {
            return Ok(*index);
        }
        let key: Key = (self.cut.temporal.map(|temporal| Span::of(temporal.0, moment)), values(&self.cut.by));
        let index = match self.folders.get(&key) {
            Some(&index) => index,
            None => {
                if self.parts.len() >= FOLDERS {
                    let reason = format!("its rows need more than {FOLDERS} folders; cut by fewer levels or columns");
                    return Err(Error::Body(reason));
                }
                self.parts.push(self.open_part(&key)?);
                self.folders.insert(key.clone(), self.parts.len() - 1);
                self.parts.len() - 1
            }
        };
        self.last = Some((key, index));
        Ok(index)
    }

    fn open_part(&self, (span, values): &Key) -> Result<Part> {
        let path = self.cut.temporal.zip(*span).map(|(temporal, span)| path(temporal, &span)).unwrap_or_default();
        let mut folders = vec![path.clone()];
        for (position, value) in self.cut.by.iter().zip(values) {
            let column = &self.cut.plan.dataset.columns[*position].name;
            folders.push(folder(column, value.as_deref()).map_err(Error::Body)?);
        }
        folders.retain(|folder| !folder.is_empty());
        Ok(Part {
            span: *span,
            path,
            folder: folders.join("/"),
            columns: Columns::new(&self.mapping),
            times: None,
            rows: 0,
            open: None,
            files: Vec::new(),
        })
    }

    /// Writes the rows of a folder that wait.
    fn flush(&mut self, index: usize) -> Result<()> {
        let part = &mut self.parts[index];
        if part.columns.rows == 0 {
            return Ok(());
        }
        self.waiting -= part.columns.bytes;
        let batch = part.columns.take(self.cut.plan)?;
        let row_group = self.cut.layout.row_group()?;
        for start in (0..batch.num_rows()).step_by(BATCH) {
            row_group.write(&batch.slice(start, BATCH.min(batch.num_rows() - start)));
        }
        let encoded = row_group.finish()?;
        if part.open.is_none() {
            part.open = Some(self.cut.create(part)?);
            self.open += 1;
        }
        let part = &mut self.parts[index];
        part.rows += batch.num_rows() as u64;
        if let Some((file, _)) = &mut part.open {
            file.append(encoded)?;
        }
        if self.open > OPEN
            && let Some(other) =
                (0..self.parts.len()).find(|other| *other != index && self.parts[*other].open.is_some())
        {
            self.close(other)?;
        }
        Ok(())
    }

    /// Ends the file of a folder.
    fn close(&mut self, index: usize) -> Result<()> {
        let part = &mut self.parts[index];
        let Some((file, path)) = part.open.take() else { return Ok(()) };
        self.open -= 1;
        let rows = std::mem::take(&mut part.rows);
        let file = file.finish(rows)?;
        let (bytes, sha256) = file.end().map_err(|error| cannot(&path, &error))?;
        let moment = |micros: Option<i64>| micros.and_then(DateTime::from_timestamp_micros);
        part.files.push(File {
            path: self.cut.name(&path),
            rows,
            bytes,
            sha256: data_encoding::HEXLOWER.encode(&sha256),
            schema: manifest::schema(&manifest::columns(self.cut.plan)),
            min_time: moment(part.times.map(|(min, _)| min)),
            max_time: moment(part.times.map(|(_, max)| max)),
        });
        Ok(())
    }

    /// Ends all files and gives them their names. Answers with what each partition got, in the order of paths.
    ///
    /// # Errors
    /// A disk that takes no more.
    pub fn finish(mut self) -> Result<Vec<Partition>> {
        for index in 0..self.parts.len() {
            self.flush(index)?;
            self.close(index)?;
        }
        let mut partitions: BTreeMap<String, Partition> = BTreeMap::new();
        for part in &self.parts {
            for file in part.files.iter().filter(|_| !self.cut.is_preview) {
                let path = self.cut.root.join(&file.path);
                fs::rename(unfinished(&path), &path).map_err(|error| cannot(&path, &error))?;
            }
            let partition = partitions.entry(part.path.clone()).or_insert_with(|| Partition {
                path: part.path.clone(),
                start: part.span.map(|span| span.start),
                end: part.span.map(|span| span.end),
                submissions: Ids::default(),
                digest: String::new(),
                files: Vec::new(),
            });
            partition.files.extend(part.files.iter().cloned());
        }
        self.finished = true;
        Ok(partitions.into_values().collect())
    }
}

impl Drop for Partitions<'_> {
    fn drop(&mut self) {
        if self.finished || self.cut.is_preview {
            return;
        }
        for part in &mut self.parts {
            let open = part.open.take().map(|(_, path)| path);
            let ended = part.files.iter().map(|file| self.cut.root.join(&file.path));
            for path in open.into_iter().chain(ended) {
                // One of the two names is there; what cannot be removed the next run sweeps.
                drop(fs::remove_file(unfinished(&path)));
                drop(fs::remove_file(&path));
            }
        }
    }
}

impl Cut<'_> {
    /// Begins a file of a folder, under a name that no reader takes for a part of the dataset.
    fn create(&self, part: &Part) -> Result<(parquet::File<Digesting>, PathBuf)> {
        let folder = self.root.join(&part.folder);
        let label = self.temporal.zip(part.span).map(|(temporal, span)| label(temporal, &span)).unwrap_or_default();
        let number = if part.files.is_empty() { String::new() } else { (part.files.len() + 1).to_string() };
        let parts = [self.plan.dataset.name.as_str(), &label, &self.run, &number];
        let name = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_");
        let path = folder.join(format!("{name}.parquet"));
        let file = if self.is_preview {
            None
        } else {
            fs::create_dir_all(&folder).map_err(|error| cannot(&folder, &error))?;
            let file = fs::File::create(unfinished(&path)).map_err(|error| cannot(&path, &error))?;
            Some(BufWriter::with_capacity(BUFFER, file))
        };
        let file = self.layout.file(Digesting { file, digest: Sha256::new(), bytes: 0 })?;
        Ok((file, path))
    }

    fn name(&self, path: &Path) -> String {
        path.strip_prefix(self.root).unwrap_or(path).to_string_lossy().into_owned()
    }
}

/// Whether a file has not got its name yet.
pub fn is_unfinished(name: &str) -> bool {
    name.ends_with('#')
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("#");
    name.into()
}

fn cannot(path: &Path, error: &io::Error) -> Error {
    Error::Environment(format!("{} cannot be written: {error}", path.display()))
}

/// A value as it stands in a path; null and the empty text are one.
fn text(cell: &Cell<'_>) -> Option<String> {
    match cell {
        Cell::Text(text) if !text.is_empty() => Some(text.clone().into_owned()),
        Cell::Int(value) => Some(value.to_string()),
        Cell::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

/// A file that is digested as it is written, if it is written.
struct Digesting {
    file: Option<BufWriter<fs::File>>,
    digest: Sha256,
    bytes: u64,
}

impl Digesting {
    /// Makes sure that all of it is on the disk; its size and digest.
    fn end(self) -> io::Result<(u64, [u8; 32])> {
        if let Some(file) = self.file {
            file.into_inner()?.sync_all()?;
        }
        Ok((self.bytes, self.digest.finalize().into()))
    }
}

impl Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.as_mut().map_or(Ok(bytes.len()), |file| file.write(bytes))?;
        self.digest.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), BufWriter::flush)
    }
}
