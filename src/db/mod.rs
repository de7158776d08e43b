//! Where rows live: the connection pool, migrations, dataset tables, submissions, jobs, the catalogue of exports,
//! deliveries to LabKey, and the embedded PostgreSQL.

pub mod artifacts;
pub mod buffers;
pub mod copy;
pub mod embedded;
pub mod export_jobs;
pub mod exports;
pub mod extract_runs;
pub mod extracts;
pub mod group;
pub mod jobs;
pub mod keys;
pub mod labkey;
pub mod lake;
pub mod schedules;
mod sockets;
pub mod submissions;
pub mod tables;

use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool, Postgres, Row, Transaction};

use crate::config::DatabaseConfig;
use crate::error::{Error, Result};

/// The service's own tables.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// What options cannot say: only PostgreSQL 17 and later know that setting.
const NO_TRANSACTION_TIMEOUT: &str = "-- tables.no_transaction_timeout
    SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout'";

/// A pool of connections to the database at `url`. It connects when first used.
///
/// # Errors
/// A URL that is none.
pub fn pool(url: &str, config: &DatabaseConfig) -> Result<PgPool> {
    let options: PgConnectOptions = url.parse().map_err(|_| {
        Error::Environment("DATABASE_URL is not a PostgreSQL URL such as postgres://user:password@host/db".into())
    })?;
    let options = options.application_name("nvd-support-car").options([
        ("TimeZone", "UTC"),
        // What a role or a database sets for others must not break off a slow client's upload or a long export.
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("idle_session_timeout", "0"),
        ("default_transaction_isolation", "read committed"),
        // PostgreSQL notices within a minute that a machine of ours has vanished, and lets go of its locks.
        ("tcp_keepalives_idle", "30"),
        ("tcp_keepalives_interval", "10"),
        ("tcp_keepalives_count", "3"),
    ]);
    let port = options.get_port();
    Ok(PgPoolOptions::new()
        .max_connections(config.max_connections)
        .acquire_timeout(config.acquire_timeout)
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(is_in_step(connection)))
        .after_connect(move |connection, _| {
            if let Err(error) = sockets::tune(port) {
                tracing::warn!(%error, "uploads take 40 ms longer than they need to, and a database that vanishes is waited for");
            }
            Box::pin(async { connection.execute(NO_TRANSACTION_TIMEOUT).await.map(drop) })
        })
        .connect_lazy_with(options))
}

/// Whether a connection answers what it is asked, outside of any transaction. sqlx 0.9.0 knows neither of one that is an
/// answer behind after a COPY that was broken off, nor of a transaction whose BEGIN was (decision 18).
async fn is_in_step(connection: &mut PgConnection) -> sqlx::Result<bool> {
    static QUESTIONS: AtomicI64 = AtomicI64::new(0);
    let question = QUESTIONS.fetch_add(1, Ordering::Relaxed);
    // Within a transaction its own time is an earlier one. Not prepared: a prepared statement has several times.
    let text = format!("SELECT {question}::bigint WHERE transaction_timestamp() = statement_timestamp()");
    let answer = sqlx::raw_sql(AssertSqlSafe(text)).fetch_optional(connection).await?;
    Ok(answer.map(|row| row.try_get::<i64, _>(0)).transpose()? == Some(question))
}

/// Begins a transaction on a connection that lies idle, where there is one. sqlx's own `try_begin` asks it nothing.
pub async fn try_begin(pool: &PgPool) -> Option<Transaction<'static, Postgres>> {
    let mut connection = pool.try_acquire()?;
    if matches!(is_in_step(&mut connection).await, Ok(true)) {
        return Transaction::begin(connection, None).await.ok();
    }
    connection.close_on_drop();
    None
}

/// The place of the row with the id `cursor`, a parameter, among those of `table` by `(created_at, id)`, as SQL. Such rows are
/// ordered by the clock of the database, for that of the replica that made their ids may be wrong; where the row is gone, its
/// id of version 7 tells the time.
fn place_of(table: &str, cursor: &str) -> String {
    let time = format!("to_timestamp(('x' || left(replace({cursor}::text, '-', ''), 12))::bit(48)::bigint / 1000.0)");
    format!("(coalesce((SELECT created_at FROM {table} WHERE id = {cursor}), {time}), {cursor})")
}

/// Brings the service's own tables up to date.
///
/// # Errors
/// A database out of reach, one that a newer version of the service has migrated, or that cannot be used as it is.
pub async fn migrate(pool: &PgPool) -> Result<()> {
    check_server(pool).await?;
    let mut connection = pool.acquire().await?;
    // It keeps sqlx's lock on migrations where one fails.
    connection.close_on_drop();
    MIGRATIONS.run_direct(None, &mut *connection, false).await?;
    Ok(())
}

/// Refuses a database that cannot keep every letter, and one that gives fewer connections than are configured.
async fn check_server(pool: &PgPool) -> Result<()> {
    let sql = "-- tables.encoding\nSELECT current_database()::text, current_setting('server_encoding')";
    let (name, encoding): (String, String) = sqlx::query_as(sql).fetch_one(pool).await?;
    if encoding != "UTF8" {
        let reason =
            format!("database {name} is encoded in {encoding}, and must be in UTF8, so that it takes every text");
        return Err(Error::Environment(reason));
    }
    let limit = "-- tables.connections
        SELECT least(nullif(rolconnlimit, -1), nullif(datconnlimit, -1),
            current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int)
        FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()";
    let limit: i32 = sqlx::query_scalar(limit).fetch_one(pool).await?;
    let wanted = pool.options().get_max_connections();
    if limit.unsigned_abs() < wanted {
        // sqlx would try for new ones until its time is over, beside others that have become free.
        return Err(Error::Environment(format!(
            "PostgreSQL lets the service have {limit} connections to database {name}, and database.max_connections is {wanted}: \
             set it to less, for each replica, or raise the limit of the role, the database or the server"
        )));
    }
    Ok(())
}

/// Runs one statement that the service has put together from checked identifiers; with [`copy`] and [`copy_out`] the only
/// place for such SQL.
///
/// # Errors
/// What PostgreSQL says.
pub async fn execute_generated(connection: &mut PgConnection, statement: String) -> Result<u64> {
    Ok(sqlx::query(AssertSqlSafe(statement)).execute(connection).await?.rows_affected())
}

/// Begins a COPY that the service has put together from checked identifiers and literals.
///
/// # Errors
/// What PostgreSQL says.
pub async fn copy_out<'c>(
    connection: &'c mut PgConnection,
    statement: String,
) -> Result<BoxStream<'c, sqlx::Result<Bytes>>> {
    Ok(connection.copy_out_raw(&statement).await?)
}

/// Pages of a table, as of now.
///
/// # Errors
/// What PostgreSQL says.
pub async fn pages(connection: &mut PgConnection, table: &str) -> Result<i64> {
    let pages = sqlx::query_scalar(
        "-- tables.pages\nSELECT pg_relation_size(quote_ident($1)::regclass) / current_setting('block_size')::bigint",
    );
    Ok(pages.bind(table).fetch_one(connection).await?)
}

/// What PostgreSQL's statistics guess of the values of a column.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Guess {
    /// The column.
    pub name: String,
    /// Whether hardly any row fills it.
    pub is_sparse: bool,
    /// Whether every row fills it, as far as PostgreSQL has looked.
    pub is_full: bool,
    /// Whether it has too many values for a dictionary: more than a tenth of the rows, or than [`MANY_VALUES`].
    pub is_diverse: bool,
}

/// Distinct values of which hardly any repeats within the rows that are encoded together.
const MANY_VALUES: f32 = 65_536.0;

/// What is guessed of the columns of a table; nothing of one that was never analyzed.
///
/// # Errors
/// What PostgreSQL says.
pub async fn guesses(connection: &mut PgConnection, table: &str) -> Result<Vec<Guess>> {
    // The number of values is written as a share, with a minus, where it is more than a tenth of the rows.
    let columns = sqlx::query_as(
        "-- tables.guesses
        SELECT attname::text AS name, null_frac > 0.99 AS is_sparse, null_frac = 0 AS is_full,
            n_distinct < 0 OR n_distinct > $2 AS is_diverse
        FROM pg_stats WHERE schemaname = current_schema() AND tablename = $1",
    );
    Ok(columns.bind(table).bind(MANY_VALUES).fetch_all(connection).await?)
}
