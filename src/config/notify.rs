//! Notices: who is told how work has ended.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Secret, values};

/// How notices are sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see config/default.toml")]
pub struct NotifyConfig {
    pub webhooks: Vec<WebhookConfig>,
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    pub max_attempts: i32,
}

/// An address that takes notices.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// Under which extracts and schedules speak of it.
    pub name: String,
    /// Where to; a secret, since whoever knows the address of a chat may write there.
    pub url: Secret,
    /// What it understands.
    #[serde(default)]
    pub kind: WebhookKind,
    /// What signs the bodies of kind `json`.
    #[serde(default = "none", with = "values::blank")]
    pub secret: Option<Secret>,
    /// Which ends it hears of; both when absent.
    #[serde(default = "both")]
    pub on: Vec<Outcome>,
}

const fn none() -> Option<Secret> {
    None
}

fn both() -> Vec<Outcome> {
    vec![Outcome::Completed, Outcome::Failed]
}

/// What a webhook understands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WebhookKind {
    /// An event as JSON, signed.
    #[default]
    Json,
    /// A message of Slack, which Mattermost and others take as well.
    Slack,
    /// A message of Discord.
    Discord,
}

/// How work has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Well.
    Completed,
    /// After its last attempt.
    Failed,
}

impl NotifyConfig {
    /// The webhook of that name.
    #[must_use]
    pub fn webhook(&self, name: &str) -> Option<&WebhookConfig> {
        self.webhooks.iter().find(|webhook| webhook.name == name)
    }
}
