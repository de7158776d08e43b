//! The files that the arguments stand for.

use std::path::Path;

use super::content::STDIN;
use super::outcome::{Exit, Refusal};

/// Replaces patterns by the files that they match, in the order of their names. What is there is no pattern.
///
/// # Errors
/// A pattern that matches nothing or is none, and a name that is not UTF-8.
pub fn expand(arguments: &[String]) -> Result<Vec<String>, Refusal> {
    let mut files: Vec<String> = Vec::new();
    for argument in arguments {
        let is_pattern = argument != STDIN && argument.contains(['*', '?', '[']) && !Path::new(argument).exists();
        let found = if is_pattern { matches(argument)? } else { vec![argument.clone()] };
        for file in found {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

fn matches(pattern: &str) -> Result<Vec<String>, Refusal> {
    let paths = glob::glob(pattern)
        .map_err(|error| Refusal::new(Exit::Configuration, pattern, format!("is no pattern: {error}")))?;
    let mut files = Vec::new();
    for path in paths {
        let path = path.map_err(|error| Refusal::unreadable(pattern, error.error()))?;
        if path.is_dir() {
            continue;
        }
        let name = path.into_os_string().into_string();
        files.push(name.map_err(|_| Refusal::new(Exit::Data, pattern, "matches a name that is not UTF-8"))?);
    }
    if files.is_empty() {
        return Err(Refusal::new(Exit::Data, pattern, "matches no file"));
    }
    Ok(files)
}
