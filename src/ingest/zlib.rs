//! zlib streams (RFC 1950), which R's `memCompress(type = "gzip")` makes. One body is one stream: its end must be there,
//! and nothing after it.

use std::io::{self, BufRead, BufReader, Read};

use flate2::{Decompress, FlushDecompress, Status};

/// Decompresses a stream.
pub struct Zlib<R: Read> {
    body: BufReader<R>,
    inflate: Decompress,
    has_ended: bool,
}

impl<R: Read> Zlib<R> {
    /// Whether a body that begins with `magic` is such a stream: its method, its window, and a level of compression.
    #[must_use]
    pub fn recognise(magic: &[u8]) -> bool {
        matches!(magic, [0x78, 0x01 | 0x5E | 0x9C | 0xDA, ..])
    }

    /// A decompressor of `body`.
    pub fn new(body: BufReader<R>) -> Self {
        Self { body, inflate: Decompress::new(true), has_ended: false }
    }
}

impl<R: Read> Read for Zlib<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let input = self.body.fill_buf()?;
            if self.has_ended {
                let rest = if input.is_empty() { Ok(0) } else { Err(io::ErrorKind::InvalidData.into()) };
                return rest;
            }
            let is_end_of_body = input.is_empty();
            let (used, made) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self.inflate.decompress(input, buffer, FlushDecompress::None).map_err(io::Error::other)?;
            let count = |since, now: u64| usize::try_from(now - since).unwrap_or(usize::MAX);
            self.body.consume(count(used, self.inflate.total_in()));
            self.has_ended = status == Status::StreamEnd;
            let made = count(made, self.inflate.total_out());
            if made > 0 || buffer.is_empty() {
                return Ok(made);
            }
            if is_end_of_body && !self.has_ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
