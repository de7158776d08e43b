//! One JSON object of a JSONL body into a row, driven by the dataset's columns.
//!
//! Keys come in the same order line after line, so the order of the line before is tried first and the search by
//! name happens only on a miss. Text is borrowed from the line. [`flat`] reads the usual line; serde_json reads every
//! other, and says what is wrong with it.

mod flat;

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::definition::Dataset;
use super::kind::{self, Kind};
use super::row::{Cell, Fault, Row, character};
use flat::Expected;

/// What is said of U+0000, which PostgreSQL cannot store.
pub const NUL: &str = "contains the character U+0000, which cannot be stored";

/// Reads the lines of one body; remembers the order of keys.
#[derive(Debug, Default)]
pub struct Reader {
    order: Vec<Expected>,
}

impl Reader {
    /// Reads one line into `row`, which must be empty.
    ///
    /// # Errors
    /// The first fault of the line.
    pub fn read<'a>(&mut self, dataset: &Dataset, line: &'a str, number: u64, row: &mut Row<'a>) -> Result<(), Fault> {
        if flat::read(dataset, &self.order, line, row) {
            return Ok(());
        }
        row.clear();
        self.read_any(dataset, line, number, row)
    }

    /// Reads a line of any shape.
    fn read_any<'a>(&mut self, dataset: &Dataset, line: &'a str, number: u64, row: &mut Row<'a>) -> Result<(), Fault> {
        let mut current = Current::Line;
        let record = Record { dataset, order: &mut self.order, row, current: &mut current };
        let mut deserializer = serde_json::Deserializer::from_str(line);
        let parsed = record.deserialize(&mut deserializer).and_then(|()| deserializer.end());
        parsed.map_err(|error| explain(dataset, line, number, &current, &error))
    }
}

/// The character at which the value of the column at `position` begins.
#[must_use]
pub fn locate(dataset: &Dataset, line: &str, position: usize) -> Option<u64> {
    locate_by(line, |key| dataset.position(key) == Some(position))
}

/// What is being read when an error occurs.
enum Current {
    Line,
    Column(usize),
    Extra(String),
}

/// Turns a serde_json error into a fault that says where and what to do.
fn explain(dataset: &Dataset, line: &str, number: u64, current: &Current, error: &serde_json::Error) -> Fault {
    let message = error.to_string();
    let reason = message.split(" at line ").next().unwrap_or_default().to_owned();
    let field = match current {
        Current::Line => None,
        Current::Column(position) => Some(dataset.columns[*position].name.clone()),
        Current::Extra(name) => Some(name.clone()),
    };
    if error.is_data() {
        let column = match current {
            Current::Line => None,
            Current::Column(position) => locate(dataset, line, *position),
            Current::Extra(name) => locate_by(line, |key| key == name),
        };
        return Fault { line: Some(number), column, field, reason };
    }
    let offset = error.column().saturating_sub(1);
    let reason = if reason == "number out of range" {
        kind::FLOAT_OVERFLOW.to_owned()
    } else if is_not_finite(line, offset) {
        format!("is not JSON: {}", kind::NOT_FINITE)
    } else {
        format!("is not JSON: {reason}")
    };
    Fault { line: Some(number), column: Some(character(line, offset)), field, reason }
}

/// Whether the text around `offset` is `NaN` or `Infinity` as Python's json writes them.
fn is_not_finite(line: &str, offset: usize) -> bool {
    let from = line.as_bytes().get(offset.saturating_sub(1)..).unwrap_or_default();
    let text = from.trim_ascii_start();
    [&b"NaN"[..], b"Infinity", b"-Infinity", b"nan", b"inf"]
        .iter()
        .any(|word| text.starts_with(word) || from[from.len().min(1)..].starts_with(word))
}

/// The character at which the last value begins whose key satisfies `matches`.
fn locate_by(line: &str, matches: impl Fn(&str) -> bool) -> Option<u64> {
    struct Find<F>(F);
    impl<'de, F: Fn(&str) -> bool> Visitor<'de> for Find<F> {
        type Value = Option<&'de str>;
        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(key) = map.next_key::<Cow<'_, str>>()? {
                let value: &RawValue = map.next_value()?;
                if (self.0)(&key) {
                    found = Some(value.get());
                }
            }
            Ok(found)
        }
    }
    let value = serde_json::Deserializer::from_str(line).deserialize_map(Find(matches)).ok()??;
    Some(character(line, value.as_ptr() as usize - line.as_ptr() as usize))
}

/// Whether an unknown field of that name was there before. `names` are those of `extra` once there are many: comparing
/// each with all others would take minutes for a line of a hundred thousand.
fn is_repeated(name: &str, extra: &[(Cow<'_, str>, Cow<'_, str>)], names: &mut HashSet<String>) -> bool {
    const FEW: usize = 32;
    if extra.len() < FEW {
        return extra.iter().any(|(other, _)| other == name);
    }
    if names.is_empty() {
        names.extend(extra.iter().map(|(other, _)| other.clone().into_owned()));
    }
    !names.insert(name.to_owned())
}

/// Fills a row from one object.
struct Record<'r, 'a> {
    dataset: &'r Dataset,
    order: &'r mut Vec<Expected>,
    row: &'r mut Row<'a>,
    current: &'r mut Current,
}

impl<'de> DeserializeSeed<'de> for Record<'_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Record<'_, 'de> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut index = 0;
        let mut names = HashSet::new();
        while let Some(key) = map.next_key_seed(Key { dataset: self.dataset, order: self.order, index })? {
            index += 1;
            match key {
                Found::Column(position) => {
                    *self.current = Current::Column(position);
                    let kind = self.dataset.columns[position].kind;
                    let cell = map.next_value_seed(Value(kind))?;
                    if !self.row.set(position, cell) {
                        return Err(A::Error::custom("stands twice in this object"));
                    }
                }
                Found::Extra(name) => {
                    *self.current = Current::Extra(name.clone().into_owned());
                    let value: &RawValue = map.next_value()?;
                    if is_repeated(&name, &self.row.extra, &mut names) {
                        return Err(A::Error::custom("stands twice in this object"));
                    }
                    if name.contains('\0') {
                        return Err(A::Error::custom(NUL));
                    }
                    check_document(value.get()).map_err(A::Error::custom)?;
                    self.row.extra.push((name, Cow::Borrowed(value.get())));
                }
            }
            *self.current = Current::Line;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom("is a JSON array: send one object per line, without brackets and commas around them"))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Err(E::custom(NOT_AN_OBJECT))
    }
    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        Err(E::custom(NOT_AN_OBJECT))
    }
    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        Err(E::custom(NOT_AN_OBJECT))
    }
    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        Err(E::custom(NOT_AN_OBJECT))
    }
    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        Err(E::custom(NOT_AN_OBJECT))
    }
    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        Err(E::custom(NOT_AN_OBJECT))
    }
}

const NOT_AN_OBJECT: &str = "is not a JSON object";

/// What a key turned out to be.
enum Found<'a> {
    Column(usize),
    Extra(Cow<'a, str>),
}

/// Finds the column of a key; `index` is the key's place in its object.
struct Key<'r> {
    dataset: &'r Dataset,
    order: &'r mut Vec<Expected>,
    index: usize,
}

impl Key<'_> {
    fn find<'a>(self, key: Cow<'a, str>) -> Found<'a> {
        let position = match self.order.get(self.index) {
            Some(expected) if *expected.key == *key => expected.position,
            _ => self.search(&key),
        };
        position.map_or(Found::Extra(key), Found::Column)
    }

    /// Looks a key up by name, and expects it at this place of the next object.
    fn search(self, key: &str) -> Option<usize> {
        let position = self.dataset.position(key);
        let learnt = Expected::new(key, position);
        if let Some(place) = self.order.get_mut(self.index) {
            *place = learnt;
        } else if self.order.len() <= self.dataset.columns.len() {
            self.order.push(learnt);
        }
        position
    }
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Found<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found<'de>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = Found<'de>;
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a field name")
    }
    fn visit_borrowed_str<E: serde::de::Error>(self, key: &'de str) -> Result<Found<'de>, E> {
        Ok(self.find(Cow::Borrowed(key)))
    }
    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Found<'de>, E> {
        Ok(self.find(Cow::Owned(key.to_owned())))
    }
}

/// Reads a value of that kind.
struct Value(Kind);

impl Value {
    fn wrong<T, E: serde::de::Error>(&self) -> Result<T, E> {
        Err(E::custom(self.0.expected()))
    }
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Cell<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cell<'de>, D::Error> {
        if !matches!(self.0, Kind::Json | Kind::Int) {
            return deserializer.deserialize_any(self);
        }
        let value = <&RawValue as serde::Deserialize>::deserialize(deserializer)?;
        match (value.get(), self.0) {
            ("null", _) => Ok(Cell::Null),
            // As it is written: a float may have lost a fraction.
            (text, Kind::Int) if text.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => {
                kind::parse_int(text).map(Cell::Int).map_err(D::Error::custom)
            }
            (_, Kind::Int) => self.wrong(),
            (text, _) => {
                check_document(text).map_err(D::Error::custom)?;
                Ok(Cell::Json(Cow::Borrowed(text)))
            }
        }
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Cell<'de>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0.expected())
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Cell<'de>, E> {
        // A borrowed string had no escapes, and a bare NUL is no JSON.
        match self.0 {
            Kind::Text => Ok(Cell::Text(Cow::Borrowed(text))),
            Kind::Timestamp => kind::parse_timestamp(text).map(Cell::Timestamp).map_err(E::custom),
            _ => self.wrong(),
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Cell<'de>, E> {
        match self.0 {
            Kind::Text if text.contains('\0') => Err(E::custom(NUL)),
            Kind::Text => Ok(Cell::Text(Cow::Owned(text.to_owned()))),
            Kind::Timestamp => kind::parse_timestamp(text).map(Cell::Timestamp).map_err(E::custom),
            _ => self.wrong(),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Cell<'de>, E> {
        match self.0 {
            #[expect(clippy::cast_precision_loss, reason = "a float column stores floats")]
            Kind::Float => Ok(Cell::Float(value as f64)),
            // Clients write a taxid as a number; its digits are its text.
            Kind::Text => Ok(Cell::Text(Cow::Owned(value.to_string()))),
            _ => self.wrong(),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Cell<'de>, E> {
        if let Ok(value) = i64::try_from(value) {
            return self.visit_i64(value);
        }
        match self.0 {
            #[expect(clippy::cast_precision_loss, reason = "a float column stores floats")]
            Kind::Float => Ok(Cell::Float(value as f64)),
            Kind::Text => Ok(Cell::Text(Cow::Owned(value.to_string()))),
            _ => self.wrong(),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Cell<'de>, E> {
        match self.0 {
            Kind::Float => Ok(Cell::Float(value)),
            _ => self.wrong(),
        }
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Cell<'de>, E> {
        if self.0 == Kind::Bool { Ok(Cell::Bool(value)) } else { self.wrong() }
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Cell<'de>, E> {
        Ok(Cell::Null)
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Cell<'de>, A::Error> {
        self.wrong()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Cell<'de>, A::Error> {
        self.wrong()
    }
}

/// Checks that PostgreSQL's `jsonb` can hold a document as it stands.
///
/// # Errors
/// Text that is no JSON, U+0000, a key that stands twice in one object, numbers beyond a double, those with an exponent below
/// [`LEAST_EXPONENT`], more than 128 levels.
pub fn check_document(text: &str) -> Result<(), String> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Document.deserialize(&mut deserializer).and_then(|()| deserializer.end()).map_err(|error| {
        let message = error.to_string();
        message.split(" at line ").next().unwrap_or_default().to_owned()
    })?;
    if has_tiny_number(text) { Err(format!("has a number with an exponent below {LEAST_EXPONENT}")) } else { Ok(()) }
}

/// PostgreSQL writes each digit of a number in `jsonb`: of `1e-16000` as many, and no export could read a line of such.
const LEAST_EXPONENT: i64 = -400;

/// Whether a document, which must be one, has a number below that.
fn has_tiny_number(text: &str) -> bool {
    if !text.contains("e-") && !text.contains("E-") {
        return false;
    }
    let (mut is_text, mut is_escaped) = (false, false);
    let is_between = |letter: char| {
        let is_quote = letter == '"' && !is_escaped;
        is_escaped = is_text && letter == '\\' && !is_escaped;
        is_text ^= is_quote;
        is_text || !(letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '+'))
    };
    let exponent =
        |number: &str| number.split_once(['e', 'E']).map(|(_, digits)| digits.parse::<i64>().unwrap_or(i64::MIN));
    let begins = |word: &&str| word.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    text.split(is_between).filter(begins).filter_map(exponent).any(|exponent| exponent < LEAST_EXPONENT)
}

/// Walks any JSON value.
struct Document;

impl<'de> DeserializeSeed<'de> for Document {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Document {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(Kind::Json.expected())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if text.contains('\0') { Err(E::custom(NUL)) } else { Ok(()) }
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Self)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys: HashSet<Cow<'de, str>> = HashSet::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key.contains('\0') {
                return Err(A::Error::custom(NUL));
            }
            if !keys.insert(key) {
                return Err(A::Error::custom("has an object in which a key stands twice"));
            }
            map.next_value_seed(Self)?;
        }
        Ok(())
    }
}

/// Whether a line is a JSON value of any kind, and so meant as JSONL.
#[must_use]
pub fn is_json(line: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(line).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_would_be_written_as_very_many_digits_are_refused() {
        for text in ["1e-16000", "[{\"a\":-0.5E-401}]", "[\"\\\"\",0e-99999999999999999999]"] {
            assert!(check_document(text).expect_err(text).contains("exponent below -400"), "{text}");
        }
        for text in ["1e-400", "\"1e-16000\"", "[\"a\\\"1e-16000\",1e-5]", "{\"1e-16000\":1e+300}", "\"e-\""] {
            assert_eq!(check_document(text), Ok(()), "{text}");
        }
    }
}
