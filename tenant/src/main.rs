#![doc = include_str!("../README.md")]

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use tenant::cli::Cli;
use tenant::failure::Exit;
use tenant::{reply, run};

fn main() -> ExitCode {
    let words: Vec<OsString> = env::args_os().collect();
    // A clock before 1970 makes every challenge one of the future.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let exit = match Cli::try_parse_from(&words) {
        Ok(cli) => run::run(&cli, now, &mut io::stdout().lock(), &mut io::stderr()),
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
    if error.use_stderr() { Exit::Usage } else { Exit::Trusted }
}
