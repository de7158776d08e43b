//! Exports read by pandas, Polars, pyarrow and DuckDB, from disk and over the download link.

use std::process::Command;

use serde_json::json;

use crate::app::{RECORD, TestApp, data, gzip};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs NVD_PYTHON: a Python with pandas, polars, pyarrow, duckdb and duckdb-extension-httpfs; .ci/run has one"]
async fn readers_of_others_find_what_was_stored() {
    let python = std::env::var("NVD_PYTHON").expect("NVD_PYTHON");
    let app = TestApp::with(&[("export.batch_size", "1000")]).await;
    app.store("/ingest-gottcha2", gzip(format!("{RECORD}\n").repeat(20_000))).await;
    app.store("/ingest-gottcha2?sample_id=SRR12689945", data("gottcha2/v2.4.3.SRR12689945.full.tsv")).await;
    let export = app.export(json!({"table": "gottcha2"})).await;
    let (id, name) = (export["id"].as_str().expect("id"), export["file_name"].as_str().expect("name"));
    let file = app.exports().join("gottcha2").join(id).join("1").join(name);
    let rows = app.count("gottcha2_full").await;
    let reads: i64 = app.scalar("SELECT sum(read_count)::bigint FROM gottcha2_full").await;
    let url = export["download_url"].as_str().expect("link").to_owned();
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers.py")).arg(file).arg(url);
    command.args([rows.to_string(), reads.to_string()]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("task").expect("Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
