//! `cargo xtask test`: the emulator suite.

use std::process::ExitCode;
use std::thread;

use anyhow::Result;
use clap::Args;

use crate::packages::{self, Need};
use crate::suite::{self, Images, Plan};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Tests or groups of them; all when none is named
    name: Vec<String>,
    /// Print the names instead of running the tests
    #[arg(long)]
    list: bool,
    /// How many run at once [default: one for each CPU]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Keep the boot images of tests that passed
    #[arg(long)]
    keep: bool,
}

/// Runs or lists tests.
pub(crate) fn test(options: Options) -> Result<ExitCode> {
    if options.list {
        let mut tests = suite::tests();
        if options.name.is_empty() {
            tests.iter_mut().for_each(|test| test.on_demand = false);
        }
        for test in suite::select(tests, &options.name)? {
            println!("{}", test.name);
        }
        return Ok(ExitCode::SUCCESS);
    }
    packages::install(&[Need::Build, Need::Image, Need::Bochs, Need::Qemu])?;
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan {
        names: options.name,
        jobs: options.jobs.unwrap_or(cpus),
        images: if options.keep { Images::Kept } else { Images::Removed },
    };
    let tally = suite::run(suite::tests(), &plan)?;
    Ok(if tally.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
