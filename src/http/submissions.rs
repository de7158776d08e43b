//! What has been taken in.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::header::LINK;
use axum::http::{StatusCode, Uri};
use axum::response::{AppendHeaders, IntoResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Http;
use super::problem::Problem;
use crate::dataset::kind::in_calendar;
use crate::db::submissions::{self, Filter, Submission};
use crate::error::{Error, Result};

/// A result file that was taken in.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Submission)]
pub struct SubmissionBody {
    /// Grows with time, with gaps.
    #[schema(example = 42)]
    submission_id: i64,
    /// The dataset's name.
    #[schema(example = "gottcha2")]
    dataset: String,
    /// The key under which a repetition is recognised.
    key: String,
    /// Rows stored.
    #[schema(example = 8, minimum = 0)]
    rows: i64,
    /// Rows passed over because their unique key was stored before.
    #[schema(example = 0, minimum = 0)]
    duplicates: i64,
    /// Decompressed bytes.
    #[schema(example = 2108, minimum = 0)]
    bytes: i64,
    /// SHA-256 of the decompressed body, in hexadecimal.
    sha256: String,
    /// The sample that all rows share; null when they name several.
    #[schema(required, example = "SRR12689945")]
    sample_id: Option<String>,
    /// The run that all rows share; null when they name several.
    #[schema(required)]
    run_id: Option<String>,
    /// The name of the access token that sent it.
    #[schema(example = "htcondor")]
    client: String,
    /// When storing it began.
    created_at: DateTime<Utc>,
}

impl From<Submission> for SubmissionBody {
    fn from(submission: Submission) -> Self {
        Self {
            submission_id: submission.id,
            dataset: submission.dataset,
            key: submission.key,
            rows: submission.rows,
            duplicates: submission.duplicates,
            bytes: submission.bytes,
            sha256: data_encoding::HEXLOWER.encode(&submission.sha256),
            sample_id: submission.sample_id,
            run_id: submission.run_id,
            client: submission.client,
            created_at: submission.created_at,
        }
    }
}

/// A page of submissions, newest first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SubmissionList(Vec<SubmissionBody>);

/// Which submissions are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Of that dataset.
    dataset: Option<String>,
    /// Of that sample.
    sample_id: Option<String>,
    /// Of that run.
    run_id: Option<String>,
    /// Stored at that time or later (RFC 3339). What counts is when storing began, and a submission is seen when that has
    /// ended: to ask for what is new, go back by the longest upload and drop what comes twice by `submission_id`.
    since: Option<DateTime<Utc>>,
    /// At most so many, 100 unless told.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Where the page before ended: the `submission_id` of its last entry. The `Link` header has the whole address.
    cursor: Option<i64>,
}

/// Lists submissions, newest first.
///
/// The address of the next page, if there is one, stands in the `Link` header with `rel="next"`.
#[utoipa::path(get, path = "/submissions", operation_id = "list_submissions", tag = "submissions", params(ListQuery),
    responses((status = 200, description = "A page of submissions", body = SubmissionList,
        headers(("Link" = String, description = "The next page, `rel=\"next\"`")))))]
pub async fn list_submissions(
    State(http): State<Http>,
    uri: Uri,
    Query(query): Query<ListQuery>,
) -> Result<impl IntoResponse, Problem> {
    let limit = super::limit(query.limit, 100)?;
    if let Some(name) = &query.dataset {
        super::datasets::find(&http, name)?;
    }
    query.since.map(in_calendar).transpose().map_err(|reason| Error::parameter("since", reason))?;
    let filter = Filter {
        dataset: query.dataset,
        sample_id: query.sample_id,
        run_id: query.run_id,
        since: query.since,
        before: query.cursor,
        limit,
    };
    let found = submissions::list(&http.app.pool, &filter).await?;
    let full = i64::try_from(found.len()).is_ok_and(|count| count == limit);
    let next = found.last().filter(|_| full).map(|last| (LINK, super::next_page(&uri, last.id)));
    let page = found.into_iter().map(SubmissionBody::from).collect();
    Ok((AppendHeaders(next), Json(SubmissionList(page))))
}

/// One submission.
#[utoipa::path(get, path = "/submissions/{id}", operation_id = "get_submission", tag = "submissions",
    params(("id" = i64, Path, description = "The submission's id, from its receipt")),
    responses((status = 200, description = "The submission", body = SubmissionBody)))]
pub async fn get_submission(State(http): State<Http>, Path(id): Path<i64>) -> Result<Json<SubmissionBody>, Problem> {
    Ok(Json(find(&http, id).await?.into()))
}

/// Removes a submission and all its rows.
///
/// Its key is free afterwards: the same file can be sent again.
#[utoipa::path(delete, path = "/submissions/{id}", operation_id = "delete_submission", tag = "submissions",
    params(("id" = i64, Path, description = "The submission's id, from its receipt")),
    responses((status = 204, description = "Removed")))]
pub async fn delete_submission(State(http): State<Http>, Path(id): Path<i64>) -> Result<StatusCode, Problem> {
    let submission = find(&http, id).await?;
    let dataset = super::datasets::find(&http, &submission.dataset)?;
    let mut transaction = http.app.pool.begin().await?;
    if !submissions::delete(&mut transaction, &dataset, id).await? {
        return Err(not_found(id).into());
    }
    transaction.commit().await?;
    tracing::info!(submission = id, dataset = submission.dataset, rows = submission.rows, "submission removed");
    Ok(StatusCode::NO_CONTENT)
}

async fn find(http: &Http, id: i64) -> Result<Submission> {
    submissions::by_id(&http.app.pool, id).await?.ok_or_else(|| not_found(id))
}

fn not_found(id: i64) -> Error {
    Error::NotFound { what: "submission", name: id.to_string() }
}
