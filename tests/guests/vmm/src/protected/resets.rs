//! Resets and sleep while a VM of each kind runs: what of them is left in the machine's memory is looked
//! for from outside, before and when the next boot begins.
//!
//! One way for each boot: a byte of CMOS memory, which survives, says which is next.

use super::victim::{self, Kind, Victim};
use crate::kvm::checked;
use std::arch::asm;
use std::fs;
use std::time::Duration;

/// A way to end what runs.
type Way = fn() -> Result<(), String>;

/// Ways, the first in the first boot.
const WAYS: [(&str, Way); 8] = [
    ("reset-control", || out(0xcf9, 2).and_then(|()| out(0xcf9, 6))),
    ("reset-control-in-a-word", reset_control_in_a_word),
    ("keyboard-pulse", || command(0xfe)),
    ("keyboard-output-port", || command(0xd1).and_then(|()| out(0x60, 0xde))),
    ("fast-reset", || out(0x92, 1)),
    ("sleep", || sleep(0)),
    ("sleep-in-a-byte", || sleep(1)),
    ("triple-fault", triple_fault),
];

pub(super) fn run() -> Result<(), String> {
    // SAFETY: only lets this process use ports.
    let _ = checked(unsafe { libc::iopl(3) })?;
    let boot = marked();
    let Some((name, way)) = WAYS.get(usize::from(boot)) else {
        return mark(0);
    };
    victim::number_anew(boot);
    let started = |kind| Victim::started(kind).map_err(|why| format!("{kind:?}: {why:?}"));
    let victims = [started(Kind::Plain)?, started(Kind::Ticketed)?];
    let [plain, ticketed] = &victims;
    println!("vmm: look for {} unprotected, {name}", plain.secrets.disguise());
    ticketed.secrets.ask_outside(&format!("protected, {name}"));
    mark(boot + 1)?;
    println!("vmm: ends by {name}");
    // SAFETY: waits until the line has left.
    let _ = checked(unsafe { libc::tcdrain(1) })?;
    way()?;
    std::thread::sleep(Duration::from_secs(2));
    mark(0)?;
    Err(format!("the machine goes on after {name}"))
}

/// Bits 15:8 of the value are for port 0xcf9. Chipsets differ in whether they take it so.
fn reset_control_in_a_word() -> Result<(), String> {
    // SAFETY: the process may use ports; what follows is the experiment.
    unsafe { asm!("out dx, ax", in("dx") 0xcf8_u16, in("ax") 0x0600_u16, options(nomem, nostack)) };
    Ok(())
}

/// Writes SLP_EN with the machine's type of S3 to PM1a control, from byte `from` of it on.
fn sleep(from: u16) -> Result<(), String> {
    /// QEMU's chipset, which Bochs has too, and its firmware.
    const TYPE: u16 = 1;
    const SLP_EN: u16 = 1 << 13;
    /// Where the table of fixed hardware has PM1a control (ACPI 6.5, 5.2.9).
    const PM1A_CONTROL: usize = 64;
    let table = fs::read("/sys/firmware/acpi/tables/FACP").map_err(|why| format!("FACP: {why}"))?;
    let port = table.get(PM1A_CONTROL..).and_then(|rest| rest.first_chunk::<2>());
    let port = u16::from_le_bytes(*port.ok_or("FACP is cut short")?);
    let value = SLP_EN | TYPE << 10;
    if from == 1 {
        return out(port + 1, value.to_le_bytes()[1]);
    }
    // SAFETY: as above.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
    Ok(())
}

/// Has the kernel reset the machine; by a triple fault, if its command line says so.
fn triple_fault() -> Result<(), String> {
    // SAFETY: nothing is to be lost.
    checked(unsafe { libc::reboot(libc::RB_AUTOBOOT) }).map(drop)
}

/// A command to the keyboard controller, once it takes one.
fn command(value: u8) -> Result<(), String> {
    let busy = || -> u8 {
        let status: u8;
        // SAFETY: as above.
        unsafe { asm!("in al, 0x64", out("al") status, options(nomem, nostack)) };
        status & 2
    };
    while busy() != 0 {}
    out(0x64, value)
}

fn out(port: u16, value: u8) -> Result<(), String> {
    // SAFETY: the process may use ports; what follows is the experiment.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
    Ok(())
}

/// A byte of CMOS memory that neither firmware nor Linux uses, and what marks it.
const MARK: (u8, u8) = (0x60, 0xc0);

/// How many ways were tried.
fn marked() -> u8 {
    let byte: u8;
    // SAFETY: reads one byte of CMOS memory.
    unsafe {
        asm!("out 0x70, al", "in al, 0x71", inout("al") MARK.0 => byte, options(nomem, nostack));
    }
    if byte & 0xf0 == MARK.1 { byte & 0xf } else { 0 }
}

fn mark(tried: u8) -> Result<(), String> {
    let byte = if tried == 0 { 0 } else { MARK.1 | tried };
    out(0x70, MARK.0)?;
    out(0x71, byte)
}
