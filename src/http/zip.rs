//! Several files as one ZIP, sent while it is written: neither memory nor the disk ever holds it.

use std::io::{self, Write};

use axum::body::Body;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Http;
use crate::export::zip::{self, Entry};

/// Pieces between the writer and the connection.
const PIECES: usize = 4;

/// The answer with some files of the storage.
pub fn answer(http: &Http, method: &Method, name: &str, entries: Vec<Entry>) -> Response {
    let headers = [
        (CONTENT_TYPE, "application/zip".to_owned()),
        (CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    if *method == Method::HEAD {
        return (StatusCode::OK, headers).into_response();
    }
    let (sender, receiver) = mpsc::channel(PIECES);
    let storage = http.app.storage.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = zip::write(&storage, &entries, Pieces(&sender)) {
            // The connection breaks off, so that the client does not take a part for the whole.
            drop(sender.blocking_send(Err(error)));
        }
    });
    (StatusCode::OK, headers, Body::from_stream(ReceiverStream::new(receiver))).into_response()
}

struct Pieces<'s>(&'s mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Ok(Bytes::copy_from_slice(bytes));
        self.0.blocking_send(piece).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
