//! Exits of the host's VMs: the few that the visor answers, and the way back to the host.

use ept::addr::Frame;
use ept::shadow::{Access, Outcome};
use nested_vmx::check::Wanted;
use nested_vmx::control::{ExitControls, Primary, Secondary};
use nested_vmx::exit::{self};
use nested_vmx::field::{
    self as f, CR4_MASK, CR4_SHADOW, ENTRY_INTERRUPTION, EXIT_INTERRUPTION, EXIT_QUALIFICATION,
    EXIT_REASON, GUEST_EFER, GUEST_PAT, GUEST_PHYSICAL_ADDRESS, IDT_VECTORING, Vmcs,
};
use nested_vmx::leave::{Abort, Cause, Inherited, load_host};
use nested_vmx::merge::{HOST_VPID, ports_exit};
use nested_vmx::vmcs12::{Launch, Vmcs12};
use nested_vmx::{bitmap, cr, io as port};

use super::enter::{self, BAD_PDPTES, INVALID_GUEST_STATE, MSR_LOADING, fail, takes_nmis};
use super::slots::Slot;
use super::{Mode, Nested, lists, protected};
use crate::cpu::{self, low, vmx, vmx::Current};
use crate::host::{self, HostRam, Next, Registers};
use crate::host_memory::{self, HostTablesOfVm};
use crate::io;
use crate::machine::Machine;
use crate::memory::Tables;
use crate::percpu::PerCpu;

const EXCEPTION_OR_NMI: u32 = 0;
const TRIPLE_FAULT: u32 = 2;
const NMI_WINDOW: u32 = 8;
const CONTROL_REGISTER: u32 = 28;
const IO: u32 = 30;
const READ_MSR: u32 = 31;
const WRITE_MSR: u32 = 32;
const EPT_VIOLATION: u32 = 48;
const EPT_MISCONFIGURATION: u32 = 49;
const ENTRY_FAILURE: u32 = 1 << 31;

/// What becomes of an exit of a VM.
enum Verdict {
    /// The visor has answered it; the VM goes on.
    Answered(Next),
    /// The host gets it as it is.
    Reflect,
    /// The host gets it with this reason and qualification.
    As(u32, u64),
}

/// Handles an exit of the host's VM. VMCS02 is current; afterwards it still is, or the host runs.
pub(crate) fn exit(cpu: &PerCpu, machine: &Machine, raw: u32, registers: &mut Registers) -> Next {
    let mut nested = Nested::of(cpu);
    if raw & ENTRY_FAILURE != 0 {
        return entry_failed(cpu, machine, &mut nested, (raw & 0xffff, registers));
    }
    if nested.mode == Mode::Entering {
        nested.has_entered(cpu, Mode::Guest);
    } else if nested.mode != Mode::Guest {
        return protected::exit(cpu, machine, &mut nested, (raw & 0xffff, registers));
    }
    let verdict = verdict(cpu, machine, &mut nested, raw & 0xffff, registers);
    match verdict {
        Verdict::Answered(next) => next,
        Verdict::Reflect => reflect(&mut nested, machine, cause(raw), &[]),
        Verdict::As(reason, qualification) => {
            let told = [
                (EXIT_REASON.encoding(), reason.into()),
                (EXIT_QUALIFICATION.encoding(), qualification),
            ];
            reflect(&mut nested, machine, Cause::Other, &told)
        }
    }
}

impl Nested {
    /// The host's VM-entry instruction has succeeded, and this is its first exit.
    #[inline(always)]
    pub(super) fn has_entered(&mut self, cpu: &PerCpu, mode: Mode) {
        self.mode = mode;
        cpu.launch(false);
        let slot = self.slots.current();
        if !slot.entered || slot.vcpu.fields().launched() == Launch::Clear {
            slot.entered = true;
            slot.vcpu.fields_mut().set_launched(Launch::Launched);
        }
    }
}

/// The processor has refused what the entry was to load.
fn entry_failed(
    cpu: &PerCpu,
    machine: &Machine,
    nested: &mut Nested,
    (reason, registers): (u32, &mut Registers),
) -> Next {
    if nested.slots.current().protected.is_some() {
        if !nested.mode.is_entering() {
            return protected::give_up(nested, machine, registers);
        }
        protected::take_back(nested.slots.current(), registers);
    }
    assert!(nested.mode.is_entering(), "VM entry failed in the middle of a VM's run");
    let mut failure = (reason, Current.read(EXIT_QUALIFICATION));
    if nested.mode == Mode::Doomed && reason == MSR_LOADING {
        failure = (INVALID_GUEST_STATE, BAD_PDPTES);
    } else if nested.mode == Mode::Probing && reason == MSR_LOADING {
        match enter::load_list(cpu, machine, nested) {
            Ok(next) => return next,
            Err(number) => failure = (MSR_LOADING, number),
        }
    }
    vmx::select(&cpu.vmcs_region());
    nested.set_mode(cpu, Mode::Host);
    cpu.launch(false);
    nested.slots.current().vcpu.renew();
    fail(nested, machine, failure)
}

pub(super) fn cause(raw: u32) -> Cause {
    let by_nmi = raw & 0xffff == EXCEPTION_OR_NMI && exit::is_nmi(Current.read(EXIT_INTERRUPTION));
    if by_nmi { Cause::Nmi } else { Cause::Other }
}

fn verdict(
    cpu: &PerCpu,
    machine: &Machine,
    nested: &mut Nested,
    reason: u32,
    registers: &mut Registers,
) -> Verdict {
    let slot = nested.slots.current();
    let fields = slot.vcpu.fields();
    let wanted = Wanted::of(fields);
    match reason {
        EXCEPTION_OR_NMI if exit::is_nmi(Current.read(EXIT_INTERRUPTION)) => nmi(cpu, fields),
        NMI_WINDOW if !wanted.primary.contains(Primary::NMI_WINDOW) => {
            host::set_nmi_window(false);
            Verdict::Answered(Next::Stay)
        }
        CONTROL_REGISTER => control_register(fields, registers),
        IO => ports(cpu, machine, fields, registers),
        READ_MSR if is_left_to_vm(machine, slot, 0, low(registers.rcx)) => {
            Verdict::Answered(host::read_msr(registers))
        }
        WRITE_MSR if is_left_to_vm(machine, slot, bitmap::WRITES, low(registers.rcx)) => {
            Verdict::Answered(host::write_msr(cpu, registers))
        }
        EPT_VIOLATION | EPT_MISCONFIGURATION
            if !wanted.secondary.contains(Secondary::EPT) && reason == EPT_VIOLATION =>
        {
            fault(host::repeat_or_refuse(cpu, Current.read(GUEST_PHYSICAL_ADDRESS)))
        }
        EPT_VIOLATION | EPT_MISCONFIGURATION => translate(cpu, machine, nested),
        _ => Verdict::Reflect,
    }
}

fn nmi(cpu: &PerCpu, fields: &Vmcs12) -> Verdict {
    if keeps_nmi(cpu, fields) { Verdict::Answered(Next::Stay) } else { Verdict::Reflect }
}

/// Takes an NMI that was an exit, if it was a call, or is the VM's own; then the VM goes on.
pub(super) fn keeps_nmi(cpu: &PerCpu, fields: &Vmcs12) -> bool {
    cpu::unblock_nmis();
    let ours = host::is_call(cpu);
    if !ours && takes_nmis(fields) {
        return false;
    }
    if !ours {
        cpu.nmi_owed.set(true);
    }
    host::deliver_again();
    true
}

/// A VM's write to CR4 exits also if it sets a bit of a feature that the visor hides.
fn control_register(fields: &Vmcs12, registers: &Registers) -> Verdict {
    let cr::Access::WriteCr4(number) = cr::Access::decode(Current.read(EXIT_QUALIFICATION)) else {
        return Verdict::Reflect;
    };
    let value = registers.numbered(number);
    let differs = (value ^ fields.read(CR4_SHADOW)) & fields.read(CR4_MASK) != 0;
    if differs { Verdict::Reflect } else { Verdict::Answered(host::GP0) }
}

fn ports(cpu: &PerCpu, machine: &Machine, fields: &Vmcs12, registers: &mut Registers) -> Verdict {
    let wanted = Wanted::of(fields);
    let open = if wanted.primary.contains(Primary::IO_BITMAPS) {
        // INS and OUTS of a port that the host leaves to its VM: the host emulates them.
        let access = port::Access::decode(Current.read(EXIT_QUALIFICATION));
        access.is_some_and(|access| access.ports().all(|port| !port_exits(machine, fields, port)))
    } else {
        !ports_exit(wanted.primary)
    };
    if open { Verdict::Answered(io::handle(cpu, machine, registers)) } else { Verdict::Reflect }
}

fn port_exits(machine: &Machine, fields: &Vmcs12, port: Option<u16>) -> bool {
    // An access that wraps around the end of the port space always exits.
    let Some(port) = port else {
        return true;
    };
    let field = if port < 0x8000 { f::IO_BITMAP_A } else { f::IO_BITMAP_B };
    let page = host_memory::page(machine, Frame::containing(fields.read(field)));
    let place = usize::from(port & 0x7fff);
    page.is_none_or(|page| page.read_byte(place / 8) >> (place % 8) & 1 != 0)
}

/// Whether the host leaves the access to its VM, and the processor's bitmaps only did not know.
#[inline(always)]
fn is_left_to_vm(machine: &Machine, slot: &mut Slot, offset: usize, index: u32) -> bool {
    let fields = slot.vcpu.fields();
    let wanted = Wanted::of(fields);
    if !wanted.primary.contains(Primary::MSR_BITMAPS) {
        return false;
    }
    let page = slot.bitmap.page(machine, Frame::containing(fields.read(f::MSR_BITMAP)));
    let place = bitmap::place(index).zip(page);
    place.is_some_and(|((place, bit), page)| page.read(place + offset) & bit == 0)
        && !bitmap::is_direct(index)
}

/// Fills EPT02, or tells the host what EPT12 lacks.
fn translate(cpu: &PerCpu, machine: &Machine, nested: &mut Nested) -> Verdict {
    if nested.slots.current().is_direct() {
        return Verdict::Reflect;
    }
    const ACCESS: u64 = 0b111;
    const RIGHTS: u64 = 0b111 << 3;
    /// The access is to the page that the linear address names, not to a page table on the way.
    const FINAL: u64 = 0b11 << 7;
    const LINEAR_VALID: u64 = 1 << 7;
    let qualification = Current.read(EXIT_QUALIFICATION);
    let address = Current.read(GUEST_PHYSICAL_ADDRESS);
    let mut access = Access::from_bits(qualification & ACCESS);
    let pointer = nested.slots.current().vcpu.fields().read(f::EPT_POINTER);
    const ACCESSED_DIRTY: u64 = 1 << 6;
    if qualification & FINAL == LINEAR_VALID && pointer & ACCESSED_DIRTY != 0 {
        // With accessed and dirty flags, reads of the VM's page tables count as writes.
        access = access.or(Access::WRITE);
    }
    let host = HostTablesOfVm(machine);
    let (outcome, stale) = nested.shadow.fill(&mut Tables, &host, address, access);
    stale.flush(vmx::invept_all);
    match outcome {
        Outcome::Mapped | Outcome::Raced => {
            host::deliver_again();
            Verdict::Answered(Next::Stay)
        }
        Outcome::Violation { rights } => {
            Verdict::As(EPT_VIOLATION, qualification & !RIGHTS | rights.bits() << 3)
        }
        Outcome::Misconfigured => Verdict::As(EPT_MISCONFIGURATION, 0),
        // Where this leads, the host may not go either.
        Outcome::Forbidden => {
            let target = nested.shadow.leads_to(&host, address).unwrap_or(address);
            // Shadow tables lead to frames, and not to what the host sees in their place.
            let _ = machine.tables.give_back(Frame::containing(target));
            fault(host::repeat_or_refuse(cpu, target))
        }
    }
}

/// An exception for the VM; if it cannot take one more, it is the VM that has shut down.
fn fault(next: Next) -> Verdict {
    match next {
        Next::Shutdown => Verdict::As(TRIPLE_FAULT, 0),
        Next::Step | Next::Stay | Next::Raise(_) => Verdict::Answered(next),
    }
}

/// The processor has refused to go on with a VM. One control can become invalid in the middle of a
/// VM's run: the TPR threshold, if somebody writes to the virtual-APIC page, which is the host's. The
/// host is told what it would be if the VM had changed its TPR by MOV to CR8.
///
/// VMCS02 is current before, VMCS01 afterwards.
pub(super) fn refused_again(
    nested: &mut Nested,
    machine: &Machine,
    (error, registers): (u32, &mut Registers),
) -> Next {
    const CONTROL_FIELDS: u32 = 7;
    const TPR_BELOW_THRESHOLD: u64 = 43;
    if nested.slots.current().protected.is_some() {
        return protected::give_up(nested, machine, registers);
    }
    let wanted = Wanted::of(nested.slots.current().vcpu.fields());
    let by_threshold = error == CONTROL_FIELDS && wanted.primary.contains(Primary::TPR_SHADOW);
    assert!(by_threshold, "VM entry refused in the middle of a VM's run: error {error}");
    // An event that was to be delivered again is the host's to deliver.
    let event = [f::ENTRY_INTERRUPTION, f::ENTRY_ERROR_CODE, f::ENTRY_INSTRUCTION_LENGTH]
        .map(|field| u64::from(Current.read(field)));
    let [vectoring, code, length] = event;
    Current.write(ENTRY_INTERRUPTION, 0);
    let told = [
        (EXIT_REASON.encoding(), TPR_BELOW_THRESHOLD),
        (EXIT_QUALIFICATION.encoding(), 0),
        (EXIT_INTERRUPTION.encoding(), 0),
        (IDT_VECTORING.encoding(), vectoring),
        (f::IDT_VECTORING_CODE.encoding(), code),
        (f::EXIT_INSTRUCTION_LENGTH.encoding(), length),
    ];
    reflect(nested, machine, Cause::Other, &told)
}

/// Gives the exit to the host. VMCS02 is current before, VMCS01 afterwards.
fn reflect(nested: &mut Nested, machine: &Machine, cause: Cause, instead: &[(u32, u64)]) -> Next {
    let cpu = PerCpu::current();
    let slot = nested.slots.current();
    let vcpu = &mut slot.vcpu;
    vcpu.capture(&Current);
    for (encoding, value) in instead {
        vcpu.tell(*encoding, *value);
    }
    let inherited = Inherited::of(&Current, vcpu.fields());
    let fields = vcpu.fields();
    let list = (fields.read(f::EXIT_MSR_STORE), fields.read(f::EXIT_MSR_STORE_COUNT));
    let stored = lists::store(machine, list);
    if machine.decoys.is_some() {
        vmx::select(&slot.decoy);
        slot.vcpu.push(&mut Current);
    }
    vmx::select(&cpu.vmcs_region());
    nested.set_mode(cpu, Mode::Host);
    if stored.is_err() {
        return abort(nested, machine, Abort(1));
    }
    to_host(nested, machine, inherited, cause)
}

/// Loads the host's state after an exit or a failed entry, of which the host has been told. VMCS01 is
/// current.
#[inline(always)]
pub(super) fn to_host(
    nested: &mut Nested,
    machine: &Machine,
    inherited: Inherited,
    cause: Cause,
) -> Next {
    let fields = nested.slots.current().vcpu.fields();
    if let Err(abort_with) = load_host(fields, inherited, cause, &HostRam, &mut Current) {
        return abort(nested, machine, abort_with);
    }
    let list = (fields.read(f::EXIT_MSR_LOAD), fields.read(f::EXIT_MSR_LOAD_COUNT));
    let tagged = Wanted::of(fields).secondary.contains(Secondary::VPID);
    if list.1 != 0 && lists::load(machine, list).is_err() {
        return abort(nested, machine, Abort(4));
    }
    if !tagged && machine.controls.vpid {
        // Without tags an exit leaves nothing cached.
        vmx::invvpid(1, HOST_VPID, 0);
    }
    Next::Stay
}

/// VMX abort: the processor shuts down (SDM vol. 3, 29.7).
fn abort(nested: &mut Nested, machine: &Machine, Abort(indicator): Abort) -> Next {
    let region = nested.operation.current();
    if let Some(page) = region.and_then(|region| host_memory::page(machine, region)) {
        page.write(0, page.read(0) & 0xffff_ffff | u64::from(indicator) << 32);
    }
    Next::Shutdown
}

/// What becomes of an NMI of the host's that has arrived in the visor, while its VM is about to run.
pub(crate) enum NmiFate {
    /// It was an exit of the VM.
    Exit(Next),
    /// It is an event for the VM, or, if it cannot be delivered yet, looked at after the next exit.
    Event,
    /// It is looked at after the next exit, which is certain to come.
    Later,
}

/// Gives an NMI of the host's to it as an exit of its VM, if it asked for that. VMCS02 is current
/// before.
pub(crate) fn reflect_nmi(cpu: &PerCpu, machine: &Machine, registers: &mut Registers) -> NmiFate {
    const NMI: u32 = 1 << 31 | 2 << 8 | 2;
    let mut nested = Nested::of(cpu);
    if matches!(nested.mode, Mode::Probing | Mode::Doomed) {
        return NmiFate::Later;
    }
    let fields = nested.slots.current().vcpu.fields();
    if !takes_nmis(fields) || Current.read(ENTRY_INTERRUPTION) & 1 << 31 != 0 {
        return NmiFate::Event;
    }
    let is_entering = nested.mode.is_entering();
    let slot = nested.slots.current();
    let exit = Wanted::of(slot.vcpu.fields()).exit;
    vmx::select(&cpu.vmcs_region());
    let (efer, pat) = (Current.read(GUEST_EFER), Current.read(GUEST_PAT));
    vmx::select(&slot.guest);
    if is_entering {
        // As if the entry had completed, and the NMI had come at once.
        slot.vcpu.fields_mut().set_launched(Launch::Launched);
    }
    cpu.launch(false);
    if slot.protected.is_some() {
        return protected::reflect_nmi(&mut nested, machine, registers);
    }
    let told = [
        (EXIT_REASON.encoding(), 0),
        (EXIT_QUALIFICATION.encoding(), 0),
        (EXIT_INTERRUPTION.encoding(), NMI.into()),
        (IDT_VECTORING.encoding(), 0),
    ];
    let next = reflect(&mut nested, machine, Cause::Nmi, &told);
    // What the host would inherit of a VM that it has not entered, the processor has not checked.
    if is_entering && !exit.contains(ExitControls::LOAD_EFER) {
        Current.write(GUEST_EFER, efer);
    }
    if is_entering && !exit.contains(ExitControls::LOAD_PAT) {
        Current.write(GUEST_PAT, pat);
    }
    NmiFate::Exit(next)
}
