//! A TPM in software that several programs use in turn: a machine by its COM2, and others.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::process;
use super::tpm::{PROGRAM, Tpm};
use crate::tool;

/// The TPM. It is off at first.
#[derive(Debug)]
pub(crate) struct Shared {
    state: PathBuf,
    running: Option<Tpm>,
}

impl Shared {
    /// The one with the folder `state`.
    pub(crate) fn of(state: &Path) -> Self {
        Self { state: state.to_path_buf(), running: None }
    }

    /// Switches it off, in order, and on: its PCRs are as after a reset of the machine, its keys as before.
    pub(crate) fn restart(&mut self) -> Result<()> {
        if self.running.is_some() {
            tool::run(&mut self.tool("tpm2_shutdown"))?;
            self.running = None;
        }
        let at = self.state.display();
        let mut command = process::bound_to_this(PROGRAM.as_ref());
        let _ = command
            .args(["socket", "--tpm2", "--flags", "startup-clear"])
            // For the visor's locality: it has nothing but commands.
            .args(["--locality", "allow-set-locality"])
            .args([format!("--tpmstate=dir={at}"), format!("--log=file={at}/tpm.log,level=1")])
            .arg(format!("--server=type=unixio,path={}", self.socket().display()))
            .arg(format!("--ctrl=type=unixio,path={}.ctrl", self.socket().display()));
        self.running = Some(Tpm::by(&mut command, &self.socket())?);
        Ok(())
    }

    /// Where it takes commands.
    pub(crate) fn socket(&self) -> PathBuf {
        self.state.join("socket")
    }

    /// A program that finds it as tpm2-tools do.
    pub(crate) fn tool(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let _ = command.env("TPM2TOOLS_TCTI", format!("swtpm:path={}", self.socket().display()));
        command
    }
}
