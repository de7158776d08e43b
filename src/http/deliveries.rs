//! The record of what was delivered to LabKey, and of what it refused.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::Uri;
use axum::http::header::LINK;
use axum::response::{AppendHeaders, IntoResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Http;
use super::problem::Problem;
use crate::db::labkey::log::{self, Entry, Filter};
use crate::error::Result;

/// Where a delivery is.
#[derive(Debug, Clone, Copy, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = LabkeyDeliveryState)]
pub enum DeliveryState {
    /// It is to be sent.
    Pending,
    /// It is being sent.
    InFlight,
    /// Only LabKey knows whether it has the rows; it will be asked.
    Unknown,
    /// LabKey has the rows.
    Completed,
    /// LabKey refused them.
    Failed,
}

impl DeliveryState {
    /// As it is stored.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InFlight => "in_flight",
            Self::Unknown => "unknown",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// A range of rows on its way to LabKey.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = LabkeyDelivery)]
pub struct DeliveryBody {
    /// Grows with time.
    #[schema(example = 42)]
    delivery_id: i64,
    /// Its name in LabKey: what the column `DeliveryKey` begins with, before a point and the attempt; also in LabKey's
    /// audit log.
    delivery_key: Uuid,
    /// The dataset's name.
    #[schema(example = "gottcha2")]
    dataset: String,
    /// Whose rows.
    #[schema(example = 17)]
    submission_id: i64,
    /// The submission's key; none when it was removed.
    #[schema(required)]
    submission_key: Option<String>,
    /// The sample that all rows of the submission share.
    #[schema(required)]
    sample_id: Option<String>,
    /// The first row, counted from 1 within the submission.
    #[schema(example = 1, minimum = 1)]
    first_ordinal: i32,
    /// The last row.
    #[schema(example = 1000, minimum = 1)]
    last_ordinal: i32,
    /// Its rows.
    #[schema(example = 1000, minimum = 1)]
    rows: i32,
    /// Where it is.
    #[schema(value_type = DeliveryState)]
    state: String,
    /// How often it was sent.
    #[schema(example = 1, minimum = 0)]
    attempts: i32,
    /// LabKey's transaction.
    #[schema(required, example = "9931")]
    transaction_id: Option<String>,
    /// The size of the request that carried it, perhaps together with others.
    #[schema(required)]
    request_bytes: Option<i64>,
    /// LabKey's own words: why it refused the rows, or why they cannot be removed.
    #[schema(required)]
    error: Option<String>,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When it was last sent.
    #[schema(required)]
    sent_at: Option<DateTime<Utc>>,
    /// When it was completed or refused.
    #[schema(required)]
    finished_at: Option<DateTime<Utc>>,
    /// When its submission was removed or replaced here, or others took its place.
    #[schema(required)]
    withdrawn_at: Option<DateTime<Utc>>,
    /// Since when LabKey has its rows no more.
    #[schema(required)]
    removed_at: Option<DateTime<Utc>>,
}

/// A page of deliveries, newest first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = LabkeyDeliveryList)]
pub struct DeliveryList(Vec<DeliveryBody>);

impl From<Entry> for DeliveryBody {
    fn from(entry: Entry) -> Self {
        Self {
            delivery_id: entry.id,
            delivery_key: entry.key,
            dataset: entry.dataset,
            submission_id: entry.submission_id,
            submission_key: entry.submission_key,
            sample_id: entry.sample_id,
            first_ordinal: entry.first_ordinal,
            last_ordinal: entry.last_ordinal,
            rows: entry.rows,
            state: entry.state,
            attempts: entry.attempts,
            transaction_id: entry.transaction_id,
            request_bytes: entry.request_bytes,
            error: entry.error,
            created_at: entry.created_at,
            sent_at: entry.sent_at,
            finished_at: entry.finished_at,
            withdrawn_at: entry.withdrawn_at,
            removed_at: entry.removed_at,
        }
    }
}

/// Which deliveries are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Of that dataset.
    dataset: Option<String>,
    /// In that state; in any unless told.
    state: Option<DeliveryState>,
    /// Of that submission.
    submission_id: Option<i64>,
    /// At most so many, 100 unless told.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Where the page before ended: the `delivery_id` of its last entry. The `Link` header has the whole address.
    cursor: Option<i64>,
}

/// Which refused rows are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FailureQuery {
    /// Of that dataset.
    dataset: Option<String>,
    /// At most so many, 100 unless told.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Where the page before ended: the `delivery_id` of its last entry. The `Link` header has the whole address.
    cursor: Option<i64>,
}

/// Lists deliveries, newest first: the record of what was sent when, and of LabKey's transactions.
#[utoipa::path(get, path = "/labkey/deliveries", operation_id = "list_labkey_deliveries", tag = "labkey",
    params(ListQuery),
    responses((status = 200, description = "A page of deliveries", body = DeliveryList,
        headers(("Link" = String, description = "The next page, `rel=\"next\"`")))))]
pub async fn list_deliveries(
    State(http): State<Http>,
    uri: Uri,
    Query(query): Query<ListQuery>,
) -> Result<impl IntoResponse, Problem> {
    let filter = Filter {
        dataset: query.dataset,
        state: query.state.map(DeliveryState::as_str),
        submission: query.submission_id,
        before: query.cursor,
        limit: super::limit(query.limit, 100)?,
    };
    page(&http, &uri, filter).await
}

/// Lists what LabKey refused, newest first: each row alone, with LabKey's own reason.
#[utoipa::path(get, path = "/labkey/failures", operation_id = "list_labkey_failures", tag = "labkey",
    params(FailureQuery),
    responses((status = 200, description = "A page of refused rows", body = DeliveryList,
        headers(("Link" = String, description = "The next page, `rel=\"next\"`")))))]
pub async fn list_failures(
    State(http): State<Http>,
    uri: Uri,
    Query(query): Query<FailureQuery>,
) -> Result<impl IntoResponse, Problem> {
    let filter = Filter {
        dataset: query.dataset,
        state: Some(DeliveryState::Failed.as_str()),
        submission: None,
        before: query.cursor,
        limit: super::limit(query.limit, 100)?,
    };
    page(&http, &uri, filter).await
}

async fn page(http: &Http, uri: &Uri, filter: Filter) -> Result<impl IntoResponse + use<>, Problem> {
    if let Some(name) = &filter.dataset {
        super::datasets::find(http, name)?;
    }
    let found = log::list(&http.app.pool, &filter).await?;
    let full = i64::try_from(found.len()).is_ok_and(|count| count == filter.limit);
    let next = found.last().filter(|_| full).map(|last| (LINK, super::next_page(uri, last.id)));
    let page = DeliveryList(found.into_iter().map(DeliveryBody::from).collect());
    Ok((AppendHeaders(next), Json(page)))
}
