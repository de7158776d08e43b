//! The lines of a body into rows, and these into COPY batches: the work of one blocking thread, beside the COPY itself.

use std::io::Read;
use std::sync::Arc;

use super::copy::Batches;
use super::decode::{Decoder, Limits};
use super::format::Format;
use crate::dataset::params::Params;
use crate::dataset::row::MAX_FAULTS;
use crate::dataset::{Dataset, Fault, Row, json, tsv};
use crate::db::buffers::Buffers;
use crate::db::copy::Batch;
use crate::error::Error;

/// What a decoding thread needs to know.
#[derive(Clone)]
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
pub fn decode(
    job: &Job,
    buffers: Arc<Buffers>,
    magic: &[u8],
    body: impl Read,
    send: impl FnMut(Batch) -> bool,
) -> Result<Summary, Error> {
    let mut copies = Batches::new(job.submission, &job.dataset, job.limits.decompressed, buffers, send);
    let decoder = Decoder::new(magic, body, job.limits)?;
    let summary = read(job, decoder, |number, row| copies.write(number, row))?;
    copies.finish()?;
    Ok(summary)
}

/// Parses and checks a whole body, and hands each row with its number to `store`. After a fault no row is handed over.
///
/// # Errors
/// What `store` says, or the faults of the body as with [`decode`].
pub fn read(
    job: &Job,
    mut decoder: Decoder<impl Read>,
    store: impl FnMut(u64, &Row<'_>) -> Result<(), Error>,
) -> Result<Summary, Error> {
    let mut rows = Rows::new(job, store);
    while let Some((first_line, text)) = decoder.next_block()? {
        rows.block(first_line, text)?;
        if rows.is_hopeless() {
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

/// Reads rows from lines, and hands each with its number to `store`.
pub struct Rows<'j, S> {
    job: &'j Job,
    parser: Option<Parser>,
    store: S,
    rows: u64,
    faults: Vec<Fault>,
    sample_id: Shared,
    run_id: Shared,
}

impl<'j, S: FnMut(u64, &Row<'_>) -> Result<(), Error>> Rows<'j, S> {
    /// A reader that has seen nothing yet.
    pub fn new(job: &'j Job, store: S) -> Self {
        Self {
            job,
            parser: None,
            store,
            rows: 0,
            faults: Vec::new(),
            sample_id: Shared::of(&job.dataset, "sample_id"),
            run_id: Shared::of(&job.dataset, "run_id"),
        }
    }

    /// Whether there are as many faults as are reported.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        self.faults.len() >= MAX_FAULTS
    }

    /// Notes a fault that somebody else has found.
    pub fn refuse(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Reads the lines of one block, up to the last fault that is reported.
    ///
    /// # Errors
    /// What ends the reading at once; faults of rows are told at the end.
    pub fn block(&mut self, first_line: u64, text: &str) -> Result<(), Error> {
        let mut row = Row::new(self.job.dataset.columns.len());
        let mut start = 0;
        for (index, end) in line_ends(text).enumerate() {
            let line = &text[start..end];
            start = end + 1;
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.len() > self.job.limits.line {
                return Err(self.job.limits.line_too_long());
            }
            // A line of tabs is a row of a table, and nothing in JSON.
            let is_row = matches!(self.parser, Some(Parser::Tsv(_))) && line.contains('\t');
            if line.trim_ascii().is_empty() && !is_row {
                continue;
            }
            if let Err(fault) = self.line(line, first_line + index as u64, &mut row)? {
                self.faults.push(fault);
                if self.is_hopeless() {
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
        if self.faults.is_empty() { (self.store)(self.rows, row) } else { Ok(()) }
    }

    /// What was read, of so many bytes with that digest.
    ///
    /// # Errors
    /// The faults of rows.
    pub fn finish(self, bytes: u64, sha256: [u8; 32]) -> Result<Summary, Error> {
        if !self.faults.is_empty() {
            return Err(Error::Faults(self.faults));
        }
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
        let value = row.cell(position).as_text();
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
