//! What goes in comes out of every format as it was: rows -> ingest -> export -> read back -> equal.

use std::io::Read;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

use crate::app::{TestApp, gzip};

/// A JSON string without U+0000, which PostgreSQL cannot store.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("null".to_owned()),
        Just(" \"quoted\", and\r\nbroken \\ ".to_owned()),
        "[^\u{0}]{0,20}",
        "[a-zA-Z0-9 ]{1,12}",
    ]
}

fn int() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0), Just(i64::MAX), 0..=i64::MAX, 0..100_i64]
}

fn float() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(-0.0), Just(5e-324), Just(f64::MAX), Just(0.1), (0.0..1e9), any::<f64>()].prop_map(
        |value: f64| if value.is_finite() { value.abs().copysign(if value == 0.0 { value } else { 1.0 }) } else { 0.5 },
    )
}

/// A row of gottcha2, some fields of which are null or absent.
fn row() -> impl Strategy<Value = Value> {
    let required = (text(), text(), text(), int(), int());
    let optional = (
        proptest::option::of(float()),
        proptest::option::of(text()),
        proptest::option::of(int()),
        proptest::option::of(0.0..=1.0_f64),
        proptest::option::of(text()),
        proptest::array::uniform4(proptest::option::weighted(0.8, float())),
    );
    (required, optional).prop_map(
        |((sample, name, taxid, reads, mapped), (depth, note, size, abundance, unknown, quad))| {
            let mut row = Map::new();
            row.insert("sample_id".into(), json!(format!("S{sample}")));
            row.insert("level".into(), json!("genus"));
            row.insert("name".into(), json!(format!("N{name}")));
            row.insert("taxid".into(), json!(format!("T{taxid}")));
            row.insert("read_count".into(), json!(reads));
            row.insert("total_bp_mapped".into(), json!(mapped));
            row.insert("depth".into(), json!(depth));
            row.insert("note".into(), json!(note));
            row.insert("genome_size".into(), json!(size));
            row.insert("rel_abundance".into(), json!(abundance));
            for (name, value) in QUAD.into_iter().zip(quad) {
                row.insert(name.into(), json!(value));
            }
            if let Some(unknown) = unknown {
                row.insert("some_new_field".into(), json!({"deep": [unknown, null, 1.5]}));
            }
            Value::Object(row)
        },
    )
}

/// Floats that a test has every row fill.
const QUAD: [&str; 4] = ["covered_sig_depth", "zscore", "linear_doc", "rollup_doc"];

const COLUMNS: [&str; 14] = [
    "sample_id",
    "level",
    "name",
    "taxid",
    "read_count",
    "total_bp_mapped",
    "depth",
    "note",
    "genome_size",
    "rel_abundance",
    QUAD[0],
    QUAD[1],
    QUAD[2],
    QUAD[3],
];

/// The row as an export shows it: the columns, and unknown fields in `extra`.
fn expected(row: &Value) -> Value {
    let mut shown: Map<String, Value> =
        COLUMNS.iter().map(|name| ((*name).to_owned(), row.get(name).cloned().unwrap_or(Value::Null))).collect();
    let extra = row.get("some_new_field").map_or(Value::Null, |value| json!({"some_new_field": value}));
    shown.insert("extra".into(), extra);
    Value::Object(shown)
}

fn decompress(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match name.rsplit('.').next() {
        Some("gz") => flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).expect("gzip"),
        Some("zst") => zstd::stream::read::Decoder::new(bytes).expect("zstd").read_to_end(&mut plain).expect("zstd"),
        _ => return bytes.to_vec(),
    };
    plain
}

fn cell(batch: &RecordBatch, column: usize, row: usize) -> Value {
    let array = batch.column(column);
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Utf8 if batch.schema().field(column).name() == "extra" => {
            serde_json::from_str(array.as_string::<i32>().value(row)).expect("JSON")
        }
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float64 => json!(array.as_primitive::<Float64Type>().value(row)),
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::Timestamp(..) => json!(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        other => panic!("{other}"),
    }
}

fn read_parquet(bytes: Vec<u8>) -> Vec<Value> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).expect("Parquet");
    let mut rows = Vec::new();
    for batch in reader.build().expect("reader") {
        let batch = batch.expect("batch");
        for row in 0..batch.num_rows() {
            let fields = batch
                .schema()
                .fields()
                .iter()
                .enumerate()
                .map(|(index, field)| (field.name().clone(), cell(&batch, index, row)))
                .collect();
            rows.push(Value::Object(fields));
        }
    }
    rows
}

/// Reads CSV by the documented rules: nothing between commas is null, `""` is the empty text.
fn read_csv(text: &str) -> Vec<Value> {
    let mut records: Vec<Vec<Option<String>>> = vec![Vec::new()];
    let mut rest = text.chars().peekable();
    let mut field: Option<String> = None;
    while let Some(character) = rest.next() {
        match character {
            '"' => {
                let field = field.get_or_insert_default();
                loop {
                    match rest.next().expect("an open quote") {
                        '"' if rest.next_if_eq(&'"').is_some() => field.push('"'),
                        '"' => break,
                        other => field.push(other),
                    }
                }
            }
            ',' => records.last_mut().expect("record").push(field.take()),
            '\r' if rest.next_if_eq(&'\n').is_some() => {
                records.last_mut().expect("record").push(field.take());
                records.push(Vec::new());
            }
            other => field.get_or_insert_default().push(other),
        }
    }
    records.pop();
    let header: Vec<String> = records.remove(0).into_iter().flatten().collect();
    let typed = |name: &str, text: String| match name {
        "read_count" | "total_bp_mapped" | "genome_size" => json!(text.parse::<i64>().expect("integer")),
        _ if ["depth", "rel_abundance"].contains(&name) || QUAD.contains(&name) => {
            json!(text.parse::<f64>().expect("float"))
        }
        "extra" => serde_json::from_str(&text).expect("JSON"),
        _ => json!(text),
    };
    let object = |record: Vec<Option<String>>| {
        let fields = header.iter().zip(record);
        fields.map(|(name, cell)| (name.clone(), cell.map_or(Value::Null, |text| typed(name, text)))).collect()
    };
    records.into_iter().map(|record| Value::Object(object(record))).collect()
}

#[tokio::test]
async fn arbitrary_rows_come_back_equal_from_every_format_and_compression() {
    let app = TestApp::with(&[("export.batch_size", "1000")]).await;
    let mut runner = TestRunner::deterministic();
    let rows: Vec<Value> = (0..3_000).map(|_| row().new_tree(&mut runner).expect("row").current()).collect();
    let body: String = rows.iter().map(|row| format!("{row}\n")).collect();
    app.store("/ingest-gottcha2", gzip(body)).await;
    // Among rows that fill hardly any of these columns, as PostgreSQL then knows.
    let filler = format!("{}\n", crate::app::RECORD).repeat(400_000);
    app.store("/ingest-gottcha2?run_id=filler", gzip(filler)).await;
    analyze(&app, "null_frac > 0.99", &["depth", "zscore"]).await;
    let mut expected: Vec<String> = rows.iter().map(|row| expected(row).to_string()).collect();
    expected.sort();
    let columns: Vec<&str> = COLUMNS.into_iter().chain(["extra"]).collect();
    for (format, compressions) in [
        ("parquet", &["zstd", "snappy", "lz4", "gzip", "none"][..]),
        ("csv", &["zstd", "gzip", "none"]),
        ("json", &["zstd", "gzip", "none"]),
        ("jsonl", &["zstd", "gzip", "none"]),
    ] {
        for compression in compressions {
            let wish = json!({"table": "gottcha2", "format": format, "compression": compression, "columns": columns,
                "filters": {"level": "genus"}});
            let export = app.export(wish).await;
            assert_eq!(export["rows"], 3_000, "{export}");
            assert_same(&read(format, &app, &export).await, &expected, &format!("{format} {compression}"));
        }
    }
}

/// Has PostgreSQL look at the table, and makes sure of what it then knows of these columns.
async fn analyze(app: &TestApp, guess: &str, columns: &[&str]) {
    sqlx::query("ANALYZE gottcha2_full").execute(&app.pool).await.expect("statistics");
    for name in columns {
        let sql = format!(
            "SELECT count(*) FROM pg_stats WHERE tablename = 'gottcha2_full' AND attname = '{name}' AND {guess}"
        );
        assert_eq!(app.scalar::<i64>(&sql).await, 1, "{name}");
    }
}

/// The rows of an export as sorted text, which tells -0.0 from 0.0.
async fn read(format: &str, app: &TestApp, export: &Value) -> Vec<String> {
    let bytes = decompress(export["file_name"].as_str().expect("name"), &app.download(export).await);
    let rows: Vec<Value> = match format {
        "parquet" => read_parquet(bytes),
        "csv" => read_csv(std::str::from_utf8(&bytes).expect("UTF-8")),
        "json" => serde_json::from_slice(&bytes).expect("JSON"),
        _ => bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect(),
    };
    let mut rows: Vec<String> = rows.iter().map(ToString::to_string).collect();
    rows.sort();
    rows
}

fn assert_same(found: &[String], expected: &[String], of: &str) {
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "row {index} of {of}");
    }
    assert_eq!(found.len(), expected.len(), "{of}");
}

/// Rows with names of their own that fill each of some columns, with whole numbers below 2^53.
fn even_rows(names: &str, count: usize) -> Vec<Value> {
    let mut runner = TestRunner::deterministic();
    let some: Vec<Value> = (0..500).map(|_| row().new_tree(&mut runner).expect("row").current()).collect();
    let even = |(index, row): (usize, &Value)| {
        let mut row = row.clone();
        row["sample_id"] = json!(format!("{names} {index}"));
        for name in ["read_count", "total_bp_mapped"] {
            row[name] = json!(row[name].as_i64().expect("a number").min((1 << 53) - 1));
        }
        for name in QUAD.into_iter().filter(|name| row[name].is_null()).collect::<Vec<_>>() {
            row[name] = json!(1.5);
        }
        row
    };
    some.iter().cycle().take(count).enumerate().map(even).collect()
}

#[tokio::test]
async fn numbers_come_back_equal_where_every_row_has_them_and_where_later_rows_do_not() {
    for (column, unexpected) in [("zscore", json!(null)), ("read_count", json!((1_i64 << 53) + 1))] {
        // Ranges of 6,000 rows, which are more than a batch.
        let app = TestApp::with(&[("export.batch_size", "24000")]).await;
        let mut rows = even_rows("expected", 20_000);
        let body: String = rows.iter().map(|row| format!("{row}\n")).collect();
        app.store("/ingest-gottcha2", gzip(body)).await;
        analyze(&app, "null_frac = 0", &["zscore", "read_count", "rollup_doc"]).await;
        for stored in ["as expected", "unexpected"] {
            if stored == "unexpected" {
                let mut more = even_rows("later", 10_000);
                more[5_000][column] = unexpected.clone();
                let body: String = more.iter().map(|row| format!("{row}\n")).collect();
                app.store("/ingest-gottcha2", gzip(body)).await;
                rows.extend(more);
            }
            let mut expected: Vec<String> = rows.iter().map(|row| expected(row).to_string()).collect();
            expected.sort();
            let columns: Vec<&str> = COLUMNS.into_iter().chain(["extra"]).collect();
            for format in ["parquet", "jsonl"] {
                let export = app.export(json!({"table": "gottcha2", "format": format, "columns": columns})).await;
                assert_eq!(export["rows"], rows.len(), "{export}");
                assert_same(&read(format, &app, &export).await, &expected, &format!("{format}, {column} {stored}"));
            }
        }
    }
}

#[tokio::test]
async fn a_row_that_ends_a_batch_of_long_texts_and_lacks_a_number_is_read_again() {
    let app = TestApp::start().await;
    let mut rows = even_rows("expected", 1_000);
    let store = async |rows: &[Value]| {
        let body: String = rows.iter().map(|row| format!("{row}\n")).collect();
        app.store("/ingest-gottcha2", gzip(body)).await
    };
    store(&rows).await;
    analyze(&app, "null_frac = 0", &["zscore", "read_count", "rollup_doc"]).await;
    // More than the text of a batch, 16 MiB, only with the last of them.
    let mut long = even_rows("long", 17);
    long.iter_mut().for_each(|row| row["name"] = Value::from("x".repeat(1_000_000)));
    long[16]["zscore"] = Value::Null;
    store(&long).await;
    rows.extend(long);
    let export = app.export(json!({"table": "gottcha2", "columns": ["sample_id", "name", "zscore", "read_count", "rollup_doc", "depth"]})).await;
    assert_eq!((&export["status"], &export["rows"]), (&json!("completed"), &json!(rows.len())), "{export}");
}

#[tokio::test]
async fn a_dataset_with_more_empty_columns_than_a_function_takes_arguments_is_exported() {
    let column =
        |name: &str, kind: &str| format!("[[columns]]\nname = \"{name}\"\nkind = \"{kind}\"\ndescription = \"x\"\n");
    let head = "name = \"wide\"\ntable = \"wide\"\ntitle = \"Wide\"\ndescription = \"Many columns.\"\n";
    let columns: String = (0..250).map(|index| column(&format!("c{index}"), "int")).collect();
    let folder = tempfile::tempdir().expect("folder");
    let text = format!("{head}{}{columns}", column("sample_id", "text"));
    std::fs::write(folder.path().join("wide.toml"), text).expect("definition");
    let app = TestApp::with(&[("datasets.dir", folder.path().to_str().expect("path"))]).await;
    let body = "{\"sample_id\":\"S\",\"c0\":1}\n".repeat(5_000) + "{\"sample_id\":\"S\",\"c249\":7}\n";
    app.store("/ingest/wide", gzip(body)).await;
    sqlx::query("ANALYZE wide").execute(&app.pool).await.expect("analyze");
    let export = app.export(json!({"table": "wide", "format": "jsonl", "compression": "none"})).await;
    assert_eq!((&export["status"], &export["rows"]), (&json!("completed"), &json!(5_001)), "{export}");
    let text = String::from_utf8(app.download(&export).await).expect("UTF-8");
    assert_eq!(text.matches("\"c249\":7").count(), 1);
    assert_eq!(text.matches("\"c0\":1").count(), 5_000);
}

#[tokio::test]
async fn an_empty_table_gives_a_valid_empty_file_of_every_format() {
    let app = TestApp::start().await;
    for format in ["parquet", "csv", "json", "jsonl"] {
        for compression in ["zstd", "gzip", "none"] {
            let export = app.export(json!({"table": "stast", "format": format, "compression": compression})).await;
            assert_eq!((&export["status"], &export["rows"]), (&json!("completed"), &json!(0)), "{export}");
            let bytes = decompress(export["file_name"].as_str().expect("name"), &app.download(&export).await);
            let text = String::from_utf8_lossy(&bytes);
            match format {
                "parquet" => assert_eq!(read_parquet(bytes), Vec::<Value>::new()),
                "csv" => assert!(text.starts_with("task,") && text.lines().count() == 1, "{text}"),
                "json" => assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), json!([])),
                _ => assert_eq!(text, ""),
            }
        }
    }
}

#[tokio::test]
async fn text_is_compressed_by_gzip_unless_told_since_everybody_opens_that() {
    for (configured, compression, ending) in [("zstd", "gzip", ".gz"), ("snappy", "gzip", ".gz"), ("none", "none", "")]
    {
        let app = TestApp::with(&[("export.compression", configured)]).await;
        for format in ["csv", "json", "jsonl", "yaml"] {
            let export = app.export(json!({"table": "stast", "format": format})).await;
            assert_eq!(export["compression"], compression, "{export}");
            let name = export["file_name"].as_str().expect("name");
            assert!(name.ends_with(&format!(".{format}{ending}")), "{name}");
        }
        assert_eq!(app.export(json!({"table": "stast"})).await["compression"], configured);
    }
}

#[tokio::test]
async fn an_export_keeps_the_compression_with_which_it_was_made() {
    let app = TestApp::with(&[("export.compression", "snappy")]).await;
    for format in ["parquet", "csv"] {
        let export = app.export(json!({"table": "stast", "format": format})).await;
        let id = export["id"].as_str().expect("id");
        let stored: Option<String> =
            app.scalar(&format!("SELECT spec->>'compression' FROM exports WHERE id = '{id}'")).await;
        assert_eq!(json!(stored), export["compression"], "{export}");
    }
}

#[tokio::test]
async fn a_csv_file_of_one_column_has_a_line_that_readers_see_for_each_null() {
    let app = TestApp::start().await;
    let row = |more: Value| {
        let mut row: Value = serde_json::from_str(crate::app::RECORD).expect("JSON");
        row.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        format!("{row}\n")
    };
    let rows = [json!({}), json!({"genome_size": 5, "depth": 0.5, "note": "n", "unknown": 1}), json!({"note": ""})];
    app.store("/ingest-gottcha2", rows.map(row).concat()).await;
    let text = async |columns: &[&str]| {
        let wish = json!({"table": "gottcha2", "format": "csv", "compression": "none", "columns": columns});
        String::from_utf8(app.download(&app.export(wish).await).await).expect("UTF-8")
    };
    assert_eq!(text(&["genome_size"]).await, "genome_size\r\n\"\"\r\n5\r\n\"\"\r\n");
    assert_eq!(text(&["depth"]).await, "depth\r\n\"\"\r\n0.5\r\n\"\"\r\n");
    assert_eq!(text(&["extra"]).await, "extra\r\n\"\"\r\n\"{\"\"unknown\"\": 1}\"\r\n\"\"\r\n");
    // Of text that is the empty one, which is no null.
    assert_eq!(text(&["note"]).await, "note\r\n\r\nn\r\n\"\"\r\n");
    assert_eq!(text(&["depth", "genome_size"]).await, "depth,genome_size\r\n,\r\n0.5,5\r\n,\r\n");
}

#[tokio::test]
async fn text_compressed_by_zstd_is_one_frame_since_some_readers_stop_after_the_first() {
    let app = TestApp::with(&[("export.batch_size", "1000")]).await;
    app.store("/ingest-gottcha2", gzip(format!("{}\n", crate::app::RECORD).repeat(5_000))).await;
    for format in ["csv", "json", "jsonl"] {
        let export = app.export(json!({"table": "gottcha2", "format": format, "compression": "zstd"})).await;
        let bytes = app.download(&export).await;
        let mut frame = zstd::stream::read::Decoder::with_buffer(bytes.as_slice()).expect("zstd").single_frame();
        let mut text = String::new();
        frame.read_to_string(&mut text).expect("zstd");
        assert_eq!(text.lines().filter(|line| line.contains("zairense")).count(), 5_000, "{format}");
        assert_eq!(frame.finish(), b"", "{format}");
    }
}

#[tokio::test]
async fn a_parquet_file_says_what_it_is_and_lets_readers_skip() {
    let app = TestApp::with(&[("export.batch_size", "1000")]).await;
    app.store("/ingest-gottcha2", gzip(format!("{}\n", crate::app::RECORD).repeat(5_000))).await;
    let export = app.export(json!({"table": "gottcha2"})).await;
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(app.download(&export).await)).expect("Parquet");
    let metadata = reader.metadata();
    assert_eq!(metadata.file_metadata().version(), 2);
    assert!(metadata.num_row_groups() > 1);
    let note = |key: &str| {
        let notes = metadata.file_metadata().key_value_metadata().expect("notes");
        notes.iter().find(|note| note.key == key).and_then(|note| note.value.clone()).expect("note")
    };
    assert_eq!((note("nvd.dataset"), note("nvd.rows")), ("gottcha2".to_owned(), "5000".to_owned()));
    assert_eq!(note("nvd.export_id"), export["id"].as_str().expect("id"));
    for key in ["nvd.schema_version", "nvd.service_version", "nvd.snapshot_at"] {
        assert!(!note(key).is_empty());
    }
    for column in metadata.row_group(0).columns() {
        let name = column.column_path().string();
        let is_looked_up = ["sample_id", "run_id", "taxid"].contains(&name.as_str());
        assert_eq!(column.bloom_filter_offset().is_some(), is_looked_up, "{name}");
        assert!(column.statistics().is_some(), "{name}");
        assert!(column.offset_index_offset().is_some() && column.column_index_offset().is_some(), "{name}");
    }
}

#[tokio::test]
async fn only_columns_whose_values_repeat_have_a_dictionary() {
    let app = TestApp::start().await;
    let record = |row: u32| {
        json!({"sample_id": "S1", "level": "species", "name": "Zika virus", "taxid": "64320", "read_count": row % 7,
            "total_bp_mapped": row, "rel_abundance": f64::from(row) / 7e3, "depth": f64::from(row % 7)})
    };
    let body: String = (0..5_000).map(|row| format!("{}\n", record(row))).collect();
    app.store("/ingest-gottcha2", gzip(body)).await;
    sqlx::query("ANALYZE gottcha2_full").execute(&app.pool).await.expect("statistics");
    let export = app.export(json!({"table": "gottcha2"})).await;
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(app.download(&export).await)).expect("Parquet");
    for (name, has_dictionary) in [
        ("taxid", true),
        ("read_count", true),
        ("depth", true),
        ("total_bp_mapped", false),
        ("rel_abundance", false),
        // Nobody fills these.
        ("zscore", false),
        ("note", false),
    ] {
        let columns = reader.metadata().row_group(0).columns();
        let column = columns.iter().find(|column| column.column_path().string() == name).expect("column");
        assert_eq!(column.dictionary_page_offset().is_some(), has_dictionary, "{name}");
    }
}
