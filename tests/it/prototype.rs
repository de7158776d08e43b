//! The clients of the service's prototype, which are in use: what they send is rebuilt here byte for byte in form.
//!
//! They split a file into posts of 1,000 records, compress each, name no key, and look at the status alone.

use reqwest::Response;
use serde_json::{Value, json};

use crate::app::{TOKEN, TestApp, data, gzip, zlib};

/// The fields that the clients take from a GOTTCHA2 report, by place.
const FIELDS: [&str; 10] = [
    "level",
    "name",
    "taxid",
    "read_count",
    "total_bp_mapped",
    "ani_ci95",
    "covered_sig_len",
    "best_sig_cov",
    "depth",
    "rel_abundance",
];

/// 2,500 records of a report, as the clients read it.
fn gottcha2() -> Vec<Value> {
    let report = String::from_utf8(data("gottcha2/v2.1.10.SRR12689945.tsv")).expect("UTF-8");
    let record = |line: &str| {
        let mut record = json!({"sample_id": "S1"});
        for (name, cell) in FIELDS.iter().zip(line.split('\t')) {
            let is_number = !["level", "name", "taxid"].contains(name);
            record[*name] = if is_number { serde_json::from_str(cell).expect("number") } else { json!(cell) };
        }
        record
    };
    report.lines().skip(1).map(record).cycle().take(2500).collect()
}

/// 2,100 records of BLAST's output with a lineage behind it.
fn stast() -> Vec<Value> {
    let file = String::from_utf8(data("stast/stast.jsonl")).expect("UTF-8");
    let records: Vec<Value> = file.lines().map(|line| serde_json::from_str(line).expect("record")).collect();
    records.into_iter().cycle().take(2100).collect()
}

/// A batch as Python and TypeScript write it: no line end behind the last record.
fn joined(records: &[Value]) -> String {
    records.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
}

/// A batch as the shell script writes it, cut out of a file of lines.
fn lines(records: &[Value]) -> String {
    joined(records) + "\n"
}

async fn post(app: &TestApp, path: &str, body: Vec<u8>) -> Response {
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let request = client.post(format!("{}{path}", app.url)).header("Authorization", format!("Bearer {TOKEN}"));
    let request = request.header("Content-Type", "application/gzip").header("Content-Encoding", "gzip");
    request.body(body).send().await.expect("answer")
}

#[tokio::test]
async fn the_four_clients_of_the_prototype_store_every_record() {
    type Body = fn(&[Value]) -> Vec<u8>;
    let clients: [(&str, Body); 4] = [
        ("python", |records| gzip(joined(records))),
        ("typescript", |records| gzip(joined(records))),
        ("shell", |records| gzip(lines(records))),
        // R's memCompress makes zlib of what it calls gzip.
        ("R", |records| zlib(joined(records))),
    ];
    let app = TestApp::start().await;
    for (name, body) in clients {
        for (path, records) in [("/ingest-gottcha2", gottcha2()), ("/ingest-stast", stast())] {
            let of_client = records.into_iter().map(|mut record| {
                record["sample_id"] = json!(name);
                record
            });
            for batch in of_client.collect::<Vec<_>>().chunks(1000) {
                let answer = post(&app, path, body(batch)).await;
                assert_eq!(answer.status(), 200, "{name} {path}: {}", answer.text().await.expect("text"));
            }
        }
        assert_eq!(app.count(&format!("gottcha2_full WHERE sample_id = '{name}'")).await, 2500);
        assert_eq!(app.count(&format!("stast_table WHERE sample_id = '{name}'")).await, 2100);
    }
    let health = reqwest::get(format!("{}/healthz", app.url)).await.expect("answer");
    assert_eq!((health.status().as_u16(), health.text().await.expect("text").as_str()), (200, "ok"));
}
