#![doc = include_str!("../docs/ARCHITECTURE.md")]
#![warn(missing_docs)]

// Ground: what everything may use.
pub mod config;
pub mod error;
pub mod secrets;
pub mod telemetry;
pub mod tls;

// Parts: what the data is, where it lives.
pub mod dataset;
pub mod db;
pub mod storage;

// The handle, and the work that is done with it.
pub mod app;
pub mod convert;
pub mod export;
pub mod import;
pub mod ingest;
pub mod labkey;
pub mod lake;
pub mod send;

// Entry.
pub mod cli;
pub mod http;
pub mod jobs;
pub mod serve;

pub use error::{Error, Result};
