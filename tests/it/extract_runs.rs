//! Runs of extracts: one state of all datasets, checked files, and every way to end.

use std::io::Read;
use std::process::Command;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use nvd_support_car::db::jobs::Lease;
use nvd_support_car::export::Target;
use nvd_support_car::export::zip::{Entry, store};
use nvd_support_car::jobs::worker::Workers;
use nvd_support_car::jobs::{retention, schedule};
use nvd_support_car::storage::Storage;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::app::{RECORD, TestApp, eventually, gzip, problem};
use crate::exports::{files_below, stored};
use crate::extracts::{EXTRACTS, create, data, next_page, send};

const HIT: &str = r#"{"task":"megablast","sample_id":"S1","qseqid":"q","qlen":9,"sseqid":"s","stitle":"t","length":9,"pident":99.5,"evalue":1e-40,"bitscore":17,"sscinames":"n","staxids":"1","rank":"r"}"#;

/// Asks for a run, which must be taken, and answers with its id.
async fn run(app: &TestApp, extract: &Value) -> String {
    let answer = start(app, extract, "").await;
    let status = answer.status();
    let text = answer.text().await.expect("text");
    assert_eq!(status, 202, "{text}");
    data(&serde_json::from_str(&text).expect("JSON"))["run_id"].as_str().expect("run").to_owned()
}

async fn start(app: &TestApp, extract: &Value, query: &str) -> reqwest::Response {
    let path = format!("/api/extracts/{}/run{query}", extract["id"].as_str().expect("id"));
    app.request("POST", &path).send().await.expect("answer")
}

async fn look(app: &TestApp, run: &str) -> Value {
    data(&app.get(&format!("/api/data/extract_runs/{run}")).await)
}

/// The run once it has ended.
async fn ended(app: &TestApp, run: &str) -> Value {
    for _ in 0..1200 {
        let found = look(app, run).await;
        if !["pending", "queued", "running"].contains(&found["status"].as_str().expect("status")) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{run} did not end");
}

async fn completed(app: &TestApp, config: &Value) -> Value {
    let extract = create(app, config).await;
    let run = ended(app, &run(app, &extract).await).await;
    assert_eq!(run["status"], "completed", "{run}");
    run
}

async fn download(app: &TestApp, path: &str) -> (String, Vec<u8>) {
    let answer = app.request("GET", path).send().await.expect("answer");
    assert_eq!(answer.status(), 200, "{path}");
    let name = answer.headers()["content-disposition"].to_str().expect("name").to_owned();
    let name = name.split('"').nth(1).expect("name").to_owned();
    (name, answer.bytes().await.expect("bytes").to_vec())
}

/// The bytes of a run's artifact of that name.
async fn artifact(app: &TestApp, run: &Value, name: &str) -> Vec<u8> {
    let all = run["artifacts"].as_array().expect("artifacts");
    let found = all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name} in {run}"));
    let path = format!("/api/extracts/artifacts/{}/download", found["id"].as_str().expect("id"));
    let (_, bytes) = download(app, &path).await;
    assert_eq!(found["size_bytes"], bytes.len());
    assert_eq!(found["sha256"], sha256(&bytes));
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
}

fn gunzip(bytes: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(bytes).read_to_string(&mut text).expect("gzip");
    text
}

/// A service with the datasets `users` and `orders` of the document, and rows in them.
async fn shop() -> TestApp {
    let folder = tempfile::tempdir().expect("folder").keep();
    for name in ["users", "orders"] {
        let text = format!(
            "name = \"{name}\"\ntable = \"{name}\"\ntitle = \"T\"\ndescription = \"d\"\n[[columns]]\nname = \"id\"\nkind = \"int\"\n\
             description = \"Which one.\"\nunit = \"number\"\nmin = 0\n[[columns]]\nname = \"weight\"\nkind = \"float\"\ndescription = \"d\"\n"
        );
        std::fs::write(folder.join(format!("{name}.toml")), text).expect("definition");
    }
    let app = TestApp::with(&[("datasets.dir", folder.to_str().expect("path"))]).await;
    app.store("/ingest/users", (0..50).map(|id| format!("{{\"id\":{id},\"weight\":1e-12}}\n")).collect::<String>())
        .await;
    app.store("/ingest/orders", "{\"id\":7,\"remark\":\"so: \\u2028so\"}\n".repeat(30)).await;
    app
}

#[tokio::test]
async fn the_document_s_own_requests_work_as_they_are_written() {
    let app = shop().await;
    // POST /api/data/extracts, GET, GET one, PUT, DELETE
    let daily = r#"{"name": "Daily Backup", "format": "jsonl", "include": ["describe", "data"], "schemas": ["users", "orders"], "retention_days": 7}"#;
    let daily = create(&app, &serde_json::from_str(daily).expect("JSON")).await;
    let path = format!("{EXTRACTS}/{}", daily["id"].as_str().expect("id"));
    assert_eq!(data(&app.get(EXTRACTS).await)[0]["name"], "Daily Backup");
    assert_eq!(data(&app.get(&path).await)["schemas"], json!(["users", "orders"]));
    assert_eq!(send(&app, "PUT", &path, &daily).await.status(), 200);
    assert_eq!(send(&app, "DELETE", &path, &json!({})).await.status(), 204);
    problem(send(&app, "GET", &path, &json!({})).await, 404).await;
    // 1. Create extract configuration
    let full = r#"{
    "name": "Full Export",
    "format": "jsonl",
    "include": ["describe", "data"],
    "retention_days": 7,
    "enabled": true
  }"#;
    let full = create(&app, &serde_json::from_str(full).expect("JSON")).await;
    assert_eq!(full["name"], "Full Export");
    let id = full["id"].as_str().expect("id");
    // 2. Execute extract
    let answer = app.request("POST", &format!("/api/extracts/{id}/run")).send().await.expect("answer");
    assert_eq!(answer.status(), 202);
    let started = data(&answer.json().await.expect("JSON"));
    let run_id = started["run_id"].as_str().expect("run").to_owned();
    assert_eq!(started["message"], "Extract queued for execution");
    assert_eq!(started["status_url"], format!("/api/data/extract_runs/{run_id}"));
    // 3. Poll for completion
    let run = ended(&app, &run_id).await;
    assert_eq!(
        (&run["id"], &run["status"], &run["progress"]),
        (&json!(run_id), &json!("completed"), &json!(100)),
        "{run}"
    );
    let detail = json!({"phase": "done", "schemas_total": 6, "schemas_completed": 6, "current_schema": null, "records_exported": 80});
    assert_eq!(run["progress_detail"], detail);
    // 4. Download when complete
    let (name, zip) = download(&app, &format!("/api/extracts/runs/{run_id}/download")).await;
    let date = chrono::Utc::now().format("%Y-%m-%d");
    assert_eq!(name, format!("Full-Export-{date}-{}.zip", &run_id[..8]));
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(zip)).expect("ZIP");
    let mut names: Vec<String> = zip.file_names().map(|name| name.expect("name").into_owned()).collect();
    names.sort();
    let mut expected: Vec<String> =
        ["gottcha2", "nvd_blast", "orders", "results", "stast", "users"].map(|name| format!("{name}.jsonl.gz")).into();
    expected.extend(["describe.yaml".to_owned(), "manifest.json".to_owned()]);
    expected.sort();
    assert_eq!(names, expected);
    let mut users = Vec::new();
    zip.by_name("users.jsonl.gz").expect("users").read_to_end(&mut users).expect("bytes");
    assert_eq!(gunzip(&users).lines().count(), 50);
    assert_eq!(users, artifact(&app, &run, "users.jsonl.gz").await);
    let after = data(&app.get(&format!("{EXTRACTS}/{id}")).await);
    assert_eq!(
        (&after["total_runs"], &after["successful_runs"], &after["failed_runs"]),
        (&json!(1), &json!(1), &json!(0))
    );
}

#[tokio::test]
async fn the_manifest_names_every_file_with_its_checksum_and_the_description_every_column() {
    let app = shop().await;
    let run = completed(&app, &json!({"name": "m", "schemas": ["users", "orders"], "retention_days": 2})).await;
    let manifest: Value = serde_json::from_slice(&artifact(&app, &run, "manifest.json").await).expect("JSON");
    assert_eq!((&manifest["run_id"], &manifest["records"]), (&run["id"], &json!(80)));
    let entries = manifest["artifacts"].as_array().expect("artifacts");
    let named: Vec<&str> = entries.iter().map(|entry| entry["name"].as_str().expect("name")).collect();
    assert_eq!(named, ["describe.yaml", "orders.jsonl.gz", "users.jsonl.gz"]);
    for entry in entries {
        let bytes = artifact(&app, &run, entry["name"].as_str().expect("name")).await;
        assert_eq!((&entry["sha256"], &entry["bytes"]), (&json!(sha256(&bytes)), &json!(bytes.len())));
        assert!(entry["content_type"].is_string() && entry["expires_at"].is_string(), "{entry}");
    }
    assert_eq!((&entries[1]["rows"], &entries[1]["content_type"]), (&json!(30), &json!("application/gzip")));
    let days: f64 =
        app.scalar("SELECT (extract(epoch FROM expires_at - created_at) / 86400)::float8 FROM extract_runs").await;
    assert!((days - 2.0).abs() < 0.01, "{days}");
    let describe = String::from_utf8(artifact(&app, &run, "describe.yaml").await).expect("UTF-8");
    for line in [
        "row_count: 50",
        "name: \"users\"",
        "unit: \"number\"",
        "allowed: \"at least 0\"",
        "description: \"Which one.\"",
    ] {
        assert!(describe.contains(line), "{line} is not in\n{describe}");
    }
}

#[tokio::test]
async fn every_format_holds_the_same_rows() {
    let app = shop().await;
    let text = async |format: &str, compress: bool| {
        let run = completed(
            &app,
            &json!({"name": format!("{format}{compress}"), "format": format, "compress": compress,
            "include": ["data"], "schemas": ["users"], "filter": {"users": {"id": 3}}}),
        )
        .await;
        let ending = if compress { ".gz" } else { "" };
        let bytes = artifact(&app, &run, &format!("users.{format}{ending}")).await;
        if compress { gunzip(&bytes) } else { String::from_utf8(bytes).expect("UTF-8") }
    };
    let row = text("jsonl", true).await;
    assert!(row.starts_with("{\"id\":3,\"weight\":1e-12,\"extra\":null,\"created_at\":\"20"), "{row}");
    assert_eq!(text("json", false).await, format!("[\n{}\n]\n", row.trim_end()));
    assert_eq!(text("yaml", true).await, format!("- {}", row.replace("1e-12", "1.0e-12")));
    assert!(text("csv", false).await.starts_with("id,weight,extra,created_at\r\n3,1e-12,,"));
    let run =
        completed(&app, &json!({"name": "p", "format": "parquet", "include": ["data"], "schemas": ["users"]})).await;
    assert!(artifact(&app, &run, "users.parquet").await.ends_with(b"PAR1"));
}

#[tokio::test]
async fn an_archive_is_one_file_that_holds_all_others() {
    let app = shop().await;
    let run = completed(&app, &json!({"name": "a", "format": "archive", "schemas": ["users", "orders"]})).await;
    let bytes = artifact(&app, &run, "archive.zip").await;
    let manifest: Value = serde_json::from_slice(&artifact(&app, &run, "manifest.json").await).expect("JSON");
    assert_eq!(manifest["artifacts"][0]["sha256"], sha256(&bytes));
    assert_eq!(run["artifacts"].as_array().expect("artifacts").len(), 2, "{run}");
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(&bytes)).expect("ZIP");
    for entry in manifest["contents"].as_array().expect("contents") {
        let mut within = Vec::new();
        let name = entry["name"].as_str().expect("name");
        zip.by_name(name).expect(name).read_to_end(&mut within).expect("bytes");
        assert_eq!(entry["sha256"], sha256(&within));
    }
    assert!(zip.by_name("manifest.json").is_ok());
    let (name, whole) =
        download(&app, &format!("/api/extracts/runs/{}/download", run["id"].as_str().expect("id"))).await;
    assert!(name.starts_with("a-20") && whole == bytes);
    assert_eq!(files_below(app.exports()).len(), 2);
}

#[tokio::test]
async fn an_archive_that_a_storage_fails_to_deliver_the_files_of_is_tried_again_and_says_why() {
    let folder = tempfile::tempdir().expect("folder");
    let storage = Storage::open(folder.path().to_str().expect("UTF-8")).expect("storage");
    storage.put("large", vec![7; 4 << 20].into()).await.expect("file");
    let target = Target::new("x".into(), &storage, String::new());
    let entries = ["large", "gone"].map(|name| Entry { name: name.into(), path: name.into() });
    let lease = Lease::new(Uuid::now_v7(), 1);
    let error = store(&target, "archive", entries.into(), &lease).await.expect_err("a file is gone");
    assert!(error.is_retryable() && error.report().contains("gone"), "{}", error.report());
    eventually("nothing is left of it", async || files_below(folder.path()).len() == 1).await;
}

#[tokio::test]
async fn files_are_split_by_size_where_that_is_asked_for() {
    let app = TestApp::with(&[("export.file_size", "1MiB"), ("export.batch_size", "1000")]).await;
    stored(&app, 4, 5_000).await;
    let config = |split: bool| json!({"name": format!("{split}"), "format": "csv", "compress": false, "split_files": split, "schemas": ["gottcha2"], "include": ["data"]});
    let whole = completed(&app, &config(false)).await;
    assert_eq!(whole["artifacts"].as_array().expect("artifacts").len(), 2, "{whole}");
    let split = completed(&app, &config(true)).await;
    let files = split["artifacts"].as_array().expect("artifacts");
    assert!(files.len() > 2, "{split}");
    assert_eq!(files[1]["name"], "gottcha2-2.csv");
    assert_eq!(files.iter().map(|file| file["rows"].as_i64().expect("rows")).sum::<i64>(), 20_000);
}

#[tokio::test]
async fn the_zip_opens_with_python_and_unzip() {
    let app = shop().await;
    let run = completed(&app, &json!({"name": "z"})).await;
    let (_, zip) = download(&app, &format!("/api/extracts/runs/{}/download", run["id"].as_str().expect("id"))).await;
    let file = tempfile::NamedTempFile::with_suffix(".zip").expect("file");
    std::fs::write(file.path(), zip).expect("write");
    let check = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; assert len(z.namelist()) == 8";
    let python = Command::new("python3").args(["-c", check]).arg(file.path()).output().expect("python3");
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let unzip = Command::new("unzip").arg("-tq").arg(file.path()).output().expect("unzip");
    assert!(unzip.status.success(), "{}", String::from_utf8_lossy(&unzip.stdout));
}

#[tokio::test]
async fn all_datasets_of_a_run_show_one_moment_while_clients_send() {
    let app = TestApp::start().await;
    let extract =
        create(&app, &json!({"name": "s", "schemas": ["gottcha2", "stast"], "compress": false, "include": ["data"]}))
            .await;
    let sending = async {
        for sample in 0..60 {
            // First the one, then the other.
            let line = RECORD.replace("S1", &format!("S{sample}"));
            app.store("/ingest-gottcha2", gzip(format!("{line}\n").repeat(100))).await;
            app.store("/ingest-stast", HIT.replace("S1", &format!("S{sample}"))).await;
        }
    };
    let extracting = async {
        let mut seen = 0;
        for _ in 0..6 {
            let run = ended(&app, &run(&app, &extract).await).await;
            let count =
                async |name: &str| String::from_utf8(artifact(&app, &run, name).await).expect("UTF-8").lines().count();
            let (first, second) = (count("gottcha2.jsonl").await, count("stast.jsonl").await);
            assert_eq!(first % 100, 0, "half of a submission");
            assert!(first / 100 == second || first / 100 == second + 1, "{first} {second}");
            seen = second;
        }
        assert!(seen > 0);
    };
    tokio::join!(sending, extracting);
    let open =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE '%transaction%'";
    eventually("no transaction is left", async || app.scalar::<i64>(open).await == 0).await;
}

#[tokio::test]
async fn a_disabled_extract_is_not_run_and_a_running_one_once_at_a_time() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    let disabled = create(&app, &json!({"name": "off", "enabled": false})).await;
    problem(start(&app, &disabled, "").await, 409).await;
    let extract = create(&app, &json!({"name": "on"})).await;
    let attempts = futures_util::future::join_all((0..8).map(|_| start(&app, &extract, ""))).await;
    assert_eq!(attempts.iter().filter(|answer| answer.status() == 202).count(), 1);
    assert_eq!(attempts.iter().filter(|answer| answer.status() == 409).count(), 7);
    for query in ["?wait", "?wait=true"] {
        assert_eq!(start(&app, &extract, query).await.status(), 202);
    }
    let states = async || {
        let runs = data(&app.get("/api/data/extract_runs").await);
        runs.as_array().expect("runs").iter().map(|run| run["status"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(states().await, ["pending", "pending", "queued"]);
    problem(
        send(&app, "DELETE", &format!("{EXTRACTS}/{}", extract["id"].as_str().expect("id")), &json!({})).await,
        409,
    )
    .await;
    let mut working = app.app.clone();
    let mut config = (*working.config).clone();
    config.export.slots = 1;
    working.config = std::sync::Arc::new(config);
    // Two replicas.
    let _workers = [Workers::start(&working), Workers::start(&working)];
    eventually("all runs complete", async || states().await == ["completed"; 3]).await;
    let overlaps = "SELECT count(*) FROM jobs a JOIN jobs b ON a.id < b.id WHERE a.finished_at > b.started_at";
    assert_eq!(app.scalar::<i64>(overlaps).await, 0);
    assert_eq!(
        data(&app.get(&format!("{EXTRACTS}/{}", extract["id"].as_str().expect("id"))).await)["successful_runs"],
        3
    );
}

/// A service whose runs take a while.
async fn slow() -> TestApp {
    let app =
        TestApp::with(&[("export.batch_size", "1000"), ("export.connections", "1"), ("export.lease", "3s")]).await;
    stored(&app, 2, 150_000).await;
    app.store("/ingest-stast", HIT).await;
    app
}

async fn is_half_way(app: &TestApp, run: &str) {
    eventually("rows are read", async || {
        look(app, run).await["progress_detail"]["records_exported"].as_u64() > Some(0)
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_run_ends_and_leaves_nothing_and_the_next_may_begin() {
    let app = slow().await;
    let extract = create(&app, &json!({"name": "c"})).await;
    let first = run(&app, &extract).await;
    is_half_way(&app, &first).await;
    let seen = look(&app, &first).await;
    assert_eq!((&seen["status"], &seen["progress_detail"]["phase"]), (&json!("running"), &json!("exporting_data")));
    assert_eq!(seen["progress_detail"]["current_schema"], "gottcha2");
    problem(send(&app, "GET", &format!("/api/extracts/runs/{first}/download"), &json!({})).await, 409).await;
    let waiting = start(&app, &extract, "?wait").await;
    let waiting = data(&waiting.json().await.expect("JSON"))["run_id"].as_str().expect("run").to_owned();
    let cancel = format!("/api/extracts/{}/cancel", extract["id"].as_str().expect("id"));
    let answer = app.request("POST", &cancel).send().await.expect("answer");
    assert_eq!(answer.status(), 202);
    assert_eq!(data(&answer.json().await.expect("JSON"))["run_id"], first);
    for run in [&first, &waiting] {
        let run = ended(&app, run).await;
        assert_eq!((&run["status"], &run["artifacts"]), (&json!("cancelled"), &json!([])));
    }
    eventually("nothing is left", async || files_below(app.exports()).is_empty()).await;
    problem(app.request("POST", &cancel).send().await.expect("answer"), 409).await;
    let next = ended(&app, &run(&app, &extract).await).await;
    assert_eq!((&next["status"], &next["records_exported"]), (&json!("completed"), &json!(300_001)));
    let after = data(&app.get(&format!("{EXTRACTS}/{}", extract["id"].as_str().expect("id"))).await);
    assert_eq!(
        (&after["total_runs"], &after["successful_runs"], &after["failed_runs"]),
        (&json!(3), &json!(1), &json!(0))
    );
}

#[tokio::test]
async fn a_run_whose_worker_vanishes_is_begun_anew_by_another_and_is_whole() {
    let app = TestApp::with(&[
        ("export.slots", "0"),
        ("export.batch_size", "1000"),
        ("export.connections", "1"),
        ("export.lease", "3s"),
    ])
    .await;
    stored(&app, 2, 150_000).await;
    let mut working = app.app.clone();
    let mut config = (*working.config).clone();
    config.export.slots = 1;
    working.config = std::sync::Arc::new(config);
    let extract = create(&app, &json!({"name": "r", "schemas": ["gottcha2", "stast"]})).await;
    let first = Workers::start(&working);
    let id = run(&app, &extract).await;
    is_half_way(&app, &id).await;
    assert_eq!(look(&app, &id).await["artifacts"][0]["name"], "describe.yaml");
    // As if the process had been killed.
    drop(first);
    let _second = Workers::start(&working);
    let done = ended(&app, &id).await;
    assert_eq!((&done["status"], &done["records_exported"]), (&json!("completed"), &json!(300_000)), "{done}");
    let names: Vec<&str> = done["artifacts"]
        .as_array()
        .expect("artifacts")
        .iter()
        .map(|one| one["name"].as_str().expect("name"))
        .collect();
    assert_eq!(names, ["describe.yaml", "gottcha2.jsonl.gz", "stast.jsonl.gz", "manifest.json"]);
    assert!(done["artifacts"][1]["storage_path"].as_str().expect("path").contains("/2/"));
    assert_eq!(gunzip(&artifact(&app, &done, "gottcha2.jsonl.gz").await).lines().count(), 300_000);
    let whole = files_below(app.exports());
    assert_eq!(whole.iter().filter(|name| name.contains("/2/")).count(), 4, "{whole:?}");
    assert!(whole.iter().all(|name| !name.contains("/1/") || name.contains('#')), "{whole:?}");
}

#[tokio::test]
async fn a_failed_run_keeps_what_it_has_finished_and_says_why() {
    let app = TestApp::start().await;
    stored(&app, 1, 10).await;
    app.store("/ingest-stast", HIT).await;
    sqlx::query("ALTER TABLE stast_table DROP COLUMN evalue CASCADE").execute(&app.pool).await.expect("alter");
    let extract = create(&app, &json!({"name": "f", "schemas": ["gottcha2", "stast"], "compress": false})).await;
    let failed = ended(&app, &run(&app, &extract).await).await;
    assert_eq!(failed["status"], "failed", "{failed}");
    assert!(failed["error_message"].as_str().expect("error").contains("evalue"), "{failed}");
    let names: Vec<&str> = failed["artifacts"]
        .as_array()
        .expect("artifacts")
        .iter()
        .map(|one| one["name"].as_str().expect("name"))
        .collect();
    assert_eq!(names, ["describe.yaml", "gottcha2.jsonl"]);
    assert_eq!(failed["artifacts"][1]["partial"], true);
    assert_eq!(String::from_utf8(artifact(&app, &failed, "gottcha2.jsonl").await).expect("UTF-8").lines().count(), 10);
    let (name, _) =
        download(&app, &format!("/api/extracts/runs/{}/download", failed["id"].as_str().expect("id"))).await;
    assert!(name.ends_with("-partial.zip"), "{name}");
    let after = data(&app.get(&format!("{EXTRACTS}/{}", extract["id"].as_str().expect("id"))).await);
    assert_eq!(
        (&after["total_runs"], &after["successful_runs"], &after["failed_runs"]),
        (&json!(1), &json!(0), &json!(1))
    );
    retention::sweep(&app.app).await.expect("sweep");
    assert_eq!(files_below(&app.exports().join("extracts")).len(), 2);
}

#[tokio::test]
async fn artifacts_whose_time_is_over_are_removed_and_the_run_is_remembered_for_a_while() {
    let app = shop().await;
    let run = completed(&app, &json!({"name": "e", "schemas": ["users"]})).await;
    let paths = [
        format!("/api/extracts/runs/{}/download", run["id"].as_str().expect("id")),
        format!("/api/extracts/artifacts/{}/download", run["artifacts"][0]["id"].as_str().expect("id")),
    ];
    retention::expire(&app.app).await.expect("expire");
    retention::sweep(&app.app).await.expect("sweep");
    assert_eq!(files_below(&app.exports().join("extracts")).len(), 3);
    sqlx::query("UPDATE extract_runs SET expires_at = now() - interval '1 second'")
        .execute(&app.pool)
        .await
        .expect("update");
    problem(send(&app, "GET", &paths[0], &json!({})).await, 410).await;
    retention::expire(&app.app).await.expect("expire");
    assert_eq!(files_below(&app.exports().join("extracts")), Vec::<String>::new());
    for path in &paths {
        problem(send(&app, "GET", path, &json!({})).await, 410).await;
    }
    let after = look(&app, run["id"].as_str().expect("id")).await;
    assert_eq!(
        (&after["status"], &after["artifacts"], &after["download_url"]),
        (&json!("completed"), &json!([]), &json!(null))
    );
    sqlx::query("UPDATE extract_runs SET expired_at = now() - interval '31 days'")
        .execute(&app.pool)
        .await
        .expect("update");
    retention::expire(&app.app).await.expect("expire");
    problem(
        send(&app, "GET", &format!("/api/data/extract_runs/{}", run["id"].as_str().expect("id")), &json!({})).await,
        404,
    )
    .await;
}

#[tokio::test]
async fn a_removed_extract_takes_its_files_along_or_leaves_them() {
    let app = shop().await;
    for keep in [true, false] {
        let extract = create(&app, &json!({"name": "d", "schemas": ["users"]})).await;
        let run = ended(&app, &run(&app, &extract).await).await;
        let path = format!("{EXTRACTS}/{}?keep_files={keep}", extract["id"].as_str().expect("id"));
        assert_eq!(send(&app, "DELETE", &path, &json!({})).await.status(), 204);
        let path = format!("/api/data/extract_runs/{}", run["id"].as_str().expect("id"));
        if keep {
            let kept = data(&app.get(&path).await);
            assert_eq!((&kept["extract_id"], &kept["config"]["name"]), (&json!(null), &json!("d")));
            artifact(&app, &kept, "users.jsonl.gz").await;
        } else {
            problem(send(&app, "GET", &path, &json!({})).await, 404).await;
        }
        assert_eq!(files_below(app.exports()).len(), 3, "those of the run that was kept");
    }
}

#[tokio::test]
async fn downloads_are_counted_and_links_work_without_a_token() {
    let app = shop().await;
    let run = completed(&app, &json!({"name": "l", "schemas": ["users"], "compress": false})).await;
    let id = run["id"].as_str().expect("id");
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let get = async |url: &str, range: &str| {
        let request = client.get(url);
        let request = if range.is_empty() { request } else { request.header("range", range) };
        request.send().await.expect("answer")
    };
    let file = run["artifacts"][1]["download_url"].as_str().expect("link");
    assert!(file.ends_with("name=users.jsonl"), "{file}");
    assert_eq!(get(file, "bytes=0-3").await.bytes().await.expect("bytes"), b"{\"id"[..]);
    assert_eq!(get(file, "bytes=4-7").await.status(), 206);
    assert_eq!(get(run["download_url"].as_str().expect("link"), "").await.status(), 200);
    assert_eq!(get(run["download_url"].as_str().expect("link"), "").await.status(), 200);
    let after = look(&app, id).await;
    assert_eq!((&after["artifacts"][1]["download_count"], &after["download_count"]), (&json!(1), &json!(2)));
    assert!(after["last_accessed_at"].is_string() && after["artifacts"][1]["last_accessed_at"].is_string());
    let other = format!(
        "{}/api/extracts/artifacts/{}/download?{}",
        app.url,
        run["artifacts"][0]["id"].as_str().expect("id"),
        file.split('?').nth(1).expect("query")
    );
    problem(get(&other, "").await, 403).await;
    problem(get(&format!("{}/api/extracts/runs/{id}/download", app.url), "").await, 401).await;
}

#[tokio::test]
async fn a_schedule_runs_once_over_all_replicas_and_makes_up_for_a_missed_tick_once() {
    let app = TestApp::with(&[("export.slots", "0"), ("export.export_interval_hours", "0")]).await;
    let config = json!({"name": "n", "schedule": "0 5 * * *", "timezone": "America/Chicago", "schedule_enabled": true});
    let extract = create(&app, &config).await;
    assert!(extract["next_run_at"].is_string());
    create(&app, &json!({"name": "off", "schedule": "0 5 * * *", "schedule_enabled": true, "enabled": false})).await;
    let look_at = async |now: &str| {
        let schedules = schedule::Schedules::new(schedule::all(&app.app).expect("schedules"));
        schedules.run_due(&app.app, now.parse().expect("time")).await;
    };
    let runs = async || app.count("extract_runs").await;
    look_at("2026-03-07T12:00:00Z").await;
    assert_eq!(runs().await, 0, "nothing was due since it was made");
    futures_util::future::join_all((0..4).map(|_| look_at("2026-03-08T10:00:00Z"))).await;
    assert_eq!(runs().await, 1);
    // A tick that finds it running is passed over, and not made up for.
    look_at("2026-03-09T10:00:00Z").await;
    assert_eq!(runs().await, 1);
    sqlx::query("UPDATE jobs SET state = 'completed', finished_at = now()").execute(&app.pool).await.expect("update");
    look_at("2026-03-09T11:00:00Z").await;
    assert_eq!(runs().await, 1);
    // Down for three days.
    look_at("2026-03-12T18:00:00Z").await;
    look_at("2026-03-12T18:00:01Z").await;
    assert_eq!(runs().await, 2);
    assert_eq!(data(&app.get("/api/data/extract_runs").await)[0]["cause"], "schedule");
    // Switched off for a while: nothing is made up for.
    sqlx::query("UPDATE jobs SET state = 'completed', finished_at = now()").execute(&app.pool).await.expect("update");
    let path = format!("{EXTRACTS}/{}", extract["id"].as_str().expect("id"));
    for (version, enabled) in [(1, false), (2, true)] {
        let change = json!({"schedule_enabled": enabled, "version": version});
        assert_eq!(send(&app, "PUT", &path, &change).await.status(), 200);
    }
    let now = Utc::now();
    look_at(&now.to_rfc3339()).await;
    assert_eq!(runs().await, 2);
    look_at(&(now + TimeDelta::days(1)).to_rfc3339()).await;
    assert_eq!(runs().await, 3);
}

#[tokio::test]
async fn a_schedule_that_was_changed_makes_up_for_a_tick_that_nobody_saw() {
    let app = TestApp::with(&[("export.slots", "0"), ("export.export_interval_hours", "0")]).await;
    let extract = create(&app, &json!({"name": "n", "schedule": "0 5 * * *", "schedule_enabled": true})).await;
    let now = Utc::now();
    let schedules = || schedule::Schedules::new(schedule::all(&app.app).expect("schedules"));
    let running = schedules();
    running.run_due(&app.app, now).await;
    let path = format!("{EXTRACTS}/{}", extract["id"].as_str().expect("id"));
    let changed = send(&app, "PUT", &path, &json!({"schedule": "0 6 * * *", "version": 1})).await;
    assert_eq!(changed.status(), 200);
    running.run_due(&app.app, now + TimeDelta::seconds(1)).await;
    // Down at the next tick.
    schedules().run_due(&app.app, now + TimeDelta::days(2)).await;
    assert_eq!(app.count("extract_runs").await, 1);
}

#[tokio::test]
async fn pages_of_runs_go_on_where_they_were_also_when_the_run_there_is_gone() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    let extract = create(&app, &json!({"name": "n"})).await;
    for _ in 0..3 {
        assert_eq!(start(&app, &extract, "?wait").await.status(), 202);
    }
    let first = app.request("GET", "/api/data/extract_runs?limit=2").send().await.expect("answer");
    let next = next_page(&first);
    let page = data(&first.json().await.expect("JSON"));
    let forget = format!("DELETE FROM extract_runs WHERE id = '{}'", page[1]["id"].as_str().expect("id"));
    sqlx::query(sqlx::AssertSqlSafe(forget)).execute(&app.pool).await.expect("delete");
    assert_eq!(data(&app.get(&next).await).as_array().expect("page").len(), 1);
    let answer = app.request("GET", "/api/data/extract_runs?cursor=run_none").send().await.expect("answer");
    assert_eq!(problem(answer, 422).await["errors"][0]["field"], "cursor");
}
