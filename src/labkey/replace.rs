//! A submission that takes the place of another: where both fit into one request, the old rows leave LabKey and the new
//! ones come in one transaction, so that a reader never finds neither. Whatever does not end well is left to the usual
//! way: first remove, then send.

use serde_json::{Value, json};

use super::deliver::{ids, read};
use super::failure::{Failure, FailureKind};
use super::list::{DELIVERY_KEY, RECORD_KEY};
use super::sync::Run;
use crate::db::labkey::{self, Delivery, Outcome, State, Successor};
use crate::error::Result;

/// Successors that are looked up at once.
const PAGE: i64 = 100;

impl Run<'_> {
    /// Replaces in LabKey what was replaced here, as far as it is small.
    pub(super) async fn replace_withdrawn(&self) -> Result<()> {
        let (config, since) = (&self.labkey.config, self.labkey.since);
        let (batch, settle) = (config.batch_size, config.settle);
        for successor in labkey::successors(self.pool, self.dataset(), batch, since, settle, PAGE).await? {
            if self.lease.is_cancelled() {
                return Ok(());
            }
            let old = labkey::withdrawn_of(self.pool, self.dataset(), &successor.record_prefix).await?;
            if !self.replace(&successor, &old).await? {
                labkey::unplan(self.pool, successor.submission_id, &self.holder).await?;
            }
        }
        Ok(())
    }

    /// Replaces one submission; false when LabKey certainly has none of the new rows.
    async fn replace(&self, successor: &Successor, old: &[Delivery]) -> Result<bool> {
        let list = &self.target.list;
        let Some(planned) = labkey::plan_one(self.pool, &list.dataset, successor).await? else { return Ok(true) };
        let new = labkey::claim(self.pool, &[planned.id], &self.holder).await?;
        if new.is_empty() {
            // Withdrawn meanwhile.
            return Ok(false);
        }
        let limit = self.labkey.config.batch_bytes.as_u64();
        let Some(rows) = read(self.pool, self.target.copy_json(&new), limit).await? else { return Ok(false) };
        if i32::try_from(rows.len()) != Ok(planned.rows) {
            return Ok(false);
        }
        let rows: Vec<Value> = rows.iter().filter_map(|row| serde_json::from_slice(row).ok()).collect();
        let command = |name: &str, rows: Vec<Value>| {
            json!({"command": name, "schemaName": list.schema, "queryName": list.name, "rows": rows,
                "skipReselectRows": true, "auditBehavior": "SUMMARY",
                "auditUserComment": format!("nvd-support-car delivery {}, a replacement", planned.key)})
        };
        let mut gone = Vec::new();
        for one in old {
            gone.extend(self.keys_of(one).await?);
        }
        let removed = gone.len() as u64;
        let mut commands = Vec::new();
        if !gone.is_empty() {
            commands.push(command("delete", gone));
        }
        commands.push(command("insert", rows));
        let client = &self.labkey.client;
        match client.patiently(|| client.save(Value::Array(commands.clone()), false)).await {
            Ok(()) => {
                // In this order: rows of the same keys are removed while the old ones are not known to be gone.
                labkey::removed(self.pool, &ids(old), None).await?;
                self.completed(&new, &Outcome::default()).await?;
                self.tally.removed.fetch_add(removed, std::sync::atomic::Ordering::Relaxed);
                Ok(true)
            }
            Err(Failure { kind: FailureKind::Unknown, reason, .. }) => {
                let how = Outcome { error: Some(&reason), ..Outcome::default() };
                self.mark(&ids(&new), State::Unknown, &how).await?;
                // Whatever is found, the usual way goes on from there. The request may still arrive.
                self.settle(new, std::time::Duration::ZERO).await?;
                Ok(true)
            }
            Err(failure) if failure.is_passing() => {
                labkey::unplan(self.pool, successor.submission_id, &self.holder).await?;
                Err(failure.into())
            }
            Err(_) => Ok(false),
        }
    }

    /// The keys, in the list, of the rows that it holds of a delivery, each as a row of a delete.
    pub(super) async fn keys_of(&self, one: &Delivery) -> Result<Vec<Value>, Failure> {
        if !self.target.merges {
            let keys: Vec<String> = one.delivery_keys().collect();
            return self.rows_where(DELIVERY_KEY, &keys).await;
        }
        self.rows_of(one.record_keys()).await
    }

    /// The keys, in the list, of the rows of these record keys that it holds.
    pub(super) async fn rows_of(&self, mut keys: impl Iterator<Item = String>) -> Result<Vec<Value>, Failure> {
        let mut found = Vec::new();
        loop {
            let some: Vec<String> = keys.by_ref().take(super::reconcile::KEYS).collect();
            if some.is_empty() {
                return Ok(found);
            }
            found.extend(self.rows_where(RECORD_KEY, &some).await?);
        }
    }
}
