//! The usual line of a JSONL body, read without a general parser: one flat object whose keys come in the order of the
//! line before, text without escapes, plain numbers.
//!
//! Anything else (an unknown or missing key, an escape, a nested value, a fault of any kind) is given back unread, and
//! the general reader says what it is. So this reader never decides that a line is wrong, and whatever it accepts, the
//! general reader would have read to the same cells: a property test holds the two together.

use std::borrow::Cow;

use crate::dataset::definition::Dataset;
use crate::dataset::kind::{self, Kind};
use crate::dataset::row::{Cell, Row};

/// A key at its place in the object, as the line before had it.
#[derive(Debug)]
pub struct Expected {
    /// The key itself.
    pub key: Box<str>,
    /// The column of the key, if the dataset knows it.
    pub position: Option<usize>,
    /// The key as it stands in a line: quoted, with the colon. Empty when it needs an escape.
    quoted: Box<[u8]>,
}

impl Expected {
    /// Expects that key from now on.
    #[must_use]
    pub fn new(key: &str, position: Option<usize>) -> Self {
        let plain = key.bytes().all(|byte| PLAIN[usize::from(byte)]);
        let quoted = if plain { format!("\"{key}\":").into_bytes() } else { Vec::new() };
        Self { key: key.into(), position, quoted: quoted.into() }
    }
}

/// Reads one line into `row`, which must be empty; false when the line is not a usual one, and `row` may then hold some
/// of its cells.
#[must_use]
pub fn read<'a>(dataset: &Dataset, order: &[Expected], line: &'a str, row: &mut Row<'a>) -> bool {
    let mut cursor = Cursor { line, offset: 0 };
    cursor.object(dataset, order, row).is_some()
}

/// Bytes that stand for themselves inside a JSON string.
const PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        plain[byte] = false;
        byte += 1;
    }
    plain[b'"' as usize] = false;
    plain[b'\\' as usize] = false;
    plain
};

/// Whether two texts of one length are the same. A comparison of memory is called for long ones; keys are short.
fn is_same(left: &[u8], right: &[u8]) -> bool {
    let words = |text| <[u8]>::as_chunks::<8>(text).0.iter().map(|word| u64::from_le_bytes(*word));
    match (left.last_chunk::<8>(), right.last_chunk::<8>()) {
        (Some(last), Some(other)) => {
            u64::from_le_bytes(*last) == u64::from_le_bytes(*other) && words(left).eq(words(right))
        }
        _ => left.iter().eq(right),
    }
}

/// The number of bytes before the first that does not stand for itself, if there is one.
fn plain_length(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let found = not_plain(u64::from_le_bytes(*word));
        if found != 0 {
            return Some(index * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|byte| !PLAIN[usize::from(*byte)]).map(|place| bytes.len() - rest.len() + place)
}

/// Eight bytes at once: the high bit of the first that is no plain one, and of some behind it.
///
/// Source: Sean Eron Anderson, Bit Twiddling Hacks, "Determine if a word has a zero byte", "... a byte less than n".
const fn not_plain(word: u64) -> u64 {
    const EACH: u64 = u64::MAX / 255;
    let quote = word ^ (EACH * b'"' as u64);
    let backslash = word ^ (EACH * b'\\' as u64);
    let is_quote = quote.wrapping_sub(EACH) & !quote;
    let is_backslash = backslash.wrapping_sub(EACH) & !backslash;
    let is_control = word.wrapping_sub(EACH * 0x20) & !word;
    (is_quote | is_backslash | is_control) & (EACH * 0x80)
}

/// Decimal digits that a double holds exactly whatever they are, and the powers of ten up to that many, which it holds
/// too: one division of the two rounds once, so it gives the double that is nearest to what is written.
///
/// Source: William D. Clinger, How to Read Floating Point Numbers Accurately, 1990.
const EXACT_DIGITS: usize = 15;
const POWERS_OF_TEN: [f64; EXACT_DIGITS + 1] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];

struct Cursor<'a> {
    line: &'a str,
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// The whole object. `None`, here and below, says: not a usual line.
    fn object(&mut self, dataset: &Dataset, order: &[Expected], row: &mut Row<'a>) -> Option<()> {
        self.skip_whitespace();
        self.expect(b'{')?;
        for expected in order {
            self.skip_whitespace();
            let key = self.rest().get(..expected.quoted.len())?;
            if key.is_empty() || !is_same(key, &expected.quoted) {
                return None;
            }
            self.offset += key.len();
            self.skip_whitespace();
            let position = expected.position?;
            let cell = self.value(dataset.columns[position].kind)?;
            row.set(position, cell).then_some(())?;
            self.skip_whitespace();
            match self.next()? {
                b',' => {}
                b'}' => {
                    self.skip_whitespace();
                    return self.rest().is_empty().then_some(());
                }
                _ => return None,
            }
        }
        None
    }

    fn value(&mut self, kind: Kind) -> Option<Cell<'a>> {
        match (self.peek()?, kind) {
            (b'n', _) => self.word(b"null", Cell::Null),
            (b't', Kind::Bool) => self.word(b"true", Cell::Bool(true)),
            (b'f', Kind::Bool) => self.word(b"false", Cell::Bool(false)),
            (b'"', Kind::Text) => self.text().map(|text| Cell::Text(Cow::Borrowed(text))),
            (b'"', Kind::Timestamp) => kind::parse_timestamp(self.text()?).map(Cell::Timestamp).ok(),
            (b'-' | b'0'..=b'9', Kind::Int) => self.int().map(Cell::Int),
            (b'-' | b'0'..=b'9', Kind::Float) => self.float().map(Cell::Float),
            // Clients write a taxid as a number; its digits are its text.
            (b'-' | b'0'..=b'9', Kind::Text) => {
                let start = self.offset;
                self.int().map(|_| Cell::Text(Cow::Borrowed(&self.line[start..self.offset])))
            }
            _ => None,
        }
    }

    fn word(&mut self, word: &[u8], cell: Cell<'a>) -> Option<Cell<'a>> {
        self.rest().starts_with(word).then(|| {
            self.offset += word.len();
            cell
        })
    }

    /// A string without escapes.
    fn text(&mut self) -> Option<&'a str> {
        self.expect(b'"')?;
        let length = plain_length(self.rest())?;
        // Quotes and what stands before them are whole characters of a valid string.
        let text = self.line.get(self.offset..self.offset + length)?;
        self.offset += length;
        self.expect(b'"')?;
        Some(text)
    }

    /// Appends digits, as many as there are, to those of `value`; answers with their number. At most 18 fit in all.
    fn digits(&mut self, value: &mut u64) -> usize {
        let start = self.offset;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            *value = value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            self.offset += 1;
        }
        self.offset - start
    }

    /// Digits as JSON writes an integer: at least one, no zero before others; and their number.
    fn whole(&mut self) -> Option<(u64, usize)> {
        let leads_zero = self.peek() == Some(b'0');
        let mut value = 0;
        let count = self.digits(&mut value);
        ((1..=18).contains(&count) && (count == 1 || !leads_zero)).then_some((value, count))
    }

    fn int(&mut self) -> Option<i64> {
        let negative = self.sign();
        let value = i64::try_from(self.whole()?.0).ok()?;
        if matches!(self.peek(), Some(b'.' | b'e' | b'E')) || (negative && value == 0) {
            return None;
        }
        Some(if negative { -value } else { value })
    }

    fn float(&mut self) -> Option<f64> {
        let start = self.offset;
        let negative = self.sign();
        let (mut digits, whole) = self.whole()?;
        let mut decimals = 0;
        if self.peek() == Some(b'.') {
            self.offset += 1;
            decimals = self.digits(&mut digits);
            if decimals == 0 {
                return None;
            }
        }
        let has_exponent = matches!(self.peek(), Some(b'e' | b'E'));
        if has_exponent || (decimals > 0 && whole + decimals > EXACT_DIGITS) {
            let (value, length) = fast_float2::parse_partial::<f64, _>(&self.line[start..]).ok()?;
            self.offset = start + length;
            return value.is_finite().then_some(value);
        }
        #[expect(clippy::cast_precision_loss, reason = "digits with decimals are exact, others are rounded once")]
        let value = digits as f64 / POWERS_OF_TEN[decimals];
        Some(if negative { -value } else { value })
    }

    fn sign(&mut self) -> bool {
        let negative = self.peek() == Some(b'-');
        self.offset += usize::from(negative);
        negative
    }

    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.offset += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.offset += 1;
        Some(byte)
    }

    fn peek(&self) -> Option<u8> {
        self.line.as_bytes().get(self.offset).copied()
    }

    fn rest(&self) -> &'a [u8] {
        &self.line.as_bytes()[self.offset..]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::dataset::json::Reader;

    fn dataset() -> Dataset {
        let text = r#"
            name = "things"
            table = "things"
            title = "Things"
            description = "Things of every kind."
            [[columns]]
            name = "text"
            kind = "text"
            aliases = ["words"]
            description = "A text."
            [[columns]]
            name = "int"
            kind = "int"
            description = "An integer."
            [[columns]]
            name = "float"
            kind = "float"
            description = "A float."
            [[columns]]
            name = "bool"
            kind = "bool"
            description = "A truth value."
            [[columns]]
            name = "time"
            kind = "timestamp"
            description = "A time."
            [[columns]]
            name = "json"
            kind = "json"
            description = "A document."
        "#;
        Dataset::parse("things.toml", text).expect("a dataset")
    }

    const KEYS: [&str; 9] = ["text", "words", "int", "float", "bool", "time", "json", "unknown", r#"a\":1,\"b"#];

    /// A value as it may stand in a line, right or wrong.
    fn value() -> impl Strategy<Value = String> {
        let odd = [
            "null",
            "true",
            "false",
            "nul",
            "-",
            "-0",
            "00",
            "01",
            "1.",
            ".5",
            "1e",
            "1e+",
            "1E5",
            "1e-7",
            "-0.0",
            "1e400",
            "9007199254740993",
            "9223372036854775807",
            "9223372036854775808",
            "-9223372036854775808",
            "5e-324",
            "1.7976931348623157e308",
            "0.1e23",
            "123456789012345678901234567890",
            "\"\"",
            "\"\\u00e9\"",
            "\"\\u0000\"",
            "\"\u{e9}\"",
            "\"a\tb\"",
            "\"a",
            "\"2026-11-20T08:15:00Z\"",
            "\"2026-11-20\"",
            "{}",
            "[1, 2]",
            "{\"a\": 1, \"a\": 2}",
            "NaN",
            "",
            "1 2",
        ];
        prop_oneof![
            4 => select(odd.to_vec()).prop_map(str::to_owned),
            2 => any::<i64>().prop_map(|value| value.to_string()),
            2 => any::<f64>().prop_map(|value| format!("{value:?}")),
            2 => any::<f64>().prop_map(|value| format!("{value:e}")),
            3 => "-?[0-9]{1,20}(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
            2 => "[ -~\u{e9}\u{1F9EC}]{0,12}".prop_map(|text| format!("\"{text}\"")),
        ]
    }

    fn line() -> impl Strategy<Value = String> {
        let space = || select(vec!["", "", "", " ", "\t", "  "]);
        let pairs = proptest::collection::vec((select(KEYS.to_vec()), value(), space(), space()), 0..7);
        let ends = select(vec!["}", "}", "}", "} ", "}}", "", ",}", "} {}"]);
        (pairs, ends).prop_map(|(pairs, end)| {
            let pairs: Vec<String> = pairs
                .iter()
                .map(|(key, value, before, after)| format!("{before}\"{key}\"{after}:{before}{value}{after}"))
                .collect();
            format!("{{{}{end}", pairs.join(","))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_line_reads_the_same_with_and_without_the_general_reader(lines in proptest::collection::vec(line(), 1..4)) {
            let dataset = dataset();
            let (mut quick, mut general) = (Reader::default(), Reader::default());
            // Twice: the second time the order of keys is known.
            for line in lines.iter().flat_map(|line| [line, line]) {
                let (mut ours, mut theirs) = (Row::new(dataset.columns.len()), Row::new(dataset.columns.len()));
                let read = quick.read(&dataset, line, 1, &mut ours);
                prop_assert_eq!(&read, &general.read_any(&dataset, line, 1, &mut theirs));
                if read.is_ok() {
                    prop_assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
                }
            }
        }
    }

    #[test]
    fn the_end_of_a_text_is_found_wherever_it_lies() {
        for length in 0..40 {
            for end in 0..=u8::MAX {
                let mut bytes = vec![b'x'; length];
                bytes.extend([0xC3, 0xA9]);
                bytes.extend([end, b'"', 0x1F, b'\\', b' ', 0x80, b'!', b'#']);
                let expected = bytes.iter().position(|byte| !PLAIN[usize::from(*byte)]);
                assert_eq!(plain_length(&bytes), expected, "{length} {end}");
            }
        }
        assert_eq!(plain_length("ein Wort ohne Ende".as_bytes()), None);
    }

    #[test]
    fn a_usual_line_needs_no_general_reader() {
        let dataset = dataset();
        let usual = r#"{"text": "Zaire ebolavirus", "int": 42, "float": 0.0031, "bool": true, "time": null}"#;
        let mut reader = Reader::default();
        reader.read(&dataset, usual, 1, &mut Row::new(dataset.columns.len())).expect("a row");
        let mut row = Row::new(dataset.columns.len());
        assert!(read(&dataset, &reader.order, usual, &mut row));
        assert_eq!(*row.cell(0), Cell::Text(Cow::Borrowed("Zaire ebolavirus")));
        assert_eq!(*row.cell(2), Cell::Float(0.0031));
    }
}
