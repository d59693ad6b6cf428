#![no_std]
#![no_main]
//! The host loader: what the visor runs first, and deprivileged, in the place of the host.
//!
//! It loads the host's kernel as a boot loader would and jumps to it. What is to be loaded where is
//! decided by `host-loader`; here is only what needs the machine.

mod physical;
mod serial;
mod service;
mod start;

use core::arch::global_asm;
use core::fmt;

use ept::addr::{PAGE, Span};
use host_loader::{Area, Bios, Entry, Handoff, LoadError, Scratch, Steps, area};

use physical::Physical;

// The visor's: what compiled code calls by name.
global_asm!(include_str!("../../src/library.s"));

/// Why the loader gives up.
enum Fault {
    /// The visor did not enter it as agreed: the two addresses it passed.
    Entered(u32, u32),
    /// The host cannot be loaded.
    Load(LoadError),
}

impl From<LoadError> for Fault {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Entered(base, handoff) => {
                write!(f, "entered with the area at {base:#x}, the handoff at {handoff:#x}")
            }
            Self::Load(error) => error.fmt(f),
        }
    }
}

/// Loads the host's kernel; called once by `start`, in long mode with the area mapped.
extern "sysv64" fn main(base: u32, handoff: u32) -> ! {
    match load(base, handoff) {
        Ok(entry) => {
            serial::line(format_args!("[info] {entry}"));
            start::leave(&entry, base)
        }
        Err(fault) => {
            serial::line(format_args!("[error] {fault}"));
            start::halt()
        }
    }
}

fn load(base: u32, handoff: u32) -> Result<Entry, Fault> {
    let entered = Fault::Entered(base, handoff);
    let area = Area::at(base.into()).ok_or(Fault::Entered(base, handoff))?;
    if u64::from(handoff) != u64::from(base) + area::HANDOFF {
        return Err(entered);
    }
    // SAFETY:
    // 1. `start` calls `main`, and so this, once.
    // 2. It mapped the area at the link address and the low 4 GiB at the window.
    // 3. `base` is that area's: it was checked above.
    let (mut memory, tables) = unsafe { Physical::take(area) };
    let handoff = Handoff::parse(tables.handoff, area)?;
    let kernel = memory.bytes(handoff.kernel()?.span);
    let low_page = memory.bytes(Span::new(0, PAGE).unwrap_or_default());
    let bios = Bios { low_page, service: service::code() };
    let scratch_base = u32::try_from(area.scratch()).map_err(|_| entered)?;
    let mut scratch = Scratch::new(tables.scratch, scratch_base);
    let mut steps = Steps::EMPTY;
    let entry = host_loader::plan(handoff, kernel, bios, &mut scratch, &mut steps)?;
    steps.execute(&mut memory);
    Ok(entry)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    serial::line(format_args!("[error] {info}"));
    start::halt()
}
