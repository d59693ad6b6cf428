//! Entries and exits of protected VMs. What the host sees of them and may change is decided by
//! `nested_vmx::guard`; whose memory is whose, by `membrane`.

use ept::frames::Vm;
use ept::shadow::Access;
use membrane::processors::Processors;
use membrane::vm::{Cause, Fault, Filled};
use nested_vmx::check::Wanted;
use nested_vmx::control::Primary;
use nested_vmx::exit::{self, Event};
use nested_vmx::field::{EPT_POINTER, EXIT_INTERRUPTION, GUEST_EFER, GUEST_PAT, Vmcs};
use nested_vmx::guard::{self, Entered, Verdict};
use nested_vmx::leave::{Cause as By, Inherited};
use nested_vmx::merge::{Environment, HostRegisters};
use nested_vmx::vcpu::Vcpu;
use nested_vmx::vmcs12::Launch;

use super::guest_memory::Space;
use super::leave::{self, NmiFate};
use super::slots::Slot;
use super::vcpus::Protected;
use super::{Mode, Nested, begin, enter};
use crate::cpu::{self, low, vmx, vmx::Current};
use crate::host::{self, Next, Registers};
use crate::machine::Machine;
use crate::percpu::PerCpu;
use crate::tables;

const EXCEPTION_OR_NMI: u32 = 0;
const NMI_WINDOW: u32 = 8;

/// Why a VM that the host enters does not run.
pub(super) enum NoRun {
    /// It has shut down, and the host is told so.
    ShutDown,
    /// It has not finished an instruction for which the host is needed: it is told.
    Shown,
}

use NoRun::ShutDown;

impl guard::Registers for Registers {
    #[inline(always)]
    fn get(&self, number: u8) -> u64 {
        self.numbered(number)
    }
    #[inline(always)]
    fn set(&mut self, number: u8, value: u64) {
        self.set_numbered(number, value);
    }
}

/// Refuses a vCPU without a ticket, if all of them are, or if it would run on the tables of a protected VM.
///
/// # Errors
/// [`NoRun::ShutDown`] if it would.
fn keep_out(machine: &Machine, slot: &Slot) -> Result<(), NoRun> {
    if !machine.unprotected_vms {
        machine.tables.saw_unprotected();
        return Err(ShutDown);
    }
    let foreign = tables::any_protected()
        && begin::root(slot).is_some_and(|root| machine.tables.is_guarded(root));
    if foreign { Err(ShutDown) } else { Ok(()) }
}

pub(super) fn stop(machine: &Machine, vm: (Vm, u64), cause: Cause) -> NoRun {
    machine.tables.stop_vm(vm, cause);
    ShutDown
}

pub(super) fn stop_vcpu(machine: &Machine, vm: (Vm, u64), cause: guard::Cause) -> NoRun {
    log::warn!("protected VM {}: {cause}", vm.0.number());
    // The kind in bits 3:0, a detail above.
    let number = cause.number();
    let [kind, detail] = [number >> 8 & 0xf, number >> 16 & 0xfff];
    stop(machine, vm, Cause::Processor(u16::try_from(kind | detail << 4).unwrap_or(u16::MAX)))
}

/// Cause of a stop: the processor has refused the VM's state, or its XCR0.
const REFUSED: u16 = 0xf;
const EXTENDED_STATE: u16 = 0xe;

/// Does the host's VM-entry instruction if the VM is a protected one, or becomes one now; `None` if it
/// is not. VMCS01 or the decoy is current before, VMCS02 afterwards; or any, if there is an error.
///
/// # Errors
/// [`NoRun::ShutDown`] if the VM is not to run.
#[inline(never)]
pub(super) fn enter(
    cpu: &PerCpu,
    machine: &Machine,
    slot: &mut Slot,
    (asks, environment, host): (Launch, &Environment<'_>, &HostRegisters),
    registers: &mut Registers,
) -> Result<Option<Mode>, NoRun> {
    if asks == Launch::Clear && slot.protected.is_none() {
        if tables::tickets_wait() {
            vmx::select(&cpu.vmcs_region());
            begin::launch(machine, slot, (host, registers))?;
        }
        if slot.protected.is_none() && tables::any_protected() {
            vmx::select(&cpu.vmcs_region());
            begin::join(machine, slot, (host, registers))?;
        }
    }
    if slot.protected.is_none() {
        return keep_out(machine, slot).map(|()| None);
    }
    let mode = go(machine, slot, environment, registers)?;
    cpu.guarded.set(true);
    Ok(Some(mode))
}

/// Brings VMCS02 up to date for the protected VM of the slot, and the processor's registers that VMX
/// does not switch. VMCS02 is current afterwards; or any, if there is an error.
///
/// # Errors
/// Why the VM does not run: the host demands what it may not, the VM was stopped before, or the host has to
/// answer something first.
fn go(
    machine: &Machine,
    slot: &mut Slot,
    environment: &Environment<'_>,
    registers: &mut Registers,
) -> Result<Mode, NoRun> {
    let Some(vcpu) = &mut slot.protected else {
        return Err(ShutDown);
    };
    if let Some(at) = vcpu.missing.take() {
        // Most often the host has provided it, and the VM need not exit for it once more. If not, it does.
        let fault = Fault { at, access: Access::READ, word: vcpu.guarded.window_word() };
        let _ = machine.tables.fill(vcpu.vm, slot.vcpu.fields().read(EPT_POINTER), fault);
    }
    vcpu.pointer = machine.tables.ept_of(vcpu.vm);
    if vcpu.pointer.is_none() {
        return Err(ShutDown);
    }
    answer(machine, (vcpu, &mut slot.vcpu), registers)?;
    if vcpu.guarded.xcr0() != vcpu.state.xcr0() && !vcpu.state.set_xcr0(vcpu.guarded.xcr0()) {
        return Err(stop(machine, vcpu.vm, Cause::Processor(EXTENDED_STATE)));
    }
    vmx::select(&slot.guest);
    let environment = Environment { msr_bitmap: machine.guarded_bitmap.base(), ..*environment };
    vcpu.guarded.effective_mut().merge(&environment, &HostRegisters::UNUSED, &mut Current);
    vcpu.state.enter();
    enter::place_virtual_apic(machine, slot, &environment);
    Ok(Mode::EnteringGuarded)
}

/// Takes the host's answer to the VM's last exit.
///
/// # Errors
/// Why the VM does not run.
fn answer(
    machine: &Machine,
    (vcpu, shown): (&mut Protected, &mut Vcpu<'_>),
    registers: &mut Registers,
) -> Result<(), NoRun> {
    let pointer = shown.fields().read(EPT_POINTER);
    let (vm, reached) = (vcpu.vm, &vcpu.reached);
    let space = Space { machine, vm, pointer, reached };
    /// How often a page is looked for before the host gets its turn: others may take it away each time,
    /// or store where this one has to.
    const ROUNDS: u32 = 8;
    let mut entered = vcpu.guarded.enter(shown, registers, &space);
    let mut rounds = 0;
    loop {
        let at = match entered.map_err(|cause| stop_vcpu(machine, vm, cause))? {
            Entered::Run => return Ok(()),
            Entered::Show => return Err(NoRun::Shown),
            Entered::Signal(command) => {
                signal(machine, vm, command);
                return Err(NoRun::Shown);
            }
            Entered::Page { address, access } => {
                Fault { at: address, access, word: vcpu.guarded.window_word() }
            }
        };
        let told = match machine.tables.fill(vm, pointer, at) {
            Filled::Mapped if rounds < ROUNDS => {
                rounds += 1;
                entered = vcpu.guarded.resume(shown, registers, &space);
                continue;
            }
            Filled::Mapped => (at.at & !0xfff, Access::NONE),
            Filled::Absent(page) => (page.base(), Access::NONE),
            Filled::Denied { at, rights } => (at.base(), rights),
            Filled::Unloaded | Filled::Device { .. } | Filled::Stopped(_) => return Err(ShutDown),
        };
        vcpu.guarded.show_page(shown, registers, told);
        return Err(NoRun::Shown);
    }
}

/// The host's VM-entry instruction ends as if the VM had run, and exited at once. VMCS01 is current.
#[cold]
#[inline(never)]
pub(super) fn refuse(
    nested: &mut Nested,
    machine: &Machine,
    (why, registers): (NoRun, &mut Registers),
) -> Next {
    let slot = nested.slots.current();
    slot.vcpu.fields_mut().set_launched(Launch::Launched);
    match why {
        ShutDown => guard::shut_down(&mut slot.vcpu, registers),
        NoRun::Shown => {}
    }
    if machine.decoys.is_some() {
        slot.with_decoy(|vcpu, decoy| vcpu.push(decoy));
    }
    let inherited = inherited();
    leave::to_host(nested, machine, inherited, By::Other)
}

/// Handles an exit of a protected VM. VMCS02 is current; afterwards it still is, or the host runs.
#[inline(never)]
pub(super) fn exit(
    cpu: &PerCpu,
    machine: &Machine,
    nested: &mut Nested,
    (reason, registers): (u32, &mut Registers),
) -> Next {
    match nested.mode {
        Mode::EnteringGuarded => nested.has_entered(cpu, Mode::Guarded),
        Mode::Guarded => {}
        Mode::Host | Mode::Probing | Mode::Doomed | Mode::Entering | Mode::Guest => {
            panic!("the processor loads what it should not")
        }
    }
    let slot = nested.slots.current();
    let fields = slot.vcpu.fields();
    match reason {
        EXCEPTION_OR_NMI
            if exit::is_nmi(Current.read(EXIT_INTERRUPTION)) && leave::keeps_nmi(cpu, fields) =>
        {
            return Next::Stay;
        }
        NMI_WINDOW if !Wanted::of(fields).primary.contains(Primary::NMI_WINDOW) => {
            host::set_nmi_window(false);
            return Next::Stay;
        }
        _ => {}
    }
    let by = leave::cause(reason);
    let Some(vcpu) = &mut slot.protected else {
        return Next::Shutdown;
    };
    let verdict = vcpu.guarded.leave(&mut slot.vcpu, registers, &mut Current);
    follow(nested, machine, (verdict, by), registers)
}

/// Does what the guard has decided. VMCS02 is current.
fn follow(
    nested: &mut Nested,
    machine: &Machine,
    (verdict, by): (Verdict, By),
    registers: &mut Registers,
) -> Next {
    let Some(vcpu) = &mut nested.slots.current().protected else {
        return Next::Shutdown;
    };
    match verdict {
        Verdict::Host => to_host(nested, machine, by),
        Verdict::Signal(command) => {
            signal(machine, vcpu.vm, command);
            to_host(nested, machine, by)
        }
        Verdict::Step => Next::Step,
        Verdict::Raise(event) => Next::Raise(event),
        Verdict::Stay => Next::Stay,
        Verdict::Debug(bits) => {
            host::add_debug_causes(bits);
            Next::Stay
        }
        Verdict::ExtendedState => extended_state(vcpu, registers),
        Verdict::PageFault { linear, code } => {
            // The processor has the VM's CR2.
            cpu::set_page_fault_address(linear);
            Next::Raise(Event::PageFault(code))
        }
        Verdict::StringPort => string_port(nested, machine, registers),
        Verdict::Fault { address, access } => fault(nested, machine, (address, access), registers),
        Verdict::Stop(cause) => {
            let _ = stop_vcpu(machine, vcpu.vm, cause);
            shut_down(nested, machine, registers)
        }
    }
}

/// The VM sends an INIT or start-up IPI: noted before the host knows, since it may be quick.
fn signal(machine: &Machine, vm: (Vm, u64), command: u64) {
    let signal = |processors: &mut Processors| processors.signal(command);
    let _ = machine.tables.with_processors(vm, signal);
}

/// CPUID leaf 0xD: sizes that depend on XCR0, which is the VM's now.
fn extended_state(vcpu: &Protected, registers: &mut Registers) -> Next {
    let subleaf = low(registers.rcx);
    registers.set_cpuid(vcpu.guarded.extended_state(subleaf, cpu::cpuid(0xd, subleaf)));
    Next::Step
}

/// INS or OUTS.
#[cold]
#[inline(never)]
fn string_port(nested: &mut Nested, machine: &Machine, registers: &mut Registers) -> Next {
    let slot = nested.slots.current();
    let Some(vcpu) = &mut slot.protected else {
        return Next::Shutdown;
    };
    let pointer = slot.vcpu.fields().read(EPT_POINTER);
    let space = Space { machine, vm: vcpu.vm, pointer, reached: &vcpu.reached };
    let verdict = vcpu.guarded.string_port(&mut slot.vcpu, registers, &Current, &space);
    follow(nested, machine, (verdict, By::Other), registers)
}

/// The VM has touched a page that it does not have (so).
fn fault(
    nested: &mut Nested,
    machine: &Machine,
    (address, access): (u64, Access),
    registers: &mut Registers,
) -> Next {
    let slot = nested.slots.current();
    let Some(vcpu) = &mut slot.protected else {
        return Next::Shutdown;
    };
    let pointer = slot.vcpu.fields().read(EPT_POINTER);
    let fault = Fault { at: address, access, word: vcpu.guarded.window_word() };
    let filled = machine.tables.fill(vcpu.vm, pointer, fault);
    let (shown, v02) = (&mut slot.vcpu, &mut Current);
    let verdict = match filled {
        Filled::Mapped => {
            host::deliver_again();
            return Next::Stay;
        }
        Filled::Absent(page) => {
            vcpu.missing = Some(page.base());
            vcpu.guarded.tell_page(shown, registers, v02, (page.base(), Access::NONE))
        }
        Filled::Denied { at, rights } => {
            vcpu.guarded.tell_page(shown, registers, v02, (at.base(), rights))
        }
        Filled::Device { at, window } => {
            let space = Space { machine, vm: vcpu.vm, pointer, reached: &vcpu.reached };
            vcpu.guarded.device(shown, registers, v02, (&space, at, window.base()))
        }
        Filled::Unloaded | Filled::Stopped(_) => {
            return shut_down(nested, machine, registers);
        }
    };
    follow(nested, machine, (verdict, By::Other), registers)
}

/// The VM was stopped: the host is told that it has shut down. VMCS02 is current.
fn shut_down(nested: &mut Nested, machine: &Machine, registers: &mut Registers) -> Next {
    guard::shut_down(&mut nested.slots.current().vcpu, registers);
    to_host(nested, machine, By::Other)
}

/// Back to the host, of what it is told. VMCS02 is current before, VMCS01 afterwards.
fn to_host(nested: &mut Nested, machine: &Machine, cause: By) -> Next {
    let cpu = PerCpu::current();
    let slot = nested.slots.current();
    cpu.guarded.set(false);
    if let Some(vcpu) = &mut slot.protected {
        vcpu.state.leave();
    }
    if machine.decoys.is_some() {
        vmx::select(&slot.decoy);
        slot.vcpu.push(&mut Current);
    }
    vmx::select(&cpu.vmcs_region());
    nested.set_mode(cpu, Mode::Host);
    let inherited = inherited();
    leave::to_host(nested, machine, inherited, cause)
}

/// The host inherits nothing of a protected VM, but what it had before. VMCS01 is current.
fn inherited() -> Inherited {
    let (efer, pat) = (Current.read(GUEST_EFER), Current.read(GUEST_PAT));
    Inherited { efer, pat, interruptibility: 0 }
}

/// The processor has refused VMCS02: the general registers are the host's again.
#[cold]
#[inline(never)]
pub(super) fn take_back(slot: &mut Slot, registers: &mut Registers) {
    PerCpu::current().guarded.set(false);
    if let Some(vcpu) = &mut slot.protected {
        vcpu.state.leave();
        vcpu.guarded.take_back(registers);
    }
}

/// The processor does not go on with the VM in the middle of its run: that is nothing the host may
/// know more of.
#[cold]
#[inline(never)]
pub(super) fn give_up(nested: &mut Nested, machine: &Machine, registers: &mut Registers) -> Next {
    if let Some(vcpu) = &nested.slots.current().protected {
        let _ = stop(machine, vcpu.vm, Cause::Processor(REFUSED));
    }
    shut_down(nested, machine, registers)
}

/// Gives an NMI of the host's to it as an exit of its protected VM. VMCS02 is current before.
#[cold]
#[inline(never)]
pub(super) fn reflect_nmi(
    nested: &mut Nested,
    machine: &Machine,
    registers: &mut Registers,
) -> NmiFate {
    let slot = nested.slots.current();
    let told = |vcpu: &mut Protected| vcpu.guarded.tell_nmi(&mut slot.vcpu, registers, &Current);
    let verdict = slot.protected.as_mut().map_or(Verdict::Host, told);
    NmiFate::Exit(follow(nested, machine, (verdict, By::Nmi), registers))
}

/// The EPT pointer with which the slot's vCPU runs: one that leads nowhere once the VM is stopped, so
/// that the next access exits.
#[inline(never)]
pub(super) fn pointer(machine: &Machine, slot: &mut Slot) -> u64 {
    slot.protected.as_mut().map_or(machine.nowhere, |vcpu| {
        let ask = || machine.tables.ept_of(vcpu.vm).unwrap_or(machine.nowhere);
        *vcpu.pointer.get_or_insert_with(ask)
    })
}
