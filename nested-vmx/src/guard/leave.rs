//! Exits of a protected VM: what the visor answers itself, and what the host sees of the others.

use ept::shadow::Access;

use super::exits::{self, EPT_VIOLATION, FAULT, TRIPLE_FAULT};
use super::msr::{self, Rule};
use super::start::visible_cr4;
use super::{Cause, DECOY_RIP, Delivery, Guarded, Registers, Verdict, answers, decoy, restore};
use super::{low, put, save};
use crate::control::ExitControls;
use crate::disclosure::{Answer, Exit, Register, Row, Told, Width};
use crate::exit::{self, Event};
use crate::field::{self as f, Segment, Vmcs};
use crate::vcpu::Vcpu;

pub(super) const VALID: u32 = 1 << 31;
/// Bit 12 of interruption information and of the qualification of an EPT violation: an IRET had ended
/// the blocking of NMIs.
const UNBLOCKED: u32 = 1 << 12;
const BLOCKED_BY_NMI: u32 = 1 << 3;
const BLOCKED_BY_INSTRUCTION: u32 = 0b11;
pub(super) const NMI: u32 = VALID | 2 << 8 | 2;
/// RFLAGS, and bit 14 of pending debug exceptions and DR6.
const TRAP: u64 = 1 << 8;
const SINGLE_STEP: u64 = 1 << 14;

/// What VMCALL gives: KVM's "no such call".
const NO_SUCH_CALL: u64 = 1000_u64.wrapping_neg();

impl Guarded<'_> {
    /// Handles an exit, which is no failed entry. `registers` are the VM's before, and the host's if
    /// the verdict is [`Verdict::Host`].
    #[expect(clippy::wildcard_enum_match_arm, reason = "the table says who answers the others")]
    pub fn leave(
        &mut self,
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
        v02: &mut impl Vmcs,
    ) -> Verdict {
        const LEVEL: u32 = 3 << 5;
        let exit = match exits::decode(v02, low(registers.get(0))) {
            Ok(exit) => exit,
            Err(verdict) => return verdict,
        };
        let level = v02.read(Segment::Ss.fields().rights) & LEVEL;
        if exits::is_privileged(exit) && level != 0 {
            return Verdict::Raise(FAULT);
        }
        match exit {
            Exit::ExtendedState => Verdict::ExtendedState,
            Exit::Hypercall => {
                const LONG: u32 = 1 << 13;
                let long = v02.read(Segment::Cs.fields().rights) & LONG != 0;
                registers.set(0, if long { NO_SUCH_CALL } else { low(NO_SUCH_CALL).into() });
                Verdict::Step
            }
            Exit::Hidden => Verdict::Raise(Event::InvalidOpcode),
            Exit::Counter => Verdict::Raise(FAULT),
            Exit::Discard => Verdict::Step,
            Exit::AlignmentCheck => {
                deliver(v02);
                Verdict::Stay
            }
            Exit::Debug => debug(v02),
            Exit::Page => Verdict::Fault {
                address: v02.read(f::GUEST_PHYSICAL_ADDRESS),
                access: Access::from_bits(v02.read(f::EXIT_QUALIFICATION)),
            },
            Exit::Cpuid => match self.cpuid(registers, v02) {
                Some(verdict) => verdict,
                None => self.show((exit, None), shown, registers, v02),
            },
            Exit::ReadMsr | Exit::WriteMsr => match self.msr(exit, registers, v02) {
                Some(Verdict::Signal(command)) => {
                    let _ = self.show((exit, None), shown, registers, v02);
                    Verdict::Signal(command)
                }
                Some(verdict) => verdict,
                None => self.show((exit, None), shown, registers, v02),
            },
            _ => self.show((exit, None), shown, registers, v02),
        }
    }

    /// What the visor answers of CPUID.
    fn cpuid(&self, registers: &mut impl Registers, v02: &impl Vmcs) -> Option<Verdict> {
        let (leaf, subleaf) = (low(registers.get(0)), low(registers.get(1)));
        let host = self.remembered(leaf, subleaf)?;
        let answer =
            answers::cpuid(leaf, subleaf, host, (visible_cr4(v02), self.secrets.cr4_supported));
        for (number, value) in (0..).zip([answer.eax, answer.ecx, answer.edx, answer.ebx]) {
            registers.set(number, value.into());
        }
        Some(Verdict::Step)
    }

    /// What the visor answers of RDMSR and WRMSR.
    fn msr(
        &mut self,
        exit: Exit,
        registers: &mut impl Registers,
        v02: &impl Vmcs,
    ) -> Option<Verdict> {
        let index = low(registers.get(1));
        let written = (exit == Exit::WriteMsr)
            .then(|| u64::from(low(registers.get(2))) << 32 | u64::from(low(registers.get(0))));
        let read = match (msr::rule(index), written) {
            (Rule::Emulated, Some(value)) => {
                let command = (index == msr::X2APIC_ICR).then_some(value);
                return command.and_then(msr::start).map(Verdict::Signal);
            }
            (Rule::Emulated, None) | (Rule::Efer, Some(_)) => return None,
            (Rule::Zero(settable), Some(value)) if value & !settable == 0 => {
                return Some(Verdict::Step);
            }
            (Rule::Zero(_), Some(_)) | (Rule::Absent, _) => return Some(Verdict::Raise(FAULT)),
            (Rule::Efer, None) => v02.read(f::GUEST_EFER),
            (Rule::Zero(_), None) => 0,
        };
        registers.set(0, low(read).into());
        registers.set(2, read >> 32);
        Some(Verdict::Step)
    }

    /// After [`Verdict::Fault`]: the host's table has `page` with no more than `rights`, which do not
    /// do. The host is told of a fetch, if it was one and the page is there, and of a write otherwise,
    /// so that it provides a page that is the VM's alone.
    pub fn tell_page(
        &mut self,
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
        v02: &impl Vmcs,
        (address, rights): (u64, Access),
    ) -> Verdict {
        let access = Access::from_bits(v02.read(f::EXIT_QUALIFICATION));
        let fetched = access.allows(Access::FETCH) && rights != Access::NONE;
        let access = if fetched { Access::FETCH } else { Access::WRITE };
        let told = Page { address, access, rights };
        self.show((Exit::Page, Some(told)), shown, registers, v02)
    }

    /// Gives an NMI of the host's that has arrived in the visor to the host as an exit of its VM, which
    /// is about to run and has no event to take.
    pub fn tell_nmi(
        &mut self,
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
        v02: &impl Vmcs,
    ) -> Verdict {
        self.take_over((Exit::Nmi, registers), v02);
        // What VMCS02 says is about an exit that was answered.
        for (encoding, value) in [
            (f::EXIT_REASON.encoding(), 0),
            (f::EXIT_INTERRUPTION.encoding(), NMI.into()),
            (f::IDT_VECTORING.encoding(), 0),
        ] {
            self.effective.tell(encoding, value);
        }
        self.tell((Exit::Nmi, None), shown, registers, v02)
    }

    fn show(
        &mut self,
        what: (Exit, Option<Page>),
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
        v02: &impl Vmcs,
    ) -> Verdict {
        self.take_over((what.0, registers), v02);
        self.tell(what, shown, registers, v02)
    }

    /// Takes over what the VM has left in the processor.
    pub(super) fn take_over(
        &mut self,
        (exit, registers): (Exit, &impl Registers),
        v02: &impl Vmcs,
    ) {
        save(registers, &mut self.secrets.gprs);
        self.effective.capture(v02);
        // What the answer may change besides hot fields: control registers, EFER, the activity state,
        // pending debug exceptions.
        let changes =
            matches!(exit, Exit::WriteControl | Exit::ClearTaskSwitched | Exit::LoadStatusWord)
                || exit == Exit::WriteMsr && self.index() == msr::EFER;
        // In this wait a processor may be made to begin anew.
        let waits = self.is_off(exit);
        let traps = self.effective.fields().read(f::GUEST_RFLAGS) & TRAP != 0;
        if changes || waits || traps || v02.read(f::GUEST_ACTIVITY) != 0 {
            self.effective.fetch(v02);
        }
    }

    /// Tells the host of the exit that was taken over, by the table.
    fn tell(
        &mut self,
        (exit, page): (Exit, Option<Page>),
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
        v02: &impl Vmcs,
    ) -> Verdict {
        let Some(row) = exit.row().filter(|row| row.answer != Answer::Visor) else {
            return Verdict::Stop(Cause::NoRule(u16::MAX));
        };
        let delivery = self.settle_delivery(row);
        let fields = self.effective.fields();
        let event = fields.read(f::EXIT_INTERRUPTION) & !UNBLOCKED;
        let length = fields.read(f::EXIT_INSTRUCTION_LENGTH);
        let (reason, qualification, address) = match page {
            Some(page) => (EPT_VIOLATION, page.qualification(), page.address & !0xfff),
            None => (fields.read(f::EXIT_REASON) & 0xffff, self.qualification(row), 0),
        };
        let only = |told, value| if row.tells(told) { value } else { 0 };
        let (event, length) = (only(Told::Event, event), only(Told::Length, length));
        inform(shown, (reason, qualification), (event, delivery), (length, address));
        self.tell_timer(shown);
        decoy::uncover(shown, fields, v02);
        self.reveal(row, registers);
        self.secrets.pending = Some(exit);
        self.secrets.told = (DECOY_RIP, length);
        Verdict::Host
    }

    /// Tells the host what is left of its time.
    pub(super) fn tell_timer(&self, shown: &mut Vcpu<'_>) {
        let timer = self.effective.fields().read(f::PREEMPTION_TIMER);
        if shown.fields().read(f::EXIT_CONTROLS) & ExitControls::SAVE_PREEMPTION_TIMER.bits() != 0 {
            put(shown, f::PREEMPTION_TIMER.encoding(), timer.into());
        }
    }

    /// What becomes of an event whose delivery the exit cut short: interruption information for the
    /// host if it is the host's event, which it injects again then; else the visor keeps it.
    fn settle_delivery(&mut self, row: &Row) -> u32 {
        const INTERRUPT: u32 = 0;
        let fields = self.effective.fields();
        let information = fields.read(f::IDT_VECTORING);
        let interruptibility = fields.read(f::GUEST_INTERRUPTIBILITY);
        let is_nmi = exit::is_nmi(information);
        if information & VALID == 0 {
            let undone = match fields.read(f::EXIT_REASON) & 0xffff {
                0 => fields.read(f::EXIT_INTERRUPTION),
                EPT_VIOLATION => low(fields.read(f::EXIT_QUALIFICATION)),
                _ => 0,
            };
            if undone & UNBLOCKED != 0 {
                let blocked = interruptibility | BLOCKED_BY_NMI;
                self.put(f::GUEST_INTERRUPTIBILITY.encoding(), blocked.into());
            }
            return 0;
        }
        let told = information & !UNBLOCKED;
        let delivery = Delivery {
            information: told,
            code: fields.read(f::IDT_VECTORING_CODE),
            length: fields.read(f::EXIT_INSTRUCTION_LENGTH),
        };
        if is_nmi {
            // It blocks others already, and could not be delivered again like that.
            let open = interruptibility & !BLOCKED_BY_NMI;
            self.put(f::GUEST_INTERRUPTIBILITY.encoding(), open.into());
        }
        if row.tells(Told::Delivery) && (is_nmi || information >> 8 & 7 == INTERRUPT) {
            return told;
        }
        self.secrets.delivery = Some(delivery);
        0
    }

    /// The exit qualification, as far as the host may know it.
    pub(super) fn qualification(&self, row: &Row) -> u64 {
        /// Size, direction, port.
        const PORT: u64 = 0xffff_000f;
        /// Register and instruction. The operand is shown as RAX, number 0.
        const CONTROL: u64 = 0x3f;
        const SOURCE: u64 = 0x000f_0000;
        let raw = self.effective.fields().read(f::EXIT_QUALIFICATION);
        let known = [(Told::Port, PORT), (Told::Control, CONTROL), (Told::Source, SOURCE)];
        let bits = known.into_iter().filter(|(told, _)| row.tells(*told));
        raw & bits.fold(0, |mask, (_, bits)| mask | bits)
    }

    /// Leaves in the registers what the host may see.
    pub(super) fn reveal(&self, row: &Row, registers: &mut impl Registers) {
        restore(&[0; 16], registers);
        let told = self.access();
        for part in row.sees {
            let number = part.register.number();
            let value = match told {
                Some((.., data)) => data,
                None if part.register == Register::Operand => self.operand(),
                None => self.secrets.gprs.get(usize::from(number)).copied().unwrap_or(0),
            };
            registers.set(number, value & self.mask(part.width));
        }
    }

    /// Bits of a register that take part in the exit that was taken over.
    pub(super) fn mask(&self, width: Width) -> u64 {
        match width {
            Width::Access => {
                let port =
                    || exits::port_bytes(self.effective.fields().read(f::EXIT_QUALIFICATION));
                let bytes = self.access().map_or_else(port, |(_, _, bytes, _)| bytes.into());
                u64::MAX >> (64 - 8 * bytes)
            }
            Width::Four => 0xf,
            Width::Half => 0xffff_ffff,
            Width::Full => u64::MAX,
        }
    }
}

/// What the host is told of a page.
#[derive(Clone, Copy)]
pub(super) struct Page {
    pub(super) address: u64,
    pub(super) access: Access,
    pub(super) rights: Access,
}

impl Page {
    /// The qualification of an EPT violation (SDM vol. 3, table 29-7): for a linear address that has
    /// been translated.
    pub(super) const fn qualification(self) -> u64 {
        const TRANSLATED: u64 = 0b11 << 7;
        self.access.bits() | self.rights.bits() << 3 | TRANSLATED
    }
}

/// Has the exception that was intercepted delivered.
fn deliver(v02: &mut impl Vmcs) {
    let information = v02.read(f::EXIT_INTERRUPTION) & !UNBLOCKED;
    let (code, length) = (v02.read(f::EXIT_ERROR_CODE), v02.read(f::EXIT_INSTRUCTION_LENGTH));
    v02.write(f::ENTRY_INTERRUPTION, information);
    v02.write(f::ENTRY_ERROR_CODE, code);
    v02.write(f::ENTRY_INSTRUCTION_LENGTH, length);
    let blocked = v02.read(f::GUEST_INTERRUPTIBILITY) & BLOCKED_BY_INSTRUCTION != 0;
    if blocked && v02.read(f::GUEST_RFLAGS) & TRAP != 0 {
        // Else the entry would fail (SDM vol. 3, 28.3.1.5), though the exception goes first.
        v02.write(f::GUEST_PENDING_DEBUG, v02.read(f::GUEST_PENDING_DEBUG) | SINGLE_STEP);
    }
}

/// What the processor does about a debug exception that it delivers, and has not done yet.
fn debug(v02: &mut impl Vmcs) -> Verdict {
    /// Access to debug registers: detected, in DR6; to be detected, in DR7.
    const GENERAL_DETECT: u64 = 1 << 13;
    const TOLD: u64 = SINGLE_STEP | GENERAL_DETECT | 0xf;
    deliver(v02);
    v02.write(f::GUEST_DR7, v02.read(f::GUEST_DR7) & !GENERAL_DETECT);
    Verdict::Debug(v02.read(f::EXIT_QUALIFICATION) & TOLD)
}

/// Tells the host of an exit: reason and qualification; the event that it is, and the one that it has
/// cut short; length of the instruction, and guest-physical address. An event that the host has injected
/// is not pending any more.
pub(super) fn inform(
    shown: &mut Vcpu<'_>,
    (reason, qualification): (u32, u64),
    (event, delivery): (u32, u32),
    (length, address): (u32, u64),
) {
    shown.tell(f::EXIT_REASON.encoding(), reason.into());
    shown.tell(f::EXIT_QUALIFICATION.encoding(), qualification);
    shown.tell(f::EXIT_INTERRUPTION.encoding(), event.into());
    shown.tell(f::IDT_VECTORING.encoding(), delivery.into());
    shown.tell(f::EXIT_INSTRUCTION_LENGTH.encoding(), length.into());
    shown.tell(f::GUEST_PHYSICAL_ADDRESS.encoding(), address);
    let injected = shown.fields().read(f::ENTRY_INTERRUPTION) & !VALID;
    put(shown, f::ENTRY_INTERRUPTION.encoding(), injected.into());
}

/// Tells the host that its VM has shut down: what every exit and entry of one that was stopped
/// becomes.
pub fn shut_down(shown: &mut Vcpu<'_>, registers: &mut impl Registers) {
    inform(shown, (TRIPLE_FAULT, 0), (0, 0), (0, 0));
    restore(&[0; 16], registers);
}

/// Has the host enter its VM again, which is not ready to begin in the state that the host has set up: it is
/// told of a fetch from the page of the reset vector, for which it has nothing to emulate.
pub fn ask_again(shown: &mut Vcpu<'_>) {
    const RESET_VECTOR: u64 = 0xffff_f000;
    let page = Page { address: RESET_VECTOR, access: Access::FETCH, rights: Access::NONE };
    inform(shown, (EPT_VIOLATION, page.qualification()), (0, 0), (0, page.address));
}
