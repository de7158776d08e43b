//! A definition for files that have none: names as they stand, kinds as all values allow.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::source::Source;
use crate::config::Level;
use crate::dataset::definition::{RESERVED_PARAMETERS, SERVICE_COLUMNS};
use crate::dataset::kind::parse_timestamp;
use crate::dataset::{Cell, Dataset, Fault, Kind, Mistake};
use crate::error::{Error, Result};
use crate::lake::manifest::ColumnNote;

/// Letters of a name that every part of the service takes.
const LONGEST_NAME: usize = 40;

/// Columns that a dataset has at most, as a table of PostgreSQL. Memory and time grow with them.
const MOST_COLUMNS: usize = 1600;

/// The columns that were seen, and what their values are.
#[derive(Debug, Default, Clone)]
pub struct Profile {
    columns: Vec<(String, Option<Sorts>)>,
    /// Their positions by their names, in lower case too: fields are found whatever their case.
    positions: HashMap<String, usize>,
    /// The names that columns of earlier files have, by what the new files call them.
    names: HashMap<String, String>,
    /// Whether the values are of one file with JSON.
    is_json: bool,
}

/// What takes a value, or all values of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sorts {
    /// Without a change.
    exact: Sort,
    /// As it is read where the kind is given: a double has room for some digits only, a time for microseconds.
    read: Sort,
}

/// What a value is, or all values of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// Of that kind.
    Of(Kind),
    /// Whole numbers, one of them beyond 2^53, where a float no longer tells neighbours apart.
    Large,
}

impl Profile {
    /// Looks at all values of a file.
    ///
    /// # Errors
    /// A damaged file, one of too many columns.
    pub fn of(source: &Source) -> Result<Self> {
        let mut of_cells = Self::default();
        let mut of_json = Self { is_json: true, ..Self::default() };
        source.records(
            |name, cell| {
                of_cells.see(name, sort_of_cell(cell), false);
                of_cells.check_width()
            },
            |line, json| {
                let fields: Fields = serde_json::from_str(json).map_err(|error| not_json(line, &error))?;
                fields.0.iter().try_for_each(|(name, value)| {
                    of_json.see(name, sort_of_json(value.get()), true);
                    of_json.check_width()
                })
            },
        )?;
        Ok(if of_cells.columns.is_empty() { of_json } else { of_cells })
    }

    /// Adds what another file holds.
    pub fn add(&mut self, other: Self) {
        other.columns.into_iter().for_each(|(name, sorts)| self.see(&name, sorts, other.is_json));
    }

    /// Looks at a value that all rows have.
    pub fn observe_value(&mut self, column: &str, value: &str) {
        self.see(column, sort_of_cell(value), false);
    }

    /// Whether no column was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Takes the columns of earlier files into account: their kinds have a say, and their names stay theirs. In the new
    /// files each is found by its name, else by its header, else by what would become its name and is no other's header.
    pub fn remember(&mut self, earlier: &[&ColumnNote]) {
        let headers: HashSet<String> =
            earlier.iter().filter_map(|column| Some(column.header.as_ref()?.to_lowercase())).collect();
        for column in earlier {
            let header = column.header.as_ref().unwrap_or(&column.name);
            let original = self
                .unnamed(|known| known.eq_ignore_ascii_case(&column.name))
                .or_else(|| self.unnamed(|known| known.eq_ignore_ascii_case(header)))
                .or_else(|| {
                    self.unnamed(|known| identifier(known) == column.name && !headers.contains(&known.to_lowercase()))
                })
                .unwrap_or(header)
                .clone();
            let kind = Sort::Of(column.kind);
            self.see(&original, Some(Sorts { exact: kind, read: kind }), column.kind == Kind::Json);
            self.names.insert(original, column.name.clone());
        }
    }

    /// The columns of earlier files by their names, each with the kind that all values are read by.
    pub fn remembered(&self) -> impl Iterator<Item = (&str, Kind)> {
        let columns = self.columns.iter().filter_map(|(original, sorts)| Some((self.names.get(original)?, (*sorts)?)));
        columns.map(|(name, sorts)| (name.as_str(), sorts.read.kind()))
    }

    /// The first column of that kind that has no name yet.
    fn unnamed(&self, is_it: impl Fn(&String) -> bool) -> Option<&String> {
        let columns = self.columns.iter().map(|(original, _)| original);
        columns.filter(|original| !self.names.contains_key(*original)).find(|original| is_it(original))
    }

    fn check_width(&self) -> Result<()> {
        if self.columns.len() <= MOST_COLUMNS {
            return Ok(());
        }
        Err(Error::Body(format!(
            "has more than {MOST_COLUMNS} columns: write it as long rows, with one column for their names and one for their values"
        )))
    }

    /// The position of a column that is not called so yet.
    fn place(&mut self, name: &str) -> usize {
        let lower = name.to_ascii_lowercase();
        let position = self.positions.get(&lower).copied().unwrap_or(self.columns.len());
        if position == self.columns.len() {
            self.columns.push((name.to_owned(), None));
        }
        self.positions.extend([(lower, position), (name.to_owned(), position)]);
        position
    }

    fn see(&mut self, name: &str, sorts: Option<Sorts>, is_json: bool) {
        let position = self.positions.get(name).copied().unwrap_or_else(|| self.place(name));
        let held = &mut self.columns[position].1;
        *held = match (*held, sorts) {
            (Some(one), Some(other)) => {
                Some(Sorts { exact: both(one.exact, other.exact, is_json), read: both(one.read, other.read, is_json) })
            }
            (one, other) => one.or(other),
        };
    }

    /// The definition, and the TOML that it is read from.
    ///
    /// # Errors
    /// Columns whose names a definition does not take, too many or none.
    pub fn definition(&self, name: &str) -> Result<(Dataset, String)> {
        self.check_width()?;
        let text = self.to_toml(name);
        let mistakes = |mistakes: Vec<Mistake>| {
            let reasons: Vec<String> = mistakes.into_iter().map(|mistake| mistake.reason).collect();
            Error::Body(format!("makes no definition: {}", reasons.join("; ")))
        };
        Ok((Dataset::parse(name, &text).map_err(mistakes)?, text))
    }

    fn to_toml(&self, name: &str) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let mut text = format!(
            "name = {0}\ntable = {0}\ntitle = {0}\ndescription = \"Told from files\"\n",
            quoted(&identifier(name))
        );
        // Names of earlier files, and those that stay as they are, come first.
        let kept = self.columns.iter().map(|(original, _)| original).filter(|name| identifier(name) == **name);
        let mut taken: HashSet<String> = kept.chain(self.names.values()).cloned().collect();
        for (original, sorts) in &self.columns {
            let (name, sort) = match self.names.get(original) {
                Some(name) => (name.clone(), sorts.map(|sorts| sorts.read)),
                None => (free_name(original, &mut taken), sorts.map(|sorts| sorts.exact)),
            };
            let kind = serde_json::to_value(sort.map_or(Kind::Text, Sort::kind)).unwrap_or_default();
            text.push_str(&format!(
                "\n[[columns]]\nname = {}\nkind = {kind}\ndescription = {}\n",
                quoted(&name),
                quoted(&format!("`{original}` of the files"))
            ));
            // Fields are found whatever their case.
            if !original.eq_ignore_ascii_case(&name) {
                text.push_str(&format!("aliases = [{}]\n", quoted(original)));
            }
        }
        text
    }
}

/// A name that no other column has.
fn free_name(original: &str, taken: &mut HashSet<String>) -> String {
    let plain = identifier(original);
    let mut name = plain.clone();
    let mut number = 1;
    while original != name && !taken.insert(name.clone()) {
        number += 1;
        name = format!("{plain}_{number}");
    }
    name
}

/// What files call a column of a definition that was told from them.
#[must_use]
pub fn header(dataset: &Dataset, name: &str) -> Option<String> {
    let column = dataset.columns.iter().find(|column| column.name == name)?;
    Some(column.aliases.first().unwrap_or(&column.name).clone())
}

impl Sorts {
    /// The sorts of a value, by what it is read as. A number that no double stands for is of the kind `digits`.
    fn of(value: &str, read: Sort, digits: Kind) -> Self {
        let exact = match read {
            // Only a float has a negative zero.
            Sort::Of(Kind::Int) if value == "-0" => Sort::Of(Kind::Float),
            Sort::Of(Kind::Float) if value.starts_with('+') || !is_exact_number(value) => Sort::Of(digits),
            Sort::Of(Kind::Timestamp) if !is_exact_time(value) => Sort::Of(Kind::Text),
            read => read,
        };
        Self { exact, read }
    }
}

impl Sort {
    const fn kind(self) -> Kind {
        match self {
            Self::Of(kind) => kind,
            Self::Large => Kind::Int,
        }
    }
}

/// What takes the values of both.
fn both(one: Sort, other: Sort, is_json: bool) -> Sort {
    match (one, other) {
        _ if one == other => one,
        (Sort::Large, Sort::Of(Kind::Int)) | (Sort::Of(Kind::Int), Sort::Large) => Sort::Large,
        // A float would change digits.
        (Sort::Large, Sort::Of(Kind::Float)) | (Sort::Of(Kind::Float), Sort::Large) => {
            Sort::Of(if is_json { Kind::Json } else { Kind::Text })
        }
        (one, other) => Sort::Of(both_kinds(one.kind(), other.kind(), is_json)),
    }
}

/// The kind that takes the values of both.
fn both_kinds(one: Kind, other: Kind, is_json: bool) -> Kind {
    match (one, other) {
        _ if one == other => one,
        (Kind::Int, Kind::Float) | (Kind::Float, Kind::Int) => Kind::Float,
        (Kind::Text | Kind::Timestamp, Kind::Text | Kind::Timestamp) => Kind::Text,
        // The digits of a whole number are its text; of nothing else in JSON.
        (Kind::Int, Kind::Text) | (Kind::Text, Kind::Int) => Kind::Text,
        _ if is_json => Kind::Json,
        _ => Kind::Text,
    }
}

/// What a cell of a table is, nothing where it is empty. Numbers that begin with a zero are names, and so are whole numbers
/// that no integer holds.
fn sort_of_cell(cell: &str) -> Option<Sorts> {
    let digits = cell.trim_start_matches(['-', '+']);
    let is_name = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
    let fits = |kind: &Kind| match (kind, kind.parse(cell)) {
        (Kind::Bool, Ok(_)) => !digits.starts_with(['0', '1']) && cell.len() > 1,
        (Kind::Int, Ok(_)) => !cell.contains('.') && !cell.contains(['e', 'E']) && !is_name && !cell.starts_with('+'),
        (Kind::Float, Ok(Cell::Float(_))) => {
            !is_name && !is_large(digits) && digits.starts_with(|first: char| first.is_ascii_digit())
        }
        (_, parsed) => parsed.is_ok(),
    };
    let kinds = [Kind::Bool, Kind::Int, Kind::Float, Kind::Timestamp];
    let read = match kinds.into_iter().find(fits) {
        _ if cell.is_empty() => return None,
        Some(Kind::Int) if is_large(digits) => Sort::Large,
        kind => Sort::Of(kind.unwrap_or(Kind::Text)),
    };
    Some(Sorts::of(cell, read, Kind::Text))
}

/// What a value of JSON is, nothing where it is null. An empty text is a text: the reader takes it for nothing else.
fn sort_of_json(value: &str) -> Option<Sorts> {
    let kind = match value.as_bytes().first() {
        Some(b'n') => return None,
        Some(b't' | b'f') => Kind::Bool,
        Some(b'[' | b'{') => Kind::Json,
        Some(b'"') => {
            let text: String = serde_json::from_str(value).unwrap_or_default();
            let kind = if parse_timestamp(&text).is_ok() { Kind::Timestamp } else { Kind::Text };
            return Some(Sorts::of(&text, Sort::Of(kind), Kind::Json));
        }
        _ if value.contains(['.', 'e', 'E']) => Kind::Float,
        _ if value.parse::<i64>().is_ok() && is_large(value.trim_start_matches('-')) => {
            return Some(Sorts::of(value, Sort::Large, Kind::Json));
        }
        _ if value.parse::<i64>().is_ok() => Kind::Int,
        // The reader takes digits for a text as far as it takes them for a number.
        _ if value.parse::<u64>().is_ok() => Kind::Text,
        _ => Kind::Json,
    };
    Some(Sorts::of(value, Sort::Of(kind), Kind::Json))
}

/// Digits that tell every double from its neighbours.
const DOUBLE_DIGITS: usize = 17;

/// Whether a double stands for a number: then it is the same when it is written with as many digits again, of which seventeen say
/// all. So are all of fifteen digits.
fn is_exact_number(number: &str) -> bool {
    let Ok(value) = number.parse::<f64>() else { return false };
    if value.is_normal() && number.bytes().filter(u8::is_ascii_digit).count() <= f64::DIGITS as usize {
        return true;
    }
    let written = decimal(number);
    match written.0.len() {
        0 => true,
        digits => digits <= DOUBLE_DIGITS && decimal(&format!("{value:.*e}", digits - 1)) == written,
    }
}

/// The digits of a number without the zeros around them, and the power of ten that they are to be multiplied by.
fn decimal(number: &str) -> (String, i64) {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole.trim_start_matches('-'), fraction].concat();
    let digits = all.trim_end_matches('0');
    let shift = i64::try_from(all.len() - digits.len()).unwrap_or(0) - i64::try_from(fraction.len()).unwrap_or(0);
    match digits.trim_start_matches('0') {
        "" => (String::new(), 0),
        // No double has an exponent that is too long to be read.
        digits => (digits.to_owned(), exponent.parse().unwrap_or(0_i64).saturating_add(shift)),
    }
}

/// Whether nothing of a time is lost: it has no digits below microseconds, and is no leap second.
fn is_exact_time(time: &str) -> bool {
    let fraction = time.split_once('.').map_or("", |(_, fraction)| fraction);
    let mut below = fraction.bytes().take_while(u8::is_ascii_digit).skip(6);
    below.all(|digit| digit == b'0') && !time.contains(":60")
}

/// Whether these are digits of a whole number beyond 2^53.
fn is_large(digits: &str) -> bool {
    digits.bytes().all(|digit| digit.is_ascii_digit()) && digits.parse::<u64>().map_or(true, |number| number > 1 << 53)
}

/// A name as columns and datasets may have.
#[must_use]
pub fn identifier(name: &str) -> String {
    let mut plain = String::new();
    for letter in name.trim().chars().map(|letter| letter.to_ascii_lowercase()) {
        match letter {
            'a'..='z' | '0'..='9' => plain.push(letter),
            _ if plain.ends_with('_') => {}
            _ => plain.push('_'),
        }
    }
    plain.truncate(LONGEST_NAME);
    if !plain.starts_with(|first: char| first.is_ascii_lowercase()) || plain.starts_with("labkey_") {
        plain = format!("c_{}", plain.trim_start_matches('_'));
    }
    let is_level = Level::ALL.iter().any(|level| level.as_str() == plain);
    if is_level || SERVICE_COLUMNS.contains(&plain.as_str()) || RESERVED_PARAMETERS.contains(&plain.as_str()) {
        plain.push('_');
    }
    plain
}

/// The fields of an object in their order, each as it is written.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields<'de>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

fn not_json(line: u64, error: &serde_json::Error) -> Error {
    let reason = error.to_string();
    let reason = reason.split(" at line ").next().unwrap_or_default();
    Error::Faults(vec![Fault::of_line(line, format!("is no JSON object: {reason}"))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_those_that_all_values_allow() {
        for (cells, kind) in [
            (vec!["1", "-2", ""], Some(Kind::Int)),
            (vec!["1", "2.5", "3e-44"], Some(Kind::Float)),
            (vec!["true", "false"], Some(Kind::Bool)),
            (vec!["0", "1"], Some(Kind::Int)),
            (vec!["t", "f"], Some(Kind::Text)),
            (vec!["2025-10-28T00:15:23Z", "2025-10-28"], Some(Kind::Timestamp)),
            (vec!["007", "12"], Some(Kind::Text)),
            (vec!["12", "a1b2c3"], Some(Kind::Text)),
            (vec!["nan", "1.5"], Some(Kind::Text)),
            (vec!["25-10-28"], Some(Kind::Text)),
            // A float would change their digits.
            (vec!["9223372036854775808"], Some(Kind::Text)),
            (vec!["9223372036854775808", "1"], Some(Kind::Text)),
            (vec!["9007199254740993", "1"], Some(Kind::Int)),
            (vec!["9007199254740993", "1", "0.5"], Some(Kind::Text)),
            (vec!["0.5", "-9007199254740993"], Some(Kind::Text)),
            (vec!["9007199254740992", "0.5"], Some(Kind::Float)),
            (vec!["9007199254740994.0", "0.1234567890123456", "1.10", "5.", "1E+5"], Some(Kind::Float)),
            (vec!["9007199254740993.0"], Some(Kind::Text)),
            (vec!["0.12345678901234567890"], Some(Kind::Text)),
            (vec!["0.10000000000000001", "5e-324", "0.0"], Some(Kind::Float)),
            (vec!["0.0", "-0", "0.00e7", "2.2250738585072014e-308", "5e-324"], Some(Kind::Float)),
            (vec!["1e-400"], Some(Kind::Text)),
            (vec!["4.95e-324"], Some(Kind::Text)),
            (vec!["1e-99999999999999999999"], Some(Kind::Text)),
            (vec!["0.5", "+5"], Some(Kind::Text)),
            (vec!["1", "-0"], Some(Kind::Float)),
            (vec!["2025-10-28T00:15:23.123456000Z", "2025-10-28 00:15:23.5"], Some(Kind::Timestamp)),
            (vec!["2025-10-28T00:15:23.1234567Z"], Some(Kind::Text)),
            (vec!["2016-12-31T23:59:60Z"], Some(Kind::Text)),
            (vec!["", ""], None),
        ] {
            let mut profile = Profile::default();
            cells.iter().for_each(|cell| profile.see("c", sort_of_cell(cell), false));
            assert_eq!(profile.columns[0].1.map(|sorts| sorts.exact.kind()), kind, "{cells:?}");
        }
    }

    #[test]
    fn kinds_of_json_are_those_that_its_reader_takes() {
        for (values, kind) in [
            (vec!["5", "null"], Some(Kind::Int)),
            (vec!["5", r#""""#], Some(Kind::Text)),
            (vec!["true", r#""""#], Some(Kind::Json)),
            (vec![r#""2025-10-28""#, r#""""#], Some(Kind::Text)),
            (vec!["5", "0.5", "-3e1"], Some(Kind::Float)),
            (vec!["18446744073709551615", "1"], Some(Kind::Text)),
            (vec!["18446744073709551616", "1"], Some(Kind::Json)),
            (vec!["9007199254740993", "1"], Some(Kind::Int)),
            (vec!["9007199254740993", "0.5"], Some(Kind::Json)),
            (vec!["{}", "1"], Some(Kind::Json)),
            (vec!["9007199254740993.0"], Some(Kind::Json)),
            (vec!["1e-400", "0.5"], Some(Kind::Json)),
            (vec!["-0", "1"], Some(Kind::Float)),
            (vec![r#""2025-10-28T00:15:23.1234567Z""#], Some(Kind::Text)),
            (vec![r#""2025-10-28T00:15:23.123456Z""#], Some(Kind::Timestamp)),
            (vec!["null"], None),
        ] {
            let mut profile = Profile::default();
            values.iter().for_each(|value| profile.see("c", sort_of_json(value), true));
            assert_eq!(profile.columns[0].1.map(|sorts| sorts.exact.kind()), kind, "{values:?}");
        }
    }

    #[test]
    fn every_name_becomes_one_that_a_definition_takes() {
        for (name, plain) in [
            ("Query Hash", "query_hash"),
            ("%cov", "c_cov"),
            ("2nd", "c_2nd"),
            ("year", "year_"),
            ("extra", "extra_"),
            ("labkey_id", "c_labkey_id"),
            ("Größe", "gr_e"),
        ] {
            assert_eq!(identifier(name), plain);
        }
        let mut profile = Profile::default();
        ["A b", "a_b", "format", "ordinal", "Reads"].iter().for_each(|name| profile.see(name, None, false));
        let (dataset, _) = profile.definition("2025 report").expect("definition");
        assert_eq!(dataset.name, "c_2025_report");
        assert_eq!(dataset.position("A b"), Some(0));
    }
}
