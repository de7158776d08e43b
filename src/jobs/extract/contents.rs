//! What a run says of its contents: `describe.yaml` about the datasets, `manifest.json` about the files.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use super::config::ExtractConfig;
use crate::db::artifacts::Artifact;
use crate::db::extract_runs::Run;
use crate::export::manifest::media_type;
use crate::export::snapshot::Table;
use crate::export::spec::Plan;
use crate::export::yaml;

/// The name of the description.
pub const DESCRIBE: &str = "describe.yaml";

/// The datasets of a run: columns, kinds, units, descriptions, rows, times.
pub fn describe(run: &Run, config: &ExtractConfig, snapshot_at: DateTime<Utc>, tables: &[(Plan, Table)]) -> String {
    let schemas: Vec<Value> = tables.iter().map(|(plan, table)| schema(plan, table)).collect();
    yaml::to_text(&json!({
        "extract": config.name,
        "run_id": run.id,
        "snapshot_at": snapshot_at,
        "service_version": env!("CARGO_PKG_VERSION"),
        "schemas": schemas,
    }))
}

fn schema(plan: &Plan, table: &Table) -> Value {
    let dataset = &plan.dataset;
    let columns = plan.columns.iter().map(|column| {
        let mut said =
            Map::from_iter([("name".to_owned(), json!(column.name)), ("type".to_owned(), json!(column.kind))]);
        if let Some(declared) = dataset.columns.iter().find(|declared| declared.name == column.name) {
            said.insert("description".into(), json!(declared.description));
            said.insert("required".into(), json!(declared.required));
            said.extend(declared.unit.as_ref().map(|unit| ("unit".to_owned(), json!(unit))));
            said.extend(declared.range.as_ref().map(|range| ("allowed".to_owned(), json!(range.to_string()))));
        }
        Value::Object(said)
    });
    let columns: Vec<Value> = columns.collect();
    json!({
        "name": dataset.name,
        "title": dataset.title,
        "description": dataset.description,
        "row_count": table.rows,
        "time_range": table.time.map(|(from, to)| json!({"from": from, "to": to})),
        "filtered": !plan.has_all_rows(),
        "columns": columns,
    })
}

/// The manifest: every artifact with what is needed to check it, and what lies within an archive.
pub fn manifest(
    run: &Run,
    config: &ExtractConfig,
    times: (DateTime<Utc>, DateTime<Utc>),
    artifacts: &[Artifact],
    contents: Option<&[Artifact]>,
) -> Vec<u8> {
    let (snapshot_at, expires_at) = times;
    let entry = |artifact: &Artifact| {
        json!({
            "name": artifact.name,
            "kind": artifact.kind,
            "schema": artifact.schema,
            "rows": artifact.rows,
            "bytes": artifact.bytes,
            "sha256": data_encoding::HEXLOWER.encode(&artifact.sha256),
            "content_type": media_type(&artifact.name),
            "expires_at": expires_at,
        })
    };
    let data = contents.unwrap_or(artifacts).iter().filter(|artifact| artifact.kind == "data");
    let mut manifest = json!({
        "extract_id": run.extract_id,
        "extract": config.name,
        "run_id": run.id,
        "format": config.format,
        "snapshot_at": snapshot_at,
        "expires_at": expires_at,
        "service_version": env!("CARGO_PKG_VERSION"),
        "records": data.map(|artifact| artifact.rows).sum::<i64>(),
        "artifacts": artifacts.iter().map(entry).collect::<Vec<_>>(),
    });
    if let Some(contents) = contents {
        manifest["contents"] = contents.iter().map(entry).collect();
    }
    format!("{manifest:#}\n").into_bytes()
}
