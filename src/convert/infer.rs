//! A definition for files that have none: names as they stand, kinds as all values allow.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::source::Source;
use crate::config::Level;
use crate::dataset::definition::{RESERVED_PARAMETERS, SERVICE_COLUMNS};
use crate::dataset::{Cell, Fault, Kind};
use crate::error::{Error, Result};

/// Letters of a name that every part of the service takes.
const LONGEST: usize = 40;

/// The columns that were seen, and what their values are.
#[derive(Debug, Default)]
pub struct Profile {
    columns: Vec<(String, Option<Kind>)>,
    positions: HashMap<String, usize>,
}

impl Profile {
    /// Looks at all values of a file.
    ///
    /// # Errors
    /// A damaged file.
    pub fn observe(&mut self, source: &Source) -> Result<()> {
        let mut of_cells = Self::default();
        let mut of_json = Self::default();
        source.records(
            |name, cell| of_cells.see(name, kind_of_cell(cell), false),
            |line, json| {
                let fields: Fields = serde_json::from_str(json).map_err(|error| not_json(line, &error))?;
                fields.0.iter().for_each(|(name, value)| of_json.see(name, kind_of_value(value), true));
                Ok(())
            },
        )?;
        // Only a file that could be read to its end has a say.
        let seen = of_cells.columns.into_iter().map(|column| (column, false));
        let seen = seen.chain(of_json.columns.into_iter().map(|column| (column, true)));
        seen.for_each(|((name, kind), is_json)| self.see(&name, kind, is_json));
        Ok(())
    }

    /// Looks at a value that all rows have.
    pub fn observe_value(&mut self, column: &str, value: &str) {
        self.see(column, kind_of_cell(value), false);
    }

    /// Takes the kinds of columns of earlier files into account.
    pub fn remember(&mut self, name: &str, kind: Kind) {
        let known = self.columns.iter().position(|(known, _)| identifier(known) == name);
        let name = known.map_or_else(|| name.to_owned(), |known| self.columns[known].0.clone());
        self.see(&name, Some(kind), kind == Kind::Json);
    }

    fn see(&mut self, name: &str, kind: Option<Kind>, is_json: bool) {
        let position = match self.positions.get(name) {
            Some(&position) => position,
            None => {
                self.positions.insert(name.to_owned(), self.columns.len());
                self.columns.push((name.to_owned(), None));
                self.columns.len() - 1
            }
        };
        let held = &mut self.columns[position].1;
        *held = match (*held, kind) {
            (Some(one), Some(other)) => Some(both(one, other, is_json)),
            (one, other) => one.or(other),
        };
    }

    /// The definition, as TOML.
    #[must_use]
    pub fn definition(&self, name: &str) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let mut text = format!(
            "name = {0}\ntable = {0}\ntitle = {0}\ndescription = \"Told from files\"\n",
            quoted(&identifier(name))
        );
        // Names that stay as they are come first.
        let kept = self.columns.iter().map(|(original, _)| original).filter(|name| identifier(name) == **name);
        let mut taken: HashSet<String> = kept.cloned().collect();
        for (original, kind) in &self.columns {
            let plain = identifier(original);
            let mut name = plain.clone();
            let mut number = 1;
            while *original != name && !taken.insert(name.clone()) {
                number += 1;
                name = format!("{plain}_{number}");
            }
            let kind = serde_json::to_value(kind.unwrap_or(Kind::Text)).unwrap_or_default();
            text.push_str(&format!(
                "\n[[columns]]\nname = {}\nkind = {kind}\ndescription = {}\n",
                quoted(&name),
                quoted(&format!("`{original}` of the files"))
            ));
            if *original != name {
                text.push_str(&format!("aliases = [{}]\n", quoted(original)));
            }
        }
        text
    }
}

/// The kind that takes the values of both.
fn both(one: Kind, other: Kind, is_json: bool) -> Kind {
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

/// The kind of a cell of a table, none where it is empty. Numbers that begin with a zero are names.
fn kind_of_cell(cell: &str) -> Option<Kind> {
    let digits = cell.trim_start_matches(['-', '+']);
    let is_name = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
    let fits = |kind: &Kind| match (kind, kind.parse(cell)) {
        (Kind::Bool, Ok(_)) => !digits.starts_with(['0', '1']) && cell.len() > 1,
        (Kind::Int, Ok(_)) => !cell.contains('.') && !cell.contains(['e', 'E']) && !is_name && !cell.starts_with('+'),
        (Kind::Float, Ok(Cell::Float(_))) => !is_name && digits.starts_with(|first: char| first.is_ascii_digit()),
        (_, parsed) => parsed.is_ok(),
    };
    let kinds = [Kind::Bool, Kind::Int, Kind::Float, Kind::Timestamp];
    (!cell.is_empty()).then(|| kinds.into_iter().find(fits).unwrap_or(Kind::Text))
}

fn kind_of_value(value: &Value) -> Option<Kind> {
    match value {
        Value::Null => None,
        Value::Bool(_) => Some(Kind::Bool),
        Value::Number(number) if number.is_i64() => Some(Kind::Int),
        Value::Number(_) => Some(Kind::Float),
        Value::String(text) if text.is_empty() => None,
        Value::String(text) if Kind::Timestamp.parse(text).is_ok() => Some(Kind::Timestamp),
        Value::String(_) => Some(Kind::Text),
        Value::Array(_) | Value::Object(_) => Some(Kind::Json),
    }
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
    plain.truncate(LONGEST);
    if !plain.starts_with(|first: char| first.is_ascii_lowercase()) || plain.starts_with("labkey_") {
        plain = format!("c_{}", plain.trim_start_matches('_'));
    }
    let is_level = Level::ALL.iter().any(|level| level.as_str() == plain);
    if is_level || SERVICE_COLUMNS.contains(&plain.as_str()) || RESERVED_PARAMETERS.contains(&plain.as_str()) {
        plain.push('_');
    }
    plain
}

/// The fields of an object in their order.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
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
            (vec!["9223372036854775808"], Some(Kind::Float)),
            (vec!["", ""], None),
        ] {
            let mut profile = Profile::default();
            cells.iter().for_each(|cell| profile.see("c", kind_of_cell(cell), false));
            assert_eq!(profile.columns[0].1, kind, "{cells:?}");
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
        ["A b", "a_b", "format", "ordinal"].iter().for_each(|name| profile.see(name, None, false));
        let toml = profile.definition("2025 report");
        let dataset = crate::dataset::Dataset::parse("inferred", &toml).expect(&toml);
        assert_eq!(dataset.name, "c_2025_report");
        assert_eq!(dataset.position("A b"), Some(0));
    }
}
