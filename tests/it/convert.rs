//! `convert`: files of every form into partitions, once, and what is wrong with others told by name and line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use tempfile::TempDir;

use crate::app::{TestApp, eventually, gzip};
use crate::exports::files_below;
use crate::lake::{files_of, named_files, store_at};
use crate::process::{binary, text};

const SCHEMAS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/datasets/examples");
const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/convert");

/// A folder with files, and one to convert them into.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        fs::write(&path, content).expect("file");
        path.to_str().expect("UTF-8").to_owned()
    }

    fn out(&self) -> PathBuf {
        self.path("out")
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = binary(&self.path("data"));
        command.arg("convert").args(arguments).arg("-o").arg(self.out());
        command
    }

    /// Exit code, what was said, and what went wrong.
    fn convert(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command(arguments).output().expect("run");
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// Converts without trouble.
    fn good(&self, arguments: &[&str]) -> String {
        let (code, told, errors) = self.convert(arguments);
        assert_eq!((code, errors.as_str()), (0, ""), "{told}");
        told
    }

    /// The rows of a dataset, each with its partition, sorted.
    fn rows(&self, dataset: &str) -> Vec<String> {
        let mut rows = Vec::new();
        for (path, bytes, expected) in named_files(&self.out().join(dataset)) {
            let before = rows.len();
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            rows.extend(rows_of(bytes).into_iter().map(|row| format!("{folder}: {row}")));
            assert_eq!(expected, rows.len() - before);
        }
        rows.sort();
        rows
    }
}

fn rows_of(bytes: Vec<u8>) -> Vec<String> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).expect("Parquet");
    let mut rows = Vec::new();
    for batch in reader.build().expect("reader") {
        let batch = batch.expect("batch");
        let options = FormatOptions::default();
        let shown: Vec<ArrayRef> = batch.columns().iter().map(shown).collect();
        let columns: Vec<_> =
            shown.iter().map(|column| ArrayFormatter::try_new(column, &options).expect("column")).collect();
        let schema = batch.schema();
        for row in 0..batch.num_rows() {
            let cells = schema.fields().iter().zip(&columns).zip(batch.columns());
            let cells = cells.filter(|(_, column)| column.is_valid(row));
            let cells = cells.map(|((field, shown), _)| format!("{}={}", field.name(), shown.value(row)));
            rows.push(cells.collect::<Vec<_>>().join(" "));
        }
    }
    rows
}

/// Times in a zone that arrow knows by itself.
fn shown(column: &ArrayRef) -> ArrayRef {
    match column.as_primitive_opt::<TimestampMicrosecondType>() {
        Some(times) => Arc::new(times.clone().with_timezone("+00:00")),
        None => Arc::clone(column),
    }
}

fn schema(name: &str) -> String {
    format!("{SCHEMAS}/{name}.toml")
}

#[test]
fn the_files_of_the_examples_become_partitions_and_a_second_run_skips_them() {
    let desk = Desk::new();
    for (file, name) in [
        ("query_perf_daily_20251028.csv", "query_perf"),
        ("index_advisor_report.json", "index_advisor"),
        ("optimization_summary.txt", "optimization_summary"),
    ] {
        let told = desk.good(&[&format!("{SAMPLES}/{file}"), "--schema", &schema(name)]);
        assert!(told.contains("1 files converted") && told.contains(" rows, "), "{told}");
        let paths = files_below(&desk.out().join(name));
        let start = format!("{}/{name}/year=2025/month=10/day=28/{name}_20251028_", desk.out().display());
        assert!(paths.iter().any(|path| path.starts_with(&start)), "{paths:?}");
    }
    assert_eq!(
        desk.rows("query_perf"),
        [
            "year=2025/month=10/day=28: timestamp=2025-10-28T00:15:23Z query_hash=a1b2c3 query_type=SELECT \
             execution_time_ms=45.2 rows_examined=1234 rows_returned=10 cache_hit=false table_name=embeddings \
             index_used=idx_namespace",
            "year=2025/month=10/day=28: timestamp=2025-10-28T00:16:01Z query_hash=d4e5f6 query_type=INSERT \
             execution_time_ms=12.8 rows_examined=1 rows_returned=1 cache_hit=false table_name=query_log \
             index_used=PRIMARY",
        ]
    );
    assert_eq!(
        desk.rows("index_advisor"),
        ["year=2025/month=10/day=28: timestamp=2025-10-28T04:00:00Z table_name=embeddings \
          recommended_index=idx_embedding_vector query_pattern=WHERE namespace = ? AND vector LIKE ? \
          estimated_speedup=3.5 priority=high"]
    );
    assert_eq!(desk.rows("optimization_summary").len(), 2);
    assert!(desk.rows("optimization_summary")[0].contains(r#"metadata={"tables": ["embeddings", "query_log"]}"#));
    let before = files_of(&desk.out());
    assert!(["README.md", "duckdb.sql", "queries.sql", "schema.json"].iter().all(|name| before.contains_key(*name)));
    let file = format!("{SAMPLES}/query_perf_daily_20251028.csv");
    let told = desk.good(&[&file, "--schema", &schema("query_perf")]);
    assert!(told.contains("already exists, skipping") && told.contains("1 skipped"), "{told}");
    assert!(files_of(&desk.out()) == before, "a run without news changed a byte");
}

#[test]
fn every_form_and_compression_holds_the_same_rows() {
    let csv = "sample_id,read_count,note\nS1,7,\"a, b\"\nS2,,plain\n";
    let tsv = "sample_id\tread_count\tnote\nS1\t7\ta, b\nS2\t\tplain\n";
    let jsonl =
        "{\"sample_id\":\"S1\",\"read_count\":7,\"note\":\"a, b\"}\n{\"sample_id\":\"S2\",\"note\":\"plain\"}\n";
    let list = format!("[{}]", jsonl.trim().replace('\n', ",\n"));
    let around = format!("{{\"made\": {{\"by\": 1}},\n \"hits\": {list}, \"version\": 2}}");
    let mut seen = Vec::new();
    for (name, content) in [
        ("a.csv", csv.as_bytes().to_vec()),
        ("a.tsv", tsv.as_bytes().to_vec()),
        ("a.jsonl", jsonl.as_bytes().to_vec()),
        ("a.json", list.clone().into_bytes()),
        ("a.txt", csv.as_bytes().to_vec()),
        ("a.csv.gz", gzip(csv)),
        ("a.tsv.zst", zstd::encode_all(tsv.as_bytes(), 3).expect("zstd")),
        ("a.json.gz", gzip(jsonl)),
        ("b.json", around.into_bytes()),
        ("c.json", jsonl.replace('\n', "\n\n  ").replace(",\"", ",\n\"").into_bytes()),
    ] {
        let desk = Desk::new();
        let file = desk.file(name, content);
        let definition = "name = 'hits'\ntable = 'hits'\ntitle = 'Hits'\ndescription = 'x'\n\
            [[columns]]\nname = 'sample_id'\nkind = 'text'\ndescription = 'x'\n\
            [[columns]]\nname = 'read_count'\nkind = 'int'\ndescription = 'x'\n\
            [[columns]]\nname = 'note'\nkind = 'text'\ndescription = 'x'\n";
        let definition = desk.file("hits.toml", definition);
        desk.good(&[&file, "--schema", &definition]);
        let rows: Vec<String> =
            desk.rows("hits").iter().map(|row| row.split_once(": ").expect("row").1.to_owned()).collect();
        seen.push((name, rows));
    }
    for (name, rows) in seen {
        // What stands around the rows belongs to each of them, and no definition knows it here.
        let rest = if name == "b.json" { " extra={\"made\":{\"by\": 1},\"version\":2}" } else { "" };
        let expected = [format!("sample_id=S1 read_count=7 note=a, b{rest}"), format!("sample_id=S2 note=plain{rest}")];
        assert_eq!(rows, expected, "{name}");
    }
}

#[test]
fn what_is_wrong_is_told_by_file_and_line_and_the_others_are_converted() {
    let desk = Desk::new();
    let head = "timestamp,query_hash,execution_time_ms\n";
    let good = desk.file("good.csv", format!("{head}2025-10-28T00:00:00Z,a,1\n"));
    let cell = desk.file("cell.csv", format!("{head}2025-10-28T00:00:00Z,a,1\n2025-10-28T00:00:01Z,b,SECRET\n"));
    let width = desk.file("width.csv", format!("{head}2025-10-28T00:00:00Z,a\n"));
    let required = desk.file("required.tsv", "timestamp\tquery_hash\n2025-10-28T00:00:00Z\t\n");
    let header = desk.file("header.tsv", "timestamp\texecution_time_ms\n2025-10-28T00:00:00Z\t1\n");
    let json = desk.file(
        "broken.json",
        "{\"timestamp\": \"2025-10-28T00:00:00Z\",\n \"rows\": [\n{\"query_hash\": \"a\"},\n{]}\n",
    );
    let lines =
        desk.file("broken.jsonl", "{\"timestamp\":\"2025-10-28T00:00:00Z\",\"query_hash\":\"a\"}\n{\"timestamp\":1}\n");
    let mut cut = gzip(format!("{head}{}", "2025-10-28T00:00:00Z,a,1\n".repeat(50_000)));
    cut.truncate(cut.len() / 2);
    let cut = desk.file("cut.csv.gz", cut);
    let latin = desk.file("latin.csv", [head.as_bytes(), b"2025-10-28T00:00:00Z,\xe4,1\n"].concat());
    let quote = desk.file("quote.csv", format!("{head}2025-10-28T00:00:00Z,a,1\n2025-10-28T00:00:01Z,\"b,1\n,c,1\n"));
    let semicolons = desk.file("semicolons.csv", "timestamp;query_hash\n2025-10-28T00:00:00Z;a\n");
    let prose = desk.file("prose.txt", "nothing of the sort\n");
    let missing = desk.path("missing.csv").to_str().expect("UTF-8").to_owned();
    let pattern = desk.path("none_*.csv").to_str().expect("UTF-8").to_owned();
    let schema = schema("query_perf");
    let files = [
        &cell,
        &width,
        &required,
        &header,
        &json,
        &lines,
        &cut,
        &latin,
        &quote,
        &semicolons,
        &prose,
        &missing,
        &pattern,
        &good,
    ];
    let arguments: Vec<&str> = files.iter().map(|file| file.as_str()).chain(["--schema", &schema]).collect();
    let (code, told, errors) = desk.convert(&arguments);
    assert_eq!(code, 1);
    assert!(told.contains("1 files converted, 1 rows") && told.contains("13 failed"), "{told}");
    for (file, place) in [
        (&cell, ":3: execution_time_ms: expected a number"),
        (&width, ":2: has 2 cells where 3 are expected"),
        (&required, ":2:22: query_hash: is required: write it in every row, or say --column query_hash="),
        (&header, ":1: query_hash: is required but not in the header: add the column, or say --column query_hash="),
        (&json, ":4:2: is not JSON"),
        (&lines, ":2:14: timestamp: expected an RFC 3339 time"),
        (&cut, ": the gzip data are truncated"),
        (&latin, ": line 2 is not UTF-8"),
        (&quote, ":3: has a quote that is never closed"),
        (&semicolons, ":1: the header is a single cell with semicolons or tabs in it"),
        (&prose, ": is neither CSV nor TSV nor JSON"),
        (&missing, ": cannot be read"),
        (&pattern, ": matches no file"),
    ] {
        assert!(errors.lines().any(|line| line.starts_with(&format!("{file}{place}"))), "{file}{place}\n{errors}");
    }
    assert!(!errors.contains("SECRET"), "{errors}");
    assert_eq!(desk.rows("query_perf").len(), 1);
    assert_eq!(files_below(&desk.out().join("query_perf")).len(), 2, "something but the good file and the manifest");
}

#[test]
fn a_definition_is_told_from_values_and_what_was_printed_can_be_used() {
    let desk = Desk::new();
    let first = desk.file(
        "figures_20251028.csv",
        "when,Sample Name,reads,share,ok,code,year\n2025-10-27T23:00:00Z,S 1,5,0.5,true,007,2025\n\
         2025-10-28T01:00:00Z,S 2,6,1,false,008,2025\n",
    );
    let told = desk.good(&[&first]);
    for (name, kind) in [
        ("when", "timestamp"),
        ("sample_name", "text"),
        ("reads", "int"),
        ("share", "float"),
        ("ok", "bool"),
        ("code", "text"),
        ("year_", "int"),
    ] {
        assert!(told.contains(&format!("name = \"{name}\"\nkind = \"{kind}\"")), "{name}: {told}");
    }
    let rows = desk.rows("figures");
    assert!(
        rows[0].starts_with("year=2025/month=10/day=27: when=2025-10-27T23:00:00Z sample_name=S 1 reads=5 share=0.5")
    );
    assert!(rows[1].contains("day=28") && rows[1].contains("share=1.0 ok=false code=008"), "{rows:?}");
    // Whole numbers only: the column stays a float. A new column comes along.
    let second = desk.file("figures_20251029.csv", "when,share,more\n2025-10-29T01:00:00Z,2,x\n");
    desk.good(&[&second]);
    assert!(desk.rows("figures")[2].ends_with("share=2.0 more=x"), "{:?}", desk.rows("figures"));
    let third = desk.file("figures_20251030.csv", "when,reads\n2025-10-30T01:00:00Z,many\n");
    let (code, _, errors) = desk.convert(&[&third]);
    assert_eq!(code, 1);
    assert!(errors.contains("`reads` is of kind Int in ") && errors.contains("of kind Text here"), "{errors}");
    let definition = told.split_once("to say more\n").expect("definition").1.split_once("\n/").expect("files").0;
    let definition = desk.file("figures.toml", definition);
    let other = Desk::new();
    other.good(&[&first, "--schema", &definition]);
    assert_eq!(other.rows("figures"), desk.rows("figures")[..2]);
}

#[test]
fn what_is_told_from_values_takes_them_and_changes_none() {
    let desk = Desk::new();
    let json = desk.file("j_20251028.json", r#"[{"n": 5, "big": 18446744073709551615}, {"n": "", "big": 1}]"#);
    desk.good(&[&json]);
    let rows = desk.rows("j");
    assert!(rows[0].ends_with(": n= big=1") && rows[1].ends_with(": n=5 big=18446744073709551615"), "{rows:?}");
    let csv = desk.file(
        "c_20251028.csv",
        "seen,id,mixed\n25-10-28,9223372036854775808,9007199254740993\n1-2-3,12345678901234567890123,0.5\n",
    );
    desk.good(&[&csv]);
    let rows = desk.rows("c");
    assert!(rows[0].ends_with(": seen=1-2-3 id=12345678901234567890123 mixed=0.5"), "{rows:?}");
    assert!(rows[1].ends_with(": seen=25-10-28 id=9223372036854775808 mixed=9007199254740993"), "{rows:?}");
}

#[test]
fn headers_that_become_one_name_keep_theirs_from_run_to_run() {
    let desk = Desk::new();
    for (dataset, day, header, expected) in [
        ("l", "01", "Length (bp),Length [bp],Reads", "length_bp_=1 length_bp__2=2 reads=3"),
        ("l", "02", "Reads,Length (bp),Length [bp]", "length_bp_=2 length_bp__2=3 reads=1"),
        ("l", "03", "Length [bp],reads,Length (bp)", "length_bp_=3 length_bp__2=1 reads=2"),
        ("l", "04", "x,Length [bp],READS", "length_bp__2=2 reads=3 x=1"),
        ("l", "05", "length_bp_,y,Length [bp]", "length_bp_=1 length_bp__2=3 y=2"),
        ("s", "01", "Sample ID,n,m", "m=3 n=2 sample_id=1"),
        ("s", "02", "Sample ID,sample_id,n", "n=3 sample_id=2 sample_id_2=1"),
        ("s", "03", "m,Sample ID,n", "m=1 n=3 sample_id_2=2"),
        ("s", "04", "sample-id,n,m", "m=3 n=2 sample_id=1"),
    ] {
        let file = desk.file(&format!("{dataset}_202510{day}.csv"), format!("{header}\n1,2,3\n"));
        desk.good(&[&file]);
        let rows = desk.rows(dataset);
        let row = rows.iter().find_map(|row| row.strip_prefix(&format!("year=2025/month=10/day={day}: ")));
        let mut cells: Vec<&str> = row.expect("row").split(' ').collect();
        cells.sort_unstable();
        assert_eq!(cells.join(" "), expected, "{dataset} {header}");
    }
}

#[test]
fn a_pattern_stands_for_its_newest_day_unless_history_or_a_day_is_wanted() {
    let desk = Desk::new();
    for day in ["20251026", "20251027", "20251028"] {
        desk.file(&format!("in/figures_{day}.csv"), format!("n\n{day}\n"));
    }
    let pattern = desk.path("in/*.csv").to_str().expect("UTF-8").to_owned();
    let told = desk.good(&[&pattern, "--date", "2025-10-26"]);
    assert!(told.contains("1 files converted") && told.contains("2 left out"), "{told}");
    assert_eq!(desk.rows("figures"), ["year=2025/month=10/day=26: n=20251026"]);
    desk.good(&[&pattern]);
    assert_eq!(desk.rows("figures").len(), 2);
    let told = desk.good(&[&pattern, "--historical"]);
    assert!(told.contains("1 files converted") && told.contains("2 skipped"), "{told}");
    assert_eq!(desk.rows("figures").len(), 3);
    // What is named outright is wanted, whatever its day.
    let other = Desk::new();
    let files = ["20251026", "20251028"].map(|day| desk.path(&format!("in/figures_{day}.csv")));
    other.good(&[files[0].to_str().expect("UTF-8"), files[1].to_str().expect("UTF-8")]);
    assert_eq!(other.rows("figures").len(), 2);
    // Of two that are the same, one.
    let same = ["a_20251026.csv", "a_20251027.csv"].map(|name| desk.file(name, "n\n1\n"));
    let told = other.good(&[&same[0], &same[1], "--column", "source=x"]);
    assert!(told.contains("1 files converted") && told.contains("1 skipped"), "{told}");
    assert_eq!(other.rows("a"), ["year=2025/month=10/day=26: n=1 source=x"]);
}

#[test]
fn a_file_that_was_changed_replaces_its_rows_of_the_same_days_only() {
    let desk = Desk::new();
    let report = |day: &str, index: &str| {
        format!(
            "{{\"timestamp\": \"2025-10-{day}T04:00:00Z\", \"recommendations\": [{{\"table\": \"t\", \"index\": \"{index}\"}}]}}"
        )
    };
    let schema = schema("index_advisor");
    let indexes = || -> Vec<String> {
        let rows = desk.rows("index_advisor");
        rows.iter().map(|row| row.split("recommended_index=").nth(1).expect("index").to_owned()).collect()
    };
    for (day, index, expected) in
        [("28", "a", &["a"][..]), ("28", "b", &["b"]), ("29", "c", &["b", "c"]), ("29", "d", &["b", "d"])]
    {
        let file = desk.file("index_advisor_report.json", report(day, index));
        desk.good(&[&file, "--schema", &schema]);
        assert_eq!(indexes(), expected);
    }
    // The same text under another name is the same.
    let copy = desk.file("copy.json.gz", gzip(report("29", "d")));
    let told = desk.good(&[&copy, "--schema", &schema]);
    assert!(told.contains("already exists, skipping"), "{told}");
    assert_eq!(indexes(), ["b", "d"]);
    // A report without recommendations has no rows.
    let empty =
        desk.file("index_advisor_report.json", "{\"timestamp\": \"2025-10-30T04:00:00Z\", \"recommendations\": []}");
    assert!(desk.good(&[&empty, "--schema", &schema]).contains("0 rows"));
    assert_eq!(indexes(), ["b", "d"]);
}

#[test]
fn a_file_that_was_corrected_to_have_no_rows_leaves_none_of_its_day() {
    let desk = Desk::new();
    let file = desk.file("d_20251028.csv", "n\n1\n2\n");
    let other = desk.file("d_20251028.1.csv", "n\n3\n");
    desk.good(&[&file, &other]);
    assert_eq!(numbers(&desk, "d"), ["1", "2", "3"]);
    desk.file("d_20251028.csv", "n\n");
    let told = desk.good(&[&file, &other]);
    assert!(told.contains("0 rows") && !told.contains("earlier content"), "{told}");
    assert_eq!(numbers(&desk, "d"), ["3"]);
    // The text without rows is known by now.
    desk.file("d_20251028.1.csv", "n\n");
    assert!(desk.good(&[&file, &other]).contains("2 skipped"));
    assert_eq!(numbers(&desk, "d"), [""; 0]);
    // Rows of other days stay, which is said.
    let timed = desk.file("t.csv", table(&[1, 2]));
    desk.good(&[&timed]);
    desk.file("t.csv", "when,n\n");
    let told = desk.good(&[&timed]);
    assert!(told.contains("2 rows of its earlier content stay in other partitions"), "{told}");
    assert_eq!(numbers(&desk, "t"), ["1", "2"]);
}

#[test]
fn a_folder_without_its_manifest_is_left_alone_and_what_none_names_goes() {
    let desk = Desk::new();
    let file = desk.file("d_20251028.csv", "n\n1\n2\n");
    let other = desk.file("d_20251029.csv", "n\n3\n");
    desk.good(&[&file, &other]);
    let root = desk.out().join("d");
    let kept = fs::read(root.join("_manifest.json")).expect("manifest");
    let before = files_below(&root);
    fs::remove_file(root.join("_manifest.json")).expect("remove");
    let (code, _, errors) = desk.convert(&[&file]);
    assert!(code == 1 && errors.contains("holds converted files, and no _manifest.json that says which"), "{errors}");
    fs::write(root.join("_manifest.json"), &kept).expect("manifest");
    assert_eq!(files_below(&root), before);
    // As a run leaves it that is killed as its first files get their names.
    let mut begun: Value = serde_json::from_slice(&kept).expect("JSON");
    (begun["inputs"], begun["partitions"]) = (Value::Array(Vec::new()), Value::Array(Vec::new()));
    fs::write(root.join("_manifest.json"), begun.to_string()).expect("manifest");
    desk.good(&[&file, &other]);
    assert_eq!(numbers(&desk, "d"), ["1", "2", "3"]);
    assert_eq!(files_below(&root).len(), 3);
}

#[test]
fn a_text_of_which_a_part_was_displaced_is_whole_again_under_another_name() {
    let desk = Desk::new();
    let day = |day: u32, n: u32| format!("2025-10-{day},{n}\n");
    let old = format!("when,n\n{}{}", day(28, 1), day(29, 2));
    let app = desk.file("app.csv", &old);
    desk.good(&[&app]);
    desk.file("app.csv", format!("when,n\n{}", day(29, 3)));
    desk.good(&[&app]);
    assert_eq!(numbers(&desk, "app"), ["1", "3"]);
    // It was rotated late, and has grown another time.
    let rotated = desk.file("app.1.csv", &old);
    desk.good(&[&app, &rotated]);
    assert_eq!(numbers(&desk, "app"), ["1", "2", "3"]);
    assert!(desk.good(&[&app, &rotated]).contains("2 skipped"));
}

#[test]
fn a_file_with_a_byte_order_mark_that_grew_before_it_was_rotated_replaces_its_rows() {
    let desk = Desk::new();
    let app = desk.file("app.csv", format!("\u{feff}{}", table(&[1, 2])));
    desk.good(&[&app]);
    let rotated = desk.file("app.1.csv", format!("\u{feff}{}", table(&[1, 2, 3])));
    desk.file("app.csv", "when,n\n2025-10-29,4\n");
    desk.good(&[&app, &rotated]);
    assert_eq!(numbers(&desk, "app"), ["1", "2", "3", "4"]);
}

#[test]
fn an_empty_list_beside_the_rows_of_a_report_is_one_of_its_fields() {
    let desk = Desk::new();
    let report = |rows: &str| format!("{{\"rows\": {rows}, \"errors\": [], \"when\": \"2025-10-28T00:00:00Z\"}}");
    let file = desk.file("report.json", report("[{\"n\": 1}, {\"n\": 2}]"));
    desk.good(&[&file]);
    assert_eq!(desk.rows("report").len(), 2);
    assert!(desk.rows("report").iter().all(|row| row.contains("errors=[]")), "{:?}", desk.rows("report"));
    // A row's own value stands for that around it, whatever its case.
    let file = desk.file("own.json", "{\"Lab\": \"l1\", \"rows\": [{\"n\": 1, \"lab\": \"l2\"}]}");
    desk.good(&[&file]);
    assert!(desk.rows("own")[0].contains("lab=l2"), "{:?}", desk.rows("own"));
    // Which of two empty lists would have the rows, nobody knows.
    let (code, _, errors) = desk.convert(&[&desk.file("report.json", report("[]"))]);
    assert!(code == 1 && errors.contains("several lists of objects"), "{errors}");
}

/// The files that the script for DuckDB names: all of them are there.
fn named_by_script(desk: &Desk) -> Vec<String> {
    let script = fs::read_to_string(desk.out().join("duckdb.sql")).expect("script");
    let files = script.lines().filter_map(|line| line.trim().trim_end_matches(',').strip_prefix('\''));
    let files: Vec<String> = files.filter_map(|file| Some(file.strip_suffix('\'')?.to_owned())).collect();
    assert!(files.iter().all(|file| Path::new(file).is_file()), "{files:?}");
    files
}

#[test]
fn a_catalogue_that_a_killed_run_has_left_behind_is_renewed_also_where_there_is_no_news() {
    let desk = Desk::new();
    let file = desk.file("a_20251028.csv", "n\n1\n");
    desk.good(&[&file]);
    let stale = fs::read(desk.out().join("duckdb.sql")).expect("script");
    desk.file("a_20251028.csv", "n\n1\n2\n");
    desk.good(&[&file]);
    let current = named_by_script(&desk);
    fs::write(desk.out().join("duckdb.sql"), stale).expect("script");
    desk.good(&[&file]);
    assert_eq!(named_by_script(&desk), current);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_files_go_when_the_catalogue_is_renewed_also_by_a_run_that_is_interrupted() {
    let desk = Desk::new();
    let first = desk.file("a_20251028.csv", "n\n1\n");
    desk.good(&[&first]);
    let before = named_by_script(&desk);
    desk.file("a_20251028.csv", "n\n1\n2\n");
    let mut body = String::from("when,n\n");
    for number in 0..400_000_u32 {
        body.push_str(&format!("2025-10-{:02}T00:00:00Z,{number}\n", number % 28 + 1));
    }
    let long = desk.file("long.csv", body);
    let mut command = desk.command(&[&first, &long, "--set", "export.batch_size=1000"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start");
    let root = desk.out().join("long");
    let is_begun = async || root.exists() && files_below(&root).iter().any(|file| file.ends_with('#'));
    eventually("the long file is begun", is_begun).await;
    assert_eq!(named_by_script(&desk), before);
    let id = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).expect("signal");
    assert!(!child.wait().expect("wait").success());
    assert_eq!(desk.rows("a").len(), 2);
    let named = named_by_script(&desk);
    assert!(named.len() == 1 && named != before, "{named:?}");
}

#[test]
fn a_file_that_is_as_it_was_before_the_last_change_has_all_its_rows_again() {
    let desk = Desk::new();
    let (first, second) = ("when,n\n2025-10-01,1\n2025-10-02,2\n", "when,n\n2025-10-02,20\n2025-10-03,30\n");
    for text in [first, second, first] {
        let file = desk.file("a.csv", text);
        desk.good(&[&file]);
    }
    let rows: Vec<String> =
        desk.rows("a").iter().map(|row| row.split_once(" n=").expect("number").1.to_owned()).collect();
    assert_eq!(rows, ["1", "2", "30"]);
    assert!(desk.good(&[&desk.file("a.csv", first)]).contains("already exists, skipping"));
}

#[test]
fn a_file_that_was_moved_and_is_read_by_another_definition_replaces_its_rows() {
    let desk = Desk::new();
    let text = "sample_id,read_count\nS1,7\n";
    let definition = |more: &str| {
        let column =
            |name: &str, kind: &str| format!("[[columns]]\nname = '{name}'\nkind = '{kind}'\ndescription = 'x'\n");
        let columns = column("sample_id", "text") + &column("read_count", "int") + more;
        format!("name = 'hits'\ntable = 'hits'\ntitle = 'Hits'\ndescription = 'x'\n{columns}")
    };
    let schema = desk.file("hits.toml", definition(""));
    let old = desk.file("old/a_20251028.csv", text);
    desk.good(&[&old, "--schema", &schema]);
    fs::remove_file(old).expect("move");
    let moved = desk.file("new/a_20251028.csv.gz", gzip(text));
    desk.file("hits.toml", definition("[[columns]]\nname = 'note'\nkind = 'text'\ndescription = 'x'\n"));
    desk.good(&[&moved, "--schema", &schema]);
    assert_eq!(desk.rows("hits"), ["year=2025/month=10/day=28: sample_id=S1 read_count=7"]);
    // The same text of another sample is other rows.
    let definition = "name = 'few'\ntable = 'few'\ntitle = 'Few'\ndescription = 'x'\n\
        [[columns]]\nname = 'sample_id'\nkind = 'text'\ndescription = 'x'\n\
        [[columns]]\nname = 'n'\nkind = 'int'\ndescription = 'x'\n";
    let schema = desk.file("few.toml", definition);
    for sample in ["S1", "S2"] {
        let file = desk.file(&format!("{sample}/b_20251028.csv"), "n\n0\n");
        desk.good(&[&file, "--schema", &schema, "--column", &format!("sample_id={sample}")]);
    }
    assert_eq!(desk.rows("few").len(), 2);
}

#[test]
fn a_dry_run_reads_everything_and_writes_nothing() {
    let desk = Desk::new();
    let good = desk.file("a_20251028.csv", "n\n1\n2\n");
    let bad = desk.file("b_20251028.csv", "n,m\n1\n");
    let (code, told, errors) = desk.convert(&[&good, &bad, "--dry-run"]);
    assert_eq!(code, 1);
    assert!(told.contains("a_20251028.csv: would write 2 rows") && told.contains("nothing was written"), "{told}");
    assert!(told.contains("year=2025/month=10/day=28/a_20251028_"), "{told}");
    assert!(errors.contains("b_20251028.csv:2: has 1 cells where 2 are expected"), "{errors}");
    assert!(!desk.out().exists());
}

#[test]
fn rows_of_many_partitions_in_any_order_lie_in_one_file_each() {
    let desk = Desk::new();
    let mut body = String::from("when,group,n\n");
    for number in 0..20_000_u32 {
        let day = number * 7919 % 600;
        let date = chrono::NaiveDate::from_ymd_opt(2024, 1, 1).expect("day") + chrono::Days::new(day.into());
        body.push_str(&format!("{date},g/{},{number}\n", number % 2));
    }
    let file = desk.file("many.csv", body);
    let told = desk.good(&[&file, "--partition-by", "group"]);
    assert!(told.contains("20000 rows"), "{told}");
    let rows = desk.rows("many");
    assert_eq!(rows.len(), 20_000);
    assert!(rows[0].starts_with("year=2024/month=01/day=01/group=g%2F0: when=2024-01-01T00:00:00Z n="), "{}", rows[0]);
    let manifest = fs::read_to_string(desk.out().join("many/_manifest.json")).expect("manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    let partitions = manifest["partitions"].as_array().expect("partitions");
    assert_eq!(partitions.len(), 600);
    assert!(partitions.iter().all(|partition| partition["files"].as_array().expect("files").len() <= 2));
}

#[test]
fn a_column_of_partitions_keeps_its_kind_and_what_contradicts_it_is_refused() {
    let desk = Desk::new();
    let numbers = desk.file("marks.csv", "Sample,N\nS1,10\nS2,9\n");
    desk.good(&[&numbers, "--partition-by", "n"]);
    let script = || fs::read_to_string(desk.out().join("duckdb.sql")).expect("script");
    assert!(script().contains(r#""n": BIGINT"#), "{}", script());
    desk.file("marks.csv", "Sample,N\nS1,11\n");
    desk.good(&[&numbers, "--partition-by", "n"]);
    assert!(script().contains(r#""n": BIGINT"#), "{}", script());
    desk.file("marks.csv", "Sample,N\nS1,ten\n");
    let (code, _, errors) = desk.convert(&[&numbers, "--partition-by", "n"]);
    assert!(code == 1 && errors.contains("`n` is of kind Int"), "{errors}");
    // Earlier versions did not write the kind down: then it is text, which holds every value.
    let path = desk.out().join("marks/_manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).expect("manifest")).expect("JSON");
    manifest.as_object_mut().expect("object").remove("partition_columns").expect("kinds");
    fs::write(&path, manifest.to_string()).expect("manifest");
    desk.good(&[&numbers, "--partition-by", "n"]);
    assert!(script().contains(r#""n": VARCHAR"#), "{}", script());
}

#[test]
fn a_file_in_folders_that_readers_take_for_null_is_converted_again() {
    let desk = Desk::new();
    let file = desk.file("marks.csv", "sample,mark\nS1,NULL\nS2,good\n");
    desk.good(&[&file, "--partition-by", "mark"]);
    let rows = desk.rows("marks");
    assert!(rows[0].contains("mark=%4EULL"), "{rows:?}");
    // As an earlier version has named it.
    let root = desk.out().join("marks");
    let folder = files_below(&root).into_iter().find(|path| path.contains("%4EULL")).expect("file");
    let folder = Path::new(&folder).parent().expect("folder").to_owned();
    fs::rename(&folder, folder.with_file_name("mark=NULL")).expect("rename");
    let manifest = fs::read_to_string(root.join("_manifest.json")).expect("manifest");
    fs::write(root.join("_manifest.json"), manifest.replace("%4EULL", "NULL")).expect("manifest");
    desk.good(&[&file, "--partition-by", "mark"]);
    assert_eq!(desk.rows("marks"), rows);
}

#[test]
fn results_of_tools_are_taken_in_with_their_datasets() {
    let desk = Desk::new();
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    let full = format!("{data}/gottcha2/v2.1.10.SRR12689945.full.tsv");
    let (code, _, errors) = desk.convert(&[&full, "--dataset", "gottcha2"]);
    assert_eq!(code, 1);
    assert!(errors.contains("say --column sample_id="), "{errors}");
    let run = ["--dataset", "gottcha2", "--column", "sample_id=SRR12689945"];
    desk.good(&[&[full.as_str()][..], &run].concat());
    let expected = fs::read_to_string(&full).expect("file").lines().count() - 1;
    assert_eq!(desk.rows("gottcha2").len(), expected);
    assert!(desk.rows("gottcha2").iter().all(|row| row.contains("sample_id=SRR12689945")));
    let bare = format!("{data}/stast/raw_megablast_outfmt6_10col.contigs.tsv");
    desk.good(&[&bare, "--dataset", "stast", "--column", "sample_id=S1", "--column", "task=megablast"]);
    assert_eq!(desk.rows("stast").len(), fs::read_to_string(&bare).expect("file").lines().count());
}

#[tokio::test]
async fn folders_of_others_and_other_cuts_are_refused() {
    let desk = Desk::new();
    let file = desk.file("gottcha2.csv", "sample_id,level\nS1,species\n");
    desk.file("out/gottcha2/theirs.parquet", "theirs");
    let (code, _, errors) = desk.convert(&[&file]);
    assert_eq!(code, 1);
    assert!(errors.contains("holds files that this command did not write"), "{errors}");
    fs::remove_dir_all(desk.out()).expect("remove");
    desk.good(&[&file]);
    let (code, _, errors) = desk.convert(&[&file, "--temporal", "year"]);
    assert_eq!(code, 1);
    assert!(errors.contains("is cut in another way"), "{errors}");
    fs::remove_dir_all(desk.out()).expect("remove");
    let app = TestApp::start().await;
    store_at(&app, "S1", 3, "2026-01-01T12:00:00Z").await;
    let mut export = binary(&desk.path("data"));
    export.env("DATABASE_URL", app.database_url()).args(["export", "gottcha2", "--temporal", "year,month,day", "-o"]);
    assert!(export.arg(desk.out()).output().expect("run").status.success());
    let before = files_of(&desk.out());
    // Other datasets too: a catalogue has one writer.
    for file in [&file, &desk.file("other.csv", "n\n1\n")] {
        let (code, _, errors) = desk.convert(&[file]);
        assert_eq!(code, 1);
        assert!(errors.contains("holds rows of the service"), "{errors}");
    }
    let mut after = files_of(&desk.out());
    after.remove(".nvd-support-car.lock");
    assert!(after == before);
    fs::remove_dir_all(desk.out()).expect("remove");
    desk.good(&[&desk.path("other.csv").display().to_string()]);
    let before = files_of(&desk.out());
    let mut export = binary(&desk.path("data"));
    export.env("DATABASE_URL", app.database_url()).args(["export", "gottcha2", "--temporal", "year,month,day", "-o"]);
    let output = export.arg(desk.out()).output().expect("run");
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("holds converted files"), "{}", text(&output.stderr));
    assert!(files_of(&desk.out()) == before);
}

#[test]
fn a_folder_below_one_that_readers_take_for_a_partition_is_refused() {
    let desk = Desk::new();
    let file = desk.file("marks.csv", "sample,mark\nS1,good\n");
    for (folder, is_there) in [("env=prod", true), ("month=2/out", false)] {
        let output = desk.path(folder);
        if is_there {
            fs::create_dir(&output).expect("folder");
        }
        for more in [&["--dry-run"][..], &[]] {
            let mut command = binary(&desk.path("data"));
            let refused = command.arg("convert").arg(&file).args(more).arg("-o").arg(&output).output().expect("run");
            let errors = text(&refused.stderr);
            assert!(!refused.status.success() && errors.contains("which readers take for a partition"), "{errors}");
        }
        assert_eq!(output.exists(), is_there);
        assert!(!is_there || files_below(&output).is_empty());
    }
}

#[test]
fn files_of_others_with_the_names_of_the_catalogue_are_not_overwritten() {
    for name in ["README.md", "schema.json", "duckdb.sql", "queries.sql"] {
        let desk = Desk::new();
        let file = desk.file("results.csv", "n\n1\n");
        desk.file(&format!("out/{name}"), "theirs");
        for more in [&[][..], &["--dry-run"]] {
            let (code, _, errors) = desk.convert(&[&[file.as_str()][..], more].concat());
            assert_eq!(code, 1);
            assert!(errors.contains(&format!("{name} was not written by this program")), "{errors}");
        }
        assert_eq!(files_of(&desk.out()).into_iter().collect::<Vec<_>>(), [(name.to_owned(), b"theirs".to_vec())]);
        // What a catalogue has left behind is known, also where its datasets are gone.
        fs::remove_file(desk.out().join(name)).expect("remove");
        desk.good(&[&file]);
        fs::remove_dir_all(desk.out().join("results")).expect("remove");
        desk.good(&[&file]);
        assert_eq!(desk.rows("results").len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_killed_or_interrupted_is_made_whole_by_the_next_and_two_do_not_write_at_once() {
    let desk = Desk::new();
    let mut body = String::from("when,n\n");
    for number in 0..400_000_u32 {
        body.push_str(&format!("2025-10-{:02}T00:00:00Z,{number}\n", number % 28 + 1));
    }
    let file = desk.file("long.csv", body);
    let files = || {
        let root = desk.out().join("long");
        if root.exists() { files_below(&root) } else { Vec::new() }
    };
    let mut left = Vec::new();
    for signal in [nix::sys::signal::Signal::SIGKILL, nix::sys::signal::Signal::SIGINT] {
        let mut command = desk.command(&[&file, "--set", "export.batch_size=1000"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start");
        let is_begun = async || files().iter().any(|file| file.ends_with('#') && !left.contains(file));
        eventually("a file is begun", is_begun).await;
        let (code, _, errors) = desk.convert(&[&file]);
        assert_eq!(code, 1);
        assert!(errors.contains("another process is writing to"), "{errors}");
        let id = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(id, signal).expect("signal");
        assert!(!child.wait().expect("wait").success());
        left = files();
        match signal {
            nix::sys::signal::Signal::SIGINT => assert_eq!(left, Vec::<String>::new()),
            _ => assert!(left.iter().any(|file| file.ends_with('#'))),
        }
    }
    desk.good(&[&file]);
    assert_eq!(desk.rows("long").len(), 400_000);
    assert!(Path::new(&file).exists());
}

/// The values of the column `n` in a dataset, sorted.
fn numbers(desk: &Desk, dataset: &str) -> Vec<String> {
    let mut numbers: Vec<String> =
        desk.rows(dataset).iter().map(|row| row.split_once(" n=").expect("number").1.to_owned()).collect();
    numbers.sort();
    numbers
}

/// A table of one day.
fn table(numbers: &[u32]) -> String {
    numbers.iter().fold("when,n\n".to_owned(), |text, number| format!("{text}2025-10-28,{number}\n"))
}

#[test]
fn files_that_are_rotated_keep_their_rows_in_whatever_order_they_come() {
    let orders: [&[&[&str]]; 4] = [
        &[&["app.2.csv", "app.1.csv", "app.csv"]],
        &[&["app.csv", "app.1.csv", "app.2.csv"]],
        &[&["app.1.csv"], &["app.2.csv"], &["app.csv"]],
        &[&["app.csv"], &["app.1.csv"], &["app.2.csv"]],
    ];
    for order in orders {
        let desk = Desk::new();
        let convert = || {
            for run in order {
                let files: Vec<String> = run
                    .iter()
                    .map(|name| desk.path(name))
                    .filter(|path| path.exists())
                    .map(|path| path.display().to_string())
                    .collect();
                if !files.is_empty() {
                    desk.good(&files.iter().map(String::as_str).collect::<Vec<_>>());
                }
            }
        };
        desk.file("app.csv", table(&[1, 2]));
        convert();
        fs::rename(desk.path("app.csv"), desk.path("app.1.csv")).expect("rotate");
        desk.file("app.csv", table(&[3]));
        convert();
        assert_eq!(numbers(&desk, "app"), ["1", "2", "3"], "{order:?}");
        fs::rename(desk.path("app.1.csv"), desk.path("app.2.csv")).expect("rotate");
        fs::rename(desk.path("app.csv"), desk.path("app.1.csv")).expect("rotate");
        desk.file("app.csv", table(&[4]));
        convert();
        assert_eq!(numbers(&desk, "app"), ["1", "2", "3", "4"], "{order:?}");
        // A rotated file that is changed replaces its own rows, and no others.
        desk.file("app.2.csv", table(&[1, 20]));
        convert();
        assert_eq!(numbers(&desk, "app"), ["1", "20", "3", "4"], "{order:?}");
        let before = files_of(&desk.out());
        convert();
        assert!(files_of(&desk.out()) == before, "a run without news changed a byte");
    }
}

#[test]
fn files_that_change_places_or_were_moved_or_copied_are_replaced_by_what_lies_at_their_paths() {
    let desk = Desk::new();
    let [a, b, c] = ["d_a.csv", "d_b.csv", "d_c.csv"].map(|name| desk.path(name).to_str().expect("UTF-8").to_owned());
    let definition = "name = 'd'\ntable = 'd'\ntitle = 'D'\ndescription = 'x'\n\
        [[columns]]\nname = 'when'\nkind = 'timestamp'\ndescription = 'x'\n\
        [[columns]]\nname = 'n'\nkind = 'int'\ndescription = 'x'\n\
        [[columns]]\nname = 'sample'\nkind = 'text'\ndescription = 'x'\n";
    let schema = desk.file("d.toml", definition);
    let convert = |files: &[&String]| {
        let files = files.iter().map(|file| file.as_str());
        desk.good(&files.chain(["--schema", &schema]).collect::<Vec<_>>());
        numbers(&desk, "d")
    };
    fs::write(&a, table(&[1])).expect("file");
    fs::write(&b, table(&[2])).expect("file");
    assert_eq!(convert(&[&a, &b]), ["1", "2"]);
    // Changed places, together and one by one.
    fs::write(&a, table(&[2])).expect("file");
    fs::write(&b, table(&[1])).expect("file");
    assert_eq!(convert(&[&a, &b]), ["1", "2"]);
    fs::write(&a, table(&[1])).expect("file");
    fs::write(&b, table(&[2])).expect("file");
    convert(&[&a]);
    assert_eq!(convert(&[&b]), ["1", "2"]);
    // A copy keeps the rows when the original changes, also when that is converted alone.
    fs::copy(&a, &c).expect("copy");
    assert_eq!(convert(&[&c]), ["1", "2"]);
    fs::write(&a, table(&[3])).expect("file");
    assert_eq!(convert(&[&a]), ["1", "2", "3"]);
    // Two that become the same, by a text that is new.
    fs::write(&a, table(&[4])).expect("file");
    fs::write(&c, table(&[4])).expect("file");
    assert_eq!(convert(&[&a, &c]), ["2", "4"]);
    // A file that was moved, and is changed later.
    fs::remove_file(&a).expect("remove");
    fs::rename(&b, &a).expect("move");
    assert_eq!(convert(&[&a]), ["2", "4"]);
    fs::write(&a, table(&[5])).expect("file");
    assert_eq!(convert(&[&a]), ["4", "5"]);
    // A copy that is of another sample is other rows.
    fs::write(&a, table(&[4])).expect("file");
    assert_eq!(convert(&[&a]), ["4"]);
    desk.good(&[&a, "--schema", &schema, "--column", "sample=S1"]);
    assert_eq!(numbers(&desk, "d"), ["4", "4 sample=S1"]);
}

#[test]
fn a_file_whose_new_content_is_known_under_another_name_leaves_no_rows_of_the_old() {
    let desk = Desk::new();
    desk.file("report.1.csv", table(&[1, 2]) + "2025-10-27,5\n");
    desk.file("report.csv", table(&[3]));
    let pattern = desk.path("report*.csv").to_str().expect("UTF-8").to_owned();
    desk.good(&[&pattern]);
    assert_eq!(numbers(&desk, "report"), ["1", "2", "3", "5"]);
    fs::copy(desk.path("report.csv"), desk.path("report.1.csv")).expect("copy");
    let told = desk.good(&[&pattern]);
    assert!(told.contains("2 skipped"), "{told}");
    // Other days keep theirs.
    assert_eq!(numbers(&desk, "report"), ["3", "5"]);
    assert_eq!(named_by_script(&desk).len(), 2);
    assert_eq!(files_below(&desk.out().join("report")).len(), 3, "replaced files stay");
    // What was there before is converted again.
    desk.file("report.1.csv", table(&[1, 2]));
    desk.good(&[&pattern]);
    assert_eq!(numbers(&desk, "report"), ["1", "2", "3", "5"]);
}

#[test]
fn a_file_that_contradicts_earlier_ones_is_refused_and_the_others_are_converted() {
    let desk = Desk::new();
    let first = desk.file("d_20251001.csv", "a,b\n1,x\n");
    desk.good(&[&first]);
    let (bad, good) = (desk.file("d_20251002.csv", "a\n1.5\n"), desk.file("d_20251003.csv", "a,c\n7,0.5\n"));
    let worse = desk.file("d_20251004.jsonl", "{\"a\": \"many\"}\n");
    let (code, told, errors) = desk.convert(&[&bad, &good, &worse]);
    assert_eq!(code, 1);
    assert!(told.contains("1 files converted, 1 rows") && told.contains("2 failed"), "{told}");
    assert!(told.contains("d: told from 1 files") && told.contains("name = \"c\"\nkind = \"float\""), "{told}");
    let refused: Vec<&str> = errors.lines().filter(|line| line.contains("`a` is of kind Int in ")).collect();
    assert_eq!(refused.len(), 2, "{errors}");
    assert!(refused[0].starts_with(&bad) && refused[0].contains("of kind Float here"), "{errors}");
    assert!(refused[1].starts_with(&worse) && refused[1].contains("of kind Text here"), "{errors}");
    assert_eq!(desk.rows("d").len(), 2);
    // A value of the command line is in all of them.
    let (code, _, errors) = desk.convert(&[&bad, &desk.file("d_20251005.csv", "b\ny\n"), "--column", "a=many"]);
    assert_eq!((code, errors.matches("`a` is of kind Int in ").count()), (1, 2), "{errors}");
    assert_eq!(desk.rows("d").len(), 2);
}

#[test]
fn numbers_and_times_that_a_kind_would_change_are_text_and_where_a_kind_is_given_are_read_by_it() {
    let desk = Desk::new();
    let values = "9007199254740993.0,1e-400,123456789012345678901234567890.5,2026-01-01T00:00:00.123456789Z,\
                  2016-12-31T23:59:60Z,+4915112345678,-0,1.10,2026-01-01T00:00:00.123456000Z";
    let plain = "1.5,1,1,2026-01-01T00:00:00Z,2026-01-01T00:00:00Z,5,6,2,2026-01-01T00:00:00Z";
    let file =
        desk.file("c_20251028.csv", format!("whole,tiny,huge,nanos,leap,plus,minus,short,micros\n{values}\n{plain}\n"));
    desk.good(&[&file]);
    let rows = desk.rows("c");
    assert!(
        rows[1].ends_with(
            ": whole=9007199254740993.0 tiny=1e-400 huge=123456789012345678901234567890.5 \
             nanos=2026-01-01T00:00:00.123456789Z leap=2016-12-31T23:59:60Z plus=+4915112345678 minus=-0.0 short=1.1 \
             micros=2026-01-01T00:00:00.123456Z"
        ),
        "{rows:?}"
    );
    let json = r#"{"whole": 9007199254740993.0, "tiny": 1e-400, "minus": -0, "nanos": "2026-01-01T00:00:00.1234567Z"}"#;
    let plain = r#"{"whole": 1.5, "tiny": 1, "minus": 6, "nanos": "2026-01-01T00:00:00Z"}"#;
    desk.good(&[&desk.file("j_20251028.jsonl", format!("{json}\n{plain}\n"))]);
    let rows = desk.rows("j");
    let expected = ": whole=9007199254740993.0 tiny=1e-400 minus=-0.0 nanos=2026-01-01T00:00:00.1234567Z";
    assert!(rows.iter().any(|row| row.ends_with(expected)), "{rows:?}");
    // The kinds of a folder stay, and take what they always took.
    desk.good(&[&desk.file("e_20251028.csv", "i,f,t\n1,0.5,2026-01-01T00:00:00Z\n")]);
    desk.good(&[&desk.file("e_20251029.csv", "i,f,t\n-0,0.12345678901234567890123,2026-01-02T00:00:00.123456789Z\n")]);
    assert!(
        desk.rows("e")[1].ends_with(": i=0 f=0.12345678901234568 t=2026-01-02T00:00:00.123456Z"),
        "{:?}",
        desk.rows("e")
    );
}

#[test]
fn numbers_around_a_list_of_rows_stay_as_they_are_written() {
    let desk = Desk::new();
    let around = "\"big\": 18446744073709551616, \"frac\":0.12345678901234567890,\n\
                  \"nested\":{\"n\":123456789012345678901234567890}, \"some\" : [ 1e-400, \" ]\" ], \"text\": \" a,b\"";
    let file = desk.file("d_20251028.json", format!("{{{around}, \"rows\": [ {{\"a\": 1}}, {{\"a\": 2}}]}}"));
    desk.good(&[&file]);
    let rows = desk.rows("d");
    let expected = "big=18446744073709551616 frac=0.12345678901234567890 \
                    nested={\"n\":123456789012345678901234567890} some=[1e-400, \" ]\" ] text= a,b";
    assert_eq!(rows.len(), 2);
    for (number, row) in (1..).zip(&rows) {
        assert!(row.ends_with(&format!(": {expected} a={number}")), "{row}");
    }
    // As in rows, one beyond a double is told by its field.
    let huge = desk.file("d_20251029.json", "{\"huge\": 1e400,\n\"rows\": [{\"a\": 1}]}");
    let (_, _, errors) = desk.convert(&[&huge]);
    assert!(errors.contains("d_20251029.json:2: huge: number out of range"), "{errors}");
}

#[test]
fn a_link_has_its_own_name_and_day_and_is_the_file_that_it_leads_to() {
    let desk = Desk::new();
    let target = desk.file("work/ab/out_20200101", "n\n1\n");
    fs::create_dir(desk.path("results")).expect("folder");
    let link = desk.path("results/report_20260102.csv");
    std::os::unix::fs::symlink(&target, &link).expect("link");
    let pattern = desk.path("results/report_*.csv").to_str().expect("UTF-8").to_owned();
    desk.good(&[&pattern]);
    assert_eq!(desk.rows("report"), ["year=2026/month=01/day=02: n=1"]);
    // Through another link it is the same file.
    let other = desk.path("results/report_20260102.tsv");
    std::os::unix::fs::symlink(&target, &other).expect("link");
    fs::write(&target, "n\n2\n").expect("change");
    desk.good(&[other.to_str().expect("UTF-8")]);
    assert_eq!(desk.rows("report"), ["year=2026/month=01/day=02: n=2"]);
}

#[test]
fn headers_that_differ_in_case_are_one_column_and_a_file_that_makes_no_definition_is_refused_alone() {
    let desk = Desk::new();
    let files = [("01", "Sample,Reads\nS1,1\n"), ("02", "sample,reads\nS2,2\n"), ("03", "READS,Sample\n3,S3\n")]
        .map(|(day, text)| desk.file(&format!("d_202510{day}.csv"), text));
    desk.good(&[&files[0], &files[1], &files[2]]);
    let rows: Vec<String> = desk.rows("d").iter().map(|row| row.split_once(": ").expect("row").1.to_owned()).collect();
    assert_eq!(rows, ["sample=S1 reads=1", "sample=S2 reads=2", "sample=S3 reads=3"]);
    let good = desk.file("e_20251001.csv", "n\n1\n");
    let header_only = desk.file("e_20251002.csv", "n\n");
    let twice = desk.file("e_20251003.csv", "n,N\n1,2\n");
    let bad = desk.file("e_20251004.csv", "n,ctid\n1,2\n");
    let (code, told, errors) = desk.convert(&[&good, &header_only, &twice, &bad]);
    assert_eq!(code, 1);
    assert!(told.contains("2 files converted, 1 rows") && told.contains("2 failed"), "{told}");
    let refused: Vec<&str> = errors.lines().collect();
    assert!(refused.iter().any(|line| line.starts_with(&bad) && line.contains("column `ctid`")), "{errors}");
    assert!(refused.iter().any(|line| line.starts_with(&twice)), "{errors}");
    assert!(!errors.contains(&good), "{errors}");
    assert_eq!(desk.rows("e").len(), 1);
}

#[test]
fn a_file_of_more_columns_than_a_table_may_have_is_refused_alone() {
    let desk = Desk::new();
    let cells = |count: usize| (0..count).map(|number| format!("c{number}")).collect::<Vec<_>>().join(",");
    let most = desk.file("d_20251001.csv", format!("{0}\n{0}\n", cells(1600)));
    let wide = desk.file("d_20251002.csv", format!("{0}\n{0}\n", cells(20_000)));
    let ids: Vec<String> = (0..60_000).map(|number| format!("\"id{number}\":{{\"n\":1}}")).collect();
    let keyed = desk.file("d_20251003.json", format!("{{{}}}", ids.join(",")));
    let (code, told, errors) = desk.convert(&[&wide, &keyed, &most]);
    assert_eq!(code, 1);
    assert!(told.contains("1 files converted, 1 rows") && told.contains("2 failed"), "{errors}");
    for file in [wide, keyed] {
        let line = format!("{file}: has more than 1600 columns: write it as long rows");
        assert!(errors.lines().any(|found| found.starts_with(&line)), "{errors}");
    }
}

#[tokio::test]
async fn a_pipe_is_refused_and_the_others_are_converted() {
    let desk = Desk::new();
    let pipe = desk.path("pipe_20251028.csv");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("pipe");
    let good = desk.file("good_20251028.csv", "n\n1\n");
    let mut command = tokio::process::Command::from(desk.command(&[pipe.to_str().expect("UTF-8"), &good]));
    let run = tokio::time::timeout(Duration::from_secs(30), command.kill_on_drop(true).output());
    let output = run.await.expect("an end").expect("run");
    let (told, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(told.contains("1 files converted") && told.contains("1 failed"), "{told}");
    assert!(errors.contains("pipe_20251028.csv: cannot be read: it is no regular file"), "{errors}");
}

#[tokio::test]
async fn a_run_that_is_interrupted_while_files_are_digested_ends_soon() {
    let desk = Desk::new();
    // 64 GiB of text.
    let frame = zstd::encode_all(&b"n\n".repeat(32 * 1024 * 1024)[..], 1).expect("zstd");
    let file = desk.file("long_20251028.csv.zst", frame.repeat(1024));
    let mut command = tokio::process::Command::from(desk.command(&[&file]));
    let mut child = command.stderr(Stdio::null()).kill_on_drop(true).spawn().expect("start");
    eventually("it is begun", async || desk.out().join(".nvd-support-car.lock").exists()).await;
    let id = nix::unistd::Pid::from_raw(child.id().expect("id").cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).expect("signal");
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await.expect("an end").expect("wait");
    assert!(!ended.success());
    assert!(!desk.out().join("long").exists());
}

#[test]
fn a_value_of_a_column_without_its_name_is_refused_with_an_example_that_fits() {
    let desk = Desk::new();
    let (code, _, errors) = desk.convert(&["a.csv", "--column", "x"]);
    assert_eq!(code, 2);
    assert!(errors.contains("expected COLUMN=VALUE, such as sample_id=S1"), "{errors}");
}

#[test]
fn a_file_that_grew_before_it_was_rotated_replaces_the_rows_that_it_had() {
    let days = |numbers: &[u32]| {
        numbers.iter().fold("when,n\n".to_owned(), |text, number| format!("{text}2025-10-0{number},{number}\n"))
    };
    let orders: [&[&[&str]]; 3] =
        [&[&["app.1.csv", "app.csv"]], &[&["app.csv", "app.1.csv"]], &[&["app.csv"], &["app.1.csv"]]];
    for order in orders {
        let desk = Desk::new();
        let path = |name: &str| desk.path(name).display().to_string();
        // A file that is gone leaves its rows, whatever others begin with.
        let gone = desk.file("app.0.csv", days(&[8]));
        desk.good(&[&desk.file("app.csv", days(&[1, 2])), &gone]);
        fs::remove_file(gone).expect("remove");
        desk.file("app.1.csv", days(&[1, 2, 3]));
        desk.file("app.csv", days(&[8, 9]));
        for run in order {
            let files: Vec<String> = run.iter().map(|name| path(name)).collect();
            desk.good(&files.iter().map(String::as_str).collect::<Vec<_>>());
        }
        assert_eq!(numbers(&desk, "app"), ["1", "2", "3", "8", "8", "9"], "{order:?}");
        let before = files_of(&desk.out());
        desk.good(&[&path("app.csv"), &path("app.1.csv")]);
        assert!(files_of(&desk.out()) == before, "a run without news changed a byte");
    }
}
