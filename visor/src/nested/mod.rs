//! Nested VMX: what the host's VMX instructions do, and how its VMs run.
//!
//! The decisions are those of `nested_vmx`; here is what they are done with: the VMCS regions of one
//! processor, and which of them is current.

mod begin;
mod carried;
mod disks;
mod enter;
mod guest_memory;
mod instruction;
mod leave;
mod lists;
mod protected;
mod slots;
mod vcpus;

use core::cell::RefMut;

use ept::shadow::{Format, Shadow};
use nested_vmx::check::Context;
use nested_vmx::field::{GUEST_EFER, Vmcs};
use nested_vmx::merge::Environment;
use nested_vmx::operation::Operation;

use crate::cpu::vmx::Current;
use crate::host;
use crate::machine::Machine;
use crate::memory::POOL;
use crate::percpu::PerCpu;

pub(crate) use begin::sweep;
pub(crate) use enter::{before_entry, entry_refused};
pub(crate) use instruction::{VMXOFF, execute};
pub(crate) use leave::{NmiFate, exit, reflect_nmi};
use slots::Slots;
pub(crate) use slots::{SLOTS, SlotPages};

/// Nested VMX of one processor.
#[derive(Debug)]
pub(crate) struct Nested {
    /// What the host's instructions have made of it.
    pub(crate) operation: Operation,
    slots: Slots,
    /// Whether the processor runs the VM of the current slot, or is about to.
    pub(crate) mode: Mode,
    /// An INIT that waits for the host to leave VMX operation.
    pub(crate) init_pending: bool,
    /// EPT02, for VMs whose EPT12 is not used as it stands.
    shadow: Shadow,
    /// What every VMCS02 takes from the visor.
    environment: Environment<'static>,
}

/// Who runs on the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The host, with VMCS01.
    Host,
    /// A VM of the host, with VMCS02, to have the processor check its state. The entry then fails on
    /// purpose, by a list of MSRs that cannot be loaded.
    Probing,
    /// The same, and then the entry fails for the VM's page-directory-pointer-table entries, which a
    /// processor checks last.
    Doomed,
    /// A VM of the host, with VMCS02, for the first time since the host's VM-entry instruction.
    Entering,
    /// A VM of the host.
    Guest,
    /// A protected VM, for the first time since the host's VM-entry instruction.
    EnteringGuarded,
    /// A protected VM.
    Guarded,
}

impl Mode {
    /// Whether the VM has not run yet since the host's VM-entry instruction.
    pub(crate) fn is_entering(self) -> bool {
        matches!(self, Self::Probing | Self::Doomed | Self::Entering | Self::EnteringGuarded)
    }
}

impl Nested {
    /// Nested VMX of a processor that was just set up.
    #[expect(clippy::large_stack_frames, reason = "runs once, on a stack that is empty")]
    pub(crate) fn new(cpu: &PerCpu, machine: &'static Machine) -> Option<Self> {
        let format = Format {
            width: machine.width,
            execute_only: machine.advertised.capabilities().ept_vpid & 1 != 0,
        };
        Some(Self {
            operation: Operation::OFF,
            slots: Slots::new(cpu)?,
            mode: Mode::Host,
            init_pending: false,
            shadow: Shadow::new(&mut *POOL.lock(), cpu.shadow_frames(), format)?,
            environment: Environment {
                host: &machine.controls,
                save_timer: machine.advertised.may_save_timer(),
                msr_bitmap: cpu.msr_bitmap_frame().base(),
                io_bitmaps: (machine.io_bitmap_a.base(), machine.io_bitmap_b.base()),
                virtual_apic: cpu.virtual_apic_frame().base(),
            },
        })
    }

    /// Says who runs from the next entry on.
    fn set_mode(&mut self, cpu: &PerCpu, mode: Mode) {
        self.mode = mode;
        cpu.in_guest.set(mode != Mode::Host);
    }

    /// This processor's, for the length of one exit.
    pub(crate) fn of(cpu: &PerCpu) -> RefMut<'_, Self> {
        cpu.nested().borrow_mut()
    }
}

/// Whether the host is in VMX operation on this processor.
pub(crate) fn is_on(cpu: &PerCpu) -> bool {
    Nested::of(cpu).operation.is_on()
}

/// Whether an INIT that has arrived is blocked: it is, in VMX root operation, and stays pending (SDM
/// vol. 3, 25.8).
pub(crate) fn blocks_init(cpu: &PerCpu) -> bool {
    let mut nested = Nested::of(cpu);
    nested.init_pending = nested.operation.is_on();
    nested.init_pending
}

/// Whether an INIT was pending and is not blocked any more.
pub(crate) fn takes_init(cpu: &PerCpu) -> bool {
    let nested = Nested::of(cpu);
    nested.init_pending && !nested.operation.is_on()
}

/// What checks of the host's VMCSs and operands depend on now; VMCS01 is current.
fn context(machine: &Machine) -> Context<'_> {
    const LMA: u64 = 1 << 10;
    Context {
        advertised: &machine.advertised,
        width: machine.width,
        long_mode: Current.read(GUEST_EFER) & LMA != 0,
        sign_bit: host::sign_bit(),
    }
}
