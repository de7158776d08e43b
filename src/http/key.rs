//! The key by which a client names a file or a piece of work, so that sending it twice is as good as once.

use axum::http::HeaderMap;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::ingest::key::{self, MAX};

/// The header's name.
pub const HEADER: &str = "Idempotency-Key";

/// The key in the `Idempotency-Key` header, if there is one.
///
/// # Errors
/// [`Error::Faults`] when it is none that [`check`] allows, or one of several.
pub fn of(headers: &HeaderMap) -> Result<Option<&str>> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Error::parameter(HEADER, "is given a second time"));
    }
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| Error::parameter(HEADER, "must be UTF-8"))?;
    check(text, HEADER).map(Some)
}

/// Lets a key through that [`key::check`] allows; `name` is that of the parameter it came in.
///
/// # Errors
/// [`Error::Faults`] when it is another.
pub fn check<'a>(key: &'a str, name: &str) -> Result<&'a str> {
    key::check(key).map(|()| key).map_err(|reason| Error::parameter(name, reason))
}

/// The JSON schema of what [`check`] allows.
pub fn schema() -> Value {
    // No control characters, and not only spaces.
    let pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$";
    json!({"type": "string", "minLength": 1, "maxLength": MAX, "pattern": pattern})
}
