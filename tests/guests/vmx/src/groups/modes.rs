//! `mode`: VMs in real, virtual-8086, protected and compatibility mode, with every kind of paging,
//! on the way between them, and task switches.

use super::{COMPATIBILITY, PAE, PROTECTED, REAL, TWO_LEVELS, VIRTUAL_8086};
use crate::capability as c;
use crate::ept::LEAF;
use crate::field as f;
use crate::guest::{self, FRAMES, IDT_32, OTHER_TASK, PD, PDPT_PAE, WINDOW_PHYSICAL};
use crate::instruction::get;
use crate::vm::Step::{
    All, Do, Exits, Map, Off, On, Reg, Set, Show, ShowField, ShowValue, ShowWord, Store,
};
use crate::vm::{self, GUEST_CR0, GUEST_CR4, Reg as R, Step, cases};
use bare::cpu;

/// The VM's physical addresses are the machine's.
const NO_EPT: Step = All(&[Off(c::EPT), Off(c::UNRESTRICTED)]);

/// What decides about the mode, after the exit.
const MODE: Step = All(&[
    ShowField(f::GUEST_CR0),
    ShowField(f::GUEST_CR4),
    ShowField(f::GUEST_CS_RIGHTS),
    ShowValue("64", || get(f::ENTRY_CONTROLS) >> 9 & 1),
]);
const BITMAP: Step = On(c::MSR_BITMAPS);
const EVERY: Step = Set(f::EXCEPTION_BITMAP, 0xffff_ffff);
const TASK_GATE: Step = Store(IDT_32 + 8 * 0x42, 0x0000_8500_0058_0000);

cases! {
REAL_MODE:
    "vmcall" [REAL] { ".code16", "vmcall" }
    "cpuid" [REAL, Exits(2)] { ".code16", "xor ax, ax", "cpuid", "nop", "vmcall" }
    "hlt" [REAL] { ".code16", "hlt" }
    "int" [REAL, ShowField(f::GUEST_CS_SELECTOR), ShowField(f::GUEST_CS_BASE)]
        { ".code16", "int 0x10" }
    "int-returns" [REAL, Exits(2)] { ".code16", "int 0x10", "nop", "hlt" }
    "int3-in-bitmap" [REAL, EVERY] { ".code16", "int3" }
    "undefined" [REAL] { ".code16", "ud2" }
    "undefined-in-bitmap" [REAL, EVERY] { ".code16", "ud2" }
    "protection" [REAL] { ".code16", "mov bx, 0xffff", "mov ax, [bx]" }
    "protection-in-bitmap" [REAL, EVERY] { ".code16", "mov bx, 0xffff", "mov ax, [bx]" }
    "stack-in-bitmap" [REAL, EVERY, Set(f::GUEST_RSP, 1)] { ".code16", "push ax" }
    "out" [REAL] { ".code16", "mov dx, 0x3f8", "out dx, al" }
    "outsb" [REAL, Reg(R::Rsi, 0x20)] { ".code16", "mov dx, 0x80", "outsb" }
    "rep-insw" [REAL, Reg(R::Rdi, 0x20), Reg(R::Rcx, 2)] { ".code16", "mov dx, 0x80", "rep insw" }
    "outsb-override-32" [REAL, Reg(R::Rsi, 0x20)]
        { ".code16", "mov dx, 0x80", ".byte 0x67, 0x26, 0x6e" }
    "mov-segment"
        [
            REAL, ShowField(f::GUEST_DS_SELECTOR), ShowField(f::GUEST_DS_BASE),
            ShowField(f::GUEST_DS_RIGHTS),
        ]
        { ".code16", "mov ax, 0x1234", "mov ds, ax", "vmcall" }
    "far-jump" [REAL, ShowField(f::GUEST_CS_BASE)]
        { ".code16", ".byte 0xea", ".short 8, 0x1000", "nop", "nop", "nop", "vmcall" }
    "rdmsr" [REAL] { ".code16", "mov ecx, 0x10", "rdmsr" }
    "cr0-to-protected" [REAL, MODE]
        { ".code16", "mov eax, cr0", "or al, 1", "mov cr0, eax", "vmcall" }
    "lmsw-to-protected" [REAL, MODE] { ".code16", "smsw ax", "or al, 1", "lmsw ax", "vmcall" }
    "cr0-masked" [REAL, Set(f::CR0_MASK, 1), Set(f::CR0_SHADOW, 0)]
        { ".code16", "mov eax, cr0", "or al, 1", "mov cr0, eax", "vmcall" }
    "lmsw-masked" [REAL, Set(f::CR0_MASK, 1), Set(f::CR0_SHADOW, 0)]
        { ".code16", "mov ax, 1", "lmsw ax", "vmcall" }
    "ept-violation" [REAL, Set(f::GUEST_ES_SELECTOR, 0x8000), Set(f::GUEST_ES_BASE, 0x8_0000)]
        { ".code16", "mov al, es:[0x10]" }
    "fetch-violation" [REAL] { ".code16", ".byte 0xea", ".short 8, 0x8000" }
    "sgdt-exit" [REAL, On(c::DESCRIPTOR_EXITING)] { ".code16", "sgdt [0x10]" }
    "vmread" [REAL] { ".code16", "vmread eax, ecx" }
    "vmptrld" [REAL] { ".code16", "vmptrld [0x10]" }
    "inject-external" [REAL, Set(f::GUEST_RFLAGS, 0x202), Set(f::ENTRY_INTERRUPTION, 0x8000_0020)]
        { ".code16", "vmcall" }
    "inject-interrupt"
        [REAL, Set(f::ENTRY_INTERRUPTION, 0x8000_0421), Set(f::ENTRY_INSTRUCTION_LENGTH, 2)]
        { ".code16", "vmcall" }
    "inject-exception" [REAL, Set(f::ENTRY_INTERRUPTION, 0x8000_030d)] { ".code16", "vmcall" }
    "inject-error-code" [REAL, Set(f::ENTRY_INTERRUPTION, 0x8000_0b0d)] { ".code16", "vmcall" }
    "inject-nmi" [REAL, Set(f::ENTRY_INTERRUPTION, 0x8000_0202)] { ".code16", "vmcall" }
    "triple-fault" [REAL, Set(f::GUEST_IDTR_LIMIT, 3)] { ".code16", "ud2" }
    "without-unrestricted" [Set(f::GUEST_CR0, GUEST_CR0 & !(1 << 31) & !1)] { ".code16", "vmcall" };
VIRTUAL_86:
    "v86-vmcall" [VIRTUAL_8086] { ".code16", "vmcall" }
    "v86-cpuid" [VIRTUAL_8086] { ".code16", "cpuid" }
    "v86-hlt" [VIRTUAL_8086, EVERY] { ".code16", "hlt" }
    "v86-int" [VIRTUAL_8086, EVERY] { ".code16", "int 0x21" }
    "v86-int-iopl-3"
        [VIRTUAL_8086, Set(f::GUEST_RFLAGS, 0x2_3002), Store(guest::TASK + 8, guest::DATA_0)]
        { ".code16", "int 0x21" }
    "v86-cli" [VIRTUAL_8086, EVERY] { ".code16", "cli" }
    "v86-in" [VIRTUAL_8086, EVERY] { ".code16", "in al, 0x80" };
PROTECTED_MODE:
    "protected" [PROTECTED, MODE] { ".code32", "vmcall" }
    "protected-cpuid" [PROTECTED] { ".code32", "cpuid" }
    "protected-int" [PROTECTED] { ".code32", "int 0x42" }
    "protected-int-returns" [PROTECTED, Exits(2)] { ".code32", "int 0x42", "hlt" }
    "protected-into" [PROTECTED, EVERY] { ".code32", "mov al, 0x7f", "inc al", "into" }
    "protected-bound" [PROTECTED, EVERY] { ".code32", "mov eax, 9", "bound eax, [0x400000]" }
    "protected-overflow-to-vm" [PROTECTED] { ".code32", "mov al, 0x7f", "inc al", "into" }
    "protected-segment-absent" [PROTECTED, EVERY, Store(guest::GDT + 0x70, 0x00cf_1300_0000_ffff)]
        { ".code32", "mov eax, 0x70", "mov fs, eax" }
    "protected-out" [PROTECTED, Reg(R::Rsi, 0x40_0020)] { ".code32", "mov edx, 0x80", "outsd" }
    "protected-limit"
        [PROTECTED, EVERY, Set(f::GUEST_DS_LIMIT, 0xfff), Set(f::GUEST_DS_RIGHTS, 0x4093)]
        { ".code32", "mov al, [0x1000]" }
    "protected-vmread" [PROTECTED] { ".code32", "vmread [0x400010], edx" }
    "protected-invept" [PROTECTED] { ".code32", "invept eax, [0x400010]" }
    "protected-ept-violation" [PROTECTED] { ".code32", "mov eax, [0x40400000]" }
    "protected-upper-half" [PROTECTED] { ".code32", "mov eax, [0xffffff00]" }
    "protected-inject"
        [
            PROTECTED, Set(f::ENTRY_INTERRUPTION, 0x8000_0b0d), Set(f::ENTRY_ERROR_CODE, 0x10),
            ShowValue("stack", || guest::load(guest::STACK_TOP - 16)),
        ]
        { ".code32", "vmcall" }
    "protected-base"
        [
            PROTECTED, Set(f::GUEST_CS_BASE, guest::CODE), Set(f::GUEST_RIP, 0),
            Set(f::GUEST_DS_BASE, guest::DATA), Show(R::Rax), Store(guest::DATA + 8, 0x1234),
        ]
        { ".code32", "mov eax, [8]", "vmcall" }
    "task-jump" [PROTECTED] { ".code32", ".byte 0xea", ".long 0", ".short 0x58" }
    "task-call" [PROTECTED] { ".code32", ".byte 0x9a", ".long 0", ".short 0x58" }
    "task-jump-gate" [PROTECTED] { ".code32", ".byte 0xea", ".long 0", ".short 0x60" }
    "task-int" [PROTECTED, TASK_GATE] { ".code32", "int 0x42" }
    "task-exception" [PROTECTED, Store(IDT_32 + 8 * 6, 0x0000_8500_0058_0000)] { ".code32", "ud2" }
    "task-exception-code" [PROTECTED, Store(IDT_32 + 8 * 13, 0x0000_8500_0058_0000)]
        { ".code32", "mov eax, 0x100", "mov ds, eax" }
    "task-injected"
        [PROTECTED, Set(f::GUEST_RFLAGS, 0x202), TASK_GATE, Set(f::ENTRY_INTERRUPTION, 0x8000_0042)]
        { ".code32", "nop" }
    "task-injected-int"
        [
            PROTECTED, TASK_GATE, Set(f::ENTRY_INTERRUPTION, 0x8000_0442),
            Set(f::ENTRY_INSTRUCTION_LENGTH, 2),
        ]
        { ".code32", "nop" }
    "task-injected-nmi"
        [
            PROTECTED, Store(IDT_32 + 8 * 2, 0x0000_8500_0058_0000),
            Set(f::ENTRY_INTERRUPTION, 0x8000_0202),
        ]
        { ".code32", "nop" }
    "task-return"
        [
            PROTECTED, Set(f::GUEST_RFLAGS, 0x4002), Store(guest::TASK, 0x58),
            Store(guest::GDT + 0x58, 0x0000_8b40_5800_0067),
        ]
        { ".code32", "iretd" }
    "task-busy" [PROTECTED, EVERY, Store(guest::GDT + 0x58, 0x0000_8b40_5800_0067)]
        { ".code32", ".byte 0xea", ".long 0", ".short 0x58" }
    "task-absent" [PROTECTED, EVERY, Store(guest::GDT + 0x58, 0x0000_0940_5800_0067)]
        { ".code32", ".byte 0xea", ".long 0", ".short 0x58" }
    "task-short" [PROTECTED, EVERY, Store(guest::GDT + 0x58, 0x0000_8940_5800_0066)]
        { ".code32", ".byte 0xea", ".long 0", ".short 0x58" }
    "task-ring3-gate" [PROTECTED, Store(OTHER_TASK + 0x20, guest::CODE)]
        { ".code32", ".byte 0x9a", ".long 0", ".short 0x60" };
PAGING:
    "pae" [PAE, MODE, Show(R::Rax), Store(guest::DATA, 0x1234)]
        { ".code32", "mov eax, [0x400000]", "vmcall" }
    "pae-load"
        [
            PAE, ShowField(f::GUEST_PDPTE0), ShowField(f::GUEST_PDPTE1),
            Store(PDPT_PAE + 8, PD | 0x1001),
        ]
        { ".code32", "mov eax, cr3", "mov cr3, eax", "vmcall" }
    "pae-load-reserved" [PAE, EVERY, Store(PDPT_PAE + 8, PD | 3), ShowField(f::GUEST_PDPTE1)]
        { ".code32", "mov eax, cr3", "mov cr3, eax", "vmcall" }
    "pae-without-ept" [PAE, NO_EPT] { ".code32", "vmcall" }
    "pae-without-ept-reserved" [PAE, NO_EPT, Store(PDPT_PAE + 8, PD | 3)]
        { ".code32", "vmcall" }
    // Among the VM's state these entries are checked last.
    "pae-without-ept-reserved-and-flags"
        [PAE, NO_EPT, Store(PDPT_PAE + 8, PD | 3), Set(f::GUEST_RFLAGS, 0)]
        { ".code32", "vmcall" }
    "pae-without-ept-reserved-and-list"
        [
            PAE, NO_EPT, Store(PDPT_PAE + 8, PD | 3), Set(f::ENTRY_MSR_LOAD_COUNT, 1),
            Set(f::ENTRY_MSR_LOAD, guest::DATA),
        ]
        { ".code32", "vmcall" }
    "pae-entries-of-vmcs"
        [PAE, Set(f::GUEST_PDPTE1, PD | 1), Show(R::Rax), Store(guest::DATA, 0x55)]
        { ".code32", "mov eax, [0x40400000]", "vmcall" }
    "pae-entries-absent" [PAE, EVERY, Set(f::GUEST_PDPTE0, 0)] { ".code32", "vmcall" }
    "pae-cr4-reloads" [PAE, Store(PDPT_PAE + 8, PD | 1), ShowField(f::GUEST_PDPTE1)]
        { ".code32", "mov eax, cr4", "xor eax, 0x80", "mov cr4, eax", "vmcall" }
    "pae-page-fault" [PAE, EVERY] { ".code32", "mov eax, [0x80000000]" }
    "pae-window" [PAE, Map(WINDOW_PHYSICAL, 1, FRAMES | LEAF), Show(R::Rax), Store(FRAMES, 0x66)]
        { ".code32", "mov eax, [0x800000]", "vmcall" }
    "two-levels" [TWO_LEVELS, MODE, Show(R::Rax), Store(guest::DATA, 0x1234)]
        { ".code32", "mov eax, [0x400000]", "vmcall" }
    "two-levels-page-fault" [TWO_LEVELS, EVERY] { ".code32", "mov eax, [0x800000]" }
    "two-levels-dirty"
        [TWO_LEVELS, Store(guest::PD_32, (guest::BASE | 0x87) << 32), ShowWord(guest::PD_32)]
        { ".code32", "mov dword ptr [0x400000], 1", "vmcall" }
    "two-levels-cr3" [TWO_LEVELS, ShowField(f::GUEST_CR3)]
        { ".code32", "mov eax, cr3", "or eax, 8", "mov cr3, eax", "vmcall" }
    "compatibility" [COMPATIBILITY, MODE] { ".code32", "vmcall" }
    "compatibility-cpuid" [COMPATIBILITY, Exits(2)] { ".code32", "cpuid", "hlt" }
    "compatibility-vmread" [COMPATIBILITY, EVERY] { ".code32", "vmread eax, ecx" }
    "compatibility-vmptrld" [COMPATIBILITY, EVERY] { ".code32", "vmptrld [0x400000]" }
    "compatibility-int" [COMPATIBILITY] { ".code32", "int 0x42" }
    "compatibility-high" [COMPATIBILITY, Reg(R::Rax, u64::MAX), Show(R::Rax)]
        { ".code32", "mov eax, 1", "vmcall" }
    "compatibility-task" [COMPATIBILITY, EVERY]
        { ".code32", ".byte 0xea", ".long 0", ".short 0x50" };
TRANSITIONS:
    "protected-to-pae" [PROTECTED, MODE, ShowField(f::GUEST_PDPTE0)]
        {
            ".code32", "mov eax, cr4", "or eax, 0x20", "mov cr4, eax", "mov eax, 0x40e000",
            "mov cr3, eax", "mov eax, cr0", "bts eax, 31", "mov cr0, eax", "vmcall",
        }
    "protected-to-long"
        [PROTECTED, BITMAP, MODE, ShowField(f::GUEST_CR3), Set(f::GUEST_CR4, GUEST_CR4)]
        {
            ".code32", "mov eax, 0x406000", "mov cr3, eax", "mov ecx, 0xc0000080", "rdmsr",
            "or eax, 0x100", "wrmsr", "mov eax, cr0", "bts eax, 31", "mov cr0, eax", "vmcall",
        }
    "protected-to-long-efer"
        [
            PROTECTED, BITMAP, On(c::ENTRY_LOAD_EFER), On(c::EXIT_LOAD_EFER), On(c::SAVE_EFER),
            MODE, ShowField(f::GUEST_EFER), Set(f::GUEST_CR4, GUEST_CR4), Exits(2),
        ]
        {
            ".code32", "mov eax, 0x406000", "mov cr3, eax", "mov ecx, 0xc0000080", "rdmsr",
            "or eax, 0x100", "wrmsr", "mov eax, cr0", "bts eax, 31", "mov cr0, eax", "vmcall",
            "push 0x10", "call 2f", "2: pop eax", "add eax, 6", "push eax", "retf", ".code64",
            "nop", "cpuid",
        }
    "long-to-protected"
        [
            On(c::UNRESTRICTED), BITMAP, COMPATIBILITY, On(c::SAVE_EFER), On(c::EXIT_LOAD_EFER),
            MODE, ShowField(f::GUEST_EFER),
        ]
        { ".code32", "mov eax, cr0", "btr eax, 31", "mov cr0, eax", "vmcall" }
    "real-to-protected-to-real" [REAL, Exits(2), MODE]
        {
            ".code16", "mov eax, cr0", "or al, 1", "mov cr0, eax", "vmcall", "and al, 0xfe",
            "mov cr0, eax", "vmcall",
        }
    "real-to-flat" [REAL, MODE, EVERY]
        {
            ".code16", "mov eax, cr0", "or al, 1", "mov cr0, eax", ".byte 0x66, 0xea",
            ".long 0x401012", ".short 8", "nop", "nop", ".code32", "mov eax, 0x18", "mov ss, eax",
            "mov ds, eax", "vmcall",
        }
    "host-unchanged"
        [
            PROTECTED, Do(|| {}), ShowValue("efer", || cpu::rdmsr(0xc000_0080)),
            ShowValue("cr0", cpu::cr0),
        ]
        { ".code32", "vmcall" };
}

pub(super) fn run() {
    for cases in [REAL_MODE, VIRTUAL_86, PROTECTED_MODE, PAGING, TRANSITIONS] {
        vm::all("mode", cases);
    }
}
