//! The system user that runs PostgreSQL, which refuses to run as root.
//!
//! Owns the choice of that user, the commands run in its name, the ownership of its files, and the
//! place of a directory it could not reach where it was asked for.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use data_encoding::HEXLOWER;
use nix::unistd::{User, geteuid};
use sha2::{Digest, Sha256};

use super::{EmbeddedError, Result};

/// Who runs PostgreSQL when the service is root, best first.
const NAMES: [&str; 2] = ["postgres", "nobody"];

/// The variables of the service that PostgreSQL's programs get: those that they need to be found
/// and loaded. Others may hold secrets, or (`PGDATA`) misdirect them.
const VARIABLES: [&str; 2] = ["PATH", "LD_LIBRARY_PATH"];

/// Holds the directories that the account cannot reach where they were asked for.
const PUBLIC_DIR: &str = "/var/lib/nvd-support-car";

/// The system user that PostgreSQL's programs run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    uid: u32,
    gid: u32,
    /// Whether this process is root, and must become the user.
    switches: bool,
}

impl Account {
    /// The account for the database in `dir`, which need not exist yet.
    ///
    /// That is this process's own, except for root: then it is the owner of `dir`, so that a
    /// command run as root does not take an ordinary user's database (and its running server's
    /// files) away; for a new database, or root's own, it is `preferred`, else `postgres`, else
    /// `nobody`.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError::WrongOwner`] when the directory is another user's and this process is not
    /// root; [`EmbeddedError::NoAccount`] when none of the users exists.
    pub fn for_database(dir: &Path, preferred: Option<&str>) -> Result<Self> {
        let user = geteuid().as_raw();
        let owner = fs::metadata(dir).ok();
        match owner.map(|owner| (owner.uid(), owner.gid())) {
            Some((owner, _)) if user != 0 && owner != user => {
                Err(EmbeddedError::WrongOwner { dir: dir.to_owned(), owner, user })
            }
            _ if user != 0 => Ok(Self { uid: user, gid: nix::unistd::getegid().as_raw(), switches: false }),
            Some((uid, gid)) if uid != 0 && dir.join("PG_VERSION").exists() => Ok(Self { uid, gid, switches: true }),
            _ => Self::named(preferred.as_ref().map_or(&NAMES, std::slice::from_ref)),
        }
    }

    /// The user id.
    pub(super) fn uid(self) -> u32 {
        self.uid
    }

    /// A command that runs `program` in the name of this account: with no more of the service's
    /// environment than it needs, and out of reach of a Ctrl-C in the service's terminal.
    pub(super) fn command(self, program: &Path) -> Command {
        let variables = VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs(variables)
            .envs([("HOME", "/"), ("LC_ALL", "C")])
            .current_dir("/")
            .stdin(Stdio::null())
            .process_group(0);
        if self.switches {
            // For root this also gives up the supplementary groups.
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Makes this account the owner of `path` and of all below it.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError::Io`] when the system refuses.
    pub(super) fn own(self, path: &Path) -> Result<()> {
        if self.switches {
            self.chown_all(path).map_err(EmbeddedError::io("change the owner of", path))?;
        }
        Ok(())
    }

    /// Makes `dir`, which need not exist, private to this account.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError::Io`] when the system refuses.
    pub(super) fn make_private_dir(self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).map_err(EmbeddedError::io("create the directory", dir))?;
        let metadata = fs::metadata(dir).map_err(EmbeddedError::io("read", dir))?;
        if metadata.uid() != self.uid {
            self.own(dir)?;
        }
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(EmbeddedError::io("make private", dir))
    }

    /// Where to put `path`: there if this account can enter its parent directory, else in a
    /// directory of its own below `/var/lib/nvd-support-car`. Both parents are created.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError::Io`] when the system refuses.
    pub(super) fn place(self, path: &Path) -> Result<PathBuf> {
        let path = std::path::absolute(path).map_err(EmbeddedError::io("resolve", path))?;
        let parent = path.parent().unwrap_or(&path);
        let name = path.file_name().unwrap_or_default();
        fs::create_dir_all(parent).map_err(EmbeddedError::io("create the directory", parent))?;
        let parent = fs::canonicalize(parent).map_err(EmbeddedError::io("resolve", parent))?;
        if self.can_enter(&parent)? {
            return Ok(parent.join(name));
        }
        let digest = Sha256::digest(parent.join(name).as_os_str().as_encoded_bytes());
        let public = Path::new(PUBLIC_DIR).join(&HEXLOWER.encode(&digest)[..12]);
        fs::create_dir_all(&public)
            .and_then(|()| fs::set_permissions(PUBLIC_DIR, Permissions::from_mode(0o755)))
            .and_then(|()| fs::set_permissions(&public, Permissions::from_mode(0o755)))
            .map_err(EmbeddedError::io("create the directory", &public))?;
        Ok(public.join(name))
    }

    fn named(names: &[&str]) -> Result<Self> {
        names
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .map(|user| Self { uid: user.uid.as_raw(), gid: user.gid.as_raw(), switches: true })
            .ok_or_else(|| EmbeddedError::NoAccount { names: names.join(" or ") })
    }

    /// Tried, not computed from modes, so that access control lists count as well.
    fn can_enter(self, dir: &Path) -> Result<bool> {
        if !self.switches {
            return Ok(true);
        }
        let mut shell = self.command(Path::new("/bin/sh"));
        shell.args(["-c", "cd \"$0\""]).arg(dir).stdout(Stdio::null()).stderr(Stdio::null());
        let status = shell.status().map_err(EmbeddedError::io("run", Path::new("/bin/sh")))?;
        Ok(status.success())
    }

    fn chown_all(self, path: &Path) -> io::Result<()> {
        if fs::symlink_metadata(path)?.is_dir() {
            for entry in fs::read_dir(path)? {
                self.chown_all(&entry?.path())?;
            }
        }
        lchown(path, Some(self.uid), Some(self.gid))
    }
}
