//! Where rows lie: spans of time, paths as Hive writes them, and the checked wish for both.

use chrono::{DateTime, Datelike, Days, Months, NaiveTime, SubsecRound, TimeDelta, Timelike, Utc};

use crate::config::{Level, Partitioning, Temporal};
use crate::dataset::{Dataset, Fault, Kind};

/// What stands in a path for null and for the empty text.
const NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// Bytes of a folder's name that every file system takes.
const LONGEST_FOLDER: usize = 255;

/// The time that a partition covers: from its start, up to its end and without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Its first moment.
    pub start: DateTime<Utc>,
    /// The first moment after it.
    pub end: DateTime<Utc>,
}

impl Span {
    /// The span of a level that holds a moment.
    #[must_use]
    pub fn of(level: Level, moment: DateTime<Utc>) -> Self {
        let day = moment.date_naive();
        let midnight = |day: chrono::NaiveDate| day.and_time(NaiveTime::MIN).and_utc();
        let month = day.with_day(1).unwrap_or(day);
        let year = month.with_month(1).unwrap_or(month);
        let minute = moment.trunc_subsecs(0) - TimeDelta::seconds(i64::from(moment.second()));
        let hour = minute - TimeDelta::minutes(i64::from(moment.minute()));
        let next = |day: Option<chrono::NaiveDate>| day.map_or(DateTime::<Utc>::MAX_UTC, midnight);
        let after = |time: DateTime<Utc>, delta| time.checked_add_signed(delta).unwrap_or(DateTime::<Utc>::MAX_UTC);
        let (start, end) = match level {
            Level::Year => (midnight(year), next(year.checked_add_months(Months::new(12)))),
            Level::Month => (midnight(month), next(month.checked_add_months(Months::new(1)))),
            Level::Day => (midnight(day), next(day.checked_add_days(Days::new(1)))),
            Level::Hour => (hour, after(hour, TimeDelta::hours(1))),
            Level::Minute => (minute, after(minute, TimeDelta::minutes(1))),
        };
        Self { start, end }
    }

    /// Whether some of it lies in a window, of which an open end is absent.
    #[must_use]
    pub fn overlaps(&self, from: Option<DateTime<Utc>>, to: Option<DateTime<Utc>>) -> bool {
        from.is_none_or(|from| self.end > from) && to.is_none_or(|to| self.start < to)
    }
}

/// The path of a span, such as `year=2026/month=11/day=20`; values have fixed widths, so that paths sort by time.
#[must_use]
pub fn path(temporal: Temporal, span: &Span) -> String {
    let parts: Vec<String> = temporal
        .levels()
        .map(|level| {
            let value = part(level, span);
            match level {
                Level::Year => format!("year={value:04}"),
                _ => format!("{}={value:02}", level.as_str()),
            }
        })
        .collect();
    parts.join("/")
}

/// A span in the names of files, such as `20261120`.
#[must_use]
pub fn label(temporal: Temporal, span: &Span) -> String {
    let digits = |level| if level == Level::Year { 4 } else { 2 };
    temporal.levels().map(|level| format!("{:0width$}", part(level, span), width = digits(level))).collect()
}

fn part(level: Level, span: &Span) -> i32 {
    let start = span.start;
    let part = match level {
        Level::Year => return start.year(),
        Level::Month => start.month(),
        Level::Day => start.day(),
        Level::Hour => start.hour(),
        Level::Minute => start.minute(),
    };
    part.cast_signed()
}

/// The folder of a value of a column, escaped as Hive does, and so that no text is null to a reader.
///
/// # Errors
/// A value too long for the name of a folder, which is not repeated, and the text that stands for null: pyarrow takes it for
/// null however it is escaped.
pub fn folder(column: &str, value: Option<&str>) -> Result<String, String> {
    let escaped = |letter: char| format!("%{:02X}", letter as u32);
    let mut folder = format!("{column}=");
    match value {
        None | Some("") => folder.push_str(NULL),
        Some(NULL) => {
            return Err(format!("a value of `{column}` is {NULL}, which stands for null; partition by another column"));
        }
        Some(value) if is_null_to_duckdb(value) => {
            folder.extend(value.chars().take(1).map(escaped));
            folder.extend(value.chars().skip(1));
        }
        Some(value) => value.chars().for_each(|letter| match letter {
            '"'
            | '#'
            | '%'
            | '\''
            | '*'
            | '/'
            | ':'
            | '='
            | '?'
            | '\\'
            | '{'
            | '['
            | ']'
            | '^'
            | '\u{7f}'
            | '\u{1}'..='\u{1f}' => folder.push_str(&escaped(letter)),
            letter => folder.push(letter),
        }),
    }
    if folder.len() > LONGEST_FOLDER {
        return Err(format!(
            "a value of `{column}`, one of {} bytes, is too long for the name of a folder, which has {LONGEST_FOLDER} with column and \
             escapes; partition by another column, or remove what holds it",
            value.map_or(0, str::len)
        ));
    }
    Ok(folder)
}

/// Whether a part of a path stands for null and for the empty text.
#[must_use]
pub fn is_null(path: &str) -> bool {
    path.split('/').filter_map(|folder| folder.split_once('=')).any(|(_, value)| value == NULL)
}

/// Whether a text in a path is null to DuckDB.
fn is_null_to_duckdb(text: &str) -> bool {
    text.eq_ignore_ascii_case("null")
}

/// Whether a file lies where an earlier version has put the rows of such a text.
#[must_use]
pub fn is_misnamed(path: &str) -> bool {
    path.split('/').filter_map(|folder| folder.split_once('=')).any(|(_, value)| is_null_to_duckdb(value))
}

/// Everything that is wrong with a wish for partitions of a dataset.
#[must_use]
pub fn faults(dataset: &Dataset, wish: &Partitioning) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault =
        |field: &str, reason: String| faults.push(Fault::of_parameter(&format!("partition.{field}"), reason));
    if wish.temporal.is_none() && wish.by.is_empty() {
        fault("temporal", "is required where `by` names no column".to_owned());
    }
    for level in wish.temporal.iter().flat_map(|temporal| temporal.levels()).map(Level::as_str) {
        if dataset.columns.iter().any(|column| column.name == level) {
            fault(
                "temporal",
                format!(
                    "{} has a column `{level}` of its own, which the partition would hide: cut it by columns alone, or \
                     rename the column",
                    dataset.name
                ),
            );
        }
    }
    for (position, name) in wish.by.iter().enumerate() {
        match dataset.columns.iter().find(|column| column.name == *name) {
            None => fault("by", format!("`{name}` is no column of {}", dataset.name)),
            Some(column) if !matches!(column.kind, Kind::Text | Kind::Int | Kind::Bool) => {
                fault("by", format!("`{name}` is no text, whole number or truth value"));
            }
            Some(_) if wish.by[..position].contains(name) => fault("by", format!("names `{name}` twice")),
            Some(_) => {}
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(level: Level, moment: &str) -> (String, String) {
        let span = Span::of(level, moment.parse().expect("time"));
        (span.start.to_rfc3339(), span.end.to_rfc3339())
    }

    #[test]
    fn spans_follow_the_calendar() {
        for (level, moment, start, end) in [
            (Level::Year, "2026-11-20T05:06:07.8Z", "2026-01-01T00:00:00", "2027-01-01T00:00:00"),
            (Level::Month, "2024-02-29T23:59:59Z", "2024-02-01T00:00:00", "2024-03-01T00:00:00"),
            (Level::Month, "2026-12-31T00:00:00Z", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
            (Level::Day, "2024-02-28T12:00:00Z", "2024-02-28T00:00:00", "2024-02-29T00:00:00"),
            (Level::Day, "2026-02-28T12:00:00Z", "2026-02-28T00:00:00", "2026-03-01T00:00:00"),
            // Clocks change in many places; UTC knows nothing of it.
            (Level::Hour, "2026-03-08T02:30:00Z", "2026-03-08T02:00:00", "2026-03-08T03:00:00"),
            (Level::Minute, "2026-12-31T23:59:59.999999Z", "2026-12-31T23:59:00", "2027-01-01T00:00:00"),
            // The last year that there is.
            (Level::Year, "+262142-12-31T01:00:00Z", "+262142-01-01T00:00:00", "+262142-12-31T23:59:59.999999999"),
            (Level::Day, "+262142-12-31T01:00:00Z", "+262142-12-31T00:00:00", "+262142-12-31T23:59:59.999999999"),
        ] {
            assert_eq!(span(level, moment), (format!("{start}+00:00"), format!("{end}+00:00")));
        }
    }

    #[test]
    fn paths_are_padded_and_sort_by_time() {
        let of = |moment: &str| {
            let span = Span::of(Level::Minute, moment.parse().expect("time"));
            (path(Temporal(Level::Minute), &span), label(Temporal(Level::Minute), &span))
        };
        let early = of("2026-02-03T04:05:06Z");
        assert_eq!(early.0, "year=2026/month=02/day=03/hour=04/minute=05");
        assert_eq!(early.1, "202602030405");
        assert!(early.0 < of("2026-10-01T00:00:00Z").0);
    }

    #[test]
    fn values_are_escaped_as_hive_does() {
        assert_eq!(folder("c", Some("a/b=c:d%e")).expect("folder"), "c=a%2Fb%3Dc%3Ad%25e");
        assert_eq!(folder("c", Some("Ünï côdé")).expect("folder"), "c=Ünï côdé");
        assert_eq!(folder("c", Some("..")).expect("folder"), "c=..");
        assert_eq!(folder("c", None).expect("folder"), "c=__HIVE_DEFAULT_PARTITION__");
        assert_eq!(folder("c", Some("")).expect("folder"), "c=__HIVE_DEFAULT_PARTITION__");
        assert!(folder("c", Some(&"x".repeat(300))).is_err());
    }

    #[test]
    fn no_text_is_null_to_a_reader() {
        for (value, name) in [("NULL", "c=%4EULL"), ("null", "c=%6Eull"), ("nUlL", "c=%6EUlL"), ("nulls", "c=nulls")] {
            assert_eq!(folder("c", Some(value)).expect("folder"), name);
            assert!(!is_misnamed(&format!("year=2026/{name}/d_2026_0123456789ab.parquet")), "{name}");
        }
        assert!(folder("c", Some(NULL)).expect_err("refused").contains("stands for null"));
        assert!(is_misnamed("year=2026/c=Null/d_2026_0123456789ab.parquet"));
    }
}
