//! The bytes of a request body as a blocking reader for the decoding thread, and that thread's turn on the processor.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::error::Error;

/// What the connection hands to the decoder: bytes, the end of the body (`None`), or why there are no more.
pub type Part = Result<Option<Bytes>, Error>;

/// Parts of a body that may wait for the decoder; hyper's reads are at most about 400 KiB each.
pub const PARTS_IN_FLIGHT: usize = 8;

/// A place among the uploads that are decoded and copied at the same time.
///
/// More of them than cores lose speed, so places are few; but a client that sends slowly must not hold one while
/// nothing arrives. The reader of its body leaves when it has to wait, and comes back when there is work. The upload
/// keeps its place until this is dropped.
pub struct Turn {
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    place: Option<OwnedSemaphorePermit>,
    /// Whether the upload does without a place, because it waits for a connection.
    stands_aside: bool,
}

impl State {
    const fn needs_place(&self) -> bool {
        self.place.is_none() && !self.stands_aside
    }
}

/// Until this is dropped, the upload does without a place: see [`Turn::stand_aside`].
pub struct StandingAside<'a>(&'a Turn);

impl Drop for StandingAside<'_> {
    fn drop(&mut self) {
        self.0.state().stands_aside = false;
    }
}

impl Turn {
    /// A turn that is not held yet.
    #[must_use]
    pub fn new(places: Arc<Semaphore>) -> Self {
        Self { places, state: Mutex::default() }
    }

    /// Waits for a place, unless it is held or done without.
    pub async fn enter(&self) {
        if self.state().needs_place() {
            let place = Arc::clone(&self.places).acquire_owned().await.ok();
            let mut state = self.state();
            if state.needs_place() {
                state.place = place;
            }
        }
    }

    /// Gives the place to another upload.
    pub fn leave(&self) {
        self.state().place = None;
    }

    /// Gives the place to another upload and takes none, while what decodes goes on for as long as its batches are taken
    /// or kept. With a place it would wait for a connection that only uploads which wait for a place can give.
    pub fn stand_aside(&self) -> StandingAside<'_> {
        *self.state() = State { place: None, stands_aside: true };
        StandingAside(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a body that arrives in parts. Must be used on a blocking thread of a tokio runtime. An [`io::Error`] of it
/// carries an [`enum@Error`].
pub struct BodyReader {
    /// What had arrived before decoding began.
    ahead: Bytes,
    /// What arrives meanwhile; `None` once the body has ended.
    parts: Option<mpsc::Receiver<Part>>,
    current: Bytes,
    turn: Arc<Turn>,
    limit: u64,
    read: u64,
}

impl BodyReader {
    /// A reader of `ahead` and then of `parts`, refusing more than `limit` bytes.
    #[must_use]
    pub fn new(ahead: Bytes, parts: Option<mpsc::Receiver<Part>>, turn: Arc<Turn>, limit: u64) -> Self {
        Self { ahead, parts, current: Bytes::new(), turn, limit, read: 0 }
    }

    /// All of the body, in this upload's turn, unless some of it is still to come or it is larger than it may be.
    pub fn whole(&self) -> Option<Bytes> {
        let is_whole = self.parts.is_none() && self.ahead.len() as u64 <= self.limit;
        is_whole.then(|| {
            Handle::current().block_on(self.turn.enter());
            self.ahead.clone()
        })
    }

    /// The next part, or `None` at the end of the body.
    fn next(&mut self) -> Result<Option<Bytes>, Error> {
        Handle::current().block_on(self.turn.enter());
        if !self.ahead.is_empty() {
            return Ok(Some(std::mem::take(&mut self.ahead)));
        }
        let Some(parts) = &mut self.parts else {
            return Ok(None);
        };
        let part = match parts.try_recv() {
            Ok(part) => Some(part),
            Err(mpsc::error::TryRecvError::Disconnected) => None,
            Err(mpsc::error::TryRecvError::Empty) => {
                self.turn.leave();
                let part = parts.blocking_recv();
                Handle::current().block_on(self.turn.enter());
                part
            }
        };
        match part {
            Some(Ok(Some(bytes))) => Ok(Some(bytes)),
            Some(Ok(None)) => {
                self.parts = None;
                Ok(None)
            }
            Some(Err(error)) => Err(error),
            // The sender vanished without saying that the body is complete.
            None => Err(Error::Disconnected),
        }
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.next() {
                Ok(Some(part)) => {
                    self.read += part.len() as u64;
                    if self.read > self.limit {
                        let limit = bytesize::ByteSize(self.limit).to_string();
                        let error = Error::TooLarge { what: "body", limit, key: "ingest.max_body" };
                        return Err(io::Error::other(error));
                    }
                    self.current = part;
                }
                Ok(None) => return Ok(0),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
