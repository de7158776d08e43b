//! The files below `examples/`, run as they are against a live service.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::app::{TOKEN, TestApp, data};
use crate::process::text;
use crate::proxy::{Fault, Proxy};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// A folder with one report, as a job has it.
fn scratch() -> TempDir {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("S1.full.tsv"), data("gottcha2/v2.4.3.SRR12689945.full.tsv")).expect("write");
    folder
}

/// A program of an example in that folder, with nothing in its environment but what the test gives it.
fn program(name: &str, folder: &TempDir) -> Command {
    let mut command = Command::new(name);
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").expect("PATH"));
    command.env_clear().env("PATH", path).env("HOME", folder.path()).current_dir(folder.path()).stdin(Stdio::null());
    command
}

/// The clients, each as the command that runs it.
fn client(name: &str, folder: &TempDir, url: &str, token: &str) -> Command {
    let file = example("clients").join(name);
    let (runner, file) = match name.rsplit('.').next() {
        Some("sh") => ("bash", file),
        Some("py") => ("python3", file),
        Some("R") => ("Rscript", file),
        _ => ("node", compiled(&file)),
    };
    let mut command = program(runner, folder);
    command.arg(file).env("NVD_SUPPORT_URL", url).env("NVD_BEARER_TOKEN", token);
    command
}

/// What TypeScript's compiler makes of a program, strictly checked. Newer releases of node need none.
fn compiled(file: &Path) -> PathBuf {
    static COMPILED: OnceLock<()> = OnceLock::new();
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sdk/typescript");
    COMPILED.get_or_init(|| {
        let mut tsc = std::process::Command::new(tools.join("node_modules/.bin/tsc"));
        tsc.current_dir(&tools).args(["--strict", "--noUncheckedIndexedAccess", "--erasableSyntaxOnly"]);
        tsc.args(["--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler", "--types", "node"]);
        tsc.args(["--typeRoots", "node_modules/@types", "--outDir", "dist"]).arg(file);
        let output = tsc.output().expect("tsc");
        assert!(output.status.success(), "{}", text(&output.stdout));
    });
    tools.join("dist").join(file.with_extension("js").file_name().expect("name"))
}

/// Clients for what every worker has.
const CLIENTS: [&str; 2] = ["curl.sh", "nvd_send.py"];

/// Clients for what has to be installed.
const OTHER_CLIENTS: [&str; 2] = ["nvd_send.ts", "nvd_send.R"];

/// The columns, as each client takes them.
fn columns(name: &str, run: &str) -> Vec<String> {
    let pairs = ["sample_id=S1".to_owned(), format!("run_id={run}")];
    if name == "curl.sh" { vec![pairs.join("&")] } else { pairs.to_vec() }
}

async fn ends(command: &mut Command, code: i32) -> Output {
    let output = command.output().await.unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    output
}

#[tokio::test]
async fn each_client_stores_a_file_once_though_its_answer_is_lost() {
    store_once(CLIENTS).await;
}

#[tokio::test]
#[ignore = "needs Rscript with httr2, and the tools of sdk/generate; .ci/run has them"]
async fn typescript_and_r_store_a_file_once_too() {
    store_once(OTHER_CLIENTS).await;
}

async fn store_once(clients: [&str; 2]) {
    let app = TestApp::start().await;
    for (index, name) in clients.into_iter().enumerate() {
        let folder = scratch();
        let mut faults = [Fault::Swallow, Fault::Unavailable].into_iter();
        let proxy = Proxy::start(app.address, move || faults.next().unwrap_or(Fault::Pass)).await;
        let mut command = client(name, &folder, &proxy.url, TOKEN);
        let output = ends(command.args(["S1.full.tsv", "gottcha2"]).args(columns(name, name)), 0).await;
        let receipt: serde_json::Value = serde_json::from_slice(&output.stdout).expect("receipt");
        assert_eq!((&receipt["rows"], &receipt["replayed"]), (&8.into(), &true.into()), "{name}");
        let filter = format!("gottcha2_full WHERE run_id = '{name}' AND sample_id = 'S1'");
        assert_eq!(app.count(&filter).await, 8, "{name}");
        assert_eq!(app.count("submissions").await, index as i64 + 1);
    }
}

#[tokio::test]
async fn each_client_tells_bad_data_from_a_refused_token() {
    tell_faults(CLIENTS).await;
}

#[tokio::test]
#[ignore = "needs Rscript with httr2, and the tools of sdk/generate; .ci/run has them"]
async fn typescript_and_r_tell_bad_data_from_a_refused_token_too() {
    tell_faults(OTHER_CLIENTS).await;
}

async fn tell_faults(clients: [&str; 2]) {
    let app = TestApp::start().await;
    for name in clients {
        let folder = scratch();
        ends(client(name, &folder, &app.url, "wrong").args(["S1.full.tsv", "gottcha2"]).args(columns(name, "r")), 77)
            .await;
        let output = ends(client(name, &folder, &app.url, TOKEN).args(["S1.full.tsv", "gottcha2"]), 65).await;
        assert!(text(&output.stderr).contains("sample_id"), "{name}");
        ends(client(name, &folder, &app.url, TOKEN).args(["S1.full.tsv", "nothing"]), 78).await;
    }
    assert_eq!(app.total().await, 0);
}

/// The commands of a submit file, with its macros put in.
fn submit_file(name: &str, macros: &[(&str, &str)]) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(example("htcondor").join(name)).expect(name);
    let mut known: Vec<(String, String)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((key, value)) = line.split_once('=') else { continue };
        let (key, mut value) = (key.trim().to_owned(), value.trim().to_owned());
        if let Some((_, given)) = macros.iter().find(|(name, _)| *name == key) {
            value = (*given).to_owned();
        }
        for (name, replacement) in &known {
            value = value.replace(&format!("$({name})"), replacement);
        }
        known.push((key, value));
    }
    known
}

fn value<'a>(commands: &'a [(String, String)], name: &str) -> &'a str {
    let (_, value) = commands.iter().find(|(key, _)| key == name).expect(name);
    value.trim_matches('"')
}

/// How a transfer by HTCondor's plugin ends.
#[derive(Debug)]
enum Transfer {
    /// The job goes on; the service's answer, which the plugin does not look at.
    Done(String),
    /// The job is held, with that reason.
    Held(String),
}

/// What HTCondor's plugin does: PUT with the length, the credential, and no other header. It repeats what breaks off, up
/// to 20 times, and holds the job at any status of 400 or more.
async fn transfer(url: &str, token: &str, body: &[u8]) -> Transfer {
    for _ in 0..20 {
        let Ok(answer) = put(url, token, body).await else { continue };
        let status: u16 = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("status");
        return if status < 400 { Transfer::Done(answer) } else { Transfer::Held(answer) };
    }
    Transfer::Held("the connection broke off 20 times".to_owned())
}

async fn put(url: &str, token: &str, body: &[u8]) -> std::io::Result<String> {
    let (address, path) = url.trim_start_matches("http://").split_once('/').expect("path");
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let head = format!(
        "PUT /{path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    if answer.contains("\r\n\r\n") { Ok(answer) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

#[tokio::test]
async fn the_url_that_htcondor_puts_to_stores_the_file_and_takes_repetitions() {
    let app = TestApp::start().await;
    let commands = submit_file("put.sub", &[("sample", "S1")]);
    assert_eq!(value(&commands, "transfer_output_files"), "S1.full.tsv");
    let (file, url) = value(&commands, "transfer_output_remaps").split_once(" = ").expect("remap");
    assert_eq!(file, "S1.full.tsv");
    let credential = format!("{}+https://nvd.example.org:8443", value(&commands, "use_oauth_services"));
    let url = url.replacen(&credential, &app.url, 1);
    let folder = scratch();
    std::fs::write(folder.path().join("nvd.use"), TOKEN).expect("credential");
    let token = std::fs::read_to_string(folder.path().join("nvd.use")).expect("credential");
    let body = std::fs::read(folder.path().join(file)).expect("file");
    for replayed in ["\"replayed\":false", "\"replayed\":true"] {
        let Transfer::Done(answer) = transfer(&url, &token, &body).await else { panic!("held") };
        assert!(answer.contains(replayed), "{answer}");
    }
    assert_eq!(app.count("gottcha2_full WHERE sample_id = 'S1' AND run_id IS NOT NULL").await, 8);
    let Transfer::Held(reason) = transfer(&url, &token, b"LEVEL\tNAME\n").await else { panic!("taken") };
    assert!(reason.contains("422"), "{reason}");
    let Transfer::Held(reason) = transfer(&url, "wrong", &body).await else { panic!("taken") };
    assert!(reason.contains("401"), "{reason}");
}

#[tokio::test]
async fn libcurl_which_the_plugin_is_made_of_puts_a_large_file_and_is_refused_before_it_sends_one() {
    let app = TestApp::start().await;
    let folder = scratch();
    let record = crate::app::RECORD.to_owned() + "\n";
    std::fs::write(folder.path().join("large.jsonl"), record.repeat(30_000)).expect("write");
    // Above a megabyte libcurl asks first, by `Expect: 100-continue`.
    let put = |token: &str| {
        let mut curl = program("curl", &folder);
        curl.args(["--silent", "--show-error", "--fail-with-body", "--upload-file", "large.jsonl"]);
        curl.args(["--header", &format!("Authorization: Bearer {token}"), "--write-out", "%{size_upload}"]);
        curl.arg(format!("{}/ingest/gottcha2/cluster-1.jsonl", app.url));
        curl
    };
    let said = text(&ends(&mut put(TOKEN), 0).await.stdout);
    assert!(said.contains("\"rows\":30000") && said.ends_with(&(record.len() * 30_000).to_string()), "{said}");
    let said = text(&ends(&mut put("wrong"), 22).await.stdout);
    assert!(said.contains("\"status\":401") && said.ends_with("}0"), "{said}");
    assert_eq!(app.count("gottcha2_full").await, 30_000);
}

#[tokio::test]
async fn fifty_jobs_that_deliver_by_put_over_a_failing_network_are_stored_once_though_ten_run_twice() {
    let app = TestApp::start().await;
    let mut turn = 0;
    let proxy = Proxy::start(app.address, move || {
        turn += 1;
        [Fault::Pass, Fault::Swallow, Fault::Drop, Fault::Pass, Fault::Reset(300), Fault::Cut(10)][turn % 6]
    })
    .await;
    let body = data("gottcha2/v2.4.3.SRR12689945.full.tsv");
    // Ten jobs were evicted after their transfer, and run again at the same time as the others.
    let jobs = (0..50).chain(0..10).map(|job| {
        let url = format!("{}/ingest/gottcha2/cluster-{job}.full.tsv?sample_id=S{job}", proxy.url);
        let body = &body;
        async move { transfer(&url, TOKEN, body).await }
    });
    for ended in futures_util::future::join_all(jobs).await {
        assert!(matches!(ended, Transfer::Done(_)), "{ended:?}");
    }
    assert_eq!((app.count("submissions").await, app.count("gottcha2_full").await), (50, 400));
}

#[tokio::test]
async fn the_submit_file_with_send_runs_as_it_stands() {
    let app = TestApp::start().await;
    let folder = scratch();
    let commands = submit_file("send.sub", &[("sample", "S1")]);
    std::fs::create_dir(folder.path().join("creds")).expect("folder");
    std::fs::write(folder.path().join("creds/nvd.use"), TOKEN).expect("credential");
    std::fs::write(folder.path().join("job.ad"), "GlobalJobId = \"s#1.0#5\"\n").expect("ad");
    let (name, address) = value(&commands, "environment").split_once('=').expect("environment");
    assert!(address.starts_with("https://"));
    for known in ["stored", "already there"] {
        let mut job = program(env!("CARGO_BIN_EXE_nvd-support-car"), &folder);
        job.args(value(&commands, "arguments").split(' ')).env(name, &app.url);
        job.env("_CONDOR_JOB_AD", "job.ad").env("_CONDOR_CREDS", "creds");
        let said = text(&ends(&mut job, 0).await.stdout);
        assert!(said.contains(known) && said.contains("key s#1.0#5/S1.full.tsv"), "{said}");
    }
    assert_eq!(value(&commands, "retry_until"), "ExitCode =!= 75");
    assert_eq!(app.count("gottcha2_full").await, 8);
}

#[tokio::test]
async fn the_job_script_stores_a_sample_without_hits_and_the_post_script_one_with_hits() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let app = TestApp::start().await;
    let folder = scratch();
    // A tool that finds nothing writes nothing.
    let tool = folder.path().join("gottcha2.py");
    std::fs::write(&tool, "#!/bin/sh\n").expect("tool");
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    symlink(example("clients/curl.sh"), folder.path().join("curl.sh")).expect("link");
    std::fs::write(folder.path().join("nvd.use"), TOKEN).expect("credential");
    let mut job = program("bash", &folder);
    job.arg(example("htcondor/job.sh")).args(["W1", "r1"]);
    ends(job.env("NVD_SUPPORT_URL", &app.url).env("_CONDOR_CREDS", folder.path()), 0).await;
    assert_eq!(app.count("submissions WHERE sample_id = 'W1' AND rows = 0").await, 1);

    symlink(env!("CARGO_BIN_EXE_nvd-support-car"), folder.path().join("nvd-support-car")).expect("link");
    std::fs::create_dir(folder.path().join("results")).expect("folder");
    std::fs::rename(folder.path().join("S1.full.tsv"), folder.path().join("results/S1.full.tsv")).expect("move");
    let post = |returned: &str| {
        let mut post = program("bash", &folder);
        post.arg(example("htcondor/post.sh")).args([returned, "S1", "r1"]);
        post.env("NVD_SUPPORT_URL", &app.url).env("NVD_BEARER_TOKEN", TOKEN);
        post
    };
    ends(&mut post("3"), 3).await;
    ends(&mut post("0"), 0).await;
    assert_eq!(app.count("submissions WHERE key = 'r1/S1.full.tsv' AND rows = 8").await, 1);
}
