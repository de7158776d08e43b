//! Tab-separated lines into rows, by the names in the header and never by position.
//!
//! GOTTCHA2 has moved its columns between releases, so a position means nothing without its header. Only a dataset
//! that declares its tools' own orders (`headerless`) is read without one.

use std::borrow::Cow;
use std::collections::HashSet;

use super::definition::Dataset;
use super::kind::Kind;
use super::params::Params;
use super::row::{Cell, Fault, MAX_FAULTS, Row, character};

/// Bytes of a name in a header: each row of an unknown column repeats it in `extra`.
const LONGEST_NAME: usize = 256;

/// What each cell of a line is.
#[derive(Debug)]
pub struct Header {
    targets: Vec<Target>,
}

#[derive(Debug)]
enum Target {
    /// The column at that position.
    Column(usize, Kind),
    /// A field that the dataset does not know.
    Extra(String),
}

impl Header {
    /// Understands the first line of a file, whose number is `number`. The flag tells whether that line is itself the header, else it is data.
    ///
    /// # Errors
    /// Every repeated, empty or missing column.
    pub fn parse(dataset: &Dataset, params: &Params, line: &str, number: u64) -> Result<(Self, bool), Vec<Fault>> {
        let cells: Vec<&str> = line.split('\t').map(str::trim).collect();
        let known = cells.iter().filter(|cell| dataset.position(cell).is_some()).count();
        let (header, is_header) = if known * 2 > cells.len() {
            (Self::named(dataset, line, number, &cells)?, true)
        } else {
            (Self::headerless(dataset, number, cells.len())?, false)
        };
        header.check_required(dataset, params, number)?;
        Ok((header, is_header))
    }

    fn named(dataset: &Dataset, line: &str, number: u64, cells: &[&str]) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut targets = Vec::new();
        let mut seen = HashSet::new();
        for (index, name) in cells.iter().enumerate() {
            let known = dataset.position(name);
            let target = known.map_or_else(
                || Target::Extra((*name).to_owned()),
                |found| Target::Column(found, dataset.columns[found].kind),
            );
            let reason = if name.is_empty() {
                Some(format!("cell {} of the header has no name", index + 1))
            } else if name.len() > LONGEST_NAME {
                Some(format!("cell {} of the header is longer than {LONGEST_NAME} bytes", index + 1))
            } else if !seen.insert(known.ok_or(*name)) {
                Some("stands twice in the header".to_owned())
            } else {
                None
            };
            if let Some(reason) = reason {
                let offset = name.as_ptr() as usize - line.as_ptr() as usize;
                let column = Some(character(line, offset));
                let field = (name.len() <= LONGEST_NAME).then(|| target.name(dataset).to_owned());
                faults.push(Fault { line: Some(number), column, field, reason });
            }
            targets.push(target);
            if faults.len() == MAX_FAULTS {
                break;
            }
        }
        if faults.is_empty() { Ok(Self { targets }) } else { Err(faults) }
    }

    fn headerless(dataset: &Dataset, number: u64, cells: usize) -> Result<Self, Vec<Fault>> {
        if let Some(order) = dataset.headerless.iter().find(|order| order.len() == cells) {
            let targets =
                order.iter().map(|&position| Target::Column(position, dataset.columns[position].kind)).collect();
            return Ok(Self { targets });
        }
        let required: Vec<&str> = dataset.required_columns().map(|column| column.name.as_str()).collect();
        let reason = format!(
            "is not a header of {0}: the first line must name the columns (at least {1}; GET /datasets/{0} lists all)",
            dataset.name,
            required.join(", "),
        );
        Err(vec![Fault::of_line(number, reason)])
    }

    fn check_required(&self, dataset: &Dataset, params: &Params, number: u64) -> Result<(), Vec<Fault>> {
        let named = |position| {
            self.targets.iter().any(|target| matches!(target, Target::Column(found, _) if *found == position))
        };
        let missing = dataset
            .required
            .iter()
            .filter(|position| !params.has(**position) && !named(**position))
            .map(|position| &dataset.columns[*position].name)
            .map(|name| Fault {
                line: Some(number),
                column: None,
                field: Some(name.clone()),
                reason: format!("is required but not in the header: add the column, or send it once as ?{name}="),
            })
            .collect::<Vec<_>>();
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    }

    /// Reads one line into `row`, which must be empty.
    ///
    /// # Errors
    /// The first fault of the line.
    pub fn read<'a>(&self, dataset: &Dataset, line: &'a str, number: u64, row: &mut Row<'a>) -> Result<(), Fault> {
        let fault = |offset, field: Option<&str>, reason: String| Fault {
            line: Some(number),
            column: Some(character(line, offset)),
            field: field.map(str::to_owned),
            reason,
        };
        if let Some(offset) = memchr::memchr(0, line.as_bytes()) {
            return Err(fault(offset, None, super::json::NUL.to_owned()));
        }
        let mut offset = 0;
        let mut targets = self.targets.iter();
        for text in line.split('\t') {
            let Some(target) = targets.next() else {
                return Err(self.wrong_width(line, number));
            };
            match target {
                Target::Column(position, kind) => {
                    let name = || dataset.columns[*position].name.as_str();
                    let cell = kind.parse(text).map_err(|reason| fault(offset, Some(name()), reason))?;
                    // The header names no column twice.
                    let _ = row.set(*position, cell);
                }
                Target::Extra(name) => row.extra.push((Cow::Owned(name.clone()), extra_value(text))),
            }
            offset += text.len() + 1;
        }
        if targets.next().is_some() { Err(self.wrong_width(line, number)) } else { Ok(()) }
    }

    fn wrong_width(&self, line: &str, number: u64) -> Fault {
        let cells = line.split('\t').count();
        Fault::of_line(number, format!("has {cells} cells where {} are expected", self.targets.len()))
    }

    /// The character of `line` at which the cell of the column at `position` begins.
    #[must_use]
    pub fn locate(&self, line: &str, position: usize) -> Option<u64> {
        let index =
            self.targets.iter().position(|target| matches!(target, Target::Column(found, _) if *found == position))?;
        let offset: usize = line.split('\t').take(index).map(|cell| cell.len() + 1).sum();
        Some(character(line, offset))
    }
}

impl Target {
    fn name<'a>(&'a self, dataset: &'a Dataset) -> &'a str {
        match self {
            Self::Column(position, _) => &dataset.columns[*position].name,
            Self::Extra(name) => name,
        }
    }
}

/// An unknown cell as JSON: a string, or null when it is empty.
fn extra_value(text: &str) -> Cow<'_, str> {
    if text.is_empty() { Cow::Borrowed("null") } else { Cow::Owned(serde_json::Value::from(text).to_string()) }
}

impl Cell<'_> {
    /// The text of a text cell.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}
