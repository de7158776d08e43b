//! What a dataset is in LabKey: a list, and where the value of each of its columns comes from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::definition::{Bounds, Column, Dataset};
use super::kind::Kind;
use super::row::Cell;
use super::sql::{literal, quoted};

/// A list, and its columns.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListMap {
    /// The list's name.
    pub list: String,
    /// Where the value of each column comes from, by the column's name in LabKey.
    pub columns: BTreeMap<String, Source>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// A column of the dataset, or `submission_id`, `ordinal`, `created_at`.
    Column(String),
    /// Something that needs a word to say what.
    Computed(Computed),
}

/// A value that is no column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Computed {
    /// The first of several that is there.
    First(Vec<Source>),
    /// One number divided by another; absent where that is zero.
    Ratio(Box<[Source; 2]>),
    /// A text as a whole number where it is one, else absent: lists have integers where tools write several ids.
    Whole(Box<Source>),
    /// A number for a column of LabKey's integers, which have 32 bits: a row with a larger one is sent, and refused alone.
    Small(Box<Source>),
    /// The same for every row.
    Constant(Value),
    /// The service's own.
    Service(Service),
}

/// What the service knows beside the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// When the row is sent.
    UploadTime,
    /// The client's key of the row's submission, or `sha256:` and its fingerprint.
    SubmissionKey,
}

/// A value as SQL over the row `t` of the dataset's table, and what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    /// The SQL.
    pub sql: String,
    /// The type of its values.
    pub kind: Kind,
    /// Whether a column of LabKey's integers, which have 32 bits, is right for its whole numbers.
    pub is_small: bool,
}

/// Columns of the service that may be mapped.
const SERVICE_COLUMNS: [(&str, Kind); 3] =
    [("submission_id", Kind::Int), ("ordinal", Kind::Int), ("created_at", Kind::Timestamp)];

impl Source {
    /// The value as SQL.
    ///
    /// # Errors
    /// What in it is wrong.
    pub fn expression(&self, dataset: &Dataset) -> Result<Expression, String> {
        match self {
            Self::Column(name) => column(dataset, name),
            Self::Computed(Computed::First(sources)) => first(dataset, sources),
            Self::Computed(Computed::Ratio(ends)) => ratio(dataset, ends),
            Self::Computed(Computed::Whole(source)) => {
                let text = source.expression(dataset)?.sql;
                // Nine digits always fit into LabKey's integers.
                let sql = format!("CASE WHEN ({text})::text ~ '^[0-9]{{1,9}}$' THEN ({text})::text::integer END");
                Ok(Expression { sql, kind: Kind::Int, is_small: true })
            }
            Self::Computed(Computed::Small(source)) => match source.expression(dataset)? {
                Expression { sql, kind: Kind::Int, .. } => Ok(Expression { sql, kind: Kind::Int, is_small: true }),
                _ => Err("`small` needs a whole number".to_owned()),
            },
            Self::Computed(Computed::Constant(value)) => constant(value),
            Self::Computed(Computed::Service(Service::UploadTime)) => Ok(time("now()")),
            Self::Computed(Computed::Service(Service::SubmissionKey)) => {
                let sql = "(SELECT key FROM submissions WHERE submissions.id = t.submission_id)".to_owned();
                Ok(Expression { sql, kind: Kind::Text, is_small: false })
            }
        }
    }
}

fn column(dataset: &Dataset, name: &str) -> Result<Expression, String> {
    let declared = dataset.columns.iter().find(|column| column.name == name);
    let service = SERVICE_COLUMNS.iter().find(|(service, _)| *service == name);
    let kind = declared.map(|column| column.kind).or(service.map(|(_, kind)| *kind));
    let kind = kind.ok_or_else(|| format!("`{name}` is no column of {}", dataset.name))?;
    let value = format!("t.{}", quoted(name));
    Ok(match kind {
        Kind::Timestamp => time(&value),
        // LabKey takes an empty text for none in some columns, and refuses it in others.
        Kind::Text => Expression { sql: format!("nullif({value}, '')"), kind, is_small: false },
        Kind::Json => Expression { sql: format!("{value}::text"), kind, is_small: false },
        Kind::Int | Kind::Float | Kind::Bool => {
            let is_small = name == "ordinal" || declared.is_some_and(is_small);
            Expression { sql: value, kind, is_small }
        }
    })
}

fn is_small(column: &Column) -> bool {
    let (lowest, highest) = (i64::from(i32::MIN), i64::from(i32::MAX));
    matches!(column.range, Some(Bounds::Int { min, max }) if min >= lowest && max <= highest)
}

/// RFC 3339 in UTC with the milliseconds that LabKey keeps.
fn time(value: &str) -> Expression {
    let sql = format!("to_char({value} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')");
    Expression { sql, kind: Kind::Timestamp, is_small: false }
}

fn first(dataset: &Dataset, sources: &[Source]) -> Result<Expression, String> {
    let all: Vec<Expression> = sources.iter().map(|source| source.expression(dataset)).collect::<Result<_, _>>()?;
    let Some(one) = all.first() else { return Err("`first` needs at least one source".to_owned()) };
    let is_number = |kind| matches!(kind, Kind::Int | Kind::Float);
    let kind = if all.iter().all(|other| other.kind == one.kind) {
        one.kind
    } else if all.iter().all(|other| is_number(other.kind)) {
        Kind::Float
    } else {
        return Err("`first` needs sources of one kind".to_owned());
    };
    let sql: Vec<&str> = all.iter().map(|one| one.sql.as_str()).collect();
    Ok(Expression { sql: format!("coalesce({})", sql.join(", ")), kind, is_small: all.iter().all(|one| one.is_small) })
}

fn ratio(dataset: &Dataset, ends: &[Source; 2]) -> Result<Expression, String> {
    let [over, under] = [ends[0].expression(dataset)?, ends[1].expression(dataset)?];
    if [over.kind, under.kind].iter().any(|kind| !matches!(kind, Kind::Int | Kind::Float)) {
        return Err("`ratio` needs two numbers".to_owned());
    }
    let sql = format!("({})::double precision / nullif(({})::double precision, 0)", over.sql, under.sql);
    Ok(Expression { sql, kind: Kind::Float, is_small: false })
}

fn constant(value: &Value) -> Result<Expression, String> {
    let (cell, kind) = match value {
        Value::String(text) if !text.contains('\0') => (Cell::Text(text.as_str().into()), Kind::Text),
        Value::Bool(value) => (Cell::Bool(*value), Kind::Bool),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => (Cell::Int(whole), Kind::Int),
            (None, Some(float)) if float.is_finite() => (Cell::Float(float), Kind::Float),
            _ => return Err("`constant` is no number that can be sent".to_owned()),
        },
        _ => return Err("`constant` is one text, number or truth value".to_owned()),
    };
    let postgres = kind.postgres();
    let is_small = value.as_i64().is_some_and(|whole| i32::try_from(whole).is_ok());
    Ok(Expression { sql: format!("{}::{postgres}", literal(&cell)), kind, is_small })
}

#[cfg(test)]
mod tests {
    use super::super::Datasets;
    use super::*;

    fn expression(source: &str) -> Result<Expression, String> {
        let source: Source = serde_json::from_str(source).expect("source");
        let datasets = Datasets::load(None).expect("definitions");
        source.expression(datasets.get("gottcha2").expect("gottcha2"))
    }

    #[test]
    fn every_built_in_map_can_be_had() {
        for dataset in Datasets::load(None).expect("definitions").iter() {
            for (name, map) in &dataset.labkey {
                for (column, source) in &map.columns {
                    let found = source.expression(dataset);
                    assert!(found.is_ok(), "{} {name} {column}: {found:?}", dataset.name);
                }
            }
        }
    }

    #[test]
    fn a_mixed_choice_of_numbers_is_a_float_and_of_anything_else_a_mistake() {
        assert_eq!(expression(r#"{"first": ["linear_len", "depth"]}"#).map(|it| it.kind), Ok(Kind::Float));
        assert!(expression(r#"{"first": ["linear_len", "name"]}"#).is_err());
        assert!(expression(r#"{"ratio": ["linear_len", "name"]}"#).is_err());
        assert!(expression(r#"{"small": "name"}"#).is_err());
        assert!(expression(r#""nonsense""#).is_err());
    }

    #[test]
    fn a_constant_cannot_leave_its_quotes() {
        let found = expression(r#"{"constant": "it's '); DROP TABLE x; --"}"#).expect("constant");
        assert_eq!(found.sql, "'it''s ''); DROP TABLE x; --'::text");
    }
}
