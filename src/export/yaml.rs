//! YAML, as parsers of version 1.1 and of 1.2 read it alike: JSON within, laid out in blocks where people read it.

use std::borrow::Cow;
use std::fmt::Write;

use serde_json::Value;

/// Writes a value in blocks: mappings and sequences by indentation, text always in quotes.
#[must_use]
pub fn to_text(value: &Value) -> String {
    let mut text = String::new();
    write_block(&mut text, value, 0);
    text
}

/// What follows `key:` or `-`, with the end of the line.
fn write_block(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (index, (name, member)) in members.iter().enumerate() {
                // The first member stands beside the `-` of its sequence.
                if index > 0 || !out.ends_with("- ") {
                    push_indent(out, indent);
                }
                out.push_str(&key(name));
                out.push(':');
                write_member(out, member, indent + 2);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                push_indent(out, indent);
                out.push_str("- ");
                if is_block(item) && item.is_array() {
                    out.push('\n');
                }
                write_block(out, item, indent + 2);
            }
        }
        scalar => {
            out.push_str(&flow(scalar));
            out.push('\n');
        }
    }
}

fn write_member(out: &mut String, member: &Value, indent: usize) {
    if is_block(member) {
        out.push('\n');
    } else {
        out.push(' ');
    }
    write_block(out, member, indent);
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(members) => !members.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

fn push_indent(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// A key without quotes where no parser could take it for anything else than text.
fn key(name: &str) -> Cow<'_, str> {
    let is_word = name.len() > 3 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let is_special = ["true", "false", "null"].contains(&name);
    if is_word && !is_special { Cow::Borrowed(name) } else { Cow::Owned(flow(&Value::from(name))) }
}

/// A value on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::Number(number) => float(&number.to_string()).into_owned(),
        value => escape(&value.to_string()).into_owned(),
    }
}

/// A number of JSON as YAML 1.1 knows it: with a point and a sign where there is an exponent.
#[must_use]
pub fn float(number: &str) -> Cow<'_, str> {
    let Some((mantissa, exponent)) = number.split_once(['e', 'E']) else { return Cow::Borrowed(number) };
    let point = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
    Cow::Owned(format!("{mantissa}{point}e{sign}{exponent}"))
}

/// JSON with escapes for what YAML does not allow, or takes for the end of a line.
#[must_use]
pub fn escape(json: &str) -> Cow<'_, str> {
    let is_special = |letter: char| {
        matches!(letter, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    if !json.contains(is_special) {
        return Cow::Borrowed(json);
    }
    let mut text = String::with_capacity(json.len() + 16);
    for letter in json.chars() {
        if is_special(letter) {
            let _ = write!(text, "\\u{:04x}", u32::from(letter));
        } else {
            text.push(letter);
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn blocks_are_indented_and_text_is_quoted() {
        let value = json!({"name": "a: b", "empty": [], "none": null, "rows": 3, "y": true,
            "columns": [{"name": "x", "range": {"min": 1e-10}}, "z", [1]]});
        let text = to_text(&value);
        let expected = "columns:\n  - name: \"x\"\n    range:\n      \"min\": 1.0e-10\n  - \"z\"\n  - \n    - 1\n\
                        empty: []\nname: \"a: b\"\nnone: null\nrows: 3\n\"y\": true\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn numbers_and_letters_are_what_every_parser_knows() {
        assert_eq!(float("1e-10"), "1.0e-10");
        assert_eq!(float("1.5e16"), "1.5e+16");
        assert_eq!(float("0.25"), "0.25");
        assert_eq!(escape("\"a\u{85}b\u{2028}\""), "\"a\\u0085b\\u2028\"");
    }
}
