//! VM entries of the host.

use core::sync::atomic::Ordering;

use ept::addr::Frame;
use nested_vmx::bitmap;
use nested_vmx::check::Wanted;
use nested_vmx::control::{EntryControls, Pin, Primary, Secondary};
use nested_vmx::cr::{self, CR0_PG};
use nested_vmx::field::{
    self as f, EPT_POINTER, GUEST_EFER, GUEST_INTERRUPTIBILITY, GUEST_PAT, INSTRUCTION_ERROR,
    VMCS_LINK_POINTER, Vmcs,
};
use nested_vmx::leave::{Cause, Inherited};
use nested_vmx::merge::{Environment, HostRegisters};
use nested_vmx::operation::{Answer, Scope, enterable};
use nested_vmx::vcpu::Refusal;
use nested_vmx::vmcs12::{Launch, REVISION, Vmcs12};

use super::protected::NoRun;
use super::slots::{Slot, TablesInUse};
use super::{Mode, Nested, begin, context, instruction, leave, lists, protected};
use crate::cpu::{self, vmx, vmx::Current};
use crate::host::{HostRam, Next, Registers};
use crate::host_memory;
use crate::machine::Machine;
use crate::memory::Tables;
use crate::percpu::PerCpu;
use crate::tables;

/// Basic exit reasons of failed entries.
pub(super) const INVALID_GUEST_STATE: u32 = 33;
pub(super) const MSR_LOADING: u32 = 34;
/// Exit qualification of the first.
pub(super) const BAD_PDPTES: u64 = 2;
/// A link pointer that no processor accepts: not aligned.
const NO_LINK: u64 = 1;

/// Entries of a VM on shadow tables until its own are tried again.
const PATIENCE: u32 = 4096;

/// Does VMLAUNCH or VMRESUME, which asks the VMCS to be in this launch state. VMCS01 is current;
/// afterwards VMCS02 is, or the instruction has failed.
pub(super) fn enter(
    cpu: &PerCpu,
    machine: &Machine,
    nested: &mut Nested,
    (asks, registers): (Launch, &mut Registers),
) -> Next {
    let Some(region) = nested.operation.current() else {
        return instruction::conclude(nested, machine, Answer::FailInvalid);
    };
    let interruptibility = Current.read(GUEST_INTERRUPTIBILITY);
    let slot = nested.slots.current();
    let inherits = slot.vcpu.inherits();
    let host = if inherits { HostRegisters::of(&Current) } else { HostRegisters::UNUSED };
    if machine.decoys.is_some() {
        vmx::select(&slot.decoy);
        slot.vcpu.pull(&Current);
    }
    let launched = slot.vcpu.fields().launched();
    let admitted = enterable(launched, asks, interruptibility)
        .map_err(|error| Refused::Instruction(error.into()))
        .and_then(|()| {
            if slot.vcpu.is_unchecked() {
                check(cpu, machine, slot)?;
                begin::begin_anew(cpu, machine, slot, (&host, registers))?;
            }
            Ok(())
        })
        .and_then(|()| {
            if !slot.is_direct() {
                let known = (asks, &nested.environment, &host);
                if let Some(mode) = protected::enter(cpu, machine, slot, known, registers)? {
                    return Ok(mode);
                }
            }
            go((cpu, machine), slot, region, (&nested.environment, &host))
        });
    match admitted {
        Ok(mode) => {
            nested.set_mode(cpu, mode);
            cpu.launch(!nested.slots.current().entered);
            Next::Stay
        }
        Err(refused) => {
            vmx::select(&cpu.vmcs_region());
            match refused {
                Refused::Instruction(answer) => instruction::conclude(nested, machine, answer),
                Refused::State(qualification) => {
                    fail(nested, machine, (INVALID_GUEST_STATE, qualification))
                }
                Refused::NoRun(why) => protected::refuse(nested, machine, (why, registers)),
            }
        }
    }
}

/// Checks what the processor cannot. VMCS01 is current afterwards.
#[cold]
fn check(cpu: &PerCpu, machine: &Machine, slot: &mut Slot) -> Result<(), Refused> {
    vmx::select(&cpu.vmcs_region());
    if slot.tables.pointer != slot.vcpu.fields().read(EPT_POINTER) {
        // Other tables than before may be a protected VM's.
        slot.tables.generation = None;
    }
    Ok(slot.vcpu.check(&context(machine))?)
}

/// Why a VM is not entered.
enum Refused {
    /// The instruction fails.
    Instruction(Answer),
    /// The entry fails for the VM's state, with this exit qualification.
    State(u64),
    /// The VM is a protected one that does not run now.
    NoRun(NoRun),
}

impl From<NoRun> for Refused {
    fn from(why: NoRun) -> Self {
        Self::NoRun(why)
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Instruction(invalid) => Self::Instruction(Answer::Fail(invalid.number())),
            Refusal::GuestState(qualification) => Self::State(qualification),
        }
    }
}

/// The checks are done: makes VMCS02 current and brings it up to date.
fn go(
    (cpu, machine): (&PerCpu, &Machine),
    slot: &mut Slot,
    region: Frame,
    (environment, host): (&Environment<'_>, &HostRegisters),
) -> Result<Mode, Refused> {
    let wanted = Wanted::of(slot.vcpu.fields());
    if wanted.primary.contains(Primary::MSR_BITMAPS) {
        copy_msr_bits(cpu, machine, slot);
    }
    vmx::select(&slot.guest);
    slot.vcpu.merge(environment, host, &mut Current);
    place_virtual_apic(machine, slot, environment);
    let fields = slot.vcpu.fields();
    let paged = !wanted.secondary.contains(Secondary::EPT) && uses_pdptes(&wanted, fields);
    let is_doomed = paged && cr::load_pdptes(&mut Current, &HostRam).is_err();
    if is_doomed {
        // Those of the host's fields would be checked now.
        for field in [f::GUEST_PDPTE0, f::GUEST_PDPTE1, f::GUEST_PDPTE2, f::GUEST_PDPTE3] {
            Current.write(field, 0);
        }
    }
    let has_list = fields.read(f::ENTRY_MSR_LOAD_COUNT) != 0;
    if has_list || is_doomed {
        Current.write(f::ENTRY_MSR_LOAD, machine.bad_list.base());
        Current.write(f::ENTRY_MSR_LOAD_COUNT, 1);
    }
    if !link_is_valid(machine, region, fields) {
        // Among other reasons to refuse the guest's state, this one has its place: the processor's.
        Current.write(VMCS_LINK_POINTER, NO_LINK);
    }
    Ok(match (is_doomed, has_list) {
        (true, _) => Mode::Doomed,
        (false, true) => Mode::Probing,
        (false, false) => Mode::Entering,
    })
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
    cpu.launch(!slot.entered);
    nested.set_mode(cpu, Mode::Entering);
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
fn link_is_valid(machine: &Machine, current: Frame, fields: &Vmcs12) -> bool {
    if fields.is_unlinked() {
        return true;
    }
    let linked = Frame::at(fields.read(VMCS_LINK_POINTER));
    let other = linked.filter(|linked| *linked != current);
    let page = other.and_then(|region| host_memory::page(machine, region));
    page.is_some_and(|page| cpu::low(page.read(0)) == REVISION)
}

/// Has the processor use the host's virtual-APIC page for the VM: one byte of it, which the host may
/// write at any time anyway. Due again whenever this processor was called, as the page may be a page
/// table by now.
#[inline(always)]
pub(super) fn place_virtual_apic(
    machine: &Machine,
    slot: &mut Slot,
    environment: &Environment<'_>,
) {
    let fields = slot.vcpu.fields();
    if Wanted::of(fields).primary.contains(Primary::TPR_SHADOW) {
        let page = Frame::containing(fields.read(f::VIRTUAL_APIC));
        let usable = slot.apic.page(machine, page).is_some();
        Current.write(f::VIRTUAL_APIC, if usable { page.base() } else { environment.virtual_apic });
    }
}

/// Copies the bits for MSRs that VMs use often from the host's bitmaps into the processor's.
fn copy_msr_bits(cpu: &PerCpu, machine: &Machine, slot: &mut Slot) {
    let region = Frame::containing(slot.vcpu.fields().read(f::MSR_BITMAP));
    let host = slot.bitmap.page(machine, region);
    let word = |at| host.as_ref().map_or(u64::MAX, |page| page.read(at));
    bitmap::merge(&machine.always_exits, word, |at, value| cpu.msr_bitmap.write(at, value));
}

/// The entry fails after the instruction's own checks: an exit for the host. VMCS01 is current.
#[cold]
#[inline(never)]
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
    let slot = nested.slots.current();
    slot.vcpu.fail(ENTRY_FAILURE | reason, qualification);
    if machine.decoys.is_some() {
        slot.with_decoy(|vcpu, decoy| vcpu.push(decoy));
    }
    leave::to_host(nested, machine, inherited, Cause::Other)
}

/// The processor has refused VMCS02 without entering: the host's instruction fails in the same way.
pub(crate) fn entry_refused(cpu: &PerCpu, machine: &Machine, registers: &mut Registers) -> Next {
    let mut nested = Nested::of(cpu);
    let error = Current.read(INSTRUCTION_ERROR);
    if !nested.mode.is_entering() {
        return leave::refused_again(&mut nested, machine, (error, registers));
    }
    nested.set_mode(cpu, Mode::Host);
    cpu.launch(false);
    let slot = nested.slots.current();
    protected::take_back(slot, registers);
    slot.vcpu.renew();
    vmx::select(&cpu.vmcs_region());
    instruction::conclude(&mut nested, machine, Answer::Fail(error))
}

impl Nested {
    /// What EPT pointer VMCS02 has. VMCS02 is current.
    ///
    /// Looked at last before each entry: whoever gives up tables changes the generation, and then
    /// makes this processor come back here.
    #[inline(always)]
    fn resolve(&mut self, cpu: &PerCpu, machine: &Machine) -> u64 {
        if cpu.shadow_is_stale.get() {
            self.answer_call(cpu, machine);
        }
        let slot = self.slots.current();
        let fields = slot.vcpu.fields();
        let pointer = fields.read(EPT_POINTER);
        let tables = &slot.tables;
        let usable = |generation| machine.tables.is_current(generation);
        if Wanted::of(fields).secondary.contains(Secondary::EPT)
            && tables.pointer == pointer
            && tables.generation.is_some_and(usable)
        {
            return pointer;
        }
        self.choose(cpu, machine)
    }

    /// What a call to this processor leaves to be done while VMCS02 is current.
    #[cold]
    #[inline(never)]
    fn answer_call(&mut self, cpu: &PerCpu, machine: &Machine) {
        cpu.shadow_is_stale.set(false);
        self.shadow.reset(&mut Tables).flush(vmx::invept_all);
        let slot = self.slots.current();
        place_virtual_apic(machine, slot, &self.environment);
        if let Some(vcpu) = &mut slot.protected {
            vcpu.pointer = None;
        }
    }

    /// Tries to use the host's tables as they stand, and shadows them otherwise; not those of a protected
    /// VM.
    #[cold]
    #[inline(never)]
    fn choose(&mut self, cpu: &PerCpu, machine: &Machine) -> u64 {
        let slot = self.slots.current();
        if cpu.guarded.get() {
            return protected::pointer(machine, slot);
        }
        let fields = slot.vcpu.fields();
        if !Wanted::of(fields).secondary.contains(Secondary::EPT) {
            return machine.tables.pointer();
        }
        let (pointer, tables) = (fields.read(EPT_POINTER), &mut slot.tables);
        if tables.pointer != pointer {
            *tables = TablesInUse { pointer, generation: None, patience: 0 };
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
            // A protected VM does not run with the tables that the host names.
            Scope::Root(pointer) if !tables::any_protected() => vmx::invept(pointer),
            Scope::Root(_) => vmx::invept_all(),
            Scope::AllRoots | Scope::AllTags | Scope::Tag(..) => vmx::invept_all(),
        }
    }
}

/// The last look before a VM is entered: VMCS02 is current.
#[inline(always)]
pub(crate) fn before_entry(cpu: &PerCpu, machine: &Machine) {
    let mut nested = Nested::of(cpu);
    loop {
        let pointer = nested.resolve(cpu, machine);
        // While it waited for a lock, this processor may have been called.
        if !cpu.shadow_is_stale.get() {
            return Current.write(EPT_POINTER, pointer);
        }
    }
}

/// Whether the host asked to be told of NMIs that arrive while its VM runs.
pub(super) fn takes_nmis(fields: &Vmcs12) -> bool {
    Wanted::of(fields).pin.contains(Pin::NMI_EXITING)
}
