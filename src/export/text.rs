//! Rows as CSV, JSON, JSONL or YAML. Numbers are written with as many digits as bring the same number back.

use std::io::{self, Write};

use arrow::array::{
    Array, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use chrono::DateTime;
use flate2::write::GzEncoder;

use super::spec::{Compression, Format, Plan};
use super::yaml;
use crate::dataset::Kind;
use crate::error::{Error, Result};

/// What stands at the beginning of a file of that plan.
#[must_use]
pub fn beginning(plan: &Plan) -> Vec<u8> {
    match plan.format {
        Format::Csv => {
            let mut line = Vec::new();
            for (index, column) in plan.columns.iter().enumerate() {
                if index > 0 {
                    line.push(b',');
                }
                write_csv_text(&mut line, &column.name);
            }
            line.extend_from_slice(b"\r\n");
            line
        }
        Format::Json => b"[\n".to_vec(),
        Format::Jsonl | Format::Yaml | Format::Parquet => Vec::new(),
    }
}

/// What stands between two parts of a file.
#[must_use]
pub const fn between(format: Format) -> &'static [u8] {
    match format {
        Format::Json => b",\n",
        _ => b"",
    }
}

/// What stands at the end of a file of so many rows.
#[must_use]
pub const fn end(format: Format, rows: u64) -> &'static [u8] {
    match format {
        Format::Json => b"\n]\n",
        Format::Yaml if rows == 0 => b"[]\n",
        _ => b"",
    }
}

/// Compresses a piece of a file where pieces laid end to end are one file again. That holds for gzip; of several frames of
/// Zstandard many readers take the first for the whole, so such a file is compressed in one, by who writes it.
///
/// # Errors
/// A fault of the library.
pub fn compress(plan: &Plan, text: Vec<u8>) -> Result<Vec<u8>> {
    if plan.compression != Compression::Gzip {
        return Ok(text);
    }
    let level = flate2::Compression::new(u32::try_from(plan.level).unwrap_or(6));
    let mut encoder = GzEncoder::new(Vec::new(), level);
    let compressed = encoder.write_all(&text).and_then(|()| encoder.finish());
    compressed.map_err(|error| fault(&error))
}

/// Why text could not be compressed.
pub fn fault(error: &io::Error) -> Error {
    Error::Internal(format!("compressing failed: {error}"))
}

/// Writes the rows of batches as text.
pub struct Rows {
    format: Format,
    columns: Vec<(Vec<u8>, Kind)>,
    /// The text so far.
    pub text: Vec<u8>,
    moment: Moment,
}

impl Rows {
    /// Rows of that plan in that format.
    #[must_use]
    pub fn new(plan: &Plan, format: Format) -> Self {
        let key = |name: &str| format!("{}:", serde_json::Value::from(name)).into_bytes();
        let columns = plan.columns.iter().map(|column| (key(&column.name), column.kind)).collect();
        Self { format, columns, text: Vec::new(), moment: Moment::default() }
    }

    /// Adds the rows of a batch.
    ///
    /// # Errors
    /// A time beyond the calendar.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let columns: Vec<Cells<'_>> =
            batch.columns().iter().zip(&self.columns).map(|(array, (_, kind))| Cells::of(array, *kind)).collect();
        for row in 0..batch.num_rows() {
            match self.format {
                Format::Csv => {
                    for (index, cells) in columns.iter().enumerate() {
                        if index > 0 {
                            self.text.push(b',');
                        }
                        cells.write_csv(&mut self.text, row, &mut self.moment)?;
                    }
                    // Readers skip an empty line. Of text it has to stay: what is quoted is the empty text.
                    if let [cells] = columns.as_slice()
                        && cells.is_null(row)
                        && !matches!(cells, Cells::Text(_))
                    {
                        self.text.extend_from_slice(b"\"\"");
                    }
                    self.text.extend_from_slice(b"\r\n");
                }
                _ => {
                    if self.format == Format::Json && !self.text.is_empty() {
                        self.text.extend_from_slice(between(Format::Json));
                    }
                    let start = self.text.len();
                    self.text.push(b'{');
                    for (index, (cells, (key, _))) in columns.iter().zip(&self.columns).enumerate() {
                        if index > 0 {
                            self.text.push(b',');
                        }
                        self.text.extend_from_slice(key);
                        match (self.format, cells) {
                            (Format::Yaml, Cells::Float(floats)) if !floats.is_null(row) => {
                                let mut buffer = ryu::Buffer::new();
                                let float = yaml::float(buffer.format_finite(floats.value(row)));
                                self.text.extend_from_slice(float.as_bytes());
                            }
                            _ => cells.write_json(&mut self.text, row, &mut self.moment)?,
                        }
                    }
                    self.text.push(b'}');
                    match self.format {
                        Format::Jsonl => self.text.push(b'\n'),
                        Format::Yaml => end_yaml(&mut self.text, start),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }
}

/// Makes the JSON object from `start` on an item of a YAML sequence.
fn end_yaml(text: &mut Vec<u8>, start: usize) {
    let row = String::from_utf8_lossy(&text[start..]).into_owned();
    text.truncate(start);
    text.extend_from_slice(b"- ");
    text.extend_from_slice(yaml::escape(&row).as_bytes());
    text.push(b'\n');
}

/// The cells of one column of a batch.
enum Cells<'a> {
    Bool(&'a BooleanArray),
    Int(&'a Int64Array),
    Float(&'a Float64Array),
    Time(&'a TimestampMicrosecondArray),
    Text(&'a StringArray),
    Json(&'a StringArray),
}

impl<'a> Cells<'a> {
    fn of(array: &'a dyn Array, kind: Kind) -> Self {
        match kind {
            Kind::Bool => Self::Bool(array.as_boolean()),
            Kind::Int => Self::Int(array.as_primitive::<Int64Type>()),
            Kind::Float => Self::Float(array.as_primitive::<Float64Type>()),
            Kind::Timestamp => Self::Time(array.as_primitive::<TimestampMicrosecondType>()),
            Kind::Text => Self::Text(array.as_string()),
            Kind::Json => Self::Json(array.as_string()),
        }
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Bool(cells) => cells.is_null(row),
            Self::Int(cells) => cells.is_null(row),
            Self::Float(cells) => cells.is_null(row),
            Self::Time(cells) => cells.is_null(row),
            Self::Text(cells) | Self::Json(cells) => cells.is_null(row),
        }
    }

    fn write_csv(&self, out: &mut Vec<u8>, row: usize, moment: &mut Moment) -> Result<()> {
        if self.is_null(row) {
            return Ok(());
        }
        match self {
            Self::Text(cells) | Self::Json(cells) => write_csv_text(out, cells.value(row)),
            Self::Time(cells) => out.extend_from_slice(moment.text(cells.value(row))?.as_bytes()),
            _ => self.write_plain(out, row),
        }
        Ok(())
    }

    fn write_json(&self, out: &mut Vec<u8>, row: usize, moment: &mut Moment) -> Result<()> {
        if self.is_null(row) {
            out.extend_from_slice(b"null");
            return Ok(());
        }
        match self {
            Self::Text(cells) => write_json_text(out, cells.value(row))?,
            Self::Json(cells) => out.extend_from_slice(cells.value(row).as_bytes()),
            Self::Time(cells) => write_json_text(out, moment.text(cells.value(row))?)?,
            _ => self.write_plain(out, row),
        }
        Ok(())
    }

    /// Numbers and truth values, which look the same everywhere.
    fn write_plain(&self, out: &mut Vec<u8>, row: usize) {
        match self {
            Self::Bool(cells) => out.extend_from_slice(if cells.value(row) { b"true" } else { b"false" }),
            Self::Int(cells) => out.extend_from_slice(itoa::Buffer::new().format(cells.value(row)).as_bytes()),
            Self::Float(cells) => out.extend_from_slice(ryu::Buffer::new().format_finite(cells.value(row)).as_bytes()),
            Self::Time(_) | Self::Text(_) | Self::Json(_) => {}
        }
    }
}

/// Text as RFC 4180 has it; quoted where it must be, and where it would be taken for null.
fn write_csv_text(out: &mut Vec<u8>, text: &str) {
    let needs_quotes = text.is_empty() || text.bytes().any(|byte| matches!(byte, b'"' | b',' | b'\r' | b'\n'));
    if !needs_quotes {
        return out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
    for (index, piece) in text.split('"').enumerate() {
        if index > 0 {
            out.extend_from_slice(b"\"\"");
        }
        out.extend_from_slice(piece.as_bytes());
    }
    out.push(b'"');
}

fn write_json_text(out: &mut Vec<u8>, text: &str) -> Result<()> {
    serde_json::to_writer(out, text).map_err(|error| Error::Internal(format!("writing JSON failed: {error}")))
}

/// The text of a time; the same time follows itself in row after row.
#[derive(Default)]
struct Moment {
    micros: Option<i64>,
    text: String,
}

impl Moment {
    fn text(&mut self, micros: i64) -> Result<&str> {
        if self.micros != Some(micros) {
            let time = DateTime::from_timestamp_micros(micros)
                .ok_or_else(|| Error::Internal("a time lies beyond the calendar".into()))?;
            self.text = time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
            self.micros = Some(micros);
        }
        Ok(&self.text)
    }
}
