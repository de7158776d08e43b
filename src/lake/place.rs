//! Where partitioned datasets lie, and whether one may be written there.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use uuid::Uuid;

use super::manifest::{FILE, File, Manifest};
use super::{Wish, catalogue};
use crate::config::Format;
use crate::dataset::definition::is_identifier;
use crate::db::jobs::Lease;
use crate::db::keys;
use crate::db::lake::Lock;
use crate::error::{Error, Result};
use crate::storage::{Listed, Storage};

/// How long a run waits for another of the same dataset: longer than the connection of a killed one lives where its machine
/// goes on. A job then tries again later.
const PATIENCE: Duration = Duration::from_secs(45);

/// How often it tries.
const POLL: Duration = Duration::from_millis(500);

/// Digits that the names of files of one run share.
const RUN_DIGITS: usize = 12;

/// Why files without a manifest are not touched.
const HOLDS_OTHERS: &str = "holds files that this dataset did not write";

/// A folder with a folder for each dataset.
#[derive(Debug, Clone, Copy)]
pub struct Place<'p> {
    /// Where it is.
    pub storage: &'p Storage,
    /// The folder; the root of the storage when empty.
    pub folder: &'p str,
}

/// What lies where a dataset is to be written.
pub enum Found {
    /// The same dataset, from this database and cut in the same way.
    Ours,
    /// Nothing.
    Empty,
    /// These files of something else, which the wish allows to replace.
    Foreign(Vec<String>),
}

impl Place<'_> {
    /// The name of something in the folder.
    #[must_use]
    pub fn name(&self, name: &str) -> String {
        if self.folder.is_empty() { name.to_owned() } else { format!("{}/{name}", self.folder) }
    }

    /// The address of something in the folder, for people and readers.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("{}/{}", self.storage.url().trim_end_matches('/'), self.name(name))
    }

    /// Refuses a place whose path readers would take for a part of each dataset.
    ///
    /// # Errors
    /// See [`refuse_keys`].
    pub fn check(&self) -> Result<()> {
        refuse_keys(&self.url(""))
    }

    /// Waits for the right to write a dataset, whatever the folder; or the catalogue of a folder, which has no name.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process keeps it, a database out of reach.
    pub async fn lock(&self, pool: &PgPool, name: &str, lease: &Lease) -> Result<Lock> {
        let begun = Instant::now();
        loop {
            if let Some(lock) = Lock::take(pool, name).await? {
                return Ok(lock);
            }
            if begun.elapsed() > PATIENCE {
                return Err(Error::Locked(format!(
                    "another process is writing to {}, or the same to another folder; try again when it has ended",
                    self.url(name)
                )));
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = lease.cancelled() => return Err(Error::Cancelled),
            }
        }
    }

    /// The manifest that a run begins with, and what lies there.
    ///
    /// # Errors
    /// Something else lies there, and may not be replaced; a path that readers would take for a part of the dataset.
    pub async fn manifest(&self, pool: &PgPool, wish: &Wish) -> Result<(Manifest, Found)> {
        self.check()?;
        let dataset = &wish.dataset().name;
        let source = keys::database(pool).await?;
        let new = Manifest::new(&wish.plan, &wish.partitioning, &source);
        let folder = self.name(dataset);
        let overwrite = wish.choice.overwrite;
        let why = match Manifest::load(self.storage, &folder).await {
            Ok(Some(held)) if held.source != source => "holds rows of another database",
            Ok(Some(held)) if held.dataset != *dataset => "holds another dataset",
            Ok(Some(held)) if !wish.fits(&held) => "is cut in another way, or of another format",
            Ok(Some(held)) => {
                self.refuse_losses(&held, &new, overwrite)?;
                return Ok((held, Found::Ours));
            }
            Ok(None) => HOLDS_OTHERS,
            Err(error @ Error::Environment(_)) if !overwrite => return Err(error),
            Err(Error::Environment(_)) => "holds a manifest that cannot be read",
            Err(error) => return Err(error),
        };
        let mut files: Vec<String> = self.files(dataset).await?.into_iter().map(|file| file.name).collect();
        // What is unfinished no reader takes for data, and nobody else gives such names.
        files.retain(|file| file != FILE && !(file.contains('#') && is_of_a_run(dataset, file)));
        catalogue::refuse_others(self, Some(dataset), false).await?;
        if files.is_empty() && why == HOLDS_OTHERS {
            return Ok((new, Found::Empty));
        }
        if !overwrite {
            return Err(Error::Conflict(format!(
                "{} {why}: choose another folder, or replace all of it: with `--overwrite`, or `\"overwrite\": true` \
                 beside `partition` in a request",
                self.url(dataset)
            )));
        }
        if wish.choice.from.is_some() || wish.choice.to.is_some() {
            return Err(Error::Conflict(format!(
                "{} {why}, and all of it would be replaced by the partitions of that time: run without `--date`, `from` \
                 and `to`",
                self.url(dataset)
            )));
        }
        Ok((new, Found::Foreign(files)))
    }

    /// Refuses to go on with a dataset whose columns the definition lacks: rows that are written once are not looked at
    /// again, and a replica that is older would leave out for ever what the newer ones store.
    fn refuse_losses(&self, held: &Manifest, new: &Manifest, overwrite: bool) -> Result<()> {
        let is_lost = |name: &String| new.columns.iter().all(|column| column.name != *name);
        let lost: Vec<String> = held.columns.iter().map(|column| column.name.clone()).filter(is_lost).collect();
        if lost.is_empty() || overwrite {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "{} has columns that the definition of the dataset lacks here: `{}`; write with the newer definition, or \
             leave them out with `overwrite`",
            self.url(&held.dataset),
            lost.join("`, `")
        )))
    }

    /// What each dataset in the folder says of itself, whoever has written it.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn manifests(&self) -> Result<Vec<Result<Manifest>>> {
        let mut manifests = Vec::new();
        let names = self.storage.folders(self.folder).await?;
        for name in names.into_iter().filter(|name| is_identifier(name)) {
            let manifest = Manifest::load(self.storage, &self.name(&name)).await.transpose();
            // A copy under another name is no dataset.
            let is_copy = |manifest: &Result<Manifest>| manifest.as_ref().is_ok_and(|found| found.dataset != name);
            manifests.extend(manifest.filter(|manifest| !is_copy(manifest)));
        }
        Ok(manifests)
    }

    /// The files of a dataset's folder, as paths in it.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn files(&self, dataset: &str) -> Result<Vec<Listed>> {
        let folder = format!("{}/", self.name(dataset));
        let files = self.storage.list(folder.trim_end_matches('/')).await?;
        let in_folder =
            |file: Listed| Some(Listed { name: file.name.strip_prefix(&folder).map(str::to_owned)?, ..file });
        Ok(files.into_iter().filter_map(in_folder).collect())
    }

    /// Removes what runs that were killed have left, of the files that lie there. It needs the lock.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn sweep(&self, manifest: &Manifest, files: &[Listed]) -> Result<()> {
        let known: HashSet<&str> = manifest
            .files()
            .map(|file| file.path.as_str())
            .chain(manifest.retired.iter().map(|file| file.path.as_str()))
            .collect();
        for Listed { name, .. } in files {
            if !known.contains(name.as_str()) && is_of_a_run(&manifest.dataset, name) {
                tracing::info!(path = name, "a file that no manifest names was removed");
                self.delete(&manifest.dataset, name).await?;
            }
        }
        Ok(())
    }

    /// Puts the manifest of a dataset into its place.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn save(&self, manifest: &Manifest) -> Result<()> {
        manifest.save(self.storage, &self.name(&manifest.dataset)).await
    }

    /// Removes the manifest of a dataset.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn forget(&self, dataset: &str) -> Result<()> {
        self.delete(dataset, FILE).await
    }

    /// Removes a file of a dataset.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn delete(&self, dataset: &str, path: &str) -> Result<()> {
        self.storage.delete_file(&self.name(&format!("{dataset}/{path}"))).await
    }
}

/// The files that a manifest names and that do not lie there as they were written: lost, or cut short.
#[must_use]
pub fn damaged(manifest: &Manifest, files: &[Listed]) -> HashSet<String> {
    let sizes: HashMap<&str, u64> = files.iter().map(|file| (file.name.as_str(), file.bytes)).collect();
    let is_damaged = |file: &&File| sizes.get(file.path.as_str()) != Some(&file.bytes);
    manifest.files().filter(is_damaged).map(|file| file.path.clone()).collect()
}

/// Refuses a path with a folder `NAME=VALUE`. DuckDB looks for partitions in all of a path, and the first of a name counts.
///
/// # Errors
/// Such a folder.
pub fn refuse_keys(path: &str) -> Result<()> {
    match path.split('/').find(|folder| folder.contains('=')) {
        None => Ok(()),
        Some(folder) => Err(Error::Conflict(format!(
            "{path} lies below the folder `{folder}`, which readers take for a partition of the data: choose a path without `=`"
        ))),
    }
}

/// The digits that tell files of one run from those of others.
#[must_use]
pub fn run_digits() -> String {
    let run = Uuid::now_v7().simple().to_string();
    run[run.len() - RUN_DIGITS..].to_owned()
}

/// Whether a file has a name that runs give: `DATASET_20261120_0123456789ab.parquet`, and what is unfinished of it.
#[must_use]
pub fn is_of_a_run(dataset: &str, path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    if name.strip_prefix(FILE).is_some_and(|rest| rest.starts_with('#')) {
        return true;
    }
    let Some(rest) = name.strip_prefix(dataset).and_then(|rest| rest.strip_prefix('_')) else { return false };
    let (stem, ending) = rest.split_once('.').unwrap_or((rest, ""));
    let format = ending.split(['.', '#']).next().unwrap_or_default();
    let is_run = |part: &str| part.len() == RUN_DIGITS && part.bytes().all(|digit| digit.is_ascii_hexdigit());
    stem.split(['_', '-']).any(is_run) && Format::ALL.iter().any(|known| known.as_str() == format)
}

#[cfg(test)]
mod tests {
    use super::is_of_a_run;

    #[test]
    fn only_what_a_run_has_written_is_swept() {
        for name in [
            "d_20261120_0123456789ab.parquet",
            "d_0123456789ab-2.csv.gz",
            "a=1/d_2026_0123456789ab.parquet#1",
            "_manifest.json#2",
        ] {
            assert!(is_of_a_run("d", name), "{name}");
        }
        for name in ["_manifest.json", "d_20261120.parquet", "e_2026_0123456789ab.parquet", "d_0123456789ab.txt", "d"] {
            assert!(!is_of_a_run("d", name), "{name}");
        }
    }
}
