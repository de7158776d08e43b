//! One record on its way from a line to the table: its cells, what is missing, and what is wrong with it.

use std::borrow::Cow;

use serde::Serialize;

use super::definition::{Bounds, Dataset};

/// The value of one column in one row, borrowed from the line where possible.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'a> {
    /// The line does not speak of this column.
    Absent,
    /// The line says that there is no value.
    Null,
    /// Text.
    Text(Cow<'a, str>),
    /// An integer.
    Int(i64),
    /// A finite float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Microseconds since 1970 in UTC.
    Timestamp(i64),
    /// The text of a checked JSON value.
    Json(Cow<'a, str>),
}

impl Cell<'_> {
    /// Whether there is no value.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        matches!(self, Self::Absent | Self::Null)
    }
}

/// The cells of one row, and the fields that the dataset does not know.
#[derive(Debug)]
pub struct Row<'a> {
    /// One cell for each column of the dataset.
    cells: Vec<Cell<'a>>,
    /// The positions of those that are not absent, as they came: of a wide dataset a line speaks of few columns, and what
    /// is done with each row must not look at all of them.
    present: Vec<usize>,
    /// Unknown fields: the name, and the value as JSON text.
    pub extra: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Row<'a> {
    /// An empty row of so many columns, to be filled and cleared line after line.
    #[must_use]
    pub fn new(columns: usize) -> Self {
        Self { cells: vec![Cell::Absent; columns], present: Vec::new(), extra: Vec::new() }
    }

    /// The cell of the column at `position`.
    #[must_use]
    pub fn cell(&self, position: usize) -> &Cell<'a> {
        &self.cells[position]
    }

    /// The cells that are not absent, with the positions of their columns.
    pub fn present(&self) -> impl Iterator<Item = (usize, &Cell<'a>)> {
        self.present.iter().map(|&position| (position, &self.cells[position]))
    }

    /// Sets the cell of the column at `position`; false when it has been set before.
    #[must_use]
    #[inline]
    pub fn set(&mut self, position: usize, cell: Cell<'a>) -> bool {
        let is_first = matches!(self.cells[position], Cell::Absent);
        if is_first {
            self.cells[position] = cell;
            self.present.push(position);
        }
        is_first
    }

    /// Empties the row for the next line.
    pub fn clear(&mut self) {
        for position in self.present.drain(..) {
            self.cells[position] = Cell::Absent;
        }
        self.extra.clear();
    }

    /// Fills what the line lacks from `defaults`, then checks required columns and ranges.
    ///
    /// # Errors
    /// The position of a column that is wrong, and why.
    pub fn complete(&mut self, dataset: &Dataset, defaults: &[(usize, Cell<'static>)]) -> Result<(), (usize, String)> {
        for (position, cell) in self.present() {
            if let Some(range) = dataset.columns[position].range {
                check_range(cell, range).map_err(|reason| (position, reason))?;
            }
        }
        for (position, default) in defaults {
            let cell = &mut self.cells[*position];
            if *cell == Cell::Absent {
                self.present.push(*position);
            }
            if cell.is_empty() {
                cell.clone_from(default);
            }
        }
        match dataset.required.iter().find(|position| self.cells[**position].is_empty()) {
            None => Ok(()),
            Some(&position) => {
                let name = &dataset.columns[position].name;
                Err((position, format!("is required: send it in every row, or once as ?{name}=")))
            }
        }
    }
}

/// Checks a number against the range of its column.
///
/// # Errors
/// The range, without the value.
pub fn check_range(cell: &Cell<'_>, range: Bounds) -> Result<(), String> {
    let inside = match (cell, range) {
        (Cell::Int(value), Bounds::Int { min, max }) => (min..=max).contains(value),
        (Cell::Float(value), Bounds::Float { min, max }) => (min..=max).contains(value),
        _ => true,
    };
    if inside { Ok(()) } else { Err(format!("must be {range}")) }
}

/// Faults of a body that are reported; reading stops at the last of them.
pub const MAX_FAULTS: usize = 20;

/// What is wrong with one place of a request. It never repeats the value that it complains of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = FieldFault)]
pub struct Fault {
    /// The line of the decompressed body, from 1; absent for a query parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, example = 17, nullable = false)]
    pub line: Option<u64>,
    /// The character of that line where the trouble begins, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, example = 42, nullable = false)]
    pub column: Option<u64>,
    /// The column of the dataset, or the query parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "read_count", nullable = false)]
    pub field: Option<String>,
    /// What is wrong, and what to do.
    #[schema(example = "must be at least 0")]
    pub reason: String,
}

impl Fault {
    /// A fault of a whole line.
    #[must_use]
    pub fn of_line(line: u64, reason: impl Into<String>) -> Self {
        Self { line: Some(line), column: None, field: None, reason: reason.into() }
    }

    /// A fault of a query parameter.
    #[must_use]
    pub fn of_parameter(name: &str, reason: impl Into<String>) -> Self {
        Self { line: None, column: None, field: Some(name.to_owned()), reason: reason.into() }
    }
}

/// The position, in characters from 1, of the byte `offset` of `line`.
#[must_use]
pub fn character(line: &str, offset: usize) -> u64 {
    let before = line.as_bytes().get(..offset).unwrap_or(line.as_bytes());
    // Bytes that begin a character are all but the continuation bytes 10xxxxxx.
    before.iter().filter(|byte| **byte & 0xC0 != 0x80).count() as u64 + 1
}
