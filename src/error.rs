//! The one error of the service, read by HTTP, by jobs and by the command line. It knows no HTTP.

use std::time::Duration;

use sqlx::migrate::MigrateError;

use crate::dataset::{Fault, Mistake};

/// A result whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Messages say what, where and what to do, and never repeat a row's value or a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The body is not what it claims: damaged gzip, no UTF-8, no known format.
    #[error("{0}")]
    Body(String),
    /// Rows or parameters that do not fit the dataset.
    #[error("{}", summary(.0))]
    Faults(Vec<Fault>),
    /// A configured limit was reached.
    #[error("the {what} exceeds the limit of {limit}; an operator can raise {key}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit with its unit.
        limit: String,
        /// The configuration key of the limit.
        key: &'static str,
    },
    /// The client sent nothing for too long.
    #[error("no data arrived for {0:?}; nothing was stored, send the request again")]
    Idle(Duration),
    /// The client went away before the body was complete.
    #[error("the connection closed before the body was complete; nothing was stored")]
    Disconnected,
    /// The same key was used for other content.
    #[error("{0}")]
    Conflict(String),
    /// What was there is gone for good.
    #[error("{0}")]
    Gone(String),
    /// There is nothing of that name.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// The kind of thing.
        what: &'static str,
        /// Its name as the caller gave it.
        name: String,
    },
    /// No valid token.
    #[error("send a valid access token as `Authorization: Bearer TOKEN`")]
    Unauthorized,
    /// The token is valid but not for this.
    #[error("this needs a token with scope `{0}`")]
    Forbidden(&'static str),
    /// Too many requests of one token are waiting.
    #[error("too many requests of this token are waiting; try again after {} s", .0.as_secs())]
    RateLimited(Duration),
    /// Too many uploads are waiting, or the service is stopping.
    #[error("{what}; try again after {} s", .retry_after.as_secs())]
    Busy {
        /// What is the matter.
        what: &'static str,
        /// When to try again.
        retry_after: Duration,
    },
    /// Another process works on the same; it is free when that has ended.
    #[error("{0}")]
    Locked(String),
    /// PostgreSQL failed or is out of reach.
    #[error("the database did not answer as it should")]
    Database(#[source] sqlx::Error),
    /// The storage of exports failed or is out of reach.
    #[error("the storage of exports did not answer as it should")]
    Storage(#[from] object_store::Error),
    /// A webhook did not take a notice.
    #[error("the webhook `{webhook}` did not take the notice: {reason}")]
    Notice {
        /// Its name.
        webhook: String,
        /// Why, without its address.
        reason: String,
        /// Whether it may take it later.
        is_retryable: bool,
    },
    /// What was to be changed was changed by somebody else.
    #[error("{0}")]
    Outdated(String),
    /// LabKey did not do what it was asked for.
    #[error("LabKey: {0}")]
    Labkey(#[from] Box<crate::labkey::failure::Failure>),
    /// A job was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// What a link led to is not to be had by it: it was changed, or its time is over.
    #[error("{0}")]
    Link(&'static str),
    /// Mistakes in dataset definitions.
    #[error("dataset definitions cannot be used:\n{}", lines(.0))]
    Definitions(Vec<Mistake>),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The embedded PostgreSQL cannot be started.
    #[error(transparent)]
    Embedded(#[from] crate::db::embedded::EmbeddedError),
    /// A migration failed.
    #[error("the database cannot be brought up to date: {0}")]
    Migration(#[from] MigrateError),
    /// Something in the environment that a person must set right: a port in use, an unreadable file.
    #[error("{0}")]
    Environment(String),
    /// A fault of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Who has to act on an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Whoever sent the request.
    Caller,
    /// Something that the service depends on.
    Dependency,
    /// Us.
    Ours,
}

impl Error {
    /// Who has to act.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Busy { .. } | Self::Locked(_) => Class::Dependency,
            Self::Database(error) if is_outage(error) => Class::Dependency,
            Self::Embedded(_) | Self::Environment(_) | Self::Storage(_) | Self::Labkey(_) | Self::Notice { .. } => {
                Class::Dependency
            }
            Self::Database(_) | Self::Migration(_) | Self::Internal(_) => Class::Ours,
            _ => Class::Caller,
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Locked(_) | Self::RateLimited(_) | Self::Idle(_) | Self::Disconnected => true,
            Self::Notice { is_retryable, .. } => *is_retryable,
            Self::Database(error) => is_outage(error),
            Self::Migration(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
                is_outage(error)
            }
            // What is wrong with the request, the credentials or the path stays wrong.
            Self::Storage(error) => matches!(error, object_store::Error::Generic { .. }),
            Self::Labkey(failure) => failure.is_passing(),
            _ => false,
        }
    }

    /// Whether PostgreSQL ended it because it and another waited for each other.
    #[must_use]
    pub fn is_deadlock(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(cause)) if cause.code().is_some_and(|code| code == "40P01"))
    }

    /// When the same request may succeed, where something says so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited(after) | Self::Busy { retry_after: after, .. } => Some(*after),
            Self::Labkey(failure) => failure.retry_after,
            Self::Database(_) if self.is_retryable() => Some(Duration::from_secs(5)),
            _ => None,
        }
    }

    /// The error with its causes, for operators.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let more = error.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            cause = error.source();
        }
        text
    }

    /// An error about one query parameter.
    #[must_use]
    pub fn parameter(name: &str, reason: impl Into<String>) -> Self {
        Self::Faults(vec![Fault::of_parameter(name, reason)])
    }

    /// A word for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Body(_) => "body",
            Self::Faults(_) => "rows",
            Self::TooLarge { .. } => "too_large",
            Self::Idle(_) => "idle",
            Self::Disconnected => "disconnected",
            Self::Conflict(_) => "conflict",
            Self::Gone(_) => "gone",
            Self::NotFound { .. } => "not_found",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden(_) => "forbidden",
            Self::RateLimited(_) => "rate_limited",
            Self::Busy { .. } => "busy",
            Self::Locked(_) => "locked",
            Self::Database(_) => "database",
            Self::Storage(_) => "storage",
            Self::Notice { .. } => "notice",
            Self::Outdated(_) => "outdated",
            Self::Labkey(failure) => failure.kind.as_str(),
            Self::Cancelled => "cancelled",
            Self::Link(_) => "link",
            Self::Definitions(_) => "definitions",
            Self::Config(_) => "config",
            Self::Embedded(_) => "embedded",
            Self::Migration(_) => "migration",
            Self::Environment(_) => "environment",
            Self::Internal(_) => "internal",
        }
    }
}

/// Whether PostgreSQL is away, restarting, out of room or out of time, so that a later try can succeed.
fn is_outage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => true,
        // sqlx reports a connection that ended within a message as a protocol error.
        sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // 08 connection, 25006 a standby, 25P04 a transaction in time, 40 serialization and deadlock, 53 resources, 55P03 a
            // lock in time, 57014 a statement in time, 57P shutdown and restart.
            ["08", "25006", "25P04", "40", "53", "55P03", "57014", "57P"].iter().any(|class| code.starts_with(class))
        }),
        _ => false,
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code());
        // What a client sent as text: it is not the database that fails.
        if code.as_ref().is_some_and(|code| ["22021", "22P05"].contains(&code.as_ref())) {
            return Self::Body("a text of the request holds NUL (U+0000), which the database cannot store".into());
        }
        if code.is_some_and(|code| code == "42501") {
            let message = error.as_database_error().map_or("", sqlx::error::DatabaseError::message);
            return Self::Environment(format!("the service's role in PostgreSQL lacks a right: {message}"));
        }
        Self::Database(error)
    }
}

impl From<crate::labkey::failure::Failure> for Error {
    fn from(failure: crate::labkey::failure::Failure) -> Self {
        Self::Labkey(Box::new(failure))
    }
}

fn summary(faults: &[Fault]) -> String {
    match faults {
        [fault] => describe(fault),
        [first, ..] => format!("{} (and {} more)", describe(first), faults.len() - 1),
        [] => "the request does not fit the dataset".to_owned(),
    }
}

fn describe(fault: &Fault) -> String {
    let place = match (fault.line, fault.column) {
        (Some(line), Some(column)) => format!("line {line}, column {column}: "),
        (Some(line), None) => format!("line {line}: "),
        _ => String::new(),
    };
    let field = fault.field.as_ref().map(|field| format!("`{field}` ")).unwrap_or_default();
    format!("{place}{field}{}", fault.reason)
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("  {mistake}")).collect::<Vec<_>>().join("\n")
}
