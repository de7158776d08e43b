//! Several files of the storage as one ZIP, written while they are read. They are compressed already, so they are only
//! laid in. Sizes follow each file and have 64 bits, so neither a file nor the whole has a limit.

use std::io::{self, Write};

use ::zip::write::SimpleFileOptions;
use ::zip::{CompressionMethod, ZipWriter};
use futures_util::StreamExt;
use tokio::runtime::Handle;

use crate::storage::Storage;

/// A file of a ZIP.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name in the ZIP.
    pub name: String,
    /// Its name in the storage.
    pub path: String,
}

/// Writes the ZIP: the work of a blocking thread of the runtime.
///
/// # Errors
/// A storage or an output that fails.
pub fn write(storage: &Storage, entries: &[Entry], output: impl Write) -> io::Result<()> {
    let mut zip = ZipWriter::new_stream(output);
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    for entry in entries {
        zip.start_file(entry.name.as_str(), options)?;
        let mut bytes = Handle::current().block_on(storage.read(&entry.path, None)).map_err(io::Error::other)?;
        while let Some(piece) = Handle::current().block_on(bytes.next()) {
            zip.write_all(&piece?)?;
        }
    }
    zip.finish()?.into_inner().flush()
}
