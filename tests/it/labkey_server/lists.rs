//! Lists: columns, conversion of values, rows with their key, and changes that can be taken back.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use serde_json::{Map, Value, json};

/// What a field of a list may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// At most 4000 characters.
    Text,
    /// 32 bits.
    Integer,
    Number,
    Boolean,
    Time,
}

impl Kind {
    /// Java class, `friendlyType`, `jsonType`, `sqlType` and `jdbcType`.
    fn names(self) -> [&'static str; 5] {
        match self {
            Self::Text => ["String", "Text (String)", "string", "varchar", "VARCHAR"],
            Self::Integer => ["Integer", "Integer", "int", "integer", "INTEGER"],
            Self::Number => ["Double", "Number (Double)", "float", "double precision", "DOUBLE"],
            Self::Boolean => ["Boolean", "True/False (Boolean)", "boolean", "boolean", "BOOLEAN"],
            Self::Time => ["Timestamp", "Date and Time", "date", "timestamp", "TIMESTAMP"],
        }
    }

    /// A value as this kind stores it, or nothing if it cannot be converted.
    pub(super) fn convert(self, value: &Value) -> Option<Value> {
        if value.is_null() {
            return Some(Value::Null);
        }
        let text = match value {
            Value::String(text) => text.trim(),
            _ => "",
        };
        match self {
            Self::Text => Some(match value {
                Value::String(text) if text.is_empty() => Value::Null,
                Value::String(_) => value.clone(),
                other => Value::String(other.to_string()),
            }),
            Self::Integer => {
                let number = value.as_f64().or_else(|| text.parse().ok())?;
                let whole = number.fract() == 0.0 && (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&number);
                whole.then(|| json!(number as i32))
            }
            Self::Number => {
                let number = value.as_f64().or_else(|| text.parse().ok())?;
                number.is_finite().then(|| json!(number))
            }
            Self::Boolean => match (value, text.to_lowercase().as_str()) {
                (Value::Bool(_), _) => Some(value.clone()),
                (_, "true" | "yes" | "on" | "y" | "t" | "1") => Some(json!(true)),
                (_, "false" | "no" | "off" | "n" | "f" | "0") => Some(json!(false)),
                _ => None,
            },
            Self::Time => {
                let time = DateTime::parse_from_rfc3339(text)
                    .map(|time| time.naive_utc())
                    .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f"))
                    .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f"))
                    .or_else(|_| NaiveDate::parse_from_str(text, "%Y-%m-%d").map(NaiveDateTime::from));
                time.ok().map(|time| json!(time.format("%Y-%m-%d %H:%M:%S%.3f").to_string()))
            }
        }
    }
}

/// How many characters a text may have.
const MAX_LENGTH: usize = 4000;

struct Column {
    name: String,
    kind: Kind,
    is_required: bool,
}

/// The key of a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Number(i32),
    Text(String),
}

impl Key {
    fn of(value: &Value) -> Self {
        match value {
            Value::String(text) => Self::Text(text.clone()),
            number => Self::Number(i32::try_from(number.as_i64().expect("key")).expect("32 bits")),
        }
    }
}

/// Why rows were not taken.
pub(super) enum Refusal {
    /// LabKey stops at the first bad row: its number from 1, the row, and messages by field.
    Row { number: usize, row: Map<String, Value>, faults: Vec<(String, String)> },
    /// The database refused.
    Database(String),
    /// A row to update is not there.
    NotFound,
}

/// What was done to rows, so that it can be taken back.
#[derive(Default)]
pub(super) struct Changes(Vec<(String, Key, Option<Vec<Value>>)>);

impl Changes {
    /// Puts everything back as it was.
    pub fn undo(self, lists: &mut BTreeMap<String, List>) {
        for (list, key, before) in self.0.into_iter().rev() {
            let rows = &mut lists.get_mut(&list).expect("list").rows;
            match before {
                Some(row) => rows.insert(key, row),
                None => rows.remove(&key),
            };
        }
    }
}

/// A list with its rows. Its first column is its key.
pub struct List {
    name: String,
    /// The server counts the key up; else clients provide it.
    pub(super) is_auto: bool,
    columns: Vec<Column>,
    rows: BTreeMap<Key, Vec<Value>>,
    next: i32,
    /// A column, and the value whose rows the list's default view hides.
    hidden: Option<(usize, Value)>,
}

impl List {
    /// A list with a key `Key` that the server counts up. It cannot be merged into.
    pub fn auto(name: &str) -> Self {
        Self { is_auto: true, ..Self::new(name, "Key", Kind::Integer) }
    }

    /// A list with a text as key, which its clients provide.
    pub fn keyed(name: &str, key: &str) -> Self {
        Self::new(name, key, Kind::Text)
    }

    fn new(name: &str, key: &str, kind: Kind) -> Self {
        let key = Column { name: key.to_owned(), kind, is_required: true };
        Self { name: name.to_owned(), is_auto: false, columns: vec![key], rows: BTreeMap::new(), next: 1, hidden: None }
    }

    /// With one more column, which may be null.
    #[must_use]
    pub fn column(mut self, name: &str, kind: Kind) -> Self {
        self.columns.push(Column { name: name.to_owned(), kind, is_required: false });
        self
    }

    /// With a column that may not be null.
    #[must_use]
    pub fn required(mut self, name: &str, kind: Kind) -> Self {
        self.columns.push(Column { name: name.to_owned(), kind, is_required: true });
        self
    }

    /// With a default view, as somebody has saved it, whose filter hides the rows with this value.
    #[must_use]
    pub fn hiding(mut self, column: &str, value: &str) -> Self {
        self.hidden = self.find(column).map(|(place, _)| (place, json!(value)));
        self
    }

    /// Gives a column another name.
    pub fn rename(&mut self, from: &str, to: &str) {
        to.clone_into(&mut self.columns.iter_mut().find(|column| column.name == from).expect("column").name);
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
    }

    /// Removes rows from the end, so that so many are left.
    pub fn truncate(&mut self, left: usize) {
        while self.rows.len() > left {
            self.rows.pop_last();
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn key_name(&self) -> &str {
        &self.columns[0].name
    }

    /// The column of that name in any case, and its kind.
    pub(super) fn find(&self, name: &str) -> Option<(usize, Kind)> {
        let index = self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))?;
        Some((index, self.columns[index].kind))
    }

    pub(super) fn column_name(&self, index: usize) -> &str {
        &self.columns[index].name
    }

    pub(super) fn width(&self) -> usize {
        self.columns.len()
    }

    /// The rows in the order of their keys.
    pub(super) fn cells(&self) -> impl Iterator<Item = &[Value]> {
        self.rows.values().map(Vec::as_slice)
    }

    /// Whether the default view shows a row.
    pub(super) fn shows(&self, row: &[Value]) -> bool {
        self.hidden.as_ref().is_none_or(|(place, value)| row[*place] != *value)
    }

    /// The values of one column.
    pub(super) fn values(&self, column: &str) -> impl Iterator<Item = &Value> {
        let (index, _) = self.find(column).expect("column");
        self.rows.values().map(move |row| &row[index])
    }

    pub(super) fn objects(&self) -> Vec<Map<String, Value>> {
        self.rows.values().map(|row| self.object(row)).collect()
    }

    /// A row, or the beginning of one, with the names of its columns.
    pub(super) fn object(&self, row: &[Value]) -> Map<String, Value> {
        self.columns.iter().map(|column| column.name.clone()).zip(row.iter().cloned()).collect()
    }

    /// Inserts all rows or none that stays, and answers with the stored rows.
    pub(super) fn insert(
        &mut self,
        rows: &[Map<String, Value>],
        changes: &mut Changes,
    ) -> Result<Vec<Vec<Value>>, Refusal> {
        let rows = self.convert(rows, true)?;
        let mut stored = Vec::with_capacity(rows.len());
        for row in rows {
            let mut row: Vec<_> = row.into_iter().map(Option::unwrap_or_default).collect();
            if self.is_auto {
                row[0] = json!(self.next);
                self.next += 1;
            }
            let key = Key::of(&row[0]);
            if self.rows.contains_key(&key) {
                let (list, column) = (self.name.to_lowercase(), self.key_name().to_lowercase());
                let value = row[0].as_str().unwrap_or_default();
                return Err(Refusal::Database(format!(
                    "ERROR: duplicate key value violates unique constraint \"c1d2_{list}_pk\"\n  \
                     Detail: Key ({column})=({value}) already exists."
                )));
            }
            stored.push(row.clone());
            self.put(key, row, changes);
        }
        Ok(stored)
    }

    /// Inserts the rows with new keys, and sets the given columns of the others.
    pub(super) fn merge(&mut self, rows: &[Map<String, Value>], changes: &mut Changes) -> Result<(), Refusal> {
        for row in self.convert(rows, true)? {
            let key = Key::of(row[0].as_ref().expect("a required key"));
            let before = self.rows.get(&key).cloned().unwrap_or_else(|| vec![Value::Null; self.width()]);
            self.put(key, overlay(before, row), changes);
        }
        Ok(())
    }

    /// Sets the given columns of rows that are there.
    pub(super) fn update(
        &mut self,
        rows: &[Map<String, Value>],
        changes: &mut Changes,
    ) -> Result<Vec<Vec<Value>>, Refusal> {
        let mut stored = Vec::with_capacity(rows.len());
        for row in self.convert(rows, false)? {
            let key = row[0].as_ref().filter(|key| !key.is_null()).map(Key::of).ok_or(Refusal::NotFound)?;
            let before = self.rows.get(&key).cloned().ok_or(Refusal::NotFound)?;
            let row = overlay(before, row);
            stored.push(row.clone());
            self.put(key, row, changes);
        }
        Ok(stored)
    }

    /// Deletes rows by their keys. Rows that are not there are passed over.
    pub(super) fn delete(
        &mut self,
        rows: &[Map<String, Value>],
        changes: &mut Changes,
    ) -> Result<Vec<Vec<Value>>, Refusal> {
        let mut deleted = Vec::new();
        let name = self.key_name().to_owned();
        let is_key = |(column, _): &(&String, &Value)| column.eq_ignore_ascii_case(&name);
        let own = |(column, value): (&String, &Value)| (column.clone(), value.clone());
        let keys: Vec<_> = rows.iter().map(|row| row.iter().filter(is_key).map(own).collect()).collect();
        for row in self.convert(&keys, false)? {
            let Some(key) = row[0].as_ref().filter(|key| !key.is_null()).map(Key::of) else { continue };
            if let Some(row) = self.rows.remove(&key) {
                deleted.push(row.clone());
                changes.0.push((self.name.to_lowercase(), key, Some(row)));
            }
        }
        Ok(deleted)
    }

    fn put(&mut self, key: Key, row: Vec<Value>, changes: &mut Changes) {
        let before = self.rows.insert(key.clone(), row);
        changes.0.push((self.name.to_lowercase(), key, before));
    }

    /// The rows in the order of the columns, with nothing where a row says nothing. Other members are dropped.
    fn convert(&self, rows: &[Map<String, Value>], is_new: bool) -> Result<Vec<Vec<Option<Value>>>, Refusal> {
        let mut places: HashMap<&str, Option<(usize, Kind)>> = HashMap::new();
        let mut converted = Vec::with_capacity(rows.len());
        for (index, row) in rows.iter().enumerate() {
            let mut cells: Vec<Option<Value>> = vec![None; self.width()];
            let mut faults = Vec::new();
            for (name, value) in row {
                let Some((place, kind)) = *places.entry(name).or_insert_with(|| self.find(name)) else { continue };
                let name = &self.columns[place].name;
                match kind.convert(value) {
                    Some(Value::String(text)) if kind == Kind::Text && text.chars().count() > MAX_LENGTH => {
                        let length = text.chars().count();
                        let message = format!(
                            "Value is too long for column '{name}', a maximum length of {MAX_LENGTH} is allowed. \
                             The supplied value was {length} characters long."
                        );
                        faults.push((name.clone(), message));
                    }
                    Some(value) => cells[place] = Some(value),
                    None => faults.push((name.clone(), refused(name, kind, value))),
                }
            }
            for (column, cell) in self.columns.iter().zip(&cells).skip(usize::from(self.is_auto)) {
                let is_missing = cell.as_ref().map_or(is_new, Value::is_null);
                if column.is_required && is_missing && !faults.iter().any(|(name, _)| *name == column.name) {
                    let message = format!("Missing value for required property: {}", column.name);
                    faults.push((column.name.clone(), message));
                }
            }
            if !faults.is_empty() {
                return Err(Refusal::Row { number: index + 1, row: row.clone(), faults });
            }
            converted.push(cells);
        }
        Ok(converted)
    }

    /// The members of `getQueryDetails` that describe the list.
    pub(super) fn details(&self) -> Value {
        let system = [
            ("Created", Kind::Time),
            ("CreatedBy", Kind::Integer),
            ("Modified", Kind::Time),
            ("ModifiedBy", Kind::Integer),
            ("container", Kind::Text),
            ("lastIndexed", Kind::Time),
            ("EntityId", Kind::Text),
        ];
        let fields = self.columns.iter().enumerate().map(|(index, column)| {
            let is_counted = self.is_auto && index == 0;
            describe(&column.name, column.kind, column.is_required, index == 0, is_counted, is_counted)
        });
        let system = system.into_iter().map(|(name, kind)| describe(name, kind, false, false, false, true));
        json!({
            "name": self.name,
            "title": self.name,
            "isUserDefined": false,
            "supportMerge": !self.is_auto,
            "columns": fields.chain(system).collect::<Vec<_>>(),
            "indices": {"primary": {"type": "Primary", "columns": [self.key_name()]}},
        })
    }
}

fn overlay(before: Vec<Value>, row: Vec<Option<Value>>) -> Vec<Value> {
    before.into_iter().zip(row).map(|(before, cell)| cell.unwrap_or(before)).collect()
}

fn refused(name: &str, kind: Kind, value: &Value) -> String {
    let (text, class) = match value {
        Value::String(text) => (text.clone(), "String"),
        Value::Bool(flag) => (flag.to_string(), "Boolean"),
        number if number.is_i64() => (number.to_string(), "Long"),
        number if number.is_number() => (number.to_string(), "BigDecimal"),
        other => (other.to_string(), "JSONObject"),
    };
    format!("Could not convert value '{text}' ({class}) for {} field '{name}'", kind.names()[0])
}

fn describe(name: &str, kind: Kind, required: bool, is_key: bool, is_counted: bool, is_read_only: bool) -> Value {
    let [_, friendly, json_type, sql, jdbc] = kind.names();
    json!({
        "name": name,
        "fieldKey": name,
        "fieldKeyArray": [name],
        "caption": name,
        "type": friendly,
        "friendlyType": friendly,
        "jsonType": json_type,
        "sqlType": sql,
        "jdbcType": jdbc,
        "isAutoIncrement": is_counted,
        "autoIncrement": is_counted,
        "isHidden": is_read_only,
        "hidden": is_read_only,
        "isKeyField": is_key,
        "keyField": is_key,
        "isNullable": !required,
        "nullable": !required,
        "required": required,
        "isReadOnly": is_read_only && !is_key,
        "readOnly": is_read_only && !is_key,
        "isUserEditable": !is_read_only,
        "userEditable": !is_read_only,
        "scale": if kind == Kind::Text { Some(MAX_LENGTH) } else { None },
    })
}
