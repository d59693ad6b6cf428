//! How a VM comes under protection: its first entry, further processors, new launches.

use ept::addr::Frame;
use ept::frames::Vm;
use membrane::vm::Cause;
use membrane::vms::Restart;
use nested_vmx::check::Wanted;
use nested_vmx::control::Secondary;
use nested_vmx::field::{EPT_POINTER, Vmcs};
use nested_vmx::guard;
use nested_vmx::guard::start::Start;
use nested_vmx::merge::HostRegisters;
use sha2::{Digest, Sha256};

use super::protected::NoRun::{self, ShutDown};
use super::protected::{stop, stop_vcpu};
use super::slots::Slot;
use super::vcpus;
use crate::host::Registers;
use crate::machine::Machine;
use crate::percpu::PerCpu;
use crate::vectors;

/// Gives the VM that the slot is about to run for the first time the oldest ticket that waits, if it
/// is a new one. VMCS01 is current.
///
/// # Errors
/// [`NoRun::ShutDown`] if it does not begin as the ticket says.
#[cold]
#[inline(never)]
pub(super) fn launch(
    machine: &Machine,
    slot: &mut Slot,
    (host, registers): (&HostRegisters, &mut Registers),
) -> Result<(), NoRun> {
    let Some((vm, state)) = root(slot).and_then(|root| machine.tables.launch(root)) else {
        return Ok(());
    };
    sweep(machine);
    begin(machine, slot, (vm, state), (host, registers))
}

/// Makes the slot, which is about to run for the first time, a further processor of a protected VM, if that
/// has one start in just this state. VMCS01 is current.
///
/// # Errors
/// [`NoRun::ShutDown`] if there is no memory for it, and the VM is stopped.
#[cold]
#[inline(never)]
pub(super) fn join(
    machine: &Machine,
    slot: &mut Slot,
    (host, registers): (&HostRegisters, &mut Registers),
) -> Result<(), NoRun> {
    let Start::StartUp(vector) = guard::start::kind(slot.vcpu.fields(), registers) else {
        return Ok(());
    };
    let root = root(slot).filter(|root| !slot.vcpu.has_stale() && machine.tables.is_guarded(*root));
    match root.and_then(|root| machine.tables.begin_processor(root, vector)) {
        Some(vm) => adopt(machine, slot, (vm, Some(vector)), (host, registers)),
        None => Ok(()),
    }
}

/// Has the slot's processor begin anew, if its host has put it into the state of one that has not run: the
/// first one after reset, which is a new launch of its VM; or another that a new launch has started. VMCS01 is
/// current before and after.
///
/// # Errors
/// Why it does not run: the ticket does not permit it, or not all of what the VM was is gone.
#[cold]
#[inline(never)]
pub(super) fn begin_anew(
    cpu: &PerCpu,
    machine: &Machine,
    slot: &mut Slot,
    (host, registers): (&HostRegisters, &mut Registers),
) -> Result<(), NoRun> {
    let Some(vcpu) = &slot.protected else { return Ok(()) };
    let (vm, is_first) = (vcpu.vm, vcpu.guarded.is_first());
    match guard::start::kind(slot.vcpu.fields(), registers) {
        Start::Reset if is_first => {}
        Start::StartUp(_) if !is_first && machine.tables.ept_of(vm).is_none() => {
            slot.renew(cpu, machine);
            sweep(machine);
            return join(machine, slot, (host, registers));
        }
        Start::Reset | Start::StartUp(_) | Start::Other => return Ok(()),
    }
    match machine.tables.restart(vm) {
        (Restart::Launched(launch), Some(state)) => {
            log::info!("protected VM {} is started anew", vm.0.number());
            slot.renew(cpu, machine);
            sweep(machine);
            begin(machine, slot, ((vm.0, launch), state), (host, registers))
        }
        (Restart::Again, _) => {
            guard::ask_again(&mut slot.vcpu);
            Err(NoRun::Shown)
        }
        (Restart::Launched(_) | Restart::Refused, _) => Err(ShutDown),
    }
}

/// Makes the slot the first processor of the VM, which has to begin in this state.
///
/// # Errors
/// [`NoRun::ShutDown`] if it does not.
fn begin(
    machine: &Machine,
    slot: &mut Slot,
    (vm, state): ((Vm, u64), ticket::State),
    (host, registers): (&HostRegisters, &mut Registers),
) -> Result<(), NoRun> {
    let begins = begins_as(state, slot, host, registers);
    adopt(machine, slot, (vm, None), (host, registers))?;
    if let (ticket::State::ResetIn(base), Some(vcpu)) = (state, &mut slot.protected) {
        vcpu.guarded.reset_in(base);
    }
    begins.map_err(|cause| stop_vcpu(machine, vm, cause))
}

/// Makes the slot a processor of the VM, in the state that the host has set up. One that is not the first
/// begins with a vector.
fn adopt(
    machine: &Machine,
    slot: &mut Slot,
    (vm, vector): ((Vm, u64), Option<u8>),
    (host, registers): (&HostRegisters, &Registers),
) -> Result<(), NoRun> {
    let Some(mut vcpu) = vcpus::create(vm) else {
        return Err(stop(machine, vm, Cause::Memory));
    };
    if let Some(vector) = vector {
        vcpu.guarded.begins_at(vector);
    }
    let begins = vcpu.guarded.first_entry(&mut slot.vcpu, host, registers);
    slot.vcpu.fields_mut().set_token(vcpu.token());
    slot.protected = Some(vcpu);
    machine.tables.vcpu_added(vm.0);
    begins.map_err(|cause| stop_vcpu(machine, vm, cause))
}

/// The root of the host's tables for the VM, if it has some.
pub(super) fn root(slot: &Slot) -> Option<Frame> {
    let fields = slot.vcpu.fields();
    let has_ept = Wanted::of(fields).secondary.contains(Secondary::EPT);
    has_ept.then(|| Frame::containing(fields.read(EPT_POINTER)))
}

/// Frees the vCPUs of VMs that will not run again.
pub(crate) fn sweep(machine: &Machine) {
    vcpus::sweep(|vm| machine.tables.is_over(vm));
}

/// Whether the first state of a vCPU is what the ticket says.
fn begins_as(
    state: ticket::State,
    slot: &Slot,
    host: &HostRegisters,
    registers: &Registers,
) -> Result<(), guard::Cause> {
    let fields = slot.vcpu.fields();
    let fits = match state {
        ticket::State::Reset | ticket::State::ResetIn(_) => {
            guard::start::kind(fields, registers) == Start::Reset
        }
        ticket::State::Hashed(hash) => vectors::with(|| {
            let mut found = Sha256::new();
            guard::start::state(fields, host, registers, |word| found.update(word.to_le_bytes()));
            found.finalize().as_slice() == hash
        }),
    };
    if fits { Ok(()) } else { Err(guard::Cause::FirstState) }
}
