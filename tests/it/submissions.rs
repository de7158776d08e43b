//! Looking at what was taken in, and removing it.

use crate::app::{RECORD, TestApp, problem};

#[tokio::test]
async fn submissions_are_listed_newest_first_in_pages() {
    let app = TestApp::start().await;
    for sample in ["A", "B", "C", "D", "E"] {
        app.store(&format!("/ingest-gottcha2?run_id=R-{sample}"), RECORD.replace("S1", sample)).await;
    }
    let mut path = "/submissions?dataset=gottcha2&limit=2".to_owned();
    let mut samples = Vec::new();
    loop {
        let response = app.request("GET", &path).send().await.expect("answer");
        let link = response.headers().get("link").map(|link| link.to_str().expect("text").to_owned());
        let page: serde_json::Value = response.json().await.expect("JSON");
        samples.extend(
            page.as_array().expect("array").iter().map(|one| one["sample_id"].as_str().expect("text").to_owned()),
        );
        let Some(link) = link else { break };
        path = link.split(['<', '>']).nth(1).expect("address").to_owned();
        assert!(link.ends_with("rel=\"next\""));
    }
    assert_eq!(samples, ["E", "D", "C", "B", "A"]);
}

#[tokio::test]
async fn submissions_are_found_by_sample_run_and_time() {
    let app = TestApp::start().await;
    app.store("/ingest-gottcha2?run_id=R1", RECORD).await;
    app.store("/ingest-gottcha2?run_id=R2", RECORD).await;
    app.store("/ingest-gottcha2?run_id=R2", format!("{RECORD}\n{}", RECORD.replace("S1", "S2"))).await;
    for (query, count) in [
        ("sample_id=S1", 2),
        ("run_id=R2", 2),
        ("sample_id=S1&run_id=R2", 1),
        ("since=2020-01-01T00:00:00Z", 3),
        ("since=2999-01-01T00:00:00Z", 0),
        ("dataset=stast", 0),
    ] {
        let found = app.get(&format!("/submissions?{query}")).await;
        assert_eq!(found.as_array().expect("array").len(), count, "{query}");
    }
    let mixed = app.get("/submissions?limit=1").await;
    assert_eq!(
        (&mixed[0]["sample_id"], &mixed[0]["rows"], &mixed[0]["client"]),
        (&serde_json::Value::Null, &2.into(), &"bearer_token".into())
    );
}

#[tokio::test]
async fn a_removed_submission_takes_its_rows_along_and_can_be_sent_again() {
    let app = TestApp::start().await;
    app.store("/ingest-gottcha2?run_id=other", RECORD).await;
    let receipt = app.store("/ingest-gottcha2", RECORD).await;
    let path = format!("/submissions/{}", receipt["submission_id"]);
    assert_eq!(app.get(&path).await["sha256"], receipt["sha256"]);
    assert_eq!(app.request("DELETE", &path).send().await.expect("answer").status(), 204);
    assert_eq!((app.count("submissions").await, app.count("gottcha2_full").await), (1, 1));
    problem(app.request("DELETE", &path).send().await.expect("answer"), 404).await;
    problem(app.request("GET", &path).send().await.expect("answer"), 404).await;
    assert_eq!(app.store("/ingest-gottcha2", RECORD).await["replayed"], false);
}

#[tokio::test]
async fn wrong_questions_are_answered_with_a_problem() {
    let app = TestApp::start().await;
    for (path, status) in [
        ("/submissions?limit=0", 422),
        ("/submissions?limit=1001", 422),
        ("/submissions?limit=many", 400),
        ("/submissions?since=yesterday", 400),
        ("/submissions?since=-262143-01-01T00:00:00Z", 422),
        ("/submissions?sampel=x", 400),
        ("/submissions?dataset=nonsense", 404),
        ("/submissions/abc", 400),
        ("/submissions/999999", 404),
        ("/datasets/nonsense", 404),
    ] {
        problem(app.request("GET", path).send().await.expect("answer"), status).await;
    }
}
