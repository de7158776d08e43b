//! Notices to webhooks: jobs of their own, so that a chat that is away never holds up what it is told about.
//!
//! Bodies of kind `json` are signed as [Standard Webhooks](https://www.standardwebhooks.com) has it: `webhook-signature`
//! is `v1,` and the HMAC-SHA256 of `id.timestamp.body` in base64.

use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::Sha256;
use sqlx::PgConnection;

use super::{Work, enqueue as enqueue_work};
use crate::app::App;
use crate::config::{Outcome, Secret, WebhookConfig, WebhookKind};
use crate::db::jobs::{self, Lease};
use crate::error::{Error, Result};
use crate::telemetry;

/// Letters that every chat takes in one message.
const MESSAGE: usize = 1900;

/// What a webhook is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Notice {
    /// The webhook's name.
    webhook: String,
    /// What happened, such as `extract.completed`.
    event: String,
    /// The same for people.
    text: String,
    /// The same for programs.
    data: Value,
    /// When it happened.
    at: DateTime<Utc>,
}

/// Makes a notice for each of those webhooks that wants to hear of it, in the transaction of what happened. `parts` are
/// objects that are told as one.
///
/// # Errors
/// A database out of reach.
pub async fn enqueue(
    app: &App,
    connection: &mut PgConnection,
    webhooks: &[String],
    event: &str,
    text: &str,
    parts: &[Value],
) -> Result<()> {
    let outcome = if event.ends_with(".failed") { Outcome::Failed } else { Outcome::Completed };
    let data: Map<String, Value> = parts.iter().filter_map(Value::as_object).flatten().map(pair).collect();
    for name in webhooks {
        // One that left the configuration since has nobody to be told.
        let Some(webhook) = app.config.notify.webhook(name).filter(|webhook| webhook.on.contains(&outcome)) else {
            continue;
        };
        let notice = Notice {
            webhook: webhook.name.clone(),
            event: event.to_owned(),
            text: text.to_owned(),
            data: Value::Object(data.clone()),
            at: Utc::now(),
        };
        enqueue_work(connection, &Work::Notice(notice), app.config.notify.max_attempts).await?;
    }
    Ok(())
}

fn pair((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

/// Sends a notice.
pub async fn run(app: &App, lease: &Lease, notice: &Notice) -> Result<bool> {
    let webhook = app.config.notify.webhook(&notice.webhook);
    let webhook = webhook.ok_or_else(|| Error::NotFound { what: "webhook", name: notice.webhook.clone() })?;
    tokio::select! {
        sent = send(app, lease, webhook, notice) => {
            telemetry::noticed(&webhook.name, sent.is_ok());
            sent?;
        }
        () = lease.cancelled() => return Err(Error::Cancelled),
    }
    jobs::complete(&mut *app.pool.acquire().await?, lease).await
}

async fn send(app: &App, lease: &Lease, webhook: &WebhookConfig, notice: &Notice) -> Result<()> {
    let failed = |reason: String, is_retryable| Error::Notice { webhook: webhook.name.clone(), reason, is_retryable };
    // Neither a redirect nor a slow server may keep a notice that others wait behind.
    let client = Client::builder().timeout(app.config.notify.timeout).redirect(Policy::none()).build();
    let client = client.map_err(|error| failed(error.to_string(), false))?;
    let body = body(webhook.kind, notice).to_string();
    let mut request = client.post(webhook.url.expose()).header("content-type", "application/json");
    if let Some(secret) = &webhook.secret {
        let (id, time) = (lease.id.to_string(), Utc::now().timestamp().to_string());
        let signature = sign(secret, &format!("{id}.{time}.{body}"))?;
        request = request.header("webhook-id", id).header("webhook-timestamp", time);
        request = request.header("webhook-signature", format!("v1,{signature}"));
    }
    // The address of a chat is a secret.
    let answer = request.body(body).send().await;
    let answer = answer.map_err(|error| failed(reason(&error.without_url()), true))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let passes = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    Err(failed(format!("it answered {status}"), passes || status.is_server_error()))
}

/// An error of the network with its causes.
fn reason(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn body(kind: WebhookKind, notice: &Notice) -> Value {
    let message = || notice.text.chars().take(MESSAGE).collect::<String>();
    match kind {
        WebhookKind::Json => json!({"type": notice.event, "timestamp": notice.at, "data": notice.data}),
        WebhookKind::Slack => json!({"text": message()}),
        WebhookKind::Discord => json!({"content": message()}),
    }
}

/// A secret that begins with `whsec_` is base64, any other is taken as it is.
fn sign(secret: &Secret, text: &str) -> Result<String> {
    let secret = secret.expose();
    let key = secret.strip_prefix("whsec_").and_then(|key| data_encoding::BASE64.decode(key.as_bytes()).ok());
    let key = key.unwrap_or_else(|| secret.as_bytes().to_vec());
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).map_err(|error| Error::Internal(error.to_string()))?;
    mac.update(text.as_bytes());
    Ok(data_encoding::BASE64.encode(&mac.finalize().into_bytes()))
}
