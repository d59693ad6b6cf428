//! Machines in Bochs: VMX with EPT, and a clock that counts instructions.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::process::{self, Channels, Finish, Patience};
use super::serial::Watch;
use super::{Bios, Cpu, End, Loader, Machine, Outcome, Payload, TripleFault, USUAL_MIPS};
use crate::image::iso::{self, Firmware, Protocol};

const MILLION: u64 = 1_000_000;

/// For one CPU: GRUB's multiboot2 loader triple-faults under Bochs' own BIOS.
const SEABIOS: &str = "/usr/share/seabios/bios.bin";
/// For several CPUs: SeaBIOS does not find the others in Bochs.
const BOCHS_BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VGA_BIOS: &str = "/usr/share/bochs/VGABIOS-lgpl-latest";

/// What every machine has. `sync=none` keeps real time out of the emulated clock; `rfb` with
/// `timeout=0` is the display that needs nobody to look at it. Bochs overruns a buffer where ALSA has
/// no sound card, so the speaker gets none.
const COMMON: &str = "\
display_library: rfb, options=\"timeout=0\"
clock: sync=none, time0=1700000000
pci: enabled=1, chipset=i440fx
sound: driver=dummy
com1: enabled=1, mode=file, dev=serial.log
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
vga: update_freq=1
log: bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
";

/// The safety net: at the slowest (two CPUs, a loaded machine) Bochs needs about 15 real seconds
/// for an emulated one of the usual length.
const WALL_PER_SECOND: u32 = 30;

/// Boots `payload` in Bochs; see [`super::boot`].
pub(super) fn boot(
    machine: &Machine,
    payload: &Payload,
    dir: &Path,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    ensure!(
        machine.cpus == 1 || machine.loader != Loader::Grub2,
        "in Bochs, GRUB boots multiboot2 on one CPU only"
    );
    let _ = match machine.loader {
        Loader::Isolinux => iso::isolinux(payload, dir, machine.messages),
        Loader::Grub1 => iso::grub(payload, dir, Protocol::Multiboot1, Firmware::Bios),
        Loader::Grub2 => iso::grub(payload, dir, Protocol::Multiboot2, Firmware::Bios),
        Loader::GrubEfi | Loader::Direct | Loader::Tboot => {
            bail!("Bochs boots by isolinux or GRUB under BIOS only")
        }
    }?;
    fs::write(dir.join("bochsrc"), config(machine)).context("cannot write bochsrc")?;
    let ticks = machine.seconds.saturating_mul(ips(machine));
    let debugger = format!("sba {ticks}\ncontinue\nquit\n");
    fs::write(dir.join("debugger.rc"), debugger).context("cannot write debugger.rc")?;
    let (serial, log) = (dir.join("serial.log"), dir.join("bochs.out"));
    let usual = ticks / (USUAL_MIPS * MILLION);
    let net = Duration::from_secs(usual.saturating_add(20));
    let patience = Patience { cpu: Duration::MAX, wall: net.saturating_mul(WALL_PER_SECOND) };
    let mut starts = 0..STARTS;
    loop {
        let mut command = command(ticks)?;
        let channels = Channels { input: "", log: &log, serial: &serial };
        let (finish, cpu) = process::follow(command.current_dir(dir), channels, patience, watch)?;
        let end = match finish {
            Finish::Stopped => End::Stopped,
            Finish::Cpu | Finish::Wall => End::WallClock,
            Finish::Exited(_) => end(&fs::read(&log).context("cannot read the emulator's log")?),
        };
        if !is_without_port(&end) || starts.next().is_none() {
            return Ok(Outcome { end, serial, cpu });
        }
    }
}

/// How often Bochs is started again, if it has ended before it began.
const STARTS: u32 = 3;

/// Whether the display has no port. Of two that begin at the same moment both may bind one, and one of them cannot listen
/// there; that one then finds no other, as its socket has a port already.
fn is_without_port(end: &End) -> bool {
    matches!(end, End::Emulator(words) if words.contains("RFB could not bind any port"))
}

/// The command that runs Bochs for `ticks` instructions: `VISOR_BOCHS`, or the one in `PATH`.
fn command(ticks: u64) -> Result<Command> {
    let bochs = env::var_os("VISOR_BOCHS").unwrap_or_else(|| OsString::from("bochs"));
    let help = Command::new(&bochs)
        .arg("--help")
        .output()
        .with_context(|| format!("cannot start {}", PathBuf::from(&bochs).display()))?;
    let mut command = process::bound_to_this(&bochs);
    let _ = command.args(["-q", "-f", "bochsrc"]);
    if has_debugger(&help.stderr) || has_debugger(&help.stdout) {
        let _ = command.args(["-rc", "debugger.rc"]);
    } else {
        // Without the debugger, benchmark mode is what ends a run at an emulated time.
        let _ = command.arg("-benchmark").arg((ticks / MILLION).to_string());
    }
    Ok(command)
}

/// Whether `bochs --help` offers the option for debugger commands.
fn has_debugger(help: &[u8]) -> bool {
    String::from_utf8_lossy(help).lines().any(|line| line.trim_start().starts_with("-rc "))
}

/// Instructions per emulated second: the emulated clock is nothing but a count of instructions.
const fn ips(machine: &Machine) -> u64 {
    machine.mips.saturating_mul(MILLION)
}

fn config(machine: &Machine) -> String {
    let mut text = String::from(COMMON);
    let reset = match machine.triple_fault {
        TripleFault::Ends => 0,
        TripleFault::Resets => 1,
    };
    let (model, cpus, memory) = (model(machine.cpu), machine.cpus, machine.memory_mib);
    let ips = ips(machine);
    let lines = [
        format!(
            "cpu: model={model}, count={cpus}, ips={ips}, reset_on_triple_fault={reset}, ignore_bad_msrs=1"
        ),
        format!("memory: guest={memory}, host={memory}"),
        format!("romimage: file={}", bios(machine)),
        format!("vgaromimage: file={VGA_BIOS}"),
    ];
    let com2 = |port| format!("com2: enabled=1, mode=socket-client, dev=127.0.0.1:{port}");
    let disk =
        |file: &PathBuf| format!("ata1-master: type=disk, path={}, mode=flat", file.display());
    let more = machine.com2.map(com2).into_iter().chain(machine.disk.as_ref().map(disk));
    for line in lines.into_iter().chain(more) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// The file of the firmware.
const fn bios(machine: &Machine) -> &'static str {
    match machine.bios {
        Bios::Usual if machine.cpus == 1 => SEABIOS,
        Bios::Usual | Bios::Own => BOCHS_BIOS,
    }
}

const fn model(cpu: Cpu) -> &'static str {
    match cpu {
        Cpu::Haswell => "corei7_haswell_4770",
        Cpu::IvyBridge => "corei7_ivy_bridge_3770k",
        Cpu::SkylakeX => "corei7_skylake_x",
        Cpu::IceLake => "corei7_icelake_u",
        Cpu::NoUnrestricted => "corei5_lynnfield_750",
        Cpu::NoEpt => "core2_penryn_t9600",
        Cpu::NoVmx => "phenom_8650_toliman",
    }
}

/// Why Bochs ended, from what it printed: its exit status is 1 whatever happened.
fn end(output: &[u8]) -> End {
    let text = String::from_utf8_lossy(output);
    let mut lines = text.lines().skip_while(|line| !line.starts_with("Bochs is exiting with"));
    let reason = lines.nth(1).unwrap_or_default();
    if reason.contains("Shutdown port: shutdown requested") || reason.contains("soft power off") {
        End::PowerOff
    } else if reason.contains("3rd") && reason.contains("exception with no resolution") {
        End::TripleFault
    } else if reason.is_empty() && text.contains("Caught time breakpoint") {
        End::Deadline
    } else if reason.is_empty() {
        End::Emulator(text.lines().last().unwrap_or_default().to_owned())
    } else {
        End::Emulator(reason.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_for_an_end_is_read_from_the_closing_message() {
        let message =
            |words: &str| format!("=\nBochs is exiting with the following message:\n{words}\n=\n");
        let read = |words: &str| end(message(words).as_bytes());
        assert_eq!(read("[ACPI  ] ACPI control: soft power off"), End::PowerOff);
        assert_eq!(read("[UNMAP ] Shutdown port: shutdown requested"), End::PowerOff);
        let triple = "[CPU0  ] exception(): 3rd (13) exception with no resolution";
        assert_eq!(read(triple), End::TripleFault);
        assert_eq!(read("[MEM0  ] odd"), End::Emulator("[MEM0  ] odd".to_owned()));
        assert_eq!(end(b"(0) Caught time breakpoint\n"), End::Deadline);
        assert_eq!(end(b"Segmentation fault\n"), End::Emulator("Segmentation fault".to_owned()));
    }

    #[test]
    fn only_a_display_without_a_port_is_a_reason_to_start_again() {
        let words = "[RFB   ] RFB could not bind any port between 5900 and 5949";
        assert!(is_without_port(&End::Emulator(words.to_owned())));
        assert!(!is_without_port(&End::Emulator("[MEM0  ] odd".to_owned())));
        assert!(!is_without_port(&End::Deadline));
    }

    #[test]
    fn a_build_without_debugger_is_recognised() {
        assert!(has_debugger(b"Usage\n  -rc filename     execute debugger commands\n"));
        assert!(!has_debugger(b"Usage\n  -r path          restore\n"));
    }

    #[test]
    fn the_machine_is_written_into_the_configuration() {
        let machine = Machine {
            cpus: 2,
            memory_mib: 1024,
            triple_fault: TripleFault::Resets,
            mips: 300,
            com2: Some(4321),
            disk: Some("/d".into()),
            ..Machine::default()
        };
        let text = config(&machine);
        assert!(text.contains("com2: enabled=1, mode=socket-client, dev=127.0.0.1:4321\n"));
        assert!(text.contains("ata1-master: type=disk, path=/d, mode=flat\n"));
        let usual = config(&Machine::default());
        assert!(!usual.contains("com2") && !usual.contains("ata1"));
        assert!(text.contains("model=corei7_haswell_4770, count=2, ips=300000000,"));
        assert!(text.contains("reset_on_triple_fault=1"));
        assert!(text.contains("memory: guest=1024, host=1024\n"));
        assert!(text.contains(BOCHS_BIOS));
    }

    #[test]
    fn one_cpu_has_seabios_unless_the_test_wants_the_other() {
        assert_eq!(bios(&Machine::default()), SEABIOS);
        assert_eq!(bios(&Machine { bios: Bios::Own, ..Machine::default() }), BOCHS_BIOS);
    }
}
