//! `load`: the host's state after an exit: what the VMCS says, and what an exit always sets (SDM
//! vol. 3, 28.5).

use crate::capability as c;
use crate::field as f;
use crate::instruction::{get, set};
use crate::vm::Step::{All, Do, On, Or, Set, ShowValue, Undo};
use crate::vm::{self, Step, cases};
use bare::cpu::{self, Pseudo};
use core::arch::asm;

/// Defines functions that read a register by one instruction.
macro_rules! reads {
    ($($name:ident $text:literal;)*) => {$(
        fn $name() -> u64 {
            let value: u64;
            // SAFETY: reads a register.
            unsafe { asm!("xor {0:e}, {0:e}", $text, out(reg) value) };
            value
        }
    )*};
}
reads! {
    cs "mov {0:e}, cs";
    ss "mov {0:e}, ss";
    ds "mov {0:e}, ds";
    es "mov {0:e}, es";
    fs "mov {0:e}, fs";
    gs "mov {0:e}, gs";
    ldtr "sldt {0:e}";
    tr "str {0:e}";
    dr6 "mov {0}, dr6";
    dr7 "mov {0}, dr7";
}

fn gdtr_limit() -> u64 {
    let mut table = Pseudo { limit: 0, base: 0 };
    // SAFETY: writes the ten bytes of the variable.
    unsafe { asm!("sgdt [{}]", in(reg) &raw mut table) };
    u64::from(table.limit)
}

fn idtr_limit() -> u64 {
    let mut table = Pseudo { limit: 0, base: 0 };
    // SAFETY: as above.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut table) };
    u64::from(table.limit)
}

fn set_dr7(value: u64) {
    // SAFETY: the breakpoints that this enables are at address 0.
    unsafe { asm!("mov dr7, {}", in(reg) value) };
}

/// Loads the usual selectors again.
fn usual_segments() {
    // SAFETY: flat data, as `boot.s` loads it.
    unsafe {
        asm!("mov ds, {0:e}", "mov es, {0:e}", "mov fs, {1:e}", "mov gs, {1:e}", in(reg) 0x18, in(reg) 0)
    };
}

const EFER: u32 = 0xc000_0080;
const PAT: u32 = 0x277;
const PGE: u64 = 0x80;
const SELECTORS: Step = All(&[
    ShowValue("cs", cs),
    ShowValue("ss", ss),
    ShowValue("ds", ds),
    ShowValue("es", es),
    ShowValue("fs", fs),
    ShowValue("gs", gs),
    Undo(usual_segments),
]);

cases! {
LOADS:
    "always"
        [
            ShowValue("rflags", vm::host_flags), ShowValue("gdtr", gdtr_limit),
            ShowValue("idtr", idtr_limit), ShowValue("ldtr", ldtr), ShowValue("tr", tr),
            ShowValue("dr7", dr7),
        ]
        { "std", "stc", "vmcall" }
    "selectors" [SELECTORS] { "vmcall" }
    "selectors-0"
        [
            Set(f::HOST_DS_SELECTOR, 0), Set(f::HOST_ES_SELECTOR, 0), Set(f::HOST_SS_SELECTOR, 0),
            SELECTORS,
        ]
        { "vmcall" }
    "selectors-other"
        [
            Set(f::HOST_ES_SELECTOR, 0x38), Set(f::HOST_FS_SELECTOR, 0x18),
            Set(f::HOST_GS_SELECTOR, 0x38), SELECTORS,
        ]
        { "vmcall" }
    "selectors-of-vm" [super::COMPATIBILITY, SELECTORS]
        { ".code32", "xor eax, eax", "mov ds, eax", "mov es, eax", "mov fs, eax", "vmcall" }
    "bases"
        [
            Set(f::HOST_FS_BASE, 0x1234_5678_9abc), Set(f::HOST_GS_BASE, 0xffff_8000_0000_1000),
            ShowValue("fs", || cpu::rdmsr(0xc000_0100)),
            ShowValue("gs", || cpu::rdmsr(0xc000_0101)), Undo(usual_segments),
        ]
        { "vmcall" }
    "sysenter"
        [
            Set(f::HOST_SYSENTER_CS, 0x33), Set(f::HOST_SYSENTER_ESP, 0x1111),
            Set(f::HOST_SYSENTER_EIP, 0x2222), ShowValue("cs", || cpu::rdmsr(0x174)),
            ShowValue("esp", || cpu::rdmsr(0x175)), ShowValue("eip", || cpu::rdmsr(0x176)),
            Undo(|| [0x174, 0x175, 0x176].into_iter().for_each(|msr| cpu::wrmsr(msr, 0))),
        ]
        { "vmcall" }
    "cr0-ts" [Or(f::HOST_CR0, 8), ShowValue("cr0", vm::host_cr0)] { "vmcall" }
    "cr0-wp"
        [
            Do(|| set(f::HOST_CR0, cpu::cr0() & !(1 << 16))), ShowValue("cr0", vm::host_cr0),
            Undo(|| cpu::set_cr0(cpu::cr0() | 1 << 16)),
        ]
        { "vmcall" }
    "cr0-am"
        [
            Or(f::HOST_CR0, 1 << 18), ShowValue("cr0", vm::host_cr0),
            Undo(|| cpu::set_cr0(cpu::cr0() & !(1 << 18))),
        ]
        { "vmcall" }
    "cr0-cache-stays" [Or(f::HOST_CR0, 3 << 29), ShowValue("cr0", vm::host_cr0)] { "vmcall" }
    "cr0-of-vm" [ShowValue("cr0", vm::host_cr0)]
        { "mov rax, cr0", "xor eax, 0x5000e", "mov cr0, rax", "vmcall" }
    "cr3"
        [
            Do(|| set(f::HOST_CR3, cpu::cr3() | 0x18)), ShowValue("flags", || cpu::cr3() & 0xfff),
            Undo(|| cpu::set_cr3(cpu::cr3() & !0xfff)),
        ]
        { "vmcall" }
    "cr4"
        [Or(f::HOST_CR4, PGE), ShowValue("cr4", cpu::cr4), Undo(|| cpu::set_cr4(cpu::cr4() & !PGE))]
        { "vmcall" }
    "cr4-of-vm" [ShowValue("cr4", cpu::cr4)]
        { "mov rax, cr4", "or eax, 0x9c", "mov cr4, rax", "vmcall" }
    "dr7" [Do(|| set_dr7(0x455)), ShowValue("dr7", dr7)] { "vmcall" }
    "dr7-with-debug-controls"
        [On(c::LOAD_DEBUG), On(c::SAVE_DEBUG), Set(f::GUEST_DR7, 0x703), ShowValue("dr7", dr7)]
        { "vmcall" }
    "dr6-stays" [ShowValue("dr6", dr6), Undo(|| ())]
        { "mov eax, 0xffff0ff3", "mov dr6, rax", "vmcall" }
    "debugctl"
        [On(c::LOAD_DEBUG), Set(f::GUEST_DEBUGCTL, 2), ShowValue("debugctl", || cpu::rdmsr(0x1d9))]
        { "vmcall" }
    "efer"
        [
            On(c::EXIT_LOAD_EFER), Do(|| set(f::HOST_EFER, cpu::rdmsr(EFER) | 0x801)),
            ShowValue("efer", || cpu::rdmsr(EFER)),
            Undo(|| cpu::wrmsr(EFER, cpu::rdmsr(EFER) & !0x801)),
        ]
        { "vmcall" }
    "efer-not"
        [Do(|| set(f::HOST_EFER, cpu::rdmsr(EFER) | 0x801)), ShowValue("efer", || cpu::rdmsr(EFER))]
        { "vmcall" }
    "efer-of-vm-stays"
        [
            On(c::ENTRY_LOAD_EFER), Set(f::GUEST_EFER, 0x501),
            ShowValue("efer", || cpu::rdmsr(EFER)),
            Undo(|| cpu::wrmsr(EFER, cpu::rdmsr(EFER) & !0x801)),
        ]
        { "vmcall" }
    "efer-of-32-bit-vm" [super::PROTECTED, ShowValue("efer", || cpu::rdmsr(EFER))]
        { ".code32", "vmcall" }
    "pat"
        [
            On(c::EXIT_LOAD_PAT), Set(f::HOST_PAT, 0x0606_0606_0606_0606),
            ShowValue("pat", || cpu::rdmsr(PAT)), Undo(|| cpu::wrmsr(PAT, 0x0007_0406_0007_0406)),
        ]
        { "vmcall" }
    "pat-not" [Set(f::HOST_PAT, 0x0606_0606_0606_0606), ShowValue("pat", || cpu::rdmsr(PAT))]
        { "vmcall" }
    "pat-of-vm-stays"
        [
            On(c::ENTRY_LOAD_PAT), Set(f::GUEST_PAT, 0x0606_0606_0606_0606),
            ShowValue("pat", || cpu::rdmsr(PAT)), Undo(|| cpu::wrmsr(PAT, 0x0007_0406_0007_0406)),
        ]
        { "vmcall" }
    "after-failed-entry"
        [
            Set(f::GUEST_RFLAGS, 0), Or(f::HOST_CR4, PGE), Set(f::HOST_SYSENTER_CS, 0x44),
            ShowValue("cr4", cpu::cr4), ShowValue("sysenter", || cpu::rdmsr(0x174)),
            Undo(|| { cpu::set_cr4(cpu::cr4() & !PGE); cpu::wrmsr(0x174, 0); }),
        ]
        { "vmcall" }
    "after-vmfail" [Set(f::CR3_TARGET_COUNT, 9), Or(f::HOST_CR4, PGE), ShowValue("cr4", cpu::cr4)]
        { "vmcall" }
    "vmcs-keeps-host"
        [
            Or(f::HOST_CR4, PGE), ShowValue("field", || get(f::HOST_CR4)),
            Undo(|| cpu::set_cr4(cpu::cr4() & !PGE)),
        ]
        { "vmcall" };
}

pub(super) fn run() {
    vm::all("load", LOADS);
}
