//! The embedded database as its users see it, and the sharing of its one server between them.
//!
//! Several processes may use one directory at the same time: the service, its command line, tests.
//! Each holds a *shared* lock on `DIR.users.lock` for as long as it uses the server. Starting and
//! stopping take turns through an *exclusive* lock on `DIR.start.lock`. The first user starts the
//! server, the others find it running, and the last one stops it. The system releases the locks of
//! a killed process, whose server the next user finds running; so there never are two servers on
//! one directory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::create::sibling;
use super::postmaster::Postmaster;
use super::server::{NAME, Server};
use super::{Account, Binaries, EmbeddedError, Result, Search, Wanted, password, settings};

/// What [`Cluster::start`] needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The database directory, for example `./data/postgres`. Its lock files lie next to it.
    pub dir: PathBuf,
    /// The file that keeps the superuser's password.
    pub password_file: PathBuf,
    /// Where fetched programs are kept.
    pub cache_dir: PathBuf,
    /// PostgreSQL's own cache in MiB; by default a quarter of the memory, from 128 to 4096.
    pub shared_buffers_mib: Option<u64>,
    /// The system user that runs a new database's server when this process is root; by default
    /// `postgres`, else `nobody`.
    pub user: Option<String>,
    /// Where to look for installed programs.
    pub search: Search,
}

impl Options {
    /// The usual places below `data_dir`, and defaults for everything else.
    pub fn below(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join("postgres"),
            password_file: data_dir.join("secrets/postgres_password"),
            cache_dir: data_dir.join("cache/postgresql"),
            shared_buffers_mib: None,
            user: None,
            search: Search::system(),
        }
    }
}

/// One user's share in the server of a database directory.
///
/// End it with [`Cluster::stop`]. Dropped without, it does the same, but blocks its thread and can
/// only log an error: good enough for a command that fails halfway, not for a service. A process
/// that is killed leaves the server running, for the next [`Cluster::start`] to find.
pub struct Cluster {
    server: Arc<Server>,
    postmaster: Postmaster,
    password: String,
    /// Locked while this is a user of the server.
    users: Option<File>,
}

impl Cluster {
    /// Finds the directory's server running, or starts it; makes the database, and fetches
    /// PostgreSQL, where there is none yet. Blocks no thread of the runtime. A server that runs
    /// already keeps the settings it was started with.
    ///
    /// When this process is root and the user that runs PostgreSQL cannot reach `options.dir`, the
    /// directory is made below `/var/lib/nvd-support-car` and `options.dir` becomes a link to it.
    ///
    /// # Errors
    ///
    /// Any [`EmbeddedError`]; its message tells the user what to do.
    pub async fn start(options: Options) -> Result<Self> {
        let runtime = Handle::current();
        blocking(move || Self::open(&options, &runtime)).await
    }

    /// Ends this use of the server, and stops the server if it was the last one. Clients of the
    /// server are disconnected. Takes a few seconds at most, unless much data is still unwritten.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError::Program`] when the server does not stop within five minutes.
    pub async fn stop(mut self) -> Result<()> {
        blocking(move || self.release()).await
    }

    /// Starts the server again where it has ended by itself: it was killed, or found no room on the disk. It comes back on
    /// its port, which its users know. Does nothing while it runs.
    ///
    /// # Errors
    ///
    /// Any [`EmbeddedError`], as when there still is no room; and one that says that another program has taken the port.
    pub async fn revive(&self) -> Result<()> {
        let (server, port) = (Arc::clone(&self.server), self.port());
        blocking(move || {
            if Postmaster::running(&server.dir).is_some() {
                return Ok(());
            }
            let _turn = turn(&server.dir, server.account)?;
            let postmaster = server.start(Some(port))?;
            if postmaster.port == port { Ok(()) } else { Err(EmbeddedError::Moved { port, now: postmaster.port }) }
        })
        .await
    }

    /// The URL of a database of this server, with the superuser's name and password. The server
    /// comes with the database `nvd`.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{NAME}:{}@127.0.0.1:{}/{database}", self.password, self.port())
    }

    /// The server's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.postmaster.port
    }

    /// The process id of the server's main process.
    pub fn pid(&self) -> u32 {
        self.postmaster.pid
    }

    /// The directory that really holds the database, where symbolic links are followed.
    pub fn dir(&self) -> &Path {
        &self.server.dir
    }

    fn open(options: &Options, runtime: &Handle) -> Result<Self> {
        let asked = std::path::absolute(&options.dir).map_err(EmbeddedError::io("resolve", &options.dir))?;
        let account = Account::for_database(&asked, options.user.as_deref())?;
        let dir = locate(&asked, account)?;
        let _turn = turn(&dir, account)?;
        let users = join(&dir, account)?;
        let wanted = Wanted::for_database(&dir);
        let server = Arc::new(Server {
            binaries: runtime.block_on(Binaries::find(&options.search, &options.cache_dir, wanted, account))?,
            account,
            shared_buffers_mib: options.shared_buffers_mib.unwrap_or_else(settings::default_shared_buffers_mib),
            dir,
        });
        let password = keep_password(&server, &options.password_file)?;
        server.create(&password)?;
        link(&asked, &server.dir)?;
        Ok(Self { postmaster: server.start(None)?, server, password, users: Some(users) })
    }

    fn release(&mut self) -> Result<()> {
        let Some(users) = self.users.take() else {
            return Ok(());
        };
        let _turn = turn(&self.server.dir, self.server.account)?;
        // Unlocked, not just closed: a program being started may hold a copy for a moment.
        users.unlock().map_err(EmbeddedError::io("unlock", &self.server.dir))?;
        match users.try_lock() {
            Ok(()) => self.server.stop("fast"),
            Err(fs::TryLockError::WouldBlock) => {
                tracing::info!(dir = %self.dir().display(), "PostgreSQL goes on for its other users");
                Ok(())
            }
            Err(fs::TryLockError::Error(error)) => Err(EmbeddedError::io("lock", &self.server.dir)(error)),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::error!(%error, "PostgreSQL was not stopped");
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.unwrap_or(Err(EmbeddedError::Interrupted))
}

/// Where the database that was asked for in `asked` is, or will be.
fn locate(asked: &Path, account: Account) -> Result<PathBuf> {
    if asked.is_symlink() {
        return fs::canonicalize(asked).map_err(EmbeddedError::io("follow the link", asked));
    }
    let dir = account.place(asked)?;
    let moved = fs::canonicalize(asked).is_ok_and(|there| there != dir);
    if moved && fs::remove_dir(asked).is_err() {
        return Err(EmbeddedError::Unreachable { dir: asked.to_owned(), user: account.uid() });
    }
    Ok(dir)
}

/// Makes the database in `dir` appear in `asked`, if that is elsewhere.
fn link(asked: &Path, dir: &Path) -> Result<()> {
    if fs::canonicalize(asked).is_ok_and(|there| there == dir) {
        return Ok(());
    }
    tracing::warn!(
        asked = %asked.display(),
        dir = %dir.display(),
        "PostgreSQL does not run as root, and the user that runs it instead cannot enter the \
         directories above the one asked for; the database is elsewhere, and a link leads to it"
    );
    symlink(dir, asked).map_err(EmbeddedError::io("create the link", asked))
}

/// Waits until no other process starts or stops the server.
fn turn(dir: &Path, account: Account) -> Result<File> {
    lock_file(&sibling(dir, ".start.lock"), account, File::lock)
}

/// Becomes one of the server's users.
fn join(dir: &Path, account: Account) -> Result<File> {
    lock_file(&sibling(dir, ".users.lock"), account, File::lock_shared)
}

/// Read access suffices for a lock, so that root's files do not lock the owner out.
fn lock_file(path: &Path, account: Account, lock: impl FnOnce(&File) -> io::Result<()>) -> Result<File> {
    if !path.exists() {
        File::options().append(true).create(true).open(path).map_err(EmbeddedError::io("create", path))?;
        account.own(path)?;
    }
    let file = File::open(path).map_err(EmbeddedError::io("open", path))?;
    lock(&file).map_err(EmbeddedError::io("lock", path))?;
    Ok(file)
}

/// The password is there before the database, so that no database is ever without one.
fn keep_password(server: &Server, file: &Path) -> Result<String> {
    match password::read(file)? {
        Some(password) => Ok(password),
        None if !server.exists() => password::create(file),
        None => Err(EmbeddedError::PasswordLost { dir: server.dir.clone(), password_file: file.to_owned() }),
    }
}
