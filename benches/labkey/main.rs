//! Speed of delivery to LabKey through the tests' stand-in server, and what it costs an ingest beside it.
//!
//! `cargo bench --bench labkey -- [--rows N] [--runs N] [--section NAME]`, on an idle machine; sections: `insert`,
//! `merge`, `beside`. Prints a Markdown table. The stand-in runs on the same machine, and its work counts.

#![expect(dead_code, reason = "what benchmarks and tests share, each uses in part")]

#[path = "../common/arguments.rs"]
mod arguments;
#[path = "../../tests/it/labkey_server/mod.rs"]
mod labkey_server;
#[path = "../common/measured.rs"]
mod measured;
#[path = "../common/records.rs"]
mod records;
#[path = "../common/service.rs"]
mod service;

use arguments::{Folder, number, wants};
use labkey_server::{CONTAINER, KEY, Kind, LabKeyServer, List};
use measured::spread;
use records::{Lines, Records};
use service::{Service, seconds};

const LIST: &str = "gottcha2_results";

/// Rows of one submission.
const SUBMISSION: usize = 5_000;

fn columns(list: List) -> List {
    let texts = ["SampleId", "RunId", "Rollup", "Taxonomy", "TaxonomyId", "UploadedBy", "DeliveryKey"];
    let list = texts.into_iter().fold(list, |list, name| list.column(name, Kind::Text));
    let numbers = ["LinearLength", "TotalBpMapped", "Abundance", "DoC"];
    let list = numbers.into_iter().fold(list, |list, name| list.column(name, Kind::Number));
    list.column("AnalysisDate", Kind::Time).column("UploadTimestamp", Kind::Time)
}

#[tokio::main]
async fn main() {
    nvd_support_car::tls::use_ring();
    let folder = Folder::new();
    let (rows, runs) = (number("--rows", 200_000), number("--runs", 3));
    let labkey = LabKeyServer::start().await;
    let settings = [
        format!("labkey.server_url={}", labkey.url),
        format!("labkey.project_path={CONTAINER}"),
        format!("labkey.api_key={KEY}"),
        "labkey.auto_upload=false".to_owned(),
        "labkey.sync_wait=1h".to_owned(),
    ];
    let service = Service::with(folder.path(), &settings).await;
    println!("| what | target | measured |\n|---|---|---|");
    if wants("--section", "insert") {
        let list = || columns(List::auto(LIST)).column("RecordKey", Kind::Text);
        deliver(&service, &labkey, "insert", rows, runs, list).await;
    }
    if wants("--section", "merge") {
        deliver(&service, &labkey, "merge", rows, runs, || columns(List::keyed(LIST, "RecordKey"))).await;
    }
    if wants("--section", "beside") {
        labkey.add(columns(List::auto(LIST)).column("RecordKey", Kind::Text));
        beside(&service, rows, runs).await;
    }
    service.stop().await;
}

/// Stores rows as submissions of [`SUBMISSION`] rows.
async fn store(service: &Service, name: &str, rows: usize) {
    let mut records = Records::new(7);
    for part in 0..rows / SUBMISSION {
        let mut body = String::new();
        for _ in 0..SUBMISSION {
            records.write(&mut body);
        }
        service.put(&format!("{name}-{part}"), body.into()).await;
    }
}

async fn deliver(
    service: &Service,
    labkey: &LabKeyServer,
    mode: &str,
    rows: usize,
    runs: usize,
    list: impl Fn() -> List,
) {
    let mut speeds = Vec::new();
    for run in 0..runs {
        labkey.add(list());
        labkey.forget();
        service.reset().await;
        store(service, &format!("{mode}-{run}"), rows).await;
        let took = seconds(sync(service, rows)).await;
        assert_eq!(labkey.counts(LIST, "RecordKey").len(), rows, "each row once");
        let speed = rows as f64 / took;
        eprintln!("{mode} run {run}: {speed:.0} rows/s");
        speeds.push(speed);
    }
    report(
        &format!("{rows} rows by {mode}, batches of 1000, marking included"),
        "at least 20000 rows/s",
        &format!("{} rows/s", spread(&speeds, 0)),
    );
}

async fn sync(service: &Service, rows: usize) {
    let report = service.post("/labkey/sync?dataset=gottcha2").await;
    assert_eq!((&report["uploaded"], &report["remaining"]), (&rows.into(), &0.into()), "{report}");
}

/// How much longer an ingest takes while a sync runs.
async fn beside(service: &Service, rows: usize, runs: usize) {
    let mut ratios = Vec::new();
    for run in 0..runs {
        service.reset().await;
        let alone = seconds(store(service, &format!("alone-{run}"), rows)).await;
        // A backlog that outlasts the ingest.
        store(service, &format!("backlog-{run}"), rows * 4).await;
        let syncing = service.post("/labkey/sync?dataset=gottcha2");
        tokio::pin!(syncing);
        let name = format!("beside-{run}");
        let ingesting = seconds(store(service, &name, rows));
        let together = tokio::select! {
            took = ingesting => took,
            report = &mut syncing => panic!("the backlog was too small: {report}"),
        };
        let report = syncing.await;
        assert_eq!(report["remaining"], 0, "{report}");
        eprintln!("beside run {run}: alone {alone:.2} s, beside a sync {together:.2} s");
        ratios.push(together / alone);
    }
    report(
        &format!("ingest of {rows} rows while a sync runs"),
        "at most 1.2 times the time without",
        &format!("{} times", spread(&ratios, 2)),
    );
}

fn report(what: &str, target: &str, measured: &str) {
    println!("| {what} | {target} | {measured} |");
}
