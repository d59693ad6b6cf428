//! Machines in QEMU: by software, for what needs no VMX, or by KVM where VMX really nests.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::process::{self, Channels, Finish, Patience};
use super::serial::Watch;
use super::{End, Image, Loader, Machine, Outcome, Payload, Runner, TripleFault};
use crate::image::iso::{self, Firmware, Protocol};
use crate::packages;

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE.fd";
const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS.fd";

/// Asks QEMU for its events, which tell a power-off from a reset.
const GREETING: &str = "{\"execute\": \"qmp_capabilities\"}\n";

/// QEMU's status for its own errors; `isa-debug-exit` gives an odd status above it.
const ERROR: i32 = 1;

/// Whether this machine lets a guest of KVM use VMX. The device file alone does not say so: there
/// are software stand-ins for it.
pub(crate) fn kvm_nests() -> bool {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    Path::new("/dev/kvm").exists()
        && has_vmx(&read("/proc/cpuinfo"))
        && matches!(read("/sys/module/kvm_intel/parameters/nested").trim(), "Y" | "1")
}

fn has_vmx(cpuinfo: &str) -> bool {
    let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.any(|line| line.split_whitespace().any(|flag| flag == "vmx"))
}

/// Boots `payload` in QEMU; see [`super::boot`].
pub(super) fn boot(
    machine: &Machine,
    payload: &Payload,
    dir: &Path,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    ensure!(
        machine.runner != Runner::QemuKvm || kvm_nests(),
        "no nested VMX here: it takes /dev/kvm, vmx in /proc/cpuinfo and kvm_intel.nested=Y"
    );
    let mut command = qemu(dir);
    let _ = command.args(hardware(machine));
    load(&mut command, machine.loader, payload, dir)?;
    let limit = Duration::from_secs(machine.seconds).saturating_mul(machine.cpus);
    follow(&mut command, dir, limit, watch)
}

/// Runs QEMU with nothing but `arguments`, in the folder `dir` that has the files they name. They send the
/// serial line to the file `serial.log`. `limit` is of the processor's time.
pub(crate) fn described(
    arguments: &[&str],
    dir: &Path,
    limit: Duration,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    follow(qemu(dir).args(arguments), dir, limit, watch)
}

fn qemu(dir: &Path) -> Command {
    let mut command = process::bound_to_this("qemu-system-x86_64".as_ref());
    let _ = command.current_dir(dir);
    command
}

/// Runs `command` in `dir` to its end, or to the `limit` of its processor time.
fn follow(
    command: &mut Command,
    dir: &Path,
    limit: Duration,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    let (serial, log) = (dir.join("serial.log"), dir.join("qemu.out"));
    // QEMU's clock is the real one unless it counts instructions, which several CPUs cannot do.
    // Its processor time stands in for it: that does not depend on what else the machine does.
    let patience = Patience {
        cpu: limit,
        wall: limit.saturating_add(Duration::from_secs(20)).saturating_mul(10),
    };
    let channels = Channels { input: GREETING, log: &log, serial: &serial };
    let (finish, cpu) = process::follow(command, channels, patience, watch)?;
    let end = match finish {
        Finish::Stopped => End::Stopped,
        Finish::Cpu => End::Deadline,
        Finish::Wall => End::WallClock,
        Finish::Exited(status) => {
            let read = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
            end(status, &read("qemu.out"), &read("resets.log"))
        }
    };
    Ok(Outcome { end, serial, cpu })
}

/// The arguments for the machine itself.
fn hardware(machine: &Machine) -> Vec<String> {
    let (accelerator, cpu) = match machine.runner {
        Runner::QemuKvm => ("kvm", "host"),
        Runner::QemuTcg | Runner::Bochs => ("tcg", "max"),
    };
    let reboot = match machine.triple_fault {
        TripleFault::Ends => "shutdown",
        TripleFault::Resets => "reset",
    };
    let words = format!(
        "-accel {accelerator} -cpu {cpu} -m {} -smp {} -display none -net none -boot d \
         -serial file:serial.log -action reboot={reboot} -d cpu_reset -D resets.log \
         -device isa-debug-exit,iobase=0xf4,iosize=4 \
         -qmp stdio",
        machine.memory_mib, machine.cpus
    );
    words.split_whitespace().map(str::to_owned).collect()
}

/// The arguments, for [`described`], that have `loader` put `payload` before the machine; what that takes is
/// made in `dir`.
pub(crate) fn loading(loader: Loader, payload: &Payload, dir: &Path) -> Result<Vec<String>> {
    let mut command = Command::new("qemu");
    load(&mut command, loader, payload, dir)?;
    let words = command.get_args().map(|word| word.to_str().map(str::to_owned));
    words.collect::<Option<_>>().context("a file has no plain path")
}

/// As [`loading`], by GRUB 2 and BIOS, which executes `first` before.
pub(crate) fn loading_after(first: &str, payload: &Payload, dir: &Path) -> Result<Vec<String>> {
    let iso = iso::grub_after(first, payload, dir)?;
    Ok(vec!["-cdrom".to_owned(), iso.to_str().context("a file has no plain path")?.to_owned()])
}

/// Adds the arguments that put `payload` before the machine.
fn load(command: &mut Command, loader: Loader, payload: &Payload, dir: &Path) -> Result<()> {
    let bios = Firmware::Bios;
    let iso = match loader {
        Loader::Direct => {
            direct(command, payload);
            return Ok(());
        }
        Loader::Isolinux => iso::isolinux(payload, dir, iso::Messages::Screen)?,
        Loader::Grub1 => iso::grub(payload, dir, Protocol::Multiboot1, bios)?,
        Loader::Grub2 => iso::grub(payload, dir, Protocol::Multiboot2, bios)?,
        Loader::Tboot => iso::grub(&under_tboot(payload)?, dir, Protocol::Multiboot1, bios)?,
        Loader::GrubEfi => {
            let variables = dir.join("variables.fd");
            let _ = fs::copy(OVMF_VARIABLES, variables).context("cannot copy OVMF's variables")?;
            let code = format!("if=pflash,format=raw,unit=0,readonly=on,file={OVMF_CODE}");
            let variables = "if=pflash,format=raw,unit=1,file=variables.fd";
            let _ = command.args(["-drive", &code, "-drive", variables]);
            iso::grub(payload, dir, Protocol::Multiboot2, Firmware::Efi)?
        }
    };
    let _ = command.arg("-cdrom").arg(iso);
    Ok(())
}

fn direct(command: &mut Command, payload: &Payload) {
    match payload {
        Payload::Linux { kernel, initrd } => {
            let _ = command.arg("-kernel").arg(&kernel.file).args(["-append", &kernel.words]);
            if let Some(initrd) = initrd {
                let _ = command.arg("-initrd").arg(initrd);
            }
        }
        Payload::Multiboot { kernel, modules } => {
            let _ = command.arg("-kernel").arg(&kernel.file).args(["-append", &kernel.words]);
            if !modules.is_empty() {
                let modules: Vec<String> = modules.iter().map(module).collect();
                let _ = command.args(["-initrd", &modules.join(",")]);
            }
        }
    }
}

/// A module as `-initrd` takes it: commas separate modules, so those inside one are doubled.
fn module(image: &Image) -> String {
    let text = format!("{} {}", image.file.display(), image.words);
    text.trim_end().replace(',', ",,")
}

/// tboot, with the payload's kernel as its first module.
fn under_tboot(payload: &Payload) -> Result<Payload> {
    let Payload::Multiboot { kernel, modules } = payload else {
        bail!("tboot starts multiboot payloads only");
    };
    let words = "logging=serial serial=115200,8n1,0x3f8";
    Ok(Payload::Multiboot {
        kernel: Image::new(packages::tboot()?, words),
        modules: std::iter::once(kernel).chain(modules).cloned().collect(),
    })
}

/// Why QEMU ended: from its status, what it printed (events, and errors), and its log of CPU resets.
fn end(status: Option<i32>, output: &str, resets: &str) -> End {
    let last = || output.lines().last().unwrap_or("no word").to_owned();
    match status {
        Some(0) if output.contains("\"guest-shutdown\"") => End::PowerOff,
        Some(0) if resets.contains("Triple fault") => End::TripleFault,
        Some(0) if output.contains("\"guest-reset\"") => End::Emulator("guest reset".to_owned()),
        // The guest's power switch of machines without ACPI: see `isa-debug-exit`.
        Some(status) if status > ERROR && status & 1 == 1 => End::PowerOff,
        Some(_) | None => End::Emulator(last()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmx_must_be_a_flag_of_its_own() {
        assert!(has_vmx("model name: x\nflags\t\t: fpu vmx ept\n"));
        assert!(!has_vmx("flags : fpu novmx\nvmx flags : ept\n"));
    }

    #[test]
    fn the_reason_for_an_end_takes_events_and_resets_together() {
        let off = "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-shutdown\"}}";
        let reset = "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}";
        assert_eq!(end(Some(0), off, ""), End::PowerOff);
        assert_eq!(end(Some(0), reset, "Triple fault\n"), End::TripleFault);
        assert_eq!(end(Some(0), reset, ""), End::Emulator("guest reset".to_owned()));
        assert_eq!(end(Some(33), "", ""), End::PowerOff);
        assert_eq!(end(Some(1), "a\nno file", ""), End::Emulator("no file".to_owned()));
        assert_eq!(end(None, "killed", ""), End::Emulator("killed".to_owned()));
    }

    #[test]
    fn commas_in_a_module_are_doubled() {
        assert_eq!(module(&Image::new("/m", "console=ttyS0,115200")), "/m console=ttyS0,,115200");
    }
}
