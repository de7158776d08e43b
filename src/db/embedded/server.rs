//! One database directory's server: starting it, finding it running, and stopping it.
//!
//! Who may do so when is the business of `cluster`: the functions here expect that no
//! other process calls them for the same directory at the same time.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::postmaster::{Postmaster, loopback};
use super::settings::Settings;
use super::{Account, Binaries, EmbeddedError, Result};

/// The superuser, and the database that a new cluster comes with.
pub const NAME: &str = "nvd";

/// The configuration, in the database directory.
pub const SETTINGS_FILE: &str = "nvd.conf";

/// How long a start may take, in seconds: replaying gigabytes of log after a crash is slow.
const START_LIMIT: &str = "600";

/// How long a stop may take, in seconds: all changed pages are written.
const STOP_LIMIT: &str = "300";

/// How often a start that fails for a passing reason is tried, and the pause in between.
const START_ATTEMPTS: u32 = 60;
const START_PAUSE: Duration = Duration::from_secs(1);

/// How long a running server may take to answer: while it recovers or stops, and otherwise.
const BUSY_LIMIT: Duration = Duration::from_secs(600);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const ANSWER_PAUSE: Duration = Duration::from_millis(50);

/// Failures that pass: another program took the port, or the last processes of a killed server
/// have not ended yet.
const PASSING: [&str; 3] = ["Address already in use", "is still in use", "lock file \"postmaster.pid\" already exists"];

/// How long the last processes of a killed server may take to end.
const ENDING_LIMIT: Duration = Duration::from_secs(10);

/// A log that is longer than this, in bytes, is put aside at the next start.
const LONG_LOG: u64 = 16 << 20;

/// How many lines of a program's output an error shows.
const SHOWN_LINES: usize = 20;

/// A database directory, and what its server needs to run.
#[derive(Debug)]
pub struct Server {
    /// The directory, without symbolic links.
    pub dir: PathBuf,
    pub binaries: Binaries,
    pub account: Account,
    pub shared_buffers_mib: u64,
}

impl Server {
    /// Finds the server running, or starts it, recovering from a crash where there was one; on that port if it is free.
    pub fn start(&self, port: Option<u16>) -> Result<Postmaster> {
        for _ in 1..START_ATTEMPTS {
            if let Some(postmaster) = self.adopt()? {
                tracing::info!(dir = %self.dir.display(), pid = postmaster.pid, "PostgreSQL runs already");
                return Ok(postmaster);
            }
            match self.start_once(port) {
                Err(error) if passes(&error) => sleep(START_PAUSE),
                outcome => return outcome,
            }
        }
        self.start_once(port)
    }

    /// Stops the server if it runs: in order and with all clients disconnected (`fast`), or as in
    /// a crash (`immediate`).
    pub fn stop(&self, mode: &str) -> Result<()> {
        if Postmaster::running(&self.dir).is_none() {
            return Ok(());
        }
        let stopped = self.run("pg_ctl stop", self.pg_ctl(&["stop", "-m", mode, "-w", "-t", STOP_LIMIT]), String::new);
        // It may have ended by itself just before.
        stopped.or_else(|error| Postmaster::running(&self.dir).map_or(Ok(()), |_| Err(error)))
    }

    /// One of PostgreSQL's programs, ready to run as the account.
    pub fn program(&self, name: &str) -> Command {
        self.account.command(&self.binaries.dir().join(name))
    }

    /// Runs `command`; when it fails, the error shows what it wrote, followed by `more`.
    pub fn run(&self, program: &'static str, mut command: Command, more: impl FnOnce() -> String) -> Result<()> {
        let path = PathBuf::from(command.get_program());
        let output = command.output().map_err(EmbeddedError::io("run", &path))?;
        if output.status.success() {
            return Ok(());
        }
        let written = format!("{}{}", String::from_utf8_lossy(&output.stderr), more());
        Err(EmbeddedError::Program { program, dir: self.dir.clone(), output: last_lines(&written) })
    }

    /// The running server, once it answers. One that does not is stopped.
    fn adopt(&self) -> Result<Option<Postmaster>> {
        let since = Instant::now();
        while let Some(postmaster) = Postmaster::running(&self.dir) {
            if postmaster.answers() {
                return Ok(Some(postmaster));
            }
            let limit = if postmaster.ready { ANSWER_LIMIT } else { BUSY_LIMIT };
            if since.elapsed() > limit {
                tracing::warn!(pid = postmaster.pid, "PostgreSQL does not answer and is stopped");
                self.stop("immediate")?;
            }
            sleep(ANSWER_PAUSE);
        }
        Ok(None)
    }

    fn start_once(&self, port: Option<u16>) -> Result<Postmaster> {
        let log = self.log()?;
        let known = log.metadata().map_or(0, |metadata| metadata.len());
        self.configure(self.choose_port(port)?)?;
        Postmaster::forget_mistaken(&self.dir).map_err(EmbeddedError::io("remove postmaster.pid in", &self.dir))?;
        let mut pg_ctl = self.pg_ctl(&["start", "--silent", "-w", "-t", START_LIMIT]);
        let copy = log.try_clone().map_err(EmbeddedError::io("open", &self.log_file()))?;
        pg_ctl.stdout(copy).stderr(log);
        let news = || read_from(&self.log_file(), known).unwrap_or_default();
        self.run("pg_ctl start", pg_ctl, news)?;
        let postmaster = Postmaster::running(&self.dir).ok_or_else(|| EmbeddedError::Program {
            program: "postgres",
            dir: self.dir.clone(),
            output: last_lines(&news()),
        })?;
        tracing::info!(dir = %self.dir.display(), pid = postmaster.pid, port = postmaster.port, "PostgreSQL started");
        Ok(postmaster)
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// The log, locked for those who write to it: the processes of the server to be, as long as they live. So a server
    /// is known to run also where its process is not to be seen, as in another container, whose PostgreSQL would not
    /// see it either.
    fn log(&self) -> Result<File> {
        let (file, since) = (self.log_file(), Instant::now());
        let log = File::options().append(true).create(true).open(&file).map_err(EmbeddedError::io("open", &file))?;
        self.account.own(&file)?;
        while let Err(error) = log.try_lock() {
            match error {
                TryLockError::WouldBlock if since.elapsed() < ENDING_LIMIT => sleep(ANSWER_PAUSE),
                TryLockError::WouldBlock => return Err(EmbeddedError::Elsewhere { dir: self.dir.clone() }),
                TryLockError::Error(error) => return Err(EmbeddedError::io("lock", &file)(error)),
            }
        }
        if log.metadata().is_ok_and(|metadata| metadata.len() > LONG_LOG) {
            fs::rename(&file, file.with_extension("log.1")).map_err(EmbeddedError::io("put aside", &file))?;
            return self.log();
        }
        Ok(log)
    }

    fn configure(&self, port: u16) -> Result<()> {
        let settings = Settings { port, shared_buffers_mib: self.shared_buffers_mib };
        let file = self.dir.join(SETTINGS_FILE);
        fs::write(&file, settings.to_string()).map_err(EmbeddedError::io("write", &file))?;
        self.account.own(&file)
    }

    /// A free port: the one that is asked for, or after a crash the last one, so that the server's users find it again.
    fn choose_port(&self, asked: Option<u16>) -> Result<u16> {
        let bind = |port| TcpListener::bind(loopback(port))?.local_addr();
        asked
            .or_else(|| Postmaster::recorded(&self.dir).map(|last| last.port))
            .and_then(|port| bind(port).ok())
            .map_or_else(|| bind(0), Ok)
            .map(|address| address.port())
            .map_err(EmbeddedError::io("find a free port on 127.0.0.1 for", &self.dir))
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Command {
        let mut command = self.program("pg_ctl");
        command.arg("--pgdata").arg(&self.dir).args(arguments);
        command
    }
}

fn passes(error: &EmbeddedError) -> bool {
    matches!(error, EmbeddedError::Program { output, .. } if PASSING.iter().any(|reason| output.contains(reason)))
}

fn read_from(file: &Path, start: u64) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    let mut file = File::open(file)?;
    file.seek(SeekFrom::Start(start))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}
