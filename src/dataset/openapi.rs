//! A dataset as an OpenAPI (JSON Schema 2020-12) object, and as the JSON Schema that `GET /datasets/{name}` shows.

use serde_json::{Map, Value, json};

use super::definition::{Bounds, Column, Dataset};
use super::kind::Kind;

/// The JSON Schema of one record. Unknown fields are allowed: they are kept in `extra`.
#[must_use]
pub fn record_schema(dataset: &Dataset) -> Value {
    let properties: Map<String, Value> =
        dataset.columns.iter().map(|column| (column.name.clone(), column_schema(column))).collect();
    let required: Vec<&str> = dataset.required_columns().map(|column| column.name.as_str()).collect();
    json!({
        "type": "object",
        "description": dataset.description,
        "properties": properties,
        "required": required,
        "additionalProperties": true,
        "example": example(dataset),
    })
}

/// One record made of the columns' examples.
#[must_use]
pub fn example(dataset: &Dataset) -> Value {
    let fields = dataset.columns.iter().filter_map(|column| Some((column.name.clone(), column.example.clone()?)));
    Value::Object(fields.collect())
}

/// The JSON Schema of a query parameter that fills a column.
#[must_use]
pub fn parameter_schema(column: &Column) -> Value {
    let mut schema = value_schema(column);
    if column.kind == Kind::Text {
        schema.insert("minLength".into(), json!(1));
    }
    Value::Object(schema)
}

fn column_schema(column: &Column) -> Value {
    let mut schema = value_schema(column);
    if let Some(kind) = schema.get_mut("type").filter(|_| !column.required) {
        *kind = json!([kind, "null"]);
    }
    let unit = column.unit.as_ref().map(|unit| format!(" Unit: {unit}.")).unwrap_or_default();
    schema.insert("description".into(), json!(format!("{}{unit}", column.description)));
    if let Some(example) = &column.example {
        schema.insert("example".into(), example.clone());
    }
    Value::Object(schema)
}

/// Type and range of a column's values.
fn value_schema(column: &Column) -> Map<String, Value> {
    let (name, format) = match column.kind {
        Kind::Text => (Some("string"), None),
        Kind::Int => (Some("integer"), Some("int64")),
        Kind::Float => (Some("number"), Some("double")),
        Kind::Bool => (Some("boolean"), None),
        Kind::Timestamp => (Some("string"), Some("date-time")),
        // Any value, so no type.
        Kind::Json => (None, None),
    };
    let (min, max) = match column.range {
        None => (None, None),
        Some(Bounds::Int { min, max }) => {
            ((min != i64::MIN).then(|| json!(min)), (max != i64::MAX).then(|| json!(max)))
        }
        Some(Bounds::Float { min, max }) => {
            ((min != f64::MIN).then(|| json!(min)), (max != f64::MAX).then(|| json!(max)))
        }
    };
    let known =
        [("type", name.map(Value::from)), ("format", format.map(Value::from)), ("minimum", min), ("maximum", max)];
    known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}
