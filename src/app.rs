//! The handle on everything that work needs: built once, cloned cheaply, given to HTTP and to the command line.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sqlx::PgPool;
use tokio::sync::{Notify, OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::dataset::Datasets;
use crate::db;
use crate::db::buffers::Buffers;
use crate::db::group::Group;
use crate::error::Result;
use crate::labkey::Labkey;
use crate::storage::Storage;

/// The parts of a running service.
#[derive(Clone)]
pub struct App {
    /// Connections to PostgreSQL.
    pub pool: PgPool,
    /// The effective configuration.
    pub config: Arc<Config>,
    /// What the data are.
    pub datasets: Arc<Datasets>,
    /// Bounds on uploads.
    pub ingest: IngestBounds,
    /// Where exports are written.
    pub storage: Storage,
    /// Where rows are delivered to, if anywhere.
    pub labkey: Option<Arc<Labkey>>,
    /// Wakes the workers of this process that wait when it has made a job.
    pub new_job: Arc<Notify>,
    /// What signs download links, once it is known.
    pub link_key: Arc<OnceCell<Vec<u8>>>,
    /// Whether the database is up to date.
    pub is_ready: Arc<AtomicBool>,
    /// Ends what would otherwise follow something for longer than the service is to run.
    pub stopping: CancellationToken,
}

/// How many uploads there may be, and those that are stored together.
#[derive(Clone)]
pub struct IngestBounds {
    /// Bodies that are decoded and copied at the same time.
    pub places: Arc<Semaphore>,
    /// How many places there are.
    pub concurrency: usize,
    /// Uploads that wait or run.
    pub queue: Arc<Semaphore>,
    /// Uploads that hold a connection while the rest of their body is still to come.
    pub arriving: Arc<Semaphore>,
    /// Small uploads that are complete, and wait to be stored together.
    pub group: Arc<Group>,
    /// What rows are encoded into.
    pub buffers: Arc<Buffers>,
}

impl IngestBounds {
    /// Whether an upload is being decoded or copied right now.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.places.available_permits() < self.concurrency
    }
}

impl App {
    /// The parts over a database. It neither connects nor migrates.
    ///
    /// # Errors
    /// Mistakes in dataset definitions, a database URL that is none, a storage that cannot be opened, LabKey lists that
    /// cannot be used.
    pub fn new(config: Config, database_url: &str) -> Result<Self> {
        let datasets = Datasets::load(config.datasets.dir.as_deref()).map_err(crate::Error::Definitions)?;
        let pool = db::pool(database_url, &config.database)?;
        let places = match config.ingest.concurrency {
            // One more than cores: while one COPY waits for the disk, another computes.
            0 => std::thread::available_parallelism().map_or(2, std::num::NonZero::get) + 1,
            places => places,
        };
        let ingest = IngestBounds {
            places: Arc::new(Semaphore::new(places)),
            concurrency: places,
            queue: Arc::new(Semaphore::new(config.ingest.queue)),
            arriving: Arc::new(Semaphore::new((config.database.max_connections as usize / 4 * 3).max(1))),
            group: Arc::default(),
            buffers: Arc::default(),
        };
        let storage = Storage::open(&config.export_storage())?;
        let labkey = Labkey::open(&config.labkey, &datasets)?;
        Ok(Self {
            pool,
            config: Arc::new(config),
            datasets: Arc::new(datasets),
            ingest,
            storage,
            labkey: labkey.map(Arc::new),
            new_job: Arc::default(),
            link_key: Arc::default(),
            is_ready: Arc::default(),
            stopping: CancellationToken::new(),
        })
    }

    /// Tells the workers of this process that there is a job.
    pub fn wake_workers(&self) {
        self.new_job.notify_waiters();
        // One may be between looking and waiting.
        self.new_job.notify_one();
    }

    /// Brings the database up to date: the service's own tables, then those of the datasets.
    ///
    /// # Errors
    /// A database out of reach, newer than this service, or with columns of other types.
    pub async fn prepare(&self) -> Result<()> {
        db::migrate(&self.pool).await?;
        db::tables::ensure(&self.pool, &self.datasets).await
    }
}
