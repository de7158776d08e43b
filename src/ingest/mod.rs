//! Body -> rows: one result file becomes one submission, in one transaction, or nothing at all.
//!
//! The connection hands over parts of the body ([`body`]); a blocking thread decompresses, parses and encodes them
//! ([`gunzip`], [`decode`], [`rows`], [`copy`]) while COPY runs beside it ([`store`]). Bounded channels lie between the three.

pub mod body;
mod content;
pub mod copy;
pub mod decode;
pub mod format;
mod gunzip;
pub mod key;
pub mod rows;
mod store;
mod zlib;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;

use crate::app::App;
use crate::dataset::Dataset;
use crate::dataset::params::Params;
use crate::db::submissions::Submission;
use crate::error::{Error, Result};
use crate::telemetry;
use body::{PARTS_IN_FLIGHT, Part};
use format::Format;

/// Bytes of a body that are collected before it takes a place and a connection: a usual result file fits, so that a
/// slow client holds neither.
const READ_AHEAD: usize = 1024 * 1024;

/// What a client asks to be taken in.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whose rows the body holds.
    pub dataset: Arc<Dataset>,
    /// The client's key; without one the content is the key.
    pub key: Option<String>,
    /// Values for columns that the rows lack.
    pub params: Params,
    /// The format, when the client named it.
    pub format: Option<Format>,
    /// Whether other content under the same key takes the place of what is there.
    pub replace: bool,
    /// The name of the access token.
    pub client: String,
}

/// A stored submission, and whether it was there before.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// What is stored.
    pub submission: Submission,
    /// Whether an earlier request had stored it.
    pub replayed: bool,
}

/// Takes in one body. Nothing is stored unless the whole of it is.
///
/// A client that goes away before the end of its body ends it with an error, and nothing is stored.
///
/// # Errors
/// Faults of the body, a conflict of keys, too many waiting uploads, an unreachable database.
pub async fn ingest<S>(app: &App, request: Request, body: S) -> Result<Receipt>
where
    S: Stream<Item = Result<Bytes>> + Send + Unpin,
{
    let _queued = Arc::clone(&app.ingest.queue)
        .try_acquire_owned()
        .map_err(|_| Error::Busy { what: "too many uploads are waiting", retry_after: Duration::from_secs(10) })?;
    let dataset = request.dataset.name.clone();
    let started = std::time::Instant::now();
    let result = take_in(app, request, body).await;
    telemetry::ingested(&dataset, &result, started.elapsed());
    result
}

async fn take_in<S>(app: &App, request: Request, body: S) -> Result<Receipt>
where
    S: Stream<Item = Result<Bytes>> + Send + Unpin,
{
    let mut body = Incoming(body);
    let (ahead, complete) = body.read_ahead(READ_AHEAD).await?;
    let (sender, parts) = mpsc::channel::<Part>(PARTS_IN_FLIGHT);
    let parts = (!complete).then_some(parts);
    // A task of its own: the rest of the body is received on another core than it is stored from.
    let storing = tokio::spawn(store::store(app.clone(), request, ahead, parts));
    if !complete {
        body.forward(sender).await;
    }
    storing.await.map_err(|error| Error::Internal(format!("storing a body failed: {error}")))?
}

/// A body on its way in.
struct Incoming<S>(S);

impl<S: Stream<Item = Result<Bytes>> + Unpin> Incoming<S> {
    /// The next part, or `None` at the end.
    async fn next(&mut self) -> Part {
        self.0.next().await.transpose()
    }

    /// Collects up to `limit` bytes; the flag says whether that is the whole body. They are copied, for each part, be it of
    /// one byte, holds all of the buffer that it was read into.
    async fn read_ahead(&mut self, limit: usize) -> Result<(Bytes, bool)> {
        let mut ahead = BytesMut::new();
        while ahead.len() < limit {
            let Some(part) = self.next().await? else {
                return Ok((ahead.freeze(), true));
            };
            ahead.extend_from_slice(&part);
        }
        Ok((ahead.freeze(), false))
    }

    /// Hands over the rest of the body until it ends or nobody listens any more.
    async fn forward(&mut self, sender: mpsc::Sender<Part>) {
        loop {
            let part = self.next().await;
            let last = !matches!(part, Ok(Some(_)));
            if sender.send(part).await.is_err() || last {
                return;
            }
        }
    }
}

impl Receipt {
    /// The receipt of what this request stored.
    const fn stored(submission: Submission) -> Self {
        Self { submission, replayed: false }
    }

    /// The receipt of what an earlier request stored.
    const fn replayed(submission: Submission) -> Self {
        Self { submission, replayed: true }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A buffer of which a client's small part is a small part.
    struct Buffer(Arc<AtomicUsize>, [u8; 4096]);

    impl AsRef<[u8]> for Buffer {
        fn as_ref(&self) -> &[u8] {
            &self.1
        }
    }

    impl Drop for Buffer {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn what_is_read_ahead_holds_no_buffers_of_the_connection() {
        let held = Arc::new(AtomicUsize::new(0));
        let parts = (0..100_u8).map(|byte| {
            held.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::from_owner(Buffer(Arc::clone(&held), [byte; 4096])).slice(..1))
        });
        let (ahead, complete) =
            Incoming(futures_util::stream::iter(parts)).read_ahead(READ_AHEAD).await.expect("parts");
        assert_eq!((ahead, complete), ((0..100).collect::<Vec<u8>>().into(), true));
        assert_eq!(held.load(Ordering::Relaxed), 0);
    }
}
