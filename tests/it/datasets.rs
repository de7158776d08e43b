//! Datasets: the built-in ones, an operator's own, and tables that follow their definitions.

use std::time::Duration;

use nvd_support_car::app::App;
use nvd_support_car::config::Config;
use nvd_support_car::dataset::{Cell, Datasets, sql};
use nvd_support_car::db::tables;
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::app::{TestApp, create_database, eventually};

const DEFINITION: &str = r#"
name = "kraken"
table = "kraken_report"
title = "Kraken2 report"
description = "One row per taxon."
[[columns]]
name = "sample_id"
kind = "text"
required = true
description = "The sample."
[[columns]]
name = "percent"
kind = "float"
min = 0
max = 100
description = "Share of reads."
"#;

fn folder(definition: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("kraken.toml"), definition).expect("write");
    folder
}

#[tokio::test]
async fn a_dataset_in_the_operators_folder_is_ingested_and_documented() {
    let folder = folder(DEFINITION);
    let app = TestApp::with(&[("datasets.dir", folder.path().to_str().expect("path"))]).await;
    let receipt = app.store("/ingest/kraken?sample_id=S", "sample_id\tpercent\nA\t12.5\nB\t\n").await;
    assert_eq!(receipt["rows"], 2);
    assert_eq!(app.scalar::<f64>("SELECT percent FROM kraken_report WHERE sample_id = 'A'").await, 12.5);
    assert_eq!(app.get("/datasets/kraken").await["json_schema"]["properties"]["percent"]["maximum"], 100.0);
    let api = app.get("/openapi.json").await;
    assert!(api["components"]["schemas"]["KrakenRecord"].is_object());
}

#[tokio::test]
async fn a_table_grows_by_new_columns_and_refuses_other_types() {
    let (_, url) = create_database().await;
    let app = |definition: &str| {
        let folder = folder(definition);
        let overrides = [("datasets.dir".to_owned(), folder.path().display().to_string())];
        App::new(Config::load(None, [], &overrides).expect("configuration"), &url).expect("app")
    };
    app(DEFINITION).prepare().await.expect("first");
    let grown = format!(
        "{DEFINITION}[[columns]]\nname = \"reads\"\nkind = \"int\"\nrequired = true\ndescription = \"Reads.\"\n"
    );
    let planning = app(&grown);
    let mut connection = planning.pool.acquire().await.expect("connection");
    let plan = tables::plan(&mut connection, &planning.datasets).await.expect("plan");
    assert_eq!(plan[0], "ALTER TABLE \"kraken_report\" ADD COLUMN \"reads\" bigint");
    assert!(plan[1].starts_with("CREATE OR REPLACE VIEW \"kraken_report_labkey\""), "{plan:?}");
    planning.prepare().await.expect("second");
    assert!(tables::plan(&mut connection, &planning.datasets).await.expect("plan").is_empty());
    let changed = DEFINITION.replace("\"float\"\nmin = 0\nmax = 100", "\"text\"");
    let error = app(&changed).prepare().await.expect_err("incompatible").to_string();
    assert!(error.contains("`percent` of type double precision") && error.contains("text"), "{error}");
}

#[tokio::test]
async fn another_unique_key_than_the_table_keeps_is_refused() {
    let (_, url) = create_database().await;
    let prepare = async |definition: &str| {
        let folder = folder(definition);
        let overrides = [("datasets.dir".to_owned(), folder.path().display().to_string())];
        App::new(Config::load(None, [], &overrides).expect("configuration"), &url).expect("app").prepare().await
    };
    let unique = |columns: &str| DEFINITION.replace("title =", &format!("unique = [{columns}]\ntitle ="));
    prepare(&unique("\"sample_id\"")).await.expect("first");
    for other in [unique("\"sample_id\", \"percent\""), DEFINITION.to_owned()] {
        let error = prepare(&other).await.expect_err("refused").to_string();
        assert!(error.contains("kraken_report keeps rows unique by (sample_id)"), "{error}");
    }
    prepare(&unique("\"sample_id\"")).await.expect("as it was");
}

#[tokio::test]
async fn a_database_that_cannot_keep_every_letter_is_refused_at_the_start() {
    let (name, url) = create_database().await;
    let latin = format!("{name}_latin");
    let create = format!("CREATE DATABASE {latin} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'");
    let server = PgPool::connect(&url).await.expect("connect");
    sqlx::query(AssertSqlSafe(create)).execute(&server).await.expect("create");
    let config = Config::load(None, [], &[]).expect("configuration");
    let app = App::new(config, &url.replace(&name, &latin)).expect("app");
    let error = app.prepare().await.expect_err("refused").to_string();
    assert!(error.contains(&latin) && error.contains("LATIN1") && error.contains("UTF8"), "{error}");
}

#[tokio::test]
async fn another_name_of_a_table_is_refused_while_rows_are_in_the_former() {
    let folder = folder(DEFINITION);
    let app = TestApp::with(&[("datasets.dir", folder.path().to_str().expect("path"))]).await;
    let prepare = async || {
        let overrides = [("datasets.dir".to_owned(), folder.path().display().to_string())];
        let config = Config::load(None, [], &overrides).expect("configuration");
        App::new(config, &app.database_url()).expect("app").prepare().await
    };
    let rename = |from: &str, to: &str| {
        let path = folder.path().join("kraken.toml");
        std::fs::write(path, DEFINITION.replace(from, to)).expect("write");
    };
    rename("kraken_report", "kraken_first");
    prepare().await.expect("there are no rows yet");
    rename("kraken_report", "kraken_report");
    app.store("/ingest/kraken?sample_id=S", "sample_id\tpercent\nA\t12.5\n").await;
    rename("kraken_report", "kraken_new");
    let error = prepare().await.expect_err("refused").to_string();
    assert!(error.contains("dataset kraken has rows of 1 submissions in another table than kraken_new"), "{error}");
    assert!(error.contains("kraken_first, kraken_report"), "{error}");
    sqlx::query("ALTER TABLE kraken_report RENAME TO kraken_new").execute(&app.pool).await.expect("rename");
    prepare().await.expect("its rows are there");
}

#[tokio::test]
async fn a_table_called_like_a_temporary_one_keeps_its_rows() {
    let definition =
        DEFINITION.replace("kraken_report", "incoming").replace("title =", "unique = [\"sample_id\"]\ntitle =");
    let folder = folder(&definition);
    let app = TestApp::with(&[("datasets.dir", folder.path().to_str().expect("path"))]).await;
    let receipt = app.store("/ingest/kraken", "sample_id\tpercent\nA\t12.5\nB\t\n").await;
    assert_eq!(receipt["rows"], 2);
    assert_eq!(app.count("incoming").await, 2);
}

#[tokio::test]
async fn tables_of_the_service_are_taken_by_no_dataset() {
    let app = TestApp::start().await;
    let tables = "SELECT string_agg(tablename, ' ') FROM pg_tables WHERE schemaname = current_schema()";
    let tables = app.scalar::<String>(tables).await;
    for table in tables.split(' ').filter(|table| app.app.datasets.iter().all(|dataset| dataset.table != *table)) {
        let folder = folder(&DEFINITION.replace("kraken_report", table));
        let mistakes = Datasets::load(Some(folder.path())).expect_err(table);
        assert!(mistakes[0].to_string().contains(&format!("table `{table}`")), "{mistakes:?}");
    }
}

#[tokio::test]
async fn a_definition_that_waits_for_an_export_lets_uploads_pass() {
    let folders = [
        folder(DEFINITION),
        folder(&format!("{DEFINITION}[[columns]]\nname = \"reads\"\nkind = \"int\"\ndescription = \"Reads.\"\n")),
    ];
    let [old, new] = folders.each_ref().map(|folder| folder.path().to_str().expect("path"));
    let app = TestApp::with(&[("datasets.dir", old)]).await;
    let overrides = [("datasets.dir".to_owned(), new.to_owned())];
    let config = Config::load(None, [], &overrides).expect("configuration");
    let grown = App::new(config, &app.database_url()).expect("app");
    let mut reading = app.pool.begin().await.expect("transaction");
    sqlx::query("SELECT count(*) FROM kraken_report").execute(&mut *reading).await.expect("an export");
    let waits = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
        WHERE NOT granted AND datname = current_database()";
    let preparing = grown.clone();
    let preparing = tokio::spawn(async move { preparing.prepare().await });
    eventually("the definition waits", async || app.scalar::<i64>(waits).await > 0).await;
    let upload = app.store("/ingest/kraken?sample_id=S", "sample_id\tpercent\nA\t12.5\n");
    tokio::time::timeout(Duration::from_secs(8), upload).await.expect("an upload");
    let error = preparing.await.expect("task").expect_err("in use");
    assert!(error.is_retryable() && error.to_string().contains("in use"), "{error}");
    reading.rollback().await.expect("rollback");
    grown.prepare().await.expect("free");
}

#[tokio::test]
async fn two_replicas_may_start_at_once() {
    let folder = folder(DEFINITION);
    let (_, url) = create_database().await;
    let start = || async {
        let overrides = [("datasets.dir".to_owned(), folder.path().display().to_string())];
        App::new(Config::load(None, [], &overrides).expect("configuration"), &url).expect("app").prepare().await
    };
    let (one, two, three) = tokio::join!(start(), start(), start());
    one.and(two).and(three).expect("all start");
}

#[tokio::test]
async fn a_text_stays_that_text_in_sql_whatever_backslashes_mean_there() {
    let app = TestApp::start().await;
    let mut connection = app.pool.acquire().await.expect("connection");
    for setting in ["on", "off"] {
        let set = format!("SET standard_conforming_strings = {setting}");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut *connection).await.expect("set");
        for text in ["C:\\new", "\\' OR true) --", "it's", "\\\\'", "\\"] {
            let select = format!("SELECT {}", sql::literal(&Cell::Text(text.into())));
            let found = sqlx::raw_sql(AssertSqlSafe(select)).fetch_one(&mut *connection).await.expect("text");
            assert_eq!(found.get::<String, _>(0), text, "{setting}");
        }
    }
}

#[tokio::test]
async fn fewer_connections_than_are_configured_are_named_at_the_start() {
    let app = TestApp::start().await;
    let limit = async |connections: i32| {
        let name: String = app.scalar("SELECT quote_ident(current_database())").await;
        let sql = format!("ALTER DATABASE {name} CONNECTION LIMIT {connections}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&app.pool).await.expect("limit");
        app.app.prepare().await
    };
    let refused = limit(7).await.expect_err("refused").to_string();
    assert!(refused.contains("have 7 connections") && refused.contains("database.max_connections is 8"), "{refused}");
    limit(8).await.expect("enough");
}

#[tokio::test]
async fn a_schema_may_have_any_name() {
    let (_, url) = create_database().await;
    let pool = PgPool::connect(&url).await.expect("pool");
    let sql = "CREATE SCHEMA \"NVD car\"; ALTER ROLE CURRENT_USER IN DATABASE {} SET search_path = \"NVD car\"";
    let name: String =
        sqlx::query_scalar("SELECT quote_ident(current_database())").fetch_one(&pool).await.expect("name");
    sqlx::raw_sql(AssertSqlSafe(sql.replace("{}", &name))).execute(&pool).await.expect("schema");
    pool.close().await;
    for _ in 0..2 {
        let app = App::new(Config::load(None, [], &[]).expect("configuration"), &url).expect("app");
        app.prepare().await.expect("tables in that schema");
        app.pool.close().await;
    }
}

#[tokio::test]
async fn another_name_of_a_dataset_over_its_table_is_refused_once_there_are_rows() {
    let first = folder(DEFINITION);
    let app = TestApp::with(&[("datasets.dir", first.path().to_str().expect("path"))]).await;
    let second = folder(&DEFINITION.replace("name = \"kraken\"", "name = \"kraken2\""));
    let overrides = [("datasets.dir".to_owned(), second.path().display().to_string())];
    let config = Config::load(None, [], &overrides).expect("configuration");
    let start = async || App::new(config.clone(), &app.database_url()).expect("app").prepare().await;
    start().await.expect("a table without rows");
    app.store("/ingest/kraken", "sample_id\tpercent\nS\t12.5\n").await;
    let refused = start().await.expect_err("refused").to_string();
    assert!(refused.contains("stored for dataset `kraken`") && refused.contains("UPDATE submissions"), "{refused}");
    sqlx::query("UPDATE submissions SET dataset = 'kraken2'").execute(&app.pool).await.expect("renamed");
    start().await.expect("the name of what is stored");
}

#[test]
fn every_mistake_of_every_file_is_named() {
    let folder = folder(&DEFINITION.replace("\"float\"", "\"double\""));
    std::fs::write(folder.path().join("other.toml"), DEFINITION.replace("kraken_report", "gottcha2_full"))
        .expect("write");
    let mistakes = Datasets::load(Some(folder.path())).expect_err("mistakes");
    let text = mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(text.contains("kraken.toml") && text.contains("double"), "{text}");
    assert!(text.contains("other.toml: table `gottcha2_full` is already used by gottcha2.toml"), "{text}");
}

#[test]
fn a_pipe_among_the_definitions_is_a_mistake_and_not_waited_for() {
    let folder = folder(DEFINITION);
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("pipe.toml")).status().expect("mkfifo");
    assert!(made.success());
    let mistakes = Datasets::load(Some(folder.path())).expect_err("a mistake");
    assert!(mistakes[0].to_string().contains("pipe.toml: is no file"), "{}", mistakes[0]);
}

#[test]
fn what_postgresql_or_openapi_could_not_tell_apart_or_hold_is_a_mistake() {
    let columns = |count: usize| {
        let column = |index| format!("[[columns]]\nname = \"c{index}\"\nkind = \"int\"\ndescription = \"x\"\n");
        (0..count).map(column).collect::<String>()
    };
    let names = (0..33).map(|index| format!("\"c{index}\"")).collect::<Vec<_>>().join(", ");
    let head = |name: &str, table: &str| {
        format!("name = \"{name}\"\ntable = \"{table}\"\ntitle = \"x\"\ndescription = \"x\"\n")
    };
    for (text, reason) in [
        (head("gottcha_2", "t") + &columns(1), "name in OpenAPI `Gottcha2Record` is already used by gottcha2.toml"),
        (head("d", "submissions_pkey") + &columns(1), "_pkey"),
        (head("d", "results_unique") + &columns(1), "_unique"),
        (head("d", "t") + "unique = [\"c0\", \"c0\"]\n" + &columns(1), "names column `c0` 2 times"),
        (
            format!("{}{}[[indexes]]\nmethod = \"bloom\"\ncolumns = [{names}]\n", head("d", "t"), columns(33)),
            "more than 6 columns have a bloom index",
        ),
        (
            head("d", "t")
                + &columns(1).replace("int", "text")
                + "[[indexes]]\nmethod = \"minmax\"\ncolumns = [\"c0\"]\n",
            "column `c0` is text",
        ),
        (head("d", "t") + &columns(1594), "more than 1593 columns"),
        (format!("{}unique = [{names}]\n{}", head("d", "t"), columns(33)), "more than 32 columns"),
        (
            format!("{}{}[[indexes]]\nmethod = \"bloom\"\ncolumns = [{names}]\n", head("d", "t"), columns(33)),
            "more than 32 columns",
        ),
    ] {
        let folder = folder(&text);
        let mistakes = Datasets::load(Some(folder.path())).expect_err("a mistake");
        let found = mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(found.contains(reason), "{found}");
    }
}

#[tokio::test]
async fn a_table_that_cannot_follow_its_definition_is_named_at_the_start() {
    let (_, url) = create_database().await;
    let start = async |definition: &str| {
        let folder = folder(definition);
        let overrides = [("datasets.dir".to_owned(), folder.path().display().to_string())];
        App::new(Config::load(None, [], &overrides).expect("configuration"), &url).expect("app").prepare().await
    };
    start(DEFINITION).await.expect("a start");
    let twins = "INSERT INTO kraken_report (submission_id, ordinal, sample_id) VALUES (0, 1, 'S'), (0, 2, 'S')";
    let pool = PgPool::connect(&url).await.expect("pool");
    sqlx::query(twins).execute(&pool).await.expect("rows");
    let unique = DEFINITION.replacen("[[columns]]", "unique = [\"sample_id\"]\n[[columns]]", 1);
    let error = start(&unique).await.expect_err("twins").to_string();
    assert!(error.contains("kraken_report") && error.contains("unique index"), "{error}");
    let sequence = DEFINITION.replace("kraken_report", "submissions_id_seq");
    let error = start(&sequence).await.expect_err("a sequence");
    assert!(error.report().contains("index, a sequence or a view"), "{}", error.report());
}

#[tokio::test]
async fn the_list_names_all_datasets_and_their_columns() {
    let app = TestApp::start().await;
    let list = app.get("/datasets").await;
    let names: Vec<&str> = list.as_array().expect("list").iter().filter_map(|one| one["name"].as_str()).collect();
    assert_eq!(names, ["gottcha2", "nvd_blast", "results", "stast"]);
    let detail = app.get("/datasets/gottcha2").await;
    assert_eq!(detail["table"], "gottcha2_full");
    assert!(detail["columns"].as_array().expect("columns").len() > 45);
}

#[test]
fn a_title_of_several_lines_is_refused_since_it_stands_in_comments_of_sql() {
    for title in ["Kraken2\\nDROP TABLE x; --", "a\\rb", "a\\u0000b"] {
        let folder = folder(&DEFINITION.replace("Kraken2 report", title));
        let mistakes = Datasets::load(Some(folder.path())).expect_err("refused");
        assert!(mistakes.len() == 1 && mistakes[0].reason.contains("title"), "{title}: {mistakes:?}");
    }
}
