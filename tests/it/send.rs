//! `send`: files to a live service by the real binary, over good networks and bad ones.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::app::{RECORD, TOKEN, TestApp, create_database, data, gzip};
use crate::process::{Served, binary, folder, serving, text};
use crate::proxy::{Fault, Proxy};

/// A folder with files, and the binary in it.
struct Sender {
    folder: TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Sender {
    fn new() -> Self {
        Self { folder: folder(), variables: Vec::new() }
    }

    fn to(url: &str) -> Self {
        Self::new().with("NVD_SUPPORT_URL", url).with("NVD_BEARER_TOKEN", TOKEN)
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("write");
        path
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = binary(self.folder.path());
        command.current_dir(self.folder.path()).arg("send").args(arguments).envs(self.variables.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        tokio::process::Command::from(command)
    }

    /// Runs it to the end, which must be that exit code, and answers with its output: results, trouble.
    async fn run(&self, code: i32, arguments: &[&str]) -> (String, String) {
        ended(self.command(arguments).output().await.expect("run"), code)
    }

    async fn pipe(&self, code: i32, arguments: &[&str], input: &[u8]) -> (String, String) {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().expect("start");
        let mut stdin = child.stdin.take().expect("stdin");
        stdin.write_all(input).await.expect("input");
        drop(stdin);
        ended(child.wait_with_output().await.expect("run"), code)
    }
}

fn ended(output: Output, code: i32) -> (String, String) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    (out, err)
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 3).expect("zstd")
}

/// TSV as other programs write CSV, every cell in quotes.
fn csv(tsv: &[u8]) -> String {
    let quoted = |line: &str| {
        let cells: Vec<String> = line.split('\t').map(|cell| format!("\"{}\"", cell.replace('"', "\"\""))).collect();
        cells.join(",")
    };
    text(tsv).lines().map(|line| quoted(line) + "\n").collect()
}

#[tokio::test]
async fn every_generation_of_gottcha2_is_told_from_its_header_and_stored_once() {
    let app = TestApp::start().await;
    let sender = Sender::to(&app.url);
    let mut names = Vec::new();
    for version in ["2.1.8.6", "2.1.10", "2.4.3"] {
        for kind in ["full.tsv", "tsv"] {
            let name = format!("{version}.{kind}");
            sender.write(&name, data(&format!("gottcha2/v{version}.SRR12689945.{kind}")));
            names.push(name);
        }
    }
    let options = ["*.tsv", "--sample-id", "SRR12689945", "--run-id", "r1", "--experiment", "7"];
    let (out, err) = sender.run(0, &options).await;
    for name in &names {
        assert!(out.contains(&format!("{name}: stored, ")), "{name}: {out}{err}");
    }
    assert_eq!(app.count("gottcha2_full").await, 45);
    assert_eq!(app.count("gottcha2_full WHERE run_id = 'r1' AND experiment = 7").await, 45);
    let (out, _) = sender.run(0, &options).await;
    assert_eq!(out.matches("already there").count(), names.len(), "{out}");
    assert_eq!(app.count("submissions").await, 6);
}

#[tokio::test]
async fn blast_with_and_without_a_header_compressed_and_not_arrives_row_for_row() {
    let app = TestApp::start().await;
    let sender = Sender::to(&app.url);
    let annotated = data("stast/nvd_annotated_13col.megablast.tsv");
    sender.write("header.tsv", &annotated);
    let headerless = annotated.splitn(2, |byte| *byte == b'\n').nth(1).expect("rows").to_owned();
    sender.write("thirteen.tsv", headerless);
    sender.write("ten.tsv", data("stast/raw_megablast_outfmt6_10col.contigs.tsv"));
    sender.write("ten.tsv.gz", gzip(data("stast/raw_megablast_outfmt6_10col.contigs.tsv")));
    sender.write("lines.jsonl.zst", zstd(&data("stast/stast.jsonl")));
    sender.write("lines.jsonl.gz", data("stast/stast.jsonl.gz"));
    sender.run(0, &["header.tsv", "thirteen.tsv", "lines.jsonl.zst", "--db-version", "mini"]).await;
    sender.run(0, &["ten.tsv", "--sample-id", "S1", "--task", "megablast"]).await;
    assert_eq!(app.count("stast_table").await, 4 * 174);
    assert_eq!(app.count("stast_table WHERE db_version = 'mini'").await, 3 * 174);
    assert_eq!(app.count("stast_table WHERE sample_id = 'S1' AND task = 'megablast'").await, 174);

    // Compression is no part of the content.
    let (out, _) = sender.run(0, &["lines.jsonl.gz", "--db-version", "mini"]).await;
    assert!(out.contains("already there"), "{out}");
    let (out, _) = sender.run(0, &["ten.tsv.gz", "--sample-id", "S1", "--task", "megablast"]).await;
    assert!(out.contains("already there"), "{out}");
    assert_eq!(app.count("submissions").await, 4);
}

#[tokio::test]
async fn csv_is_stored_as_the_tsv_that_it_stands_for() {
    let app = TestApp::start().await;
    let sender = Sender::to(&app.url);
    let tsv = data("gottcha2/v2.4.3.SRR12689945.full.tsv");
    sender.write("a.tsv", &tsv);
    sender.write("a.csv", csv(&tsv));
    sender.write("a.csv.gz", gzip(csv(&tsv)));
    sender.run(0, &["a.tsv", "--sample-id", "S1"]).await;
    for name in ["a.csv", "a.csv.gz"] {
        let (out, _) = sender.run(0, &[name, "--sample-id", "S1"]).await;
        assert!(out.contains("already there"), "{out}");
    }
    // blastn -outfmt 10
    let ten = data("stast/raw_megablast_outfmt6_10col.contigs.tsv");
    let (out, _) = sender.pipe(0, &["-", "--sample-id", "S1"], csv(&ten).as_bytes()).await;
    assert!(out.contains("stdin: stored, 174 rows"), "{out}");

    sender.write("bad.csv", "LEVEL,NAME,TAXID,READ_COUNT,TOTAL_BP_MAPPED\n\n\ngenus,\"a, b\",1,x,2\n");
    let (_, err) = sender.run(65, &["bad.csv", "--sample-id", "S1"]).await;
    assert!(err.contains("bad.csv:4: read_count: "), "{err}");
    sender.write("tab.csv", "LEVEL,NAME,TAXID,READ_COUNT,TOTAL_BP_MAPPED\ngenus,\"a\tb\",1,1,2\n");
    let (_, err) = sender.run(65, &["tab.csv", "--sample-id", "S1"]).await;
    assert!(err.contains("tab.csv:2: cell 2 holds a tab"), "{err}");
    sender.write("cut.csv", "LEVEL,NAME,TAXID,READ_COUNT,TOTAL_BP_MAPPED,NOTE\ngenus,a,1,1,2,\"cut o");
    let (_, err) = sender.run(65, &["cut.csv", "--sample-id", "S1"]).await;
    assert!(err.contains("cut.csv:2: cell 6") && err.contains("a quote that is never closed"), "{err}");
}

#[tokio::test]
async fn an_empty_file_is_a_result_of_no_rows_if_it_has_an_owner() {
    let app = TestApp::start().await;
    let sender = Sender::to(&app.url);
    sender.write("water.full.tsv", "");
    let (_, err) = sender.run(65, &["water.full.tsv", "--dataset", "gottcha2"]).await;
    assert!(err.contains("--sample-id"), "{err}");
    let (_, err) = sender.run(78, &["water.full.tsv", "--sample-id", "W1"]).await;
    assert!(err.contains("--dataset"), "{err}");
    let options = ["water.full.tsv", "--dataset", "gottcha2", "--sample-id", "W1"];
    assert!(sender.run(0, &options).await.0.contains("stored, 0 rows"));
    assert!(sender.run(0, &options).await.0.contains("already there, 0 rows"));
    assert_eq!(app.count("submissions WHERE sample_id = 'W1' AND rows = 0").await, 1);
}

#[tokio::test]
async fn bad_rows_are_told_by_place_and_never_sent() {
    // Nobody listens at that address, and nobody is asked.
    let sender = Sender::to("http://127.0.0.1:9");
    let good = RECORD;
    let bad = RECORD.replace("513", "-1");
    sender.write("rows.jsonl", format!("{good}\n{bad}\n{}\n", RECORD.replace("69897", "true")));
    let (_, err) = sender.run(65, &["rows.jsonl"]).await;
    let column = bad.find("-1").expect("place") + 1;
    assert!(err.contains(&format!("rows.jsonl:2:{column}: read_count: must be at least 0")), "{err}");
    assert!(err.contains("rows.jsonl:3:"), "{err}");
    sender.write("nobody.tsv", data("gottcha2/v2.4.3.SRR12689945.tsv"));
    let (_, err) = sender.run(65, &["nobody.tsv"]).await;
    assert!(err.contains("nobody.tsv:1: sample_id: is required") && err.contains("once as --sample-id"), "{err}");
    sender.write("cut.tsv.gz", &gzip(good)[..30]);
    let (_, err) = sender.run(65, &["cut.tsv.gz", "--dataset", "gottcha2"]).await;
    assert!(err.contains("cut.tsv.gz: the gzip data are truncated"), "{err}");
    let (_, err) = sender.run(65, &["missing.tsv"]).await;
    assert!(err.contains("missing.tsv: cannot be read"), "{err}");
    let (_, err) = sender.run(65, &["none-*.tsv"]).await;
    assert!(err.contains("none-*.tsv: matches no file"), "{err}");
    sender.write("good.jsonl", good);
    let (_, err) = sender.run(65, &["good.jsonl", "--task", "megablast"]).await;
    assert!(err.contains("good.jsonl: task: "), "{err}");
}

#[tokio::test]
async fn a_dry_run_checks_everything_and_needs_neither_address_nor_token() {
    let sender = Sender::new();
    sender.write("good.jsonl", RECORD);
    sender.write("bad.jsonl", RECORD.replace("513", "\"many\""));
    let (out, err) = sender.run(0, &["good.jsonl", "--dry-run", "--key", "k 1"]).await;
    assert_eq!((out.as_str(), err.as_str()), ("good.jsonl: good, 1 rows for gottcha2, under the key k 1\n", ""));
    let (out, err) = sender.run(65, &["*.jsonl", "--dry-run"]).await;
    assert!(out.starts_with("good.jsonl: good, 1 rows for gottcha2, without a key"), "{out}");
    assert!(err.starts_with("bad.jsonl:1:") && err.contains(": read_count: "), "{err}");
    assert!(!err.contains("many"), "{err}");
}

#[tokio::test]
async fn without_address_token_or_dataset_the_configuration_is_to_blame() {
    let sender = Sender::new();
    sender.write("a.jsonl", RECORD);
    let (_, err) = sender.run(78, &["a.jsonl"]).await;
    assert!(err.contains("NVD_SUPPORT_URL"), "{err}");
    let (_, err) = sender.run(78, &["a.jsonl", "--url", "http://127.0.0.1:9"]).await;
    assert!(err.contains("NVD_BEARER_TOKEN"), "{err}");
    let (_, err) = sender.run(78, &["a.jsonl", "--url", "ftp://127.0.0.1"]).await;
    assert!(err.contains("http://"), "{err}");
    let (_, err) = sender.run(78, &["a.jsonl", "--url", "http://127.0.0.1:9", "--token-file", "none"]).await;
    assert!(err.contains("none: cannot be read"), "{err}");
    let (_, err) = sender.run(78, &["a.jsonl", "--dry-run", "--dataset", "gotcha"]).await;
    assert!(err.contains("there is no dataset `gotcha`") && err.contains("gottcha2"), "{err}");
    let (_, err) = sender.run(78, &["a.jsonl", "a.jsonl", "--dry-run", "--set", "nonsense=1"]).await;
    assert!(err.contains("nonsense"), "{err}");
    sender.write("b.jsonl", RECORD);
    let (_, err) = sender.run(78, &["*.jsonl", "--dry-run", "--key", "k"]).await;
    assert!(err.contains("--key"), "{err}");
}

#[tokio::test]
async fn a_refused_token_a_taken_key_and_a_foreign_server_have_their_codes() {
    let app = TestApp::with(&[("auth.ingest_token", "only-ingest")]).await;
    let sender = Sender::to(&app.url);
    sender.write("a.jsonl", RECORD);
    sender.write("b.jsonl", RECORD.replace("513", "514"));
    sender.write("token", "wrong\n");
    let (_, err) = sender.run(77, &["a.jsonl", "--token-file", "token"]).await;
    assert!(err.contains("a.jsonl: the service says 401"), "{err}");
    assert!(!err.contains("wrong"), "{err}");
    sender.write("token", "only-ingest");
    sender.run(0, &["a.jsonl", "--token-file", "token", "--key", "k/1 ä#?"]).await;
    let (out, _) = sender.run(0, &["a.jsonl", "--key", "k/1 ä#?"]).await;
    assert!(out.contains("already there") && out.contains("key k/1 ä#?"), "{out}");
    let (_, err) = sender.run(65, &["b.jsonl", "--key", "k/1 ä#?"]).await;
    assert!(err.contains("b.jsonl: the service says 409") && !err.contains("on_conflict"), "{err}");
    assert!(err.contains("send it again under another key, or remove the submission first"), "{err}");
    let elsewhere = format!("{}/nothing", app.url);
    let (_, err) = sender.run(78, &["a.jsonl", "--url", &elsewhere]).await;
    assert!(err.contains("404"), "{err}");
    let secure = app.url.replace("http://", "https://");
    let (_, err) = sender.run(78, &["a.jsonl", "--url", &secure]).await;
    assert!(err.contains("does not speak TLS"), "{err}");
    assert_eq!(app.count("submissions").await, 1);
}

#[tokio::test]
async fn of_several_files_the_worst_end_decides_and_the_others_are_stored() {
    let app = TestApp::start().await;
    let sender = Sender::to(&app.url);
    sender.write("1.jsonl", RECORD);
    sender.write("2.jsonl", RECORD.replace("513", "x"));
    sender.write("3.jsonl", RECORD.replace("S1", "S3"));
    let (out, err) = sender.run(65, &["*.jsonl", "--dataset", "gottcha2"]).await;
    assert_eq!(out.matches("stored, 1 rows").count(), 2, "{out}");
    assert!(err.starts_with("2.jsonl:1"), "{err}");
    let (_, err) =
        sender.run(75, &["*.jsonl", "--dataset", "gottcha2", "--url", "http://127.0.0.1:9", "--max-time", "1s"]).await;
    assert!(err.contains("3.jsonl: not stored in the given time"), "{err}");
    assert_eq!(app.count("gottcha2_full").await, 2);
}

#[tokio::test]
async fn a_job_makes_the_key_and_brings_the_token() {
    let app = TestApp::start().await;
    let sender = Sender::new();
    let path = |name: &str| sender.folder.path().join(name).display().to_string();
    let (ad, creds) = (path("job.ad"), path("creds"));
    let sender = sender.with("_CONDOR_JOB_AD", ad).with("_CONDOR_CREDS", creds).with("NVD_SUPPORT_URL", &app.url);
    sender.write("job.ad", "Owner = \"nvd\"\nGlobalJobId = \"submit-1#152.3#1358363336\"\n");
    std::fs::create_dir(sender.folder.path().join("creds")).expect("folder");
    sender.write("creds/nvd.top", "no token");
    sender.write("creds/nvd.use", format!("{{\"access_token\": \"{TOKEN}\", \"expires_in\": 3600}}\n"));
    sender.write("a.jsonl", RECORD);
    let (out, _) = sender.run(0, &["a.jsonl"]).await;
    assert!(out.contains("stored, ") && out.contains("key submit-1#152.3#1358363336/a.jsonl"), "{out}");
    assert!(sender.run(0, &["a.jsonl"]).await.0.contains("already there"));
    sender.write("creds/nvd.use", TOKEN);
    assert!(sender.run(0, &["./a.jsonl"]).await.0.contains("already there"));
    sender.write("a.jsonl", RECORD.replace("513", "514"));
    sender.run(65, &["a.jsonl"]).await;
    // Standard input has no name: what two steps of a job send must not meet under one key.
    for (index, known) in [(0, "stored"), (1, "stored"), (1, "already there")] {
        let record = RECORD.replace("S1", &format!("P{index}"));
        let (out, _) = sender.pipe(0, &["-"], record.as_bytes()).await;
        assert!(out.contains(known) && out.contains("key sha256:"), "{out}");
    }
    let (_, err) = sender.run(78, &["a.jsonl", "creds/../a.jsonl"]).await;
    assert!(err.contains("another file has the same name"), "{err}");
    assert_eq!(app.count("submissions").await, 3);
}

#[tokio::test]
async fn a_server_that_restarts_meanwhile_gets_the_file_once() {
    let sender = Sender::new().with("NVD_BEARER_TOKEN", "t");
    let (_, database_url) = create_database().await;
    let serve = |address: &str| {
        let mut command = binary(sender.folder.path());
        command.args(["serve", "--listen", address]).env("DATABASE_URL", &database_url).env("BEARER_TOKEN", "t");
        Served::start(&mut command)
    };
    let first = serve("127.0.0.1:0");
    let (url, address) = (first.url.clone(), first.url.trim_start_matches("http://").to_owned());
    first.kill();
    sender.write("a.jsonl", RECORD);
    let mut child = sender.command(&["a.jsonl", "--url", &url]).spawn().expect("start");
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stderr.take().expect("stderr")));
    let line = lines.next_line().await.expect("line").expect("line");
    assert!(line.contains("trying again in"), "{line}");
    let second = serve(&address);
    let (out, _) = ended(child.wait_with_output().await.expect("run"), 0);
    assert!(out.contains("a.jsonl: stored, 1 rows"), "{out}");
    assert!(sender.run(0, &["a.jsonl", "--url", &second.url]).await.0.contains("already there"));
}

#[tokio::test]
async fn a_service_that_nobody_vouches_for_is_not_sent_to_until_its_certificate_is_named() {
    let sender = Sender::new().with("NVD_BEARER_TOKEN", "t");
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("certificate");
    let certificate = sender.write("cert.pem", made.cert.pem());
    let key = sender.write("key.pem", made.signing_key.serialize_pem());
    let (_, database_url) = create_database().await;
    let mut command = serving(sender.folder.path(), &database_url);
    let served = Served::start(command.env("CERT_PATH", &certificate).env("KEY_PATH", &key));
    sender.write("a.jsonl", RECORD);
    let started = Instant::now();
    let (_, err) = sender.run(78, &["a.jsonl", "--url", &served.url, "--max-time", "1m"]).await;
    assert!(err.contains("a.jsonl: the service is not trusted: ") && err.contains("SSL_CERT_FILE"), "{err}");
    assert!(started.elapsed() < Duration::from_secs(30), "it was tried again");
    let sender = sender.with("SSL_CERT_FILE", certificate.display().to_string());
    let (out, _) = sender.run(0, &["a.jsonl", "--url", &served.url]).await;
    assert!(out.contains("stored, 1 rows"), "{out}");
}

#[tokio::test]
async fn a_service_that_asks_to_wait_is_not_asked_sooner() {
    let app = TestApp::start().await;
    let mut faults = [Fault::Unavailable, Fault::Unavailable].into_iter();
    let proxy = Proxy::start(app.address, move || faults.next().unwrap_or(Fault::Pass)).await;
    let sender = Sender::to(&proxy.url);
    sender.write("a.jsonl", RECORD);
    let started = Instant::now();
    let (out, err) = sender.run(0, &["a.jsonl"]).await;
    // Two answers with `Retry-After: 1`.
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(err.matches("503").count(), 2, "{err}");
    assert!(out.contains("stored"), "{out}");
}

#[tokio::test]
async fn a_lost_answer_is_told_as_already_there() {
    let app = TestApp::start().await;
    let mut faults = [Fault::Swallow, Fault::Truncate(400), Fault::Reset(300), Fault::Drop].into_iter();
    let proxy = Proxy::start(app.address, move || faults.next().unwrap_or(Fault::Pass)).await;
    let sender = Sender::to(&proxy.url);
    sender.write("a.tsv", data("gottcha2/v2.4.3.SRR12689945.full.tsv"));
    let (out, err) = sender.run(0, &["a.tsv", "--sample-id", "S1"]).await;
    assert!(out.contains("already there, 8 rows"), "{out}{err}");
    assert_eq!(err.matches("trying again").count(), 4, "{err}");
    assert_eq!((app.count("submissions").await, app.count("gottcha2_full").await), (1, 8));
}

/// A file of rows that no compressor makes small.
fn noise(random: &mut SmallRng, file: usize, rows: usize) -> String {
    let row = |random: &mut SmallRng| {
        RECORD
            .replace("513", &random.random_range(0..1_000_000).to_string())
            .replace("zairense", &format!("{:016x}", random.random::<u64>()))
            .replace("S1", &format!("S{file}"))
    };
    (0..rows).map(|_| row(random) + "\n").collect()
}

fn fault(random: &mut SmallRng) -> Fault {
    match random.random_range(0..40) {
        0..2 => Fault::Drop,
        2..5 => Fault::Reset(random.random_range(1..4000)),
        5..7 => Fault::Truncate(random.random_range(1..4000)),
        7..9 => Fault::Unavailable,
        9..11 => Fault::Swallow,
        11..13 => Fault::Cut(random.random_range(1..300)),
        13..15 => Fault::Delay(random.random_range(1..30)),
        _ => Fault::Pass,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_processes_over_a_failing_network_store_each_of_sixty_files_exactly_once() {
    send_over_a_failing_network(60, 4, 150).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; the same with sixty files is always run"]
async fn eight_processes_over_a_failing_network_store_each_of_a_thousand_files_exactly_once() {
    send_over_a_failing_network(1000, 8, 50).await;
}

/// Each file is sent by two of the processes.
async fn send_over_a_failing_network(files: usize, processes: usize, rows: usize) {
    let app = TestApp::start().await;
    let mut random = SmallRng::seed_from_u64(20_261_120);
    let sender_files = Sender::new();
    for file in 0..files {
        sender_files.write(&format!("{file}.jsonl"), noise(&mut random, file, rows));
    }
    let mut connection = 0;
    let proxy = Proxy::start(app.address, move || {
        connection += 1;
        // Now and then nobody is let in for a while.
        if connection % 100 < 8 { Fault::Unavailable } else { fault(&mut random) }
    })
    .await;
    let sender = sender_files.with("NVD_SUPPORT_URL", &proxy.url).with("NVD_BEARER_TOKEN", TOKEN);
    let pairs = processes / 2;
    let runs = (0..processes).map(|process| {
        let mut command = sender.command(&["--concurrency", "15", "--max-time", "10m"]);
        command.args((0..files).filter(|file| file % pairs == process % pairs).map(|file| format!("{file}.jsonl")));
        async move { ended(command.output().await.expect("run"), 0) }
    });
    let outputs = futures_util::future::join_all(runs).await;
    let counts = proxy.counts();
    assert!(counts.iter().all(|count| *count > 0), "not every fault occurred: {counts:?}");
    let lines = |what: &str| outputs.iter().map(|(out, _)| out.matches(what).count()).sum::<usize>();
    assert_eq!(lines("stored, ") + lines("already there, "), 2 * files);
    assert_eq!(app.count("submissions").await, files as i64);
    assert_eq!(app.count("gottcha2_full").await, (files * rows) as i64);
    let uneven = format!("(SELECT FROM gottcha2_full GROUP BY sample_id HAVING count(*) <> {rows}) AS uneven");
    assert_eq!(app.count(&uneven).await, 0);
    println!(
        "faults: {counts:?}; tries again: {}",
        outputs.iter().map(|(_, err)| err.matches("trying again").count()).sum::<usize>()
    );
}

#[tokio::test]
async fn an_operator_s_dataset_is_checked_and_sent_too() {
    let sender = Sender::new();
    std::fs::create_dir(sender.folder.path().join("datasets")).expect("folder");
    let definition = r#"
        name = "coverage"
        table = "coverage"
        title = "t"
        description = "d"
        [[columns]]
        name = "sample_id"
        kind = "text"
        required = true
        description = "d"
        [[columns]]
        name = "numreads"
        kind = "int"
        min = 0
        description = "d"
    "#;
    sender.write("datasets/coverage.toml", definition);
    sender.write("a.csv", "sample_id,numreads\nS1,5\n");
    let (out, _) = sender.run(0, &["a.csv", "--dry-run", "--set", "datasets.dir=datasets"]).await;
    assert!(out.contains("1 rows for coverage"), "{out}");
    sender.run(78, &["a.csv", "--dry-run"]).await;
}

#[tokio::test]
async fn a_key_that_an_address_would_change_is_refused() {
    let sender = Sender::new();
    sender.write("a.jsonl", RECORD);
    for key in ["k\ttab", "k\r\n", "\u{7f}", &"k".repeat(513)] {
        let (_, err) = sender.run(78, &["a.jsonl", "--dry-run", "--key", key]).await;
        assert!(err.contains("--key: must be 1 to 512 characters, none of them a control character"), "{err}");
    }
    sender.run(0, &["a.jsonl", "--dry-run", "--key", &"ä".repeat(512)]).await;
    let ad = sender.folder.path().join("job.ad").display().to_string();
    sender.write("job.ad", "GlobalJobId = \"submit-1#152.3#1358363336\"\n");
    sender.write("a\tb.jsonl", RECORD);
    let sender = sender.with("_CONDOR_JOB_AD", ad);
    let (_, err) = sender.run(78, &["a\tb.jsonl", "--dry-run"]).await;
    assert!(err.contains("makes no key: must be 1 to 512 characters"), "{err}");
    sender.run(0, &["a\tb.jsonl", "--dry-run", "--key", "k"]).await;
}
