//! Entries of a protected VM: what the host's answer to the last exit counts for.

use super::exits::FAULT;
use super::start::visible_cr4;
use super::{Cause, Delivery, Entered, File, Guarded, Registers, Space, answers, decoy};
use super::{low, restore, save};
use crate::check::is_canonical;
use crate::cpuid;
use crate::cr::CR0_PE;
use crate::disclosure::{Answer, Exception, Exit, Part, Register, Row, Width};
use crate::exit::Event;
use crate::field::{self as f, Vmcs};
use crate::merge::HostRegisters;
use crate::vcpu::Vcpu;
use crate::vmcs12::Vmcs12;

const VALID: u32 = 1 << 31;
const HAS_CODE: u32 = 1 << 11;
/// Blocking by STI and MOV SS; by NMI.
const BY_INSTRUCTION: u32 = 0b11;
const BY_NMI: u32 = 1 << 3;

impl Guarded<'_> {
    /// Prepares an entry: takes the host's answer to the last exit, its event and its controls, and
    /// gives the VM its registers back. What the host has written to its VMCS has been pulled and
    /// checked.
    ///
    /// Whatever the host has written, nothing of it reaches the VM but what the disclosure table
    /// entitles it to.
    ///
    /// # Errors
    /// Why the VM must stop.
    pub fn enter(
        &mut self,
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
        space: &impl Space,
    ) -> Result<Entered, Cause> {
        if self.restarts(shown.fields(), registers, space) {
            self.first_entry(shown, &HostRegisters::UNUSED, registers)?;
        }
        save(registers, &mut self.secrets.outside);
        let raised = match self.secrets.pending.take().and_then(Exit::row) {
            Some(row) => self.take_answer(row, shown, space)?,
            None => None,
        };
        // What is raised comes again, if a page is needed first.
        if self.secrets.job.is_some() || raised.is_none() || space.deliver().is_err() {
            return self.resume(shown, registers, space);
        }
        self.kick(raised, shown, registers, space)
    }

    /// Prepares an entry that the VM runs after, of which the answer is taken: it raises `raised`.
    pub(super) fn run(
        &mut self,
        raised: Option<Event>,
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
    ) {
        let fields = shown.fields();
        self.wake(fields);
        let event = self.next_event(raised, fields);
        for (encoding, value) in [
            (f::ENTRY_INTERRUPTION.encoding(), event.information),
            (f::ENTRY_ERROR_CODE.encoding(), event.code),
            (f::ENTRY_INSTRUCTION_LENGTH.encoding(), event.length),
        ] {
            self.put(encoding, value.into());
        }
        self.take_controls(fields);
        shown.settle();
        restore(&self.secrets.gprs, registers);
    }

    /// The host's answer to the exit: completed, an exception, or neither.
    fn take_answer(
        &mut self,
        row: &Row,
        shown: &mut Vcpu<'_>,
        space: &impl Space,
    ) -> Result<Option<Event>, Cause> {
        let exception = match row.answer {
            Answer::Visor | Answer::Resumes | Answer::Ends => return Ok(None),
            Answer::Completes => None,
            Answer::CompletesOrRaises(exception) => Some(exception),
        };
        let (rip, length) = self.secrets.told;
        let completes = shown.fields().read(f::GUEST_RIP) == rip + u64::from(length) && length != 0;
        if let Some((exit, address, bytes, _)) = self.access() {
            let answer = completes.then(|| match (exit, self.answer_of_access(space)) {
                (Exit::DeviceRead, answer) => space.loaded((address, bytes), answer),
                (_, answer) => answer,
            });
            self.answer_access(shown, answer);
            return Ok(None);
        }
        if !completes {
            return Ok(exception.and_then(|exception| raised(exception, shown.fields())));
        }
        if let Some(event) = self.perform(row.exit)? {
            return Ok(Some(event));
        }
        self.take_registers(row, space);
        Ok(self.step(length.into()))
    }

    /// Takes what the host may change of the registers.
    fn take_registers(&mut self, row: &Row, space: &impl Space) {
        let mut answer = self.secrets.outside;
        self.take_id(row.exit, &mut answer, space);
        if row.exit == Exit::Cpuid {
            self.filter_cpuid(&mut answer);
        }
        for Part { register, width } in row.changes {
            let is_operand = *register == Register::Operand;
            let place = if is_operand { self.operand_number() } else { register.number() };
            let new = answer.get(usize::from(register.number())).copied().unwrap_or(0);
            let mask = self.mask(*width);
            if let Some(old) = self.secrets.gprs.get_mut(usize::from(place)) {
                // Bytes and words leave the rest of the register alone.
                let kept = if *width == Width::Access && mask < 0xffff_ffff { !mask } else { 0 };
                *old = *old & kept | new & mask;
            }
        }
    }

    fn filter_cpuid(&mut self, answer: &mut File) {
        let [leaf, subleaf, ..] = self.secrets.gprs;
        let [eax, ecx, edx, ebx, ..] = answer;
        let host = cpuid::Answer { eax: low(*eax), ebx: low(*ebx), ecx: low(*ecx), edx: low(*edx) };
        self.remember(low(leaf), low(subleaf), host);
        let cr4 = visible_cr4(self.effective.fields());
        let out = answers::cpuid(low(leaf), low(subleaf), host, (cr4, self.secrets.cr4_supported));
        (*eax, *ebx, *ecx, *edx) = (out.eax.into(), out.ebx.into(), out.ecx.into(), out.edx.into());
    }

    /// Goes on after the instruction that has exited (SDM vol. 3, 29.2.5), or raises what the next one
    /// would.
    pub(super) fn step(&mut self, length: u64) -> Option<Event> {
        const TRAP: u64 = 1 << 8;
        const SINGLE_STEP: u64 = 1 << 14;
        const LA57: u64 = 1 << 12;
        let fields = self.effective.fields();
        let sign_bit = if fields.read(f::GUEST_CR4) & LA57 != 0 { 56 } else { 47 };
        let mut rip = fields.read(f::GUEST_RIP).wrapping_add(length);
        if !self.is_64_bit_code() {
            rip &= 0xffff_ffff;
        } else if !is_canonical(rip, sign_bit) {
            return Some(FAULT);
        }
        let open = fields.read(f::GUEST_INTERRUPTIBILITY) & !BY_INSTRUCTION;
        let traps = fields.read(f::GUEST_RFLAGS) & TRAP != 0;
        let pending = fields.read(f::GUEST_PENDING_DEBUG) | SINGLE_STEP;
        self.put(f::GUEST_RIP.encoding(), rip);
        self.put(f::GUEST_INTERRUPTIBILITY.encoding(), open.into());
        if traps {
            self.put(f::GUEST_PENDING_DEBUG.encoding(), pending);
        }
        None
    }

    /// The host may wake a VM that waits in HLT: any interrupt would.
    pub(super) fn wake(&mut self, shown: &Vmcs12) {
        const HALTED: u32 = 1;
        let waits = !self.effective.has_stale()
            && self.effective.fields().read(f::GUEST_ACTIVITY) == HALTED;
        if waits && shown.read(f::GUEST_ACTIVITY) == 0 {
            self.put(f::GUEST_ACTIVITY.encoding(), 0);
        }
    }

    /// The event of the coming entry.
    ///
    /// An interrupt of the host's goes before what the VM does itself: an exception that was just
    /// raised, and a fault or software interrupt whose delivery was cut short, come again when the VM
    /// is back at its instruction. What would not come again goes first, and the host's interrupt is
    /// lost: it may lose any.
    fn next_event(&mut self, raised: Option<Event>, shown: &Vmcs12) -> Delivery {
        let of_host = self.admitted(shown.read(f::ENTRY_INTERRUPTION));
        let delivery = self.secrets.delivery.take();
        match (delivery, of_host) {
            (Some(delivery), None) => delivery,
            (Some(delivery), Some(_)) if !comes_again(delivery.information) => delivery,
            (_, Some(information)) => Delivery { information, code: 0, length: 0 },
            (None, None) => {
                let (information, code) = raised.map_or((0, 0), Event::encode);
                let real = self.effective.fields().read(f::GUEST_CR0) & CR0_PE == 0;
                // Real mode has no error codes (SDM vol. 3, 28.2.1.3).
                let information = if real { information & !HAS_CODE } else { information };
                Delivery { information, code, length: 0 }
            }
        }
    }

    /// The host's event, if it is an interrupt or NMI that the VM can take and may be given.
    pub(super) fn admitted(&self, information: u32) -> Option<u32> {
        const INTERRUPT: u32 = 0;
        const NMI: u32 = 2;
        let fields = self.effective.fields();
        let interruptibility = fields.read(f::GUEST_INTERRUPTIBILITY);
        let enabled = fields.read(f::GUEST_RFLAGS) & decoy::IF != 0;
        let (vector, kind) = (information & 0xff, information >> 8 & 7);
        let may = match kind {
            INTERRUPT => {
                let real = fields.read(f::GUEST_CR0) & CR0_PE == 0;
                enabled && interruptibility & BY_INSTRUCTION == 0 && is_interrupt(vector, real)
            }
            NMI => vector == 2 && interruptibility & (BY_INSTRUCTION | BY_NMI) == 0,
            _ => false,
        };
        (information & VALID != 0 && may).then_some(VALID | kind << 8 | vector)
    }
}

/// Whether a vector can be an interrupt of a device: no exception, nor Linux's system call. In real
/// mode firmware has the interrupt controller begin at 8.
#[expect(clippy::fn_params_excessive_bools, reason = "the mode of the VM")]
const fn is_interrupt(vector: u32, real: bool) -> bool {
    const SYSTEM_CALL: u32 = 0x80;
    vector != SYSTEM_CALL && vector >= if real { 8 } else { 32 }
}

/// Whether the VM, back at its instruction, raises the event again: software interrupts and
/// exceptions, and faults, but neither debug exceptions nor aborts.
const fn comes_again(information: u32) -> bool {
    match (information >> 8 & 7, information & 0xff) {
        (4..=6, _) => true,
        (3, vector) => !matches!(vector, 1 | 8 | 18),
        _ => false,
    }
}

/// The exception, if the host raises it.
fn raised(exception: Exception, shown: &Vmcs12) -> Option<Event> {
    const HARDWARE: u32 = VALID | 3 << 8;
    let (vector, event) = match exception {
        Exception::InvalidOpcode => (6, Event::InvalidOpcode),
        Exception::GeneralProtection => (13, FAULT),
    };
    let information = shown.read(f::ENTRY_INTERRUPTION);
    (information & !HAS_CODE == HARDWARE | vector).then_some(event)
}
