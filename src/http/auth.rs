//! Who may do what: bearer tokens with scopes, and how often each may ask.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::Http;
use super::problem::Problem;
use crate::config::{Config, PLAIN_TOKENS, Scope};
use crate::error::{Error, Result};
use crate::secrets::hash;

/// The name of the token that a request carries.
#[derive(Debug, Clone)]
pub struct Client(pub Arc<str>);

/// All valid tokens.
pub struct Tokens(Vec<Token>);

struct Token {
    name: Arc<str>,
    sha256: [u8; 32],
    scopes: Vec<Scope>,
    rate: DefaultDirectRateLimiter,
    waiting: Semaphore,
}

impl Tokens {
    /// The tokens of a configuration: the hashed ones, and the plain ones from the environment.
    ///
    /// # Errors
    /// A hash that is not 64 hexadecimal digits, a rate of zero.
    pub fn new(config: &Config) -> Result<Self> {
        let auth = &config.auth;
        let all = vec![Scope::Ingest, Scope::Read, Scope::Operate];
        let [ingest, bearer] = PLAIN_TOKENS;
        let plain = [(ingest, &auth.ingest_token, vec![Scope::Ingest]), (bearer, &auth.bearer_token, all)];
        let mut known: Vec<(&str, [u8; 32], Vec<Scope>)> = Vec::new();
        for (name, secret, scopes) in plain {
            if let Some(secret) = secret {
                known.push((name, hash(secret.expose()), scopes));
            }
        }
        for token in &auth.tokens {
            known.push((&token.name, decode_hash(&token.sha256)?, token.scopes.clone()));
        }
        let quota = quota(config)?;
        let tokens = known.into_iter().map(|(name, sha256, scopes)| Token {
            name: name.into(),
            sha256,
            scopes,
            rate: RateLimiter::direct(quota),
            waiting: Semaphore::new(config.limits.queue),
        });
        Ok(Self(tokens.collect()))
    }

    /// The token that a client presents. Every known hash is compared, each in constant time.
    fn find(&self, presented: &str) -> Option<&Token> {
        let presented = hash(presented);
        self.0
            .iter()
            .fold(None, |found, token| if bool::from(token.sha256.ct_eq(&presented)) { Some(token) } else { found })
    }
}

impl Token {
    /// Waits for this token's turn. A short burst over the rate is slowed down, not refused.
    async fn wait_for_turn(&self) -> Result<()> {
        if self.rate.check().is_ok() {
            return Ok(());
        }
        let _place = self.waiting.try_acquire().map_err(|_| Error::RateLimited(Duration::from_secs(5)))?;
        self.rate.until_ready().await;
        Ok(())
    }
}

/// Lets a request pass whose token has the scope, when it is its turn.
pub async fn require(
    State((http, scope)): State<(Http, Scope)>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let client = authorize(&http, request.headers(), scope).await?;
    request.extensions_mut().insert(client);
    Ok(next.run(request).await)
}

/// Waits for the turn of a request whose token has the scope, and tells the token's name.
pub async fn authorize(http: &Http, headers: &HeaderMap, scope: Scope) -> Result<Client> {
    let presented = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty());
    let token = presented.and_then(|token| http.tokens.find(token)).ok_or(Error::Unauthorized)?;
    if !token.scopes.contains(&scope) {
        return Err(Error::Forbidden(scope.as_str()));
    }
    token.wait_for_turn().await?;
    Ok(Client(Arc::clone(&token.name)))
}

fn decode_hash(text: &str) -> Result<[u8; 32]> {
    data_encoding::HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Error::Environment("auth.tokens: sha256 is not 64 hexadecimal digits".into()))
}

fn quota(config: &Config) -> Result<Quota> {
    let number =
        |value, key| NonZeroU32::new(value).ok_or_else(|| Error::Environment(format!("{key} must be at least 1")));
    let rate = number(config.limits.rate_per_second, "limits.rate_per_second")?;
    let burst = number(config.limits.burst, "limits.burst")?;
    Ok(Quota::per_second(rate).allow_burst(burst))
}
