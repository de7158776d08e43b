//! The key by which a client names a file or a piece of work, so that sending it twice is as good as once.

use axum::http::HeaderMap;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The header's name.
pub const HEADER: &str = "Idempotency-Key";

/// The longest key, in characters.
const MAX: usize = 512;

/// The key in the `Idempotency-Key` header, if there is one.
///
/// # Errors
/// [`Error::Faults`] when it is none that [`check`] allows.
pub fn of(headers: &HeaderMap) -> Result<Option<&str>> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| Error::parameter(HEADER, "must be UTF-8"))?;
    check(text, HEADER).map(Some)
}

/// Lets a key through that can be stored and told from others by eye; `name` is that of the parameter it came in.
///
/// # Errors
/// [`Error::Faults`] when it is blank, too long, or has control characters.
pub fn check<'a>(key: &'a str, name: &str) -> Result<&'a str> {
    let good = !key.trim().is_empty() && key.chars().count() <= MAX && !key.chars().any(char::is_control);
    if good {
        return Ok(key);
    }
    Err(Error::parameter(name, format!("must be 1 to {MAX} characters, none of them a control character")))
}

/// The JSON schema of what [`check`] allows.
pub fn schema() -> Value {
    // No control characters, and not only spaces.
    let pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$";
    json!({"type": "string", "minLength": 1, "maxLength": MAX, "pattern": pattern})
}
