//! What only LabKey knows: whether rows arrived whose request never got an answer, and which of withdrawn rows it holds.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::client::field;
use super::deliver::ids;
use super::failure::{Failure, FailureKind};
use super::list::DELIVERY_KEY;
use super::sync::Run;
use crate::db::labkey::{self, Delivery, Outcome, State};
use crate::error::Result;
use crate::telemetry;

/// Deliveries, and rows, about which LabKey is asked at once.
const DELIVERIES: usize = 200;
const ROWS: i32 = 20_000;

/// Keys of one question, and rows removed by one request.
pub(super) const KEYS: usize = 500;

/// The first pause between two looks, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

impl Run<'_> {
    /// Settles everything that an earlier sync, or a killed process, left in doubt.
    pub(super) async fn settle_unknown(&self) -> Result<()> {
        loop {
            let found = labkey::in_state(self.pool, self.dataset(), State::Unknown, 0, DELIVERIES as i64).await?;
            if found.is_empty() || self.lease.is_cancelled() {
                return Ok(());
            }
            labkey::take_over(self.pool, self.dataset(), &self.holder).await?;
            let few = few(found);
            let age = few.iter().map(Delivery::since_sent).min().unwrap_or_default();
            self.settle(few, age).await?;
        }
    }

    /// Decides deliveries in doubt by what LabKey holds, at the earliest when it has had time to end what it had begun.
    /// What it has is completed; what it has not is released, and answered with.
    pub(super) async fn settle(&self, doubtful: Vec<Delivery>, age: Duration) -> Result<Vec<Delivery>> {
        if self.target.merges {
            labkey::release(self.pool, &ids(&doubtful), &self.holder, true).await?;
            return Ok(doubtful);
        }
        let deadline = Instant::now() + self.labkey.config.settle.saturating_sub(age);
        let (mut pause, longest) = PAUSES;
        let held = loop {
            let held = self.held(&doubtful).await?;
            let now = Instant::now();
            if now >= deadline || doubtful.iter().all(|one| held.find(one) != Found::Nothing) {
                break held;
            }
            tokio::time::sleep(pause.min(deadline - now)).await;
            pause = (pause * 2).min(longest);
        };
        let (mut there, mut missing) = (Vec::new(), Vec::new());
        for one in doubtful {
            match held.find(&one) {
                Found::Nothing => missing.push(one),
                Found::Whole(_) => there.push(one),
                Found::Part(rows) => self.contradicts(&one, rows).await?,
            }
        }
        // It may be an earlier attempt that was found, and the last one still arrive.
        let repeated: Vec<i64> = there.iter().filter(|one| one.attempts > 1).map(|one| one.id).collect();
        labkey::doubt(self.pool, &repeated).await?;
        if !there.is_empty() {
            self.completed(&there, &Outcome::default()).await?;
        }
        labkey::release(self.pool, &ids(&missing), &self.holder, true).await?;
        self.tally.reconciled.fetch_add((there.len() + missing.len()) as u64, Ordering::Relaxed);
        for (result, deliveries) in [("there", &there), ("missing", &missing)] {
            telemetry::labkey_reconciled(self.dataset(), result, deliveries.len() as u64);
        }
        Ok(missing)
    }

    /// Looks for requests that were given up for lost and arrived after all: their rows are there twice, or again, and leave.
    pub(super) async fn remove_latecomers(&self) -> Result<()> {
        let mut after = 0;
        loop {
            let page = few(labkey::doubted(self.pool, self.dataset(), after, DELIVERIES as i64).await?);
            let Some(last) = page.last().filter(|_| !self.lease.is_cancelled()) else { return Ok(()) };
            after = last.id;
            let merges = self.target.merges;
            let clean = if merges { self.remove_returned(&page).await? } else { self.remove_surplus(&page).await? };
            labkey::trust(self.pool, &clean, merges).await?;
        }
    }

    /// Removes the rows that late merges of withdrawn deliveries have brought back, and answers with the deliveries of which
    /// nothing is any more. A late merge of any other changes nothing.
    async fn remove_returned(&self, page: &[Delivery]) -> Result<Vec<i64>> {
        let mut clean = Vec::new();
        for one in page {
            if one.is_withdrawn {
                let kept = labkey::record_keys_kept(self.pool, &self.target.list.dataset, one).await?;
                let rows = self.rows_of(one.record_keys().filter(|key| !kept.contains(key))).await?;
                if let Err(failure) = self.delete(rows).await {
                    self.names_what_stays(one, "rows that came after they were removed here,", failure).await?;
                    continue;
                }
            }
            clean.push(one.id);
        }
        Ok(clean)
    }

    /// Removes what is there too often of some deliveries, and answers with those of which nothing is any more.
    async fn remove_surplus(&self, page: &[Delivery]) -> Result<Vec<i64>> {
        let held = self.held(page).await?;
        let mut clean = Vec::new();
        for one in page {
            if let (false, Found::Part(rows)) = (one.is_withdrawn, held.find(one)) {
                if labkey::reopen(self.pool, one.id, &self.holder).await? {
                    self.contradicts(one, rows).await?;
                }
                continue;
            }
            let surplus = held.surplus(one);
            if !surplus.is_empty() {
                let rows = self.rows_where(DELIVERY_KEY, &surplus).await?;
                if let Err(failure) = self.delete(rows).await {
                    self.names_what_stays(one, "rows that came twice, or after they were removed here,", failure)
                        .await?;
                    continue;
                }
                telemetry::labkey_reconciled(self.dataset(), "twice", 1);
            }
            clean.push(one.id);
        }
        Ok(clean)
    }

    /// Tells of rows that LabKey does not let us remove, and answers with its reason; any other failure ends the sync.
    async fn names_what_stays(&self, one: &Delivery, what: &str, failure: Failure) -> Result<String> {
        if failure.kind == FailureKind::Unknown && self.target.merges {
            // It may still arrive, and then remove rows that have come under the same keys.
            labkey::doubt(self.pool, &[one.id]).await?;
        }
        if !matches!(failure.kind, FailureKind::Permission | FailureKind::Invalid) {
            return Err(failure.into());
        }
        self.tally.stays(format!("{what} cannot be removed from LabKey: {}", failure.reason));
        telemetry::labkey_error(self.dataset(), "removal");
        Ok(failure.reason)
    }

    /// LabKey holds some of the rows that it can only have taken together: somebody has changed the list.
    async fn contradicts(&self, one: &Delivery, held: i32) -> Result<()> {
        let reason = format!(
            "the list holds {held} of the {} rows of this delivery: remove those whose {DELIVERY_KEY} begins with {}, then POST /labkey/retry",
            one.rows, one.key
        );
        self.mark(&[one.id], State::Failed, &Outcome { error: Some(&reason), ..Outcome::default() }).await?;
        self.tally.failed.fetch_add(u64::from(one.rows.unsigned_abs()), Ordering::Relaxed);
        self.tally.error(reason);
        telemetry::labkey_error(self.dataset(), "contradiction");
        Ok(())
    }

    async fn held(&self, deliveries: &[Delivery]) -> Result<Held, Failure> {
        let keys: Vec<String> = deliveries.iter().flat_map(Delivery::delivery_keys).collect();
        let mut held = Held::default();
        for keys in keys.chunks(KEYS) {
            let list = self.target.list.list_name();
            let rows = self.labkey.client.select(list, &[DELIVERY_KEY], DELIVERY_KEY, keys).await?;
            for key in rows.iter().filter_map(|row| field(row, DELIVERY_KEY)?.as_str()) {
                *held.rows.entry(key.to_owned()).or_default() += 1;
            }
        }
        Ok(held)
    }

    /// Removes from LabKey what was removed or replaced here.
    pub(super) async fn remove_withdrawn(&self) -> Result<()> {
        let mut after = 0;
        loop {
            let settle = self.labkey.config.settle;
            let page = labkey::withdrawn(self.pool, self.dataset(), settle, after, KEYS as i64).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id;
            for one in &page {
                if self.lease.is_cancelled() {
                    return Ok(());
                }
                let refusal = match self.remove(one).await {
                    Ok(()) => None,
                    Err(failure) => {
                        Some(self.names_what_stays(one, "rows that were removed or replaced here", failure).await?)
                    }
                };
                labkey::removed(self.pool, &[one.id], refusal.as_deref()).await?;
            }
        }
    }

    async fn remove(&self, one: &Delivery) -> Result<(), Failure> {
        let found = self.keys_of(one).await?;
        self.delete(found).await
    }

    /// The rows whose `column` has one of these values, each as its key.
    pub(super) async fn rows_where(&self, column: &str, values: &[String]) -> Result<Vec<Value>, Failure> {
        let (client, list, key) = (&self.labkey.client, self.target.list.list_name(), self.target.key.as_str());
        let found = client.select(list, &[key], column, values).await?;
        Ok(found.iter().filter_map(|row| field(row, key)).map(|value| json!({key: value})).collect())
    }

    async fn delete(&self, rows: Vec<Value>) -> Result<(), Failure> {
        let (client, list) = (&self.labkey.client, self.target.list.list_name());
        for some in rows.chunks(KEYS) {
            let command =
                json!([{"command": "delete", "schemaName": list.schema, "queryName": list.name, "rows": some}]);
            client.patiently(|| client.save(command.clone(), false)).await?;
            self.tally.removed.fetch_add(some.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The first of these deliveries, whose rows one answer can hold.
fn few(found: Vec<Delivery>) -> Vec<Delivery> {
    let mut rows = 0;
    let few = found.into_iter().take_while(|one| {
        let is_first = rows == 0;
        rows += one.rows;
        is_first || rows <= ROWS
    });
    few.collect()
}

/// How many rows the list holds of each attempt of some deliveries.
#[derive(Default)]
struct Held {
    rows: HashMap<String, i32>,
}

/// What the list holds of one delivery.
#[derive(PartialEq)]
enum Found {
    Nothing,
    /// All rows; and the keys of further attempts that brought them once more.
    Whole(Vec<String>),
    /// So many rows, which no request can have brought alone.
    Part(i32),
}

impl Held {
    fn find(&self, one: &Delivery) -> Found {
        let count = |key: &String| self.rows.get(key).copied().unwrap_or_default();
        let mut found = one.delivery_keys().filter(|key| count(key) > 0);
        match found.next() {
            None => Found::Nothing,
            Some(first) if count(&first) == one.rows => Found::Whole(found.collect()),
            Some(first) => Found::Part(count(&first)),
        }
    }

    /// The keys whose rows are to leave the list: all of a withdrawn delivery, else those of further attempts.
    fn surplus(&self, one: &Delivery) -> Vec<String> {
        match self.find(one) {
            _ if one.is_withdrawn => one.delivery_keys().filter(|key| self.rows.contains_key(key)).collect(),
            Found::Whole(surplus) => surplus,
            Found::Nothing | Found::Part(_) => Vec::new(),
        }
    }
}
