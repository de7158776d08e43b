//! Nagle's algorithm, which holds a small packet back until the one before it is acknowledged.
//!
//! sqlx 0.9.0 leaves it on (<https://github.com/transact-rs/sqlx/issues/4335>, corrected but not released). A COPY ends with
//! a packet of five bytes behind its rows, and PostgreSQL acknowledges those after 40 ms: each upload would take as long.

use std::os::fd::{BorrowedFd, RawFd};
use std::{fs, io};

use socket2::SockRef;

/// Switches it off for the connections of this process to that port of whatever machine. sqlx does not tell its sockets, so
/// all open files are looked through.
///
/// # Errors
/// A system that does not list a process's open files.
pub fn switch_off(port: u16) -> io::Result<()> {
    for entry in fs::read_dir("/dev/fd")? {
        let Some(file) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        // SAFETY: the number was that of an open file a moment ago. If another thread has closed it since, the system refuses
        // what follows, or it is done to a connection to PostgreSQL that is as new, where it is as welcome.
        let file = unsafe { BorrowedFd::borrow_raw(file) };
        let socket = SockRef::from(&file);
        let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
        if peer.is_some_and(|peer| peer.port() == port) {
            socket.set_tcp_nodelay(true)?;
        }
    }
    Ok(())
}
