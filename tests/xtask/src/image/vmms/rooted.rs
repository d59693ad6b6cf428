//! VMs whose root file system is on a sealed disk: the disk as its tenant makes it, and a host that runs them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{MADE, MADE_WORDS, Parts, SEALED, add_modules, ext4, finish, host, parts, written};
use crate::image::programs::Programs;
use crate::{build, packages, tool};

/// Sourced by the host's script.
const ROOTED: &str = include_str!("rooted.sh");

/// What the VMs have on their disk beside programs.
const FILES: [(&str, &str); 3] = [
    ("sbin/init", include_str!("guest/rooted")),
    ("etc/bank.sql", include_str!("guest/bank.sql")),
    ("etc/audit.sql", include_str!("guest/audit.sql")),
];

/// Bytes of the file system, with which the disk begins.
const FILE_SYSTEM: usize = 20 << 20;
/// Bytes behind it: of these the tenant has written half.
const REST: usize = 2 << 20;

/// The VMs: folder, and what they do with their lives.
const VMS: [(&str, &str); 4] = [
    ("vm", "copies,patterns,trims,random,bank,audit,leave"),
    ("vm-bank", "bank"),
    ("vm-next", "replayed,audit,bank"),
    ("vm-last", "replayed,audit,leave"),
];

/// The disk, beside the initial RAM file system that is made with it.
#[derive(Debug)]
pub(crate) struct Disk {
    /// What there is on it: files of the file system.
    pub(crate) tree: PathBuf,
    /// As the tenant has made it.
    pub(crate) plain: PathBuf,
    /// What it is sealed with.
    pub(crate) key: PathBuf,
    /// What the host gets.
    pub(crate) sealed: PathBuf,
}

impl Disk {
    /// The one that belongs to `made`.
    pub(crate) fn of(made: &Path) -> Self {
        let parts = made.with_extension("parts");
        let [tree, plain, key, sealed] =
            ["tree", "plain", "disk.key", "sealed"].map(|name| parts.join(name));
        Self { tree, plain, key, sealed }
    }

    /// What is behind the file system of a plain disk.
    pub(crate) fn rest(plain: &[u8]) -> &[u8] {
        plain.get(FILE_SYSTEM..).unwrap_or_default()
    }

    /// Makes the disk, as a tenant does it.
    fn make(&self, random_io: &Path) -> Result<()> {
        self.plant(random_io)?;
        let _ = ext4(&self.tree, &self.plain, FILE_SYSTEM)?;
        let plain = File::options().write(true).open(&self.plain).context("no disk")?;
        let rest: Vec<u8> = super::half_of_disk().into_iter().take(REST / 2).collect();
        plain.write_all_at(&rest, u64::try_from(FILE_SYSTEM)?).context("cannot write a disk")?;
        // The other half was never written.
        plain.set_len(u64::try_from(FILE_SYSTEM + REST)?).context("cannot extend a disk")?;
        let tenant = build::tenant()?;
        tool::run(Command::new(&tenant).args(["image", "key"]).arg(&self.key))?;
        let mut seal = Command::new(&tenant);
        let _ = seal.args(["image", "seal", "--key"]).args([&self.key, &self.plain, &self.sealed]);
        tool::run(&mut seal)
    }

    /// Puts together what is in the file system.
    fn plant(&self, random_io: &Path) -> Result<()> {
        let folders = ["dev", "etc", "proc", "sbin", "sys", "tmp"];
        let mut programs = Programs::of(&packages::works()?);
        programs.program("usr/bin/sqlite3")?;
        programs.add("bin/random-io", random_io);
        programs.add("bin/busybox", &packages::vmms()?.join("bin/busybox"));
        programs.copy(&self.tree, &folders)?;
        FILES.iter().try_for_each(|(name, text)| written(&self.tree, name, text).map(drop))
    }
}

/// An initial RAM file system in which QEMU runs such VMs, of which `random_io` is a program, made at `out`.
pub(crate) fn made(of: &Parts, random_io: &Path, out: &Path) -> Result<PathBuf> {
    let parts = parts(out)?;
    let disk = Disk::of(out);
    disk.make(random_io)?;
    let mut programs = host(&packages::vmms()?, &parts, MADE)?;
    programs.program("usr/bin/qemu-system-x86_64")?;
    // A PC asks for it, though nothing runs it.
    programs.file("usr/share/qemu/kvmvapic.bin")?;
    add_modules(&mut programs, &of.modules)?;
    programs.add("visorctl", &of.tool);
    programs.add("rooted.sh", &written(&parts, "rooted.sh", ROOTED)?);
    add_vms(&mut programs, (of, &disk), &parts)?;
    finish(&programs, out)
}

/// Adds the VMs, made in folders of `parts`.
fn add_vms(programs: &mut Programs, (of, disk): (&Parts, &Disk), parts: &Path) -> Result<()> {
    let sealed = format!("0,{},{}", disk.key.display(), disk.sealed.display());
    for (name, life) in VMS {
        let line = format!(
            "{MADE_WORDS} init.do=root life={life} transfers=40 first={FILE_SYSTEM} bytes={REST}"
        );
        let words = ["--cmdline", &line, "--memory", "64M", "--virtio", "1", SEALED, &sealed];
        let vm = parts.join(name);
        build::linux_vm(&of.tool, [&of.kernel, &of.initrd], &words, &vm)?;
        for file in ["ticket", "stub.rom", "qemu.args"] {
            programs.add(&format!("{name}/{file}"), &vm.join(file));
        }
    }
    // It is the same for all.
    programs.add("vm/image.bin", &parts.join("vm/image.bin"));
    Ok(())
}
