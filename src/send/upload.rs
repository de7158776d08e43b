//! One file to the service, again and again until it is stored, refused, or out of time.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use reqwest::{Body, Client, Response, StatusCode, Url, header};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::access::Access;
use super::check::Checked;
use super::outcome::{Exit, Receipt, Refusal};
use super::progress::Progress;
use crate::dataset::Fault;
use crate::error::{Error, Result};
use crate::ingest::key::ADVICE;
use crate::tls;

/// The first pause between two tries, and the longest one that is not asked for by the service.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// A try in which nothing moves for so long is given up. An upload may wait for its turn; a repetition is harmless.
const SILENCE: Duration = Duration::from_mins(5);

/// The longest time to go on, as good as for ever. A clock cannot hold every duration that can be written down.
const LONGEST_TIME: Duration = Duration::from_hours(24 * 365);

/// What to do when the service has other content under the key of a file.
const OTHER_CONTENT: &str = "send it again under another key, or remove the submission first";

/// Tries of a file that has passed the check, but is damaged when it arrives.
const DAMAGED_TRIES: u32 = 8;

/// Parts of a body between the thread that reads the file and the connection.
const PARTS_IN_FLIGHT: usize = 8;

/// Sends files to one service until a common deadline.
pub struct Uploader {
    client: Client,
    access: Access,
    deadline: Instant,
}

/// Why a try did not succeed.
enum Failure {
    /// It may succeed later.
    Passing { reason: String, after: Option<Duration> },
    /// What the service got is not what was checked. Only a fault on the way explains that, unless it repeats.
    Damaged { reason: String },
    /// It never will.
    Final(Refusal),
}

/// The part of a problem (RFC 9457) that is told.
#[derive(Deserialize)]
struct Problem {
    detail: String,
    #[serde(default)]
    errors: Vec<FieldFault>,
}

#[derive(Deserialize)]
struct FieldFault {
    line: Option<u64>,
    column: Option<u64>,
    field: Option<String>,
    reason: String,
}

impl Uploader {
    /// An uploader that gives up after `max_time`.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(access: Access, max_time: Duration) -> Result<Self> {
        let options = || {
            Client::builder()
                .user_agent(concat!("nvd-support-car/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(Duration::from_secs(30))
                .tcp_keepalive(Duration::from_secs(30))
                // A body that is read from a file cannot follow, and the token must not.
                .redirect(reqwest::redirect::Policy::none())
        };
        let client = tls::client(options)
            .map_err(|error| Error::Environment(format!("HTTP cannot be set up: {}", causes(&error))))?;
        Ok(Self { client, access, deadline: Instant::now() + max_time.min(LONGEST_TIME) })
    }

    /// Sends one file. It is stored once, however many tries it takes.
    ///
    /// # Errors
    /// Why it is not stored, or not known to be.
    pub async fn send(&self, checked: &Arc<Checked>, progress: &Arc<Progress>) -> Result<Receipt, Refusal> {
        let name = &checked.content.name;
        let (first, longest) = PAUSES;
        let pauses = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(longest)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times();
        let mut damaged = 0;
        let outcome = (|| self.attempt(checked, progress))
            .retry(pauses)
            .sleep(tokio::time::sleep)
            .when(|failure| match failure {
                Failure::Passing { .. } => true,
                Failure::Damaged { .. } => {
                    damaged += 1;
                    damaged < DAMAGED_TRIES
                }
                Failure::Final(_) => false,
            })
            .adjust(|failure, pause| self.pause(failure, pause?))
            .notify(|failure, pause| progress.warn(&format!("{name}: {failure}; trying again in {}", human(pause))))
            .await;
        match outcome {
            Ok(receipt) => unchanged(checked, receipt),
            Err(Failure::Final(refusal)) => Err(refusal),
            Err(Failure::Damaged { reason }) => Err(Refusal::new(Exit::Data, name, reason)),
            Err(Failure::Passing { reason, .. }) => {
                let reason = format!("not stored in the given time: {reason}; send it again later");
                Err(Refusal::new(Exit::TryAgain, name, reason))
            }
        }
    }

    /// How long to wait before the next try; `None` when no time is left for one.
    fn pause(&self, failure: &Failure, pause: Duration) -> Option<Duration> {
        let pause = match failure {
            // Not all clients that were sent away together shall come back together.
            Failure::Passing { after: Some(after), .. } => *after + pause.min(*after),
            _ => pause,
        };
        (Instant::now() + pause < self.deadline).then_some(pause)
    }

    async fn attempt(&self, checked: &Arc<Checked>, progress: &Arc<Progress>) -> Result<Receipt, Failure> {
        let token = self.access.token().map_err(Failure::Final)?;
        let moved = Arc::new(AtomicU64::new(0));
        let (body, feeding) = feed(Arc::clone(checked), Arc::clone(&moved), Arc::clone(progress));
        let url = address(&self.access.url, checked);
        let request = if checked.key.is_some() { self.client.put(url) } else { self.client.post(url) };
        let exchange = async {
            let answer = request.bearer_auth(token.expose()).body(body).send().await?;
            Answer::read(answer).await
        };
        let answer = tokio::select! {
            answer = exchange => answer,
            reason = self.stalled(&moved) => return Err(Failure::Passing { reason, after: None }),
        };
        let error = match answer {
            Ok(answer) => return answer.receipt(checked),
            Err(error) => error,
        };
        // The connection is gone, so that the thread ends at once; it knows whether the file was the reason.
        if let Ok(Err(error)) = feeding.await {
            return Err(Failure::Final(Refusal::unreadable(&checked.content.name, &error)));
        }
        if error.is_builder() {
            let reason = format!("no request can be made of it: {}", causes(&error));
            return Err(Failure::Final(Refusal::new(Exit::Configuration, &checked.content.name, reason)));
        }
        if let Some((what, advice)) = tls::refusal(&error) {
            let reason = format!("{what}: {}; {advice}", causes(&error));
            return Err(Failure::Final(Refusal::new(Exit::Configuration, &checked.content.name, reason)));
        }
        Err(Failure::Passing { reason: causes(&error), after: None })
    }

    /// Ends when nothing has moved for too long, or the time is over.
    async fn stalled(&self, moved: &AtomicU64) -> String {
        let mut seen = moved.load(Ordering::Relaxed);
        loop {
            let next = (Instant::now() + SILENCE).min(self.deadline);
            tokio::time::sleep_until(next).await;
            if next == self.deadline {
                return "no answer came before the time was over".to_owned();
            }
            let now = moved.load(Ordering::Relaxed);
            if now == seen {
                return format!("nothing moved for {}", human(SILENCE));
            }
            seen = now;
        }
    }
}

/// The URL of a submission, below whatever path the service's own address has.
#[must_use]
pub fn address(base: &Url, checked: &Checked) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["ingest", &checked.dataset.name]).extend(&checked.key);
    }
    if !checked.columns.is_empty() {
        url.query_pairs_mut().extend_pairs(&checked.columns);
    }
    url
}

/// What was sent must be what was checked.
fn unchanged(checked: &Checked, receipt: Receipt) -> Result<Receipt, Refusal> {
    if receipt.sha256 == data_encoding::HEXLOWER.encode(&checked.summary.sha256) {
        return Ok(receipt);
    }
    let reason = format!(
        "changed while it was being sent: submission {} holds other content than was checked; {OTHER_CONTENT}",
        receipt.submission_id
    );
    Err(Refusal::new(Exit::Data, &checked.content.name, reason))
}

/// An answer that arrived whole.
struct Answer {
    status: StatusCode,
    after: Option<Duration>,
    location: Option<String>,
    text: String,
}

impl Answer {
    async fn read(answer: Response) -> reqwest::Result<Self> {
        let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (status, after) = (answer.status(), text(header::RETRY_AFTER).and_then(|value| retry_after(&value)));
        let location = text(header::LOCATION);
        Ok(Self { status, after, location, text: answer.text().await? })
    }

    fn receipt(self, checked: &Checked) -> Result<Receipt, Failure> {
        let name = &checked.content.name;
        if self.status.is_success() {
            return serde_json::from_str(&self.text).map_err(|_| {
                let reason = "the answer is no receipt of NVD Support Car: is the address right?";
                Failure::Final(Refusal::new(Exit::Configuration, name, reason))
            });
        }
        let status = self.status;
        let problem: Option<Problem> = serde_json::from_str(&self.text).ok();
        let detail = problem.as_ref().map_or_else(
            || format!("the answer is {status}"),
            |problem| format!("the service says {status}: {}", problem.detail),
        );
        let of = |exit, reason: String| Refusal::new(exit, name, reason);
        Err(match status.as_u16() {
            400 => Failure::Damaged { reason: detail },
            422 => match problem {
                Some(problem) if !problem.errors.is_empty() => {
                    let faults: Vec<Fault> = problem.errors.into_iter().map(Fault::from).collect();
                    Failure::Final(Refusal::of_faults(name, &faults))
                }
                _ => Failure::Final(of(Exit::Data, detail)),
            },
            // The service speaks of a query parameter, for which there is no option.
            409 => Failure::Final(of(Exit::Data, detail.replace(ADVICE, OTHER_CONTENT))),
            413 => Failure::Final(of(Exit::Data, detail)),
            401 | 403 => Failure::Final(of(Exit::NotAllowed, detail)),
            408 | 429 | 500..=599 => Failure::Passing { reason: detail, after: self.after },
            300..=399 => {
                let elsewhere = self.location.unwrap_or_default();
                let reason = format!("the service is elsewhere: use the address that leads to {elsewhere}");
                Failure::Final(of(Exit::Configuration, reason))
            }
            _ => Failure::Final(of(Exit::Configuration, detail)),
        })
    }
}

impl From<FieldFault> for Fault {
    fn from(fault: FieldFault) -> Self {
        Self { line: fault.line, column: fault.column, field: fault.field, reason: fault.reason }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Passing { reason, .. } | Self::Damaged { reason } => out.write_str(reason),
            Self::Final(refusal) => out.write_str(&refusal.lines.join("; ")),
        }
    }
}

/// Seconds, or a date; at most a day, whatever is asked for.
fn retry_after(value: &str) -> Option<Duration> {
    const DAY: Duration = Duration::from_hours(24);
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds).min(DAY));
    }
    let date = chrono::DateTime::parse_from_rfc2822(value.trim()).ok()?;
    Some((date.to_utc() - chrono::Utc::now()).to_std().unwrap_or_default().min(DAY))
}

/// An error with its causes, of which reqwest's own words are the least. It names no more of the URL than its host.
fn causes(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    if text.is_empty() { "the connection failed".to_owned() } else { format!("the connection failed: {text}") }
}

fn human(duration: Duration) -> String {
    humantime::format_duration(Duration::from_millis(
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).next_multiple_of(100),
    ))
    .to_string()
}

/// Reads the file on a thread of its own, as fast as the connection takes it.
fn feed(checked: Arc<Checked>, moved: Arc<AtomicU64>, progress: Arc<Progress>) -> (Body, JoinHandle<io::Result<()>>) {
    let (sender, receiver) = mpsc::channel(PARTS_IN_FLIGHT);
    let feeding = tokio::task::spawn_blocking(move || {
        let parts = Parts { name: &checked.content.name, sender: &sender, moved: &moved, progress: &progress };
        let written = checked.content.write_body(parts);
        if sender.is_closed() {
            // The request ended before the body: its answer says why.
            return Ok(());
        }
        if written.is_err() {
            // The service must not take what was read for the whole.
            drop(sender.blocking_send(Err(io::Error::other("the file could not be read"))));
        }
        written
    });
    (Body::wrap_stream(ReceiverStream::new(receiver)), feeding)
}

/// Hands over what is written to it.
struct Parts<'a> {
    name: &'a str,
    sender: &'a mpsc::Sender<io::Result<Bytes>>,
    moved: &'a AtomicU64,
    progress: &'a Progress,
}

impl Write for Parts<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let sent = self.sender.blocking_send(Ok(Bytes::copy_from_slice(buffer)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        let before = self.moved.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.progress.sent(self.name, before + buffer.len() as u64);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_may_name_seconds_or_a_date_but_nothing_absurd() {
        assert_eq!(retry_after(" 5 "), Some(Duration::from_secs(5)));
        assert_eq!(retry_after("18446744073709551615"), Some(Duration::from_hours(24)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let soon = retry_after(&(chrono::Utc::now() + chrono::TimeDelta::minutes(2)).to_rfc2822()).expect("date");
        assert!(soon > Duration::from_secs(60) && soon <= Duration::from_secs(120), "{soon:?}");
        assert_eq!(retry_after("soon"), None);
    }
}
