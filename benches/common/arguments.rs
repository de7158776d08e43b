//! What every benchmark reads from its command line, and the folder that it works in.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// `--name value` from the command line.
pub fn argument(name: &str) -> Option<String> {
    let arguments: Vec<String> = std::env::args().collect();
    let position = arguments.iter().position(|argument| argument == name)?;
    arguments.get(position + 1).cloned()
}

/// `--name number`, or what is usual.
pub fn number<T: FromStr>(name: &str, usual: T) -> T {
    argument(name).map_or(usual, |text| text.parse().ok().unwrap_or_else(|| panic!("{name} takes a number")))
}

/// Whether `--option a,b` names this, or is absent.
pub fn wants(option: &str, name: &str) -> bool {
    argument(option).is_none_or(|names| names.split(',').any(|wanted| wanted == name))
}

/// A folder that goes away with its benchmark.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// A new folder that also the user that runs PostgreSQL can enter.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("nvd-bench-").tempdir().expect("folder");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("permissions");
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}
