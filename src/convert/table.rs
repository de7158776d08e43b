//! Comma- and tab-separated values, cell by cell, and their rows as JSON lines.

use std::io::Read;

use csv::StringRecord;

use crate::dataset::{Cell, Dataset, Fault, Kind};
use crate::error::{Error, Result};

/// Hands the header and each record with the number of its line to `each`, until it answers false.
///
/// # Errors
/// Text that is no table, a header with a column that has no name, what `each` says.
pub fn records(
    text: impl Read,
    delimiter: u8,
    mut each: impl FnMut(u64, &[String], &StringRecord) -> Result<bool>,
) -> Result<()> {
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
                header = Some(names);
            }
        }
    }
    Ok(())
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
        Cell::Json(text) => out.extend(text.chars().map(|letter| if letter.is_control() { ' ' } else { letter })),
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
