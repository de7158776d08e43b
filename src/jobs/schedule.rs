//! What starts by itself: exports by cron, in each schedule's own time zone, once over all replicas.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use tokio_cron_scheduler::{Job as Tick, JobScheduler, JobSchedulerError};

use super::{NewExport, enqueue_export, retention};
use crate::app::App;
use crate::dataset::Dataset;
use crate::db::{schedules, submissions};
use crate::error::{Error, Result};
use crate::export::spec::ExportSpec;
use crate::telemetry;

/// When schedules are looked at: a cron expression of seconds, since daylight saving time moves the hours of others.
const LOOK: &str = "*/1 * * * * *";

/// When retention runs, and exports are counted.
const CLEAR: &str = "30 */10 * * * *";

/// One dataset's exports.
pub struct Schedule {
    /// Under which its ticks are remembered: another expression is another schedule.
    name: String,
    dataset: Arc<Dataset>,
    cron: Cron,
    zone: Tz,
    spec: ExportSpec,
    retention_days: u32,
    /// Whether it is left out while the dataset is empty.
    only_with_rows: bool,
}

/// All schedules of a configuration.
///
/// # Errors
/// An unknown dataset, an expression or a time zone that is none, a form that cannot be had.
pub fn all(app: &App) -> Result<Vec<Schedule>> {
    let config = &app.config.export;
    let mut schedules = Vec::new();
    for own in &config.schedules {
        let wrong = |reason: String| Error::Environment(format!("export.schedules: {}: {reason}", own.dataset));
        let dataset = app.datasets.get(&own.dataset).ok_or_else(|| wrong("is no dataset".into()))?;
        let zone = own.timezone.as_deref().unwrap_or("UTC");
        let zone = Tz::from_str(zone).map_err(|_| wrong(format!("`{zone}` is no time zone such as Europe/Berlin")))?;
        let spec = ExportSpec {
            format: own.format,
            compression: own.compression,
            compression_level: own.compression_level,
            ..ExportSpec::default()
        };
        spec.plan(dataset, (config.compression, config.compression_level)).map_err(|error| wrong(error.to_string()))?;
        schedules.push(Schedule {
            name: format!("export:{}:{}:{zone}:{}", own.dataset, own.cron, own.format.as_str()),
            dataset: Arc::clone(dataset),
            cron: parse(&own.cron).map_err(|error| wrong(format!("`{}`: {error}", own.cron)))?,
            zone,
            spec,
            retention_days: own.retention_days.unwrap_or(config.retention_days),
            only_with_rows: false,
        });
    }
    let Some(cron) = config.interval_cron().map_err(Error::Environment)? else { return Ok(schedules) };
    let is_free = |dataset: &&Arc<Dataset>| config.schedules.iter().all(|own| own.dataset != dataset.name);
    for dataset in app.datasets.iter().filter(is_free) {
        schedules.push(Schedule {
            name: format!("export:{}:{cron}:UTC", dataset.name),
            dataset: Arc::clone(dataset),
            cron: parse(&cron).map_err(|error| Error::Internal(error.to_string()))?,
            zone: Tz::UTC,
            spec: ExportSpec::default(),
            retention_days: config.retention_days,
            only_with_rows: true,
        });
    }
    Ok(schedules)
}

fn parse(cron: &str) -> Result<Cron, croner::errors::CronError> {
    CronParser::builder().seconds(Seconds::Required).dom_and_dow(true).build().parse(cron)
}

/// The running clock.
pub struct Clock(JobScheduler);

impl Clock {
    /// Starts it. Ticks that were missed while nobody ran are made up for, once each.
    ///
    /// # Errors
    /// See [`all`].
    pub async fn start(app: &App) -> Result<Self> {
        let schedules = Arc::new(Schedules::new(all(app)?));
        let clock = JobScheduler::new().await.map_err(fault)?;
        let (looking, clearing) = (app.clone(), app.clone());
        let look = Tick::new_async(LOOK, move |_, _| {
            let (app, schedules) = (looking.clone(), Arc::clone(&schedules));
            Box::pin(async move { schedules.run_due(&app, Utc::now()).await })
        });
        let clear = Tick::new_async(CLEAR, move |_, _| {
            let app = clearing.clone();
            Box::pin(async move { retention::run(&app).await })
        });
        clock.add(look.map_err(fault)?).await.map_err(fault)?;
        clock.add(clear.map_err(fault)?).await.map_err(fault)?;
        clock.start().await.map_err(fault)?;
        Ok(Self(clock))
    }

    /// Stops it.
    pub async fn stop(mut self) {
        if let Err(error) = self.0.shutdown().await {
            tracing::warn!(%error, "the clock did not stop");
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn fault(error: JobSchedulerError) -> Error {
    Error::Internal(format!("the clock cannot be started: {error}"))
}

/// The schedules, and the last tick of each that this process knows to be acted upon.
pub struct Schedules {
    all: Vec<Schedule>,
    last: Mutex<HashMap<String, DateTime<Utc>>>,
}

impl Schedules {
    /// Schedules of which nothing is known yet.
    #[must_use]
    pub fn new(all: Vec<Schedule>) -> Self {
        Self { all, last: Mutex::default() }
    }

    /// Makes the exports that are due.
    pub async fn run_due(&self, app: &App, now: DateTime<Utc>) {
        // Until then the tables may not be there.
        if !app.is_ready.load(Ordering::Acquire) {
            return;
        }
        for schedule in &self.all {
            if let Err(error) = self.run_one(app, schedule, now).await
                && !error.is_retryable()
            {
                tracing::error!(schedule = schedule.name, error = error.report(), "a scheduled export was not made");
            }
        }
    }

    async fn run_one(&self, app: &App, schedule: &Schedule, now: DateTime<Utc>) -> Result<()> {
        let Some(tick) = schedule.latest(now) else { return Ok(()) };
        let known = self.last.lock().unwrap_or_else(PoisonError::into_inner).get(&schedule.name).copied();
        if known.is_some_and(|known| tick <= known) {
            return Ok(());
        }
        let last = schedules::last_tick(&app.pool, &schedule.name, now).await?;
        if tick > last {
            schedule.act(app, tick).await?;
        }
        let last = tick.max(last);
        self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(schedule.name.clone(), last);
        telemetry::next_export(&schedule.dataset.name, schedule.next(now));
        Ok(())
    }
}

impl Schedule {
    /// The last tick that is not after `now`.
    fn latest(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.moment(self.cron.find_previous_occurrence(&self.wall_clock(now), true).ok()?)
    }

    fn next(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.moment(self.cron.find_next_occurrence(&self.wall_clock(now), false).ok()?)
    }

    /// What a clock on the wall shows, as if it were UTC: ticks are found on it, where no hour is missing or doubled.
    fn wall_clock(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        now.with_timezone(&self.zone).naive_local().and_utc()
    }

    /// When the clock on the wall shows that: for the first time where it does twice, an hour later where it never does.
    fn moment(&self, shown: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = |shown: DateTime<Utc>| self.zone.from_local_datetime(&shown.naive_utc()).earliest();
        local(shown).or_else(|| local(shown + TimeDelta::hours(1))).map(|moment| moment.with_timezone(&Utc))
    }

    /// Makes the export of a tick, unless another replica has.
    async fn act(&self, app: &App, tick: DateTime<Utc>) -> Result<()> {
        let mut transaction = app.pool.begin().await?;
        if !schedules::take(&mut transaction, &self.name, tick).await? {
            return Ok(());
        }
        if !self.only_with_rows || submissions::any(&mut transaction, &self.dataset.name).await? {
            let key = format!("{}@{}", self.name, tick.to_rfc3339());
            let new = NewExport {
                dataset: &self.dataset,
                spec: &self.spec,
                retention_hours: self.retention_days.saturating_mul(24),
                asked: None,
                dedupe_key: Some(&key),
            };
            enqueue_export(app, &mut transaction, &new).await?;
            tracing::info!(dataset = self.dataset.name, tick = %tick, "scheduled export made");
        }
        transaction.commit().await?;
        app.new_job.notify_one();
        Ok(())
    }
}
