//! What ingest is measured against.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use flate2::bufread::GzDecoder;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sqlx::query_builder::Separated;
use sqlx::{Postgres, QueryBuilder};

use crate::service::Service;

/// Rows of one INSERT.
const INSERT_ROWS: usize = 500;

/// A record that is inserted, and the table for it.
pub trait Record: DeserializeOwned {
    /// Its fields and their types in the table.
    const COLUMNS: &'static [(&'static str, &'static str)];

    /// Binds the fields to one row of an INSERT.
    fn bind(self, row: Separated<'_, Postgres, &'static str>);
}

macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty = $column:literal,)* }) => {
        $(#[$doc])*
        #[derive(Deserialize)]
        pub struct $name { $($field: $kind,)* }

        impl Record for $name {
            const COLUMNS: &'static [(&'static str, &'static str)] = &[$((stringify!($field), $column),)*];

            fn bind(self, mut row: Separated<'_, Postgres, &'static str>) {
                $(row.push_bind(self.$field);)*
            }
        }
    };
}

record! {
    /// All fields, as the service stores them.
    Whole {
        sample_id: String = "text",
        run_id: String = "text",
        level: String = "text",
        name: String = "text",
        taxid: String = "text",
        read_count: i64 = "bigint",
        total_bp_mapped: i64 = "bigint",
        ani_ci95: f64 = "double precision",
        covered_sig_len: i64 = "bigint",
        best_sig_cov: f64 = "double precision",
        depth: f64 = "double precision",
        rel_abundance: f64 = "double precision",
        total_read_len: i64 = "bigint",
        read_idt: f64 = "double precision",
        total_bp_mismatch: i64 = "bigint",
        total_bp_indel: i64 = "bigint",
        sig_cov: f64 = "double precision",
        zscore: f64 = "double precision",
        abundance: f64 = "double precision",
        genome_count: i64 = "bigint",
        note: String = "text",
    }
}

record! {
    /// The 11 fields that the prototype of this service stores.
    Prototype {
        sample_id: String = "text",
        level: String = "text",
        name: String = "text",
        taxid: String = "text",
        read_count: i64 = "bigint",
        total_bp_mapped: i64 = "bigint",
        ani_ci95: f64 = "double precision",
        covered_sig_len: i64 = "bigint",
        best_sig_cov: f64 = "double precision",
        depth: f64 = "double precision",
        rel_abundance: f64 = "double precision",
    }
}

/// Makes a table for such records, with the prototype's B-trees.
pub async fn create_insert_table<R: Record>(service: &Service) {
    let columns: Vec<String> = R::COLUMNS.iter().map(|(name, kind)| format!("{name} {kind} NOT NULL")).collect();
    service.execute("DROP TABLE IF EXISTS gottcha2_results").await;
    service
        .execute(&format!(
            "CREATE TABLE gottcha2_results (id bigserial PRIMARY KEY, {}, created_at timestamptz NOT NULL DEFAULT now())",
            columns.join(", ")
        ))
        .await;
    for column in ["sample_id", "level", "taxid"] {
        service.execute(&format!("CREATE INDEX ON gottcha2_results ({column})")).await;
    }
}

/// Reads a gzip body and inserts its rows, 500 at a time, each in a transaction of its own.
pub async fn insert<R: Record>(service: &Service, body: &Path) {
    let file = BufReader::new(File::open(body).expect("body"));
    let mut lines = BufReader::new(GzDecoder::new(file)).lines();
    let columns: Vec<&str> = R::COLUMNS.iter().map(|(name, _)| *name).collect();
    let begin = format!("INSERT INTO gottcha2_results ({}) ", columns.join(", "));
    loop {
        let records: Vec<R> = lines
            .by_ref()
            .take(INSERT_ROWS)
            .map(|line| serde_json::from_str(&line.expect("line")).expect("record"))
            .collect();
        if records.is_empty() {
            return;
        }
        let mut insert: QueryBuilder<Postgres> = QueryBuilder::new(&begin);
        insert.push_values(records, |row, record| record.bind(row));
        insert.build().execute(&service.pool).await.expect("insert");
    }
}
