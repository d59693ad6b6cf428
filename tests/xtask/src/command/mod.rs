//! The commands of `cargo xtask`.

mod run;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Builds, boots, tests and measures the visor")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a host on the visor and show its serial line
    Run(run::Options),
}

/// Does what the command line asks for.
pub(crate) fn dispatch() -> Result<ExitCode> {
    match Xtask::parse().command {
        Command::Run(options) => run::run(&options),
    }
}
