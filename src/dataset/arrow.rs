//! A dataset's columns in Arrow.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field, TimeUnit};

use super::definition::{Column, Dataset, IndexMethod};
use super::kind::Kind;

/// The Arrow type of a kind: timestamps are microseconds in UTC, JSON is text.
#[must_use]
pub fn data_type(kind: Kind) -> DataType {
    match kind {
        Kind::Text | Kind::Json => DataType::Utf8,
        Kind::Int => DataType::Int64,
        Kind::Float => DataType::Float64,
        Kind::Bool => DataType::Boolean,
        Kind::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
    }
}

/// A field whose metadata say what the column means, where a column is given.
#[must_use]
pub fn field(name: &str, kind: Kind, column: Option<&Column>) -> Field {
    let field = Field::new(name, data_type(kind), true);
    let Some(column) = column else { return field };
    let mut metadata = HashMap::from([("description".to_owned(), column.description.clone())]);
    metadata.extend(column.unit.clone().map(|unit| ("unit".to_owned(), unit)));
    field.with_metadata(metadata)
}

/// The columns that readers look up by equality.
pub fn lookup_columns(dataset: &Dataset) -> impl Iterator<Item = &str> {
    let bloom = dataset.indexes.iter().filter(|index| index.method == IndexMethod::Bloom);
    bloom.flat_map(|index| index.columns.iter().map(String::as_str))
}
