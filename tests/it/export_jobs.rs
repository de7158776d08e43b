//! Export jobs: what a user asks for, how far it is, its file, and its end.

use std::time::Duration;

use nvd_support_car::jobs::retention;
use serde_json::{Value, json};

use crate::app::{RECORD, TestApp, eventually, gzip, problem};
use crate::exports::{files_below, stored};

const JOBS: &str = "/api/v1/export/jobs";

/// Asks for an export job, which must be taken.
async fn ask(app: &TestApp, request: &Value) -> Value {
    let answer = app.request("POST", JOBS).json(request).send().await.expect("answer");
    let (status, location) = (answer.status(), answer.headers().get("location").cloned());
    let text = answer.text().await.expect("text");
    assert_eq!(status, 202, "{text}");
    let job: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(location.expect("location"), format!("{JOBS}/{}", job["id"]).as_str());
    job
}

/// The export job once it has ended.
async fn ended(app: &TestApp, job: &Value) -> Value {
    let path = format!("{JOBS}/{}", job["id"]);
    for _ in 0..600 {
        let found = app.get(&path).await;
        if !["pending", "running"].contains(&found["status"].as_str().expect("status")) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("export job {path} did not end");
}

#[tokio::test]
async fn the_plan_s_own_requests_work_as_they_are_written() {
    let folder = tempfile::tempdir().expect("folder");
    let definition = "name = \"fred_series\"\ntable = \"fred_series\"\ntitle = \"Series\"\ndescription = \"d\"\n\
                      [[columns]]\nname = \"series_id\"\nkind = \"text\"\ndescription = \"d\"\n\
                      [[columns]]\nname = \"value\"\nkind = \"float\"\ndescription = \"d\"\n";
    std::fs::write(folder.path().join("fred_series.toml"), definition).expect("definition");
    let app = TestApp::with(&[("datasets.dir", folder.path().to_str().expect("path"))]).await;
    app.store("/ingest/fred_series", "{\"series_id\":\"GDP\",\"value\":1.5}\n".repeat(12_000)).await;
    // curl -X POST .../api/v1/export/jobs -H "Content-Type: application/json" -d '...'
    let body = r#"{"table_name": "fred_series", "format": "csv", "row_limit": 10000}"#;
    let answer = app.post("/api/v1/export/jobs", body).header("content-type", "application/json");
    let created: Value = answer.send().await.expect("answer").json().await.expect("JSON");
    for (field, value) in
        [("id", json!(1)), ("status", json!("pending")), ("table_name", json!("fred_series")), ("format", json!("csv"))]
    {
        assert_eq!(created[field], value, "{created}");
    }
    ended(&app, &created).await;
    // curl .../api/v1/export/jobs/1
    let done = app.get("/api/v1/export/jobs/1").await;
    assert_eq!((&done["status"], &done["row_count"]), (&json!("completed"), &json!(10_000)));
    assert_eq!(
        done["progress"],
        json!({"phase": "done", "rows_exported": 10_000, "estimated_total": 10_000, "percent": 100.0})
    );
    // curl -O .../api/v1/export/jobs/1/download
    let file = app.request("GET", "/api/v1/export/jobs/1/download").send().await.expect("answer");
    assert_eq!(file.status(), 200);
    let text = file.text().await.expect("text");
    assert_eq!(text.lines().count(), 10_001);
    assert_eq!(done["file_size_bytes"], text.len());
    assert_eq!(text.lines().next(), Some("series_id,value,extra,created_at"));
    assert_eq!(app.get("/exports").await, json!([]), "a user's own export is not in the catalogue");
}

#[tokio::test]
async fn rows_columns_and_the_form_are_what_was_asked_for() {
    let app = TestApp::start().await;
    stored(&app, 3, 100).await;
    let request = json!({"table_name": "gottcha2_full", "format": "jsonl", "columns": ["sample_id", "read_count"],
        "filters": {"sample_id": "S1", "date_from": "2020-01-01", "date_to": "2100-01-01T00:00:00Z"}, "compress": true});
    let job = ended(&app, &ask(&app, &request).await).await;
    for field in ["table_name", "format", "columns", "filters", "compress"] {
        assert_eq!(job[field], request[field]);
    }
    assert!(job["file_name"].as_str().expect("name").ends_with(".jsonl.gz"), "{job}");
    let bytes = app.download(&job).await;
    assert_eq!(job["sha256"], data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(&bytes)));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::MultiGzDecoder::new(&bytes[..]), &mut text).expect("gzip");
    assert_eq!(text, "{\"sample_id\":\"S1\",\"read_count\":513}\n".repeat(100));
    let range =
        reqwest::Client::builder().no_proxy().build().expect("client").get(job["download_url"].as_str().expect("link"));
    let range = range.header("range", "bytes=0-1").send().await.expect("answer");
    assert_eq!((range.status().as_u16(), range.bytes().await.expect("bytes").to_vec()), (206, vec![0x1f, 0x8b]));
    let none = json!({"table_name": "gottcha2", "format": "json", "filters": {"date_to": "2020-01-01"}});
    let none = ended(&app, &ask(&app, &none).await).await;
    assert_eq!(none["progress"]["percent"], 100.0);
    assert_eq!(none["row_count"], 0);
    assert_eq!(serde_json::from_slice::<Value>(&app.download(&none).await).expect("JSON"), json!([]));
    let parquet = ended(&app, &ask(&app, &json!({"table_name": "gottcha2", "format": "parquet"})).await).await;
    assert!(app.download(&parquet).await.ends_with(b"PAR1"));
}

#[tokio::test]
async fn every_wrong_field_is_named_at_once() {
    let app = TestApp::start().await;
    let refused = async |request: Value| {
        let answer = app.request("POST", JOBS).json(&request).send().await.expect("answer");
        let problem = problem(answer, 422).await;
        let mut fields: Vec<String> = problem["errors"]
            .as_array()
            .expect("errors")
            .iter()
            .map(|error| error["field"].as_str().expect("field").to_owned())
            .collect();
        fields.sort();
        fields
    };
    assert_eq!(refused(json!({})).await, ["format", "table_name"]);
    assert_eq!(
        refused(json!({"table_name": "nonsense", "format": "xlsx", "more": 1})).await,
        ["format", "more", "table_name"]
    );
    for (field, value) in [
        ("columns", json!(["nonsense"])),
        ("columns", json!([])),
        ("columns", json!("sample_id")),
        ("row_limit", json!(0)),
        ("row_limit", json!(-5)),
        ("row_limit", json!("ten")),
        ("filters", json!(["sample_id"])),
        ("filters.nonsense", json!(1)),
        ("filters.read_count", json!("many")),
        ("filters.date_from", json!("yesterday")),
        ("filters.date_from", json!("-5000-01-01")),
        ("filters.date_to", json!("-5000-01-01T00:00:00Z")),
        ("compress", json!("gzip")),
        ("expires_in_hours", json!(0)),
        ("expires_in_hours", json!(100_000)),
    ] {
        let mut request = json!({"table_name": "gottcha2", "format": "csv"});
        match field.split_once('.') {
            Some((outer, inner)) => request[outer] = json!({inner: value}),
            None => request[field] = value,
        }
        assert_eq!(refused(request).await, [field]);
    }
    let reversed = json!({"date_from": "2026-02-01", "date_to": "2026-01-01"});
    assert_eq!(
        refused(json!({"table_name": "stast", "format": "csv", "filters": reversed})).await,
        ["filters.date_to"]
    );
    assert_eq!(app.count("jobs").await, 0);
}

#[tokio::test]
async fn export_jobs_are_listed_by_state_and_table_page_by_page() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    for table in ["gottcha2", "stast", "gottcha2"] {
        ask(&app, &json!({"table_name": table, "format": "csv"})).await;
    }
    let ids = |page: &Value| page.as_array().expect("page").iter().map(|job| job["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&app.get(JOBS).await), [3, 2, 1]);
    assert_eq!(ids(&app.get(&format!("{JOBS}?table_name=gottcha2_full&status=pending")).await), [3, 1]);
    assert!(ids(&app.get(&format!("{JOBS}?status=completed")).await).is_empty());
    let first = app.request("GET", &format!("{JOBS}?limit=2")).send().await.expect("answer");
    let next = first.headers()["link"].to_str().expect("link").to_owned();
    let next = next.trim_start_matches('<').split('>').next().expect("address");
    assert_eq!(ids(&app.get(next).await), [1]);
    problem(app.request("GET", &format!("{JOBS}?status=lost")).send().await.expect("answer"), 400).await;
    problem(app.request("GET", &format!("{JOBS}/2/download")).send().await.expect("answer"), 409).await;
    problem(app.request("GET", &format!("{JOBS}/77/download")).send().await.expect("answer"), 404).await;
    problem(app.request("GET", &format!("{JOBS}/77")).send().await.expect("answer"), 404).await;
}

#[tokio::test]
async fn the_same_idempotency_key_is_the_same_export_job() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    let ask = async |format: &str| {
        let request = app.request("POST", JOBS).header("idempotency-key", "k");
        request.json(&json!({"table_name": "stast", "format": format})).send().await.expect("answer")
    };
    let first: Value = ask("csv").await.json().await.expect("JSON");
    let second: Value = ask("csv").await.json().await.expect("JSON");
    assert_eq!(first["id"], second["id"]);
    problem(ask("json").await, 409).await;
    assert_eq!(app.count("export_jobs").await, 1);
}

#[tokio::test]
async fn an_expired_file_is_gone_with_410_and_does_not_count_as_the_newest_export() {
    let app = TestApp::start().await;
    let job =
        ended(&app, &ask(&app, &json!({"table_name": "stast", "format": "csv", "expires_in_hours": 2})).await).await;
    let hours: f64 =
        app.scalar("SELECT (extract(epoch FROM expires_at - completed_at) / 3600)::float8 FROM exports").await;
    assert!((hours - 2.0).abs() < 0.01, "{hours}");
    sqlx::query("UPDATE exports SET expires_at = now() - interval '1 second'")
        .execute(&app.pool)
        .await
        .expect("update");
    let path = format!("{JOBS}/{}", job["id"]);
    assert_eq!(app.get(&path).await["status"], "expired");
    problem(app.request("GET", &format!("{path}/download")).send().await.expect("answer"), 410).await;
    assert_eq!(files_below(app.exports()).len(), 2);
    retention::expire(&app.app).await.expect("expire");
    retention::expire(&app.app).await.expect("expire");
    assert_eq!(files_below(app.exports()), Vec::<String>::new(), "keep_at_least is for the catalogue");
    assert_eq!(app.get(&format!("{JOBS}?status=expired")).await[0]["id"], job["id"]);
    problem(app.request("GET", &format!("{path}/download")).send().await.expect("answer"), 410).await;
    sqlx::query("UPDATE export_jobs SET expired_at = now() - interval '31 days'")
        .execute(&app.pool)
        .await
        .expect("update");
    retention::expire(&app.app).await.expect("expire");
    problem(app.request("GET", &path).send().await.expect("answer"), 404).await;
}

#[tokio::test]
async fn removing_an_export_job_that_runs_cancels_it_and_leaves_nothing() {
    let app = TestApp::with(&[("export.batch_size", "1000"), ("export.connections", "1")]).await;
    stored(&app, 2, 200_000).await;
    let job = ask(&app, &json!({"table_name": "gottcha2", "format": "csv"})).await;
    let path = format!("{JOBS}/{}", job["id"]);
    eventually("rows are read", async || app.get(&path).await["progress"]["rows_exported"].as_u64() > Some(0)).await;
    let answer = app.request("DELETE", &path).send().await.expect("answer");
    assert_eq!(answer.status(), 204);
    problem(app.request("GET", &path).send().await.expect("answer"), 404).await;
    eventually("the job has ended", async || app.get("/jobs").await[0]["status"] == "cancelled").await;
    assert_eq!(files_below(app.exports()), Vec::<String>::new());
}

#[tokio::test]
async fn a_reader_may_ask_and_remove_his_own_but_not_what_others_asked_for() {
    let hash = |token: &str| data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(token));
    let token =
        |name: &str| format!("[[auth.tokens]]\nname = \"{name}\"\nscopes = [\"read\"]\nsha256 = \"{}\"\n", hash(name));
    let app = TestApp::configured(&format!("{}{}[export]\nslots = 0\n", token("ann"), token("bob"))).await;
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let send = async |method: &str, who: &str, path: &str| {
        let request = client.request(method.parse().expect("method"), format!("{}{path}", app.url)).bearer_auth(who);
        request.json(&json!({"table_name": "stast", "format": "csv"})).send().await.expect("answer")
    };
    let made: Value = send("POST", "ann", JOBS).await.json().await.expect("JSON");
    assert_eq!(made["created_by"], "ann");
    let path = format!("{JOBS}/{}", made["id"]);
    problem(send("DELETE", "bob", &path).await, 403).await;
    assert_eq!(send("DELETE", "ann", &path).await.status(), 204);
    let made: Value = send("POST", "ann", JOBS).await.json().await.expect("JSON");
    assert_eq!(send("DELETE", crate::app::TOKEN, &format!("{JOBS}/{}", made["id"])).await.status(), 204);
}

#[tokio::test]
async fn tables_and_formats_tell_what_can_be_asked_for() {
    let app = TestApp::start().await;
    app.store("/ingest-gottcha2", gzip(format!("{RECORD}\n").repeat(7))).await;
    let tables = app.get("/api/v1/export/tables").await;
    let table =
        tables.as_array().expect("tables").iter().find(|table| table["table_name"] == "gottcha2").expect("table");
    assert_eq!(table["row_estimate"], 7);
    assert!(table["time_range"]["from"].as_str().expect("from").starts_with("20"));
    let columns = table["columns"].as_array().expect("columns");
    let column = columns.iter().find(|column| column["name"] == "sample_id").expect("column");
    assert_eq!(
        (&column["type"], &column["indexed"], &column["filterable"]),
        (&json!("text"), &json!(true), &json!(true))
    );
    assert!(columns.iter().all(|column| !column["description"].as_str().expect("text").is_empty()));
    let formats = app.get("/api/v1/export/formats").await;
    for format in formats.as_array().expect("formats") {
        let job = json!({"table_name": "gottcha2", "format": format["format"], "compress": true});
        let job = ended(&app, &ask(&app, &job).await).await;
        assert_eq!((&job["status"], &job["row_count"]), (&json!("completed"), &json!(7)));
    }
}
