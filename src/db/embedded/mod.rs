//! The embedded PostgreSQL: a private database server for those who have none at hand.
//!
//! This module owns the error type; its parts own the rest:
//!
//! * `wanted`: which versions of PostgreSQL will do;
//! * `binaries`: where PostgreSQL's programs are on this machine, or how they come to it;
//! * `account`: which system user runs them and which directory that user can reach;
//! * `settings`: the server's configuration;
//! * `password`: the superuser's password;
//! * `create`: making a database directory;
//! * `postmaster`: seeing whether a directory's server runs;
//! * `server`: starting and stopping it;
//! * `cluster`: sharing it between processes. Callers need only [`Cluster`].

mod account;
mod binaries;
mod cluster;
mod create;
mod password;
mod postmaster;
mod server;
mod settings;
mod wanted;

use std::io;
use std::path::{Path, PathBuf};

pub use account::Account;
pub use binaries::{Binaries, Search};
pub use cluster::{Cluster, Options};
pub use wanted::{OLDEST_MAJOR, Wanted};

/// What the functions of this module return.
pub type Result<T> = std::result::Result<T, EmbeddedError>;

/// Why the embedded PostgreSQL is not at hand. Each message says what is wrong, where, and what to
/// do about it.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Neither this machine nor the network has PostgreSQL's programs.
    #[error(
        "PostgreSQL {wanted} was not found on this machine and could not be fetched from GitHub: {cause}. \
         Install it with {}, or set DATABASE_URL to a PostgreSQL server that already runs",
        .wanted.install_commands()
    )]
    NoBinaries {
        /// The version that was looked for.
        wanted: Wanted,
        /// Why fetching failed.
        cause: String,
    },

    /// The operating system refused something.
    #[error("cannot {action} {}: {source}{}", .path.display(), advice(&.source.to_string()))]
    Io {
        /// What was tried, for example "create the directory".
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },

    /// One of PostgreSQL's programs failed.
    #[error("`{program}` failed for the database in {}:\n{output}{}", .dir.display(), advice(.output))]
    Program {
        /// The program, for example `initdb`.
        program: &'static str,
        /// The database directory.
        dir: PathBuf,
        /// The last lines of what the program and the server wrote.
        output: String,
    },

    /// The database directory is another user's, and only root could change that.
    #[error(
        "the database in {} belongs to user {owner}, but this process is user {user}: run it as \
         the owner, or choose another data directory",
        .dir.display()
    )]
    WrongOwner {
        /// The database directory.
        dir: PathBuf,
        /// The user id of its owner.
        owner: u32,
        /// The user id of this process.
        user: u32,
    },

    /// PostgreSQL refuses to run as root and no other user was found for it.
    #[error(
        "PostgreSQL does not run as root, and this machine has no user named {names}: create one \
         with `useradd --system postgres`, or run the service as another user than root"
    )]
    NoAccount {
        /// The users that were looked for.
        names: String,
    },

    /// The user that runs PostgreSQL cannot get to a directory that is already in use.
    #[error(
        "the database in {} cannot be reached by user {user}, who runs PostgreSQL: make the \
         directories above it enterable (`chmod o+x`), or choose another data directory",
        .dir.display()
    )]
    Unreachable {
        /// The database directory.
        dir: PathBuf,
        /// The user id that PostgreSQL runs as.
        user: u32,
    },

    /// A server runs on the database directory that this process cannot see.
    #[error(
        "the database in {} is in use by a PostgreSQL server that cannot be reached from here, as that of a service in \
         another container: end that service first, choose another data directory, or set DATABASE_URL to a PostgreSQL \
         server that both can reach",
        .dir.display()
    )]
    Elsewhere {
        /// The database directory.
        dir: PathBuf,
    },

    /// The database directory holds something else.
    #[error(
        "{} is not empty and holds no PostgreSQL database: move its files away, or choose \
         another data directory",
        .dir.display()
    )]
    NotADatabase {
        /// The database directory.
        dir: PathBuf,
    },

    /// The database exists, but nobody knows its password any more.
    #[error(
        "the password of the database in {} is missing: restore the file {}, for example from a \
         backup",
        .dir.display(), .password_file.display()
    )]
    PasswordLost {
        /// The database directory.
        dir: PathBuf,
        /// Where the password was.
        password_file: PathBuf,
    },

    /// The server came back where its users do not look for it.
    #[error(
        "another program has taken port {port} of the embedded PostgreSQL, which listens on {now} now: restart the service"
    )]
    Moved {
        /// Its port so far.
        port: u16,
        /// Its port from now on.
        now: u16,
    },

    /// The program is ending.
    #[error("starting or stopping the embedded PostgreSQL was interrupted: try again")]
    Interrupted,
}

impl EmbeddedError {
    /// Turns an [`io::Error`] into one that says what was tried, and where.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// What to do about the operating system's two most common refusals.
fn advice(text: &str) -> &'static str {
    if text.contains("No space left on device") {
        "\nThe disk is full: free some space, or choose another data directory"
    } else if text.contains("Permission denied") {
        "\nGive the user that runs the service (or, for root, the user that runs PostgreSQL) \
         access to it, or choose another data directory"
    } else {
        ""
    }
}
