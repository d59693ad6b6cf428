//! Port I/O from ring 3: the visor's control port, and the CMOS byte that survives a reset.

use crate::system::checked;
use control::{PORT, Port, Status};
use std::arch::asm;

/// The control port.
pub(crate) struct Control(());

impl Control {
    /// Asks the kernel for the port, and to stay on one processor: each has an index of its own.
    pub(crate) fn new() -> Result<Self, String> {
        stay_on_first()?;
        allow(PORT, 4).map(|()| Self(()))
    }
}

impl Port for Control {
    fn read(&mut self, index: u32) -> u32 {
        let value: u32;
        // SAFETY: `new` obtained the port; neither instruction touches memory.
        unsafe {
            asm!("out dx, eax", "in eax, dx", in("dx") PORT, inout("eax") index => value,
                 options(nostack, preserves_flags, nomem));
        }
        value
    }
}

fn stay_on_first() -> Result<(), String> {
    // SAFETY: a set of processors is plain bits, of which 0 is one.
    let result = unsafe {
        let mut processors: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut processors);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const processors)
    };
    checked(result.into()).map(|_| ())
}

fn allow(first: u16, count: u16) -> Result<(), String> {
    // SAFETY: only grants this process the ports.
    let result = unsafe { libc::ioperm(first.into(), count.into(), 1) };
    checked(result.into()).map(|_| ()).map_err(|why| format!("port {first:#x}: {why}"))
}

/// Prints every value of the control port.
pub(crate) fn print_stats() -> Result<(), String> {
    let mut status = Status::find(Control::new()?).map_err(|none| none.to_string())?;
    status.each(|name, value| println!("stats: {name} {value}"));
    Ok(())
}

const CMOS_INDEX: u16 = 0x70;
/// A byte of the CMOS memory that neither SeaBIOS nor Linux uses.
const MARK_INDEX: u8 = 0x60;
const MARK: u8 = 0xb7;

/// Whether [`set_mark`] was called before the last reset.
pub(crate) fn is_marked() -> Result<bool, String> {
    allow(CMOS_INDEX, 2)?;
    let value: u8;
    // SAFETY: `allow` obtained both ports; no memory is touched.
    unsafe {
        asm!("out 0x70, al", "in al, 0x71", inout("al") MARK_INDEX => value,
             options(nostack, preserves_flags, nomem));
    }
    Ok(value == MARK)
}

/// Marks this boot for the next one.
pub(crate) fn set_mark() -> Result<(), String> {
    write_mark(MARK)
}

/// Forgets the mark.
pub(crate) fn clear_mark() -> Result<(), String> {
    write_mark(0)
}

fn write_mark(byte: u8) -> Result<(), String> {
    allow(CMOS_INDEX, 2)?;
    // SAFETY: as in `is_marked`.
    unsafe {
        asm!("out 0x70, al", "mov al, cl", "out 0x71, al", in("cl") byte,
             inout("al") MARK_INDEX => _, options(nostack, preserves_flags, nomem));
    }
    Ok(())
}
