//! A TPM 2.0 in software, beside a machine of QEMU's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::process;
use crate::tool;

/// The program that is the TPM.
pub(super) const PROGRAM: &str = "swtpm";

/// How the TPM is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interface {
    /// By a FIFO, with all localities.
    Fifo,
    /// By a command-response buffer, which QEMU has for locality 0 only.
    Crb,
}

/// An authority that certifies the endorsement keys of TPMs.
#[derive(Debug)]
pub(crate) struct Authority(PathBuf);

impl Authority {
    /// One whose key and certificates will be in the folder `dir`.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).context("cannot make a folder for an authority")?;
        Ok(Self(dir.to_path_buf()))
    }

    /// Makes a TPM with a certificate, whose state is the folder `state`.
    pub(crate) fn certify(&self, state: &Path) -> Result<()> {
        fs::create_dir_all(state).context("cannot make a folder for the TPM")?;
        let (at, of) = (self.0.display(), state.display());
        for (name, text) in [
            (
                "localca.conf",
                format!(
                    "statedir = {at}\nsigningkey = {at}/key.pem\nissuercert = {at}/issuer.pem\n\
                     certserial = {at}/serial\n"
                ),
            ),
            ("localca.options", "--platform-model test\n".to_owned()),
            (
                "setup.conf",
                format!(
                    "create_certs_tool = swtpm_localca\n\
                     create_certs_tool_config = {of}/localca.conf\n\
                     create_certs_tool_options = {of}/localca.options\n"
                ),
            ),
        ] {
            fs::write(state.join(name), text).with_context(|| format!("cannot write {name}"))?;
        }
        let mut setup = Command::new("swtpm_setup");
        let _ = setup.args(["--tpm2", "--create-ek-cert", "--pcr-banks", "sha1,sha256"]);
        let _ = setup.arg("--tpmstate").arg(state);
        tool::run(setup.arg("--config").arg(state.join("setup.conf")))
    }

    /// Its certificates, in PEM: what it signs by, and the root.
    pub(crate) fn certificates(&self) -> [PathBuf; 2] {
        ["issuer.pem", "swtpm-localca-rootca-cert.pem"].map(|name| self.0.join(name))
    }
}

/// A TPM; killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Tpm(Child);

impl Tpm {
    /// Starts one by `command`, and waits until it listens at `socket`.
    pub(super) fn by(command: &mut Command, socket: &Path) -> Result<Self> {
        // One that was there before is nobody's.
        let _ = fs::remove_file(socket);
        let child = command.spawn().context("cannot start swtpm: `cargo xtask setup` installs it");
        let tpm = Self(child?);
        let start = Instant::now();
        while !is_listening(socket) {
            ensure!(start.elapsed() < Duration::from_secs(20), "swtpm makes no socket");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(tpm)
    }

    /// Starts one that was never used, for a machine in the folder `dir`.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        Self::listening(dir, "tpm.socket")
    }

    /// As [`Tpm::start`], but it listens at the socket called `name`, for someone who is between it and QEMU.
    pub(super) fn listening(dir: &Path, name: &str) -> Result<Self> {
        let state = dir.join("tpm");
        fs::create_dir(&state).context("cannot make a folder for the TPM")?;
        Self::serving(&state, dir, name)
    }

    /// Starts the one with the folder `state`, for a machine in the folder `dir`.
    pub(crate) fn of(state: &Path, dir: &Path) -> Result<Self> {
        Self::serving(state, dir, "tpm.socket")
    }

    /// As [`Tpm::of`], but it listens at the socket called `name`.
    pub(super) fn serving(state: &Path, dir: &Path, name: &str) -> Result<Self> {
        let socket = dir.join(name);
        let words = [
            "socket".to_owned(),
            "--tpm2".to_owned(),
            format!("--tpmstate=dir={}", state.display()),
            format!("--ctrl=type=unixio,path={}", socket.display()),
            format!("--log=file={},level=1", dir.join("tpm.log").display()),
        ];
        let mut command = process::bound_to_this(PROGRAM.as_ref());
        Self::by(command.args(words), &socket)
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
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
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
