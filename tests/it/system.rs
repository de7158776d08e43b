//! Health, metrics, version, and the pages for people.

use crate::app::{RECORD, TestApp, eventually, problem};

async fn text(app: &TestApp, path: &str) -> String {
    let response = reqwest::get(format!("{}{path}", app.url)).await.expect("answer");
    assert_eq!(response.status(), 200, "{path}");
    response.text().await.expect("text")
}

#[tokio::test]
async fn health_readiness_and_version_need_no_token() {
    let app = TestApp::start().await;
    assert_eq!(text(&app, "/healthz").await, "ok");
    assert_eq!(text(&app, "/readyz").await, "ready");
    assert!(text(&app, "/version").await.contains(env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn a_closed_database_is_told_by_readiness_and_retryable_for_uploads() {
    let app = TestApp::start().await;
    app.pool.close().await;
    assert_eq!(text(&app, "/healthz").await, "ok");
    problem(reqwest::get(format!("{}/readyz", app.url)).await.expect("answer"), 503).await;
    let answer = app.post("/ingest-gottcha2", RECORD).send().await.expect("answer");
    assert!(answer.headers().contains_key("retry-after"));
    problem(answer, 503).await;
}

#[tokio::test]
async fn a_database_that_takes_no_writes_is_told_by_readiness() {
    let app = TestApp::start().await;
    let name: String = app.scalar("SELECT current_database()::text").await;
    let read_only = format!("ALTER DATABASE \"{name}\" SET default_transaction_read_only = on");
    sqlx::query(sqlx::AssertSqlSafe(read_only)).execute(&app.pool).await.expect("standby");
    // Connections of before would still write.
    let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    eventually("the service has new connections", async || {
        drop(sqlx::query(others).execute(&app.pool).await);
        let answer = reqwest::get(format!("{}/readyz", app.url)).await.expect("answer");
        let status = answer.status();
        status == 503 && answer.text().await.expect("problem").contains("takes no writes")
    })
    .await;
    let answer = app.post("/ingest-gottcha2", RECORD).send().await.expect("answer");
    assert!(answer.headers().contains_key("retry-after"));
    problem(answer, 503).await;
}

#[tokio::test]
async fn rows_bytes_durations_replays_and_refusals_are_counted() {
    let app = TestApp::start().await;
    app.store("/ingest-gottcha2", RECORD).await;
    app.store("/ingest-gottcha2", RECORD).await;
    app.post("/ingest-gottcha2", "{}").send().await.expect("answer");
    let metrics = text(&app, "/metrics").await;
    for line in [
        "nvd_ingest_rows_total{dataset=\"gottcha2\"}",
        "nvd_ingest_bytes_total{dataset=\"gottcha2\"}",
        "nvd_ingest_submissions_total{dataset=\"gottcha2\",result=\"stored\"}",
        "nvd_ingest_submissions_total{dataset=\"gottcha2\",result=\"replayed\"}",
        "nvd_ingest_submissions_total{dataset=\"gottcha2\",result=\"rows\"}",
        "nvd_ingest_duration_seconds_bucket{dataset=\"gottcha2\"",
        "nvd_http_requests_total{method=\"POST\",route=\"/ingest-gottcha2\",status=\"200\"}",
        "nvd_database_pool_connections{state=\"used\"}",
        "nvd_ingest_queue_uploads",
    ] {
        assert!(metrics.contains(line), "{line} is not in:\n{metrics}");
    }
}

#[tokio::test]
async fn swagger_ui_works_without_internet() {
    let app = TestApp::start().await;
    let page = text(&app, "/swagger-ui/").await;
    assert!(!page.contains("https://"), "{page}");
    assert!(text(&app, "/swagger-ui/swagger-ui-bundle.js").await.len() > 100_000);
    assert!(text(&app, "/swagger-ui/swagger-initializer.js").await.contains("/api-docs/openapi.json"));
}

#[tokio::test]
async fn redoc_uses_the_operators_file_and_the_cdn_only_without_one() {
    let bundle = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(bundle.path(), "window.Redoc = {}").expect("write");
    let app = TestApp::with(&[("server.redoc_bundle", bundle.path().to_str().expect("path"))]).await;
    let page = text(&app, "/redoc").await;
    assert!(page.contains("/redoc/redoc.standalone.js") && !page.contains("https://cdn"), "cdn");
    assert!(page.contains("Gottcha2Record"), "the description is not in the page");
    assert_eq!(text(&app, "/redoc/redoc.standalone.js").await, "window.Redoc = {}");
    let app = TestApp::start().await;
    assert!(text(&app, "/redoc").await.contains("https://cdn"));
}

#[tokio::test]
async fn every_answer_carries_a_request_id() {
    let app = TestApp::start().await;
    let answer = reqwest::get(format!("{}/nowhere", app.url)).await.expect("answer");
    let id = answer.headers()["x-request-id"].to_str().expect("text").to_owned();
    assert_eq!(problem(answer, 404).await["request_id"], id);
}

#[tokio::test]
async fn methods_that_clients_make_up_are_counted_as_one() {
    let app = TestApp::start().await;
    for index in 0..3 {
        app.request(&format!("BREW{index}"), "/healthz").send().await.expect("answer");
    }
    let metrics = text(&app, "/metrics").await;
    assert!(metrics.contains("nvd_http_requests_total{method=\"other\""), "{metrics}");
    assert!(!metrics.contains("BREW"), "{metrics}");
}

#[tokio::test]
async fn json_of_a_request_has_a_limit() {
    let app = TestApp::start().await;
    let table = "t".repeat(3_000_000);
    let answer = app.request("POST", "/exports/trigger").json(&serde_json::json!({ "table": table })).send().await;
    problem(answer.expect("answer"), 413).await;
}

#[tokio::test]
async fn a_query_that_is_ended_from_outside_is_answered_as_one_to_try_again() {
    let app = TestApp::start().await;
    let mut locked = app.pool.begin().await.expect("transaction");
    sqlx::query("LOCK TABLE submissions IN ACCESS EXCLUSIVE MODE").execute(&mut *locked).await.expect("lock");
    let request = tokio::spawn(app.request("GET", "/submissions").send());
    let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
                  WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the query waits", async || app.scalar::<i64>(cancel).await > 0).await;
    let answer = request.await.expect("task").expect("answer");
    assert!(answer.headers().contains_key("retry-after"));
    problem(answer, 503).await;
}
