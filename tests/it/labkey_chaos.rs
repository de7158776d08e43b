//! Everything at once: two replicas, one of them killed again and again, and a LabKey of which every third request goes
//! wrong. Each row is there once in the end.

use std::path::Path;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::app::{create_database, gzip};
use crate::labkey::{holds_once, inserting, merging, records, settings};
use crate::labkey_server::{Fault, LabKeyServer, List};
use crate::process::{Served, folder, serving};

const LARGE: usize = 16;
const LARGE_ROWS: usize = 2_500;
const SMALL: usize = 100;
const SMALL_ROWS: usize = 100;
/// How often the replica that delivers is killed.
const KILLS: usize = 3;
const ROWS: usize = LARGE * LARGE_ROWS + SMALL * SMALL_ROWS;

/// A fault for every third request.
fn faults(labkey: &LabKeyServer) {
    let mut random = SmallRng::seed_from_u64(4);
    labkey.inject_with(move |_| {
        if random.random_range(0..3) > 0 {
            return None;
        }
        Some(match random.random_range(0..10) {
            0 | 1 => Fault::Drop,
            2 | 3 => Fault::DropAfter,
            4 => Fault::Truncate,
            5 => Fault::Error,
            6 => Fault::Unavailable(None),
            7 => Fault::DelayBefore(Duration::from_millis(random.random_range(1..150))),
            8 => Fault::Csrf,
            _ => Fault::NotReady,
        })
    });
}

fn serve(folder: &Path, database_url: &str, labkey: &LabKeyServer) -> Served {
    let mut command = serving(folder, database_url);
    command.args(["--set", "export.lease=3s", "--set", "labkey.batch_size=500"]);
    for (key, value) in settings(&labkey.url) {
        command.args(["--set", &format!("{key}={value}")]);
    }
    Served::start(&mut command)
}

async fn ask(client: &reqwest::Client, method: &str, url: String) -> Option<Value> {
    let request = client.request(method.parse().expect("method"), url).bearer_auth("t");
    request.send().await.ok()?.json().await.ok()
}

/// The replica that has a sync in hand, within ten seconds.
async fn syncing(pool: &sqlx::PgPool, replicas: &[Option<Served>; 2]) -> Option<usize> {
    let query = "SELECT worker FROM jobs WHERE kind = 'labkey_sync' AND state = 'running'";
    for _ in 0..200 {
        let worker: Option<String> = sqlx::query_scalar(query).fetch_optional(pool).await.expect("jobs");
        let process = worker.as_ref().and_then(|worker| worker.split(':').nth(1));
        let holds = |replica: &Option<Served>| replica.as_ref().map(|one| one.id().to_string()).as_deref() == process;
        let replica = process.and_then(|_| replicas.iter().position(holds));
        if replica.is_some() {
            return replica;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    None
}

async fn every_row_arrives_once(list: List) {
    let labkey = LabKeyServer::start().await;
    labkey.add(list);
    let folders = [folder(), folder()];
    let (_, database_url) = create_database().await;
    let start = |replica: usize| serve(folders[replica].path(), &database_url, &labkey);
    let mut replicas = [Some(start(0)), Some(start(1))];
    let url = |replicas: &[Option<Served>; 2], replica: usize| replicas[replica].as_ref().expect("running").url.clone();
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let put = async |name: String, rows: usize| {
        let url = format!("{}/ingest/gottcha2/{name}", url(&replicas, 0));
        let answer = client.put(url).bearer_auth("t").body(gzip(records(&name, rows))).send().await.expect("answer");
        assert_eq!(answer.status(), 200);
    };
    for index in 0..LARGE {
        put(format!("large-{index}"), LARGE_ROWS).await;
    }
    for index in 0..SMALL {
        put(format!("small-{index}"), SMALL_ROWS).await;
    }
    faults(&labkey);
    let pool = sqlx::PgPool::connect(&database_url).await.expect("pool");
    for _ in 0..KILLS {
        let sync = format!("{}/labkey/sync?dataset=gottcha2", url(&replicas, 0));
        tokio::spawn(client.post(sync).bearer_auth("t").send());
        // None when all is delivered by now.
        let Some(victim) = syncing(&pool, &replicas).await else { break };
        // It shall be in the middle of something.
        tokio::time::sleep(Duration::from_millis(500)).await;
        replicas[victim].take().expect("running").kill();
        replicas[victim] = Some(start(victim));
    }
    let mut stats = Value::Null;
    for _ in 0..600 {
        ask(&client, "POST", format!("{}/labkey/sync?dataset=gottcha2", url(&replicas, 1))).await;
        stats = ask(&client, "GET", format!("{}/labkey/stats", url(&replicas, 0))).await.expect("stats");
        if stats["pending_count"] == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(stats["pending_count"], 0, "{stats}");
    // One more look for requests that arrived after they were given up for lost.
    labkey.inject_with(|_| None);
    ask(&client, "POST", format!("{}/labkey/sync?dataset=gottcha2", url(&replicas, 1))).await.expect("report");
    assert_eq!((&stats["failed_count"], &stats["uploaded_count"]), (&Value::from(0), &Value::from(ROWS)), "{stats}");
    holds_once(&labkey, ROWS);
    let seen = labkey.seen();
    let faulty = seen.iter().filter(|seen| seen.fault.is_some()).count();
    assert!(faulty * 4 > seen.len(), "{faulty} of {} requests went wrong", seen.len());
    let taken: i64 = sqlx::query_scalar("SELECT max(attempt)::bigint FROM jobs WHERE kind = 'labkey_sync'")
        .fetch_one(&pool)
        .await
        .expect("attempts");
    assert!(taken > 1, "no sync was ever taken over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_third_request_going_wrong_and_a_replica_killed_each_row_is_inserted_once() {
    every_row_arrives_once(inserting()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_third_request_going_wrong_and_a_replica_killed_each_row_is_merged_once() {
    every_row_arrives_once(merging()).await;
}
