//! Compressed bytes into blocks of whole lines of UTF-8, with a digest, within limits.
//!
//! The compression is told by its magic bytes: clients in use label one gzip layer as two, or not at all.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::zlib::Zlib;
use crate::error::Error;

/// Decompressed bytes that are looked at together; longer lines make the block grow up to the line limit.
const BLOCK: usize = 256 * 1024;

/// zstd frames may ask for a window of 2^24 bytes (16 MiB; `zstd -19` asks for 8), not for the 2 GiB that the format allows.
const ZSTD_WINDOW_LOG: u32 = 24;

/// How gzip begins.
const GZIP: [u8; 2] = [0x1F, 0x8B];

/// How zstd begins, and how the skippable frames end their first four bytes that `pzstd` begins with.
/// Source: RFC 8878, sections 3.1.1 and 3.1.2.
const ZSTD: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
const ZSTD_SKIPPABLE: [u8; 3] = [0x2A, 0x4D, 0x18];

/// Whether what begins with `magic` is compressed.
#[must_use]
pub fn is_compressed(magic: &[u8]) -> bool {
    magic.starts_with(&GZIP) || is_zstd(magic) || Zlib::<io::Empty>::recognise(magic)
}

fn is_zstd(magic: &[u8]) -> bool {
    magic == ZSTD || matches!(magic, [0x50..=0x5F, rest @ ..] if *rest == ZSTD_SKIPPABLE)
}

/// What the decompressed side of a body may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Decompressed bytes of one body.
    pub decompressed: u64,
    /// Bytes of one line.
    pub line: usize,
}

/// Hands out the text of a body in blocks of whole lines.
pub struct Decoder<R: Read> {
    source: Source<R>,
    digest: Sha256,
    limits: Limits,
    /// Decompressed bytes so far.
    bytes: u64,
    /// Whole lines up to `lines_end`, then the beginning of the next line up to `filled`.
    block: Vec<u8>,
    lines_end: usize,
    filled: usize,
    /// Lines handed out in earlier blocks.
    lines_before: u64,
}

impl<R: Read> Decoder<R> {
    /// A decoder of a body that begins with `magic` (its first four bytes, or fewer if it has no more).
    ///
    /// # Errors
    /// When the decompressor cannot be set up.
    pub fn new(magic: &[u8], body: R, limits: Limits) -> Result<Self, Error> {
        Ok(Self {
            source: Source::open(magic, body)?,
            digest: Sha256::new(),
            limits,
            bytes: 0,
            block: vec![0; BLOCK],
            lines_end: 0,
            filled: 0,
            lines_before: 0,
        })
    }

    /// The next whole lines and the number of the first of them, or `None` at the end of the body.
    ///
    /// # Errors
    /// A damaged or incomplete body, a limit, or text that is not UTF-8.
    pub fn next_block(&mut self) -> Result<Option<(u64, &str)>, Error> {
        let Some((first_line, text)) = self.next_text()? else { return Ok(None) };
        // Windows tools begin a file with a byte order mark.
        let text = if first_line == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        Ok(Some((first_line, text)))
    }

    /// The same with all that is digested, a byte order mark too.
    ///
    /// # Errors
    /// As those of [`Decoder::next_block`].
    pub fn next_text(&mut self) -> Result<Option<(u64, &str)>, Error> {
        let first_line = self.lines_before + 1;
        self.block.copy_within(self.lines_end..self.filled, 0);
        self.filled -= self.lines_end;
        self.lines_end = 0;
        if !self.fill()? {
            return Ok(None);
        }
        let lines = &self.block[..self.lines_end];
        let text = simdutf8::basic::from_utf8(lines).map_err(|_| not_utf8(lines, first_line))?;
        self.lines_before += memchr::memchr_iter(b'\n', lines).count() as u64;
        Ok(Some((first_line, text)))
    }

    /// Reads until the block holds enough whole lines or the body ends; false when nothing is left.
    fn fill(&mut self) -> Result<bool, Error> {
        loop {
            if self.filled == self.block.len() {
                self.block.resize(self.block.len() * 2, 0);
            }
            let count = self.source.read(&mut self.block[self.filled..])?;
            if count == 0 {
                self.lines_end = self.filled;
                return Ok(self.filled > 0);
            }
            let new = &self.block[self.filled..self.filled + count];
            self.digest.update(new);
            if let Some(newline) = memchr::memrchr(b'\n', new) {
                self.lines_end = self.filled + newline + 1;
            }
            self.filled += count;
            self.check_limits(count as u64)?;
            if self.lines_end > 0 && self.filled >= BLOCK {
                return Ok(true);
            }
        }
    }

    fn check_limits(&mut self, new_bytes: u64) -> Result<(), Error> {
        self.bytes += new_bytes;
        if self.bytes > self.limits.decompressed {
            let limit = bytesize::ByteSize(self.limits.decompressed).to_string();
            return Err(Error::TooLarge { what: "decompressed body", limit, key: "ingest.max_decompressed" });
        }
        if self.filled - self.lines_end > self.limits.line {
            return Err(self.limits.line_too_long());
        }
        Ok(())
    }

    /// The number of decompressed bytes and their SHA-256.
    #[must_use]
    pub fn finish(self) -> (u64, [u8; 32]) {
        (self.bytes, self.digest.finalize().into())
    }
}

impl Limits {
    /// What is said of a line beyond the limit.
    #[must_use]
    pub fn line_too_long(&self) -> Error {
        let limit = bytesize::ByteSize(self.line as u64).to_string();
        Error::TooLarge { what: "longest line", limit, key: "ingest.max_line" }
    }
}

enum Source<R: Read> {
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zlib(Box<Zlib<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<R>>>),
    Plain(R),
}

impl<R: Read> Source<R> {
    fn open(magic: &[u8], body: R) -> Result<Self, Error> {
        let buffered = |body| BufReader::with_capacity(64 * 1024, body);
        if magic.starts_with(&GZIP) {
            return Ok(Self::Gzip(Box::new(MultiGzDecoder::new(buffered(body)))));
        }
        if Zlib::<R>::recognise(magic) {
            return Ok(Self::Zlib(Box::new(Zlib::new(buffered(body)))));
        }
        if is_zstd(magic) {
            let internal = |error: io::Error| Error::Internal(format!("zstd cannot be set up: {error}"));
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered(body)).map_err(internal)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(internal)?;
            return Ok(Self::Zstd(Box::new(decoder)));
        }
        Ok(Self::Plain(body))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let (read, name) = match self {
            Self::Gzip(decoder) => (decoder.read(buffer), "gzip"),
            Self::Zlib(decoder) => (decoder.read(buffer), "zlib"),
            Self::Zstd(decoder) => (decoder.read(buffer), "zstd"),
            Self::Plain(body) => (body.read(buffer), "plain"),
        };
        read.map_err(|error| explain(error, name))
    }
}

/// The body's own fault where there is one, else what the decompressor complains of.
fn explain(error: io::Error, name: &str) -> Error {
    let error = match error.downcast::<Error>() {
        Ok(fault) => return fault,
        Err(error) => error,
    };
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Error::Body(format!("the {name} data are truncated: the file is incomplete, send all of it"));
    }
    let garbage = "damaged, or something else follows them";
    Error::Body(format!("the {name} data are {garbage} ({error})"))
}

fn not_utf8(lines: &[u8], first_line: u64) -> Error {
    let valid = simdutf8::compat::from_utf8(lines).err().map_or(0, |error| error.valid_up_to());
    let line = first_line + memchr::memchr_iter(b'\n', &lines[..valid]).count() as u64;
    Error::Body(format!("line {line} is not UTF-8 text; bodies are gzip, zlib, zstd or plain text in UTF-8"))
}
