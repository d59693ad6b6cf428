//! Which kind of exit the processor's exit reasons are (SDM vol. 3D, appendix C).

use super::{Cause, Verdict};
use crate::disclosure::Exit;
use crate::exit::{self, Event};
use crate::field::{self as f, Vmcs};

/// Interruption information: vector and type, which is that of a hardware exception but for INT1.
const VECTOR_AND_TYPE: u32 = 0x7ff;
const DEBUG: u32 = 3 << 8 | 1;
const INT1: u32 = 5 << 8 | 1;
const ALIGNMENT_CHECK: u32 = 3 << 8 | 17;
const MACHINE_CHECK: u32 = 3 << 8 | 18;

/// CPUID leaf of the extended state.
const EXTENDED_STATE: u32 = 0xd;

/// IN, OUT.
pub(super) const PORT: u32 = 30;
/// EPT violation, as the host is told of an absent page.
pub(super) const EPT_VIOLATION: u32 = 48;
const EPT_MISCONFIGURATION: u32 = 49;
/// Triple fault, as the host is told of a VM that was stopped.
pub(super) const TRIPLE_FAULT: u32 = 2;

/// The kind of the exit in `v`, of which `leaf` is EAX; or what becomes of one that has none.
pub(super) fn decode(v: &impl Vmcs, leaf: u32) -> Result<Exit, Verdict> {
    let [low, high, ..] = v.read(f::EXIT_REASON).to_le_bytes();
    let basic = u16::from_le_bytes([low, high]);
    let none = Verdict::Stop(Cause::NoRule(basic));
    Ok(match u32::from(basic) {
        0 => exception(v.read(f::EXIT_INTERRUPTION)).ok_or(none)?,
        1 => Exit::Interrupt,
        TRIPLE_FAULT => return Err(Verdict::Stop(Cause::Shutdown)),
        3 | 4 => Exit::Signal,
        7 => Exit::InterruptWindow,
        8 => Exit::NmiWindow,
        9 => return Err(Verdict::Stop(Cause::TaskSwitch)),
        10 if leaf == EXTENDED_STATE => Exit::ExtendedState,
        10 => Exit::Cpuid,
        12 => Exit::Halt,
        13 => Exit::Discard,
        15 => Exit::Counter,
        18 => Exit::Hypercall,
        // GETSEC, VMCLEAR to VMXON, INVEPT, INVVPID, VMFUNC
        11 | 19..=27 | 50 | 53 | 59 => Exit::Hidden,
        28 => control(v.read(f::EXIT_QUALIFICATION)).ok_or(none)?,
        PORT => port(v.read(f::EXIT_QUALIFICATION))?,
        31 => Exit::ReadMsr,
        32 => Exit::WriteMsr,
        36 | 39 => Exit::Wait,
        40 => Exit::Pause,
        43 => Exit::TaskPriority,
        EPT_VIOLATION | EPT_MISCONFIGURATION => Exit::Page,
        52 => Exit::Timer,
        54 => Exit::WriteBack,
        55 => Exit::ExtendedControl,
        _ => return Err(none),
    })
}

fn exception(information: u32) -> Option<Exit> {
    if exit::is_nmi(information) {
        return Some(Exit::Nmi);
    }
    match information & VECTOR_AND_TYPE {
        DEBUG | INT1 => Some(Exit::Debug),
        ALIGNMENT_CHECK => Some(Exit::AlignmentCheck),
        MACHINE_CHECK => Some(Exit::MachineCheck),
        _ => None,
    }
}

/// SDM vol. 3, table 29-3: register in bits 3:0, instruction in bits 5:4.
fn control(qualification: u64) -> Option<Exit> {
    Some(match (qualification & 15, qualification >> 4 & 3) {
        (0 | 4, 0) => Exit::WriteControl,
        (8, 0) => Exit::WritePriority,
        (8, 1) => Exit::ReadPriority,
        (0, 2) => Exit::ClearTaskSwitched,
        (0, 3) => Exit::LoadStatusWord,
        _ => return None,
    })
}

/// SDM vol. 3, table 29-5.
fn port(qualification: u64) -> Result<Exit, Verdict> {
    const STRING: u64 = 1 << 4;
    const IN: u64 = 1 << 3;
    if qualification & STRING != 0 {
        return Err(Verdict::StringPort);
    }
    Ok(if qualification & IN != 0 { Exit::PortIn } else { Exit::PortOut })
}

/// Bytes of the port access with this qualification.
pub(super) const fn port_bytes(qualification: u64) -> u32 {
    match qualification & 7 {
        0 => 1,
        1 => 2,
        _ => 4,
    }
}

/// The number of the register operand of an access to a control register.
pub(super) const fn operand(qualification: u64) -> u8 {
    let [_, second, ..] = qualification.to_le_bytes();
    second & 15
}

/// Whether the instruction raises #GP(0) outside ring 0. The processor checks that before it exits
/// (SDM vol. 3, 27.1.1); Bochs 2.7 not always.
pub(super) const fn is_privileged(exit: Exit) -> bool {
    matches!(
        exit,
        Exit::Halt
            | Exit::Discard
            | Exit::WriteBack
            | Exit::WriteControl
            | Exit::ClearTaskSwitched
            | Exit::LoadStatusWord
            | Exit::WritePriority
            | Exit::ReadPriority
            | Exit::ExtendedControl
            | Exit::ReadMsr
            | Exit::WriteMsr
            | Exit::OwnMsr
    )
}

/// #GP(0).
pub(super) const FAULT: Event = Event::GeneralProtection(0);
