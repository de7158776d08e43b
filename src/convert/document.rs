//! JSON that is not one object a line: a list of objects, one object after the other, or an object around one list, as
//! reports are. Read as it comes: only one row is held at a time.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, Read};
use std::rc::Rc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::dataset::Fault;
use crate::error::{Error, Result};
use crate::send::content::LIMITS;

/// Bytes that are read at once.
const BUFFER: usize = 256 * 1024;

/// Where the rows of a document are.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Each value is a row, or a list of rows.
    Values,
    /// One object holds one list of rows. Its other fields belong to every row.
    Around {
        /// The field with the list.
        list: String,
        /// The other fields, each with its value as it is written: a number of JSON may have more digits than any type.
        others: BTreeMap<String, String>,
    },
}

/// Finds out where the rows are.
///
/// # Errors
/// Text that is no JSON, an object with several lists of objects, or with more around them than a line may have.
pub fn survey(text: impl Read) -> Result<Shape> {
    let tape = Rc::new(RefCell::new(Tape::default()));
    let text = Taped { text: io::BufReader::with_capacity(BUFFER, text), tape: Rc::clone(&tape) };
    let mut deserializer = serde_json::Deserializer::from_reader(text);
    let fields = match Surveyed(tape).deserialize(&mut deserializer).map_err(fault)? {
        Seen::Fields(fields) if deserializer.end().is_ok() => fields,
        _ => return Ok(Shape::Values),
    };
    let those = |is_it: fn(Option<&str>) -> bool| -> Vec<&str> {
        fields.iter().filter(|(_, value)| is_it(value.as_deref())).map(|(name, _)| name.as_str()).collect()
    };
    let mut lists = those(|value| value.is_none());
    if lists.is_empty() {
        // A report without rows.
        lists = those(|value| value == Some("[]"));
    }
    match lists.as_slice() {
        [] => Ok(Shape::Values),
        [list] => {
            let list = (*list).to_owned();
            let others = fields.into_iter().filter(|(name, _)| *name != list);
            let others = others.filter_map(|(name, value)| Some((name, value?))).collect();
            Ok(Shape::Around { list, others })
        }
        several => {
            let several = several.join("`, `");
            Err(Error::Body(format!(
                "holds several lists of objects, `{several}`: write the rows of one as JSON lines"
            )))
        }
    }
}

/// Hands each row, as JSON on one line, with the number of the line on which it ends to `each`.
///
/// # Errors
/// Text that is no JSON, what `each` says.
pub fn rows(text: impl Read, shape: &Shape, each: impl FnMut(u64, &str) -> Result<()>) -> Result<()> {
    let (mut deserializer, line) = deserializer(text);
    let (list, others) = match shape {
        Shape::Values => (None, None),
        Shape::Around { list, others } => (Some(list.as_str()), Some(others)),
    };
    let mut walk = Walk { list, others, line, each, row: String::new(), error: None };
    loop {
        let result = walk.value(&mut deserializer);
        if let Some(error) = walk.error.take() {
            return Err(error);
        }
        result.map_err(fault)?;
        if deserializer.end().is_ok() {
            return Ok(());
        }
    }
}

fn deserializer<R: Read>(text: R) -> (serde_json::Deserializer<serde_json::de::IoRead<Counted<R>>>, Rc<Cell<u64>>) {
    let line = Rc::new(Cell::new(1));
    let counted = Counted { text: io::BufReader::with_capacity(BUFFER, text), line: Rc::clone(&line) };
    (serde_json::Deserializer::from_reader(counted), line)
}

/// Counts the lines that were read. The parser reads byte by byte.
struct Counted<R> {
    text: io::BufReader<R>,
    line: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.text.read(buffer)?;
        let ends = memchr::memchr_iter(b'\n', &buffer[..count]).count() as u64;
        self.line.set(self.line.get() + ends);
        Ok(count)
    }
}

/// The reader's own fault where there is one, else what is wrong with the JSON.
fn fault(error: serde_json::Error) -> Error {
    let (line, column) = (error.line() as u64, error.column() as u64);
    let reason = error.to_string();
    if error.is_io() {
        return match io::Error::from(error).downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::Body(error.to_string()),
        };
    }
    let reason = format!("is not JSON: {}", reason.split(" at line ").next().unwrap_or_default());
    Error::Faults(vec![Fault { line: Some(line), column: Some(column), field: None, reason }])
}

/// The first value of a document.
enum Seen {
    /// An object; a list of objects has no value.
    Fields(Vec<(String, Option<String>)>),
    Other,
}

struct Surveyed(Rc<RefCell<Tape>>);

impl<'de> DeserializeSeed<'de> for Surveyed {
    type Value = Seen;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Seen, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Surveyed {
    type Value = Seen;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object, or a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Seen, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Seen::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Seen, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = map.next_key()? {
            self.0.borrow_mut().begin();
            map.next_value::<IgnoredAny>()?;
            fields.push((name, self.0.borrow_mut().end()));
        }
        Ok(Seen::Fields(fields))
    }
}

/// The bytes of a field's value as they are read. The parser knows numbers by their value only.
#[derive(Default)]
struct Tape {
    is_on: bool,
    /// From the colon on.
    value: Vec<u8>,
    /// Bytes of all values.
    bytes: usize,
}

impl Tape {
    fn begin(&mut self) {
        (self.is_on, self.value) = (true, Vec::new());
    }

    /// The value; nothing where it holds rows, of which the beginning is enough.
    fn end(&mut self) -> Option<String> {
        self.is_on = false;
        let value = self.value.strip_prefix(b":").filter(|_| !self.holds_rows())?;
        // What comes behind a number was read too.
        let mut values = serde_json::Deserializer::from_slice(value).into_iter::<&RawValue>();
        Some(values.next()?.ok()?.get().to_owned())
    }

    /// A list of objects.
    fn holds_rows(&self) -> bool {
        self.value == b":[{"
    }

    fn put(&mut self, byte: u8) {
        let is_before = matches!(self.value.as_slice(), b"" | b":" | b":[") && byte.is_ascii_whitespace();
        if self.is_on && !is_before && !self.holds_rows() {
            self.value.push(byte);
            self.bytes += 1;
        }
    }
}

/// A text that is laid on a tape. The parser reads byte by byte, and so not beyond the value.
struct Taped<R> {
    text: io::BufReader<R>,
    tape: Rc<RefCell<Tape>>,
}

impl<R: Read> Read for Taped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.text.read(buffer)?;
        let mut tape = self.tape.borrow_mut();
        buffer[..count].iter().for_each(|byte| tape.put(*byte));
        if tape.bytes > LIMITS.line {
            return Err(io::Error::other(LIMITS.line_too_long()));
        }
        Ok(count)
    }
}

/// Walks over a document, and hands rows over.
struct Walk<'w, E> {
    list: Option<&'w str>,
    others: Option<&'w BTreeMap<String, String>>,
    line: Rc<Cell<u64>>,
    each: E,
    row: String,
    /// What `each` said.
    error: Option<Error>,
}

impl<E: FnMut(u64, &str) -> Result<()>> Walk<'_, E> {
    fn value<'de, D: Deserializer<'de>>(&mut self, deserializer: D) -> Result<(), D::Error> {
        match self.list {
            Some(_) => deserializer.deserialize_map(self),
            None => deserializer.deserialize_any(self),
        }
    }

    /// Hands a row over, completed by what stands around it.
    fn row<X: serde::de::Error>(&mut self, raw: &str) -> Result<(), X> {
        self.row.clear();
        let others = self.others.filter(|others| !others.is_empty());
        match others.and_then(|others| Some((others, serde_json::from_str::<HashMap<String, &RawValue>>(raw).ok()?))) {
            Some((others, own)) => {
                self.row.push('{');
                // Fields are found whatever their case.
                let is_own = |name: &str| own.keys().any(|own| own.eq_ignore_ascii_case(name));
                for (name, value) in others.iter().filter(|(name, _)| !is_own(name)) {
                    self.row.push_str(&format!("{}:{value},", Value::from(name.as_str())));
                }
                let fields = raw.trim_start_matches('{');
                if own.is_empty() && self.row.len() > 1 {
                    self.row.pop();
                }
                self.row.push_str(fields);
            }
            None => self.row.push_str(raw),
        }
        // Line ends can stand between values only: within texts they are escaped.
        let row = self.row.replace(['\n', '\r'], " ");
        (self.each)(self.line.get(), &row).map_err(|error| {
            self.error = Some(error);
            X::custom("stopped")
        })
    }
}

impl<'de, E: FnMut(u64, &str) -> Result<()>> Visitor<'de> for &mut Walk<'_, E> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object, or a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(raw) = seq.next_element::<Box<RawValue>>()? {
            self.row(raw.get())?;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some(list) = self.list else {
            // A row itself: written again field by field.
            let mut raw = String::from("{");
            while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                let separator = if raw.len() > 1 { "," } else { "" };
                raw.push_str(&format!("{separator}{}:{}", Value::from(name), value.get()));
            }
            raw.push('}');
            return self.row(&raw);
        };
        while let Some(name) = map.next_key::<String>()? {
            if name == list {
                map.next_value_seed(Rows(&mut *self))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The list of rows in the object around them.
struct Rows<'r, 'w, E>(&'r mut Walk<'w, E>);

impl<'de, E: FnMut(u64, &str) -> Result<()>> DeserializeSeed<'de> for Rows<'_, '_, E> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_around_rows_is_no_longer_than_a_line() {
        let tape = Rc::new(RefCell::new(Tape { is_on: true, bytes: LIMITS.line - 1, ..Tape::default() }));
        let mut taped = Taped { text: io::BufReader::new(&b"12"[..]), tape };
        let mut byte = [0];
        assert_eq!(taped.read(&mut byte).expect("the last that fits"), 1);
        let error = taped.read(&mut byte).expect_err("too much").downcast::<Error>().expect("an error of ours");
        assert!(matches!(error, Error::TooLarge { .. }));
    }
}
