//! Speed and memory of ingest, as ratios against PostgreSQL's own tools in the same run.
//!
//! `cargo bench --bench ingest -- [--rows N] [--runs N] [--section NAME]`, on an idle machine; sections: `one_body`,
//! `many_bodies`, `small_files`, `inserts`, `memory`, `lookups`. Prints a Markdown table. The last two fill a table with
//! ten times the rows.

#![expect(dead_code, reason = "what benchmarks share, each uses in part")]

#[path = "../common/arguments.rs"]
mod arguments;
mod baselines;
#[path = "../common/measured.rs"]
mod measured;
#[path = "../common/records.rs"]
mod records;
#[path = "../common/service.rs"]
mod service;

use std::path::{Path, PathBuf};

use arguments::{Folder, number, wants};
use baselines::{Prototype, Record, Whole};
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use measured::{median, sorted};
use records::{Records, write_gzip};
use service::{Service, run_all, seconds, stream as stream_files};
use sqlx::AssertSqlSafe;

/// Rows of each of the many bodies.
const SMALL: u64 = 5_000;
/// Clients that send the many bodies.
const CLIENTS: usize = 8;
/// Files as they usually are: their number, the rows of each, and the nodes that send them.
const FILES: u64 = 2_000;
const FILE_ROWS: u64 = 50;
const NODES: usize = 32;
/// Rows of each of the concurrent uploads whose memory is measured.
const MIDDLE: u64 = 100_000;

/// What to measure.
struct Plan {
    rows: u64,
    runs: usize,
    folder: PathBuf,
}

impl Plan {
    fn from_arguments(folder: &Path) -> Self {
        Self { rows: number("--rows", 1_000_000), runs: number("--runs", 3), folder: folder.to_owned() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

#[tokio::main]
async fn main() {
    nvd_support_car::tls::use_ring();
    let folder = Folder::new();
    let plan = Plan::from_arguments(folder.path());
    eprintln!("generating {} rows", plan.rows);
    write_gzip(&plan.file("body.gz"), &mut Records::new(1), plan.rows);
    // One token stands for all nodes here.
    let service = Service::with(folder.path(), &["limits.rate_per_second=100000".to_owned()]).await;
    println!("| what | against | target | measured (median; least to most) |\n|---|---|---|---|");
    if wants("--section", "one_body") {
        one_body(&plan, &service).await;
    }
    if wants("--section", "many_bodies") {
        many_bodies(&plan, &service).await;
    }
    if wants("--section", "small_files") {
        small_files(&plan, &service).await;
    }
    if wants("--section", "inserts") {
        inserts::<Whole>(&plan, &service, "at least 4 times as fast").await;
        inserts::<Prototype>(&plan, &service, "none").await;
    }
    if wants("--section", "memory") {
        memory(&plan, &service).await;
    }
    if wants("--section", "lookups") {
        lookups(&plan, &service).await;
    }
    service.stop().await;
}

/// Speed of one large body as a share of psql's.
async fn one_body(plan: &Plan, service: &Service) {
    write_copy_files(plan, service, 1).await;
    let mut ratios = Vec::new();
    for run in 0..plan.runs {
        let ours = send_one(plan, service).await;
        let psql = copy_files(plan, service, 1).await;
        eprintln!("one_body run {run}: ours {ours:.2} s, psql {psql:.2} s");
        ratios.push(psql / ours);
    }
    report(
        &format!("one body of {} rows, one client", plan.rows),
        "psql \\copy binary, one connection",
        "at least 0.9 of its speed",
        &ratios,
        "",
    );
}

/// Speed of many small bodies as a share of two parallel psql's.
async fn many_bodies(plan: &Plan, service: &Service) {
    let bodies = plan.rows / SMALL;
    let mut records = Records::new(2);
    for body in 0..bodies {
        write_gzip(&plan.file(&format!("small-{body}.gz")), &mut records, SMALL);
    }
    write_copy_files(plan, service, 2).await;
    let mut ratios = Vec::new();
    for run in 0..plan.runs {
        let ours = send_many(plan, service, "small", bodies, CLIENTS).await;
        let psql = copy_files(plan, service, 2).await;
        eprintln!("many_bodies run {run}: ours {ours:.2} s, psql {psql:.2} s");
        ratios.push(psql / ours);
    }
    report(
        &format!("{bodies} bodies of {SMALL} rows, {CLIENTS} clients"),
        "two parallel psql \\copy binary",
        "at least 0.9 of their speed",
        &ratios,
        "",
    );
}

/// Speed of many files of a usual size as a share of two psql's that copy one after the other.
async fn small_files(plan: &Plan, service: &Service) {
    let mut records = Records::new(4);
    for file in 0..FILES {
        write_gzip(&plan.file(&format!("file-{file}.gz")), &mut records, FILE_ROWS);
    }
    send_many(plan, service, "file", FILES, NODES).await;
    let ids: Vec<i64> =
        sqlx::query_scalar("SELECT id FROM submissions ORDER BY id").fetch_all(&service.pool).await.expect("ids");
    let script = |name: &str, ids: &[i64], line: &dyn Fn(i64, String) -> String| {
        let lines = ids.iter().map(|id| line(*id, plan.file(&format!("file-{id}.bin")).display().to_string()));
        std::fs::write(plan.file(name), lines.collect::<String>()).expect("script");
        service.psql(&format!("\\i {}", plan.file(name).display()))
    };
    run_all(vec![script("out.sql", &ids, &|id, file| {
        format!("\\copy (SELECT * FROM gottcha2_full WHERE submission_id = {id}) to '{file}' (format binary)\n")
    })]);
    let mut ratios = Vec::new();
    for run in 0..plan.runs {
        let ours = send_many(plan, service, "file", FILES, NODES).await;
        service.reset().await;
        let halves = ids.chunks(ids.len().div_ceil(2)).enumerate();
        let commands = halves.map(|(half, ids)| {
            script(&format!("in-{half}.sql"), ids, &|_, file| {
                format!("\\copy gottcha2_full from '{file}' (format binary)\n")
            })
        });
        let commands = commands.collect();
        let psql = seconds(async { run_all(commands) }).await;
        eprintln!("small_files run {run}: ours {ours:.2} s, psql {psql:.2} s");
        ratios.push(psql / ours);
    }
    report(
        &format!("{FILES} files of {FILE_ROWS} rows, {NODES} clients"),
        "two parallel psql, `\\copy` binary of one file after the other",
        "-",
        &ratios,
        "",
    );
}

/// Speed of one large body as a multiple of multi-row INSERTs of such records.
async fn inserts<R: Record>(plan: &Plan, service: &Service, target: &str) {
    baselines::create_insert_table::<R>(service).await;
    let mut ratios = Vec::new();
    for run in 0..plan.runs {
        let ours = send_one(plan, service).await;
        service.execute("TRUNCATE gottcha2_results").await;
        service.reset().await;
        let inserts = seconds(baselines::insert::<R>(service, &plan.file("body.gz"))).await;
        eprintln!("inserts run {run}: ours {ours:.2} s, INSERTs {inserts:.2} s");
        ratios.push(inserts / ours);
    }
    report(
        "the same body",
        &format!("INSERTs of 500 rows, {} of its fields, B-trees on sample, level, taxid", R::COLUMNS.len()),
        target,
        &ratios,
        "",
    );
}

/// Memory of the service above idle, in MiB.
async fn memory(plan: &Plan, service: &Service) {
    let mut records = Records::new(3);
    for upload in 0..CLIENTS {
        write_gzip(&plan.file(&format!("middle-{upload}.gz")), &mut records, MIDDLE.min(plan.rows));
    }
    service.reset().await;
    let idle = service.resident();
    let above_idle = || service.peak() - idle;
    service.forget_peak();
    let uploads = (0..CLIENTS).map(|upload| async move {
        service
            .put(&format!("middle-{upload}"), stream_files(vec![plan.file(&format!("middle-{upload}.gz"))]).await)
            .await;
    });
    join_all(uploads).await;
    let target = "at most 200 MiB above idle";
    report(&format!("memory, {CLIENTS} uploads of {MIDDLE} rows at once"), "idle", target, &[above_idle()], " MiB");
    for times in [1, 10] {
        service.reset().await;
        service.forget_peak();
        // gzip files may be laid end to end.
        service.put(&format!("times-{times}"), stream_files(vec![plan.file("body.gz"); times]).await).await;
        let rows = plan.rows * times as u64;
        report(&format!("memory, one upload of {rows} rows"), "idle", target, &[above_idle()], " MiB");
    }
}

/// Time to find one sample and one rare taxon among ten times the rows, in milliseconds.
async fn lookups(plan: &Plan, service: &Service) {
    service.reset().await;
    for seed in 11..21 {
        let path = plan.file("lookup.gz");
        write_gzip(&path, &mut Records::new(seed), plan.rows);
        service.put(&format!("lookup-{seed}"), stream_files(vec![path]).await).await;
    }
    service.execute("VACUUM ANALYZE gottcha2_full").await;
    let samples = (0..7).map(|index| format!("sample_id = 'SRR{:08}'", (11 + index) * 1_000_000 + 500)).collect();
    let rows = plan.rows * 10;
    report(&format!("all rows of one sample among {rows}"), "-", "under 50 ms", &lookup(service, samples).await, " ms");
    // Inserted among the others: about two rows in each million.
    let rare: Vec<String> = sqlx::query_scalar(
        "SELECT taxid FROM gottcha2_full TABLESAMPLE SYSTEM (20) GROUP BY taxid ORDER BY count(*), taxid LIMIT 7",
    )
    .fetch_all(&service.pool)
    .await
    .expect("rare taxa");
    let rare = rare.into_iter().map(|taxid| format!("taxid = '{taxid}'")).collect();
    report(&format!("all rows of a rare taxon among {rows}"), "-", "under 100 ms", &lookup(service, rare).await, " ms");
}

/// Milliseconds of one query for each condition, after one that is not counted.
async fn lookup(service: &Service, conditions: Vec<String>) -> Vec<f64> {
    let mut times = Vec::new();
    for condition in conditions.iter().take(1).chain(&conditions) {
        let sql = format!("SELECT * FROM gottcha2_full WHERE {condition}");
        let mut found = 0;
        let time = seconds(async {
            found = sqlx::query(AssertSqlSafe(sql.clone())).fetch_all(&service.pool).await.expect("rows").len();
        })
        .await;
        let plan: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(format!("EXPLAIN {sql}"))).fetch_all(&service.pool).await.expect("plan");
        let index = if plan.join(" ").contains("_brin_") { "by the index" } else { "by reading all" };
        eprintln!("lookup {condition}: {found} rows in {:.1} ms, {index}", time * 1000.0);
        times.push(time * 1000.0);
    }
    times.split_off(1)
}

/// Seconds to send bodies from so many clients.
async fn send_many(plan: &Plan, service: &Service, name: &str, bodies: u64, clients: usize) -> f64 {
    service.reset().await;
    seconds(async {
        let sends = stream::iter(0..bodies).map(|body| async move {
            let content = tokio::fs::read(plan.file(&format!("{name}-{body}.gz"))).await.expect("body");
            service.put(&format!("{name}-{body}"), content.into()).await;
        });
        sends.buffer_unordered(clients).collect::<Vec<()>>().await;
    })
    .await
}

/// Seconds to send the large body.
async fn send_one(plan: &Plan, service: &Service) -> f64 {
    service.reset().await;
    let body = stream_files(vec![plan.file("body.gz")]).await;
    seconds(service.put("one", body)).await
}

/// Stores the large body and writes its rows, as psql takes them, into `parts` files.
async fn write_copy_files(plan: &Plan, service: &Service, parts: u64) {
    send_one(plan, service).await;
    let share = plan.rows.div_ceil(parts);
    for part in 0..parts {
        let (first, last) = (part * share + 1, (part + 1) * share);
        let query = format!(
            "SELECT * FROM gottcha2_full WHERE ordinal BETWEEN {first} AND {last} ORDER BY submission_id, ordinal"
        );
        let target = plan.file(&format!("part-{part}.bin"));
        run_all(vec![service.psql(&format!("\\copy ({query}) to '{}' (format binary)", target.display()))]);
    }
}

/// Seconds that psql takes to copy these files side by side into the same table.
async fn copy_files(plan: &Plan, service: &Service, parts: u64) -> f64 {
    service.reset().await;
    let commands = (0..parts).map(|part| {
        let source = plan.file(&format!("part-{part}.bin"));
        service.psql(&format!("\\copy gottcha2_full from '{}' (format binary)", source.display()))
    });
    let commands = commands.collect();
    seconds(async { run_all(commands) }).await
}

/// Prints one row of the table.
fn report(what: &str, against: &str, target: &str, values: &[f64], unit: &str) {
    let measured = sorted(values);
    let (least, most) = (measured[0], measured[measured.len() - 1]);
    let spread = if values.len() > 1 { format!(" ({least:.2} to {most:.2})") } else { String::new() };
    println!("| {what} | {against} | {target} | **{:.2}{unit}**{spread} |", median(values));
}
