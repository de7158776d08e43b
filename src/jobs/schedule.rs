//! What starts by itself: exports, partitioned datasets and extracts by cron, in each schedule's own time zone, and syncs with LabKey; once over
//! all replicas.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use croner::parser::Seconds;
use tokio_cron_scheduler::{Job as Tick, JobScheduler, JobSchedulerError};

use super::extract::config::ExtractConfig;
use super::lake::LakeRun;
use super::timing::Timing;
use super::{NewExport, enqueue_export, enqueue_sync, extract, lake, retention, sync};
use crate::app::App;
use crate::config::{Config, Partitioning};
use crate::dataset::{Dataset, Datasets};
use crate::db::{extracts, labkey, schedules, submissions};
use crate::error::{Error, Result};
use crate::export::spec::ExportSpec;
use crate::labkey::Labkey;
use crate::lake::partition;
use crate::telemetry;

/// When schedules are looked at: a cron expression of seconds, since daylight saving time moves the hours of others.
const EVERY_SECOND: &str = "*/1 * * * * *";

/// When retention runs.
const CLEAR: &str = "30 */10 * * * *";

/// When it is measured how old exports are: each `AGE_SECONDS` of [`retention`].
const AGE: &str = "*/15 * * * * *";

/// When what rows wait for LabKey is measured.
const MEASURE: &str = "15 * * * * *";

/// How long one waits whose job another stands in the way of.
const PAUSE: TimeDelta = TimeDelta::minutes(1);

/// What is done with one dataset, and when.
pub struct Schedule {
    /// Under which its ticks are remembered: another expression is another schedule.
    name: String,
    dataset: Arc<Dataset>,
    timing: Timing,
    action: Action,
}

enum Action {
    Export {
        spec: ExportSpec,
        retention_days: u32,
        /// The webhooks that hear how its exports end.
        notify: Vec<String>,
        /// Whether it is left out while the dataset is empty.
        only_with_rows: bool,
    },
    Lake(LakeRun),
    LabkeySync,
}

/// All schedules of a service.
///
/// # Errors
/// An unknown dataset, an expression or a time zone that is none, a form that cannot be had.
pub fn all(app: &App) -> Result<Vec<Schedule>> {
    configured(&app.config, &app.datasets, app.labkey.as_deref())
}

/// All schedules of a configuration.
///
/// # Errors
/// As those of [`all`].
pub fn configured(config: &Config, datasets: &Datasets, labkey: Option<&Labkey>) -> Result<Vec<Schedule>> {
    let mut schedules = exports(config, datasets)?;
    schedules.extend(lakes(config, datasets)?);
    schedules.extend(syncs(labkey)?);
    Ok(schedules)
}

/// The partitioned datasets that have no schedule of their own. One that cannot be cut like the others is left out, since
/// nobody has asked for it.
fn lakes(config: &Config, datasets: &Datasets) -> Result<Vec<Schedule>> {
    let Some(cron) = &config.lake.cron else { return Ok(Vec::new()) };
    let owned = |name: &str| {
        let mut own = config.export.schedules.iter();
        own.any(|own| own.dataset == name && own.partition.is_some())
    };
    let partitioning = Partitioning { temporal: Some(config.lake.temporal), ..Partitioning::default() };
    let is_fit = |dataset: &&Arc<Dataset>| {
        let faults = partition::faults(dataset, &partitioning);
        if let Some(fault) = faults.first() {
            tracing::warn!(
                dataset = dataset.name,
                reason = fault.reason,
                "has no partitioned dataset; an [[export.schedules]] with partition = {{ by = [\"COLUMN\"] }} makes one"
            );
        }
        faults.is_empty()
    };
    let schedule = |dataset: &Arc<Dataset>| {
        let run = LakeRun {
            dataset: dataset.name.clone(),
            spec: ExportSpec::default(),
            partitioning: partitioning.clone(),
            overwrite: false,
        };
        lake(config, datasets, dataset, (cron, &config.lake.timezone), run)
    };
    let schedules = datasets.iter().filter(|dataset| !owned(&dataset.name)).filter(is_fit).map(schedule);
    schedules.collect::<Result<_, String>>().map_err(|reason| Error::Environment(format!("lake: {reason}")))
}

fn lake(
    config: &Config,
    datasets: &Datasets,
    dataset: &Arc<Dataset>,
    (cron, zone): (&str, &str),
    run: LakeRun,
) -> Result<Schedule, String> {
    run.wish(config, datasets).map_err(|error| error.to_string())?;
    Ok(Schedule {
        name: format!("lake:{}:{cron}:{zone}", dataset.name),
        dataset: Arc::clone(dataset),
        timing: Timing::parse(cron, Some(zone), Seconds::Required)?,
        action: Action::Lake(run),
    })
}

fn syncs(labkey: Option<&Labkey>) -> Result<Vec<Schedule>> {
    let Some(labkey) = labkey.filter(|labkey| labkey.config.auto_upload) else { return Ok(Vec::new()) };
    let cron = labkey.config.interval_cron().map_err(Error::Environment)?;
    let schedule = |dataset: &Arc<Dataset>| {
        Ok(Schedule {
            name: format!("labkey:{}:{cron}", dataset.name),
            dataset: Arc::clone(dataset),
            timing: Timing::parse(&cron, None, Seconds::Required).map_err(Error::Internal)?,
            action: Action::LabkeySync,
        })
    };
    labkey.lists.iter().map(|list| schedule(&list.dataset)).collect()
}

/// Refuses schedules, in the order of the configuration, of which one would be in the way of another.
fn refuse_twins(schedules: &[Schedule]) -> Result<()> {
    let reason = |one: &Schedule, other: &Schedule| match (&one.action, &other.action) {
        _ if one.name == other.name => Some("have the same times and format, so that only one of them would ever run"),
        (Action::Lake(one), Action::Lake(other)) if one.dataset == other.dataset => {
            let is_same = one.partitioning == other.partitioning && one.spec.format == other.spec.format;
            (!is_same).then_some("partition it in two ways, of which its folder takes one")
        }
        _ => None,
    };
    for (second, schedule) in schedules.iter().enumerate() {
        for (first, other) in schedules[..second].iter().enumerate() {
            if let Some(reason) = reason(schedule, other) {
                let (dataset, first, second) = (&schedule.dataset.name, first + 1, second + 1);
                return Err(Error::Environment(format!(
                    "export.schedules: {dataset}: schedules {first} and {second} {reason}: leave one out"
                )));
            }
        }
    }
    Ok(())
}

fn exports(service: &Config, datasets: &Datasets) -> Result<Vec<Schedule>> {
    let config = &service.export;
    let mut schedules = Vec::new();
    for own in &config.schedules {
        let wrong = |reason: String| Error::Environment(format!("export.schedules: {}: {reason}", own.dataset));
        let dataset = datasets.get(&own.dataset).ok_or_else(|| wrong("is no dataset".into()))?;
        let timing = Timing::parse(&own.cron, own.timezone.as_deref(), Seconds::Required).map_err(wrong)?;
        let zone = own.timezone.as_deref().unwrap_or("UTC");
        let spec = ExportSpec {
            format: own.format,
            compression: own.compression,
            compression_level: own.compression_level,
            ..ExportSpec::default()
        };
        if let Some(partitioning) = &own.partition {
            if own.retention_days.is_some() || !own.notify.is_empty() {
                return Err(wrong("`partition` goes with neither `retention_days` nor `notify`".into()));
            }
            let partitioning = partitioning.clone();
            let run = LakeRun { dataset: own.dataset.clone(), spec, partitioning, overwrite: false };
            schedules.push(lake(service, datasets, dataset, (&own.cron, zone), run).map_err(wrong)?);
            continue;
        }
        spec.plan(dataset, (config.compression, config.compression_level)).map_err(|error| wrong(error.to_string()))?;
        schedules.push(Schedule {
            name: format!("export:{}:{}:{zone}:{}", own.dataset, own.cron, own.format.as_str()),
            dataset: Arc::clone(dataset),
            timing,
            action: Action::Export {
                spec,
                retention_days: own.retention_days.unwrap_or(config.retention_days),
                notify: own.notify.clone(),
                only_with_rows: false,
            },
        });
    }
    refuse_twins(&schedules)?;
    let Some(cron) = config.interval_cron().map_err(Error::Environment)? else { return Ok(schedules) };
    let is_free = |dataset: &&Arc<Dataset>| {
        let mut own = config.schedules.iter().filter(|own| own.partition.is_none());
        own.all(|own| own.dataset != dataset.name)
    };
    for dataset in datasets.iter().filter(is_free) {
        schedules.push(Schedule {
            name: format!("export:{}:{cron}:UTC", dataset.name),
            dataset: Arc::clone(dataset),
            timing: Timing::parse(&cron, None, Seconds::Required).map_err(Error::Internal)?,
            action: Action::Export {
                spec: ExportSpec::default(),
                retention_days: config.retention_days,
                notify: Vec::new(),
                only_with_rows: true,
            },
        });
    }
    Ok(schedules)
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
        add(&clock, EVERY_SECOND, app, move |app| {
            let schedules = Arc::clone(&schedules);
            async move { schedules.run_due(&app, Utc::now()).await }
        })
        .await?;
        add(&clock, CLEAR, app, |app| async move { retention::run(&app).await }).await?;
        add(&clock, AGE, app, |app| async move { retention::measure(&app).await }).await?;
        add(&clock, MEASURE, app, |app| async move { sync::measure(&app).await }).await?;
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

/// Lets a clock do that work at the times of a cron expression of seconds.
async fn add<F>(
    clock: &JobScheduler,
    cron: &str,
    app: &App,
    work: impl Fn(App) -> F + Send + Sync + 'static,
) -> Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let app = app.clone();
    let tick = Tick::new_async(cron, move |_, _| Box::pin(work(app.clone()))).map_err(fault)?;
    clock.add(tick).await.map(drop).map_err(fault)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn fault(error: JobSchedulerError) -> Error {
    Error::Internal(format!("the clock cannot be started: {error}"))
}

/// The schedules, and the last tick of each that this process knows to be acted upon.
pub struct Schedules {
    all: Vec<Schedule>,
    last: Mutex<HashMap<String, DateTime<Utc>>>,
    /// Until when those wait whose job another one stands in the way of.
    waiting: Mutex<HashMap<String, DateTime<Utc>>>,
}

impl Schedules {
    /// Schedules of which nothing is known yet.
    #[must_use]
    pub fn new(all: Vec<Schedule>) -> Self {
        Self { all, last: Mutex::default(), waiting: Mutex::default() }
    }

    /// Makes the jobs and the runs of extracts that are due.
    pub async fn run_due(&self, app: &App, now: DateTime<Utc>) {
        // Until then the tables may not be there.
        if !app.is_ready.load(Ordering::Acquire) {
            return;
        }
        for schedule in &self.all {
            if let Err(error) = self.export(app, schedule, now).await
                && !error.is_retryable()
            {
                tracing::error!(schedule = schedule.name, error = error.report(), "a scheduled job was not made");
            }
        }
        if let Err(error) = self.extract(app, now).await
            && !error.is_retryable()
        {
            tracing::error!(error = error.report(), "scheduled extracts were not made");
        }
    }

    async fn export(&self, app: &App, schedule: &Schedule, now: DateTime<Utc>) -> Result<()> {
        let waits = |until: &DateTime<Utc>| *until > now;
        if !self.waiting().get(&schedule.name).is_some_and(waits)
            && let Some(tick) = self.due(app, &schedule.name, &schedule.timing, now).await?
        {
            match schedule.act(app, tick).await {
                Err(Error::Conflict(reason)) => {
                    tracing::warn!(schedule = schedule.name, reason, "a scheduled job waits for another");
                    self.waiting().insert(schedule.name.clone(), now + PAUSE);
                }
                acted => {
                    acted?;
                    self.remember(&schedule.name, tick);
                }
            }
        }
        if matches!(schedule.action, Action::Export { .. }) {
            telemetry::next_export(&schedule.dataset.name, schedule.timing.next(now));
        }
        Ok(())
    }

    async fn extract(&self, app: &App, now: DateTime<Utc>) -> Result<()> {
        extract::promote_all(app).await?;
        for due in extracts::scheduled(&app.pool).await? {
            // One that a newer replica has stored, and that this one does not understand, is that one's to run.
            let Ok(config) = ExtractConfig::read(&due.config) else { continue };
            let Ok(Some(timing)) = config.timing() else { continue };
            let name = extract::schedule_name(&due.id);
            if let Some(tick) = self.due(app, &name, &timing, now).await? {
                extract::act(app, &due, &name, tick).await?;
                self.remember(&name, tick);
            }
        }
        Ok(())
    }

    /// The tick that is to be acted upon, if there is one.
    async fn due(&self, app: &App, name: &str, timing: &Timing, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
        let Some(tick) = timing.latest(now) else { return Ok(None) };
        let known = self.last.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        if known.is_some_and(|known| tick <= known) {
            return Ok(None);
        }
        let last = schedules::last_tick(&app.pool, name, now).await?;
        if tick > last {
            return Ok(Some(tick));
        }
        self.remember(name, last);
        Ok(None)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, DateTime<Utc>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, name: &str, tick: DateTime<Utc>) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), tick);
    }
}

impl Schedule {
    /// Makes the job of a tick, unless another replica has.
    async fn act(&self, app: &App, tick: DateTime<Utc>) -> Result<()> {
        let mut transaction = app.pool.begin().await?;
        if !schedules::take(&mut transaction, &self.name, tick).await? {
            return Ok(());
        }
        let (dataset, connection) = (&self.dataset.name, &mut *transaction);
        let made = match &self.action {
            Action::Export { only_with_rows: true, .. } if !submissions::any(connection, dataset).await? => None,
            Action::Export { spec, retention_days, notify, .. } => {
                let key = format!("{}@{}", self.name, tick.to_rfc3339());
                let new = NewExport {
                    dataset: &self.dataset,
                    spec,
                    retention_hours: retention_days.saturating_mul(24),
                    notify,
                    asked: None,
                    dedupe_key: Some(&key),
                };
                Some(enqueue_export(app, connection, &new).await?)
            }
            Action::Lake(run) => {
                match submissions::any(connection, dataset).await? || lake::is_begun(app, dataset).await? {
                    true => Some(lake::enqueue(app, connection, run.clone()).await?),
                    false => None,
                }
            }
            Action::LabkeySync => {
                let since = app.labkey.as_ref().and_then(|labkey| labkey.since);
                match labkey::any_work(connection, dataset, since).await? {
                    true => Some(enqueue_sync(connection, dataset).await?.0),
                    false => None,
                }
            }
        };
        transaction.commit().await?;
        if let Some(job) = made {
            tracing::info!(dataset, job = %job.id, kind = job.kind, tick = %tick, "scheduled job made");
            app.wake_workers();
        }
        Ok(())
    }
}
