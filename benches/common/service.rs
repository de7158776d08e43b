//! The service under measurement: the real binary over a PostgreSQL of its own, durable as in production.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nvd_support_car::db::embedded::{Cluster, Options};
use reqwest::{Body, Client};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};

const TOKEN: &str = "bench";

/// A running service, its database, and a client.
pub struct Service {
    pub pool: PgPool,
    pub database_url: String,
    url: String,
    client: Client,
    child: Child,
    cluster: Option<Cluster>,
}

impl Service {
    pub async fn start(folder: &Path) -> Self {
        Self::with(folder, &[]).await
    }

    /// A service with these settings, `key=value`.
    pub async fn with(folder: &Path, settings: &[String]) -> Self {
        let cluster = Cluster::start(Options::below(folder)).await.expect("PostgreSQL");
        let database_url = cluster.url("nvd");
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let child = Command::new(env!("CARGO_BIN_EXE_nvd-support-car"))
            .arg("--data-dir")
            .arg(folder)
            .args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--set", "log.level=warn"])
            .args(settings.iter().flat_map(|setting| ["--set", setting]))
            .env("DATABASE_URL", &database_url)
            .env("BEARER_TOKEN", TOKEN)
            .stdout(Stdio::null())
            .spawn()
            .expect("the service");
        let client = Client::builder().no_proxy().build().expect("client");
        let pool = PgPool::connect(&database_url).await.expect("database");
        let service =
            Self { pool, database_url, url: format!("http://127.0.0.1:{port}"), client, child, cluster: Some(cluster) };
        while !service
            .client
            .get(format!("{}/readyz", service.url))
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        service
    }

    /// Sends a body of GOTTCHA2 records under a key and waits for its receipt.
    pub async fn put(&self, key: &str, body: Body) {
        self.put_into("gottcha2", key, body).await;
    }

    /// Sends a body of that dataset under a key and waits for its receipt.
    pub async fn put_into(&self, dataset: &str, key: &str, body: Body) {
        let request = self.client.put(format!("{}/ingest/{dataset}/{key}", self.url)).bearer_auth(TOKEN).body(body);
        let answer = request.send().await.expect("answer");
        let status = answer.status();
        let text = answer.text().await.expect("receipt");
        assert!(status.is_success() && text.contains("\"replayed\":false"), "{status}: {text}");
    }

    /// Asks for something that answers with JSON.
    pub async fn post(&self, path: &str) -> serde_json::Value {
        let answer = self.client.post(format!("{}{path}", self.url)).bearer_auth(TOKEN).send().await.expect("answer");
        assert!(answer.status().is_success(), "{}", answer.status());
        answer.json().await.expect("JSON")
    }

    /// Exports a dataset as the service does on request, and waits for the end.
    pub async fn export(&self, dataset: &str) {
        self.run_job(&serde_json::json!({ "table": dataset })).await;
    }

    /// Asks for an export, whatever it is, and waits for the end.
    pub async fn run_job(&self, body: &Value) {
        let request = self.client.post(format!("{}/exports/trigger", self.url)).bearer_auth(TOKEN).json(body);
        let job: Value = request.send().await.expect("answer").json().await.expect("job");
        let url = format!("{}/jobs/{}", self.url, job["job_id"].as_str().expect("job_id"));
        loop {
            let job: Value =
                self.client.get(&url).bearer_auth(TOKEN).send().await.expect("answer").json().await.expect("job");
            match job["status"].as_str() {
                Some("completed") => return,
                Some("pending" | "running") => tokio::time::sleep(Duration::from_millis(100)).await,
                _ => panic!("{job}"),
            }
        }
    }

    /// Runs one statement.
    pub async fn execute(&self, sql: &str) {
        sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.expect(sql);
    }

    /// Empties the tables, and lets no work of an earlier run fall into the next one.
    pub async fn reset(&self) {
        self.execute("TRUNCATE gottcha2_full, submissions, labkey_deliveries").await;
        self.execute("CHECKPOINT").await;
    }

    /// The memory that the service holds now, in MiB.
    pub fn resident(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// The most memory that the service held since [`Service::forget_peak`], in MiB.
    pub fn peak(&self) -> f64 {
        self.status("VmHWM:")
    }

    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").expect("clear_refs");
    }

    fn status(&self, key: &str) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("status");
        let line = text.lines().find(|line| line.starts_with(key)).expect(key);
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("KiB") / 1024.0
    }

    pub async fn stop(mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("the end of the service");
        self.pool.close().await;
        if let Some(cluster) = self.cluster.take() {
            cluster.stop().await.expect("the end of PostgreSQL");
        }
    }

    /// `psql -c COMMAND` against the same database.
    pub fn psql(&self, command: &str) -> Command {
        let mut psql = Command::new("psql");
        psql.args([&self.database_url, "-qX", "-v", "ON_ERROR_STOP=1", "-c", command]);
        psql
    }
}

/// The seconds that some work takes.
pub async fn seconds(work: impl Future<Output = ()>) -> f64 {
    let started = Instant::now();
    work.await;
    started.elapsed().as_secs_f64()
}

/// Runs commands side by side to their good end.
pub fn run_all(commands: Vec<Command>) {
    let children: Vec<Child> = commands.into_iter().map(|mut command| command.spawn().expect("psql")).collect();
    for mut child in children {
        assert!(child.wait().expect("psql").success(), "psql failed");
    }
}

/// A file as a body that is read while it is sent.
pub async fn stream(paths: Vec<PathBuf>) -> Body {
    use futures_util::{StreamExt, stream};
    let chunks = stream::iter(paths).flat_map(|path| {
        stream::once(async move { tokio::fs::File::open(path).await }).flat_map(|file| match file {
            Ok(file) => tokio_util::io::ReaderStream::with_capacity(file, 256 * 1024).boxed(),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        })
    });
    Body::wrap_stream(chunks)
}
