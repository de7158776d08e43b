//! LabKey over HTTP: login, the security context that every change needs, and the six operations that deliveries need.
//!
//! Nothing here repeats a change by itself: whether that is safe only the caller knows, who has [`Client::patiently`].

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_TYPE, COOKIE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, SET_COOKIE};
use reqwest::multipart::{Form, Part};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, redirect};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::breaker::Breaker;
use super::failure::{Failure, FailureKind};
use crate::config::{LabkeyConfig, Secret};
use crate::error::{Error, Result};

/// The cookie and the header that have to agree in every change.
const CSRF: &str = "X-LABKEY-CSRF";

/// Bytes of an answer at most.
const ANSWER: usize = 64 * 1024 * 1024;

/// The first pause before a question is asked again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(20));

/// A LabKey server, one project of it, and a user there.
pub struct Client {
    http: reqwest::Client,
    /// Ends with the project's path.
    base: Url,
    login: Login,
    context: Mutex<Option<Context>>,
    breaker: Breaker,
    patience: Duration,
}

enum Login {
    ApiKey(Secret),
    Password(String, Secret),
}

/// What the handshake gives: the token, and the cookies that belong to it.
#[derive(Clone)]
struct Context {
    token: HeaderValue,
    cookies: HeaderValue,
}

/// Who we are.
#[derive(Debug, Clone, Deserialize)]
pub struct User {
    /// 0 is the guest.
    pub id: i64,
    /// The address under which the user logs in.
    pub email: String,
    #[serde(rename = "CSRF", default)]
    token: String,
}

/// What LabKey says of a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// Its columns.
    pub columns: Vec<ColumnDetails>,
    /// Whether rows can be merged into it.
    #[serde(default)]
    pub support_merge: bool,
    /// Whether the user may change it, as far as LabKey says.
    #[serde(default)]
    pub can_edit: Option<bool>,
}

/// One column of a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ColumnDetails {
    /// Its name.
    pub name: String,
    /// `int`, `float`, `string`, `boolean`, `date`, ...
    #[serde(default)]
    pub json_type: String,
    /// As people call the type.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Whether it is the key, or a part of it.
    #[serde(default)]
    pub is_key_field: bool,
    /// Whether LabKey fills it.
    #[serde(default)]
    pub is_auto_increment: bool,
    /// Whether it cannot be written.
    #[serde(default)]
    pub read_only: bool,
    /// Whether it needs a value.
    #[serde(default)]
    pub required: bool,
}

/// A list of a schema.
#[derive(Debug, Clone, Copy)]
pub struct ListName<'l> {
    /// The schema, `lists` as a rule.
    pub schema: &'l str,
    /// The list.
    pub name: &'l str,
}

/// Rows as one request carries them.
#[derive(Debug, Clone)]
pub struct Payload {
    /// The body of an insert, or the CSV of an import.
    pub bytes: Bytes,
    /// Its rows.
    pub rows: usize,
}

impl Client {
    /// A client of the configured server. It does not connect.
    ///
    /// # Errors
    /// An address that is none.
    pub fn new(config: &LabkeyConfig) -> Result<Self> {
        let wrong = |what: &str| Error::Environment(format!("labkey.{what}"));
        let server = config.server_url.as_deref().unwrap_or_default();
        let mut base =
            Url::parse(server).map_err(|_| wrong("server_url is no address such as https://labkey.example.org"))?;
        let project = config.project_path.as_deref().unwrap_or_default();
        base.path_segments_mut()
            .map_err(|()| wrong("server_url is no address of a server"))?
            .pop_if_empty()
            .extend(project.split('/').filter(|folder| !folder.is_empty()));
        let login = match (&config.api_key, &config.username, &config.password) {
            (Some(key), ..) => Login::ApiKey(key.clone()),
            (None, Some(name), Some(password)) => Login::Password(name.clone(), password.clone()),
            _ => return Err(wrong("api_key is not set")),
        };
        let http = reqwest::Client::builder()
            .connect_timeout(config.connect_timeout)
            .timeout(config.request_timeout)
            // A redirect would turn a POST into a GET.
            .redirect(redirect::Policy::none())
            .user_agent(concat!("nvd-support-car/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::Environment(format!("labkey: {error}")))?;
        let breaker = Breaker::new(config.pause);
        Ok(Self { http, base, login, context: Mutex::default(), breaker, patience: config.patience })
    }

    /// Whether the server counts as away.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.breaker.is_open()
    }

    /// Who LabKey takes us for, asked once. Renews the security context.
    ///
    /// # Errors
    /// A key that is not accepted: LabKey answers those it does not know as guests.
    pub async fn whoami(&self) -> Result<User, Failure> {
        let mut context = self.context.lock().await;
        let (user, renewed) = self.handshake().await?;
        *context = Some(renewed);
        Ok(user)
    }

    /// What a list looks like.
    ///
    /// # Errors
    /// A list that is not there.
    pub async fn details(&self, list: ListName<'_>) -> Result<Details, Failure> {
        let query = [("schemaName", list.schema), ("queryName", list.name)];
        let ask = || async {
            let answer = self.send(self.request(Method::GET, "query-getQueryDetails").query(&query), false).await?;
            serde_json::from_value(answer).map_err(|error| strange(&error))
        };
        self.patiently(ask).await
    }

    /// The values of some columns, and of `column`, in the rows whose `column` has one of these values.
    ///
    /// # Errors
    /// A list that is not there, or may not be read.
    pub async fn select(
        &self,
        list: ListName<'_>,
        columns: &[&str],
        column: &str,
        values: &[String],
    ) -> Result<Vec<Value>, Failure> {
        let form = [
            ("schemaName".to_owned(), list.schema.to_owned()),
            ("query.queryName".to_owned(), list.name.to_owned()),
            ("query.columns".to_owned(), format!("{},{column}", columns.join(","))),
            ("query.maxRows".to_owned(), "-1".to_owned()),
            // Of the list's default view, which else hides rows without a word.
            ("query.ignoreFilter".to_owned(), "1".to_owned()),
            (format!("query.{column}~in"), values.join(";")),
        ];
        let ask = || async {
            let request = self.request(Method::POST, "query-getQuery").form(&form);
            // The server answers it without the context too, but not every proxy does.
            let mut answer = self.with_context(&|| request.try_clone(), false).await?;
            match answer.get_mut("rows").map(Value::take) {
                // LabKey ignores a filter on a column that it does not know, and answers with all rows.
                Some(Value::Array(rows)) if rows.iter().all(|row| holds_one_of(row, column, values)) => Ok(rows),
                Some(Value::Array(_)) => {
                    let reason = format!("LabKey did not filter by the column `{column}`");
                    Err(Failure::new(FailureKind::Configuration, reason))
                }
                _ => Err(Failure::new(FailureKind::Configuration, "LabKey answered a select without rows")),
            }
        };
        self.patiently(ask).await
    }

    /// Inserts rows, all or none. Answers with LabKey's transaction.
    ///
    /// # Errors
    /// See [`FailureKind`]; [`FailureKind::Unknown`] may mean that the rows are there.
    pub async fn insert(&self, payload: &Payload) -> Result<Option<String>, Failure> {
        let answer = self.change("query-insertRows", &payload.bytes).await?;
        if let Some(affected) = answer.get("rowsAffected").and_then(Value::as_u64)
            && affected != payload.rows as u64
        {
            let reason = format!("LabKey took {affected} of {} rows", payload.rows);
            return Err(Failure::new(FailureKind::Unknown, reason));
        }
        Ok(transaction(&answer))
    }

    /// The body of an insert of these rows, each a JSON object.
    #[must_use]
    pub fn insert_body(list: ListName<'_>, comment: &str, rows: &[Bytes]) -> Payload {
        let head = json!({"schemaName": list.schema, "queryName": list.name, "skipReselectRows": true,
            "auditBehavior": "SUMMARY", "auditUserComment": comment});
        let head = head.to_string();
        let size: usize = rows.iter().map(|row| row.len() + 1).sum();
        let mut body = BytesMut::with_capacity(head.len() + size + 16);
        body.extend_from_slice(head.trim_end_matches('}').as_bytes());
        body.extend_from_slice(b",\"rows\":[");
        for (position, row) in rows.iter().enumerate() {
            if position > 0 {
                body.extend_from_slice(b",");
            }
            body.extend_from_slice(row.trim_ascii_end());
        }
        body.extend_from_slice(b"]}");
        Payload { bytes: body.freeze(), rows: rows.len() }
    }

    /// Changes rows by several commands in one transaction, or only checks them.
    ///
    /// # Errors
    /// See [`FailureKind`].
    pub async fn save(&self, commands: Value, is_check: bool) -> Result<(), Failure> {
        let body = json!({"commands": commands, "transacted": true, "validateOnly": is_check});
        let answer = self.change("query-saveRows", &Bytes::from(body.to_string())).await?;
        let errors = answer.get("errorCount").and_then(Value::as_u64).unwrap_or_default();
        if errors > 0 || (!is_check && answer.get("committed") == Some(&Value::Bool(false))) {
            return Err(Failure::of_answer(StatusCode::BAD_REQUEST, Some(&answer), None, true));
        }
        Ok(())
    }

    /// Merges rows by the list's key: those that are there are changed. Answers with LabKey's transaction.
    ///
    /// # Errors
    /// See [`FailureKind`]. To merge the same rows again is safe.
    pub async fn merge(&self, list: ListName<'_>, comment: &str, payload: &Payload) -> Result<Option<String>, Failure> {
        let form = || {
            let length = payload.bytes.len() as u64;
            let file =
                Part::stream_with_length(payload.bytes.clone(), length).file_name("rows.csv").mime_str("text/csv");
            let form = Form::new()
                .text("schemaName", list.schema.to_owned())
                .text("queryName", list.name.to_owned())
                .text("format", "csv")
                .text("insertOption", "MERGE")
                .text("auditBehavior", "SUMMARY")
                .text("auditUserComment", comment.to_owned());
            // Without this header LabKey wraps the answer into a page for browsers.
            let request = self.request(Method::POST, "query-import").header("X-Requested-With", "XMLHttpRequest");
            file.ok().map(|file| request.multipart(form.part("file", file)))
        };
        let answer = self.with_context(&form, true).await?;
        if let Some(count) = answer.get("rowCount").and_then(Value::as_u64)
            && count != payload.rows as u64
        {
            let reason = format!("LabKey merged {count} of {} rows", payload.rows);
            return Err(Failure::new(FailureKind::Unknown, reason));
        }
        Ok(transaction(&answer))
    }

    async fn change(&self, action: &str, body: &Bytes) -> Result<Value, Failure> {
        let request = || {
            let request = self.request(Method::POST, action).header(CONTENT_TYPE, "application/json");
            Some(request.body(body.clone()))
        };
        self.with_context(&request, true).await
    }

    /// Sends a request with the security context, which is established again when it is refused.
    async fn with_context(
        &self,
        request: &(dyn Fn() -> Option<RequestBuilder> + Sync),
        is_change: bool,
    ) -> Result<Value, Failure> {
        let mut refused = None;
        loop {
            let context = self.context(refused.as_ref()).await?;
            let request =
                request().ok_or_else(|| Failure::new(FailureKind::Configuration, "a request cannot be built"))?;
            let request = request.header(HeaderName::from_static("x-labkey-csrf"), &context.token);
            match self.send(request.header(COOKIE, &context.cookies), is_change).await {
                Err(failure) if failure.kind == FailureKind::Context && refused.is_none() => refused = Some(context),
                Err(Failure { kind: FailureKind::Context, reason, .. }) => {
                    return Err(Failure::new(FailureKind::Authentication, reason));
                }
                answer => return answer,
            }
        }
    }

    /// The security context, established again when it is the refused one.
    async fn context(&self, refused: Option<&Context>) -> Result<Context, Failure> {
        let mut context = self.context.lock().await;
        match context.as_ref().filter(|known| refused.is_none_or(|refused| refused.token != known.token)) {
            Some(known) => Ok(known.clone()),
            None => {
                let (_, renewed) = self.handshake().await?;
                *context = Some(renewed.clone());
                Ok(renewed)
            }
        }
    }

    async fn handshake(&self) -> Result<(User, Context), Failure> {
        let (body, headers) = self.exchange(self.request(Method::GET, "login-whoami"), false).await?;
        let user: User = serde_json::from_value(body).map_err(|error| strange(&error))?;
        if user.id <= 0 {
            let reason = "LabKey takes us for a guest: the API key or the password is not accepted";
            return Err(Failure::new(FailureKind::Authentication, reason));
        }
        let context = Context::of(&user, &headers)?;
        Ok((user, context))
    }

    fn request(&self, method: Method, action: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(&format!("{action}.api"));
        }
        let request = self.http.request(method, url);
        match &self.login {
            Login::ApiKey(key) => request.header("apikey", secret_header(key)),
            Login::Password(name, password) => request.basic_auth(name, Some(password.expose())),
        }
    }

    async fn send(&self, request: RequestBuilder, is_change: bool) -> Result<Value, Failure> {
        self.exchange(request, is_change).await.map(|(body, _)| body)
    }

    /// One request and its answer, unless the server is left alone.
    async fn exchange(&self, request: RequestBuilder, is_change: bool) -> Result<(Value, HeaderMap), Failure> {
        if let Err(wait) = self.breaker.pass() {
            let reason = format!("LabKey did not answer several times; it is asked again in {} s", wait.as_secs() + 1);
            return Err(Failure { retry_after: Some(wait), ..Failure::new(FailureKind::Transient, reason) });
        }
        let answer = match request.send().await {
            Ok(answer) => read(answer, is_change).await,
            Err(error) => Err(Failure::of_exchange(&error.without_url(), is_change)),
        };
        match &answer {
            Err(failure) if failure.is_passing() => self.breaker.failed(),
            _ => self.breaker.answered(),
        }
        answer
    }

    /// Asks again while that may help, with growing pauses, for as long as the configuration has patience.
    ///
    /// # Errors
    /// The last failure.
    pub async fn patiently<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        ask: impl FnMut() -> F,
    ) -> Result<T, Failure> {
        let (first, longest) = PAUSES;
        let pauses = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times()
            .with_total_delay(Some(self.patience));
        ask.retry(pauses)
            .sleep(tokio::time::sleep)
            .when(|failure| failure.kind == FailureKind::Transient)
            .adjust(|failure, pause| match (failure.retry_after, pause) {
                (Some(after), Some(pause)) if after <= self.patience => Some(after.max(pause)),
                (Some(_), _) => None,
                (None, pause) => pause,
            })
            .await
    }
}

impl Context {
    /// From the answer to whoami: its cookies, and the token that one of them holds.
    fn of(user: &User, headers: &HeaderMap) -> Result<Self, Failure> {
        let set = headers.get_all(SET_COOKIE).iter().filter_map(|cookie| cookie.to_str().ok());
        let mut pairs: Vec<&str> = set.filter_map(|cookie| cookie.split(';').next()).map(str::trim).collect();
        let own = pairs.iter().find_map(|pair| pair.strip_prefix(CSRF)?.strip_prefix('='));
        let token = own.unwrap_or(&user.token).to_owned();
        let cookie = format!("{CSRF}={token}");
        pairs.retain(|pair| !pair.starts_with(CSRF));
        pairs.push(&cookie);
        let header = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| Failure::new(FailureKind::Configuration, "LabKey's security token cannot be sent back"))
        };
        let mut context = Self { token: header(&token)?, cookies: header(&pairs.join("; "))? };
        context.token.set_sensitive(true);
        context.cookies.set_sensitive(true);
        Ok(context)
    }
}

fn secret_header(key: &Secret) -> HeaderValue {
    // A key that no header can hold is no key: LabKey refuses the empty one.
    let mut header = HeaderValue::from_str(key.expose()).unwrap_or(HeaderValue::from_static(""));
    header.set_sensitive(true);
    header
}

/// Reads an answer, and tells success from the many forms of failure.
async fn read(mut answer: Response, is_change: bool) -> Result<(Value, HeaderMap), Failure> {
    let (status, headers) = (answer.status(), answer.headers().clone());
    let retry_after = headers.get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
    let mut text = BytesMut::new();
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if text.len() + chunk.len() <= ANSWER => text.extend_from_slice(&chunk),
            Ok(Some(_)) => {
                let failure = Failure::of_answer(status, None, None, is_change);
                let reason = format!("LabKey's answer has more than {} MiB", ANSWER >> 20);
                return Err(Failure { reason, ..failure });
            }
            Ok(None) => break,
            Err(error) => return Err(Failure::of_exchange(&error.without_url(), is_change)),
        }
    }
    let body: Option<Value> = serde_json::from_slice(&text).ok();
    match body {
        Some(body) if status.is_success() && is_success(&body) => Ok((body, headers)),
        body => Err(Failure::of_answer(status, body.as_ref(), retry_after.map(Duration::from_secs), is_change)),
    }
}

fn holds_one_of(row: &Value, column: &str, values: &[String]) -> bool {
    let held = field(row, column).and_then(Value::as_str);
    held.is_some_and(|held| values.iter().any(|value| value == held))
}

/// A field of a row, whatever the case of its name.
#[must_use]
pub fn field<'v>(row: &'v Value, name: &str) -> Option<&'v Value> {
    row.as_object()?.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn is_success(body: &Value) -> bool {
    body.get("success") != Some(&Value::Bool(false)) && body.get("exception").is_none_or(Value::is_null)
}

fn transaction(answer: &Value) -> Option<String> {
    match answer.get("transactionAuditId")? {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn strange(error: &serde_json::Error) -> Failure {
    Failure::new(FailureKind::Configuration, format!("LabKey's answer is not as expected: {error}"))
}
