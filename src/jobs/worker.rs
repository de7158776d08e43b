//! Workers: each claims what is due, keeps its lease alive while it works, and says how it ended.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{EXPORTS, NOTICES, SYNCS, Work, clean_up, ended, export, extract, lake, notice, sync, work_of};
use crate::app::App;
use crate::db::jobs::{self, Beat, Job, Lease};
use crate::error::{Error, Result};

/// How often a worker looks for jobs that others have made.
const POLL: Duration = Duration::from_secs(1);

/// How often a running job tells how far it is, and hears whether it shall stop.
const BEAT: Duration = Duration::from_millis(500);

/// The wait before the second attempt; each further one waits twice as long, up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// How long a stop waits for jobs to be given back, which takes a database that answers.
const GIVE_BACK: Duration = Duration::from_secs(10);

/// What only a configuration knows: another replica may have a newer one, or this one before long.
const CONFIGURED: [&str; 3] = ["dataset", "LabKey list of the dataset", "webhook"];

/// How long a job waits for a replica that knows what it is about.
const REPLICA_WAIT: TimeDelta = TimeDelta::hours(6);

/// The workers of this process.
pub struct Workers {
    stop: CancellationToken,
    /// Ends the patience with running jobs.
    give_back: CancellationToken,
    workers: JoinSet<()>,
}

impl Workers {
    /// Starts as many as are configured for each kind of work, so that none waits for another.
    #[must_use]
    pub fn start(app: &App) -> Self {
        let mut workers = Self::none();
        let slots = app.config.export.slots;
        let syncs = if app.labkey.is_some() { app.config.labkey.slots } else { 0 };
        // Notices must not wait for a slot.
        let notices = usize::from(slots > 0);
        for (kinds, slots) in [(EXPORTS, slots), (SYNCS, syncs), (NOTICES, notices)] {
            for slot in 0..slots {
                workers.add(app, kinds, slot, None);
            }
        }
        workers
    }

    /// Starts one that does this job, and nobody else's.
    #[must_use]
    pub fn only(app: &App, job: &Job) -> Self {
        let mut workers = Self::none();
        workers.add(app, EXPORTS, 0, Some(job.id));
        workers
    }

    fn none() -> Self {
        Self { stop: CancellationToken::new(), give_back: CancellationToken::new(), workers: JoinSet::new() }
    }

    fn add(&mut self, app: &App, kinds: &'static [&'static str], slot: usize, only: Option<Uuid>) {
        let name = format!("{}:{}:{}:{slot}", hostname(), std::process::id(), kinds[0]);
        self.workers.spawn(work(app.clone(), kinds, only, name, self.stop.clone(), self.give_back.clone()));
    }

    /// Claims no more; lets running jobs end within the deadline, then gives them back to be done again.
    pub async fn stop(mut self, deadline: Duration) {
        self.stop.cancel();
        let all_ended = async { while self.workers.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, all_ended).await.is_err() {
            self.give_back.cancel();
            let all_given_back = async { while self.workers.join_next().await.is_some() {} };
            if tokio::time::timeout(GIVE_BACK, all_given_back).await.is_err() {
                tracing::warn!("jobs could not be given back: others take them over when their leases are over");
            }
        }
    }
}

async fn work(
    app: App,
    kinds: &'static [&'static str],
    only: Option<Uuid>,
    name: String,
    stop: CancellationToken,
    give_back: CancellationToken,
) {
    while !stop.is_cancelled() {
        // Until then the tables may not be there.
        if !app.is_ready.load(Ordering::Acquire) {
            wait(&app, &stop).await;
            continue;
        }
        match jobs::claim(&app.pool, &name, app.config.export.lease, kinds, only).await {
            Ok(Some(job)) => {
                let performed = AssertUnwindSafe(perform(&app, job, &give_back)).catch_unwind().await;
                if performed.is_err() {
                    tracing::error!("a job panicked: it is tried again when its lease is over");
                }
            }
            Ok(None) => wait(&app, &stop).await,
            Err(error) => {
                if !error.is_retryable() {
                    tracing::warn!(error = error.report(), "jobs cannot be claimed");
                }
                wait(&app, &stop).await;
            }
        }
    }
}

async fn wait(app: &App, stop: &CancellationToken) {
    tokio::select! {
        () = app.new_job.notified() => {}
        () = tokio::time::sleep(POLL) => {}
        () = stop.cancelled() => {}
    }
}

/// Does one job that was claimed.
pub async fn perform(app: &App, job: Job, give_back: &CancellationToken) {
    let lease = Lease::new(job.id, job.attempt);
    let result = if job.cancel_requested {
        Err(Error::Cancelled)
    } else if job.attempt > job.max_attempts {
        Err(Error::Internal(format!("given up: its worker vanished in each of {} attempts", job.max_attempts)))
    } else {
        run(app, &job, &lease, give_back).await
    };
    let ended = match result {
        Ok(true) => Ok(true),
        Ok(false) => {
            tracing::warn!(job = %job.id, attempt = job.attempt, "a job was taken over by another worker");
            Ok(true)
        }
        Err(error) => conclude(app, &job, &lease, &error, give_back.is_cancelled()).await,
    };
    if let Err(error) = ended {
        // The lease runs out, and another attempt begins.
        tracing::warn!(job = %job.id, error = error.report(), "the end of a job could not be recorded");
    }
}

/// Records why an attempt failed, and whether there is another.
async fn conclude(app: &App, job: &Job, lease: &Lease, error: &Error, is_stopping: bool) -> Result<bool> {
    let report = error.report();
    if matches!(error, Error::Cancelled) {
        if is_stopping {
            return jobs::give_back(&app.pool, lease, Duration::ZERO, "the service was stopped").await;
        }
        tracing::info!(job = %job.id, "job cancelled");
        let is_ours = give_up(app, job, lease, "cancelled", &report).await?;
        if is_ours {
            clean_up(app, job).await;
        }
        return Ok(is_ours);
    }
    let is_strange = matches!(error, Error::NotFound { what, .. } if CONFIGURED.contains(what))
        && Utc::now() - job.created_at < REPLICA_WAIT;
    if is_strange || matches!(error, Error::Locked(_)) {
        tracing::info!(job = %job.id, reason = report, "job waits until another process has ended, or takes it");
        return jobs::give_back(&app.pool, lease, backoff(job.attempt), &report).await;
    }
    if error.is_retryable() && job.attempt < job.max_attempts {
        let wait = backoff(job.attempt).max(error.retry_after().unwrap_or_default());
        tracing::warn!(job = %job.id, attempt = job.attempt, error = report, ?wait, "job failed; it is tried again");
        return jobs::retry(&app.pool, lease, wait, &report).await;
    }
    tracing::error!(job = %job.id, attempt = job.attempt, error = report, "job failed");
    give_up(app, job, lease, "failed", &report).await
}

/// Ends a job for good, with all that follows; false when it is somebody else's now.
async fn give_up(app: &App, job: &Job, lease: &Lease, state: &str, report: &str) -> Result<bool> {
    let mut transaction = app.pool.begin().await?;
    if !jobs::fail(&mut transaction, lease, state, report).await? {
        return Ok(false);
    }
    ended(app, &mut transaction, job, state, report).await?;
    transaction.commit().await?;
    app.wake_workers();
    Ok(true)
}

fn backoff(attempt: i32) -> Duration {
    let doublings = u32::try_from(attempt - 1).unwrap_or_default().min(16);
    (FIRST_WAIT * 2_u32.pow(doublings)).min(LONGEST_WAIT)
}

/// Works while the lease is kept alive beside it.
async fn run(app: &App, job: &Job, lease: &Lease, give_back: &CancellationToken) -> Result<bool> {
    let work = work_of(job)?;
    let working = Box::pin(async {
        match work {
            Work::Export { export_id, retention_hours, notify } => {
                export::run(app, lease, export_id, retention_hours, &notify).await
            }
            Work::Extract { run_id } => extract::run(app, lease, &run_id).await,
            Work::Notice(notice) => notice::run(app, lease, &notice).await,
            Work::Lake(wish) => lake::run(app, lease, &wish).await,
            Work::LabkeySync { dataset } => sync::run(app, lease, &dataset).await,
        }
    });
    let beating = Box::pin(keep_alive(app, lease, give_back));
    match select(working, beating).await {
        Either::Left((result, _)) => result,
        // Told to stop: the work cleans up before it ends.
        Either::Right((is_lost, working)) => match working.await {
            Err(Error::Cancelled) if is_lost => Ok(false),
            result => result,
        },
    }
}

/// Renews the lease until the work must stop; true when that is because the job is somebody else's.
async fn keep_alive(app: &App, lease: &Lease, give_back: &CancellationToken) -> bool {
    let length = app.config.export.lease;
    let mut renewed = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(BEAT) => {}
            () = give_back.cancelled() => {
                lease.cancel();
                return false;
            }
        }
        let beat = tokio::time::timeout(length, jobs::beat(&app.pool, lease, length)).await;
        let is_lost = match beat {
            Ok(Ok(Beat::GoOn)) => {
                renewed = Instant::now();
                continue;
            }
            Ok(Ok(Beat::Cancel)) => false,
            Ok(Ok(Beat::Lost)) => true,
            // The database is away: work goes on for as long as the lease holds.
            _ if renewed.elapsed() < length => continue,
            _ => true,
        };
        lease.cancel();
        return is_lost;
    }
}

fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "unknown".to_owned())
}
