//! Exits, described by what the manual defines for them (SDM vol. 3, 28.2).

use crate::field as f;
use crate::guest::{CODE, STACK_TOP, STUBS, load};
use crate::instruction::get;
use crate::log::Line;
use core::sync::atomic::{AtomicBool, Ordering};

const EXCEPTION: u64 = 0;
const TASK_SWITCH: u64 = 9;
pub(crate) const VMCALL: u64 = 18;
const CR_ACCESS: u64 = 28;
const IO: u64 = 30;
const EPT_VIOLATION: u64 = 48;
const EPT_MISCONFIGURATION: u64 = 49;

static BLOCKING: AtomicBool = AtomicBool::new(false);

/// What is read once after an exit; the rest is in the VMCS.
#[derive(Clone, Copy)]
pub(crate) struct Exit {
    pub(crate) reason: u64,
    pub(crate) qualification: u64,
}

impl Exit {
    pub(crate) fn read() -> Self {
        let blocked = get(f::GUEST_INTERRUPTIBILITY) & 8 != 0;
        let _ = BLOCKING.fetch_or(blocked, Ordering::Relaxed);
        Self { reason: get(f::EXIT_REASON), qualification: get(f::EXIT_QUALIFICATION) }
    }

    /// Whether NMIs were blocked in the VM at an exit since the last call.
    pub(crate) fn left_blocking() -> bool {
        BLOCKING.swap(false, Ordering::Relaxed)
    }

    pub(crate) const fn is_failed_entry(&self) -> bool {
        self.reason >> 31 != 0
    }

    /// Whether executing an instruction caused the exit as such (28.2.5).
    pub(crate) const fn by_instruction(&self) -> bool {
        matches!(self.reason & 0xffff,
            10..=28 | 30..=32 | 29 | 36 | 39 | 40 | 46 | 47 | 50 | 51 | 53..=55 | 57..=59 | 61 | 63 | 64)
    }

    const fn is_string_io(&self) -> bool {
        self.reason == IO && self.qualification & 1 << 4 != 0
    }

    const fn has_information(&self) -> bool {
        self.is_string_io()
            || matches!(
                self.reason & 0xffff,
                19 | 21..=23 | 25 | 27 | 46 | 47 | 50 | 53 | 57 | 58 | 61 | 63 | 64
            )
    }

    /// LMSW with an operand in memory tells its address.
    const fn has_linear(&self) -> bool {
        self.is_string_io()
            || self.reason == EPT_VIOLATION && self.qualification & 1 << 7 != 0
            || self.reason == CR_ACCESS && self.qualification & 0x70 == 0x70
    }

    /// Whether a software event led to the exit: its instruction has a length.
    fn by_software(&self) -> bool {
        let soft = |event: u64| event >> 31 != 0 && matches!(event >> 8 & 7, 4..=6);
        self.reason == EXCEPTION && soft(get(f::EXIT_INTERRUPTION))
            || self.reason == TASK_SWITCH && matches!(self.qualification >> 30, 0..=2)
            || soft(get(f::IDT_VECTORING))
    }

    /// Adds everything that this exit defines to the line.
    pub(crate) fn describe(&self, line: &mut Line) {
        if self.is_failed_entry() {
            let basic = self.reason & 0xffff;
            return line.add(format_args!("entry fails {basic} q={:#x}", self.qualification));
        }
        line.add(format_args!("exit {}", self.reason));
        // The displacement of an operand in memory; 0 for a register, where Bochs 2.7 leaves what
        // it had decoded there before.
        let register = self.has_information()
            && !self.is_string_io()
            && get(f::EXIT_INSTRUCTION_INFO) & 1 << 10 != 0;
        if self.qualification != 0 && !register {
            line.add(format_args!(" q={:#x}", self.qualification));
        }
        if self.by_instruction() || self.by_software() {
            line.add(format_args!(" len={}", get(f::EXIT_INSTRUCTION_LENGTH)));
        }
        if self.has_information() {
            line.add(format_args!(" info={:#x}", get(f::EXIT_INSTRUCTION_INFO)));
        }
        self.describe_addresses(line);
        describe_event(line, "event", [f::EXIT_INTERRUPTION, f::EXIT_ERROR_CODE]);
        describe_event(line, "vectoring", [f::IDT_VECTORING, f::IDT_VECTORING_CODE]);
        self.describe_guest(line);
    }

    fn describe_addresses(&self, line: &mut Line) {
        if self.has_linear() {
            line.add(format_args!(" linear={:#x}", get(f::GUEST_LINEAR_ADDRESS)));
        }
        if matches!(self.reason, EPT_VIOLATION | EPT_MISCONFIGURATION) {
            line.add(format_args!(" physical={:#x}", get(f::GUEST_PHYSICAL_ADDRESS)));
        }
    }

    fn describe_guest(&self, line: &mut Line) {
        let (rip, rsp) = (get(f::GUEST_RIP), get(f::GUEST_RSP));
        if self.reason == VMCALL && (STUBS..STUBS + 0x1000).contains(&rip) {
            line.add(format_args!(" idt={}", (rip - STUBS) / 16));
            // What the delivery pushed last: an error code, or RIP.
            if (STACK_TOP - 0x1000..STACK_TOP).contains(&rsp) {
                line.add(format_args!(" top={:#x}", load(rsp)));
            }
        } else if (CODE..CODE + 0x1000).contains(&rip) {
            line.add(format_args!(" rip=+{:#x}", rip - CODE));
        } else {
            line.add(format_args!(" rip={rip:#x}"));
        }
        if rsp != STACK_TOP {
            match STACK_TOP.checked_sub(rsp) {
                Some(used @ ..=0x1000) => line.add(format_args!(" rsp=-{used:#x}")),
                _ => line.add(format_args!(" rsp={rsp:#x}")),
            }
        }
        for (name, field, usual) in [
            ("rflags", f::GUEST_RFLAGS, 2),
            ("blocking", f::GUEST_INTERRUPTIBILITY, 0),
            ("activity", f::GUEST_ACTIVITY, 0),
            ("pending", f::GUEST_PENDING_DEBUG, 0),
        ] {
            let value = get(field);
            if value != usual {
                line.add(format_args!(" {name}={value:#x}"));
            }
        }
        // The exit made the event of the entry invalid, and left the rest of the field.
        if get(f::ENTRY_INTERRUPTION) >> 31 != 0 {
            line.add(format_args!(" injects again"));
        }
    }
}

/// An event as the VMCS tells it, with its error code if it has one.
fn describe_event(line: &mut Line, name: &str, [field, code]: [f::Field; 2]) {
    let event = get(field);
    if event >> 31 != 0 {
        line.add(format_args!(" {name}={event:#x}"));
        if event & 1 << 11 != 0 {
            line.add(format_args!("({:#x})", get(code)));
        }
    }
}
