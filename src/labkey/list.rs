//! Which list each dataset goes to, and its rows as LabKey takes them: PostgreSQL itself writes them, as JSON or as CSV.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::client::ListName;
use crate::config::{LabkeyConfig, ListConfig, Mode};
use crate::dataset::labkey::{Expression, Source};
use crate::dataset::{Cell, Dataset, Datasets, Kind, sql};
use crate::db::labkey::Delivery;
use crate::error::{Error, Result};

/// The column that names a row for ever: dataset, submission key and ordinal.
pub const RECORD_KEY: &str = "RecordKey";

/// The column that names the delivery by which a row came, and its attempt.
pub const DELIVERY_KEY: &str = "DeliveryKey";

/// PostgreSQL cuts longer names off.
const LONGEST_NAME: usize = 63;

/// One dataset's list.
#[derive(Debug, Clone)]
pub struct List {
    /// Whose rows.
    pub dataset: Arc<Dataset>,
    /// The list's schema.
    pub schema: String,
    /// The list's name.
    pub name: String,
    /// How rows become unique.
    pub mode: Mode,
    /// What is sent, by the column's name in LabKey.
    pub columns: BTreeMap<String, Expression>,
}

/// The lists of all datasets that are delivered.
///
/// # Errors
/// All that is wrong with the configured lists.
pub fn all(config: &LabkeyConfig, datasets: &Datasets) -> Result<Vec<List>> {
    let mut mistakes = Vec::new();
    for own in &config.lists {
        if datasets.get(&own.dataset).is_none() {
            mistakes.push(format!("`{}` is no dataset", own.dataset));
        }
    }
    if !datasets.iter().any(|dataset| dataset.labkey.contains_key(&config.map)) {
        mistakes.push(format!("labkey.map: no dataset has a map `{}`", config.map));
    }
    let mut lists = Vec::new();
    for dataset in datasets.iter() {
        let own = config.lists.iter().find(|own| own.dataset == dataset.name);
        match List::new(config, dataset, own) {
            Ok(list) => lists.extend(list),
            Err(reason) => mistakes.push(format!("{}: {reason}", dataset.name)),
        }
    }
    if mistakes.is_empty() {
        Ok(lists)
    } else {
        Err(Error::Environment(format!("labkey.lists cannot be used:\n  {}", mistakes.join("\n  "))))
    }
}

impl List {
    fn new(config: &LabkeyConfig, dataset: &Arc<Dataset>, own: Option<&ListConfig>) -> Result<Option<Self>, String> {
        if own.is_some_and(|own| !own.deliver) {
            return Ok(None);
        }
        let wanted = own.and_then(|own| own.map.as_ref());
        let map = dataset.labkey.get(wanted.unwrap_or(&config.map));
        if let (Some(wanted), None) = (wanted, map) {
            return Err(format!("has no map `{wanted}`"));
        }
        let mut sources = map.map(|map| map.columns.clone()).unwrap_or_default();
        for (column, source) in own.into_iter().flat_map(|own| &own.columns) {
            if source.as_str() == Some("") {
                sources.remove(column);
            } else {
                let source: Source = serde_json::from_value(source.clone())
                    .map_err(|_| format!("column `{column}`: no known source"))?;
                sources.insert(column.clone(), source);
            }
        }
        let name = own.and_then(|own| own.list.clone()).or_else(|| map.map(|map| map.list.clone()));
        let Some(name) = name.filter(|_| !sources.is_empty()) else {
            // No definition says what it would be in LabKey, and nobody asks for it.
            return if own.is_some() { Err("needs list and columns".to_owned()) } else { Ok(None) };
        };
        let mut columns = BTreeMap::new();
        for (column, source) in sources {
            let is_own = [RECORD_KEY, DELIVERY_KEY].iter().any(|own| own.eq_ignore_ascii_case(&column));
            if column.is_empty() || column.len() > LONGEST_NAME || is_own {
                return Err(format!("column `{column}`: the name is empty, too long, or the service's own"));
            }
            let expression = source.expression(dataset).map_err(|reason| format!("column `{column}`: {reason}"))?;
            columns.insert(column, expression);
        }
        Ok(Some(Self {
            dataset: Arc::clone(dataset),
            schema: own.and_then(|own| own.schema.clone()).unwrap_or_else(|| config.schema_name.clone()),
            name,
            mode: own.and_then(|own| own.mode).unwrap_or(config.mode),
            columns,
        }))
    }

    /// Its name for requests.
    #[must_use]
    pub fn list_name(&self) -> ListName<'_> {
        ListName { schema: &self.schema, name: &self.name }
    }
}

/// A list that was looked at, and what was found there.
#[derive(Debug, Clone)]
pub struct Target<'l> {
    /// The list.
    pub list: &'l List,
    /// Whether rows are merged; else they are inserted.
    pub merges: bool,
    /// Whether it has the column [`RECORD_KEY`].
    pub has_record_key: bool,
    /// Whether it has the column [`DELIVERY_KEY`].
    pub has_delivery_key: bool,
    /// The name of its key.
    pub key: String,
}

impl Target<'_> {
    /// The columns that are sent, with their SQL.
    fn columns(&self) -> Vec<(&str, &str)> {
        let own = [
            (RECORD_KEY, "d.prefix || '-' || t.ordinal", self.has_record_key),
            (DELIVERY_KEY, "d.key", self.has_delivery_key),
        ];
        let own = own.into_iter().filter(|(.., is_there)| *is_there).map(|(name, sql, _)| (name, sql));
        own.chain(self.list.columns.iter().map(|(name, value)| (name.as_str(), value.sql.as_str()))).collect()
    }

    /// The first line of a CSV.
    #[must_use]
    pub fn csv_header(&self) -> String {
        let names: Vec<String> =
            self.columns().iter().map(|(name, _)| format!("\"{}\"", name.replace('"', "\"\""))).collect();
        format!("{}\n", names.join(","))
    }

    /// The COPY of the rows of some deliveries: CSV to merge, one JSON object a line to insert.
    #[must_use]
    pub fn copy_out(&self, deliveries: &[Delivery]) -> String {
        self.copy(deliveries, self.merges)
    }

    /// The COPY of the rows of some deliveries as JSON objects.
    #[must_use]
    pub fn copy_json(&self, deliveries: &[Delivery]) -> String {
        self.copy(deliveries, false)
    }

    fn copy(&self, deliveries: &[Delivery], is_csv: bool) -> String {
        let text = |text: &str| sql::literal(&Cell::Text(text.into()));
        let ranges: Vec<String> = deliveries
            .iter()
            .map(|one| {
                let (prefix, key) = (text(&one.record_prefix), text(&one.delivery_key()));
                format!("({}::bigint, {}, {}, {prefix}, {key})", one.submission_id, one.first_ordinal, one.last_ordinal)
            })
            .collect();
        let columns: Vec<String> =
            self.columns().iter().map(|(name, value)| format!("{value} AS {}", sql::quoted(name))).collect();
        let (columns, table) = (columns.join(", "), sql::quoted(&self.list.dataset.table));
        let source = format!(
            "FROM (VALUES {}) AS d (submission_id, first_ordinal, last_ordinal, prefix, key) JOIN {table} t \
             ON t.submission_id = d.submission_id AND t.ordinal BETWEEN d.first_ordinal AND d.last_ordinal",
            ranges.join(", ")
        );
        let order = "ORDER BY t.submission_id, t.ordinal";
        if is_csv {
            // LabKey trims what is not quoted, and takes its backslashes for escapes.
            return format!("COPY (SELECT {columns} {source} {order}) TO STDOUT (FORMAT csv, FORCE_QUOTE *)");
        }
        // JSON holds no control characters, so nothing is ever quoted.
        format!(
            "COPY (SELECT row_to_json(r) {source} CROSS JOIN LATERAL (SELECT {columns}) r {order}) \
             TO STDOUT (FORMAT csv, QUOTE E'\\x01', DELIMITER E'\\x02')"
        )
    }
}

/// What LabKey's type of a column takes.
#[must_use]
pub fn takes(json_type: &str, value: &Expression) -> Fit {
    match (json_type.to_lowercase().as_str(), value.kind) {
        ("string", _) => Fit::Good,
        ("float" | "double" | "number", Kind::Int | Kind::Float) => Fit::Good,
        ("int" | "integer", Kind::Int) if value.is_small => Fit::Good,
        ("int" | "integer", Kind::Int) => Fit::Narrow,
        ("boolean", Kind::Bool) | ("date", Kind::Timestamp) => Fit::Good,
        // LabKey has types that this service knows nothing of; what it refuses it will say.
        (known, _) if ["float", "double", "number", "int", "integer", "boolean", "date"].contains(&known) => Fit::Wrong,
        _ => Fit::Good,
    }
}

/// How values fit a column of LabKey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// All do.
    Good,
    /// Only those that fit into 32 bits do, and larger ones are to be expected.
    Narrow,
    /// They are of another type.
    Wrong,
}
