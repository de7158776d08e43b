//! A body while it is decoded: batches for COPY, and what is known of it at the end.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Request;
use super::body::{BodyReader, Part, Turn};
use super::decode::Limits;
use super::gunzip::gunzip;
use super::rows::{self, Summary};
use crate::app::App;
use crate::db::copy::Batch;
use crate::error::{Error, Result};

/// COPY bytes that are held back before a transaction begins. A content that fits (some ten thousand rows) is checked
/// and compared with what is stored before the table is touched, so that a replay leaves nothing behind.
const HELD_BACK: usize = 4 * 1024 * 1024;

/// COPY bytes that the decoding thread hands over together after those, so that nobody is woken for each batch; and how
/// often, before it waits for COPY.
const PARCEL: usize = 128 * 1024;
const PARCELS_IN_FLIGHT: usize = 8;

/// The content of a body as COPY batches, and what is known of it at the end.
pub struct Content {
    parcels: mpsc::Receiver<Vec<Batch>>,
    decoding: Option<JoinHandle<Result<Summary>>>,
    /// Kept until all is stored: the COPY needs a core as much as the decoding.
    pub turn: Arc<Turn>,
    /// Whether nothing of the body is still to come from its client.
    pub has_arrived: bool,
    outcome: Option<Summary>,
    is_complete: bool,
}

impl Content {
    /// Starts the decoding thread, for a body of which `ahead` has arrived and `parts` are to come.
    pub fn decode(
        app: &App,
        request: &Request,
        submission: i64,
        ahead: Bytes,
        parts: Option<mpsc::Receiver<Part>>,
    ) -> Self {
        let limits = &app.config.ingest;
        let job = rows::Job {
            dataset: Arc::clone(&request.dataset),
            params: request.params.clone(),
            format: request.format,
            submission,
            limits: Limits {
                decompressed: limits.max_decompressed.as_u64(),
                line: usize::try_from(limits.max_line.as_u64()).unwrap_or(usize::MAX),
            },
            max_rows: limits.max_rows,
        };
        let magic = ahead.slice(..ahead.len().min(4));
        let turn = Arc::new(Turn::new(Arc::clone(&app.ingest.places)));
        let has_arrived = parts.is_none();
        let body = BodyReader::new(ahead, parts, Arc::clone(&turn), limits.max_body.as_u64());
        let buffers = Arc::clone(&app.ingest.buffers);
        let (sender, parcels) = mpsc::channel(PARCELS_IN_FLIGHT);
        let decoding = tokio::task::spawn_blocking(move || {
            let mut parcels = Parcels { batches: Vec::new(), bytes: 0, enough: HELD_BACK, sender };
            let add = |batch| parcels.add(batch);
            let text = body.whole().and_then(|body| gunzip(&body));
            let summary = match text {
                Some(text) => rows::decode(&job, buffers, b"", &text[..], add),
                None => rows::decode(&job, buffers, &magic, body, add),
            }?;
            parcels.send();
            Ok(summary)
        });
        Self { parcels, decoding: Some(decoding), turn, has_arrived, outcome: None, is_complete: false }
    }

    /// Waits for the batches up to [`HELD_BACK`], or to the end of the body.
    pub async fn hold_back(&mut self) -> Vec<Batch> {
        let held = self.parcels.recv().await.unwrap_or_default();
        self.is_complete = held.iter().map(|batch| batch.bytes.len()).sum::<usize>() < HELD_BACK;
        held
    }

    /// The batches that have not been held back, and at last the fault of the body, if it has one.
    pub fn rest(&mut self) -> impl Stream<Item = Result<Batch>> + Send {
        let parcels = stream::unfold(Some(self), |content| async {
            let content = content?;
            match content.parcels.recv().await {
                Some(parcel) => Some((Ok(parcel), Some(content))),
                None => content.summary().await.err().map(|fault| (Err(fault), None)),
            }
        });
        parcels.map_ok(|parcel| stream::iter(parcel.into_iter().map(Ok))).try_flatten()
    }

    /// Whether all batches have been held back.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// What the whole body turned out to hold, after its last batch.
    ///
    /// # Errors
    /// The faults of the body.
    pub async fn summary(&mut self) -> Result<Summary> {
        if let Some(decoding) = self.decoding.take() {
            let decoded = decoding.await.map_err(|error| Error::Internal(format!("decoding failed: {error}")))?;
            self.outcome = Some(decoded?);
        }
        self.outcome.clone().ok_or_else(|| Error::Internal("the body was read twice".into()))
    }

    /// Reads to the end for the digest only.
    ///
    /// # Errors
    /// The faults of the body.
    pub async fn discard_rest(&mut self) -> Result<Summary> {
        while self.parcels.recv().await.is_some() {}
        self.summary().await
    }
}

/// The decoding thread's end of the channel.
struct Parcels {
    /// What is not sent yet.
    batches: Vec<Batch>,
    bytes: usize,
    /// How many bytes are sent together.
    enough: usize,
    sender: mpsc::Sender<Vec<Batch>>,
}

impl Parcels {
    /// Adds a batch; false when nobody takes any more.
    fn add(&mut self, batch: Batch) -> bool {
        self.bytes += batch.bytes.len();
        self.batches.push(batch);
        self.bytes < self.enough || self.send()
    }

    fn send(&mut self) -> bool {
        (self.bytes, self.enough) = (0, PARCEL);
        self.sender.blocking_send(std::mem::take(&mut self.batches)).is_ok()
    }
}
