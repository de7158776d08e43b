//! Clients that go away, connections that break, and what of either is left to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use nvd_support_car::config::DatabaseConfig;
use nvd_support_car::db;
use serde_json::Value;
use sqlx::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::app::{RECORD, TOKEN, TestApp, eventually, problem};

/// Holds a lock on the table until the transaction ends.
async fn lock(connection: &mut sqlx::PgConnection) -> sqlx::Transaction<'_, sqlx::Postgres> {
    let mut lock = connection.begin().await.expect("begin");
    sqlx::query("LOCK gottcha2_full").execute(&mut *lock).await.expect("lock");
    lock
}

/// Sends a whole request, and goes away without its answer once PostgreSQL has to wait for it.
async fn send_and_go(app: &TestApp, method: &str, path: &str, body: &str) {
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let before: i64 = app.scalar(waiting).await;
    let mut stream = TcpStream::connect(app.address).await.expect("connect");
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: car\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("request");
    eventually("it waits", async || app.scalar::<i64>(waiting).await > before).await;
    drop(stream);
    tokio::time::sleep(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn an_upload_that_postgresql_refuses_and_we_too_spoils_no_connection_for_others() {
    let app = TestApp::start().await;
    sqlx::query("ALTER TABLE gottcha2_full ADD CHECK (sample_id <> 'bad')").execute(&app.pool).await.expect("check");
    join_all((0..8).map(|_| app.request("GET", "/submissions").send())).await;
    for _ in 0..2 {
        let mut body = RECORD.replace("S1", "bad") + "\n";
        body += &format!("{RECORD}\n").repeat(40_000);
        body += "{";
        problem(app.post("/ingest-gottcha2", body).send().await.expect("answer"), 422).await;
    }
    for sample in 0..40 {
        let receipt = app.store("/ingest-gottcha2", RECORD.replace("S1", &format!("S{sample}"))).await;
        assert_eq!(receipt["replayed"], false);
    }
    assert_eq!((app.count("gottcha2_full").await, app.count("submissions").await), (40, 40));
}

#[tokio::test]
async fn an_upload_takes_no_part_in_a_transaction_that_was_left_open() {
    let app = TestApp::start().await;
    join_all((0..8).map(async |_| {
        let mut connection = app.pool.acquire().await.expect("connection");
        sqlx::raw_sql("BEGIN; SELECT pg_sleep(2)").execute(&mut *connection).await.expect("begun");
    }))
    .await;
    let receipt = app.store("/ingest-gottcha2", RECORD).await;
    let began: DateTime<Utc> = app.scalar("SELECT created_at FROM gottcha2_full").await;
    let now: DateTime<Utc> = app.scalar("SELECT clock_timestamp()").await;
    assert!(now - began < TimeDelta::seconds(2), "{began} is long before {now}: {receipt}");
}

/// Stands before a database: of the first COMMIT after a COPY it tells neither the client, whose connection it cuts, nor,
/// for a while, the server.
async fn cut_at_commit(listener: TcpListener, server: String) {
    let is_first = Arc::new(AtomicBool::new(true));
    while let Ok((client, _)) = listener.accept().await {
        let server = TcpStream::connect(&server).await.expect("database");
        let is_first = Arc::clone(&is_first);
        tokio::spawn(async move {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let down = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            let mut buffer = vec![0; 1 << 16];
            let mut has_copied = false;
            while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                let part = &buffer[..count];
                let holds = |word: &[u8]| part.windows(word.len()).any(|window| window == word);
                has_copied |= holds(b"PGCOPY");
                if has_copied && holds(b"COMMIT\0") && is_first.swap(false, Ordering::Relaxed) {
                    down.abort();
                    drop(from_client);
                    drop(down.await);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    to_server.write_all(part).await.expect("commit");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    return;
                }
                to_server.write_all(part).await.expect("part");
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_commit_was_not_answered_is_to_be_sent_again_and_is_there() {
    let app = TestApp::behind(&[], cut_at_commit).await;
    let answer = problem(app.post("/ingest-gottcha2", RECORD).send().await.expect("answer"), 503).await;
    assert!(answer["detail"].as_str().expect("detail").contains("again"), "{answer}");
    eventually("the COMMIT has arrived", async || app.count("submissions").await == 1).await;
    assert_eq!(app.store("/ingest-gottcha2", RECORD).await["replayed"], true);
    assert_eq!(app.count("gottcha2_full").await, 1);
}

#[tokio::test]
async fn an_upload_whose_client_is_gone_counts_among_those_that_wait() {
    let app = TestApp::with(&[("ingest.queue", "1")]).await;
    let mut aside = sqlx::PgConnection::connect(&app.database_url()).await.expect("connection");
    let lock = lock(&mut aside).await;
    send_and_go(&app, "POST", "/ingest-gottcha2", RECORD).await;
    let other = app.post("/ingest-gottcha2", RECORD).timeout(Duration::from_secs(10));
    let refused = problem(other.send().await.expect("answer"), 503).await;
    assert!(refused["detail"].as_str().expect("detail").contains("too many uploads"), "{refused}");
    lock.rollback().await.expect("rollback");
    eventually("it is stored", async || app.count("submissions").await == 1).await;
}

#[tokio::test]
async fn a_request_whose_client_is_gone_is_carried_out_and_leaves_no_transaction_open() {
    let app = TestApp::start().await;
    let receipt: Value = app.store("/ingest-gottcha2", RECORD).await;
    let mut aside = sqlx::PgConnection::connect(&app.database_url()).await.expect("connection");
    let lock = lock(&mut aside).await;
    send_and_go(&app, "DELETE", &format!("/submissions/{}", receipt["submission_id"]), "").await;
    lock.rollback().await.expect("rollback");
    eventually("it is removed", async || app.total().await == 0).await;
    let open =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'";
    assert_eq!(app.scalar::<i64>(open).await, 0);
}

#[tokio::test]
async fn connections_are_used_again_unless_a_transaction_is_open_on_them() {
    let app = TestApp::start().await;
    let config = DatabaseConfig { max_connections: 1, ..app.app.config.database.clone() };
    let pool = db::pool(&app.database_url(), &config).expect("pool");
    let process = async || sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()").fetch_one(&pool).await.expect("pid");
    let first = process().await;
    assert_eq!(process().await, first);
    sqlx::query("BEGIN").execute(&pool).await.expect("begin");
    assert_ne!(process().await, first);
}
