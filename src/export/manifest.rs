//! What an export says of itself: in each Parquet file's metadata, and in the manifest beside the files.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Exported;
use super::spec::Plan;
use crate::dataset::Kind;
use crate::error::{Error, Result};

/// The manifest's name in the folder of the export.
pub const FILE: &str = "manifest.json";

/// The media type of a file, told by its name.
#[must_use]
pub fn media_type(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "parquet" => "application/vnd.apache.parquet",
        "csv" => "text/csv; charset=utf-8",
        "json" => "application/json",
        "jsonl" => "application/x-ndjson",
        "yaml" => "application/yaml",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        "zst" => "application/zstd",
        _ => "application/octet-stream",
    }
}

/// Notes for the metadata of each Parquet file.
#[must_use]
pub fn notes(plan: &Plan, id: &str, snapshot_at: DateTime<Utc>) -> Vec<(&'static str, String)> {
    vec![
        ("nvd.dataset", plan.dataset.name.clone()),
        ("nvd.schema_version", schema_version(plan)),
        ("nvd.service_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("nvd.export_id", id.to_owned()),
        ("nvd.snapshot_at", snapshot_at.to_rfc3339()),
    ]
}

/// Changes when the columns do: the beginning of a digest of their names and kinds.
fn schema_version(plan: &Plan) -> String {
    let mut digest = Sha256::new();
    for column in &plan.columns {
        digest.update(format!("{} {:?}\n", column.name, column.kind));
    }
    data_encoding::HEXLOWER.encode(&digest.finalize()[..6])
}

/// The manifest: written last, so that whoever finds it finds all it names.
#[derive(Serialize)]
pub struct Manifest {
    export_id: String,
    dataset: String,
    schema_version: String,
    service_version: &'static str,
    snapshot_at: DateTime<Utc>,
    format: &'static str,
    compression: &'static str,
    /// Whether it holds all rows and columns of the dataset.
    whole: bool,
    rows: u64,
    bytes: u64,
    columns: Vec<ManifestColumn>,
    files: Vec<ManifestFile>,
}

#[derive(Serialize)]
struct ManifestColumn {
    name: String,
    kind: Kind,
}

#[derive(Serialize)]
struct ManifestFile {
    name: String,
    rows: u64,
    bytes: u64,
    sha256: String,
    min_time: Option<DateTime<Utc>>,
    max_time: Option<DateTime<Utc>>,
}

impl Manifest {
    /// The manifest of what was written.
    #[must_use]
    pub fn new(plan: &Plan, id: &str, exported: &Exported) -> Self {
        let files = exported.files.iter().map(|(name, file)| ManifestFile {
            name: name.clone(),
            rows: file.stats.rows,
            bytes: file.bytes,
            sha256: data_encoding::HEXLOWER.encode(&file.sha256),
            min_time: file.stats.time.and_then(|(min, _)| DateTime::from_timestamp_micros(min)),
            max_time: file.stats.time.and_then(|(_, max)| DateTime::from_timestamp_micros(max)),
        });
        let columns =
            plan.columns.iter().map(|column| ManifestColumn { name: column.name.clone(), kind: column.kind }).collect();
        Self {
            export_id: id.to_owned(),
            dataset: plan.dataset.name.clone(),
            schema_version: schema_version(plan),
            service_version: env!("CARGO_PKG_VERSION"),
            snapshot_at: exported.snapshot_at,
            format: plan.format.as_str(),
            compression: plan.compression.as_str(),
            whole: plan.is_whole(),
            rows: exported.stats.rows,
            bytes: exported.bytes,
            columns,
            files: files.collect(),
        }
    }

    /// The text of the file.
    ///
    /// # Errors
    /// Never, in practice.
    pub fn to_json(&self) -> Result<Bytes> {
        let text = serde_json::to_vec_pretty(self);
        text.map(Bytes::from).map_err(|error| Error::Internal(format!("the manifest cannot be written: {error}")))
    }
}
