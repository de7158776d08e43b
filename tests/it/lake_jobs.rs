//! Partitioned datasets by the service itself: on request, and every day.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use nvd_support_car::config::Config;
use nvd_support_car::dataset::Datasets;
use nvd_support_car::db::jobs::{self, Lease};
use nvd_support_car::db::lake;
use nvd_support_car::jobs::{EXPORTS, schedule};
use serde_json::{Value, json};

use crate::app::{RECORD, TestApp, eventually, problem};
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
    // A replica that did not do it, or was started since, tells so too.
    let (dataset, at) = &lake::updated(&app.pool, "lake").await.expect("times")[0];
    assert!(dataset == "gottcha2" && (Utc::now().timestamp() as f64 - at).abs() < 60.0, "{dataset} {at}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_while_a_run_works_is_done_by_a_run_that_begins_after_it() {
    let app = TestApp::with(&[("lake.grace", "4s")]).await;
    let request = json!({"table": "gottcha2", "partition": {"temporal": "year,month,day"}});
    let trigger = async || app.trigger(request.clone()).await["job_id"].as_str().expect("job").to_owned();
    let put = async |rows: usize| {
        let path = "/ingest/gottcha2/one?on_conflict=replace";
        let answer = app.request("PUT", path).body(format!("{RECORD}\n").repeat(rows)).send().await.expect("answer");
        assert_eq!(answer.status(), 200);
    };
    put(3).await;
    app.finished(&trigger().await).await;
    // A run that has taken its snapshot, and waits for readers of what it has replaced.
    put(4).await;
    let first = trigger().await;
    eventually("it waits for readers", async || {
        app.get(&format!("/jobs/{first}")).await["progress"]["phase"] == "waiting for readers"
    })
    .await;
    app.store("/ingest-gottcha2", RECORD.replace("S1", "S2")).await;
    let second = trigger().await;
    assert_eq!(trigger().await, second, "both can be done by one run");
    assert_eq!(app.get(&format!("/jobs/{second}")).await["status"], "pending");
    // Cut in another way, it must not wait behind what would refuse it.
    let other = json!({"table": "gottcha2", "partition": {"temporal": "year"}});
    let answer = app.request("POST", "/exports/trigger").json(&other).send().await.expect("answer");
    assert!(problem(answer, 409).await["detail"].as_str().expect("detail").contains(&first));
    assert_eq!(app.finished(&second).await["status"], "completed");
    assert_eq!(app.get(&format!("/jobs/{first}")).await["status"], "completed");
    assert_eq!(rows_of(&app.exports().join("lake")), stored_rows(&app).await);
}

#[tokio::test]
async fn a_run_waits_for_the_one_that_has_begun_also_while_that_is_to_be_tried_again() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    let request = json!({"table": "gottcha2", "partition": {"temporal": "year,month,day"}});
    let claim = async || {
        let job = jobs::claim(&app.pool, "worker", Duration::from_secs(60), EXPORTS, None).await.expect("claim");
        job.map(|job| (job.id.to_string(), Lease::new(job.id, job.attempt)))
    };
    let first = app.trigger(request.clone()).await["job_id"].clone();
    let (claimed, lease) = claim().await.expect("a job");
    assert_eq!(claimed, first);
    let second = app.trigger(request.clone()).await["job_id"].clone();
    assert_ne!(second, first);
    assert!(claim().await.is_none(), "two runs at once");
    assert!(jobs::retry(&app.pool, &lease, Duration::from_secs(1), "away").await.expect("retry"));
    assert!(claim().await.is_none(), "two runs at once");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (claimed, lease) = claim().await.expect("a job");
    assert_eq!(claimed, first);
    assert!(jobs::complete(&mut app.pool.acquire().await.expect("connection"), &lease).await.expect("complete"));
    assert_eq!(claim().await.expect("a job").0, second);
}

#[tokio::test]
async fn a_job_that_fails_for_now_after_it_was_cancelled_ends_without_a_wait() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    let made = app.trigger(json!({"table": "gottcha2"})).await;
    let claim = async || jobs::claim(&app.pool, "worker", Duration::from_secs(60), EXPORTS, None).await.expect("claim");
    let job = claim().await.expect("a job");
    assert_eq!(job.id.to_string(), made["job_id"]);
    assert!(jobs::cancel(&app.pool, job.id).await.expect("cancel"));
    let lease = Lease::new(job.id, job.attempt);
    assert!(jobs::retry(&app.pool, &lease, Duration::from_secs(300), "away").await.expect("retry"));
    assert!(claim().await.expect("the same job").cancel_requested);
}

#[tokio::test]
async fn a_job_waits_for_another_writer_however_long_and_counts_no_attempt() {
    let app = TestApp::with(&[("export.max_attempts", "1")]).await;
    store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    let mut hold = app.pool.begin().await.expect("transaction");
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('gottcha2', 6))";
    sqlx::query(lock).execute(&mut *hold).await.expect("lock");
    let made = app.trigger(json!({"table": "gottcha2", "partition": {"temporal": "year"}})).await;
    let path = format!("/jobs/{}", made["job_id"].as_str().expect("job"));
    eventually("it runs", async || app.get(&path).await["status"] == "running").await;
    tokio::time::sleep(Duration::from_secs(42)).await;
    eventually("it does not run any more", async || app.get(&path).await["status"] != "running").await;
    let job = app.get(&path).await;
    assert_eq!(job["status"], "pending", "{job}");
    assert!(job["error"].as_str().expect("error").contains("another process is writing"), "{job}");
    hold.rollback().await.expect("rollback");
    assert_eq!(app.finished(made["job_id"].as_str().expect("job")).await["status"], "completed");
    assert_eq!(rows_of(&app.exports().join("lake")), stored_rows(&app).await);
}

#[tokio::test]
async fn the_database_looks_after_connections_whose_machine_may_vanish() {
    let app = TestApp::start().await;
    let setting =
        async |name: &str| app.scalar::<String>(&format!("SELECT current_setting('tcp_keepalives_{name}')")).await;
    assert_eq!([setting("idle").await, setting("interval").await, setting("count").await], ["30", "10", "3"]);
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
async fn a_schedule_whose_job_another_stands_in_the_way_of_tries_again_after_a_minute() {
    let app = TestApp::with(&[("export.slots", "0"), ("export.export_interval_hours", "0")]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    let other = json!({"table": "gottcha2", "partition": {"temporal": "year,month,day"}, "overwrite": true});
    app.trigger(other).await;
    let schedules = schedule::Schedules::new(schedule::all(&app.app).expect("schedules"));
    let due: DateTime<Utc> = "2026-03-08T05:00:00Z".parse().expect("time");
    let mut made = Vec::new();
    for (seconds, other_ends) in [(-1, false), (0, true), (59, false), (60, false)] {
        schedules.run_due(&app.app, due + TimeDelta::seconds(seconds)).await;
        if other_ends {
            sqlx::query("UPDATE jobs SET state = 'completed'").execute(&app.pool).await.expect("update");
        }
        made.push(app.count("jobs").await);
    }
    assert_eq!(made, [1, 1, 1, 2]);
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
