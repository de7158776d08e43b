//! The transaction of one submission: COPY beside the decoding thread, then the submission row, then commit.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, Postgres, Transaction};
use tokio::sync::{SemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use super::body::{BodyReader, Part, Turn};
use super::copy::Batch;
use super::decode::Limits;
use super::rows::{self, Summary};
use super::{Receipt, Request};
use crate::app::App;
use crate::dataset::Fault;
use crate::db;
use crate::db::submissions::{self, NewSubmission, Submission};
use crate::error::{Error, Result};

/// COPY bytes that are held back before a transaction begins. A content that fits (some ten thousand rows) is checked
/// and compared with what is stored before the table is touched, so that a replay leaves nothing behind.
const HELD_BACK: usize = 4 * 1024 * 1024;

/// Bytes of a sample or run that all rows share: by these submissions are looked up, in an index that takes some 2,700.
const LONGEST_NAME: usize = 1024;

/// Encoded batches between the decoding thread and COPY.
const BATCHES_IN_FLIGHT: usize = 32;

/// Stores a body of which `ahead` has arrived and `parts` are to come.
///
/// # Errors
/// See [`super::ingest`].
pub async fn store(app: App, request: Request, ahead: Bytes, parts: Option<mpsc::Receiver<Part>>) -> Result<Receipt> {
    let known = request.key.as_deref();
    let submission = submissions::reserve(&app.pool).await?;
    let existing = match known {
        Some(key) => submissions::by_key(&app.pool, &request.dataset.name, key).await?,
        None => None,
    };
    let mut content = Content::decode(&app, &request, submission, ahead, parts);
    let held = content.hold_back().await;
    let complete = content.is_complete();
    let existing = match (existing, known) {
        (None, None) if complete => {
            let key = content_key(&fingerprint(&request, &content.summary().await?));
            // Whoever has a connection may be waiting for a place, so nobody waits the other way round.
            content.turn.leave();
            let existing = submissions::by_key(&app.pool, &request.dataset.name, &key).await?;
            content.turn.enter().await;
            existing
        }
        (existing, _) => existing,
    };
    // A replacement too large to be known in full is copied first, and compared with what is there before the commit. So is
    // content of which rows were passed over: they may be gone since, with the submission that had brought them.
    if let Some(existing) = existing
        && existing.duplicates == 0
        && (content.is_complete() || !request.replace)
        && let Some(receipt) = compare(&request, existing, &content.discard_rest().await?)?
    {
        return Ok(receipt);
    }
    let attempt = Attempt { app: &app, request: &request, submission };
    attempt.store(held, &mut content).await
}

/// Answers for content whose key is taken; `None` when it shall take the place of what is there.
fn compare(request: &Request, existing: Submission, summary: &Summary) -> Result<Option<Receipt>> {
    if existing.fingerprint == fingerprint(request, summary) {
        return Ok(Some(Receipt::replayed(existing)));
    }
    if request.replace {
        return Ok(None);
    }
    Err(Error::Conflict(format!(
        "key `{}` of {} was used for other content on {} (submission {}): send another key, or add ?on_conflict=replace",
        existing.key,
        existing.dataset,
        existing.created_at.format("%Y-%m-%d %H:%M:%S UTC"),
        existing.id
    )))
}

/// What makes two requests the same: dataset, parameters and content.
fn fingerprint(request: &Request, summary: &Summary) -> [u8; 32] {
    let mut digest = Sha256::new();
    for text in
        std::iter::once(&request.dataset.name).chain(request.params.pairs.iter().flat_map(|(name, text)| [name, text]))
    {
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text);
    }
    digest.update(summary.sha256);
    digest.finalize().into()
}

/// The key of a submission whose client gave none.
fn content_key(fingerprint: &[u8; 32]) -> String {
    format!("sha256:{}", data_encoding::HEXLOWER.encode(fingerprint))
}

/// The content of a body as COPY batches, and what is known of it at the end.
struct Content {
    batches: mpsc::Receiver<Batch>,
    decoding: Option<JoinHandle<Result<Summary>>>,
    /// Kept until all is stored: the COPY needs a core as much as the decoding.
    turn: Arc<Turn>,
    outcome: Option<Summary>,
    ended: bool,
}

impl Content {
    /// Starts the decoding thread.
    fn decode(
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
    async fn hold_back(&mut self) -> Vec<Batch> {
        let mut held = Vec::new();
        let mut bytes = 0;
        while bytes < HELD_BACK {
            let Some(batch) = self.next().await else { break };
            bytes += batch.bytes.len();
            held.push(batch);
        }
        held
    }

    /// Whether all batches have been handed out.
    const fn is_complete(&self) -> bool {
        self.ended
    }

    /// What the whole body turned out to hold, after its last batch.
    async fn summary(&mut self) -> Result<Summary> {
        if let Some(decoding) = self.decoding.take() {
            let decoded = decoding.await.map_err(|error| Error::Internal(format!("decoding failed: {error}")))?;
            self.outcome = Some(decoded?);
        }
        self.outcome.clone().ok_or_else(|| Error::Internal("the body was read twice".into()))
    }

    /// Reads to the end for the digest only.
    async fn discard_rest(&mut self) -> Result<Summary> {
        while self.next().await.is_some() {}
        self.summary().await
    }
}

/// One try to store one submission.
struct Attempt<'a> {
    app: &'a App,
    request: &'a Request,
    submission: i64,
}

impl Attempt<'_> {
    async fn store(&self, held: Vec<Batch>, content: &mut Content) -> Result<Receipt> {
        if content.is_complete() {
            // A bad body is refused before it costs a transaction.
            content.summary().await?;
        }
        let _arriving = self.arriving(content).await?;
        let mut transaction = self.begin(&content.turn).await?;
        let copied = self.copy(&mut transaction, held, content).await?;
        let summary = content.summary().await?;
        let rows = self.rows(&mut transaction, copied, &summary).await?;
        match self.record(&mut transaction, rows, &summary).await? {
            Recorded::New(submission) => {
                // Waiting for the disk needs no core.
                content.turn.leave();
                transaction.commit().await?;
                Ok(Receipt::stored(submission))
            }
            Recorded::Taken(existing) => {
                // Somebody stored the same key while this body was copied.
                transaction.rollback().await?;
                compare(self.request, existing, &summary)?
                    .ok_or_else(|| Error::Conflict("the key was taken meanwhile".into()))
            }
        }
    }

    /// Waits until fewer uploads hold a connection for as long as their clients like: jobs, health checks and small uploads
    /// need some too.
    async fn arriving(&self, content: &Content) -> Result<Option<SemaphorePermit<'_>>> {
        if content.is_complete() {
            return Ok(None);
        }
        let places = &self.app.ingest.arriving;
        if let Ok(place) = places.try_acquire() {
            return Ok(Some(place));
        }
        let _standing_aside = content.turn.stand_aside();
        match tokio::time::timeout(self.app.config.database.acquire_timeout, places.acquire()).await {
            Ok(Ok(place)) => Ok(Some(place)),
            _ => Err(Error::Busy { what: "too many large uploads are arriving", retry_after: Duration::from_secs(30) }),
        }
    }

    /// Begins a transaction. While all connections are taken by uploads that wait for their clients, and in turn for a
    /// place to go on, this one must neither keep its place nor take another.
    async fn begin(&self, turn: &Turn) -> Result<Transaction<'static, Postgres>> {
        // A connection that turns out to be dead is no reason to refuse: the pool looks for one that lives.
        if let Ok(Some(transaction)) = self.app.pool.try_begin().await {
            return Ok(transaction);
        }
        let _standing_aside = turn.stand_aside();
        // It goes on without a place: connections are few enough, and must not lie idle behind uploads without one.
        Ok(self.app.pool.begin().await?)
    }

    /// The table that COPY fills: rows with a unique key are first laid beside it.
    fn target(&self) -> &str {
        if self.request.dataset.unique.is_empty() { &self.request.dataset.table } else { submissions::INCOMING }
    }

    /// Sends all batches, and answers with the number of rows that PostgreSQL took.
    async fn copy(&self, connection: &mut PgConnection, held: Vec<Batch>, content: &mut Content) -> Result<u64> {
        if !self.request.dataset.unique.is_empty() {
            submissions::create_incoming(connection, &self.request.dataset).await?;
        }
        let mut held = held.into_iter();
        let mut next = held.next();
        let mut rows = 0;
        while let Some(first) = next {
            let columns = Arc::clone(&first.columns);
            let mut copy = db::copy_in(connection, &self.request.dataset, self.target(), &columns).await?;
            copy.send(first.bytes).await?;
            loop {
                next = match held.next() {
                    Some(batch) => Some(batch),
                    None => content.next().await,
                };
                match &next {
                    Some(batch) if Arc::ptr_eq(&batch.columns, &columns) => copy.send(&*batch.bytes).await?,
                    _ => break,
                };
            }
            if next.is_none()
                && let Err(error) = content.summary().await
            {
                copy.abort("the body was refused").await?;
                return Err(error);
            }
            rows += copy.finish().await.map_err(|error| refused_by_postgres(error.into(), rows))?;
        }
        Ok(rows)
    }

    /// The number of rows stored, after rows that were there already have been passed over.
    async fn rows(&self, connection: &mut PgConnection, copied: u64, summary: &Summary) -> Result<u64> {
        if copied != summary.rows {
            return Err(Error::Internal(format!("COPY took {copied} of {} rows", summary.rows)));
        }
        if self.request.dataset.unique.is_empty() {
            return Ok(copied);
        }
        self.take_incoming(connection).await
    }

    /// Writes the submission row, unless its key is taken.
    async fn record(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        rows: u64,
        summary: &Summary,
    ) -> Result<Recorded> {
        let fingerprint = fingerprint(self.request, summary);
        let mut new = NewSubmission {
            id: self.submission,
            dataset: &self.request.dataset.name,
            key: self.request.key.clone().unwrap_or_else(|| content_key(&fingerprint)),
            fingerprint,
            sha256: summary.sha256,
            rows,
            duplicates: summary.rows - rows,
            bytes: summary.bytes,
            sample_id: summary.sample_id.as_deref(),
            run_id: summary.run_id.as_deref(),
            client: &self.request.client,
        };
        if summary.rows == 0 && self.request.key.is_none() && summary.sample_id.is_none() {
            let reason =
                "is required for a body without rows, or send a key: else nobody could tell whose result it is";
            return Err(Error::parameter("sample_id", reason));
        }
        for (name, value) in [("sample_id", new.sample_id), ("run_id", new.run_id)] {
            if value.is_some_and(|value| value.len() > LONGEST_NAME) {
                return Err(Error::parameter(name, format!("is longer than {LONGEST_NAME} bytes in every row")));
            }
        }
        loop {
            if let Some(submission) = submissions::insert(transaction, &new).await? {
                return Ok(Recorded::New(submission));
            }
            let Some(existing) = submissions::lock(transaction, new.dataset, &new.key).await? else {
                // Deleted between the two statements.
                continue;
            };
            let is_same = existing.fingerprint == fingerprint;
            // What the same content brings anew was passed over before, and is gone with the rows that had its keys.
            let completes = is_same && existing.duplicates > 0 && new.rows > 0;
            if !completes && (is_same || !self.request.replace) {
                return Ok(Recorded::Taken(existing));
            }
            submissions::delete(transaction, &self.request.dataset, existing.id).await?;
            if !self.request.dataset.unique.is_empty() {
                // Rows that were passed over because those of the removed submission had their keys.
                let more = self.take_incoming(transaction).await?;
                new.rows += more;
                new.duplicates -= more;
            }
        }
    }

    async fn take_incoming(&self, connection: &mut PgConnection) -> Result<u64> {
        submissions::take_incoming(connection, &self.request.dataset)
            .await
            .map_err(|error| refused_by_postgres(error, 0))
    }
}

/// How the attempt to write a submission row ended.
enum Recorded {
    New(Submission),
    Taken(Submission),
}

/// Turns data that PostgreSQL itself refuses (what our own checks let pass) into a fault of the caller's row.
/// `before` rows of the body had been copied by earlier statements.
fn refused_by_postgres(error: Error, before: u64) -> Error {
    let Error::Database(sqlx::Error::Database(refusal)) = &error else {
        return error;
    };
    let code = refusal.code().unwrap_or_default();
    // 22 data exception, 23 integrity, 54 program limit such as a key too long for its index.
    if !["22", "23", "54"].iter().any(|class| code.starts_with(class)) {
        return error;
    }
    let refusal = refusal.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
    let context = refusal.and_then(|refusal| refusal.r#where()).unwrap_or_default();
    // "COPY table, line 7, column name"; the header of the format counts as no line.
    let row = context.split(", ").find_map(|part| part.strip_prefix("line "));
    let row = row.and_then(|row| row.split(':').next()).and_then(|row| row.parse::<u64>().ok());
    let row = row.map_or_else(|| "a row".to_owned(), |row| format!("row {}", before + row));
    let reason = format!("{row} cannot be stored by PostgreSQL (SQLSTATE {code})");
    Error::Faults(vec![Fault { line: None, column: None, field: None, reason }])
}
