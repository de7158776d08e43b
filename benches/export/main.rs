//! Speed, memory and size of exports, as ratios against the tools that an analyst would use instead, in the same run.
//!
//! `cargo bench --bench export -- [--rows N] [--runs N] [--python FILE] [--pg2parquet FILE]`, on an idle machine. Peers
//! that are named are run: a Python with `duckdb` and `duckdb-extension-postgres-scanner` (and, for the slow ones,
//! `pandas` and `pyarrow`), and pg2parquet. Each writes all columns of the same table as Parquet with Zstd 3; DuckDB
//! then verifies every file against PostgreSQL: the number of rows, and the sums of columns. Prints a Markdown table.

#![expect(dead_code, reason = "what benchmarks share, each uses in part")]

#[path = "../common/records.rs"]
mod records;
#[path = "../common/service.rs"]
mod service;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use records::{Records, write_gzip};
use service::{Service, stream};

/// What to measure.
struct Plan {
    rows: u64,
    runs: usize,
    python: Option<String>,
    pg2parquet: Option<String>,
    folder: PathBuf,
}

impl Plan {
    fn from_arguments(folder: &Path) -> Self {
        let arguments: Vec<String> = std::env::args().collect();
        let value = |name: &str| {
            let position = arguments.iter().position(|argument| argument == name)?;
            arguments.get(position + 1).cloned()
        };
        let number = |name: &str, default: u64| value(name).map_or(default, |text| text.parse().expect(name));
        Self {
            rows: number("--rows", 2_000_000),
            runs: usize::try_from(number("--runs", 3)).expect("--runs"),
            python: value("--python"),
            pg2parquet: value("--pg2parquet"),
            folder: folder.to_owned(),
        }
    }
}

/// A tool, and what it took in each run.
struct Contender {
    name: &'static str,
    command: Box<dyn Fn() -> Command>,
    output: Option<PathBuf>,
    seconds: Vec<f64>,
    mebibytes: Vec<f64>,
}

#[tokio::main]
async fn main() {
    nvd_support_car::tls::use_ring();
    let folder = tempfile::Builder::new().prefix("nvd-bench-").tempdir().expect("folder");
    // The user that runs PostgreSQL must be able to enter.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), open).expect("permissions");
    let plan = Plan::from_arguments(folder.path());
    let service = Service::start(folder.path()).await;
    eprintln!("storing {} rows", plan.rows);
    fill(&plan, &service).await;
    let mut contenders = contenders(&plan, &service);
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
    service.stop().await;
}

async fn fill(plan: &Plan, service: &Service) {
    let body = plan.folder.join("body.gz");
    for (index, first) in (0..plan.rows).step_by(1_000_000).enumerate() {
        let seed = 1 + u32::try_from(index).expect("few bodies");
        write_gzip(&body, &mut Records::new(seed), 1_000_000.min(plan.rows - first));
        service.put(&format!("body-{index}"), stream(vec![body.clone()]).await).await;
    }
    service.execute("VACUUM ANALYZE gottcha2_full").await;
    service.execute("CHECKPOINT").await;
}

fn contenders(plan: &Plan, service: &Service) -> Vec<Contender> {
    let mut all = Vec::new();
    let mut add = |name, output: Option<PathBuf>, command: Box<dyn Fn() -> Command>| {
        all.push(Contender { name, command, output, seconds: Vec::new(), mebibytes: Vec::new() });
    };
    let url = service.database_url.clone();
    let ours = plan.folder.join("ours");
    let (output, data) = (ours.clone(), plan.folder.clone());
    add(
        "nvd-support-car export",
        Some(ours),
        Box::new(move || {
            drop(fs::remove_dir_all(&output));
            let mut command = Command::new(env!("CARGO_BIN_EXE_nvd-support-car"));
            command.arg("--data-dir").arg(&data).args(["export", "gottcha2", "--service-columns", "-o"]).arg(&output);
            command.env("DATABASE_URL", &url);
            command
        }),
    );
    let url = service.database_url.clone();
    add(
        "psql COPY binary > /dev/null, one connection",
        None,
        Box::new(move || {
            let mut command = Command::new("psql");
            command.args([&url, "-qXc", "\\copy gottcha2_full to '/dev/null' (format binary)"]);
            command
        }),
    );
    if let Some(python) = plan.python.clone() {
        for (name, script) in [
            ("DuckDB with its Postgres extension", include_str!("duckdb_export.py")),
            ("pandas in chunks of 100,000", include_str!("pandas_export.py")),
        ] {
            let output = plan.folder.join(format!("{}.parquet", name.split(' ').next().expect("a word")));
            let (url, python, written) = (service.database_url.clone(), python.clone(), output.clone());
            add(
                name,
                Some(output),
                Box::new(move || {
                    let mut command = Command::new(&python);
                    command.args(["-c", script, &url]).arg(&written);
                    command
                }),
            );
        }
    }
    if let Some(program) = plan.pg2parquet.clone() {
        let output = plan.folder.join("pg2parquet.parquet");
        let (url, written) = (service.database_url.clone(), output.clone());
        add(
            "pg2parquet",
            Some(output),
            Box::new(move || {
                let url = reqwest::Url::parse(&url).expect("URL");
                let mut command = Command::new(&program);
                command.args(["export", "--host", "127.0.0.1", "--dbname", "nvd", "--table", "gottcha2_full"]);
                command.args(["--compression", "zstd", "--compression-level", "3", "--user", url.username()]);
                command.args(["--port", &url.port().unwrap_or(5432).to_string(), "--output-file"]).arg(&written);
                command.env("PGPASSWORD", url.password().unwrap_or_default());
                command.args(["--password", url.password().unwrap_or_default()]);
                command
            }),
        );
    }
    all
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

/// The Parquet files that a contender wrote.
fn files(contender: &Contender) -> Vec<PathBuf> {
    match &contender.output {
        Some(folder) if folder.is_dir() => {
            let entries = fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path());
            entries.filter(|path| path.extension().is_some_and(|extension| extension == "parquet")).collect()
        }
        Some(file) => vec![file.clone()],
        None => Vec::new(),
    }
}

/// Compares what DuckDB reads in a file with what PostgreSQL has in the table.
async fn verify(plan: &Plan, service: &Service, contender: &Contender) {
    let files = files(contender);
    let (Some(python), [file]) = (&plan.python, files.as_slice()) else { return };
    let (rows, reads, depth, taxa): (i64, i64, f64, i64) = sqlx::query_as(
        "SELECT count(*), sum(read_count)::bigint, sum(depth), count(DISTINCT taxid) FROM gottcha2_full",
    )
    .fetch_one(&service.pool)
    .await
    .expect("sums");
    let script = "import duckdb, sys\nprint(*duckdb.sql(f\"SELECT count(*), sum(read_count)::BIGINT, sum(depth), \
                  count(DISTINCT taxid) FROM '{sys.argv[1]}'\").fetchone())";
    let output = Command::new(python).args(["-c", script]).arg(file).output().expect("DuckDB");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let found: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(found[..2], [rows.to_string(), reads.to_string()], "{}", contender.name);
    assert!((found[2].parse::<f64>().expect("sum") - depth).abs() < depth / 1e9, "{}", contender.name);
    assert_eq!(found[3], taxa.to_string(), "{}", contender.name);
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn report(plan: &Plan, contenders: &[Contender]) {
    println!(
        "| {} rows to Parquet, Zstd 3 | seconds | times ours | peak MiB | file MB |\n|---|---|---|---|---|",
        plan.rows
    );
    let ours = &contenders[0];
    for contender in contenders {
        let mut ratios: Vec<f64> =
            contender.seconds.iter().zip(&ours.seconds).map(|(theirs, ours)| theirs / ours).collect();
        ratios.sort_by(f64::total_cmp);
        let bytes: u64 = files(contender).iter().map(|file| fs::metadata(file).expect("file").len()).sum();
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
