//! The formats that rows come in, and how the first line tells which it is.

use std::str::FromStr;

use crate::dataset::json;
use crate::error::Error;

/// How the rows of a body are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Tab-separated values, as the tools write them.
    Tsv,
}

impl Format {
    /// Tells the format from the first line that is not blank.
    ///
    /// # Errors
    /// When it is neither.
    pub fn recognise(line: &str) -> Result<Self, Error> {
        if line.contains('\t') && !line.trim_start().starts_with('{') {
            return Ok(Self::Tsv);
        }
        if line.trim_start().starts_with(['{', '[']) || json::is_json(line) {
            return Ok(Self::Jsonl);
        }
        let wanted =
            "gzip, zstd, zlib or plain text with one JSON object a line, or tab-separated values with a header";
        Err(Error::Body(format!("the body is not in a known format: send {wanted}")))
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "jsonl" | "ndjson" => Ok(Self::Jsonl),
            "tsv" => Ok(Self::Tsv),
            _ => Err(Error::parameter("format", "must be jsonl or tsv")),
        }
    }
}
