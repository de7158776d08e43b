//! A run of five gigabytes: flat memory while it is written and while it is sent, and a ZIP beyond 32 bits.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::app::TestApp;
use crate::extracts::{create, data};

/// Rows of about a kilobyte.
const ROWS: i64 = 5_200_000;

/// Where it is looked at first: a gigabyte.
const FIRST: u64 = 1_000_000;

/// What this process may hold in memory beyond what it held after the first gigabyte.
const MORE: u64 = 64 << 20;

/// The largest memory of this process since the last call of [`forget_peak`].
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") * 1024
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").expect("clear_refs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes 11 GB below the temporary directory, and takes minutes"]
async fn a_run_of_five_gigabytes_is_written_and_sent_in_flat_memory_and_opens_everywhere() {
    let folder = tempfile::tempdir().expect("folder");
    let definition = "name = \"large\"\ntable = \"large\"\ntitle = \"T\"\ndescription = \"d\"\n\
                      [[columns]]\nname = \"payload\"\nkind = \"text\"\ndescription = \"d\"\n";
    std::fs::write(folder.path().join("large.toml"), definition).expect("definition");
    let app = TestApp::with(&[("datasets.dir", folder.path().to_str().expect("path"))]).await;
    app.store("/ingest/large", "{\"payload\":\"first\"}\n").await;
    let fill = "INSERT INTO large (submission_id, ordinal, payload)
                SELECT 1, number, repeat(md5(number::text), 31) FROM generate_series(2, $1) number";
    sqlx::query(fill).bind(ROWS).execute(&app.pool).await.expect("fill");
    sqlx::query("UPDATE submissions SET rows = $1").bind(ROWS).execute(&app.pool).await.expect("update");
    forget_peak();
    let before = peak();
    let started = Instant::now();
    let extract = create(&app, &json!({"name": "Large", "schemas": ["large"], "compress": false})).await;
    let path = format!("/api/extracts/{}/run", extract["id"].as_str().expect("id"));
    let answer: Value = app.request("POST", &path).send().await.expect("answer").json().await.expect("JSON");
    let run = answer["data"]["run_id"].as_str().expect("run").to_owned();
    let mut first = 0;
    let run = loop {
        let run = data(&app.get(&format!("/api/data/extract_runs/{run}")).await);
        if !["queued", "running"].contains(&run["status"].as_str().expect("status")) {
            break run;
        }
        if first == 0 && run["progress_detail"]["records_exported"].as_u64() > Some(FIRST) {
            first = peak();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    assert_eq!((&run["status"], &run["records_exported"]), (&json!("completed"), &json!(ROWS)), "{run}");
    let bytes = run["size_bytes"].as_u64().expect("bytes");
    assert!(bytes > 5_000_000_000, "{bytes}");
    let last = peak();
    eprintln!(
        "written: {bytes} bytes in {:?}; MiB before, after one gigabyte, at the end: {:?}",
        started.elapsed(),
        [before, first, last].map(|bytes| bytes >> 20)
    );
    assert!(first > 0 && last < first + MORE);
    forget_peak();
    let started = Instant::now();
    let path = format!("/api/extracts/runs/{}/download", run["id"].as_str().expect("id"));
    let mut stream = app.request("GET", &path).send().await.expect("answer").bytes_stream();
    let mut file = tempfile::NamedTempFile::with_suffix(".zip").expect("file");
    let (mut received, mut first) = (0, 0);
    while let Some(piece) = stream.next().await {
        let piece = piece.expect("piece");
        file.write_all(&piece).expect("write");
        received += piece.len() as u64;
        if first == 0 && received > FIRST * 1000 {
            first = peak();
        }
    }
    let last = peak();
    eprintln!(
        "sent: {received} bytes in {:?}; MiB after one gigabyte, at the end: {:?}",
        started.elapsed(),
        [first, last].map(|bytes| bytes >> 20)
    );
    assert!(first > 0 && last < first + MORE);
    let check = "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1])\nassert z.testzip() is None\n\
                 assert z.getinfo('large.jsonl').file_size > 1 << 32";
    let python = Command::new("python3").args(["-c", check]).arg(file.path()).output().expect("python3");
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let unzip = Command::new("unzip").arg("-tq").arg(file.path()).output().expect("unzip");
    assert!(unzip.status.success(), "{}", String::from_utf8_lossy(&unzip.stdout));
}
