//! `tickets/…`: what `visorctl` makes of kernels boots, without any visor under it, and `tenant` makes the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};

use super::{FORBIDDEN, Rig, Script, Test, Then};
use crate::machine::{self, End};
use crate::{build, paths, tool};

/// Processor time for a kernel that unpacks itself by QEMU's software.
const LIMIT: Duration = Duration::from_secs(150);
/// Where a ticket has its secret.
const SECRET: std::ops::Range<usize> = 32..64;
/// An offset in the ROM where nothing lies. It is once more at 0xf8000.
const BAIT_AT: usize = 0x8000;
/// A description of a machine (SMBIOS 2.8, section 5.2.1): the entry point, and at 0xf8020 a table that ends.
const BAIT: &[u8; 38] = b"_SM_\x79\x1f\x02\x08\0\0\0\0\0\0\0\0\
                          _DMI_\xb2\x06\0\x20\x80\x0f\0\x01\0\0\0\
                          \x7f\x04\0\0\0\0";

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        Test::new("tickets/linux-image-boots", 4, |rig| boots(rig, &rig.kit.small()?)),
        Test::new("tickets/stock-linux-image-boots", 40, |rig| boots(rig, &rig.kit.stock()?))
            .on_demand(),
        Test::new("tickets/tenant-makes-the-same", 4, |rig| {
            ["qemu", "q35", "xen"].iter().try_for_each(|machine| makes_the_same(rig, machine))
        }),
    ]
}

/// `tenant measure` and `visorctl ticket linux` make the same VM: each file, but for the secret in its ticket.
fn makes_the_same(rig: &Rig<'_>, machine: &str) -> Result<()> {
    let programs = [(build::tenant()?, "measure"), (build::visorctl()?, "ticket linux")];
    let made = programs.iter().map(|(program, command)| {
        // In a folder of the same name: Xen's configuration has it.
        let dir = rig.dir.join(machine);
        paths::emptied(&dir)?;
        let mut make = Command::new(program);
        let _ = make.args(command.split(' ')).args(["--machine", machine, "--virtio", "2"]);
        let _ = make.args(["--vm", "000102030405060708090a0b0c0d0e0f", "--kernel"]);
        let _ = make.arg(rig.kit.small()?).arg("--initrd").arg(rig.kit.guests()?.initrd);
        tool::run(make.arg("--output-dir").arg(&dir))?;
        files(&dir)
    });
    let [mut ours, mut theirs] = <[_; 2]>::try_from(made.collect::<Result<Vec<_>>>()?)
        .ok()
        .context("two programs make two VMs")?;
    let secrets = [&mut ours, &mut theirs].map(|files| {
        let ticket = files.get_mut("ticket")?;
        let checksum = ticket.len().checked_sub(32)?;
        ticket.truncate(checksum);
        Some(ticket.drain(SECRET).collect::<Vec<u8>>())
    });
    ensure!(secrets[0].is_some() && secrets[0] != secrets[1], "both have the same secret");
    ensure!(ours.len() == 4, "{machine}: {} files", ours.len());
    for (name, content) in &ours {
        ensure!(theirs.get(name) == Some(content), "{machine}: {name} differs");
    }
    ensure!(ours.len() == theirs.len(), "{machine}: other files");
    Ok(())
}

/// The files of a folder.
fn files(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let entries = fs::read_dir(dir).context("nothing was made")?;
    let file = |entry: io::Result<fs::DirEntry>| {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        Ok((name.to_owned(), fs::read(&path)?))
    };
    entries.map(file).collect::<io::Result<_>>().context("cannot read what was made")
}

/// Has `visorctl` make a VM of `kernel` in the folder `dir`.
fn make(rig: &Rig<'_>, kernel: &Path, dir: &Path) -> Result<()> {
    paths::emptied(dir)?;
    let of = [kernel, &rig.kit.guests()?.initrd];
    build::linux_vm(&build::visorctl()?, of, &["--cmdline", "console=ttyS0 init.do="], dir)
}

/// A VM of `kernel` gets to userspace on the machine that `visorctl` describes, but by software, and does
/// not touch the ROM where it is once more.
fn boots(rig: &Rig<'_>, kernel: &Path) -> Result<()> {
    let dir = rig.dir.join("vm");
    make(rig, kernel, &dir)?;
    lay_bait(&dir.join("stub.rom"))?;
    let text = fs::read_to_string(dir.join("qemu.args")).context("no arguments for QEMU")?;
    let arguments: Vec<&str> = text.lines().map(by_software).collect();
    ensure!(arguments.contains(&"tcg"), "the arguments name no accelerator");
    let words = "acpi=off pci=off nopv efi=noruntime console=ttyS0 init.do=";
    let expected = [
        &format!("*Command line: {words}"),
        "*found SMP MP-table at *",
        "*init: userspace reached*",
        "*init: done",
    ]
    .map(str::to_owned);
    let forbidden: Vec<String> =
        FORBIDDEN.iter().chain(&["*SMBIOS*present*"]).map(|line| (*line).to_owned()).collect();
    let mut script = Script::new(&expected, &forbidden, Then::Stop);
    let outcome = machine::described(&arguments, &dir, LIMIT, &mut script)?;
    rig.count(&outcome);
    if let Err(wrong) = script.verdict() {
        bail!("{wrong} (the run ended: {})", outcome.end);
    }
    ensure!(outcome.end == End::Stopped, "the run ended: {}", outcome.end);
    Ok(())
}

/// The argument for a machine without KVM, with its serial line in a file.
fn by_software(argument: &str) -> &str {
    match argument {
        "kvm" => "tcg",
        "host" => "max",
        "stdio" => "file:serial.log",
        other => other,
    }
}

/// Puts a description of a machine into the ROM, which a kernel tells of if it looks there.
fn lay_bait(rom: &Path) -> Result<()> {
    let mut content = fs::read(rom).context("there is no ROM")?;
    let place = content.get_mut(BAIT_AT..BAIT_AT + BAIT.len()).context("the ROM is too short")?;
    ensure!(place.iter().all(|byte| *byte == 0), "there is something at {BAIT_AT:#x} of the ROM");
    place.copy_from_slice(BAIT);
    fs::write(rom, content).context("cannot write the ROM")
}
