//! Exports: when, in which form, where to, and for how long.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::{Partitioning, Secret, values};

/// How exports are made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct ExportConfig {
    #[serde(with = "values::blank")]
    pub storage: Option<String>,
    pub slots: usize,
    pub connections: usize,
    pub compression: Compression,
    pub compression_level: i32,
    pub batch_size: usize,
    #[serde(with = "values::size")]
    pub batch_bytes: ByteSize,
    #[serde(with = "values::size")]
    pub file_size: ByteSize,
    pub export_interval_hours: u32,
    pub schedules: Vec<ScheduleConfig>,
    pub retention_days: u32,
    pub keep_at_least: u32,
    pub job_retention_hours: u32,
    #[serde(with = "humantime_serde")]
    pub link_lifetime: Duration,
    #[serde(with = "values::blank")]
    pub link_key: Option<Secret>,
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    pub max_attempts: i32,
}

/// One dataset's own schedule.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The dataset's name.
    pub dataset: String,
    /// Second, minute, hour, day of month, month, day of week.
    pub cron: String,
    /// Such as `America/Chicago`; UTC when absent.
    #[serde(default)]
    pub timezone: Option<String>,
    /// Parquet when absent.
    #[serde(default)]
    pub format: Format,
    /// When absent: `export.compression` for Parquet, gzip for text.
    #[serde(default)]
    pub compression: Option<Compression>,
    /// When absent: `export.compression_level` for `export.compression`, else the usual one.
    #[serde(default)]
    pub compression_level: Option<i32>,
    /// `export.retention_days` when absent.
    #[serde(default)]
    pub retention_days: Option<u32>,
    /// The webhooks that hear how its exports end.
    #[serde(default)]
    pub notify: Vec<String>,
    /// How its partitioned dataset is cut, where the schedule is for that.
    #[serde(default)]
    pub partition: Option<Partitioning>,
}

impl ExportConfig {
    /// The interval as a cron expression in UTC; `None` when it is off.
    ///
    /// # Errors
    /// An interval that does not divide the day, and is no number of days.
    pub fn interval_cron(&self) -> Result<Option<String>, String> {
        match self.export_interval_hours {
            0 => Ok(None),
            hours if hours < 24 && 24 % hours == 0 => Ok(Some(format!("0 0 */{hours} * * *"))),
            24 => Ok(Some("0 0 0 * * *".to_owned())),
            hours if hours % 24 == 0 && hours / 24 <= 28 => Ok(Some(format!("0 0 0 */{} * *", hours / 24))),
            _ => Err("must divide 24, or be a number of days; use [[export.schedules]] for anything else".to_owned()),
        }
    }
}

/// Refuses a place for files that would become a folder of that name in the current one.
///
/// # Errors
/// What is wrong with it, and what to write.
pub fn check_location(location: &str) -> Result<(), &'static str> {
    if location == "~" || location.starts_with("~/") {
        return Err("begins with ~, which only shells know: write the whole path");
    }
    let is_word = |scheme: &str| scheme.len() > 1 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match location.split_once(":/") {
        Some((scheme, rest)) if is_word(scheme) && !rest.starts_with('/') => {
            Err("has one slash where a URL has two: write s3://BUCKET/PREFIX")
        }
        _ => Ok(()),
    }
}

/// The form of an exported file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[schema(as = ExportFormat)]
pub enum Format {
    /// Columns in Parquet 2.
    #[default]
    Parquet,
    /// Comma-separated values by RFC 4180 with a header. Nothing between commas is null, `""` is the empty text.
    Csv,
    /// One JSON array of objects.
    Json,
    /// One JSON object a line.
    Jsonl,
    /// One YAML sequence of mappings, one a line.
    Yaml,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 5] = [Self::Parquet, Self::Csv, Self::Json, Self::Jsonl, Self::Yaml];

    /// The format as it is written, which is also the ending of file names.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Jsonl => "jsonl",
            Self::Yaml => "yaml",
        }
    }

    /// What the format is, for people.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Parquet => "Columns in Parquet 2.",
            Self::Csv => "Comma-separated values by RFC 4180 with a header; nothing between commas is null.",
            Self::Json => "One JSON array of objects.",
            Self::Jsonl => "One JSON object a line.",
            Self::Yaml => "One YAML sequence of mappings, one a line.",
        }
    }
}

/// How an exported file is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[schema(as = ExportCompression)]
pub enum Compression {
    /// Zstandard.
    #[default]
    Zstd,
    /// Snappy; Parquet only.
    Snappy,
    /// LZ4; Parquet only.
    Lz4,
    /// Gzip.
    Gzip,
    /// As it is.
    None,
}

impl Compression {
    /// The compression as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Gzip => "gzip",
            Self::None => "none",
        }
    }

    /// How files of a format are compressed where this is configured and nothing is asked for. Text by gzip, which everybody
    /// opens as it is, unless nothing shall be compressed.
    #[must_use]
    pub const fn of_files(self, format: Format) -> Self {
        match (format, self) {
            (Format::Parquet, _) | (_, Self::None) => self,
            _ => Self::Gzip,
        }
    }
}
