//! Rows into Arrow batches.

use std::sync::Arc;

use arrow::array::builder::{BooleanBuilder, Float64Builder, Int64Builder, StringBuilder, TimestampMicrosecondBuilder};
use arrow::array::{ArrayRef, RecordBatch};

use crate::dataset::{Cell, Kind, Row};
use crate::error::{Error, Result};
use crate::export::spec::Plan;
use crate::ingest::copy::write_object;

/// Bytes that a value takes besides its text, roughly.
const VALUE: usize = 9;

/// Where the values of each column of the files come from: a column of the dataset, or the unknown fields.
#[derive(Debug, Clone)]
pub struct Mapping(Vec<(Kind, Option<usize>)>);

impl Mapping {
    /// The mapping of a plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let position = |name: &str| plan.dataset.columns.iter().position(|column| column.name == name);
        Self(plan.columns.iter().map(|column| (column.kind, position(&column.name))).collect())
    }
}

/// Rows that are collected.
pub struct Columns {
    values: Vec<(Values, Option<usize>)>,
    /// Their number.
    pub rows: usize,
    /// What they take in memory, roughly.
    pub bytes: usize,
}

enum Values {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Text(StringBuilder),
    Time(TimestampMicrosecondBuilder),
}

impl Columns {
    /// No rows yet.
    #[must_use]
    pub fn new(mapping: &Mapping) -> Self {
        let values = mapping.0.iter().map(|(kind, source)| (Values::new(*kind), *source));
        Self { values: values.collect(), rows: 0, bytes: 0 }
    }

    /// Adds a row.
    pub fn push(&mut self, row: &Row<'_>) {
        for (values, source) in &mut self.values {
            match source {
                Some(position) => self.bytes += VALUE + values.push(row.cell(*position)),
                None if row.extra.is_empty() => self.bytes += VALUE + values.push(&Cell::Null),
                None => {
                    let mut text = Vec::new();
                    write_object(&mut text, row);
                    self.bytes += VALUE + values.push(&Cell::Json(String::from_utf8_lossy(&text)));
                }
            }
        }
        self.rows += 1;
    }

    /// The rows as a batch; afterwards there are none.
    ///
    /// # Errors
    /// Never, in practice.
    pub fn take(&mut self, plan: &Plan) -> Result<RecordBatch> {
        (self.rows, self.bytes) = (0, 0);
        let arrays = self.values.iter_mut().map(|(values, _)| values.take()).collect();
        RecordBatch::try_new(Arc::clone(&plan.schema), arrays)
            .map_err(|error| Error::Internal(format!("rows do not make a batch: {error}")))
    }
}

impl Values {
    /// No values, and no memory: each of thousands of folders has such ones, and most of these few rows.
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Bool => Self::Bool(BooleanBuilder::with_capacity(0)),
            Kind::Int => Self::Int(Int64Builder::with_capacity(0)),
            Kind::Float => Self::Float(Float64Builder::with_capacity(0)),
            Kind::Text | Kind::Json => Self::Text(StringBuilder::with_capacity(0, 0)),
            Kind::Timestamp => Self::Time(TimestampMicrosecondBuilder::with_capacity(0).with_timezone("UTC")),
        }
    }

    /// Takes a value, and answers with the number of bytes of text it is.
    fn push(&mut self, cell: &Cell<'_>) -> usize {
        match (self, cell) {
            (Self::Bool(values), Cell::Bool(value)) => values.append_value(*value),
            (Self::Int(values), Cell::Int(value)) => values.append_value(*value),
            (Self::Float(values), Cell::Float(value)) => values.append_value(*value),
            (Self::Time(values), Cell::Timestamp(value)) => values.append_value(*value),
            (Self::Text(values), Cell::Text(text) | Cell::Json(text)) => {
                values.append_value(text);
                return text.len();
            }
            // A cell is of its column's kind, or empty.
            (Self::Bool(values), _) => values.append_null(),
            (Self::Int(values), _) => values.append_null(),
            (Self::Float(values), _) => values.append_null(),
            (Self::Time(values), _) => values.append_null(),
            (Self::Text(values), _) => values.append_null(),
        }
        0
    }

    fn take(&mut self) -> ArrayRef {
        match self {
            Self::Bool(values) => Arc::new(values.finish()),
            Self::Int(values) => Arc::new(values.finish()),
            Self::Float(values) => Arc::new(values.finish()),
            Self::Text(values) => Arc::new(values.finish()),
            Self::Time(values) => Arc::new(values.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_take_memory_for_rows_that_there_are() {
        let capacity = |values: &Values| match values {
            Values::Bool(values) => values.capacity(),
            Values::Int(values) => values.capacity(),
            Values::Float(values) => values.capacity(),
            Values::Time(values) => values.capacity(),
            Values::Text(_) => 0,
        };
        for (kind, cell) in [
            (Kind::Int, Cell::Int(1)),
            (Kind::Float, Cell::Float(1.0)),
            (Kind::Bool, Cell::Bool(true)),
            (Kind::Timestamp, Cell::Timestamp(1)),
        ] {
            let mut values = Values::new(kind);
            assert_eq!(capacity(&values), 0, "{kind:?}");
            values.push(&cell);
            assert!(capacity(&values) <= 512, "{kind:?}: {}", capacity(&values));
            values.take();
            assert_eq!(capacity(&values), 0, "{kind:?}");
        }
    }
}
