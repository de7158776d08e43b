//! What starts by itself, and what is cleared away.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use nvd_support_car::config::Config;
use nvd_support_car::dataset::Datasets;
use nvd_support_car::db::{exports, keys};
use nvd_support_car::jobs::{retention, schedule};
use serde_json::{Value, json};

use crate::app::{RECORD, TestApp, eventually};
use crate::exports::files_below;

fn time(text: &str) -> DateTime<Utc> {
    text.parse().expect("time")
}

/// Exports and when their tick was.
async fn ticks(app: &TestApp) -> Vec<String> {
    let keys = sqlx::query_scalar("SELECT split_part(dedupe_key, '@', 2) FROM jobs WHERE kind = 'export' ORDER BY id");
    keys.fetch_all(&app.pool).await.expect("jobs")
}

async fn run(app: &TestApp, now: &str) {
    let schedules = schedule::Schedules::new(schedule::all(&app.app).expect("schedules"));
    schedules.run_due(&app.app, time(now)).await;
}

/// A service whose only schedule is one of `stast`, with these keys.
async fn scheduled(keys: &str) -> TestApp {
    let text = "[export]\nslots = 0\nexport_interval_hours = 0\n[[export.schedules]]\ndataset = \"stast\"\n";
    TestApp::configured(&format!("{text}{keys}")).await
}

#[tokio::test]
async fn a_dataset_with_rows_is_exported_every_day_and_a_missed_day_is_made_up_for_once() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    run(&app, "2026-03-01T12:00:00Z").await;
    assert!(ticks(&app).await.is_empty(), "nothing was due since the first start");
    run(&app, "2026-03-02T00:00:01Z").await;
    run(&app, "2026-03-02T09:00:00Z").await;
    assert_eq!(ticks(&app).await, ["2026-03-02T00:00:00+00:00"]);
    // Down for three days.
    run(&app, "2026-03-05T18:00:00Z").await;
    run(&app, "2026-03-05T18:00:01Z").await;
    assert_eq!(ticks(&app).await, ["2026-03-02T00:00:00+00:00", "2026-03-05T00:00:00+00:00"]);
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT dataset FROM exports").fetch_all(&app.pool).await.expect("exports");
    assert_eq!(tables, ["gottcha2"], "empty datasets are left out");
}

#[tokio::test]
async fn replicas_never_run_one_tick_twice() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    run(&app, "2026-03-01T12:00:00Z").await;
    futures_util::future::join_all((0..8).map(|_| run(&app, "2026-03-02T00:00:00Z"))).await;
    assert_eq!(ticks(&app).await.len(), 1);
}

#[tokio::test]
async fn a_replica_whose_clock_was_ahead_stops_no_schedule() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    run(&app, "2026-03-01T12:00:00Z").await;
    run(&app, "2036-01-01T12:00:00Z").await;
    for now in ["2026-03-01T13:00:00Z", "2026-03-02T00:00:00Z"] {
        run(&app, now).await;
    }
    assert_eq!(ticks(&app).await, ["2036-01-01T00:00:00+00:00", "2026-03-02T00:00:00+00:00"]);
}

#[tokio::test]
async fn a_tick_runs_once_however_often_the_clock_is_looked_at() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    run(&app, "2026-03-01T12:00:00.1Z").await;
    for now in
        ["2026-03-02T00:00:00.3Z", "2026-03-02T00:00:00.8004Z", "2026-03-02T00:00:01.35Z", "2026-03-02T09:00:00.9Z"]
    {
        run(&app, now).await;
    }
    assert_eq!(ticks(&app).await, ["2026-03-02T00:00:00+00:00"]);
}

#[tokio::test]
async fn an_hour_that_the_clock_skips_is_made_up_for_an_hour_later() {
    let keys = "cron = \"0 30 2 * * *\"\ntimezone = \"Europe/Berlin\"\n";
    let app = scheduled(keys).await;
    // The clock goes from 02:00 (01:00 UTC) to 03:00.
    for now in ["2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z", "2026-03-29T01:29:59Z"] {
        run(&app, now).await;
        assert!(ticks(&app).await.is_empty(), "{now}");
    }
    for now in ["2026-03-29T01:30:00Z", "2026-03-30T00:29:59Z", "2026-03-30T00:30:00Z"] {
        run(&app, now).await;
    }
    assert_eq!(ticks(&app).await, ["2026-03-29T01:30:00+00:00", "2026-03-30T00:30:00+00:00"]);
}

#[tokio::test]
async fn ticks_of_an_hour_that_the_clock_skips_do_not_come_early() {
    let keys = "cron = \"0 */10 2 * * *\"\ntimezone = \"Europe/Berlin\"\n";
    let app = scheduled(keys).await;
    for now in ["2026-03-28T12:00:00Z", "2026-03-29T01:05:00Z", "2026-03-29T01:12:00Z", "2026-03-29T01:59:00Z"] {
        run(&app, now).await;
    }
    let expected = ["2026-03-29T01:00:00+00:00", "2026-03-29T01:10:00+00:00", "2026-03-29T01:50:00+00:00"];
    assert_eq!(ticks(&app).await, expected);
}

#[tokio::test]
async fn a_cron_expression_keeps_its_local_hour_when_the_clocks_change() {
    let keys = "cron = \"0 0 5 * * *\"\ntimezone = \"America/Chicago\"\nformat = \"csv\"\nretention_days = 7\n";
    let app = scheduled(keys).await;
    // Daylight saving time begins on 2026-03-08.
    for now in ["2026-03-07T12:00:00Z", "2026-03-08T12:00:00Z", "2026-03-09T12:00:00Z"] {
        run(&app, now).await;
    }
    assert_eq!(ticks(&app).await, ["2026-03-08T10:00:00+00:00", "2026-03-09T10:00:00+00:00"]);
    let spec: Value = app.scalar("SELECT spec FROM exports LIMIT 1").await;
    assert_eq!(spec["format"], "csv");
}

#[tokio::test]
async fn an_export_whose_time_is_over_is_removed_but_the_newest_is_kept() {
    let app = TestApp::start().await;
    for _ in 0..3 {
        app.export(json!({"table": "gottcha2"})).await;
    }
    sqlx::query("UPDATE exports SET expires_at = now() - interval '1 hour'").execute(&app.pool).await.expect("update");
    let newest = app.get("/exports").await[0]["id"].clone();
    retention::expire(&app.app).await.expect("expire");
    let left = app.get("/exports").await;
    assert_eq!(left.as_array().expect("array").len(), 1);
    assert_eq!(left[0]["id"], newest);
    assert_eq!(files_below(app.exports()).len(), 2, "one file and its manifest");
}

#[tokio::test]
async fn an_export_of_a_part_is_never_the_one_that_is_kept_nor_the_newest() {
    let app = TestApp::with(&[("export.keep_at_least", "1")]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    let whole = app.export(json!({"table": "gottcha2"})).await;
    sqlx::query("UPDATE exports SET completed_at = now() - interval '1 hour'")
        .execute(&app.pool)
        .await
        .expect("update");
    app.export(json!({"table": "gottcha2", "row_limit": 1})).await;
    sqlx::query("UPDATE exports SET expires_at = now() - interval '1 hour'").execute(&app.pool).await.expect("update");
    let ages = exports::ages(&app.pool, &["gottcha2".to_owned()]).await.expect("ages");
    assert!(matches!(&ages[..], [(dataset, age)] if dataset == "gottcha2" && *age >= 3600.0), "{ages:?}");
    retention::expire(&app.app).await.expect("expire");
    let left = app.get("/exports").await;
    assert_eq!((left.as_array().expect("array").len(), &left[0]["id"]), (1, &whole["id"]));
}

#[test]
fn schedules_that_would_take_each_others_ticks_or_files_are_refused_with_both_numbers() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("config.toml");
    let datasets = Datasets::load(None).expect("datasets");
    let configured = |schedules: &[&str]| {
        let own = |keys: &&str| format!("[[export.schedules]]\ndataset = \"stast\"\n{keys}\n");
        std::fs::write(&file, schedules.iter().map(own).collect::<String>()).expect("configuration");
        schedule::configured(&Config::load(Some(&file), [], &[]).expect("configuration"), &datasets, None)
    };
    let (five, six) = ("cron = \"0 0 5 * * *\"", "cron = \"0 0 6 * * *\"");
    let with = |cron: &str, more: &str| format!("{cron}\n{more}");
    for (first, second) in [
        (with(five, "compression = \"zstd\""), with(five, "compression = \"gzip\"")),
        (with(five, "retention_days = 3"), with(five, "timezone = \"UTC\"")),
        (with(five, "partition = { temporal = \"year\" }"), with(six, "partition = { temporal = \"year,month\" }")),
        (with(five, "partition = { temporal = \"year\" }"), with(five, "partition = { temporal = \"year\" }")),
    ] {
        let refused = configured(&[six, &first, &second]).err().expect("refused").to_string();
        assert!(refused.contains("stast: schedules 2 and 3"), "{refused}");
    }
    for (first, second) in [
        (five.to_owned(), with(five, "format = \"csv\"")),
        (five.to_owned(), with(five, "partition = { temporal = \"year\" }")),
        (with(five, "partition = { temporal = \"year\" }"), with(six, "partition = { temporal = \"year\" }")),
    ] {
        assert!(configured(&[&first, &second]).is_ok(), "{first}, {second}");
    }
}

#[tokio::test]
async fn files_that_no_export_points_at_are_swept_after_a_day_and_others_are_left_alone() {
    let app = TestApp::start().await;
    let export = app.export(json!({"table": "gottcha2"})).await;
    let of_export = app.exports().join("gottcha2").join(export["id"].as_str().expect("id"));
    let orphan = app.exports().join("gottcha2").join(uuid::Uuid::now_v7().to_string()).join("1/lost.parquet#1");
    let dead_attempt = of_export.join("0/half.parquet");
    let fresh = app.exports().join("gottcha2").join(uuid::Uuid::now_v7().to_string()).join("1/new.parquet");
    let foreign = app.exports().join("notes/of/somebody/else.txt");
    for path in [&orphan, &dead_attempt, &fresh, &foreign] {
        std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        let file = std::fs::File::create(path).expect("file");
        if path != &fresh {
            file.set_modified(SystemTime::now() - Duration::from_hours(25)).expect("time");
        }
    }
    retention::sweep(&app.app).await.expect("sweep");
    assert_eq!([orphan.exists(), dead_attempt.exists(), fresh.exists(), foreign.exists()], [false, false, true, true]);
    assert_eq!(app.download(&export).await.len() as u64, export["size_bytes"].as_u64().expect("size"));
}

#[tokio::test]
async fn exports_and_jobs_are_listed_by_the_clock_of_the_database() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    let mut expected = Vec::new();
    for _ in 0..4 {
        expected.insert(0, app.trigger(json!({"table": "stast"})).await["export_id"].clone());
    }
    // The ids of the second and the third sort as if a clock had been ahead.
    for (position, time) in [(0, "2026-01-01"), (1, "2026-01-03"), (2, "2026-01-02"), (3, "2026-01-04")] {
        let id: uuid::Uuid = serde_json::from_value(expected[position].clone()).expect("id");
        for table in [
            "exports SET created_at = $1 WHERE id",
            "jobs SET created_at = $1 WHERE id = (SELECT job_id FROM exports e WHERE e.id",
        ] {
            let end = if table.starts_with("jobs") { ")" } else { "" };
            let sql = sqlx::query(sqlx::AssertSqlSafe(format!("UPDATE {table} = $2{end}")));
            sql.bind(time.parse::<chrono::NaiveDate>().expect("day").and_time(chrono::NaiveTime::MIN).and_utc())
                .bind(id)
                .execute(&app.pool)
                .await
                .expect("update");
        }
    }
    expected = [3, 1, 2, 0].map(|position| expected[position].clone()).to_vec();
    let (mut exports, mut jobs) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let page = |path: &str, last: Option<&Value>| {
            let cursor = last.map(|last| format!("&cursor={}", last.as_str().expect("id"))).unwrap_or_default();
            format!("{path}?status=pending&limit=1{cursor}")
        };
        exports.push(app.get(&page("/exports", exports.last())).await[0]["id"].clone());
        let job = app.get(&page("/jobs", jobs.last().map(|(id, _)| id))).await[0].clone();
        jobs.push((job["job_id"].clone(), job["export_id"].clone()));
    }
    assert_eq!(exports, expected);
    assert_eq!(jobs.into_iter().map(|(_, export)| export).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn in_the_storage_of_another_database_nothing_is_swept() {
    let (first, later) = (TestApp::start().await, TestApp::start().await);
    let export = first.export(json!({"table": "gottcha2"})).await;
    retention::sweep(&first.app).await.expect("sweep");
    // A database that was made anew finds the exports of the one that was lost.
    let mut app = later.app.clone();
    app.storage = first.app.storage.clone();
    for path in files_below(first.exports()) {
        let file = std::fs::File::options().write(true).open(path).expect("file");
        file.set_modified(SystemTime::now() - Duration::from_hours(25)).expect("time");
    }
    retention::sweep(&app).await.expect("sweep");
    assert_eq!(first.download(&export).await.len() as u64, export["size_bytes"].as_u64().expect("size"));
    // Nobody has said whose these are.
    std::fs::remove_file(first.exports().join("_database")).expect("removed");
    retention::sweep(&app).await.expect("sweep");
    assert_eq!(first.download(&export).await.len() as u64, export["size_bytes"].as_u64().expect("size"));
    std::fs::write(first.exports().join("_database"), keys::database(&later.pool).await.expect("name")).expect("taken");
    retention::sweep(&app).await.expect("sweep");
    assert_eq!(files_below(first.exports()).len(), 1);
}

#[tokio::test]
async fn a_job_whose_worker_has_vanished_is_taken_over_and_given_up_after_its_attempts() {
    let app = TestApp::with(&[("export.lease", "3s"), ("export.slots", "0"), ("export.max_attempts", "2")]).await;
    let made = app.trigger(json!({"table": "gottcha2"})).await;
    let vanish = "UPDATE jobs SET state = 'running', attempt = attempt + 1, lease_until = now() - interval '1 second'";
    sqlx::query(vanish).execute(&app.pool).await.expect("update");
    sqlx::query(vanish).execute(&app.pool).await.expect("update");
    let mut working = app.app.clone();
    let mut config = (*working.config).clone();
    config.export.slots = 1;
    working.config = std::sync::Arc::new(config);
    let _workers = nvd_support_car::jobs::worker::Workers::start(&working);
    let job = app.finished(made["job_id"].as_str().expect("job")).await;
    assert_eq!(job["status"], "failed", "{job}");
    assert!(job["error"].as_str().expect("error").contains("vanished"), "{job}");
    eventually("nothing is written", async || files_below(app.exports()).is_empty()).await;
}
