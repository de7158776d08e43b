//! Several files as one ZIP, sent while it is written: neither memory nor the disk ever holds it.

use std::future::ready;
use std::io::{self, Write};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::Http;
use super::download::check_stored;
use crate::error::{Error, Result};
use crate::export::zip::{self, Entry};

/// ZIPs that are sent at once: each takes a thread.
pub const ZIPS: usize = 32;

/// Pieces between the writer and the connection.
const PIECES: usize = 4;

/// The answer with some files of the storage.
///
/// # Errors
/// Too many others, a file that is gone.
pub async fn answer(http: &Http, method: &Method, name: &str, entries: Vec<Entry>) -> Result<Response> {
    let headers = [
        (CONTENT_TYPE, "application/zip".to_owned()),
        (CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    for entry in &entries {
        check_stored(&http.app.storage, &entry.path).await?;
    }
    let (sender, receiver) = mpsc::channel(PIECES);
    let (ended, end) = oneshot::channel();
    // After a fault the connection breaks off, so that the client does not take a part for the whole.
    let fault = async { end.await.unwrap_or_else(|_| Err(io::Error::other("the writer vanished"))).err().map(Err) };
    let pieces = ReceiverStream::new(receiver).map(Ok).chain(stream::once(fault).filter_map(ready));
    // Of a length that nobody knows, for HEAD as well.
    let answer = (StatusCode::OK, headers, Body::from_stream(pieces)).into_response();
    if *method == Method::HEAD {
        return Ok(answer);
    }
    let busy = |_| Error::Busy { what: "too many archives are sent", retry_after: Duration::from_secs(10) };
    let place = http.zips.clone().try_acquire_owned().map_err(busy)?;
    let storage = http.app.storage.clone();
    let idle = http.app.config.ingest.idle_timeout;
    tokio::task::spawn_blocking(move || {
        let _place = place;
        drop(ended.send(zip::write(&storage, &entries, Pieces { sender, idle })));
    });
    Ok(answer)
}

struct Pieces {
    sender: mpsc::Sender<Bytes>,
    /// How long a client may take nothing.
    idle: Duration,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        match Handle::current().block_on(timeout(self.idle, self.sender.send(piece))) {
            Ok(Ok(())) => Ok(bytes.len()),
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
