//! Comma-separated values as tab-separated ones, line by line: line 7 stays line 7.

use std::io::{self, Read};

use crate::dataset::Fault;
use crate::error::Error;
use crate::ingest::decode::Decoder;

/// Reads CSV and hands out TSV.
pub struct CsvToTsv<R: Read> {
    decoder: Decoder<R>,
    converted: Vec<u8>,
    handed_out: usize,
}

impl<R: Read> CsvToTsv<R> {
    /// The lines of that decoder.
    pub const fn new(decoder: Decoder<R>) -> Self {
        Self { decoder, converted: Vec::new(), handed_out: 0 }
    }

    /// Converts the next lines; false at the end.
    fn advance(&mut self) -> Result<bool, Error> {
        self.converted.clear();
        self.handed_out = 0;
        let Some((first_line, text)) = self.decoder.next_block()? else {
            return Ok(false);
        };
        // With a line end behind the last line, a quote that is never closed shows: its cell holds that line end.
        let text_and_end = text.as_bytes().chain(&b"\n"[..]);
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text_and_end);
        let mut record = csv::StringRecord::new();
        let mut line = 0;
        while reader.read_record(&mut record).map_err(|error| Error::Body(error.to_string()))? {
            // A record's position is where the search for it began; blank lines may lie before it, and stay.
            let number = record.position().map_or(line + 1, |start| start.line() + blank_lines(text, start.byte()));
            for _ in line + 1..number {
                self.converted.push(b'\n');
            }
            line = number;
            convert(&record, first_line + number - 1, &mut self.converted)?;
        }
        Ok(true)
    }
}

/// The number of blank lines that `text` has at that byte.
fn blank_lines(text: &str, byte: u64) -> u64 {
    let rest = usize::try_from(byte).ok().and_then(|byte| text.as_bytes().get(byte..)).unwrap_or_default();
    let ends = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
    ends.filter(|byte| **byte == b'\n').count() as u64
}

fn convert(record: &csv::StringRecord, number: u64, out: &mut Vec<u8>) -> Result<(), Error> {
    for (index, cell) in record.iter().enumerate() {
        if cell.contains(['\t', '\n', '\r']) {
            let cell = index + 1;
            let reason = format!(
                "cell {cell} holds a tab or a line end, which only JSON lines can carry, or a quote that is never closed"
            );
            return Err(Error::Faults(vec![Fault::of_line(number, reason)]));
        }
        if index > 0 {
            out.push(b'\t');
        }
        out.extend_from_slice(cell.as_bytes());
    }
    out.push(b'\n');
    Ok(())
}

impl<R: Read> Read for CsvToTsv<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.handed_out == self.converted.len() {
            if !self.advance().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
        let left = &self.converted[self.handed_out..];
        let count = buffer.len().min(left.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.handed_out += count;
        Ok(count)
    }
}
