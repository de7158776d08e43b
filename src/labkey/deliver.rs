//! One request: its deliveries are taken in hand, read, sent, and marked by one statement, since LabKey takes or refuses
//! them together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};

use super::client::{Client, Payload};
use super::failure::{Failure, FailureKind};
use super::sync::Run;
use crate::db;
use crate::db::labkey::{self, Delivery, Outcome, State};
use crate::error::{Error, Result};
use crate::telemetry;

/// How often the end of one request may be unknown before the sync stops.
const DOUBTS: u32 = 5;

/// What remains of a request.
enum Posted {
    /// Nothing.
    Done,
    /// It is not to be had as a whole.
    Halve,
    /// These rows did not arrive after all.
    Again(Vec<Delivery>),
}

impl Run<'_> {
    /// Delivers a group; where LabKey refuses rows, by ever smaller requests until the bad ones stand alone.
    pub(super) async fn deliver(&self, group: Vec<Delivery>) -> Result<()> {
        let mut left = vec![group];
        let mut doubts = 0;
        while let Some(group) = left.pop() {
            if rows_of(&group) > self.labkey.config.batch_size {
                // It was planned when batches were larger.
                left.extend(self.halves(group).await?);
                continue;
            }
            let (was_busy, started) = (self.is_busy(), Instant::now());
            let posted = self.post(&group).await?;
            self.rest(was_busy, started.elapsed()).await;
            match posted {
                Posted::Done => {}
                Posted::Halve => left.extend(self.halves(group).await?),
                Posted::Again(lost) => {
                    doubts += 1;
                    if doubts == DOUBTS {
                        let reason = format!("LabKey lost a request {DOUBTS} times");
                        return Err(Failure::new(FailureKind::Transient, reason).into());
                    }
                    left.push(lost);
                }
            }
        }
        Ok(())
    }

    async fn post(&self, group: &[Delivery]) -> Result<Posted> {
        // What is missing was withdrawn.
        let group = labkey::claim(self.pool, &ids(group), &self.holder).await?;
        let claimed = ids(&group);
        if group.is_empty() {
            return Ok(Posted::Done);
        }
        let limit = self.labkey.config.batch_bytes.as_u64();
        let Some(rows) = read(self.pool, self.target.copy_out(&group), limit).await? else {
            let reason = format!("more than labkey.batch_bytes of {limit} bytes");
            return self.refused(&group, &claimed, &reason).await;
        };
        if rows.len() != rows_of(&group) {
            // A submission was removed between the two statements, and with it its deliveries.
            return if labkey::release(self.pool, &claimed, &self.holder, false).await? > 0 {
                Ok(Posted::Again(group))
            } else {
                self.incomplete(&group).await
            };
        }
        let payload = self.payload(&group, &rows);
        drop(rows);
        let started = Instant::now();
        let is_lost = AtomicBool::new(false);
        let answer = self.send(&group, &payload, &is_lost).await;
        telemetry::labkey_request(self.dataset(), started.elapsed());
        if is_lost.into_inner() {
            labkey::doubt(self.pool, &claimed).await?;
        }
        match answer {
            Ok(transaction) => {
                let how = Outcome {
                    transaction: transaction.as_deref(),
                    bytes: Some(payload.bytes.len()),
                    ..Outcome::default()
                };
                self.completed(&group, &how).await?;
                self.lease.progress.add_bytes(payload.bytes.len() as u64);
                Ok(Posted::Done)
            }
            Err(failure) => self.failed(group, claimed, failure).await,
        }
    }

    fn payload(&self, group: &[Delivery], rows: &[Bytes]) -> Payload {
        if !self.target.merges {
            return Client::insert_body(self.target.list.list_name(), &comment(group), rows);
        }
        let mut csv = self.target.csv_header().into_bytes();
        rows.iter().for_each(|row| csv.extend_from_slice(row));
        Payload { bytes: csv.into(), rows: rows.len() }
    }

    /// Sends rows; `is_lost` becomes true when a merge of them was given up for lost, which may still arrive.
    async fn send(
        &self,
        group: &[Delivery],
        payload: &Payload,
        is_lost: &AtomicBool,
    ) -> Result<Option<String>, Failure> {
        let (client, list) = (&self.labkey.client, self.target.list.list_name());
        if !self.target.merges {
            return client.patiently(|| client.insert(payload)).await;
        }
        let comment = comment(group);
        let merge = || async {
            client.merge(list, &comment, payload).await.map_err(|failure| {
                if failure.kind != FailureKind::Unknown {
                    return failure;
                }
                // To merge again does no harm.
                is_lost.store(true, Ordering::Relaxed);
                telemetry::labkey_reconciled(self.dataset(), "merged again", 1);
                Failure { kind: FailureKind::Transient, ..failure }
            })
        };
        match client.patiently(merge).await {
            // An earlier merge of this row, which was given up for lost, has ended by now: this one finds it.
            Err(failure) if failure.kind == FailureKind::Duplicate && payload.rows == 1 => {
                telemetry::labkey_reconciled(self.dataset(), "merged again", 1);
                client.patiently(merge).await
            }
            answer => answer,
        }
    }

    async fn failed(&self, group: Vec<Delivery>, claimed: Vec<i64>, failure: Failure) -> Result<Posted> {
        match failure.kind {
            FailureKind::Invalid => self.refused(&group, &claimed, &failure.reason).await,
            FailureKind::Duplicate => {
                // Perhaps these very rows, which came by a request whose end was never heard of.
                let missing = self.settle(group, Duration::MAX).await?;
                let missing = labkey::claim(self.pool, &ids(&missing), &self.holder).await?;
                if missing.is_empty() {
                    // They are, or they were withdrawn meanwhile.
                    return Ok(Posted::Done);
                }
                self.refused(&missing, &ids(&missing), &failure.reason).await
            }
            FailureKind::Unknown => {
                let how = Outcome { error: Some(&failure.reason), ..Outcome::default() };
                self.mark(&claimed, State::Unknown, &how).await?;
                let missing = self.settle(group, Duration::ZERO).await?;
                Ok(if missing.is_empty() { Posted::Done } else { Posted::Again(missing) })
            }
            _ => {
                labkey::release(self.pool, &claimed, &self.holder, false).await?;
                Err(failure.into())
            }
        }
    }

    /// LabKey has none of these rows: the group is to be halved, or its only row is the bad one.
    async fn refused(&self, group: &[Delivery], claimed: &[i64], reason: &str) -> Result<Posted> {
        if rows_of(group) > 1 {
            labkey::release(self.pool, claimed, &self.holder, false).await?;
            return Ok(Posted::Halve);
        }
        self.mark(claimed, State::Failed, &Outcome { error: Some(reason), ..Outcome::default() }).await?;
        self.tally.failed.fetch_add(1, Ordering::Relaxed);
        self.lease.progress.add_rows(1);
        self.tally.error("LabKey refused a row; GET /labkey/failures says which and why");
        telemetry::labkey_error(self.dataset(), FailureKind::Invalid.as_str());
        Ok(Posted::Done)
    }

    /// The table has not all rows of the group, although no submission was removed: somebody has deleted some by hand.
    async fn incomplete(&self, group: &[Delivery]) -> Result<Posted> {
        if group.len() > 1 {
            return Ok(Posted::Halve);
        }
        let claimed = labkey::claim(self.pool, &ids(group), &self.holder).await?;
        if claimed.is_empty() {
            // Withdrawn meanwhile.
            return Ok(Posted::Done);
        }
        let reason = "rows of this delivery are missing in the dataset's table";
        self.mark(&ids(&claimed), State::Failed, &Outcome { error: Some(reason), ..Outcome::default() }).await?;
        self.tally.failed.fetch_add(rows_of(&claimed) as u64, Ordering::Relaxed);
        self.tally.error(reason);
        telemetry::labkey_error(self.dataset(), "incomplete");
        Ok(Posted::Done)
    }

    /// LabKey has these rows.
    pub(super) async fn completed(&self, group: &[Delivery], how: &Outcome<'_>) -> Result<()> {
        let ids = ids(group);
        self.mark(&ids, State::Completed, how).await?;
        let rows = rows_of(group) as u64;
        self.tally.uploaded.fetch_add(rows, Ordering::Relaxed);
        self.tally.deliveries.fetch_add(ids.len() as u64, Ordering::Relaxed);
        self.lease.progress.add_rows(rows);
        telemetry::labkey_uploaded(self.dataset(), rows);
        Ok(())
    }

    /// Says how deliveries in hand ended. When another worker has them in hand by now, it is its turn to say so.
    pub(super) async fn mark(&self, ids: &[i64], state: State, how: &Outcome<'_>) -> Result<()> {
        let marked = labkey::conclude(self.pool, ids, &self.holder, state, how).await?;
        if marked == ids.len() as u64 { Ok(()) } else { Err(Error::Cancelled) }
    }

    async fn halves(&self, mut group: Vec<Delivery>) -> Result<Vec<Vec<Delivery>>> {
        if group.len() > 1 {
            let second = group.split_off(group.len() / 2);
            return Ok(vec![second, group]);
        }
        let Some(whole) = group.pop() else { return Ok(Vec::new()) };
        let before = whole.rows / 2;
        let Some(middle) = labkey::ordinal_at(self.pool, &self.target.list.dataset, &whole, before).await? else {
            self.incomplete(&[whole]).await?;
            return Ok(Vec::new());
        };
        let halves = labkey::split(self.pool, &whole, middle, before).await?;
        Ok(halves.map(|[first, second]| vec![vec![second], vec![first]]).unwrap_or_default())
    }
}

/// What LabKey's audit log says of a request.
fn comment(group: &[Delivery]) -> String {
    let first = group.first().map(|one| one.key.to_string()).unwrap_or_default();
    match group.len() {
        1 => format!("nvd-support-car delivery {first}"),
        many => format!("nvd-support-car delivery {first} and {} more", many - 1),
    }
}

pub(super) fn ids(group: &[Delivery]) -> Vec<i64> {
    group.iter().map(|one| one.id).collect()
}

fn rows_of(group: &[Delivery]) -> usize {
    group.iter().map(|one| usize::try_from(one.rows).unwrap_or_default()).sum()
}

/// The rows of a COPY, one message each; none when they are more than `limit` bytes.
pub(super) async fn read(pool: &PgPool, statement: String, limit: u64) -> Result<Option<Vec<Bytes>>> {
    let mut reader = Reader { connection: pool.acquire().await?, is_at_end: false };
    let mut rows = Vec::new();
    let mut size = 0;
    let mut copy = db::copy_out(&mut reader.connection, statement).await?;
    while let Some(row) = copy.next().await.transpose()? {
        size += row.len() as u64;
        if size > limit {
            return Ok(None);
        }
        rows.push(row);
    }
    drop(copy);
    reader.is_at_end = true;
    Ok(Some(rows))
}

/// A connection on which a COPY begins. Unless that is read to its end, it is not used again: who came next would get its
/// answers.
struct Reader {
    connection: PoolConnection<Postgres>,
    is_at_end: bool,
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.is_at_end {
            self.connection.close_on_drop();
        }
    }
}
