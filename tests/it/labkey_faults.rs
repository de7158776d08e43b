//! What goes wrong between the service and LabKey, and what becomes of the rows then: once, or named.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nvd_support_car::db::labkey::{self, State};
use nvd_support_car::jobs::sync::restart;
use nvd_support_car::labkey::Labkey;
use serde_json::{Value, json};

use crate::app::{RECORD, TestApp, eventually};
use crate::labkey::{LIST, holds_once, inserting, lab, merging, records, sync};
use crate::labkey_server::{Fault, Kind, LabKeyServer, List, Permission};

/// Stores a file, in place of the one that was stored before.
async fn put(app: &TestApp, body: String) {
    let put = app.request("PUT", "/ingest/gottcha2/file?on_conflict=replace").body(body);
    assert_eq!(put.send().await.expect("answer").status(), 200);
}

/// Removes the submission of a receipt.
async fn remove(app: &TestApp, receipt: &Value) {
    let path = format!("/submissions/{}", receipt["submission_id"]);
    assert_eq!(app.request("DELETE", &path).send().await.expect("answer").status(), 204);
}

/// Asks for a sync and does not wait for its end.
async fn begin(app: &TestApp) {
    app.request("POST", "/labkey/sync?dataset=gottcha2").send().await.expect("answer");
}

/// Delivers until LabKey holds just these samples, each with so many rows.
async fn comes_to_hold(labkey: &LabKeyServer, app: &TestApp, samples: &[(&str, usize)]) {
    let wanted: BTreeMap<String, usize> = samples.iter().map(|(name, rows)| ((*name).to_owned(), *rows)).collect();
    eventually("labkey holds what is wanted", async || {
        begin(app).await;
        labkey.counts(LIST, "SampleId") == wanted
    })
    .await;
}

/// Requests of an action so far.
fn asked(labkey: &LabKeyServer, action: &str) -> usize {
    labkey.seen().iter().filter(|seen| seen.action == action).count()
}

#[tokio::test]
async fn an_insert_whose_answer_is_lost_is_looked_up_and_not_repeated() {
    for fault in [Fault::DropAfter, Fault::Truncate] {
        let (labkey, app) = lab(inserting(), &[]).await;
        app.store("/ingest-gottcha2", records("S1", 20)).await;
        labkey.inject("query-insertRows", fault.clone());
        let report = sync(&app).await;
        assert_eq!((&report["uploaded"], &report["remaining"]), (&json!(20), &json!(0)), "{fault:?} {report}");
        assert_eq!(report["datasets"][0]["reconciled"], 1, "{report}");
        assert_eq!(asked(&labkey, "query-insertRows"), 1, "{fault:?}");
        holds_once(&labkey, 20);
    }
}

#[tokio::test]
async fn rows_that_the_lists_default_view_hides_are_found() {
    let (labkey, app) = lab(inserting().hiding("SampleId", "S1"), &[]).await;
    let receipt = app.store("/ingest-gottcha2", records("S1", 20)).await;
    labkey.inject("query-insertRows", Fault::DropAfter);
    let report = sync(&app).await;
    assert_eq!((&report["uploaded"], &report["remaining"]), (&json!(20), &json!(0)), "{report}");
    assert_eq!(asked(&labkey, "query-insertRows"), 1);
    holds_once(&labkey, 20);
    remove(&app, &receipt).await;
    comes_to_hold(&labkey, &app, &[]).await;
}

#[tokio::test]
async fn an_insert_that_never_arrived_is_sent_again_after_a_look() {
    for fault in [Fault::Drop, Fault::Error, Fault::Unavailable(None)] {
        let (labkey, app) = lab(inserting(), &[]).await;
        app.store("/ingest-gottcha2", records("S1", 20)).await;
        labkey.inject("query-insertRows", fault.clone());
        assert_eq!(sync(&app).await["uploaded"], 20, "{fault:?}");
        assert_eq!(asked(&labkey, "query-insertRows"), 2, "{fault:?}");
        assert!(asked(&labkey, "query-getQuery") > 0, "{fault:?}");
        holds_once(&labkey, 20);
    }
}

#[tokio::test]
async fn an_insert_that_labkey_ends_only_after_we_gave_up_waiting_is_not_repeated() {
    let more = [("labkey.request_timeout", "300ms"), ("labkey.settle", "3s")];
    let (labkey, app) = lab(inserting(), &more).await;
    app.store("/ingest-gottcha2", records("S1", 20)).await;
    labkey.inject("query-insertRows", Fault::DelayBefore(Duration::from_millis(1200)));
    assert_eq!(sync(&app).await["uploaded"], 20);
    assert_eq!(asked(&labkey, "query-insertRows"), 1);
    holds_once(&labkey, 20);
}

#[tokio::test]
async fn an_insert_that_arrives_after_it_was_given_up_for_lost_and_repeated_leaves_again() {
    let (labkey, app) = lab(inserting(), &[("labkey.request_timeout", "300ms")]).await;
    app.store("/ingest-gottcha2", records("S1", 20)).await;
    labkey.inject("query-insertRows", Fault::DelayBefore(Duration::from_millis(2000)));
    assert_eq!(sync(&app).await["uploaded"], 20);
    eventually("the rows are there twice", async || labkey.rows(LIST).len() == 40).await;
    let report = sync(&app).await;
    assert_eq!((&report["datasets"][0]["removed"], &report["remaining"]), (&json!(20), &json!(0)), "{report}");
    holds_once(&labkey, 20);
    assert_eq!(labkey.counts(LIST, "DeliveryKey").len(), 1);
}

#[tokio::test]
async fn rows_that_arrive_after_their_delivery_was_cut_leave_again() {
    let (labkey, app) = lab(inserting(), &[("labkey.request_timeout", "300ms")]).await;
    app.store("/ingest-gottcha2", records("S1", 20)).await;
    labkey.inject("query-insertRows", Fault::DelayBefore(Duration::from_millis(2000)));
    labkey.inject("query-insertRows", Fault::TooLarge);
    let report = sync(&app).await;
    assert_eq!((&report["uploaded"], &report["failed"]), (&json!(20), &json!(0)), "{report}");
    let delivered = "SELECT count(*) FROM gottcha2_full_labkey WHERE labkey_upload_status = 'completed'";
    assert_eq!(app.scalar::<i64>(delivered).await, 20);
    eventually("the rows are there twice", async || labkey.rows(LIST).len() == 40).await;
    let report = sync(&app).await;
    assert_eq!((&report["datasets"][0]["removed"], &report["remaining"]), (&json!(20), &json!(0)), "{report}");
    holds_once(&labkey, 20);
    assert_eq!(labkey.counts(LIST, "DeliveryKey").len(), 2);
}

#[tokio::test]
async fn rows_that_somebody_removes_from_labkey_while_others_may_still_arrive_are_named() {
    let (labkey, app) = lab(inserting(), &[]).await;
    app.store("/ingest-gottcha2", records("S1", 20)).await;
    sync(&app).await;
    let doubted = "UPDATE labkey_deliveries SET doubted_until = now() - interval '1 minute'";
    sqlx::query(doubted).execute(&app.pool).await.expect("update");
    labkey.change(LIST, |list| list.truncate(15));
    let report = sync(&app).await;
    assert!(report["errors"][0].as_str().expect("error").contains("holds 15 of the 20 rows"), "{report}");
    labkey.change(LIST, List::clear);
    let retry = app.request("POST", "/labkey/retry").json(&json!({})).send().await.expect("answer");
    assert_eq!(retry.json::<Value>().await.expect("JSON")["rows"], 20);
    assert_eq!(sync(&app).await["uploaded"], 20);
    holds_once(&labkey, 20);
}

#[tokio::test]
async fn a_replacement_that_breaks_off_before_it_is_written_down_keeps_its_rows() {
    let (labkey, app) = lab(merging(), &[]).await;
    put(&app, records("old", 25)).await;
    sync(&app).await;
    // The database fails once, when LabKey has done its part.
    let broken = "CREATE SEQUENCE broken;
        CREATE FUNCTION break_once() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN IF nextval('broken') = 1 THEN RAISE EXCEPTION 'broken'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER break_once BEFORE UPDATE ON labkey_deliveries FOR EACH ROW
            WHEN (NEW.removed_at IS NOT NULL) EXECUTE FUNCTION break_once()";
    sqlx::raw_sql(broken).execute(&app.pool).await.expect("trigger");
    put(&app, records("new", 12)).await;
    let report = sync(&app).await;
    assert!(!report["errors"].as_array().expect("errors").is_empty(), "{report}");
    sync(&app).await;
    assert_eq!(app.get("/labkey/stats").await["uploaded_count"], 12);
    assert_eq!(labkey.counts(LIST, "SampleId"), [("new".to_owned(), 12)].into());
    holds_once(&labkey, 12);
}

#[tokio::test]
async fn a_replacement_that_is_removed_before_it_is_sent_ends_no_sync() {
    let (labkey, app) = lab(merging(), &[]).await;
    put(&app, records("old", 25)).await;
    sync(&app).await;
    put(&app, records("new", 12)).await;
    let removed = "CREATE FUNCTION remove_at_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            DELETE FROM gottcha2_full WHERE submission_id = NEW.submission_id;
            DELETE FROM submissions WHERE id = NEW.submission_id;
            DELETE FROM labkey_deliveries WHERE id = NEW.id;
            RETURN NULL; END $$;
        CREATE TRIGGER remove_at_once AFTER INSERT ON labkey_deliveries FOR EACH ROW EXECUTE FUNCTION remove_at_once()";
    sqlx::raw_sql(removed).execute(&app.pool).await.expect("trigger");
    let report = sync(&app).await;
    assert_eq!((&report["errors"], &report["remaining"]), (&json!([]), &json!(0)), "{report}");
    assert!(labkey.rows(LIST).is_empty());
}

#[tokio::test]
async fn a_replacement_in_doubt_waits_for_the_rows_that_it_replaces_to_leave() {
    for list in [merging(), inserting()] {
        let (labkey, app) = lab(list, &[]).await;
        put(&app, records("old", 25)).await;
        sync(&app).await;
        put(&app, records("new", 12)).await;
        // As a killed process leaves it.
        let lost = "WITH planned AS (UPDATE submissions SET labkey_planned = true WHERE NOT labkey_planned RETURNING id)
            INSERT INTO labkey_deliveries (dataset, submission_id, record_prefix, first_ordinal, last_ordinal, rows, state,
                holder, attempts, sent_at)
            SELECT dataset, planned.id, record_prefix, 1, 12, 12, 'in_flight', 'a dead process', 1, now()
            FROM labkey_deliveries, planned";
        sqlx::query(lost).execute(&app.pool).await.expect("insert");
        labkey.permit(&[Permission::Read, Permission::Insert, Permission::Update]);
        let report = sync(&app).await;
        assert!(report["errors"][0].as_str().expect("error").contains("cannot be removed"), "{report}");
        assert_eq!((&report["uploaded"], &report["remaining"]), (&json!(0), &json!(12)), "{report}");
        assert_eq!(labkey.counts(LIST, "SampleId"), [("old".to_owned(), 25)].into());
        labkey.permit(&[Permission::Read, Permission::Insert, Permission::Update, Permission::Delete]);
        assert_eq!(sync(&app).await["uploaded"], 12);
        assert_eq!(labkey.counts(LIST, "SampleId"), [("new".to_owned(), 12)].into());
        holds_once(&labkey, 12);
    }
}

#[tokio::test]
async fn a_replacement_that_arrives_after_it_was_given_up_for_lost_leaves_again() {
    let (labkey, app) = lab(inserting(), &[("labkey.request_timeout", "300ms")]).await;
    put(&app, records("old", 12)).await;
    sync(&app).await;
    put(&app, records("new", 12)).await;
    labkey.inject("query-saveRows", Fault::DelayBefore(Duration::from_millis(2000)));
    assert_eq!(sync(&app).await["uploaded"], 12);
    eventually("the rows are there twice", async || labkey.counts(LIST, "SampleId")["new"] == 24).await;
    comes_to_hold(&labkey, &app, &[("new", 12)]).await;
    holds_once(&labkey, 12);
}

/// As if the hour were over in which requests that were given up for lost may arrive.
async fn end_doubt(app: &TestApp) {
    let over =
        "UPDATE labkey_deliveries SET doubted_until = now() - interval '1 minute' WHERE doubted_until IS NOT NULL";
    assert!(sqlx::query(over).execute(&app.pool).await.expect("update").rows_affected() > 0);
}

#[tokio::test]
async fn a_merge_that_arrives_after_its_rows_were_replaced_does_not_last() {
    let (labkey, app) = lab(merging(), &[("labkey.request_timeout", "300ms")]).await;
    put(&app, records("old", 20)).await;
    labkey.inject("query-import", Fault::DelayBefore(Duration::from_secs(4)));
    assert_eq!(sync(&app).await["uploaded"], 20);
    put(&app, records("new", 12)).await;
    comes_to_hold(&labkey, &app, &[("new", 12)]).await;
    eventually("the lost request arrives", async || labkey.counts(LIST, "SampleId").contains_key("old")).await;
    sync(&app).await;
    assert_eq!(labkey.rows(LIST).len(), 12, "rows that the replacement has not leave at once");
    end_doubt(&app).await;
    sync(&app).await;
    assert_eq!(labkey.counts(LIST, "SampleId"), [("new".to_owned(), 12)].into());
    holds_once(&labkey, 12);
    assert_eq!(app.scalar::<i64>("SELECT count(*) FROM labkey_deliveries WHERE doubted_until IS NOT NULL").await, 0);
}

#[tokio::test]
async fn a_merge_that_arrives_after_its_submission_was_removed_leaves_again() {
    let (labkey, app) = lab(merging(), &[("labkey.request_timeout", "300ms")]).await;
    let receipt = app.store("/ingest-gottcha2", records("S1", 20)).await;
    labkey.inject("query-import", Fault::DelayBefore(Duration::from_secs(4)));
    assert_eq!(sync(&app).await["uploaded"], 20);
    remove(&app, &receipt).await;
    comes_to_hold(&labkey, &app, &[]).await;
    eventually("the lost request arrives", async || labkey.rows(LIST).len() == 20).await;
    comes_to_hold(&labkey, &app, &[]).await;
}

#[tokio::test]
async fn a_removal_that_arrives_after_the_rows_of_a_replacement_does_not_last() {
    let more = [("labkey.request_timeout", "300ms"), ("labkey.batch_size", "10"), ("labkey.sync_wait", "100ms")];
    let (labkey, app) = lab(merging(), &more).await;
    put(&app, records("old", 20)).await;
    comes_to_hold(&labkey, &app, &[("old", 20)]).await;
    put(&app, records("new", 20)).await;
    labkey.inject("query-saveRows", Fault::DelayBefore(Duration::from_secs(5)));
    comes_to_hold(&labkey, &app, &[("new", 20)]).await;
    eventually("the lost request arrives", async || labkey.rows(LIST).len() < 20).await;
    end_doubt(&app).await;
    comes_to_hold(&labkey, &app, &[("new", 20)]).await;
}

#[tokio::test]
async fn merged_rows_whose_answers_were_all_lost_leave_labkey_with_their_submission() {
    let more = [("labkey.patience", "1s"), ("labkey.sync_wait", "100ms")];
    let (labkey, app) = lab(merging(), &more).await;
    let receipt = app.store("/ingest-gottcha2", records("drop", 25)).await;
    put(&app, records("old", 25)).await;
    labkey.inject_with(|seen| (seen.action == "query-import").then_some(Fault::DropAfter));
    begin(&app).await;
    let pending = "SELECT count(*) FROM labkey_deliveries WHERE state = 'pending' AND attempts > 0";
    eventually("the sync gives up", async || app.scalar::<i64>(pending).await == 2).await;
    assert_eq!(labkey.rows(LIST).len(), 50);
    remove(&app, &receipt).await;
    put(&app, records("new", 12)).await;
    labkey.inject_with(|_| None);
    comes_to_hold(&labkey, &app, &[("new", 12)]).await;
    holds_once(&labkey, 12);
}

#[tokio::test]
async fn a_submission_that_is_removed_while_its_rows_are_merged_again_leaves_labkey_too() {
    let more = [("labkey.patience", "1s"), ("labkey.sync_wait", "100ms")];
    let (labkey, app) = lab(merging(), &more).await;
    let receipt = app.store("/ingest-gottcha2", records("S1", 10)).await;
    labkey.inject_with(|seen| (seen.action == "query-import").then_some(Fault::DropAfter));
    begin(&app).await;
    eventually("the rows are there", async || labkey.rows(LIST).len() == 10).await;
    remove(&app, &receipt).await;
    let in_flight = "SELECT count(*) FROM labkey_deliveries WHERE state = 'in_flight'";
    eventually("the sync gives up", async || app.scalar::<i64>(in_flight).await == 0).await;
    labkey.inject_with(|_| None);
    comes_to_hold(&labkey, &app, &[]).await;
}

#[tokio::test]
async fn an_insert_that_arrives_after_its_submission_was_removed_leaves_again() {
    for second in [None, Some(Fault::BadKey)] {
        let (labkey, app) = lab(inserting(), &[("labkey.request_timeout", "300ms")]).await;
        let receipt = app.store("/ingest-gottcha2", records("S1", 20)).await;
        labkey.inject("query-insertRows", Fault::DelayBefore(Duration::from_secs(6)));
        if let Some(fault) = second.clone() {
            labkey.inject("query-insertRows", fault);
        }
        sync(&app).await;
        remove(&app, &receipt).await;
        sync(&app).await;
        assert!(labkey.rows(LIST).is_empty(), "{second:?}");
        eventually("the lost request arrives", async || labkey.rows(LIST).len() == 20).await;
        comes_to_hold(&labkey, &app, &[]).await;
    }
}

#[tokio::test]
async fn rows_that_contradict_the_record_leave_labkey_with_their_submission() {
    let (labkey, app) = lab(inserting(), &[]).await;
    let receipt = app.store("/ingest-gottcha2", records("S1", 5)).await;
    sync(&app).await;
    labkey.change(LIST, |list| list.truncate(3));
    sqlx::query("UPDATE labkey_deliveries SET state = 'unknown'").execute(&app.pool).await.expect("update");
    assert_eq!(sync(&app).await["failed"], 5);
    remove(&app, &receipt).await;
    comes_to_hold(&labkey, &app, &[]).await;
}

#[tokio::test]
async fn rows_that_came_twice_and_may_not_be_removed_are_named_and_hold_up_no_others() {
    let (labkey, app) = lab(inserting(), &[("labkey.request_timeout", "300ms")]).await;
    app.store("/ingest-gottcha2", records("S1", 20)).await;
    labkey.inject("query-insertRows", Fault::DelayBefore(Duration::from_millis(2000)));
    assert_eq!(sync(&app).await["uploaded"], 20);
    eventually("the rows are there twice", async || labkey.rows(LIST).len() == 40).await;
    labkey.permit(&[Permission::Read, Permission::Insert, Permission::Update]);
    // Even when their time is over.
    end_doubt(&app).await;
    app.store("/ingest-gottcha2", records("S2", 3)).await;
    let report = sync(&app).await;
    assert!(report["errors"][0].as_str().expect("error").contains("cannot be removed"), "{report}");
    assert_eq!((&report["uploaded"], &report["remaining"]), (&json!(3), &json!(0)), "{report}");
    labkey.permit(&[Permission::Read, Permission::Insert, Permission::Update, Permission::Delete]);
    assert_eq!(sync(&app).await["datasets"][0]["removed"], 20);
    holds_once(&labkey, 23);
}

#[tokio::test]
async fn a_deadlock_in_labkey_fails_no_row_in_either_mode() {
    for (list, action) in [(merging(), "query-import"), (inserting(), "query-insertRows")] {
        let (labkey, app) = lab(list, &[]).await;
        app.store("/ingest-gottcha2", RECORD).await;
        labkey.inject(action, Fault::Error);
        let report = sync(&app).await;
        assert_eq!((&report["uploaded"], &report["failed"]), (&json!(1), &json!(0)), "{report}");
        holds_once(&labkey, 1);
    }
}

#[tokio::test]
async fn a_full_disk_of_labkey_fails_no_row() {
    let (labkey, app) = lab(merging(), &[]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    labkey.inject("query-import", Fault::Full);
    labkey.inject("query-import", Fault::Full);
    let report = sync(&app).await;
    assert_eq!((&report["uploaded"], &report["failed"]), (&json!(1), &json!(0)), "{report}");
    holds_once(&labkey, 1);
}

#[tokio::test]
async fn a_row_that_an_earlier_merge_has_brought_meanwhile_is_not_refused() {
    let (labkey, app) = lab(merging(), &[]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    labkey.inject("query-import", Fault::DropAfter);
    labkey.inject("query-import", Fault::Exists);
    let report = sync(&app).await;
    assert_eq!((&report["uploaded"], &report["failed"]), (&json!(1), &json!(0)), "{report}");
    holds_once(&labkey, 1);
}

#[tokio::test]
async fn a_refused_row_that_labkey_has_nevertheless_leaves_with_its_submission() {
    let (labkey, app) = lab(merging(), &[]).await;
    let receipt = app.store("/ingest-gottcha2", RECORD).await;
    labkey.inject("query-import", Fault::DropAfter);
    labkey.inject("query-import", Fault::Exists);
    labkey.inject("query-import", Fault::Exists);
    assert_eq!(sync(&app).await["failed"], 1);
    holds_once(&labkey, 1);
    remove(&app, &receipt).await;
    comes_to_hold(&labkey, &app, &[]).await;
}

#[tokio::test]
async fn a_delivery_is_not_cut_while_its_submission_is_being_removed() {
    let (_labkey, app) = lab(merging(), &[]).await;
    app.store("/ingest-gottcha2", records("S1", 8)).await;
    let dataset = app.app.datasets.get("gottcha2").expect("dataset");
    labkey::plan(&app.pool, dataset, 100, None).await.expect("plan");
    sqlx::query("UPDATE labkey_deliveries SET attempts = 1, sent_at = now()").execute(&app.pool).await.expect("update");
    let pending = labkey::in_state(&app.pool, "gottcha2", State::Pending, 0, 10).await.expect("deliveries");
    let mut removal = app.pool.begin().await.expect("transaction");
    sqlx::query("DELETE FROM submissions").execute(&mut *removal).await.expect("delete");
    let (halves, ()) = tokio::join!(labkey::split(&app.pool, &pending[0], 5, 4), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        labkey::withdraw(&mut removal, pending[0].submission_id).await.expect("withdraw");
        removal.commit().await.expect("commit");
    });
    assert!(halves.expect("answer").is_none());
    assert_eq!(app.scalar::<i64>("SELECT count(*) FROM labkey_deliveries WHERE withdrawn_at IS NULL").await, 0);
}

#[tokio::test]
async fn what_may_have_come_twice_is_looked_up_by_so_many_rows_at_a_time() {
    let (labkey, app) = lab(inserting(), &[("labkey.batch_size", "1")]).await;
    app.store("/ingest-gottcha2", records("S1", 3)).await;
    sync(&app).await;
    let doubted = "UPDATE labkey_deliveries SET rows = 15000, doubted_until = now() + interval '1 hour'";
    sqlx::query(doubted).execute(&app.pool).await.expect("update");
    labkey.forget();
    sync(&app).await;
    assert_eq!(asked(&labkey, "query-getQuery"), 3);
}

#[tokio::test]
async fn an_attempt_that_may_still_arrive_is_looked_for_when_an_earlier_one_is_found() {
    let (_labkey, app) = lab(inserting(), &[]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    sync(&app).await;
    let doubted = async || {
        app.scalar::<i64>("SELECT count(*) FROM labkey_deliveries WHERE doubted_until > now() + interval '59 min'")
            .await
    };
    for (attempts, doubts) in [(1, 0), (2, 1)] {
        let lost = "UPDATE labkey_deliveries SET state = 'unknown', attempts = $1";
        sqlx::query(lost).bind(attempts).execute(&app.pool).await.expect("update");
        assert_eq!(sync(&app).await["datasets"][0]["reconciled"], 1);
        assert_eq!(doubted().await, doubts, "after {attempts} attempts");
    }
}

#[tokio::test]
async fn a_row_that_is_there_already_and_is_removed_meanwhile_does_not_count_as_refused() {
    let list = crate::labkey::columns(List::keyed(LIST, "RecordKey")).column("DeliveryKey", Kind::Text);
    let (labkey, app) = lab(list, &[("labkey.mode", "insert"), ("labkey.sync_wait", "100ms")]).await;
    let receipt = app.store("/ingest-gottcha2", RECORD).await;
    comes_to_hold(&labkey, &app, &[("S1", 1)]).await;
    let unfinished = "SELECT count(*) FROM jobs WHERE finished_at IS NULL";
    eventually("the sync ends", async || app.scalar::<i64>(unfinished).await == 0).await;
    let other = "UPDATE labkey_deliveries SET state = 'pending', key = gen_random_uuid()";
    sqlx::query(other).execute(&app.pool).await.expect("update");
    labkey.forget();
    labkey.inject("query-insertRows", Fault::Delay(Duration::from_millis(800)));
    begin(&app).await;
    eventually("the row is on its way", async || asked(&labkey, "query-insertRows") == 1).await;
    remove(&app, &receipt).await;
    let job = app.scalar::<uuid::Uuid>("SELECT id FROM jobs ORDER BY created_at DESC LIMIT 1").await;
    let ended = app.finished(&job.to_string()).await;
    assert_eq!(ended["report"]["failed"], 0, "{ended}");
}

#[tokio::test]
async fn the_report_of_a_sync_tells_what_all_its_attempts_did() {
    let more = [("labkey.batch_size", "1"), ("labkey.requests", "1"), ("labkey.patience", "300ms")];
    let (labkey, app) = lab(inserting(), &[&more[..], &[("labkey.sync_wait", "100ms")]].concat()).await;
    app.store("/ingest-gottcha2", RECORD.replace("Orthoebolavirus zairense", &"x".repeat(5000))).await;
    app.store("/ingest-gottcha2", RECORD).await;
    let (is_starting, inserts) = (Arc::new(AtomicBool::new(true)), AtomicUsize::new(0));
    let starting = Arc::clone(&is_starting);
    labkey.inject_with(move |seen| {
        let is_later = seen.action == "query-insertRows" && inserts.fetch_add(1, Ordering::Relaxed) > 0;
        (is_later && starting.load(Ordering::Relaxed)).then_some(Fault::NotReady)
    });
    begin(&app).await;
    let waiting = "SELECT count(*) FROM jobs WHERE state = 'pending' AND error IS NOT NULL";
    eventually("the first attempt fails", async || app.scalar::<i64>(waiting).await == 1).await;
    is_starting.store(false, Ordering::Relaxed);
    let job = app.scalar::<uuid::Uuid>("SELECT id FROM jobs").await;
    let ended = app.finished(&job.to_string()).await;
    let report = &ended["report"];
    assert_eq!((&report["uploaded"], &report["failed"]), (&json!(1), &json!(1)), "{ended}");
    assert_eq!((&ended["status"], &report["remaining"]), (&json!("completed"), &json!(0)), "{ended}");
}

#[tokio::test]
async fn nothing_is_scheduled_once_nothing_is_left_to_do() {
    let (labkey, app) = lab(merging(), &[]).await;
    let any_work = async || {
        let mut connection = app.pool.acquire().await.expect("connection");
        labkey::any_work(&mut connection, "gottcha2", None).await.expect("answer")
    };
    let set = async |what: &str| {
        let set = format!("UPDATE labkey_deliveries SET {what}");
        sqlx::query(sqlx::AssertSqlSafe(set)).execute(&app.pool).await.expect("update");
    };
    let receipt = app.store("/ingest-gottcha2", RECORD).await;
    assert!(any_work().await);
    sync(&app).await;
    assert!(!any_work().await);
    // A list that rows are merged into now had them inserted before.
    set("doubted_until = now() - interval '1 minute'").await;
    assert!(any_work().await);
    sync(&app).await;
    assert!(!any_work().await);
    set("state = 'failed', doubted_until = now() + interval '1 hour'").await;
    assert!(!any_work().await, "what was refused waits for somebody who asks");
    set("state = 'unknown', doubted_until = NULL").await;
    remove(&app, &receipt).await;
    comes_to_hold(&labkey, &app, &[]).await;
    sync(&app).await;
    assert!(any_work().await, "its last merge may still arrive");
    end_doubt(&app).await;
    sync(&app).await;
    assert!(!any_work().await);
    set("state = 'failed'").await;
    let retry = app.request("POST", "/labkey/retry").json(&json!({})).send().await.expect("answer");
    assert_eq!(retry.json::<Value>().await.expect("JSON")["rows"], 0, "its submission is gone");
}

#[tokio::test]
async fn a_merge_whose_end_is_unknown_is_merged_again() {
    for fault in [Fault::Drop, Fault::DropAfter, Fault::Truncate, Fault::Error, Fault::Unavailable(Some(1))] {
        let (labkey, app) = lab(merging(), &[]).await;
        app.store("/ingest-gottcha2", records("S1", 20)).await;
        labkey.inject("query-import", fault.clone());
        assert_eq!(sync(&app).await["uploaded"], 20, "{fault:?}");
        holds_once(&labkey, 20);
    }
}

#[tokio::test]
async fn a_refused_security_context_is_established_again_once() {
    let (labkey, app) = lab(inserting(), &[]).await;
    app.store("/ingest-gottcha2", records("S1", 2)).await;
    labkey.inject("query-insertRows", Fault::Csrf);
    assert_eq!(sync(&app).await["uploaded"], 2);
    app.store("/ingest-gottcha2", records("S2", 2)).await;
    labkey.inject("query-insertRows", Fault::Csrf);
    labkey.inject("query-insertRows", Fault::Csrf);
    let report = sync(&app).await;
    assert!(report["errors"][0].as_str().expect("error").contains("security context"), "{report}");
    assert_eq!(report["remaining"], 2);
    assert_eq!(sync(&app).await["uploaded"], 2);
    holds_once(&labkey, 4);
}

#[tokio::test]
async fn a_server_that_is_starting_is_waited_for() {
    let (labkey, app) = lab(inserting(), &[]).await;
    app.store("/ingest-gottcha2", records("S1", 2)).await;
    labkey.inject("login-whoami", Fault::NotReady);
    labkey.inject("query-insertRows", Fault::NotReady);
    assert_eq!(sync(&app).await["uploaded"], 2);
    holds_once(&labkey, 2);
}

#[tokio::test]
async fn a_poison_row_among_ten_thousand_fails_alone_with_labkeys_reason() {
    for list in [inserting(), merging()] {
        let (labkey, app) = lab(list, &[]).await;
        let mut lines: Vec<String> = records("S1", 10_000).lines().map(str::to_owned).collect();
        lines[5_432] = lines[5_432].replace("Orthoebolavirus zairense", &"x".repeat(5000));
        app.store("/ingest-gottcha2", lines.join("\n")).await;
        let report = sync(&app).await;
        assert_eq!((&report["uploaded"], &report["failed"]), (&json!(9_999), &json!(1)), "{report}");
        assert_eq!(report["remaining"], 0);
        holds_once(&labkey, 9_999);
        let failures = app.get("/labkey/failures?dataset=gottcha2").await;
        assert_eq!(failures.as_array().expect("page").len(), 1);
        let failure = &failures[0];
        assert_eq!((&failure["first_ordinal"], &failure["last_ordinal"]), (&json!(5_433), &json!(5_433)));
        assert!(failure["error"].as_str().expect("reason").contains("too long for column 'Taxonomy'"), "{failure}");
        assert_eq!(sync(&app).await["failed"], 0, "it is not tried again by itself");
        let status = "SELECT labkey_upload_status FROM gottcha2_full_labkey WHERE ordinal = 5433";
        assert_eq!(app.scalar::<String>(status).await, "failed");
    }
}

#[tokio::test]
async fn a_delivery_that_was_cut_meanwhile_is_not_cut_again() {
    let (_labkey, app) = lab(inserting(), &[]).await;
    app.store("/ingest-gottcha2", records("S1", 8)).await;
    let dataset = app.app.datasets.get("gottcha2").expect("dataset");
    labkey::plan(&app.pool, dataset, 100, None).await.expect("plan");
    let pending = async || labkey::in_state(&app.pool, "gottcha2", State::Pending, 0, 10).await.expect("deliveries");
    let sent = "UPDATE labkey_deliveries SET attempts = 2, sent_at = now()";
    sqlx::query(sent).execute(&app.pool).await.expect("update");
    let [whole] = &pending().await[..] else { panic!("one delivery") };
    assert!(labkey::split(&app.pool, whole, 5, 4).await.expect("answer").is_some());
    assert!(labkey::split(&app.pool, whole, 5, 4).await.expect("answer").is_none());
    let ranges: Vec<_> = pending().await.iter().map(|one| (one.first_ordinal, one.last_ordinal, one.rows)).collect();
    assert_eq!(ranges, [(1, 4, 4), (5, 8, 4)]);
    assert!(
        pending().await.iter().all(|one| one.attempts == 2 && one.age.is_some()),
        "LabKey may have the rows of both"
    );
}

#[tokio::test]
async fn what_was_refused_is_delivered_once_the_reason_is_gone_and_somebody_asks() {
    let list = List::auto(LIST).column("DeliveryKey", Kind::Text).column("RecordKey", Kind::Text);
    let list = crate::labkey::columns(list).required("Approved", Kind::Text);
    let (labkey, app) = lab(list, &[]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    let report = sync(&app).await;
    assert!(report["errors"][0].as_str().expect("error").contains("`Approved` needs a value"), "{report}");
    labkey.add(inserting());
    app.store("/ingest-gottcha2", RECORD.replace("Orthoebolavirus zairense", &"x".repeat(5000))).await;
    assert_eq!(sync(&app).await["failed"], 1);
    let retry = async |request: Value| -> Value {
        let answer = app.request("POST", "/labkey/retry").json(&request).send().await.expect("answer");
        answer.json().await.expect("JSON")
    };
    assert_eq!(retry(json!(["gottcha2"])).await["errors"][0]["field"], "body", "not by the order of the fields");
    assert_eq!(retry(json!({"delivery": 1})).await["errors"][0]["field"], "delivery");
    assert_eq!(retry(json!({"reason": "no such reason"})).await["rows"], 0);
    assert_eq!(retry(json!({"dataset": "gottcha2", "reason": "too long"})).await["rows"], 1);
    sqlx::query("UPDATE gottcha2_full SET name = 'short' WHERE length(name) > 4000")
        .execute(&app.pool)
        .await
        .expect("update");
    assert_eq!(sync(&app).await["uploaded"], 1);
    holds_once(&labkey, 2);
    assert_eq!(app.get("/labkey/failures").await, json!([]));
}

/// As if what was delivered so far had gone to another list.
async fn deliver_elsewhere(app: &TestApp) {
    let other = "UPDATE labkey_destinations SET list = 'elsewhere'";
    assert_eq!(sqlx::query(other).execute(&app.pool).await.expect("update").rows_affected(), 1);
}

#[tokio::test]
async fn rows_that_went_to_another_list_are_not_looked_for_in_this_one() {
    for list in [inserting(), merging()] {
        let (labkey, app) = lab(list, &[]).await;
        let receipt = app.store("/ingest-gottcha2", records("S1", 5)).await;
        app.store("/ingest-gottcha2", records("S2", 3)).await;
        sync(&app).await;
        deliver_elsewhere(&app).await;
        labkey.change(LIST, List::clear);
        remove(&app, &receipt).await;
        app.store("/ingest-gottcha2", records("S3", 2)).await;
        labkey.forget();
        let report = sync(&app).await;
        let error = report["errors"][0].as_str().expect("error");
        assert!(error.contains("lists.elsewhere in") && error.contains("lists.gottcha2_results in"), "{report}");
        assert_eq!((&report["uploaded"], &report["remaining"], &report["failed"]), (&json!(0), &json!(2), &json!(0)));
        assert_eq!(asked(&labkey, "query-getQuery") + asked(&labkey, "query-saveRows"), 0);
        assert_eq!(app.scalar::<i64>("SELECT count(*) FROM labkey_deliveries WHERE removed_at IS NOT NULL").await, 0);
        labkey.revoke();
        let status = app.get("/labkey/status").await;
        let lists = status["lists"].as_array().expect("lists");
        let own = lists.iter().find(|list| list["dataset"] == "gottcha2").expect("list");
        assert!(own["problems"][0].as_str().expect("problem").contains("lists.elsewhere in"), "{status}");
        labkey.restore();
        let (before, forgotten) = restart(&app.app, "gottcha2", false).await.expect("restart");
        assert_eq!((before.expect("list").list.as_str(), forgotten), ("elsewhere", 2));
        assert_eq!(app.get("/labkey/stats").await["pending_count"], 5);
        assert_eq!(sync(&app).await["uploaded"], 5);
        assert_eq!(labkey.counts(LIST, "SampleId"), [("S2".to_owned(), 3), ("S3".to_owned(), 2)].into());
        holds_once(&labkey, 5);
    }
}

#[tokio::test]
async fn a_list_that_has_got_another_name_keeps_its_record() {
    let (labkey, app) = lab(inserting(), &[]).await;
    let receipt = app.store("/ingest-gottcha2", records("S1", 5)).await;
    sync(&app).await;
    deliver_elsewhere(&app).await;
    restart(&app.app, "gottcha2", true).await.expect("restart");
    assert_eq!(sync(&app).await["uploaded"], 0);
    holds_once(&labkey, 5);
    remove(&app, &receipt).await;
    comes_to_hold(&labkey, &app, &[]).await;
    // What is there no more binds nobody.
    deliver_elsewhere(&app).await;
    app.store("/ingest-gottcha2", records("S2", 1)).await;
    comes_to_hold(&labkey, &app, &[("S2", 1)]).await;
}

#[tokio::test]
async fn deliveries_are_not_forgotten_while_they_are_sent() {
    let (labkey, app) = lab(inserting(), &[("labkey.sync_wait", "100ms")]).await;
    app.store("/ingest-gottcha2", records("S1", 5)).await;
    labkey.inject("query-insertRows", Fault::Delay(Duration::from_millis(1500)));
    begin(&app).await;
    eventually("the rows are on their way", async || asked(&labkey, "query-insertRows") == 1).await;
    let refusal = restart(&app.app, "gottcha2", false).await.expect_err("refused");
    assert!(refusal.to_string().contains("a sync of gottcha2 runs"), "{refusal}");
    eventually("the rows are there", async || app.get("/labkey/stats").await["uploaded_count"] == 5).await;
}

#[tokio::test]
async fn a_renamed_column_stops_the_sync_before_its_first_row_and_is_named() {
    for list in [inserting(), merging()] {
        let (labkey, app) = lab(list, &[]).await;
        labkey.change(LIST, |list| list.rename("TaxonomyId", "TaxId"));
        app.store("/ingest-gottcha2", RECORD).await;
        let report = sync(&app).await;
        assert!(report["errors"][0].as_str().expect("error").contains("no column `TaxonomyId`"), "{report}");
        assert_eq!((&report["remaining"], &report["failed"]), (&json!(1), &json!(0)));
        assert!(labkey.rows(LIST).is_empty());
        let status = app.get("/labkey/status").await;
        let own = |status: &Value| {
            let lists = status["lists"].as_array().expect("lists");
            lists.iter().find(|list| list["dataset"] == "gottcha2").expect("list").clone()
        };
        assert_eq!(status["connected"], true);
        assert!(own(&status)["problems"][0].as_str().expect("problem").contains("`TaxonomyId`"), "{status}");
        assert!(own(&status)["last_error"].as_str().expect("error").contains("`TaxonomyId`"), "{status}");
        labkey.change(LIST, |list| list.rename("TaxId", "TaxonomyId"));
        assert_eq!(sync(&app).await["uploaded"], 1);
        assert_eq!(own(&app.get("/labkey/status").await)["problems"], json!([]));
    }
}

#[tokio::test]
async fn a_revoked_key_pauses_and_delivery_goes_on_when_it_is_restored() {
    let (labkey, app) = lab(inserting(), &[("labkey.batch_size", "10")]).await;
    app.store("/ingest-gottcha2", records("S1", 100)).await;
    labkey.revoke();
    let report = sync(&app).await;
    assert_eq!((&report["remaining"], &report["failed"]), (&json!(100), &json!(0)), "{report}");
    let status = app.get("/labkey/status").await;
    assert_eq!((&status["connected"], &status["reason"]), (&json!(false), &json!("authentication")), "{status}");
    assert!(status["problem"].as_str().expect("problem").contains("did not match"), "{status}");
    labkey.restore();
    // And once more in the middle.
    labkey.inject("query-insertRows", Fault::Delay(Duration::from_millis(1)));
    labkey.inject("query-insertRows", Fault::BadKey);
    let report = sync(&app).await;
    assert_eq!(report["failed"], 0);
    assert!(report["remaining"].as_i64().expect("rows") > 0, "{report}");
    assert_eq!(sync(&app).await["remaining"], 0);
    holds_once(&labkey, 100);
}

#[tokio::test]
async fn a_missing_permission_fails_no_row() {
    for list in [inserting(), merging()] {
        let (labkey, app) = lab(list, &[]).await;
        app.store("/ingest-gottcha2", RECORD).await;
        labkey.permit(&[Permission::Read]);
        let report = sync(&app).await;
        assert!(report["errors"][0].as_str().expect("error").contains("may not change"), "{report}");
        assert_eq!((&report["remaining"], &report["failed"]), (&json!(1), &json!(0)));
        labkey.permit(&[Permission::Read, Permission::Insert, Permission::Update]);
        assert_eq!(sync(&app).await["uploaded"], 1);
    }
}

#[tokio::test]
async fn a_permission_that_only_the_import_misses_is_no_fault_of_the_rows() {
    let (labkey, app) = lab(merging(), &[]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    labkey.permit(&[Permission::Read, Permission::Insert]);
    let report = sync(&app).await;
    assert!(report["errors"][0].as_str().expect("error").contains("permission to update"), "{report}");
    assert_eq!((&report["remaining"], &report["failed"]), (&json!(1), &json!(0)));
}

#[tokio::test]
async fn a_dead_server_is_asked_now_and_then_and_not_once_a_row() {
    let more = [("labkey.batch_size", "10"), ("labkey.patience", "300ms"), ("labkey.pause", "2s")];
    let (labkey, app) = lab(inserting(), &more).await;
    app.store("/ingest-gottcha2", records("S1", 500)).await;
    labkey.inject_with(|_| Some(Fault::Drop));
    app.request("POST", "/labkey/sync?dataset=gottcha2").send().await.expect("answer");
    eventually("the breaker opens", async || app.get("/labkey/status").await["breaker"] == "open").await;
    let before = labkey.seen().len();
    assert!(before < 20, "{before} requests");
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_secs(4) {
        app.get("/labkey/status").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let more = labkey.seen().len() - before;
    assert!((1..=4).contains(&more), "{more} requests in four seconds");
    labkey.inject_with(|_| None);
    eventually("the server is found again", async || app.get("/labkey/status").await["connected"] == true).await;
    eventually("the rows are there", async || {
        sync(&app).await;
        app.get("/labkey/stats").await["pending_count"] == 0
    })
    .await;
    holds_once(&labkey, 500);
}

#[tokio::test]
async fn a_worker_that_vanished_in_the_middle_leaves_nothing_twice_and_nothing_out() {
    let (labkey, app) = lab(inserting(), &[("labkey.batch_size", "10"), ("labkey.requests", "1")]).await;
    app.store("/ingest-gottcha2", records("S1", 50)).await;
    sync(&app).await;
    // As a killed process would leave them: some that LabKey has, and one that it has not.
    let gone = "DELETE FROM labkey_deliveries WHERE id IN (SELECT max(id) FROM labkey_deliveries)";
    sqlx::query(gone).execute(&app.pool).await.expect("delete");
    let in_flight = "UPDATE labkey_deliveries SET state = 'in_flight', holder = 'a dead process', sent_at = now()";
    sqlx::query(in_flight).execute(&app.pool).await.expect("update");
    let lost = "INSERT INTO labkey_deliveries (dataset, submission_id, record_prefix, first_ordinal, last_ordinal, rows, state, holder)
        SELECT dataset, submission_id, record_prefix, 41, 50, 10, 'in_flight', 'a dead process' FROM labkey_deliveries LIMIT 1";
    sqlx::query(lost).execute(&app.pool).await.expect("insert");
    // LabKey has never got the rows of the delivery that was lost.
    labkey.change(LIST, |list| list.truncate(40));
    let report = sync(&app).await;
    assert_eq!((&report["remaining"], &report["failed"]), (&json!(0), &json!(0)), "{report}");
    assert_eq!(report["datasets"][0]["reconciled"], 5, "{report}");
    holds_once(&labkey, 50);
}

#[tokio::test]
async fn a_delivery_that_somebody_has_changed_in_labkey_is_named_and_not_sent_twice() {
    let (labkey, app) = lab(inserting(), &[]).await;
    app.store("/ingest-gottcha2", records("S1", 5)).await;
    sync(&app).await;
    labkey.change(LIST, |list| list.truncate(3));
    sqlx::query("UPDATE labkey_deliveries SET state = 'unknown'").execute(&app.pool).await.expect("update");
    let report = sync(&app).await;
    assert!(report["errors"][0].as_str().expect("error").contains("holds 3 of the 5 rows"), "{report}");
    assert_eq!(labkey.rows(LIST).len(), 3);
}

#[tokio::test]
async fn rows_that_somebody_has_deleted_here_by_hand_hold_up_no_others() {
    let (labkey, app) = lab(inserting(), &[]).await;
    app.store("/ingest-gottcha2", records("S1", 5)).await;
    app.store("/ingest-gottcha2", records("S2", 5)).await;
    sync(&app).await;
    sqlx::query("UPDATE labkey_deliveries SET state = 'pending'").execute(&app.pool).await.expect("update");
    labkey.change(LIST, List::clear);
    sqlx::query("DELETE FROM gottcha2_full WHERE sample_id = 'S1' AND ordinal > 3")
        .execute(&app.pool)
        .await
        .expect("delete");
    let report = sync(&app).await;
    assert_eq!(
        (&report["uploaded"], &report["failed"], &report["remaining"]),
        (&json!(5), &json!(5), &json!(0)),
        "{report}"
    );
    assert!(report["errors"][0].as_str().expect("error").contains("missing"), "{report}");
}

#[tokio::test]
async fn a_submission_whose_rows_are_not_in_the_table_is_named_and_delivered_once_they_are() {
    let (labkey, app) = lab(inserting(), &[]).await;
    app.store("/ingest-gottcha2", records("S1", 5)).await;
    app.store("/ingest-gottcha2", records("S2", 3)).await;
    let away = "CREATE TABLE away AS SELECT * FROM gottcha2_full WHERE sample_id = 'S1';
        DELETE FROM gottcha2_full WHERE sample_id = 'S1'";
    sqlx::raw_sql(away).execute(&app.pool).await.expect("move");
    let report = sync(&app).await;
    assert_eq!((&report["uploaded"], &report["remaining"]), (&json!(3), &json!(5)), "{report}");
    assert!(report["errors"][0].as_str().expect("error").contains("gottcha2_full has no rows of 1 sub"), "{report}");
    let back = "INSERT INTO gottcha2_full SELECT * FROM away";
    sqlx::query(back).execute(&app.pool).await.expect("move");
    assert_eq!(sync(&app).await["uploaded"], 5);
    holds_once(&labkey, 8);
}

#[tokio::test]
async fn a_large_delivery_of_which_somebody_has_deleted_rows_by_hand_is_named() {
    let (_labkey, app) = lab(inserting(), &[("labkey.batch_bytes", "64KiB")]).await;
    let wide = RECORD.replace("Orthoebolavirus zairense", &"y".repeat(3000));
    app.store("/ingest-gottcha2", format!("{wide}\n").repeat(100)).await;
    let dataset = app.app.datasets.get("gottcha2").expect("dataset");
    labkey::plan(&app.pool, dataset, 100, None).await.expect("plan");
    sqlx::query("DELETE FROM gottcha2_full WHERE ordinal > 40").execute(&app.pool).await.expect("delete");
    let report = sync(&app).await;
    assert_eq!((&report["failed"], &report["remaining"]), (&json!(100), &json!(0)), "{report}");
    assert!(report["errors"][0].as_str().expect("error").contains("missing"), "{report}");
}

#[tokio::test]
async fn a_database_that_refuses_to_read_rows_leaves_no_answer_to_the_next_who_asks() {
    let (labkey, app) = lab(inserting(), &[]).await;
    app.store("/ingest-gottcha2", records("S1", 5)).await;
    sqlx::query("ALTER TABLE gottcha2_full RENAME COLUMN name TO away").execute(&app.pool).await.expect("rename");
    let report = sync(&app).await;
    assert!(report["errors"][0].as_str().expect("error").contains("the database did not answer"), "{report}");
    for number in 0..200 {
        let answers = sqlx::query_scalar("SELECT $1::integer").bind(number).fetch_one(&app.pool);
        assert_eq!(answers.await.ok(), Some(number));
    }
    sqlx::query("ALTER TABLE gottcha2_full RENAME COLUMN away TO name").execute(&app.pool).await.expect("rename");
    assert_eq!(sync(&app).await["uploaded"], 5);
    holds_once(&labkey, 5);
}

#[tokio::test]
async fn a_sync_can_be_stopped_and_goes_on_later() {
    let more = [("labkey.batch_size", "10"), ("labkey.requests", "1"), ("labkey.sync_wait", "100ms")];
    let (labkey, app) = lab(inserting(), &more).await;
    app.store("/ingest-gottcha2", records("S1", 1000)).await;
    labkey.inject_with(|seen| (seen.action == "query-insertRows").then_some(Fault::Delay(Duration::from_millis(30))));
    let answer = app.request("POST", "/labkey/sync?dataset=gottcha2").send().await.expect("answer");
    assert_eq!(answer.status(), 202);
    let job: Value = answer.json().await.expect("JSON");
    let job = job["job_id"].as_str().expect("job").to_owned();
    eventually("rows are on their way", async || {
        app.get(&format!("/jobs/{job}")).await["progress"]["rows"].as_i64().unwrap_or_default() > 0
    })
    .await;
    let same: Value =
        app.request("POST", "/labkey/sync?dataset=gottcha2").send().await.expect("answer").json().await.expect("JSON");
    assert_eq!(same["job_id"], job.as_str(), "one sync of a dataset at a time");
    let cancel = app.request("POST", &format!("/jobs/{job}/cancel")).send().await.expect("answer");
    assert_eq!(cancel.status(), 202);
    let ended = app.finished(&job).await;
    assert_eq!(ended["status"], "cancelled", "{ended}");
    let uploaded = ended["report"]["uploaded"].as_i64().expect("rows");
    assert!((1..1000).contains(&uploaded), "{ended}");
    labkey.inject_with(|_| None);
    eventually("the rest is there", async || {
        app.request("POST", "/labkey/sync?dataset=gottcha2").send().await.expect("answer");
        app.get("/labkey/stats").await["pending_count"] == 0
    })
    .await;
    holds_once(&labkey, 1000);
}

#[tokio::test]
async fn a_submission_that_is_removed_while_its_rows_are_on_their_way_leaves_labkey_too() {
    let (labkey, app) = lab(inserting(), &[("labkey.sync_wait", "100ms")]).await;
    let receipt = app.store("/ingest-gottcha2", records("S1", 10)).await;
    labkey.inject("query-insertRows", Fault::DelayBefore(Duration::from_millis(800)));
    let sent = app.request("POST", "/labkey/sync?dataset=gottcha2").send().await.expect("answer");
    assert_eq!(sent.status(), 202);
    eventually("the rows are on their way", async || asked(&labkey, "query-insertRows") == 1).await;
    let path = format!("/submissions/{}", receipt["submission_id"]);
    assert_eq!(app.request("DELETE", &path).send().await.expect("answer").status(), 204);
    eventually("labkey has them no more", async || {
        app.scalar::<i64>("SELECT count(*) FROM labkey_deliveries WHERE removed_at IS NOT NULL").await == 1
    })
    .await;
    assert!(labkey.rows(LIST).is_empty());
}

#[tokio::test]
async fn wide_rows_are_sent_in_requests_of_bounded_size() {
    let (labkey, app) = lab(inserting(), &[("labkey.batch_bytes", "64KiB")]).await;
    let wide = RECORD.replace("Orthoebolavirus zairense", &"y".repeat(3000));
    app.store("/ingest-gottcha2", format!("{wide}\n").repeat(100)).await;
    assert_eq!(sync(&app).await["uploaded"], 100);
    let largest = labkey.seen().iter().map(|seen| seen.body.len()).max().expect("requests");
    assert!(largest < 68 * 1024, "{largest} bytes");
    holds_once(&labkey, 100);
}

#[tokio::test]
async fn secrets_are_printed_nowhere() {
    let (labkey, app) = lab(inserting(), &[("labkey.api_key", "apikey|do-not-print")]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    let report = sync(&app).await;
    assert!(report["errors"][0].as_str().expect("error").contains("did not match"), "{report}");
    let opened = Labkey::open(&app.app.config.labkey, &app.app.datasets).expect("labkey").expect("configured");
    let failure = opened.client.whoami().await.expect_err("refused");
    let status = app.get("/labkey/status").await.to_string();
    let config = format!("{:?}", app.app.config.labkey);
    for text in [format!("{failure:?} {failure}"), report.to_string(), status, config] {
        assert!(!text.contains("do-not-print"), "{text}");
    }
    assert!(labkey.seen().iter().any(|seen| seen.headers["apikey"] == "apikey|do-not-print"));
}

#[tokio::test]
async fn a_page_for_people_is_not_taken_for_labkey() {
    let huge = " ".repeat(65 * 1024 * 1024);
    for (page, said) in [("<html>Welcome</html>".to_owned(), "no LabKey server"), (huge, "more than 64 MiB")] {
        let page = axum::Router::new().fallback(async move || axum::response::Html(page));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        tokio::spawn(async move { axum::serve(listener, page).await.expect("serve") });
        let app = TestApp::with(&crate::labkey::settings(&url)).await;
        app.store("/ingest-gottcha2", RECORD).await;
        let report = sync(&app).await;
        assert!(report["errors"][0].as_str().expect("error").contains(said), "{report}");
        assert_eq!(report["remaining"], 1);
    }
}
