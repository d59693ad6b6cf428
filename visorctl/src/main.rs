#![doc = include_str!("../README.md")]

mod attest;
mod audit;
mod check;
mod cli;
mod docs;
mod failure;
#[cfg(test)]
mod fake;
mod hardware;
mod hex;
mod lock;
mod make;
mod port;
mod reason;
mod receipt;
mod reply;
mod run;
mod status;
mod submit;
#[cfg(test)]
mod tests;
mod visor;
mod vms;

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::failure::Exit;

fn main() -> ExitCode {
    let words: Vec<OsString> = env::args_os().collect();
    let exit = match Cli::try_parse_from(&words) {
        Ok(cli) => run::run(&cli, hardware::open, &mut io::stdout().lock(), &mut io::stderr()),
        Err(error) => {
            let exit = explain(&error);
            if exit == Exit::Usage && words.iter().any(|word| word == "--json") {
                // Where standard output is closed, the exit code must do.
                let _ = writeln!(io::stdout(), "{}", reply::usage(&error));
            }
            exit
        }
    };
    ExitCode::from(exit.code())
}

/// What clap has to say: help, the version, or what is wrong with the words.
fn explain(error: &clap::Error) -> Exit {
    // As above.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage } else { Exit::Good }
}
