//! Partitioned datasets: where rows lie, that they grow by what is new, and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use chrono::{DateTime, Utc};
use nvd_support_car::config::Partitioning;
use nvd_support_car::db::jobs::Lease;
use nvd_support_car::error::{Error, Result};
use nvd_support_car::export::spec::ExportSpec;
use nvd_support_car::lake::changes::Action;
use nvd_support_car::lake::{self, Outcome, Place, Wish};
use nvd_support_car::storage::Storage;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::PageIndexPolicy;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPoolOptions;
use tempfile::TempDir;
use uuid::Uuid;

use crate::app::{RECORD, TestApp, eventually, gzip};
use crate::exports::files_below;
use crate::process::{binary, text};
use crate::s3_server::S3;

/// A dataset that cannot be cut by time.
pub const WITH_A_YEAR: &str = "name = 'harvest'\ntable = 'harvest'\ntitle = 'x'\ndescription = 'x'\n\
    [[columns]]\nname = 'sample_id'\nkind = 'text'\nrequired = true\ndescription = 'x'\n\
    [[columns]]\nname = 'year'\nkind = 'int'\ndescription = 'x'\n";

/// A folder with the partitioned gottcha2 of a service.
pub struct Lake {
    pub folder: TempDir,
    storage: Storage,
    partitioning: Partitioning,
}

impl Lake {
    pub fn new(partitioning: &Value) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let storage = Storage::open(folder.path().to_str().expect("UTF-8")).expect("storage");
        Self { folder, storage, partitioning: serde_json::from_value(partitioning.clone()).expect("partitioning") }
    }

    pub fn daily() -> Self {
        Self::new(&json!({"temporal": "year,month,day"}))
    }

    pub fn wish(&self, app: &TestApp, overwrite: bool) -> Wish {
        let dataset = app.app.datasets.get("gottcha2").expect("dataset");
        let spec = ExportSpec::default();
        Wish::new(dataset, &spec, &self.partitioning, overwrite, &app.app.config.export).expect("wish")
    }

    pub async fn run(&self, app: &TestApp, wish: &Wish) -> Result<Outcome> {
        let lease = Lease::new(Uuid::now_v7(), 1);
        let place = Place { storage: &self.storage, folder: "" };
        lake::run(&app.pool, &app.app.config.export, wish, &place, &lease).await
    }

    async fn preview(&self, app: &TestApp) -> Outcome {
        let place = Place { storage: &self.storage, folder: "" };
        lake::preview(&app.pool, &self.wish(app, false), &place).await.expect("a preview")
    }

    pub async fn update(&self, app: &TestApp) -> Outcome {
        self.run(app, &self.wish(app, false)).await.expect("a run")
    }

    /// What is in each file, by its path below the dataset's folder.
    pub fn bytes(&self) -> BTreeMap<String, Vec<u8>> {
        files_of(self.folder.path())
    }

    pub fn manifest(&self) -> Value {
        let text = std::fs::read(self.folder.path().join("gottcha2/_manifest.json")).expect("manifest");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// The rows of all files in the folder, after making sure that the manifest names exactly these.
    pub fn rows(&self) -> Vec<(i64, i64)> {
        rows_of(self.folder.path())
    }
}

pub fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &str| path.strip_prefix(&format!("{}/", folder.display())).expect("below").to_owned();
    files_below(folder).iter().map(|path| (name(path), std::fs::read(path).expect("file"))).collect()
}

/// The files of a dataset, each with its path and what the manifest says of its rows: all are named, and as they are named.
pub fn named_files(root: &Path) -> Vec<(String, Vec<u8>, usize)> {
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(root.join("_manifest.json")).expect("manifest")).expect("JSON");
    let mut found = files_of(root);
    found.remove("_manifest.json");
    let mut files = Vec::new();
    for file in manifest["partitions"]
        .as_array()
        .expect("partitions")
        .iter()
        .flat_map(|partition| partition["files"].as_array().expect("files"))
    {
        let path = file["path"].as_str().expect("path").to_owned();
        let bytes = found.remove(&path).unwrap_or_else(|| panic!("{path} is missing"));
        assert_eq!(file["bytes"], bytes.len());
        let digest = <sha2::Sha256 as sha2::Digest>::digest(&bytes);
        assert_eq!(file["sha256"], data_encoding::HEXLOWER.encode(&digest));
        files.push((path, bytes, usize::try_from(file["rows"].as_u64().expect("rows")).expect("rows")));
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), Vec::<&String>::new(), "files that no manifest names");
    files
}

/// All (submission_id, ordinal) of `FOLDER/gottcha2`, sorted.
pub fn rows_of(folder: &Path) -> Vec<(i64, i64)> {
    let mut rows = Vec::new();
    for (_, bytes, expected) in named_files(&folder.join("gottcha2")) {
        let before = rows.len();
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).expect("Parquet");
        for batch in reader.build().expect("reader") {
            let batch = batch.expect("batch");
            let column = |name: &str| batch.column_by_name(name).expect(name).as_primitive::<Int64Type>().clone();
            let (submissions, ordinals) = (column("submission_id"), column("ordinal"));
            rows.extend((0..batch.num_rows()).map(|row| (submissions.value(row), ordinals.value(row))));
        }
        assert_eq!(expected, rows.len() - before);
    }
    rows.sort_unstable();
    rows
}

/// All (submission_id, ordinal) of the table, sorted.
pub async fn stored_rows(app: &TestApp) -> Vec<(i64, i64)> {
    let rows = sqlx::query_as("SELECT submission_id, ordinal::bigint FROM gottcha2_full ORDER BY 1, 2");
    rows.fetch_all(&app.pool).await.expect("rows")
}

/// Stores rows of a sample as if it had been at that time.
pub async fn store_at(app: &TestApp, sample: &str, rows: usize, time: &str) -> i64 {
    let record = RECORD.replace("S1", sample);
    let receipt = app.store("/ingest-gottcha2", format!("{record}\n").repeat(rows)).await;
    let id = receipt["submission_id"].as_i64().expect("id");
    for sql in [
        format!("UPDATE submissions SET created_at = '{time}' WHERE id = {id}"),
        format!("UPDATE gottcha2_full SET created_at = '{time}' WHERE submission_id = {id}"),
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(&app.pool).await.expect("update");
    }
    id
}

/// The rows of the first three days of November 2026, 10 each.
async fn three_days(app: &TestApp) -> Lake {
    for day in ["01", "02", "03"] {
        store_at(app, &format!("S{day}"), 10, &format!("2026-11-{day}T12:00:00Z")).await;
    }
    let lake = Lake::daily();
    lake.update(app).await;
    lake
}

fn actions(outcome: &Outcome) -> Vec<(&str, Action, u64)> {
    outcome.partitions.iter().map(|done| (done.path.as_str(), done.action, done.rows)).collect()
}

#[tokio::test]
async fn rows_lie_in_the_partition_of_their_day_and_a_second_run_changes_no_byte() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 10, "2024-02-29T23:59:59.999999Z").await;
    store_at(&app, "S2", 20, "2024-03-01T00:00:00Z").await;
    store_at(&app, "S3", 30, "2026-11-20T12:00:00Z").await;
    let lake = Lake::daily();
    let outcome = lake.update(&app).await;
    assert_eq!(
        actions(&outcome),
        [
            ("year=2024/month=02/day=29", Action::New, 10),
            ("year=2024/month=03/day=01", Action::New, 20),
            ("year=2026/month=11/day=20", Action::New, 30),
        ]
    );
    assert_eq!(lake.rows(), stored_rows(&app).await);
    let manifest = lake.manifest();
    let first = &manifest["partitions"][0];
    assert_eq!((&first["start"], &first["end"]), (&json!("2024-02-29T00:00:00Z"), &json!("2024-03-01T00:00:00Z")));
    assert_eq!(first["files"][0]["min_time"], "2024-02-29T23:59:59.999999Z");
    let path = first["files"][0]["path"].as_str().expect("path");
    assert!(path.starts_with("year=2024/month=02/day=29/gottcha2_20240229_"), "{path}");
    let before = lake.bytes();
    assert!(["README.md", "duckdb.sql", "queries.sql", "schema.json"].iter().all(|name| before.contains_key(*name)));
    let again = lake.update(&app).await;
    assert_eq!((again.partitions.len(), again.unchanged), (0, 3));
    assert!(lake.bytes() == before, "a run without changes changed a byte");
}

#[tokio::test]
async fn late_rows_reach_their_day_and_other_days_are_left_alone() {
    let app = TestApp::start().await;
    let lake = three_days(&app).await;
    let before = lake.bytes();
    store_at(&app, "late", 7, "2026-11-02T00:00:00Z").await;
    let outcome = lake.update(&app).await;
    assert_eq!(actions(&outcome), [("year=2026/month=11/day=02", Action::Add, 7)]);
    assert_eq!(lake.rows(), stored_rows(&app).await);
    let after = lake.bytes();
    let same = before.iter().filter(|(path, _)| path.ends_with(".parquet")).all(|(path, bytes)| after[path] == *bytes);
    assert!(same, "a file that had nothing to do with it was changed");
}

#[tokio::test]
async fn replaced_and_removed_submissions_disappear_with_the_next_run() {
    let app = TestApp::start().await;
    let put = async |rows: usize| {
        let path = "/ingest/gottcha2/one?on_conflict=replace";
        let answer = app.request("PUT", path).body(format!("{RECORD}\n").repeat(rows)).send().await.expect("answer");
        assert_eq!(answer.status(), 200);
    };
    put(10).await;
    let gone = app.store("/ingest-gottcha2", format!("{}\n", RECORD.replace("S1", "S2")).repeat(5)).await;
    let alone = store_at(&app, "S3", 4, "2026-01-01T12:00:00Z").await;
    let lake = Lake::daily();
    lake.update(&app).await;
    assert_eq!(lake.rows().len(), 19);
    put(3).await;
    for id in [&gone["submission_id"], &json!(alone)] {
        let answer = app.request("DELETE", &format!("/submissions/{id}")).send().await.expect("answer");
        assert_eq!(answer.status(), 204);
    }
    let outcome = lake.update(&app).await;
    assert_eq!(outcome.partitions[0].action, Action::Remove);
    assert_eq!((outcome.partitions[1].action, outcome.partitions[1].rows), (Action::Rewrite, 3));
    assert_eq!(lake.rows(), stored_rows(&app).await);
    assert!(!lake.folder.path().join("gottcha2/year=2026/month=01").exists(), "an empty partition was left");
}

#[tokio::test]
async fn a_file_that_is_lost_or_cut_short_is_written_anew() {
    let app = TestApp::start().await;
    let lake = three_days(&app).await;
    let file = |partition: usize| {
        let path = lake.manifest()["partitions"][partition]["files"][0]["path"].as_str().expect("path").to_owned();
        lake.folder.path().join("gottcha2").join(path)
    };
    std::fs::remove_file(file(0)).expect("removed");
    let cut = std::fs::read(file(2)).expect("file");
    std::fs::write(file(2), &cut[..cut.len() - 1]).expect("cut");
    let repaired =
        [("year=2026/month=11/day=01", Action::Rewrite, 10), ("year=2026/month=11/day=03", Action::Rewrite, 10)];
    assert_eq!(actions(&lake.preview(&app).await), repaired);
    assert_eq!(actions(&lake.update(&app).await), repaired);
    assert_eq!(lake.rows(), stored_rows(&app).await);
    assert_eq!(lake.update(&app).await.unchanged, 3);
}

#[tokio::test]
async fn replaced_files_stay_for_the_grace_and_go_with_a_later_run() {
    let app = TestApp::start().await;
    let id = store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    store_at(&app, "S2", 5, "2026-01-01T13:00:00Z").await;
    let lake = Lake::daily();
    lake.update(&app).await;
    app.request("DELETE", &format!("/submissions/{id}")).send().await.expect("answer");
    let mut patient = lake.wish(&app, false);
    patient.grace = Duration::from_secs(3600);
    let waiting = tokio::time::timeout(Duration::from_secs(5), lake.run(&app, &patient)).await;
    assert!(waiting.is_err(), "it did not wait for readers");
    let manifest = lake.manifest();
    let retired = manifest["retired"].as_array().expect("retired");
    assert_eq!(retired.len(), 1);
    assert!(lake.folder.path().join("gottcha2").join(retired[0]["path"].as_str().expect("path")).exists());
    assert_eq!(manifest["partitions"][0]["files"][0]["rows"], 5);
    lake.update(&app).await;
    assert_eq!(lake.rows(), stored_rows(&app).await);
}

#[tokio::test]
async fn the_grace_of_replaced_files_begins_when_the_manifest_stops_naming_them() {
    let app = TestApp::start().await;
    let mut ids = Vec::new();
    for day in 1..=4 {
        ids.push(store_at(&app, &format!("S{day}"), 4, &format!("2026-01-0{day}T12:00:00Z")).await);
        store_at(&app, &format!("T{day}"), 5, &format!("2026-01-0{day}T13:00:00Z")).await;
    }
    let lake = Lake::daily();
    lake.update(&app).await;
    for id in ids {
        app.request("DELETE", &format!("/submissions/{id}")).send().await.expect("answer");
    }
    let mut patient = lake.wish(&app, false);
    (patient.grace, patient.jobs) = (Duration::from_secs(3600), 1);
    let waiting = tokio::time::timeout(Duration::from_secs(5), lake.run(&app, &patient)).await;
    assert!(waiting.is_err(), "it did not wait for readers");
    let manifest = lake.manifest();
    let named = manifest["partitions"].as_array().expect("partitions").iter().map(|part| &part["files"][0]["path"]);
    let written = named.map(|path| {
        let path = lake.folder.path().join("gottcha2").join(path.as_str().expect("path"));
        DateTime::<Utc>::from(path.metadata().expect("file").modified().expect("time"))
    });
    let last = written.max().expect("files");
    let retired = manifest["retired"].as_array().expect("retired");
    let since = retired.iter().map(|file| file["at"].as_str().expect("time").parse::<DateTime<Utc>>().expect("time"));
    assert_eq!(retired.len(), 4);
    assert!(since.min().expect("files") >= last, "{manifest:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_files_go_after_the_catalogue_has_stopped_naming_them() {
    let app = TestApp::start().await;
    let id = store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    store_at(&app, "S2", 5, "2026-01-01T13:00:00Z").await;
    let lake = Lake::daily();
    lake.update(&app).await;
    let path = lake.manifest()["partitions"][0]["files"][0]["path"].as_str().expect("path").to_owned();
    let (old, script) = (lake.folder.path().join("gottcha2").join(&path), lake.folder.path().join("duckdb.sql"));
    let stale = std::fs::read(&script).expect("script");
    app.request("DELETE", &format!("/submissions/{id}")).send().await.expect("answer");
    let mut patient = lake.wish(&app, false);
    patient.grace = Duration::from_secs(3600);
    let waiting = tokio::time::timeout(Duration::from_secs(5), lake.run(&app, &patient)).await;
    assert!(waiting.is_err() && old.exists(), "it did not wait for readers");
    // As if it had been killed before the catalogue.
    std::fs::write(&script, stale).expect("script");
    let mut hold = app.pool.begin().await.expect("transaction");
    sqlx::query("LOCK TABLE submissions").execute(&mut *hold).await.expect("hold");
    let next = lake.update(&app);
    let look = async {
        eventually("the replaced file is removed", async || !old.exists()).await;
        let told = std::fs::read_to_string(&script).expect("script");
        hold.rollback().await.expect("rollback");
        told
    };
    let (_, told) = tokio::join!(next, look);
    assert!(!told.contains(&path), "{told}");
}

#[tokio::test]
async fn a_run_that_is_broken_off_names_no_partition_that_rows_have_left_without_those_in_their_place() {
    let app = TestApp::start().await;
    let time = |day: i32| format!("2026-01-{day:02}T12:00:00Z");
    for day in 1..=20 {
        store_at(&app, &format!("S{day}"), 2, &time(day)).await;
    }
    let mut lake = Lake::daily();
    let gradual = |lake: &Lake, overwrite| {
        let mut wish = lake.wish(&app, overwrite);
        (wish.historical, wish.jobs) = (true, 1);
        wish
    };
    lake.run(&app, &gradual(&lake, false)).await.expect("a run");
    let whole = lake.manifest();
    // A result of the first day is replaced on the last one, and others come on each day between.
    let first: i64 = app.scalar("SELECT min(id) FROM submissions").await;
    app.request("DELETE", &format!("/submissions/{first}")).send().await.expect("answer");
    let mut last = 0;
    for day in 2..=20 {
        last = store_at(&app, &format!("T{day}"), 3, &time(day)).await;
    }
    let lose = format!("DELETE FROM gottcha2_full WHERE submission_id = {last} AND ordinal = 1");
    sqlx::query(AssertSqlSafe(lose)).execute(&app.pool).await.expect("a fault in the last partition");
    lake.run(&app, &gradual(&lake, false)).await.expect_err("broken off");
    assert!(lake.manifest()["partitions"] == whole["partitions"], "half of a change is named");
    // The same where the dataset takes the place of one that is cut otherwise.
    lake.partitioning = Lake::new(&json!({"temporal": "year,month,day,hour"})).partitioning;
    lake.run(&app, &gradual(&lake, true)).await.expect_err("broken off");
    assert!(lake.manifest()["partitions"] == whole["partitions"], "half of a change is named");
    // Where rows only come, what is written stays.
    let fresh = Lake::daily();
    fresh.run(&app, &gradual(&fresh, false)).await.expect_err("broken off");
    assert_eq!(fresh.manifest()["partitions"].as_array().expect("partitions").len(), 16);
}

#[tokio::test]
async fn many_small_files_of_a_day_become_one() {
    let app = TestApp::start().await;
    let lake = Lake::daily();
    for round in 0..9 {
        store_at(&app, &format!("S{round}"), 2, "2026-11-20T12:00:00Z").await;
        lake.update(&app).await;
    }
    assert_eq!(lake.manifest()["partitions"][0]["files"].as_array().expect("files").len(), 1);
    assert_eq!(lake.rows(), stored_rows(&app).await);
}

#[tokio::test]
async fn files_of_partitions_have_short_pages_and_compress_only_what_grows_small() {
    let app = TestApp::start().await;
    let mut chance = SmallRng::seed_from_u64(1);
    let mut record = |row| {
        json!({"sample_id": "S1", "level": "species", "name": "Zika virus", "taxid": "64320", "read_count": row % 7,
            "total_bp_mapped": row, "depth": chance.random::<f64>(), "zscore": f64::from(row % 5_000) / 5e3})
    };
    let body: String = (0..9_000).map(|row: u32| format!("{}\n", record(row))).collect();
    app.store("/ingest-gottcha2", gzip(body)).await;
    sqlx::query("ANALYZE gottcha2_full").execute(&app.pool).await.expect("statistics");
    let lake = Lake::daily();
    lake.update(&app).await;
    let export = app.download(&app.export(json!({"table": "gottcha2"})).await).await;
    let [(_, partition, 9_000)] = &named_files(&lake.folder.path().join("gottcha2"))[..] else { panic!("one file") };
    // Pages of the taxon, and whether depths, which are noise, and scores are compressed.
    let layout = |file: Vec<u8>| {
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
        let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes::Bytes::from(file), options);
        let metadata = reader.expect("Parquet").metadata().as_ref().clone();
        let position = |name: &str| {
            let columns = metadata.row_group(0).columns();
            columns.iter().position(|column| column.column_path().string() == name).expect("column")
        };
        let is_compressed = |name: &str| {
            let column = metadata.row_group(0).column(position(name));
            column.compressed_size() < column.uncompressed_size()
        };
        let pages = metadata.page_index_for_row_group(0).num_data_pages(position("taxid")).expect("pages");
        (pages, is_compressed("depth"), is_compressed("zscore"))
    };
    assert_eq!(layout(partition.clone()), (3, false, true));
    assert_eq!(layout(export), (1, true, true));
}

#[tokio::test]
async fn what_somebody_else_has_written_is_not_touched_without_overwrite() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    let lake = Lake::daily();
    let theirs = lake.folder.path().join("gottcha2/theirs.parquet");
    std::fs::create_dir_all(theirs.parent().expect("folder")).expect("folder");
    std::fs::write(&theirs, "theirs").expect("file");
    let refused = lake.run(&app, &lake.wish(&app, false)).await.expect_err("refused");
    assert!(refused.to_string().contains("did not write"), "{refused}");
    assert_eq!(files_below(lake.folder.path()).len(), 1);
    lake.run(&app, &lake.wish(&app, true)).await.expect("overwritten");
    assert!(!theirs.exists());
    assert_eq!(lake.rows(), stored_rows(&app).await);
    // Cut in another way, it is another dataset.
    let monthly = Lake { partitioning: Lake::new(&json!({"temporal": "year,month"})).partitioning, ..lake };
    let refused = monthly.run(&app, &monthly.wish(&app, false)).await.expect_err("refused");
    assert!(refused.to_string().contains("another way"), "{refused}");
    monthly.run(&app, &monthly.wish(&app, true)).await.expect("overwritten");
    assert_eq!(monthly.rows(), stored_rows(&app).await);
    // Another database counts its submissions anew.
    let other = TestApp::start().await;
    let refused = monthly.run(&other, &monthly.wish(&other, false)).await.expect_err("refused");
    assert!(refused.to_string().contains("another database"), "{refused}");
}

#[tokio::test]
async fn what_is_cut_in_another_way_is_not_replaced_by_the_rows_of_one_day() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    store_at(&app, "S2", 5, "2026-01-02T12:00:00Z").await;
    let lake = Lake::daily();
    lake.update(&app).await;
    let before = lake.bytes();
    let dataset = app.app.datasets.get("gottcha2").expect("dataset");
    let from = |day: &str| ExportSpec { from: day.parse().ok(), ..ExportSpec::default() };
    let wish = |partitioning: &Partitioning, spec: &ExportSpec| {
        Wish::new(dataset, spec, partitioning, true, &app.app.config.export).expect("wish")
    };
    let monthly = Lake::new(&json!({"temporal": "year,month"})).partitioning;
    let second = from("2026-01-02T00:00:00Z");
    let refused = lake.run(&app, &wish(&monthly, &second)).await.expect_err("refused");
    assert!(matches!(&refused, Error::Conflict(reason) if reason.contains("all of it would be replaced")), "{refused}");
    assert!(lake.bytes() == before, "something was replaced");
    // Cut in the same way, a day is a part of it.
    lake.run(&app, &wish(&lake.partitioning, &second)).await.expect("a run");
    assert_eq!(lake.rows(), stored_rows(&app).await);
}

#[tokio::test]
async fn files_of_others_with_the_names_of_the_catalogue_are_not_overwritten() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    for name in ["README.md", "schema.json", "duckdb.sql", "queries.sql"] {
        let lake = Lake::daily();
        let theirs = lake.folder.path().join(name);
        std::fs::write(&theirs, "theirs").expect("file");
        for overwrite in [false, true] {
            let refused = lake.run(&app, &lake.wish(&app, overwrite)).await.expect_err("refused");
            assert!(matches!(&refused, Error::Conflict(reason) if reason.contains(name)), "{refused}");
        }
        assert_eq!(files_below(lake.folder.path()), [theirs.to_str().expect("UTF-8")]);
        // What a catalogue has left behind is known, also where its datasets are gone.
        std::fs::remove_file(&theirs).expect("remove");
        lake.update(&app).await;
        std::fs::remove_dir_all(lake.folder.path().join("gottcha2")).expect("remove");
        lake.update(&app).await;
        // Beside a dataset they are the catalogue's.
        std::fs::write(&theirs, "edited").expect("file");
        lake.update(&app).await;
        assert_ne!(std::fs::read_to_string(&theirs).expect("file"), "edited");
    }
}

#[tokio::test]
async fn the_catalogue_names_datasets_that_this_process_has_no_definition_of() {
    let s3 = S3::start().await;
    let app = TestApp::start().await;
    store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    let lakes = [Lake { storage: Storage::open(&s3.url("secret")).expect("storage"), ..Lake::daily() }, Lake::daily()];
    let roots = [s3.folder.path().join("lab/exports"), lakes[1].folder.path().to_owned()];
    for (lake, root) in lakes.iter().zip(roots) {
        lake.update(&app).await;
        // As a service that knows a dataset of an operator leaves it; and a copy that somebody has laid beside it.
        let manifest = std::fs::read_to_string(root.join("gottcha2/_manifest.json")).expect("manifest");
        for (folder, name) in [("kraken", "kraken"), ("copy", "gottcha2")] {
            std::fs::create_dir(root.join(folder)).expect("folder");
            let manifest = manifest.replace("\"dataset\": \"gottcha2\"", &format!("\"dataset\": \"{name}\""));
            std::fs::write(root.join(folder).join("_manifest.json"), manifest).expect("manifest");
        }
        store_at(&app, "S2", 5, "2026-01-02T12:00:00Z").await;
        lake.update(&app).await;
        let script = std::fs::read_to_string(root.join("duckdb.sql")).expect("script");
        for name in ["gottcha2", "kraken"] {
            assert_eq!(script.matches(&format!("CREATE OR REPLACE VIEW \"{name}\"")).count(), 1, "{script}");
        }
        assert!(std::fs::read_to_string(root.join("schema.json")).expect("schema").contains("\"kraken\""));
    }
}

#[tokio::test]
async fn a_definition_that_lacks_a_column_of_the_dataset_is_refused_without_overwrite() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    let lake = Lake::daily();
    lake.update(&app).await;
    // As a service of a newer definition leaves it.
    let mut manifest = lake.manifest();
    manifest["columns"].as_array_mut().expect("columns").push(json!({"name": "newer", "kind": "text"}));
    std::fs::write(lake.folder.path().join("gottcha2/_manifest.json"), manifest.to_string()).expect("manifest");
    store_at(&app, "S2", 4, "2026-01-02T12:00:00Z").await;
    let before = lake.bytes();
    let refused = lake.run(&app, &lake.wish(&app, false)).await.expect_err("refused");
    assert!(matches!(&refused, Error::Conflict(reason) if reason.contains("`newer`")), "{refused}");
    assert!(lake.bytes() == before, "a refused run changed something");
    lake.run(&app, &lake.wish(&app, true)).await.expect("overwritten");
    assert_eq!(lake.rows(), stored_rows(&app).await);
}

#[tokio::test]
async fn values_of_columns_have_folders_whatever_stands_in_them() {
    let app = TestApp::start().await;
    let samples = ["plain", "a/b=c:d%e", "Ünï côdé", "..", "it's", "x.parquet", "#1"];
    for sample in samples {
        store_at(&app, sample, 3, "2026-01-01T12:00:00Z").await;
    }
    let lake = Lake::new(&json!({"temporal": "year", "by": ["sample_id", "run_id"]}));
    lake.update(&app).await;
    assert_eq!(lake.rows(), stored_rows(&app).await);
    let root = lake.folder.path().join("gottcha2/year=2026");
    for folder in
        ["sample_id=plain", "sample_id=a%2Fb%3Dc%3Ad%25e", "sample_id=Ünï côdé", "sample_id=..", "sample_id=%231"]
    {
        assert!(root.join(folder).join("run_id=__HIVE_DEFAULT_PARTITION__").is_dir(), "{folder}");
    }
    let file = files_below(&root).pop().expect("a file");
    let columns = |file: &str| {
        let reader =
            ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).expect("file")).expect("Parquet");
        reader.schema().fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>()
    };
    assert!(!columns(&file).contains(&"sample_id".to_owned()));
    let kept = Lake::new(&json!({"temporal": "year", "by": ["sample_id"], "keep_columns": true}));
    kept.update(&app).await;
    let file = files_below(&kept.folder.path().join("gottcha2/year=2026")).pop().expect("a file");
    assert!(["sample_id", "year"].iter().all(|name| columns(&file).contains(&(*name).to_owned())));
    assert_eq!(kept.rows(), stored_rows(&app).await);
}

#[tokio::test]
async fn columns_of_partitions_have_the_types_of_their_kinds() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 3, "2026-01-01T12:00:00Z").await;
    let lake = Lake::new(&json!({"by": ["read_count", "level"]}));
    let types = || {
        let read = |name: &str| std::fs::read_to_string(lake.folder.path().join(name)).expect("file");
        let schema: Value = serde_json::from_str(&read("schema.json")).expect("JSON");
        assert!(read("duckdb.sql").contains(r#"hive_types = {"read_count": BIGINT, "level": VARCHAR}"#));
        schema["datasets"]["gottcha2"]["partition_columns"].clone()
    };
    let expected = json!([{"name": "read_count", "type": "BIGINT"}, {"name": "level", "type": "VARCHAR"}]);
    lake.update(&app).await;
    assert_eq!(types(), expected);
    // Earlier versions did not write them down.
    let mut manifest = lake.manifest();
    manifest.as_object_mut().expect("object").remove("partition_columns").expect("kinds");
    std::fs::write(lake.folder.path().join("gottcha2/_manifest.json"), manifest.to_string()).expect("manifest");
    assert_eq!(lake.update(&app).await.unchanged, 1);
    assert_eq!(types(), expected);
}

#[tokio::test]
async fn texts_that_readers_take_for_null_are_escaped_also_where_an_earlier_version_has_not() {
    let app = TestApp::start().await;
    for sample in ["NULL", "null", "Null", "nullify"] {
        store_at(&app, sample, 3, "2026-01-01T12:00:00Z").await;
    }
    store_at(&app, "S1", 3, "2027-01-01T12:00:00Z").await;
    let lake = Lake::new(&json!({"temporal": "year", "by": ["sample_id"]}));
    lake.update(&app).await;
    let folders = || {
        let folders = std::fs::read_dir(lake.folder.path().join("gottcha2/year=2026")).expect("folder");
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("entry").file_name().into_string();
        folders.map(name).collect::<Result<std::collections::BTreeSet<_>, _>>().expect("UTF-8")
    };
    let escaped = ["sample_id=%4EULL", "sample_id=%4Eull", "sample_id=%6Eull", "sample_id=nullify"];
    assert!(folders().iter().eq(escaped), "{:?}", folders());
    // As an earlier version has named it.
    let root = lake.folder.path().join("gottcha2");
    std::fs::rename(root.join("year=2026/sample_id=%4EULL"), root.join("year=2026/sample_id=NULL")).expect("rename");
    let manifest = lake.manifest().to_string().replace("sample_id=%4EULL", "sample_id=NULL");
    std::fs::write(root.join("_manifest.json"), manifest).expect("manifest");
    assert_eq!(lake.rows(), stored_rows(&app).await);
    assert_eq!(actions(&lake.update(&app).await), [("year=2026", Action::Rewrite, 12)]);
    assert!(folders().iter().eq(escaped), "{:?}", folders());
    assert_eq!(lake.rows(), stored_rows(&app).await);
    assert_eq!(lake.update(&app).await.unchanged, 2);
    // What stands for null itself cannot be escaped for all readers.
    store_at(&app, "__HIVE_DEFAULT_PARTITION__", 3, "2026-01-01T12:00:00Z").await;
    let refused = lake.run(&app, &lake.wish(&app, false)).await.expect_err("refused");
    assert!(matches!(&refused, Error::Conflict(reason) if reason.contains("stands for null")), "{refused}");
}

#[tokio::test]
async fn the_readme_says_how_files_with_the_columns_of_their_partitions_are_read() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 3, "2026-01-01T12:00:00Z").await;
    let readme = async |is_kept: bool| {
        let lake = Lake::new(&json!({"temporal": "year", "keep_columns": is_kept}));
        lake.update(&app).await;
        std::fs::read_to_string(lake.folder.path().join("README.md")).expect("file")
    };
    assert!(!readme(false).await.contains("partitioning=None"));
    let kept = readme(true).await;
    assert!(kept.contains("`gottcha2`") && kept.contains("partitioning=None"), "{kept}");
}

#[tokio::test]
async fn macros_count_days_in_utc_wherever_their_reader_is() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 3, "2026-01-01T12:00:00Z").await;
    let lake = Lake::new(&json!({"temporal": "year,month"}));
    lake.update(&app).await;
    let script = std::fs::read_to_string(lake.folder.path().join("duckdb.sql")).expect("script");
    let day = "(created_at AT TIME ZONE 'UTC')::DATE";
    assert!(script.contains(&format!("SELECT {day} AS stored_on")), "{script}");
    assert!(script.contains(&format!("min({day}) AS first_stored_on")), "{script}");
}

#[tokio::test]
async fn the_macro_that_counts_days_groups_by_them_also_where_a_column_has_its_name() {
    let app = TestApp::start().await;
    let lake = Lake::daily();
    lake.update(&app).await;
    let script = std::fs::read_to_string(lake.folder.path().join("duckdb.sql")).expect("script");
    // DuckDB takes a name for a column before it takes it for what is selected. A test with DuckDB itself is in lake_readers.
    assert!(!script.contains("GROUP BY stored_on"), "{script}");
}

#[tokio::test]
async fn a_place_below_a_folder_that_readers_take_for_a_partition_is_refused() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 3, "2026-01-01T12:00:00Z").await;
    let lake = Lake::daily();
    let below = lake.folder.path().join("year=1999/lake");
    let storage = Storage::open(below.to_str().expect("UTF-8")).expect("storage");
    let lake = Lake { storage, ..lake };
    for overwrite in [false, true] {
        let refused = lake.run(&app, &lake.wish(&app, overwrite)).await.expect_err("refused");
        assert!(matches!(&refused, Error::Conflict(reason) if reason.contains("`year=1999`")), "{refused}");
    }
    assert_eq!(files_below(&below), Vec::<String>::new());
}

#[tokio::test]
async fn a_row_removed_by_hand_is_refused_by_name_and_leaves_nothing_half_written() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    store_at(&app, "S2", 4, "2026-01-02T12:00:00Z").await;
    sqlx::query("DELETE FROM gottcha2_full WHERE sample_id = 'S2' AND ordinal = 1")
        .execute(&app.pool)
        .await
        .expect("sql");
    let lake = Lake::daily();
    let refused = lake.run(&app, &lake.wish(&app, false)).await.expect_err("refused");
    assert!(matches!(&refused, Error::Conflict(reason) if reason.contains("day=02")), "{refused}");
    assert_eq!(files_below(lake.folder.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_whose_answer_was_lost_names_files_that_are_there() {
    let s3 = S3::start().await;
    let app = TestApp::start().await;
    store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    let lake = Lake { storage: Storage::open(&s3.url("secret")).expect("storage"), ..Lake::daily() };
    let bucket = s3.folder.path().join("lab/exports");
    lake.update(&app).await;
    store_at(&app, "S2", 5, "2026-01-02T12:00:00Z").await;
    s3.is_silent.store(true, Ordering::Relaxed);
    lake.run(&app, &lake.wish(&app, false)).await.expect_err("no answer");
    s3.is_silent.store(false, Ordering::Relaxed);
    assert_eq!(rows_of(&bucket), stored_rows(&app).await);
    assert_eq!(lake.update(&app).await.unchanged, 2);
    assert_eq!(rows_of(&bucket), stored_rows(&app).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_has_lost_its_lock_leaves_the_manifest_of_another() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    let lake = Lake::daily();
    let manifest = lake.folder.path().join("gottcha2/_manifest.json");
    // The first run stands still once it has put its empty manifest there.
    let is_free = Arc::new(AtomicBool::new(false));
    let (begun, freed) = (manifest.clone(), Arc::clone(&is_free));
    let held = PgPoolOptions::new().before_acquire(move |_, _| {
        let (begun, freed) = (begun.clone(), Arc::clone(&freed));
        Box::pin(async move {
            while begun.exists() && !freed.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(true)
        })
    });
    let held = held.connect(&app.database_url()).await.expect("pool");
    let (wish, lease) = (lake.wish(&app, false), Lease::new(Uuid::now_v7(), 1));
    let place = Place { storage: &lake.storage, folder: "" };
    let first = lake::run(&held, &app.app.config.export, &wish, &place, &lease);
    let second = async {
        eventually("the first run has begun", async || manifest.exists()).await;
        let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND query LIKE '-- lake.lock%'";
        assert_eq!(app.scalar::<i64>(ended).await, 1);
        lake.update(&app).await;
        is_free.store(true, Ordering::Relaxed);
    };
    let (first, ()) = tokio::join!(first, second);
    first.expect_err("it has lost its lock");
    assert_eq!(lake.rows(), stored_rows(&app).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_addresses_of_one_folder_are_written_by_one_run_at_a_time() {
    let s3 = S3::start().await;
    let app = TestApp::start().await;
    let bucket = Storage::open(&s3.url("secret")).expect("storage");
    let folder = Storage::open(s3.folder.path().join("lab/exports").to_str().expect("UTF-8")).expect("storage");
    let [one, other] = [&bucket, &folder].map(|storage| Place { storage, folder: "" });
    let lease = Lease::new(Uuid::now_v7(), 1);
    for name in ["gottcha2", ""] {
        let held = one.lock(&app.pool, name, &lease).await.expect("lock");
        let second = tokio::time::timeout(Duration::from_secs(2), other.lock(&app.pool, name, &lease)).await;
        assert!(second.is_err(), "both hold the lock of `{name}`");
        drop(held);
        other.lock(&app.pool, name, &lease).await.expect("free again");
    }
}

fn export(app: &TestApp, folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let data: PathBuf = folder.join("data");
    let mut command = binary(&data);
    command.env("DATABASE_URL", app.database_url()).arg("export").args(arguments);
    let output = command.args(["--set", "lake.grace=0s"]).output().expect("run");
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_previews_writes_skips_and_goes_on_behind_a_failure() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    store_at(&app, "S2", 5, "2026-01-02T12:00:00Z").await;
    app.store("/ingest-stast", crate::app::data("stast/stast.jsonl")).await;
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("lake");
    let to = ["-o", out.to_str().expect("UTF-8"), "--temporal", "year,month,day"];
    let with = |more: &[&'static str]| [&["*ta*", "gott*"], &to[..], more].concat();
    let (code, told, errors) = export(&app, folder.path(), &with(&["--dry-run"]));
    assert_eq!(code, 0, "{errors}");
    assert!(told.contains("year=2026/month=01/day=01  4 rows") && told.contains("nothing was written"), "{told}");
    assert_eq!(files_below(&out), Vec::<String>::new());
    let (code, told, errors) = export(&app, folder.path(), &with(&["--date", "2026-01-02"]));
    assert_eq!(code, 0, "{errors}");
    assert!(told.contains("gottcha2: 1 partitions, 1 files, 5 rows") && told.contains("sha256:"), "{told}");
    let table = &app.app.datasets.get("stast").expect("dataset").table;
    let sql = format!("DELETE FROM \"{table}\" WHERE ordinal = 1");
    sqlx::query(AssertSqlSafe(sql)).execute(&app.pool).await.expect("sql");
    let (code, told, errors) = export(&app, folder.path(), &with(&[]));
    assert_eq!(code, 1);
    assert!(told.contains("gottcha2: 1 partitions already exist, skipping"), "{told}");
    assert!(told.contains("gottcha2: 1 partitions, 1 files, 4 rows"), "{told}");
    assert!(errors.contains("1 of 2 datasets") || errors.contains("of 3 datasets"), "{errors}");
    assert!(errors.contains("stast") && errors.contains("by hand"), "{errors}");
    assert_eq!(rows_of(&out), stored_rows(&app).await);
    assert_eq!(files_below(&out.join("stast")).len(), 1, "something but the manifest was left");
    let (code, told, errors) =
        export(&app, folder.path(), &["gottcha2", "--temporal", "year", "--partition-by", "level", "--dry-run"]);
    assert_eq!(code, 0, "{errors}");
    assert!(told.contains("year=2026  9 rows"), "{told}");
    let (code, _, errors) = export(&app, folder.path(), &["gottcha2", "--dry-run"]);
    assert_eq!(code, 1);
    assert!(errors.contains("need --temporal"), "{errors}");
    let (code, _, errors) = export(&app, folder.path(), &["nonsense*", "--temporal", "year"]);
    assert_eq!(code, 1);
    assert!(errors.contains("no dataset `nonsense*`"), "{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dataset_that_cannot_be_cut_like_the_others_stops_none_of_them() {
    let app = TestApp::start().await;
    store_at(&app, "S1", 4, "2026-01-01T12:00:00Z").await;
    let folder = tempfile::tempdir().expect("folder");
    let definitions = folder.path().join("definitions");
    std::fs::create_dir(&definitions).expect("folder");
    std::fs::write(definitions.join("harvest.toml"), WITH_A_YEAR).expect("definition");
    let (dir, out) = (format!("datasets.dir={}", definitions.display()), folder.path().join("lake"));
    let to = ["-o", out.to_str().expect("UTF-8"), "--set", &dir];
    let (code, told, errors) = export(&app, folder.path(), &[&["*", "--temporal", "year,month"], &to[..]].concat());
    assert_eq!(code, 1);
    assert!(told.contains("gottcha2: 1 partitions, 1 files, 4 rows"), "{told}");
    assert!(errors.contains("1 of 5 datasets were not written") && errors.contains("harvest: "), "{errors}");
    assert!(errors.contains("`year`") && errors.contains("rename the column"), "{errors}");
    assert_eq!(rows_of(&out), stored_rows(&app).await);
    let (code, _, errors) = export(&app, folder.path(), &[&["harvest", "--partition-by", "year"], &to[..]].concat());
    assert_eq!((code, errors.contains("error")), (0, false), "{errors}");
}
