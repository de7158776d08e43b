//! Which dataset a file belongs to, told from its first line.

use std::cmp::Reverse;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::content::Content;
use crate::dataset::{Dataset, Datasets};

/// The dataset whose columns the first line names, or that has files without a header of that many cells.
#[must_use]
pub fn dataset(datasets: &Datasets, content: &Content) -> Option<Arc<Dataset>> {
    let line = content.first_line.as_deref()?;
    let names = names(line, content.is_csv());
    let known = |dataset: &Dataset| names.iter().filter(|name| dataset.position(name).is_some()).count();
    let named = datasets.iter().filter(|dataset| known(dataset) * 2 > names.len());
    // Of those that know the same names the one with the fewest other columns.
    if let Some(best) = named.max_by_key(|dataset| (known(dataset), Reverse(dataset.columns.len()))) {
        return Some(Arc::clone(best));
    }
    let mut of_width =
        datasets.iter().filter(|dataset| dataset.headerless.iter().any(|order| order.len() == names.len()));
    match (of_width.next(), of_width.next()) {
        (Some(only), None) if !line.starts_with('{') => Some(Arc::clone(only)),
        _ => None,
    }
}

fn names(line: &str, is_csv: bool) -> Vec<String> {
    if let Ok(record) = serde_json::from_str::<Map<String, Value>>(line) {
        return record.into_iter().map(|(name, _)| name).collect();
    }
    if is_csv {
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
        let cells = reader.records().next().and_then(Result::ok);
        return cells.iter().flatten().map(str::to_owned).collect();
    }
    line.split('\t').map(|name| name.trim().to_owned()).collect()
}
