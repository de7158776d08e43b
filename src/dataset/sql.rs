//! A dataset as SQL: its table, its indexes, its COPY, and the statements that bring an older table up to date.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::definition::{Column, Dataset, Index, IndexMethod};
use super::kind::Kind;
use super::row::Cell;

/// A column as it stands in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    /// The type as `format_type` names it, such as `double precision`.
    pub postgres: String,
    /// Whether it is declared NOT NULL.
    pub not_null: bool,
    /// Whether it has a default value.
    pub has_default: bool,
}

/// The columns of one table as they stand, by name; empty when the table is not there.
pub type ExistingTable = HashMap<String, Existing>;

/// The service's own columns: (name, type, constraint). Rows arrive in the order of the primary key, so its index only
/// grows at its right edge.
const SERVICE: [(&str, &str, &str); 4] = [
    ("submission_id", "bigint", "NOT NULL"),
    ("ordinal", "integer", "NOT NULL"),
    ("extra", "jsonb", ""),
    ("created_at", "timestamp with time zone", "NOT NULL DEFAULT now()"),
];

/// The statements that bring the table of a dataset from what is there to what is declared; empty when it is so already.
///
/// New columns are added, always nullable. Nothing is ever dropped or retyped.
///
/// # Errors
/// Every column whose type in the database is another than the declared one.
pub fn plan(dataset: &Dataset, existing: &ExistingTable) -> Result<Vec<String>, Vec<String>> {
    let mut statements = Vec::new();
    if existing.is_empty() {
        statements.push(create_table(dataset));
    } else {
        statements.extend(alterations(dataset, existing)?);
    }
    Ok(statements)
}

/// The names of the indexes, and the statements that create them; each does nothing where its index is there.
#[must_use]
pub fn indexes(dataset: &Dataset) -> Vec<(String, String)> {
    let unique = (!dataset.unique.is_empty()).then(|| {
        let columns = quoted_list(dataset.unique.iter().map(String::as_str));
        let name = unique_index(dataset);
        let statement =
            format!("CREATE UNIQUE INDEX IF NOT EXISTS {} ON {} ({columns})", quoted(&name), quoted(&dataset.table));
        (name, statement)
    });
    unique.into_iter().chain(create_brin(dataset)).collect()
}

/// The index that keeps the keys of a dataset apart.
#[must_use]
pub fn unique_index(dataset: &Dataset) -> String {
    format!("{}_unique", dataset.table)
}

fn create_table(dataset: &Dataset) -> String {
    let mut lines: Vec<String> =
        SERVICE[..2].iter().map(|(name, kind, rest)| format!("{} {kind} {rest}", quoted(name))).collect();
    lines.extend(
        dataset
            .columns
            .iter()
            .map(|column| format!("{}{}", column_type(column), if column.required { " NOT NULL" } else { "" })),
    );
    lines.extend(
        SERVICE[2..].iter().map(|(name, kind, rest)| format!("{} {kind} {rest}", quoted(name)).trim_end().to_owned()),
    );
    lines.push("PRIMARY KEY (submission_id, ordinal)".to_owned());
    // Insert-only tables are vacuumed (and their BRIN summarised) early: a late vacuum reads it all from disk again.
    format!(
        "CREATE TABLE {} (\n    {}\n) WITH (autovacuum_vacuum_insert_threshold = 100000, autovacuum_vacuum_insert_scale_factor = 0.05)",
        quoted(&dataset.table),
        lines.join(",\n    ")
    )
}

fn alterations(dataset: &Dataset, existing: &ExistingTable) -> Result<Vec<String>, Vec<String>> {
    let table = quoted(&dataset.table);
    let declared = dataset.columns.iter().map(|column| (column.name.as_str(), column.kind.postgres()));
    let mut conflicts = Vec::new();
    let mut statements = Vec::new();
    if SERVICE.iter().any(|(name, ..)| !existing.contains_key(*name)) {
        conflicts.push(format!(
            "table {} was not made by this service, whose rows have a submission: give it another name (ALTER TABLE {table} \
             RENAME TO ...), or dataset {} another `table`",
            dataset.table, dataset.name
        ));
    }
    for (name, kind) in declared.chain(SERVICE.iter().map(|(name, kind, _)| (*name, *kind))) {
        match existing.get(name) {
            Some(found) if found.postgres != kind => conflicts.push(format!(
                "table {} has column `{name}` of type {}, but dataset {} declares {kind}: give the column another name",
                dataset.table, found.postgres, dataset.name
            )),
            Some(_) => {}
            None => statements.push(format!("ALTER TABLE {table} ADD COLUMN {} {kind}", quoted(name))),
        }
    }
    let required = |name: &str| {
        dataset.columns.iter().any(|column| column.name == name && column.required)
            || SERVICE.iter().any(|(service, ..)| *service == name)
    };
    let mut loosened: Vec<&String> = existing
        .iter()
        .filter(|(name, found)| found.not_null && !found.has_default && !required(name))
        .map(|(name, _)| name)
        .collect();
    loosened.sort();
    statements
        .extend(loosened.iter().map(|name| format!("ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL", quoted(name))));
    if conflicts.is_empty() { Ok(statements) } else { Err(conflicts) }
}

fn column_type(column: &Column) -> String {
    format!("{} {}", quoted(&column.name), column.kind.postgres())
}

/// One BRIN index for all columns that a query may ask for: each index costs every row a look at its range map, but
/// another column in the same index costs next to nothing.
fn create_brin(dataset: &Dataset) -> Option<(String, String)> {
    let columns: Vec<String> = dataset.indexes.iter().flat_map(|index| brin_columns(dataset, index)).collect();
    if columns.is_empty() {
        return None;
    }
    let columns = columns.join(", ");
    // Other columns are another index, which must not be taken for this one.
    let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(&columns)[..4]);
    let name = format!("{}_brin_{digest}", dataset.table);
    // 32 pages a range: measured as the best trade between index size and the rows read again for one value.
    let statement = format!(
        "CREATE INDEX IF NOT EXISTS {} ON {} USING brin ({columns}) WITH (pages_per_range = 32, autosummarize = on)",
        quoted(&name),
        quoted(&dataset.table),
    );
    Some((name, statement))
}

fn brin_columns(dataset: &Dataset, index: &Index) -> Vec<String> {
    let column = |name: &String| match index.method {
        IndexMethod::Bloom => format!("{} {}", quoted(name), bloom_operators(dataset, name)),
        IndexMethod::Minmax => quoted(name),
    };
    index.columns.iter().map(column).collect()
}

fn bloom_operators(dataset: &Dataset, column: &str) -> &'static str {
    let kind = dataset.columns.iter().find(|known| known.name == column).map(|known| known.kind);
    match kind {
        Some(Kind::Int) => "int8_bloom_ops",
        Some(Kind::Float) => "float8_bloom_ops",
        Some(Kind::Text) => "text_bloom_ops",
        // `created_at`, and columns of that kind: definitions let no others pass.
        _ => "timestamptz_bloom_ops",
    }
}

/// The COPY that takes the columns at some positions into `table`: the dataset's own, or one of its shape.
#[must_use]
pub fn copy_in(dataset: &Dataset, table: &str, columns: &[usize]) -> String {
    let data = columns.iter().map(|&position| dataset.columns[position].name.as_str());
    let columns = quoted_list(["submission_id", "ordinal"].into_iter().chain(data).chain(["extra"]));
    format!("COPY {} ({columns}) FROM STDIN (FORMAT binary)", quoted(table))
}

/// All columns that rows bring along, in the order of the table.
#[must_use]
pub fn row_columns(dataset: &Dataset) -> String {
    let data = dataset.columns.iter().map(|column| column.name.as_str());
    quoted_list(["submission_id", "ordinal"].into_iter().chain(data).chain(["extra"]))
}

/// What is known of a row's way to LabKey, as columns beside it.
pub const LABKEY_COLUMNS: [(&str, Kind); 3] = [
    ("labkey_upload_status", Kind::Text),
    ("labkey_upload_timestamp", Kind::Timestamp),
    ("labkey_transaction_id", Kind::Text),
];

/// The dataset's table as `t`, with [`LABKEY_COLUMNS`] beside each row.
#[must_use]
pub fn with_labkey(dataset: &Dataset) -> String {
    // One look into an index for each row, however many deliveries its submission took.
    format!(
        "{} t CROSS JOIN LATERAL (SELECT coalesce(min(one.status), 'pending') AS labkey_upload_status, \
         min(one.finished_at) AS labkey_upload_timestamp, min(one.transaction_id) AS labkey_transaction_id FROM (\
         SELECT CASE WHEN state IN ('completed', 'failed') THEN state ELSE 'pending' END AS status, \
         CASE WHEN state = 'completed' THEN finished_at END AS finished_at, transaction_id FROM labkey_deliveries \
         WHERE labkey_deliveries.submission_id = t.submission_id AND first_ordinal <= t.ordinal AND withdrawn_at IS NULL \
         ORDER BY first_ordinal DESC LIMIT 1) one) labkey",
        quoted(&dataset.table)
    )
}

/// The name of the view of a dataset's rows with [`LABKEY_COLUMNS`].
#[must_use]
pub fn labkey_view_name(dataset: &Dataset) -> String {
    format!("{}_labkey", dataset.table)
}

/// The view of that name. Its own columns come first, so that columns which the table gets later follow at the end.
#[must_use]
pub fn labkey_view(dataset: &Dataset) -> String {
    let view = quoted(&labkey_view_name(dataset));
    format!("CREATE OR REPLACE VIEW {view} AS SELECT labkey.*, t.* FROM {}", with_labkey(dataset))
}

/// How many columns that view has, over a table as it stands once [`plan`] was carried out.
#[must_use]
pub fn labkey_view_width(dataset: &Dataset, existing: &ExistingTable) -> usize {
    let declared = dataset.columns.iter().map(|column| column.name.as_str());
    let new = declared.chain(SERVICE.iter().map(|(name, ..)| *name)).filter(|name| !existing.contains_key(*name));
    LABKEY_COLUMNS.len() + existing.len() + new.count()
}

/// An identifier as PostgreSQL reads it literally.
#[must_use]
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Several identifiers, separated by commas.
pub fn quoted_list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(quoted).collect::<Vec<_>>().join(", ")
}

/// A text as PostgreSQL reads it literally, also where `standard_conforming_strings` is off.
fn text_literal(text: &str) -> String {
    let text = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", text.replace('\\', "\\\\")) } else { format!("'{text}'") }
}

/// A value as PostgreSQL reads it literally.
#[must_use]
pub fn literal(cell: &Cell<'_>) -> String {
    match cell {
        Cell::Absent | Cell::Null => "NULL".to_owned(),
        Cell::Text(text) | Cell::Json(text) => text_literal(text),
        Cell::Int(value) => value.to_string(),
        Cell::Float(value) => format!("'{value:?}'::double precision"),
        Cell::Bool(value) => value.to_string(),
        Cell::Timestamp(micros) => format!("(timestamptz 'epoch' + {micros} * interval '1 microsecond')"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(columns: &str) -> Dataset {
        let text = format!("name = 'd'\ntable = 't'\ntitle = 'T'\ndescription = 'D'\n{columns}");
        Dataset::parse("d.toml", &text).expect("definition")
    }

    const A: &str = "[[columns]]\nname = 'a'\nkind = 'int'\nrequired = true\ndescription = 'x'\n";
    const B: &str = "[[columns]]\nname = 'b'\nkind = 'text'\ndescription = 'x'\n";

    fn table(columns: &[(&str, &str, bool)]) -> ExistingTable {
        let service = SERVICE.iter().map(|(name, kind, rest)| (*name, *kind, !rest.is_empty()));
        columns
            .iter()
            .copied()
            .chain(service)
            .map(|(name, postgres, not_null)| {
                let has_default = name == "created_at";
                (name.to_owned(), Existing { postgres: postgres.to_owned(), not_null, has_default })
            })
            .collect()
    }

    #[test]
    fn a_new_column_is_added_nullable() {
        let both = dataset(&format!("{A}{B}"));
        let statements = plan(&both, &table(&[("a", "bigint", true)])).expect("compatible");
        assert_eq!(statements, ["ALTER TABLE \"t\" ADD COLUMN \"b\" text"]);
    }

    #[test]
    fn a_table_that_is_as_declared_needs_no_statement() {
        let statements = plan(&dataset(A), &table(&[("a", "bigint", true)])).expect("compatible");
        assert!(statements.is_empty(), "{statements:?}");
    }

    #[test]
    fn a_table_that_somebody_else_made_is_refused() {
        let mut foreign = table(&[("a", "bigint", true)]);
        foreign.remove("ordinal");
        let conflicts = plan(&dataset(A), &foreign).expect_err("not ours");
        assert!(conflicts[0].contains("table t was not made by this service"), "{conflicts:?}");
    }

    #[test]
    fn a_changed_type_is_refused_by_name() {
        let conflicts = plan(&dataset(A), &table(&[("a", "text", true)])).expect_err("incompatible");
        assert!(conflicts[0].contains("`a` of type text") && conflicts[0].contains("bigint"), "{conflicts:?}");
    }

    #[test]
    fn a_column_that_left_the_definition_no_longer_demands_a_value() {
        let statements = plan(&dataset(B), &table(&[("a", "bigint", true), ("b", "text", false)])).expect("compatible");
        assert_eq!(statements, ["ALTER TABLE \"t\" ALTER COLUMN \"a\" DROP NOT NULL"]);
    }
}
