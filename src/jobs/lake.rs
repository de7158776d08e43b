//! The job that brings one partitioned dataset up to date.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Work, enqueue_alone};
use crate::app::App;
use crate::config::{Config, Partitioning};
use crate::dataset::Datasets;
use crate::db::jobs::{self, Job, Lease};
use crate::error::{Error, Result};
use crate::export::spec::ExportSpec;
use crate::lake::{self, FOLDER, Place, Wish};
use crate::telemetry;
use sqlx::PgConnection;

/// What is to be brought up to date, as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LakeRun {
    /// The dataset's name.
    pub dataset: String,
    /// The form of its files, and which times are looked at.
    pub spec: ExportSpec,
    /// How it is cut.
    pub partitioning: Partitioning,
    /// Whether what is there is written anew.
    #[serde(default)]
    pub overwrite: bool,
}

impl LakeRun {
    /// Checks it.
    ///
    /// # Errors
    /// An unknown dataset, every field that is wrong.
    pub fn wish(&self, config: &Config, datasets: &Datasets) -> Result<Wish> {
        let dataset = datasets.get(&self.dataset);
        let dataset = dataset.ok_or_else(|| Error::NotFound { what: "dataset", name: self.dataset.clone() })?;
        let mut wish = Wish::new(dataset, &self.spec, &self.partitioning, self.overwrite, &config.export)?;
        // What an attempt has finished, the next one need not do again.
        wish.historical = true;
        wish.grace = config.lake.grace;
        Ok(wish)
    }
}

/// Makes the job, in the caller's transaction; the one that waits to begin where there is one. One that has begun may have
/// looked at the rows before those came that this is asked for.
///
/// # Errors
/// One of that dataset that waits or runs and writes in another way, a database out of reach.
pub async fn enqueue(app: &App, connection: &mut PgConnection, run: LakeRun) -> Result<Job> {
    let key = format!("lake:{}", run.dataset);
    let work = Work::Lake(Box::new(run));
    let (job, _) = enqueue_alone(connection, &work, &key, app.config.export.max_attempts).await?;
    let payload = super::stored(&work)?;
    let unfinished = jobs::unfinished(connection, &key).await?;
    let Some(other) = unfinished.iter().find(|other| other.payload != payload) else { return Ok(job) };
    let reason = format!("job {} is writing to this dataset in another way; try again when it has ended", other.id);
    Err(Error::Conflict(reason))
}

/// Where the service keeps its own.
pub fn place(app: &App) -> Place<'_> {
    Place { storage: &app.storage, folder: FOLDER }
}

/// Whether something was ever written of a dataset, so that what is removed has to be removed there too.
pub async fn is_begun(app: &App, dataset: &str) -> Result<bool> {
    app.storage.exists(&format!("{FOLDER}/{dataset}/{}", lake::manifest::FILE)).await
}

/// Does it; false when the job had become somebody else's.
pub async fn run(app: &App, lease: &Lease, run: &LakeRun) -> Result<bool> {
    let wish = run.wish(&app.config, &app.datasets)?;
    let place = place(app);
    let started = Instant::now();
    let result = lake::run(&app.pool, &app.config.export, &wish, &place, lease).await;
    let report = result.as_ref().map(|outcome| outcome.report(&place));
    let counted = report.as_ref().map(|report| (report.rows, report.bytes)).map_err(|error| *error);
    telemetry::lake_run(&run.dataset, &counted, started.elapsed());
    if let Ok(report) = report {
        tracing::info!(
            dataset = run.dataset,
            partitions = report.partitions,
            unchanged = report.unchanged,
            rows = report.rows,
            replaced = report.replaced,
            "partitioned dataset is up to date"
        );
        jobs::report(&app.pool, lease, &super::stored(&report)?).await?;
    }
    result?;
    jobs::complete(&mut *app.pool.acquire().await?, lease).await
}
