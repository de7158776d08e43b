//! Creates and extends the tables of the datasets from their definitions.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use super::execute_generated;
use crate::dataset::sql::{self, Existing, ExistingTable};
use crate::dataset::{Cell, Dataset, Datasets, Mistake};
use crate::error::{Error, Result};

/// One at a time, over all replicas; any number that nobody else uses.
const LOCK: i64 = 0x4E56_4454;

/// Brings every dataset table up to date. Replicas that start at once wait for each other.
///
/// # Errors
/// Columns that have another type in the database than in the definition; [`Error::Locked`] where a table is in use for
/// longer than a moment.
pub async fn ensure(pool: &PgPool, datasets: &Datasets) -> Result<()> {
    let mut transaction = pool.begin().await?;
    sqlx::query("-- tables.lock\nSELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    // All uploads of a table stand behind a change that waits for an export of it.
    sqlx::query("-- tables.patience\nSET LOCAL lock_timeout = '3s'").execute(&mut *transaction).await?;
    for statement in plan(&mut transaction, datasets).await? {
        execute_generated(&mut transaction, statement.clone()).await.map_err(|error| explain(error, &statement))?;
    }
    transaction.commit().await?;
    Ok(())
}

/// What PostgreSQL says of a statement that follows from a definition.
fn explain(error: Error, statement: &str) -> Error {
    let Error::Database(sqlx::Error::Database(cause)) = &error else { return error };
    match cause.code().as_deref().unwrap_or_default() {
        "55P03" => {
            let reason = "a table of a dataset is in use and cannot follow its definition yet; try again when exports and \
                          uploads under way have ended";
            Error::Locked(reason.into())
        }
        code if ["22", "23", "42", "54"].iter().any(|class| code.starts_with(class)) => Error::Environment(format!(
            "a table cannot follow its definition: {}, by `{}`",
            cause.message(),
            statement.lines().next().unwrap_or_default()
        )),
        _ => error,
    }
}

/// The statements that [`ensure`] would run.
///
/// # Errors
/// Columns that have another type in the database than in the definition.
pub async fn plan(connection: &mut PgConnection, datasets: &Datasets) -> Result<Vec<String>> {
    let tables = existing_tables(connection).await?;
    let others = existing_others(connection).await?;
    let keys = existing_keys(connection).await?;
    let views = existing_views(connection).await?;
    let mut statements = Vec::new();
    let mut mistakes = Vec::new();
    for dataset in datasets.iter() {
        if let Some(reason) = left_behind(connection, dataset, datasets, &tables).await? {
            mistakes.push(Mistake::new(&dataset.name, reason));
        }
        if let Some(reason) = renamed(connection, dataset, &tables).await? {
            mistakes.push(Mistake::new(&dataset.name, reason));
        }
        if others.contains_key(&dataset.table) {
            let reason = format!("table `{}` is the name of an index, a sequence or a view", dataset.table);
            mistakes.push(Mistake::new(&dataset.name, reason));
            continue;
        }
        let planned = check_key(dataset, &keys).and_then(|()| plan_table(dataset, &tables, &others, &views));
        match planned {
            Ok(found) => statements.extend(found),
            Err(conflicts) => mistakes.extend(conflicts.into_iter().map(|reason| Mistake::new(&dataset.name, reason))),
        }
    }
    if mistakes.is_empty() { Ok(statements) } else { Err(Error::Definitions(mistakes)) }
}

fn plan_table(
    dataset: &Dataset,
    tables: &HashMap<String, ExistingTable>,
    others: &HashMap<String, bool>,
    views: &HashMap<String, i64>,
) -> Result<Vec<String>, Vec<String>> {
    let none = ExistingTable::new();
    let existing = tables.get(&dataset.table).unwrap_or(&none);
    let mut statements = sql::plan(dataset, existing)?;
    let missing = |(name, _): &(String, String)| others.get(name) != Some(&true);
    statements.extend(sql::indexes(dataset).into_iter().filter(missing).map(|(_, statement)| statement));
    let width = views.get(&sql::labkey_view_name(dataset)).and_then(|width| usize::try_from(*width).ok());
    if width != Some(sql::labkey_view_width(dataset, existing)) {
        statements.push(sql::labkey_view(dataset));
    }
    Ok(statements)
}

/// Refuses another unique key than the table has: rows would be passed over as stored that are not.
fn check_key(dataset: &Dataset, keys: &HashMap<String, Vec<String>>) -> Result<(), Vec<String>> {
    let index = sql::unique_index(dataset);
    match keys.get(&index) {
        Some(found) if *found != dataset.unique => Err(vec![format!(
            "table {} keeps rows unique by ({}), but dataset {} declares unique = [{}]: declare what it was, or drop the \
             index {index} first",
            dataset.table,
            found.join(", "),
            dataset.name,
            dataset.unique.join(", ")
        )]),
        _ => Ok(()),
    }
}

/// Refuses another name of a table while rows of the dataset are in the former: they count as stored, and were neither
/// delivered nor removed.
async fn left_behind(
    connection: &mut PgConnection,
    dataset: &Dataset,
    datasets: &Datasets,
    tables: &HashMap<String, ExistingTable>,
) -> Result<Option<String>> {
    if tables.contains_key(&dataset.table) || !tables.contains_key("submissions") {
        return Ok(None);
    }
    let sql = "-- tables.left_behind\nSELECT count(*) FROM submissions WHERE dataset = $1 AND rows > 0";
    let submissions: i64 = sqlx::query_scalar(sql).bind(&dataset.name).fetch_one(connection).await?;
    if submissions == 0 {
        return Ok(None);
    }
    let is_free = |name: &&String| datasets.iter().all(|other| other.table != **name);
    let is_of_rows =
        |name: &&String| ["submission_id", "ordinal"].iter().all(|column| tables[*name].contains_key(*column));
    let mut others: Vec<&str> = tables.keys().filter(is_free).filter(is_of_rows).map(String::as_str).collect();
    others.sort_unstable();
    Ok(Some(format!(
        "dataset {} has rows of {submissions} submissions in another table than {} (of those here: {}): declare what it was, or \
         rename that table in PostgreSQL",
        dataset.name,
        dataset.table,
        if others.is_empty() { "none".to_owned() } else { others.join(", ") }
    )))
}

/// Refuses another name of a dataset over its table: what was stored under the former counts as another's, is not in partitioned
/// datasets, and would be stored again when it is sent again.
async fn renamed(
    connection: &mut PgConnection,
    dataset: &Dataset,
    tables: &HashMap<String, ExistingTable>,
) -> Result<Option<String>> {
    let has_rows_of_ours = tables.get(&dataset.table).is_some_and(|columns| columns.contains_key("submission_id"));
    if !has_rows_of_ours || !tables.contains_key("submissions") {
        return Ok(None);
    }
    let table = sql::quoted(&dataset.table);
    let first = format!(
        "-- tables.renamed\nSELECT s.dataset FROM (SELECT submission_id FROM {table} LIMIT 1) t JOIN submissions s ON s.id = \
         t.submission_id"
    );
    let former: Option<String> = sqlx::query_scalar(AssertSqlSafe(first)).fetch_optional(connection).await?;
    Ok(former.filter(|former| *former != dataset.name).map(|former| {
        format!(
            "table {} has rows that were stored for dataset `{former}`: give the dataset that name again, or another table; or \
             rename what is stored: UPDATE submissions SET dataset = {} WHERE dataset = {}",
            dataset.table,
            sql::literal(&Cell::Text(dataset.name.as_str().into())),
            sql::literal(&Cell::Text(former.as_str().into()))
        )
    }))
}

async fn existing_tables(connection: &mut PgConnection) -> Result<HashMap<String, ExistingTable>> {
    let rows: Vec<(String, String, String, bool, bool)> = sqlx::query_as(
        "-- tables.columns
        SELECT c.relname::text, a.attname::text, format_type(a.atttypid, NULL), a.attnotnull, a.atthasdef
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = quote_ident(current_schema())::regnamespace AND c.relkind IN ('r', 'p')
          AND a.attnum > 0 AND NOT a.attisdropped",
    )
    .fetch_all(connection)
    .await?;
    let mut tables: HashMap<String, ExistingTable> = HashMap::new();
    for (table, column, postgres, not_null, has_default) in rows {
        tables.entry(table).or_default().insert(column, Existing { postgres, not_null, has_default });
    }
    Ok(tables)
}

/// The number of columns of each view.
async fn existing_views(connection: &mut PgConnection) -> Result<HashMap<String, i64>> {
    let views: Vec<(String, i64)> = sqlx::query_as(
        "-- tables.views
        SELECT c.relname::text, count(*) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = quote_ident(current_schema())::regnamespace AND c.relkind = 'v' AND a.attnum > 0 GROUP BY 1",
    )
    .fetch_all(connection)
    .await?;
    Ok(views.into_iter().collect())
}

/// The names of what is no table, such as sequences and views, and whether it is an index.
async fn existing_others(connection: &mut PgConnection) -> Result<HashMap<String, bool>> {
    let others: Vec<(String, bool)> = sqlx::query_as(
        "-- tables.others
        SELECT relname::text, relkind = 'i' FROM pg_class
        WHERE relkind NOT IN ('r', 'p') AND relnamespace = quote_ident(current_schema())::regnamespace",
    )
    .fetch_all(connection)
    .await?;
    Ok(others.into_iter().collect())
}

/// The columns of each unique index, in its order.
async fn existing_keys(connection: &mut PgConnection) -> Result<HashMap<String, Vec<String>>> {
    let keys: Vec<(String, Vec<String>)> = sqlx::query_as(
        "-- tables.keys
        SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum)
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE i.indisunique AND c.relnamespace = quote_ident(current_schema())::regnamespace GROUP BY 1",
    )
    .fetch_all(connection)
    .await?;
    Ok(keys.into_iter().collect())
}
