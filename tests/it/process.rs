//! The real binary as a process: its commands, its own PostgreSQL, signals, TLS.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::app::{RECORD, TestApp, create_database, eventually, gzip, server_of, without_delayed_acknowledgement};
use crate::proxy::relay_database;

/// The binary with a clean environment.
pub fn binary(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvd-support-car"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.arg("--data-dir").arg(data_dir).args(["--set", "embedded.shared_buffers=128MiB"]);
    command
}

/// `serve` over a database, for those who have the token `t`.
pub fn serving(data_dir: &Path, database_url: &str) -> Command {
    let mut command = binary(data_dir);
    command.args(["serve", "--listen", "127.0.0.1:0"]).env("DATABASE_URL", database_url).env("BEARER_TOKEN", "t");
    command
}

/// A folder that the user `postgres` can reach.
pub fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("nvd-process-").tempdir().expect("folder");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).expect("permissions");
    folder
}

/// A running `serve`.
pub struct Served {
    pub url: String,
    child: Child,
}

impl Served {
    /// Starts it and waits until it tells its address.
    pub fn start(command: &mut Command) -> Self {
        nvd_support_car::tls::use_ring();
        let mut child = command
            .args(["--set", "log.format=json"])
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
        let mut seen = Vec::new();
        let url = loop {
            let Some(Ok(line)) = lines.next() else { panic!("it ended: {}", seen.join("\n")) };
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "serving" {
                break event["url"].as_str().expect("url").to_owned();
            }
            seen.push(line);
        };
        // Nobody reads its log from here on, but the pipe must not fill.
        std::thread::spawn(move || lines.for_each(drop));
        Self { url, child }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Sends SIGTERM and waits for an orderly end.
    pub fn stop(mut self) {
        let id = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).expect("signal");
        assert!(self.child.wait().expect("wait").success());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("run")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn secret(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("secrets/bearer_token")).expect("token").trim().to_owned()
}

async fn send(url: &str, token: &str, body: &str) -> reqwest::Result<Value> {
    let client = reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true).build()?;
    let answer = client.post(format!("{url}/ingest-gottcha2")).bearer_auth(token).body(gzip(body)).send().await?;
    answer.error_for_status()?.json().await
}

#[tokio::test]
async fn serve_keeps_everything_in_its_folder_and_survives_kill_9() {
    let folder = folder();
    let serve = || Served::start(binary(folder.path()).args(["serve", "--listen", "127.0.0.1:0"]));
    let first = serve();
    let token = secret(folder.path());
    assert_eq!(send(&first.url, &token, RECORD).await.expect("receipt")["replayed"], false);

    // Another command uses the same database beside it.
    let plan = output(binary(folder.path()).args(["datasets", "plan"]));
    assert_eq!(text(&plan.stdout), "-- All tables are as declared.\n", "{}", text(&plan.stderr));
    first.kill();

    let second = serve();
    assert_eq!(secret(folder.path()), token);
    assert_eq!(send(&second.url, &token, RECORD).await.expect("receipt")["replayed"], true);
    assert!(folder.path().join("postgres/postmaster.pid").exists());
    second.stop();
    assert!(!folder.path().join("postgres/postmaster.pid").exists(), "PostgreSQL was left running");
}

#[tokio::test]
async fn a_postgresql_that_ends_by_itself_is_started_again_by_its_service() {
    let folder = folder();
    let served = Served::start(binary(folder.path()).args(["serve", "--listen", "127.0.0.1:0"]));
    let token = secret(folder.path());
    assert_eq!(send(&served.url, &token, RECORD).await.expect("receipt")["replayed"], false);

    let record = folder.path().join("postgres/postmaster.pid");
    let pid = || std::fs::read_to_string(&record).ok()?.lines().next()?.parse::<i32>().ok();
    let first = pid().expect("PostgreSQL runs");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGKILL).expect("kill");
    // One that gave up its recovery, on a full disk, leaves no record of its port.
    std::fs::remove_file(&record).expect("its record");

    // Connections of the dead server may answer for a moment.
    eventually("another one runs, and uploads are stored", async || {
        pid().is_some_and(|second| second != first) && send(&served.url, &token, RECORD).await.is_ok()
    })
    .await;
    assert_eq!(send(&served.url, &token, RECORD).await.expect("receipt")["replayed"], true);
    served.stop();
    assert!(!record.exists(), "PostgreSQL was left running");
}

#[tokio::test]
async fn demo_sends_the_samples_and_prints_a_line_that_works() {
    let folder = folder();
    let mut demo = binary(folder.path())
        .args(["demo", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start");
    let mut out = BufReader::new(demo.stdout.take().expect("stdout"));
    let mut report = String::new();
    while !report.contains("Ctrl-C") {
        assert_ne!(out.read_line(&mut report).expect("line"), 0, "it ended: {report}");
    }
    for part in
        ["gottcha2", "24 rows from 3 files", "174 rows from 1 files", "/swagger-ui/", "/redoc", &secret(folder.path())]
    {
        assert!(report.contains(part), "{part} is not in:\n{report}");
    }
    let line = report.lines().find(|line| line.contains("curl")).expect("curl line");
    let pasted = output(Command::new("bash").args(["-c", line]));
    let receipt: Value = serde_json::from_slice(&pasted.stdout).unwrap_or_else(|_| panic!("{}", text(&pasted.stderr)));
    assert_eq!((&receipt["rows"], &receipt["replayed"]), (&1.into(), &false.into()));
    let id = nix::unistd::Pid::from_raw(demo.id().cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).expect("signal");
    assert!(demo.wait().expect("wait").success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_whose_database_is_still_away_starts_and_is_ready_once_it_is_there() {
    let folder = folder();
    let (_, url) = create_database().await;
    let server = server_of(&url);
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port").local_addr().expect("address");
    let url = url.replace(&server, &port.to_string());
    let begun = Instant::now();
    let service = Served::start(&mut serving(folder.path(), &url));
    assert!(begun.elapsed() < Duration::from_secs(20), "it was silent for {:?}", begun.elapsed());
    let ask = async |path: &str| reqwest::get(format!("{}{path}", service.url)).await.expect("answer").status();
    assert_eq!((ask("/healthz").await.as_u16(), ask("/readyz").await.as_u16()), (200, 503));
    let listener = tokio::net::TcpListener::bind(port).await.expect("port");
    tokio::spawn(relay_database(listener, server, u64::MAX));
    eventually("the service is ready", async || ask("/readyz").await == 200).await;
}

#[test]
fn an_end_that_is_asked_for_during_the_start_leaves_no_postgresql_running() {
    let folder = folder();
    let serve = |folder: &Path| {
        let mut command = binary(folder);
        command.args(["serve", "--listen", "127.0.0.1:0"]).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    Served::start(binary(folder.path()).args(["serve", "--listen", "127.0.0.1:0"])).stop();
    for milliseconds in [150, 400] {
        let mut child = serve(folder.path()).spawn().expect("start");
        std::thread::sleep(Duration::from_millis(milliseconds));
        let id = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).expect("signal");
        child.wait().expect("wait");
        assert!(!folder.path().join("postgres/postmaster.pid").exists(), "PostgreSQL was left running");
    }
}

/// Exports as plain text, and answers with the link to it.
async fn export_text(client: &reqwest::Client, service: &Served) -> String {
    let ask = async |method: reqwest::Method, path: &str, body: Value| {
        let request = client.request(method, format!("{}{path}", service.url)).bearer_auth("t").json(&body);
        request.send().await.expect("answer").json::<Value>().await.expect("JSON")
    };
    let wish = json!({"table": "gottcha2", "format": "jsonl", "compression": "none"});
    let job = ask(reqwest::Method::POST, "/exports/trigger", wish).await;
    let export = format!("/exports/{}", job["export_id"].as_str().expect("export"));
    let mut url = String::new();
    eventually("it is written", async || {
        let found = ask(reqwest::Method::GET, &export, Value::Null).await;
        url = found["download_url"].as_str().unwrap_or_default().to_owned();
        !url.is_empty()
    })
    .await;
    url
}

#[tokio::test]
async fn a_part_of_a_file_waits_for_no_delayed_acknowledgement() {
    let folder = folder();
    let (_, database_url) = create_database().await;
    let service = Served::start(&mut serving(folder.path(), &database_url));
    send(&service.url, "t", &format!("{RECORD}\n").repeat(1000)).await.expect("receipt");
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let url = export_text(&client, &service).await;
    without_delayed_acknowledgement(async || {
        let part = client.get(&url).header("range", "bytes=0-99999").send().await.expect("answer");
        assert_eq!(part.bytes().await.expect("bytes").len(), 100_000);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_an_answer_is_let_go() {
    let folder = folder();
    let (_, database_url) = create_database().await;
    let service = Served::start(serving(folder.path(), &database_url).args(["--set", "ingest.idle_timeout=2s"]));
    send(&service.url, "t", &format!("{RECORD}\n").repeat(100_000)).await.expect("receipt");
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let mut answer = client.get(&export_text(&client, &service).await).send().await.expect("answer");
    let whole = answer.content_length().expect("length");
    std::thread::sleep(Duration::from_secs(8));
    let mut taken = 0;
    while let Ok(Some(part)) = answer.chunk().await {
        taken += part.len() as u64;
    }
    assert!(taken < whole, "all {whole} bytes came");
}

#[tokio::test]
async fn without_a_terminal_a_hangup_does_not_end_the_service() {
    let app = TestApp::start().await;
    let folder = folder();
    let service = Served::start(serving(folder.path(), &app.database_url()).stdin(Stdio::null()));
    let id = nix::unistd::Pid::from_raw(service.id().cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGHUP).expect("signal");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let answer = client.get(format!("{}/healthz", service.url)).send().await.expect("answer");
    assert_eq!(answer.status(), 200);
    service.stop();
}

#[test]
fn a_service_that_others_can_reach_needs_a_token() {
    let folder = folder();
    for command in ["serve", "demo"] {
        let refused = output(binary(folder.path()).args([command, "--listen", "0.0.0.0:0"]));
        assert!(!refused.status.success());
        assert!(text(&refused.stderr).contains("refusing to serve"), "{}", text(&refused.stderr));
    }
}

#[test]
fn an_address_in_use_is_said_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let address = taken.local_addr().expect("address").to_string();
    let folder = folder();
    for command in [&["serve"][..], &[]] {
        let refused = output(binary(folder.path()).args(command).args(["--listen", &address]));
        assert!(text(&refused.stderr).contains(&format!("cannot listen on {address}")), "{}", text(&refused.stderr));
    }
}

#[test]
fn two_values_for_one_column_are_refused_by_the_command_line_too() {
    let folder = folder();
    let filters = ["--filter", "sample_id=S1", "--filter", "sample_id=S2"];
    let refused = output(binary(folder.path()).args(["export", "gottcha2"]).args(filters));
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("`sample_id` twice"), "{}", text(&refused.stderr));
}

#[test]
fn an_address_is_for_commands_that_listen() {
    let folder = folder();
    for command in [&["serve"][..], &["config", "check"]] {
        let refused = output(binary(folder.path()).args(["--listen", "127.0.0.1:0"]).args(command));
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains("--listen"), "{}", text(&refused.stderr));
    }
}

#[test]
fn a_new_token_is_printed_with_the_lines_that_let_it_in() {
    let folder = folder();
    let made = output(
        binary(folder.path()).args(["token", "new", "--name", "htcondor", "--scope", "ingest", "--scope", "read"]),
    );
    let made = text(&made.stdout);
    let lines = made.split_once("[[auth.tokens]]").expect("lines").1;
    let file = folder.path().join("config.toml");
    std::fs::write(&file, format!("[[auth.tokens]]{lines}")).expect("write");
    let checked = output(binary(folder.path()).arg("--config").arg(&file).args(["config", "check"]));
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let checked = text(&checked.stdout);
    assert!(
        checked.contains("name = \"htcondor\"") && checked.contains("scopes = [\"ingest\", \"read\"]"),
        "{checked}"
    );
}

#[test]
fn all_faults_of_a_configuration_are_printed() {
    let folder = folder();
    let refused =
        output(binary(folder.path()).args(["--set", "limits.burst=x", "--set", "nonsense=1", "config", "check"]));
    let errors = text(&refused.stderr);
    assert!(!refused.status.success());
    assert!(errors.contains("limits.burst") && errors.contains("nonsense"), "{errors}");
}

#[test]
fn settings_count_before_and_behind_the_command() {
    let folder = folder();
    let checked = output(binary(folder.path()).args([
        "--set",
        "limits.burst=7",
        "config",
        "check",
        "--set=limits.rate_per_second=5",
    ]));
    let checked = text(&checked.stdout);
    assert!(checked.contains("burst = 7\n") && checked.contains("rate_per_second = 5\n"), "{checked}");
}

#[test]
fn a_configuration_is_checked_against_what_it_speaks_of() {
    let folder = folder();
    let file = folder.path().join("config.toml");
    let schedule = "[[export.schedules]]\ndataset = \"stast\"\ncron = ";
    for (config, fault) in [
        (format!("{schedule}\"0 0 5 * *\"\n"), "0 0 5 * *"),
        (format!("{}\"0 0 5 * * *\"\n", schedule.replace("stast", "stats")), "stats: is no dataset"),
        (
            format!(
                "{schedule}\"0 0 5 * * *\"\nretention_days = 3\n[export.schedules.partition]\ntemporal = \"year\"\n"
            ),
            "neither `retention_days`",
        ),
        (format!("{schedule}\"0 0 5 * * *\"\n{schedule}\"0 0 5 * * *\"\nretention_days = 3\n"), "schedules 1 and 2"),
        ("[lake]\ntimezone = \"Europe/Bonn\"\n".to_owned(), "Europe/Bonn"),
        ("[lake]\ncron = \"0 0 0 30 2 *\"\n".to_owned(), "`0 0 0 30 2 *` never comes"),
        (format!("{schedule}\"0 0 0 31 6 *\"\n"), "stast: `0 0 0 31 6 *` never comes"),
        (
            "[labkey]\nserver_url = \"http://127.0.0.1\"\nproject_path = \"/p\"\napi_key = \"k\"\nmap = \"nvdd\"\n"
                .to_owned(),
            "no dataset has a map `nvdd`",
        ),
    ] {
        std::fs::write(&file, &config).expect("config");
        let refused = output(binary(folder.path()).arg("--config").arg(&file).args(["config", "check"]));
        let errors = text(&refused.stderr);
        assert!(!refused.status.success() && errors.contains(fault), "{config}: {errors}");
    }
    assert!(!folder.path().join("exports").exists(), "a check made a folder");
}

#[tokio::test]
async fn tls_certificates_are_reloaded_without_a_restart_and_health_is_checked_through_tls() {
    let folder = folder();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let write = |name: &str| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("certificate");
        std::fs::write(&certificate, made.cert.pem()).expect("write");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("write");
        made.cert.pem()
    };
    write("first.test");
    let (_, database_url) = create_database().await;
    let served =
        Served::start(serving(folder.path(), &database_url).env("CERT_PATH", &certificate).env("KEY_PATH", &key));
    assert!(served.url.starts_with("https://"));
    assert_eq!(send(&served.url, "t", RECORD).await.expect("receipt")["rows"], 1);
    let healthy = output(binary(folder.path()).args(["healthcheck", "--url", &served.url]));
    assert!(healthy.status.success(), "{}", text(&healthy.stderr));

    let second = write("second.test");
    let address = served.url.trim_start_matches("https://").replace("127.0.0.1", "second.test");
    let port: u16 = address.rsplit(':').next().expect("port").parse().expect("number");
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(second.as_bytes()).expect("certificate")])
        .resolve("second.test", ([127, 0, 0, 1], port).into())
        .pool_max_idle_per_host(0)
        .build()
        .expect("client");
    for _ in 0..60 {
        if client.get(format!("https://{address}/healthz")).send().await.is_ok() {
            return served.stop();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("the new certificate was not taken into use");
}

#[tokio::test]
async fn requests_in_flight_are_finished_before_the_end() {
    let folder = folder();
    let (_, database_url) = create_database().await;
    let served = Served::start(&mut serving(folder.path(), &database_url));
    let address = served.url.trim_start_matches("http://").to_owned();
    let mut stream = std::net::TcpStream::connect(&address).expect("connect");
    let body = gzip(RECORD);
    let head = format!(
        "POST /ingest-gottcha2 HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer t\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    use std::io::Write;
    stream.write_all(head.as_bytes()).expect("head");
    stream.write_all(&body[..10]).expect("part");
    eventually("the upload has begun", async || {
        let metrics =
            reqwest::get(format!("{}/metrics", served.url)).await.expect("metrics").text().await.expect("text");
        metrics.contains("nvd_ingest_queue_uploads 1")
    })
    .await;
    let stopping = std::thread::spawn(move || served.stop());
    eventually("no new connection is taken", async || std::net::TcpStream::connect(&address).is_err()).await;
    stream.write_all(&body[10..]).expect("rest");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stopping.join().expect("orderly end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_from_the_command_line_leaves_the_jobs_of_others_to_others() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    let theirs = app.trigger(json!({"table": "gottcha2"})).await;
    let folder = tempfile::tempdir().expect("folder");
    let mut command = binary(&folder.path().join("data"));
    command.env("DATABASE_URL", app.database_url()).args(["export", "gottcha2", "--set", "export.slots=0"]);
    let output = command.output().expect("run");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("gottcha2: 1 rows"), "{}", text(&output.stdout));
    let job = app.get(&format!("/jobs/{}", theirs["job_id"].as_str().expect("job"))).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("pending"), &json!(0)), "{job}");
    assert_eq!(app.scalar::<i64>("SELECT count(*) FROM jobs WHERE state = 'completed'").await, 1);
}

#[test]
fn values_that_cannot_work_are_refused_by_their_keys() {
    let folder = folder();
    let check = |setting: &str| output(binary(folder.path()).args(["--set", setting, "config", "check"]));
    for setting in [
        "log.level=inof",
        "log.level=info,sqlxwarn",
        "ingest.idle_timeout=0s",
        "ingest.max_line=0B",
        "ingest.max_body=0B",
        "ingest.max_decompressed=0B",
        "ingest.max_rows=0",
        "export.retention_days=4294967295",
        "export.storage=s3:/bucket/x",
        "export.storage=~/x",
        "database.url=mysql://u@h/hidden",
        "auth.bearer_token=hidden\u{e4}",
        "auth.ingest_token=hidden\u{e4}",
    ] {
        let refused = check(setting);
        let (errors, key) = (text(&refused.stderr), setting.split('=').next().expect("key"));
        assert!(!refused.status.success() && errors.contains(key) && !errors.contains("hidden"), "{setting}: {errors}");
    }
    for setting in [
        "log.level=INFO",
        "log.level=warn,nvd_support_car=debug,sqlx[query]=off",
        "export.retention_days=36500",
        "export.storage=s3://bucket/x",
        "database.url=postgresql://u@h/d",
    ] {
        let checked = check(setting);
        assert!(checked.status.success(), "{setting}: {}", text(&checked.stderr));
    }
    for place in ["~/x", "s3:/bucket/x"] {
        for command in [["export", "stast", "-o", place], ["convert", "a.csv", "-o", place]] {
            let refused = output(binary(folder.path()).current_dir(folder.path()).args(command));
            let errors = text(&refused.stderr);
            assert!(!refused.status.success() && errors.contains("--output"), "{command:?}: {errors}");
        }
    }
    let names = std::fs::read_dir(folder.path()).expect("folder").map(|entry| entry.expect("entry").file_name());
    assert!(names.into_iter().all(|name| name != "~" && name != "s3:"), "a folder was made");
}
