//! VM entries of the host.

use core::sync::atomic::Ordering;

use ept::addr::Frame;
use nested_vmx::check::Wanted;
use nested_vmx::control::{EntryControls, Pin, Primary, Secondary};
use nested_vmx::cr::{self, CR0_PG};
use nested_vmx::field::{
    self as f, EPT_POINTER, GUEST_DEBUGCTL, GUEST_DR7, GUEST_EFER, GUEST_INTERRUPTIBILITY,
    GUEST_PAT, INSTRUCTION_ERROR, VMCS_LINK_POINTER, Vmcs,
};
use nested_vmx::leave::{Cause, Inherited};
use nested_vmx::merge::Environment;
use nested_vmx::operation::{Answer, Scope, enterable};
use nested_vmx::vcpu::Refusal;
use nested_vmx::vmcs12::{Launch, REVISION, Vmcs12};
use nested_vmx::{bitmap, msr};

use super::slots::{Slot, TablesInUse};
use super::{Mode, Nested, context, instruction, leave, lists};
use crate::cpu::{self, vmx, vmx::Current};
use crate::host::{HostRam, Next};
use crate::host_memory;
use crate::machine::Machine;
use crate::memory::{self, Tables};
use crate::percpu::PerCpu;

/// Basic exit reasons of failed entries.
const INVALID_GUEST_STATE: u32 = 33;
pub(super) const MSR_LOADING: u32 = 34;
/// Exit qualification of the first.
const BAD_PDPTES: u64 = 2;
/// A link pointer that no processor accepts: not aligned.
const NO_LINK: u64 = 1;

/// Entries of a VM on shadow tables until its own are tried again.
const PATIENCE: u32 = 4096;

/// Does VMLAUNCH or VMRESUME, which asks the VMCS to be in this launch state. VMCS01 is current; afterwards VMCS02 is, or the instruction has failed.
pub(super) fn enter(cpu: &PerCpu, machine: &Machine, nested: &mut Nested, asks: Launch) -> Next {
    if nested.operation.current().is_none() {
        return instruction::conclude(nested, machine, Answer::FailInvalid);
    }
    let host = Environment {
        host: &machine.controls,
        msr_bitmap: cpu.msr_bitmap_frame().base(),
        io_bitmaps: (machine.io_bitmap_a.base(), machine.io_bitmap_b.base()),
        virtual_apic: cpu.virtual_apic_frame().base(),
        efer: Current.read(GUEST_EFER),
        pat: Current.read(GUEST_PAT),
        dr7: Current.read(GUEST_DR7),
        debugctl: Current.read(GUEST_DEBUGCTL),
    };
    let interruptibility = Current.read(GUEST_INTERRUPTIBILITY);
    let context = context(machine);
    let slot = nested.slots.current();
    if machine.decoys.is_some() {
        slot.with_decoy(|vcpu, decoy| vcpu.pull(decoy));
    }
    let vcpu = &mut slot.vcpu;
    if let Err(error) = enterable(vcpu.fields().launched(), asks, interruptibility) {
        return instruction::conclude(nested, machine, error.into());
    }
    match vcpu.check(&context) {
        Ok(()) => {}
        Err(Refusal::Instruction(invalid)) => {
            return instruction::conclude(nested, machine, Answer::Fail(invalid.number()));
        }
        Err(Refusal::GuestState(qualification)) => {
            return fail(nested, machine, (INVALID_GUEST_STATE, qualification));
        }
    }
    go(cpu, machine, nested, &host)
}

/// The checks are done: brings VMCS02 up to date.
fn go(cpu: &PerCpu, machine: &Machine, nested: &mut Nested, host: &Environment<'_>) -> Next {
    let region = nested.operation.current();
    let slot = nested.slots.current();
    prepare_pages(cpu, machine, slot);
    vmx::select(slot.guest);
    slot.vcpu.merge(host, &mut Current);
    let fields = slot.vcpu.fields();
    let wanted = Wanted::of(fields);
    let paged = !wanted.secondary.contains(Secondary::EPT) && uses_pdptes(&wanted, fields);
    let loaded = if paged { cr::load_pdptes(&mut Current, &HostRam) } else { Ok(()) };
    let has_list = fields.read(f::ENTRY_MSR_LOAD_COUNT) != 0;
    if has_list {
        Current.write(f::ENTRY_MSR_LOAD, machine.bad_list.base());
        Current.write(f::ENTRY_MSR_LOAD_COUNT, 1);
    }
    if wanted.pin.contains(Pin::PREEMPTION_TIMER) {
        // It goes on over exits that the host does not see, and begins anew at each entry of the
        // host's, unless that asks to have it saved.
        let save = machine.advertised.may_save_timer();
        let exit = Current.read(f::EXIT_CONTROLS);
        Current.write(f::EXIT_CONTROLS, exit | save.bits());
        Current.write(f::PREEMPTION_TIMER, fields.read(f::PREEMPTION_TIMER));
    }
    if !link_is_valid(machine, region, fields) {
        // Among other reasons to refuse the guest's state, this one has its place: the processor's.
        Current.write(VMCS_LINK_POINTER, NO_LINK);
    }
    let entered = slot.entered;
    if let Err(cr::Fault) = loaded {
        slot.vcpu.renew();
        vmx::select(cpu.vmcs_region());
        return fail(nested, machine, (INVALID_GUEST_STATE, BAD_PDPTES));
    }
    nested.mode = if has_list { Mode::Probing } else { Mode::Entering };
    cpu.launch(!entered);
    Next::Stay
}

/// The processor has checked the VM's state and found nothing, so that now, and not earlier, the
/// host's list of MSRs is loaded. VMCS02 is current.
///
/// # Errors
/// The number of the entry that cannot be loaded: [`fail`] is due.
pub(super) fn load_list(cpu: &PerCpu, machine: &Machine, nested: &mut Nested) -> Result<Next, u64> {
    let slot = nested.slots.current();
    let fields = slot.vcpu.fields();
    let list = (fields.read(f::ENTRY_MSR_LOAD), fields.read(f::ENTRY_MSR_LOAD_COUNT));
    lists::load(machine, list)?;
    Current.write(f::ENTRY_MSR_LOAD_COUNT, 0);
    nested.mode = Mode::Entering;
    cpu.launch(!slot.entered);
    Ok(Next::Stay)
}

/// Whether the processor reads page-directory-pointer-table entries at this entry.
fn uses_pdptes(wanted: &Wanted, fields: &Vmcs12) -> bool {
    const PAE: u64 = 1 << 5;
    fields.read(f::GUEST_CR0) & CR0_PG != 0
        && fields.read(f::GUEST_CR4) & PAE != 0
        && !wanted.entry.contains(EntryControls::IA32E_GUEST)
}

/// Whether the link pointer names no VMCS, or another one that could be (SDM vol. 3, 28.3.1.5).
fn link_is_valid(machine: &Machine, current: Option<Frame>, fields: &Vmcs12) -> bool {
    if fields.is_unlinked() {
        return true;
    }
    let linked = Frame::at(fields.read(VMCS_LINK_POINTER));
    let other = linked.filter(|_| linked != current);
    let page = other.and_then(|region| host_memory::page(machine, region));
    page.is_some_and(|page| cpu::low(page.read(0)) == REVISION)
}

/// Brings the visor's copies of the pages that the processor uses up to date.
fn prepare_pages(cpu: &PerCpu, machine: &Machine, slot: &mut Slot) {
    let fields = slot.vcpu.fields();
    let wanted = Wanted::of(fields);
    if wanted.primary.contains(Primary::MSR_BITMAPS) {
        let region = Frame::containing(fields.read(f::MSR_BITMAP));
        let host = slot.bitmap.page(machine, region);
        let byte = |at| host.as_ref().map_or(0xff, |page| page.read_byte(at));
        let denied = memory::page_bytes(machine.msr_bitmap);
        cpu.with_msr_bitmap(|bitmap: &mut [u8; msr::BITMAP_BYTES]| {
            bitmap::merge(bitmap, denied, byte);
        });
    }
    if wanted.primary.contains(Primary::TPR_SHADOW) {
        let region = Frame::containing(fields.read(f::VIRTUAL_APIC));
        if let Some(page) = slot.apic.page(machine, region) {
            memory::write_entry(cpu.virtual_apic_frame(), TASK_PRIORITY, page.read(TASK_PRIORITY));
        }
    }
}

/// Index of the 8 bytes of a virtual-APIC page that hold the task priority (offset 0x80).
pub(super) const TASK_PRIORITY: usize = 0x80 / 8;

/// The entry fails after the instruction's own checks: an exit for the host. VMCS01 is current.
pub(super) fn fail(
    nested: &mut Nested,
    machine: &Machine,
    (reason, qualification): (u32, u64),
) -> Next {
    const ENTRY_FAILURE: u32 = 1 << 31;
    let inherited = Inherited {
        efer: Current.read(GUEST_EFER),
        pat: Current.read(GUEST_PAT),
        interruptibility: Current.read(GUEST_INTERRUPTIBILITY),
    };
    nested.slots.current().vcpu.fail(ENTRY_FAILURE | reason, qualification);
    leave::to_host(nested, machine, inherited, Cause::Other)
}

/// The processor has refused VMCS02 without entering: the host's instruction fails in the same way.
pub(crate) fn entry_refused(cpu: &PerCpu, machine: &Machine) -> Next {
    let mut nested = Nested::of(cpu);
    assert!(nested.mode.is_entering(), "VM entry refused in the middle of a VM's run");
    let error = Current.read(INSTRUCTION_ERROR);
    nested.mode = Mode::Host;
    cpu.launch(false);
    let slot = nested.slots.current();
    slot.vcpu.renew();
    vmx::select(cpu.vmcs_region());
    instruction::conclude(&mut nested, machine, Answer::Fail(error))
}

impl Nested {
    /// What EPT pointer VMCS02 has. VMCS02 is current.
    ///
    /// Looked at last before each entry: whoever gives up tables changes the generation, and then
    /// makes this processor come back here.
    fn resolve(&mut self, cpu: &PerCpu, machine: &Machine) -> u64 {
        if cpu.shadow_is_stale.take() {
            self.shadow.reset(&mut Tables).flush(vmx::invept_all);
        }
        let fields = self.slots.current().vcpu.fields();
        if !Wanted::of(fields).secondary.contains(Secondary::EPT) {
            return machine.tables.pointer();
        }
        let pointer = fields.read(EPT_POINTER);
        let tables = &mut self.slots.current().tables;
        if tables.pointer != pointer {
            *tables = TablesInUse { pointer, generation: None, patience: 0 };
        }
        if tables.generation.is_some_and(|generation| machine.tables.is_current(generation)) {
            return pointer;
        }
        if tables.generation.is_some() || tables.patience == 0 {
            let root = Frame::containing(pointer);
            cpu.root.store(root.base(), Ordering::SeqCst);
            tables.generation = machine.tables.load_root(root);
            tables.patience = PATIENCE;
            if tables.generation.is_some() {
                return pointer;
            }
        }
        tables.patience -= 1;
        cpu.root.store(0, Ordering::SeqCst);
        self.shadow.load(&mut Tables, pointer).flush(vmx::invept_all);
        self.shadow.pointer()
    }

    /// Does the host's INVEPT.
    pub(super) fn drop_translations(&mut self, scope: Scope) {
        self.shadow.reset(&mut Tables).flush(vmx::invept_all);
        match scope {
            Scope::Root(pointer) => vmx::invept(pointer),
            Scope::AllRoots | Scope::AllTags | Scope::Tag(..) => vmx::invept_all(),
        }
    }
}

/// The last look before a VM is entered: VMCS02 is current.
pub(crate) fn before_entry(cpu: &PerCpu, machine: &Machine) {
    let mut nested = Nested::of(cpu);
    while nested.mode.is_guest() {
        let pointer = nested.resolve(cpu, machine);
        // While it waited for a lock, this processor may have been called.
        if !cpu.shadow_is_stale.get() {
            Current.write(EPT_POINTER, pointer);
            break;
        }
    }
}

/// Whether the host asked to be told of NMIs that arrive while its VM runs.
pub(super) fn takes_nmis(fields: &Vmcs12) -> bool {
    Wanted::of(fields).pin.contains(Pin::NMI_EXITING)
}
