//! The commands of `cargo xtask`.

mod bench;
mod build;
mod demo;
mod reproduce;
mod run;
mod setup;
mod tcb;
mod test;

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
    /// Install, fetch and build what the other commands need
    Setup(setup::Options),
    /// Build the visor and the guests
    Build,
    /// Build the visor in another folder as well, and compare the two bit by bit
    Reproduce,
    /// Run the tests, each a boot in an emulator
    Test(test::Options),
    /// Measure the trusted computing base against its budget
    Tcb(tcb::Options),
    /// Measure what the visor costs
    Bench(bench::Options),
    /// Watch unmodified hosts on the visor, and attacks on a VM without and with a ticket
    Demo(demo::Options),
    /// Boot a host on the visor and show its serial line
    Run(run::Options),
}

/// Does what the command line asks for.
pub(crate) fn dispatch() -> Result<ExitCode> {
    match Xtask::parse().command {
        Command::Setup(options) => setup::setup(&options).map(|()| ExitCode::SUCCESS),
        Command::Build => build::build().map(|()| ExitCode::SUCCESS),
        Command::Reproduce => reproduce::reproduce().map(|()| ExitCode::SUCCESS),
        Command::Test(options) => test::test(options),
        Command::Tcb(options) => tcb::tcb(&options),
        Command::Bench(options) => bench::bench(&options).map(|()| ExitCode::SUCCESS),
        Command::Demo(options) => demo::demo(&options),
        Command::Run(options) => run::run(&options),
    }
}
