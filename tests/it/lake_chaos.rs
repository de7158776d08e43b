//! Partitioned datasets while everything moves: clients that store, replace and remove at random, and kill -9.

use nix::sys::signal::Signal;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::app::{RECORD, TestApp, eventually};
use crate::exports::{files_below, stored};
use crate::lake::{Lake, files_of, rows_of, store_at, stored_rows};
use crate::process::binary;

/// One client that stores, replaces and removes results of its own keys, and of keys that others use too.
async fn client(app: &TestApp, number: u64, is_over: &AtomicBool) {
    let mut random = SmallRng::seed_from_u64(number);
    let mut own: Vec<i64> = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let rows = random.random_range(1..200);
        let body = format!("{RECORD}\n").repeat(rows);
        match random.random_range(0..10) {
            0..6 => {
                let path = format!("/ingest/gottcha2/{number}-{}", random.random::<u32>());
                let answer = app.request("PUT", &path).body(body).send().await.expect("answer");
                let receipt: serde_json::Value = answer.json().await.expect("receipt");
                own.push(receipt["submission_id"].as_i64().expect("id"));
            }
            6..9 => {
                let path = format!("/ingest/gottcha2/shared-{}?on_conflict=replace", random.random_range(0..10));
                app.request("PUT", &path).body(body).send().await.expect("answer");
            }
            _ if own.is_empty() => {}
            _ => {
                let id = own.swap_remove(random.random_range(0..own.len()));
                app.request("DELETE", &format!("/submissions/{id}")).send().await.expect("answer");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_clients_that_store_replace_and_remove_end_in_files_that_equal_the_table() {
    let app = Arc::new(TestApp::with(&[("export.batch_size", "1000")]).await);
    let lakes = [Lake::new(&json!({"temporal": "year,month,day,hour,minute"})), Lake::new(&json!({"by": ["level"]}))];
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|number| {
            let (app, is_over) = (Arc::clone(&app), Arc::clone(&is_over));
            tokio::spawn(async move { client(&app, number, &is_over).await })
        })
        .collect();
    let begun = std::time::Instant::now();
    let mut changed = 0;
    while begun.elapsed() < Duration::from_secs(12) {
        for lake in &lakes {
            changed += lake.update(&app).await.partitions.len();
            // What is named is there, whole, and nothing twice.
            let rows = lake.rows();
            assert!(rows.windows(2).all(|pair| pair[0] != pair[1]), "a row came twice");
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("client");
    }
    assert!(changed > 10, "{changed}");
    for lake in &lakes {
        lake.update(&app).await;
        assert!(lake.rows() == stored_rows(&app).await, "the files differ from the table");
    }
}

/// Rows of each day of a month.
async fn store_days(app: &TestApp) {
    for day in 1..=28 {
        store_at(app, &format!("S{day}"), 3_000, &format!("2026-02-{day:02}T12:00:00Z")).await;
    }
}

/// The command that writes them by day.
fn export(app: &TestApp, folder: &Path, out: &Path) -> Command {
    let mut command = binary(&folder.join("data"));
    command.env("DATABASE_URL", app.database_url()).args(["export", "gottcha2", "--temporal", "year,month,day"]);
    command.arg("-o").arg(out).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_killed_at_any_time_is_made_whole_by_the_next() {
    let app = TestApp::start().await;
    store_days(&app).await;
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("lake");
    let command = || {
        let mut command = export(&app, folder.path(), &out);
        command.args(["--historical", "--set", "lake.grace=0s"]);
        command
    };
    let mut named = 0;
    for wait in [150, 300, 450, 600, 800, 1000, 1300] {
        let mut child = command().spawn().expect("start");
        tokio::time::sleep(Duration::from_millis(wait)).await;
        child.kill().expect("kill");
        child.wait().expect("wait");
        let manifest = std::fs::read(out.join("gottcha2/_manifest.json")).unwrap_or_default();
        let partitions = String::from_utf8(manifest).expect("UTF-8").matches("\"digest\"").count();
        assert!(partitions >= named, "what was made sure of was lost");
        named = partitions;
        if named == 28 {
            // Something to do for those that follow: all of it anew, in part.
            stored(&app, 1, 500).await;
        }
    }
    assert!(command().status().expect("run").success());
    assert!(rows_of(&out) == stored_rows(&app).await, "the files differ from the table");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_killed_in_any_phase_is_made_whole_by_the_next() {
    let app = TestApp::start().await;
    store_days(&app).await;
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("lake");
    let command = |grace: &str| {
        let mut command = export(&app, folder.path(), &out);
        command.args(["--set", &format!("lake.grace={grace}")]);
        command
    };
    let content = |file: &str| std::fs::read_to_string(out.join(file)).unwrap_or_default();
    let waits = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
        WHERE NOT granted AND datname = current_database()";
    assert!(command("0s").status().expect("run").success());
    for (index, phase) in ["comparing", "writing", "catalogue", "waiting for readers"].into_iter().enumerate() {
        // Every run has something to write, to name and to remove.
        let body = format!("{RECORD}\n").repeat(100 + index);
        let path = "/ingest/gottcha2/replaced?on_conflict=replace";
        assert!(app.request("PUT", path).body(body).send().await.expect("answer").status().is_success());
        let before = (content("gottcha2/_manifest.json"), content("duckdb.sql"));
        let files = files_below(&out).len();
        // What the phase needs is held back, so that the process stands still in it; and to write all anew takes its time.
        let mut hold = app.pool.begin().await.expect("transaction");
        let held = match phase {
            "comparing" => "LOCK TABLE submissions".to_owned(),
            "catalogue" => "SELECT pg_advisory_xact_lock(hashtextextended('', 6))".to_owned(),
            _ => "SELECT 1".to_owned(),
        };
        sqlx::query(AssertSqlSafe(held)).execute(&mut *hold).await.expect("hold");
        let mut killed = command(if phase == "waiting for readers" { "60s" } else { "0s" });
        if phase == "writing" {
            killed.arg("--overwrite");
        }
        let mut child = killed.spawn().expect("start");
        eventually(phase, async || match phase {
            "comparing" => app.scalar::<i64>(waits).await > 0,
            "writing" => (0..50).any(|_| {
                std::thread::sleep(Duration::from_millis(1));
                files_below(&out).len() > files
            }),
            "catalogue" => content("gottcha2/_manifest.json") != before.0,
            _ => content("duckdb.sql") != before.1,
        })
        .await;
        assert!(child.try_wait().expect("state").is_none(), "{phase}: the run had ended before it was killed");
        child.kill().expect("kill");
        child.wait().expect("wait");
        hold.rollback().await.expect("rollback");
        let is_switched = content("gottcha2/_manifest.json") != before.0;
        assert_eq!(is_switched, ["catalogue", "waiting for readers"].contains(&phase), "{phase}: killed in another");
        assert!(command("0s").status().expect("run").success(), "{phase}");
        assert!(rows_of(&out) == stored_rows(&app).await, "{phase}: the files differ from the table");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_run_that_is_interrupted_leaves_nothing_behind() {
    let app = TestApp::start().await;
    store_days(&app).await;
    let folder = tempfile::tempdir().expect("folder");
    let mut interrupted = 0;
    for (wait, signal) in [(400, Signal::SIGINT), (600, Signal::SIGTERM), (800, Signal::SIGTERM)] {
        let out = folder.path().join(format!("lake{wait}"));
        let mut child = export(&app, folder.path(), &out).spawn().expect("start");
        eventually("a file is written", async || out.exists() && !files_below(&out).is_empty()).await;
        tokio::time::sleep(Duration::from_millis(wait - 400)).await;
        let id = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(id, signal).expect("signal");
        child.wait().expect("wait");
        let left = files_of(&out);
        if left.keys().any(|path| path.ends_with("_manifest.json")) {
            // All was written before the interruption.
            assert!(rows_of(&out) == stored_rows(&app).await, "the files differ from the table");
        } else {
            interrupted += 1;
            let unfinished = left.keys().all(|path| path.contains('#'));
            assert!(unfinished, "{:?}", left.keys());
            // And the next one is not in its way.
            let mut command = export(&app, folder.path(), &out);
            assert!(command.status().expect("run").success());
            assert!(rows_of(&out) == stored_rows(&app).await, "the files differ from the table");
        }
    }
    assert!(interrupted > 0, "every run had ended before it was interrupted");
}
