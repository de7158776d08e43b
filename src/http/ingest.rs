//! The routes by which result files come in.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use serde::Serialize;

use super::auth::Client;
use super::problem::Problem;
use super::{Http, key};
use crate::dataset::params::Params;
use crate::error::{Error, Result};
use crate::ingest::{self, Receipt};

/// What was stored.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Receipt)]
pub struct ReceiptBody {
    /// The submission: all rows of this body.
    #[schema(example = 42)]
    submission_id: i64,
    /// The dataset that the rows went to.
    #[schema(example = "gottcha2")]
    dataset: String,
    /// The key under which a repetition is recognised: the client's, or `sha256:` and a digest.
    #[schema(example = "submit-1#152.3#1358363336/SRR12689945.full.tsv")]
    key: String,
    /// Rows stored.
    #[schema(example = 8, minimum = 0)]
    rows: i64,
    /// Rows passed over because their unique key was stored before; 0 for datasets without one.
    #[schema(example = 0, minimum = 0)]
    duplicates: i64,
    /// SHA-256 of the decompressed body, in hexadecimal.
    #[schema(example = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
    sha256: String,
    /// Whether an earlier request had stored this already; then this one stored nothing.
    #[schema(example = false)]
    replayed: bool,
    /// When it was stored.
    created_at: DateTime<Utc>,
}

impl From<Receipt> for ReceiptBody {
    fn from(receipt: Receipt) -> Self {
        let submission = receipt.submission;
        Self {
            submission_id: submission.id,
            dataset: submission.dataset,
            key: submission.key,
            rows: submission.rows,
            duplicates: submission.duplicates,
            sha256: data_encoding::HEXLOWER.encode(&submission.sha256),
            replayed: receipt.replayed,
            created_at: submission.created_at,
        }
    }
}

type Pairs = Query<Vec<(String, String)>>;
type Answer = Result<Json<ReceiptBody>, Problem>;

/// Takes in one GOTTCHA2 result file.
///
/// The same as `POST /ingest/gottcha2`.
#[utoipa::path(post, path = "/ingest-gottcha2", operation_id = "ingest_gottcha2", tag = "ingest",
    responses((status = 200, description = "Stored, now or before", body = ReceiptBody)))]
pub async fn ingest_gottcha2(
    State(http): State<Http>,
    client: Extension<Client>,
    query: Pairs,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    take(&http, client, "gottcha2", query, key::of(&headers)?, body).await
}

/// Takes in one STAST (STAT+BLAST) result file.
///
/// The same as `POST /ingest/stast`. Identical rows are kept: BLAST writes one for each HSP.
#[utoipa::path(post, path = "/ingest-stast", operation_id = "ingest_stast", tag = "ingest",
    responses((status = 200, description = "Stored, now or before", body = ReceiptBody)))]
pub async fn ingest_stast(
    State(http): State<Http>,
    client: Extension<Client>,
    query: Pairs,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    take(&http, client, "stast", query, key::of(&headers)?, body).await
}

/// Takes in generic results.
///
/// The same as `POST /ingest/results`. Rows whose `idempotency_key` is stored already are passed over and counted.
#[utoipa::path(post, path = "/ingest", operation_id = "ingest_results", tag = "ingest",
    responses((status = 200, description = "Stored, now or before", body = ReceiptBody)))]
pub async fn ingest_results(
    State(http): State<Http>,
    client: Extension<Client>,
    query: Pairs,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    take(&http, client, "results", query, key::of(&headers)?, body).await
}

/// Takes in one result file of any dataset.
///
/// One body is one submission: all of it is stored, or nothing. Sending the same again answers with the same receipt.
#[utoipa::path(post, path = "/ingest/{dataset}", operation_id = "ingest_dataset", tag = "ingest",
    params(("dataset" = String, Path, description = "The name of the dataset, see `GET /datasets`")),
    responses((status = 200, description = "Stored, now or before", body = ReceiptBody)))]
pub async fn ingest_dataset(
    State(http): State<Http>,
    client: Extension<Client>,
    Path(dataset): Path<String>,
    query: Pairs,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    take(&http, client, &dataset, query, key::of(&headers)?, body).await
}

/// Takes in one result file under a key in the URL.
///
/// For HTCondor's file transfer, which sends PUT with a bearer token and no other header. A repetition is a success.
#[utoipa::path(put, path = "/ingest/{dataset}/{key}", operation_id = "put_submission", tag = "ingest",
    params(("dataset" = String, Path, description = "The name of the dataset, see `GET /datasets`"),
           ("key" = String, Path, description = "Names this file for ever, such as GlobalJobId and file name; percent-encoded")),
    responses((status = 200, description = "Stored, now or before", body = ReceiptBody)))]
pub async fn put_submission(
    State(http): State<Http>,
    client: Extension<Client>,
    Path((dataset, key)): Path<(String, String)>,
    query: Pairs,
    body: Body,
) -> Answer {
    let key = key::check(&key, "key")?;
    take(&http, client, &dataset, query, Some(key), body).await
}

async fn take(
    http: &Http,
    client: Extension<Client>,
    dataset: &str,
    query: Pairs,
    key: Option<&str>,
    body: Body,
) -> Answer {
    let dataset = super::datasets::find(http, dataset)?;
    let Query(pairs) = query;
    let value = |name: &str| {
        let mut values = pairs.iter().filter(|(given, _)| given == name).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(Error::parameter(name, "is given a second time")),
            (value, None) => Ok(value),
        }
    };
    let request = ingest::Request {
        params: Params::parse(&dataset, &pairs).map_err(Error::Faults)?,
        dataset,
        key: key.map(str::to_owned),
        format: value("format")?.map(str::parse).transpose()?,
        replace: match value("on_conflict")? {
            None | Some("refuse") => false,
            Some("replace") => true,
            Some(_) => return Err(Error::parameter("on_conflict", "must be refuse or replace").into()),
        },
        client: client.0.0.to_string(),
    };
    let lost = |error: axum::Error| error.into_inner().downcast().map_or(Error::Disconnected, |error| *error);
    let body = body.into_data_stream().map(|part| part.map_err(lost));
    Ok(Json(ingest::ingest(&http.app, request, body).await?.into()))
}
