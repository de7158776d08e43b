//! Exports read by pandas, Polars, pyarrow and DuckDB, from disk and over the download link.

use serde_json::json;

use crate::app::{RECORD, TestApp, data, gzip};
use crate::python;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs NVD_PYTHON: a Python with what tests/python.txt names; .ci/run has one"]
async fn readers_of_others_find_what_was_stored() {
    let app = TestApp::with(&[("export.batch_size", "1000")]).await;
    app.store("/ingest-gottcha2", gzip(format!("{RECORD}\n").repeat(20_000))).await;
    app.store("/ingest-gottcha2?sample_id=SRR12689945", data("gottcha2/v2.4.3.SRR12689945.full.tsv")).await;
    let export = app.export(json!({"table": "gottcha2"})).await;
    let (id, name) = (export["id"].as_str().expect("id"), export["file_name"].as_str().expect("name"));
    let file = app.exports().join("gottcha2").join(id).join("1").join(name);
    let rows = app.count("gottcha2_full").await;
    let reads: i64 = app.scalar("SELECT sum(read_count)::bigint FROM gottcha2_full").await;
    let url = export["download_url"].as_str().expect("link");
    let file = file.to_str().expect("UTF-8");
    python::run("readers.py", &[file, url, &rows.to_string(), &reads.to_string()]).await;
    for format in ["csv", "json", "jsonl"] {
        for compression in ["gzip", "zstd"] {
            let export = app.export(json!({"table": "gottcha2", "format": format, "compression": compression})).await;
            let url = export["download_url"].as_str().expect("link");
            python::run("text_readers.py", &[format, compression, url, &rows.to_string(), &reads.to_string()]).await;
        }
    }
}
