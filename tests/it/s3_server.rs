//! A real S3 server that checks signatures, on a port of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;

/// A server with one bucket `lab`.
pub struct S3 {
    address: SocketAddr,
    /// The bucket is the folder `lab` in it.
    pub folder: TempDir,
    /// While set, connections are broken off.
    pub is_away: Arc<AtomicBool>,
    /// Connections that were broken off.
    pub refused: Arc<AtomicU32>,
    /// While set, manifests are stored and nobody hears of it.
    pub is_silent: Arc<AtomicBool>,
}

impl S3 {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir(folder.path().join("lab")).expect("bucket");
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).expect("file system"));
        builder.set_auth(SimpleAuth::from_single("key", "secret"));
        let service = builder.build();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let (is_away, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (away, count) = (Arc::clone(&is_away), Arc::clone(&refused));
        let is_silent = Arc::new(AtomicBool::new(false));
        let silent = Arc::clone(&is_silent);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                if away.load(Ordering::Relaxed) {
                    count.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let (service, away) = (service.clone(), Arc::clone(&away));
                let (served, inner) = tokio::io::duplex(64 * 1024);
                tokio::spawn(pass(socket, inner, Arc::clone(&silent)));
                tokio::spawn(async move {
                    let server = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                    let connection = server.serve_connection(TokioIo::new(served), service);
                    let breaks = async {
                        while !away.load(Ordering::Relaxed) {
                            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                        }
                    };
                    tokio::select! {
                        _ = connection => {}
                        () = breaks => {}
                    }
                });
            }
        });
        Self { address, folder, is_away, refused, is_silent }
    }

    /// What `export.storage` takes; a secret other than `secret` is refused.
    pub fn url(&self, secret: &str) -> String {
        format!(
            "s3://lab/exports?endpoint=http://{}&region=us-east-1&access_key_id=key&secret_access_key={secret}",
            self.address
        )
    }
}

/// Passes bytes on, and breaks off where the answer to a manifest would come back.
async fn pass(mut socket: TcpStream, mut served: DuplexStream, is_silent: Arc<AtomicBool>) {
    let (mut of_client, mut of_server) = ([0; 16 * 1024], [0; 16 * 1024]);
    let mut is_manifest = false;
    loop {
        let passed = tokio::select! {
            Ok(count @ 1..) = socket.read(&mut of_client) => {
                let text = String::from_utf8_lossy(&of_client[..count]);
                is_manifest |= text.starts_with("PUT ") && text.contains("/_manifest.json HTTP/1.1");
                served.write_all(&of_client[..count]).await
            }
            Ok(count @ 1..) = served.read(&mut of_server) => {
                if is_manifest && is_silent.load(Ordering::Relaxed) {
                    return;
                }
                is_manifest = false;
                socket.write_all(&of_server[..count]).await
            }
            else => return,
        };
        if passed.is_err() {
            return;
        }
    }
}
