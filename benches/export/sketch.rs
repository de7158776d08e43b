//! A sketch of the obvious way: rows fetched into Vecs, batches of them kept, all of the file in one buffer.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Column, PgPool, Row, TypeInfo};

/// Rows of one batch.
const BATCH: usize = 100_000;

/// Exports a table as that sketch would.
pub async fn run(url: &str, table: &str, output: &Path) {
    let pool = PgPool::connect(url).await.expect("database");
    let query = format!("SELECT * FROM {table} ORDER BY created_at");
    let mut rows = sqlx::query(AssertSqlSafe(query)).fetch(&pool);
    let (mut batches, mut current) = (Vec::new(), Vec::new());
    while let Some(row) = rows.try_next().await.expect("row") {
        current.push(row);
        if current.len() >= BATCH {
            batches.push(batch(&current));
            current.clear();
        }
    }
    if !current.is_empty() {
        batches.push(batch(&current));
    }
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("level")))
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_data_page_size_limit(1024 * 1024)
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batches[0].schema(), Some(properties)).expect("writer");
    for batch in &batches {
        writer.write(batch).expect("batch");
    }
    std::fs::write(output, writer.into_inner().expect("file")).expect("room");
}

fn batch(rows: &[PgRow]) -> RecordBatch {
    let columns = rows[0].columns().iter().enumerate();
    let arrays = columns.map(|(index, column)| (column.name(), array(rows, index, column.type_info().name())));
    RecordBatch::try_from_iter_with_nullable(arrays.map(|(name, array)| (name, array, true))).expect("batch")
}

fn array(rows: &[PgRow], index: usize, kind: &str) -> ArrayRef {
    match kind {
        "INT8" => Arc::new(rows.iter().map(|row| row.get::<Option<i64>, _>(index)).collect::<Int64Array>()),
        "INT4" => {
            Arc::new(rows.iter().map(|row| row.get::<Option<i32>, _>(index).map(i64::from)).collect::<Int64Array>())
        }
        "FLOAT8" => Arc::new(rows.iter().map(|row| row.get::<Option<f64>, _>(index)).collect::<Float64Array>()),
        "TIMESTAMPTZ" => {
            let micros =
                rows.iter().map(|row| row.get::<Option<DateTime<Utc>>, _>(index).map(|t| t.timestamp_micros()));
            Arc::new(micros.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
        }
        "JSONB" => {
            let texts = rows.iter().map(|row| row.get::<Option<serde_json::Value>, _>(index).map(|v| v.to_string()));
            Arc::new(texts.collect::<StringArray>())
        }
        _ => Arc::new(rows.iter().map(|row| row.get::<Option<&str>, _>(index)).collect::<StringArray>()),
    }
}
