//! Speed, memory and size of exports, as ratios against the tools that an analyst would use instead, in the same run.
//!
//! `cargo bench --bench export -- [--dataset gottcha2|stast] [--rows N] [--runs N] [--python FILE] [--pg2parquet FILE]
//! [--peers duckdb,polars,pandas,pg2parquet,sketch]`, on an idle machine. Peers that are named (all, if not) and can be
//! found are run: `--python` has `duckdb` and `duckdb-extension-postgres-scanner`, `polars` and
//! `adbc-driver-postgresql`, `pandas`, `sqlalchemy`, `psycopg2` and `pyarrow`. Each writes all columns of the same table
//! as Parquet with Zstd 3; DuckDB then verifies every file against PostgreSQL: the number of rows, and the sums of
//! columns. Prints a Markdown table; then the memory of the service above idle while it exports to disk and to S3, and
//! how long DuckDB looks for single rows in our file.

#![expect(dead_code, reason = "what benchmarks share, each uses in part")]

#[path = "../common/arguments.rs"]
mod arguments;
mod contenders;
#[path = "../common/hits.rs"]
mod hits;
#[path = "../common/measured.rs"]
mod measured;
#[path = "../common/records.rs"]
mod records;
#[path = "../../tests/it/s3_server.rs"]
mod s3_server;
#[path = "../common/service.rs"]
mod service;
mod sketch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use arguments::{Folder, argument, number};
use contenders::{Contender, SKETCH};
use hits::Hits;
use measured::{median, sorted};
use records::{Records, write_gzip};
use s3_server::S3;
use service::{Service, stream};
use sqlx::AssertSqlSafe;

/// Rows of one upload that fills the table. No whole number of row groups, so that what comes between two uploads lies
/// within one.
const UPLOAD: u64 = 750_000;

/// A taxon that no generated sample has, and the number of samples that have it, with one row each.
const RARE_TAXID: &str = "2697049";
const RARE_SAMPLES: u32 = 3;

/// What to measure.
pub struct Plan {
    dataset: String,
    rows: u64,
    runs: usize,
    python: Option<String>,
    pg2parquet: Option<String>,
    folder: PathBuf,
}

impl Plan {
    fn from_arguments(folder: &Path) -> Self {
        Self {
            dataset: argument("--dataset").unwrap_or_else(|| "gottcha2".into()),
            rows: number("--rows", 2_000_000),
            runs: number("--runs", 3),
            python: argument("--python"),
            pg2parquet: argument("--pg2parquet"),
            folder: folder.to_owned(),
        }
    }

    fn is_gottcha2(&self) -> bool {
        self.dataset == "gottcha2"
    }

    fn table(&self) -> &'static str {
        if self.is_gottcha2() { "gottcha2_full" } else { "stast_table" }
    }

    /// What is compared between a file and the table, as SQL that both understand.
    fn sums(&self) -> [&'static str; 4] {
        if self.is_gottcha2() {
            ["count(*)", "sum(read_count)", "round(sum(depth))", "count(DISTINCT taxid)"]
        } else {
            ["count(*)", "sum(length)", "round(sum(bitscore))", "count(DISTINCT stitle)"]
        }
    }
}

#[tokio::main]
async fn main() {
    nvd_support_car::tls::use_ring();
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, url, table, output] = arguments.as_slice()
        && mode == SKETCH
    {
        return sketch::run(url, table, Path::new(output)).await;
    }
    let folder = Folder::new();
    let plan = Plan::from_arguments(folder.path());
    let service = Service::start(folder.path()).await;
    eprintln!("storing {} rows", plan.rows);
    fill(&plan, &service).await;
    let mut contenders = contenders::all(&plan, &service);
    for run in 0..plan.runs {
        for contender in &mut contenders {
            let (seconds, mebibytes) = measure((contender.command)());
            eprintln!("run {run}: {} {seconds:.2} s, {mebibytes:.0} MiB", contender.name);
            contender.seconds.push(seconds);
            contender.mebibytes.push(mebibytes);
        }
    }
    for contender in &contenders {
        verify(&plan, &service, contender).await;
    }
    report(&plan, &contenders);
    lookups(&plan, &service, &contenders[0]).await;
    service.stop().await;
    memory(&plan).await;
}

async fn fill(plan: &Plan, service: &Service) {
    let body = plan.folder.join("body.gz");
    for (index, first) in (0..plan.rows).step_by(usize::try_from(UPLOAD).expect("few rows")).enumerate() {
        let (seed, rows) = (1 + u32::try_from(index).expect("few bodies"), UPLOAD.min(plan.rows - first));
        if plan.is_gottcha2() {
            write_gzip(&body, &mut Records::new(seed), rows);
        } else {
            write_gzip(&body, &mut Hits::new(seed), rows);
        }
        service.put_into(&plan.dataset, &format!("body-{index}"), stream(vec![body.clone()]).await).await;
        if plan.is_gottcha2() && seed <= RARE_SAMPLES {
            write_gzip(&body, &mut Records::of_taxon("rare virus", RARE_TAXID, 1_000 + seed), 1);
            service.put_into(&plan.dataset, &format!("rare-{index}"), stream(vec![body.clone()]).await).await;
        }
    }
    service.execute(&format!("VACUUM ANALYZE {}", plan.table())).await;
    service.execute("CHECKPOINT").await;
}

/// Runs a command to its good end: its seconds, and the most memory that it held, in MiB.
fn measure(mut command: Command) -> (f64, f64) {
    let started = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().expect("a program");
    let mut most = 0.0_f64;
    loop {
        if let Some(status) = child.try_wait().expect("status") {
            assert!(status.success(), "{command:?} failed");
            return (started.elapsed().as_secs_f64(), most);
        }
        most = most.max(peak(child.id()).unwrap_or_default());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn peak(process: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

/// Runs a Python script and answers with what it printed.
fn python(program: &str, script: &str, file: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(["-c", script]).arg(file).args(arguments).output().expect("Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Compares what DuckDB reads in a file with what PostgreSQL has in the table.
async fn verify(plan: &Plan, service: &Service, contender: &Contender) {
    let (Some(program), Some(source)) = (&plan.python, contender.source()) else { return };
    let query = plan.sums().map(|sum| format!("({sum})::bigint::text")).join(", ");
    let query = format!("SELECT ARRAY[{query}] FROM {}", plan.table());
    let expected: Vec<String> = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&service.pool).await.expect("sums");
    let sums = plan.sums().map(|sum| format!("({sum})::bigint"));
    let found = python(program, include_str!("verify.py"), &source, &sums.each_ref().map(String::as_str));
    assert_eq!(found.split_whitespace().collect::<Vec<_>>(), expected, "{}", contender.name);
}

/// Milliseconds in which DuckDB finds one sample, the rarest of the generated taxa, and one that few samples have in our
/// file.
async fn lookups(plan: &Plan, service: &Service, ours: &Contender) {
    let (Some(program), Some(source)) = (&plan.python, ours.source()) else { return };
    let column = if plan.is_gottcha2() { "taxid" } else { "staxids" };
    let rarest = format!(
        "SELECT {column} FROM {} WHERE {column} <> '{RARE_TAXID}' GROUP BY 1 ORDER BY count(*), 1 LIMIT 1",
        plan.table()
    );
    let middle = format!(
        "SELECT sample_id FROM {} GROUP BY 1 ORDER BY 1 OFFSET (SELECT count(DISTINCT sample_id) / 2 FROM {}) LIMIT 1",
        plan.table(),
        plan.table()
    );
    let mut conditions = Vec::new();
    for (column, query) in [(column, rarest), ("sample_id", middle)] {
        let value: String = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&service.pool).await.expect("value");
        conditions.push(format!("{column} = '{value}'"));
    }
    if plan.is_gottcha2() {
        conditions.push(format!("{column} = '{RARE_TAXID}'"));
    }
    let conditions: Vec<&str> = conditions.iter().map(String::as_str).collect();
    let found = python(program, include_str!("lookups.py"), &source, &conditions);
    for (line, condition) in found.lines().zip(conditions) {
        let (millis, rows) = line.split_once(' ').expect("two numbers");
        println!("DuckDB, `{condition}` in our file of {} rows: {millis} ms, {rows} rows", plan.rows);
    }
}

/// The most memory that the service takes above idle while it exports, to disk and to S3.
async fn memory(plan: &Plan) {
    let s3 = S3::start().await;
    for (name, storage) in [("disk", String::new()), ("S3", s3.url("secret"))] {
        let service = Service::with(&plan.folder, &[format!("export.storage={storage}")]).await;
        let idle = service.resident();
        service.forget_peak();
        service.export(&plan.dataset).await;
        println!("the service, exporting {} rows to {name}: {:.0} MiB above idle", plan.rows, service.peak() - idle);
        service.stop().await;
    }
}

fn report(plan: &Plan, contenders: &[Contender]) {
    println!(
        "| {} rows of {} to Parquet, Zstd 3 | seconds | times ours | peak MiB | file MB |\n|---|---|---|---|---|",
        plan.rows, plan.dataset
    );
    let ours = &contenders[0];
    for contender in contenders {
        let ratios: Vec<f64> =
            contender.seconds.iter().zip(&ours.seconds).map(|(theirs, ours)| theirs / ours).collect();
        let ratios = sorted(&ratios);
        let bytes: u64 = contender.files().iter().map(|file| fs::metadata(file).expect("file").len()).sum();
        let size = if bytes > 0 { format!("{:.1}", bytes as f64 / 1e6) } else { "-".to_owned() };
        println!(
            "| {} | {:.2} | **{:.2}** ({:.2} to {:.2}) | {:.0} | {size} |",
            contender.name,
            median(&contender.seconds),
            median(&ratios),
            ratios[0],
            ratios[ratios.len() - 1],
            median(&contender.mebibytes),
        );
    }
}
