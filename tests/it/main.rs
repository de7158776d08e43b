//! The integration tests: the real router, real PostgreSQL, real HTTP. One binary, modules after those of `src`.

mod access;
mod app;
mod architecture;
mod bad_input;
mod crash;
mod datasets;
mod embedded;
mod ephemeral;
mod examples;
mod export_jobs;
mod exports;
mod extract_runs;
mod extracts;
mod formats;
mod ingest;
mod large;
mod notices;
mod openapi;
mod process;
mod proxy;
mod readers;
mod s3;
mod schedules;
mod send;
mod submissions;
mod system;
