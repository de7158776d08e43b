//! What LabKey's answers mean. Its statuses alone do not tell: a bad list name is 500, a refused import is 200, and 401
//! has four meanings.

use std::fmt;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;

/// LabKey did not do what it was asked for, or nobody knows whether it did.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// What follows from it.
    pub kind: FailureKind,
    /// LabKey's own words where there are any. Those about rows may repeat their values.
    pub reason: String,
    /// When LabKey wants to be asked again.
    pub retry_after: Option<Duration>,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// LabKey refuses the rows: the others may be taken without the bad ones.
    Invalid,
    /// Some key is there already: perhaps these very rows.
    Duplicate,
    /// The list, the project or the address is not as configured.
    Configuration,
    /// The user may not do this.
    Permission,
    /// The key or the password is not accepted.
    Authentication,
    /// The security context was not accepted: to be established again, once.
    Context,
    /// Nothing was done, and the same request may succeed later.
    Transient,
    /// It may have been done.
    Unknown,
}

impl FailureKind {
    /// A word for metrics and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Duplicate => "duplicate",
            Self::Configuration => "configuration",
            Self::Permission => "permission",
            Self::Authentication => "authentication",
            Self::Context => "security_context",
            Self::Transient => "unavailable",
            Self::Unknown => "unknown",
        }
    }
}

/// Without the words, which may repeat values of rows.
impl fmt::Debug for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Failure({})", self.kind.as_str())
    }
}

impl Failure {
    /// A failure of that kind.
    #[must_use]
    pub fn new(kind: FailureKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), retry_after: None }
    }

    /// Whether the same request may succeed later without anybody doing anything.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self.kind, FailureKind::Transient | FailureKind::Unknown)
    }

    /// What a broken exchange means; after the request may have been sent, a change may have been made.
    #[must_use]
    pub fn of_exchange(error: &reqwest::Error, is_change: bool) -> Self {
        let what = if error.is_connect() {
            "cannot be reached"
        } else if error.is_timeout() {
            "did not answer in time"
        } else {
            "broke the connection off"
        };
        let kind = if is_change && !error.is_connect() { FailureKind::Unknown } else { FailureKind::Transient };
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Self::new(kind, format!("LabKey {what} ({cause})"))
    }

    /// What an answer means that is no success. `body` is none when it was no JSON.
    #[must_use]
    pub fn of_answer(status: StatusCode, body: Option<&Value>, retry_after: Option<Duration>, is_change: bool) -> Self {
        let said = body.and_then(said);
        let reason = said.clone().unwrap_or_else(|| format!("LabKey answered {status} without saying why"));
        let kind = match status.as_u16() {
            // `success: false`, or an exception without it.
            200..=299 if body.is_some() => of_refusal(body, &reason, is_change),
            // A page for people: perhaps from a proxy before LabKey, perhaps after it had done the work.
            200..=299 if is_change => FailureKind::Unknown,
            200..=299 => FailureKind::Configuration,
            300..=399 => FailureKind::Configuration,
            // Too large for something on the way: fewer rows may pass.
            413 => FailureKind::Invalid,
            400 | 422 => of_refusal(body, &reason, is_change),
            401 => of_unauthorized(&reason),
            403 => FailureKind::Permission,
            404 | 405 => FailureKind::Configuration,
            408 | 429 => FailureKind::Transient,
            500 if is_argument(body) => FailureKind::Configuration,
            _ if is_change => FailureKind::Unknown,
            _ => FailureKind::Transient,
        };
        let kind = match kind {
            // A question has no rows that could be refused, and changes nothing.
            FailureKind::Invalid if !is_change => FailureKind::Configuration,
            FailureKind::Unknown if !is_change => FailureKind::Transient,
            kind => kind,
        };
        let reason = match status.as_u16() {
            300..=399 => {
                format!("LabKey answered {status}, which leads elsewhere: set labkey.server_url to where it leads")
            }
            200..=299 if body.is_none() => {
                "the answer is no JSON: labkey.server_url leads to no LabKey server".to_owned()
            }
            _ => reason,
        };
        Self { kind, reason, retry_after }
    }
}

/// LabKey's words: the exception, and of the first refused row what and where.
fn said(body: &Value) -> Option<String> {
    let exception = body.get("exception").and_then(Value::as_str);
    let first = body.pointer("/errors/0");
    let row = first.and_then(|error| error.get("rowNumber")).and_then(Value::as_u64);
    let text = exception.or_else(|| {
        first.and_then(|error| error.get("message").or_else(|| error.get("msg"))).and_then(Value::as_str)
    })?;
    let text: String = text.chars().take(1000).collect();
    Some(match row {
        Some(row) => format!("{text} (row {row} of the request)"),
        None => text,
    })
}

fn class_of(body: Option<&Value>) -> &str {
    body.and_then(|body| body.get("exceptionClass")).and_then(Value::as_str).unwrap_or_default()
}

fn is_argument(body: Option<&Value>) -> bool {
    let class = class_of(body);
    class.ends_with("IllegalArgumentException") || class.ends_with("NotFoundException")
}

/// Classes of failures of LabKey's database, and those among them for which a row is to blame.
const OF_DATABASE: [&str; 5] = ["Deadlock", "SQL", "java.sql.", "springframework.dao.", "springframework.jdbc."];
const OF_ROWS: [&str; 2] = ["DataIntegrity", "DuplicateKey"];

/// What databases say of deadlocks, and of values that they do not take.
const DEADLOCKS: [&str; 2] = ["deadlock detected", "deadlocked on lock"];
const VALUES: [&str; 11] = [
    "too long",
    "exceeds",
    "cannot insert",
    "out of range",
    "overflow",
    "truncat",
    "invalid input",
    "invalid byte",
    "violates",
    "null value",
    "convert",
];

/// Whether LabKey's database failed, and not for what a row holds. LabKey tells the one from the other, but for what it
/// runs in the background: that is the fault of a row, without a class.
fn is_of_database(body: Option<&Value>, reason: &str) -> bool {
    let class = class_of(body);
    let has_one = |text: &str, words: &[&str]| words.iter().any(|word| text.contains(word));
    has_one(reason, &DEADLOCKS)
        || (has_one(class, &OF_DATABASE) && !has_one(class, &OF_ROWS) && !has_one(reason, &VALUES))
}

/// Classes of failures for which a row is to blame, besides those of a database.
const OF_VALUES: [&str; 3] = ["ValidationException", "ConversionException", "NumberFormat"];

/// Whether LabKey says that a row is to blame: by an array of errors, or a number of them, by the name of a field, or by
/// the class of the failure. What it says of the form as a whole, such as that its disk is full, is no row's fault.
fn blames_a_row(body: Option<&Value>) -> bool {
    let Some(body) = body else { return false };
    let names_one = match body.get("errors") {
        Some(Value::Array(errors)) => !errors.is_empty(),
        Some(Value::Object(errors)) => errors.keys().any(|field| field != "_form"),
        _ => false,
    };
    let class = class_of(Some(body));
    let mut classes = OF_DATABASE.iter().chain(&OF_ROWS).chain(&OF_VALUES);
    names_one
        || body.get("errorCount").and_then(Value::as_u64).is_some_and(|count| count > 0)
        || classes.any(|part| class.contains(part))
}

fn of_refusal(body: Option<&Value>, reason: &str, is_change: bool) -> FailureKind {
    let reason = reason.to_lowercase();
    if reason.contains("does not have permission") {
        FailureKind::Permission
    } else if reason.contains("duplicate key") || reason.contains("unique constraint") {
        FailureKind::Duplicate
    } else if is_argument(body) || reason.contains("is not supported for") || reason.contains("does not exist.") {
        FailureKind::Configuration
    } else if is_of_database(body, &reason) || (is_change && !blames_a_row(body)) {
        FailureKind::Unknown
    } else {
        FailureKind::Invalid
    }
}

fn of_unauthorized(reason: &str) -> FailureKind {
    let reason = reason.to_lowercase();
    if reason.contains("security context") {
        FailureKind::Context
    } else if reason.contains("not ready") || reason.contains("admin-only") || reason.contains("maintenance") {
        FailureKind::Transient
    } else {
        FailureKind::Authentication
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, body: &str, is_change: bool) -> FailureKind {
        let status = StatusCode::from_u16(status).expect("status");
        let body: Option<Value> = serde_json::from_str(body).ok();
        Failure::of_answer(status, body.as_ref(), None, is_change).kind
    }

    #[test]
    fn the_meanings_of_401_are_told_apart() {
        let says = |text: &str| kind(401, &format!("{{\"success\":false,\"exception\":\"{text}\"}}"), true);
        assert_eq!(
            says("The email address and password you entered did not match any accounts on file."),
            FailureKind::Authentication
        );
        assert_eq!(says("This request has an invalid security context."), FailureKind::Context);
        assert_eq!(says("server is not ready"), FailureKind::Transient);
        assert_eq!(says("User does not have permission to perform this operation."), FailureKind::Authentication);
    }

    #[test]
    fn a_500_about_an_argument_is_a_matter_of_configuration_and_any_other_is_in_doubt() {
        let missing = r#"{"exception":"The query 'x' in the schema 'lists' does not exist.","exceptionClass":"java.lang.IllegalArgumentException","success":false}"#;
        assert_eq!(kind(500, missing, true), FailureKind::Configuration);
        let deadlock = r#"{"exception":"deadlock detected","exceptionClass":"org.postgresql.util.PSQLException"}"#;
        assert_eq!(kind(500, deadlock, true), FailureKind::Unknown);
        assert_eq!(kind(500, deadlock, false), FailureKind::Transient);
        assert_eq!(kind(503, "<html>", true), FailureKind::Unknown);
    }

    #[test]
    fn a_failure_of_labkeys_database_is_in_doubt_with_any_status_and_a_value_that_it_refuses_is_not() {
        let says = |class: &str, text: &str| {
            let body = format!(r#"{{"success":false,"exception":"{text}","exceptionClass":"{class}"}}"#);
            assert_ne!(kind(200, &body, false), FailureKind::Unknown, "a question changes nothing");
            kind(200, &body, true)
        };
        for (class, text) in [
            ("org.springframework.dao.DeadlockLoserDataAccessException", "SqlExecutor.execute()"),
            ("org.springframework.jdbc.CannotGetJdbcConnectionException", "Failed to obtain JDBC Connection"),
            ("org.labkey.api.data.RuntimeSQLException", "ERROR: could not serialize access due to concurrent update"),
            ("java.sql.SQLTransientConnectionException", "Connection is not available, request timed out"),
            ("org.postgresql.util.PSQLException", "FATAL: terminating connection due to administrator command"),
            ("", "ERROR: deadlock detected"),
            ("", "No space left on device"),
            ("java.io.UncheckedIOException", "No space left on device"),
            ("java.lang.NullPointerException", "Cannot invoke Container.getId()"),
        ] {
            assert_eq!(says(class, text), FailureKind::Unknown, "{class} {text}");
        }
        for (class, text) in [
            ("org.springframework.dao.DataIntegrityViolationException", "SqlExecutor.execute()"),
            ("org.postgresql.util.PSQLException", "ERROR: value too long for type character varying(4000)"),
            ("org.labkey.api.data.RuntimeSQLException", "ERROR: integer out of range"),
            ("java.lang.NumberFormatException", "x"),
            ("org.apache.commons.beanutils.ConversionException", "x"),
            ("org.labkey.api.query.BatchValidationException", "Missing value for required property: RecordKey"),
        ] {
            assert_eq!(says(class, text), FailureKind::Invalid, "{class} {text}");
        }
    }

    #[test]
    fn a_refusal_with_status_200_is_a_refusal() {
        let merge = r#"{"exception":"MERGE action is not supported for x.","exceptionClass":"java.lang.IllegalArgumentException","success":false}"#;
        assert_eq!(kind(200, merge, true), FailureKind::Configuration);
        assert_eq!(kind(200, r#"{"success":false,"exception":"no such list"}"#, false), FailureKind::Configuration);
        assert_eq!(kind(200, "<html>hello</html>", false), FailureKind::Configuration);
    }

    #[test]
    fn a_refusal_that_names_no_row_and_no_field_is_in_doubt() {
        let says = |more: &str| kind(200, &format!(r#"{{"success":false,"exception":"x"{more}}}"#), true);
        for more in [
            r#","errors":{"RecordKey":"Missing value for required property: RecordKey"}"#,
            r#","errors":[{"exception":"x","errors":{"_form":"x"},"rowNumber":8}],"errorCount":1"#,
            r#","errors":[{"msg":"x","field":"form","message":"x","severity":"Error"}]"#,
            r#","result":[{"command":"insert"}],"errorCount":1"#,
        ] {
            assert_eq!(says(more), FailureKind::Invalid, "{more}");
        }
        for more in ["", r#","errors":{"_form":"No space left on device"}"#, r#","errors":{}"#, r#","errors":[]"#] {
            assert_eq!(says(more), FailureKind::Unknown, "{more}");
        }
        assert_eq!(kind(400, "<html>Bad Request</html>", true), FailureKind::Unknown);
    }

    #[test]
    fn the_words_of_a_refusal_are_kept_and_never_printed_for_debugging() {
        let body: Value = serde_json::from_str(
            r#"{"errors":[{"exception":"Could not convert 'secret'","rowNumber":8}],"exception":"Could not convert 'secret'","success":false}"#,
        )
        .expect("JSON");
        let failure = Failure::of_answer(StatusCode::BAD_REQUEST, Some(&body), None, true);
        assert_eq!(failure.reason, "Could not convert 'secret' (row 8 of the request)");
        assert_eq!(format!("{failure:?}"), "Failure(invalid)");
    }
}
