//! The end of a visor that has met a bug of its own: say what and where, stop every processor.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use boot::cmdline::OnPanic;
use nested_vmx::field::{EXIT_QUALIFICATION, EXIT_REASON, GUEST_RIP, Vmcs};
use x86_64::registers::control::{Cr0, Cr2, Cr3, Cr4};

use crate::cpu::vmx::Current;
use crate::machine::Machine;
use crate::percpu::PerCpu;
use crate::serial::print_regardless;
use crate::{apic, cpu, events, reset};

/// Set once: every processor that looks stops. The NMI handler looks, too.
pub(crate) static STOPPING: AtomicBool = AtomicBool::new(false);

/// Stops this processor if another one has met a bug.
pub(crate) fn check() {
    if STOPPING.load(Ordering::Acquire) {
        cpu::stop();
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
    if STOPPING.swap(true, Ordering::AcqRel) {
        cpu::stop();
    }
    let machine = Machine::get();
    if let Some(machine) = machine {
        // Those that an NMI does not reach look at this before their next entry.
        machine.each().for_each(|cpu| {
            let _ = cpu.nmi_arrived.fetch_add(1, Ordering::Relaxed);
        });
        apic::stop_others();
    }
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
    match machine.map(|machine| machine.on_panic) {
        Some(OnPanic::Reset) => reset::machine(),
        Some(OnPanic::Halt) | None => cpu::stop(),
    }
}
