//! Rows as PostgreSQL's binary COPY format.
//!
//! Source: <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format".

use std::sync::Arc;

use crate::dataset::{Cell, Dataset, Row};
use crate::db::buffers::{BUFFER, Buffers};
use crate::db::copy::Batch;
use crate::error::Error;

/// COPY bytes that travel together: a buffer full but for the row that goes beyond.
const BATCH: usize = BUFFER - 4 * 1024;

/// Microseconds from 1970-01-01, where Unix begins to count, to 2000-01-01, where PostgreSQL does.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// Writes the rows of a submission as batches for COPY, and hands them to `send` until it answers false.
///
/// A body is one COPY as a rule. It becomes several when a later row brings a column that no row before it had: leaving
/// out columns that a body never fills saves PostgreSQL from reading a null for each of them in every row.
pub struct Batches<F> {
    submission: i64,
    /// The columns of the batch under way, as positions and as flags.
    columns: Arc<[usize]>,
    carried: Vec<bool>,
    batch: Vec<u8>,
    buffers: Arc<Buffers>,
    /// Bytes so far, and how many there may be: each row repeats what a header or a query says once.
    bytes: u64,
    limit: u64,
    send: F,
}

impl<F: FnMut(Batch) -> bool> Batches<F> {
    /// Batches without rows, which may take `limit` bytes.
    pub fn new(submission: i64, dataset: &Dataset, limit: u64, buffers: Arc<Buffers>, send: F) -> Self {
        let carried = vec![false; dataset.columns.len()];
        Self { submission, columns: Arc::default(), carried, batch: Vec::new(), buffers, bytes: 0, limit, send }
    }

    /// Writes a row; `number` counts from 1.
    ///
    /// # Errors
    /// Nobody takes the bytes any more, there are more of them than there may be, or more rows than an ordinal holds.
    pub fn write(&mut self, number: u64, row: &Row<'_>) -> Result<(), Error> {
        let ordinal = i32::try_from(number).map_err(|_| Error::Internal("more rows than an ordinal holds".into()))?;
        let brings_column = row.present().any(|(position, cell)| !self.carried[position] && !cell.is_empty());
        if brings_column {
            self.carry_more(row)?;
        }
        if self.batch.capacity() == 0 {
            self.batch = self.buffers.take();
        }
        write_row(&mut self.batch, self.submission, ordinal, row, &self.columns);
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// Ends the batch under way, and begins one that also carries the columns that this row speaks of.
    fn carry_more(&mut self, row: &Row<'_>) -> Result<(), Error> {
        self.flush()?;
        row.present().for_each(|(position, _)| self.carried[position] = true);
        self.columns =
            self.carried.iter().enumerate().filter(|(_, carried)| **carried).map(|(position, _)| position).collect();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.bytes += self.batch.len() as u64;
        if self.bytes > self.limit {
            let limit = bytesize::ByteSize(self.limit).to_string();
            return Err(Error::TooLarge {
                what: "size of the rows as they are stored",
                limit,
                key: "ingest.max_decompressed",
            });
        }
        let bytes = self.buffers.lend(std::mem::take(&mut self.batch));
        let batch = Batch { columns: Arc::clone(&self.columns), bytes };
        if (self.send)(batch) { Ok(()) } else { Err(Error::Internal("the COPY ended before the body".into())) }
    }

    /// Ends the last batch.
    ///
    /// # Errors
    /// As with [`Batches::write`].
    pub fn finish(mut self) -> Result<(), Error> {
        self.flush()
    }
}

/// Appends one row of a submission to `out`: submission, ordinal, the cells at `columns`, extra.
fn write_row(out: &mut Vec<u8>, submission: i64, ordinal: i32, row: &Row<'_>, columns: &[usize]) {
    // A table has at most 1,600 columns, which an i16 holds.
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most 1,600 columns")]
    let fields = (columns.len() + 3) as i16;
    out.extend_from_slice(&fields.to_be_bytes());
    write_field(out, &submission.to_be_bytes());
    write_field(out, &ordinal.to_be_bytes());
    for &position in columns {
        match row.cell(position) {
            Cell::Absent | Cell::Null => write_null(out),
            Cell::Text(text) => write_field(out, text.as_bytes()),
            Cell::Int(value) => write_field(out, &value.to_be_bytes()),
            Cell::Float(value) => write_field(out, &value.to_be_bytes()),
            Cell::Bool(value) => write_field(out, &[u8::from(*value)]),
            Cell::Timestamp(micros) => write_field(out, &(micros - POSTGRES_EPOCH).to_be_bytes()),
            Cell::Json(text) => write_jsonb(out, |out| out.extend_from_slice(text.as_bytes())),
        }
    }
    if row.extra.is_empty() {
        write_null(out);
    } else {
        write_jsonb(out, |out| write_object(out, row));
    }
}

fn write_null(out: &mut Vec<u8>) {
    out.extend_from_slice(&(-1_i32).to_be_bytes());
}

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "a line is far below 2 GiB")]
fn length(bytes: usize) -> [u8; 4] {
    (bytes as i32).to_be_bytes()
}

#[inline]
fn write_field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&length(bytes.len()));
    out.extend_from_slice(bytes);
}

/// A jsonb field: the format's version 1, then text.
fn write_jsonb(out: &mut Vec<u8>, text: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, 1]);
    text(out);
    let bytes = length(out.len() - start - 4);
    out[start..start + 4].copy_from_slice(&bytes);
}

/// The unknown fields as one JSON object.
pub fn write_object(out: &mut Vec<u8>, row: &Row<'_>) {
    let mut separator = b'{';
    for (name, value) in &row.extra {
        out.push(separator);
        out.extend_from_slice(serde_json::Value::from(name.as_ref()).to_string().as_bytes());
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
        separator = b',';
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    #[test]
    fn a_row_is_written_as_the_documentation_says() {
        let mut row = Row::new(3);
        assert!(row.set(0, Cell::Text(Cow::Borrowed("ab"))) && row.set(2, Cell::Timestamp(POSTGRES_EPOCH + 1)));
        row.extra.push((Cow::Borrowed("k\"y"), Cow::Borrowed("[1]")));
        let mut out = Vec::new();
        write_row(&mut out, 7, 3, &row, &[0, 1, 2]);
        let mut expected = vec![0, 6];
        expected.extend_from_slice(&[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7]);
        expected.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 3]);
        expected.extend_from_slice(&[0, 0, 0, 2, b'a', b'b']);
        expected.extend_from_slice(&[255; 4]);
        expected.extend_from_slice(&[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
        let extra = br#"{"k\"y":[1]}"#;
        expected.extend_from_slice(&[0, 0, 0, u8::try_from(extra.len()).expect("short") + 1, 1]);
        expected.extend_from_slice(extra);
        assert_eq!(out, expected);
    }
}
