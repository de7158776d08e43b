//! Several files as one ZIP, written while it is sent. The files are compressed already, so they are only laid in.

use std::io::{self, Write};

use axum::body::Body;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::Http;
use crate::db::exports::ExportFile;
use crate::storage::Storage;

/// Pieces between the writer and the connection.
const PIECES: usize = 4;

/// The answer with all files of a folder.
pub fn answer(http: &Http, method: &Method, prefix: &str, name: &str, files: Vec<ExportFile>) -> Response {
    let headers = [
        (CONTENT_TYPE, "application/zip".to_owned()),
        (CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    if *method == Method::HEAD {
        return (StatusCode::OK, headers).into_response();
    }
    let (sender, receiver) = mpsc::channel(PIECES);
    let (storage, prefix) = (http.app.storage.clone(), prefix.to_owned());
    tokio::task::spawn_blocking(move || {
        if let Err(error) = write(&storage, &prefix, &files, &sender) {
            // The connection breaks off, so that the client does not take a part for the whole.
            drop(sender.blocking_send(Err(error)));
        }
    });
    (StatusCode::OK, headers, Body::from_stream(ReceiverStream::new(receiver))).into_response()
}

fn write(
    storage: &Storage,
    prefix: &str,
    files: &[ExportFile],
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let mut zip = ZipWriter::new_stream(Pieces(sender));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    for file in files {
        zip.start_file(file.name.as_str(), options)?;
        let name = format!("{prefix}/{}", file.name);
        let mut bytes = Handle::current().block_on(storage.read(&name, None)).map_err(io::Error::other)?;
        while let Some(piece) = Handle::current().block_on(bytes.next()) {
            zip.write_all(&piece?)?;
        }
    }
    zip.finish()?.into_inner().flush()
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
