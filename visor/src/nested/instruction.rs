//! The host's VMX instructions but for VM entries.

use core::sync::atomic::Ordering;

use ept::addr::Frame;
use nested_vmx::control::Secondary;
use nested_vmx::cr::{CR0_NE, CR0_PE, CR0_PG, CR4_VMXE};
use nested_vmx::exit::Event;
use nested_vmx::field::{
    CR0_MASK, CR0_SHADOW, CR4_SHADOW, EXIT_INSTRUCTION_INFORMATION, EXIT_QUALIFICATION,
    GUEST_RFLAGS, INSTRUCTION_ERROR, SECONDARY_CONTROLS, VMCS_LINK_POINTER, Vmcs,
};
use nested_vmx::merge::HOST_VPID;
use nested_vmx::operand::{self, Operands, Place, Use};
use nested_vmx::operation::{self, Answer, Error, Scope};
use nested_vmx::vmcs12::{LAUNCH_WORD, Launch, read_part, write_part};

use super::{Nested, context, enter};
use crate::cpu::vmx::{self, Current};
use crate::host;
use crate::host::{Next, Registers};
use crate::host_memory;
use crate::machine::Machine;
use crate::percpu::PerCpu;

/// Basic exit reasons of VMX instructions (SDM vol. 3D, appendix C).
const VMCALL: u32 = 18;
const VMCLEAR: u32 = 19;
const VMLAUNCH: u32 = 20;
const VMPTRLD: u32 = 21;
const VMPTRST: u32 = 22;
const VMREAD: u32 = 23;
const VMRESUME: u32 = 24;
const VMWRITE: u32 = 25;
pub(crate) const VMXOFF: u32 = 26;
const VMXON: u32 = 27;
const INVEPT: u32 = 50;
const INVVPID: u32 = 53;

/// An instruction of the host on its way.
struct Execution<'a> {
    cpu: &'a PerCpu,
    machine: &'a Machine,
    nested: &'a mut Nested,
    registers: &'a mut Registers,
}

/// Does the VMX instruction that the host has executed.
pub(crate) fn execute(
    cpu: &PerCpu,
    machine: &Machine,
    reason: u32,
    registers: &mut Registers,
) -> Next {
    let mut nested = Nested::of(cpu);
    let has_vmxe = || Current.read(CR4_SHADOW) & CR4_VMXE != 0;
    if !(nested.operation.is_on() || reason == VMXON && has_vmxe()) {
        return Next::Raise(Event::InvalidOpcode);
    }
    let entry = match reason {
        VMLAUNCH => Some(Launch::Clear),
        VMRESUME => Some(Launch::Launched),
        _ => None,
    };
    let permitted =
        if entry.is_some() { operand::privileged(&Current) } else { operand::permitted(&Current) };
    if let Err(event) = permitted {
        return Next::Raise(event);
    }
    if let Some(launch) = entry {
        return enter::enter(cpu, machine, &mut nested, (launch, registers));
    }
    let mut execution = Execution { cpu, machine, nested: &mut nested, registers };
    let done = match reason {
        VMCALL => Ok(Error::Vmcall.into()),
        VMCLEAR => execution.vmclear(),
        VMPTRLD => execution.vmptrld(),
        VMPTRST => execution.vmptrst(),
        VMREAD => execution.vmread(),
        VMWRITE => execution.vmwrite(),
        VMXON => execution.vmxon(),
        VMXOFF => execution.vmxoff(),
        INVEPT => execution.invept(),
        INVVPID => execution.invvpid(),
        // VMFUNC is not advertised.
        _ => Err(Event::InvalidOpcode),
    };
    match done {
        Ok(answer) => conclude(&mut nested, machine, answer),
        Err(event) => Next::Raise(event),
    }
}

/// Sets the flags, and the error field, by which the host sees how an instruction ended.
pub(super) fn conclude(nested: &mut Nested, machine: &Machine, answer: Answer) -> Next {
    let current = nested.operation.current();
    let (rflags, error) = answer.conclude(Current.read(GUEST_RFLAGS), current);
    Current.write(GUEST_RFLAGS, rflags);
    if let Some(number) = error {
        let slot = nested.slots.current();
        slot.vcpu.tell(INSTRUCTION_ERROR.encoding(), number.into());
        if machine.decoys.is_some() {
            slot.with_decoy(|vcpu, decoy| vcpu.push(decoy));
        }
    }
    Next::Step
}

impl Execution<'_> {
    fn operands(&self) -> Result<Operands, Event> {
        let information = Current.read(EXIT_INSTRUCTION_INFORMATION);
        Operands::decode(information, Current.read(EXIT_QUALIFICATION))
            .ok_or(Event::GeneralProtection(0))
    }

    fn linear(&self, place: Place, usage: (u64, Use)) -> Result<u64, Event> {
        let Place::Memory(address) = place else {
            return Err(Event::InvalidOpcode);
        };
        let sign_bit = context(self.machine).sign_bit;
        address.linear(&Current, |number| self.registers.numbered(number), usage, sign_bit)
    }

    fn read_words<const N: usize>(&self, place: Place) -> Result<[u64; N], Event> {
        let mut words = [0; N];
        let bytes = u64::try_from(N * 8).unwrap_or(0);
        let linear = self.linear(place, (bytes, Use::Read))?;
        for (word, address) in words.iter_mut().zip((0..).map(|at| linear.wrapping_add(at * 8))) {
            let mut bytes = [0; 8];
            host_memory::read(self.machine, address, &mut bytes)?;
            *word = u64::from_le_bytes(bytes);
        }
        Ok(words)
    }

    fn pointer(&self) -> Result<u64, Event> {
        let [pointer] = self.read_words(self.operands()?.place)?;
        Ok(pointer)
    }

    /// The first 4 bytes of `region`.
    fn revision(machine: &Machine, region: Frame) -> Option<u32> {
        host_memory::page(machine, region).map(|page| crate::cpu::low(page.read(0)))
    }

    fn vmxon(&mut self) -> Result<Answer, Event> {
        const LOCKED_AND_ON: u64 = 0b101;
        let context = context(self.machine);
        if !self.nested.operation.is_on() {
            let (must, may) = self.machine.advertised.capabilities().cr0_fixed;
            let cr0 = host::cr0();
            let control = crate::cpu::read_msr(nested_vmx::msr::FEATURE_CONTROL);
            if cr0 & must != must || cr0 & !may != 0 || control & LOCKED_AND_ON != LOCKED_AND_ON {
                return Err(Event::GeneralProtection(0));
            }
        }
        let pointer = self.pointer()?;
        let machine = self.machine;
        let revision = |region| Self::revision(machine, region);
        let was_on = self.nested.operation.is_on();
        let answer = self.nested.operation.vmxon(pointer, revision, &context);
        if !was_on && self.nested.operation.is_on() {
            // The bits that VMX operation fixes cannot be cleared now; the host has set them without
            // an exit, so the shadow may not know.
            Current.write(CR0_SHADOW, host::cr0());
            Current.write(CR0_MASK, CR0_NE | CR0_PE | CR0_PG);
            let _ = machine.in_vmx.fetch_add(1, Ordering::AcqRel);
        }
        Ok(answer)
    }

    fn vmxoff(&mut self) -> Result<Answer, Event> {
        self.nested.stop();
        if self.machine.in_vmx.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.machine.tables.release_roots();
        }
        Ok(Answer::Succeed)
    }

    fn vmclear(&mut self) -> Result<Answer, Event> {
        let pointer = self.pointer()?;
        let region = match self.nested.operation.vmclear(pointer, &context(self.machine)) {
            Ok(region) => region,
            Err(answer) => return Ok(answer),
        };
        self.nested.slots.clear(self.machine, region);
        if self.nested.operation.current().is_none() {
            link(None);
        }
        if let Some(page) = host_memory::page(self.machine, region) {
            page.write(LAUNCH_WORD, 0);
        }
        Ok(Answer::Succeed)
    }

    fn vmptrld(&mut self) -> Result<Answer, Event> {
        let pointer = self.pointer()?;
        let machine = self.machine;
        let revision = |region| Self::revision(machine, region);
        let loaded = self.nested.operation.vmptrld(pointer, revision, &context(machine));
        let region = match loaded {
            Ok(region) => region,
            Err(answer) => return Ok(answer),
        };
        self.nested.slots.load(self.cpu, machine, region);
        if machine.decoys.is_some() {
            let slot = self.nested.slots.current();
            slot.with_decoy(|vcpu, decoy| vcpu.push(decoy));
            link(Some(slot.decoy));
        }
        Ok(Answer::Succeed)
    }

    fn vmptrst(&mut self) -> Result<Answer, Event> {
        let current = self.nested.operation.current().map_or(u64::MAX, Frame::base);
        let linear = self.linear(self.operands()?.place, (8, Use::Write))?;
        host_memory::write(self.machine, linear, &current.to_le_bytes())?;
        Ok(Answer::Succeed)
    }

    /// The field that a VMREAD or VMWRITE names, with what is in it brought up to date.
    fn field(&mut self, operand: u64) -> Result<u32, Answer> {
        if self.nested.operation.current().is_none() {
            return Err(Answer::FailInvalid);
        }
        let encoding = operation::field(operand, &context(self.machine))?;
        let slot = self.nested.slots.current();
        if slot.vcpu.is_stale(encoding) {
            slot.with_guest(|vcpu, guest| vcpu.fetch(guest));
        }
        Ok(encoding)
    }

    /// What a register gives or takes: 32 bits outside 64-bit code.
    fn trim(value: u64) -> u64 {
        if host::in_64_bit_code() { value } else { crate::cpu::low(value).into() }
    }

    fn vmread(&mut self) -> Result<Answer, Event> {
        let operands = self.operands()?;
        let field = Self::trim(self.registers.numbered(operands.register));
        let encoding = match self.field(field) {
            Ok(encoding) => encoding,
            Err(answer) => return Ok(answer),
        };
        let fields = self.nested.slots.current().vcpu.fields();
        let value = Self::trim(read_part(encoding, fields.read_raw(encoding)));
        match operands.place {
            Place::Register(number) => self.registers.set_numbered(number, value),
            Place::Memory(_) => {
                let bytes = if host::in_64_bit_code() { 8 } else { 4 };
                let linear = self.linear(operands.place, (bytes, Use::Write))?;
                let value = value.to_le_bytes();
                let value = value.get(..crate::cpu::size(bytes)).unwrap_or_default();
                host_memory::write(self.machine, linear, value)?;
            }
        }
        Ok(Answer::Succeed)
    }

    fn vmwrite(&mut self) -> Result<Answer, Event> {
        let operands = self.operands()?;
        let value = match operands.place {
            Place::Register(number) => self.registers.numbered(number),
            Place::Memory(_) => {
                let mut value = [0; 8];
                let bytes = if host::in_64_bit_code() { 8 } else { 4 };
                let linear = self.linear(operands.place, (bytes, Use::Read))?;
                let part = value.get_mut(..crate::cpu::size(bytes)).unwrap_or_default();
                host_memory::read(self.machine, linear, part)?;
                u64::from_le_bytes(value)
            }
        };
        let field = Self::trim(self.registers.numbered(operands.register));
        let encoding = match self.field(field) {
            Ok(encoding) => encoding,
            Err(answer) => return Ok(answer),
        };
        if let Err(error) = operation::writable(encoding) {
            return Ok(error.into());
        }
        let slot = self.nested.slots.current();
        let old = slot.vcpu.fields().read_raw(encoding);
        slot.vcpu.write(encoding, write_part(encoding, old, Self::trim(value)));
        if self.machine.decoys.is_some() && slot.vcpu.has_unseen() {
            slot.with_decoy(|vcpu, decoy| vcpu.push(decoy));
        }
        Ok(Answer::Succeed)
    }

    fn invept(&mut self) -> Result<Answer, Event> {
        let operands = self.operands()?;
        let descriptor = self.read_words(operands.place)?;
        let kind = Self::trim(self.registers.numbered(operands.register));
        let scope = match operation::invept(kind, descriptor, &context(self.machine)) {
            Ok(scope) => scope,
            Err(error) => return Ok(error.into()),
        };
        self.nested.drop_translations(scope);
        Ok(Answer::Succeed)
    }

    fn invvpid(&mut self) -> Result<Answer, Event> {
        let operands = self.operands()?;
        let descriptor = self.read_words(operands.place)?;
        let kind = Self::trim(self.registers.numbered(operands.register));
        match operation::invvpid(kind, descriptor, &context(self.machine)) {
            // This tag is the host's own; a VM that was given it runs untagged.
            Ok(Scope::Tag(_, HOST_VPID, _)) => {}
            Ok(Scope::Tag(kind, tag, linear)) => vmx::invvpid(kind, tag, linear),
            Ok(_) => vmx::invvpid(2, 0, 0),
            Err(error) => return Ok(error.into()),
        }
        Ok(Answer::Succeed)
    }
}

impl Nested {
    /// Ends the host's VMX operation.
    pub(super) fn stop(&mut self) {
        // What was still active is lost, as it may be on a processor (SDM vol. 3, 25.11.1): by now
        // its region may be used for something else.
        self.slots.forget();
        let _ = self.operation.vmxoff();
        link(None);
        Current.write(CR0_MASK, CR0_NE);
    }
}

/// Sets the shadow VMCS that the host's VMREAD and VMWRITE reach; without one they exit.
fn link(decoy: Option<Frame>) {
    let shadowing = Secondary::VMCS_SHADOWING.bits();
    let rest = Current.read(SECONDARY_CONTROLS) & !shadowing;
    Current.write(VMCS_LINK_POINTER, decoy.map_or(u64::MAX, Frame::base));
    Current.write(SECONDARY_CONTROLS, if decoy.is_some() { rest | shadowing } else { rest });
}
