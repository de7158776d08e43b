//! A file that is converted: its form, its digest, and its rows one after the other.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

use super::document::{self, Shape};
use super::inputs::Input;
use super::table::{self, JsonLines};
use crate::dataset::Row;
use crate::error::{Error, Result};
use crate::ingest::decode::Decoder;
use crate::ingest::format::Format;
use crate::ingest::rows::{self, Job, Rows};
use crate::send::content::{Content, Reading};

/// An opened file.
pub struct Source {
    content: Content,
    form: Form,
    /// Somebody wants no more of it.
    stop: Arc<AtomicBool>,
}

/// How the rows of a file are written.
#[derive(Debug, Clone, PartialEq)]
enum Form {
    /// Comma-separated values with a header.
    Csv,
    /// Tab-separated values.
    Tsv,
    /// One JSON object a line.
    Jsonl,
    /// JSON of another shape.
    Document(Shape),
}

/// What a file turned out to hold.
#[derive(Debug, Clone, Copy)]
pub struct Digest {
    /// Decompressed bytes.
    pub bytes: u64,
    /// SHA-256 of the decompressed bytes.
    pub sha256: [u8; 32],
}

impl Source {
    /// Opens a file, and tells its form by its ending, else by its first line.
    ///
    /// # Errors
    /// A file that cannot be read, or that is of no known form; [`Error::Cancelled`].
    pub fn open(input: &Input, stop: &Arc<AtomicBool>) -> Result<Self> {
        let content = open(input)?;
        let name = input.name.to_ascii_lowercase();
        let name = [".gz", ".zst"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name);
        let form = match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("csv") => Form::Csv,
            Some("tsv" | "tab") => Form::Tsv,
            Some("jsonl" | "ndjson") => Form::Jsonl,
            _ => Self::recognise(&content, stop)?,
        };
        Ok(Self { content, form, stop: Arc::clone(stop) })
    }

    fn recognise(content: &Content, stop: &AtomicBool) -> Result<Form> {
        let first = content.first_line.as_deref().unwrap_or_default();
        if !first.trim_start().starts_with(['{', '[']) {
            return match Format::recognise(first) {
                _ if content.is_csv() => Ok(Form::Csv),
                Ok(Format::Tsv) => Ok(Form::Tsv),
                // Reading finds out why nothing could be seen of a file that is damaged.
                _ if content.first_line.is_none() => Ok(Form::Jsonl),
                _ => Err(Error::Body(
                    "is neither CSV nor TSV nor JSON; its ending can tell: .csv, .tsv, .json, .jsonl".into(),
                )),
            };
        }
        let is_object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(first).is_ok();
        if is_object && content.has_second_line()? {
            return Ok(Form::Jsonl);
        }
        document::survey(Text::new(content.decoder()?, stop)).map(Form::Document)
    }

    /// Hands each row with its number to `store`, and answers with their number.
    ///
    /// # Errors
    /// The faults of the file, each with its line; what `store` says.
    pub fn rows(&self, job: &Job, store: impl FnMut(u64, &Row<'_>) -> Result<()>) -> Result<u64> {
        let decoder = self.content.decoder()?;
        let read = match &self.form {
            Form::Tsv => rows::read(&Job { format: Some(Format::Tsv), ..job.clone() }, decoder, store),
            Form::Jsonl => rows::read(&Job { format: Some(Format::Jsonl), ..job.clone() }, decoder, store),
            Form::Csv => {
                let job = Job { format: Some(Format::Jsonl), ..job.clone() };
                let mut rows = Rows::new(&job, store);
                let mut lines = None;
                let mut json = String::new();
                table::records(Text::new(decoder, &self.stop), b',', |line, header, record| {
                    let lines = lines.get_or_insert_with(|| JsonLines::new(&job.dataset, header));
                    match lines.write(line, record, &mut json) {
                        Ok(()) => rows.block(line, &json)?,
                        Err(fault) => rows.refuse(fault),
                    }
                    Ok(!rows.is_hopeless())
                })?;
                without_columns(rows.finish(0, [0; 32]))
            }
            Form::Document(shape) => {
                let job = Job { format: Some(Format::Jsonl), ..job.clone() };
                let mut rows = Rows::new(&job, store);
                document::rows(Text::new(decoder, &self.stop), shape, |line, row| {
                    if rows.is_hopeless() { Ok(()) } else { rows.block(line, row) }
                })?;
                without_columns(rows.finish(0, [0; 32]))
            }
        };
        read.map(|summary| summary.rows)
    }

    /// Hands the cells of each record to `cells`, or its JSON to `json`, with the number of its line.
    ///
    /// # Errors
    /// The first fault of the file, what is said of a cell or record.
    pub fn records(
        &self,
        mut cells: impl FnMut(&str, &str) -> Result<()>,
        mut json: impl FnMut(u64, &str) -> Result<()>,
    ) -> Result<()> {
        let mut decoder = self.content.decoder()?;
        match &self.form {
            Form::Csv | Form::Tsv => {
                let delimiter = if self.form == Form::Csv { b',' } else { b'\t' };
                table::records(Text::new(decoder, &self.stop), delimiter, |_, header, record| {
                    header.iter().zip(record).try_for_each(|(name, cell)| cells(name, cell)).map(|()| true)
                })
            }
            Form::Jsonl => {
                while let Some((first, text)) = decoder.next_block()? {
                    go_on(&self.stop)?;
                    for (number, line) in (first..).zip(text.lines()) {
                        if !line.trim_ascii().is_empty() {
                            json(number, line)?;
                        }
                    }
                }
                Ok(())
            }
            Form::Document(shape) => document::rows(Text::new(decoder, &self.stop), shape, json),
        }
    }
}

/// Reads all of a file once, and digests it.
///
/// # Errors
/// A file that cannot be read, or that is damaged; [`Error::Cancelled`].
pub fn digest(input: &Input, stop: &AtomicBool) -> Result<Digest> {
    let mut decoder = open(input)?.decoder()?;
    while decoder.next_block()?.is_some() {
        go_on(stop)?;
    }
    let (bytes, sha256) = decoder.finish();
    Ok(Digest { bytes, sha256 })
}

/// The digests of the beginnings of a file that have these lengths, which grow.
///
/// # Errors
/// As those of [`digest`].
pub fn beginnings(input: &Input, lengths: &[u64], stop: &AtomicBool) -> Result<Vec<String>> {
    let mut decoder = open(input)?.decoder()?;
    let mut lengths = lengths.iter().peekable();
    let (mut digest, mut bytes, mut found) = (Sha256::new(), 0, Vec::new());
    while lengths.peek().is_some()
        && let Some((_, text)) = decoder.next_text()?
    {
        go_on(stop)?;
        let mut rest = text.as_bytes();
        while let Some(length) = lengths.next_if(|length| **length <= bytes + rest.len() as u64) {
            let (more, behind) = rest.split_at(usize::try_from(length - bytes).unwrap_or(rest.len()));
            digest.update(more);
            found.push(data_encoding::HEXLOWER.encode(&digest.clone().finalize()));
            (bytes, rest) = (*length, behind);
        }
        digest.update(rest);
        bytes += rest.len() as u64;
    }
    Ok(found)
}

/// Whether nobody has stopped the work.
fn go_on(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
}

fn open(input: &Input) -> Result<Content> {
    Content::open(&input.path.to_string_lossy()).map_err(|error| Error::Body(format!("cannot be read: {error}")))
}

/// The lines were put together from the file, and characters counted in them say nothing.
fn without_columns<T>(mut read: Result<T>) -> Result<T> {
    if let Err(Error::Faults(faults)) = &mut read {
        faults.iter_mut().for_each(|fault| fault.column = None);
    }
    read
}

/// Checked and decompressed text as a reader. An [`io::Error`] of it carries an [`enum@Error`].
struct Text<'s> {
    decoder: Decoder<Reading>,
    stop: &'s AtomicBool,
    block: Vec<u8>,
    handed_out: usize,
}

impl<'s> Text<'s> {
    const fn new(decoder: Decoder<Reading>, stop: &'s AtomicBool) -> Self {
        Self { decoder, stop, block: Vec::new(), handed_out: 0 }
    }
}

impl Read for Text<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.handed_out == self.block.len() {
            go_on(self.stop).map_err(io::Error::other)?;
            self.block.clear();
            self.handed_out = 0;
            match self.decoder.next_block().map_err(io::Error::other)? {
                Some((_, text)) => self.block.extend_from_slice(text.as_bytes()),
                None => return Ok(0),
            }
        }
        let left = &self.block[self.handed_out..];
        let count = buffer.len().min(left.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.handed_out += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::super::inputs::{self, Choice};
    use super::*;

    #[test]
    fn a_look_at_all_values_ends_when_somebody_stops_it() {
        let folder = tempfile::tempdir().expect("folder");
        for (name, text) in
            [("a.csv", "n\n1\n"), ("a.tsv", "n\n1\n"), ("a.jsonl", "{\"n\":1}\n"), ("a.json", "{\"rows\":[{\"n\":1}]}")]
        {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("file");
            let found = inputs::find(&[path.display().to_string()], Choice::default());
            for is_stopped in [false, true] {
                let stop = Arc::new(AtomicBool::new(is_stopped));
                let seen = Source::open(&found.inputs[0], &stop)
                    .and_then(|source| source.records(|_, _| Ok(()), |_, _| Ok(())));
                assert_eq!(matches!(seen, Err(Error::Cancelled)), is_stopped, "{name}");
                assert_eq!(seen.is_ok(), !is_stopped, "{name}");
            }
        }
    }
}
