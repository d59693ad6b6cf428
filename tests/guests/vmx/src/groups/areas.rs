//! `msr-area`: MSRs loaded at entry, stored and loaded at exit (SDM vol. 3, 27.4, 28.4, 28.6), and
//! entries that fail at one.

use crate::capability as c;
use crate::field as f;
use crate::guest;
use crate::instruction::set;
use crate::vm::Step::{Do, On, Set, Show, ShowValue, Undo};
use crate::vm::{self, ENTRY_LOAD, EXIT_LOAD, EXIT_STORE, Reg as R, cases};
use bare::cpu;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const KERNEL_GS: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
const PAT: u32 = 0x277;

/// Fills an area, which is page `index`, and points the VMCS at it.
fn area(index: usize, entries: &[(u32, u64)]) {
    let (pointer, count) = match index {
        ENTRY_LOAD => (f::ENTRY_MSR_LOAD, f::ENTRY_MSR_LOAD_COUNT),
        EXIT_STORE => (f::EXIT_MSR_STORE, f::EXIT_MSR_STORE_COUNT),
        _ => (f::EXIT_MSR_LOAD, f::EXIT_MSR_LOAD_COUNT),
    };
    set(pointer, vm::page(index));
    set(count, entries.len() as u64);
    for (at, (msr, value)) in (vm::page(index)..).step_by(16).zip(entries) {
        guest::store(at, u64::from(*msr));
        guest::store(at + 8, *value);
    }
}

/// What the store area holds for its entry `number`.
fn stored(number: u64) -> u64 {
    guest::load(vm::page(EXIT_STORE) + 16 * number + 8)
}

/// The MSRs that these cases change, as they were.
fn back() {
    for msr in [STAR, LSTAR, KERNEL_GS, TSC_AUX, 0xc000_0084] {
        cpu::wrmsr(msr, 0);
    }
    cpu::wrmsr(PAT, 0x0007_0406_0007_0406);
}

fn kernel_gs() -> u64 {
    cpu::rdmsr(KERNEL_GS)
}

fn lstar() -> u64 {
    cpu::rdmsr(LSTAR)
}

cases! {
AREAS:
    "entry-load"
        [
            On(c::MSR_BITMAPS), Do(|| area(ENTRY_LOAD, &[(KERNEL_GS, 0x1234_5678_9abc)])),
            Show(R::Rax), Show(R::Rdx), ShowValue("host", kernel_gs), Undo(back),
        ]
        { "mov ecx, 0xc0000102", "rdmsr", "vmcall" }
    "entry-load-three"
        [
            On(c::MSR_BITMAPS),
            Do(|| area(ENTRY_LOAD, &[(STAR, 0x10), (LSTAR, 0x2000), (0xc000_0084, 0x300)])),
            Show(R::Rax), Show(R::Rbx), Show(R::Rsi), Undo(back),
        ]
        {
            "mov ecx, 0xc0000081", "rdmsr", "mov ebx, eax", "inc ecx", "rdmsr", "mov esi, eax",
            "mov ecx, 0xc0000084", "rdmsr", "vmcall",
        }
    "entry-load-twice"
        [
            Do(|| area(ENTRY_LOAD, &[(LSTAR, 0x1000), (LSTAR, 0x2000)])), ShowValue("host", lstar),
            Undo(back),
        ]
        { "vmcall" }
    "entry-load-pat"
        [
            On(c::MSR_BITMAPS), Do(|| area(ENTRY_LOAD, &[(PAT, 0x0606_0606_0606_0606)])),
            Show(R::Rax), ShowValue("host", || cpu::rdmsr(PAT)), Undo(back),
        ]
        { "mov ecx, 0x277", "rdmsr", "vmcall" }
    "entry-load-sysenter"
        [
            On(c::MSR_BITMAPS), Do(|| area(ENTRY_LOAD, &[(0x174, 0x28), (0x175, 0x7000)])),
            Show(R::Rax), Show(R::Rbx), ShowValue("host", || cpu::rdmsr(0x174)), Undo(back),
        ]
        { "mov ecx, 0x174", "rdmsr", "mov ebx, eax", "inc ecx", "rdmsr", "vmcall" }
    "entry-load-tsc-aux"
        [On(c::RDTSCP), Do(|| area(ENTRY_LOAD, &[(TSC_AUX, 0x55)])), Show(R::Rcx), Undo(back)]
        { "rdtscp", "vmcall" }
    "entry-load-none"
        [
            Do(|| {
                area(ENTRY_LOAD, &[(LSTAR, 0x1000)]);
                set(f::ENTRY_MSR_LOAD_COUNT, 0);
            }),
            ShowValue("host", lstar), Undo(back),
        ]
        { "vmcall" }
    "entry-load-fs-base" [Do(|| area(ENTRY_LOAD, &[(0xc000_0100, 0)]))] { "vmcall" }
    "entry-load-gs-base" [Do(|| area(ENTRY_LOAD, &[(0xc000_0101, 0)]))] { "vmcall" }
    "entry-load-second-fails"
        [
            Do(|| area(ENTRY_LOAD, &[(LSTAR, 0x1000), (0xc000_0100, 0)])), ShowValue("host", lstar),
            Undo(back),
        ]
        { "vmcall" }
    "entry-load-third-fails"
        [Do(|| area(ENTRY_LOAD, &[(LSTAR, 0x1000), (STAR, 0), (LSTAR, 1 << 63)])), Undo(back)]
        { "vmcall" }
    "entry-load-smm-monitor" [Do(|| area(ENTRY_LOAD, &[(0x9b, 0)]))] { "vmcall" }
    "entry-load-x2apic" [Do(|| area(ENTRY_LOAD, &[(0x808, 0)]))] { "vmcall" }
    "entry-load-reserved"
        [
            Do(|| {
                area(ENTRY_LOAD, &[(LSTAR, 0)]);
                guest::store(vm::page(ENTRY_LOAD), 1 << 32 | u64::from(LSTAR));
            }),
        ]
        { "vmcall" }
    "entry-load-not-canonical" [Do(|| area(ENTRY_LOAD, &[(LSTAR, 1 << 62)]))] { "vmcall" }
    "entry-load-bad-pat" [Do(|| area(ENTRY_LOAD, &[(PAT, 2)]))] { "vmcall" }
    "entry-load-vmx-basic" [Do(|| area(ENTRY_LOAD, &[(0x480, 0)]))] { "vmcall" }
    "entry-load-feature-control" [Do(|| area(ENTRY_LOAD, &[(0x3a, 5)]))] { "vmcall" }
    "entry-load-after-guest-check"
        [Set(f::GUEST_RFLAGS, 0), Do(|| area(ENTRY_LOAD, &[(0xc000_0100, 0)]))]
        { "vmcall" }
    "entry-load-not-before-guest-check"
        [
            Set(f::GUEST_RFLAGS, 0), Do(|| area(ENTRY_LOAD, &[(LSTAR, 0x1000)])),
            ShowValue("host", lstar), Undo(back),
        ]
        { "vmcall" }
    "entry-load-not-before-control-check"
        [
            Set(f::CR3_TARGET_COUNT, 9), Do(|| area(ENTRY_LOAD, &[(LSTAR, 0x1000)])),
            ShowValue("host", lstar), Undo(back),
        ]
        { "vmcall" }
    "entry-load-not-before-host-check"
        [
            Set(f::HOST_CS_SELECTOR, 0), Do(|| area(ENTRY_LOAD, &[(LSTAR, 0x1000)])),
            ShowValue("host", lstar), Undo(back),
        ]
        { "vmcall" }
    "exit-store"
        [
            Do(|| {
                cpu::wrmsr(KERNEL_GS, 0x5555);
                area(EXIT_STORE, &[(KERNEL_GS, 1)]);
            }),
            ShowValue("stored", || stored(0)), Undo(back),
        ]
        { "vmcall" }
    "exit-store-changed"
        [
            On(c::MSR_BITMAPS), Do(|| area(EXIT_STORE, &[(LSTAR, 1), (STAR, 1)])),
            ShowValue("lstar", || stored(0)), ShowValue("star", || stored(1)), Undo(back),
        ]
        { "mov ecx, 0xc0000082", "mov eax, 0x1000", "xor edx, edx", "wrmsr", "vmcall" }
    "exit-store-guest-state"
        [
            Set(f::GUEST_SYSENTER_ESP, 0x1234), Do(|| area(EXIT_STORE, &[(0x175, 1), (0x277, 1)])),
            ShowValue("sysenter", || stored(0)), ShowValue("pat", || stored(1)),
        ]
        { "vmcall" }
    "exit-store-efer"
        [Do(|| area(EXIT_STORE, &[(0xc000_0080, 1)])), ShowValue("efer", || stored(0))]
        { "vmcall" }
    "exit-load"
        [
            Do(|| area(EXIT_LOAD, &[(KERNEL_GS, 0x7777), (LSTAR, 0x8888)])),
            ShowValue("gs", kernel_gs), ShowValue("lstar", lstar), Undo(back),
        ]
        { "vmcall" }
    "exit-store-before-load"
        [
            Do(|| {
                cpu::wrmsr(LSTAR, 0x1111);
                area(EXIT_STORE, &[(LSTAR, 1)]);
                area(EXIT_LOAD, &[(LSTAR, 0x2222)]);
            }),
            ShowValue("stored", || stored(0)), ShowValue("host", lstar), Undo(back),
        ]
        { "vmcall" }
    "all-three"
        [
            Do(|| {
                area(ENTRY_LOAD, &[(LSTAR, 0x1000)]);
                area(EXIT_STORE, &[(LSTAR, 1)]);
                area(EXIT_LOAD, &[(LSTAR, 0x3000)]);
            }),
            ShowValue("stored", || stored(0)), ShowValue("host", lstar), Undo(back),
        ]
        { "vmcall" }
    "exit-load-after-failed-entry"
        [
            Set(f::GUEST_RFLAGS, 0),
            Do(|| {
                area(EXIT_LOAD, &[(LSTAR, 0x4000)]);
                area(EXIT_STORE, &[(LSTAR, 1)]);
            }),
            ShowValue("stored", || stored(0)), ShowValue("host", lstar), Undo(back),
        ]
        { "vmcall" }
    "exit-load-after-failed-load"
        [
            Do(|| {
                area(ENTRY_LOAD, &[(0xc000_0100, 0)]);
                area(EXIT_LOAD, &[(LSTAR, 0x5000)]);
            }),
            ShowValue("host", lstar), Undo(back),
        ]
        { "vmcall" }
    "exit-load-sysenter"
        [
            Do(|| area(EXIT_LOAD, &[(0x174, 0x18)])), ShowValue("host", || cpu::rdmsr(0x174)),
            Undo(|| cpu::wrmsr(0x174, 0)),
        ]
        { "vmcall" };
}

pub(super) fn run() {
    vm::all("msr-area", AREAS);
}
