//! Crashes at the seams: whatever ends, each file is in the database once or not at all.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use nvd_support_car::jobs::worker::Workers;
use serde_json::Value;

use crate::app::{RECORD, TestApp, create_database, eventually, gzip, problem};
use crate::exports::files_below;
use crate::process::{Served, folder, serving};
use crate::proxy::relay_database;

/// A file of `rows` rows that is like no other.
fn file(index: usize, rows: usize) -> Vec<u8> {
    gzip(format!("{}\n", RECORD.replace("S1", &format!("S{index}"))).repeat(rows))
}

#[tokio::test]
async fn a_connection_that_postgresql_ends_mid_copy_is_a_503_and_the_retry_stores_once() {
    let app = TestApp::start().await;
    let body = file(1, 400_000);
    let sending = tokio::spawn(app.post("/ingest-gottcha2", body.clone()).send());
    eventually("the COPY runs", async || {
        app.scalar::<i64>("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND state = 'active' AND datname = current_database()").await > 0
    })
    .await;
    app.scalar::<i64>("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND datname = current_database()").await;
    let answer = sending.await.expect("task").expect("answer");
    assert!(answer.headers().contains_key("retry-after"));
    problem(answer, 503).await;
    assert_eq!(app.total().await, 0);
    assert_eq!(app.store("/ingest-gottcha2", body).await["rows"], 400_000);
    assert_eq!(app.count("gottcha2_full").await, 400_000);
}

#[tokio::test]
async fn a_data_fault_that_only_postgresql_sees_names_the_row() {
    let app = TestApp::start().await;
    // A key too long for the unique index, which our own checks let pass.
    let row = |key: &str| {
        serde_json::json!({"run_id":"r","task_id":"t","shard":1,"idempotency_key":key,"schema_version":1,"payload":{}})
            .to_string()
    };
    let mut state = 7_u64;
    let long: String = (0..4000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'!' + u8::try_from(state >> 58).expect("six bits"))
        })
        .collect();
    app.refuse(422, "/ingest", format!("{}\n{}\n", row("short"), row(&long))).await;
}

/// Sends a file until it is stored, sometimes breaking off half way.
async fn deliver(url: std::sync::Arc<std::sync::RwLock<String>>, client: usize, index: usize, body: Vec<u8>) {
    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("client");
    for attempt in 0..200 {
        let address = format!("{}/ingest/gottcha2/file-{index}", url.read().expect("url"));
        let request = http.put(address).bearer_auth("t").body(body.clone());
        // Some attempts are given up at a moment that differs from client to client.
        let patience = if (attempt + client).is_multiple_of(3) {
            3 + (client * 7 + index * 13 + attempt) as u64 % 40
        } else {
            60_000
        };
        let answer = tokio::time::timeout(Duration::from_millis(patience), request.send()).await;
        if let Ok(Ok(answer)) = answer {
            let status = answer.status();
            if status == 200 {
                let receipt: Value = answer.json().await.expect("receipt");
                assert_eq!(receipt["key"], format!("file-{index}"));
                return;
            }
            assert_eq!(status, 503, "{}", answer.text().await.expect("text"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("file {index} was never stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_with_aborts_and_a_kill_9_leave_exactly_one_copy_of_each_file() {
    const FILES: usize = 6;
    const ROWS: usize = 20_000;
    let folder = folder();
    let (_, database_url) = create_database().await;
    let serve = || Served::start(&mut serving(folder.path(), &database_url));
    let first = serve();
    let url = std::sync::Arc::new(std::sync::RwLock::new(first.url.clone()));
    let clients = (0..16).map(|client| {
        let url = url.clone();
        tokio::spawn(async move {
            for step in 0..FILES {
                let index = (step + client) % FILES;
                deliver(url.clone(), client, index, file(index, ROWS)).await;
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    let pool = sqlx::PgPool::connect(&database_url).await.expect("pool");
    eventually("some files are stored", async || {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM submissions").fetch_one(&pool).await.expect("count") > 0
    })
    .await;
    first.kill();
    assert!(clients.iter().any(|client| !client.is_finished()), "all had ended before");
    let second = serve();
    url.write().expect("url").clone_from(&second.url);
    for client in join_all(clients).await {
        client.expect("client");
    }
    let copies: Vec<(String, i64)> =
        sqlx::query_as("SELECT sample_id, count(*) FROM gottcha2_full GROUP BY 1 ORDER BY 1")
            .fetch_all(&pool)
            .await
            .expect("rows");
    let expected: Vec<(String, i64)> = (0..FILES).map(|index| (format!("S{index}"), ROWS as i64)).collect();
    assert_eq!(copies, expected);
    let submissions: i64 =
        sqlx::query_scalar("SELECT count(*) FROM submissions").fetch_one(&pool).await.expect("count");
    assert_eq!(submissions, FILES as i64);
}

/// A service whose exports take a while, and are soon taken over by another when it is killed.
fn slow_exporter(folder: &Path, database_url: &str) -> Served {
    let slow = ["--set", "export.lease=3s", "--set", "export.batch_size=1000"];
    Served::start(serving(folder, database_url).args(slow))
}

async fn store_large(client: &reqwest::Client, service: &Served) {
    let put = client.put(format!("{}/ingest/gottcha2/large", service.url)).bearer_auth("t").body(file(1, 300_000));
    assert_eq!(put.send().await.expect("answer").status(), 200);
}

/// Asks the service for JSON.
async fn ask(request: reqwest::RequestBuilder) -> Value {
    let answer = request.bearer_auth("t").send().await.expect("answer");
    answer.json().await.expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_whose_service_is_killed_half_way_is_taken_over_and_finished_once() {
    let folder = folder();
    let (_, database_url) = create_database().await;
    let serve = || slow_exporter(folder.path(), &database_url);
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let first = serve();
    store_large(&client, &first).await;
    let trigger = client.post(format!("{}/exports/trigger", first.url));
    let job = ask(trigger.json(&serde_json::json!({"table": "gottcha2"}))).await;
    let job = job["job_id"].as_str().expect("job").to_owned();
    eventually("rows are read", async || {
        ask(client.get(format!("{}/jobs/{job}", first.url))).await["progress"]["rows"].as_u64().unwrap_or_default() > 0
    })
    .await;
    first.kill();
    let second = serve();
    assert_eq!(ask(client.get(format!("{}/exports", second.url))).await, serde_json::json!([]));
    let mut ended = Value::Null;
    for _ in 0..600 {
        ended = ask(client.get(format!("{}/jobs/{job}", second.url))).await;
        if ended["status"] == "completed" || ended["status"] == "failed" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(ended["status"], "completed", "{ended}");
    assert_eq!(ended["attempt"], 2, "{ended}");
    let listed = ask(client.get(format!("{}/exports?status=all", second.url))).await;
    assert_eq!(listed.as_array().expect("array").len(), 1);
    assert_eq!(listed[0]["rows"], 300_000);
    let bytes = reqwest::get(listed[0]["download_url"].as_str().expect("link")).await.expect("answer");
    assert_eq!(bytes.bytes().await.expect("bytes").len() as u64, listed[0]["size_bytes"].as_u64().expect("size"));
}

#[tokio::test]
async fn an_export_survives_a_restart_of_its_database_connections() {
    let app = TestApp::with(&[("export.batch_size", "1000"), ("export.connections", "1")]).await;
    app.store("/ingest-gottcha2", file(1, 300_000)).await;
    let made = app.trigger(serde_json::json!({"table": "gottcha2"})).await;
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'COPY (%' AND datname = current_database()";
    eventually("the COPY is ended", async || app.scalar::<i64>(terminate).await > 0).await;
    let job = app.finished(made["job_id"].as_str().expect("job")).await;
    assert_eq!((&job["status"], &job["attempt"]), (&serde_json::json!("completed"), &serde_json::json!(2)), "{job}");
    assert_eq!(app.get("/exports").await[0]["rows"], 300_000);
}

#[tokio::test]
async fn a_text_export_that_loses_one_of_two_connections_is_tried_again_and_whole() {
    let app = TestApp::with(&[("export.batch_size", "1000"), ("export.connections", "2")]).await;
    app.store("/ingest-gottcha2", file(1, 300_000)).await;
    let made = app.trigger(serde_json::json!({"table": "gottcha2", "format": "csv"})).await;
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
                     WHERE query LIKE 'COPY (%' AND datname = current_database() LIMIT 1) AS one";
    eventually("one COPY is ended", async || app.scalar::<i64>(terminate).await > 0).await;
    let job = app.finished(made["job_id"].as_str().expect("job")).await;
    assert_eq!((&job["status"], &job["attempt"]), (&serde_json::json!("completed"), &serde_json::json!(2)), "{job}");
    assert_eq!(app.get("/exports").await[0]["rows"], 300_000);
}

/// Waits until the job runs and PostgreSQL says so of its statement, then cancels it, which must end it.
async fn cancel_while(app: &TestApp, job: &str, waits: &str) {
    eventually("it waits", async || app.scalar::<i64>(waits).await > 0).await;
    let answer = app.request("POST", &format!("/jobs/{job}/cancel")).send().await.expect("answer");
    assert_eq!(answer.status(), 202);
    assert_eq!(app.finished(job).await["status"], "cancelled");
    assert_eq!(files_below(app.exports()), Vec::<String>::new());
}

/// Keeps everybody else from a table for as long as it lives.
async fn lock(app: &TestApp) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut lock = app.pool.begin().await.expect("transaction");
    sqlx::query("LOCK TABLE gottcha2_full IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.expect("lock");
    lock
}

const WAITS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";

#[tokio::test]
async fn an_export_that_waits_for_a_locked_table_can_be_cancelled() {
    let app = TestApp::start().await;
    let _lock = lock(&app).await;
    let made = app.trigger(serde_json::json!({"table": "gottcha2"})).await;
    cancel_while(&app, made["job_id"].as_str().expect("job"), WAITS).await;
}

#[tokio::test]
async fn an_export_whose_connection_falls_silent_can_be_cancelled() {
    let settings = [("export.batch_size", "1000"), ("export.connections", "1")];
    let app = TestApp::behind(&settings, |listener, server| relay_database(listener, server, 1024 * 1024)).await;
    app.store("/ingest-gottcha2", file(1, 300_000)).await;
    for format in ["parquet", "csv"] {
        let made = app.trigger(serde_json::json!({"table": "gottcha2", "format": format})).await;
        let copies =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY (%' AND datname = current_database()";
        let stuck = format!("{copies} AND state_change < clock_timestamp() - interval '2 seconds'");
        cancel_while(&app, made["job_id"].as_str().expect("job"), &stuck).await;
        eventually("the COPY has ended", async || app.scalar::<i64>(copies).await == 0).await;
    }
}

#[tokio::test]
async fn orderly_stops_of_the_service_use_up_no_attempt() {
    let app = TestApp::with(&[("export.slots", "0"), ("export.max_attempts", "2")]).await;
    let lock = lock(&app).await;
    let made = app.trigger(serde_json::json!({"table": "gottcha2"})).await;
    let job = made["job_id"].as_str().expect("job");
    let mut working = app.app.clone();
    let mut config = (*working.config).clone();
    config.export.slots = 1;
    working.config = std::sync::Arc::new(config);
    for stops in 1..=3 {
        let workers = Workers::start(&working);
        let look = async || app.get(&format!("/jobs/{job}")).await;
        eventually("it runs", async || look().await["status"] == "running").await;
        workers.stop(Duration::ZERO).await;
        let job = look().await;
        assert_eq!((&job["status"], &job["attempt"]), (&"pending".into(), &stops.into()), "{job}");
    }
    drop(lock);
    let _workers = Workers::start(&working);
    assert_eq!(app.finished(job).await["status"], "completed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_an_extract_whose_service_is_killed_half_way_is_begun_anew_and_whole() {
    let folder = folder();
    let (_, database_url) = create_database().await;
    let serve = || slow_exporter(folder.path(), &database_url);
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let first = serve();
    store_large(&client, &first).await;
    let extract = client.post(format!("{}/api/data/extracts", first.url)).json(&serde_json::json!({"name": "x"}));
    let extract = ask(extract).await["data"]["id"].as_str().expect("extract").to_owned();
    let started = ask(client.post(format!("{}/api/extracts/{extract}/run", first.url))).await;
    let run = started["data"]["status_url"].as_str().expect("run").to_owned();
    eventually("rows are read", async || {
        let run = ask(client.get(format!("{}{run}", first.url))).await;
        run["data"]["progress_detail"]["records_exported"].as_u64() > Some(0)
    })
    .await;
    first.kill();
    let second = serve();
    let mut ended = Value::Null;
    for _ in 0..600 {
        ended = ask(client.get(format!("{}{run}", second.url))).await["data"].take();
        if ended["status"] == "completed" || ended["status"] == "failed" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((&ended["status"], &ended["records_exported"]), (&"completed".into(), &300_000.into()), "{ended}");
    for artifact in ended["artifacts"].as_array().expect("artifacts") {
        let bytes = reqwest::get(artifact["download_url"].as_str().expect("link")).await.expect("answer");
        let digest = <sha2::Sha256 as sha2::Digest>::digest(bytes.bytes().await.expect("bytes"));
        assert_eq!(artifact["sha256"], data_encoding::HEXLOWER.encode(&digest));
    }
    let again = ask(client.post(format!("{}/api/extracts/{extract}/run", second.url))).await;
    assert_eq!(again["success"], true, "{again}");
}
