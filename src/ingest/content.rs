//! A body while it is decoded: batches for COPY, and what is known of it at the end.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Request;
use super::body::{BodyReader, Part, Turn};
use super::decode::Limits;
use super::rows::{self, Summary};
use crate::app::App;
use crate::db::copy::Batch;
use crate::error::{Error, Result};

/// COPY bytes that are held back before a transaction begins. A content that fits (some ten thousand rows) is checked
/// and compared with what is stored before the table is touched, so that a replay leaves nothing behind.
const HELD_BACK: usize = 4 * 1024 * 1024;

/// Encoded batches between the decoding thread and COPY.
const BATCHES_IN_FLIGHT: usize = 32;

/// The content of a body as COPY batches, and what is known of it at the end.
pub struct Content {
    batches: mpsc::Receiver<Batch>,
    decoding: Option<JoinHandle<Result<Summary>>>,
    /// Kept until all is stored: the COPY needs a core as much as the decoding.
    pub turn: Arc<Turn>,
    outcome: Option<Summary>,
    ended: bool,
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
        let body = BodyReader::new(ahead, parts, Arc::clone(&turn), limits.max_body.as_u64());
        let (sender, batches) = mpsc::channel(BATCHES_IN_FLIGHT);
        let decoding = tokio::task::spawn_blocking(move || {
            rows::decode(&job, &magic, body, |batch| sender.blocking_send(batch).is_ok())
        });
        Self { batches, decoding: Some(decoding), turn, outcome: None, ended: false }
    }

    /// The next batch, or `None` when the thread has ended, well or not.
    async fn next(&mut self) -> Option<Batch> {
        let batch = self.batches.recv().await;
        self.ended = batch.is_none();
        batch
    }

    /// Collects batches up to [`HELD_BACK`].
    pub async fn hold_back(&mut self) -> Vec<Batch> {
        let mut held = Vec::new();
        let mut bytes = 0;
        while bytes < HELD_BACK {
            let Some(batch) = self.next().await else { break };
            bytes += batch.bytes.len();
            held.push(batch);
        }
        held
    }

    /// The batches that have not been held back, and at last the fault of the body, if it has one.
    pub fn rest(&mut self) -> impl Stream<Item = Result<Batch>> + Send {
        stream::unfold(Some(self), |content| async {
            let content = content?;
            match content.next().await {
                Some(batch) => Some((Ok(batch), Some(content))),
                None => content.summary().await.err().map(|fault| (Err(fault), None)),
            }
        })
    }

    /// Whether all batches have been handed out.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.ended
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
        while self.next().await.is_some() {}
        self.summary().await
    }
}
