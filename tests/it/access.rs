//! Who may do what, and how often.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nvd_support_car::config::Config;
use nvd_support_car::secrets;
use reqwest::Client;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::{RECORD, TOKEN, TestApp, eventually, problem};

async fn ask(app: &TestApp, method: &str, path: &str, token: Option<&str>) -> reqwest::Response {
    let client = Client::builder().no_proxy().build().expect("client");
    let request = client.request(method.parse().expect("method"), format!("{}{path}", app.url)).body(RECORD);
    token.map_or(request.try_clone().expect("clone"), |token| request.bearer_auth(token)).send().await.expect("answer")
}

#[tokio::test]
async fn without_a_valid_token_nothing_is_taken_in() {
    let app = TestApp::start().await;
    for token in [None, Some("wrong"), Some(""), Some("test-token2"), Some("test-toke")] {
        let answer = ask(&app, "POST", "/ingest-gottcha2", token).await;
        assert!(answer.headers()["www-authenticate"].to_str().expect("text").starts_with("Bearer"));
        problem(answer, 401).await;
    }
    assert_eq!(app.total().await, 0);
}

#[tokio::test]
async fn scopes_allow_what_they_say_and_nothing_else() {
    let app = TestApp::with(&[("auth.ingest_token", "ingest-only")]).await;
    assert_eq!(ask(&app, "POST", "/ingest-gottcha2", Some("ingest-only")).await.status(), 200);
    let refused = problem(ask(&app, "GET", "/submissions", Some("ingest-only")).await, 403).await;
    assert!(refused["detail"].as_str().expect("detail").contains("`read`"), "{refused}");
    problem(ask(&app, "DELETE", "/submissions/1", Some("ingest-only")).await, 403).await;
    assert_eq!(ask(&app, "GET", "/submissions", Some(TOKEN)).await.status(), 200);
}

#[tokio::test]
async fn where_anybody_may_read_exports_the_file_of_an_export_job_is_its_user_s() {
    let app = TestApp::with(&[("auth.public_exports", "true")]).await;
    app.export(json!({"table": "stast"})).await;
    let catalogued: Uuid = app.scalar("SELECT id FROM exports").await;
    let wish = json!({"table_name": "stast", "format": "csv"});
    let job: Value = app
        .request("POST", "/api/v1/export/jobs")
        .json(&wish)
        .send()
        .await
        .expect("answer")
        .json()
        .await
        .expect("JSON");
    let file = format!("/api/v1/export/jobs/{}/download", job["id"]);
    eventually("it is written", async || ask(&app, "GET", &file, Some(TOKEN)).await.status() == 200).await;
    problem(ask(&app, "GET", &file, None).await, 401).await;
    let private: Uuid = app.scalar("SELECT export_id FROM export_jobs").await;
    for (export, status) in [(catalogued, 200), (private, 404)] {
        for path in [format!("/exports/{export}"), format!("/exports/{export}/download")] {
            assert_eq!(ask(&app, "GET", &path, None).await.status(), status, "{path}");
        }
    }
    assert_eq!(app.get("/jobs?limit=1").await[0]["export_id"], Value::Null);
}

#[test]
fn a_token_is_kept_as_its_sha256() {
    let expected = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    assert_eq!(data_encoding::HEXLOWER.encode(&secrets::hash("test")), expected);
}

#[tokio::test]
async fn a_burst_over_the_rate_waits_instead_of_failing() {
    let app = TestApp::with(&[("limits.rate_per_second", "20"), ("limits.burst", "5")]).await;
    let started = Instant::now();
    let answers = join_all((0..15).map(|_| ask(&app, "GET", "/submissions", Some(TOKEN)))).await;
    assert!(answers.iter().all(|answer| answer.status() == 200));
    assert!(started.elapsed() > Duration::from_millis(400), "{:?}", started.elapsed());
}

#[tokio::test]
async fn only_a_full_queue_is_refused_with_a_time_to_come_back() {
    let app = TestApp::with(&[("limits.rate_per_second", "1"), ("limits.burst", "1"), ("limits.queue", "1")]).await;
    let answers = join_all((0..6).map(|_| ask(&app, "GET", "/submissions", Some(TOKEN)))).await;
    let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status() == 200);
    assert_eq!(served.len(), 2);
    for answer in refused {
        let after: u32 = answer.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
        assert!(after >= 1);
        problem(answer, 429).await;
    }
}

#[tokio::test]
async fn a_full_upload_queue_is_refused_with_a_time_to_come_back() {
    let app = TestApp::with(&[("ingest.queue", "2"), ("ingest.concurrency", "1")]).await;
    let body = format!("{RECORD}\n").repeat(20_000);
    let answers = join_all((0..8).map(|_| app.post("/ingest-gottcha2", body.clone()).send())).await;
    let mut refused = 0;
    for answer in answers {
        let answer = answer.expect("answer");
        if answer.status() != 200 {
            assert!(answer.headers().contains_key("retry-after"));
            problem(answer, 503).await;
            refused += 1;
        }
    }
    assert!((1..=6).contains(&refused), "{refused}");
    assert_eq!(app.count("submissions").await, 1);
}

#[test]
fn the_sha256_of_nothing_is_no_token() {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("file");
    let token = "[[auth.tokens]]\nname = \"a\"\nscopes = [\"read\"]\nsha256 = ";
    let nothing = data_encoding::HEXLOWER.encode(&secrets::hash(""));
    std::fs::write(file.path(), format!("{token}\"{nothing}\"\n")).expect("write");
    let error = Config::load(Some(file.path()), [], &[]).expect_err("refused").to_string();
    assert!(error.contains("empty token"), "{error}");
}
