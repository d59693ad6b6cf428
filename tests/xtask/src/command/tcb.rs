//! `cargo xtask tcb`: the size of the trusted computing base against its budget.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::tcb::Tcb;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the figures; fails when a rule is broken.
pub(crate) fn tcb(options: &Options) -> Result<ExitCode> {
    let tcb = Tcb::measure()?;
    if options.json {
        println!("{:#}", tcb.json());
    } else {
        println!("{}", tcb.table());
    }
    for violation in tcb.violations() {
        eprintln!("xtask: tcb: {violation}");
    }
    Ok(if tcb.violations().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
