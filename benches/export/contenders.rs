//! The tools that write the same table as Parquet, and how each is started.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::Plan;
use crate::arguments::wants;
use crate::service::Service;

/// A tool, and what it took in each run.
pub struct Contender {
    pub name: &'static str,
    /// Makes the command, and removes what a former run left.
    pub command: Box<dyn Fn() -> Command>,
    /// The file or the folder that it writes; none when it throws its output away.
    pub output: Option<PathBuf>,
    pub seconds: Vec<f64>,
    pub mebibytes: Vec<f64>,
}

impl Contender {
    fn new(name: &'static str, output: Option<PathBuf>, command: impl Fn() -> Command + 'static) -> Self {
        Self { name, command: Box::new(command), output, seconds: Vec::new(), mebibytes: Vec::new() }
    }

    /// What DuckDB is to read: a file, or all Parquet files of a folder. None when nothing was written.
    pub fn source(&self) -> Option<PathBuf> {
        let output = self.output.as_ref()?;
        Some(if output.is_dir() { output.join("*.parquet") } else { output.clone() })
    }

    /// The Parquet files that it wrote.
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.output {
            Some(folder) if folder.is_dir() => {
                let entries = fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path());
                entries.filter(|path| path.extension().is_some_and(|extension| extension == "parquet")).collect()
            }
            Some(file) => vec![file.clone()],
            None => Vec::new(),
        }
    }
}

/// All that are wanted and can be run; ours is the first.
pub fn all(plan: &Plan, service: &Service) -> Vec<Contender> {
    let mut all = vec![ours(plan, service), psql(plan, service)];
    if let Some(python) = &plan.python {
        for (peer, name, script) in [
            ("duckdb", "DuckDB with its Postgres extension", include_str!("duckdb_export.py")),
            ("polars", "Polars through ADBC", include_str!("polars_export.py")),
            ("pandas", "pandas in chunks of 100,000", include_str!("pandas_export.py")),
        ] {
            if wants("--peers", peer) {
                all.push(script_of(plan, service, python, (peer, name, script)));
            }
        }
    }
    if let Some(program) = plan.pg2parquet.as_ref().filter(|_| wants("--peers", "pg2parquet")) {
        all.push(pg2parquet(plan, service, program));
    }
    if wants("--peers", "sketch") {
        all.push(sketch(plan, service));
    }
    all
}

fn ours(plan: &Plan, service: &Service) -> Contender {
    let folder = plan.folder.join("ours");
    let (url, data, output) = (service.database_url.clone(), plan.folder.clone(), folder.clone());
    let dataset = plan.dataset.clone();
    Contender::new("nvd-support-car export", Some(folder), move || {
        drop(fs::remove_dir_all(&output));
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvd-support-car"));
        command.arg("--data-dir").arg(&data).args(["export", &dataset, "--service-columns", "-o"]).arg(&output);
        command.env("DATABASE_URL", &url);
        command
    })
}

fn psql(plan: &Plan, service: &Service) -> Contender {
    let (url, table) = (service.database_url.clone(), plan.table());
    Contender::new("psql COPY binary > /dev/null, one connection", None, move || {
        let mut command = Command::new("psql");
        command.args([&url, "-qXc", &format!("\\copy {table} to '/dev/null' (format binary)")]);
        command
    })
}

fn script_of(
    plan: &Plan,
    service: &Service,
    python: &str,
    (peer, name, script): (&str, &'static str, &'static str),
) -> Contender {
    let output = plan.folder.join(format!("{peer}.parquet"));
    let (url, table, python, written) = (service.database_url.clone(), plan.table(), python.to_owned(), output.clone());
    Contender::new(name, Some(output), move || {
        let mut command = Command::new(&python);
        command.args(["-c", script, &url]).arg(&written).arg(table);
        command
    })
}

fn pg2parquet(plan: &Plan, service: &Service, program: &str) -> Contender {
    let output = plan.folder.join("pg2parquet.parquet");
    let (url, table, program, written) =
        (service.database_url.clone(), plan.table(), program.to_owned(), output.clone());
    Contender::new("pg2parquet", Some(output), move || {
        let url = reqwest::Url::parse(&url).expect("URL");
        let mut command = Command::new(&program);
        command.args(["export", "--host", "127.0.0.1", "--dbname", "nvd", "--table", table, "--quiet"]);
        command.args(["--compression", "zstd", "--compression-level", "3", "--user", url.username()]);
        command.args(["--port", &url.port().unwrap_or(5432).to_string(), "--output-file"]).arg(&written);
        // Generated passwords may begin with a dash.
        command.arg(format!("--password={}", url.password().unwrap_or_default()));
        command
    })
}

/// The obvious way, in a process of its own.
fn sketch(plan: &Plan, service: &Service) -> Contender {
    let output = plan.folder.join("sketch.parquet");
    let (url, table, written) = (service.database_url.clone(), plan.table(), output.clone());
    Contender::new("rows fetched into Vecs, one buffer", Some(output), move || {
        let mut command = Command::new(std::env::current_exe().expect("the benchmark"));
        command.args([SKETCH, &url, table]).arg(&written);
        command
    })
}

/// The argument that makes this program the sketch.
pub const SKETCH: &str = "sketch";
