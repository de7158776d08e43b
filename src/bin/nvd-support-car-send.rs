//! The sending commands alone: the same code and options as in the whole program, a fraction of its size.

use std::process::ExitCode;

use clap::Parser;
use nvd_support_car::cli::Sender;

fn main() -> ExitCode {
    nvd_support_car::cli::run_sender(Sender::parse())
}
