//! What can be sent: the datasets and their columns.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::Value;

use super::Http;
use super::problem::Problem;
use crate::dataset::{Column, Dataset, Kind, openapi};
use crate::error::{Error, Result};

/// A dataset in the list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DatasetSummary {
    /// The name in URLs.
    #[schema(example = "gottcha2")]
    name: String,
    /// The table in PostgreSQL.
    #[schema(example = "gottcha2_full")]
    table: String,
    /// A short title.
    #[schema(example = "GOTTCHA2 taxonomic profile")]
    title: String,
    /// What one row is.
    description: String,
}

/// A dataset with all its columns.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DatasetDetail {
    /// Name, table, title and description.
    #[serde(flatten)]
    summary: DatasetSummary,
    /// The columns in the order of the table.
    #[schema(value_type = Vec<DatasetColumn>)]
    columns: Vec<Column>,
    /// The JSON Schema of one record.
    #[schema(value_type = Object)]
    json_schema: Value,
}

/// One column of a dataset, as [`Column`] is written; here only for the documentation.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the JSON of dataset::Column")]
pub struct DatasetColumn {
    /// The name in JSON, TSV, PostgreSQL and Parquet.
    #[schema(example = "best_sig_cov")]
    name: String,
    /// The type of its values.
    kind: Kind,
    /// Whether a row without it is refused.
    required: bool,
    /// Other names that are understood; case does not matter.
    #[schema(nullable = false)]
    aliases: Option<Vec<String>>,
    /// What the value means.
    description: String,
    /// The unit.
    #[schema(example = "fraction", nullable = false)]
    unit: Option<String>,
    /// The allowed values.
    #[schema(nullable = false)]
    range: Option<ColumnRange>,
    /// A real value.
    example: Option<Value>,
}

/// The allowed values of a numeric column, both ends included.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the JSON of dataset::Bounds")]
pub struct ColumnRange {
    /// The smallest value.
    #[schema(example = 0.0)]
    min: f64,
    /// The largest value.
    #[schema(example = 1.0)]
    max: f64,
}

/// All datasets.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DatasetList(Vec<DatasetSummary>);

impl From<&Arc<Dataset>> for DatasetSummary {
    fn from(dataset: &Arc<Dataset>) -> Self {
        Self {
            name: dataset.name.clone(),
            table: dataset.table.clone(),
            title: dataset.title.clone(),
            description: dataset.description.clone(),
        }
    }
}

/// Lists the datasets.
#[utoipa::path(get, path = "/datasets", operation_id = "list_datasets", tag = "datasets",
    responses((status = 200, description = "All datasets, by name", body = DatasetList)))]
pub async fn list_datasets(State(http): State<Http>) -> Json<DatasetList> {
    Json(DatasetList(http.app.datasets.iter().map(DatasetSummary::from).collect()))
}

/// Describes one dataset: columns, types, units, ranges, JSON Schema.
#[utoipa::path(get, path = "/datasets/{name}", operation_id = "get_dataset", tag = "datasets",
    params(("name" = String, Path, description = "The name of the dataset")),
    responses((status = 200, description = "The dataset", body = DatasetDetail)))]
pub async fn get_dataset(State(http): State<Http>, Path(name): Path<String>) -> Result<Json<DatasetDetail>, Problem> {
    let dataset = find(&http, &name)?;
    Ok(Json(DatasetDetail {
        summary: DatasetSummary::from(&dataset),
        columns: dataset.columns.clone(),
        json_schema: openapi::record_schema(&dataset),
    }))
}

/// The dataset of that name.
///
/// # Errors
/// When there is none.
pub fn find(http: &Http, name: &str) -> Result<Arc<Dataset>> {
    http.app.datasets.get(name).cloned().ok_or_else(|| Error::NotFound { what: "dataset", name: name.to_owned() })
}
