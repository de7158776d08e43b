//! Download links that work without headers for a while: signed, so that they cannot be changed or prolonged.

use std::time::Duration;

use axum::extract::Request;
use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use chrono::Utc;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::Sha256;

use crate::app::App;
use crate::db::keys;
use crate::error::{Error, Result};

/// The name of the key in the database.
const KEY: &str = "export_links";

/// The part of a link that proves it.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Proof {
    /// When the link ends, in seconds since 1970; part of `download_url`.
    pub expires: Option<i64>,
    /// What proves the link; part of `download_url`.
    pub signature: Option<String>,
}

/// The link to a download, as people can open it. It ends in the name of the file: DuckDB and others tell the kind of a
/// file by the end of its address.
pub async fn make(app: &App, base: &str, path: &str, name: &str) -> Result<String> {
    let lifetime = i64::try_from(app.config.export.link_lifetime.as_secs()).unwrap_or(i64::MAX / 2);
    let expires = Utc::now().timestamp() + lifetime;
    let signature = data_encoding::HEXLOWER.encode(&mac(app, path, expires).await?.finalize().into_bytes());
    Ok(format!("{base}{path}?expires={expires}&signature={signature}&name={name}"))
}

/// Checks a link to a path; false when it is none, so that a token is needed.
pub async fn check(app: &App, path: &str, proof: &Proof) -> Result<bool> {
    let (Some(expires), Some(signature)) = (proof.expires, &proof.signature) else {
        return Ok(false);
    };
    let signature = data_encoding::HEXLOWER.decode(signature.as_bytes()).unwrap_or_default();
    // Compares in constant time.
    let mac = mac(app, path, expires).await?;
    mac.verify_slice(&signature).map_err(|_| Error::Link("this link was changed: take `download_url` as it is"))?;
    if expires < Utc::now().timestamp() {
        return Err(Error::Link("the time of this link is over: ask for a new one where you have it from"));
    }
    Ok(true)
}

/// Seconds for which a signed link to a storage works.
pub fn lifetime(app: &App) -> Duration {
    app.config.export.link_lifetime
}

async fn mac(app: &App, path: &str, expires: i64) -> Result<Hmac<Sha256>> {
    let key = app.link_key.get_or_try_init(|| key(app)).await?;
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|error| Error::Internal(error.to_string()))?;
    mac.update(format!("download {path} until {expires}").as_bytes());
    Ok(mac)
}

async fn key(app: &App) -> Result<Vec<u8>> {
    if let Some(key) = &app.config.export.link_key {
        return Ok(key.expose().as_bytes().to_vec());
    }
    let mut new = [0; 32];
    getrandom::fill(&mut new).map_err(|error| Error::Internal(format!("no random bytes: {error}")))?;
    keys::keep(&app.pool, KEY, &new).await
}

/// Gives every request a `Host`: over HTTP/2 its target names the host instead.
pub async fn host(mut request: Request, next: Next) -> Response {
    let authority = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(authority) = authority {
        request.headers_mut().entry(HOST).or_insert(authority);
    }
    next.run(request).await
}

/// The address under which the client reached the service, for links in answers.
pub fn base(app: &App, headers: &HeaderMap) -> String {
    if let Some(url) = &app.config.server.public_url {
        return url.trim_end_matches('/').to_owned();
    }
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let forwarded = header("x-forwarded-proto").filter(|scheme| ["http", "https"].contains(scheme));
    let own = if app.config.server.cert_path.is_some() { "https" } else { "http" };
    let host = header(HOST.as_str()).map_or_else(|| app.config.listen(), str::to_owned);
    format!("{}://{host}", forwarded.unwrap_or(own))
}
