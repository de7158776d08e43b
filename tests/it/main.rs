//! The integration tests: the real router, real PostgreSQL, real HTTP. One binary, modules after those of `src`.

mod access;
mod app;
mod architecture;
mod azure;
mod bad_input;
mod crash;
mod datasets;
mod embedded;
mod ephemeral;
mod examples;
mod exports;
mod formats;
mod import;
mod ingest;
mod openapi;
mod process;
mod prototype;
mod proxy;
mod readers;
mod s3;
mod schedules;
mod sdk;
mod send;
mod submissions;
mod system;
