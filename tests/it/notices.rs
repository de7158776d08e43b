//! Notices: webhooks hear how runs and exports end, whatever they do with it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};

use crate::app::{RECORD, TestApp, eventually};
use crate::extracts::create;

const SECRET: &str = "a-secret-of-the-lab";

/// What a receiver was sent, and how it answers: `/flaky` fails twice, `/slow` never answers.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<(String, HeaderMap, String)>>>);

impl Received {
    fn at(&self, path: &str) -> Vec<(HeaderMap, Value)> {
        let all = self.0.lock().expect("lock");
        let found = all.iter().filter(|(to, _, _)| to == path);
        found.map(|(_, headers, body)| (headers.clone(), serde_json::from_str(body).expect("JSON"))).collect()
    }
}

async fn receive(State(received): State<Received>, uri: Uri, headers: HeaderMap, body: String) -> StatusCode {
    let path = uri.path().to_owned();
    let before = received.at(&path).len();
    received.0.lock().expect("lock").push((path.clone(), headers, body));
    match path.as_str() {
        "/flaky" if before < 2 => StatusCode::INTERNAL_SERVER_ERROR,
        "/wrong" => StatusCode::NOT_FOUND,
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            StatusCode::OK
        }
        _ => StatusCode::NO_CONTENT,
    }
}

/// A service with webhooks of that receiver, by kind and path, and more lines of configuration.
async fn service(webhooks: &[(&str, &str)], more: &str) -> (TestApp, Received) {
    let received = Received::default();
    let router = Router::new().fallback(receive).with_state(received.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move { axum::serve(listener, router).await.expect("serve") });
    let mut text = more.to_owned();
    for (name, kind) in webhooks {
        text += &format!(
            "[[notify.webhooks]]\nname = \"{name}\"\nurl = \"http://{address}/{name}\"\nkind = \"{kind}\"\nsecret = \"{SECRET}\"\n"
        );
    }
    (TestApp::configured(&text).await, received)
}

async fn run(app: &TestApp, config: Value) -> String {
    let extract = create(app, &config).await;
    let path = format!("/api/extracts/{}/run", extract["id"].as_str().expect("id"));
    let answer: Value = app.request("POST", &path).send().await.expect("answer").json().await.expect("JSON");
    answer["data"]["run_id"].as_str().expect("run").to_owned()
}

#[tokio::test]
async fn a_signed_event_and_chat_messages_tell_that_a_run_completed() {
    let (app, received) = service(&[("events", "json"), ("slack", "slack"), ("discord", "discord")], "").await;
    app.store("/ingest-gottcha2", RECORD).await;
    let run = run(&app, json!({"name": "Lab", "notify": ["events", "slack", "discord"]})).await;
    eventually("all are told", async || received.0.lock().expect("lock").len() == 3).await;
    let (headers, event) = received.at("/events").remove(0);
    assert_eq!(
        (&event["type"], &event["data"]["run_id"], &event["data"]["records"]),
        (&json!("extract.completed"), &json!(run), &json!(1))
    );
    let header = |name: &str| headers[name].to_str().expect("header").to_owned();
    let body = received.0.lock().expect("lock").iter().find(|(to, _, _)| to == "/events").expect("event").2.clone();
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).expect("key");
    mac.update(format!("{}.{}.{body}", header("webhook-id"), header("webhook-timestamp")).as_bytes());
    let expected = data_encoding::BASE64.encode(&mac.finalize().into_bytes());
    assert_eq!(header("webhook-signature"), format!("v1,{expected}"));
    let text = received.at("/slack")[0].1["text"].as_str().expect("text").to_owned();
    assert!(text.starts_with("Extract \"Lab\" completed: 1 records"), "{text}");
    assert_eq!(received.at("/discord")[0].1["content"], text);
}

#[tokio::test]
async fn a_webhook_that_fails_is_told_again_under_the_same_id_and_one_that_refuses_is_not() {
    let (app, received) = service(&[("flaky", "json"), ("wrong", "json")], "").await;
    run(&app, json!({"name": "x", "notify": ["flaky", "wrong"]})).await;
    eventually("it was taken at last", async || {
        app.scalar::<i64>("SELECT count(*) FROM jobs WHERE kind = 'notice' AND state = 'completed'").await == 1
    })
    .await;
    let ids: Vec<_> = received.at("/flaky").iter().map(|(headers, _)| headers["webhook-id"].clone()).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(received.at("/wrong").len(), 1);
    let error: String = app.scalar("SELECT error FROM jobs WHERE kind = 'notice' AND state = 'failed'").await;
    assert!(error.contains("404") && !error.contains("http://"), "{error}");
}

#[tokio::test]
async fn a_webhook_that_hangs_holds_up_no_run() {
    let (app, received) = service(&[("slow", "slack")], "[notify]\ntimeout = \"60s\"\n").await;
    let started = Instant::now();
    for name in ["a", "b", "c"] {
        let run = run(&app, json!({"name": name, "notify": ["slow"]})).await;
        eventually("the run completes", async || {
            app.get(&format!("/api/data/extract_runs/{run}")).await["data"]["status"] == "completed"
        })
        .await;
    }
    assert!(started.elapsed() < Duration::from_secs(30));
    eventually("it hangs", async || received.at("/slow").len() == 1).await;
}

#[tokio::test]
async fn a_failure_is_told_as_well_and_a_schedule_s_export_too() {
    let more = "[export]\nexport_interval_hours = 0\n[[export.schedules]]\ndataset = \"gottcha2\"\ncron = \"0 0 5 * * *\"\nnotify = [\"events\"]\n";
    let (app, received) = service(&[("events", "json")], more).await;
    app.store("/ingest-stast", r#"{"task":"t","sample_id":"S","qseqid":"q","qlen":9,"sseqid":"s","stitle":"t","length":9,"pident":99.5,"evalue":0,"bitscore":17,"sscinames":"n","staxids":"1","rank":"r"}"#).await;
    sqlx::query("ALTER TABLE stast_table DROP COLUMN evalue CASCADE").execute(&app.pool).await.expect("alter");
    run(&app, json!({"name": "x", "schemas": ["stast"], "notify": ["events"]})).await;
    eventually("the failure is told", async || received.at("/events").len() == 1).await;
    let event = received.at("/events").remove(0).1;
    assert_eq!((&event["type"], &event["data"]["status"]), (&json!("extract.failed"), &json!("failed")), "{event}");
    assert!(event["data"]["error"].as_str().expect("error").contains("evalue"));
    let schedules = nvd_support_car::jobs::schedule::all(&app.app).expect("schedules");
    let schedules = nvd_support_car::jobs::schedule::Schedules::new(schedules);
    for now in ["2026-03-01T12:00:00Z", "2026-03-02T12:00:00Z"] {
        schedules.run_due(&app.app, now.parse().expect("time")).await;
    }
    eventually("the export is told", async || received.at("/events").len() == 2).await;
    let event = received.at("/events").remove(1).1;
    assert_eq!((&event["type"], &event["data"]["table"]), (&json!("export.completed"), &json!("gottcha2")), "{event}");
}
