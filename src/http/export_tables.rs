//! What export jobs can be asked for: the formats, and the tables with their columns.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::Http;
use super::problem::Problem;
use crate::config::Format;
use crate::dataset::{Dataset, Kind};
use crate::db::submissions::{self, Total};
use crate::export::manifest::media_type;
use crate::export::spec;

/// A form of files.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExportFormatInfo)]
pub struct FormatBody {
    /// What to write as `format`.
    format: Format,
    /// What it is.
    #[schema(example = "One JSON object a line.")]
    description: &'static str,
    /// The media type of a file that is not compressed as a whole.
    #[schema(example = "application/x-ndjson")]
    media_type: &'static str,
    /// The ending of file names; `.gz` follows when `compress` is set.
    #[schema(example = "jsonl")]
    extension: &'static str,
    /// Whether `compress` makes a gzip file of it.
    compressible: bool,
}

/// All formats.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExportFormatList)]
pub struct FormatList(Vec<FormatBody>);

/// Lists the formats.
#[utoipa::path(get, path = "/api/v1/export/formats", operation_id = "list_export_formats", tag = "export jobs",
    responses((status = 200, description = "All formats", body = FormatList)))]
pub async fn list_export_formats() -> Json<FormatList> {
    let body = |format: Format| FormatBody {
        format,
        description: format.description(),
        media_type: media_type(format.as_str()),
        extension: format.as_str(),
        compressible: format != Format::Parquet,
    };
    Json(FormatList(Format::ALL.map(body).into()))
}

/// A table that can be exported.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExportTable)]
pub struct TableBody {
    /// What to write as `table_name`.
    #[schema(example = "gottcha2")]
    table_name: String,
    /// Its title.
    title: String,
    /// What one row is.
    description: String,
    /// Its columns, in order.
    columns: Vec<ColumnBody>,
    /// Its rows.
    #[schema(example = 2_000_000, minimum = 0)]
    row_estimate: i64,
    /// When its rows were stored; null when there are none.
    #[schema(required)]
    time_range: Option<TimeRange>,
}

/// When rows were stored.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct TimeRange {
    /// The earliest.
    from: DateTime<Utc>,
    /// The latest.
    to: DateTime<Utc>,
}

/// A column of a table.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExportColumn)]
pub struct ColumnBody {
    /// What to write in `columns` and `filters`.
    #[schema(example = "sample_id")]
    name: String,
    /// The type of its values.
    #[serde(rename = "type")]
    kind: Kind,
    /// What its values mean.
    description: String,
    /// Their unit.
    #[schema(required)]
    unit: Option<String>,
    /// Whether an index finds its values, so that a filter by it is quick.
    indexed: bool,
    /// Whether a filter can be about it.
    filterable: bool,
}

/// All tables, by name.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ExportTableList)]
pub struct TableList(Vec<TableBody>);

/// Lists the tables, with their columns and how much is in them.
#[utoipa::path(get, path = "/api/v1/export/tables", operation_id = "list_export_tables", tag = "export jobs",
    responses((status = 200, description = "All tables, by name", body = TableList)))]
pub async fn list_export_tables(State(http): State<Http>) -> Result<Json<TableList>, Problem> {
    let totals = submissions::totals(&http.app.pool).await?;
    let total = |dataset: &Dataset| totals.iter().find(|total| total.dataset == dataset.name);
    let tables = http.app.datasets.iter().map(|dataset| table(dataset, total(dataset)));
    Ok(Json(TableList(tables.collect())))
}

fn table(dataset: &Dataset, total: Option<&Total>) -> TableBody {
    let columns = spec::all_columns(dataset).into_iter().map(|column| {
        let declared = dataset.columns.iter().find(|declared| declared.name == column.name);
        ColumnBody {
            description: match declared {
                Some(declared) => declared.description.clone(),
                None => service_column(&column.name).to_owned(),
            },
            unit: declared.and_then(|declared| declared.unit.clone()),
            indexed: column.lookup,
            filterable: declared.is_some() && matches!(column.kind, Kind::Text | Kind::Int | Kind::Bool),
            kind: column.kind,
            name: column.name,
        }
    });
    TableBody {
        table_name: dataset.name.clone(),
        title: dataset.title.clone(),
        description: dataset.description.clone(),
        columns: columns.collect(),
        row_estimate: total.map_or(0, |total| total.rows),
        time_range: total.map(|total| TimeRange { from: total.first, to: total.last }),
    }
}

/// What the columns mean that the service adds.
fn service_column(name: &str) -> &'static str {
    match name {
        "submission_id" => "The submission that brought the row; exported only where it is asked for.",
        "ordinal" => "The row's place in its submission, from 1; exported only where it is asked for.",
        "extra" => "Fields that the dataset does not know.",
        _ => "When the row was stored.",
    }
}
