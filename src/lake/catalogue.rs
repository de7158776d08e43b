//! What analysts find beside the data: the schema, views and macros for DuckDB, worked examples, and how to read it all.
//!
//! It is made of the manifests of all datasets in a folder, and written only where it differs from what is there.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sqlx::PgPool;

use super::Place;
use super::manifest::{self, FILES, Manifest};
use super::partition;
use crate::config::Level;
use crate::dataset::Kind;
use crate::db::jobs::Lease;
use crate::error::{Error, Result};
use crate::export::spec::TIME_COLUMN;

/// The beginning of the README; the datasets follow.
const README: &str = include_str!("README.md");

/// The beginning of the script for DuckDB; the datasets follow.
const DUCKDB: &str = "\
-- Views and macros for DuckDB 1.2 or later. Written anew with each change of the data: read it at the beginning
-- of each session (`.read duckdb.sql`), since it names the files that make up each dataset.

-- Files never change, so that what was read of one once holds. A column is read in one go, not header by header.
SET parquet_metadata_cache = true;
SET prefetch_all_parquet_files = true;
";

/// What is said of datasets whose files hold the columns of their partitions, which pyarrow would read with two types.
const KEPT: &str = "\
hold the columns of their partitions too. pyarrow and pandas must not read these from the paths: `ds.dataset(DIR)`, and
`partitioning=None` for `pq.read_table(DIR)` and `pd.read_parquet(DIR)`.
";

/// What is said of datasets that are cut by text.
const TYPED: &str = "\
Polars and pyarrow tell the types of what stands in paths by its looks: a text `0012` would be the number 12. Read these so:
";

/// The files of a catalogue, and how each begins, whichever version has written it.
const BEGINNINGS: [(&str, &[&str]); 4] = [
    ("schema.json", &["{\n  \"datasets\": {"]),
    ("duckdb.sql", &["-- Views and macros for DuckDB"]),
    ("queries.sql", &["-- Worked examples for DuckDB"]),
    ("README.md", &["# Partitioned datasets\n", "# Converted files\n"]),
];

/// Columns that name a taxon, the best first; and what the taxon is called.
const TAXA: [&str; 3] = ["adjusted_taxid", "taxid", "staxids"];
const NAMES: [&str; 4] = ["adjusted_taxid_name", "name", "sscinames", "stitle"];

/// Refuses a folder in which the catalogue would take the place of somebody's own files, or in which datasets of databases
/// and of files would lie side by side: their writers know nothing of each other. Where a dataset lies, the files are those
/// of the catalogue, whoever has edited them since.
///
/// # Errors
/// Such a file or dataset, a storage out of reach.
pub async fn refuse_others(place: &Place<'_>, replaced: Option<&str>, is_of_files: bool) -> Result<()> {
    let held: Vec<Manifest> = place.manifests().await?.into_iter().flatten().collect();
    let is_other = |held: &&Manifest| (held.source == FILES) != is_of_files && Some(held.dataset.as_str()) != replaced;
    if let Some(other) = held.iter().find(is_other) {
        let what = if is_of_files { "rows of the service" } else { "converted files" };
        return Err(Error::Conflict(format!("{} holds {what}: choose another folder", place.url(&other.dataset))));
    }
    let Some(file) = file_of_others(place).await?.filter(|_| held.is_empty()) else { return Ok(()) };
    Err(Error::Conflict(format!(
        "{} was not written by this program, which describes its datasets in a file of that name: choose another folder",
        place.url(file)
    )))
}

/// A file that has the name of one of the catalogue, and that no catalogue begins with.
async fn file_of_others(place: &Place<'_>) -> Result<Option<&'static str>> {
    for (file, beginnings) in BEGINNINGS {
        let held = place.storage.get(&place.name(file)).await?;
        if held.is_some_and(|held| !beginnings.iter().any(|beginning| held.starts_with(beginning.as_bytes()))) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Writes the catalogue of a folder anew where it is not as it should be.
///
/// # Errors
/// A storage or a database out of reach.
pub async fn renew(pool: &PgPool, place: &Place<'_>, lease: &Lease) -> Result<()> {
    // Two datasets may come to their end at once: the later one sees both.
    let mut lock = place.lock(pool, "", lease).await?;
    let files = files(place, README).await?;
    lock.check().await?;
    write(place, files).await
}

/// The same for a folder that no database knows, and that begins with another text.
///
/// # Errors
/// A storage out of reach.
pub async fn renew_alone(place: &Place<'_>, readme: &str) -> Result<()> {
    write(place, files(place, readme).await?).await
}

async fn files(place: &Place<'_>, readme: &str) -> Result<[(&'static str, String); 4]> {
    let mut manifests = place.manifests().await?.into_iter().collect::<Result<Vec<_>>>()?;
    manifests.retain(|manifest| super::is_columnar(manifest.format));
    let schema = serde_json::to_string_pretty(&schema(&manifests))
        .map_err(|error| Error::Internal(format!("the schema cannot be written: {error}")))?;
    Ok([
        ("schema.json", schema + "\n"),
        ("duckdb.sql", duckdb(place, &manifests)),
        ("queries.sql", queries(&manifests)),
        ("README.md", readme_of(place, readme, &manifests)),
    ])
}

async fn write(place: &Place<'_>, files: [(&str, String); 4]) -> Result<()> {
    for (name, text) in files {
        let name = place.name(name);
        if place.storage.get(&name).await?.is_none_or(|held| held != text.as_bytes()) {
            place.storage.put(&name, Bytes::from(text)).await?;
        }
    }
    Ok(())
}

/// The columns that stand in paths, and the kinds of their values.
fn partition_columns(manifest: &Manifest) -> Vec<(&str, Kind)> {
    let levels = manifest.partitioning.temporal.iter().flat_map(|temporal| temporal.levels());
    let by = manifest.partitioning.by.iter().map(|name| {
        let known = manifest.partition_columns.iter().find(|column| column.name == *name);
        // Where the manifest does not say it, as text every value can be read.
        (name.as_str(), known.map_or(Kind::Text, |column| column.kind))
    });
    levels.map(|level| (level.as_str(), Kind::Int)).chain(by).collect()
}

fn schema(manifests: &[Manifest]) -> Value {
    let dataset = |manifest: &Manifest| {
        let partitions: Vec<Value> = partition_columns(manifest)
            .into_iter()
            .map(|(name, kind)| json!({"name": name, "type": duckdb_type(kind)}))
            .collect();
        let columns: Vec<Value> = manifest
            .columns
            .iter()
            .map(|column| {
                json!({"name": column.name, "kind": column.kind, "type": duckdb_type(column.kind),
                    "description": column.description, "unit": column.unit})
            })
            .collect();
        let body = json!({
            "title": manifest.title, "description": manifest.description, "format": manifest.format,
            "folder": manifest.dataset, "partition_columns": partitions, "columns": columns,
        });
        (manifest.dataset.clone(), body)
    };
    json!({"datasets": manifests.iter().map(dataset).collect::<Map<_, _>>()})
}

const fn duckdb_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Json => "VARCHAR",
        Kind::Int => "BIGINT",
        Kind::Float => "DOUBLE",
        Kind::Bool => "BOOLEAN",
        Kind::Timestamp => "TIMESTAMPTZ",
    }
}

fn duckdb(place: &Place<'_>, manifests: &[Manifest]) -> String {
    let mut text = DUCKDB.to_owned();
    for manifest in manifests {
        text.push_str(&format!("\n-- {}\n{}{}", manifest.title, view(place, manifest), macros(manifest)));
    }
    text
}

fn view(place: &Place<'_>, manifest: &Manifest) -> String {
    let name = quoted(&manifest.dataset);
    let partitions = partition_columns(manifest);
    if manifest.files().next().is_none() {
        let of_files = manifest.columns.iter().map(|column| (column.name.as_str(), column.kind));
        let of_paths = partitions.into_iter().filter(|(name, _)| !has(manifest, name));
        let null = |(name, kind)| format!("NULL::{} AS {}", duckdb_type(kind), quoted(name));
        let columns: Vec<String> = of_files.chain(of_paths).map(null).collect();
        return format!("CREATE OR REPLACE VIEW {name} AS SELECT {} WHERE false;\n", columns.join(", "));
    }
    let types: Vec<String> =
        partitions.iter().map(|(name, kind)| format!("{}: {}", quoted(name), duckdb_type(*kind))).collect();
    let read = |(is_read_from_paths, files): (bool, Vec<String>)| {
        let paths = match is_read_from_paths {
            true => format!("hive_partitioning = true, hive_types = {{{}}}", types.join(", ")),
            false => "hive_partitioning = false".to_owned(),
        };
        format!("SELECT * FROM read_parquet([\n{}\n], {paths})", files.join(",\n"))
    };
    let reads: Vec<String> = files_that_are_alike(place, manifest).into_iter().map(read).collect();
    format!("CREATE OR REPLACE VIEW {name} AS {};\n", reads.join("\nUNION ALL BY NAME "))
}

/// The files as SQL, those with the same columns together and the newest columns first. To unite what has the same columns
/// anyway (`union_by_name`), DuckDB would look into every file before it begins. Beside them, whether the columns of partitions
/// are read from the paths: not where a path stands for null and for the empty text, and the file itself knows which it is.
fn files_that_are_alike(place: &Place<'_>, manifest: &Manifest) -> Vec<(bool, Vec<String>)> {
    let newest = manifest::schema(&manifest.columns);
    let mut alike: BTreeMap<(bool, &str, bool), Vec<String>> = BTreeMap::new();
    for file in manifest.files() {
        let url = place.url(&format!("{}/{}", manifest.dataset, file.path)).replace('\'', "''");
        let is_read_from_paths = !manifest.partitioning.keep_columns || !partition::is_null(&file.path);
        let key = (file.schema != newest, file.schema.as_str(), is_read_from_paths);
        alike.entry(key).or_default().push(format!("    '{url}'"));
    }
    alike.into_iter().map(|((.., is_read_from_paths), files)| (is_read_from_paths, files)).collect()
}

/// Questions that are asked of most datasets, as far as its columns answer them.
fn macros(manifest: &Manifest) -> String {
    let table = quoted(&manifest.dataset);
    let prefix = &manifest.dataset;
    let samples = if has(manifest, "sample_id") { ", count(DISTINCT sample_id) AS samples" } else { "" };
    let mut text = day(manifest).map_or_else(String::new, |day| {
        // DuckDB would take `stored_on` for the column of that name, where the dataset has one.
        format!(
            "CREATE OR REPLACE MACRO {prefix}_per_day() AS TABLE\n    SELECT {day} AS stored_on, count(*) AS rows{samples} \
             FROM {table} GROUP BY ALL ORDER BY ALL;\n"
        )
    });
    let Some((taxon, name, hits)) = taxa(manifest) else { return text };
    let level = if has(manifest, "level") { "level, " } else { "" };
    let first = day(manifest).map_or_else(String::new, |day| format!(", min({day}) AS first_stored_on"));
    text.push_str(&format!(
        "CREATE OR REPLACE MACRO {prefix}_top_taxa(sample) AS TABLE\n    SELECT {level}{taxon} AS taxon, \
         any_value({name}) AS taxon_name, {hits} AS hits FROM {table} WHERE sample_id = sample \
         GROUP BY {level}{taxon} ORDER BY hits DESC;\n\
         CREATE OR REPLACE MACRO {prefix}_samples_with(wanted) AS TABLE\n    SELECT sample_id, {hits} AS hits{first} FROM {table} WHERE {taxon} = wanted GROUP BY sample_id ORDER BY hits DESC;\n"
    ));
    text
}

/// The day of a row in UTC as SQL, where something tells it.
fn day(manifest: &Manifest) -> Option<&'static str> {
    match manifest.partitioning.temporal {
        Some(temporal) if temporal.0 >= Level::Day => Some("make_date(year, month, day)"),
        _ => has(manifest, TIME_COLUMN).then_some("(created_at AT TIME ZONE 'UTC')::DATE"),
    }
}

/// Which columns name a taxon and what it is called, and how its hits are counted.
fn taxa(manifest: &Manifest) -> Option<(&'static str, &'static str, &'static str)> {
    let first = |names: &[&'static str]| names.iter().copied().find(|name| has(manifest, name));
    let (taxon, name) = first(&TAXA).zip(first(&NAMES)).filter(|_| has(manifest, "sample_id"))?;
    let is_counted = matches!(kind(manifest, "read_count"), Some(Kind::Int | Kind::Float));
    Some((taxon, name, if is_counted { "sum(read_count)" } else { "count(*)" }))
}

/// Whether readers find a column, in files or in paths.
fn has(manifest: &Manifest, name: &str) -> bool {
    kind(manifest, name).is_some()
}

/// The type of the values that readers find in a column, in files or in paths.
fn kind(manifest: &Manifest, name: &str) -> Option<Kind> {
    let in_files = manifest.columns.iter().map(|column| (column.name.as_str(), column.kind));
    in_files.chain(partition_columns(manifest)).find(|(column, _)| *column == name).map(|(_, kind)| kind)
}

/// A value as SQL, where the column can hold it.
fn example(manifest: &Manifest, column: &str, value: &str) -> Option<String> {
    match kind(manifest, column)? {
        Kind::Text => Some(format!("'{value}'")),
        Kind::Int => value.parse::<i64>().ok().map(|number| number.to_string()),
        _ => None,
    }
}

fn queries(manifests: &[Manifest]) -> String {
    let mut text = "-- Worked examples for DuckDB; first `.read duckdb.sql`.\n".to_owned();
    for manifest in manifests {
        let (name, table) = (&manifest.dataset, quoted(&manifest.dataset));
        if day(manifest).is_some() {
            text.push_str(&format!(
                "\n-- {}: how many rows are there of each day?\nSELECT * FROM {name}_per_day();\n",
                manifest.title
            ));
        }
        if manifest.partitioning.temporal.is_some() {
            text.push_str(&format!(
                "\n-- ... and this year? Other years' files are not even opened.\nSELECT count(*) FROM {table} WHERE year = \
                 year(current_date);\n"
            ));
        }
        let Some((taxon, ..)) = taxa(manifest) else { continue };
        if let Some(sample) = example(manifest, "sample_id", "SRR12689945") {
            text.push_str(&format!(
                "\n-- What was found most in a sample?\nSELECT * FROM {name}_top_taxa({sample}) LIMIT 20;\n"
            ));
        }
        if let Some(taxon) = example(manifest, taxon, "3052462") {
            text.push_str(&format!(
                "\n-- Which samples have Ebola virus?\nSELECT * FROM {name}_samples_with({taxon});\n"
            ));
        }
    }
    text
}

fn readme_of(place: &Place<'_>, beginning: &str, manifests: &[Manifest]) -> String {
    let mut text = beginning.replace("LAKE", place.url("").trim_end_matches('/'));
    for manifest in manifests {
        let columns: Vec<&str> = partition_columns(manifest).into_iter().map(|(name, _)| name).collect();
        text.push_str(&format!(
            "| `{}` | {} | {} |\n",
            manifest.dataset,
            manifest.title.replace('|', "\\|"),
            columns.iter().map(|column| format!("`{column}`")).collect::<Vec<_>>().join(", ")
        ));
    }
    let kept: Vec<String> = manifests
        .iter()
        .filter(|manifest| manifest.partitioning.keep_columns)
        .map(|manifest| format!("`{}`", manifest.dataset))
        .collect();
    if !kept.is_empty() {
        text.push_str(&format!("\nFiles of {} {KEPT}", kept.join(", ")));
    }
    let typed: String = manifests.iter().filter_map(|manifest| typed_reading(place, manifest)).collect();
    if !typed.is_empty() {
        text.push_str(&format!(
            "\n{TYPED}\n```python\nimport polars as pl, pyarrow as pa, pyarrow.dataset as ds\n{typed}```\n"
        ));
    }
    text
}

/// How to read a dataset whose paths hold text, unless its files hold it too.
fn typed_reading(place: &Place<'_>, manifest: &Manifest) -> Option<String> {
    let columns = partition_columns(manifest);
    if manifest.partitioning.keep_columns || !columns.iter().any(|(_, kind)| matches!(kind, Kind::Text | Kind::Json)) {
        return None;
    }
    let types = |number: &str, text: &str| -> String {
        let each = columns.iter().map(|(name, kind)| {
            let name = serde_json::Value::from(*name);
            format!("{name}: {}", if *kind == Kind::Int { number } else { text })
        });
        each.collect::<Vec<_>>().join(", ")
    };
    let url = place.url(&manifest.dataset);
    Some(format!(
        "pl.scan_parquet(\"{url}/**/*.parquet\", hive_schema={{{}}})\n\
         ds.dataset(\"{url}\", partitioning=ds.partitioning(pa.schema({{{}}}), flavor=\"hive\"))\n",
        types("pl.Int64", "pl.String"),
        types("pa.int64()", "pa.string()")
    ))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
