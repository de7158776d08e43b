//! The kinds of columns, and what each is in PostgreSQL, in JSON Schema and as a cell of a text file.

use std::borrow::Cow;

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};

use super::row::Cell;

/// The type of a column's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ColumnKind)]
pub enum Kind {
    /// UTF-8 text without NUL.
    Text,
    /// A signed 64-bit integer.
    Int,
    /// A finite IEEE 754 double.
    Float,
    /// `true` or `false`.
    Bool,
    /// A moment in UTC with microseconds; RFC 3339 on the wire.
    Timestamp,
    /// Any JSON value.
    Json,
}

impl Kind {
    /// The column's type in PostgreSQL, as `CREATE TABLE` writes it.
    #[must_use]
    pub const fn postgres(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Int => "bigint",
            Self::Float => "double precision",
            Self::Bool => "boolean",
            Self::Timestamp => "timestamp with time zone",
            Self::Json => "jsonb",
        }
    }

    /// What a person who sent something else is told to send.
    #[must_use]
    pub const fn expected(self) -> &'static str {
        match self {
            Self::Text => "expected text",
            Self::Int => "expected a whole number of 64 bits",
            Self::Float => "expected a number",
            Self::Bool => "expected true or false",
            Self::Timestamp => "expected an RFC 3339 time such as 2026-11-20T08:15:00Z",
            Self::Json => "expected a JSON value",
        }
    }

    /// A cell of a text file or of a query string. Empty is null, as the tools write it.
    ///
    /// # Errors
    /// The reason why the text is no value of this kind, without repeating it.
    pub fn parse(self, text: &str) -> Result<Cell<'_>, String> {
        if text.is_empty() {
            return Ok(Cell::Null);
        }
        match self {
            Self::Text => Ok(Cell::Text(Cow::Borrowed(text))),
            Self::Int => parse_int(text).map(Cell::Int),
            Self::Float => parse_float(text).map(Cell::Float),
            Self::Bool => match text {
                "true" | "TRUE" | "True" | "t" | "1" => Ok(Cell::Bool(true)),
                "false" | "FALSE" | "False" | "f" | "0" => Ok(Cell::Bool(false)),
                _ => Err(self.expected().to_owned()),
            },
            Self::Timestamp => parse_timestamp(text).map(Cell::Timestamp),
            Self::Json if text.trim_ascii() == "null" => Ok(Cell::Null),
            Self::Json => super::json::check_document(text).map(|()| Cell::Json(Cow::Borrowed(text))),
        }
    }
}

/// A whole number; also `513.0`, which pandas writes for integers of a column that has gaps.
///
/// # Errors
/// The reason why it is none, or does not fit.
pub fn parse_int(text: &str) -> Result<i64, String> {
    match text.parse() {
        Ok(value) => Ok(value),
        Err(error) if is_overflow(&error) => Err(INT_OVERFLOW.to_owned()),
        Err(_) => match parse_float(text) {
            Ok(value) if !has_fraction(text) => whole(value),
            _ => Err(Kind::Int.expected().to_owned()),
        },
    }
}

/// Whether what is written as a number, perhaps with an exponent, is none that is whole. A double may have lost it.
fn has_fraction(text: &str) -> bool {
    let (digits, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    let beyond = if exponent.starts_with('-') { i64::MIN } else { i64::MAX };
    let behind_point = (decimals.len() as i64).saturating_sub(exponent.parse().unwrap_or(beyond));
    let behind_point = usize::try_from(behind_point).unwrap_or(0);
    whole.bytes().chain(decimals.bytes()).rev().take(behind_point).any(|digit| matches!(digit, b'1'..=b'9'))
}

/// What is said of an integer that does not fit.
const INT_OVERFLOW: &str = "is outside the range of 64-bit integers";

/// What is said of a float that stands for more than one integer.
const INT_AS_FLOAT: &str = "is a whole number too large for a fraction or an exponent: write its digits only";

fn is_overflow(error: &std::num::ParseIntError) -> bool {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    matches!(error.kind(), PosOverflow | NegOverflow)
}

/// The integer that a float without a fraction stands for, unless it is so large (2^53) that it may stand for others too.
fn whole(value: f64) -> Result<i64, String> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    const LARGEST: f64 = 9_223_372_036_854_775_808.0;
    if value.abs() < EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
        return Ok(value as i64);
    }
    Err(if value.abs() < LARGEST { INT_AS_FLOAT } else { INT_OVERFLOW }.to_owned())
}

/// What is said of NaN and of the infinities.
pub const NOT_FINITE: &str = "NaN and Infinity are not stored: leave the value out, or send null";

fn parse_float(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) if text.bytes().any(|byte| byte.is_ascii_digit()) => Err(FLOAT_OVERFLOW.to_owned()),
        Ok(_) => Err(NOT_FINITE.to_owned()),
        Err(_) => Err(Kind::Float.expected().to_owned()),
    }
}

/// What is said of a float beyond the largest double.
pub const FLOAT_OVERFLOW: &str = "is outside the range of 64-bit floats";

/// Microseconds since 1970 of an RFC 3339 time, of `2026-11-20 08:15:00` or of a day; without an offset it is UTC.
///
/// # Errors
/// When it is none of these, or lies before PostgreSQL's calendar.
pub fn parse_timestamp(text: &str) -> Result<i64, String> {
    // `25-10-28` is no day of the year 25: nobody knows which part of it is the year.
    let year = text.trim_start().trim_start_matches(['-', '+']).bytes().take_while(u8::is_ascii_digit).count();
    if year < 4 {
        return Err(Kind::Timestamp.expected().to_owned());
    }
    let time = DateTime::parse_from_rfc3339(text)
        .map(|time| time.to_utc())
        .or_else(|_| text.parse::<NaiveDateTime>().map(|time| time.and_utc()))
        .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").map(|time| time.and_utc()))
        .or_else(|_| text.parse::<NaiveDate>().map(|day| day.and_time(chrono::NaiveTime::MIN).and_utc()))
        .map_err(|_| Kind::Timestamp.expected().to_owned())?;
    in_calendar(time)
}

/// Microseconds since 1970 of a time.
///
/// # Errors
/// When it lies before PostgreSQL's calendar.
pub fn in_calendar(time: DateTime<Utc>) -> Result<i64, String> {
    let micros = time.timestamp_micros();
    if micros >= EARLIEST {
        Ok(micros)
    } else {
        Err("lies before 4714 BC, where PostgreSQL's calendar begins".to_owned())
    }
}

/// The beginning of 24 November 4714 BC, PostgreSQL's first day, in microseconds since 1970. Its last day lies beyond
/// the years that chrono reads.
const EARLIEST: i64 = -2_440_588 * 86_400_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_cell_is_null_for_every_kind() {
        for kind in [Kind::Text, Kind::Int, Kind::Float, Kind::Bool, Kind::Timestamp, Kind::Json] {
            assert_eq!(kind.parse(""), Ok(Cell::Null));
        }
    }

    #[test]
    fn integers_that_pandas_wrote_as_floats_are_integers() {
        assert_eq!(Kind::Int.parse("513.0"), Ok(Cell::Int(513)));
        assert_eq!(Kind::Int.parse("-0"), Ok(Cell::Int(0)));
        for text in ["513e2", "5.13e4", "51300.000", "5130000E-2"] {
            assert_eq!(Kind::Int.parse(text), Ok(Cell::Int(51_300)), "{text}");
        }
        for text in ["0.0", "0e-400", "0e99999999999999999999", "-0.000e-5"] {
            assert_eq!(Kind::Int.parse(text), Ok(Cell::Int(0)), "{text}");
        }
        for text in ["9007199254740993.0", "1e17"] {
            assert_eq!(Kind::Int.parse(text), Err(INT_AS_FLOAT.to_owned()), "{text}");
        }
        assert_eq!(Kind::Int.parse("1e30"), Err(INT_OVERFLOW.to_owned()));
        assert_eq!(Kind::Int.parse("9223372036854775808"), Err(INT_OVERFLOW.to_owned()));
        assert_eq!(Kind::Int.parse("9223372036854775807"), Ok(Cell::Int(i64::MAX)));
    }

    #[test]
    fn a_fraction_that_a_double_would_lose_is_none_of_an_integer() {
        for text in [
            "513.5",
            "4503599627370497.1",
            "9007199254740990.7",
            "0.99999999999999999999",
            "1e-400",
            "1e-99999999999999999999",
            "513.00000000000000000001",
            "5131e-1",
        ] {
            assert_eq!(Kind::Int.parse(text), Err(Kind::Int.expected().to_owned()), "{text}");
        }
    }

    #[test]
    fn nan_and_infinity_are_refused_and_so_is_overflow() {
        for text in ["NaN", "nan", "inf", "-Infinity"] {
            assert_eq!(Kind::Float.parse(text), Err(NOT_FINITE.to_owned()), "{text}");
        }
        assert_eq!(Kind::Float.parse("1e400"), Err(FLOAT_OVERFLOW.to_owned()));
        assert_eq!(Kind::Float.parse("3.41e-44"), Ok(Cell::Float(3.41e-44)));
    }

    #[test]
    fn times_are_read_with_and_without_offset() {
        assert_eq!(parse_timestamp("1970-01-01T01:00:00.000001+01:00"), Ok(1));
        assert_eq!(parse_timestamp("1970-01-01 00:00:01"), Ok(1_000_000));
        assert_eq!(parse_timestamp("1970-01-02"), Ok(86_400_000_000));
        for text in ["yesterday", "25-10-28", "1-2-3", "999-01-01 00:00:00", "-12-01-01T00:00:00"] {
            assert!(parse_timestamp(text).is_err(), "{text}");
        }
    }
}
