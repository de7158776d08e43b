//! Exports to a real S3 server.

use std::sync::atomic::Ordering;

use serde_json::json;

use crate::app::{RECORD, TestApp, eventually, gzip, problem};
use crate::exports::files_below;
use crate::extracts::create;
use crate::lake::{files_of, rows_of, stored_rows};
use crate::s3_server::S3;

/// The objects of the bucket.
fn stored(s3: &S3) -> Vec<String> {
    files_below(&s3.folder.path().join("lab"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_to_s3_is_uploaded_in_parts_and_downloaded_by_a_presigned_link() {
    let s3 = S3::start().await;
    let app = TestApp::with(&[("export.storage", &s3.url("secret"))]).await;
    app.app.storage.check().await.expect("the probe");
    app.store("/ingest-gottcha2", gzip(format!("{RECORD}\n").repeat(90_000))).await;
    let export = app.export(json!({"table": "gottcha2", "format": "csv", "compression": "none"})).await;
    assert_eq!(export["status"], "completed", "{export}");
    // More than one part of 8 MiB.
    assert!(export["size_bytes"].as_u64().expect("size") > 9_000_000, "{export}");
    let objects = stored(&s3);
    assert_eq!(objects.len(), 2, "{objects:?}");
    let link = export["download_url"].as_str().expect("link");
    let plain =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().expect("client");
    let redirect = plain.get(link).send().await.expect("answer");
    assert_eq!(redirect.status(), 302);
    assert!(redirect.headers()["location"].to_str().expect("URL").contains("X-Amz-Signature"));
    let bytes = app.download(&export).await;
    let digest = data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(&bytes));
    assert_eq!(export["sha256"], digest);
    let part = reqwest::Client::new().get(link).header("range", "bytes=0-8").send().await.expect("answer");
    assert_eq!((part.status().as_u16(), part.bytes().await.expect("bytes").len()), (206, 9));
    let head = reqwest::Client::new().head(link).send().await.expect("answer");
    assert_eq!(head.headers()["content-length"], bytes.len().to_string().as_str());
    // What is gone is said by the service, not by the bucket in XML.
    std::fs::remove_file(objects.iter().find(|object| object.ends_with(".csv")).expect("file")).expect("remove");
    problem(reqwest::get(link).await.expect("answer"), 410).await;
    let path = format!("/exports/{}", export["id"].as_str().expect("id"));
    assert_eq!(app.request("DELETE", &path).send().await.expect("answer").status(), 204);
    assert_eq!(stored(&s3), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_in_the_middle_of_an_upload_is_survived_and_leaves_nothing_partial() {
    let s3 = S3::start().await;
    let app = TestApp::with(&[("export.storage", &s3.url("secret")), ("export.connections", "1")]).await;
    app.store("/ingest-gottcha2", gzip(format!("{RECORD}\n").repeat(150_000))).await;
    let wish = json!({"table": "gottcha2", "format": "csv", "compression": "none"});
    let made: serde_json::Value =
        app.request("POST", "/exports/trigger").json(&wish).send().await.expect("answer").json().await.expect("JSON");
    let job = made["job_id"].as_str().expect("job");
    eventually("bytes are written", async || {
        app.get(&format!("/jobs/{job}")).await["progress"]["bytes"].as_u64().unwrap_or_default() > 0
    })
    .await;
    s3.is_away.store(true, Ordering::Relaxed);
    eventually("the upload is refused", async || s3.refused.load(Ordering::Relaxed) > 0).await;
    assert_eq!(app.get("/exports").await, json!([]));
    s3.is_away.store(false, Ordering::Relaxed);
    let job = app.finished(job).await;
    assert_eq!(job["status"], "completed", "{job}");
    let listed = app.get("/exports").await;
    assert_eq!(listed[0]["rows"], 150_000);
    let prefix = listed[0]["id"].as_str().expect("id");
    let objects = stored(&s3);
    assert!(objects.len() == 2 && objects.iter().all(|object| object.contains(prefix)), "{objects:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_an_extract_to_s3_comes_as_a_zip_or_file_by_file_and_is_cleared_away() {
    let s3 = S3::start().await;
    let app = TestApp::with(&[("export.storage", &s3.url("secret"))]).await;
    app.store("/ingest-gottcha2", gzip(format!("{RECORD}\n").repeat(90_000))).await;
    let extract =
        create(&app, &json!({"name": "x", "format": "archive", "compress": false, "schemas": ["gottcha2"]})).await;
    let path = format!("/api/extracts/{}/run", extract["id"].as_str().expect("id"));
    let made: serde_json::Value = app.request("POST", &path).send().await.expect("answer").json().await.expect("JSON");
    let path = format!("/api/data/extract_runs/{}", made["data"]["run_id"].as_str().expect("run"));
    eventually("the run completes", async || app.get(&path).await["data"]["status"] == "completed").await;
    let run = app.get(&path).await["data"].clone();
    let objects = stored(&s3);
    assert!(objects.len() == 2 && objects.iter().any(|name| name.ends_with("/1/archive.zip")), "{objects:?}");
    let archive = &run["artifacts"][0];
    assert_eq!((&archive["name"], &archive["storage_backend"]), (&json!("archive.zip"), &json!("object")));
    for link in [&archive["download_url"], &run["download_url"]] {
        let bytes = reqwest::get(link.as_str().expect("link")).await.expect("answer").bytes().await.expect("bytes");
        let digest = data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(&bytes));
        assert_eq!(archive["sha256"], digest);
        let mut zip = zip::ZipArchive::new(std::io::Cursor::new(bytes)).expect("ZIP");
        assert!(zip.by_name("gottcha2.jsonl").expect("data").size() > 9_000_000);
    }
    sqlx::query("UPDATE extract_runs SET expires_at = now()").execute(&app.pool).await.expect("update");
    nvd_support_car::jobs::retention::expire(&app.app).await.expect("expire");
    assert_eq!(stored(&s3), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_found_at_the_start_and_say_which_step_failed() {
    let s3 = S3::start().await;
    let app = TestApp::with(&[("export.storage", &s3.url("wrong"))]).await;
    let error = app.app.storage.check().await.expect_err("a refusal").to_string();
    assert!(error.contains("s3://lab/exports") && error.contains("writing failed"), "{error}");
    assert!(!error.contains("secret_access_key"), "{error}");
}

#[tokio::test]
async fn a_partitioned_dataset_lies_in_a_bucket_as_it_does_in_a_folder() {
    let s3 = S3::start().await;
    let app = TestApp::with(&[("export.storage", &s3.url("secret")), ("lake.grace", "0s")]).await;
    let put = async |rows: usize| {
        let path = "/ingest/gottcha2/one?on_conflict=replace&run_id=a%2Fb%3Dc%25";
        let answer = app.request("PUT", path).body(format!("{RECORD}\n").repeat(rows)).send().await.expect("answer");
        assert_eq!(answer.status(), 200);
    };
    let lake = s3.folder.path().join("lab/exports/lake");
    let mut held = Vec::new();
    for rows in [10, 10, 7] {
        put(rows).await;
        let request = json!({"table": "gottcha2", "partition": {"temporal": "year", "by": ["run_id"]}});
        let made = app.trigger(request).await;
        let job = app.finished(made["job_id"].as_str().expect("job")).await;
        assert_eq!(job["status"], "completed", "{job}");
        assert_eq!(rows_of(&lake), stored_rows(&app).await);
        held.push(files_of(&lake));
    }
    assert!(held[0] == held[1], "a run without changes changed a byte");
    assert!(held[2].keys().any(|path| path.contains("/run_id=a%2Fb%3Dc%25/gottcha2_")), "{:?}", held[2].keys());
}
