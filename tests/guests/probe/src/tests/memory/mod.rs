//! `memory`: every way into the visor's reservation raises #GP(0) and changes nothing.
//!
//! The reservation comes from `base=` and `end=`, else from the control port, else from the
//! memory map: the last reserved entry that begins where RAM ends. On a machine without a visor
//! the accesses succeed, overwrite that memory, and the test fails.
//!
//! With `paged` the probe itself leaves the range out of its page tables, and every refusal is a
//! #PF instead: a check of this test's own machinery that needs no visor.

mod forms;
mod pages;
mod structures;
mod unpaged;

use super::stats::Direct;
use super::{Arguments, Machine};
use crate::console;
use crate::fault::{Fault, GP, PF, catch};
use crate::info::Info;
use crate::paging::{self, MIB2, PAGE};
use crate::report::{Checks, Outcome, fail};
use control::Status;
use core::ops::Range;
use core::sync::atomic::{AtomicU8, Ordering};

/// The visor's memory, in whole pages.
#[derive(Clone, Copy)]
struct Reservation {
    base: u64,
    end: u64,
}

impl Reservation {
    /// Pages where something may be special: both ends and the middle.
    fn samples(&self) -> [u64; 3] {
        let middle = (self.base + (self.end - self.base) / 2) & !(PAGE - 1);
        [self.base, middle, self.end - PAGE]
    }
}

/// `task-switch`: a switch to a 32-bit task. The visor has no rule for its exit and stops the machine,
/// so under it this does not return.
pub(super) fn task_switch(_: &Machine, _: &Arguments) -> Outcome {
    unpaged::switch_task();
    fail!("the machine goes on");
}

pub(super) fn run(machine: &Machine, arguments: &Arguments) -> Outcome {
    let Some(reservation) = find(machine.info, arguments) else {
        fail!("no reservation: none given, no visor, none in the memory map");
    };
    let Reservation { base, end } = reservation;
    console::line(format_args!("reservation {base:#x}..{end:#x}"));
    if arguments.has("paged") {
        paging::hide(base, end);
        REFUSAL.store(PF, Ordering::Relaxed);
    }
    let mut checks = Checks::new();
    pages::every_page(&mut checks, reservation);
    pages::edges(&mut checks, reservation, machine.info);
    pages::from_ring3(&mut checks, reservation);
    pages::large_pages(&mut checks, reservation);
    pages::huge_pages(&mut checks, reservation);
    pages::beyond_physical(&mut checks, reservation);
    pages::not_canonical(&mut checks);
    forms::every_form(&mut checks, reservation);
    structures::page_walks(&mut checks, reservation);
    structures::descriptor_tables(&mut checks, reservation);
    unpaged::malformed_pointers(&mut checks);
    if REFUSAL.load(Ordering::Relaxed) == GP {
        unpaged::without_paging(&mut checks, reservation);
    }
    checks.finish()
}

/// `device-memory`: the registers of a TPM's localities above 0, and TXT's private ones, are not the host's, be they
/// there or not; what lies beside them is.
pub(super) fn devices(_: &Machine, _: &Arguments) -> Outcome {
    const CLOSED: [Range<u64>; 2] = [0xfed2_0000..0xfed3_0000, 0xfed4_1000..0xfed4_5000];
    let mut checks = Checks::new();
    for at in (0xfed1_f000..0xfed4_6000).step_by(PAGE as usize) {
        let is_closed = CLOSED.iter().any(|range| range.contains(&at));
        let address = paging::page(0, at);
        for offset in [0, PAGE - 8] {
            let found = read(address + offset);
            checks.that(
                if is_closed { is_refusal(found) } else { found.is_ok() },
                format_args!(
                    "a read at {:#x} is refused: {is_closed}, {}",
                    at + offset,
                    Shown(found)
                ),
            );
        }
        if is_closed {
            let found = write(address, 2);
            checks.that(
                is_refusal(found),
                format_args!("a write at {at:#x} is refused, {}", Shown(found)),
            );
        }
    }
    checks.finish()
}

fn find(info: &Info, arguments: &Arguments) -> Option<Reservation> {
    if let (Some(base), Some(end)) = (arguments.value("base"), arguments.value("end")) {
        let sound = base < end && (base | end) & (PAGE - 1) == 0;
        return sound.then_some(Reservation { base, end });
    }
    if let Ok(mut visor) = Status::find(Direct) {
        let (base, length) = visor.reservation();
        return Some(Reservation { base, end: base + length });
    }
    let ends_ram = |base| info.regions().iter().any(|r| r.kind == 1 && r.end() == base);
    info.regions()
        .iter()
        .filter(|region| region.kind == 2 && region.base % MIB2 == 0 && ends_ram(region.base))
        .map(|region| Reservation { base: region.base, end: region.end() })
        .max_by_key(|reservation| reservation.base)
}

/// The vector of a refusal.
static REFUSAL: AtomicU8 = AtomicU8::new(GP);

/// What the visor answers to an access it refuses: #GP(0).
fn is_refusal(result: Result<u64, Fault>) -> bool {
    let vector = REFUSAL.load(Ordering::Relaxed);
    result.err().is_some_and(|fault| fault.vector == vector && (vector == PF || fault.error == 0))
}

/// An access's outcome, for a line of output.
struct Shown(Result<u64, Fault>);

impl core::fmt::Display for Shown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            Ok(_) => f.write_str("succeeded"),
            Err(fault) => write!(f, "vector {} error {:#x}", fault.vector, fault.error),
        }
    }
}

fn read(address: u64) -> Result<u64, Fault> {
    catch(|| {
        let value: u64;
        // SAFETY: one load; a fault is caught, and whatever is there is only looked at.
        unsafe {
            core::arch::asm!("mov {}, [{}]", out(reg) value, in(reg) address,
                             options(nostack, preserves_flags, readonly));
        }
        value
    })
}

fn write(address: u64, value: u64) -> Result<u64, Fault> {
    catch(|| {
        // SAFETY: one store to memory that is the visor's (and refused) or that no one uses.
        unsafe {
            core::arch::asm!("mov [{}], {}", in(reg) address, in(reg) value,
                             options(nostack, preserves_flags));
        }
        0
    })
}

fn execute(address: u64) -> Result<u64, Fault> {
    catch(|| {
        // SAFETY: the callee is refused, or is the `ret` that the caller wrote there.
        unsafe { core::arch::asm!("call {}", in(reg) address, clobber_abi("C")) };
        0
    })
}
