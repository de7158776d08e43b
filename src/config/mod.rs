//! The configuration: one tree of keys, laid together from layers, checked as a whole.
//!
//! Embedded `config/default.toml` < file of `--config` or `NVD_CONFIG` < flat names < `NVD__SECTION__KEY` < flags.
//! All faults are reported at once, each with its key and source, and never with a secret.

mod export;
mod fault;
mod labkey;
mod lake;
mod layers;
mod notify;
mod secret;
mod suggest;
mod values;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use tracing_subscriber::filter::LevelFilter;

use crate::secrets;

pub use export::{Compression, ExportConfig, Format, ScheduleConfig, check_location};
pub use fault::{ConfigError, Fault, Source};
pub use labkey::{LabkeyConfig, ListConfig, Mode};
pub use lake::{LakeConfig, Level, Partitioning, Temporal};
pub use layers::FLAT_NAMES;
pub use secret::Secret;

pub use notify::{NotifyConfig, Outcome, WebhookConfig, WebhookKind};

use layers::{Layers, Leaf, flatten};

/// Every key with its comment and default.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// The names of the tokens that the environment gives in plain: `INGEST_TOKEN` and `BEARER_TOKEN`.
pub const PLAIN_TOKENS: [&str; 2] = ["ingest_token", "bearer_token"];

/// The effective configuration. `config/default.toml` says what each key is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key, and a test holds that it does")]
pub struct Config {
    pub data_dir: PathBuf,
    pub server: ServerConfig,
    pub database: DatabaseConfig,
    pub embedded: EmbeddedConfig,
    pub auth: AuthConfig,
    pub limits: LimitsConfig,
    pub ingest: IngestConfig,
    pub export: ExportConfig,
    pub lake: LakeConfig,
    pub notify: NotifyConfig,
    pub labkey: LabkeyConfig,
    pub datasets: DatasetsConfig,
    pub log: LogConfig,
}

/// Where the service listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct ServerConfig {
    pub host: String,
    pub port: u16,
    #[serde(with = "values::blank")]
    pub cert_path: Option<PathBuf>,
    #[serde(with = "values::blank")]
    pub key_path: Option<PathBuf>,
    #[serde(with = "humantime_serde")]
    pub shutdown_deadline: Duration,
    #[serde(with = "values::blank")]
    pub redoc_bundle: Option<PathBuf>,
    #[serde(with = "values::blank")]
    pub public_url: Option<String>,
}

/// The PostgreSQL server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct DatabaseConfig {
    #[serde(with = "values::blank")]
    pub url: Option<Secret>,
    pub max_connections: u32,
    #[serde(with = "humantime_serde")]
    pub acquire_timeout: Duration,
}

/// The PostgreSQL that the service runs itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct EmbeddedConfig {
    #[serde(with = "values::size")]
    pub shared_buffers: ByteSize,
}

/// Access tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct AuthConfig {
    #[serde(with = "values::blank")]
    pub ingest_token: Option<Secret>,
    #[serde(with = "values::blank")]
    pub bearer_token: Option<Secret>,
    pub tokens: Vec<TokenConfig>,
    pub public_exports: bool,
}

/// An access token of which only the hash is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct TokenConfig {
    pub name: String,
    pub scopes: Vec<Scope>,
    pub sha256: String,
}

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Sending results.
    Ingest,
    /// Reading what is stored.
    Read,
    /// Steering and deleting.
    Operate,
}

impl Scope {
    /// The scope as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Read => "read",
            Self::Operate => "operate",
        }
    }
}

/// What a token is configured as that somebody hashed before it was set.
const SHA256_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What is said of a filter of which a word is no level.
const NO_LEVEL: &str = "has a word that is no level: write off, error, warn, info, debug or trace, and TARGET=LEVEL for a part of the program";

/// A hundred years. Calendars end, and somebody who writes more wants to keep exports for ever.
const MOST_DAYS: u32 = 36_500;

/// Limits of limits: what lies beyond is a slip of the hand, and more than memory or PostgreSQL can bear.
const MOST_QUEUED: usize = 1_000_000;
const MOST_SLOTS: usize = 1_000;
/// Connections on which a partitioned dataset and its catalogue are locked.
const LOCKS: usize = 2;
/// Each upload has a thread of the 1,024 that may wait for something.
const MOST_UPLOADS: usize = 900;
/// PostgreSQL of our own takes 100.
const MOST_EMBEDDED: u32 = 80;
const LONGEST_DURATION: Duration = Duration::from_hours(24);

/// Limits for each token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct LimitsConfig {
    pub rate_per_second: u32,
    pub burst: u32,
    pub queue: usize,
}

/// Limits for uploads.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct IngestConfig {
    pub concurrency: usize,
    pub queue: usize,
    #[serde(with = "values::size")]
    pub max_body: ByteSize,
    #[serde(with = "values::size")]
    pub max_decompressed: ByteSize,
    pub max_rows: u64,
    #[serde(with = "values::size")]
    pub max_line: ByteSize,
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
}

/// The operator's own datasets.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct DatasetsConfig {
    #[serde(with = "values::blank")]
    pub dir: Option<PathBuf>,
}

/// What is logged, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct LogConfig {
    pub format: LogFormat,
    pub level: String,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors.
    Json,
}

impl Config {
    /// Lays the layers over the defaults and checks the result. `overrides` are (key, value) pairs of flags.
    ///
    /// # Errors
    /// Every fault of every layer.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let defaults = parse_defaults()?;
        let sections: BTreeSet<String> = sections(&defaults);
        let is_section = |key: &str| sections.contains(key);
        let known: BTreeSet<String> = flatten(defaults, &is_section).into_iter().map(|(key, _)| key).collect();
        let Layers { leaves, mut faults } = Layers::read(is_section, file, env, overrides);
        for leaf in leaves.values() {
            faults.extend(check_leaf(leaf, &known).err());
        }
        if !faults.is_empty() {
            return Err(ConfigError { faults });
        }
        let config = build(leaves.values()).map_err(|error| fault(Fault::WHOLE, &Source::Default, &error))?;
        let source = |key: &str| leaves.get(key).map_or(Source::Default, |leaf| leaf.source.clone());
        let faults: Vec<Fault> = config
            .mistakes()
            .into_iter()
            .map(|(key, reason)| Fault { key: key.to_owned(), source: source(key), reason })
            .collect();
        if faults.is_empty() { Ok(config) } else { Err(ConfigError { faults }) }
    }

    /// What no type can tell: keys that contradict each other, numbers out of range.
    fn mistakes(&self) -> Vec<(&'static str, String)> {
        let mut mistakes = Vec::new();
        let mut check = |holds: bool, key, reason: &str| {
            if !holds {
                mistakes.push((key, reason.to_owned()));
            }
        };
        check(
            self.server.cert_path.is_some() == self.server.key_path.is_some(),
            "server.cert_path",
            "goes together with server.key_path: set both or neither",
        );
        check(
            self.server.public_url.as_deref().is_none_or(is_http),
            "server.public_url",
            "must begin with https:// or http://",
        );
        let connections = self.database.max_connections;
        check((4..=10_000).contains(&connections), "database.max_connections", "must be 4 to 10000");
        // Some are left to the command line, and to PostgreSQL itself.
        let own = self.database.url.is_some() || connections <= MOST_EMBEDDED;
        check(own, "database.max_connections", "must be at most 80 with the embedded PostgreSQL");
        let patience = Duration::from_secs(1)..=LONGEST_DURATION;
        check(patience.contains(&self.database.acquire_timeout), "database.acquire_timeout", "must be 1s to 24h");
        check(self.server.shutdown_deadline <= LONGEST_DURATION, "server.shutdown_deadline", "must be at most 24h");
        check(self.limits.queue <= MOST_QUEUED, "limits.queue", "must be at most 1000000");
        let is_postgres = |url: &Secret| ["postgres://", "postgresql://"].iter().any(|it| url.expose().starts_with(it));
        let url = self.database.url.as_ref();
        check(url.is_none_or(is_postgres), "database.url", "must begin with postgres://");
        check(
            url.is_none_or(|url| !is_postgres(url) || url.expose().parse::<PgConnectOptions>().is_ok()),
            "database.url",
            "is no address such as postgres://user:password@host:5432/name; in a user or password, `@` is written %40, `/` \
             %2F and `%` %25",
        );
        check(self.limits.rate_per_second >= 1, "limits.rate_per_second", "must be at least 1");
        check(self.limits.burst >= 1, "limits.burst", "must be at least 1");
        self.check_ingest(&mut check);
        self.check_export(&mut check);
        self.check_notify(&mut check);
        check(self.lake.grace <= Duration::from_secs(3600), "lake.grace", "must be at most 1h");
        self.labkey.check(&mut check);
        check(is_filter(&self.log.level), "log.level", NO_LEVEL);
        for (key, token) in
            [("auth.ingest_token", &self.auth.ingest_token), ("auth.bearer_token", &self.auth.bearer_token)]
        {
            let token = token.as_ref().map_or("", Secret::expose);
            check(token.is_ascii(), key, "must be of ASCII letters: headers of HTTP carry no others");
            check(
                token.trim() == token,
                key,
                "must not begin or end with a blank or a line end: headers of HTTP lose them",
            );
        }
        let digest = |token: &Secret| data_encoding::HEXLOWER.encode(&secrets::hash(token.expose()));
        let plain = [&self.auth.ingest_token, &self.auth.bearer_token].into_iter().flatten().map(digest);
        let mut hashes: Vec<String> = plain.collect();
        hashes.extend(self.auth.tokens.iter().map(|token| token.sha256.to_ascii_lowercase()));
        hashes.sort_unstable();
        let differ = hashes.windows(2).all(|pair| pair[0] != pair[1]);
        check(differ, "auth.tokens", "the same token is configured twice, so that nobody can tell what it allows");
        let names: BTreeSet<&str> = self.auth.tokens.iter().map(|token| token.name.as_str()).collect();
        let unique = names.len() == self.auth.tokens.len() && !names.contains("");
        check(unique, "auth.tokens", "every token needs a name of its own");
        // Who made a job is told by the name.
        for name in PLAIN_TOKENS.iter().filter(|name| names.contains(**name)) {
            check(false, "auth.tokens", &format!("`{name}` is the name of the token of that environment variable"));
        }
        for token in &self.auth.tokens {
            let hex = token.sha256.len() == 64 && token.sha256.bytes().all(|digit| digit.is_ascii_hexdigit());
            check(hex, "auth.tokens", &format!("sha256 of `{}` must be 64 hexadecimal digits", token.name));
            let empty = token.sha256.eq_ignore_ascii_case(SHA256_OF_NOTHING);
            check(!empty, "auth.tokens", &format!("sha256 of `{}` is that of an empty token", token.name));
            check(!token.scopes.is_empty(), "auth.tokens", &format!("`{}` has no scopes", token.name));
        }
        mistakes
    }

    fn check_ingest(&self, check: &mut impl FnMut(bool, &'static str, &str)) {
        let ingest = &self.ingest;
        check((1..=MOST_UPLOADS).contains(&ingest.queue), "ingest.queue", "must be 1 to 900");
        check(ingest.concurrency <= MOST_UPLOADS, "ingest.concurrency", "must be at most 900");
        check(ingest.max_line.as_u64() <= bytesize::GIB, "ingest.max_line", "must be at most 1GiB");
        let range = 1..=i32::MAX as u64;
        check(range.contains(&ingest.max_rows), "ingest.max_rows", "must be between 1 and 2147483647");
        for (key, size) in [
            ("ingest.max_body", ingest.max_body),
            ("ingest.max_decompressed", ingest.max_decompressed),
            ("ingest.max_line", ingest.max_line),
        ] {
            check(size.as_u64() >= 1, key, "must be at least 1B");
        }
        check(!ingest.idle_timeout.is_zero(), "ingest.idle_timeout", "must be longer than 0s");
        check(ingest.idle_timeout <= LONGEST_DURATION, "ingest.idle_timeout", "must be at most 24h");
    }

    fn check_export(&self, check: &mut impl FnMut(bool, &'static str, &str)) {
        let export = &self.export;
        check((1..=16).contains(&export.connections), "export.connections", "must be between 1 and 16");
        check((1_000..=10_000_000).contains(&export.batch_size), "export.batch_size", "must be 1000 to 10000000");
        check(export.batch_bytes.as_u64() >= bytesize::MIB, "export.batch_bytes", "must be at least 1MiB");
        check(export.file_size.as_u64() >= bytesize::MIB, "export.file_size", "must be at least 1MiB");
        check(export.slots <= MOST_SLOTS, "export.slots", "must be at most 1000");
        // Else exports would wait for each other's connections, and their leases end meanwhile.
        let taken = export.slots.saturating_mul(export.connections + LOCKS);
        let rest = "times (export.connections + 2) must be below database.max_connections, for requests need some, too";
        check(taken < self.database.max_connections as usize, "export.slots", rest);
        check((Duration::from_secs(3)..=LONGEST_DURATION).contains(&export.lease), "export.lease", "must be 3s to 24h");
        check((1..=8760).contains(&export.job_retention_hours), "export.job_retention_hours", "must be 1 to 8760");
        check(export.max_attempts >= 1, "export.max_attempts", "must be at least 1");
        // Longer signatures are refused by S3.
        let lifetimes = Duration::from_mins(1)..=Duration::from_hours(7 * 24);
        check(lifetimes.contains(&export.link_lifetime), "export.link_lifetime", "must be 1m to 7d");
        check(export.retention_days <= MOST_DAYS, "export.retention_days", "must be at most 36500");
        let own = export.schedules.iter().filter_map(|own| own.retention_days).max();
        check(own.is_none_or(|days| days <= MOST_DAYS), "export.schedules", "retention_days must be at most 36500");
        if let Err(reason) = export.storage.as_deref().map_or(Ok(()), check_location) {
            check(false, "export.storage", reason);
        }
        if let Err(reason) = export.interval_cron() {
            check(false, "export.export_interval_hours", &reason);
        }
    }

    fn check_notify(&self, check: &mut impl FnMut(bool, &'static str, &str)) {
        let notify = &self.notify;
        check(notify.timeout >= Duration::from_secs(1), "notify.timeout", "must be at least 1s");
        check(notify.max_attempts >= 1, "notify.max_attempts", "must be at least 1");
        let names: BTreeSet<&str> = notify.webhooks.iter().map(|webhook| webhook.name.as_str()).collect();
        let unique = names.len() == notify.webhooks.len() && !names.contains("");
        check(unique, "notify.webhooks", "every webhook needs a name of its own");
        for webhook in &notify.webhooks {
            let (name, url) = (&webhook.name, webhook.url.expose());
            check(is_http(url), "notify.webhooks", &format!("url of `{name}` must begin with https:// or http://"));
            let long = webhook.secret.as_ref().is_some_and(|secret| secret.expose().len() >= 16);
            let is_signed = webhook.kind != WebhookKind::Json || long;
            check(is_signed, "notify.webhooks", &format!("`{name}` needs a secret of 16 letters or more"));
        }
        for name in self.export.schedules.iter().flat_map(|schedule| &schedule.notify) {
            check(names.contains(name.as_str()), "export.schedules", &format!("`{name}` is none of notify.webhooks"));
        }
    }

    /// The effective tree as TOML, without secrets.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Whether a token was configured, as opposed to one that the service makes for itself.
    #[must_use]
    pub fn has_tokens(&self) -> bool {
        self.auth.ingest_token.is_some() || self.auth.bearer_token.is_some() || !self.auth.tokens.is_empty()
    }

    /// `host:port`, an IPv6 address in brackets.
    #[must_use]
    pub fn listen(&self) -> String {
        let ServerConfig { host, port, .. } = &self.server;
        if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Where exports are written.
    #[must_use]
    pub fn export_storage(&self) -> String {
        let local = || self.data_dir.join("exports").display().to_string();
        self.export.storage.clone().unwrap_or_else(local)
    }

    /// Where generated secrets lie.
    #[must_use]
    pub fn secrets_dir(&self) -> PathBuf {
        self.data_dir.join("secrets")
    }
}

/// Whether an address is one of HTTP.
fn is_http(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

/// Whether every word of a tracing filter is a level, or names one. One that is neither would be taken for a part of the program
/// of that name, and nothing else would be logged.
fn is_filter(level: &str) -> bool {
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let mut words = level.split(',').map(str::trim);
    words.all(|word| word.is_empty() || word.contains(['=', '[']) || is_level(word))
}

fn parse_defaults() -> Result<::config::Map<String, ::config::Value>, ConfigError> {
    toml::from_str(DEFAULTS)
        .map_err(|error| Fault { key: Fault::WHOLE.into(), source: Source::Default, reason: error.to_string() }.into())
}

/// The keys that are tables of keys.
fn sections(tree: &::config::Map<String, ::config::Value>) -> BTreeSet<String> {
    let is_table = |value: &::config::Value| matches!(value.kind, ::config::ValueKind::Table(_));
    tree.iter().filter(|(_, value)| is_table(value)).map(|(key, _)| key.clone()).collect()
}

/// The defaults with some values laid over them.
fn build<'a>(leaves: impl IntoIterator<Item = &'a Leaf>) -> Result<Config, ::config::ConfigError> {
    let defaults = ::config::File::from_str(DEFAULTS, ::config::FileFormat::Toml);
    let mut builder = ::config::Config::builder().add_source(defaults);
    for leaf in leaves {
        builder = builder.set_override(&leaf.key, leaf.value.clone())?;
    }
    builder.build()?.try_deserialize()
}

/// Whether a value is known and of the right type, told by laying it alone over the defaults.
fn check_leaf(leaf: &Leaf, known: &BTreeSet<String>) -> Result<(), Fault> {
    if !known.contains(&leaf.key) {
        let hint = suggest::nearest(&leaf.key, known.iter().map(String::as_str));
        let hint = hint.map(|key| format!("; did you mean {key}?")).unwrap_or_default();
        let reason = format!("is not a key of the configuration{hint}");
        return Err(Fault { key: leaf.key.clone(), source: leaf.source.clone(), reason });
    }
    build([leaf]).map(drop).map_err(|error| fault(&leaf.key, &leaf.source, &error))
}

/// A fault without the value, which may be a secret.
fn fault(key: &str, source: &Source, error: &::config::ConfigError) -> Fault {
    let reason = match error {
        ::config::ConfigError::Type { expected, .. } => format!("expected {expected}"),
        ::config::ConfigError::At { error, .. } => return fault(key, source, error),
        _ => "has a value of the wrong form; config/default.toml shows the right one".to_owned(),
    };
    Fault { key: key.to_owned(), source: source.clone(), reason }
}

#[cfg(test)]
mod tests;
