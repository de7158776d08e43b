//! The lines of a body into COPY batches: the work of one blocking thread, beside the COPY itself.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;

use super::copy;
use super::decode::{Decoder, Limits};
use super::format::Format;
use crate::dataset::params::Params;
use crate::dataset::{Cell, Dataset, Fault, Row, json, tsv};
use crate::error::Error;

/// COPY bytes that travel together: below what the allocator asks the kernel for anew each time.
const BATCH: usize = 32 * 1024;

/// Faults that are reported; reading stops at the last of them.
pub const MAX_FAULTS: usize = 20;

/// What a decoding thread needs to know.
pub struct Job {
    /// Whose rows these are.
    pub dataset: Arc<Dataset>,
    /// Values for columns that the rows lack.
    pub params: Params,
    /// The format, when the client named it.
    pub format: Option<Format>,
    /// The submission that the rows belong to.
    pub submission: i64,
    /// Limits on bytes and lines.
    pub limits: Limits,
    /// Rows of one body.
    pub max_rows: u64,
}

/// Bytes of one COPY, which carries some columns of the dataset.
///
/// A body is one COPY as a rule. It becomes several when a later row brings a column that no row before it had: leaving
/// out columns that a body never fills saves PostgreSQL from reading a null for each of them in every row.
#[derive(Debug)]
pub struct Batch {
    /// Positions of the columns. Batches of one COPY share one list, and the next list begins the next COPY.
    pub columns: Arc<[usize]>,
    /// The bytes.
    pub bytes: Bytes,
}

/// What a body turned out to hold.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The number of rows.
    pub rows: u64,
    /// Decompressed bytes.
    pub bytes: u64,
    /// SHA-256 of the decompressed bytes.
    pub sha256: [u8; 32],
    /// The sample that all rows share.
    pub sample_id: Option<String>,
    /// The run that all rows share.
    pub run_id: Option<String>,
}

/// Decodes, parses and checks a whole body, and hands COPY bytes to `send` until it answers false. Its first four bytes
/// are `magic`, or fewer if it has no more.
///
/// # Errors
/// The first fault of the body, or up to [`MAX_FAULTS`] faults of its rows.
pub fn decode(job: &Job, magic: &[u8], body: impl Read, send: impl FnMut(Batch) -> bool) -> Result<Summary, Error> {
    let mut decoder = Decoder::new(magic, body, job.limits)?;
    let mut rows = Rows::new(job, send);
    while let Some((first_line, text)) = decoder.next_block()? {
        rows.block(first_line, text)?;
        if rows.faults.len() >= MAX_FAULTS {
            break;
        }
    }
    let (bytes, sha256) = decoder.finish();
    rows.finish(bytes, sha256)
}

/// How lines become rows, once the first line has told.
enum Parser {
    Json(json::Reader),
    Tsv(tsv::Header),
}

struct Rows<'j, F> {
    job: &'j Job,
    parser: Option<Parser>,
    /// The columns of the current COPY, as positions and as flags.
    columns: Arc<[usize]>,
    carried: Vec<bool>,
    batch: Vec<u8>,
    send: F,
    rows: u64,
    faults: Vec<Fault>,
    sample_id: Shared,
    run_id: Shared,
}

impl<'j, F: FnMut(Batch) -> bool> Rows<'j, F> {
    fn new(job: &'j Job, send: F) -> Self {
        Self {
            job,
            parser: None,
            columns: Arc::default(),
            carried: vec![false; job.dataset.columns.len()],
            batch: copy::HEADER.to_vec(),
            send,
            rows: 0,
            faults: Vec::new(),
            sample_id: Shared::of(&job.dataset, "sample_id"),
            run_id: Shared::of(&job.dataset, "run_id"),
        }
    }

    /// Reads the lines of one block.
    fn block(&mut self, first_line: u64, text: &str) -> Result<(), Error> {
        let mut row = Row::new(&self.job.dataset);
        let mut start = 0;
        for (index, end) in line_ends(text).enumerate() {
            let line = &text[start..end];
            start = end + 1;
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.len() > self.job.limits.line {
                return Err(self.job.limits.line_too_long());
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            if let Err(fault) = self.line(line, first_line + index as u64, &mut row)? {
                self.faults.push(fault);
                if self.faults.len() >= MAX_FAULTS {
                    return Ok(());
                }
            }
            row.clear();
        }
        Ok(())
    }

    /// Reads one line that is not blank.
    fn line<'a>(&mut self, line: &'a str, number: u64, row: &mut Row<'a>) -> Result<Result<(), Fault>, Error> {
        if self.parser.is_none() {
            let (parser, consumed) = self.first_line(line, number)?;
            self.parser = Some(parser);
            if consumed {
                return Ok(Ok(()));
            }
        }
        let dataset = &self.job.dataset;
        let read = match &mut self.parser {
            Some(Parser::Json(reader)) => reader.read(dataset, line, number, row),
            Some(Parser::Tsv(header)) => header.read(dataset, line, number, row),
            None => Ok(()),
        };
        if let Err(fault) = read {
            return Ok(Err(fault));
        }
        if let Err((position, reason)) = row.complete(dataset, &self.job.params.defaults) {
            let column = match &self.parser {
                Some(Parser::Json(_)) => json::locate(dataset, line, position),
                Some(Parser::Tsv(header)) => header.locate(line, position),
                None => None,
            };
            let field = Some(dataset.columns[position].name.clone());
            return Ok(Err(Fault { line: Some(number), column, field, reason }));
        }
        self.store(row)?;
        Ok(Ok(()))
    }

    /// Tells the format from the first line; the flag says whether the line was only a header.
    fn first_line(&self, line: &str, number: u64) -> Result<(Parser, bool), Error> {
        let format = match self.job.format {
            Some(format) => format,
            None => Format::recognise(line)?,
        };
        match format {
            Format::Jsonl => Ok((Parser::Json(json::Reader::default()), false)),
            Format::Tsv => {
                let (header, is_header) =
                    tsv::Header::parse(&self.job.dataset, &self.job.params, line, number).map_err(first_faults)?;
                Ok((Parser::Tsv(header), is_header))
            }
        }
    }

    fn store(&mut self, row: &Row<'_>) -> Result<(), Error> {
        self.rows += 1;
        if self.rows > self.job.max_rows {
            let limit = format!("{} rows", self.job.max_rows);
            return Err(Error::TooLarge { what: "number of rows", limit, key: "ingest.max_rows" });
        }
        self.sample_id.see(row);
        self.run_id.see(row);
        if !self.faults.is_empty() {
            return Ok(());
        }
        let ordinal =
            i32::try_from(self.rows).map_err(|_| Error::Internal("more rows than an ordinal holds".into()))?;
        let brings_column = row.cells.iter().zip(&self.carried).any(|(cell, carried)| !carried && !cell.is_empty());
        if brings_column {
            self.begin_copy(row)?;
        }
        copy::write_row(&mut self.batch, self.job.submission, ordinal, row, &self.columns);
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// Ends the current COPY, if it has rows, and begins one that also carries the columns that this row speaks of.
    fn begin_copy(&mut self, row: &Row<'_>) -> Result<(), Error> {
        if self.rows > 1 {
            self.batch.extend_from_slice(&copy::TRAILER);
            self.flush()?;
            self.batch.extend_from_slice(copy::HEADER);
        }
        for (carried, cell) in self.carried.iter_mut().zip(&row.cells) {
            *carried |= *cell != Cell::Absent;
        }
        self.columns =
            self.carried.iter().enumerate().filter(|(_, carried)| **carried).map(|(position, _)| position).collect();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        let bytes = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH + BATCH / 8));
        let batch = Batch { columns: Arc::clone(&self.columns), bytes: bytes.into() };
        if (self.send)(batch) { Ok(()) } else { Err(Error::Internal("the COPY ended before the body".into())) }
    }

    fn finish(mut self, bytes: u64, sha256: [u8; 32]) -> Result<Summary, Error> {
        if !self.faults.is_empty() {
            return Err(Error::Faults(self.faults));
        }
        self.batch.extend_from_slice(&copy::TRAILER);
        self.flush()?;
        let given = |name| self.job.params.text(name).map(str::to_owned);
        let (sample_id, run_id) = if self.rows == 0 {
            (given("sample_id"), given("run_id"))
        } else {
            (self.sample_id.into_value(), self.run_id.into_value())
        };
        Ok(Summary { rows: self.rows, bytes, sha256, sample_id, run_id })
    }
}

fn first_faults(mut faults: Vec<Fault>) -> Error {
    faults.truncate(MAX_FAULTS);
    Error::Faults(faults)
}

/// The positions of the line ends of `text`, the end of the text included when its last line has none.
fn line_ends(text: &str) -> impl Iterator<Item = usize> {
    let unfinished = !text.is_empty() && !text.ends_with('\n');
    memchr::memchr_iter(b'\n', text.as_bytes()).chain(unfinished.then_some(text.len()))
}

/// The value of one column that all rows share.
struct Shared {
    position: Option<usize>,
    value: Option<String>,
    seen: bool,
}

impl Shared {
    fn of(dataset: &Dataset, column: &str) -> Self {
        let position = dataset.columns.iter().position(|known| known.name == column);
        Self { position, value: None, seen: false }
    }

    fn see(&mut self, row: &Row<'_>) {
        let Some(position) = self.position else { return };
        let value = row.cells.get(position).and_then(Cell::as_text);
        if !self.seen {
            self.seen = true;
            self.value = value.map(str::to_owned);
        } else if self.value.as_deref() != value {
            self.position = None;
            self.value = None;
        }
    }

    fn into_value(self) -> Option<String> {
        self.value
    }
}
