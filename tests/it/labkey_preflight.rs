//! What is looked at before a row is sent, and how the operator learns of it.

use serde_json::json;

use crate::app::{RECORD, TestApp, create_database, eventually};
use crate::labkey::{LIST, inserting, lab, settings, sync};
use crate::labkey_server::{CONTAINER, KEY, Kind, LabKeyServer, List};
use crate::process::{Served, folder, serving};

#[tokio::test]
async fn a_taxon_id_that_would_have_to_be_an_integer_stops_the_sync() {
    let list = List::auto(LIST).column("DeliveryKey", Kind::Text).column("TaxonomyId", Kind::Integer);
    let list = ["SampleId", "RunId", "Rollup", "Taxonomy", "UploadedBy"]
        .iter()
        .fold(list, |list, name| list.column(name, Kind::Text));
    let list =
        ["LinearLength", "TotalBpMapped", "Abundance"].iter().fold(list, |list, name| list.column(name, Kind::Number));
    let list = list.column("DoC", Kind::Integer);
    let (labkey, app) = lab(list.column("AnalysisDate", Kind::Time).column("UploadTimestamp", Kind::Time), &[]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    let report = sync(&app).await;
    let error = report["errors"][0].as_str().expect("error");
    assert!(error.contains("`TaxonomyId` is of type Integer, and the values are text"), "{report}");
    assert!(error.contains("`DoC`"), "{report}");
    assert!(labkey.rows(LIST).is_empty());
}

#[tokio::test]
async fn a_count_that_may_outgrow_labkey_s_integers_stops_the_sync_unless_its_map_says_small() {
    let list = || {
        let texts = ["SampleId", "RunId", "Rollup", "Taxonomy", "TaxonomyId", "UploadedBy", "DeliveryKey"];
        let list = texts.iter().fold(List::auto(LIST), |list, name| list.column(name, Kind::Text));
        let list = list.column("LinearLength", Kind::Number).column("TotalBpMapped", Kind::Integer);
        let list = list.column("Abundance", Kind::Number).column("DoC", Kind::Number);
        list.column("AnalysisDate", Kind::Time).column("UploadTimestamp", Kind::Time)
    };
    let large = RECORD.replace("S1", "large").replace("69897", "3000000000");
    let (labkey, app) = lab(list(), &[]).await;
    app.store("/ingest-gottcha2", format!("{RECORD}\n{large}\n")).await;
    let report = sync(&app).await;
    assert!(report["errors"][0].as_str().expect("error").contains("`TotalBpMapped` holds 32-bit integers"), "{report}");
    assert!(labkey.rows(LIST).is_empty());
    let status = app.get("/labkey/status").await;
    let lists = status["lists"].as_array().expect("lists");
    let own = lists.iter().find(|list| list["dataset"] == "gottcha2").expect("list");
    assert!(own["problems"][0].as_str().expect("problem").contains("`TotalBpMapped`"), "{status}");
    let map =
        "[[labkey.lists]]\ndataset = \"gottcha2\"\ncolumns = { TotalBpMapped = { small = \"total_bp_mapped\" } }\n";
    let server = format!(
        "[labkey]\nserver_url = \"{}\"\nproject_path = \"{CONTAINER}\"\napi_key = \"{KEY}\"\n{map}",
        labkey.url
    );
    let app = TestApp::configured(&server).await;
    app.store("/ingest-gottcha2", format!("{RECORD}\n{large}\n")).await;
    let report = sync(&app).await;
    assert_eq!((&report["uploaded"], &report["failed"], &report["remaining"]), (&json!(1), &json!(1), &json!(0)));
    assert_eq!(labkey.rows(LIST)[0]["SampleId"], "S1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_starts_tells_at_once_which_list_is_not_right() {
    let labkey = LabKeyServer::start().await;
    let list = inserting();
    labkey.add(list);
    labkey.change(LIST, |list| list.rename("TaxonomyId", "TaxId"));
    let folder = folder();
    let (_, database_url) = create_database().await;
    let mut command = serving(folder.path(), &database_url);
    command.args(["--set", "labkey.auto_upload=false"]);
    for (key, value) in settings(&labkey.url) {
        command.args(["--set", &format!("{key}={value}")]);
    }
    let service = Served::start(&mut command);
    let told = "labkey_sync_errors{dataset=\"gottcha2\",reason=\"configuration\"} 1";
    eventually("the list is looked at", async || {
        let request = reqwest::Client::new().get(format!("{}/metrics", service.url)).bearer_auth("t");
        request.send().await.expect("answer").text().await.expect("text").contains(told)
    })
    .await;
    service.stop();
}

#[tokio::test]
async fn the_status_tells_the_last_success_also_while_labkey_is_away() {
    let (labkey, app) = lab(inserting(), &[("labkey.patience", "100ms")]).await;
    app.store("/ingest-gottcha2", RECORD).await;
    assert_eq!(sync(&app).await["uploaded"], 1);
    labkey.revoke();
    let status = app.get("/labkey/status").await;
    assert_eq!(status["connected"], false, "{status}");
    let lists = status["lists"].as_array().expect("lists");
    let own = lists.iter().find(|list| list["dataset"] == "gottcha2").expect("list");
    assert!(own["last_success"].is_string(), "{status}");
}
