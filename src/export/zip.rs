//! Several files of the storage as one ZIP, written while they are read. They are compressed already, so they are only
//! laid in. Sizes follow each file and have 64 bits, so neither a file nor the whole has a limit.

use std::cell::Cell;
use std::io::{self, Write};

use ::zip::write::{SimpleFileOptions, StreamWriter};
use ::zip::{CompressionMethod, ZipWriter};
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::encode::Stats;
use super::files::{Sink, Written};
use super::upload::{self, FileNames};
use super::{PIECES_IN_FLIGHT, Target};
use crate::db::jobs::Lease;
use crate::error::{Error, Result};
use crate::storage::Storage;

/// A file of a ZIP.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name in the ZIP.
    pub name: String,
    /// Its name in the storage.
    pub path: String,
}

/// Writes the ZIP `stem.zip` into the storage.
///
/// # Errors
/// A storage that fails.
pub async fn store(target: &Target<'_>, stem: &str, entries: Vec<Entry>, lease: &Lease) -> Result<Written> {
    let (to_uploader, mut output) = mpsc::channel(PIECES_IN_FLIGHT);
    let storage = target.storage.clone();
    let writing = tokio::task::spawn_blocking(move || {
        let mut sink = Sink::new(to_uploader);
        let fault = |source| object_store::Error::Generic { store: "zip", source: Box::new(source) };
        write(&storage, &entries, &mut sink).map_err(fault)?;
        sink.end(Stats::default())
    });
    let names = FileNames { stem, extension: "zip".to_owned() };
    let uploaded = upload::run(target, &names, &mut output, lease).await;
    if matches!(uploaded, Err(Error::Cancelled)) {
        return Err(Error::Cancelled);
    }
    // If it still works, it finds that nobody listens, and ends.
    drop(output);
    let ended = writing.await.map_err(|error| Error::Internal(format!("archiving failed: {error}")))?;
    let mut files = match (uploaded, ended) {
        // Who finds the other gone says less than who was the first to go.
        (Ok(_) | Err(Error::Internal(_)), Err(error)) => return Err(error),
        (uploaded, _) => uploaded?,
    };
    let (_, written) = files.pop().ok_or_else(|| Error::Internal("an archive was not written".into()))?;
    Ok(written)
}

/// Writes the ZIP: the work of a blocking thread of the runtime.
///
/// # Errors
/// A storage or an output that fails.
pub fn write(storage: &Storage, entries: &[Entry], output: impl Write) -> io::Result<()> {
    let is_broken = Cell::new(false);
    let mut zip = ZipWriter::new_stream(Output { inner: output, is_broken: &is_broken });
    let filled = fill(&mut zip, storage, entries);
    if filled.is_err() {
        // Else the end that it writes when it is dropped would make a part look like the whole.
        is_broken.set(true);
        return filled;
    }
    zip.finish()?.into_inner().inner.flush()
}

fn fill<W: Write>(zip: &mut ZipWriter<StreamWriter<W>>, storage: &Storage, entries: &[Entry]) -> io::Result<()> {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    for entry in entries {
        zip.start_file(entry.name.as_str(), options)?;
        let mut bytes = Handle::current().block_on(storage.read(&entry.path, None)).map_err(io::Error::other)?;
        while let Some(piece) = Handle::current().block_on(bytes.next()) {
            zip.write_all(&piece?)?;
        }
    }
    Ok(())
}

/// What takes the bytes, until it is broken: then nothing more reaches it.
struct Output<'b, W> {
    inner: W,
    is_broken: &'b Cell<bool>,
}

impl<W: Write> Write for Output<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_broken.get() { Ok(bytes.len()) } else { self.inner.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.is_broken.get() { Ok(()) } else { self.inner.flush() }
    }
}
