//! Comma- and tab-separated values, cell by cell, and their rows as JSON lines.

use std::io::{self, Read};

use csv::StringRecord;

use crate::dataset::{Cell, Dataset, Fault, Kind};
use crate::error::{Error, Result};
use crate::send::content::LIMITS;

/// Hands the header and each record with the number of its line to `each`, until it answers false.
///
/// # Errors
/// Text that is no table, a header with a column that has no name, what `each` says.
pub fn records(
    text: impl Read,
    delimiter: u8,
    mut each: impl FnMut(u64, &[String], &StringRecord) -> Result<bool>,
) -> Result<()> {
    let text = Watched { text, delimiter, at: At::Record, line: 1, begun: 1, bytes: 0 };
    let mut reader = csv::ReaderBuilder::new();
    let mut reader =
        reader.has_headers(false).flexible(true).delimiter(delimiter).quoting(delimiter == b',').from_reader(text);
    let mut record = StringRecord::new();
    let mut header: Option<Vec<String>> = None;
    while reader.read_record(&mut record).map_err(fault)? {
        let line = record.position().map_or(1, csv::Position::line);
        match &header {
            Some(header) => {
                if !each(line, header, &record)? {
                    break;
                }
            }
            None => {
                let names: Vec<String> = record.iter().map(|name| name.trim().to_owned()).collect();
                if let Some(index) = names.iter().position(String::is_empty) {
                    let reason = format!("cell {} of the header has no name", index + 1);
                    return Err(Error::Faults(vec![Fault::of_line(line, reason)]));
                }
                if let [only] = names.as_slice()
                    && only.contains([';', '\t'])
                {
                    let reason = "the header is a single cell with semicolons or tabs in it: separate cells by commas, or by tabs \
                                  in a file that is called .tsv";
                    return Err(Error::Faults(vec![Fault::of_line(line, reason)]));
                }
                header = Some(names);
            }
        }
    }
    Ok(())
}

/// A table as it is read. To the parser a quote that nobody closes is a cell up to the end of the text, however much that
/// is.
struct Watched<R> {
    text: R,
    delimiter: u8,
    at: At,
    /// The line of the next byte, and that on which its record has begun.
    line: u64,
    begun: u64,
    /// Bytes of the record.
    bytes: usize,
}

/// What the next byte of a table belongs to.
#[derive(Clone, Copy, PartialEq)]
enum At {
    Record,
    Cell,
    Text,
    Quoted,
    /// A quote within quotes: their end, or the first half of one that is meant.
    Quote,
}

impl<R> Watched<R> {
    fn see(&mut self, byte: u8) {
        if self.at == At::Record {
            (self.begun, self.bytes) = (self.line, 0);
        }
        self.bytes += 1;
        self.line += u64::from(byte == b'\n');
        self.at = match (self.at, byte) {
            (At::Quoted, b'"') => At::Quote,
            (At::Quoted, _) | (At::Quote, b'"') => At::Quoted,
            (_, b'\n' | b'\r') => At::Record,
            (_, byte) if byte == self.delimiter => At::Cell,
            (At::Record | At::Cell, b'"') if self.delimiter == b',' => At::Quoted,
            _ => At::Text,
        };
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.text.read(buffer)?;
        if count == 0 && self.at == At::Quoted {
            let fault = Fault::of_line(self.begun, "has a quote that is never closed");
            return Err(io::Error::other(Error::Faults(vec![fault])));
        }
        buffer[..count].iter().for_each(|byte| self.see(*byte));
        if self.bytes > LIMITS.line {
            return Err(io::Error::other(LIMITS.line_too_long()));
        }
        Ok(count)
    }
}

/// The reader's own fault where there is one, else what is wrong with the table.
fn fault(error: csv::Error) -> Error {
    let line = error.position().map(csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(error) => match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::Body(error.to_string()),
        },
        _ => Error::Faults(vec![Fault { line, column: None, field: None, reason: "is no line of a table".into() }]),
    }
}

/// Writes records as JSON lines, each value as its column wants it.
pub struct JsonLines {
    /// The columns of the header: the field as it is written, and the kind of the values where it is known.
    fields: Vec<(String, String, Option<Kind>)>,
}

impl JsonLines {
    /// A writer for the records below a header.
    #[must_use]
    pub fn new(dataset: &Dataset, header: &[String]) -> Self {
        let kind = |name: &str| dataset.position(name).map(|position| dataset.columns[position].kind);
        let field = |name: &String| {
            let mut field = String::new();
            quote(name, &mut field);
            (name.clone(), field + ":", kind(name))
        };
        Self { fields: header.iter().map(field).collect() }
    }

    /// Writes a record as one object into `out`. Empty cells are left out: they are null.
    ///
    /// # Errors
    /// A record with another number of cells than the header, a cell that is no value of its column.
    pub fn write(&self, line: u64, record: &StringRecord, out: &mut String) -> Result<(), Fault> {
        if record.len() != self.fields.len() {
            let reason = format!("has {} cells where {} are expected", record.len(), self.fields.len());
            return Err(Fault::of_line(line, reason));
        }
        out.clear();
        let mut separator = '{';
        for ((name, field, kind), cell) in self.fields.iter().zip(record).filter(|(_, cell)| !cell.is_empty()) {
            out.push(separator);
            separator = ',';
            out.push_str(field);
            match kind {
                // A text, or what the reader of the line takes for a time.
                None | Some(Kind::Text | Kind::Timestamp) => quote(cell, out),
                Some(kind) => {
                    let value = kind.parse(cell).map_err(|reason| Fault {
                        line: Some(line),
                        column: None,
                        field: Some(name.clone()),
                        reason,
                    })?;
                    write_value(&value, out);
                }
            }
        }
        out.push_str(if separator == '{' { "{}" } else { "}" });
        Ok(())
    }
}

fn write_value(value: &Cell<'_>, out: &mut String) {
    match value {
        Cell::Int(value) => out.push_str(itoa::Buffer::new().format(*value)),
        Cell::Float(value) => out.push_str(ryu::Buffer::new().format_finite(*value)),
        Cell::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        // Line ends can stand between the values of a document only: within texts they are escaped.
        Cell::Json(text) => out.push_str(&text.replace(['\n', '\r'], " ")),
        _ => out.push_str("null"),
    }
}

/// Appends a text as JSON.
fn quote(text: &str, out: &mut String) {
    if text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        out.push_str(&serde_json::Value::from(text).to_string());
    } else {
        out.push('"');
        out.push_str(text);
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(text: impl Read) -> Result<Vec<Vec<String>>> {
        let mut cells = Vec::new();
        records(text, b',', |_, _, record| {
            cells.push(record.iter().map(str::to_owned).collect());
            Ok(true)
        })?;
        Ok(cells)
    }

    #[test]
    fn a_quote_that_is_never_closed_is_told_with_the_line_on_which_its_record_begins() {
        for (text, line) in [
            ("a,b\n1,2\n\n3,\"4\n5,6\n7,8\n", 4),
            ("a,b\n\"1\n1\",\"2\n", 2),
            ("a,\"b\n1,2\n", 1),
            ("a\n\"\"\"", 2),
            ("a\r\n1\r\n\"", 3),
        ] {
            let error = cells(text.as_bytes()).expect_err(text);
            let Error::Faults(faults) = &error else { panic!("{text}: {error}") };
            assert_eq!((faults[0].line, faults[0].reason.as_str()), (Some(line), "has a quote that is never closed"));
        }
    }

    #[test]
    fn quotes_that_are_closed_or_mean_themselves_are_read_as_they_are() {
        let text = "a,b\n\"1,\"\"\n\",2\nthe 5\" end,6\"\n\"7\"8,\"\"\n9,\"\"";
        let rows = [["1,\"\n", "2"], ["the 5\" end", "6\""], ["78", ""], ["9", ""]];
        assert_eq!(cells(text.as_bytes()).expect("a table"), rows);
    }

    #[test]
    fn a_record_of_many_lines_has_a_limit() {
        let lines = io::repeat(b'\n').take(LIMITS.line as u64);
        let read = cells(b"a\n1\n\"".chain(lines).chain(&b"\"\n"[..]));
        assert!(matches!(read, Err(Error::TooLarge { .. })));
        // Many short ones are none.
        let lines = b"12345678\n".repeat(4096);
        assert_eq!(cells(&lines[..]).expect("a table").len(), 4095);
    }
}
