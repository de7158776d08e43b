//! What the system is told about connections to PostgreSQL, which sqlx 0.9.0 does not say.
//!
//! Nagle's algorithm holds a small packet back until the one before it is acknowledged; sqlx leaves it on
//! (<https://github.com/transact-rs/sqlx/issues/4335>, corrected but not released). A COPY ends with a packet of five bytes
//! behind its rows, and PostgreSQL acknowledges those after 40 ms: each upload would take as long.
//!
//! A machine that vanishes ends no connection: whoever waits for its answer would wait for ever, with all that he holds. So the
//! system asks whether it is still there, and ends the connection where nothing comes back.

use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;
use std::{fs, io};

use socket2::{SockRef, TcpKeepalive};

/// When a silent machine is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(30);

/// How long nothing may come back, or nothing be taken: longer than a server is held up by its disks.
#[cfg(target_os = "linux")]
const PATIENCE: Duration = Duration::from_mins(2);

/// Tells it of the connections of this process to that port of whatever machine. sqlx does not tell its sockets, so all open
/// files are looked through.
///
/// # Errors
/// A system that does not list a process's open files.
pub fn tune(port: u16) -> io::Result<()> {
    for entry in fs::read_dir("/dev/fd")? {
        let Some(file) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        // SAFETY: the number was that of an open file a moment ago. If another thread has closed it since, the system refuses
        // what follows, or it is done to a connection to PostgreSQL that is as new, where it is as welcome.
        let file = unsafe { BorrowedFd::borrow_raw(file) };
        let socket = SockRef::from(&file);
        let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
        if peer.is_some_and(|peer| peer.port() == port) {
            socket.set_tcp_nodelay(true)?;
            let keepalive = TcpKeepalive::new().with_time(SILENCE).with_interval(SILENCE / 3).with_retries(3);
            socket.set_tcp_keepalive(&keepalive)?;
            #[cfg(target_os = "linux")]
            socket.set_tcp_user_timeout(Some(PATIENCE))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_system_asks_whether_the_other_machine_is_still_there() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
        let address = listener.local_addr().expect("address");
        let connection = TcpStream::connect(address).expect("connection");
        tune(address.port()).expect("tuned");
        let socket = SockRef::from(&connection);
        assert!(socket.tcp_nodelay().expect("option") && socket.keepalive().expect("option"));
        assert_eq!(socket.tcp_keepalive_time().expect("option"), SILENCE);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().expect("option"), Some(PATIENCE));
    }
}
