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
mod ingest;
mod labkey_client;
mod labkey_server;
mod labkey_stand_in;
mod openapi;
mod process;
mod proxy;
mod python;
mod readers;
mod s3;
mod schedules;
mod send;
mod submissions;
mod system;
