//! The superuser's password: made once, kept in a file that only its owner can read.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use data_encoding::BASE64URL_NOPAD;

use super::{EmbeddedError, Result};

/// The password kept in `file`, if there is one.
pub fn read(file: &Path) -> Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(password) => Ok(Some(password.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(EmbeddedError::io("read the password", file)(error)),
    }
}

/// Makes a password and keeps it in `file`.
pub fn create(file: &Path) -> Result<String> {
    let password = random_text::<32>().map_err(EmbeddedError::io("make the password", file))?;
    write(file, &password).map_err(EmbeddedError::io("write the password", file))?;
    Ok(password)
}

/// `BYTES` random bytes in letters, digits, `-` and `_`.
pub fn random_text<const BYTES: usize>() -> io::Result<String> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(BASE64URL_NOPAD.encode(&bytes))
}

/// A reader sees the whole password or none, whenever this is interrupted.
fn write(file: &Path, password: &str) -> io::Result<()> {
    let draft = file.with_extension("new");
    if let Some(dir) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let mut opened = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    writeln!(opened, "{password}")?;
    opened.sync_all()?;
    fs::rename(&draft, file)
}
