//! What is wanted of a dataset, and whether it can be had.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::arrow::datatypes::{Schema, SchemaRef};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::config::{Compression, Format};
use crate::dataset::kind::in_calendar;
use crate::dataset::{Cell, Dataset, Fault, Kind, arrow, sql};
use crate::db::Guess;
use crate::error::{Error, Result};

/// The column that says when a row was stored: ranges of time are about it.
pub const TIME_COLUMN: &str = "created_at";

/// Columns of the service that say which row this is.
const IDENTITY: [(&str, &str); 2] =
    [("submission_id", "\"submission_id\""), ("ordinal", "\"ordinal\"::bigint AS \"ordinal\"")];

/// Arguments that a function of PostgreSQL takes at most. Source: its `FUNC_MAX_ARGS`.
const MOST_ARGUMENTS: usize = 100;

/// Which rows and columns of a dataset are exported, and how they are written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExportSpec {
    /// The form of the files; Parquet when absent.
    pub format: Format,
    /// How the files are compressed; when absent, Parquet as configured, and text by gzip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// The level of Zstandard (1 to 22) or gzip (0 to 9); when absent the configured one, or a usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 3, minimum = 0, maximum = 22)]
    pub compression_level: Option<i32>,
    /// These columns, in this order; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, example = json!(["sample_id", "taxid", "rel_abundance"]))]
    pub columns: Option<Vec<String>>,
    /// At most so many rows, the earliest stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub row_limit: Option<u64>,
    /// Rows stored at that time or later. The time of a row is when storing it began, and it is seen when that has ended: to
    /// ask for what is new, let ranges overlap by the longest upload and drop what comes twice by `submission_id` and
    /// `ordinal` (`service_columns`), or use a partitioned dataset, which goes by submissions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<DateTime<Utc>>,
    /// Rows stored before that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<DateTime<Utc>>,
    /// Rows that have these values in these columns.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, FilterValue>, example = json!({"sample_id": "SRR12689945"}))]
    pub filters: BTreeMap<String, Value>,
    /// Whether `submission_id` and `ordinal`, which name a row for ever, are exported too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub service_columns: bool,
    /// Whether `labkey_upload_status`, `labkey_upload_timestamp` and `labkey_transaction_id`, which say what became of
    /// a row in LabKey, are exported too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub labkey_columns: bool,
}

/// What a column is compared with.
#[derive(utoipa::ToSchema)]
#[serde(untagged)]
pub enum FilterValue {
    /// For text columns.
    Text(String),
    /// For whole numbers.
    Number(f64),
    /// For truth values.
    Truth(bool),
}

/// A column as it is read and written.
#[derive(Debug, Clone)]
pub struct Selected {
    /// Its name in the file.
    pub name: String,
    /// The type of its values.
    pub kind: Kind,
    /// Whether its values are few and repeat, so that a dictionary makes them small.
    pub repeats: bool,
    /// Whether readers look it up by equality.
    pub lookup: bool,
    /// Whether it is a column of the table as it stands.
    is_plain: bool,
    sql: String,
}

/// A checked [`ExportSpec`].
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whose rows.
    pub dataset: Arc<Dataset>,
    /// The columns of the files.
    pub columns: Vec<Selected>,
    /// The same in Arrow.
    pub schema: SchemaRef,
    /// The form of the files.
    pub format: Format,
    /// How they are compressed.
    pub compression: Compression,
    /// At which level.
    pub level: i32,
    /// At most so many rows.
    pub row_limit: Option<u64>,
    /// Whether no column was left out on request.
    pub has_all_columns: bool,
    /// Whether an index finds the rows, so that reading all of the table would be a waste.
    pub is_lookup: bool,
    /// Whether readers are expected to want few rows of each file.
    pub is_searched: bool,
    /// Positions of columns of numbers that every row is expected to fill, by four: each four are read together, as one
    /// value.
    pub quads: Vec<Vec<usize>>,
    /// Positions of columns that hardly any row fills. They are read together, as one value, from the rows that do.
    pub sparse: Vec<usize>,
    conditions: Vec<String>,
}

impl ExportSpec {
    /// Checks the specification against a dataset; `default` is the compression where none is given.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn plan(&self, dataset: &Arc<Dataset>, default: (Compression, i32)) -> Result<Plan> {
        let mut faults = Vec::new();
        let columns = self.selected(dataset, &mut faults);
        let conditions = self.conditions(dataset, &mut faults);
        let (compression, level) = self.compression(default, &mut faults);
        if self.row_limit.is_some_and(|limit| limit == 0 || i64::try_from(limit).is_err()) {
            faults.push(Fault::of_parameter("row_limit", format!("must be between 1 and {}", i64::MAX)));
        }
        if !faults.is_empty() {
            return Err(Error::Faults(faults));
        }
        let known = |name: &str| dataset.columns.iter().find(|column| column.name == name);
        let fields: Vec<_> =
            columns.iter().map(|column| arrow::field(&column.name, column.kind, known(&column.name))).collect();
        Ok(Plan {
            dataset: Arc::clone(dataset),
            schema: Arc::new(Schema::new(fields)),
            columns,
            format: self.format,
            compression,
            level,
            row_limit: self.row_limit,
            has_all_columns: self.columns.is_none(),
            is_lookup: !self.filters.is_empty(),
            is_searched: false,
            quads: Vec::new(),
            sparse: Vec::new(),
            conditions,
        })
    }

    /// What is wrong with `from` and `to`.
    #[must_use]
    pub fn faults_of_times(&self) -> Vec<Fault> {
        let times = [("from", self.from), ("to", self.to)];
        let outside =
            |(field, time): (&str, Option<DateTime<Utc>>)| Some(Fault::of_parameter(field, in_calendar(time?).err()?));
        let mut faults: Vec<Fault> = times.into_iter().filter_map(outside).collect();
        if self.from.zip(self.to).is_some_and(|(from, to)| from >= to) {
            faults.push(Fault::of_parameter("to", "must be later than `from`"));
        }
        faults
    }

    fn selected(&self, dataset: &Dataset, faults: &mut Vec<Fault>) -> Vec<Selected> {
        let all = all_columns(dataset);
        let Some(names) = &self.columns else {
            let hidden = |name: &str| {
                (!self.service_columns && is_identity(name)) || (!self.labkey_columns && is_of_labkey(name))
            };
            return all.into_iter().filter(|column| !hidden(&column.name)).collect();
        };
        let mut selected: Vec<Selected> = Vec::new();
        for name in names {
            match all.iter().find(|column| column.name == *name) {
                Some(_) if selected.iter().any(|column| column.name == *name) => {
                    faults.push(Fault::of_parameter("columns", format!("names `{name}` twice")));
                }
                Some(column) => selected.push(column.clone()),
                None => faults.push(Fault::of_parameter(
                    "columns",
                    format!("`{name}` is no column of {}; GET /datasets/{} lists them", dataset.name, dataset.name),
                )),
            }
        }
        if names.is_empty() {
            faults.push(Fault::of_parameter("columns", "is empty; leave it out for all columns"));
        }
        let is_asked_for =
            |name: &str| (self.service_columns && is_identity(name)) || (self.labkey_columns && is_of_labkey(name));
        let is_new = |column: &Selected| names.iter().all(|name| *name != column.name);
        selected.extend(all.iter().filter(|column| is_asked_for(&column.name) && is_new(column)).cloned());
        selected
    }

    fn conditions(&self, dataset: &Dataset, faults: &mut Vec<Fault>) -> Vec<String> {
        let mut conditions = Vec::new();
        faults.extend(self.faults_of_times());
        // Rows have microseconds: none lies between a finer time and the next of these.
        let micros = |time: DateTime<Utc>| {
            time.timestamp_micros() + i64::from(!time.timestamp_subsec_nanos().is_multiple_of(1000))
        };
        let moment = |time| sql::literal(&Cell::Timestamp(micros(time)));
        let time = sql::quoted(TIME_COLUMN);
        conditions.extend(self.from.map(|from| format!("{time} >= {}", moment(from))));
        conditions.extend(self.to.map(|to| format!("{time} < {}", moment(to))));
        for (name, value) in &self.filters {
            match filter(dataset, name, value) {
                Ok(condition) => conditions.push(condition),
                Err(reason) => faults.push(Fault::of_parameter(&format!("filters.{name}"), reason)),
            }
        }
        conditions
    }

    fn compression(&self, default: (Compression, i32), faults: &mut Vec<Fault>) -> (Compression, i32) {
        let is_text = self.format != Format::Parquet;
        let compression = self.compression.unwrap_or(default.0.of_files(self.format));
        if is_text && matches!(compression, Compression::Snappy | Compression::Lz4) {
            let reason = format!("text files are compressed by zstd, gzip or none, not {}", compression.as_str());
            faults.push(Fault::of_parameter("compression", reason));
        }
        let (range, usual) = match compression {
            Compression::Zstd => (1..=22, 3),
            Compression::Gzip => (0..=9, 6),
            _ => (0..=0, 0),
        };
        let configured = if compression == default.0 { default.1 } else { usual };
        let level = self.compression_level.unwrap_or(configured);
        if !range.contains(&level) && range != (0..=0) {
            let reason = format!("must be between {} and {} for {}", range.start(), range.end(), compression.as_str());
            faults.push(Fault::of_parameter("compression_level", reason));
        }
        (compression, level)
    }
}

impl Plan {
    /// Fits reading and writing to what is guessed of the columns, which decides about speed and size only.
    pub fn expect(&mut self, guesses: &[Guess]) {
        let mut numbers = Vec::new();
        for (position, column) in self.columns.iter_mut().enumerate().filter(|(_, column)| column.is_plain) {
            let Some(guess) = guesses.iter().find(|guess| guess.name == column.name) else { continue };
            // A dictionary of numbers that hardly repeat would be given up before long, and stay in the file.
            let is_number = matches!(column.kind, Kind::Int | Kind::Float);
            column.repeats &= !(guess.is_sparse || (guess.is_diverse && is_number));
            if guess.is_sparse {
                self.sparse.push(position);
            } else if guess.is_full && is_number {
                numbers.push(position);
            }
        }
        // Together with the state in LabKey, rows have no order by which they could be read again.
        if !self.has_labkey() {
            self.quads = numbers.chunks(4).filter(|quad| quad.len() > 1).map(<[usize]>::to_vec).collect();
        }
        // COPY needs a column.
        if self.sparse.len() == self.columns.len() {
            self.sparse.clear();
        }
    }

    /// The same of those rows only for which SQL conditions hold that an index finds.
    #[must_use]
    pub fn narrowed(&self, conditions: Vec<String>) -> Self {
        let mut narrowed = self.clone();
        narrowed.is_lookup |= !conditions.is_empty();
        narrowed.conditions.extend(conditions);
        narrowed
    }

    /// Leaves columns out.
    pub fn leave_out(&mut self, names: &[String]) {
        let fields = self.schema.fields().iter().filter(|field| !names.contains(field.name())).cloned();
        self.schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        self.columns.retain(|column| !names.contains(&column.name));
    }

    /// Adds a column with a part of the time of storing in UTC, such as its `year`.
    pub fn add_time_part(&mut self, part: &str) {
        let sql = format!("extract({part} FROM {} AT TIME ZONE 'UTC')::bigint", sql::quoted(TIME_COLUMN));
        let column =
            Selected { name: part.to_owned(), kind: Kind::Int, repeats: true, lookup: false, is_plain: false, sql };
        let fields = self.schema.fields().iter().cloned();
        let added = Arc::new(arrow::field(part, Kind::Int, None));
        self.schema = Arc::new(Schema::new(fields.chain([added]).collect::<Vec<_>>()));
        self.columns.push(column);
    }

    /// The same rows and columns, each number as a value of its own.
    #[must_use]
    pub fn without_quads(&self) -> Self {
        Self { quads: Vec::new(), ..self.clone() }
    }

    fn has_labkey(&self) -> bool {
        self.columns.iter().any(|column| is_of_labkey(&column.name))
    }

    /// Positions of the columns that are read one by one.
    pub fn dense(&self) -> impl Iterator<Item = usize> {
        let together: Vec<usize> = self.quads.iter().flatten().chain(&self.sparse).copied().collect();
        (0..self.columns.len()).filter(move |position| !together.contains(position))
    }

    /// The COPY of the rows in a range of pages, or of all rows: the dense columns, then each four numbers as the ends of
    /// a line segment, which is null where one of them is, then the sparse columns as one record, which is null where all of
    /// them are.
    #[must_use]
    pub fn copy_out(&self, pages: Option<(i64, i64)>) -> String {
        let sql = |position: usize| self.columns[position].sql.as_str();
        let mut columns: Vec<String> = self.dense().map(|position| sql(position).to_owned()).collect();
        columns.extend(self.quads.iter().map(|quad| segment(quad.iter().map(|column| sql(*column)))));
        if !self.sparse.is_empty() {
            let sparse: Vec<&str> = self.sparse.iter().copied().map(sql).collect();
            let filled = sparse.chunks(MOST_ARGUMENTS).map(|some| format!("num_nonnulls({})", some.join(", ")));
            let filled = filled.collect::<Vec<_>>().join(" + ");
            columns.push(format!("CASE WHEN {filled} > 0 THEN record_send(ROW({})) END", sparse.join(", ")));
        }
        let mut conditions = self.conditions.clone();
        if let Some((first, end)) = pages {
            conditions.push(format!("t.ctid >= '({first},0)' AND t.ctid < '({end},0)'"));
        }
        let source = if self.has_labkey() {
            sql::with_labkey(&self.dataset)
        } else {
            format!("{} t", sql::quoted(&self.dataset.table))
        };
        let mut query = format!("SELECT {} FROM {source}", columns.join(", "));
        if !conditions.is_empty() {
            query = format!("{query} WHERE {}", conditions.join(" AND "));
        }
        if let Some(limit) = self.row_limit {
            query = format!("{query} ORDER BY submission_id, ordinal LIMIT {limit}");
        }
        format!("COPY ({query}) TO STDOUT (FORMAT binary)")
    }

    /// Whether the files keep the order of the table: text does; the row groups of Parquet mix neighbouring ranges.
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        self.format != Format::Parquet
    }

    /// Whether every row of the dataset is exported.
    #[must_use]
    pub const fn has_all_rows(&self) -> bool {
        self.conditions.is_empty() && self.row_limit.is_none()
    }

    /// Whether all of the dataset is exported. The catalogue tells it by what was asked for (`db::exports`).
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.has_all_columns && self.has_all_rows()
    }

    /// The ending of file names, such as `parquet` or `csv.gz`.
    #[must_use]
    pub fn extension(&self) -> String {
        let compression = match self.compression {
            _ if self.format == Format::Parquet => "",
            Compression::Gzip => ".gz",
            Compression::Zstd => ".zst",
            _ => "",
        };
        format!("{}{compression}", self.format.as_str())
    }
}

/// All columns of a dataset, those of the service among them.
#[must_use]
pub fn all_columns(dataset: &Dataset) -> Vec<Selected> {
    let lookup: Vec<&str> = arrow::lookup_columns(dataset).collect();
    let service = |name: &str, kind, text: &str| Selected {
        name: name.to_owned(),
        kind,
        repeats: false,
        lookup: false,
        is_plain: text == sql::quoted(name),
        sql: text.to_owned(),
    };
    let identity = IDENTITY.iter().map(|(name, sql)| service(name, Kind::Int, sql));
    let data = dataset.columns.iter().map(|column| Selected {
        name: column.name.clone(),
        kind: column.kind,
        repeats: matches!(column.kind, Kind::Text | Kind::Int | Kind::Float),
        lookup: lookup.contains(&column.name.as_str()),
        is_plain: true,
        sql: sql::quoted(&column.name),
    });
    let rest = [
        service("extra", Kind::Json, &sql::quoted("extra")),
        service(TIME_COLUMN, Kind::Timestamp, &sql::quoted(TIME_COLUMN)),
    ];
    let labkey =
        sql::LABKEY_COLUMNS.iter().map(|(name, kind)| service(name, *kind, &format!("labkey.{}", sql::quoted(name))));
    identity.chain(data).chain(rest).chain(labkey).collect()
}

/// Up to four numbers as one value: PostgreSQL sends a line segment in little more time than one number.
fn segment<'n>(numbers: impl Iterator<Item = &'n str>) -> String {
    let numbers: Vec<&str> = numbers.chain(std::iter::repeat("0")).take(4).collect();
    format!("lseg(point({}, {}), point({}, {}))", numbers[0], numbers[1], numbers[2], numbers[3])
}

fn is_identity(name: &str) -> bool {
    IDENTITY.iter().any(|(identity, _)| *identity == name)
}

fn is_of_labkey(name: &str) -> bool {
    sql::LABKEY_COLUMNS.iter().any(|(labkey, _)| *labkey == name)
}

/// An equality as SQL.
fn filter(dataset: &Dataset, name: &str, value: &Value) -> Result<String, String> {
    let Some(column) = dataset.columns.iter().find(|column| column.name == name) else {
        return Err(format!("is no column of {}", dataset.name));
    };
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        _ => return Err("must be one text, number or truth value".to_owned()),
    };
    if text.contains('\0') || (text.is_empty() && column.kind != Kind::Text) {
        return Err(column.kind.expected().to_owned());
    }
    let cell = match column.kind {
        Kind::Text => Cell::Text(text.as_str().into()),
        Kind::Int | Kind::Bool => column.kind.parse(&text)?,
        _ => return Err("only text, whole numbers and truth values can be filtered by".to_owned()),
    };
    Ok(format!("{} = {}", sql::quoted(name), sql::literal(&cell)))
}
