//! The stand-in for LabKey Server as the official Python client finds it.

use serde_json::json;

use crate::labkey_server::{CONTAINER, Fault, KEY, Kind, LabKeyServer, List, Seen};
use crate::python;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs NVD_PYTHON: a Python with what tests/python.txt names; .ci/run has one"]
async fn the_official_client_finds_a_labkey_server() {
    let labkey = LabKeyServer::start().await;
    let hits = List::auto("hits").required("SAMPLE", Kind::Text).column("READ_COUNT", Kind::Integer);
    labkey.add(hits.column("EXCLUDE", Kind::Boolean).column("UploadTimestamp", Kind::Time));
    labkey.add(List::keyed("records", "RecordKey").column("SAMPLE", Kind::Text).column("READ_COUNT", Kind::Integer));
    // The first two attempts to delete are in vain.
    labkey.inject("query-deleteRows", Fault::Unavailable(None));
    labkey.inject("query-deleteRows", Fault::Redirect);
    python::run("labkey_client.py", &[&labkey.address.to_string(), CONTAINER, KEY]).await;

    let rows = labkey.rows("hits");
    let expected = json!([{"Key": 2, "SAMPLE": "S2", "READ_COUNT": 20, "EXCLUDE": true,
        "UploadTimestamp": "2026-11-20 10:00:00.000"}, {"Key": 4, "SAMPLE": "S4", "READ_COUNT": null, "EXCLUDE": null,
        "UploadTimestamp": null}]);
    assert_eq!(json!(rows), expected);
    let expected = json!([{"RecordKey": "a", "SAMPLE": "S 1, \"one\"", "READ_COUNT": 1},
        {"RecordKey": "b", "SAMPLE": "S2", "READ_COUNT": 22}, {"RecordKey": "c", "SAMPLE": null, "READ_COUNT": 3}]);
    assert_eq!(json!(labkey.rows("records")), expected);
    let comments: Vec<_> = labkey.audits().into_iter().filter_map(|note| note.comment).collect();
    assert_eq!(comments, ["delivery 1", "delivery 2", "delivery 2"]);
    // Nothing but the official client has asked.
    let seen = labkey.seen();
    let agent = |seen: &Seen| seen.headers["user-agent"].to_str().expect("text").to_owned();
    assert!(seen.iter().all(|seen| agent(seen) == "LabKey Python API/4.4.1"), "{seen:?}");
    assert_eq!((seen[0].method.as_str(), seen[0].action.as_str()), ("GET", "login-whoami"));
    let inserts: Vec<_> = seen.iter().filter(|seen| seen.action == "query-insertRows").collect();
    assert_eq!((inserts[0].status, inserts[1].status), (Some(401), Some(200)));
    assert_eq!(inserts[1].json()["rows"].as_array().map(Vec::len), Some(2));
}
