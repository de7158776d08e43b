//! Where to send to, and with which token.

use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Deserialize;

use super::outcome::{Exit, Refusal};
use crate::config::Secret;

/// The variable with the service's address.
pub const URL_VARIABLE: &str = "NVD_SUPPORT_URL";

/// The variable with the token.
pub const TOKEN_VARIABLE: &str = "NVD_BEARER_TOKEN";

/// A service, and how to be let in.
#[derive(Debug)]
pub struct Access {
    /// The address of the service.
    pub url: Url,
    token: Token,
}

#[derive(Debug)]
enum Token {
    Given(Secret),
    /// Read for each try: HTCondor renews its credentials while a job runs.
    File(PathBuf),
}

/// A credential as OAuth services hand it out.
#[derive(Deserialize)]
struct Credential {
    access_token: Secret,
}

impl Access {
    /// Finds address and token in the options, the variables, and HTCondor's credentials.
    ///
    /// # Errors
    /// When one of them is missing or cannot be used.
    pub fn find(url: Option<String>, token_file: Option<PathBuf>) -> Result<Self, Refusal> {
        let refuse = |reason: String| Refusal { exit: Exit::Configuration, lines: vec![reason] };
        let url = url
            .or_else(|| variable(URL_VARIABLE))
            .ok_or_else(|| refuse(format!("there is no address to send to: say --url or set {URL_VARIABLE}")))?;
        let parsed = Url::parse(&url).ok().filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
        let url = parsed.ok_or_else(|| {
            refuse("the address of the service must begin with http:// or https:// and name a host".to_owned())
        })?;
        let token = match token_file {
            Some(file) => Token::File(file),
            None => match variable(TOKEN_VARIABLE) {
                Some(token) => Token::Given(Secret::from(token.trim().to_owned())),
                None => Token::File(condor_credential().ok_or_else(|| {
                    refuse(format!(
                        "there is no token: say --token-file, set {TOKEN_VARIABLE}, or let HTCondor bring one along \
                         (use_oauth_services)"
                    ))
                })?),
            },
        };
        let access = Self { url, token };
        access.token()?;
        Ok(access)
    }

    /// The token as it is now.
    ///
    /// # Errors
    /// When its file cannot be read, or holds none.
    pub fn token(&self) -> Result<Secret, Refusal> {
        let path = match &self.token {
            Token::Given(token) => return Ok(token.clone()),
            Token::File(path) => path,
        };
        let text = std::fs::read_to_string(path).map_err(|error| Refusal::environment(path, &error))?;
        let text = text.trim();
        let token = match serde_json::from_str::<Credential>(text) {
            Ok(credential) => credential.access_token,
            Err(_) => Secret::from(text.to_owned()),
        };
        let is_token = !token.expose().is_empty() && token.expose().bytes().all(|byte| byte.is_ascii_graphic());
        if is_token && !token.expose().starts_with('{') {
            return Ok(token);
        }
        let reason = "holds no token: neither one alone nor JSON with an access_token";
        Err(Refusal::new(Exit::Configuration, &path.display().to_string(), reason))
    }
}

/// A variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The first credential that HTCondor laid into the job's folder, by name.
fn condor_credential() -> Option<PathBuf> {
    let folder = std::env::var_os("_CONDOR_CREDS")?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(Path::new(&folder))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "use"))
        .collect();
    files.sort();
    files.into_iter().next()
}
