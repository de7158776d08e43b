//! The layers above the defaults: a file, variables and flags. Later layers win.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use ::config::{Map, Value, ValueKind};

use super::fault::{Fault, Source};

/// Variables with short names, and the key that each one sets.
pub const FLAT_NAMES: [(&str, &str); 18] = [
    ("DATABASE_URL", "database.url"),
    ("INGEST_TOKEN", "auth.ingest_token"),
    ("BEARER_TOKEN", "auth.bearer_token"),
    ("SERVER_PORT", "server.port"),
    ("PORT", "server.port"),
    ("HOST", "server.host"),
    ("CERT_PATH", "server.cert_path"),
    ("KEY_PATH", "server.key_path"),
    ("RATE_LIMIT_RPS", "limits.rate_per_second"),
    ("LABKEY_SERVER_URL", "labkey.server_url"),
    ("LABKEY_PROJECT_PATH", "labkey.project_path"),
    ("LABKEY_SCHEMA_NAME", "labkey.schema_name"),
    ("LABKEY_API_KEY", "labkey.api_key"),
    ("LABKEY_USERNAME", "labkey.username"),
    ("LABKEY_PASSWORD", "labkey.password"),
    ("LABKEY_BATCH_SIZE", "labkey.batch_size"),
    ("LABKEY_AUTO_UPLOAD", "labkey.auto_upload"),
    ("LABKEY_UPLOAD_INTERVAL_MINUTES", "labkey.upload_interval_minutes"),
];

const FILE_VARIABLE: &str = "NVD_CONFIG";
const PREFIX: &str = "NVD__";
const FILE_SUFFIX: &str = "_FILE";

/// One key with its value, and where that was found.
pub(super) struct Leaf {
    pub key: String,
    pub value: Value,
    pub source: Source,
}

/// All layers laid over each other.
#[derive(Default)]
pub(super) struct Layers {
    /// The value that wins, by key.
    pub leaves: BTreeMap<String, Leaf>,
    /// What could not be read, or contradicts itself within a layer.
    pub faults: Vec<Fault>,
}

impl Layers {
    /// Reads every layer. `is_section` tells the tables of the configuration from its values.
    pub fn read(
        is_section: impl Fn(&str) -> bool,
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Self {
        let env: BTreeMap<String, String> = env.into_iter().filter(|(_, text)| !text.is_empty()).collect();
        let mut layers = Self::default();
        if let Some(path) = file.or(env.get(FILE_VARIABLE).map(Path::new)) {
            layers.add(from_file(path, &is_section));
        }
        layers.add(from_variables(&env, flat_key));
        layers.add(from_variables(&env, prefixed_key));
        layers.add(from_flags(overrides));
        layers
    }

    fn add(&mut self, layer: Vec<Result<Leaf, Fault>>) {
        let mut leaves: BTreeMap<String, Leaf> = BTreeMap::new();
        for found in layer {
            match found {
                Ok(leaf) => match leaves.get(&leaf.key) {
                    Some(first) if first.value != leaf.value => {
                        self.faults.push(contradiction(leaf, &first.source));
                    }
                    _ => {
                        leaves.insert(leaf.key.clone(), leaf);
                    }
                },
                Err(fault) => self.faults.push(fault),
            }
        }
        self.leaves.extend(leaves);
    }
}

fn contradiction(leaf: Leaf, first: &Source) -> Fault {
    Fault { reason: format!("{first} sets another value; keep one of the two"), key: leaf.key, source: leaf.source }
}

/// The values of a tree by their dotted keys. A table that is no section is itself a value.
pub(super) fn flatten(tree: Map<String, Value>, is_section: &impl Fn(&str) -> bool) -> Vec<(String, Value)> {
    let mut leaves = Vec::new();
    for (key, value) in tree {
        match value.kind {
            ValueKind::Table(inner) if is_section(&key) => {
                let inner = inner.into_iter().map(|(name, value)| (format!("{key}.{name}"), value));
                leaves.extend(flatten(inner.collect(), is_section));
            }
            _ => leaves.push((key, value)),
        }
    }
    leaves
}

fn from_file(path: &Path, is_section: &impl Fn(&str) -> bool) -> Vec<Result<Leaf, Fault>> {
    let source = Source::File(path.to_owned());
    match read_tree(path) {
        Ok(tree) => flatten(tree, is_section)
            .into_iter()
            .map(|(key, value)| Ok(Leaf { key, value, source: source.clone() }))
            .collect(),
        Err(reason) => vec![Err(Fault { key: Fault::WHOLE.into(), source, reason })],
    }
}

fn read_tree(path: &Path) -> Result<Map<String, Value>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    toml::from_str(&text).map_err(|error| syntax_fault(&text, &error))
}

/// The error's own text would quote the line, and with it a secret.
fn syntax_fault(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map_or(0, |span| span.start);
    let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
    format!("line {line}: {}", error.message())
}

fn from_variables(env: &BTreeMap<String, String>, key_of: fn(&str) -> Option<String>) -> Vec<Result<Leaf, Fault>> {
    env.iter().filter_map(|(name, text)| from_variable(name, text, key_of)).collect()
}

fn from_variable(name: &str, text: &str, key_of: fn(&str) -> Option<String>) -> Option<Result<Leaf, Fault>> {
    let file_stem = name.strip_suffix(FILE_SUFFIX);
    let key = key_of(file_stem.unwrap_or(name))?;
    let source = Source::Variable(name.into());
    let value = match file_stem {
        Some(_) => read_value(text),
        None => Ok(text.into()),
    };
    Some(match value {
        Ok(value) => Ok(Leaf { key, value: value.into(), source }),
        Err(reason) => Err(Fault { key, source, reason }),
    })
}

fn flat_key(name: &str) -> Option<String> {
    let (_, key) = FLAT_NAMES.into_iter().find(|(flat, _)| *flat == name)?;
    Some(key.into())
}

fn prefixed_key(name: &str) -> Option<String> {
    Some(name.strip_prefix(PREFIX)?.to_lowercase().replace("__", "."))
}

/// An empty file is refused: taken as "no token" or "no URL", it would quietly open or move the service.
fn read_value(path: &str) -> Result<String, String> {
    let path = PathBuf::from(path);
    let text = fs::read_to_string(&path)
        .and_then(|text| match text.trim_end_matches(['\r', '\n']) {
            "" => Err(io::Error::other("it is empty")),
            value => Ok(value.to_owned()),
        })
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(text)
}

fn from_flags(overrides: &[(String, String)]) -> Vec<Result<Leaf, Fault>> {
    overrides
        .iter()
        .map(|(key, text)| Ok(Leaf { key: key.clone(), value: text.as_str().into(), source: Source::CommandLine }))
        .collect()
}
