//! A running server, seen from outside: the file it keeps in its directory, its process and its
//! port.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

/// How long a server that is well may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The protocol's request to encrypt, which a server answers with one byte before anyone logs in.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Where a server records itself, in its directory.
const FILE: &str = "postmaster.pid";

/// The main process of a server.
#[derive(Debug, Clone, Copy)]
pub struct Postmaster {
    /// Its process id.
    pub pid: u32,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// Whether it says that it has recovered and takes connections.
    pub ready: bool,
}

impl Postmaster {
    /// The server that runs on the directory `dir`, a path without symbolic links.
    pub fn running(dir: &Path) -> Option<Self> {
        Self::recorded(dir).filter(|postmaster| works_on(postmaster.pid, dir) == Some(true))
    }

    /// Removes the file of a dead server whose process id another program has by now, as is common
    /// in containers: PostgreSQL would take that program for the server, and never start again.
    pub fn forget_mistaken(dir: &Path) -> std::io::Result<()> {
        match Self::recorded(dir).and_then(|postmaster| works_on(postmaster.pid, dir)) {
            Some(false) => fs::remove_file(dir.join(FILE)),
            _ => Ok(()),
        }
    }

    /// The last server on `dir` that did not end in order: it may run or be long gone.
    pub fn recorded(dir: &Path) -> Option<Self> {
        let file = fs::read_to_string(dir.join(FILE)).ok()?;
        let line = |number: usize| file.lines().nth(number - 1).map(str::trim);
        Some(Self { pid: line(1)?.parse().ok()?, port: line(4)?.parse().ok()?, ready: line(8) == Some("ready") })
    }

    /// Whether it takes connections: its port alone would be open even if the process hung.
    pub fn answers(&self) -> bool {
        self.ready && self.ask().is_ok()
    }

    fn ask(&self) -> std::io::Result<()> {
        let mut connection = TcpStream::connect_timeout(&loopback(self.port), PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(&SSL_REQUEST)?;
        connection.read_exact(&mut [0])
    }
}

/// The address of `port` on this machine.
pub fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Whether process `pid` is a server on `dir`, unless it does not exist or cannot be looked at. A
/// server's working directory is its `dir`; a dead process that nobody waited for has none.
#[cfg(target_os = "linux")]
fn works_on(pid: u32, dir: &Path) -> Option<bool> {
    let process = Path::new("/proc").join(pid.to_string());
    match fs::read_link(process.join("cwd")) {
        Ok(working_dir) => Some(working_dir == dir),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => process.exists().then_some(false),
        // Another user's process, as it is for root without `CAP_SYS_PTRACE`, the default in containers.
        Err(_) => names(&fs::read(process.join("cmdline")).ok()?, dir),
    }
}

/// Whether process `pid` is a server on `dir`, unless it does not exist or cannot be looked at.
#[cfg(not(target_os = "linux"))]
fn works_on(pid: u32, dir: &Path) -> Option<bool> {
    let arguments = ["-ww", "-o", "args=", "-p", &pid.to_string()];
    names(&std::process::Command::new("ps").args(arguments).output().ok()?.stdout, dir)
}

/// Whether a command line, unless there is none, names `dir`, as `pg_ctl` does for a server.
fn names(command_line: &[u8], dir: &Path) -> Option<bool> {
    let command_line = String::from_utf8_lossy(command_line);
    (!command_line.is_empty()).then(|| command_line.contains(&*dir.to_string_lossy()))
}
