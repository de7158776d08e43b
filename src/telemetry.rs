//! Logs and metrics: how they are set up, and the names of everything that is counted.

use std::sync::OnceLock;
use std::time::Duration;

use chrono::{DateTime, Utc};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};
use crate::error::{Error, Result};
use crate::ingest::Receipt;

/// Declares metrics: how each is described to the exporter, its constant, its name and its meaning.
macro_rules! metrics_are {
    ($($describe:ident $constant:ident $name:literal $meaning:literal)*) => {
        $(#[doc = $meaning] pub const $constant: &str = $name;)*

        /// The names of all metrics, and what each says.
        pub const METRICS: &[(&str, &str)] = &[$(($name, $meaning)),*];

        fn describe() {
            $(metrics::$describe!($name, $meaning);)*
        }
    };
}

metrics_are! {
    describe_counter INGEST_ROWS "nvd_ingest_rows_total"
        "Rows stored, by dataset"
    describe_counter INGEST_BYTES "nvd_ingest_bytes_total"
        "Decompressed bytes of stored bodies, by dataset"
    describe_counter INGEST_SUBMISSIONS "nvd_ingest_submissions_total"
        "Bodies, by dataset and result: `stored`, `replayed`, or the reason of the refusal"
    describe_histogram INGEST_SECONDS "nvd_ingest_duration_seconds"
        "From the first byte of a body to its answer, by dataset"
    describe_gauge INGEST_QUEUE "nvd_ingest_queue_uploads"
        "Uploads that wait or run"
    describe_counter HTTP_REQUESTS "nvd_http_requests_total"
        "Requests, by method, route and status"
    describe_histogram HTTP_SECONDS "nvd_http_request_duration_seconds"
        "From the head of a request to the head of its answer, by method and route"
    describe_gauge POOL_CONNECTIONS "nvd_database_pool_connections"
        "Connections to the database, by state: `idle` or `used`"
    describe_counter EXPORTS "nvd_exports_total"
        "Attempts to export, by dataset and result: `completed`, `lost`, or the reason of the failure"
    describe_counter EXPORT_ROWS "nvd_export_rows_total"
        "Rows of complete exports, by dataset"
    describe_counter EXPORT_BYTES "nvd_export_bytes_total"
        "Bytes of complete exports, by dataset"
    describe_histogram EXPORT_SECONDS "nvd_export_duration_seconds"
        "From the claim of an export to its end, by dataset"
    describe_gauge EXPORT_AGE "nvd_export_newest_age_seconds"
        "Age of the newest whole export, by dataset; without one, of the first rows of the dataset"
    describe_gauge EXPORT_NEXT "nvd_export_next_run_timestamp_seconds"
        "When the next scheduled export is due, in seconds since 1970, by dataset"
    describe_gauge EXPORT_MISSING "nvd_export_missing_files"
        "Files of complete exports that are missing from the storage"
    describe_counter LAKE_RUNS "nvd_lake_runs_total"
        "Runs of partitioned datasets, by dataset and result: `completed`, or the reason of the failure"
    describe_counter LAKE_ROWS "nvd_lake_rows_total"
        "Rows written to partitioned datasets, by dataset"
    describe_counter LAKE_BYTES "nvd_lake_bytes_total"
        "Bytes written to partitioned datasets, by dataset"
    describe_histogram LAKE_SECONDS "nvd_lake_duration_seconds"
        "From the start of a run of a partitioned dataset to its end, by dataset"
    describe_gauge LAKE_UPDATED "nvd_lake_updated_timestamp_seconds"
        "When a partitioned dataset was last brought up to date, in seconds since 1970, by dataset"
    describe_counter LABKEY_UPLOADED "labkey_records_uploaded"
        "Rows that LabKey took, by dataset"
    describe_counter LABKEY_ERRORS "labkey_sync_errors"
        "What kept rows from LabKey, by dataset and reason"
    describe_gauge LABKEY_PENDING "nvd_labkey_pending_rows"
        "Rows that still are to be delivered to LabKey, by dataset"
    describe_gauge LABKEY_FAILED "nvd_labkey_failed_rows"
        "Rows that LabKey refused, by dataset"
    describe_gauge LABKEY_OLDEST "nvd_labkey_oldest_pending_age_seconds"
        "How long the oldest row that is to be delivered has waited, by dataset"
    describe_histogram LABKEY_SECONDS "nvd_labkey_delivery_duration_seconds"
        "From the first byte of a delivery to LabKey's answer, by dataset"
    describe_counter LABKEY_RECONCILED "nvd_labkey_reconciled_total"
        "Deliveries whose end was unknown, by dataset and what was found: `there`, `missing`, `twice`, `merged again`"
    describe_gauge LABKEY_PAUSED "nvd_labkey_breaker_open"
        "1 while LabKey is left alone because it did not answer"
    describe_counter EXTRACT_RUNS "nvd_extract_runs_total"
        "Runs of extracts that ended, by result: `completed`, `failed` or `cancelled`"
    describe_counter NOTICES "nvd_notices_total"
        "Attempts to send a notice, by webhook and result: `sent` or `refused`"
}

/// Upper bounds of the buckets of all durations, in seconds.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

/// Sends logs to standard error. A second call in one process does nothing.
///
/// # Errors
/// A level that is no tracing filter.
pub fn init_logs(config: &LogConfig) -> Result<()> {
    let filter = EnvFilter::try_new(&config.level).map_err(|error| {
        Error::Environment(format!("log.level is not a filter such as info or nvd_support_car=debug: {error}"))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match config.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // Already set: a test that runs several services in one process.
    drop(set);
    Ok(())
}

/// The metrics of this process, installed at the first call.
///
/// # Errors
/// When another recorder was installed before.
pub fn metrics() -> Result<PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    let handle = HANDLE.get_or_init(|| {
        let builder =
            PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("seconds".into()), &SECONDS).ok()?;
        let handle = builder.install_recorder().ok()?;
        describe();
        Some(handle)
    });
    handle.clone().ok_or_else(|| Error::Internal("metrics cannot be recorded".into()))
}

/// Counts one body.
pub fn ingested(dataset: &str, result: &Result<Receipt>, duration: Duration) {
    let dataset = dataset.to_owned();
    metrics::histogram!(INGEST_SECONDS, "dataset" => dataset.clone()).record(duration);
    let word = match result {
        Ok(receipt) if receipt.replayed => "replayed",
        Ok(receipt) => {
            let submission = &receipt.submission;
            metrics::counter!(INGEST_ROWS, "dataset" => dataset.clone()).increment(submission.rows.unsigned_abs());
            metrics::counter!(INGEST_BYTES, "dataset" => dataset.clone()).increment(submission.bytes.unsigned_abs());
            "stored"
        }
        Err(error) => error.reason(),
    };
    metrics::counter!(INGEST_SUBMISSIONS, "dataset" => dataset, "result" => word).increment(1);
}

/// Counts one attempt to export; `None` is one that another worker had taken over.
pub fn exported(dataset: &str, result: &Result<Option<(u64, u64)>, &Error>, duration: Duration) {
    let dataset = dataset.to_owned();
    metrics::histogram!(EXPORT_SECONDS, "dataset" => dataset.clone()).record(duration);
    let word = match result {
        Ok(Some((rows, bytes))) => {
            metrics::counter!(EXPORT_ROWS, "dataset" => dataset.clone()).increment(*rows);
            metrics::counter!(EXPORT_BYTES, "dataset" => dataset.clone()).increment(*bytes);
            "completed"
        }
        Ok(None) => "lost",
        Err(error) => error.reason(),
    };
    metrics::counter!(EXPORTS, "dataset" => dataset, "result" => word).increment(1);
}

/// Counts one run of a partitioned dataset, which wrote so many rows and bytes.
pub fn lake_run(dataset: &str, result: &Result<(u64, u64), &Error>, duration: Duration) {
    let dataset = dataset.to_owned();
    metrics::histogram!(LAKE_SECONDS, "dataset" => dataset.clone()).record(duration);
    let word = match result {
        Ok((rows, bytes)) => {
            metrics::counter!(LAKE_ROWS, "dataset" => dataset.clone()).increment(*rows);
            metrics::counter!(LAKE_BYTES, "dataset" => dataset.clone()).increment(*bytes);
            lake_updated(&dataset, unix_seconds(Utc::now()));
            "completed"
        }
        Err(error) => error.reason(),
    };
    metrics::counter!(LAKE_RUNS, "dataset" => dataset, "result" => word).increment(1);
}

/// Counts a run of an extract that ended.
pub fn extracted(result: &str) {
    metrics::counter!(EXTRACT_RUNS, "result" => result.to_owned()).increment(1);
}

/// Counts an attempt to send a notice.
pub fn noticed(webhook: &str, was_sent: bool) {
    let result = if was_sent { "sent" } else { "refused" };
    metrics::counter!(NOTICES, "webhook" => webhook.to_owned(), "result" => result).increment(1);
}

/// Tells the age of the newest whole export of a dataset, in seconds.
pub fn newest_export(dataset: &str, seconds: f64) {
    metrics::gauge!(EXPORT_AGE, "dataset" => dataset.to_owned()).set(seconds);
}

/// Tells that the newest export of a dataset is older than was last told, by so many seconds.
pub fn newest_export_ages(dataset: &str, seconds: f64) {
    metrics::gauge!(EXPORT_AGE, "dataset" => dataset.to_owned()).increment(seconds);
}

/// Tells when a partitioned dataset was last brought up to date, in seconds since 1970.
pub fn lake_updated(dataset: &str, at: f64) {
    metrics::gauge!(LAKE_UPDATED, "dataset" => dataset.to_owned()).set(at);
}

/// Tells when the next export of a dataset is due.
pub fn next_export(dataset: &str, at: Option<DateTime<Utc>>) {
    metrics::gauge!(EXPORT_NEXT, "dataset" => dataset.to_owned()).set(at.map_or(f64::NAN, unix_seconds));
}

#[expect(clippy::cast_precision_loss, reason = "microseconds are far below 2^53")]
fn unix_seconds(at: DateTime<Utc>) -> f64 {
    at.timestamp_micros() as f64 / 1e6
}

/// Counts rows that LabKey took.
pub fn labkey_uploaded(dataset: &str, rows: u64) {
    metrics::counter!(LABKEY_UPLOADED, "dataset" => dataset.to_owned()).increment(rows);
}

/// Counts what kept rows from LabKey.
pub fn labkey_error(dataset: &str, reason: &'static str) {
    metrics::counter!(LABKEY_ERRORS, "dataset" => dataset.to_owned(), "reason" => reason).increment(1);
}

/// Measures one request.
pub fn labkey_request(dataset: &str, duration: Duration) {
    metrics::histogram!(LABKEY_SECONDS, "dataset" => dataset.to_owned()).record(duration);
}

/// Counts deliveries whose end had been unknown.
pub fn labkey_reconciled(dataset: &str, result: &'static str, deliveries: u64) {
    metrics::counter!(LABKEY_RECONCILED, "dataset" => dataset.to_owned(), "result" => result).increment(deliveries);
}

/// Tells what waits for LabKey, and how long the oldest of it has.
pub fn labkey_waiting(dataset: &str, pending: i64, failed: i64, oldest_seconds: f64) {
    #[expect(clippy::cast_precision_loss, reason = "rows are far below 2^53")]
    let (pending, failed) = (pending as f64, failed as f64);
    metrics::gauge!(LABKEY_PENDING, "dataset" => dataset.to_owned()).set(pending);
    metrics::gauge!(LABKEY_FAILED, "dataset" => dataset.to_owned()).set(failed);
    metrics::gauge!(LABKEY_OLDEST, "dataset" => dataset.to_owned()).set(oldest_seconds);
}

/// Tells whether LabKey is left alone.
pub fn labkey_paused(is_paused: bool) {
    metrics::gauge!(LABKEY_PAUSED).set(if is_paused { 1.0 } else { 0.0 });
}

/// Tells how many files of exports are missing.
pub fn missing_files(count: u32) {
    metrics::gauge!(EXPORT_MISSING).set(count);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_tells_of_every_metric() {
        let readme = include_str!("../README.md");
        for (name, meaning) in METRICS {
            assert!(readme.contains(&format!("| `{name}` | {meaning} |")), "{name}");
        }
    }
}
