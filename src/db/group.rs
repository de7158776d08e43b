//! Small submissions that wait for the database at the same time are stored in one transaction, all of them or none.
//!
//! A COPY costs something before its first row, for PostgreSQL prepares for a thousand of them, and a COMMIT waits for the
//! disk. Together they pay for both once (decision 17). What fails together is tried again alone, so that each is
//! answered for itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream;
use sqlx::PgConnection;
use tokio::sync::oneshot;

use super::copy::{self, Batch};
use super::submissions::{self, NewSubmission, Submission};
use crate::dataset::Dataset;
use crate::error::{Error, Result};

/// What is stored together at most: bytes of COPY, lest other processors have nothing to do, and submissions.
const MOST_BYTES: usize = 8 * 1024 * 1024;
const MOST_MEMBERS: usize = 64;

/// The submissions that wait.
#[derive(Default)]
pub struct Group(Mutex<Vec<Member>>);

/// A submission that is complete in memory.
pub struct Member {
    dataset: Arc<Dataset>,
    batches: Vec<Batch>,
    bytes: usize,
    new: NewSubmission,
    stored: oneshot::Sender<Result<Submission>>,
}

impl Group {
    /// Lets a submission wait, of a dataset without a unique key. Whoever stores it says so, or that nobody knows; where that
    /// is dropped, it was not stored. The flag says that no more should wait: what waits is held in memory.
    pub fn join(
        &self,
        dataset: &Arc<Dataset>,
        batches: Vec<Batch>,
        new: NewSubmission,
    ) -> (oneshot::Receiver<Result<Submission>>, bool) {
        let (stored, outcome) = oneshot::channel();
        let bytes = batches.iter().map(|batch| batch.bytes.len()).sum();
        let mut waiting = self.waiting();
        waiting.push(Member { dataset: Arc::clone(dataset), batches, bytes, new, stored });
        let bytes: usize = waiting.iter().map(|member| member.bytes).sum();
        (outcome, bytes >= MOST_BYTES || waiting.len() >= MOST_MEMBERS)
    }

    /// Whether that submission still waits.
    pub fn has(&self, id: i64) -> bool {
        self.waiting().iter().any(|member| member.new.id == id)
    }

    /// Takes that submission back; false when somebody has taken it to store it.
    pub fn leave(&self, id: i64) -> bool {
        self.waiting().extract_if(.., |member| member.new.id == id).next().is_some()
    }

    /// Takes that submission, and others that can be stored with it; none when somebody else has taken it.
    pub fn take(&self, id: i64) -> Vec<Member> {
        let mut waiting = self.waiting();
        let mut members: Vec<Member> = waiting.extract_if(.., |member| member.new.id == id).collect();
        let Some(mut bytes) = members.first().map(|first| first.bytes) else { return members };
        let mut position = 0;
        while position < waiting.len() && members.len() < MOST_MEMBERS {
            let next = &waiting[position];
            if bytes + next.bytes <= MOST_BYTES && members.iter().all(|member| member.goes_with(next)) {
                bytes += next.bytes;
                members.push(waiting.remove(position));
            } else {
                position += 1;
            }
        }
        members
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Member>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// Whether one transaction can store both: one table, and not two contents under one key.
    fn goes_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.dataset, &other.dataset) && self.new.key != other.new.key
    }

    fn columns(&self) -> &[usize] {
        self.batches.first().map_or(&[], |batch| &batch.columns)
    }
}

/// A submission that is written.
pub struct Stored {
    member: Member,
    submission: Submission,
}

impl Stored {
    /// Tells who waits for it, once it is committed.
    pub fn tell(self) {
        // Nobody waits where the service is stopping.
        drop(self.member.stored.send(Ok(self.submission)));
    }

    /// Tells who waits for it that the database did not say whether it is committed. It must not be tried again at once: it
    /// would meet itself.
    pub fn doubt(self) {
        let what = "the database did not say whether the results are stored: send them again";
        drop(self.member.stored.send(Err(Error::Busy { what, retry_after: Duration::from_secs(5) })));
    }
}

/// Writes what [`Group::take`] gave, but for those whose key is taken: they are let go, for only they have to look further.
///
/// # Errors
/// What PostgreSQL says of any of them.
pub async fn store(connection: &mut PgConnection, members: Vec<Member>) -> Result<Vec<Stored>> {
    let Some(dataset) = members.first().map(|member| Arc::clone(&member.dataset)) else { return Ok(Vec::new()) };
    let mut new: Vec<&NewSubmission> = members.iter().map(|member| &member.new).collect();
    // The same order everywhere, so that two groups with the same keys wait for each other instead of deadlocking.
    new.sort_by(|one, other| one.key.cmp(&other.key));
    let mut submissions = submissions::insert(connection, &new).await?;
    let written = |member: Member| {
        let submission = submissions.extract_if(.., |submission| submission.id == member.new.id).next()?;
        Some(Stored { member, submission })
    };
    let mut stored: Vec<Stored> = members.into_iter().filter_map(written).collect();
    // Neighbours that carry the same columns share a COPY.
    stored.sort_by(|one, other| one.member.columns().cmp(other.member.columns()));
    let batches = stored.iter().flat_map(|stored| &stored.member.batches).cloned().map(Ok);
    let copied = copy::fill(connection, &dataset, &dataset.table, stream::iter(batches)).await?;
    let rows: u64 = stored.iter().map(|stored| stored.member.new.rows).sum();
    if copied == rows { Ok(stored) } else { Err(Error::Internal(format!("COPY took {copied} of {rows} rows"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Datasets;

    fn join(
        group: &Group,
        dataset: &Arc<Dataset>,
        id: i64,
        key: &str,
        bytes: usize,
    ) -> (oneshot::Receiver<Result<Submission>>, bool) {
        let batch = Batch { columns: Arc::default(), bytes: vec![0; bytes].into() };
        let new = NewSubmission {
            id,
            dataset: dataset.name.clone(),
            key: key.to_owned(),
            fingerprint: [0; 32],
            sha256: [0; 32],
            rows: 1,
            duplicates: 0,
            bytes: 1,
            sample_id: None,
            run_id: None,
            client: String::new(),
        };
        group.join(dataset, vec![batch], new)
    }

    fn ids(members: &[Member]) -> Vec<i64> {
        members.iter().map(|member| member.new.id).collect()
    }

    #[test]
    fn those_are_taken_together_that_one_transaction_can_store() {
        let datasets = Datasets::load(None).expect("datasets");
        let (one, other) = (datasets.get("gottcha2").expect("dataset"), datasets.get("stast").expect("dataset"));
        let group = Group::default();
        let mut waiting = Vec::new();
        for (id, dataset, key, bytes) in [
            (1, one, "a", 10),
            (2, other, "b", 10),
            (3, one, "c", 10),
            (4, one, "a", 10),
            (5, one, "d", MOST_BYTES),
            (6, one, "e", MOST_BYTES - 20),
            (7, one, "f", 1),
        ] {
            waiting.push(join(&group, dataset, id, key, bytes).0);
        }
        assert_eq!(ids(&group.take(3)), [3, 1, 6]);
        assert!(group.take(3).is_empty());
        assert!(!group.has(1) && group.has(4));
        assert!(group.leave(4) && !group.leave(4));
        assert_eq!(ids(&group.take(5)), [5]);
        assert_eq!(ids(&group.take(2)), [2]);
        assert_eq!(ids(&group.take(7)), [7]);
        // All were let go.
        assert!(waiting.iter_mut().all(|outcome| outcome.try_recv().is_err()));
    }

    #[test]
    fn so_many_are_taken_together_and_no_more() {
        let datasets = Datasets::load(None).expect("datasets");
        let dataset = datasets.get("gottcha2").expect("dataset");
        let group = Group::default();
        let waiting: Vec<_> = (0..100).map(|id| join(&group, dataset, id, &id.to_string(), 1)).collect();
        assert_eq!(waiting.iter().filter(|(_, enough)| !enough).count(), MOST_MEMBERS - 1);
        assert_eq!(group.take(99).len(), MOST_MEMBERS);
        assert_eq!(group.take(98).len(), 100 - MOST_MEMBERS);
        assert!(!join(&group, dataset, 1, "a", MOST_BYTES - 1).1);
        assert!(join(&group, dataset, 2, "b", 1).1);
    }
}
