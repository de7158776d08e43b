//! HTTP: which account asks, whether the request is genuine, and the forms of answers and failures.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE};
use axum::http::{HeaderMap, Method, Response, Uri};
use data_encoding::{BASE64, HEXLOWER};
use futures_util::StreamExt;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{CONTAINER, Fault, KEY, PASSWORD, Permission, Seen, State, USER, actions, import};

const CSRF: &str = "X-LABKEY-CSRF";

/// Answers every request of one connection; `broken` breaks it.
pub(super) fn router(state: Arc<State>, broken: Arc<Notify>) -> Router {
    Router::new()
        .fallback(async move |request: Request| {
            if let Some(response) = meet(&state, request).await {
                return response;
            }
            broken.notify_one();
            std::future::pending().await
        })
        .layer(DefaultBodyLimit::disable())
}

/// Hands a request to its action, or to its fault. Nothing breaks the connection.
async fn meet(state: &Arc<State>, request: Request) -> Option<Response<Body>> {
    let (parts, body) = request.into_parts();
    let (_, action) = target(&parts.uri);
    let mut seen = Seen {
        action: action.clone(),
        method: parts.method.clone(),
        headers: parts.headers.clone(),
        body: Bytes::new(),
        fault: None,
        status: None,
    };
    let fault = state.faults.lock().expect("faults").next(&seen);
    seen.fault.clone_from(&fault);
    let place = {
        let mut all = state.seen.lock().expect("seen");
        all.push(seen);
        all.len() - 1
    };
    if fault == Some(Fault::Drop) {
        return None;
    }
    let body = axum::body::to_bytes(body, usize::MAX).await.ok()?;
    state.seen.lock().expect("seen")[place].body = body.clone();
    if let Some(reply) = fault.as_ref().and_then(|fault| fault.reply(&action)) {
        state.seen.lock().expect("seen")[place].status = Some(reply.status);
        return Some(reply.response());
    }
    // A task of its own: what a client asked for happens, whether it still waits or not.
    let (shared, late) = (Arc::clone(state), fault.clone());
    let task = tokio::spawn(async move {
        if let Some(Fault::DelayBefore(delay)) = late {
            tokio::time::sleep(delay).await;
        }
        let asked = Asked { method: parts.method, uri: parts.uri, headers: parts.headers, body };
        let reply = answer(&shared, &asked).unwrap_or_else(|refused| refused);
        shared.seen.lock().expect("seen")[place].status = Some(reply.status);
        reply.with_cookie(&asked)
    });
    let reply = task.await.expect("an answer");
    match fault {
        Some(Fault::DropAfter) => return None,
        Some(Fault::Truncate) => return Some(reply.truncated()),
        Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
        _ => {}
    }
    Some(reply.response())
}

/// A request that is to be handled.
pub(super) struct Asked {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Asked {
    fn header(&self, name: impl axum::http::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn content_type(&self) -> &str {
        self.header(CONTENT_TYPE).unwrap_or_default()
    }

    /// The parameters of the query, then those of a form.
    pub fn parameters(&self) -> Vec<(String, String)> {
        let query = self.uri.query().unwrap_or_default().as_bytes();
        let is_form = self.content_type().starts_with("application/x-www-form-urlencoded");
        let form: &[u8] = if is_form { &self.body } else { &[] };
        let query = form_urlencoded::parse(query).into_owned();
        query.chain(form_urlencoded::parse(form).into_owned()).collect()
    }

    fn csrf_cookie(&self) -> Option<&str> {
        let cookies = self.headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, token) = pairs.find(|(name, _)| *name == CSRF)?;
        let is_hash = token.len() == 64 && token.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
        is_hash.then_some(token)
    }
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Account {
    Guest,
    Known,
}

/// The folder and the action that a URL names.
fn target(uri: &Uri) -> (String, String) {
    let path = percent_decode_str(uri.path()).decode_utf8_lossy().into_owned();
    let (folder, action) = path.rsplit_once('/').unwrap_or_default();
    let action = action.rsplit_once('.').map_or(action, |(action, _)| action);
    (folder.to_owned(), action.to_owned())
}

/// The order of the checks is LabKey's: key, action, folder, method, permission, CSRF.
fn answer(state: &State, asked: &Asked) -> Result<Reply, Reply> {
    let account = authenticate(state, asked)?;
    let (folder, action) = target(&asked.uri);
    let Some(rule) = actions::rule(&action) else { return Err(Reply::html(404, "Unable to find action")) };
    if !folder.eq_ignore_ascii_case(CONTAINER) {
        return Err(Reply::failure(404, &format!("No such project: {folder}")));
    }
    if rule.is_mutating && asked.method != Method::POST {
        return Err(Reply::failure(405, &format!("Method Not Allowed: {}", asked.method)));
    }
    let visit = Visit { state, account };
    if !rule.permissions.is_empty() && !rule.permissions.iter().any(|permission| visit.may(*permission)) {
        return Err(visit.forbidden());
    }
    if rule.has_csrf && asked.method != Method::GET {
        let sent = asked.header(CSRF).filter(|token| !token.is_empty());
        if sent.is_none() || sent != asked.csrf_cookie() {
            return Err(Reply::bad_csrf());
        }
    }
    match action.as_str() {
        "query-import" => import::import(&visit, asked),
        _ => actions::run(&visit, &action, asked),
    }
}

fn authenticate(state: &State, asked: &Asked) -> Result<Account, Reply> {
    let basic = asked.header(AUTHORIZATION).and_then(|value| value.strip_prefix("Basic "));
    let (name, secret) = match (basic, asked.header("apikey")) {
        (Some(encoded), _) => {
            let decoded = BASE64.decode(encoded.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let decoded = decoded.ok_or_else(Reply::bad_key)?;
            decoded.split_once(':').map(|(name, secret)| (name.to_owned(), secret.to_owned())).unwrap_or_default()
        }
        (None, Some(key)) => ("apikey".to_owned(), key.to_owned()),
        (None, None) => return Ok(Account::Guest),
    };
    let is_known = (name == "apikey" && secret == KEY) || (name == USER && secret == PASSWORD);
    let is_revoked = state.access.lock().expect("access").is_revoked;
    if is_known && !is_revoked { Ok(Account::Known) } else { Err(Reply::bad_key()) }
}

/// A request that passed the checks of its action.
pub(super) struct Visit<'a> {
    pub state: &'a State,
    pub account: Account,
}

impl Visit<'_> {
    pub fn may(&self, permission: Permission) -> bool {
        self.account == Account::Known && self.state.access.lock().expect("access").permissions.contains(&permission)
    }

    pub fn forbidden(&self) -> Reply {
        let message = "User does not have permission to perform this operation.";
        match self.account {
            Account::Known => Reply::failure(403, message),
            Account::Guest => Reply { asks_for_basic: true, ..Reply::failure(401, message) },
        }
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub status: u16,
    content_type: &'static str,
    body: String,
    cookie: Option<String>,
    asks_for_basic: bool,
    pub retry_after: Option<u32>,
    pub location: Option<&'static str>,
}

impl Reply {
    fn new(status: u16, content_type: &'static str, body: String) -> Self {
        Self { status, content_type, body, cookie: None, asks_for_basic: false, retry_after: None, location: None }
    }

    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json;charset=UTF-8", body.to_string())
    }

    pub fn html(status: u16, message: &str) -> Self {
        let body = format!("<!DOCTYPE html><html><head><title>{status}</title></head><body>{message}</body></html>");
        Self::new(status, "text/html;charset=UTF-8", body)
    }

    /// As for the upload of a file by a form in a browser: JSON that calls itself HTML.
    pub fn called_html(mut self) -> Self {
        self.content_type = "text/html;charset=UTF-8";
        self
    }

    /// A refusal before the action.
    pub fn failure(status: u16, message: &str) -> Self {
        Self::json(status, &json!({"success": false, "exception": message}))
    }

    /// An exception of Java.
    pub fn exception(status: u16, class: &str, message: &str) -> Self {
        let body = json!({"exception": message, "exceptionClass": class, "stackTrace": [], "success": false});
        Self::json(status, &body)
    }

    pub fn bad_key() -> Self {
        Self::failure(401, "The email address and password you entered did not match any accounts on file.")
    }

    pub fn bad_csrf() -> Self {
        Self::failure(
            401,
            "This request has an invalid security context. You may have signed in or signed out of this session. \
             Try again by using the 'back' and 'refresh' button in your browser.",
        )
    }

    /// Answers of actions bring a token to a client that has none.
    fn with_cookie(mut self, asked: &Asked) -> Self {
        let is_reset = matches!(self.status, 401 | 403 | 405);
        if asked.csrf_cookie().is_none() && !is_reset {
            self.cookie.get_or_insert_with(new_token);
        }
        self
    }

    /// With the token that the client will have to send.
    pub fn with_token(mut self, token: String) -> Self {
        self.cookie = Some(token);
        self
    }

    fn response(self) -> Response<Body> {
        let mut response = Response::builder().status(self.status).header(CONTENT_TYPE, self.content_type);
        if let Some(token) = self.cookie {
            response = response.header("Set-Cookie", format!("{CSRF}={token}; Path=/"));
        }
        if self.asks_for_basic {
            response = response.header("WWW-Authenticate", "Basic realm=\"LabKey Server\"");
        }
        if let Some(seconds) = self.retry_after {
            response = response.header("Retry-After", seconds);
        }
        if let Some(location) = self.location {
            response = response.header("Location", location);
        }
        response.body(Body::from(self.body)).expect("response")
    }

    /// The head and half of the body, and then the connection breaks.
    fn truncated(self) -> Response<Body> {
        let half = Bytes::copy_from_slice(&self.body.as_bytes()[..self.body.len() / 2]);
        let breaks = async {
            // Else the head is not sent either.
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(std::io::Error::other("broken on purpose"))
        };
        let parts = futures_util::stream::iter([Ok(half)]).chain(futures_util::stream::once(breaks));
        let response = Response::builder().status(self.status).header(CONTENT_TYPE, self.content_type);
        let response = response.header("Content-Length", self.body.len());
        response.body(Body::from_stream(parts)).expect("response")
    }
}

/// A CSRF token: of this request if it has one.
pub(super) fn token(asked: &Asked) -> (String, bool) {
    asked.csrf_cookie().map_or_else(|| (new_token(), true), |token| (token.to_owned(), false))
}

fn new_token() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("random bytes");
    HEXLOWER.encode(&bytes)
}
