//! What can be wrong with a configuration. Faults never hold a value, so no secret can leak through them.

use std::fmt;
use std::path::PathBuf;

/// Every fault of a configuration, so that all can be mended at once. Prints one per line.
#[derive(Debug, thiserror::Error)]
#[error("{}", lines(.faults))]
pub struct ConfigError {
    /// The faults: those of files and variables first, then those of keys.
    pub faults: Vec<Fault>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key, such as `limits.burst`; [`Fault::WHOLE`] if it is not about one key.
    pub key: String,
    /// Where the value was found.
    pub source: Source,
    /// What is wrong, or what was expected.
    pub reason: String,
}

/// Where a value was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In `default.toml`, which is built in.
    Default,
    /// In the file of `--config` or `NVD_CONFIG`.
    File(PathBuf),
    /// In the environment variable of this name.
    Variable(String),
    /// In a flag.
    CommandLine,
}

impl Fault {
    /// The key of faults that concern a file as a whole.
    pub const WHOLE: &str = "configuration";
}

impl From<Fault> for ConfigError {
    fn from(fault: Fault) -> Self {
        Self { faults: vec![fault] }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({}): {}", self.key, self.source, self.reason)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => out.write_str("default"),
            Self::File(path) => write!(out, "file {}", path.display()),
            Self::Variable(name) => write!(out, "variable {name}"),
            Self::CommandLine => out.write_str("command line"),
        }
    }
}

fn lines(faults: &[Fault]) -> String {
    let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
    lines.join("\n")
}
