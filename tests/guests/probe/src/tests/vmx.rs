//! `vmx-instructions`: VMX, SMX and their kin raise #UD in ring 0 and in ring 3, outside VMX
//! operation and with CR4.VMXE clear.

use super::{Arguments, Machine};
use crate::fault::{Fault, UD, catch, catch_ring3};
use crate::report::{Checks, Outcome};
use core::arch::asm;

struct Instruction {
    name: &'static str,
    run: fn(),
}

/// Builds the table; operands in memory are on the stack, those in registers are 0.
macro_rules! instructions {
    ($($name:literal, [$($text:literal),+];)*) => {
        &[$(Instruction {
            name: $name,
            run: || {
                // SAFETY: raises #UD; should it not, it has no VMX operand to act on.
                unsafe {
                    asm!("push 0", "push 0", $($text),+, "add rsp, 16",
                         inout("rax") 0u64 => _, inout("rcx") 0u64 => _, inout("rdx") 0u64 => _);
                }
            },
        }),*]
    };
}

const INSTRUCTIONS: &[Instruction] = instructions! {
    "vmcall", ["vmcall"];
    "vmlaunch", ["vmlaunch"];
    "vmresume", ["vmresume"];
    "vmxoff", ["vmxoff"];
    "vmxon", ["vmxon [rsp]"];
    "vmclear", ["vmclear [rsp]"];
    "vmptrld", ["vmptrld [rsp]"];
    "vmptrst", ["vmptrst [rsp]"];
    "vmread", ["vmread rax, rcx"];
    "vmread to memory", ["vmread [rsp], rcx"];
    "vmwrite", ["vmwrite rax, rcx"];
    "vmwrite from memory", ["vmwrite rax, [rsp]"];
    "invept", ["invept rax, [rsp]"];
    "invvpid", ["invvpid rax, [rsp]"];
    "vmfunc", ["vmfunc"];
    "getsec", ["getsec"];
    "rsm", ["rsm"];
    "vmmcall", ["vmmcall"];
    "ud0", [".byte 0x0f, 0xff, 0xc0"];
    "ud1", [".byte 0x0f, 0xb9, 0xc0"];
    "ud2", ["ud2"];
};

pub(super) fn run(_: &Machine, _: &Arguments) -> Outcome {
    let mut checks = Checks::new();
    for instruction in INSTRUCTIONS {
        note(&mut checks, instruction, 0, catch(instruction.run));
        note(&mut checks, instruction, 3, catch_ring3(instruction.run));
    }
    checks.finish()
}

fn note(checks: &mut Checks, instruction: &Instruction, ring: u8, result: Result<(), Fault>) {
    let name = instruction.name;
    match result {
        Ok(()) => checks.that(false, format_args!("{name} in ring {ring} raises #UD, did not")),
        Err(Fault { vector, .. }) => checks
            .that(vector == UD, format_args!("{name} in ring {ring} raises #UD, vector {vector}")),
    }
}
