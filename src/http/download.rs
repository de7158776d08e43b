//! Downloading an export: a redirect to the bucket, or the bytes themselves, whole or in ranges.
//!
//! Ranges and conditions as in RFC 9110, sections 13 and 14, since DuckDB, pandas and Polars read Parquet in pieces.

use std::ops::Range;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, IF_RANGE, LOCATION, RANGE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use uuid::Uuid;

use super::links::Proof;
use super::problem::Problem;
use super::{Http, auth, exports, links, zip};
use crate::config::Scope;
use crate::db::exports as catalogue;
use crate::error::{Error, Result};
use crate::export::manifest::media_type;
use crate::export::zip::Entry;
use crate::storage::Storage;

/// Which file is wanted, and what proves that it may be had.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DownloadQuery {
    /// The number of the file, from 1, of an export that has several. Without it, several files come as one ZIP.
    #[param(minimum = 1)]
    file: Option<i32>,
    /// When the link ends, in seconds since 1970; part of `download_url`.
    expires: Option<i64>,
    /// What proves the link; part of `download_url`.
    signature: Option<String>,
    /// Not looked at: programs that tell the kind of a file by the end of its address find it here.
    #[serde(rename = "name")]
    _name: Option<String>,
}

/// The bytes of a file.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes the body of a download")]
pub struct FileContent(Vec<u8>);

/// Downloads an export.
///
/// `download_url` of an export leads here, and works without a token for a while. Exports in a bucket answer with a
/// redirect to it; others with the bytes, in ranges where asked for.
#[utoipa::path(get, path = "/exports/{id}/download", operation_id = "download_export", tag = "exports",
    params(("id" = Uuid, Path, description = "The export's id"), DownloadQuery),
    responses((status = 200, description = "The file, or a ZIP of several", content_type = "application/octet-stream", body = FileContent),
        (status = 409, description = "It is still to be written"),
        (status = 410, description = "Its file is gone from the storage")))]
pub async fn download_export(
    State(http): State<Http>,
    method: Method,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
    Query(query): Query<DownloadQuery>,
) -> Result<Response, Problem> {
    if !http.app.config.auth.public_exports {
        query.allow(&http, &headers, &path(id)).await?;
    }
    let export = exports::find(&http, id).await?;
    let Some(prefix) = export.prefix.clone() else {
        return Err(Error::Conflict(format!(
            "this export is {}; GET /jobs/{} says more",
            export.status, export.job_id
        ))
        .into());
    };
    let files = files(&http, id, &prefix).await?;
    Ok(send(&http, &method, &headers, files, query.number(), &exports::archive_name(&export)).await?)
}

/// The path of an export's download.
pub fn path(export: Uuid) -> String {
    format!("/exports/{export}/download")
}

impl DownloadQuery {
    /// The number of the file that is wanted, if it is one of several.
    pub const fn number(&self) -> Option<i32> {
        self.file
    }

    /// Lets a request pass that has a link to that path, or a token with scope `read`.
    pub async fn allow(&self, http: &Http, headers: &HeaderMap, path: &str) -> Result<()> {
        let proof = Proof { expires: self.expires, signature: self.signature.clone() };
        if !links::check(&http.app, path, &proof).await? {
            auth::authorize(http, headers, Scope::Read).await?;
        }
        Ok(())
    }
}

/// A file of the storage that can be downloaded.
pub struct Stored {
    /// Its name for the client.
    pub name: String,
    /// Its name in the storage.
    pub path: String,
    /// Its size.
    pub bytes: i64,
    /// The digest of its bytes.
    pub sha256: Vec<u8>,
}

/// The files of a complete export.
pub async fn files(http: &Http, export: Uuid, prefix: &str) -> Result<Vec<Stored>> {
    let files = catalogue::files(&http.app.pool, &[export]).await?;
    let stored = files.into_iter().map(|file| Stored {
        path: format!("{prefix}/{}", file.name),
        name: file.name,
        bytes: file.bytes,
        sha256: file.sha256,
    });
    Ok(stored.collect())
}

/// Sends the only file, that of the number, or several as a ZIP.
pub async fn send(
    http: &Http,
    method: &Method,
    headers: &HeaderMap,
    files: Vec<Stored>,
    number: Option<i32>,
    archive: &str,
) -> Result<Response> {
    let file = match (number, files.as_slice()) {
        (None, [only]) => only,
        (None, _) => {
            let entries = files.into_iter().map(|file| Entry { name: file.name, path: file.path });
            return zip::answer(http, method, archive, entries.collect()).await;
        }
        (Some(number), files) => number
            .checked_sub(1)
            .and_then(|index| files.get(usize::try_from(index).ok()?))
            .ok_or_else(|| Error::NotFound { what: "file of this export", name: number.to_string() })?,
    };
    send_one(http, method, headers, file).await
}

/// Sends a file: by a redirect to its bucket, or its bytes, of which the client may want a range.
pub async fn send_one(http: &Http, method: &Method, headers: &HeaderMap, file: &Stored) -> Result<Response> {
    let storage = &http.app.storage;
    check_stored(storage, &file.path).await?;
    if let Some(url) = storage.signed_url(method, &file.path, links::lifetime(&http.app)).await {
        return Ok((StatusCode::FOUND, [(LOCATION, url)]).into_response());
    }
    let tag = format!("\"{}\"", data_encoding::HEXLOWER.encode(&file.sha256));
    let base = [
        (ETAG, tag.clone()),
        (CACHE_CONTROL, "private, max-age=31536000, immutable".to_owned()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        (CONTENT_TYPE, media_type(&file.name).to_owned()),
        (CONTENT_DISPOSITION, format!("attachment; filename=\"{}\"", file.name)),
    ];
    if header(headers, &IF_NONE_MATCH).is_some_and(|known| known == "*" || known.contains(&tag)) {
        return Ok((StatusCode::NOT_MODIFIED, base).into_response());
    }
    let size = file.bytes.unsigned_abs();
    let is_current = header(headers, &IF_RANGE).is_none_or(|known| known == tag);
    let wanted = header(headers, &RANGE).filter(|_| is_current && *method == Method::GET).map(|text| range(text, size));
    let (status, part) = match wanted {
        Some(Wanted::Part(part)) => (StatusCode::PARTIAL_CONTENT, Some(part)),
        Some(Wanted::Nothing) => {
            let headers = [(CONTENT_RANGE, format!("bytes */{size}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, headers, "the file has no such range").into_response());
        }
        Some(Wanted::All) | None => (StatusCode::OK, None),
    };
    let length = part.as_ref().map_or(size, |part| part.end - part.start);
    let body = match *method == Method::HEAD || length == 0 {
        true => Body::empty(),
        false => Body::from_stream(storage.read(&file.path, part.clone()).await?),
    };
    let mut response = (status, base, body).into_response();
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    if let Some(part) = part {
        let range = format!("bytes {}-{}/{size}", part.start, part.end - 1);
        if let Ok(range) = HeaderValue::from_str(&range) {
            response.headers_mut().insert(CONTENT_RANGE, range);
        }
    }
    Ok(response)
}

/// Refuses a file that the storage has lost, and any while it is away.
pub async fn check_stored(storage: &Storage, path: &str) -> Result<()> {
    if storage.exists(path).await? {
        return Ok(());
    }
    tracing::error!(file = path, "a file is missing from the storage");
    Err(Error::Gone("its file is gone from the storage: export again".into()))
}

fn header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// These bytes.
    Part(Range<u64>),
    /// Several ranges, or another unit: which may be answered with everything.
    All,
    /// Bytes that the file does not have.
    Nothing,
}

fn range(text: &str, size: u64) -> Wanted {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|set| set.trim().split_once('-')) else {
        return Wanted::All;
    };
    let (first, last) = (first.trim(), last.trim());
    let part = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(count)) if first.is_empty() => size.saturating_sub(count)..size,
        _ => return Wanted::All,
    };
    if part.start < part.end { Wanted::Part(part) } else { Wanted::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        assert_eq!(range("bytes=0-3", 10), Wanted::Part(0..4));
        assert_eq!(range("bytes=4-", 10), Wanted::Part(4..10));
        assert_eq!(range("bytes=-3", 10), Wanted::Part(7..10));
        assert_eq!(range("bytes=-30", 10), Wanted::Part(0..10));
        assert_eq!(range("bytes=2-400", 10), Wanted::Part(2..10));
        assert_eq!(range("bytes=10-", 10), Wanted::Nothing);
        assert_eq!(range("bytes=-0", 10), Wanted::Nothing);
        assert_eq!(range("bytes=3-2", 10), Wanted::All);
        assert_eq!(range("bytes=0-1,4-5", 10), Wanted::All);
        assert_eq!(range("lines=0-1", 10), Wanted::All);
    }
}
