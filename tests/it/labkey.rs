//! Rows to LabKey: what arrives in its lists, what the record says of it, and how it is steered.

use chrono::{DateTime, Utc};
use nvd_support_car::config::Config;
use nvd_support_car::db::labkey::plan;
use nvd_support_car::jobs::{enqueue_sync, schedule};
use serde_json::{Value, json};

use crate::app::{RECORD, TestApp, create_database, data, eventually, problem};
use crate::labkey_server::{CONTAINER, KEY, Kind, LabKeyServer, List, PASSWORD, Permission, USER};
use crate::process::{binary, folder, text};

/// The list of GOTTCHA2 results.
pub const LIST: &str = "gottcha2_results";

/// The columns of the built-in map.
pub fn columns(list: List) -> List {
    let texts = ["SampleId", "RunId", "Rollup", "Taxonomy", "TaxonomyId", "UploadedBy"];
    let list = texts.into_iter().fold(list, |list, name| list.column(name, Kind::Text));
    let numbers = ["LinearLength", "TotalBpMapped", "Abundance", "DoC"];
    let list = numbers.into_iter().fold(list, |list, name| list.column(name, Kind::Number));
    list.column("AnalysisDate", Kind::Time).column("UploadTimestamp", Kind::Time)
}

/// A list that can be merged into.
pub fn merging() -> List {
    columns(List::keyed(LIST, "RecordKey"))
}

/// A list whose key LabKey counts up.
pub fn inserting() -> List {
    columns(List::auto(LIST)).column("RecordKey", Kind::Text).column("DeliveryKey", Kind::Text)
}

/// The settings that lead to a server.
pub fn settings(url: &str) -> Vec<(&str, &str)> {
    vec![
        ("labkey.server_url", url),
        ("labkey.project_path", CONTAINER),
        ("labkey.api_key", KEY),
        ("labkey.settle", "200ms"),
        ("labkey.patience", "3s"),
        ("labkey.pause", "1s"),
    ]
}

/// A server with one list, and a service that delivers to it.
pub async fn lab(list: List, more: &[(&str, &str)]) -> (LabKeyServer, TestApp) {
    let labkey = LabKeyServer::start().await;
    labkey.add(list);
    let mut all = settings(&labkey.url);
    all.retain(|(key, _)| more.iter().all(|(other, _)| other != key));
    all.extend(more);
    let app = TestApp::with(&all).await;
    (labkey, app)
}

/// Delivers what is pending of GOTTCHA2, and answers with the report.
pub async fn sync(app: &TestApp) -> Value {
    let answer = app.request("POST", "/labkey/sync?dataset=gottcha2").send().await.expect("answer");
    let status = answer.status();
    let report: Value = answer.json().await.expect("JSON");
    assert_eq!(status, 200, "{report}");
    report
}

/// Records of one sample.
pub fn records(sample: &str, rows: usize) -> String {
    (0..rows)
        .map(|row| RECORD.replace("S1", sample).replace("\"read_count\":513", &format!("\"read_count\":{row}")) + "\n")
        .collect()
}

/// Checks that LabKey holds that many rows, each of them once.
pub fn holds_once(labkey: &LabKeyServer, rows: usize) {
    let counts = labkey.counts(LIST, "RecordKey");
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(counts.len(), rows);
}

#[test]
fn an_address_with_a_password_is_refused_and_not_printed() {
    for url in ["https://bob:secret@labkey.example.org", "http://secret@labkey.example.org/labkey"] {
        let overrides = settings(url).into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        let error = Config::load(None, [], &overrides.collect::<Vec<_>>()).expect_err("refused").to_string();
        assert!(error.contains("labkey.server_url") && error.contains("labkey.password"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_row_arrives_under_the_lists_names_with_numbers_times_and_nulls() {
    let (labkey, app) = lab(merging(), &[]).await;
    app.store("/ingest-gottcha2?sample_id=SRR12689945&run_id=r1", data("gottcha2/v2.4.3.SRR12689945.full.tsv")).await;
    let report = sync(&app).await;
    let rows = app.count("gottcha2_full").await;
    assert_eq!((&report["uploaded"], &report["remaining"]), (&json!(rows), &json!(0)), "{report}");
    assert_eq!(report["errors"], json!([]));
    let stored = labkey.rows(LIST);
    assert_eq!(stored.len(), usize::try_from(rows).expect("rows"));
    let species = stored.iter().find(|row| row["Rollup"] == "species").expect("species");
    assert_eq!(species["SampleId"], "SRR12689945");
    assert_eq!(species["RunId"], "r1");
    assert_eq!(species["UploadedBy"], "nvd-support-car");
    assert_eq!(
        species["TaxonomyId"],
        app.scalar::<String>("SELECT taxid FROM gottcha2_full WHERE level = 'species'").await
    );
    let mapped: i64 = app.scalar("SELECT total_bp_mapped FROM gottcha2_full WHERE level = 'species'").await;
    let covered: i64 = app.scalar("SELECT covered_sig_len FROM gottcha2_full WHERE level = 'species'").await;
    assert_eq!(species["TotalBpMapped"].as_f64(), Some(mapped as f64));
    assert_eq!(species["LinearLength"].as_f64(), Some(covered as f64));
    assert!((species["DoC"].as_f64().expect("DoC") - mapped as f64 / covered as f64).abs() < 1e-9);
    assert!(species["AnalysisDate"].as_str().expect("date").starts_with(&Utc::now().format("%Y-").to_string()));
    let strain = stored.iter().find(|row| row["Rollup"] == "strain").expect("strain");
    assert!(strain["TaxonomyId"].as_str().expect("text").starts_with("GCF_"), "an accession stays text");
}

#[tokio::test]
async fn values_that_look_like_markup_arrive_as_they_are_in_both_modes() {
    let odd = "#1, \"two\"\\t' \u{3b1} ; {json:x}";
    let written = serde_json::to_string(odd).expect("JSON");
    let record = RECORD.replace("Orthoebolavirus zairense", written.trim_matches('"'));
    for list in [merging(), inserting()] {
        let (labkey, app) = lab(list, &[]).await;
        app.store("/ingest-gottcha2", record.clone()).await;
        app.store("/ingest-gottcha2", record.replace(odd.split(',').next().expect("part"), "two\\nlines")).await;
        assert_eq!(sync(&app).await["uploaded"], 2);
        let names: Vec<Value> = labkey.rows(LIST).iter().map(|row| row["Taxonomy"].clone()).collect();
        assert!(names.contains(&json!(odd)), "{names:?}");
        assert!(names.iter().any(|name| name.as_str().is_some_and(|name| name.contains('\n'))), "{names:?}");
    }
}

#[tokio::test]
async fn small_submissions_share_a_request_and_large_ones_take_several() {
    let (labkey, app) = lab(inserting(), &[("labkey.batch_size", "100")]).await;
    for sample in 0..10 {
        app.store("/ingest-gottcha2", records(&format!("S{sample}"), 10)).await;
    }
    app.store("/ingest-gottcha2", records("large", 250)).await;
    let report = sync(&app).await;
    assert_eq!((&report["uploaded"], &report["datasets"][0]["deliveries"]), (&json!(350), &json!(13)), "{report}");
    let sizes: Vec<usize> = labkey.audits().iter().map(|audit| audit.rows).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 350);
    assert!(sizes.len() <= 5 && sizes.iter().all(|size| *size <= 100), "{sizes:?}");
    holds_once(&labkey, 350);
    labkey.forget();
    assert_eq!(sync(&app).await["uploaded"], 0);
    assert!(labkey.seen().iter().all(|seen| seen.action != "query-insertRows"), "nothing is sent twice");
}

#[tokio::test]
async fn the_record_of_deliveries_agrees_with_labkeys_own_audit_log() {
    let (labkey, app) = lab(inserting(), &[]).await;
    let receipt = app.store("/ingest-gottcha2", records("S1", 3)).await;
    sync(&app).await;
    let listed = app.get("/labkey/deliveries?dataset=gottcha2&state=completed").await;
    let delivery = &listed[0];
    assert_eq!((&delivery["rows"], &delivery["attempts"]), (&json!(3), &json!(1)), "{delivery}");
    assert_eq!(delivery["submission_id"], receipt["submission_id"]);
    assert_eq!(delivery["sample_id"], "S1");
    let audit = labkey.audits().pop().expect("audit");
    assert_eq!(delivery["transaction_id"], audit.id.to_string());
    let key = delivery["delivery_key"].as_str().expect("key");
    assert!(audit.comment.expect("comment").contains(key));
    assert_eq!(labkey.counts(LIST, "DeliveryKey")[&format!("{key}.1")], 3);
    let sent = labkey.seen().into_iter().find(|seen| seen.action == "query-insertRows").expect("insert").json();
    assert_eq!((&sent["skipReselectRows"], &sent["auditBehavior"]), (&json!(true), &json!("SUMMARY")));
    let stats = app.get("/labkey/stats").await;
    assert_eq!((&stats["uploaded_count"], &stats["pending_count"]), (&json!(3), &json!(0)), "{stats}");
    assert!(stats["last_sync_time"].is_string());
    assert_eq!(app.get("/labkey/deliveries?limit=1").await.as_array().expect("page").len(), 1);
}

#[tokio::test]
async fn the_names_of_a_record_in_labkey_never_change() {
    let mut keys = Vec::new();
    for _ in 0..2 {
        let (labkey, app) = lab(merging(), &[]).await;
        let put = app.request("PUT", "/ingest/gottcha2/cluster-7").body(records("S1", 2));
        assert_eq!(put.send().await.expect("answer").status(), 200);
        sync(&app).await;
        keys.push(labkey.counts(LIST, "RecordKey").into_keys().collect::<Vec<_>>());
    }
    assert_eq!(keys[0], keys[1]);
    assert!(keys[0][0].ends_with("-1") && keys[0][1].ends_with("-2"), "{keys:?}");
}

#[tokio::test]
async fn rows_whose_unique_key_was_known_leave_gaps_that_deliveries_step_over() {
    let labkey = LabKeyServer::start().await;
    labkey.add(List::keyed("task_results", "RecordKey").column("Task", Kind::Text).column("Payload", Kind::Text));
    let text = format!(
        "[labkey]\nserver_url = \"{}\"\nproject_path = \"{CONTAINER}\"\nusername = \"{USER}\"\npassword = \"{PASSWORD}\"\nbatch_size = 2\n\
         [[labkey.lists]]\ndataset = \"results\"\nlist = \"task_results\"\ncolumns = {{ Task = \"task_id\", Payload = \"payload\" }}\n",
        labkey.url
    );
    let app = TestApp::configured(&text).await;
    let row = |key: usize| {
        json!({"run_id":"r","task_id":format!("t{key}"),"shard":0,"idempotency_key":key.to_string(),"schema_version":1,"payload":{"n":key}})
            .to_string()
    };
    let rows = |keys: &[usize]| keys.iter().map(|key| row(*key)).collect::<Vec<_>>().join("\n");
    app.store("/ingest", rows(&[1, 3])).await;
    app.store("/ingest", rows(&[1, 2, 3, 4, 5, 6])).await;
    let answer = app.request("POST", "/labkey/sync?dataset=results").send().await.expect("answer");
    let report: Value = answer.json().await.expect("JSON");
    assert_eq!((&report["uploaded"], &report["errors"]), (&json!(6), &json!([])), "{report}");
    let tasks: Vec<String> = labkey.counts("task_results", "Task").into_keys().collect();
    assert_eq!(tasks, ["t1", "t2", "t3", "t4", "t5", "t6"]);
    assert!(labkey.rows("task_results").iter().any(|row| row["Payload"] == "{\"n\": 5}"));
}

#[tokio::test]
async fn a_submission_that_is_removed_here_is_removed_there() {
    for list in [merging(), inserting()] {
        let (labkey, app) = lab(list, &[("labkey.batch_size", "10")]).await;
        app.store("/ingest-gottcha2", records("keep", 5)).await;
        let receipt = app.store("/ingest-gottcha2", records("drop", 25)).await;
        sync(&app).await;
        let path = format!("/submissions/{}", receipt["submission_id"]);
        assert_eq!(app.request("DELETE", &path).send().await.expect("answer").status(), 204);
        let report = sync(&app).await;
        assert_eq!(report["datasets"][0]["removed"], 25, "{report}");
        assert_eq!(labkey.counts(LIST, "SampleId").into_keys().collect::<Vec<_>>(), ["keep"]);
        let listed = app.get("/labkey/deliveries?state=completed").await;
        assert!(listed.as_array().expect("page").iter().any(|one| one["removed_at"].is_string()), "it stays on record");
    }
}

#[tokio::test]
async fn a_submission_that_is_replaced_here_is_replaced_there() {
    for list in [merging(), inserting()] {
        let (labkey, app) = lab(list, &[("labkey.batch_size", "10")]).await;
        let put = async |body: String| {
            let put = app.request("PUT", "/ingest/gottcha2/file?on_conflict=replace").body(body);
            assert_eq!(put.send().await.expect("answer").status(), 200);
        };
        put(records("old", 25)).await;
        sync(&app).await;
        put(records("new", 12)).await;
        let report = sync(&app).await;
        assert_eq!((&report["uploaded"], &report["datasets"][0]["removed"]), (&json!(12), &json!(25)), "{report}");
        assert_eq!(labkey.counts(LIST, "SampleId"), [("new".to_owned(), 12)].into());
        holds_once(&labkey, 12);
    }
}

#[tokio::test]
async fn a_small_submission_is_replaced_in_one_transaction_of_labkey() {
    let changes = |labkey: &LabKeyServer| -> Vec<String> {
        let asked = labkey.seen().into_iter().map(|seen| seen.action);
        asked
            .filter(|action| ["query-saveRows", "query-insertRows", "query-import"].contains(&action.as_str()))
            .collect()
    };
    for list in [merging(), inserting()] {
        let (labkey, app) = lab(list, &[]).await;
        let put = async |body: String| {
            let put = app.request("PUT", "/ingest/gottcha2/file?on_conflict=replace").body(body);
            assert_eq!(put.send().await.expect("answer").status(), 200);
        };
        put(records("old", 25)).await;
        sync(&app).await;
        put(records("new", 12)).await;
        labkey.forget();
        let report = sync(&app).await;
        assert_eq!((&report["uploaded"], &report["datasets"][0]["removed"]), (&json!(12), &json!(25)), "{report}");
        assert_eq!(changes(&labkey), ["query-saveRows"]);
        assert_eq!(labkey.counts(LIST, "SampleId"), [("new".to_owned(), 12)].into());
        holds_once(&labkey, 12);
        assert_eq!(sync(&app).await["datasets"][0]["removed"], 0);
        // A replacement that LabKey refuses takes the usual way.
        put(records("bad", 3).replacen("Orthoebolavirus zairense", &"x".repeat(5000), 1)).await;
        let report = sync(&app).await;
        assert_eq!((&report["uploaded"], &report["failed"]), (&json!(2), &json!(1)), "{report}");
        assert_eq!(labkey.counts(LIST, "SampleId"), [("bad".to_owned(), 2)].into());
        // One whose rows were refused in part does not, once it is certain what LabKey has of it.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        put(records("good", 3)).await;
        labkey.forget();
        let report = sync(&app).await;
        assert_eq!((&report["uploaded"], &report["datasets"][0]["removed"]), (&json!(3), &json!(2)), "{report}");
        assert_eq!(changes(&labkey), ["query-saveRows"]);
        assert_eq!(labkey.counts(LIST, "SampleId"), [("good".to_owned(), 3)].into());
    }
}

#[tokio::test]
async fn rows_that_may_not_be_removed_are_named_and_their_successors_wait() {
    let (labkey, app) = lab(inserting(), &[]).await;
    let put = async |body: String| {
        let put = app.request("PUT", "/ingest/gottcha2/file?on_conflict=replace").body(body);
        assert_eq!(put.send().await.expect("answer").status(), 200);
    };
    put(records("old", 2)).await;
    app.store("/ingest-gottcha2", records("other", 1)).await;
    sync(&app).await;
    labkey.permit(&[Permission::Read, Permission::Insert, Permission::Update]);
    put(records("new", 2)).await;
    app.store("/ingest-gottcha2", records("third", 1)).await;
    let report = sync(&app).await;
    assert!(report["errors"][0].as_str().expect("error").contains("cannot be removed"), "{report}");
    assert_eq!((&report["uploaded"], &report["remaining"]), (&json!(1), &json!(2)), "{report}");
    assert_eq!(labkey.counts(LIST, "SampleId").into_keys().collect::<Vec<_>>(), ["old", "other", "third"]);
    let last_error = async || {
        let status = app.get("/labkey/status").await;
        let lists = status["lists"].as_array().expect("lists");
        lists.iter().find(|list| list["dataset"] == "gottcha2").expect("list")["last_error"].clone()
    };
    assert!(last_error().await.as_str().expect("error").contains("cannot be removed"));
    labkey.permit(&[Permission::Read, Permission::Insert, Permission::Update, Permission::Delete]);
    assert_eq!(sync(&app).await["remaining"], 0);
    assert_eq!(last_error().await, Value::Null);
    assert_eq!(labkey.counts(LIST, "SampleId").into_keys().collect::<Vec<_>>(), ["new", "other", "third"]);
}

#[tokio::test]
async fn a_rehearsal_sends_nothing_and_says_what_labkey_would_refuse() {
    let (labkey, app) = lab(inserting(), &[]).await;
    app.store("/ingest-gottcha2", RECORD.replace("Orthoebolavirus zairense", &"x".repeat(5000))).await;
    let path = "/labkey/sync?dataset=gottcha2&dry_run=true";
    let report: Value = app.request("POST", path).send().await.expect("answer").json().await.expect("JSON");
    assert_eq!((&report["dry_run"], &report["remaining"], &report["uploaded"]), (&json!(true), &json!(1), &json!(0)));
    assert!(report["errors"][0].as_str().expect("error").contains("too long"), "{report}");
    assert!(labkey.rows(LIST).is_empty());
    assert_eq!(app.count("labkey_deliveries").await, 0);
}

#[tokio::test]
async fn without_a_server_everything_else_runs_and_labkeys_routes_say_what_is_missing() {
    let app = TestApp::start().await;
    app.store("/ingest-gottcha2", RECORD).await;
    for (method, path) in [("POST", "/labkey/sync"), ("GET", "/labkey/status"), ("GET", "/labkey/stats")] {
        let problem = problem(app.request(method, path).send().await.expect("answer"), 409).await;
        assert!(problem["detail"].as_str().expect("detail").contains("labkey.server_url"), "{problem}");
    }
    assert_eq!(app.get("/labkey/failures").await, json!([]));
}

#[tokio::test]
async fn every_interval_makes_one_sync_over_all_replicas_and_none_when_nothing_is_pending() {
    let (_labkey, app) = lab(merging(), &[("labkey.slots", "0"), ("export.export_interval_hours", "0")]).await;
    let run = async |now: &str| {
        let now: DateTime<Utc> = now.parse().expect("time");
        let replica = schedule::Schedules::new(schedule::all(&app.app).expect("schedules"));
        replica.run_due(&app.app, now).await;
    };
    let jobs = "SELECT count(*) FROM jobs WHERE kind = 'labkey_sync'";
    run("2026-03-01T12:01:00Z").await;
    run("2026-03-01T12:15:00Z").await;
    assert_eq!(app.scalar::<i64>(jobs).await, 0, "nothing is pending");
    app.store("/ingest-gottcha2", RECORD).await;
    futures_util::future::join_all((0..4).map(|_| run("2026-03-01T12:30:00Z"))).await;
    assert_eq!(app.scalar::<i64>(jobs).await, 1);
    run("2026-03-01T12:45:00Z").await;
    assert_eq!(app.scalar::<i64>(jobs).await, 1, "the one that waits will deliver this too");
}

#[tokio::test]
async fn what_is_planned_already_keeps_to_a_batch_size_and_a_moment_that_are_set_later() {
    for (key, value, rows) in [("labkey.batch_size", "10", 25), ("labkey.since", "2100-01-01T00:00:00Z", 0)] {
        let (labkey, app) = lab(inserting(), &[(key, value)]).await;
        app.store("/ingest-gottcha2", records("S1", 25)).await;
        let dataset = app.app.datasets.get("gottcha2").expect("dataset");
        plan(&app.pool, dataset, 1000, None).await.expect("plan");
        let report = sync(&app).await;
        assert_eq!((&report["uploaded"], &report["remaining"]), (&json!(rows), &json!(0)), "{report}");
        assert!(labkey.counts(LIST, "DeliveryKey").values().all(|rows| *rows <= 10));
        holds_once(&labkey, rows);
    }
}

#[tokio::test]
async fn a_sync_of_a_dataset_that_this_replica_does_not_know_waits_for_one_that_does_for_some_hours() {
    let (_labkey, app) = lab(merging(), &[]).await;
    let mut connection = app.pool.acquire().await.expect("connection");
    enqueue_sync(&mut connection, "kraken").await.expect("job");
    let job = async || app.scalar::<String>("SELECT concat_ws(': ', state, error) FROM jobs").await;
    let waits = "pending: there is no LabKey list of the dataset `kraken`";
    eventually("the job is given back", async || job().await.starts_with(waits)).await;
    let problem = "SELECT problem FROM labkey_datasets WHERE dataset = 'kraken'";
    assert!(app.scalar::<String>(problem).await.contains("no LabKey list"));
    let old = "UPDATE jobs SET created_at = now() - interval '1 day', run_at = now()";
    sqlx::query(old).execute(&app.pool).await.expect("update");
    eventually("the job has failed", async || job().await.starts_with("failed")).await;
}

#[tokio::test]
async fn rows_from_before_the_configured_moment_are_left_out() {
    let (labkey, app) = lab(merging(), &[("labkey.since", "2027-01-01T00:00:00Z")]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    let report = sync(&app).await;
    assert_eq!((&report["uploaded"], &report["remaining"]), (&json!(0), &json!(0)), "{report}");
    assert!(labkey.rows(LIST).is_empty());
}

#[tokio::test]
async fn every_row_has_its_delivery_beside_it_in_a_view() {
    let (_labkey, app) = lab(inserting(), &[("labkey.batch_size", "2")]).await;
    app.store("/ingest-gottcha2", records("S1", 5)).await;
    let states = "SELECT string_agg(DISTINCT labkey_upload_status, ',') FROM gottcha2_full_labkey";
    assert_eq!(app.scalar::<String>(states).await, "pending");
    sync(&app).await;
    assert_eq!(app.scalar::<String>(states).await, "completed");
    let filled = "SELECT count(*) FROM gottcha2_full_labkey WHERE labkey_upload_timestamp IS NOT NULL AND labkey_transaction_id IS NOT NULL AND read_count IS NOT NULL";
    assert_eq!(app.scalar::<i64>(filled).await, 5);
    let export =
        app.export(json!({"table": "gottcha2", "format": "csv", "compression": "none", "labkey_columns": true})).await;
    let text = String::from_utf8(app.download(&export).await).expect("UTF-8");
    let header = text.lines().next().expect("header");
    assert!(header.ends_with("labkey_upload_status,labkey_upload_timestamp,labkey_transaction_id"), "{header}");
    assert_eq!(text.matches(",completed,").count(), 5, "{text}");
    let plain = app.export(json!({"table": "gottcha2", "format": "csv", "compression": "none"})).await;
    assert!(!String::from_utf8(app.download(&plain).await).expect("UTF-8").contains("labkey"));
}

#[tokio::test]
async fn a_sync_that_begins_as_soon_as_it_is_made_is_the_one_that_was_asked_for() {
    let app = TestApp::with(&[("export.slots", "0")]).await;
    // A worker that takes the first job before anybody can look for it.
    let worker = "CREATE FUNCTION take() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NOT EXISTS (SELECT FROM jobs) THEN
                NEW.state := 'running'; NEW.attempt := 1; NEW.lease_until := now() + interval '1 minute';
            END IF;
            RETURN NEW;
        END $$; CREATE TRIGGER take BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION take()";
    sqlx::raw_sql(worker).execute(&app.pool).await.expect("worker");
    let mut connection = app.pool.acquire().await.expect("connection");
    let (job, is_new) = enqueue_sync(&mut connection, "gottcha2").await.expect("sync");
    assert_eq!((job.state.as_str(), job.attempt, is_new), ("running", 1, true));
    assert_eq!(app.scalar::<i64>("SELECT count(*) FROM jobs").await, 1);
    let (again, is_new) = enqueue_sync(&mut connection, "gottcha2").await.expect("sync");
    assert_eq!((again.id, is_new), (job.id, false));
}

#[tokio::test]
async fn the_command_line_checks_the_lists_and_delivers() {
    let labkey = LabKeyServer::start().await;
    labkey.add(merging());
    let (_, database_url) = create_database().await;
    let folder = folder();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "[[labkey.lists]]\ndataset = \"stast\"\ndeliver = false\n[[labkey.lists]]\ndataset = \"nvd_blast\"\ndeliver = false\n")
        .expect("config");
    let run = async |command: &'static str| {
        let mut binary = binary(folder.path());
        binary.arg("--config").arg(&file).arg("labkey").args(command.split(' ')).env("DATABASE_URL", &database_url);
        binary.env("LABKEY_SERVER_URL", &labkey.url).env("LABKEY_PROJECT_PATH", CONTAINER).env("LABKEY_API_KEY", KEY);
        tokio::task::spawn_blocking(move || binary.output().expect("run")).await.expect("task")
    };
    let checked = run("check").await;
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let said = text(&checked.stdout);
    assert!(
        said.contains(&format!("as {USER}")) && said.contains("gottcha2 -> lists.gottcha2_results: merge"),
        "{said}"
    );
    let pool = sqlx::PgPool::connect(&database_url).await.expect("pool");
    let submission = "INSERT INTO submissions (id, dataset, key, fingerprint, sha256, rows, duplicates, bytes, client) VALUES (1, 'gottcha2', 'k', '', '', 1, 0, 1, 'test')";
    sqlx::query(submission).execute(&pool).await.expect("submission");
    let row = "INSERT INTO gottcha2_full (submission_id, ordinal, sample_id, level, name, taxid, read_count, total_bp_mapped) VALUES (1, 0, 'S1', 'species', 'n', '1', 1, 1)";
    sqlx::query(row).execute(&pool).await.expect("row");
    let synced = run("sync").await;
    assert!(synced.status.success(), "{}", text(&synced.stderr));
    assert!(
        text(&synced.stdout).contains("gottcha2: 1 rows delivered, 0 refused, 0 still pending"),
        "{}",
        text(&synced.stdout)
    );
    holds_once(&labkey, 1);
    labkey.change(LIST, |list| list.rename("DoC", "Depth"));
    for command in ["check", "sync"] {
        let refused = run(command).await;
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains("`DoC`"), "{}", text(&refused.stderr));
    }
    labkey.change(LIST, |list| list.rename("Depth", "DoC"));
    labkey.add(columns(List::keyed("elsewhere", "RecordKey")));
    let lists = std::fs::read_to_string(&file).expect("config");
    std::fs::write(&file, lists + "[[labkey.lists]]\ndataset = \"gottcha2\"\nlist = \"elsewhere\"\n").expect("config");
    for command in ["check", "sync"] {
        let refused = run(command).await;
        assert_eq!(refused.status.code(), Some(1));
        let said = text(&refused.stderr);
        for part in ["lists.gottcha2_results in", "lists.elsewhere in", "labkey restart --dataset gottcha2"] {
            assert!(said.contains(part), "{said}");
        }
    }
    let restarted = run("restart --dataset gottcha2").await;
    assert!(restarted.status.success(), "{}", text(&restarted.stderr));
    let said = text(&restarted.stdout);
    assert!(said.contains("1 deliveries to lists.gottcha2_results in") && said.contains("left there"), "{said}");
    assert!(run("sync").await.status.success());
    assert_eq!((labkey.rows("elsewhere").len(), labkey.rows(LIST).len()), (1, 1));
    let broken = "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no report today'; END $$;
        CREATE TRIGGER broken BEFORE UPDATE ON jobs FOR EACH ROW WHEN (NEW.report IS NOT NULL) EXECUTE FUNCTION broken()";
    sqlx::raw_sql(broken).execute(&pool).await.expect("trigger");
    let failed = run("sync").await;
    assert_eq!(failed.status.code(), Some(1));
    let said = text(&failed.stderr);
    assert!(said.contains("gottcha2: failed\n  the database did not answer as it should"), "{said}");
}
