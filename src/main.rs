//! The command line: parses it, runs it, ends with its exit code.

use std::process::ExitCode;

use clap::Parser;
use nvd_support_car::cli::Cli;

fn main() -> ExitCode {
    nvd_support_car::cli::run(Cli::parse())
}
