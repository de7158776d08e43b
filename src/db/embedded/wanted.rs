//! Which versions of PostgreSQL will do for a database.

use std::fmt;
use std::fs;
use std::path::Path;

/// The oldest major version of PostgreSQL the service works with.
pub const OLDEST_MAJOR: u32 = 14;

/// The major version that is fetched for a new database.
const FETCHED_MAJOR: u32 = 17;

/// The version of PostgreSQL a database needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A new database: any version from this major version on.
    AtLeast(u32),
    /// An existing database: only the major version that made it can read it.
    Exactly(u32),
}

impl Wanted {
    /// The version that the database in `dir` needs, which need not exist yet.
    pub fn for_database(dir: &Path) -> Self {
        fs::read_to_string(dir.join("PG_VERSION"))
            .ok()
            .and_then(|version| version.trim().parse().ok())
            .map_or(Self::AtLeast(OLDEST_MAJOR), Self::Exactly)
    }

    /// The commands that install such a version, for people.
    pub fn install_commands(self) -> String {
        match self {
            Self::AtLeast(_) => "`apt-get install postgresql`, `dnf install postgresql-server` or \
                                 `brew install postgresql@17`"
                .into(),
            Self::Exactly(major) => format!(
                "`apt-get install postgresql-{major}`, `dnf install postgresql{major}-server` or \
                 `brew install postgresql@{major}`"
            ),
        }
    }

    /// Whether programs of the version `major` will do.
    pub(super) fn accepts(self, major: u32) -> bool {
        match self {
            Self::AtLeast(oldest) => major >= oldest,
            Self::Exactly(wanted) => major == wanted,
        }
    }

    /// The version to fetch where none is installed.
    pub(super) fn fetched_major(self) -> u32 {
        match self {
            Self::AtLeast(oldest) => oldest.max(FETCHED_MAJOR),
            Self::Exactly(major) => major,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(oldest) => write!(formatter, "{oldest} or newer"),
            Self::Exactly(major) => write!(formatter, "{major}, which made the database,"),
        }
    }
}
