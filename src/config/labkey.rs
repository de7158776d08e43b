//! Delivery to LabKey: where, as whom, how much at once, and how often.

use std::collections::BTreeMap;
use std::time::Duration;

use bytesize::ByteSize;
use chrono::{DateTime, Utc};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::{MOST_SLOTS, Secret, is_http, values};

/// How rows are delivered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct LabkeyConfig {
    #[serde(with = "values::blank")]
    pub server_url: Option<String>,
    #[serde(with = "values::blank")]
    pub project_path: Option<String>,
    pub schema_name: String,
    #[serde(with = "values::blank")]
    pub api_key: Option<Secret>,
    #[serde(with = "values::blank")]
    pub username: Option<String>,
    #[serde(with = "values::blank")]
    pub password: Option<Secret>,
    pub batch_size: usize,
    #[serde(with = "values::size")]
    pub batch_bytes: ByteSize,
    pub requests: usize,
    pub auto_upload: bool,
    pub upload_interval_minutes: u32,
    pub map: String,
    pub mode: Mode,
    pub lists: Vec<ListConfig>,
    pub since: String,
    pub slots: usize,
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub settle: Duration,
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
    #[serde(with = "humantime_serde")]
    pub pause: Duration,
    #[serde(with = "humantime_serde")]
    pub sync_wait: Duration,
}

/// How rows become unique in LabKey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By merging where the list allows it, else by inserting.
    Auto,
    /// By the list's own key, which is the record key.
    Merge,
    /// By inserting once, and asking by the delivery key where that is in doubt.
    Insert,
}

/// What of one dataset's list differs from its definition.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListConfig {
    /// The dataset's name.
    pub dataset: String,
    /// Whether it is delivered at all.
    #[serde(default = "yes")]
    pub deliver: bool,
    /// `labkey.map` when absent.
    #[serde(default)]
    pub map: Option<String>,
    /// The list's name; the map's when absent.
    #[serde(default)]
    pub list: Option<String>,
    /// `labkey.schema_name` when absent.
    #[serde(default)]
    pub schema: Option<String>,
    /// `labkey.mode` when absent.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// Columns that the map lacks or that have another source, as in a dataset definition; "" leaves one out.
    #[serde(default)]
    pub columns: BTreeMap<String, serde_json::Value>,
}

const fn yes() -> bool {
    true
}

impl LabkeyConfig {
    /// What no type can tell.
    pub(super) fn check(&self, check: &mut impl FnMut(bool, &'static str, &str)) {
        let is_on = self.server_url.is_some();
        check(
            self.server_url.as_deref().is_none_or(is_http),
            "labkey.server_url",
            "must begin with https:// or http://",
        );
        check(
            self.server_url.as_deref().is_none_or(|url| !has_login(url)),
            "labkey.server_url",
            "must hold no user and no password: use labkey.username and labkey.password",
        );
        check(!is_on || self.project_path.is_some(), "labkey.project_path", "is needed with labkey.server_url");
        let has_key = self.api_key.is_some() || (self.username.is_some() && self.password.is_some());
        check(!is_on || has_key, "labkey.api_key", "is needed with labkey.server_url, or username and password");
        check((1..=100_000).contains(&self.batch_size), "labkey.batch_size", "must be between 1 and 100000");
        check(self.batch_bytes.as_u64() >= 64 * bytesize::KIB, "labkey.batch_bytes", "must be at least 64KiB");
        check(self.slots <= MOST_SLOTS, "labkey.slots", "must be at most 1000");
        check((1..=32).contains(&self.requests), "labkey.requests", "must be between 1 and 32");
        check(self.request_timeout >= Duration::from_millis(100), "labkey.request_timeout", "must be at least 100ms");
        if let Err(reason) = self.interval_cron() {
            check(false, "labkey.upload_interval_minutes", &reason);
        }
        check(self.first_moment().is_ok(), "labkey.since", "must be an RFC 3339 time such as 2026-11-20T00:00:00Z");
    }

    /// The interval as a cron expression in UTC.
    ///
    /// # Errors
    /// An interval that divides neither the hour nor the day.
    pub fn interval_cron(&self) -> Result<String, String> {
        match self.upload_interval_minutes {
            minutes @ 1..60 if 60 % minutes == 0 => Ok(format!("0 */{minutes} * * * *")),
            minutes if minutes > 0 && minutes % 60 == 0 && minutes <= 1440 && 1440 % minutes == 0 => {
                Ok(if minutes == 1440 { "0 0 0 * * *".to_owned() } else { format!("0 0 */{} * * *", minutes / 60) })
            }
            _ => Err("must divide 60, or be a number of hours that divides 24".to_owned()),
        }
    }

    /// Rows taken in before that are never delivered.
    ///
    /// # Errors
    /// A text that is no time.
    pub fn first_moment(&self) -> Result<Option<DateTime<Utc>>, chrono::ParseError> {
        if self.since.is_empty() { Ok(None) } else { self.since.parse().map(Some) }
    }
}

/// Whether an address holds a user or a password. It is shown where secrets are not.
fn has_login(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| !url.username().is_empty() || url.password().is_some())
}
