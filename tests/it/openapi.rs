//! The OpenAPI description: like its reviewed copy, and complete.

use serde_json::Value;

use crate::app::TestApp;

#[tokio::test]
async fn the_description_is_as_reviewed() {
    let app = TestApp::start().await;
    let served = serde_json::to_string_pretty(&app.get("/openapi.json").await).expect("JSON") + "\n";
    let path = format!("{}/tests/data/openapi.json", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &served).expect("write");
    }
    let reviewed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(served == reviewed, "the OpenAPI description changed: look at it, then run the tests with BLESS=1");
    assert_eq!(app.get("/api-docs/openapi.json").await, app.get("/openapi.json").await);
}

#[tokio::test]
async fn every_operation_says_how_it_fails_and_every_reference_leads_somewhere() {
    let app = TestApp::start().await;
    let api = app.get("/openapi.json").await;
    assert!(api["openapi"].as_str().expect("version").starts_with("3.1"));
    let mut ids = std::collections::HashSet::new();
    for (path, item) in api["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods") {
            let id = operation["operationId"].as_str().expect("operation id");
            assert!(ids.insert(id.to_owned()), "{id} twice");
            for (status, response) in operation["responses"].as_object().expect("responses") {
                let json = &response["content"]["application/json"]["schema"];
                assert!(json.is_null() || json["$ref"].is_string(), "{method} {path} {status}: no name for {json}");
                if status.starts_with(['4', '5']) {
                    let problem = &response["content"]["application/problem+json"];
                    assert!(problem.is_object(), "{method} {path} {status}");
                }
            }
        }
    }
    check_references(&api, &api);
}

fn check_references(api: &Value, value: &Value) {
    match value {
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
                assert!(api.pointer(reference.trim_start_matches('#')).is_some(), "{reference} leads nowhere");
            }
            members.values().for_each(|member| check_references(api, member));
        }
        Value::Array(items) => items.iter().for_each(|item| check_references(api, item)),
        _ => {}
    }
}
