//! Partitioned datasets read by DuckDB, Polars, pyarrow and Spark, files from before a column existed among them.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use bytes::Bytes;
use nvd_support_car::app::App;
use nvd_support_car::config::{Config, Partitioning};
use nvd_support_car::db::jobs::Lease;
use nvd_support_car::export::spec::ExportSpec;
use nvd_support_car::lake::{self, Place, Wish};
use nvd_support_car::storage::Storage;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::app::TestApp;
use crate::lake::named_files;
use crate::process::binary;
use crate::python;

const BEFORE: &str = "name = 'hits'\ntable = 'hits'\ntitle = 'Hits'\ndescription = 'Hits of a sample'\n\
    [[columns]]\nname = 'sample_id'\nkind = 'text'\nrequired = true\ndescription = 'x'\n\
    [[columns]]\nname = 'taxid'\nkind = 'text'\ndescription = 'x'\n\
    [[columns]]\nname = 'name'\nkind = 'text'\ndescription = 'x'\n\
    [[columns]]\nname = 'read_count'\nkind = 'int'\ndescription = 'x'\n";
const COLUMN: &str = "[[columns]]\nname = 'note'\nkind = 'text'\ndescription = 'x'\n";

const MARKS: &str = "name = 'marks'\ntable = 'marks'\ntitle = 'Marks'\ndescription = 'Marks of a sample'\n\
    [[columns]]\nname = 'sample_id'\nkind = 'text'\nrequired = true\ndescription = 'x'\n\
    [[columns]]\nname = 'note'\nkind = 'text'\ndescription = 'x'\n\
    [[columns]]\nname = 'n'\nkind = 'int'\ndescription = 'x'\n\
    [[columns]]\nname = 'is_good'\nkind = 'bool'\ndescription = 'x'\n\
    [[columns]]\nname = 'stored_on'\nkind = 'text'\ndescription = 'x'\n";

async fn store(app: &TestApp, sample: &str, day: &str, note: Option<&str>) {
    let mut record = json!({"sample_id": sample, "taxid": "3052462", "name": "Orthoebolavirus", "read_count": 513});
    if let Some(note) = note {
        record["note"] = note.into();
    }
    let receipt: Value = app.store("/ingest/hits", format!("{record}\n").repeat(100)).await;
    for (table, id) in [("submissions", "id"), ("hits", "submission_id")] {
        let sql =
            format!("UPDATE {table} SET created_at = '{day}T12:00:00Z' WHERE {id} = {}", receipt["submission_id"]);
        sqlx::query(AssertSqlSafe(sql)).execute(&app.pool).await.expect("update");
    }
}

/// A service that knows the column, and one over its database that does not.
async fn before_and_after() -> (TestApp, App) {
    let (before, after) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    std::fs::write(before.path().join("hits.toml"), BEFORE).expect("definition");
    std::fs::write(after.path().join("hits.toml"), format!("{BEFORE}{COLUMN}")).expect("definition");
    let app = TestApp::with(&[("datasets.dir", after.path().to_str().expect("UTF-8"))]).await;
    let exports = ("export.storage".to_owned(), app.exports().display().to_string());
    let dir = ("datasets.dir".to_owned(), before.path().display().to_string());
    let config = Config::load(None, [], &[exports, dir]).expect("configuration");
    let earlier = App::new(config, &app.database_url()).expect("app");
    (app, earlier)
}

async fn run(app: &App, storage: &Storage, dataset: &str, partitioning: Value) {
    let partitioning: Partitioning = serde_json::from_value(partitioning).expect("partitioning");
    let dataset = app.datasets.get(dataset).expect("dataset");
    let wish = Wish::new(dataset, &ExportSpec::default(), &partitioning, false, &app.config.export).expect("wish");
    let place = Place { storage, folder: "" };
    lake::run(&app.pool, &app.config.export, &wish, &place, &Lease::new(Uuid::now_v7(), 1)).await.expect("run");
}

#[tokio::test]
async fn values_that_an_older_replica_has_left_out_are_written_by_a_newer_one() {
    let (app, older) = before_and_after().await;
    let lake = tempfile::tempdir().expect("folder");
    let storage = Storage::open(lake.path().to_str().expect("UTF-8")).expect("storage");
    store(&app, "S1", "2026-11-01", Some("kept")).await;
    store(&app, "S2", "2026-11-02", None).await;
    let files = || named_files(&lake.path().join("hits")).into_iter().map(|(path, bytes, _)| (path, bytes));
    let daily = json!({"temporal": "year,month,day"});
    run(&older, &storage, "hits", daily.clone()).await;
    older.pool.close().await;
    let first: BTreeMap<String, Vec<u8>> = files().collect();
    run(&app.app, &storage, "hits", daily.clone()).await;
    let second: BTreeMap<String, Vec<u8>> = files().collect();
    let mut kept = 0;
    for (path, bytes) in &second {
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes.clone())).expect("Parquet");
        for batch in reader.build().expect("reader").map(|batch| batch.expect("batch")) {
            let notes = batch.column_by_name("note").map(|notes| notes.as_string::<i32>().iter().flatten().count());
            kept += notes.unwrap_or_default();
        }
        assert_eq!(
            first.contains_key(path),
            path.contains("day=02"),
            "a day without the column's values stays: {path}"
        );
    }
    assert_eq!(kept, 100);
    run(&app.app, &storage, "hits", daily).await;
    assert!(files().eq(second), "a run without changes changed something");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs NVD_PYTHON: a Python with what tests/python.txt names; .ci/run has one"]
async fn readers_of_others_find_every_row_and_null_where_a_column_did_not_exist_yet() {
    let (app, earlier) = before_and_after().await;
    let lake = tempfile::tempdir().expect("folder");
    let storage = Storage::open(lake.path().to_str().expect("UTF-8")).expect("storage");
    store(&app, "S1", "2024-02-29", None).await;
    store(&app, "S2", "2026-11-01", None).await;
    run(&earlier, &storage, "hits", json!({"temporal": "year,month,day"})).await;
    earlier.pool.close().await;
    store(&app, "S3", "2026-11-20", Some("seen twice")).await;
    run(&app.app, &storage, "hits", json!({"temporal": "year,month,day"})).await;
    python::run("lake_readers.py", &[lake.path().to_str().expect("UTF-8"), "300", "153900", "200"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs NVD_PYTHON: a Python with what tests/python.txt names; .ci/run has one"]
async fn readers_of_others_find_the_values_that_stand_in_paths() {
    let definitions = tempfile::tempdir().expect("folder");
    std::fs::write(definitions.path().join("marks.toml"), MARKS).expect("definition");
    let app = TestApp::with(&[("datasets.dir", definitions.path().to_str().expect("UTF-8"))]).await;
    for record in [
        json!({"sample_id": "S1", "note": "good", "n": 9, "is_good": true}),
        json!({"sample_id": "S2", "note": "a/b", "n": 10, "is_good": false}),
        json!({"sample_id": "S3", "note": "bad", "n": -1, "is_good": true}),
        json!({"sample_id": "S4"}),
        json!({"sample_id": "S5", "note": "NULL"}),
        json!({"sample_id": "S6", "note": "null"}),
        json!({"sample_id": "S7", "note": "Null"}),
        json!({"sample_id": "S8", "note": ""}),
    ] {
        app.store("/ingest/marks", record.to_string()).await;
    }
    for table in ["submissions", "marks"] {
        let sql = format!("UPDATE {table} SET created_at = '2026-01-01T20:00:00Z'");
        sqlx::query(AssertSqlSafe(sql)).execute(&app.pool).await.expect("update");
    }
    let folder = tempfile::tempdir().expect("folder");
    let [lake, kept] = ["lake", "kept"].map(|name| folder.path().join(name).to_str().expect("UTF-8").to_owned());
    let partitionings = [
        json!({"by": ["note", "n", "is_good"]}),
        json!({"temporal": "year,month,day", "by": ["n", "note"], "keep_columns": true}),
    ];
    for (lake, partitioning) in [&lake, &kept].into_iter().zip(partitionings) {
        run(&app.app, &Storage::open(lake).expect("storage"), "marks", partitioning).await;
    }
    python::run("lake_values.py", &[&lake, &kept]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs NVD_PYTHON: a Python with what tests/python.txt names; .ci/run has one"]
async fn readers_of_others_find_every_row_of_converted_files() {
    let folder = tempfile::tempdir().expect("folder");
    let root = env!("CARGO_MANIFEST_DIR");
    let next = folder.path().join("query_perf_daily_20251029.csv");
    let head = "timestamp,query_hash,rows_examined,cache_hit\n";
    std::fs::write(&next, format!("{head}{}", "2025-10-29T05:00:00Z,a1b2c3,1,true\n".repeat(3))).expect("file");
    let out = folder.path().join("out");
    for (file, name) in [
        (format!("{root}/tests/data/convert/query_perf_daily_20251028.csv"), "query_perf"),
        (next.display().to_string(), "query_perf"),
        (format!("{root}/tests/data/convert/index_advisor_report.json"), "index_advisor"),
    ] {
        let schema = format!("{root}/config/datasets/examples/{name}.toml");
        let mut command = binary(&folder.path().join("data"));
        command.args(["convert", &file, "--schema", &schema, "-o"]).arg(&out);
        assert!(command.output().expect("run").status.success());
    }
    // Columns that have the names of others, and not their kinds.
    let odd = folder.path().join("odd.csv");
    std::fs::write(&odd, "sample_id,taxid,name,read_count\n17,3052462,Orthoebolavirus,many\n").expect("file");
    let mut command = binary(&folder.path().join("data"));
    command.arg("convert").arg(&odd).arg("-o").arg(&out);
    assert!(command.output().expect("run").status.success());
    python::run("convert_readers.py", &[out.to_str().expect("UTF-8")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs NVD_PYTHON: a Python with what tests/python.txt names; .ci/run has one"]
async fn text_that_looks_like_a_number_stays_text_for_readers_who_do_as_the_readme_says() {
    let definitions = tempfile::tempdir().expect("folder");
    std::fs::write(definitions.path().join("hits.toml"), BEFORE).expect("definition");
    let app = TestApp::with(&[("datasets.dir", definitions.path().to_str().expect("UTF-8"))]).await;
    for sample in ["0012", "7"] {
        store(&app, sample, "2026-01-01", None).await;
    }
    let lake = tempfile::tempdir().expect("folder");
    let storage = Storage::open(lake.path().to_str().expect("UTF-8")).expect("storage");
    run(&app.app, &storage, "hits", json!({"temporal": "year", "by": ["sample_id"]})).await;
    python::run("lake_text.py", &[lake.path().to_str().expect("UTF-8")]).await;
}
