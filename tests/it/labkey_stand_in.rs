//! The stand-in for LabKey Server, at the places that its official client does not reach.

use std::time::{Duration, Instant};

use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::app::eventually;
use crate::labkey_server::{CONTAINER, Fault, KEY, Kind, LabKeyServer, List, PASSWORD, Permission, USER};

/// Any token that looks like one, and is sent both as cookie and as header, is as good as LabKey's own.
const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

async fn server() -> LabKeyServer {
    nvd_support_car::tls::use_ring();
    let labkey = LabKeyServer::start().await;
    let hits = List::auto("hits").column("SAMPLE", Kind::Text).column("READ_COUNT", Kind::Integer);
    labkey.add(hits.column("ABUNDANCE", Kind::Number));
    labkey.add(List::keyed("records", "RecordKey").column("SAMPLE", Kind::Text).column("READ_COUNT", Kind::Integer));
    labkey
}

fn request(labkey: &LabKeyServer, method: &str, action: &str) -> RequestBuilder {
    let client = Client::builder().no_proxy().build().expect("client");
    client.request(method.parse().expect("method"), format!("{}{CONTAINER}/{action}.api", labkey.url))
}

/// A request with key and token.
fn post(labkey: &LabKeyServer, action: &str) -> RequestBuilder {
    let cookie = format!("X-LABKEY-CSRF={TOKEN}");
    request(labkey, "POST", action).header("apikey", KEY).header("X-LABKEY-CSRF", TOKEN).header("Cookie", cookie)
}

async fn read(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, response.json().await.expect("JSON"))
}

async fn send(request: RequestBuilder) -> (u16, Value) {
    read(request.send().await.expect("answer")).await
}

async fn insert(labkey: &LabKeyServer, list: &str, rows: Value) -> (u16, Value) {
    let body = json!({"schemaName": "lists", "queryName": list, "rows": rows, "skipReselectRows": true,
        "auditBehavior": "SUMMARY", "auditUserComment": "delivery 1"});
    send(post(labkey, "query-insertRows").json(&body)).await
}

async fn import(labkey: &LabKeyServer, list: &str, option: &str, text: &str) -> (u16, Value) {
    let form = [("schemaName", "lists"), ("queryName", list), ("insertOption", option), ("text", text)];
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let kind = "application/x-www-form-urlencoded";
    send(post(labkey, "query-import").header("Content-Type", kind).body(body)).await
}

async fn select(labkey: &LabKeyServer, list: &str, filter: &str) -> Vec<Value> {
    let path = format!("query-getQuery.api?schemaName=lists&query.queryName={list}&{filter}");
    let url = format!("{}{CONTAINER}/{path}", labkey.url);
    let client = Client::builder().no_proxy().build().expect("client");
    let (status, body) = send(client.get(url).header("apikey", KEY)).await;
    assert_eq!(status, 200, "{body}");
    body["rows"].as_array().expect("rows").clone()
}

#[tokio::test]
async fn a_post_without_the_token_is_refused_with_a_key_too() {
    let labkey = server().await;
    let body = json!({"schemaName": "lists", "queryName": "hits", "rows": [{"SAMPLE": "S1"}]});
    let plain = || request(&labkey, "POST", "query-insertRows").header("apikey", KEY).json(&body);
    let other = TOKEN.replace('0', "f");
    let attempts = [
        plain(),
        plain().header("X-LABKEY-CSRF", TOKEN),
        plain().header("Cookie", format!("X-LABKEY-CSRF={TOKEN}")),
        plain().header("X-LABKEY-CSRF", other).header("Cookie", format!("X-LABKEY-CSRF={TOKEN}")),
        // No token, although both are the same.
        plain().header("X-LABKEY-CSRF", "token").header("Cookie", "X-LABKEY-CSRF=token"),
    ];
    for attempt in attempts {
        let (status, body) = send(attempt).await;
        assert_eq!(status, 401);
        assert!(body["exception"].as_str().expect("text").contains("invalid security context"), "{body}");
    }
    assert_eq!(labkey.rows("hits").len(), 0);
    assert_eq!(insert(&labkey, "hits", json!([{"SAMPLE": "S1"}])).await.0, 200);
    // Selecting changes nothing, and needs no token.
    let form = request(&labkey, "POST", "query-getQuery").header("apikey", KEY);
    let form = form.header("Content-Type", "application/x-www-form-urlencoded");
    let (status, _) = send(form.body("schemaName=lists&query.queryName=hits")).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn whoami_hands_out_a_token_once_and_calls_a_stranger_guest() {
    let labkey = server().await;
    let response = request(&labkey, "GET", "login-whoami").send().await.expect("answer");
    let cookie = response.headers()["set-cookie"].to_str().expect("text").to_owned();
    let (status, body) = read(response).await;
    assert_eq!((status, body["id"].as_i64(), body["email"].as_str()), (200, Some(0), Some("guest")));
    let token = body["CSRF"].as_str().expect("token");
    assert_eq!(token.len(), 64);
    assert!(cookie.starts_with(&format!("X-LABKEY-CSRF={token};")), "{cookie}");
    let again = request(&labkey, "GET", "login-whoami").basic_auth(USER, Some(PASSWORD));
    let response = again.header("Cookie", format!("JSESSIONID=1; X-LABKEY-CSRF={token}")).send().await.expect("answer");
    assert!(response.headers().get("set-cookie").is_none());
    let (_, body) = read(response).await;
    assert_eq!((body["id"].as_i64(), body["CSRF"].as_str()), (Some(1005), Some(token)));
}

#[tokio::test]
async fn the_meanings_of_401_and_403_are_told_apart() {
    let labkey = server().await;
    let wrong = request(&labkey, "GET", "login-whoami").header("apikey", "wrong");
    let (status, body) = send(wrong).await;
    assert_eq!(status, 401);
    assert!(body["exception"].as_str().expect("text").contains("did not match any accounts"), "{body}");
    labkey.revoke();
    assert_eq!(insert(&labkey, "hits", json!([{"SAMPLE": "S1"}])).await.0, 401);
    labkey.restore();
    labkey.permit(&[Permission::Read]);
    assert_eq!(insert(&labkey, "hits", json!([{"SAMPLE": "S1"}])).await.0, 403);
    let (status, body) = import(&labkey, "records", "MERGE", "RecordKey\na").await;
    assert_eq!((status, &body["errors"]["_form"]), (200, &json!("User does not have permission to insert rows")));
    labkey.permit(&[Permission::Read, Permission::Insert]);
    let (status, body) = import(&labkey, "records", "MERGE", "RecordKey\na").await;
    assert_eq!((status, &body["errors"]["_form"]), (200, &json!("User does not have permission to update rows")));
    let guest = request(&labkey, "GET", "query-getQueryDetails").send().await.expect("answer");
    assert_eq!(guest.status(), 401);
    assert!(guest.headers()["www-authenticate"].to_str().expect("text").starts_with("Basic"));
    labkey.inject("query-insertRows", Fault::NotReady);
    let (status, body) = insert(&labkey, "hits", json!([{"SAMPLE": "S1"}])).await;
    assert_eq!((status, &body["exception"]), (401, &json!("server is not ready")));
    assert_eq!(labkey.rows("hits").len(), 0);
}

#[tokio::test]
async fn an_insert_is_atomic_and_names_the_first_bad_row() {
    let labkey = server().await;
    let rows = json!([{"SAMPLE": "S1", "READ_COUNT": 1}, {"SAMPLE": "S2", "READ_COUNT": 3_000_000_000_i64},
        {"SAMPLE": "S3", "READ_COUNT": "many"}]);
    let (status, body) = insert(&labkey, "hits", rows).await;
    assert_eq!((status, &body["errorCount"]), (400, &json!(1)));
    let message = "Could not convert value '3000000000' (Long) for Integer field 'READ_COUNT'";
    assert_eq!(body["exception"], message);
    let error = &body["errors"][0];
    assert_eq!((&error["rowNumber"], &error["errors"][0]["field"]), (&json!(2), &json!("READ_COUNT")));
    assert_eq!(error["row"]["SAMPLE"], "S2");
    assert_eq!(labkey.rows("hits").len(), 0);
    assert_eq!(labkey.audits(), []);
    let twice = json!([{"RecordKey": "a"}, {"RecordKey": "b"}, {"RecordKey": "a"}]);
    let (status, body) = insert(&labkey, "records", twice).await;
    assert_eq!(status, 400);
    assert!(body["exception"].as_str().expect("text").contains("duplicate key value"), "{body}");
    assert_eq!(labkey.rows("records").len(), 0);
    let (status, body) = insert(&labkey, "hits", json!([])).await;
    assert_eq!((status, &body["exception"]), (400, &json!("No 'rows' array supplied.")));
}

#[tokio::test]
async fn integers_have_32_bits_and_values_are_converted() {
    let labkey = server().await;
    for good in [json!(-2_147_483_648), json!(2_147_483_647), json!("12"), json!(12.0), Value::Null] {
        assert_eq!(insert(&labkey, "hits", json!([{"READ_COUNT": good}])).await.0, 200, "{good}");
    }
    for bad in [json!(2_147_483_648_i64), json!(-2_147_483_649_i64), json!(1.5), json!("GCF_1"), json!("")] {
        assert_eq!(insert(&labkey, "hits", json!([{"READ_COUNT": bad}])).await.0, 400, "{bad}");
    }
    let counts: Vec<_> = labkey.rows("hits").into_iter().map(|row| row["READ_COUNT"].clone()).collect();
    assert_eq!(json!(counts), json!([-2_147_483_648_i64, 2_147_483_647, 12, 12, null]));
    assert_eq!(insert(&labkey, "hits", json!([{"SAMPLE": "x".repeat(4001)}])).await.0, 400);
    assert_eq!(insert(&labkey, "hits", json!([{"SAMPLE": "", "ABUNDANCE": 0.25}])).await.0, 200);
    assert_eq!(labkey.rows("hits").last().expect("row")["SAMPLE"], Value::Null);
}

#[tokio::test]
async fn unknown_columns_and_filters_on_them_are_ignored_without_a_word() {
    let labkey = server().await;
    let (status, body) = insert(&labkey, "hits", json!([{"sample": "S1", "SAMPEL": "S2"}, {"Sample": "S3"}])).await;
    assert_eq!((status, &body["rowsAffected"]), (200, &json!(2)));
    assert_eq!(body["rows"], json!([{"Key": 1}, {"Key": 2}]));
    let rows = labkey.rows("hits");
    assert_eq!((rows[0]["SAMPLE"].as_str(), rows[1]["SAMPLE"].as_str()), (Some("S1"), Some("S3")));
    assert_eq!(rows[0].len(), 4);
    assert_eq!(select(&labkey, "hits", "query.sample~eq=S3").await.len(), 1);
    assert_eq!(select(&labkey, "hits", "query.SAMPEL~eq=S3").await.len(), 2);
    labkey.change("hits", |hits| hits.rename("SAMPLE", "SAMPLE_ID"));
    let details = request(&labkey, "GET", "query-getQueryDetails").header("apikey", KEY);
    let (_, body) = send(details.query(&[("schemaName", "lists"), ("queryName", "hits")])).await;
    let names: Vec<_> = body["columns"].as_array().expect("columns").iter().map(|c| c["name"].as_str()).collect();
    assert!(names.contains(&Some("SAMPLE_ID")) && !names.contains(&Some("SAMPLE")), "{names:?}");
    assert_eq!((&body["supportMerge"], &body["columns"][2]["jsonType"]), (&json!(false), &json!("int")));
}

#[tokio::test]
async fn a_merge_is_idempotent_with_text_keys_and_refused_with_200_on_counted_ones() {
    let labkey = server().await;
    let (status, body) = import(&labkey, "hits", "MERGE", "SAMPLE\nS1").await;
    assert_eq!((status, &body["success"]), (200, &json!(false)));
    assert_eq!(body["exception"], "MERGE action is not supported for hits.");
    assert_eq!(body["exceptionClass"], "java.lang.IllegalArgumentException");
    let text = "RecordKey\tSAMPLE\tREAD_COUNT\na\tS1\t1\nb\tS2\t";
    for _ in 0..2 {
        let (status, body) = import(&labkey, "records", "MERGE", text).await;
        assert_eq!((status, body), (200, json!({"success": true, "rowCount": 2})));
    }
    let (_, body) = import(&labkey, "records", "MERGE", "recordkey\tread_count\nb\t7").await;
    assert_eq!(body["success"], true);
    let expected = json!([{"RecordKey": "a", "SAMPLE": "S1", "READ_COUNT": 1},
        {"RecordKey": "b", "SAMPLE": "S2", "READ_COUNT": 7}]);
    assert_eq!(json!(labkey.rows("records")), expected);
    assert_eq!(labkey.counts("records", "RecordKey").into_values().max(), Some(1));
    let (status, body) = import(&labkey, "records", "MERGE", "RecordKey\tSAMPLE\nc\tS3\n\tS4").await;
    assert_eq!((status, &body["success"]), (200, &json!(false)));
    assert_eq!(body["exception"], "Missing value for required property: RecordKey");
    assert_eq!(body["errors"][0]["rowNumber"], 2);
    let (status, body) = import(&labkey, "records", "INSERT", "RecordKey\na").await;
    assert_eq!((status, &body["success"]), (200, &json!(false)));
    assert_eq!(labkey.rows("records").len(), 2);
}

#[tokio::test]
async fn imported_text_loses_what_is_not_quoted() {
    let labkey = server().await;
    let text = "RecordKey\tSAMPLE\n#1\tlost\nb\t C:\\temp \n\"#3\"\t\" C:\\temp, \"\"x\"\"\n\tnext \"\n\nd\t\\N\ne\n";
    let (_, body) = import(&labkey, "records", "MERGE", text).await;
    assert_eq!(body["rowCount"], 4, "{body}");
    let rows: Vec<_> = labkey.rows("records").into_iter().map(|row| row["SAMPLE"].clone()).collect();
    assert_eq!(json!(rows), json!([" C:\\temp, \"x\"\n\tnext ", "C:\temp", null, null]));
}

#[tokio::test]
async fn several_changes_are_one_transaction_or_a_trial() {
    let labkey = server().await;
    let (_, body) = insert(&labkey, "hits", json!([{"SAMPLE": "S1"}, {"SAMPLE": "S2"}])).await;
    assert_eq!(body["transactionAuditId"], 9931);
    let save = async |commands: Value, is_trial: bool| {
        let body = json!({"commands": commands, "validateOnly": is_trial});
        send(post(&labkey, "query-saveRows").json(&body)).await
    };
    let change = |command: &str, rows: Value| {
        json!({"command": command, "schemaName": "lists", "queryName": "hits", "rows": rows, "auditBehavior": "SUMMARY",
            "auditUserComment": "replaced"})
    };
    let replace =
        json!([change("delete", json!([{"Key": 1}, {"Key": 99}])), change("insert", json!([{"SAMPLE": "S3"}]))]);
    let (status, body) = save(replace.clone(), true).await;
    assert_eq!((status, &body["committed"]), (200, &json!(false)));
    assert_eq!(labkey.counts("hits", "SAMPLE").len(), 2);
    let bad = json!([change("delete", json!([{"Key": 1}])), change("insert", json!([{"READ_COUNT": "x"}]))]);
    assert_eq!(save(bad, false).await.0, 400);
    assert_eq!(labkey.counts("hits", "SAMPLE").into_keys().collect::<Vec<_>>(), ["S1", "S2"]);
    let (status, body) = save(replace, false).await;
    assert_eq!((status, &body["committed"]), (200, &json!(true)));
    assert_eq!(body["result"][0]["transactionAuditId"], body["result"][1]["transactionAuditId"]);
    let update = json!([change("update", json!([{"Key": 2, "READ_COUNT": 5}]))]);
    assert_eq!(save(update, false).await.0, 200);
    let missing = json!([change("update", json!([{"Key": 1, "READ_COUNT": 5}]))]);
    assert_eq!(save(missing, false).await.0, 404);
    let rows: Vec<_> =
        labkey.rows("hits").into_iter().map(|row| (row["SAMPLE"].clone(), row["READ_COUNT"].clone())).collect();
    assert_eq!(rows, [(json!("S2"), json!(5)), (json!("S3"), Value::Null)]);
    let notes: Vec<_> = labkey.audits().into_iter().map(|note| (note.comment.expect("comment"), note.rows)).collect();
    assert_eq!(notes, [("delivery 1".to_owned(), 2), ("replaced".to_owned(), 3), ("replaced".to_owned(), 1)]);
}

#[tokio::test]
async fn missing_lists_fail_in_the_way_of_each_action() {
    let labkey = server().await;
    let (status, body) = insert(&labkey, "gone", json!([{"SAMPLE": "S1"}])).await;
    assert_eq!((status, &body["exceptionClass"]), (500, &json!("java.lang.IllegalArgumentException")));
    assert_eq!(body["exception"], "The query 'gone' in the schema 'lists' does not exist.");
    assert_eq!(import(&labkey, "gone", "MERGE", "a\nb").await.0, 200);
    let body = "schemaName=lists&query.queryName=gone";
    let form = post(&labkey, "query-getQuery").header("Content-Type", "application/x-www-form-urlencoded");
    assert_eq!(send(form.body(body)).await.0, 404);
    let details = request(&labkey, "GET", "query-getQueryDetails").header("apikey", KEY);
    assert_eq!(send(details.query(&[("schemaName", "lists"), ("queryName", "gone")])).await.0, 404);
    let client = Client::builder().no_proxy().build().expect("client");
    let escaped = client.get(format!("{}/%4EVD/Metagenomics/login-whoami.api", labkey.url));
    assert_eq!(send(escaped).await.0, 200);
    let elsewhere = client.get(format!("{}/NVD/Nope/login-whoami.api", labkey.url));
    let (status, body) = send(elsewhere).await;
    assert_eq!((status, &body["exception"]), (404, &json!("No such project: /NVD/Nope")));
    let unknown = request(&labkey, "GET", "query-nothing").send().await.expect("answer");
    assert_eq!(unknown.status(), 404);
    assert!(unknown.text().await.expect("text").starts_with("<!DOCTYPE html>"));
    assert_eq!(send(request(&labkey, "GET", "query-insertRows").header("apikey", KEY)).await.0, 405);
}

#[tokio::test]
async fn rows_are_selected_by_filters_in_order_and_in_pages() {
    let labkey = server().await;
    let rows: Vec<_> = (0..10).map(|i| json!({"SAMPLE": format!("S{}", i % 3), "READ_COUNT": 10 - i})).collect();
    insert(&labkey, "hits", json!(rows)).await;
    insert(&labkey, "hits", json!([{"SAMPLE": "a;b"}])).await;
    let count = async |filter: &str| select(&labkey, "hits", filter).await.len();
    assert_eq!(count("query.SAMPLE~eq=S1").await, 3);
    assert_eq!(count("query.SAMPLE~eq=S1&query.READ_COUNT~gt=5").await, 2);
    assert_eq!(count("query.SAMPLE~in=S1;S2").await, 6);
    assert_eq!(count("query.SAMPLE~in={json:[\"a;b\",\"S0\"]}").await, 5);
    assert_eq!(count("query.SAMPLE~notin=S1;S2").await, 5);
    assert_eq!(count("query.READ_COUNT~isblank=").await, 1);
    assert_eq!(count("query.READ_COUNT~in=1;2;77").await, 2);
    assert_eq!(count("query.SAMPLE~startswith=s").await, 10);
    assert_eq!(count("query.maxRows=4").await, 4);
    assert_eq!(count("query.maxRows=-1&query.offset=4").await, 7);
    let page = select(
        &labkey,
        "hits",
        "query.READ_COUNT~isnonblank=&query.sort=-SAMPLE,READ_COUNT&query.columns=READ_COUNT&query.maxRows=2",
    )
    .await;
    assert_eq!(json!(page), json!([{"READ_COUNT": 2, "Key": 9}, {"READ_COUNT": 5, "Key": 6}]));
    let bad = post(&labkey, "query-getQuery").query(&[("schemaName", "lists"), ("query.queryName", "hits")]);
    assert_eq!(send(bad.query(&[("query.READ_COUNT~eq", "x")])).await.0, 400);
    let extended = post(&labkey, "query-selectRows").query(&[("schemaName", "lists"), ("query.queryName", "hits")]);
    let (_, body) = send(extended.query(&[("apiVersion", "9.1"), ("query.maxRows", "1")])).await;
    assert_eq!((&body["rows"][0]["SAMPLE"]["value"], &body["rowCount"]), (&json!("S0"), &json!(11)));
}

#[tokio::test]
async fn faults_meet_the_requests_they_are_for() {
    let labkey = server().await;
    let body = json!({"schemaName": "lists", "queryName": "hits", "rows": [{"SAMPLE": "S1"}]});
    let send = || post(&labkey, "query-insertRows").json(&body).timeout(Duration::from_secs(5)).send();
    let kept = || labkey.rows("hits").len();

    labkey.inject("query-insertRows", Fault::Drop);
    assert_eq!(select(&labkey, "hits", "").await.len(), 0);
    assert!(send().await.is_err());
    assert_eq!(kept(), 0);

    labkey.inject("query-insertRows", Fault::DropAfter);
    assert!(send().await.is_err());
    assert_eq!(kept(), 1);

    labkey.inject("query-insertRows", Fault::Truncate);
    let half = send().await.expect("a head");
    assert_eq!(half.status(), 200);
    assert!(half.text().await.is_err());
    assert_eq!(kept(), 2);

    for (fault, status) in
        [(Fault::BadKey, 401), (Fault::Csrf, 401), (Fault::Error, 500), (Fault::Unavailable(Some(7)), 503)]
    {
        labkey.inject("query-insertRows", fault);
        let response = send().await.expect("answer");
        assert_eq!(response.status(), status);
        assert_eq!(response.headers().get("retry-after").is_some(), status == 503);
    }
    assert_eq!(kept(), 2);

    labkey.inject("query-insertRows", Fault::Delay(Duration::from_millis(300)));
    let start = Instant::now();
    assert!(send().await.is_ok() && start.elapsed() >= Duration::from_millis(300));

    // The client gives up, and its rows come all the same, later.
    labkey.inject("query-insertRows", Fault::DelayBefore(Duration::from_millis(400)));
    let hasty = post(&labkey, "query-insertRows").json(&body).timeout(Duration::from_millis(100));
    assert!(hasty.send().await.expect_err("a timeout").is_timeout());
    assert_eq!(kept(), 3);
    eventually("the late rows arrive", async || kept() == 4).await;

    let statuses: Vec<_> = labkey.seen().iter().map(|seen| (seen.action.clone(), seen.status)).collect();
    assert_eq!(statuses[0], ("query-getQuery".to_owned(), Some(200)));
    assert_eq!(statuses[1], ("query-insertRows".to_owned(), None));
    assert_eq!(labkey.seen()[2].json()["rows"][0]["SAMPLE"], "S1");

    let mut turn = 0;
    labkey.inject_with(move |seen| {
        turn += 1;
        (turn % 2 == 1).then(|| if seen.action == "query-insertRows" { Fault::Error } else { Fault::Drop })
    });
    assert_eq!(send().await.expect("answer").status(), 500);
    assert_eq!(send().await.expect("answer").status(), 200);
}

#[tokio::test]
async fn a_server_that_is_away_breaks_connections_and_keeps_its_rows() {
    let labkey = server().await;
    insert(&labkey, "hits", json!([{"SAMPLE": "S1"}])).await;
    labkey.set_away(true);
    assert!(request(&labkey, "GET", "login-whoami").send().await.is_err());
    labkey.set_away(false);
    assert_eq!(select(&labkey, "hits", "").await.len(), 1);
    labkey.change("hits", List::clear);
    labkey.remove("records");
    assert_eq!(insert(&labkey, "records", json!([{"RecordKey": "a"}])).await.0, 500);
    assert_eq!(labkey.rows("hits").len(), 0);
}
