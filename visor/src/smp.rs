//! Application processors: started once at boot, by the bootstrap processor, into VMX.
//!
//! Every processor that answers to the start-up IPI must be known from the MADT: one that is not
//! would be left outside the visor, for the host to start as it likes.
#![expect(unsafe_code, reason = "starting processors in low memory")]

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ept::addr::{Frame, PAGE, Span};

use crate::apic::{self, Delivery, Destination};
use crate::cpu::{self, vmx};
use crate::machine::Machine;
use crate::memory;
use crate::percpu::PerCpu;
use crate::shootdown;

/// Physical address of the visor's page tables.
pub(crate) static PAGE_TABLES: AtomicU64 = AtomicU64::new(0);
/// Top of the bootstrap processor's exit stack; the others' follow by one block each.
pub(crate) static STACKS: AtomicU64 = AtomicU64::new(0);
/// One more than the application processors that have started.
pub(crate) static ARRIVALS: AtomicU32 = AtomicU32::new(1);
/// Processors for which there are blocks, the bootstrap processor included.
pub(crate) static EXPECTED: AtomicU32 = AtomicU32::new(0);
/// Application processors that are in VMX root mode, ready for the host.
static READY: AtomicU32 = AtomicU32::new(0);

/// Pages below 1 MiB that starting takes: code, root table, and its one page-directory-pointer
/// table.
const LOW_PAGES: u64 = 3;
/// Physical address of the low pages.
static LOW: AtomicU64 = AtomicU64::new(0);
/// Index of the application processor that wants to be started again; 0 for none.
static RESTART: AtomicU32 = AtomicU32::new(0);

/// One start-up IPI is enough on today's processors; the second is for the rest.
const ATTEMPTS: u32 = 2;
/// Microseconds that a processor has to arrive.
const PATIENCE: u32 = 1_000_000;

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

/// Why not all processors run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StartError {
    /// No three pages of RAM below 512 KiB are free.
    NoLowMemory,
    /// Some in the MADT did not start.
    Missing {
        /// How many the MADT lists.
        listed: u32,
        /// How many runs.
        started: u32,
    },
    /// More started than the MADT lists.
    Unlisted,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLowMemory => {
                f.write_str("no 12 KiB of RAM below 512 KiB are free to start processors")
            }
            Self::Missing { listed, started } => {
                write!(f, "the MADT lists {listed} processors but {started} started")
            }
            Self::Unlisted => f.write_str("a processor started that the MADT does not list"),
        }
    }
}

/// Starts all of `count` processors but this one. Each ends in `launch::application`. `low` is the
/// visor's, below 512 KiB.
pub(crate) fn start(count: u32, root: Frame, low: Span) -> Result<(), StartError> {
    EXPECTED.store(count, Ordering::Release);
    PAGE_TABLES.store(root.base(), Ordering::Release);
    LOW.store(low.start(), Ordering::Release);
    place(low, root);
    apic::send(Delivery::Init, Destination::Others);
    apic::wait(10_000);
    for _ in 0..ATTEMPTS {
        apic::send(Delivery::StartUp(start_page()), Destination::Others);
        apic::wait(200);
    }
    await_ready(count - 1);
    // Whatever else the broadcast has started shows up by now, too.
    apic::wait(10_000);
    if ARRIVALS.load(Ordering::Acquire) > count {
        return Err(StartError::Unlisted);
    }
    let started = READY.load(Ordering::Acquire) + 1;
    if started < count { Err(StartError::Missing { listed: count, started }) } else { Ok(()) }
}

/// Number of the first of the low pages.
pub(crate) fn start_page() -> u8 {
    let [page, ..] = (LOW.load(Ordering::Acquire) / PAGE).to_le_bytes();
    page
}

fn await_ready(count: u32) {
    let mut patience = PATIENCE;
    while READY.load(Ordering::Acquire) < count && patience > 0 {
        apic::wait(1);
        patience -= 1;
    }
}

/// Leaves VMX, so that an INIT that would exit for ever is taken at last, and has the bootstrap
/// processor start this one again; it then enters the host at `page`. Only for the quirk
/// `bochs-init`: on a real machine the host could take the processor meanwhile.
pub(crate) fn leave_to_restart(cpu: &PerCpu, page: u8) -> ! {
    cpu.start_page.set(Some(page));
    shootdown::fall_asleep(cpu);
    while RESTART.compare_exchange(0, cpu.index.get(), Ordering::AcqRel, Ordering::Acquire).is_err()
    {
        core::hint::spin_loop();
    }
    let first = Machine::get().and_then(|machine| PerCpu::at(machine.block(0)));
    let bootstrap = first.map_or(0, |cpu| cpu.apic_id.get());
    apic::send(Delivery::Nmi, Destination::One(bootstrap));
    // SAFETY: this processor's VMCS is current, and it does not return.
    unsafe { vmx::leave(cpu.vmcs_region()) };
    cpu::stop()
}

/// Starts the processor that asked for it, if the NMI that arrived was its call.
pub(crate) fn serve_restart() -> bool {
    let index = RESTART.load(Ordering::Acquire);
    let Some(machine) = Machine::get().filter(|_| index != 0) else {
        return false;
    };
    let Some(cpu) = PerCpu::at(machine.block(index)) else {
        return false;
    };
    ARRIVALS.store(index, Ordering::Release);
    let ready = READY.load(Ordering::Acquire);
    apic::wait(1000);
    apic::send(Delivery::StartUp(start_page()), Destination::One(cpu.apic_id.get()));
    await_ready(ready + 1);
    RESTART.store(0, Ordering::Release);
    true
}

/// Says that this application processor is in VMX root mode.
pub(crate) fn ready() {
    let _ = READY.fetch_add(1, Ordering::AcqRel);
}

/// From here to 1 MiB Linux looks for an iSCSI firmware table, in RAM or not.
const LOW_END: u64 = 0x8_0000;

/// Where processors can be started: the highest pages below 512 KiB that are RAM and free.
pub(crate) fn low_pages(ram: &[Span], avoid: &[Span]) -> Option<Span> {
    let bytes = LOW_PAGES * PAGE;
    (1..=LOW_END / PAGE - LOW_PAGES).rev().filter_map(|page| Span::sized(page * PAGE, bytes)).find(
        |low| {
            ram.iter().any(|span| span.covers(*low))
                && !avoid.iter().any(|span| span.overlaps(*low))
        },
    )
}

/// Fills the low pages: code, a copy of the root table with the first GiB in its place as well,
/// and the table for that GiB.
fn place(low: Span, root: Frame) {
    // SAFETY: the pages were just taken from the host, which does not run yet.
    let pages = unsafe { memory::bytes_mut(low) };
    let start = &raw const trampoline;
    let len = (&raw const trampoline_end).addr() - start.addr();
    // SAFETY: the two symbols enclose the trampoline, which is read-only data of the image.
    let code = unsafe { core::slice::from_raw_parts(start, len) };
    pages.fill(0);
    if let Some(to) = pages.get_mut(..len) {
        to.copy_from_slice(code);
    }
    let at = |page: u64| Frame::containing(low.start() + page * PAGE);
    for index in 0..512 {
        let offset = u64::try_from(index).unwrap_or(0) * 8;
        memory::write_entry(at(1), index, memory::read_u64(root.base() + offset));
    }
    const PRESENT_WRITABLE: u64 = 3;
    const HUGE_PAGE: u64 = 1 << 7;
    memory::write_entry(at(1), 0, at(2).base() | PRESENT_WRITABLE);
    memory::write_entry(at(2), 0, PRESENT_WRITABLE | HUGE_PAGE);
}
