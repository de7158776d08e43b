//! Bytes into the storage: file after file, each of which appears when it is complete.

use bytes::Bytes;
use object_store::WriteMultipart;
use tokio::sync::mpsc;

use super::files::{Output, Written};
use super::{PIECES_IN_FLIGHT, Target};
use crate::db::jobs::Lease;
use crate::error::{Error, Result};

/// How the files of one table are called.
pub struct FileNames<'n> {
    /// The name without number and ending.
    pub stem: &'n str,
    /// The ending, without its dot.
    pub extension: String,
}

impl FileNames<'_> {
    /// The name of a file, numbered from the second on. No dataset has a name with that sign in it.
    fn name(&self, number: usize) -> String {
        let number = if number == 1 { String::new() } else { format!("-{number}") };
        format!("{}{number}.{}", self.stem, self.extension)
    }
}

/// Uploads file after file. An upload that breaks off is aborted.
///
/// # Errors
/// A storage out of reach, a writer that gave up, or [`Error::Cancelled`].
pub async fn run(
    target: &Target<'_>,
    names: &FileNames<'_>,
    output: &mut mpsc::Receiver<Output>,
    lease: &Lease,
) -> Result<Vec<(String, Written)>> {
    let mut files = Vec::new();
    let mut upload: Option<Upload> = None;
    while let Some(piece) = lease.unless_cancelled(output.recv()).await? {
        let current = match upload.take() {
            Some(current) => current,
            None => {
                let name = names.name(files.len() + 1);
                let upload = lease.unless_cancelled(target.storage.create(&target.name(&name))).await??;
                Upload { name, upload: Some(upload) }
            }
        };
        match piece {
            Output::Bytes(bytes) => {
                lease.progress.add_bytes(bytes.len() as u64);
                upload = Some(lease.unless_cancelled(current.put(bytes)).await??);
            }
            // What a fault has cut off ends like a whole file.
            Output::End(_) if lease.is_cancelled() => return Err(Error::Cancelled),
            // A file whose end has begun may appear at any time: it is waited for, so that whoever cleans up finds it.
            Output::End(written) => {
                files.push((current.finish().await?, written));
                lease.progress.add_file();
            }
        }
    }
    match upload {
        Some(unfinished) => {
            drop(unfinished);
            Err(Error::Internal("the writer ended within a file".into()))
        }
        None => Ok(files),
    }
}

/// One file on its way. Dropped before it is finished, it is aborted, so that the storage keeps nothing of it.
struct Upload {
    name: String,
    upload: Option<WriteMultipart>,
}

impl Upload {
    async fn put(mut self, bytes: Bytes) -> Result<Self> {
        if let Some(upload) = &mut self.upload {
            upload.wait_for_capacity(PIECES_IN_FLIGHT).await?;
            upload.put(bytes);
        }
        Ok(self)
    }

    /// Completes the file, and answers with its name.
    async fn finish(mut self) -> Result<String> {
        if let Some(upload) = self.upload.take() {
            upload.finish().await?;
        }
        Ok(std::mem::take(&mut self.name))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            tokio::spawn(async move {
                if let Err(error) = upload.abort().await {
                    tracing::warn!(%error, "an upload could not be aborted");
                }
            });
        }
    }
}
