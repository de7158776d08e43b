//! Runs the Python programs of `tests`, for tests that are ignored unless there is a Python for them.

use std::process::Command;

/// Runs a program under `tests` with the Python that `NVD_PYTHON` names; it must end well.
pub async fn run(program: &str, arguments: &[&str]) {
    let mut command = Command::new(std::env::var("NVD_PYTHON").expect("NVD_PYTHON"));
    command.arg(format!("{}/tests/{program}", env!("CARGO_MANIFEST_DIR"))).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("task").expect("Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Which tools have read, and which were left out and why.
    print!("{}", String::from_utf8_lossy(&output.stdout));
}
