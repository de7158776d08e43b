//! One partition into files, by the engine of exports.

use std::sync::Arc;

use chrono::DateTime;

use super::changes::{Action, Task};
use super::manifest::{self, File};
use super::place::run_digits;
use super::{Place, Wish, partition};
use crate::config::ExportConfig;
use crate::dataset::sql;
use crate::db::jobs::Lease;
use crate::db::lake;
use crate::error::{Error, Result};
use crate::export::snapshot::{Snapshot, Table};
use crate::export::{self, Target};

/// Folders that one partition of time may have.
const FOLDERS: usize = 10_000;

/// What all partitions of a run are written with.
pub struct Writing<'w> {
    pub config: &'w ExportConfig,
    pub wish: &'w Wish,
    pub place: &'w Place<'w>,
    pub lease: &'w Lease,
    pub snapshot: Arc<Snapshot>,
    pub table: Table,
}

/// A folder, and which rows of its partition it gets.
struct Piece {
    folder: String,
    conditions: Vec<String>,
}

impl Writing<'_> {
    /// Writes what a partition lacks, and answers with the files. After a fault nothing of it is left.
    pub async fn partition(&self, task: Task) -> Result<(Task, Vec<File>)> {
        if task.action == Action::Remove {
            return Ok((task, Vec::new()));
        }
        if self.lease.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let mut files = Vec::new();
        let written = self.pieces(&task, &mut files).await;
        if let Err(error) = written {
            for file in &files {
                self.place.delete(&self.wish.dataset().name, &file.path).await?;
            }
            return Err(error);
        }
        Ok((task, files))
    }

    async fn pieces(&self, task: &Task, files: &mut Vec<File>) -> Result<()> {
        for piece in self.split(task).await? {
            files.extend(self.piece(task, piece).await?);
        }
        let (expected, written) = (task.rows(), files.iter().map(|file| file.rows).sum::<u64>());
        if expected != written {
            return Err(Error::Conflict(format!(
                "the submissions of {} {} have {expected} rows by their receipts and {written} in table {}: somebody \
                 changed the table by hand; the partition is not written until they agree",
                self.wish.dataset().name,
                task.path,
                self.wish.dataset().table
            )));
        }
        Ok(())
    }

    /// The folders of a partition: one, or one for each value of the columns that it is cut by.
    async fn split(&self, task: &Task) -> Result<Vec<Piece>> {
        let by = &self.wish.partitioning.by;
        let conditions = task.conditions();
        if by.is_empty() {
            return Ok(vec![Piece { folder: task.path.clone(), conditions }]);
        }
        let mut connection = self.lease.unless_cancelled(self.snapshot.connection()).await??;
        let dataset = self.wish.dataset();
        let values = lake::values(&mut connection, dataset, by, &conditions, FOLDERS + 1);
        let values = self.lease.unless_cancelled(values).await??;
        self.snapshot.give_back(connection);
        if values.len() > FOLDERS {
            return Err(Error::Conflict(format!(
                "`{}` would cut {} {} into more than {FOLDERS} folders; partition by columns with fewer values",
                by.join(", "),
                dataset.name,
                task.path
            )));
        }
        let piece = |(values, _): (Vec<Option<String>>, i64)| {
            let mut folders: Vec<String> = (!task.path.is_empty()).then(|| task.path.clone()).into_iter().collect();
            let mut conditions = conditions.clone();
            for (column, value) in by.iter().zip(values) {
                folders.push(partition::folder(column, value.as_deref()).map_err(Error::Conflict)?);
                let column = sql::quoted(column);
                conditions.push(match value {
                    Some(value) => {
                        format!("{column}::text = {}", sql::literal(&crate::dataset::Cell::Text(value.into())))
                    }
                    None => format!("nullif({column}::text, '') IS NULL"),
                });
            }
            Ok(Piece { folder: folders.join("/"), conditions })
        };
        values.into_iter().map(piece).collect()
    }

    async fn piece(&self, task: &Task, piece: Piece) -> Result<Vec<File>> {
        let dataset = &self.wish.dataset().name;
        let run = run_digits();
        let parts = [dataset, task.label.as_str(), &run];
        let stem = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_");
        let folders = [dataset, piece.folder.as_str()];
        let prefix = folders.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        let target = Target::new(run.clone(), self.place.storage, self.place.name(&prefix));
        let plan = self.wish.plan.narrowed(piece.conditions);
        let snapshot = Arc::clone(&self.snapshot);
        let written = export::write(snapshot, &self.table, self.config, plan, &stem, &target, self.lease).await;
        let exported = match written {
            Ok(exported) => exported,
            Err(error) => {
                target.remove().await?;
                return Err(error);
            }
        };
        let schema = manifest::schema(&manifest::columns(&self.wish.plan));
        let file = |(name, file): (String, export::files::Written)| File {
            path: if piece.folder.is_empty() { name } else { format!("{}/{name}", piece.folder) },
            rows: file.stats.rows,
            bytes: file.bytes,
            sha256: data_encoding::HEXLOWER.encode(&file.sha256),
            schema: schema.clone(),
            min_time: file.stats.time.and_then(|(min, _)| DateTime::from_timestamp_micros(min)),
            max_time: file.stats.time.and_then(|(_, max)| DateTime::from_timestamp_micros(max)),
        };
        Ok(exported.files.into_iter().map(file).collect())
    }
}
