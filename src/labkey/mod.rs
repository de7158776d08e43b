//! Rows to LabKey's lists: each exactly once, or named as refused with LabKey's own reason.
//!
//! [`sync`] walks over what is pending, [`deliver`] sends one request and says how it ended, [`reconcile`] asks LabKey
//! where that is in doubt, [`replace`] puts one submission in the place of another. [`preflight`] looks at a list before anything is sent, [`list`] writes rows as it takes them,
//! [`client`] speaks LabKey's HTTP and [`failure`] tells what its answers mean.

mod breaker;
pub mod client;
mod deliver;
pub mod failure;
pub mod list;
pub mod preflight;
mod reconcile;
mod replace;
pub mod report;
pub mod sync;

use chrono::{DateTime, Utc};

use crate::config::LabkeyConfig;
use crate::dataset::Datasets;
use crate::error::{Error, Result};
use client::Client;
use list::List;

/// What deliveries need: the server, and the lists.
pub struct Labkey {
    /// The server.
    pub client: Client,
    /// The list of each dataset that is delivered.
    pub lists: Vec<List>,
    /// The configuration.
    pub config: LabkeyConfig,
    /// Rows taken in before that are never delivered.
    pub since: Option<DateTime<Utc>>,
}

impl Labkey {
    /// The configured server; none when there is none.
    ///
    /// # Errors
    /// What in the configuration cannot be used.
    pub fn open(config: &LabkeyConfig, datasets: &Datasets) -> Result<Option<Self>> {
        if config.server_url.is_none() {
            return Ok(None);
        }
        let since = config.first_moment().map_err(|error| Error::Environment(format!("labkey.since: {error}")))?;
        let (client, lists) = (Client::new(config)?, list::all(config, datasets)?);
        Ok(Some(Self { client, lists, config: config.clone(), since }))
    }

    /// The list of a dataset.
    ///
    /// # Errors
    /// A dataset that is not delivered.
    pub fn list(&self, dataset: &str) -> Result<&List> {
        let found = self.lists.iter().find(|list| list.dataset.name == dataset);
        found.ok_or_else(|| Error::NotFound { what: "LabKey list of the dataset", name: dataset.to_owned() })
    }
}
