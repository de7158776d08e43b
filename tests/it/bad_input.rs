//! Bad input: a clear error, nothing stored, nothing lost.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::{RECORD, TOKEN, TestApp, eventually, gzip, zlib};

const PATH: &str = "/ingest-gottcha2";

/// The first fault of a 422.
fn fault(problem: &Value) -> (Option<u64>, Option<u64>, String, String) {
    let first = &problem["errors"][0];
    let text = |key: &str| first[key].as_str().unwrap_or_default().to_owned();
    (first["line"].as_u64(), first["column"].as_u64(), text("field"), text("reason"))
}

/// Sends the valid record with one change, as its second line, and answers with the fault.
async fn second_line(change: (&str, &str)) -> (Option<u64>, Option<u64>, String, String) {
    let app = TestApp::start().await;
    let bad = RECORD.replace(change.0, change.1);
    assert_ne!(bad, RECORD, "the change must change something");
    let problem = app.refuse(422, PATH, gzip(format!("{RECORD}\n{bad}\n"))).await;
    fault(&problem)
}

#[tokio::test]
async fn a_body_in_no_known_format_is_refused() {
    let app = TestApp::start().await;
    let problem = app.refuse(400, PATH, "this is not gzip").await;
    assert!(problem["detail"].as_str().expect("detail").contains("gzip"), "{problem}");
    app.refuse(400, PATH, gzip("this is no record")).await;
    app.refuse(400, PATH, vec![0xDE, 0xAD, 0xBE, 0xEF, 0xFF]).await;
}

#[tokio::test]
async fn a_truncated_gzip_stores_nothing() {
    let app = TestApp::start().await;
    let whole = gzip(format!("{RECORD}\n").repeat(5000));
    for length in [5, 11, whole.len() / 2, whole.len() - 1] {
        let problem = app.refuse(400, PATH, &whole[..length]).await;
        assert!(problem["detail"].as_str().expect("detail").contains("truncated"), "{length}: {problem}");
    }
}

#[tokio::test]
async fn a_truncated_zstd_stores_nothing() {
    let app = TestApp::start().await;
    let whole = zstd::encode_all(RECORD.as_bytes(), 3).expect("zstd");
    app.refuse(400, PATH, &whole[..whole.len() - 3]).await;
}

#[tokio::test]
async fn a_truncated_damaged_or_continued_zlib_stream_stores_nothing() {
    let app = TestApp::start().await;
    let whole = zlib(format!("{RECORD}\n").repeat(5000));
    for length in [3, whole.len() / 2, whole.len() - 1] {
        let problem = app.refuse(400, PATH, &whole[..length]).await;
        assert!(problem["detail"].as_str().expect("detail").contains("truncated"), "{length}: {problem}");
    }
    let mut damaged = whole.clone();
    *damaged.last_mut().expect("checksum") ^= 0xFF;
    app.refuse(400, PATH, damaged).await;
    let continued = [whole.clone(), whole].concat();
    let problem = app.refuse(400, PATH, continued).await;
    assert!(problem["detail"].as_str().expect("detail").contains("something else follows"), "{problem}");
}

#[tokio::test]
async fn garbage_after_the_gzip_stores_nothing() {
    let app = TestApp::start().await;
    let mut body = gzip(RECORD);
    body.extend_from_slice(b"garbage at the end");
    let problem = app.refuse(400, PATH, body).await;
    assert!(problem["detail"].as_str().expect("detail").contains("something else follows"), "{problem}");
}

#[tokio::test]
async fn a_wrong_checksum_stores_nothing() {
    let app = TestApp::start().await;
    let mut body = gzip(RECORD);
    let crc = body.len() - 8;
    body[crc] ^= 0xFF;
    app.refuse(400, PATH, body).await;
}

#[tokio::test]
async fn text_that_is_not_utf8_is_refused_with_its_line() {
    let app = TestApp::start().await;
    let mut body = format!("{RECORD}\n{RECORD}\n").into_bytes();
    body.extend_from_slice(b"{\"sample_id\":\"\xFF\"}\n");
    let problem = app.refuse(400, PATH, gzip(body)).await;
    assert!(problem["detail"].as_str().expect("detail").contains("line 3"), "{problem}");
}

#[tokio::test]
async fn a_gzip_bomb_meets_the_limit_on_decompressed_bytes() {
    let app = TestApp::with(&[("ingest.max_decompressed", "1MiB")]).await;
    let bomb = gzip(format!("{RECORD}\n").repeat(50_000));
    assert!(bomb.len() < 100_000);
    let problem = app.refuse(413, PATH, bomb).await;
    assert!(problem["detail"].as_str().expect("detail").contains("ingest.max_decompressed"), "{problem}");
}

#[tokio::test]
async fn what_a_header_or_a_query_says_once_meets_the_limits_as_often_as_it_is_stored() {
    let app = TestApp::with(&[("ingest.max_decompressed", "1MiB")]).await;
    let rows = "x\tA\t1\t2\t3\n".repeat(10_000);
    let body = format!("LEVEL\tNAME\tTAXID\tREAD_COUNT\tTOTAL_BP_MAPPED\n{rows}");
    let problem = app.refuse(413, &format!("{PATH}?sample_id={}", "S".repeat(200)), body.clone()).await;
    assert!(problem["detail"].as_str().expect("detail").contains("rows as they are stored"), "{problem}");
    let problem = app.refuse(422, &format!("{PATH}?sample_id=S"), format!("{}\t{body}", "N".repeat(300))).await;
    assert!(fault(&problem).3.contains("longer than 256 bytes"), "{problem}");
}

#[tokio::test]
async fn a_bomb_without_line_ends_meets_the_limit_on_lines() {
    let app = TestApp::start().await;
    let problem = app.refuse(413, PATH, gzip(vec![b' '; 64 * 1024 * 1024])).await;
    assert!(problem["detail"].as_str().expect("detail").contains("ingest.max_line"), "{problem}");
}

#[tokio::test]
async fn compressed_bytes_and_rows_have_limits_too() {
    let app = TestApp::with(&[("ingest.max_body", "64KiB"), ("ingest.max_rows", "10")]).await;
    let problem = app.refuse(413, PATH, format!("{RECORD}\n").repeat(2000)).await;
    assert!(problem["detail"].as_str().expect("detail").contains("ingest.max_body"), "{problem}");
    let problem = app.refuse(413, PATH, gzip(format!("{RECORD}\n").repeat(11))).await;
    assert!(problem["detail"].as_str().expect("detail").contains("ingest.max_rows"), "{problem}");
    app.store(PATH, gzip(format!("{RECORD}\n").repeat(10))).await;
}

#[tokio::test]
async fn bad_json_is_refused_with_line_and_column() {
    let (line, column, _, reason) = second_line(("\"taxid\":", "\"taxid\"")).await;
    assert_eq!(line, Some(2));
    assert_eq!(column, Some(78));
    assert!(reason.contains("is not JSON"), "{reason}");
}

#[tokio::test]
async fn json_that_is_no_object_is_refused() {
    let app = TestApp::start().await;
    for body in ["[1,2]", "17", "\"text\"", "null", "true"] {
        let problem = app.refuse(422, PATH, body).await;
        assert_eq!(fault(&problem).0, Some(1), "{body}: {problem}");
    }
    let problem = app.refuse(422, PATH, format!("[{RECORD}]")).await;
    assert!(fault(&problem).3.contains("one object per line"), "{problem}");
    let problem = app.refuse(422, PATH, format!("{RECORD}{RECORD}")).await;
    assert!(fault(&problem).3.contains("trailing"), "{problem}");
}

#[tokio::test]
async fn a_key_that_stands_twice_is_refused() {
    let (line, _, field, reason) = second_line(("\"read_count\":513", "\"read_count\":513,\"READ_COUNT\":514")).await;
    assert_eq!((line, field.as_str()), (Some(2), "read_count"));
    assert!(reason.contains("twice"), "{reason}");
    let (_, _, field, _) = second_line(("{", "{\"new\":1,\"new\":2,")).await;
    assert_eq!(field, "new");
}

#[tokio::test]
async fn a_missing_or_null_required_field_is_refused() {
    let (line, _, field, reason) = second_line(("\"taxid\":\"3052462\",", "")).await;
    assert_eq!((line, field.as_str()), (Some(2), "taxid"));
    assert!(reason.contains("required"), "{reason}");
    let (_, column, field, _) = second_line(("\"taxid\":\"3052462\"", "\"taxid\":null")).await;
    assert_eq!((column, field.as_str()), (Some(79), "taxid"));
}

#[tokio::test]
async fn a_wrong_type_is_refused_with_its_place_and_without_its_value() {
    let (line, column, field, reason) = second_line(("513", "\"secret\"")).await;
    assert_eq!((line, column, field.as_str()), (Some(2), Some(102), "read_count"));
    assert!(!reason.contains("secret"), "{reason}");
    for (from, to) in [
        ("513", "true"),
        ("513", "[1]"),
        ("513", "{\"a\":1}"),
        ("513", "513.5"),
        ("513", "9007199254740990.7"),
        ("513", "513.00000000000000000001"),
        ("513", "\"513\""),
        ("\"S1\"", "1.5"),
        ("\"S1\"", "[]"),
    ] {
        let (line, ..) = second_line((from, to)).await;
        assert_eq!(line, Some(2), "{to}");
    }
}

#[tokio::test]
async fn numbers_out_of_range_are_refused() {
    let (_, _, field, reason) = second_line(("513", "9223372036854775808")).await;
    assert!(field == "read_count" && reason.contains("64-bit integers"), "{reason}");
    let (_, _, _, reason) = second_line(("513", "1e30")).await;
    assert!(reason.contains("64-bit integers"), "{reason}");
    let (_, _, _, reason) = second_line(("513", "9007199254740993.0")).await;
    assert!(reason.contains("write its digits only"), "{reason}");
    let (_, _, field, reason) = second_line(("513", "-1")).await;
    assert!(field == "read_count" && reason.contains("at least 0"), "{reason}");
    let (_, _, field, reason) = second_line(("{", "{\"depth\":1e400,")).await;
    assert!(field == "depth" && reason.contains("64-bit floats"), "{reason}");
    let (_, _, field, _) = second_line(("{", "{\"rel_abundance\":1.5,")).await;
    assert_eq!(field, "rel_abundance");
    let (_, _, field, _) = second_line(("{", "{\"experiment\":2147483648,")).await;
    assert_eq!(field, "experiment");
}

#[tokio::test]
async fn nan_and_infinity_as_python_writes_them_are_explained() {
    for literal in ["NaN", "Infinity", "-Infinity"] {
        let (line, _, field, reason) = second_line(("{", &format!("{{\"depth\": {literal},"))).await;
        assert_eq!((line, field.as_str()), (Some(2), "depth"), "{literal}");
        assert!(reason.contains("send null"), "{literal}: {reason}");
    }
}

#[tokio::test]
async fn the_character_nul_is_refused_wherever_it_hides() {
    for change in [
        ("\"S1\"", "\"S\\u00001\""),
        ("{", "{\"new\":\"\\u0000\","),
        ("{", "{\"new\":{\"deep\":[\"\\u0000\"]},"),
        ("{", "{\"n\\u0000\":1,"),
    ] {
        let (line, _, _, reason) = second_line(change).await;
        assert_eq!(line, Some(2));
        assert!(reason.contains("U+0000"), "{reason}");
    }
    let app = TestApp::start().await;
    app.refuse(422, PATH, "LEVEL\tNAME\tTAXID\tREAD_COUNT\tTOTAL_BP_MAPPED\tsample_id\nspecies\tA\0B\t1\t2\t3\tS1\n")
        .await;
    app.refuse(422, "/ingest-gottcha2?sample_id=a%00b", RECORD).await;
}

#[tokio::test]
async fn unknown_json_that_postgresql_could_not_hold_is_refused() {
    for (value, expected) in [("\"\\ud800\"", "escape"), ("{\"a\":1,\"a\":2}", "twice"), ("1e999", "range")] {
        let (line, _, field, reason) = second_line(("{", &format!("{{\"new\":{value},"))).await;
        assert_eq!((line, field.as_str()), (Some(2), "new"), "{value}");
        assert!(reason.contains(expected), "{value}: {reason}");
    }
    let deep = format!("{{\"new\":{}1{},", "[".repeat(500), "]".repeat(500));
    second_line(("{", &deep)).await;
}

#[tokio::test]
async fn a_tsv_row_of_another_width_is_refused() {
    let app = TestApp::start().await;
    let header = "LEVEL\tNAME\tTAXID\tREAD_COUNT\tTOTAL_BP_MAPPED\n";
    for row in ["species\tA\t1\t2\n", "species\tA\t1\t2\t3\t4\n"] {
        let problem = app.refuse(422, "/ingest-gottcha2?sample_id=S", format!("{header}{row}")).await;
        let (line, _, _, reason) = fault(&problem);
        assert_eq!(line, Some(2));
        assert!(reason.contains("5 are expected"), "{reason}");
    }
}

#[tokio::test]
async fn a_tsv_row_of_empty_cells_is_a_row_and_no_blank_line() {
    let app = TestApp::start().await;
    let rows = "LEVEL\tNAME\tTAXID\tREAD_COUNT\tTOTAL_BP_MAPPED\nspecies\tA\t1\t2\t3\n\n\t\t\t\t\n";
    let problem = app.refuse(422, "/ingest-gottcha2?sample_id=S", rows).await;
    assert_eq!(fault(&problem).0, Some(4));
}

#[tokio::test]
async fn a_tsv_header_must_name_required_columns_once() {
    let app = TestApp::start().await;
    let path = "/ingest-gottcha2?sample_id=S";
    let problem = app.refuse(422, path, "LEVEL\tNAME\tREAD_COUNT\tTOTAL_BP_MAPPED\nspecies\tA\t1\t2\n").await;
    assert_eq!(fault(&problem).2, "taxid");
    let problem = app.refuse(422, path, "LEVEL\tNAME\tTAXID\ttaxid\tREAD_COUNT\tTOTAL_BP_MAPPED\n").await;
    let (line, column, field, reason) = fault(&problem);
    assert_eq!((line, column, field.as_str()), (Some(1), Some(18), "taxid"));
    assert!(reason.contains("twice"), "{reason}");
    let problem = app.refuse(422, path, "species\tA\t1\t2\t3\n").await;
    assert!(fault(&problem).3.contains("not a header"), "{problem}");
}

#[tokio::test]
async fn a_tsv_cell_of_the_wrong_type_is_refused_with_its_place() {
    let app = TestApp::start().await;
    let body = "LEVEL\tNAME\tTAXID\tREAD_COUNT\tTOTAL_BP_MAPPED\tDEPTH\nspecies\tA\t1\t2\t3\tNaN\nspecies\tÄ\t1\tsecret\t3\t1\n";
    let problem = app.refuse(422, "/ingest-gottcha2?sample_id=S", body).await;
    assert_eq!(problem["errors"].as_array().expect("errors").len(), 2);
    assert_eq!(problem["errors"][0]["column"], 17);
    assert_eq!((problem["errors"][1]["line"].as_u64(), problem["errors"][1]["column"].as_u64()), (Some(3), Some(13)));
    assert!(!problem.to_string().contains("secret"));
}

#[tokio::test]
async fn at_most_twenty_faults_are_reported() {
    let app = TestApp::start().await;
    let problem = app.refuse(422, PATH, format!("{}\n", RECORD.replace("513", "-1")).repeat(30)).await;
    assert_eq!(problem["errors"].as_array().expect("errors").len(), 20);
}

#[tokio::test]
async fn parameters_that_are_no_columns_or_have_wrong_values_are_refused() {
    let app = TestApp::start().await;
    for (query, field) in [
        ("sampel_id=S", "sampel_id"),
        ("experiment=many", "experiment"),
        ("experiment=2147483648", "experiment"),
        ("sample_id=S&sample=T", "sample"),
        ("format=xml", "format"),
        ("on_conflict=ignore", "on_conflict"),
        ("on_conflict=replace&on_conflict=refuse", "on_conflict"),
        ("format=jsonl&format=tsv", "format"),
    ] {
        let problem = app.refuse(422, &format!("{PATH}?{query}"), RECORD).await;
        assert_eq!(fault(&problem).2, field, "{problem}");
    }
}

#[tokio::test]
async fn an_error_in_the_last_of_many_rows_stores_nothing() {
    let app = TestApp::start().await;
    let mut body = format!("{RECORD}\n").repeat(60_000);
    body.push_str("{\"sample_id\":\"S1\"}\n");
    let problem = app.refuse(422, PATH, gzip(body)).await;
    assert_eq!(fault(&problem).0, Some(60_001));
}

#[tokio::test]
async fn a_dataset_or_path_that_is_not_there_answers_with_a_problem() {
    let app = TestApp::start().await;
    let problem = app.refuse(404, "/ingest/nonsense", RECORD).await;
    assert!(problem["detail"].as_str().expect("detail").contains("nonsense"));
    app.refuse(404, "/nowhere", RECORD).await;
    let answer = app.request("DELETE", PATH).send().await.expect("answer");
    assert_eq!(answer.headers()["allow"], "POST");
    crate::app::problem(answer, 405).await;
}

/// Opens a connection and sends the head of an upload of `length` bytes.
async fn begin_upload(app: &TestApp, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(app.address).await.expect("connect");
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("head");
    stream
}

#[tokio::test]
async fn a_client_that_stops_sending_is_let_go() {
    let app = TestApp::with(&[("ingest.idle_timeout", "300ms")]).await;
    let mut stream = begin_upload(&app, 1000).await;
    stream.write_all(b"{\"sample_id\"").await.expect("part");
    let mut answer = String::new();
    // The connection may be reset after the answer.
    drop(tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await.expect("in time"));
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(app.total().await, 0);
}

#[tokio::test]
async fn a_client_that_never_ends_a_small_request_is_let_go_too() {
    let app = TestApp::with(&[("ingest.idle_timeout", "300ms")]).await;
    let mut stream = TcpStream::connect(app.address).await.expect("connect");
    let head = format!(
        "POST /exports/trigger HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\
         Content-Length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.expect("head");
    let mut answer = String::new();
    drop(tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await.expect("in time"));
    assert!(answer.starts_with("HTTP/1.1 4") && answer.contains("no data arrived for 300ms"), "{answer}");
}

#[tokio::test]
async fn a_query_that_is_not_utf8_is_refused_since_two_samples_would_become_one() {
    let app = TestApp::start().await;
    for sample in ["B%FCrki", "B%F6rki"] {
        app.refuse(400, &format!("{PATH}?sample_id={sample}"), RECORD).await;
    }
    let answer = app.request("GET", "/submissions?sample_id=%FF").send().await.expect("answer");
    crate::app::problem(answer, 400).await;
}

#[tokio::test]
async fn a_slow_upload_succeeds() {
    let app = TestApp::with(&[("ingest.idle_timeout", "500ms")]).await;
    let body = gzip(format!("{RECORD}\n"));
    let mut stream = begin_upload(&app, body.len()).await;
    // Longer than the idle timeout as a whole, but never silent for so long.
    for part in body.chunks(body.len() / 10 + 1) {
        stream.write_all(part).await.expect("part");
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).await.expect("answer");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    assert_eq!(app.count("gottcha2_full").await, 1);
}

#[tokio::test]
async fn text_with_nul_is_the_fault_of_the_request_wherever_it_stands() {
    let app = TestApp::start().await;
    for path in ["/submissions?sample_id=%00", "/api/data/extracts/%00", "/api/data/extract_runs?extract_id=a%00b"] {
        let problem = crate::app::problem(app.request("GET", path).send().await.expect("answer"), 400).await;
        assert!(problem["detail"].as_str().expect("detail").contains("NUL"), "{problem}");
    }
    let extract = serde_json::json!({"name": "Weekly", "description": "\0"});
    let answer = app.request("POST", "/api/data/extracts").json(&extract).send().await.expect("answer");
    crate::app::problem(answer, 400).await;
}

#[tokio::test]
async fn a_client_that_disconnects_leaves_nothing_behind() {
    let app = TestApp::start().await;
    let body = gzip(pseudo_random(40_000));
    assert!(body.len() > 2_000_000, "the COPY must have begun: {}", body.len());
    let mut stream = begin_upload(&app, body.len()).await;
    stream.write_all(&body[..body.len() - 10]).await.expect("part");
    eventually("the COPY runs", async || {
        app.scalar::<i64>("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND state = 'active' AND datname = current_database()").await > 0
    })
    .await;
    drop(stream);
    eventually("the COPY is gone", async || {
        app.scalar::<i64>("SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid() AND datname = current_database()").await == 0
    })
    .await;
    assert_eq!(app.total().await, 0);
    // The connection that was cut off can be used again.
    app.store(PATH, body).await;
    assert_eq!(app.count("gottcha2_full").await, 40_000);
}

/// Records that hardly compress.
fn pseudo_random(rows: u64) -> String {
    let mut state = 1_u64;
    let mut body = String::new();
    for _ in 0..rows {
        let mut noise = String::new();
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            noise.push_str(&format!("{state:016x}"));
        }
        body.push_str(&RECORD.replace("Orthoebolavirus zairense", &noise));
        body.push('\n');
    }
    body
}

#[tokio::test]
async fn a_line_of_very_many_unknown_fields_is_read_as_fast_as_any() {
    let app = TestApp::start().await;
    let fields: String = (0..60_000).map(|index| format!("\"field_{index:05}\":1,")).collect();
    let started = std::time::Instant::now();
    let repeated = RECORD.replace('{', &format!("{{{fields}\"field_59999\":2,"));
    let problem = app.refuse(422, "/ingest-gottcha2", repeated).await;
    assert_eq!(problem["errors"][0]["field"], "field_59999");
    app.store("/ingest-gottcha2", RECORD.replace('{', &format!("{{{fields}"))).await;
    assert_eq!(app.scalar::<i64>("SELECT count(*) FROM gottcha2_full, jsonb_object_keys(extra)").await, 60_000);
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_header_of_very_many_repeated_names_is_refused_as_fast_as_any() {
    let app = TestApp::start().await;
    let unknown = (0..50_000).map(|index| format!("extra_{index:05}"));
    let header: Vec<String> = unknown.chain((0..50_002).map(|_| "taxid".to_owned())).collect();
    let started = std::time::Instant::now();
    let problem = app.refuse(422, "/ingest-gottcha2?sample_id=S1", format!("{}\n", header.join("\t"))).await;
    assert_eq!(problem["errors"].as_array().expect("errors").len(), 20);
    assert_eq!(problem["errors"][0]["field"], "taxid");
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_sample_that_is_too_long_to_be_looked_up_is_refused() {
    let app = TestApp::start().await;
    let long: String = (0..600_u32).map(|index| format!("{:05x}", index * 7919 % 1_048_573)).collect();
    let problem = app.refuse(422, "/ingest-gottcha2", RECORD.replace("S1", &long)).await;
    assert_eq!(problem["errors"][0]["field"], "sample_id");
    app.refuse(422, &format!("/ingest-gottcha2?run_id={long}"), RECORD).await;
}

#[tokio::test]
async fn two_keys_for_one_request_are_refused() {
    let app = TestApp::start().await;
    let request = app.post(PATH, RECORD).header("Idempotency-Key", "a").header("Idempotency-Key", "b");
    let problem = crate::app::problem(request.send().await.expect("answer"), 422).await;
    assert_eq!(fault(&problem).2, "Idempotency-Key", "{problem}");
    assert_eq!(app.count("submissions").await, 0);
}

#[tokio::test]
async fn a_row_that_only_postgresql_refuses_is_not_in_its_log_either() {
    let app = TestApp::start().await;
    let check = "ALTER TABLE gottcha2_full ADD CHECK (sample_id NOT LIKE 'Private%')";
    sqlx::query(check).execute(&app.pool).await.expect("check");
    app.refuse(422, "/ingest-gottcha2", RECORD.replace("S1", "Private-7f3a")).await;
    let folder: String = app.scalar("SHOW data_directory").await;
    let log = std::fs::read_to_string(format!("{folder}/server.log")).expect("log");
    assert!(log.contains("violates check constraint") && !log.contains("Private-7f3a"));
}
