//! Good input: every way in which workers send files, stored exactly once and value for value.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::Connection;

use crate::app::{RECORD, TestApp, data, eventually, gzip, problem, without_delayed_acknowledgement, zlib};

/// All rows of a table as JSON objects in the order of their file, without the service's columns and nulls.
async fn rows(app: &TestApp, table: &str) -> Vec<Value> {
    let sql = format!(
        "SELECT coalesce(json_agg(jsonb_strip_nulls(to_jsonb(t) - 'submission_id' - 'ordinal' - 'created_at')
            ORDER BY submission_id, ordinal), '[]')::text FROM {table} t"
    );
    serde_json::from_str(&app.scalar::<String>(&sql).await).expect("JSON")
}

/// A TSV file as JSON objects: numbers where the dataset has numbers, no empty cells, lower-case names.
fn tsv(app_columns: &Value, file: &[u8], given: &[(&str, Value)]) -> Vec<Value> {
    let text = std::str::from_utf8(file).expect("UTF-8");
    let mut lines = text.lines();
    let names: Vec<String> = lines.next().expect("header").split('\t').map(str::to_lowercase).collect();
    let is_number = |name: &str| {
        let columns = app_columns.as_array().expect("columns");
        let column = columns.iter().find(|column| column["name"] == name).expect(name);
        column["kind"] != "text"
    };
    lines
        .map(|line| {
            let mut row: serde_json::Map<String, Value> =
                given.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            for (name, cell) in names.iter().zip(line.split('\t')).filter(|(_, cell)| !cell.is_empty()) {
                let number = || {
                    let float: f64 = cell.parse().expect(cell);
                    // to_jsonb writes 1.0 as 1.
                    if float.fract() == 0.0 { json!(float as i64) } else { json!(float) }
                };
                row.insert(name.clone(), if is_number(name) { number() } else { json!(cell) });
            }
            Value::Object(row)
        })
        .collect()
}

#[tokio::test]
async fn all_three_generations_of_gottcha2_come_back_value_for_value() {
    let app = TestApp::start().await;
    let columns = app.get("/datasets/gottcha2").await["columns"].clone();
    let mut expected = Vec::new();
    for version in ["v2.1.8.6", "v2.1.10", "v2.4.3"] {
        for kind in ["full.tsv", "tsv"] {
            let file = data(&format!("gottcha2/{version}.SRR12689945.{kind}"));
            let path = format!("/ingest-gottcha2?sample_id=SRR12689945&tool_version={version}&experiment=7");
            let receipt = app.store(&path, gzip(&file)).await;
            let given =
                [("sample_id", json!("SRR12689945")), ("tool_version", json!(version)), ("experiment", json!(7))];
            let rows = tsv(&columns, &file, &given);
            assert_eq!(receipt["rows"], rows.len());
            expected.extend(rows);
        }
    }
    let stored = rows(&app, "gottcha2_full").await;
    assert_eq!(stored.len(), expected.len());
    for (stored, expected) in stored.iter().zip(&expected) {
        assert_eq!(stored, expected);
    }
    assert!(
        stored.iter().any(|row| row["level"] == "strain" && row["taxid"].as_str().expect("text").starts_with("GCF_"))
    );
}

#[tokio::test]
async fn the_prototypes_records_come_back_value_for_value() {
    let app = TestApp::start().await;
    let file = data("gottcha2/v2.1.10.SRR12689945.prototype.jsonl");
    app.store("/ingest-gottcha2", gzip(&file)).await;
    let sent: Vec<Value> = std::str::from_utf8(&file).expect("text").lines().map(normal).collect();
    assert_eq!(rows(&app, "gottcha2_full").await, sent);
}

/// A JSON line with whole floats as integers, as `to_jsonb` writes them.
fn normal(line: &str) -> Value {
    let mut value: Value = serde_json::from_str(line).expect("JSON");
    for field in value.as_object_mut().expect("object").values_mut() {
        if let Some(float) = field.as_f64().filter(|float| float.fract() == 0.0) {
            *field = json!(float as i64);
        }
    }
    value
}

#[tokio::test]
async fn stast_comes_back_value_for_value_with_all_its_identical_rows() {
    let app = TestApp::start().await;
    let receipt = app.store("/ingest-stast", data("stast/stast.jsonl.gz")).await;
    assert_eq!(receipt["rows"], 174);
    let file = data("stast/stast.jsonl");
    let sent: Vec<Value> = std::str::from_utf8(&file).expect("text").lines().map(normal).collect();
    assert_eq!(rows(&app, "stast_table").await, sent);
    let distinct: std::collections::HashSet<String> = sent.iter().map(ToString::to_string).collect();
    assert_eq!(distinct.len(), 82);
}

#[tokio::test]
async fn stast_is_read_with_and_without_header_and_raw_from_blast() {
    let app = TestApp::start().await;
    app.store("/ingest-stast", data("stast/stast.jsonl")).await;
    let expected = rows(&app, "stast_table").await;

    let with_header = data("stast/nvd_annotated_13col.megablast.tsv");
    let app = TestApp::start().await;
    app.store("/ingest-stast", gzip(&with_header)).await;
    assert_eq!(rows(&app, "stast_table").await, expected);

    let app = TestApp::start().await;
    let header_end = with_header.iter().position(|byte| *byte == b'\n').expect("header") + 1;
    app.store("/ingest-stast", gzip(&with_header[header_end..])).await;
    assert_eq!(rows(&app, "stast_table").await, expected);

    let app = TestApp::start().await;
    let raw = data("stast/raw_megablast_outfmt6_10col.contigs.tsv");
    app.store("/ingest-stast?sample=pox_contigs_001&task=megablast", raw).await;
    let without_rank: Vec<Value> = expected
        .into_iter()
        .map(|mut row| {
            row.as_object_mut().expect("object").remove("rank");
            row
        })
        .collect();
    assert_eq!(rows(&app, "stast_table").await, without_rank);
}

#[tokio::test]
async fn every_compression_and_label_that_clients_use_is_understood() {
    let app = TestApp::start().await;
    let plain = format!("{RECORD}\n{RECORD}\n");
    let mut members = gzip(&plain[..40]);
    members.extend(gzip(&plain[40..]));
    let zstd = zstd::encode_all(plain.as_bytes(), 3).expect("zstd");
    let mut frames = zstd::encode_all(&plain.as_bytes()[..9], 3).expect("zstd");
    frames.extend(zstd::encode_all(&plain.as_bytes()[9..], 3).expect("zstd"));
    // `pzstd` begins each frame with one that says how long it is.
    let skippable = [&[0x50, 0x2A, 0x4D, 0x18, 4, 0, 0, 0, 1, 2, 3, 4], zstd.as_slice()].concat();
    let bodies = [plain.clone().into_bytes(), gzip(&plain), members, zlib(&plain), zstd, frames, skippable];
    for (index, body) in bodies.into_iter().enumerate() {
        for (label, headers) in [
            ("none", vec![]),
            ("both", vec![("content-type", "application/gzip"), ("content-encoding", "gzip")]),
            ("json", vec![("content-type", "application/json")]),
        ] {
            let mut request =
                app.post("/ingest-gottcha2", body.clone()).header("idempotency-key", format!("{index}-{label}"));
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let response = request.send().await.expect("answer");
            assert_eq!(response.status(), 200, "{index} {label}: {}", response.text().await.expect("text"));
        }
    }
    assert_eq!(app.count("gottcha2_full").await, 42);
    assert_eq!(app.scalar::<i64>("SELECT count(DISTINCT sha256) FROM submissions").await, 1);
}

#[tokio::test]
async fn blank_lines_crlf_a_byte_order_mark_and_a_missing_line_end_are_fine() {
    let app = TestApp::start().await;
    let receipt = app.store("/ingest-gottcha2", format!("\u{feff}\r\n{RECORD}\r\n\r\n  \n{RECORD}")).await;
    assert_eq!(receipt["rows"], 2);
    let tsv = "\u{feff}LEVEL\tNAME\tTAXID\tREAD_COUNT\tTOTAL_BP_MAPPED\tNOTE\r\nspecies\tA\t1\t2\t3\t\r\n\r\n";
    let receipt = app.store("/ingest-gottcha2?sample_id=S&run_id=R", tsv).await;
    assert_eq!(receipt["rows"], 1);
    assert_eq!(app.count("gottcha2_full WHERE note IS NULL AND run_id = 'R'").await, 1);
}

#[tokio::test]
async fn the_same_file_again_is_answered_with_the_same_receipt() {
    let app = TestApp::start().await;
    for key in [None, Some("submit#1.0#17/full.tsv")] {
        let send = || {
            let request = app.post("/ingest-gottcha2", gzip(RECORD));
            key.map_or(request.try_clone().expect("clone"), |key| request.header("Idempotency-Key", key))
        };
        let first: Value = send().send().await.expect("answer").json().await.expect("receipt");
        let mut second: Value = send().send().await.expect("answer").json().await.expect("receipt");
        assert_eq!((&first["replayed"], &second["replayed"]), (&json!(false), &json!(true)));
        second["replayed"] = json!(false);
        assert_eq!(first, second);
        if let Some(key) = key {
            assert_eq!(first["key"], key);
        }
    }
    assert_eq!(app.count("gottcha2_full").await, 2);
    assert_eq!(app.count("submissions").await, 2);
}

#[tokio::test]
async fn a_replay_of_a_small_file_never_touches_the_table() {
    let app = TestApp::start().await;
    for _ in 0..3 {
        app.store("/ingest-gottcha2", gzip(format!("{RECORD}\n").repeat(5000))).await;
    }
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(&app.pool).await.expect("flush");
    let pages: i64 = app.scalar("SELECT pg_relation_size('gottcha2_full') / 8192").await;
    let rows_a_page = 5000 / pages;
    assert!(rows_a_page > 30, "{pages} pages for 5000 rows: rolled back copies are in the table");
}

#[tokio::test]
async fn the_receipt_tells_the_digest_of_the_uncompressed_file() {
    let app = TestApp::start().await;
    let file = data("stast/stast.jsonl");
    let receipt = app.store("/ingest-stast", gzip(&file)).await;
    let expected = data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(&file));
    assert_eq!(receipt["sha256"], expected);
    assert_eq!(receipt["dataset"], "stast");
    assert_eq!(receipt["duplicates"], 0);
    assert!(receipt["created_at"].as_str().expect("time").ends_with('Z'));
}

#[tokio::test]
async fn the_same_key_with_other_content_is_a_conflict_unless_replacing_is_asked_for() {
    let app = TestApp::start().await;
    let path = "/ingest/gottcha2/job-1%2Ffull.tsv";
    let put = |query: &str, body: String| app.request("PUT", &format!("{path}{query}")).body(body).send();
    let first: Value = put("", RECORD.to_owned()).await.expect("answer").json().await.expect("receipt");
    assert_eq!(first["key"], "job-1/full.tsv");
    let other = format!("{RECORD}\n{RECORD}");
    let refused = problem(put("", other.clone()).await.expect("answer"), 409).await;
    assert!(refused["detail"].as_str().expect("detail").contains("on_conflict=replace"), "{refused}");
    problem(put("?run_id=R", RECORD.to_owned()).await.expect("answer"), 409).await;
    assert_eq!(app.count("gottcha2_full").await, 1);

    let replaced: Value =
        put("?on_conflict=replace", other.clone()).await.expect("answer").json().await.expect("receipt");
    assert_eq!((&replaced["rows"], &replaced["replayed"]), (&json!(2), &json!(false)));
    assert_ne!(replaced["submission_id"], first["submission_id"]);
    assert_eq!((app.count("gottcha2_full").await, app.count("submissions").await), (2, 1));
    let again: Value = put("?on_conflict=replace", other).await.expect("answer").json().await.expect("receipt");
    assert_eq!(again["replayed"], true);
}

#[tokio::test]
async fn a_large_file_under_a_known_key_is_replayed_or_refused_too() {
    let app = TestApp::start().await;
    let large = gzip(format!("{RECORD}\n").repeat(60_000));
    let path = "/ingest/gottcha2/large";
    let put = |body: Vec<u8>| app.request("PUT", path).body(body).send();
    assert_eq!(put(large.clone()).await.expect("answer").status(), 200);
    let replay: Value = put(large).await.expect("answer").json().await.expect("receipt");
    assert_eq!(replay["replayed"], true);
    problem(put(gzip(format!("{RECORD}\n").repeat(59_999))).await.expect("answer"), 409).await;
    assert_eq!(app.count("gottcha2_full").await, 60_000);
    let replace = app.request("PUT", &format!("{path}?on_conflict=replace"));
    let other = gzip(format!("{RECORD}\n").repeat(59_999));
    for replayed in [false, true] {
        let request = replace.try_clone().expect("clone").body(other.clone());
        let receipt: Value = request.send().await.expect("answer").json().await.expect("receipt");
        assert_eq!((&receipt["rows"], &receipt["replayed"]), (&json!(59_999), &json!(replayed)), "{receipt}");
    }
    assert_eq!(app.count("gottcha2_full").await, 59_999);
    // Without a key the content is known only after the COPY; it is rolled back.
    for replayed in [false, true] {
        let receipt = app.store("/ingest-gottcha2", gzip(format!("{RECORD}\n").repeat(60_000))).await;
        assert_eq!(receipt["replayed"], replayed);
    }
    assert_eq!(app.count("gottcha2_full").await, 119_999);
}

#[tokio::test]
async fn zero_rows_are_recorded_when_something_tells_whose_they_are() {
    let app = TestApp::start().await;
    let problem = app.refuse(422, "/ingest-gottcha2", "").await;
    assert_eq!(problem["errors"][0]["field"], "sample_id");
    for body in [vec![], gzip("\n\n"), b"LEVEL\tNAME\tTAXID\tREAD_COUNT\tTOTAL_BP_MAPPED\n".to_vec()] {
        let receipt = app.store("/ingest-gottcha2?sample_id=water", body).await;
        assert_eq!((&receipt["rows"], &receipt["replayed"]), (&json!(0), &json!(false)));
    }
    assert_eq!(app.store("/ingest-gottcha2?sample_id=water", gzip("")).await["replayed"], true);
    let response = app.request("PUT", "/ingest/gottcha2/water-2").send().await.expect("answer");
    assert_eq!(response.status(), 200);
    assert_eq!(app.get("/submissions?sample_id=water").await.as_array().expect("list").len(), 3);
}

#[tokio::test]
async fn unknown_fields_are_kept_in_extra() {
    let app = TestApp::start().await;
    let json = RECORD.replace('{', r#"{"new":{"a":[1,2.50,null,"ü"]},"big":12345678901234567890123,"#);
    app.store("/ingest-gottcha2", json).await;
    let tsv = "LEVEL\tNAME\tTAXID\tREAD_COUNT\tTOTAL_BP_MAPPED\tNEW \"COLUMN\"\tEMPTY\nspecies\tA\t1\t2\t3\tx\t\n";
    app.store("/ingest-gottcha2?sample_id=S", tsv).await;
    let first: String = app.scalar("SELECT extra::text FROM gottcha2_full WHERE name <> 'A'").await;
    assert_eq!(first, r#"{"big": 12345678901234567890123, "new": {"a": [1, 2.50, null, "ü"]}}"#);
    let second: String = app.scalar("SELECT extra::text FROM gottcha2_full WHERE name = 'A'").await;
    assert_eq!(second, r#"{"EMPTY": null, "NEW \"COLUMN\"": "x"}"#);
}

#[tokio::test]
async fn aliases_and_clients_own_number_forms_are_understood() {
    let app = TestApp::start().await;
    let record = r#"{"SAMPLE":"S","rollup":"species","taxonomy":"Zaire \"ebolavirus\" \u00fc","taxonomy_id":3052462,"read_count":513.0,"total_bp_mapped":69897,"linear_abundance":1,"linear_length":7}"#;
    app.store("/ingest-gottcha2", record).await;
    let expected = json!({"sample_id":"S","level":"species","name":"Zaire \"ebolavirus\" ü","taxid":"3052462",
        "read_count":513,"total_bp_mapped":69897,"rel_abundance":1,"linear_len":7});
    assert_eq!(rows(&app, "gottcha2_full").await, [expected]);
}

#[tokio::test]
async fn rows_of_results_that_are_stored_already_are_counted_as_duplicates() {
    let app = TestApp::start().await;
    let row = |key: u32| {
        json!({"run_id":"r","task_id":"t","shard":key,"idempotency_key":format!("k{key}"),"schema_version":1,"payload":{"n":key}}).to_string()
    };
    let receipt = app.store("/ingest", format!("{}\n{}\n{}\n", row(1), row(2), row(1))).await;
    assert_eq!((&receipt["rows"], &receipt["duplicates"]), (&json!(2), &json!(1)));
    let receipt = app.store("/ingest", format!("{}\n{}\n", row(2), row(3))).await;
    assert_eq!((&receipt["rows"], &receipt["duplicates"]), (&json!(1), &json!(1)));
    assert_eq!(
        app.scalar::<String>("SELECT payload::text FROM results WHERE idempotency_key = 'k3'").await,
        r#"{"n": 3}"#
    );
    assert_eq!(app.count("results").await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_replace_each_others_rows_at_the_same_time_are_all_stored() {
    let app = TestApp::start().await;
    let row = |key: usize| {
        json!({"run_id":"r","task_id":"t","shard":key,"idempotency_key":format!("k{key}"),"schema_version":1,"payload":1}).to_string()
    };
    let client = async |client: usize| {
        for turn in 0..20 {
            let file = (client + turn) % 4;
            // Each two have half of their rows in common.
            let body: Vec<String> = (file * 10..file * 10 + 20).map(row).collect();
            let path = format!("/ingest/results/K{}?on_conflict=replace", (client + turn * 5) % 3);
            let answer = app.request("PUT", &path).body(body.join("\n")).send().await.expect("answer");
            assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap_or_default());
        }
    };
    futures_util::future::join_all((0..8).map(client)).await;
    let sums = "SELECT count(*) - (SELECT sum(rows)::bigint FROM submissions) FROM results";
    assert_eq!(app.scalar::<i64>(sums).await, 0);
}

#[tokio::test]
async fn rows_that_went_with_anothers_submission_come_back_when_they_are_sent_again() {
    let app = TestApp::start().await;
    let row = |key: &str| {
        json!({"run_id":"r","task_id":"t","shard":1,"idempotency_key":key,"schema_version":1,"payload":{}}).to_string()
    };
    let put = async |name: &str, keys: [&str; 2]| {
        let path = format!("/ingest/results/{name}");
        let answer = app.request("PUT", &path).body(keys.map(row).join("\n")).send().await.expect("answer");
        assert_eq!(answer.status(), 200);
        let receipt = answer.json::<Value>().await.expect("receipt");
        (receipt["submission_id"].to_string(), receipt["rows"].clone(), receipt["replayed"].clone())
    };
    let (first, ..) = put("A", ["k1", "k2"]).await;
    let (second, rows, _) = put("B", ["k1", "k3"]).await;
    assert_eq!(rows, 1);
    assert_eq!(put("B", ["k1", "k3"]).await, (second.clone(), json!(1), json!(true)));
    let removed = app.request("DELETE", &format!("/submissions/{first}")).send().await.expect("answer");
    assert_eq!(removed.status(), 204);
    let (third, rows, replayed) = put("B", ["k1", "k3"]).await;
    assert_eq!((rows, replayed), (json!(2), json!(false)));
    assert_ne!(third, second);
    assert_eq!(put("B", ["k1", "k3"]).await, (third, json!(2), json!(true)));
    assert_eq!(app.scalar::<String>("SELECT string_agg(idempotency_key, ' ' ORDER BY 1) FROM results").await, "k1 k3");
    assert_eq!(app.count("submissions").await, 1);
}

#[tokio::test]
async fn results_that_replace_others_keep_the_rows_that_both_have() {
    let app = TestApp::start().await;
    let row = |key: &str, value: u32| {
        json!({"run_id":"r","task_id":"t","shard":1,"idempotency_key":key,"schema_version":1,"payload":{"n":value}})
            .to_string()
    };
    app.store("/ingest", row("other", 0)).await;
    let put = async |rows: &[String], query: &str| {
        let path = format!("/ingest/results/K{query}");
        let answer = app.request("PUT", &path).body(rows.join("\n")).send().await.expect("answer");
        assert_eq!(answer.status(), 200);
        answer.json::<Value>().await.expect("receipt")
    };
    put(&[row("a", 1), row("b", 1), row("c", 1)], "").await;
    let receipt = put(&[row("a", 2), row("b", 1), row("other", 2), row("d", 2)], "?on_conflict=replace").await;
    assert_eq!((&receipt["rows"], &receipt["duplicates"]), (&json!(3), &json!(1)));
    let stored: Vec<String> =
        sqlx::query_scalar("SELECT idempotency_key || (payload->>'n') FROM results ORDER BY idempotency_key")
            .fetch_all(&app.pool)
            .await
            .expect("rows");
    assert_eq!(stored, ["a2", "b1", "d2", "other0"]);
}

#[tokio::test]
async fn a_column_that_only_later_rows_bring_is_stored_too() {
    let app = TestApp::start().await;
    let mut body = format!("{RECORD}\n").repeat(3);
    for (index, column) in ["depth", "zscore", "run_id", "depth"].iter().enumerate() {
        body.push_str(
            &RECORD.replace('{', &format!("{{\"{column}\":{},", if *column == "run_id" { "\"R\"" } else { "2" })),
        );
        body.push('\n');
        body.push_str(&format!("{RECORD}\n").repeat(index * 2000));
    }
    let lines: Vec<Value> = body.lines().map(normal).collect();
    let receipt = app.store("/ingest-gottcha2", gzip(&body)).await;
    assert_eq!(receipt["rows"], lines.len());
    assert_eq!(rows(&app, "gottcha2_full").await, lines);
}

#[tokio::test]
async fn extreme_values_survive_unchanged() {
    let app = TestApp::start().await;
    let depths = ["5e-324", "1.7976931348623157e308", "0.1", "1e23", "9007199254740993", "123456.7890123456789"];
    for (index, depth) in depths.iter().enumerate() {
        app.store("/ingest-gottcha2", RECORD.replace('{', &format!("{{\"run_id\":\"{index}\",\"depth\":{depth},")))
            .await;
        let stored: f64 = app.scalar(&format!("SELECT depth FROM gottcha2_full WHERE run_id = '{index}'")).await;
        assert_eq!(stored.to_bits(), depth.parse::<f64>().expect("float").to_bits(), "{depth}");
    }
    app.store("/ingest-gottcha2", RECORD.replace("513", "9223372036854775807").replace("S1", "")).await;
    assert_eq!(app.scalar::<i64>("SELECT read_count FROM gottcha2_full WHERE sample_id = ''").await, i64::MAX);
}

#[tokio::test]
async fn sixteen_clients_with_the_same_file_store_it_once() {
    let app = TestApp::start().await;
    for rows in [10, 40_000] {
        let body = gzip(format!("{RECORD}\n").repeat(rows));
        let sends = (0..16).map(|_| app.post("/ingest-gottcha2", body.clone()).send());
        let answers = futures_util::future::join_all(sends).await;
        let mut stored = 0;
        for answer in answers {
            let answer = answer.expect("answer");
            let status = answer.status();
            let receipt: Value = answer.json().await.expect("receipt");
            assert_eq!(status, 200, "{receipt}");
            stored += i32::from(receipt["replayed"] == false);
        }
        assert_eq!(stored, 1);
    }
    assert_eq!(app.count("gottcha2_full").await, 40_010);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_files_without_keys_does_not_wait_for_itself() {
    const FILES: usize = 150;
    let app = TestApp::with(&[("ingest.concurrency", "1"), ("database.acquire_timeout", "10s")]).await;
    let sending = (0..2 * FILES).map(|index| {
        let row = RECORD.replace("S1", &format!("S{}", index / 2));
        app.post("/ingest-gottcha2", format!("{row}\n").repeat(20)).send()
    });
    for answer in futures_util::future::join_all(sending).await {
        assert_eq!(answer.expect("answer").status(), 200);
    }
    assert_eq!(app.count("gottcha2_full").await, 20 * FILES as i64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_waits_for_others_to_end_keeps_no_place_from_them_and_others_have_connections() {
    const LINES: usize = 130;
    let app = TestApp::with(&[("ingest.concurrency", "1"), ("database.acquire_timeout", "30s")]).await;
    // Each line is a batch of its own, and so many are more than what is held back before a transaction begins.
    let lines = |sample: usize, count: usize| {
        let record = RECORD.replace("S1", &format!("S{sample}"));
        format!("{}\n", record.replace('{', &format!("{{\"note\":\"{}\",", "n".repeat(40_000)))).repeat(count)
    };
    let send = async |sample: usize, count: usize| {
        let (sender, parts) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(2);
        sender.send(Ok(lines(sample, count))).await.expect("part");
        let body = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(parts));
        (tokio::spawn(app.request("POST", "/ingest-gottcha2").body(body).send()), sender)
    };
    // More than is read before a transaction is thought of, less than is held back.
    let (late, rest_of_late) = send(8, 30).await;
    eventually("the late one has its number", async || {
        app.scalar::<bool>("SELECT is_called FROM submissions_id_seq").await
    })
    .await;
    // None of the service's own.
    let mut aside = sqlx::PgConnection::connect(&app.database_url()).await.expect("connection");
    let mut uploads = Vec::new();
    for sample in 0..6 {
        uploads.push(send(sample, LINES).await);
    }
    eventually("all connections that uploads may hold are taken", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND query LIKE 'COPY%' AND state = 'active'";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut aside).await.expect("count") == 6
    })
    .await;
    for path in ["/readyz", "/submissions"] {
        assert_eq!(app.request("GET", path).send().await.expect("answer").status(), 200, "{path}");
    }
    // More than waits between decoding and COPY, so that it would hold the one place until it has a connection.
    rest_of_late.send(Ok(lines(8, 3 * LINES))).await.expect("part");
    drop(rest_of_late);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let started = Instant::now();
    for (sample, (_, sender)) in uploads.iter().enumerate() {
        sender.send(Ok(lines(sample, LINES))).await.expect("part");
    }
    let uploads = uploads.into_iter().map(|(upload, _)| upload);
    for answer in futures_util::future::join_all(uploads.chain([late])).await {
        assert_eq!(answer.expect("task").expect("answer").status(), 200);
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(app.count("gottcha2_full").await, (15 * LINES + 30) as i64);
}

/// Sends bodies so that all wait for the database at the same time, and answers with status and answer of each.
async fn together(app: &TestApp, bodies: &[&str]) -> Vec<(u16, Value)> {
    // The one upload that may work waits for this lock, the others for it.
    let mut aside = sqlx::PgConnection::connect(&app.database_url()).await.expect("connection");
    let mut lock = aside.begin().await.expect("begin");
    sqlx::query("LOCK gottcha2_full").execute(&mut *lock).await.expect("lock");
    let first = tokio::spawn(app.post("/ingest-gottcha2", RECORD.replace("S1", "first")).send());
    let waiting = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'COPY%'";
    eventually("the first waits", async || app.scalar::<i64>(waiting).await == 1).await;
    let sending: Vec<_> =
        bodies.iter().map(|body| tokio::spawn(app.post("/ingest-gottcha2", (*body).to_owned()).send())).collect();
    let numbers = bodies.len() as i64 + 1;
    eventually("all others have their numbers", async || {
        app.scalar::<i64>("SELECT last_value FROM submissions_id_seq").await == numbers
    })
    .await;
    // From there it is a moment until they wait for a place to be decoded.
    tokio::time::sleep(Duration::from_millis(200)).await;
    lock.rollback().await.expect("rollback");
    assert_eq!(first.await.expect("task").expect("answer").status(), 200);
    let mut answers = Vec::new();
    for sent in sending {
        let answer = sent.await.expect("task").expect("answer");
        answers.push((answer.status().as_u16(), answer.json().await.expect("JSON")));
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_that_wait_at_the_same_time_share_a_transaction() {
    let app = TestApp::with(&[("ingest.concurrency", "1")]).await;
    let bodies: Vec<String> =
        (0..20).map(|sample| format!("{}\n", RECORD.replace("S1", &format!("S{sample}"))).repeat(sample + 1)).collect();
    let answers = together(&app, &bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for (sample, (status, receipt)) in answers.iter().enumerate() {
        assert_eq!((status, &receipt["rows"], &receipt["replayed"]), (&200, &json!(sample + 1), &json!(false)));
        let id = receipt["submission_id"].as_i64().expect("id");
        let rows = format!(
            "SELECT count(*) FROM gottcha2_full WHERE submission_id = {id} AND sample_id = 'S{sample}' AND ordinal <= {}",
            sample + 1
        );
        assert_eq!(app.scalar::<i64>(&rows).await, sample as i64 + 1);
    }
    assert_eq!(app.count("gottcha2_full").await, 1 + 210);
    let transactions: i64 = app.scalar("SELECT count(DISTINCT xmin::text) FROM submissions").await;
    assert!(transactions < 10, "{transactions} transactions for 21 files");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_files_that_wait_at_the_same_time_each_is_answered_for_itself() {
    let app = TestApp::with(&[("ingest.concurrency", "1")]).await;
    let with = |sample: &str, field: &str| RECORD.replace("S1", sample).replace('{', &format!("{{{field},"));
    let good = [with("a", "\"note\":\"n\""), with("b", "\"unknown\":1"), RECORD.replace("S1", "c")];
    // What only PostgreSQL knows.
    sqlx::query("ALTER TABLE gottcha2_full ADD CHECK (sample_id <> 'd')").execute(&app.pool).await.expect("check");
    let refused = RECORD.replace("S1", "d");
    let bodies: [&str; 6] = [&good[0], &refused, &good[1], &good[2], &good[2], "no row"];
    let answers = together(&app, &bodies).await;
    let statuses: Vec<u16> = answers.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [200, 422, 200, 200, 200, 400], "{answers:?}");
    assert!(answers[1].1["detail"].as_str().expect("detail").contains("row 1"), "{}", answers[1].1);
    let mut replayed = [&answers[3].1, &answers[4].1].map(|receipt| receipt["replayed"] == true);
    replayed.sort_unstable();
    assert_eq!(replayed, [false, true]);
    assert_eq!(answers[3].1["submission_id"], answers[4].1["submission_id"]);
    let stored: Vec<(String, Option<String>, Option<String>)> =
        sqlx::query_as("SELECT sample_id, note, extra::text FROM gottcha2_full ORDER BY sample_id")
            .fetch_all(&app.pool)
            .await
            .expect("rows");
    let row = |sample: &str, note: Option<&str>, extra: Option<&str>| {
        (sample.to_owned(), note.map(str::to_owned), extra.map(str::to_owned))
    };
    let expected = [
        row("a", Some("n"), None),
        row("b", None, Some("{\"unknown\": 1}")),
        row("c", None, None),
        row("first", None, None),
    ];
    assert_eq!(stored, expected);
    assert_eq!(app.count("submissions").await, 4);
}

#[tokio::test]
async fn a_small_upload_waits_for_no_delayed_acknowledgement() {
    let app = TestApp::start().await;
    let mut sample = 0;
    without_delayed_acknowledgement(async || {
        sample += 1;
        app.store("/ingest-gottcha2", RECORD.replace("S1", &format!("S{sample}"))).await;
    })
    .await;
}

#[tokio::test]
async fn connections_that_postgresql_has_ended_meanwhile_do_not_cost_an_upload() {
    let app = TestApp::start().await;
    for round in 0..5 {
        futures_util::future::join_all((0..8).map(|_| app.request("GET", "/submissions").send())).await;
        let mut aside = sqlx::PgConnection::connect(&app.database_url()).await.expect("connection");
        let sql = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        sqlx::query(sql).execute(&mut aside).await.expect("terminate");
        app.store("/ingest-gottcha2", RECORD.replace("S1", &format!("S{round}"))).await;
    }
    assert_eq!(app.count("gottcha2_full").await, 5);
}
