//! What the host meets at the coming entry: the next instruction, an exception, an NMI, an event once more.
#![expect(unsafe_code, reason = "the host's debug register")]

use nested_vmx::check::is_canonical;
use nested_vmx::control::{Pin, Primary};
use nested_vmx::cr;
use nested_vmx::exit::{self, Event};
use nested_vmx::field::{
    ENTRY_ERROR_CODE, ENTRY_INSTRUCTION_LENGTH, ENTRY_INTERRUPTION, EXIT_INSTRUCTION_LENGTH,
    EXIT_QUALIFICATION, GUEST_ACTIVITY, GUEST_CR0, GUEST_DEBUGCTL, GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DEBUG, GUEST_RFLAGS, GUEST_RIP, IDT_VECTORING, IDT_VECTORING_CODE, PIN_CONTROLS,
    PRIMARY_CONTROLS, Vmcs,
};

use super::{Next, Registers, in_64_bit_code, reset_by_host, sign_bit};
use crate::cpu::register::Register;
use crate::cpu::vmx::Current;
use crate::machine::Machine;
use crate::nested::{self, NmiFate};
use crate::percpu::PerCpu;
use crate::{shootdown, smp, stop};

/// Goes to the next instruction (SDM vol. 3, 29.2.5: an exit by instruction is fault-like).
pub(super) fn step() {
    step_by(Current.read(EXIT_INSTRUCTION_LENGTH).into());
}

/// Goes on `length` bytes further, which is nowhere while a repeated instruction has more to do.
pub(crate) fn step_by(length: u64) {
    let v = &mut Current;
    let mut rip = v.read(GUEST_RIP).wrapping_add(length);
    if !in_64_bit_code() {
        rip &= 0xffff_ffff;
    } else if !is_canonical(rip, sign_bit()) {
        return inject(Event::GeneralProtection(0));
    }
    v.write(GUEST_RIP, rip);
    let interruptibility = v.read(GUEST_INTERRUPTIBILITY);
    if interruptibility & 0b11 != 0 {
        v.write(GUEST_INTERRUPTIBILITY, interruptibility & !0b11);
    }
    const TRAP: u64 = 1 << 8;
    const BRANCH_STEP: u64 = 1 << 1;
    const SINGLE_STEP: u64 = 1 << 14;
    if v.read(GUEST_RFLAGS) & TRAP != 0 && v.read(GUEST_DEBUGCTL) & BRANCH_STEP == 0 {
        let pending = v.read(GUEST_PENDING_DEBUG);
        v.write(GUEST_PENDING_DEBUG, pending | SINGLE_STEP);
    }
}

#[cold]
#[inline(never)]
pub(super) fn inject(event: Event) {
    let (mut information, code) = event.encode();
    // Real mode has no error codes (SDM vol. 3, 28.2.1.3).
    if Current.read(GUEST_CR0) & cr::CR0_PE == 0 {
        information &= !(1 << 11);
    }
    Current.write(ENTRY_INTERRUPTION, information);
    Current.write(ENTRY_ERROR_CODE, code);
}

/// Whether an NMI that has arrived was another processor's call, which is answered then, if it is not
/// the one that stops the machine.
pub(crate) fn is_call(cpu: &PerCpu) -> bool {
    stop::check();
    let called = shootdown::took_nmi(cpu);
    shootdown::serve(cpu);
    called || smp::serve_restart()
}

/// Delivers the host's NMI at the coming entry, or as soon as the host can take it.
#[cold]
#[inline(never)]
pub(super) fn deliver_nmi(cpu: &PerCpu, machine: &Machine, registers: &mut Registers) {
    if cpu.in_guest.get() {
        match nested::reflect_nmi(cpu, machine, registers) {
            NmiFate::Exit(next) => {
                cpu.nmi_owed.set(false);
                if let Next::Shutdown = next {
                    reset_by_host(cpu);
                }
                return;
            }
            NmiFate::Later => return,
            NmiFate::Event => {}
        }
    }
    const BLOCKED: u32 = 0b1011;
    const HALTED: u32 = 1;
    let v = &mut Current;
    let injecting = v.read(ENTRY_INTERRUPTION) & 1 << 31 != 0;
    let blocked = v.read(GUEST_INTERRUPTIBILITY) & BLOCKED != 0;
    if v.read(GUEST_ACTIVITY) > HALTED {
        // Waiting for SIPI or shut down: the NMI stays pending, as on the processor.
    } else if injecting || blocked {
        // Without virtual NMIs there is no window, and the next exit has to do.
        if Current.read(PIN_CONTROLS) & Pin::VIRTUAL_NMIS.bits() != 0 {
            set_nmi_window(true);
        }
    } else {
        cpu.nmi_owed.set(false);
        inject(Event::Nmi);
    }
}

#[cold]
#[inline(never)]
#[expect(clippy::fn_params_excessive_bools, reason = "the one bit that it sets")]
pub(crate) fn set_nmi_window(open: bool) {
    let window = Primary::NMI_WINDOW.bits();
    let rest = Current.read(PRIMARY_CONTROLS) & !window;
    Current.write(PRIMARY_CONTROLS, if open { rest | window } else { rest });
}

/// What a debug exception leaves in DR6: bits 3:0 are replaced, others added.
pub(crate) fn add_debug_causes(bits: u64) {
    const CAUSES: u64 = 0xf;
    let status = Register::Dr6.read() & !CAUSES | bits;
    // SAFETY: the visor does not use debug registers.
    unsafe { Register::Dr6.write(status) }
}

/// Delivers at the coming entry the event whose delivery the exit cut short (SDM vol. 3, 29.2.4).
pub(crate) fn deliver_again() {
    let v = &mut Current;
    let event = v.read(IDT_VECTORING);
    if event & 1 << 31 != 0 {
        // Bit 12 is undefined there and must be 0 here.
        v.write(ENTRY_INTERRUPTION, event & !(1 << 12));
        let code = v.read(IDT_VECTORING_CODE);
        v.write(ENTRY_ERROR_CODE, code);
        let length = v.read(EXIT_INSTRUCTION_LENGTH);
        v.write(ENTRY_INSTRUCTION_LENGTH, length);
        if exit::is_nmi(event) {
            // The NMI blocks others already; it could not be delivered again like that.
            let interruptibility = v.read(GUEST_INTERRUPTIBILITY);
            v.write(GUEST_INTERRUPTIBILITY, interruptibility & !(1 << 3));
        }
    } else if v.read(EXIT_QUALIFICATION) & 1 << 12 != 0 {
        // The exit undoes an IRET that had ended the blocking of NMIs.
        let interruptibility = v.read(GUEST_INTERRUPTIBILITY);
        v.write(GUEST_INTERRUPTIBILITY, interruptibility | 1 << 3);
    }
}
