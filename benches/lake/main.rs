//! Partitioned datasets: how small they are, how fast they are written whole and in part, and how fast DuckDB reads them.
//!
//! `cargo bench --bench lake -- [--rows N] [--days N] [--runs N] [--python FILE] [--section NAME,...]`, on an idle machine;
//! sections: `size`, `speed`, `memory`, `queries`, `incremental`. `--python` has `duckdb`; without it there are no
//! queries. Prints a Markdown table.

#![expect(dead_code, reason = "what benchmarks share, each uses in part")]

#[path = "../common/arguments.rs"]
mod arguments;
#[path = "../common/hits.rs"]
mod hits;
#[path = "../common/measured.rs"]
mod measured;
#[path = "../common/profiles.rs"]
mod profiles;
#[path = "../common/records.rs"]
mod records;
#[path = "../common/service.rs"]
mod service;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use arguments::{Folder, argument, number, wants};
use chrono::{Days, NaiveDate};
use hits::Hits;
use measured::{median, spread};
use profiles::Profiles;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use records::{Lines, Records};
use service::Service;

/// Rows of one submission at most.
const SUBMISSION: u64 = 5_000;

/// Days and rows of each day by which sizes are compared.
const SIZE: (u64, u64) = (20, 25_000);

/// Rows of a day of the query figures: about 127 KB of CSV.
const FIGURES: u64 = 1_234;

/// Rows that are new in an incremental run.
const NEW: u64 = 10_000;

#[tokio::main]
async fn main() {
    nvd_support_car::tls::use_ring();
    let folder = Folder::new();
    let (rows, days, runs) = (number("--rows", 10_000_000), number("--days", 400), number("--runs", 3));
    println!("| what | target | measured |\n|---|---|---|");
    if wants("--section", "size") {
        let service = Service::start(folder.path()).await;
        let rows = SIZE.0 * SIZE.1;
        for (dataset, what, target, mut lines) in [
            ("gottcha2", "gottcha2 with lineages", "at least 80 %", Box::new(Profiles::new(1)) as Box<dyn Lines>),
            ("stast", "stast", "at least 80 %", Box::new(Hits::new(1))),
            ("gottcha2", "gottcha2 of independent random numbers", "none", Box::new(Records::new(1))),
        ] {
            fill(&service, dataset, lines.as_mut(), SIZE.0, rows).await;
            size(&service, &folder, dataset, what, target);
            service.execute("TRUNCATE gottcha2_full, stast_table, submissions, labkey_deliveries").await;
        }
        service.stop().await;
        figures(&folder);
    }
    if ["speed", "memory", "queries", "incremental"].iter().all(|section| !wants("--section", section)) {
        return;
    }
    let service = Service::start(folder.path()).await;
    eprintln!("storing {rows} rows of {days} days");
    fill(&service, "gottcha2", &mut Records::new(1), days, rows).await;
    service.execute("CHECKPOINT").await;
    let what = format!("{rows} rows of {days} days, cut by day");
    let (mut whole, mut cut) = (Vec::new(), Vec::new());
    let runs = if wants("--section", "speed") { runs } else { 1 };
    for run in 0..runs {
        remove(&folder.join("whole"));
        remove(&folder.join("lake"));
        whole.push(export(&service, &folder, "gottcha2", &["--service-columns", "-o", path(&folder.join("whole"))]));
        cut.push(partition(&service, &folder, "gottcha2"));
        eprintln!("run {run}: whole {:.2} s, by day {:.2} s", whole[run], cut[run]);
    }
    let speeds: Vec<f64> = whole.iter().zip(&cut).map(|(whole, cut)| 100.0 * whole / cut).collect();
    let text = format!("{} % ({:.1} s and {:.1} s)", spread(&speeds, 0), median(&whole), median(&cut));
    report(&format!("speed of {what}, against one export"), "at least 70 %", &text);
    if let Some(python) = argument("--python").filter(|_| wants("--section", "queries")) {
        queries(&service, &folder, &python).await;
    }
    if wants("--section", "incremental") {
        let mut shares = Vec::new();
        for run in 0..runs {
            put(&service, "gottcha2", &mut Records::new(900 + u32::try_from(run).expect("few runs")), NEW).await;
            let seconds = partition(&service, &folder, "gottcha2");
            eprintln!("incremental run {run}: {seconds:.2} s");
            shares.push(100.0 * seconds / median(&cut));
        }
        let text = format!("{} %", spread(&shares, 1));
        report(&format!("{NEW} new rows beside {rows}, against a full run"), "at most 5 %", &text);
    }
    if wants("--section", "memory") {
        memory(&service, &what).await;
    }
    service.stop().await;
}

/// Stores rows as if in the course of so many days.
async fn fill(service: &Service, dataset: &str, lines: &mut dyn Lines, days: u64, rows: u64) {
    let first = NaiveDate::from_ymd_opt(2025, 1, 1).expect("day");
    let table = if dataset == "stast" { "stast_table" } else { "gottcha2_full" };
    let date_from = async |default: &str| {
        for table in [table, "submissions"] {
            service.execute(&format!("ALTER TABLE {table} ALTER created_at SET DEFAULT {default}")).await;
        }
    };
    for day in 0..days {
        date_from(&format!("'{}T12:00:00Z'", first + Days::new(day))).await;
        // Rows that do not divide go to the first days.
        let of_day = rows / days + u64::from(day < rows % days);
        put(service, dataset, lines, of_day).await;
    }
    date_from("now()").await;
    // As the server does by itself within a minute.
    service.execute("VACUUM ANALYZE").await;
}

/// Stores rows as submissions of [`SUBMISSION`] rows.
async fn put(service: &Service, dataset: &str, lines: &mut dyn Lines, rows: u64) {
    for first in (0..rows).step_by(usize::try_from(SUBMISSION).expect("few rows")) {
        let mut body = String::new();
        for _ in 0..SUBMISSION.min(rows - first) {
            lines.write(&mut body);
        }
        service.put_into(dataset, &uuid::Uuid::now_v7().to_string(), body.into()).await;
    }
}

/// The seconds that the command takes.
fn run(service: Option<&Service>, folder: &Folder, arguments: &[&str]) -> f64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvd-support-car"));
    command.arg("--data-dir").arg(folder.path()).args(arguments).stdout(Stdio::null());
    command.envs(service.map(|service| ("DATABASE_URL", service.database_url.as_str())));
    let started = Instant::now();
    let output = command.stderr(Stdio::piped()).output().expect("the command");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    started.elapsed().as_secs_f64()
}

fn export(service: &Service, folder: &Folder, dataset: &str, more: &[&str]) -> f64 {
    run(Some(service), folder, &[&["export", dataset], more].concat())
}

fn partition(service: &Service, folder: &Folder, dataset: &str) -> f64 {
    export(service, folder, dataset, &["--temporal", "year,month,day", "-o", path(&folder.join("lake"))])
}

/// How much smaller the partitioned dataset is than the same rows as CSV.
fn size(service: &Service, folder: &Folder, dataset: &str, what: &str, target: &str) {
    let csv = folder.join("csv");
    export(service, folder, dataset, &["--format", "csv", "--compression", "none", "-o", path(&csv)]);
    partition(service, folder, dataset);
    let of_csv = bytes(&csv, "csv");
    let of_lake = bytes(&folder.join("lake").join(dataset), "parquet");
    let (days, rows) = SIZE;
    less(&format!("{what}, {days} days of {rows} rows, against CSV"), target, of_csv, of_lake);
    remove(&csv);
    remove(&folder.join("lake"));
}

/// How much smaller converted query figures are than their CSV, and how fast a large file is converted.
fn figures(folder: &Folder) {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/config/datasets/examples/query_perf.toml");
    let (input, output) = (folder.join("figures"), folder.join("converted"));
    fs::create_dir(&input).expect("folder");
    let mut random = SmallRng::seed_from_u64(1);
    let first = NaiveDate::from_ymd_opt(2025, 10, 1).expect("day");
    for day in 0..30 {
        let day = first + Days::new(day);
        let file = input.join(format!("query_perf_daily_{}.csv", day.format("%Y%m%d")));
        fs::write(file, csv(&mut random, day, FIGURES)).expect("file");
    }
    let pattern = input.join("*.csv");
    let arguments = ["convert", path(&pattern), "--schema", schema, "--historical", "-o", path(&output)];
    run(None, folder, &arguments);
    let what = format!("query figures, 30 daily files of {FIGURES} rows, converted, against CSV");
    less(&what, "at least 70 %", bytes(&input, "csv"), bytes(&output, "parquet"));
    let large = folder.join("large.csv");
    fs::write(&large, csv(&mut random, first, 2_000_000)).expect("file");
    let megabytes = fs::metadata(&large).expect("file").len() as f64 / 1e6;
    let seconds =
        run(None, folder, &["convert", path(&large), "--schema", schema, "-o", path(&folder.join("converted2"))]);
    report(&format!("convert, {megabytes:.0} MB of CSV"), "none", &format!("{:.0} MB/s", megabytes / seconds));
}

/// Query figures of a day as CSV.
fn csv(random: &mut SmallRng, day: NaiveDate, rows: u64) -> String {
    let mut text =
        "timestamp,query_hash,query_type,execution_time_ms,rows_examined,rows_returned,cache_hit,table_name,\
                    index_used\n"
            .to_owned();
    let tables = [("embeddings", "idx_namespace"), ("query_log", "PRIMARY"), ("documents", "idx_created_at")];
    for row in 0..rows {
        let second = row * 86_400 / rows;
        let (table, index) = tables[random.random_range(0..tables.len())];
        let examined = (-random.random::<f64>().ln() * 900.0) as u64;
        let query = (random.random::<f64>().powi(2) * 200.0) as u32;
        writeln!(
            text,
            "{day}T{:02}:{:02}:{:02}Z,{:06x},{},{:.1},{examined},{},{},{table},{index}",
            second / 3600,
            second / 60 % 60,
            second % 60,
            query.wrapping_mul(0x9E_3779) & 0xFF_FFFF,
            ["SELECT", "SELECT", "SELECT", "INSERT", "UPDATE"][query as usize % 5],
            -random.random::<f64>().ln() * 30.0,
            examined / 100,
            random.random::<f64>() < 0.3,
        )
        .expect("a String takes everything");
    }
    text
}

/// The most memory that the service takes above idle while it writes all of a partitioned dataset.
async fn memory(service: &Service, what: &str) {
    let idle = service.resident();
    service.forget_peak();
    service.run_job(&serde_json::json!({"table": "gottcha2", "partition": {"temporal": "year,month,day"}})).await;
    let peak = service.peak() - idle;
    report(&format!("memory of the service, {what}"), "at most 300 MiB above idle", &format!("{peak:.0} MiB"));
}

/// How long DuckDB takes over the views of the catalogue.
async fn queries(service: &Service, folder: &Folder, python: &str) {
    let one = "SELECT sample_id FROM gottcha2_full OFFSET (SELECT count(*) / 2 FROM gottcha2_full) LIMIT 1";
    let sample: String = sqlx::query_scalar(one).fetch_one(&service.pool).await.expect("sample");
    let rare = "SELECT taxid FROM gottcha2_full GROUP BY 1 ORDER BY count(*), 1 LIMIT 1";
    let taxon: String = sqlx::query_scalar(rare).fetch_one(&service.pool).await.expect("taxon");
    let output = Command::new(python)
        .args(["-c", include_str!("queries.py"), path(&folder.join("lake")), &sample, &taxon])
        .stderr(Stdio::inherit())
        .output()
        .expect("Python");
    assert!(output.status.success(), "queries.py failed");
    for line in String::from_utf8(output.stdout).expect("UTF-8").lines() {
        let (what, measured) = line.split_once('\t').expect("two cells");
        let target = if what.contains("aggregate") { "less than 1 s" } else { "less than 0.3 s" };
        report(what, target, measured);
    }
}

fn less(what: &str, target: &str, before: u64, after: u64) {
    let share = 100.0 * (1.0 - after as f64 / before as f64);
    let text = format!("{share:.1} % ({:.1} MB to {:.2} MB)", before as f64 / 1e6, after as f64 / 1e6);
    report(&format!("reduction: {what}"), target, &text);
}

/// Bytes of all files with that ending below a folder.
fn bytes(folder: &Path, ending: &str) -> u64 {
    let entries = fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path());
    let sizes = entries.map(|path| match path.is_dir() {
        true => bytes(&path, ending),
        false if path.extension().is_some_and(|extension| extension == ending) => {
            fs::metadata(&path).expect("file").len()
        }
        false => 0,
    });
    sizes.sum()
}

fn remove(folder: &Path) {
    if folder.exists() {
        fs::remove_dir_all(folder).expect("remove");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn report(what: &str, target: &str, measured: &str) {
    println!("| {what} | {target} | {measured} |");
}
