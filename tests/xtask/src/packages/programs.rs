//! The distribution's programs that run inside the machines, with all that they depend on.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{apt_install, cached, key, refresh_lists};
use crate::tool;

/// The packages whose programs run VMs, and the shell around them.
const VMMS: [&str; 4] = ["busybox-static", "qemu-system-x86", "qemu-system-xen", "xen-utils-4.17"];

/// The packages whose programs work in VMs, and what a compiler compiles.
const WORKS: [&str; 4] = ["libc6-dev", "libstb-dev", "sqlite3", "tcc"];

/// The packages by which a host talks to its TPM, also through any program that carries bytes, and the shell around them.
const TPM_TOOLS: [&str; 3] = ["busybox-static", "libtss2-tcti-cmd0", "tpm2-tools"];

/// The folder of tpm2-tools and busybox.
pub(crate) fn tpm_tools() -> Result<PathBuf> {
    complete(&TPM_TOOLS)
}

/// The folder of QEMU, `xl` and busybox.
pub(crate) fn vmms() -> Result<PathBuf> {
    complete(&VMMS)
}

/// The folder of the compiler and the database.
pub(crate) fn works() -> Result<PathBuf> {
    complete(&WORKS)
}

/// A folder with the files of `wanted` and of every package that they depend on, as they would
/// lie below `/`.
fn complete(wanted: &[&str]) -> Result<PathBuf> {
    refresh_lists(wanted)?;
    let mut simulation = Command::new("apt-get");
    // Against an empty list of installed packages, so that everything is missing.
    let _ = simulation.args(["-o", "Dir::State::status=/dev/null"]);
    let simulated = tool::output(simulation.args(apt_install("-s", wanted)))?;
    let packages = installations(&simulated);
    ensure!(!packages.is_empty(), "apt-get would install nothing for {}", wanted.join(" "));
    let name = format!("programs_{}", key(&[packages.join(" ").as_bytes()]));
    cached(&name, |dir| {
        eprintln!("xtask: fetching {} packages for {}", packages.len(), wanted.join(" "));
        let mut download = Command::new("apt-get");
        let _ = download.args(["download", "-qq"]).args(&packages).current_dir(dir);
        tool::run(&mut download)?;
        for entry in fs::read_dir(dir).context("cannot list the fetched packages")? {
            let path = entry.context("cannot list the fetched packages")?.path();
            if path.extension().is_some_and(|kind| kind == "deb") {
                tool::run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(dir))?;
                fs::remove_file(&path).context("cannot remove a package file")?;
            }
        }
        Ok(())
    })
}

/// The packages, as `name=version`, that `apt-get -s` would install.
fn installations(simulated: &str) -> Vec<String> {
    let installed = simulated.lines().filter_map(|line| line.strip_prefix("Inst "));
    let named = installed.filter_map(|rest| {
        let (name, rest) = rest.split_once(" (")?;
        let version = rest.split_whitespace().next()?;
        Some(format!("{name}={version}"))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installations_are_read_with_their_versions() {
        let text = "Inst libc6 (2.36-9 Debian:12 [amd64]) []\nConf libc6 (2.36-9 Debian:12)\n";
        assert_eq!(installations(text), ["libc6=2.36-9"]);
    }
}
