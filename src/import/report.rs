//! How an import ended.

use std::fmt;

use crate::send::Sent;
use crate::send::outcome::{Exit, Refusal};

/// Files and rows by what became of them.
#[derive(Debug, Default)]
pub struct Report {
    stored: Count,
    already_there: Count,
    good: Count,
    /// Files that the journal knew, which were not looked at.
    pub in_journal: usize,
    refused: Vec<Refusal>,
    not_sent: Vec<Refusal>,
}

#[derive(Debug, Default)]
struct Count {
    files: usize,
    rows: u64,
}

impl Report {
    /// Counts a file.
    pub fn add(&mut self, result: &Result<Sent, Refusal>) {
        let (count, rows) = match result {
            Ok(Sent { receipt: Some(receipt), .. }) if receipt.replayed => (&mut self.already_there, receipt.rows),
            Ok(Sent { receipt: Some(receipt), .. }) => (&mut self.stored, receipt.rows),
            Ok(sent) => (&mut self.good, sent.rows),
            Err(refusal) if refusal.exit == Exit::Data => return self.refused.push(refusal.clone()),
            Err(refusal) => return self.not_sent.push(refusal.clone()),
        };
        count.files += 1;
        count.rows += rows;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{:<22}{:>9}{:>14}", "", "files", "rows")?;
        for (name, count) in
            [("stored", &self.stored), ("already there", &self.already_there), ("good, not sent", &self.good)]
        {
            if count.files > 0 || name == "stored" {
                writeln!(out, "{name:<22}{:>9}{:>14}", count.files, count.rows)?;
            }
        }
        for (name, files) in
            [("in the journal", self.in_journal), ("refused", self.refused.len()), ("not stored", self.not_sent.len())]
        {
            writeln!(out, "{name:<22}{files:>9}")?;
        }
        for (name, refusals) in [("refused", &self.refused), ("not stored", &self.not_sent)] {
            for line in refusals.iter().flat_map(|refusal| &refusal.lines) {
                writeln!(out, "{name}: {line}")?;
            }
        }
        Ok(())
    }
}
