//! Extracts: what an operator keeps, and that it is his.

use serde_json::{Value, json};

use crate::app::{RECORD, TestApp, problem};

pub const EXTRACTS: &str = "/api/data/extracts";

/// Makes an extract, and answers with its body.
pub async fn create(app: &TestApp, config: &Value) -> Value {
    let answer = app.request("POST", EXTRACTS).json(config).send().await.expect("answer");
    let status = answer.status();
    let text = answer.text().await.expect("text");
    assert_eq!(status, 201, "{text}");
    data(&serde_json::from_str(&text).expect("JSON"))
}

/// What stands in the envelope.
pub fn data(answer: &Value) -> Value {
    assert_eq!(answer["success"], true, "{answer}");
    answer["data"].clone()
}

pub async fn send(app: &TestApp, method: &str, path: &str, body: &Value) -> reqwest::Response {
    app.request(method, path).json(body).send().await.expect("answer")
}

#[tokio::test]
async fn what_is_left_out_has_the_documented_default() {
    let app = TestApp::start().await;
    let made = create(&app, &json!({"name": "Plain"})).await;
    for (field, value) in [
        ("description", json!(null)),
        ("format", json!("jsonl")),
        ("include", json!(["describe", "data"])),
        ("schemas", json!(null)),
        ("filter", json!(null)),
        ("compress", json!(true)),
        ("split_files", json!(false)),
        ("schedule", json!(null)),
        ("schedule_enabled", json!(false)),
        ("retention_days", json!(7)),
        ("enabled", json!(true)),
        ("version", json!(1)),
        ("total_runs", json!(0)),
    ] {
        assert_eq!(made[field], value, "{field}: {made}");
    }
    assert!(made["id"].as_str().expect("id").starts_with("extract_"));
    let path = format!("{EXTRACTS}/{}", made["id"].as_str().expect("id"));
    assert_eq!(data(&app.get(&path).await), made);
    assert_eq!(data(&app.get(EXTRACTS).await), json!([made]));
    problem(send(&app, "POST", EXTRACTS, &json!({"name": "Plain"})).await, 409).await;
}

#[tokio::test]
async fn every_wrong_field_is_named_at_once() {
    let app = TestApp::start().await;
    let fields = async |config: Value| {
        let problem = problem(send(&app, "POST", EXTRACTS, &config).await, 422).await;
        let errors = problem["errors"].as_array().expect("errors").iter();
        errors.map(|error| error["field"].as_str().expect("field").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(fields(json!({})).await, ["name"]);
    for (field, value) in [
        ("format", json!("xlsx")),
        ("include", json!([])),
        ("include", json!(["rows"])),
        ("schemas", json!([])),
        ("schemas", json!(["nonsense"])),
        ("schemas", json!(["stast", "stast"])),
        ("filter.nonsense", json!({})),
        ("filter.stast.nonsense", json!(1)),
        ("filter.stast.date_from", json!("yesterday")),
        ("filter.stast.date_from", json!("-5000-01-01")),
        ("compress", json!("gzip")),
        ("schedule", json!("every day")),
        ("schedule", json!("0 0 30 2 *")),
        ("timezone", json!("Mars/Phobos")),
        ("retention_days", json!(0)),
        ("notify", json!(["nobody"])),
        ("retention_day", json!(7)),
    ] {
        let mut config = json!({"name": "x", "schedule": "0 5 * * *"});
        match field.split('.').collect::<Vec<_>>()[..] {
            [outer, inner, column] => config[outer] = json!({inner: {column: value}}),
            [outer, inner] => config[outer] = json!({inner: value}),
            _ => config[field] = value,
        }
        assert_eq!(fields(config).await, [field]);
    }
    assert_eq!(fields(json!({"name": "x", "schedule_enabled": true})).await, ["schedule"]);
    assert_eq!(app.count("extracts").await, 0);
}

#[tokio::test]
async fn two_editors_do_not_overwrite_each_other() {
    let app = TestApp::start().await;
    let made = create(&app, &json!({"name": "Shared", "retention_days": 3})).await;
    let path = format!("{EXTRACTS}/{}", made["id"].as_str().expect("id"));
    let read = app.request("GET", &path).send().await.expect("answer");
    let tag = read.headers()["etag"].to_str().expect("tag").to_owned();
    let put = async |body: Value, tag: Option<&str>| {
        let request = app.request("PUT", &path).json(&body);
        let request = tag.map_or_else(|| app.request("PUT", &path).json(&body), |tag| request.header("if-match", tag));
        request.send().await.expect("answer")
    };
    problem(put(json!({"format": "csv"}), None).await, 422).await;
    let first = put(json!({"format": "csv"}), Some(&tag)).await;
    assert_eq!((first.status().as_u16(), first.headers()["etag"].to_str().expect("tag")), (200, "\"2\""));
    problem(put(json!({"format": "json"}), Some(&tag)).await, 412).await;
    problem(put(json!({"format": "json", "version": 1}), None).await, 412).await;
    // As a whole, as it was read, with what only the service sets.
    let mut whole = data(&app.get(&path).await);
    assert_eq!((&whole["format"], &whole["retention_days"]), (&json!("csv"), &json!(3)));
    whole["retention_days"] = Value::Null;
    whole["description"] = json!("for the lab");
    let changed = data(&put(whole, None).await.json().await.expect("JSON"));
    assert_eq!(
        (&changed["retention_days"], &changed["format"], &changed["version"]),
        (&json!(7), &json!("csv"), &json!(3))
    );
    create(&app, &json!({"name": "Other"})).await;
    problem(put(json!({"name": "Other", "version": 3}), None).await, 409).await;
    problem(put(json!({"format": "xlsx", "version": 3}), None).await, 422).await;
    problem(put(json!({"total_runs": "many", "version": 3}), None).await, 422).await;
    problem(put(json!({"format": "csv"}), Some("latest")).await, 422).await;
    problem(send(&app, "PUT", &format!("{EXTRACTS}/extract_none"), &json!({"version": 1})).await, 404).await;
    assert_eq!(data(&app.get(&path).await)["version"], 3);
}

#[tokio::test]
async fn an_extract_of_a_dataset_that_is_gone_can_be_disabled() {
    let app = TestApp::start().await;
    let made = create(&app, &json!({"name": "both", "schemas": ["gottcha2", "stast"]})).await;
    let path = format!("/api/data/extracts/{}", made["id"].as_str().expect("id"));
    app.scalar::<i64>(
        "WITH gone AS (UPDATE extracts SET config = jsonb_set(config, '{schemas,1}', '\"coverage\"') RETURNING 1)
        SELECT count(*) FROM gone",
    )
    .await;
    let change = json!({"version": made["version"], "enabled": false});
    let answer = send(&app, "PUT", &path, &change).await;
    assert_eq!(answer.status(), 200, "{}", answer.text().await.expect("text"));
    // What was wrong before is no excuse for what is wrong now.
    let change = json!({"version": made["version"].as_i64().expect("version") + 1, "schemas": ["nonsense"]});
    assert_eq!(problem(send(&app, "PUT", &path, &change).await, 422).await["errors"][0]["field"], "schemas");
}

#[tokio::test]
async fn extracts_are_listed_page_by_page() {
    let app = TestApp::start().await;
    for name in ["a", "b", "c"] {
        create(&app, &json!({"name": name})).await;
    }
    let first = app.request("GET", &format!("{EXTRACTS}?limit=2")).send().await.expect("answer");
    let next = first.headers()["link"].to_str().expect("link").to_owned();
    let names = |page: &Value| page.as_array().expect("page").iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&data(&first.json().await.expect("JSON"))), ["c", "b"]);
    let next = next.trim_start_matches('<').split('>').next().expect("address");
    assert_eq!(names(&data(&app.get(next).await)), ["a"]);
}

/// The address of the page behind one.
pub fn next_page(answer: &reqwest::Response) -> String {
    let next = answer.headers()["link"].to_str().expect("link");
    next.trim_start_matches('<').split('>').next().expect("address").to_owned()
}

#[tokio::test]
async fn pages_go_on_where_they_were_also_when_the_extract_there_is_gone() {
    let app = TestApp::start().await;
    for name in ["a", "b", "c"] {
        create(&app, &json!({"name": name})).await;
    }
    let first = app.request("GET", &format!("{EXTRACTS}?limit=2")).send().await.expect("answer");
    let next = next_page(&first);
    let last = data(&first.json().await.expect("JSON"))[1].clone();
    let path = format!("{EXTRACTS}/{}", last["id"].as_str().expect("id"));
    assert_eq!(app.request("DELETE", &path).send().await.expect("answer").status(), 204);
    assert_eq!(data(&app.get(&next).await)[0]["name"], "a");
    for cursor in
        ["nonsense", "extract_k4mzq2x7ahd3wq5b", "99999999999999999999_extract_x", "9223372036854775807_x", "_"]
    {
        let answer = app.request("GET", &format!("{EXTRACTS}?cursor={cursor}")).send().await.expect("answer");
        assert_eq!(problem(answer, 422).await["errors"][0]["field"], "cursor", "{cursor}");
    }
}

#[tokio::test]
async fn a_reader_may_look_but_not_change_or_run() {
    let hash = data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest("ann"));
    let text = format!("[[auth.tokens]]\nname = \"ann\"\nscopes = [\"read\"]\nsha256 = \"{hash}\"\n");
    let app = TestApp::configured(&text).await;
    app.store("/ingest-gottcha2", RECORD).await;
    let made = create(&app, &json!({"name": "x"})).await;
    let id = made["id"].as_str().expect("id");
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let ask = async |method: &str, path: String| {
        let request = client.request(method.parse().expect("method"), format!("{}{path}", app.url)).bearer_auth("ann");
        request.json(&json!({"name": "y", "version": 1})).send().await.expect("answer")
    };
    assert_eq!(ask("GET", format!("{EXTRACTS}/{id}")).await.status(), 200);
    assert_eq!(ask("GET", "/api/data/extract_runs".into()).await.status(), 200);
    for (method, path) in [
        ("POST", EXTRACTS.to_owned()),
        ("PUT", format!("{EXTRACTS}/{id}")),
        ("DELETE", format!("{EXTRACTS}/{id}")),
        ("POST", format!("/api/extracts/{id}/run")),
        ("POST", format!("/api/extracts/{id}/cancel")),
    ] {
        problem(ask(method, path).await, 403).await;
    }
}
