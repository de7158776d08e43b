//! Where files lie: a local folder, or a bucket of S3, Azure or Google Cloud, told by one URL.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{BackoffConfig, GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart};
use reqwest::{Method, Url};

use crate::error::{Error, Result};

/// Bytes of one part of an upload: the least that S3 takes, of at most 10,000 parts, so for files of up to 48 GiB.
const PART: usize = 5 * 1024 * 1024;

/// An opened storage. All names are relative to its root.
#[derive(Debug, Clone)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
    signing: Option<Signing>,
    /// The folder of a local storage.
    folder: Option<Arc<FilePath>>,
    root: Path,
    url: String,
}

/// How addresses are signed that anybody may read.
#[derive(Debug, Clone)]
struct Signing {
    signer: Arc<dyn Signer>,
    /// The method that a signature for HEAD is for.
    head: Method,
}

/// A file of the storage.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its name, relative to the root.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When it was last written.
    pub modified: DateTime<Utc>,
}

impl Storage {
    /// Opens a folder (`exports`, `/srv/exports`, `file:///srv/exports`, made where it is missing) or a bucket
    /// (`s3://bucket/prefix?region=eu-west-1&endpoint=http://...`, `az://container/prefix`, `gs://bucket/prefix`).
    /// Credentials come from the usual environment variables of each cloud.
    ///
    /// # Errors
    /// A URL of another kind, an unknown option, missing credentials, a folder that cannot be made.
    pub fn open(location: &str) -> Result<Self> {
        let Some((scheme, _)) = location.split_once("://") else {
            return Self::local(FilePath::new(location));
        };
        let url = Url::parse(location).map_err(|error| fault(location, &error))?;
        let bucket = url.host_str().unwrap_or_default().to_owned();
        let options: Vec<(String, String)> =
            url.query_pairs().map(|(key, value)| (key.into_owned(), value.into_owned())).collect();
        let root = Path::from_url_path(url.path()).map_err(|error| fault(location, &error))?;
        let shown = format!("{scheme}://{bucket}/{root}");
        let is_plain = options.iter().any(|(key, value)| key.contains("endpoint") && value.starts_with("http://"));
        match scheme {
            "file" => {
                let path =
                    url.to_file_path().map_err(|()| fault(location, &"it names a host; write file:///folder"))?;
                Self::local(&path)
            }
            "s3" | "s3a" => {
                let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retries());
                // The environment may allow it, too.
                if is_plain {
                    builder = builder.with_allow_http(true);
                }
                for (key, value) in options {
                    builder = builder.with_config(key.parse().map_err(|error| fault(location, &error))?, value);
                }
                let store = Arc::new(builder.build().map_err(|error| fault(location, &error))?);
                let signing = Some(Signing { signer: store.clone(), head: Method::HEAD });
                Ok(Self { store, signing, folder: None, root, url: shown })
            }
            "az" | "azure" | "abfs" | "abfss" => {
                let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retries());
                // The environment may allow it, too.
                if is_plain {
                    builder = builder.with_allow_http(true);
                }
                for (key, value) in options {
                    builder = builder.with_config(key.parse().map_err(|error| fault(location, &error))?, value);
                }
                let store = Arc::new(builder.build().map_err(|error| fault(location, &error))?);
                // Azure signs what may be done, to read, and has no word for HEAD.
                let signing = Some(Signing { signer: store.clone(), head: Method::GET });
                Ok(Self { store, signing, folder: None, root, url: shown })
            }
            "gs" => {
                let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retries());
                for (key, value) in options {
                    builder = builder.with_config(key.parse().map_err(|error| fault(location, &error))?, value);
                }
                let store = Arc::new(builder.build().map_err(|error| fault(location, &error))?);
                let signing = Some(Signing { signer: store.clone(), head: Method::HEAD });
                Ok(Self { store, signing, folder: None, root, url: shown })
            }
            _ => Err(fault(location, &"use a folder, file://, s3://, az:// or gs://")),
        }
    }

    fn local(folder: &FilePath) -> Result<Self> {
        let fail = |error: &dyn std::fmt::Display| fault(&folder.display().to_string(), error);
        std::fs::create_dir_all(folder).map_err(|error| fail(&error))?;
        let folder: PathBuf = folder.canonicalize().map_err(|error| fail(&error))?;
        let store = LocalFileSystem::new_with_prefix(&folder).map_err(|error| fail(&error))?;
        let store = Arc::new(store.with_fsync(true).with_automatic_cleanup(true));
        let url = folder.display().to_string();
        Ok(Self { store, signing: None, folder: Some(folder.into()), root: Path::default(), url })
    }

    /// Where it is, for people: without options, which may hold secrets.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it is a folder.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.folder.is_some()
    }

    /// Writes, reads and deletes a small object, so that a mistake shows at the start and not at night.
    ///
    /// # Errors
    /// The step that failed, and why.
    pub async fn check(&self) -> Result<()> {
        let name = format!(".probe-{}", uuid::Uuid::now_v7());
        let path = self.path(&name);
        let fail = |step: &str, error: object_store::Error| {
            Error::Environment(format!("the export storage {} cannot be used, {step} failed: {error}", self.url))
        };
        self.store.put(&path, Bytes::from_static(b"probe").into()).await.map_err(|error| fail("writing", error))?;
        let read = self.store.get(&path).await.map_err(|error| fail("reading", error))?;
        let read = read.bytes().await.map_err(|error| fail("reading", error))?;
        self.store.delete(&path).await.map_err(|error| fail("deleting", error))?;
        if read == "probe" {
            return Ok(());
        }
        Err(Error::Environment(format!("the export storage {} answers with other bytes than were written", self.url)))
    }

    /// Begins a file, which appears when the upload is finished, as a whole.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn create(&self, name: &str) -> Result<WriteMultipart> {
        let upload = self.store.put_multipart(&self.path(name)).await?;
        Ok(WriteMultipart::new_with_chunk_size(upload, PART))
    }

    /// Writes a small file at once.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn put(&self, name: &str, content: Bytes) -> Result<()> {
        self.store.put(&self.path(name), content.into()).await?;
        Ok(())
    }

    /// A part of a file, or all of it.
    ///
    /// # Errors
    /// A file that is not there, a storage out of reach.
    pub async fn read(
        &self,
        name: &str,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<BoxStream<'static, object_store::Result<Bytes>>> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        Ok(self.store.get_opts(&self.path(name), options).await?.into_stream())
    }

    /// All of a small file; `None` when it is not there.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        match self.store.get(&self.path(name)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a file is there.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn exists(&self, name: &str) -> Result<bool> {
        match self.store.head(&self.path(name)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The files below a folder, unfinished ones of a local storage among them.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        let mut files = Vec::new();
        if let Some(root) = &self.folder {
            walk(root, &root.join(folder), &mut files).map_err(local)?;
            return Ok(files);
        }
        let mut listing = self.store.list(Some(&self.path(folder)));
        while let Some(file) = listing.next().await.transpose()? {
            let parts = file.location.prefix_match(&self.root);
            let parts: Vec<String> = parts.into_iter().flatten().map(|part| part.as_ref().to_owned()).collect();
            files.push(Listed { name: parts.join("/"), bytes: file.size, modified: file.last_modified });
        }
        Ok(files)
    }

    /// The names of the folders in a folder, which need not be there.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let mut names = match &self.folder {
            Some(root) => folders(&root.join(folder)).map_err(local)?,
            None => {
                let listing = self.store.list_with_delimiter(Some(&self.path(folder))).await?;
                listing.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect()
            }
        };
        names.sort();
        Ok(names)
    }

    /// Removes all files below a folder, and answers with their number. A folder that is not there is no fault.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn delete(&self, folder: &str) -> Result<usize> {
        let files = self.list(folder).await?;
        if let Some(root) = &self.folder {
            // Empty folders and unfinished files are nothing that the store knows.
            removed(std::fs::remove_dir_all(root.join(folder)))?;
            return Ok(files.len());
        }
        for file in &files {
            self.delete_file(&file.name).await?;
        }
        Ok(files.len())
    }

    /// Removes a file. One that is not there is no fault.
    ///
    /// # Errors
    /// A storage out of reach.
    pub async fn delete_file(&self, name: &str) -> Result<()> {
        if let Some(root) = self.folder.as_ref().filter(|_| name.contains('#')) {
            // An unfinished file, which the store does not know.
            return removed(std::fs::remove_file(root.join(name)));
        }
        match self.store.delete(&self.path(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// An address under which anybody may read a file for a while, by GET or HEAD; `None` where the storage has no such thing, or
    /// where its credentials cannot sign.
    pub async fn signed_url(&self, method: &Method, name: &str, lifetime: Duration) -> Option<String> {
        let Signing { signer, head } = self.signing.as_ref()?;
        let method = if *method == Method::HEAD { head.clone() } else { Method::GET };
        match signer.signed_url(method, &self.path(name), lifetime).await {
            Ok(url) => Some(url.to_string()),
            Err(error) => {
                tracing::warn!(%error, "the storage signs no address: the service sends the file itself");
                None
            }
        }
    }

    fn path(&self, name: &str) -> Path {
        // A name that is a path stays as it is: escaped once, by whoever has made it.
        let name = Path::parse(name).unwrap_or_else(|_| Path::from(name));
        self.root.parts().chain(name.parts()).collect()
    }
}

/// A fault of the folder of a local storage.
fn local(error: std::io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "local", source: Box::new(error) }
}

/// What came of removing something, which need not have been there.
fn removed(result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(local(error).into()),
        _ => Ok(()),
    }
}

/// The names of the folders in `folder`, which need not be there.
fn folders(folder: &FilePath) -> std::io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let name = |entry: std::fs::DirEntry| entry.path().is_dir().then(|| entry.file_name().into_string().ok()).flatten();
    entries.filter_map(|entry| entry.map(name).transpose()).collect()
}

/// The files below `folder`, which need not be there.
fn walk(root: &FilePath, folder: &FilePath, files: &mut Vec<Listed>) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let (path, metadata) = match entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) {
            // Another worker has just renamed or removed it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            found => found?,
        };
        if metadata.is_dir() {
            walk(root, &path, files)?;
        } else if let Some(name) = path.strip_prefix(root).ok().and_then(FilePath::to_str) {
            let (bytes, modified) = (metadata.len(), metadata.modified()?.into());
            files.push(Listed { name: name.to_owned(), bytes, modified });
        }
    }
    Ok(())
}

/// Few and short retries: a job that fails is tried again later as a whole.
fn retries() -> RetryConfig {
    let backoff = BackoffConfig { max_backoff: Duration::from_secs(5), ..BackoffConfig::default() };
    RetryConfig { backoff, max_retries: 4, retry_timeout: Duration::from_secs(30) }
}

fn fault(location: &str, error: &dyn std::fmt::Display) -> Error {
    // Options may hold secrets.
    let shown = location.split('?').next().unwrap_or_default();
    Error::Environment(format!("the storage {shown} cannot be opened: {error}"))
}
