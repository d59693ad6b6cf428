//! `cr`, `msr`: control, debug and model-specific registers, by masks, shadows, targets and bitmaps.

use crate::capability as c;
use crate::exit::VMCALL;
use crate::field as f;
use crate::guest;
use crate::instruction::get;
use crate::log;
use crate::vm::Step::{All, Do, Exits, Off, On, Reg, Set, Show, ShowField, ShowValue, Undo};
use crate::vm::{self, GUEST_CR0, GUEST_CR4, MSRS, Reg as R, Step, cases};
use bare::{cpu, fault};

const TS: u64 = 8;
const CD: u64 = 1 << 30;

cases! {
CR:
    "cr0-read" [Show(R::Rax)] { "mov rax, cr0", "vmcall" }
    "cr0-read-shadow" [Set(f::CR0_MASK, 0x4_000a), Set(f::CR0_SHADOW, 0x4_0008), Show(R::Rax)]
        { "mov rax, cr0", "vmcall" }
    "cr0-smsw-shadow" [Set(f::CR0_MASK, 0xe), Set(f::CR0_SHADOW, 8), Show(R::Rax)]
        { "xor eax, eax", "smsw eax", "vmcall" }
    "cr0-write-free" [Set(f::CR0_MASK, CD), Show(R::Rax), ShowField(f::GUEST_CR0)]
        { "mov rax, cr0", "xor rax, 8", "mov cr0, rax", "mov rax, cr0", "vmcall" }
    "cr0-write-masked" [Set(f::CR0_MASK, TS), Set(f::CR0_SHADOW, GUEST_CR0)]
        { "mov rdi, cr0", "xor rdi, 8", "mov cr0, rdi" }
    "cr0-write-masked-same"
        [Set(f::CR0_MASK, TS), Set(f::CR0_SHADOW, GUEST_CR0 | TS), ShowField(f::GUEST_CR0)]
        { "mov r9, cr0", "mov cr0, r9", "vmcall" }
    "cr0-write-mixed" [Set(f::CR0_MASK, TS), Set(f::CR0_SHADOW, TS), ShowField(f::GUEST_CR0)]
        { "mov rax, cr0", "or rax, 0x40000", "mov cr0, rax", "vmcall" }
    "cr0-clear-ne" [] { "mov rax, cr0", "and eax, ~0x20", "mov cr0, rax", "vmcall" }
    "cr0-clear-pe" [] { "mov rax, cr0", "and eax, ~1", "mov cr0, rax", "vmcall" }
    "cr0-clear-pg" [] { "mov rax, cr0", "btr rax, 31", "mov cr0, rax", "vmcall" }
    "cr0-clear-pg-unrestricted" [On(c::UNRESTRICTED)]
        { "mov rax, cr0", "btr rax, 31", "mov cr0, rax", "vmcall" }
    "cr0-reserved" [] { "mov rax, cr0", "bts rax, 40", "mov cr0, rax", "vmcall" }
    "cr0-nw-without-cd" [] { "mov rax, cr0", "bts rax, 29", "mov cr0, rax", "vmcall" }
    "cr0-cache-disable" [ShowField(f::GUEST_CR0), Undo(|| cpu::set_cr0(cpu::cr0() & !CD))]
        { "mov rax, cr0", "bts rax, 30", "mov cr0, rax", "vmcall" }
    "cr0-et" [ShowField(f::GUEST_CR0)]
        { "mov rax, cr0", "and eax, ~0x10", "mov cr0, rax", "vmcall" }
    "clts" [Set(f::GUEST_CR0, GUEST_CR0 | TS), ShowField(f::GUEST_CR0)] { "clts", "vmcall" }
    "clts-masked" [Set(f::CR0_MASK, TS), Set(f::CR0_SHADOW, TS)] { "clts", "vmcall" }
    "clts-masked-clear"
        [Set(f::GUEST_CR0, GUEST_CR0 | TS), Set(f::CR0_MASK, TS), ShowField(f::GUEST_CR0)]
        { "clts", "vmcall" }
    "lmsw" [ShowField(f::GUEST_CR0)] { "mov ecx, 0xf", "lmsw cx", "vmcall" }
    "lmsw-masked" [Set(f::CR0_MASK, 0xf), Set(f::CR0_SHADOW, 1)]
        { "mov ecx, 0xf", "lmsw cx", "vmcall" }
    "lmsw-masked-pe" [Set(f::CR0_MASK, 1), Set(f::CR0_SHADOW, 0)]
        { "mov ecx, 1", "lmsw cx", "vmcall" }
    "lmsw-masked-pe-clear" [Set(f::CR0_MASK, 1), Set(f::CR0_SHADOW, 1), ShowField(f::GUEST_CR0)]
        { "xor ecx, ecx", "lmsw cx", "vmcall" }
    "lmsw-memory" [Set(f::CR0_MASK, TS)]
        { "mov eax, 0x400000", "mov dword ptr [rax + 8], 9", "lmsw word ptr [rax + 8]", "vmcall" }
    "cr3-read" [Show(R::Rax)] { "mov rax, cr3", "vmcall" }
    "cr3-read-exit" [On(c::CR3_STORE_EXITING)] { "mov r10, cr3" }
    "cr3-write" [ShowField(f::GUEST_CR3)]
        { "mov rax, cr3", "or rax, 0x18", "mov cr3, rax", "vmcall" }
    "cr3-write-exit" [On(c::CR3_LOAD_EXITING)] { "mov rsi, cr3", "mov cr3, rsi" }
    "cr3-write-target"
        [On(c::CR3_LOAD_EXITING), Set(f::CR3_TARGET_COUNT, 2), Set(f::CR3_TARGET_1, guest::PML4)]
        { "mov rax, cr3", "mov cr3, rax", "vmcall" }
    "cr3-write-target-beyond-count"
        [On(c::CR3_LOAD_EXITING), Set(f::CR3_TARGET_COUNT, 1), Set(f::CR3_TARGET_1, guest::PML4)]
        { "mov rax, cr3", "mov cr3, rax", "vmcall" }
    "cr3-write-target-flags"
        [
            On(c::CR3_LOAD_EXITING), Set(f::CR3_TARGET_COUNT, 1),
            Set(f::CR3_TARGET_0, guest::PML4 | 8),
        ]
        { "mov rax, cr3", "mov cr3, rax", "vmcall" }
    "cr3-reserved" [] { "mov rax, cr3", "bts rax, 60", "mov cr3, rax", "vmcall" }
    "cr4-read" [Show(R::Rax)] { "mov rax, cr4", "vmcall" }
    "cr4-read-shadow" [Set(f::CR4_MASK, 0x2001), Set(f::CR4_SHADOW, 1), Show(R::Rax)]
        { "mov rax, cr4", "vmcall" }
    "cr4-write" [ShowField(f::GUEST_CR4)]
        { "mov rax, cr4", "or rax, 0x84", "mov cr4, rax", "vmcall" }
    "cr4-write-masked" [Set(f::CR4_MASK, 0x80)] { "mov rbp, cr4", "or rbp, 0x80", "mov cr4, rbp" }
    "cr4-write-masked-same"
        [Set(f::CR4_MASK, 0x2080), Set(f::CR4_SHADOW, 0x80), ShowField(f::GUEST_CR4)]
        { "mov rax, cr4", "or rax, 4", "mov cr4, rax", "vmcall" }
    "cr4-clear-vmxe" [] { "mov rax, cr4", "and eax, ~0x2000", "mov cr4, rax", "vmcall" }
    "cr4-clear-vmxe-shadow" [Set(f::CR4_MASK, 0x2000), ShowField(f::GUEST_CR4)]
        { "mov rax, cr4", "mov cr4, rax", "vmcall" }
    "cr4-set-vmxe-shadow" [Set(f::CR4_MASK, 0x2000)]
        { "mov rax, cr4", "or eax, 0x2000", "mov cr4, rax", "vmcall" }
    "cr4-clear-pae" [] { "mov rax, cr4", "and eax, ~0x20", "mov cr4, rax", "vmcall" }
    "cr4-reserved" [] { "mov rax, cr4", "bts rax, 31", "mov cr4, rax", "vmcall" }
    "cr4-smxe" [] { "mov rax, cr4", "bts rax, 14", "mov cr4, rax", "vmcall" }
    "cr2" [Show(R::Rax)] { "mov eax, 0x1234", "mov cr2, rax", "mov rax, cr2", "vmcall" }
    "cr8-read-exit" [On(c::CR8_STORE_EXITING)] { "mov r11, cr8" }
    "cr8-write-exit" [On(c::CR8_LOAD_EXITING)] { "mov eax, 5", "mov cr8, rax" }
    "cr8" [Show(R::Rax), Undo(|| cpu::set_cr8(0))]
        { "mov eax, 5", "mov cr8, rax", "mov rax, cr8", "vmcall" }
    "cr8-reserved" [] { "mov eax, 0x15", "mov cr8, rax", "vmcall" }
    "cr1" [] { ".byte 0x0f, 0x20, 0xc8" }
    "dr-read" [On(c::DR_EXITING)] { "mov rbx, dr3" }
    "dr-write" [On(c::DR_EXITING)] { "mov dr7, r12" }
    "dr4" [On(c::DR_EXITING)] { ".byte 0x0f, 0x21, 0xe0" }
    "dr4-debug-extensions" [On(c::DR_EXITING), Set(f::GUEST_CR4, GUEST_CR4 | 8)]
        { ".byte 0x0f, 0x21, 0xe0" }
    "dr-general-detect" [On(c::DR_EXITING), On(c::LOAD_DEBUG), Set(f::GUEST_DR7, 0x2400)]
        { "mov rbx, dr3" }
    "dr-general-detect-no-exit" [On(c::LOAD_DEBUG), Set(f::GUEST_DR7, 0x2400)]
        { "mov rbx, dr3", "vmcall" }
    "dr7" [Show(R::Rax), ShowField(f::GUEST_DR7)]
        { "mov eax, 0x703", "mov dr7, rax", "mov rax, dr7", "vmcall" }
    "dr7-not-saved" [Off(c::SAVE_DEBUG), ShowField(f::GUEST_DR7)]
        { "mov eax, 0x703", "mov dr7, rax", "vmcall" }
    "dr7-saved" [On(c::SAVE_DEBUG), ShowField(f::GUEST_DR7)]
        { "mov eax, 0x703", "mov dr7, rax", "vmcall" }
    "dr7-loaded" [On(c::LOAD_DEBUG), Set(f::GUEST_DR7, 0x555), Show(R::Rax)]
        { "mov rax, dr7", "vmcall" }
    "dr7-not-loaded" [Off(c::LOAD_DEBUG), Set(f::GUEST_DR7, 0x555), Show(R::Rax)]
        { "mov rax, dr7", "vmcall" }
    "dr0-stays"
        [Do(|| set_dr0(0x1234_5678)), Show(R::Rax), ShowValue("dr0", dr0), Undo(|| set_dr0(0))]
        { "mov rax, dr0", "mov ecx, 0x4321", "mov dr0, rcx", "vmcall" };
MSR:
    "rdmsr" [] { "mov ecx, 0x10", "rdmsr" }
    "wrmsr" [] { "mov ecx, 0xc0000082", "wrmsr" }
    "bitmap-no-exit" [BITMAP, Set(f::GUEST_FS_BASE, 0x1_2345_6789), Show(R::Rax), Show(R::Rdx)]
        { "mov ecx, 0xc0000100", "rdmsr", "vmcall" }
    "bitmap-read-low" [BITMAP, Do(|| intercept(0, 0x174))] { "mov ecx, 0x174", "rdmsr" }
    "bitmap-read-low-other"
        [BITMAP, Do(|| intercept(2, 0x174)), Set(f::GUEST_SYSENTER_CS, 8), Show(R::Rax)]
        { "mov ecx, 0x174", "rdmsr", "vmcall" }
    "bitmap-read-high" [BITMAP, Do(|| intercept(1, 0x81))] { "mov ecx, 0xc0000081", "rdmsr" }
    "bitmap-write-low" [BITMAP, Do(|| intercept(2, 0x174))] { "mov ecx, 0x174", "wrmsr" }
    "bitmap-write-high" [BITMAP, Do(|| intercept(3, 0x102))] { "mov ecx, 0xc0000102", "wrmsr" }
    "bitmap-last-low" [BITMAP, Do(|| intercept(0, 0x1fff))] { "mov ecx, 0x1fff", "rdmsr" }
    "bitmap-outside" [BITMAP] { "mov ecx, 0x2000", "rdmsr" }
    "bitmap-outside-high" [BITMAP] { "mov ecx, 0xc0002000", "wrmsr" }
    "bitmap-outside-top" [BITMAP] { "mov ecx, 0xffffffff", "rdmsr" }
    "bitmap-high-half-ignored"
        [BITMAP, Reg(R::Rcx, 0xffff_ffff_0000_0174), Set(f::GUEST_SYSENTER_CS, 0x10), Show(R::Rax)]
        { "rdmsr", "vmcall" }
    "sysenter-written"
        [
            BITMAP, ShowField(f::GUEST_SYSENTER_CS), ShowField(f::GUEST_SYSENTER_ESP),
            ShowField(f::GUEST_SYSENTER_EIP),
        ]
        {
            "xor edx, edx", "mov ecx, 0x174", "mov eax, 0x18", "wrmsr", "inc ecx",
            "mov eax, 0x5000", "wrmsr", "inc ecx", "mov eax, 0x6000", "wrmsr", "vmcall",
        }
    "sysenter-host-restored" [BITMAP, ShowValue("host", || cpu::rdmsr(0x175))]
        { "xor edx, edx", "mov ecx, 0x175", "mov eax, 0x5000", "wrmsr", "vmcall" }
    "fs-gs-base-written" [BITMAP, ShowField(f::GUEST_FS_BASE), ShowField(f::GUEST_GS_BASE)]
        {
            "mov edx, 1", "mov ecx, 0xc0000100", "mov eax, 0x2000", "wrmsr", "inc ecx", "wrmsr",
            "vmcall",
        }
    "kernel-gs-base"
        [
            BITMAP, Do(|| cpu::wrmsr(0xc000_0102, 0x1_0000_2000)), Show(R::Rax), Show(R::Rdx),
            ShowValue("host", || cpu::rdmsr(0xc000_0102)), Undo(|| cpu::wrmsr(0xc000_0102, 0)),
        ]
        {
            "mov ecx, 0xc0000102", "rdmsr", "push rax", "push rdx", "mov eax, 0x77", "mov edx, 2",
            "wrmsr", "pop rdx", "pop rax", "vmcall",
        }
    "lstar"
        [
            BITMAP, Do(|| cpu::wrmsr(0xc000_0082, 0x3000)), Show(R::Rax),
            ShowValue("host", || cpu::rdmsr(0xc000_0082)), Undo(|| cpu::wrmsr(0xc000_0082, 0)),
        ]
        {
            "mov ecx, 0xc0000082", "rdmsr", "push rax", "mov eax, 0x88", "xor edx, edx", "wrmsr",
            "pop rax", "vmcall",
        }
    "lstar-not-canonical" [BITMAP]
        { "mov ecx, 0xc0000082", "xor eax, eax", "mov edx, 0x80000000", "wrmsr", "vmcall" }
    "efer" [BITMAP, Show(R::Rax)] { "mov ecx, 0xc0000080", "rdmsr", "vmcall" }
    "efer-loaded"
        [
            BITMAP, On(c::ENTRY_LOAD_EFER), On(c::EXIT_LOAD_EFER), Set(f::GUEST_EFER, 0xd01),
            Show(R::Rax), ShowField(f::GUEST_EFER),
        ]
        { "mov ecx, 0xc0000080", "rdmsr", "vmcall" }
    "efer-written"
        [
            BITMAP, On(c::ENTRY_LOAD_EFER), On(c::EXIT_LOAD_EFER), On(c::SAVE_EFER),
            ShowField(f::GUEST_EFER), ShowValue("host", || cpu::rdmsr(0xc000_0080)),
        ]
        { "mov ecx, 0xc0000080", "rdmsr", "or eax, 0x801", "wrmsr", "vmcall" }
    "efer-lme-cleared" [BITMAP]
        { "mov ecx, 0xc0000080", "rdmsr", "and eax, ~0x100", "wrmsr", "vmcall" }
    "efer-reserved" [BITMAP] { "mov ecx, 0xc0000080", "rdmsr", "or eax, 2", "wrmsr", "vmcall" }
    "pat-loaded"
        [
            BITMAP, On(c::ENTRY_LOAD_PAT), On(c::EXIT_LOAD_PAT),
            Set(f::GUEST_PAT, 0x0606_0606_0606_0606), Show(R::Rax), Show(R::Rdx),
        ]
        { "mov ecx, 0x277", "rdmsr", "vmcall" }
    "pat-written"
        [
            BITMAP, On(c::ENTRY_LOAD_PAT), On(c::EXIT_LOAD_PAT), On(c::SAVE_PAT),
            ShowField(f::GUEST_PAT), ShowValue("host", || cpu::rdmsr(0x277)),
        ]
        { "mov ecx, 0x277", "mov eax, 0x01010101", "mov edx, eax", "wrmsr", "vmcall" }
    "pat-bad" [BITMAP, On(c::ENTRY_LOAD_PAT), On(c::EXIT_LOAD_PAT)]
        { "mov ecx, 0x277", "mov eax, 0x01010102", "mov edx, eax", "wrmsr", "vmcall" }
    "debugctl" [BITMAP, Show(R::Rax)] { "mov ecx, 0x1d9", "rdmsr", "vmcall" }
    "feature-control" [BITMAP, Show(R::Rax)] { "mov ecx, 0x3a", "rdmsr", "vmcall" }
    "feature-control-write" [BITMAP]
        { "mov ecx, 0x3a", "xor eax, eax", "xor edx, edx", "wrmsr", "vmcall" }
    "vmx-basic" [BITMAP] { "mov ecx, 0x480", "rdmsr", "vmcall" }
    "vmx-basic-write" [BITMAP] { "mov ecx, 0x480", "wrmsr", "vmcall" }
    "tsc-offset"
        [BITMAP, On(c::TSC_OFFSETTING), Set(f::TSC_OFFSET, 0x1000_0000_0000_0000), Show(R::Rdx)]
        { "mov ecx, 0x10", "rdmsr", "shr edx, 24", "vmcall" }
    "rdtsc-offset" [On(c::TSC_OFFSETTING), Set(f::TSC_OFFSET, 0x2000_0000_0000_0000), Show(R::Rdx)]
        { "rdtsc", "shr edx, 24", "vmcall" }
    "rdtsc-offset-off" [Set(f::TSC_OFFSET, 0x2000_0000_0000_0000), Show(R::Rdx)]
        { "rdtsc", "shr edx, 24", "vmcall" }
    "rdtscp-offset"
        [
            On(c::TSC_OFFSETTING), On(c::RDTSCP), Set(f::TSC_OFFSET, 0x3000_0000_0000_0000),
            Do(|| cpu::wrmsr(0xc000_0103, 7)), Show(R::Rdx), Show(R::Rcx),
            Undo(|| cpu::wrmsr(0xc000_0103, 0)),
        ]
        { "rdtscp", "shr edx, 24", "vmcall" }
    "tsc-scaled"
        [
            On(c::TSC_OFFSETTING), On(c::TSC_SCALING), Set(f::TSC_MULTIPLIER, 1 << 48),
            Set(f::TSC_OFFSET, 0x4000_0000_0000_0000), Show(R::Rdx),
        ]
        { "rdtsc", "shr edx, 24", "vmcall" }
    "two-exits" [Exits(2)] { "mov ecx, 0x174", "rdmsr", "inc ecx", "wrmsr" };
}

const BITMAP: Step = All(&[On(c::MSR_BITMAPS)]);

/// Sets the bit of an MSR in one of the four quarters of the bitmaps: read low, read high, write
/// low, write high (25.6.9).
fn intercept(quarter: u64, index: u64) {
    let at = vm::page(MSRS) + quarter * 1024 + index / 64 * 8;
    guest::store(at, guest::load(at) | 1 << (index % 64));
}

fn dr0() -> u64 {
    let value: u64;
    // SAFETY: reads a register that nothing uses.
    unsafe { core::arch::asm!("mov {}, dr0", out(reg) value) };
    value
}

fn set_dr0(value: u64) {
    // SAFETY: breakpoints are off, so the address means nothing.
    unsafe { core::arch::asm!("mov dr0, {}", in(reg) value) };
}

pub(super) fn run_cr() {
    vm::all("cr", CR);
}

/// Registers that a VM without MSR exits reads as the host does, or cannot read like the host.
const PASSED: &[u32] = &[
    0x10,
    0x17,
    0x1b,
    0x3a,
    0x79,
    0x8b,
    0x9b,
    0xc1,
    0xe7,
    0xfe,
    0x174,
    0x179,
    0x186,
    0x19c,
    0x1a0,
    0x1d9,
    0x200,
    0x201,
    0x250,
    0x277,
    0x2ff,
    0x345,
    0x38d,
    0x38f,
    0x3f1,
    0x480,
    0x481,
    0x485,
    0x48c,
    0x490,
    0x491,
    0x492,
    0x600,
    0x6e0,
    0x802,
    0x808,
    0xc80,
    0xd90,
    0xda0,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0102,
    0xc000_0103,
];

/// The time-stamp counter and its deadline differ from one moment to the next.
const MOVING: [u32; 3] = [0x10, 0xe7, 0x6e0];

fn passed() {
    for msr in PASSED {
        log::result(format_args!("msr.passed.{msr:#x}"), |line| {
            vm::fresh(guest::code!("rdmsr", "vmcall"));
            vm::prepare(&[BITMAP, Reg(R::Rcx, u64::from(*msr))]);
            let vm = match vm::enter(vm::Launch::First) {
                Ok(exit) if exit.reason == VMCALL && get(f::GUEST_RIP) == guest::CODE + 2 => {
                    Some(vm::register(R::Rdx) << 32 | vm::register(R::Rax))
                }
                _ => None,
            };
            let host = fault::catch(|| cpu::rdmsr(*msr)).ok();
            let same = vm == host || MOVING.contains(msr) && vm.is_some() == host.is_some();
            line.add(format_args!("same {same}"));
        });
    }
}

pub(super) fn run_msr() {
    vm::all("msr", MSR);
    passed();
}
