//! `cargo xtask`: builds the visor and its guests, boots them in emulators, tests and measures.

mod bench;
mod build;
mod command;
mod image;
mod machine;
mod packages;
mod paths;
mod rustc;
mod suite;
mod tcb;
mod tool;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = rustc::run_if_asked() {
        return code;
    }
    match command::dispatch() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
