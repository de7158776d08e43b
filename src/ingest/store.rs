//! The transaction of one submission: COPY beside the decoding thread, then the submission row, then commit.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, Postgres, Transaction};
use tokio::sync::{SemaphorePermit, mpsc};

use super::body::{Part, Turn};
use super::content::Content;
use super::key::ADVICE;
use super::rows::Summary;
use super::{Receipt, Request};
use crate::app::App;
use crate::db;
use crate::db::copy::{self, Batch};
use crate::db::group::{self, Member, Stored};
use crate::db::submissions::{self, NewSubmission, Submission};
use crate::error::{Error, Result};

/// Bytes of a sample or run that all rows share: by these submissions are looked up, in an index that takes some 2,700.
const LONGEST_NAME: usize = 1024;

/// How often a body is tried that is known in full and meets others half way.
const MOST_TRIES: u32 = 10;

/// Stores a body of which `ahead` has arrived and `parts` are to come.
///
/// # Errors
/// See [`super::ingest`].
pub async fn store(app: App, request: Request, ahead: Bytes, parts: Option<mpsc::Receiver<Part>>) -> Result<Receipt> {
    let known = request.key.as_deref();
    let (submission, existing) = reserve(&app, &request).await?;
    let mut content = Content::decode(&app, &request, submission, ahead, parts);
    let held = content.hold_back().await;
    let attempt = Attempt { app: &app, request: &request, submission };
    let can_share = request.dataset.unique.is_empty();
    let existing = if existing.is_none() && content.is_complete() && (can_share || known.is_none()) {
        if can_share && let Some(receipt) = attempt.store_with_others(held.clone(), &mut content).await? {
            return Ok(receipt);
        }
        // Whoever has a connection may be waiting for a place, so nobody waits the other way round.
        content.turn.leave();
        let key = attempt.submission(&content.summary().await?)?.key;
        let mut connection = app.pool.acquire().await?;
        submissions::by_key(&mut connection, &request.dataset.name, &key).await?
    } else {
        existing
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
    if !content.is_complete() {
        return attempt.store(held, &mut content).await;
    }
    let mut tries = 1;
    loop {
        match attempt.store(held.clone(), &mut content).await {
            // It and another held what both wanted, such as the keys of rows that they replace, and PostgreSQL has ended one.
            Err(error) if error.is_deadlock() && tries < MOST_TRIES => tries += 1,
            outcome => return outcome,
        }
    }
}

/// An id for the submission, and what has been stored under the key of its client. Both on one connection: each that is
/// taken is asked first whether it is in step.
async fn reserve(app: &App, request: &Request) -> Result<(i64, Option<Submission>)> {
    let mut connection = app.pool.acquire().await?;
    let id = submissions::reserve(&mut connection).await?;
    let existing = match &request.key {
        Some(key) => submissions::by_key(&mut connection, &request.dataset.name, key).await?,
        None => None,
    };
    Ok((id, existing))
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
        "key `{}` of {} was used for other content on {} (submission {}): {ADVICE}",
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

/// One try to store one submission.
struct Attempt<'a> {
    app: &'a App,
    request: &'a Request,
    submission: i64,
}

impl Attempt<'_> {
    /// Stores a body that is known in full together with others that wait; `None` when it was not stored, for its key is
    /// taken, or for a reason that may be another's.
    async fn store_with_others(&self, held: Vec<Batch>, content: &mut Content) -> Result<Option<Receipt>> {
        let new = self.submission(&content.summary().await?)?;
        let (group, turn) = (&self.app.ingest.group, &content.turn);
        let (mut stored, enough) = group.join(&self.request.dataset, held, new);
        if !enough {
            // Others that are decoded meanwhile will be stored with it.
            turn.leave();
        }
        tokio::select! {
            biased;
            outcome = &mut stored => return told(outcome.ok()),
            () = turn.enter() => {}
        }
        // Else somebody has taken it along, and needs no help.
        if group.has(self.submission) {
            match self.begin(turn).await {
                Ok(transaction) => {
                    if let Err(error) = store_all(transaction, group.take(self.submission), turn).await {
                        tracing::debug!(%error, "submissions could not be stored together");
                    }
                }
                Err(error) if group.leave(self.submission) => return Err(error),
                // Somebody else has a connection.
                Err(_) => {}
            }
        }
        turn.leave();
        told(stored.await.ok())
    }

    /// Stores a body in a transaction of its own.
    async fn store(&self, held: Vec<Batch>, content: &mut Content) -> Result<Receipt> {
        if content.is_complete() {
            // A bad body is refused before it costs a transaction.
            self.submission(&content.summary().await?)?;
            content.turn.enter().await;
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
        if content.has_arrived {
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
        if let Some(transaction) = db::try_begin(&self.app.pool).await {
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
        let dataset = &self.request.dataset;
        if !dataset.unique.is_empty() {
            submissions::create_incoming(connection, dataset).await?;
        }
        let batches = stream::iter(held.into_iter().map(Ok)).chain(content.rest());
        copy::fill(connection, dataset, self.target(), pin!(batches)).await
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

    /// The submission row of this content, all of whose rows are stored.
    fn submission(&self, summary: &Summary) -> Result<NewSubmission> {
        if summary.rows == 0 && self.request.key.is_none() && summary.sample_id.is_none() {
            let reason =
                "is required for a body without rows, or send a key: else nobody could tell whose result it is";
            return Err(Error::parameter("sample_id", reason));
        }
        for (name, value) in [("sample_id", &summary.sample_id), ("run_id", &summary.run_id)] {
            if value.as_ref().is_some_and(|value| value.len() > LONGEST_NAME) {
                return Err(Error::parameter(name, format!("is longer than {LONGEST_NAME} bytes in every row")));
            }
        }
        let fingerprint = fingerprint(self.request, summary);
        Ok(NewSubmission {
            id: self.submission,
            dataset: self.request.dataset.name.clone(),
            key: self.request.key.clone().unwrap_or_else(|| content_key(&fingerprint)),
            fingerprint,
            sha256: summary.sha256,
            rows: summary.rows,
            duplicates: 0,
            bytes: summary.bytes,
            sample_id: summary.sample_id.clone(),
            run_id: summary.run_id.clone(),
            client: self.request.client.clone(),
        })
    }

    /// Writes the submission row, unless its key is taken.
    async fn record(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        rows: u64,
        summary: &Summary,
    ) -> Result<Recorded> {
        let all = self.submission(summary)?;
        let mut new = NewSubmission { rows, duplicates: all.rows - rows, ..all };
        loop {
            if let Some(submission) = submissions::insert(transaction, &[&new]).await?.pop() {
                return Ok(Recorded::New(submission));
            }
            let Some(existing) = submissions::lock(transaction, &new.dataset, &new.key).await? else {
                // Deleted between the two statements.
                continue;
            };
            let is_same = existing.fingerprint == new.fingerprint;
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
        submissions::take_incoming(connection, &self.request.dataset).await.map_err(|error| copy::refused(error, 0))
    }
}

/// Stores submissions that were taken from the group, and tells them.
async fn store_all(mut transaction: Transaction<'static, Postgres>, members: Vec<Member>, turn: &Turn) -> Result<()> {
    let stored = group::store(&mut transaction, members).await?;
    // Waiting for the disk needs no core.
    turn.leave();
    match transaction.commit().await {
        Ok(()) => stored.into_iter().for_each(Stored::tell),
        Err(error) if error.as_database_error().is_some() => return Err(error.into()),
        Err(_) => stored.into_iter().for_each(Stored::doubt),
    }
    Ok(())
}

/// The receipt of a submission of which somebody else has told, if anything, what became of it.
fn told(outcome: Option<Result<Submission>>) -> Result<Option<Receipt>> {
    Ok(outcome.transpose()?.map(Receipt::stored))
}

/// How the attempt to write a submission row ended.
enum Recorded {
    New(Submission),
    Taken(Submission),
}
