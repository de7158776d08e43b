//! Batches into encoded parts of a file: the work of a blocking thread, one for each reading connection where it is
//! text; one for all where it is Parquet, whose row groups have threads of their own.

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{max, min};
use arrow::datatypes::TimestampMicrosecondType;
use parquet::arrow::arrow_writer::ArrowColumnChunk;

use super::decode::BATCH;
use super::parquet::{Layout, RowGroup};
use super::spec::{Format, Plan, TIME_COLUMN};
use super::text::{self, Rows};
use crate::error::Result;

/// Rows of each batch from which the size of the whole as CSV is estimated: one of 64 of a full batch.
const SAMPLE: usize = BATCH / 64;

/// A piece of a file: some rows, encoded and compressed.
pub struct Part {
    /// What is appended to the file.
    pub body: Body,
    /// What is known of the rows.
    pub stats: Stats,
}

impl Part {
    /// Bytes that it takes in memory while it waits for its turn; a row group never does.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        match &self.body {
            Body::RowGroup(_) => 0,
            Body::Text(text) => text.len(),
        }
    }
}

/// The encoded rows of a part.
pub enum Body {
    /// The columns of one row group.
    RowGroup(Vec<ArrowColumnChunk>),
    /// Text, compressed as far as that can be done piece by piece.
    Text(Vec<u8>),
}

/// What is known of some rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    /// Their number.
    pub rows: u64,
    /// What they take as CSV, estimated.
    pub csv_bytes: u64,
    /// The earliest and the latest time of storing, in microseconds since 1970.
    pub time: Option<(i64, i64)>,
}

impl Stats {
    /// Adds what is known of other rows.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.csv_bytes += other.csv_bytes;
        self.time = match (self.time, other.time) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
    }
}

/// Where parts end.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows of one part.
    pub rows: usize,
    /// Bytes of one part in memory.
    pub bytes: usize,
}

/// Encodes batches of one plan.
pub struct Encoder<'p> {
    plan: &'p Plan,
    layout: &'p Layout,
    limits: Limits,
    body: Option<Encoding>,
    stats: Stats,
}

enum Encoding {
    RowGroup(Box<RowGroup>),
    Text(Box<Rows>),
}

impl<'p> Encoder<'p> {
    /// An encoder whose parts end at those limits.
    #[must_use]
    pub fn new(plan: &'p Plan, layout: &'p Layout, limits: Limits) -> Self {
        Self { plan, layout, limits, body: None, stats: Stats::default() }
    }

    /// Adds rows, and gives the part that they fill.
    ///
    /// # Errors
    /// A fault of encoding.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<Option<Part>> {
        let body = match &mut self.body {
            Some(body) => body,
            None => self.body.insert(match self.plan.format {
                Format::Parquet => Encoding::RowGroup(Box::new(self.layout.row_group()?)),
                format => Encoding::Text(Box::new(Rows::new(self.plan, format))),
            }),
        };
        let bytes = match body {
            Encoding::RowGroup(row_group) => {
                row_group.write(batch);
                row_group.memory()
            }
            Encoding::Text(rows) => {
                rows.write(batch)?;
                rows.text.len()
            }
        };
        self.stats.add(&Stats {
            rows: batch.num_rows() as u64,
            csv_bytes: csv_bytes(self.plan, batch)?,
            time: self.time(batch),
        });
        let is_full = self.stats.rows >= self.limits.rows as u64 || bytes >= self.limits.bytes;
        if is_full { self.finish() } else { Ok(None) }
    }

    /// Ends the part under way, if there is one.
    ///
    /// # Errors
    /// A fault of encoding.
    pub fn finish(&mut self) -> Result<Option<Part>> {
        let Some(body) = self.body.take() else { return Ok(None) };
        let body = match body {
            Encoding::RowGroup(row_group) => Body::RowGroup(row_group.finish()?),
            Encoding::Text(rows) => Body::Text(text::compress(self.plan, rows.text)?),
        };
        Ok(Some(Part { body, stats: std::mem::take(&mut self.stats) }))
    }

    fn time(&self, batch: &RecordBatch) -> Option<(i64, i64)> {
        let column = self.plan.columns.iter().position(|column| column.name == TIME_COLUMN)?;
        let times = batch.column(column).as_primitive::<TimestampMicrosecondType>();
        Some((min(times)?, max(times)?))
    }
}

/// What a batch takes as CSV, told from its first rows.
fn csv_bytes(plan: &Plan, batch: &RecordBatch) -> Result<u64> {
    let sample = batch.slice(0, batch.num_rows().min(SAMPLE));
    let mut rows = Rows::new(plan, Format::Csv);
    rows.write(&sample)?;
    let (bytes, of, all) = (rows.text.len() as u64, sample.num_rows() as u64, batch.num_rows() as u64);
    Ok(bytes * all / of.max(1))
}
