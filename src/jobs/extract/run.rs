//! The job that does one run: one snapshot, a description, the files of each dataset, the manifest; and the record of all
//! of it in the transaction that ends the job.

use std::sync::Arc;

use bytes::Bytes;
use bytesize::ByteSize;
use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest, Sha256};

use super::config::{ExtractConfig, ExtractFormat, Include};
use super::{FOLDER, contents, new_id, notify, promote};
use crate::app::App;
use crate::config::ExportConfig;
use crate::db::artifacts::{self, Artifact};
use crate::db::extract_runs::{self, Ended, Run};
use crate::db::extracts;
use crate::db::jobs::{self, Lease};
use crate::error::{Error, Result};
use crate::export::snapshot::{Snapshot, Table};
use crate::export::spec::Plan;
use crate::export::zip::{self, Entry};
use crate::export::{self, Target, manifest};
use crate::telemetry;

/// Does a run; false when its job had become somebody else's.
pub async fn run(app: &App, lease: &Lease, run: &str) -> Result<bool> {
    let found = extract_runs::by_id(&app.pool, run).await?;
    let run = found.ok_or_else(|| Error::NotFound { what: "extract run", name: run.to_owned() })?;
    let config = ExtractConfig::read(&run.config)?;
    forget_earlier(app, lease, &run).await?;
    // Each attempt has a folder of its own: what a dead attempt still writes is in nobody's way.
    let prefix = format!("{FOLDER}/{}/{}", run.id, lease.attempt);
    let target = Target::new(run.id.clone(), &app.storage, prefix);
    let working = Running { app, lease, run: &run, config: &config, target };
    working.work().await
}

/// Earlier attempts have left what nobody will ask for.
async fn forget_earlier(app: &App, lease: &Lease, run: &Run) -> Result<()> {
    artifacts::delete_before(&mut *app.pool.acquire().await?, &run.id, Some(lease.attempt)).await?;
    for attempt in 1..lease.attempt {
        app.storage.delete(&format!("{FOLDER}/{}/{attempt}", run.id)).await?;
    }
    Ok(())
}

struct Running<'r> {
    app: &'r App,
    lease: &'r Lease,
    run: &'r Run,
    config: &'r ExtractConfig,
    target: Target<'r>,
}

impl Running<'_> {
    async fn work(&self) -> Result<bool> {
        let progress = &self.lease.progress;
        progress.enter("snapshot");
        let is_strange = |name: &&String| self.app.datasets.get(name).is_none();
        if let Some(name) = self.config.schemas.iter().flatten().find(is_strange) {
            // Another replica may know it, which is newer.
            return Err(Error::NotFound { what: "dataset", name: name.clone() });
        }
        let plans = self.config.plans(self.app)?;
        let snapshot = self.lease.unless_cancelled(Snapshot::take(&self.app.pool)).await??;
        let snapshot_at = snapshot.taken_at;
        let mut tables = Vec::new();
        for plan in plans {
            let table = self.lease.unless_cancelled(snapshot.table(&plan.dataset)).await??;
            tables.push((plan, table));
        }
        progress.expect_schemas(tables.len());
        let has_all_rows = tables.iter().all(|(plan, _)| plan.has_all_rows());
        progress.expect_rows(has_all_rows.then(|| tables.iter().map(|(_, table)| table.rows).sum()));
        let mut files = Vec::new();
        if self.config.include.contains(&Include::Describe) {
            let text = contents::describe(self.run, self.config, snapshot_at, &tables);
            files.push(self.put("describe", contents::DESCRIBE, text.into_bytes()).await?);
            progress.enter("exported_describe");
        }
        if self.config.include.contains(&Include::Data) {
            progress.enter("exporting_data");
            files.extend(self.write_data(snapshot, tables).await?);
        } else {
            drop(snapshot);
        }
        let records = files.iter().map(|file| file.rows.unsigned_abs()).sum();
        progress.enter("manifest");
        let times = (snapshot_at, Utc::now() + TimeDelta::days(self.config.retention_days.into()));
        if self.config.format == ExtractFormat::Archive {
            let archive = self.archive(&files, times).await?;
            let manifest =
                contents::manifest(self.run, self.config, times, std::slice::from_ref(&archive), Some(&files));
            let manifest = self.put("manifest", manifest::FILE, manifest).await?;
            return self.complete(&[archive, manifest], records, times).await;
        }
        let manifest = contents::manifest(self.run, self.config, times, &files, None);
        files.push(self.put("manifest", manifest::FILE, manifest).await?);
        self.complete(&files, records, times).await
    }

    /// Writes the files of each dataset from one snapshot, which is let go with the last read.
    async fn write_data(&self, snapshot: Arc<Snapshot>, tables: Vec<(Plan, Table)>) -> Result<Vec<Artifact>> {
        let config = self.export_config();
        let mut files = Vec::new();
        let mut snapshot = Some(snapshot);
        let mut left = tables.len();
        for (plan, table) in tables {
            left -= 1;
            let name = plan.dataset.name.clone();
            self.lease.progress.enter_schema(&name);
            let reading = if left == 0 { snapshot.take() } else { snapshot.clone() };
            let reading = reading.ok_or_else(|| Error::Internal("the snapshot was let go too early".into()))?;
            // Of a dataset that fails, nothing stays; of those before it, all.
            let target = Target::new(self.run.id.clone(), &self.app.storage, self.target.prefix.clone());
            let exported = match export::write(reading, &table, &config, plan, &name, &target, self.lease).await {
                Ok(exported) => exported,
                Err(error) => {
                    target.remove().await?;
                    return Err(error);
                }
            };
            for (file, written) in exported.files {
                let artifact = self.artifact("data", &file, written.bytes, &written.sha256)?;
                let rows = written.stats.rows.cast_signed();
                files.push(self.record(Artifact { schema: Some(name.clone()), rows, ..artifact }).await?);
            }
            self.lease.progress.leave_schema();
        }
        Ok(files)
    }

    /// One file for each dataset, unless they shall be split.
    fn export_config(&self) -> ExportConfig {
        let mut config = self.app.config.export.clone();
        if !self.config.split_files {
            config.file_size = ByteSize(u64::MAX);
        }
        config
    }

    /// Lays all files, with a manifest of their own, into one, and removes them.
    async fn archive(&self, files: &[Artifact], times: (DateTime<Utc>, DateTime<Utc>)) -> Result<Artifact> {
        self.lease.progress.enter("archiving");
        let inner = contents::manifest(self.run, self.config, times, files, None);
        let inner = self.store("manifest", &format!("contents.{}", manifest::FILE), inner).await?;
        let mut entries: Vec<Entry> =
            files.iter().map(|file| Entry { name: file.name.clone(), path: file.path.clone() }).collect();
        entries.push(Entry { name: manifest::FILE.to_owned(), path: inner.path.clone() });
        let name = "archive.zip";
        let written = zip::store(&self.target, "archive", entries, self.lease).await?;
        let rows = files.iter().map(|file| file.rows).sum();
        let archive = Artifact { rows, ..self.artifact("archive", name, written.bytes, &written.sha256)? };
        let archive = self.record(archive).await?;
        let mut transaction = self.app.pool.begin().await?;
        for file in files {
            artifacts::delete(&mut transaction, &file.id).await?;
        }
        transaction.commit().await?;
        for file in files.iter().chain([&inner]) {
            self.app.storage.delete_file(&file.path).await?;
        }
        Ok(archive)
    }

    /// Writes a small file, and records it.
    async fn put(&self, kind: &str, name: &str, content: Vec<u8>) -> Result<Artifact> {
        let artifact = self.store(kind, name, content).await?;
        self.record(artifact).await
    }

    async fn store(&self, kind: &str, name: &str, content: Vec<u8>) -> Result<Artifact> {
        let artifact = self.artifact(kind, name, content.len() as u64, &Sha256::digest(&content))?;
        self.app.storage.put(&artifact.path, Bytes::from(content)).await?;
        Ok(artifact)
    }

    fn artifact(&self, kind: &str, name: &str, bytes: u64, sha256: &[u8]) -> Result<Artifact> {
        Ok(Artifact {
            id: new_id("artifact")?,
            run_id: self.run.id.clone(),
            attempt: self.lease.attempt,
            kind: kind.to_owned(),
            schema: None,
            name: name.to_owned(),
            path: format!("{}/{name}", self.target.prefix),
            rows: 0,
            bytes: bytes.cast_signed(),
            sha256: sha256.to_vec(),
            created_at: Utc::now(),
            download_count: 0,
            last_accessed_at: None,
        })
    }

    /// Records a file as soon as it is complete: a run that fails later keeps it.
    async fn record(&self, artifact: Artifact) -> Result<Artifact> {
        artifacts::insert(&mut *self.app.pool.acquire().await?, self.lease, &artifact).await?;
        Ok(artifact)
    }

    async fn complete(&self, files: &[Artifact], records: u64, times: (DateTime<Utc>, DateTime<Utc>)) -> Result<bool> {
        let (app, run) = (self.app, self.run);
        let bytes: u64 = files.iter().map(|file| file.bytes.unsigned_abs()).sum();
        let mut transaction = app.pool.begin().await?;
        let ended = Ended {
            records: Some(records.cast_signed()),
            bytes: Some(bytes.cast_signed()),
            snapshot_at: Some(times.0),
            expires_at: times.1,
        };
        if !jobs::complete(&mut transaction, self.lease).await? {
            transaction.rollback().await?;
            app.storage.delete(&self.target.prefix).await?;
            return Ok(false);
        }
        extract_runs::end(&mut transaction, &run.id, &ended).await?;
        notify(app, &mut transaction, run, self.config, Ok((records, bytes))).await?;
        if let Some(id) = &run.extract_id
            && extracts::lock(&mut transaction, id).await?.is_some()
        {
            extracts::count_end(&mut transaction, id, true).await?;
            promote(app, &mut transaction, id).await?;
        }
        transaction.commit().await?;
        // A notice, or the next run.
        app.wake_workers();
        telemetry::extracted("completed");
        tracing::info!(run = run.id, extract = self.config.name, records, bytes, "extract complete");
        Ok(true)
    }
}
