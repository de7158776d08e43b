//! The OpenAPI description as others use it: a validator, generators of clients in two languages, and schemathesis, which
//! sends whatever the description allows and forbids.

use std::path::Path;
use std::process::Command;

use crate::app::TOKEN;
use crate::labkey::{holds_once, lab, merging};
use crate::process::text;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs a command in a folder of the repository; it must succeed.
async fn run(folder: &str, command: &str, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(Path::new(ROOT).join(command));
    command.current_dir(Path::new(ROOT).join(folder)).args(arguments).envs(variables.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("task").expect("start");
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

#[tokio::test]
#[ignore = "needs the tools of sdk/generate; .ci/run has them"]
async fn the_description_is_valid() {
    run("tests/data", "target/sdk/venv/bin/openapi-spec-validator", &["--schema", "3.1", "openapi.json"], &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the tools of sdk/generate; .ci/run has them"]
async fn a_generated_python_client_is_typed_and_works() {
    let (labkey, app) = lab(merging(), &[]).await;
    let driver = format!("{ROOT}/tests/sdk/drive.py");
    let packages = ("PYTHONPATH", "python");
    let mypy = ["--strict", "--explicit-package-bases", "python/nvd_support_car_client", &driver];
    run("target/sdk", "target/sdk/venv/bin/mypy", &mypy, &[("MYPYPATH", "python")]).await;
    assert_eq!(fields_of_any_type(), ["dataset_column.py: example", "results_record.py: payload"]);
    run("target/sdk", "target/sdk/venv/bin/python", &[&driver, &app.url, TOKEN], &[packages]).await;
    assert_eq!(app.count("gottcha2_full").await, 3);
    holds_once(&labkey, 3);
}

/// The fields of the Python models that may hold anything: those that do, and no others, where a type is known.
fn fields_of_any_type() -> Vec<String> {
    let folder = format!("{ROOT}/target/sdk/python/nvd_support_car_client/models");
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder).expect("models") {
        let path = file.expect("file").path();
        let source = std::fs::read_to_string(&path).unwrap_or_default();
        let fields = source.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(": Any"));
        let name = path.file_name().expect("name").display().to_string();
        let is_name = |field: &str| field.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        found.extend(fields.filter(|(field, _)| is_name(field)).map(|(field, _)| format!("{name}: {field}")));
    }
    found.sort();
    found.dedup();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the tools of sdk/generate; .ci/run has them"]
async fn a_generated_typescript_client_is_typed_and_works() {
    let (labkey, app) = lab(merging(), &[]).await;
    let folder = "target/sdk/typescript";
    std::fs::copy(format!("{ROOT}/tests/sdk/drive.ts"), format!("{ROOT}/{folder}/drive.ts")).expect("copy");
    run(folder, "target/sdk/typescript/node_modules/.bin/tsc", &[], &[]).await;
    run(folder, "/usr/bin/env", &["node", "dist/drive.js", &app.url, TOKEN], &[]).await;
    assert_eq!(app.count("gottcha2_full").await, 4);
    holds_once(&labkey, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the tools of sdk/generate; .ci/run has them"]
async fn schemathesis_finds_no_fault_in_any_endpoint() {
    let limits = [("limits.rate_per_second", "100000"), ("limits.burst", "100000"), ("labkey.sync_wait", "2s")];
    let (_labkey, app) = lab(merging(), &limits).await;
    let description = format!("{}/openapi.json", app.url);
    let authorization = format!("Authorization: Bearer {TOKEN}");
    let mut arguments = vec!["run", &description, "--header", &authorization, "--checks", "all", "--no-color"];
    // Text with NUL no database column holds; that it is refused other tests show.
    arguments.extend(["--generation-allow-x00", "false", "--continue-on-failure", "--request-timeout", "30"]);
    arguments.extend(["--generation-deterministic", "--max-examples", "40"]);
    let hooks = format!("{ROOT}/tests/sdk");
    let variables = [("SCHEMATHESIS_HOOKS", "hooks"), ("PYTHONPATH", hooks.as_str())];
    let said = run("target/sdk", "target/sdk/venv/bin/schemathesis", &arguments, &variables).await;
    for line in said.lines().filter(|line| line.contains("generated") || line.contains("Tested:")) {
        println!("{line}");
    }
    let api = app.get("/openapi.json").await;
    let operations = api["paths"].as_object().expect("paths").values().filter_map(|item| item.as_object());
    let count = operations.map(serde_json::Map::len).sum::<usize>();
    assert!(said.contains(&format!("Tested: {count}\n")), "{said}");
}
