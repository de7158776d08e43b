//! Secrets that the service makes for itself, each in a file that only its owner can read.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// What access tokens begin with, so that people and scanners recognise them.
pub const TOKEN_PREFIX: &str = "nvd_";

/// The file, among the generated secrets, of the token that a service on a loopback address makes for itself.
pub const GENERATED_TOKEN: &str = "bearer_token";

/// A new secret: `prefix` and 32 random bytes in base64url.
///
/// # Errors
/// When the system has no randomness.
pub fn generate(prefix: &str) -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::Environment(format!("the system has no randomness: {error}")))?;
    Ok(format!("{prefix}{}", data_encoding::BASE64URL_NOPAD.encode(&bytes)))
}

/// SHA-256 of a token: what the configuration holds in its place.
#[must_use]
pub fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The secret in `file`, made at the first call.
///
/// # Errors
/// A file that cannot be read or written.
pub fn keep(file: &Path, prefix: &str) -> Result<String> {
    let fault =
        |error: std::io::Error| Error::Environment(format!("cannot keep a secret in {}: {error}", file.display()));
    match fs::read_to_string(file) {
        Ok(secret) if !secret.trim().is_empty() => return Ok(secret.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(fault(error)),
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(fault)?;
    }
    let secret = generate(prefix)?;
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file).map_err(fault)?;
    writeln!(out, "{secret}").and_then(|()| out.sync_all()).map_err(fault)?;
    Ok(secret)
}
