//! A service for one test: its own database on the test run's PostgreSQL, the real router on a real port.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use nvd_support_car::app::App;
use nvd_support_car::config::Config;
use nvd_support_car::http;
use nvd_support_car::jobs::worker::Workers;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tempfile::TempDir;

use crate::ephemeral::EphemeralCluster;

/// The token with all scopes of every test service.
pub const TOKEN: &str = "test-token";

/// A running service.
pub struct TestApp {
    pub url: String,
    pub address: SocketAddr,
    pub pool: PgPool,
    pub app: App,
    client: Client,
    database: String,
    serving: tokio::task::JoinHandle<()>,
    _workers: Workers,
    /// Where exports are written, unless the test says otherwise.
    exports: TempDir,
}

impl TestApp {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A service with some configuration keys set.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        let (database, database_url) = create_database().await;
        Self::over(database, database_url, None, settings).await
    }

    /// A service with a configuration file that holds this.
    pub async fn configured(text: &str) -> Self {
        let (database, database_url) = create_database().await;
        let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("file");
        std::fs::write(file.path(), text).expect("configuration");
        Self::over(database, database_url, Some(file.path()), &[]).await
    }

    /// A service with something between it and PostgreSQL.
    pub async fn behind<F>(settings: &[(&str, &str)], relay: impl FnOnce(tokio::net::TcpListener, String) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (database, url) = create_database().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let server = server_of(&url);
        let url = url.replace(&server, &listener.local_addr().expect("address").to_string());
        tokio::spawn(relay(listener, server));
        Self::over(database, url, None, settings).await
    }

    async fn over(database: String, database_url: String, file: Option<&Path>, settings: &[(&str, &str)]) -> Self {
        let mut overrides: Vec<(String, String)> =
            settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        overrides.push(("auth.bearer_token".into(), TOKEN.into()));
        overrides.push(("database.max_connections".into(), "8".into()));
        let exports = tempfile::tempdir().expect("folder");
        if !settings.iter().any(|(key, _)| *key == "export.storage") {
            overrides.push(("export.storage".into(), exports.path().display().to_string()));
        }
        let config = Config::load(file, [], &overrides).expect("configuration");
        let app = App::new(config, &database_url).expect("app");
        app.prepare().await.expect("prepare");
        app.is_ready.store(true, Ordering::Release);
        let pool = app.pool.clone();
        let workers = Workers::start(&app);
        let router = http::router(app.clone()).expect("router");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serve") });
        let client = Client::builder().no_proxy().build().expect("client");
        let url = format!("http://{address}");
        Self { url, address, pool, app, client, database, serving, _workers: workers, exports }
    }

    /// The folder of the exports.
    pub fn exports(&self) -> &Path {
        self.exports.path()
    }

    /// Where its database is, for the real binary.
    pub fn database_url(&self) -> String {
        format!("{}{}", cluster().base_url, self.database)
    }

    /// Asks for an export, and answers with its job.
    pub async fn trigger(&self, request: Value) -> Value {
        let response = self.request("POST", "/exports/trigger").json(&request).send().await.expect("answer");
        let status = response.status();
        let text = response.text().await.expect("text");
        assert_eq!(status, 202, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Asks for an export, and waits until its job has ended.
    pub async fn export(&self, request: Value) -> Value {
        let made = self.trigger(request).await;
        self.finished(made["job_id"].as_str().expect("job")).await;
        self.get(&format!("/exports/{}", made["export_id"].as_str().expect("export"))).await
    }

    /// Waits until a job has ended.
    pub async fn finished(&self, job: &str) -> Value {
        for _ in 0..1200 {
            let found = self.get(&format!("/jobs/{job}")).await;
            if !["pending", "running"].contains(&found["status"].as_str().expect("status")) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("job {job} did not end");
    }

    /// The bytes behind a link, without a token.
    pub async fn download(&self, export: &Value) -> Vec<u8> {
        let url = export["download_url"].as_str().expect("link");
        let response = self.client.get(url).send().await.expect("answer");
        assert_eq!(response.status(), 200);
        response.bytes().await.expect("bytes").to_vec()
    }

    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = method.parse().expect("method");
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(TOKEN)
    }

    pub fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> RequestBuilder {
        self.request("POST", path).body(body.into())
    }

    /// Sends a body that must be stored, and answers with its receipt.
    pub async fn store(&self, path: &str, body: impl Into<Vec<u8>>) -> Value {
        let response = self.post(path, body).send().await.expect("answer");
        let status = response.status();
        let text = response.text().await.expect("text");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("receipt")
    }

    /// Sends a body that must be refused, and answers with the problem; nothing may be stored by it.
    pub async fn refuse(&self, status: u16, path: &str, body: impl Into<Vec<u8>>) -> Value {
        let response = self.post(path, body).send().await.expect("answer");
        let problem = problem(response, status).await;
        assert_eq!(self.total().await, 0, "something was stored");
        problem
    }

    pub async fn get(&self, path: &str) -> Value {
        let response = self.request("GET", path).send().await.expect("answer");
        let status = response.status();
        let text = response.text().await.expect("text");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// The number of rows in a table.
    pub async fn count(&self, table: &str) -> i64 {
        self.scalar(&format!("SELECT count(*) FROM {table}")).await
    }

    pub async fn scalar<T>(&self, sql: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&self.pool).await.expect(sql)
    }

    /// All submissions and rows of all datasets.
    pub async fn total(&self) -> i64 {
        let tables = ["submissions", "gottcha2_full", "stast_table", "nvd_blast", "results"];
        let mut total = 0;
        for table in tables {
            total += self.count(table).await;
        }
        total
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.serving.abort();
        let database = self.database.clone();
        // Not waited for: a connection that is logging in needs this runtime to go away. The last ones end with the server.
        std::thread::spawn(move || {
            blocking(async move {
                let mut admin = PgConnection::connect(&cluster().admin_url).await.expect("admin");
                let sql = format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)");
                sqlx::query(AssertSqlSafe(sql)).execute(&mut admin).await.expect("drop database");
            });
        });
    }
}

/// Checks that an answer is a problem of that status, and answers with its body.
pub async fn problem(response: Response, status: u16) -> Value {
    let found = response.status().as_u16();
    let kind = response.headers().get("content-type").cloned();
    let text = response.text().await.expect("text");
    assert_eq!(found, status, "{text}");
    assert_eq!(kind.expect("content type"), "application/problem+json", "{text}");
    let problem: Value = serde_json::from_str(&text).expect("JSON");
    for member in ["type", "title", "status", "detail", "instance"] {
        assert!(problem.get(member).is_some(), "{member} is missing: {text}");
    }
    assert_eq!(problem["status"], status);
    problem
}

pub fn gzip(content: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content.as_ref()).expect("gzip");
    encoder.finish().expect("gzip")
}

/// What R's `memCompress(type = "gzip")` makes.
pub fn zlib(content: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content.as_ref()).expect("zlib");
    encoder.finish().expect("zlib")
}

/// A file under `tests/data`.
pub fn data(path: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/data/{path}", env!("CARGO_MANIFEST_DIR"))).expect(path)
}

/// A small valid record.
pub const RECORD: &str = r#"{"sample_id":"S1","level":"species","name":"Orthoebolavirus zairense","taxid":"3052462","read_count":513,"total_bp_mapped":69897}"#;

/// The PostgreSQL of this test run.
pub struct TestCluster {
    pub admin_url: String,
    base_url: String,
}

/// Starts PostgreSQL once, with a template database in which everything is created.
pub fn cluster() -> &'static TestCluster {
    static CLUSTER: OnceLock<TestCluster> = OnceLock::new();
    nvd_support_car::tls::use_ring();
    CLUSTER
        .get_or_init(|| std::thread::spawn(|| blocking(start_cluster())).join().expect("the PostgreSQL of the tests"))
}

async fn start_cluster() -> TestCluster {
    let cluster = EphemeralCluster::start().await;
    let (admin_url, base_url) = (cluster.url("postgres"), cluster.url(""));
    let exports = tempfile::tempdir().expect("folder");
    let storage = ("export.storage".to_owned(), exports.path().display().to_string());
    let config = Config::load(None, [], &[storage]).expect("configuration");
    let app = App::new(config, &cluster.url("nvd")).expect("app");
    app.prepare().await.expect("prepare");
    app.pool.close().await;
    // Its watchdog ends it, as nothing runs at the end of a test binary.
    std::mem::forget(cluster);
    TestCluster { admin_url, base_url }
}

/// A new database with all tables: its name and its URL.
pub async fn create_database() -> (String, String) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let cluster = tokio::task::spawn_blocking(cluster).await.expect("PostgreSQL");
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut admin = PgConnection::connect(&cluster.admin_url).await.expect("admin");
    // Several at once would each complain that the template is in use.
    let lock = "SELECT pg_advisory_lock(1)";
    sqlx::query(lock).execute(&mut admin).await.expect("lock");
    let sql = format!("CREATE DATABASE {name} TEMPLATE nvd");
    sqlx::query(AssertSqlSafe(sql)).execute(&mut admin).await.expect("create database");
    admin.close().await.expect("close");
    let url = format!("{}{name}", cluster.base_url);
    (name, url)
}

/// Host and port of a database's URL.
pub fn server_of(url: &str) -> String {
    url.split(['@', '/']).nth(3).expect("server").to_owned()
}

fn blocking<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work)
}

/// Asserts that something is done, as a rule, before Linux acknowledges a small packet that stands alone.
pub async fn without_delayed_acknowledgement(mut act: impl AsyncFnMut()) {
    let mut medians = Vec::new();
    // The first packets of a connection are acknowledged at once, and a machine may be busy for a while.
    for _ in 0..6 {
        let mut times = Vec::new();
        for _ in 0..31 {
            let started = Instant::now();
            act().await;
            times.push(started.elapsed());
        }
        times.sort();
        medians.push(times[times.len() / 2]);
    }
    medians.remove(0);
    assert!(medians.iter().any(|&median| median < Duration::from_millis(38)), "it waits for 40 ms: {medians:?}");
}

/// Repeats a check until it holds, for at most half a minute: the machine may be busy with other tests.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut holds: F) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("did not come true: {what}");
}
