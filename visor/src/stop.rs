//! The end: every processor stops but the one that has met a bug of the visor's, and says so, or that resets the
//! machine.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use boot::cmdline::OnPanic;
use nested_vmx::field::{EXIT_QUALIFICATION, EXIT_REASON, GUEST_RIP, Vmcs};
use x86_64::registers::control::{Cr0, Cr2, Cr3, Cr4};

use crate::cpu::vmx::Current;
use crate::machine::Machine;
use crate::percpu::PerCpu;
use crate::scrub::{self, Last};
use crate::serial::print_regardless;
use crate::{apic, cpu, events};

/// One more than the index of the processor that goes on while all others stop; 0 as long as none has to. Set once.
/// The NMI handler looks, too.
pub(crate) static STOPPING: AtomicU32 = AtomicU32::new(0);

/// Stops this processor if another one goes on alone.
pub(crate) fn check() {
    if STOPPING.load(Ordering::Acquire) != 0 {
        here();
    }
}

/// Stops this processor for good.
fn here() -> ! {
    if Machine::get().is_some() {
        PerCpu::current().stopped.store(true, Ordering::Release);
    }
    cpu::stop()
}

/// Has all processors but this one stop, wherever they are. Does not return if another one does the same, or if this
/// one has done so before.
pub(crate) fn others(machine: Option<&Machine>) {
    let own = machine.map_or(1, |_| PerCpu::current().index.get() + 1);
    if STOPPING.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire).is_err() {
        here();
    }
    if let Some(machine) = machine {
        // Those that an NMI does not reach look at this before their next entry.
        machine.each().for_each(|cpu| {
            let _ = cpu.nmi_arrived.fetch_add(1, Ordering::Relaxed);
        });
        apic::stop_others();
    }
}

/// Waits until they have stopped.
pub(crate) fn wait_for_others(machine: &Machine) {
    /// Microseconds: more than an IPI is on its way.
    const IPI: u32 = 1000;
    let own = PerCpu::current().index.get();
    for _ in 0..2 {
        for cpu in machine.each().filter(|cpu| cpu.index.get() != own) {
            while !cpu.stopped.load(Ordering::Acquire) && !cpu.call.is_asleep() {
                core::hint::spin_loop();
            }
        }
        // The last that was sent may wake one up, which then stops as well.
        apic::wait(IPI);
    }
}

/// An exception in the visor. The arguments come from `exit.s`.
pub(crate) extern "C" fn on_exception(vector: u64, code: u64, rip: u64, rsp: u64) -> ! {
    panic!("exception {vector} (error code {code:#x}) at {rip:#x}, stack {rsp:#x}")
}

/// VMLAUNCH or VMRESUME failed without entering.
pub(crate) extern "C" fn entry_failed() -> ! {
    let error = Current.read(nested_vmx::field::INSTRUCTION_ERROR);
    panic!("VM entry refused with error {error}")
}

#[panic_handler]
fn on_panic(info: &PanicInfo<'_>) -> ! {
    let machine = Machine::get();
    others(machine);
    let place = info.location();
    print_regardless(format_args!(
        "\nvisor: [panic] {} at {}:{}\n",
        info.message(),
        place.map_or("?", core::panic::Location::file),
        place.map_or(0, core::panic::Location::line),
    ));
    // What the registers hold of a protected VM is not shown.
    let guarded = machine.is_some() && PerCpu::current().guarded.get();
    print_regardless(format_args!(
        "visor: [panic] apic {} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x}\n",
        cpu::apic_id(),
        Cr0::read_raw(),
        if guarded { 0 } else { Cr2::read_raw() },
        Cr3::read_raw().0.start_address().as_u64(),
        Cr4::read_raw(),
    ));
    if machine.is_some() && PerCpu::current().running() && !guarded {
        print_regardless(format_args!(
            "visor: [panic] last exit: reason {:#x} qualification {:#x} rip {:#x}\n",
            Current.read(EXIT_REASON),
            Current.read(EXIT_QUALIFICATION),
            Current.read(GUEST_RIP),
        ));
    }
    events::show_last(16, |entry| print_regardless(format_args!("visor: [panic] {entry}\n")));
    print_regardless(format_args!("visor: halted\n"));
    let Some(machine) = machine else { cpu::stop() };
    scrub::before(
        machine,
        match machine.on_panic {
            OnPanic::Reset => Last::Reset,
            OnPanic::Halt => Last::Halt,
        },
    )
}
