//! Exports over HTTP: asking for one, the catalogue, downloading, stopping.

use std::time::Duration;

use futures_util::future::join_all;
use nvd_support_car::config::Compression;
use nvd_support_car::db::exports;
use nvd_support_car::db::jobs::Lease;
use nvd_support_car::export::spec::ExportSpec;
use nvd_support_car::export::{self, Target};
use nvd_support_car::jobs::{NewExport, enqueue_export};
use nvd_support_car::storage::Storage;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use crate::app::{RECORD, TOKEN, TestApp, data, eventually, gzip, problem};

/// Rows of one sample each.
pub async fn stored(app: &TestApp, samples: usize, rows: usize) {
    for sample in 0..samples {
        let line = RECORD.replace("S1", &format!("S{sample}"));
        app.store("/ingest-gottcha2", gzip(format!("{line}\n").repeat(rows))).await;
    }
}

#[tokio::test]
async fn an_export_is_listed_with_what_an_analyst_needs_and_its_link_works_without_a_token() {
    let app = TestApp::start().await;
    app.store("/ingest-gottcha2?sample_id=SRR12689945", data("gottcha2/v2.4.3.SRR12689945.full.tsv")).await;
    let rows = app.count("gottcha2_full").await;
    let export = app.export(json!({"table": "gottcha2"})).await;
    assert_eq!(export["status"], "completed", "{export}");
    assert_eq!(export["rows"], rows);
    assert_eq!(export["format"], "parquet");
    assert_eq!(export["compression"], "zstd");
    let listed = app.get("/exports?table=gottcha2&limit=1").await;
    assert_eq!(listed[0]["id"], export["id"]);
    // DuckDB tells the kind of a file by the end of its address.
    assert!(listed[0]["download_url"].as_str().expect("link").ends_with(".parquet"));
    let bytes = app.download(&listed[0]).await;
    assert_eq!(export["size_bytes"], bytes.len());
    let digest = data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(&bytes));
    assert_eq!(export["sha256"], digest);
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
    let name = export["file_name"].as_str().expect("name");
    assert!(name.starts_with("gottcha2_") && name.ends_with(".parquet"), "{name}");
    let folder = app.exports().join("gottcha2").join(export["id"].as_str().expect("id")).join("1");
    assert_eq!(std::fs::read(folder.join(name)).expect("file"), bytes);
    let manifest = std::fs::read(folder.join("manifest.json")).expect("manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    assert_eq!(manifest["rows"], rows);
    assert_eq!(manifest["files"][0]["sha256"], digest);
}

#[tokio::test]
async fn a_changed_or_expired_link_is_refused_and_a_token_does_as_well() {
    let app = TestApp::start().await;
    let export = app.export(json!({"table": "stast"})).await;
    let link = export["download_url"].as_str().expect("link").to_owned();
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let get = async |url: String| client.get(url).send().await.expect("answer");
    assert_eq!(get(link.clone()).await.status(), 200);
    let expires = link.split("expires=").nth(1).and_then(|rest| rest.split('&').next()).expect("expires");
    problem(get(link.replace(expires, "99999999999")).await, 403).await;
    problem(get(link.replace("signature=", "signature=00")).await, 403).await;
    let plain = link.split('?').next().expect("path").to_owned();
    problem(get(plain.clone()).await, 401).await;
    assert_eq!(client.get(plain).bearer_auth(TOKEN).send().await.expect("answer").status(), 200);
}

#[tokio::test]
async fn ranges_and_conditions_are_answered_as_http_says() {
    let app = TestApp::start().await;
    stored(&app, 1, 2_000).await;
    let export = app.export(json!({"table": "gottcha2", "format": "csv", "compression": "none"})).await;
    let whole = app.download(&export).await;
    let url = export["download_url"].as_str().expect("link");
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let head = client.head(url).send().await.expect("answer");
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["content-length"], whole.len().to_string().as_str());
    assert_eq!(head.headers()["accept-ranges"], "bytes");
    assert!(!head.headers().contains_key("content-range"));
    let tag = head.headers()["etag"].to_str().expect("tag").to_owned();
    let part = client.get(url).header("range", "bytes=10-19").send().await.expect("answer");
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()["content-range"], format!("bytes 10-19/{}", whole.len()).as_str());
    assert_eq!(part.bytes().await.expect("bytes"), whole[10..20]);
    let tail = client.get(url).header("range", "bytes=-8").header("if-range", &tag).send().await.expect("answer");
    assert_eq!(tail.bytes().await.expect("bytes"), whole[whole.len() - 8..]);
    let other =
        client.get(url).header("range", "bytes=-8").header("if-range", "\"other\"").send().await.expect("answer");
    assert_eq!(other.status(), 200);
    let beyond = client.get(url).header("range", "bytes=99999999-").send().await.expect("answer");
    assert_eq!(beyond.headers()["content-range"], format!("bytes */{}", whole.len()).as_str());
    problem(beyond, 416).await;
    let known = client.get(url).header("if-none-match", &tag).send().await.expect("answer");
    assert_eq!(known.status(), 304);
}

#[tokio::test]
async fn wrong_wishes_are_refused_with_the_field_that_is_wrong() {
    let app = TestApp::start().await;
    for (request, field) in [
        (json!({}), "table"),
        (json!({"table": "gottcha2", "columns": ["nonsense"]}), "columns"),
        (json!({"table": "gottcha2", "columns": []}), "columns"),
        (json!({"table": "gottcha2", "row_limit": 0}), "row_limit"),
        (json!({"table": "gottcha2", "format": "xlsx"}), "format"),
        (json!({"table": "gottcha2", "format": "csv", "compression": "snappy"}), "compression"),
        (json!({"table": "gottcha2", "compression_level": 99}), "compression_level"),
        (json!({"table": "gottcha2", "filters": {"nonsense": 1}}), "filters.nonsense"),
        (json!({"table": "gottcha2", "filters": {"read_count": "many"}}), "filters.read_count"),
        (json!({"table": "gottcha2", "from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}), "to"),
        (json!({"table": "gottcha2", "from": "-5000-01-01T00:00:00Z"}), "from"),
        (json!({"table": "gottcha2", "to": "-5000-01-01T00:00:00Z"}), "to"),
        (json!({"table": "gottcha2", "nonsense": 1}), "nonsense"),
    ] {
        let answer = app.request("POST", "/exports/trigger").json(&request).send().await.expect("answer");
        let problem = problem(answer, 422).await;
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    let answer =
        app.request("POST", "/exports/trigger").json(&json!({"table": "nonsense"})).send().await.expect("answer");
    problem(answer, 404).await;
    assert_eq!(app.count("jobs").await, 0);
}

#[tokio::test]
async fn columns_filters_times_and_limits_choose_the_rows() {
    let app = TestApp::start().await;
    stored(&app, 3, 100).await;
    let lines = async |request: Value| {
        let export = app.export(request).await;
        assert_eq!(export["status"], "completed", "{export}");
        let text = String::from_utf8(app.download(&export).await).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).collect::<Vec<_>>()
    };
    let wish = |more: Value| {
        let mut wish = json!({"table": "gottcha2", "format": "jsonl", "compression": "none"});
        wish.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        wish
    };
    let of_sample = lines(wish(json!({"filters": {"sample_id": "S1"}, "columns": ["sample_id", "read_count"]}))).await;
    assert_eq!(of_sample, vec![json!({"sample_id": "S1", "read_count": 513}); 100]);
    let identified =
        lines(wish(json!({"columns": ["ordinal", "sample_id"], "row_limit": 1, "service_columns": true}))).await;
    assert_eq!(
        identified[0],
        json!({"ordinal": 1, "sample_id": "S0", "submission_id": identified[0]["submission_id"]})
    );
    assert!(identified[0]["submission_id"].is_i64(), "{identified:?}");
    let limited = lines(wish(json!({"row_limit": 150, "service_columns": true}))).await;
    assert_eq!(limited.len(), 150);
    assert_eq!((&limited[149]["sample_id"], &limited[149]["ordinal"]), (&json!("S1"), &json!(50)));
    assert!(lines(wish(json!({"to": "2020-01-01T00:00:00Z"}))).await.is_empty());
    assert_eq!(lines(wish(json!({"from": "2020-01-01T00:00:00Z"}))).await.len(), 300);
    assert!(lines(wish(json!({"filters": {"name": "it's \\ none"}}))).await.is_empty());
    // Times of clients are finer than those of rows: nothing lies between, and no row is lost or comes twice.
    let stored_at =
        "SELECT to_char(max(created_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') FROM gottcha2_full";
    let after = format!("{}7Z", app.scalar::<String>(stored_at).await);
    assert_eq!(lines(wish(json!({"from": after}))).await.len(), 0);
    assert_eq!(lines(wish(json!({"to": after}))).await.len(), 300);
}

#[tokio::test]
async fn the_same_idempotency_key_is_the_same_job() {
    let app = TestApp::start().await;
    let ask = async |table: &str| {
        let request =
            app.request("POST", "/exports/trigger").header("idempotency-key", "k").json(&json!({"table": table}));
        request.send().await.expect("answer")
    };
    let first: Value = ask("gottcha2").await.json().await.expect("JSON");
    let second: Value = ask("gottcha2").await.json().await.expect("JSON");
    assert_eq!(first["job_id"], second["job_id"]);
    problem(ask("stast").await, 409).await;
    assert_eq!(app.count("exports").await, 1);
    app.finished(first["job_id"].as_str().expect("job")).await;
    let export = app.get("/exports").await[0]["id"].as_str().expect("export").to_owned();
    let removed = app.request("DELETE", &format!("/exports/{export}")).send().await.expect("answer");
    assert_eq!(removed.status(), 204);
    let refusal = problem(ask("gottcha2").await, 409).await;
    assert!(refusal["detail"].as_str().expect("detail").contains("has been removed"), "{refusal}");
}

#[tokio::test]
async fn the_same_idempotency_key_is_the_same_export_also_when_another_compression_is_configured_since() {
    let app = TestApp::start().await;
    let dataset = app.app.datasets.get("stast").expect("dataset");
    let asked = async |compression: Compression, spec: &ExportSpec| {
        let mut other = app.app.clone();
        let mut config = (*other.config).clone();
        config.export.compression = compression;
        other.config = std::sync::Arc::new(config);
        let new = NewExport { dataset, spec, retention_hours: 1, notify: &[], asked: None, dedupe_key: Some("k") };
        enqueue_export(&other, &mut app.pool.acquire().await.expect("connection"), &new).await.map(|job| job.id)
    };
    let usual = ExportSpec::default();
    let job = asked(Compression::Zstd, &usual).await.expect("job");
    assert_eq!(asked(Compression::Lz4, &usual).await.expect("job"), job);
    let told = ExportSpec { compression: Some(Compression::Lz4), ..usual };
    asked(Compression::Lz4, &told).await.expect_err("another export");
}

#[tokio::test]
async fn the_age_to_be_alerted_by_is_that_of_the_newest_whole_export_or_of_rows_that_have_none() {
    let app = TestApp::start().await;
    stored(&app, 1, 1).await;
    let names = ["gottcha2", "stast"].map(str::to_owned);
    let ages = async || {
        let ages = exports::ages(&app.pool, &names).await.expect("ages");
        ages.into_iter().map(|(_, age)| age).collect::<Vec<_>>()
    };
    sqlx::query("UPDATE submissions SET created_at = created_at - interval '1 hour'")
        .execute(&app.pool)
        .await
        .expect("update");
    let before = ages().await;
    assert!(before[0] > 3600.0 && before[1] == 0.0, "{before:?}");
    let export = app.export(json!({"table": "gottcha2"})).await;
    let with = ages().await;
    assert!(with[0] < 3600.0, "{with:?}");
    let path = format!("/exports/{}", export["id"].as_str().expect("id"));
    assert_eq!(app.request("DELETE", &path).send().await.expect("answer").status(), 204);
    let without = ages().await;
    assert!(without[0] > 3600.0, "{without:?}");
}

#[tokio::test]
async fn an_idempotency_key_is_any_readable_text_and_never_passed_over() {
    let app = TestApp::start().await;
    let whole = json!({"table": "gottcha2"});
    let partitioned = json!({"table": "gottcha2", "partition": {"temporal": "year"}});
    for (path, body) in [("/exports/trigger", &whole), ("/exports/trigger", &partitioned)] {
        for bad in ["".to_owned(), "k".repeat(513)] {
            let refused = app.request("POST", path).header("idempotency-key", bad).json(body).send().await;
            let problem = problem(refused.expect("answer"), 422).await;
            assert!(problem.to_string().contains("must be 1 to 512 characters"), "{problem}");
        }
    }
    let ask = async || {
        let request = app.request("POST", "/exports/trigger").header("idempotency-key", "Größe").json(&whole);
        request.send().await.expect("answer").json::<Value>().await.expect("JSON")["job_id"].clone()
    };
    assert_eq!(ask().await, ask().await);
}

#[tokio::test]
async fn large_exports_roll_over_into_several_files_which_come_as_a_zip_or_one_by_one() {
    let app = TestApp::with(&[("export.file_size", "1MiB"), ("export.batch_size", "1000")]).await;
    stored(&app, 4, 5_000).await;
    let wish = json!({"table": "gottcha2", "format": "csv", "compression": "none"});
    let export = app.export(wish).await;
    let files = export["files"].as_array().expect("files");
    assert!(files.len() >= 2, "{export}");
    assert_eq!(files.iter().map(|file| file["rows"].as_i64().expect("rows")).sum::<i64>(), 20_000);
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(app.download(&export).await)).expect("ZIP");
    for (index, file) in files.iter().enumerate() {
        let name = file["file_name"].as_str().expect("name");
        let url = format!("{}&file={}", export["download_url"].as_str().expect("link"), index + 1);
        let alone = reqwest::get(url).await.expect("answer").bytes().await.expect("bytes");
        let mut zipped = Vec::new();
        std::io::Read::read_to_end(&mut zip.by_name(name).expect("entry"), &mut zipped).expect("read");
        assert_eq!(alone, zipped);
        assert!(zipped.starts_with(b"sample_id,"));
    }
    // A ZIP without one of them is not even begun.
    let file = files_below(app.exports()).into_iter().find(|file| file.ends_with(".csv")).expect("file");
    std::fs::remove_file(file).expect("remove");
    let link = export["download_url"].as_str().expect("link");
    problem(reqwest::get(link).await.expect("answer"), 410).await;
    assert_eq!(reqwest::Client::new().head(link).send().await.expect("answer").status(), 410);
}

/// An export of two files, one of which holds more than any client's buffers.
async fn large_zip(app: &TestApp) -> String {
    stored(app, 4, 5_000).await;
    let export = app.export(json!({"table": "gottcha2", "format": "csv", "compression": "none"})).await;
    assert!(export["files"].as_array().expect("files").len() >= 2, "{export}");
    let file = files_below(app.exports()).into_iter().find(|file| file.ends_with(".csv")).expect("file");
    std::fs::File::options().write(true).open(file).and_then(|file| file.set_len(64 << 20)).expect("grow");
    export["download_url"].as_str().expect("link").to_owned()
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_a_zip_makes_room_for_others_after_a_while() {
    let settings = [("export.file_size", "1MiB"), ("export.batch_size", "1000"), ("ingest.idle_timeout", "8s")];
    let app = TestApp::with(&settings).await;
    let url = large_zip(&app).await;
    let whole = reqwest::get(&url).await.expect("answer").bytes().await.expect("ZIP").len();
    let client = reqwest::Client::new();
    // All at once: one after the other, a busy machine takes longer than the first of them may stay silent.
    let answers = join_all((0..64).map(|_| client.get(&url).send())).await;
    let answers = answers.into_iter().map(|answer| answer.expect("answer"));
    let (silent, mut refused): (Vec<_>, Vec<_>) = answers.partition(|answer| answer.status() == 200);
    let refused = refused.pop().expect("any number of ZIPs is sent at once");
    assert!(refused.headers().contains_key("retry-after"));
    problem(refused, 503).await;
    eventually("there is room", async || reqwest::get(&url).await.expect("answer").status() == 200).await;
    // At least one had to go; those whose time is not over yet get their ZIP.
    for answer in silent {
        let Ok(bytes) = answer.bytes().await else { return };
        assert_eq!(bytes.len(), whole, "a part looks like the whole");
    }
    panic!("none is broken off");
}

#[tokio::test]
async fn the_head_of_a_zip_claims_no_length() {
    let app = TestApp::with(&[("export.file_size", "1MiB"), ("export.batch_size", "1000")]).await;
    let url = large_zip(&app).await;
    let head = reqwest::Client::new().head(url).send().await.expect("answer");
    assert_eq!(
        (head.status().as_u16(), &head.headers()["content-type"]),
        (200, &"application/zip".parse().expect("type"))
    );
    assert!(!head.headers().contains_key("content-length"), "{:?}", head.headers());
}

#[tokio::test]
async fn links_begin_with_the_host_that_a_request_names_in_its_target_as_over_http_2() {
    let app = TestApp::start().await;
    let export = app.export(json!({"table": "stast"})).await;
    let id = export["id"].as_str().expect("id");
    let mut stream = tokio::net::TcpStream::connect(app.address).await.expect("connect");
    let head = format!(
        "GET http://car.test:8443/exports/{id} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("head");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answer");
    assert!(answer.contains("\"download_url\":\"http://car.test:8443/exports/"), "{answer}");
}

#[tokio::test]
async fn a_job_is_followed_by_events_until_its_end() {
    let app = TestApp::start().await;
    stored(&app, 1, 100).await;
    let request = app.request("POST", "/exports/trigger").json(&json!({"table": "gottcha2"}));
    let made: Value = request.send().await.expect("answer").json().await.expect("JSON");
    let path = format!("/jobs/{}/events", made["job_id"].as_str().expect("job"));
    let events = app.request("GET", &path).send().await.expect("answer");
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let text = events.text().await.expect("text");
    let last = text.lines().rfind(|line| line.starts_with("data: ")).expect("an event");
    let last: Value = serde_json::from_str(&last[6..]).expect("JSON");
    assert_eq!((&last["status"], &last["progress"]["rows"]), (&json!("completed"), &json!(100)));
    assert_eq!(last["progress"]["percent"], 100.0);
}

#[tokio::test]
async fn whoever_follows_a_job_does_not_hold_up_the_end_of_the_service() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    let made = app.trigger(json!({"table": "gottcha2"})).await;
    let path = format!("/jobs/{}/events", made["job_id"].as_str().expect("job"));
    let mut events = app.request("GET", &path).send().await.expect("answer");
    assert!(events.chunk().await.expect("event").is_some());
    app.app.stopping.cancel();
    let end = tokio::time::timeout(Duration::from_secs(10), events.chunk()).await.expect("the end");
    assert_eq!(end.expect("end"), None);
}

#[tokio::test]
async fn a_removed_export_leaves_no_file() {
    let app = TestApp::start().await;
    let export = app.export(json!({"table": "gottcha2"})).await;
    let path = format!("/exports/{}", export["id"].as_str().expect("id"));
    let answer = app.request("DELETE", &path).send().await.expect("answer");
    assert_eq!(answer.status(), 204);
    problem(app.request("GET", &path).send().await.expect("answer"), 404).await;
    assert_eq!(files_below(app.exports()), Vec::<String>::new());
}

#[tokio::test]
async fn a_file_that_is_gone_from_the_storage_is_said_to_be_gone() {
    let app = TestApp::start().await;
    let export = app.export(json!({"table": "gottcha2"})).await;
    std::fs::remove_dir_all(app.exports().join("gottcha2")).expect("remove");
    let link = export["download_url"].as_str().expect("link");
    problem(reqwest::get(link).await.expect("answer"), 410).await;
    assert_eq!(reqwest::Client::new().head(link).send().await.expect("answer").status(), 410);
}

#[tokio::test]
async fn an_export_that_is_cancelled_half_way_ends_and_leaves_nothing() {
    let app = TestApp::with(&[("export.batch_size", "1000"), ("export.connections", "1")]).await;
    stored(&app, 2, 200_000).await;
    for (format, begun) in [("parquet", 0), ("csv", 1)] {
        let made = app.trigger(json!({"table": "gottcha2", "format": format, "compression": "none"})).await;
        let job = made["job_id"].as_str().expect("job");
        eventually("rows are read", async || {
            app.get(&format!("/jobs/{job}")).await["progress"]["rows"].as_u64().unwrap_or_default() > 0
                && files_below(app.exports()).len() >= begun
        })
        .await;
        let answer = app.request("POST", &format!("/jobs/{job}/cancel")).send().await.expect("answer");
        assert_eq!(answer.status(), 202);
        assert_eq!(app.finished(job).await["status"], "cancelled");
    }
    assert_eq!(app.get("/exports").await, json!([]));
    assert_eq!(files_below(app.exports()), Vec::<String>::new());
    let folders = || std::fs::read_dir(app.exports().join("gottcha2")).map_or(0, Iterator::count);
    eventually("no empty folder is left", async || folders() == 0).await;
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE '%transaction%'";
    eventually("no transaction is left", async || app.scalar::<i64>(sessions).await == 0).await;
}

#[tokio::test]
async fn an_export_holds_whole_submissions_only_while_clients_send() {
    const ROWS: i64 = 700;
    let app = TestApp::start().await;
    stored(&app, 4, 700).await;
    let sending = async {
        for sample in 4..40 {
            let line = RECORD.replace("S1", &format!("S{sample}"));
            app.store("/ingest-gottcha2", gzip(format!("{line}\n").repeat(700))).await;
        }
    };
    let exporting = async {
        for _ in 0..6 {
            let wish = json!({"table": "gottcha2", "format": "jsonl", "compression": "none", "columns": ["sample_id"]});
            let export = app.export(wish).await;
            let text = String::from_utf8(app.download(&export).await).expect("UTF-8");
            let mut samples = std::collections::HashMap::<&str, i64>::new();
            text.lines().for_each(|line| *samples.entry(line).or_default() += 1);
            assert!(samples.len() >= 4);
            assert!(samples.values().all(|rows| *rows == ROWS), "{samples:?}");
        }
    };
    tokio::join!(sending, exporting);
}

/// The files below a folder.
pub fn files_below(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_an_export_with_the_reason_and_leaves_nothing_of_it() {
    // A file system of 1 MiB. Only root may mount one, in a container not even that.
    let disk = tempfile::tempdir().expect("folder");
    let mount = |arguments: &[&str]| std::process::Command::new(arguments[0]).args(&arguments[1..]).status();
    let path = disk.path().to_str().expect("UTF-8").to_owned();
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", &path]).is_ok_and(|status| status.success()) {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    let settings = [("export.storage", path.as_str()), ("export.max_attempts", "2")];
    let app = TestApp::with(&settings).await;
    stored(&app, 1, 30_000).await;
    let made = app.trigger(json!({"table": "gottcha2", "format": "csv", "compression": "none"})).await;
    let job = app.finished(made["job_id"].as_str().expect("job")).await;
    let left = files_below(disk.path());
    mount(&["umount", "-l", &path]).expect("umount");
    assert_eq!(job["status"], "failed", "{job}");
    assert!(job["error"].as_str().is_some_and(|error| error.contains("No space left")), "{job}");
    assert_eq!(app.get("/exports?status=completed").await, json!([]));
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn exports_into_one_folder_in_the_same_second_lie_side_by_side() {
    let app = TestApp::start().await;
    stored(&app, 1, 100).await;
    let folder = tempfile::tempdir().expect("folder");
    let storage = Storage::open(folder.path().to_str().expect("UTF-8")).expect("storage");
    let dataset = app.app.datasets.get("gottcha2").expect("dataset");
    let config = &app.app.config.export;
    let export = async |rows: u64| {
        let spec = ExportSpec { row_limit: Some(rows), ..ExportSpec::default() };
        let plan = spec.plan(dataset, (config.compression, config.compression_level)).expect("plan");
        let lease = Lease::new(Uuid::now_v7(), 1);
        let target = Target::new(lease.id.to_string(), &storage, String::new());
        export::run(&app.pool, config, plan, &target, &lease).await.map(|exported| (exported, target))
    };
    // A second may end between two of them, but not between all.
    let done = join_all((1..=4).map(export)).await;
    assert_eq!(files_below(folder.path()).len(), 8, "each has a file and a manifest");
    let mut left = 8;
    for exported in done {
        let (exported, target) = exported.expect("export");
        let (name, file) = &exported.files[0];
        let bytes = std::fs::read(folder.path().join(name)).expect("file");
        assert_eq!(<sha2::Sha256 as sha2::Digest>::digest(&bytes).as_slice(), file.sha256, "{name}");
        target.remove().await.expect("removed");
        left -= 2;
        assert_eq!(files_below(folder.path()).len(), left, "it took others along");
    }
}

#[tokio::test]
async fn exports_of_some_rows_or_columns_are_told_from_whole_ones() {
    let app = TestApp::start().await;
    stored(&app, 1, 100).await;
    let whole = app.export(json!({"table": "gottcha2", "service_columns": true})).await;
    assert_eq!(whole["whole"], true, "{whole}");
    for more in [
        json!({"filters": {"sample_id": "S0"}}),
        json!({"columns": ["sample_id"]}),
        json!({"row_limit": 1}),
        json!({"from": "2020-01-01T00:00:00Z"}),
        json!({"to": "2100-01-01T00:00:00Z"}),
    ] {
        let mut wish = json!({"table": "gottcha2"});
        wish.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        let part = app.export(wish).await;
        assert_eq!(part["whole"], false, "{part}");
        let folder = app.exports().join("gottcha2").join(part["id"].as_str().expect("id")).join("1");
        let manifest = std::fs::read(folder.join("manifest.json")).expect("manifest");
        assert_eq!(serde_json::from_slice::<Value>(&manifest).expect("JSON")["whole"], false);
    }
    let found = app.get("/exports?table=gottcha2&limit=1&whole=true").await;
    assert_eq!(found[0]["id"], whole["id"]);
    assert_eq!(app.get("/exports?whole=false").await.as_array().expect("page").len(), 5);
}
