//! A network that fails: between a client and the service it drops, resets, truncates and swallows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Closed before a byte was read.
    Drop,
    /// Reset after so many bytes of the request.
    Reset(usize),
    /// The service sees the end of the request after so many bytes; its answer gets through.
    Truncate(usize),
    /// Some other server answers 503, before the request is complete.
    Unavailable,
    /// The request arrives whole, but its answer is lost.
    Swallow,
    /// The request arrives whole, but only so many bytes of its answer come back.
    Cut(usize),
    /// Everything gets through, each part so many milliseconds late.
    Delay(u64),
    /// One request gets through.
    Pass,
}

/// A running proxy.
pub struct Proxy {
    pub url: String,
    counts: Arc<[AtomicUsize; 8]>,
    serving: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Stands before the service at `target`; each connection meets the next fault.
    pub async fn start(target: SocketAddr, mut next: impl FnMut() -> Fault + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let counts: Arc<[AtomicUsize; 8]> = Arc::default();
        let seen = Arc::clone(&counts);
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let fault = next();
                let index = match fault {
                    Fault::Drop => 0,
                    Fault::Reset(_) => 1,
                    Fault::Truncate(_) => 2,
                    Fault::Unavailable => 3,
                    Fault::Swallow => 4,
                    Fault::Cut(_) => 5,
                    Fault::Delay(_) => 6,
                    Fault::Pass => 7,
                };
                seen[index].fetch_add(1, Ordering::Relaxed);
                // A broken connection is what this is for.
                tokio::spawn(async move { drop(relay(client, target, fault).await) });
            }
        });
        Self { url, counts, serving }
    }

    /// How many connections met each fault, in the order of [`Fault`].
    pub fn counts(&self) -> Vec<usize> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr, fault: Fault) -> std::io::Result<()> {
    let limit = match fault {
        Fault::Drop => return Ok(()),
        Fault::Unavailable => {
            client.read_u8().await?;
            let answer = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n";
            client.write_all(answer.as_bytes()).await?;
            client.shutdown().await?;
            // Closing with unread bytes would reset the connection before the answer is read.
            tokio::time::sleep(Duration::from_millis(300)).await;
            return Ok(());
        }
        Fault::Reset(bytes) | Fault::Truncate(bytes) => bytes,
        Fault::Swallow | Fault::Cut(_) | Fault::Delay(_) | Fault::Pass => usize::MAX,
    };
    let late = Duration::from_millis(if let Fault::Delay(milliseconds) = fault { milliseconds } else { 0 });
    let server = TcpStream::connect(target).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let mut buffer = [0; 1024];
        let mut left = limit;
        loop {
            let wanted = left.min(buffer.len());
            let count = from_client.read(&mut buffer[..wanted]).await?;
            tokio::time::sleep(late).await;
            to_server.write_all(&buffer[..count]).await?;
            left -= count;
            if count == 0 || left == 0 {
                to_server.shutdown().await?;
                return Ok::<_, std::io::Error>(());
            }
        }
    };
    let down = async {
        let mut answer = vec![0; 16 * 1024];
        let count = from_server.read(&mut answer).await?;
        tokio::time::sleep(late).await;
        let count = match fault {
            Fault::Swallow => return Err(std::io::Error::other("swallowed")),
            Fault::Cut(bytes) => count.min(bytes),
            _ => count,
        };
        to_client.write_all(&answer[..count]).await?;
        to_client.shutdown().await
    };
    if let Fault::Reset(_) = fault {
        drop(down);
        // The request may be shorter; then it is the answer that never comes.
        if let Ok(sent) = tokio::time::timeout(Duration::from_secs(3), up).await {
            sent?;
        }
        return client.set_zero_linger();
    }
    let both = async { tokio::try_join!(up, down).map(drop) };
    // A client that has its answer may keep the connection open for more.
    tokio::time::timeout(Duration::from_secs(20), both).await.unwrap_or(Ok(()))
}

/// Stands before a database: passes connections on, each until so many bytes have come back over it. From then on it
/// is open and silent, until the client ends it.
pub async fn relay_database(listener: TcpListener, server: String, bytes: u64) {
    while let Ok((mut client, _)) = listener.accept().await {
        let mut server = TcpStream::connect(&server).await.expect("database");
        tokio::spawn(async move {
            let (mut from_client, mut to_client) = client.split();
            let (from_server, mut to_server) = server.split();
            let up = tokio::io::copy(&mut from_client, &mut to_server);
            let down = async {
                if tokio::io::copy(&mut from_server.take(bytes), &mut to_client).await.is_ok_and(|sent| sent == bytes) {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! { _ = up => (), () = down => () }
        });
    }
}
