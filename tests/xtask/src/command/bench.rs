//! `cargo xtask bench`: figures, on the terminal and as JSON.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use crate::bench::{self, Figure};
use crate::packages::{self, Need};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Benches to run; all when none is named
    name: Vec<String>,
    /// Write the figures to this file, as one array
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs benches.
pub(crate) fn bench(options: &Options) -> Result<()> {
    packages::install(&[Need::Build, Need::Image, Need::Bochs])?;
    let figures = bench::run(&options.name)?;
    for figure in &figures {
        println!("{}", figure.line());
    }
    if let Some(file) = &options.json {
        let array: Value = figures.iter().map(Figure::json).collect();
        fs::write(file, format!("{array:#}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
