//! What ingest is measured against.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use flate2::bufread::GzDecoder;
use serde::Deserialize;
use sqlx::{Postgres, QueryBuilder};

use crate::service::Service;

/// Rows of one INSERT.
const INSERT_ROWS: usize = 500;

/// The record of the prototype of this service: 11 fields.
#[derive(Deserialize)]
struct Record {
    sample_id: String,
    level: String,
    name: String,
    taxid: String,
    read_count: i64,
    total_bp_mapped: i64,
    ani_ci95: f64,
    covered_sig_len: i64,
    best_sig_cov: f64,
    depth: f64,
    rel_abundance: f64,
}

/// Makes the prototype's table with its B-trees.
pub async fn create_insert_table(service: &Service) {
    service
        .execute(
            "CREATE TABLE gottcha2_results (id bigserial PRIMARY KEY, sample_id text NOT NULL, level text NOT NULL,
             name text NOT NULL, taxid text NOT NULL, read_count bigint NOT NULL, total_bp_mapped bigint NOT NULL,
             ani_ci95 double precision NOT NULL, covered_sig_len bigint NOT NULL, best_sig_cov double precision NOT NULL,
             depth double precision NOT NULL, rel_abundance double precision NOT NULL,
             created_at timestamptz NOT NULL DEFAULT now())",
        )
        .await;
    for column in ["sample_id", "level", "taxid"] {
        service.execute(&format!("CREATE INDEX ON gottcha2_results ({column})")).await;
    }
}

/// Reads a gzip body and inserts its rows, 500 at a time, each in a transaction of its own.
pub async fn insert(service: &Service, body: &Path) {
    let file = BufReader::new(File::open(body).expect("body"));
    let mut lines = BufReader::new(GzDecoder::new(file)).lines();
    loop {
        let records: Vec<Record> = lines
            .by_ref()
            .take(INSERT_ROWS)
            .map(|line| serde_json::from_str(&line.expect("line")).expect("record"))
            .collect();
        if records.is_empty() {
            return;
        }
        let mut insert: QueryBuilder<Postgres> = QueryBuilder::new(
            "INSERT INTO gottcha2_results (sample_id, level, name, taxid, read_count, total_bp_mapped, ani_ci95,
             covered_sig_len, best_sig_cov, depth, rel_abundance) ",
        );
        insert.push_values(records, |mut row, record| {
            row.push_bind(record.sample_id)
                .push_bind(record.level)
                .push_bind(record.name)
                .push_bind(record.taxid)
                .push_bind(record.read_count)
                .push_bind(record.total_bp_mapped)
                .push_bind(record.ani_ci95)
                .push_bind(record.covered_sig_len)
                .push_bind(record.best_sig_cov)
                .push_bind(record.depth)
                .push_bind(record.rel_abundance);
        });
        insert.build().execute(&service.pool).await.expect("insert");
    }
}
