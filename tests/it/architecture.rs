//! The arrows between modules, read from the sources: they go down, never up and never sideways.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module, and the modules that it may name. What is not listed is ground that everybody may use.
const ARROWS: [(&str, &[&str]); 17] = [
    ("main", &["cli"]),
    ("bin", &["cli"]),
    (
        "cli",
        &[
            "serve", "http", "jobs", "convert", "lake", "export", "labkey", "import", "send", "app", "db", "dataset",
            "storage",
        ],
    ),
    ("serve", &["http", "jobs", "app", "db"]),
    ("http", &["jobs", "lake", "ingest", "export", "labkey", "app", "db", "dataset", "storage"]),
    ("jobs", &["lake", "export", "labkey", "app", "db", "dataset"]),
    ("convert", &["lake", "export", "send", "ingest", "dataset", "storage"]),
    ("lake", &["export", "db", "dataset", "storage"]),
    ("import", &["send", "dataset"]),
    ("send", &["ingest", "dataset"]),
    ("ingest", &["app", "db", "dataset"]),
    ("export", &["db", "dataset", "storage"]),
    ("labkey", &["db", "dataset"]),
    ("app", &["labkey", "db", "dataset", "storage"]),
    ("db", &["dataset"]),
    ("storage", &[]),
    ("dataset", &[]),
];
const GROUND: [&str; 5] = ["config", "error", "telemetry", "secrets", "tls"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    assert!(paths.len() > 30);
    paths
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&root).expect("in src").to_owned();
            let module =
                relative.iter().next().expect("name").to_str().expect("UTF-8").trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).expect("source");
            (module, relative, text)
        })
        .collect()
}

#[test]
fn modules_name_only_what_lies_below_them() {
    for (module, path, text) in all() {
        if GROUND.contains(&module.as_str()) || module == "lib" {
            continue;
        }
        let (_, allowed) =
            ARROWS.iter().find(|(name, _)| *name == module).unwrap_or_else(|| panic!("{module} has no arrows"));
        for used in text
            .split("crate::")
            .skip(1)
            .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default())
        {
            // `crate::{...}` names ground and parts; `crate::Error` is ground.
            let free =
                used.is_empty() || used.starts_with(char::is_uppercase) || used == module || GROUND.contains(&used);
            assert!(free || allowed.contains(&used), "{} names crate::{used}", path.display());
        }
    }
}

#[test]
fn axum_is_named_only_where_the_wire_is() {
    for (module, path, text) in all() {
        let free = module == "http" || module == "serve";
        assert!(free || !text.contains("axum::"), "{} names axum", path.display());
    }
}

#[test]
fn files_stay_one_thought_long() {
    for (_, path, text) in all() {
        let lines = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
        assert!(lines <= 500, "{} has {lines} lines", path.display());
    }
}
