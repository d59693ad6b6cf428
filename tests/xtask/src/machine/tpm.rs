//! A TPM 2.0 in software, beside a machine of QEMU's.

use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::process;

/// The program that is the TPM.
const PROGRAM: &str = "swtpm";

/// How the TPM is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interface {
    /// By a FIFO, with all localities.
    Fifo,
    /// By a command-response buffer, which QEMU has for locality 0 only.
    Crb,
}

/// A TPM that was never used; killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Tpm(Child);

impl Tpm {
    /// Starts one, with its state in the folder `dir`.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        Self::listening(dir, "tpm.socket")
    }

    /// As [`Tpm::start`], but it listens at the socket called `name`, for someone who is between it and QEMU.
    pub(super) fn listening(dir: &Path, name: &str) -> Result<Self> {
        let socket = dir.join(name);
        let state = dir.join("tpm");
        std::fs::create_dir(&state).context("cannot make a folder for the TPM")?;
        let words = [
            "socket".to_owned(),
            "--tpm2".to_owned(),
            format!("--tpmstate=dir={}", state.display()),
            format!("--ctrl=type=unixio,path={}", socket.display()),
            format!("--log=file={},level=1", dir.join("tpm.log").display()),
        ];
        let child = process::bound_to_this(PROGRAM.as_ref()).args(words).spawn();
        let tpm = Self(child.context("cannot start swtpm: `cargo xtask setup` installs it")?);
        let start = Instant::now();
        while !is_listening(&socket) {
            ensure!(start.elapsed() < Duration::from_secs(20), "swtpm makes no socket");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(tpm)
    }

    /// What QEMU, in the TPM's folder, is told to have it as `interface`.
    pub(crate) fn arguments(interface: Interface) -> String {
        let device = match interface {
            Interface::Fifo => "tpm-tis",
            Interface::Crb => "tpm-crb",
        };
        format!(
            "-chardev socket,id=tpm-line,path=tpm.socket -tpmdev emulator,id=tpm,chardev=tpm-line \
             -device {device},tpmdev=tpm"
        )
    }
}

/// Whether there is a socket at `path` that takes connections: one that was only made refuses them.
fn is_listening(path: &Path) -> bool {
    /// `__SO_ACCEPTCON` in `/proc/net/unix`.
    const LISTENS: &str = "00010000";
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let path = path.display().to_string();
    sockets.lines().any(|line| line.ends_with(&path) && line.contains(LISTENS))
}

impl Drop for Tpm {
    fn drop(&mut self) {
        // Both fail only when it has ended already, as it does when QEMU does.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
