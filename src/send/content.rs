//! What is in a file: found out from its first bytes, and read again for each try.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::csv::CsvToTsv;
use crate::error::Error;
use crate::ingest::decode::{self, Decoder, Limits};
use crate::ingest::format::Format;

/// Longer lines are no result of any tool; whether a shorter one is too long, the service decides.
const MAX_LINE: usize = 64 * 1024 * 1024;

/// The service alone limits how much there may be.
pub const LIMITS: Limits = Limits { decompressed: u64::MAX, line: MAX_LINE };

/// The argument that stands for standard input.
pub const STDIN: &str = "-";

/// One opened file. It stays the same file if another takes its name.
#[derive(Debug)]
pub struct Content {
    /// Its name as it was given.
    pub name: String,
    /// Its size as it is.
    pub bytes: u64,
    /// The first line that is not blank, once decompressed; absent if there is none, or none that can be read.
    pub first_line: Option<String>,
    file: Arc<File>,
    magic: Vec<u8>,
    /// Comma-separated values, which the service does not take: they are sent tab-separated.
    is_csv: bool,
}

impl Content {
    /// Opens a file, or standard input. What can be read only once is laid into a temporary file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(name: &str) -> io::Result<Self> {
        let file = if name == STDIN { spool(io::stdin().lock())? } else { open_path(name)? };
        let bytes = file.metadata()?.len();
        let file = Arc::new(file);
        let mut magic = Vec::new();
        Reading { file: Arc::clone(&file), offset: 0 }.take(4).read_to_end(&mut magic)?;
        let name = if name == STDIN { "stdin" } else { name }.to_owned();
        let mut content = Self { name, bytes, first_line: None, file, magic, is_csv: false };
        content.first_line = content.peek();
        content.is_csv =
            content.first_line.as_ref().is_some_and(|line| line.contains(',') && Format::recognise(line).is_err());
        Ok(content)
    }

    /// Whether these are comma-separated values.
    #[must_use]
    pub const fn is_csv(&self) -> bool {
        self.is_csv
    }

    /// The rows as the service takes them, possibly compressed, with the first four bytes.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn rows(&self) -> Result<(&[u8], Box<dyn Read + Send>), Error> {
        if self.is_csv {
            return Ok((&[], Box::new(CsvToTsv::new(self.decoder()?))));
        }
        Ok((&self.magic, Box::new(self.raw())))
    }

    /// Writes the body of a request to `out`: the rows, compressed if they are not.
    ///
    /// # Errors
    /// When they cannot be read, or `out` takes no more.
    pub fn write_body(&self, out: impl Write) -> io::Result<()> {
        let (magic, mut rows) = self.rows().map_err(io::Error::other)?;
        let mut out = io::BufWriter::with_capacity(64 * 1024, out);
        if decode::is_compressed(magic) {
            io::copy(&mut rows, &mut out)?;
            return out.flush();
        }
        let mut gzip = GzEncoder::new(out, Compression::default());
        io::copy(&mut rows, &mut gzip)?;
        gzip.finish()?.flush()
    }

    fn raw(&self) -> Reading {
        Reading { file: Arc::clone(&self.file), offset: 0 }
    }

    /// The text as it is, decompressed.
    ///
    /// # Errors
    /// When the decompressor cannot be set up.
    pub fn decoder(&self) -> Result<Decoder<Reading>, Error> {
        Decoder::new(&self.magic, self.raw(), LIMITS)
    }

    /// Whether more than one line is not blank.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn has_second_line(&self) -> Result<bool, Error> {
        let mut decoder = self.decoder()?;
        let mut lines = 0;
        while let Some((_, text)) = decoder.next_block()? {
            lines += text.lines().filter(|line| !line.trim_ascii().is_empty()).take(2).count();
            if lines > 1 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The first line that is not blank, if it is among the first and can be read; the check says why if not.
    fn peek(&self) -> Option<String> {
        let mut decoder = self.decoder().ok()?;
        let (_, text) = decoder.next_block().ok()??;
        text.lines().find(|line| !line.trim_ascii().is_empty()).map(str::to_owned)
    }
}

fn open_path(name: &str) -> io::Result<File> {
    let file = File::open(name)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::Error::other("it is a folder"));
    }
    if kind.is_file() { Ok(file) } else { spool(file) }
}

fn spool(mut source: impl Read) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut source, &mut file)?;
    Ok(file)
}

/// A reader of its own over a shared file: tries may overlap for a moment.
pub struct Reading {
    file: Arc<File>,
    offset: u64,
}

impl Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}
