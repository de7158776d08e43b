//! Rows as PostgreSQL's binary COPY format.
//!
//! Source: <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format".

use crate::dataset::{Cell, Row};

/// The signature, no flags, no header extension.
pub const HEADER: &[u8; 19] = b"PGCOPY\n\xFF\r\n\0\0\0\0\0\0\0\0\0";

/// The end of the data: a field count of -1.
pub const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// Microseconds from 1970-01-01, where Unix begins to count, to 2000-01-01, where PostgreSQL does.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// Appends one row of a submission to `out`: submission, ordinal, the cells at `columns`, extra.
pub fn write_row(out: &mut Vec<u8>, submission: i64, ordinal: i32, row: &Row<'_>, columns: &[usize]) {
    // A table has at most 1,600 columns, which an i16 holds.
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most 1,600 columns")]
    let fields = (columns.len() + 3) as i16;
    out.extend_from_slice(&fields.to_be_bytes());
    write_field(out, &submission.to_be_bytes());
    write_field(out, &ordinal.to_be_bytes());
    for &position in columns {
        match &row.cells[position] {
            Cell::Absent | Cell::Null => write_null(out),
            Cell::Text(text) => write_field(out, text.as_bytes()),
            Cell::Int(value) => write_field(out, &value.to_be_bytes()),
            Cell::Float(value) => write_field(out, &value.to_be_bytes()),
            Cell::Bool(value) => write_field(out, &[u8::from(*value)]),
            Cell::Timestamp(micros) => write_field(out, &(micros - POSTGRES_EPOCH).to_be_bytes()),
            Cell::Json(text) => write_jsonb(out, |out| out.extend_from_slice(text.as_bytes())),
        }
    }
    if row.extra.is_empty() {
        write_null(out);
    } else {
        write_jsonb(out, |out| write_object(out, row));
    }
}

fn write_null(out: &mut Vec<u8>) {
    out.extend_from_slice(&(-1_i32).to_be_bytes());
}

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "a line is far below 2 GiB")]
fn length(bytes: usize) -> [u8; 4] {
    (bytes as i32).to_be_bytes()
}

#[inline]
fn write_field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&length(bytes.len()));
    out.extend_from_slice(bytes);
}

/// A jsonb field: the format's version 1, then text.
fn write_jsonb(out: &mut Vec<u8>, text: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, 1]);
    text(out);
    let bytes = length(out.len() - start - 4);
    out[start..start + 4].copy_from_slice(&bytes);
}

/// The unknown fields as one JSON object.
fn write_object(out: &mut Vec<u8>, row: &Row<'_>) {
    let mut separator = b'{';
    for (name, value) in &row.extra {
        out.push(separator);
        out.extend_from_slice(serde_json::Value::from(name.as_ref()).to_string().as_bytes());
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
        separator = b',';
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    #[test]
    fn a_row_is_written_as_the_documentation_says() {
        let row = Row {
            cells: vec![Cell::Text(Cow::Borrowed("ab")), Cell::Null, Cell::Timestamp(POSTGRES_EPOCH + 1)],
            extra: vec![(Cow::Borrowed("k\"y"), Cow::Borrowed("[1]"))],
        };
        let mut out = Vec::new();
        write_row(&mut out, 7, 3, &row, &[0, 1, 2]);
        let mut expected = vec![0, 6];
        expected.extend_from_slice(&[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7]);
        expected.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 3]);
        expected.extend_from_slice(&[0, 0, 0, 2, b'a', b'b']);
        expected.extend_from_slice(&[255; 4]);
        expected.extend_from_slice(&[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
        let extra = br#"{"k\"y":[1]}"#;
        expected.extend_from_slice(&[0, 0, 0, u8::try_from(extra.len()).expect("short") + 1, 1]);
        expected.extend_from_slice(extra);
        assert_eq!(out, expected);
    }
}
