//! A dataset's declaration: its TOML, and every mistake that can be made in it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::kind::{Kind, parse_timestamp};
use super::labkey::ListMap;

/// Columns that the service adds to every dataset table.
pub const SERVICE_COLUMNS: [&str; 4] = ["submission_id", "ordinal", "extra", "created_at"];

/// Files of an extract beside those of its datasets, without their endings.
const EXTRACT_FILES: [&str; 2] = ["describe", "manifest"];

/// Columns of an index in PostgreSQL.
const MOST_KEYS: usize = 32;

/// Columns with a Bloom filter: those of a range of pages lie on one page of the index, and take up to 1.2 kB each.
const MOST_BLOOM: usize = 6;

/// Columns that PostgreSQL adds to every table.
/// Source: <https://www.postgresql.org/docs/current/ddl-system-columns.html>.
const SYSTEM_COLUMNS: [&str; 6] = ["ctid", "cmax", "cmin", "tableoid", "xmax", "xmin"];

/// Tables of the service itself, which no dataset may take. Those for LabKey have names that begin with `labkey_`.
const OWN_TABLES: [&str; 10] = [
    "export_files",
    "export_jobs",
    "exports",
    "extract_artifacts",
    "extract_runs",
    "extracts",
    "jobs",
    "keys",
    "schedules",
    "submissions",
];

/// Query parameters of the ingest routes, which no column may be named after.
pub const RESERVED_PARAMETERS: [&str; 2] = ["format", "on_conflict"];

/// One kind of record: a name, a table and its columns.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The name in URLs and files, such as `gottcha2`.
    pub name: String,
    /// The table in PostgreSQL, such as `gottcha2_full`.
    pub table: String,
    /// A short title for people.
    pub title: String,
    /// What one row is, and what a reader must know of it.
    pub description: String,
    /// The columns in the order of the table.
    pub columns: Vec<Column>,
    /// The positions of the columns without whose value a row is refused.
    pub required: Vec<usize>,
    /// The indexes besides the primary key.
    pub indexes: Vec<Index>,
    /// Columns whose values identify a row for ever: rows already there are skipped. Empty for most datasets.
    pub unique: Vec<String>,
    /// Column orders of files without a header, chosen by the number of cells; positions in `columns`.
    pub headerless: Vec<Vec<usize>>,
    /// What it can be in LabKey, by the name of the map.
    pub labkey: BTreeMap<String, ListMap>,
    /// Position by lower-case name or alias.
    lookup: HashMap<String, usize>,
}

/// One column of a dataset.
#[derive(Debug, Clone, Serialize)]
pub struct Column {
    /// The name in PostgreSQL, JSON and Parquet.
    pub name: String,
    /// The type of its values.
    pub kind: Kind,
    /// Whether a row without a value is refused.
    pub required: bool,
    /// Other names in JSON keys and TSV headers; case does not matter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// What the value means.
    pub description: String,
    /// The unit, such as `bp` or `fraction`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The range of allowed values, both ends included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<Bounds>,
    /// A real value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub example: Option<serde_json::Value>,
}

/// The allowed values of a numeric column, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Bounds {
    /// Of an integer column.
    Int {
        /// The smallest value; `i64::MIN` when open.
        min: i64,
        /// The largest value; `i64::MAX` when open.
        max: i64,
    },
    /// Of a float column.
    Float {
        /// The smallest value; `f64::MIN` when open.
        min: f64,
        /// The largest value; `f64::MAX` when open.
        max: f64,
    },
}

impl fmt::Display for Bounds {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Int { min, max: i64::MAX } => write!(out, "at least {min}"),
            Self::Int { min: i64::MIN, max } => write!(out, "at most {max}"),
            Self::Int { min, max } => write!(out, "between {min} and {max}"),
            Self::Float { min, max } if max == f64::MAX => write!(out, "at least {min}"),
            Self::Float { min, max } if min == f64::MIN => write!(out, "at most {max}"),
            Self::Float { min, max } => write!(out, "between {min} and {max}"),
        }
    }
}

/// Columns of the dataset's BRIN index, which is next to free on rows that arrive in order.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// How ranges of blocks are summarised.
    pub method: IndexMethod,
    /// The indexed columns.
    pub columns: Vec<String>,
}

/// How a BRIN index summarises a range of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IndexMethod {
    /// A Bloom filter: for equality.
    Bloom,
    /// Smallest and largest value: for ranges of what grows with time.
    Minmax,
}

/// A mistake in a definition file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file.
    pub file: String,
    /// What is wrong in it.
    pub reason: String,
}

impl Mistake {
    /// A mistake of that file.
    #[must_use]
    pub fn new(file: &str, reason: impl Into<String>) -> Self {
        Self { file: file.to_owned(), reason: reason.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.file, self.reason)
    }
}

/// The TOML as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    table: String,
    title: String,
    description: String,
    #[serde(default)]
    columns: Vec<FileColumn>,
    #[serde(default)]
    indexes: Vec<Index>,
    #[serde(default)]
    unique: Vec<String>,
    #[serde(default)]
    headerless: Vec<Vec<String>>,
    #[serde(default)]
    labkey: BTreeMap<String, ListMap>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileColumn {
    name: String,
    kind: Kind,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    aliases: Vec<String>,
    description: String,
    unit: Option<String>,
    min: Option<toml::Value>,
    max: Option<toml::Value>,
    example: Option<toml::Value>,
}

impl Dataset {
    /// Reads one definition file.
    ///
    /// # Errors
    /// All its mistakes; a syntax error is one.
    pub fn parse(file: &str, text: &str) -> Result<Self, Vec<Mistake>> {
        let written: File = toml::from_str(text).map_err(|error| vec![Mistake::new(file, error.to_string().trim())])?;
        let mut check = Check { file, mistakes: Vec::new() };
        check.identifier("name", &written.name);
        let is_taken = EXTRACT_FILES.contains(&written.name.as_str());
        check.that(!is_taken, || format!("name `{}` is that of a file beside the data of extracts", written.name));
        check.table(&written.table);
        for (what, text) in [("title", &written.title), ("description", &written.description)] {
            check.that(!text.trim().is_empty(), || format!("{what} is empty"));
        }
        // It stands in comments of SQL and in lines of tables.
        check.that(!written.title.contains(char::is_control), || {
            "title has a line break or another control character".to_owned()
        });
        check.that(!written.columns.is_empty(), || "has no columns".to_owned());
        let columns: Vec<Column> = written.columns.into_iter().map(|column| check.column(column)).collect();
        let lookup = check.lookup(&columns);
        check.indexes(&columns, &written.indexes);
        check.that(written.unique.len() <= MOST_KEYS, || format!("unique names more than {MOST_KEYS} columns"));
        for name in &written.unique {
            let is_known = columns.iter().any(|column| column.name == *name);
            check.that(is_known, || format!("unique names the unknown column `{name}`"));
            let times = written.unique.iter().filter(|other| *other == name).count();
            check.that(times == 1, || format!("unique names column `{name}` {times} times"));
        }
        let headerless = check.headerless(&lookup, &written.headerless);
        if !check.mistakes.is_empty() {
            return Err(check.mistakes);
        }
        let dataset = Self {
            name: written.name,
            table: written.table,
            title: written.title,
            description: written.description.trim().to_owned(),
            required: (0..columns.len()).filter(|position| columns[*position].required).collect(),
            columns,
            indexes: written.indexes,
            unique: written.unique,
            headerless,
            labkey: written.labkey,
            lookup,
        };
        let mistakes = dataset.labkey_mistakes();
        if mistakes.is_empty() {
            Ok(dataset)
        } else {
            Err(mistakes.into_iter().map(|reason| Mistake::new(file, reason)).collect())
        }
    }

    fn labkey_mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        for (name, map) in &self.labkey {
            for (column, source) in &map.columns {
                let wrong = source.expression(self).err();
                mistakes.extend(wrong.map(|reason| format!("labkey.{name}: column `{column}`: {reason}")));
            }
        }
        mistakes
    }

    /// The columns without whose value a row is refused.
    pub fn required_columns(&self) -> impl Iterator<Item = &Column> {
        self.required.iter().map(|position| &self.columns[*position])
    }

    /// The position of the column of that name or alias, whatever its case.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        if let Some(&position) = self.lookup.get(name) {
            return Some(position);
        }
        self.lookup.get(&name.to_ascii_lowercase()).copied()
    }

    /// The record's name in OpenAPI: `gottcha2` is `Gottcha2Record`.
    #[must_use]
    pub fn record_name(&self) -> String {
        let mut name: String = self
            .name
            .split('_')
            .map(|word| {
                let mut letters = word.chars();
                letters
                    .next()
                    .map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
            })
            .collect();
        name.push_str("Record");
        name
    }
}

/// Collects mistakes while a file is checked.
struct Check<'a> {
    file: &'a str,
    mistakes: Vec<Mistake>,
}

impl Check<'_> {
    fn that(&mut self, holds: bool, reason: impl FnOnce() -> String) {
        if !holds {
            self.mistakes.push(Mistake::new(self.file, reason()));
        }
    }

    fn identifier(&mut self, what: &str, name: &str) {
        self.that(is_identifier(name), || {
            format!("{what} `{name}` is not a lower-case letter followed by at most 47 of a-z, 0-9 and _")
        });
    }

    fn table(&mut self, name: &str) {
        self.identifier("table", name);
        self.that(!name.ends_with("_labkey"), || "table: names that end with _labkey are views".to_owned());
        for ending in ["_pkey", "_unique"] {
            self.that(!name.ends_with(ending), || format!("table: names that end with {ending} are indexes"));
        }
        let is_taken = OWN_TABLES.contains(&name) || name.starts_with("labkey_") || name.starts_with("pg_");
        self.that(!is_taken, || format!("table `{name}` is one of the service's or of PostgreSQL's own"));
    }

    fn column(&mut self, written: FileColumn) -> Column {
        let name = written.name;
        self.identifier("column", &name);
        self.that(!SYSTEM_COLUMNS.contains(&name.as_str()), || {
            format!("column `{name}` is one that PostgreSQL adds to every table")
        });
        self.that(!SERVICE_COLUMNS.contains(&name.as_str()), || {
            format!("column `{name}` is added by the service itself")
        });
        self.that(!name.starts_with("labkey_"), || {
            format!("column `{name}`: names that begin with labkey_ are the service's own")
        });
        self.that(!RESERVED_PARAMETERS.contains(&name.as_str()), || {
            format!("column `{name}` has the name of a query parameter of the ingest routes")
        });
        self.that(!written.description.trim().is_empty(), || format!("column `{name}` has no description"));
        let range = self.range(&name, written.kind, written.min.as_ref(), written.max.as_ref());
        let example = written.example.and_then(|example| self.example(&name, written.kind, example));
        Column {
            name,
            kind: written.kind,
            required: written.required,
            aliases: written.aliases,
            description: written.description.trim().to_owned(),
            unit: written.unit,
            range,
            example,
        }
    }

    fn range(
        &mut self,
        name: &str,
        kind: Kind,
        min: Option<&toml::Value>,
        max: Option<&toml::Value>,
    ) -> Option<Bounds> {
        if min.is_none() && max.is_none() {
            return None;
        }
        let bounds = match kind {
            Kind::Int => int_bounds(min, max),
            Kind::Float => float_bounds(min, max),
            _ => None,
        };
        self.that(bounds.is_some(), || {
            format!("column `{name}`: min and max belong to int and float columns, are of the column's kind, and min is not above max")
        });
        bounds
    }

    fn example(&mut self, name: &str, kind: Kind, example: toml::Value) -> Option<serde_json::Value> {
        let value = serde_json::to_value(example).ok()?;
        let fits = match kind {
            Kind::Text => value.is_string(),
            Kind::Int => value.is_i64(),
            Kind::Float => value.is_number(),
            Kind::Bool => value.is_boolean(),
            Kind::Timestamp => value.as_str().is_some_and(|text| parse_timestamp(text).is_ok()),
            Kind::Json => true,
        };
        self.that(fits, || format!("column `{name}`: the example is not of kind {kind:?}").to_lowercase());
        Some(value)
    }

    /// Positions by every name and alias, each of which may stand for one column only.
    fn lookup(&mut self, columns: &[Column]) -> HashMap<String, usize> {
        let mut lookup = HashMap::new();
        for (position, column) in columns.iter().enumerate() {
            let aliases = column.aliases.iter().map(|alias| alias.to_ascii_lowercase());
            for name in std::iter::once(column.name.clone()).chain(aliases) {
                if let Some(other) = lookup.insert(name.clone(), position) {
                    let other = &columns[other].name;
                    self.mistakes.push(Mistake::new(
                        self.file,
                        format!("`{name}` names both column `{other}` and column `{}`", column.name),
                    ));
                }
            }
        }
        lookup
    }

    fn indexes(&mut self, columns: &[Column], indexes: &[Index]) {
        let is_bloom = |index: &&Index| index.method == IndexMethod::Bloom;
        let filters: usize = indexes.iter().filter(is_bloom).map(|index| index.columns.len()).sum();
        self.that(filters <= MOST_BLOOM, || format!("more than {MOST_BLOOM} columns have a bloom index"));
        for index in indexes {
            self.that(!index.columns.is_empty(), || "an index has no columns".to_owned());
            self.that(index.columns.len() <= MOST_KEYS, || format!("an index has more than {MOST_KEYS} columns"));
            for name in &index.columns {
                let kind = match name.as_str() {
                    "created_at" => Some(Kind::Timestamp),
                    name => columns.iter().find(|column| column.name == name).map(|column| column.kind),
                };
                self.that(kind.is_some(), || format!("an index names the unknown column `{name}`"));
                let fits = kind.is_none_or(|kind| !matches!(kind, Kind::Bool | Kind::Json));
                self.that(fits, || format!("an index names column `{name}`, whose kind has no index of ranges"));
                // A text that is too long for a page of the index could not be stored.
                let is_long = index.method == IndexMethod::Minmax && kind == Some(Kind::Text);
                self.that(!is_long, || format!("column `{name}` is text, whose index is of method bloom"));
            }
        }
    }

    fn headerless(&mut self, lookup: &HashMap<String, usize>, orders: &[Vec<String>]) -> Vec<Vec<usize>> {
        let mut lengths = HashSet::new();
        for order in orders {
            self.that(lengths.insert(order.len()), || format!("two headerless orders have {} columns", order.len()));
            let mut seen = HashSet::new();
            for name in order {
                self.that(lookup.contains_key(name), || format!("headerless names the unknown column `{name}`"));
                self.that(seen.insert(lookup.get(name)), || format!("headerless names column `{name}` twice"));
            }
        }
        orders.iter().map(|order| order.iter().filter_map(|name| lookup.get(name).copied()).collect()).collect()
    }
}

/// Whether datasets, tables and columns may have that name.
#[must_use]
pub fn is_identifier(name: &str) -> bool {
    let mut letters = name.bytes();
    letters.next().is_some_and(|first| first.is_ascii_lowercase())
        && letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'_')
        && name.len() <= 48
}

fn int_bounds(min: Option<&toml::Value>, max: Option<&toml::Value>) -> Option<Bounds> {
    let end = |value: Option<&toml::Value>, open| value.map_or(Some(open), toml::Value::as_integer);
    let (min, max) = (end(min, i64::MIN)?, end(max, i64::MAX)?);
    (min <= max).then_some(Bounds::Int { min, max })
}

fn float_bounds(min: Option<&toml::Value>, max: Option<&toml::Value>) -> Option<Bounds> {
    #[expect(clippy::cast_precision_loss, reason = "bounds are small whole numbers such as 0, 1 and 100")]
    let number = |value: &toml::Value| value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64));
    let end = |value: Option<&toml::Value>, open| value.map_or(Some(open), number);
    let (min, max) = (end(min, f64::MIN)?, end(max, f64::MAX)?);
    (min <= max).then_some(Bounds::Float { min, max })
}

#[cfg(test)]
mod tests {
    use super::super::Datasets;
    use super::*;

    #[test]
    fn the_built_in_definitions_hold() {
        let datasets = Datasets::load(None).expect("built-in definitions");
        assert_eq!(datasets.names(), ["gottcha2", "nvd_blast", "results", "stast"]);
        let gottcha2 = datasets.get("gottcha2").expect("gottcha2");
        assert_eq!(gottcha2.table, "gottcha2_full");
        assert_eq!(gottcha2.record_name(), "Gottcha2Record");
        assert_eq!(gottcha2.position("TAXID"), gottcha2.position("taxonomy_id"));
    }

    #[test]
    fn every_mistake_of_a_file_is_named_at_once() {
        let text = r#"
            name = "Bad Name"
            table = "t"
            title = ""
            description = "d"
            unique = ["nowhere"]
            headerless = [["a", "zz"]]
            [[columns]]
            name = "a"
            kind = "int"
            min = 3
            max = 1
            description = "x"
            [[columns]]
            name = "created_at"
            kind = "text"
            aliases = ["A"]
            example = 3
            description = ""
            [[columns]]
            name = "xmin"
            kind = "bool"
            description = "y"
            [[indexes]]
            method = "bloom"
            columns = ["missing", "xmin"]
        "#;
        let mistakes = Dataset::parse("bad.toml", text).expect_err("must be refused");
        let all = mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for part in [
            "name `Bad Name`",
            "title is empty",
            "`nowhere`",
            "`zz`",
            "min is not above max",
            "`created_at` is added by the service",
            "`a` names both",
            "example is not of kind text",
            "`created_at` has no description",
            "`missing`",
        ] {
            assert!(all.contains(part), "{part} is not in:\n{all}");
        }
        assert!(all.lines().all(|line| line.starts_with("bad.toml: ")));
    }

    #[test]
    fn an_unknown_key_of_a_file_is_a_mistake() {
        let mistakes = Dataset::parse("x.toml", "name = 'x'\ntabel = 'y'").expect_err("must be refused");
        assert!(mistakes[0].reason.contains("tabel"), "{mistakes:?}");
    }
}
