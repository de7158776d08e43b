//! Partitioned datasets: when they are brought up to date, and how they are cut.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::values;

/// How the service keeps its partitioned datasets.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct LakeConfig {
    #[serde(with = "values::blank")]
    pub cron: Option<String>,
    pub timezone: String,
    pub temporal: Temporal,
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

/// A level at which time is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Years.
    Year,
    /// Months.
    Month,
    /// Days.
    Day,
    /// Hours.
    Hour,
    /// Minutes.
    Minute,
}

impl Level {
    /// All levels, from the coarsest.
    pub const ALL: [Self; 5] = [Self::Year, Self::Month, Self::Day, Self::Hour, Self::Minute];

    /// The level as it is written, which is also the name of its partition column.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Year => "year",
            Self::Month => "month",
            Self::Day => "day",
            Self::Hour => "hour",
            Self::Minute => "minute",
        }
    }
}

/// How time is cut: all levels from the year down to this one, written `year,month,day`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Temporal(pub Level);

impl Temporal {
    /// The levels, from the coarsest.
    pub fn levels(self) -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().take_while(move |level| *level <= self.0)
    }
}

impl fmt::Display for Temporal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels: Vec<&str> = self.levels().map(Level::as_str).collect();
        out.write_str(&levels.join(","))
    }
}

impl FromStr for Temporal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Level::ALL.into_iter().map(Self);
        let text: String = text.chars().filter(|letter| !letter.is_whitespace()).collect();
        known.into_iter().find(|temporal| temporal.to_string() == text).ok_or_else(|| {
            "must be the levels from the year down, such as year,month,day or year,month,day,hour,minute".to_owned()
        })
    }
}

impl TryFrom<String> for Temporal {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Temporal> for String {
    fn from(temporal: Temporal) -> Self {
        temporal.to_string()
    }
}

/// How a dataset is cut into partitions: by the time of storing, then by values of columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Partitioning {
    /// The levels of time in UTC, from the year down to `month`, `day`, `hour` or `minute`; not by time when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "year,month,day", pattern = "^year(,month(,day(,hour(,minute)?)?)?)?$")]
    pub temporal: Option<Temporal>,
    /// Columns of text, whole numbers or truth values, each value of which has a partition of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!(["level"]))]
    pub by: Vec<String>,
    /// Whether the files hold the columns of the partitions too; else these stand in the paths only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_columns: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_written_from_the_year_down_without_a_gap() {
        for text in ["year", "year,month", "year,month,day", "year, month, day, hour", "year,month,day,hour,minute"] {
            let temporal: Temporal = text.parse().expect("levels");
            assert_eq!(temporal.to_string(), text.replace(' ', ""));
        }
        for text in ["", "month", "year,day", "day,month,year", "year,month,week"] {
            assert!(text.parse::<Temporal>().is_err(), "{text}");
        }
    }
}
