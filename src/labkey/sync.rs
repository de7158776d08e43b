//! The walk of one dataset: look at the list, settle what is in doubt, remove what is withdrawn, then send what is
//! pending until nothing is. It may end at any line; the next walk goes on from what the database and LabKey hold.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::Labkey;
use super::deliver::read;
use super::list::{List, Target};
use super::preflight;
use super::report::{DatasetReport, Tally};
use crate::db::jobs::Lease;
use crate::db::labkey::{self, Delivery, State};
use crate::error::{Error, Result};

/// Deliveries that are looked up at once.
const PAGE: i64 = 1000;

/// While uploads are working, the sync rests so many times as long as it works: they come first, since their clients wait.
const COURTESY: u32 = 6;

/// The longest such rest.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// How long requests under way may go on when the sync is stopped. What has not ended by then is in doubt.
const GRACE: Duration = Duration::from_secs(5);

/// One walk.
pub(super) struct Run<'r> {
    pub pool: &'r PgPool,
    pub labkey: &'r Labkey,
    pub target: Target<'r>,
    pub lease: &'r Lease,
    is_busy: &'r (dyn Fn() -> bool + Sync),
    /// Who has deliveries in hand.
    pub holder: String,
    pub tally: &'r Tally,
}

/// Delivers what is pending of a dataset, and says how that went. The caller is its only sync. While `is_busy` says that
/// the process has more urgent work, it goes slowly.
pub async fn run(
    pool: &PgPool,
    labkey: &Labkey,
    list: &List,
    lease: &Lease,
    is_busy: &(dyn Fn() -> bool + Sync),
) -> (DatasetReport, Result<()>) {
    let tally = Tally::new();
    let overdue = async {
        lease.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    let result = tokio::select! {
        result = walk(pool, labkey, list, lease, is_busy, &tally) => result,
        () = overdue => Err(Error::Cancelled),
    };
    if let Err(error) = &result {
        tally.error(error.to_string());
    }
    let remaining = labkey::stats(pool, &list.dataset.name, labkey.since).await;
    let remaining = remaining.map_or(0, |stats| stats.pending.unsigned_abs());
    (tally.report(&list.dataset.name, remaining), result)
}

async fn walk(
    pool: &PgPool,
    labkey: &Labkey,
    list: &List,
    lease: &Lease,
    is_busy: &(dyn Fn() -> bool + Sync),
    tally: &Tally,
) -> Result<()> {
    lease.progress.enter("check");
    labkey.client.patiently(|| labkey.client.whoami()).await?;
    let check = preflight::check(labkey, list, &labkey::destinations(pool).await?).await?;
    let holder = format!("{}/{}", lease.id, lease.attempt);
    let run = Run { pool, labkey, target: check.target(list)?, lease, is_busy, holder, tally };
    labkey::go_to(pool, &check.destination(labkey)).await?;
    labkey::take_over(pool, &list.dataset.name, &run.holder).await?;
    if let Some(since) = labkey.since {
        labkey::unplan_before(pool, &list.dataset.name, since).await?;
    }
    loop {
        lease.progress.enter("reconcile");
        run.settle_unknown().await?;
        run.remove_latecomers().await?;
        run.replace_withdrawn().await?;
        run.remove_withdrawn().await?;
        lease.progress.enter("deliver");
        let planned = labkey::plan(pool, &list.dataset, labkey.config.batch_size, labkey.since).await?;
        if planned.missing > 0 {
            let table = &list.dataset.table;
            tally.error(format!("the table {table} has no rows of {} submissions: they stay pending", planned.missing));
        }
        run.expect().await?;
        let sent = run.send_pending().await?;
        if lease.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if planned.deliveries == 0 && sent == 0 {
            return Ok(());
        }
    }
}

impl Run<'_> {
    pub(super) fn dataset(&self) -> &str {
        &self.target.list.dataset.name
    }

    /// Rests after a request that took so long, while there is more urgent work.
    pub(super) async fn rest(&self, was_busy: bool, took: Duration) {
        if !was_busy && !self.is_busy() {
            return;
        }
        let requests = u32::try_from(self.labkey.config.requests).unwrap_or(1);
        tokio::select! {
            () = tokio::time::sleep((took * COURTESY * requests).min(LONGEST_REST)) => {}
            () = self.lease.cancelled() => {}
        }
    }

    /// Whether there is more urgent work.
    pub(super) fn is_busy(&self) -> bool {
        (self.is_busy)()
    }

    async fn expect(&self) -> Result<()> {
        let pending = labkey::stats(self.pool, self.dataset(), self.labkey.since).await?.pending;
        let (done, _) = self.lease.progress.rows();
        self.lease.progress.expect_rows(Some(done + pending.unsigned_abs()));
        Ok(())
    }

    /// Sends what is pending, several requests at a time, and answers with their number.
    async fn send_pending(&self) -> Result<usize> {
        let mut groups: VecDeque<Vec<Delivery>> = VecDeque::new();
        let mut running = FuturesUnordered::new();
        let (mut after, mut sent, mut stopped) = (0, 0, None);
        loop {
            while running.len() < self.labkey.config.requests && stopped.is_none() && !self.lease.is_cancelled() {
                if groups.is_empty() {
                    let page = labkey::in_state(self.pool, self.dataset(), State::Pending, after, PAGE).await?;
                    after = page.last().map_or(after, |last| last.id);
                    groups = grouped(page, self.labkey.config.batch_size);
                }
                let Some(group) = groups.pop_front() else { break };
                running.push(self.deliver(group));
            }
            match running.next().await {
                Some(Ok(())) => sent += 1,
                // The others may end before the sync does.
                Some(Err(error)) => stopped = stopped.or(Some(error)),
                None => return stopped.map_or(Ok(sent), Err),
            }
        }
    }
}

/// Deliveries that go into one request together: LabKey takes or refuses them together.
fn grouped(deliveries: Vec<Delivery>, rows: usize) -> VecDeque<Vec<Delivery>> {
    let mut groups: VecDeque<Vec<Delivery>> = VecDeque::new();
    let mut room = 0;
    for delivery in deliveries {
        let size = usize::try_from(delivery.rows).unwrap_or_default();
        match groups.back_mut().filter(|_| size <= room) {
            Some(group) => group.push(delivery),
            None => {
                room = rows;
                groups.push_back(vec![delivery]);
            }
        }
        room = room.saturating_sub(size);
    }
    groups
}

/// Looks at a list, and lets LabKey check the next rows without storing them.
///
/// # Errors
/// A server that does not let us in, a database out of reach.
pub async fn rehearse(pool: &PgPool, labkey: &Labkey, list: &List) -> Result<DatasetReport> {
    let tally = Tally::new();
    labkey.client.whoami().await?;
    let check = preflight::check(labkey, list, &labkey::destinations(pool).await?).await?;
    match check.target(list) {
        Ok(target) => check_rows(pool, labkey, &target, &tally).await?,
        Err(failure) => tally.error(failure.reason),
    }
    let pending = labkey::stats(pool, &list.dataset.name, labkey.since).await?.pending;
    Ok(tally.report(&list.dataset.name, pending.unsigned_abs()))
}

async fn check_rows(pool: &PgPool, labkey: &Labkey, target: &Target<'_>, tally: &Tally) -> Result<()> {
    let (list, batch) = (target.list, labkey.config.batch_size);
    let mut next = labkey::in_state(pool, &list.dataset.name, State::Pending, 0, PAGE).await?;
    if next.is_empty() {
        next = labkey::next_unplanned(pool, &list.dataset.name, batch, labkey.since).await?;
    }
    let Some(group) = grouped(next, batch).pop_front() else { return Ok(()) };
    let rows = read(pool, target.copy_json(&group), labkey.config.batch_bytes.as_u64()).await?;
    let rows = rows.unwrap_or_default();
    let rows: Vec<Value> = rows.iter().filter_map(|row| serde_json::from_slice(row).ok()).collect();
    let command = json!([{"command": "insert", "schemaName": list.schema, "queryName": list.name, "rows": rows}]);
    if let Err(failure) = labkey.client.save(command, true).await {
        tally.error(failure.reason);
    }
    Ok(())
}
