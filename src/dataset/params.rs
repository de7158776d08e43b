//! Values for a whole submission: query parameters fill the columns that the rows lack.

use std::borrow::Cow;

use super::definition::{Dataset, RESERVED_PARAMETERS};
use super::row::{Cell, Fault, check_range};

/// The query parameters of one submission, checked against the dataset.
#[derive(Debug, Clone)]
pub struct Params {
    /// The values for columns that rows lack, with the positions of these columns.
    pub defaults: Vec<(usize, Cell<'static>)>,
    /// Column name and text as sent, sorted by column: part of the submission's identity.
    pub pairs: Vec<(String, String)>,
}

impl Params {
    /// Checks query parameters; the reserved ones are passed over.
    ///
    /// # Errors
    /// Every parameter that is no column of the dataset, is given twice, or has a wrong value.
    pub fn parse(dataset: &Dataset, query: &[(String, String)]) -> Result<Self, Vec<Fault>> {
        let mut params = Self { defaults: Vec::new(), pairs: Vec::new() };
        let mut faults = Vec::new();
        for (name, text) in query.iter().filter(|(name, _)| !RESERVED_PARAMETERS.contains(&name.as_str())) {
            if let Err(reason) = params.take(dataset, name, text) {
                faults.push(Fault::of_parameter(name, reason));
            }
        }
        params.pairs.sort();
        if faults.is_empty() { Ok(params) } else { Err(faults) }
    }

    fn take(&mut self, dataset: &Dataset, name: &str, text: &str) -> Result<(), String> {
        let Some(position) = dataset.position(name) else {
            return Err(format!(
                "is neither a parameter of this route nor a column of {0}: GET /datasets/{0} lists the columns",
                dataset.name
            ));
        };
        let column = &dataset.columns[position];
        if self.has(position) {
            return Err(format!("gives column `{}` a second time", column.name));
        }
        if text.contains('\0') {
            return Err(super::json::NUL.to_owned());
        }
        let cell = match column.kind.parse(text)? {
            Cell::Text(text) => Cell::Text(Cow::Owned(text.into_owned())),
            Cell::Json(text) => Cell::Json(Cow::Owned(text.into_owned())),
            Cell::Int(value) => Cell::Int(value),
            Cell::Float(value) => Cell::Float(value),
            Cell::Bool(value) => Cell::Bool(value),
            Cell::Timestamp(value) => Cell::Timestamp(value),
            Cell::Absent | Cell::Null => return Err("has no value".to_owned()),
        };
        if let Some(range) = column.range {
            check_range(&cell, range)?;
        }
        self.defaults.push((position, cell));
        self.pairs.push((column.name.clone(), text.to_owned()));
        Ok(())
    }

    /// Whether there is a value for the column at `position`.
    #[must_use]
    pub fn has(&self, position: usize) -> bool {
        self.defaults.iter().any(|(known, _)| *known == position)
    }

    /// The text given for a column, if any.
    #[must_use]
    pub fn text(&self, column: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == column).map(|(_, text)| text.as_str())
    }
}
