//! Partitioned datasets by the service itself: on request, and every day.

use chrono::{DateTime, Utc};
use nvd_support_car::config::Config;
use nvd_support_car::dataset::Datasets;
use nvd_support_car::jobs::schedule;
use serde_json::{Value, json};

use crate::app::{RECORD, TestApp, problem};
use crate::lake::{WITH_A_YEAR, files_of, rows_of, store_at, stored_rows};

#[tokio::test]
async fn a_request_brings_the_partitioned_dataset_up_to_date_and_a_second_changes_nothing() {
    let app = TestApp::with(&[("lake.grace", "0s")]).await;
    store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    store_at(&app, "S2", 5, "2026-01-02T12:00:00Z").await;
    let request = json!({"table": "gottcha2", "partition": {"temporal": "year,month,day"}});
    let made = app.trigger(request.clone()).await;
    assert_eq!(made["export_id"], Value::Null);
    let job = app.finished(made["job_id"].as_str().expect("job")).await;
    assert_eq!(
        (&job["status"], &job["kind"], &job["progress"]["rows"]),
        (&json!("completed"), &json!("lake"), &json!(9))
    );
    let report = &job["report"];
    assert_eq!((&report["partitions"], &report["files"], &report["rows"]), (&json!(2), &json!(2), &json!(9)), "{job}");
    assert!(app.exports().join(report["manifest"].as_str().expect("manifest")).is_file());
    let lake = app.exports().join("lake");
    assert_eq!(rows_of(&lake), stored_rows(&app).await);
    let before = files_of(&lake);
    let made = app.trigger(request.clone()).await;
    let job = app.finished(made["job_id"].as_str().expect("job")).await;
    assert_eq!((&job["status"], &job["report"]["unchanged"]), (&json!("completed"), &json!(2)), "{job}");
    assert!(files_of(&lake) == before, "a run without changes changed a byte");
    let metrics = reqwest::get(format!("{}/metrics", app.url)).await.expect("answer").text().await.expect("metrics");
    for name in ["runs_total", "rows_total", "bytes_total", "duration_seconds_count", "updated_timestamp_seconds"] {
        assert!(metrics.contains(&format!("nvd_lake_{name}{{dataset=\"gottcha2\"")), "{name}");
    }
    // Cut in another way, it is refused by the job; and with overwrite replaced.
    let request = json!({"table": "gottcha2", "partition": {"temporal": "year"}});
    let made = app.trigger(request.clone()).await;
    let job = app.finished(made["job_id"].as_str().expect("job")).await;
    assert_eq!(job["status"], "failed");
    assert!(job["error"].as_str().expect("error").contains("another way"), "{job}");
    let request = json!({"table": "gottcha2", "partition": {"temporal": "year"}, "overwrite": true});
    let made = app.trigger(request.clone()).await;
    assert_eq!(app.finished(made["job_id"].as_str().expect("job")).await["status"], "completed");
    assert_eq!(rows_of(&lake), stored_rows(&app).await);
    assert!(app.get("/exports?status=all").await.as_array().expect("exports").is_empty(), "it is no export");
}

#[tokio::test]
async fn wrong_wishes_for_partitions_are_refused_with_the_field_that_is_wrong() {
    let app = TestApp::start().await;
    for (more, field) in [
        (json!({"partition": {}}), "partition.temporal"),
        (json!({"partition": {"temporal": "day"}}), "partition.temporal"),
        (json!({"partition": {"by": ["nonsense"]}}), "partition.by"),
        (json!({"partition": {"by": ["rel_abundance"]}}), "partition.by"),
        (json!({"partition": {"nonsense": 1}}), "partition.nonsense"),
        (json!({"partition": {"temporal": "year"}, "columns": ["sample_id"]}), "columns"),
        (json!({"partition": {"temporal": "year"}, "filters": {"sample_id": "S1"}}), "filters"),
        (json!({"partition": {"temporal": "year"}, "from": "-5000-01-01T00:00:00Z"}), "from"),
        (json!({"overwrite": true}), "overwrite"),
    ] {
        let mut request = json!({"table": "gottcha2"});
        request.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        let answer = app.request("POST", "/exports/trigger").json(&request).send().await.expect("answer");
        let problem = problem(answer, 422).await;
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    assert_eq!(app.count("jobs").await, 0);
}

#[tokio::test]
async fn a_storage_below_a_folder_that_readers_take_for_a_partition_has_no_partitioned_datasets() {
    let folder = tempfile::tempdir().expect("folder");
    let storage = folder.path().join("env=prod");
    let app = TestApp::with(&[("export.storage", storage.to_str().expect("UTF-8"))]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    let request = json!({"table": "gottcha2", "partition": {"temporal": "year"}});
    let answer = app.request("POST", "/exports/trigger").json(&request).send().await.expect("answer");
    let problem = problem(answer, 409).await;
    assert!(problem["detail"].as_str().expect("detail").contains("`env=prod`"), "{problem}");
    assert_eq!(app.count("jobs").await, 0);
}

#[tokio::test]
async fn every_day_datasets_with_rows_are_brought_up_to_date_in_the_configured_zone() {
    let text = "[export]\nslots = 0\nexport_interval_hours = 0\n[[export.schedules]]\ndataset = \"stast\"\n\
                cron = \"0 0 6 * * *\"\npartition = { temporal = \"year,month\", by = [\"task\"] }\n\
                [lake]\ntimezone = \"America/Chicago\"\n";
    let app = TestApp::configured(text).await;
    app.store("/ingest-gottcha2", RECORD).await;
    app.store("/ingest-stast", crate::app::data("stast/stast.jsonl")).await;
    let mut seen = Vec::new();
    for now in ["2026-03-07T12:00:00Z", "2026-03-08T09:59:59Z", "2026-03-08T10:00:00Z"] {
        let now: DateTime<Utc> = now.parse().expect("time");
        let schedules = schedule::Schedules::new(schedule::all(&app.app).expect("schedules"));
        schedules.run_due(&app.app, now).await;
        let made = sqlx::query_scalar("SELECT payload FROM jobs WHERE kind = 'lake' ORDER BY id");
        let made: Vec<Value> = made.fetch_all(&app.pool).await.expect("jobs");
        seen.push(
            made.into_iter().map(|job| (job["dataset"].clone(), job["partitioning"].clone())).collect::<Vec<_>>(),
        );
    }
    let stast = (json!("stast"), json!({"temporal": "year,month", "by": ["task"]}));
    let gottcha2 = (json!("gottcha2"), json!({"temporal": "year,month,day"}));
    assert_eq!(seen, [vec![], vec![stast.clone()], vec![stast, gottcha2]]);
}

#[tokio::test]
async fn a_dataset_that_the_daily_schedule_cannot_cut_is_left_out_unless_it_has_its_own() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("harvest.toml"), WITH_A_YEAR).expect("definition");
    let datasets = Datasets::load(Some(folder.path())).expect("datasets");
    let configured = |partition: &str| {
        let own =
            format!("[[export.schedules]]\ndataset = \"harvest\"\ncron = \"0 0 6 * * *\"\npartition = {partition}\n");
        let file = folder.path().join("config");
        std::fs::write(&file, if partition.is_empty() { "" } else { &own }).expect("configuration");
        let config = Config::load(Some(&file), [], &[]).expect("configuration");
        schedule::configured(&config, &datasets, None).map(|schedules| schedules.len())
    };
    let without = configured("").expect("a service that starts");
    assert_eq!(configured("{ by = [\"year\"] }").expect("schedules"), without + 1);
    let refused = configured("{ temporal = \"year\" }").expect_err("refused");
    assert!(refused.to_string().contains("rename the column"), "{refused}");
}
