//! Parts into files, in order: the work of one blocking thread, whose bytes an uploader takes away.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc};
use zstd::zstd_safe::CParameter;

use super::backlog::Backlog;
use super::encode::{Body, Part, Stats};
use super::parquet::{File, Layout};
use super::spec::{Compression, Format, Plan};
use super::text;
use crate::error::{Error, Result};

/// Bytes that travel to the uploader together.
const PIECE: usize = 512 * 1024;

/// The last level of Zstandard that keeps to a window of 8 MiB by itself, and the logarithm of that window.
const LAST_LEVEL: i32 = 19;
const WINDOW_LOG: u32 = 23;

/// What encoders hand over.
pub enum Encoded {
    /// A part of that range of the table, and the bytes that it takes up of the backlog.
    Part(usize, Part, usize),
    /// The range has no more parts.
    End(usize),
}

/// What the uploader is handed.
pub enum Output {
    /// More of the file under way.
    Bytes(Bytes),
    /// The file is complete.
    End(Written),
}

/// A file as it was written.
#[derive(Debug, Clone)]
pub struct Written {
    /// Its size.
    pub bytes: u64,
    /// The digest of its bytes.
    pub sha256: [u8; 32],
    /// What is known of its rows.
    pub stats: Stats,
}

/// Writes the parts of all ranges in the order of the table, each file up to `file_size` bytes and a part more.
///
/// `tickets` gets one back for each range that is written: readers take one for each range that they begin, so that
/// few ranges wait in memory for their turn; their bytes are bounded by `backlog`. Where order does not matter, all is one range.
///
/// # Errors
/// A fault of encoding, or an uploader that has given up.
pub fn write(
    plan: &Plan,
    layout: &Layout,
    file_size: u64,
    mut encoded: mpsc::Receiver<Encoded>,
    (tickets, backlog): (Option<&Semaphore>, &Backlog),
    output: &mpsc::Sender<Output>,
) -> Result<()> {
    let mut files = Files { plan, layout, file_size, output, open: None, count: 0 };
    let mut waiting: BTreeMap<usize, (Vec<(Part, usize)>, bool)> = BTreeMap::new();
    let mut current = 0;
    while let Some(message) = encoded.blocking_recv() {
        match message {
            Encoded::Part(range, part, held) => waiting.entry(range).or_default().0.push((part, held)),
            Encoded::End(range) => waiting.entry(range).or_default().1 = true,
        }
        while let Some((parts, ended)) = waiting.get_mut(&current) {
            for (part, held) in parts.drain(..) {
                files.append(part)?;
                backlog.leave(held);
            }
            let ended = *ended;
            waiting.remove(&current);
            if !ended {
                break;
            }
            current += 1;
            backlog.advance();
            tickets.inspect(|tickets| tickets.add_permits(1));
        }
    }
    // An encoder that failed leaves a gap; its own error says why.
    if !waiting.is_empty() {
        return Err(Error::Internal("a part of the table was not read".into()));
    }
    files.finish()
}

struct Files<'w> {
    plan: &'w Plan,
    layout: &'w Layout,
    file_size: u64,
    output: &'w mpsc::Sender<Output>,
    open: Option<Open>,
    count: usize,
}

/// The file under way.
struct Open {
    kind: OpenKind,
    stats: Stats,
}

enum OpenKind {
    Parquet(Box<File<Sink>>),
    Text(TextFile),
}

/// A text file under way.
enum TextFile {
    /// Of pieces that are as they shall be.
    Pieces(Sink),
    /// Of one frame of Zstandard.
    Frame(Box<zstd::stream::write::Encoder<'static, Sink>>),
}

impl TextFile {
    fn new(plan: &Plan, sink: Sink) -> Result<Self> {
        if plan.compression != Compression::Zstd {
            return Ok(Self::Pieces(sink));
        }
        let encoder = zstd::stream::write::Encoder::new(sink, plan.level).and_then(|mut encoder| {
            // Browsers and others refuse the larger windows of the highest levels, whose tables take half a gigabyte.
            if plan.level > LAST_LEVEL {
                encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
                encoder.set_parameter(CParameter::ChainLog(WINDOW_LOG + 1))?;
                encoder.set_parameter(CParameter::HashLog(WINDOW_LOG))?;
            }
            Ok(encoder)
        });
        Ok(Self::Frame(Box::new(encoder.map_err(fault)?)))
    }

    /// Adds a piece that [`text::compress`] made.
    fn append(&mut self, piece: &[u8]) -> Result<()> {
        match self {
            Self::Pieces(sink) => sink.write_all(piece),
            Self::Frame(encoder) => encoder.write_all(piece),
        }
        .map_err(fault)
    }

    /// What is written so far.
    fn bytes(&self) -> u64 {
        match self {
            Self::Pieces(sink) => sink.bytes,
            Self::Frame(encoder) => encoder.get_ref().bytes,
        }
    }

    fn finish(self) -> Result<Sink> {
        match self {
            Self::Pieces(sink) => Ok(sink),
            Self::Frame(encoder) => encoder.finish().map_err(fault),
        }
    }
}

impl Files<'_> {
    fn append(&mut self, part: Part) -> Result<()> {
        let plan = self.plan;
        let open = self.open()?;
        let is_first = open.stats.rows == 0;
        open.stats.add(&part.stats);
        let bytes = match (&mut open.kind, part.body) {
            (OpenKind::Parquet(file), Body::RowGroup(columns)) => {
                file.append(columns)?;
                file.bytes()
            }
            (OpenKind::Text(file), Body::Text(text)) => {
                let between = text::between(plan.format);
                if !is_first && !between.is_empty() {
                    file.append(&text::compress(plan, between.to_vec())?)?;
                }
                file.append(&text)?;
                file.bytes()
            }
            _ => return Err(Error::Internal("a part of another format".into())),
        };
        if bytes >= self.file_size { self.close() } else { Ok(()) }
    }

    fn open(&mut self) -> Result<&mut Open> {
        if self.open.is_none() {
            let sink = Sink::new(self.output.clone());
            let kind = if self.plan.format == Format::Parquet {
                OpenKind::Parquet(Box::new(self.layout.file(sink)?))
            } else {
                let mut file = TextFile::new(self.plan, sink)?;
                let beginning = text::beginning(self.plan);
                if !beginning.is_empty() {
                    file.append(&text::compress(self.plan, beginning)?)?;
                }
                OpenKind::Text(file)
            };
            self.open = Some(Open { kind, stats: Stats::default() });
            self.count += 1;
        }
        self.open.as_mut().ok_or_else(|| Error::Internal("no file is open".into()))
    }

    fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let sink = match open.kind {
            OpenKind::Parquet(file) => file.finish(open.stats.rows)?,
            OpenKind::Text(mut file) => {
                let end = text::end(self.plan.format, open.stats.rows);
                // An empty file is no gzip file: one piece at least.
                if !end.is_empty() || file.bytes() == 0 {
                    file.append(&text::compress(self.plan, end.to_vec())?)?;
                }
                file.finish()?
            }
        };
        sink.end(open.stats)
    }

    /// Closes the last file. An empty table gives one valid empty file.
    fn finish(mut self) -> Result<()> {
        if self.count == 0 {
            self.open()?;
        }
        self.close()
    }
}

/// Takes the bytes of one file, digests them, and hands them to the uploader.
pub struct Sink {
    output: mpsc::Sender<Output>,
    buffer: Vec<u8>,
    digest: Sha256,
    bytes: u64,
}

impl Sink {
    /// A file of which nothing is written yet.
    #[must_use]
    pub fn new(output: mpsc::Sender<Output>) -> Self {
        Self { output, buffer: Vec::with_capacity(PIECE), digest: Sha256::new(), bytes: 0 }
    }

    fn hand_over(&mut self) -> io::Result<()> {
        let bytes = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE)));
        self.output.blocking_send(Output::Bytes(bytes)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Ends the file, and says what is known of its rows.
    ///
    /// # Errors
    /// An uploader that has given up.
    pub fn end(mut self, stats: Stats) -> Result<()> {
        self.hand_over().map_err(|_| gone())?;
        let written = Written { bytes: self.bytes, sha256: self.digest.finalize().into(), stats };
        self.output.blocking_send(Output::End(written)).map_err(|_| gone())
    }
}

/// Why text could not be written.
fn fault(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::BrokenPipe { gone() } else { text::fault(&error) }
}

fn gone() -> Error {
    Error::Internal("the upload ended before the file".into())
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.hand_over()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The number of ranges that may be read before the first of them is written.
#[must_use]
pub fn tickets(readers: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(readers + 1))
}
