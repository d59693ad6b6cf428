//! VMX instructions, with what came of them.

use crate::field::{Field, INSTRUCTION_ERROR};
use bare::fault::{self, Fault};
use core::arch::asm;
use core::fmt;

/// How a VMX instruction ended (SDM vol. 3, 31.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded,
    FailInvalid,
    /// VMfailValid, with the error number.
    FailValid(u64),
    /// Arithmetic flags that no VMX instruction leaves.
    OddFlags(u64),
    Faulted(Fault),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Succeeded => f.write_str("succeeds"),
            Self::FailInvalid => f.write_str("VMfailInvalid"),
            Self::FailValid(error) => write!(f, "VMfail {error}"),
            Self::OddFlags(flags) => write!(f, "odd flags {flags:#x}"),
            Self::Faulted(fault) => Exception(*fault).fmt(f),
        }
    }
}

/// An exception by the manual's name.
struct Exception(Fault);

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { vector, error, address, .. } = self.0;
        match vector {
            6 => f.write_str("#UD"),
            12 => write!(f, "#SS({error:#x})"),
            13 => write!(f, "#GP({error:#x})"),
            14 => write!(f, "#PF({error:#x}) at {address:#x}"),
            _ => write!(f, "exception {vector}({error:#x})"),
        }
    }
}

const CARRY: u64 = 1;
const ZERO: u64 = 0x40;
/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;

/// What RFLAGS after an instruction say that found all arithmetic flags set before.
pub(crate) fn judge(flags: u64) -> Outcome {
    match flags & ARITHMETIC {
        0 => Outcome::Succeeded,
        CARRY => Outcome::FailInvalid,
        ZERO => Outcome::FailValid(get(INSTRUCTION_ERROR)),
        other => Outcome::OddFlags(other),
    }
}

/// Runs an instruction that gives RFLAGS.
pub(crate) fn attempt(run: impl FnOnce() -> u64) -> Outcome {
    fault::catch(run).map_or_else(Outcome::Faulted, judge)
}

/// As [`attempt`], in ring 3.
pub(crate) fn attempt_ring3(run: impl FnOnce() -> u64) -> Outcome {
    fault::catch_ring3(run).map_or_else(Outcome::Faulted, judge)
}

/// RFLAGS after the instructions `text`, before which all arithmetic flags were set.
macro_rules! flags_after {
    ($($text:literal),+; $($operands:tt)*) => {{
        let flags: u64;
        // SAFETY: the instruction acts on VMX state and on memory that the test gave it; the two
        // words on the stack are taken off again.
        unsafe {
            core::arch::asm!("push 0x8d7", "popfq", $($text),+, "pushfq", "pop {flags}",
                             $($operands)* flags = out(reg) flags);
        }
        flags
    }};
}
pub(crate) use flags_after;

/// Defines the instructions whose operand is a physical address in memory.
macro_rules! by_address {
    ($($name:ident $raw:ident $text:literal;)*) => {$(
        /// RFLAGS after it, with the operand at `pointer`.
        #[inline(always)]
        pub(crate) fn $raw(pointer: u64) -> u64 {
            flags_after!($text; in(reg) pointer,)
        }
        pub(crate) fn $name(physical: u64) -> Outcome {
            attempt(|| $raw(&raw const physical as u64))
        }
    )*};
}
by_address! {
    vmxon vmxon_at "vmxon [{}]";
    vmclear vmclear_at "vmclear [{}]";
    vmptrld vmptrld_at "vmptrld [{}]";
}

/// RFLAGS after VMPTRST to `pointer`.
#[inline(always)]
pub(crate) fn vmptrst_at(pointer: u64) -> u64 {
    flags_after!("vmptrst [{}]"; in(reg) pointer,)
}

/// The current VMCS.
pub(crate) fn vmptrst() -> u64 {
    let mut physical = 0;
    let _ = vmptrst_at(&raw mut physical as u64);
    physical
}

pub(crate) fn vmxoff() -> Outcome {
    attempt(|| flags_after!("vmxoff";))
}

/// VMREAD of what need not be a field.
pub(crate) fn vmread(encoding: u64) -> (Outcome, u64) {
    let mut value = 0x5a5a_5a5a_5a5a_5a5a_u64;
    let place = &raw mut value;
    let outcome = attempt(|| {
        let result: u64;
        let flags = flags_after!("vmread {}, {}"; inout(reg) 0x5a5a_5a5a_5a5a_5a5a_u64 => result, in(reg) encoding,);
        // SAFETY: the variable above, which outlives this call.
        unsafe { place.write(result) };
        flags
    });
    (outcome, value)
}

/// VMWRITE to what need not be a field.
pub(crate) fn vmwrite(encoding: u64, value: u64) -> Outcome {
    attempt(|| flags_after!("vmwrite {}, {}"; in(reg) encoding, in(reg) value,))
}

/// What [`get`] gives when there is no such field, or no current VMCS.
const NOTHING: u64 = 0xbad_f1e1d;

/// The value of a field that exists.
pub(crate) fn get(field: Field) -> u64 {
    let (value, flags): (u64, u64);
    // SAFETY: reads the current VMCS.
    unsafe {
        asm!("vmread {}, {}", "pushfq", "pop {}", out(reg) value, in(reg) u64::from(field.0), out(reg) flags);
    }
    if flags & (CARRY | ZERO) == 0 { value } else { NOTHING }
}

/// Writes a field; one that does not exist stays away.
pub(crate) fn set(field: Field, value: u64) {
    // SAFETY: writes the current VMCS, which governs nothing but the VM.
    unsafe { asm!("vmwrite {}, {}", in(reg) u64::from(field.0), in(reg) value) };
}

/// INVEPT or INVVPID: the type in a register, 16 bytes in memory.
#[inline(always)]
pub(crate) fn invept_at(kind: u64, pointer: u64) -> u64 {
    flags_after!("invept {}, [{}]"; in(reg) kind, in(reg) pointer,)
}

#[inline(always)]
pub(crate) fn invvpid_at(kind: u64, pointer: u64) -> u64 {
    flags_after!("invvpid {}, [{}]"; in(reg) kind, in(reg) pointer,)
}

pub(crate) fn invept(kind: u64, descriptor: [u64; 2]) -> Outcome {
    attempt(|| invept_at(kind, &raw const descriptor as u64))
}

pub(crate) fn invvpid(kind: u64, descriptor: [u64; 2]) -> Outcome {
    attempt(|| invvpid_at(kind, &raw const descriptor as u64))
}
