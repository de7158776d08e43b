//! What the data is: a [`Dataset`] is a table of columns, declared once in a TOML file.
//!
//! SQL ([`sql`]), row parsing ([`json`], [`tsv`], [`row`]), LabKey's lists ([`labkey`]) and OpenAPI ([`openapi`]) are
//! functions of that declaration. This module is pure: no IO but the reading of an operator's definition files, no async.

pub mod arrow;
pub mod definition;
pub mod json;
pub mod kind;
pub mod labkey;
pub mod openapi;
pub mod params;
pub mod row;
pub mod sql;
pub mod tsv;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use definition::SERVICE_COLUMNS;
pub use definition::{Bounds, Column, Dataset, Index, IndexMethod, Mistake};
pub use kind::Kind;
pub use row::{Cell, Fault, Row};

/// The definitions that the binary brings along, as (file name, TOML).
const BUILT_IN: [(&str, &str); 4] = [
    ("gottcha2.toml", include_str!("../../config/datasets/gottcha2.toml")),
    ("stast.toml", include_str!("../../config/datasets/stast.toml")),
    ("nvd_blast.toml", include_str!("../../config/datasets/nvd_blast.toml")),
    ("results.toml", include_str!("../../config/datasets/results.toml")),
];

/// Columns that a dataset may have: PostgreSQL holds 1,600 in a table or a view, less those that the service adds to
/// the table and to its view for LabKey.
const MOST_COLUMNS: usize = 1600 - SERVICE_COLUMNS.len() - sql::LABKEY_COLUMNS.len();

/// All datasets of a running service, in the order of their names.
#[derive(Debug, Clone)]
pub struct Datasets {
    by_name: HashMap<String, Arc<Dataset>>,
    names: Vec<String>,
}

impl Datasets {
    /// The built-in datasets and those of the operator's `folder` (`*.toml`).
    ///
    /// # Errors
    /// Every mistake of every file at once, each with its file.
    pub fn load(folder: Option<&Path>) -> Result<Self, Vec<Mistake>> {
        let mut files: Vec<(String, String)> =
            BUILT_IN.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        if let Some(folder) = folder {
            files.extend(read_folder(folder)?);
        }
        Self::parse(&files)
    }

    /// Datasets from (file name, TOML) pairs.
    ///
    /// # Errors
    /// Every mistake of every file at once, and names or tables declared twice.
    pub fn parse(files: &[(String, String)]) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut by_name: HashMap<String, Arc<Dataset>> = HashMap::new();
        let mut owners: HashMap<String, String> = HashMap::new();
        for (file, text) in files {
            let dataset = match Dataset::parse(file, text) {
                Ok(dataset) => dataset,
                Err(found) => {
                    mistakes.extend(found);
                    continue;
                }
            };
            for (what, value) in [
                ("table", dataset.table.clone()),
                ("name", dataset.name.clone()),
                // `a_b` and `ab_` are one there.
                ("name in OpenAPI", dataset.record_name()),
            ] {
                if let Some(other) = owners.insert(format!("{what} {value}"), file.clone()) {
                    mistakes.push(Mistake::new(file, format!("{what} `{value}` is already used by {other}")));
                    break;
                }
            }
            if dataset.columns.len() > MOST_COLUMNS {
                mistakes
                    .push(Mistake::new(file, format!("has more than {MOST_COLUMNS} columns, which a table can hold")));
            }
            by_name.insert(dataset.name.clone(), Arc::new(dataset));
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let mut names: Vec<String> = by_name.keys().cloned().collect();
        names.sort();
        Ok(Self { by_name, names })
    }

    /// The dataset of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Dataset>> {
        self.by_name.get(name)
    }

    /// All datasets, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Dataset>> {
        self.names.iter().filter_map(|name| self.by_name.get(name))
    }

    /// The names of all datasets, sorted.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

/// The operator's definition files, in the order of their names.
fn read_folder(folder: &Path) -> Result<Vec<(String, String)>, Vec<Mistake>> {
    let fault = |path: &Path, error: std::io::Error| {
        vec![Mistake::new(&path.display().to_string(), format!("cannot be read: {error}"))]
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| fault(folder, error))? {
        let path = entry.map_err(|error| fault(folder, error))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    paths
        .iter()
        .map(|path| {
            // To read a pipe would wait for whoever writes into it.
            if !path.metadata().map_err(|error| fault(path, error))?.is_file() {
                return Err(vec![Mistake::new(&path.display().to_string(), "is no file")]);
            }
            let text = std::fs::read_to_string(path).map_err(|error| fault(path, error))?;
            Ok((path.display().to_string(), text))
        })
        .collect()
}
