//! `interrupt`: external interrupts, NMIs, windows, the virtual TPR and the APIC-access page.

use crate::capability as c;
use crate::ept;
use crate::field as f;
use crate::guest::{self, PAGES, WINDOW_PHYSICAL, page_entry};
use crate::instruction::{get, set};
use crate::vm::Step::{All, Do, Exits, Map, Off, On, Set, Show, ShowField, ShowValue, Store, Undo};
use crate::vm::{self, Reg as R, SPARE, Step, VIRTUAL_APIC, cases};
use bare::fault::arrived;
use bare::{apic, cpu};
use core::sync::atomic::{AtomicU64, Ordering};

const VECTOR: u8 = 0x50;
const APIC: u64 = 0xfee0_0000;
static BEFORE: AtomicU64 = AtomicU64::new(0);

/// Counts from here.
fn count() {
    BEFORE.store(arrived(VECTOR), Ordering::Relaxed);
}

/// Makes `VECTOR` pending at this processor, whose interrupts are off.
fn pend() {
    count();
    apic::send(apic::id(), apic::FIXED | u32::from(VECTOR));
}

/// Takes what is pending; how many came.
fn take() -> u64 {
    // SAFETY: the handlers count and return.
    unsafe { core::arch::asm!("sti", "nop", "nop", "cli") };
    arrived(VECTOR) - BEFORE.load(Ordering::Relaxed)
}

/// Ends an interrupt that was acknowledged, but not by a handler of this program.
fn end() {
    apic::acknowledge(VECTOR);
}

const PENDING: Step = Do(pend);
const TAKEN: Step = ShowValue("taken", take);
const END: Step = Undo(end);
const ENABLED: Step = Set(f::GUEST_RFLAGS, 0x202);
/// The VM has the APIC at PAGES + 0x1000: its code sends interrupts by `[0x601300]`.
const OWN_APIC: Step = All(&[
    Do(count),
    Map(APIC, 1, APIC | ept::RWX),
    Store(page_entry(PAGES + 0x1000), APIC | guest::LEAF),
]);
const SOON: Step = All(&[On(c::PREEMPTION), Set(f::PREEMPTION_TIMER, 0x80)]);
const VIRTUAL_NMIS: Step = All(&[On(c::NMI_EXITING), On(c::VIRTUAL_NMIS)]);

cases! {
INTERRUPTS:
    "external" [On(c::EXTERNAL_EXITING), ENABLED, PENDING, TAKEN] { "vmcall" }
    "external-acknowledged"
        [On(c::EXTERNAL_EXITING), On(c::ACKNOWLEDGE), ENABLED, PENDING, TAKEN, END]
        { "vmcall" }
    "external-to-vm" [ENABLED, PENDING, TAKEN, END] { "vmcall" }
    "external-to-vm-disabled" [PENDING, TAKEN] { "vmcall" }
    "external-to-vm-after-sti" [PENDING, TAKEN, END] { "sti", "nop", "nop", "vmcall" }
    "external-to-vm-after-popf" [PENDING, TAKEN, END] { "push 0x202", "popfq", "nop", "vmcall" }
    "external-disabled" [On(c::EXTERNAL_EXITING), SOON, PENDING, TAKEN] { "2: jmp 2b" }
    "external-behind-sti"
        [On(c::EXTERNAL_EXITING), ENABLED, Set(f::GUEST_INTERRUPTIBILITY, 1), PENDING, TAKEN]
        { "nop", "nop", "vmcall" }
    "external-behind-mov-ss"
        [On(c::EXTERNAL_EXITING), ENABLED, Set(f::GUEST_INTERRUPTIBILITY, 2), PENDING, TAKEN]
        { "nop", "nop", "vmcall" }
    "external-halted" [On(c::EXTERNAL_EXITING), ENABLED, Set(f::GUEST_ACTIVITY, 1), PENDING, TAKEN]
        { "vmcall" }
    "external-halted-to-vm" [ENABLED, Set(f::GUEST_ACTIVITY, 1), PENDING, TAKEN, END] { "vmcall" }
    "external-low-priority"
        [
            On(c::EXTERNAL_EXITING), ENABLED, SOON, Do(|| cpu::set_cr8(8)), PENDING,
            Undo(|| cpu::set_cr8(0)), TAKEN,
        ]
        { "2: jmp 2b" }
    "external-priority-lowered"
        [
            On(c::EXTERNAL_EXITING), ENABLED, Do(|| cpu::set_cr8(8)), PENDING,
            Undo(|| cpu::set_cr8(0)), TAKEN,
        ]
        { "xor eax, eax", "mov cr8, rax", "nop", "nop", "vmcall" }
    "own" [On(c::EXTERNAL_EXITING), ENABLED, OWN_APIC, TAKEN]
        {
            "mov dword ptr [0x601310], 0", "mov dword ptr [0x601300], 0x4050", "nop", "nop",
            "vmcall",
        }
    "own-to-vm" [ENABLED, OWN_APIC, END]
        {
            "mov dword ptr [0x601310], 0", "mov dword ptr [0x601300], 0x4050", "nop", "nop",
            "vmcall",
        }
    "injection-before-external"
        [
            On(c::EXTERNAL_EXITING), ENABLED, PENDING, Set(f::ENTRY_INTERRUPTION, 0x8000_0021),
            Exits(2), TAKEN,
        ]
        { "nop", "vmcall" }
    "host-again" [On(c::EXTERNAL_EXITING), ENABLED, PENDING, Exits(2), TAKEN] { "vmcall" };
NMIS:
    "nmi" [On(c::NMI_EXITING), OWN_APIC]
        {
            "mov dword ptr [0x601310], 0", "mov dword ptr [0x601300], 0x4400", "nop", "nop",
            "vmcall",
        }
    "nmi-to-vm" [OWN_APIC]
        {
            "mov dword ptr [0x601310], 0", "mov dword ptr [0x601300], 0x4400", "nop", "nop",
            "vmcall",
        }
    "nmi-virtual" [VIRTUAL_NMIS, OWN_APIC]
        {
            "mov dword ptr [0x601310], 0", "mov dword ptr [0x601300], 0x4400", "nop", "nop",
            "vmcall",
        }
    "nmi-virtual-blocked" [VIRTUAL_NMIS, OWN_APIC, Set(f::GUEST_INTERRUPTIBILITY, 8)]
        {
            "mov dword ptr [0x601310], 0", "mov dword ptr [0x601300], 0x4400", "nop", "nop",
            "vmcall",
        }
    "nmi-blocked-to-vm" [OWN_APIC, Set(f::GUEST_INTERRUPTIBILITY, 8), Exits(2)]
        {
            "mov dword ptr [0x601310], 0", "mov dword ptr [0x601300], 0x4400", "nop", "vmcall",
            "push 0x18", "push 0x40b000", "push 2", "push 0x10", "lea rax, [rip + 2f]", "push rax",
            "iretq", "2: nop", "nop", "vmcall",
        };
WINDOWS:
    "window" [On(c::INTERRUPT_WINDOW), ENABLED] { "vmcall" }
    "window-disabled" [On(c::INTERRUPT_WINDOW)] { "nop", "vmcall" }
    "window-after-sti" [On(c::INTERRUPT_WINDOW)] { "sti", "nop", "nop", "vmcall" }
    "window-after-popf" [On(c::INTERRUPT_WINDOW)] { "push 0x202", "popfq", "nop", "vmcall" }
    "window-behind-sti" [On(c::INTERRUPT_WINDOW), ENABLED, Set(f::GUEST_INTERRUPTIBILITY, 1)]
        { "nop", "nop", "vmcall" }
    "window-behind-mov-ss" [On(c::INTERRUPT_WINDOW), ENABLED, Set(f::GUEST_INTERRUPTIBILITY, 2)]
        { "nop", "nop", "vmcall" }
    "window-mov-ss-in-vm" [On(c::INTERRUPT_WINDOW)]
        { "mov eax, 0x18", "push 0x202", "popfq", "mov ss, eax", "nop", "nop", "vmcall" }
    "window-halted" [On(c::INTERRUPT_WINDOW), ENABLED, SOON, Set(f::GUEST_ACTIVITY, 1)] { "vmcall" }
    "window-and-injection"
        [On(c::INTERRUPT_WINDOW), ENABLED, Set(f::ENTRY_INTERRUPTION, 0x8000_0020), Exits(2)]
        { "vmcall" }
    "window-twice" [On(c::INTERRUPT_WINDOW), ENABLED, Exits(2)] { "vmcall" }
    "window-before-external"
        [On(c::INTERRUPT_WINDOW), On(c::EXTERNAL_EXITING), ENABLED, PENDING, TAKEN]
        { "vmcall" }
    "nmi-window" [VIRTUAL_NMIS, On(c::NMI_WINDOW)] { "vmcall" }
    "nmi-window-blocked" [VIRTUAL_NMIS, On(c::NMI_WINDOW), Set(f::GUEST_INTERRUPTIBILITY, 8)]
        { "nop", "vmcall" }
    "nmi-window-after-iret" [VIRTUAL_NMIS, On(c::NMI_WINDOW), Set(f::GUEST_INTERRUPTIBILITY, 8)]
        {
            "push 0x18", "push 0x40b000", "push 2", "push 0x10", "lea rax, [rip + 2f]", "push rax",
            "iretq", "2: nop", "nop", "vmcall",
        }
    "nmi-window-behind-mov-ss" [VIRTUAL_NMIS, On(c::NMI_WINDOW), Set(f::GUEST_INTERRUPTIBILITY, 2)]
        { "nop", "nop", "vmcall" }
    "nmi-window-behind-sti"
        [VIRTUAL_NMIS, On(c::NMI_WINDOW), ENABLED, Set(f::GUEST_INTERRUPTIBILITY, 1)]
        { "nop", "nop", "vmcall" }
    "nmi-window-halted" [VIRTUAL_NMIS, On(c::NMI_WINDOW), SOON, Set(f::GUEST_ACTIVITY, 1)]
        { "vmcall" }
    "iret-unblocks" [VIRTUAL_NMIS, Set(f::GUEST_INTERRUPTIBILITY, 8)]
        {
            "push 0x18", "push 0x40b000", "push 2", "push 0x10", "lea rax, [rip + 2f]", "push rax",
            "iretq", "2: vmcall",
        }
    "iret-faults"
        [VIRTUAL_NMIS, Set(f::GUEST_INTERRUPTIBILITY, 8), Set(f::EXCEPTION_BITMAP, 0xffff_ffff)]
        {
            "push 0x18", "push 0x40b000", "push 2", "push 0x100", "lea rax, [rip + 2f]", "push rax",
            "iretq", "2: vmcall",
        }
    "iret-stack-unmapped"
        [VIRTUAL_NMIS, Set(f::GUEST_INTERRUPTIBILITY, 8), Set(f::GUEST_RSP, guest::WINDOW)]
        { "iretq" }
    "iret-faults-without-virtual"
        [
            Set(f::GUEST_INTERRUPTIBILITY, 8), Set(f::EXCEPTION_BITMAP, 0xffff_ffff),
            Set(f::GUEST_RSP, PAGES),
        ]
        { "iretq" };
TIMER:
    "timer-saved"
        [
            On(c::PREEMPTION), On(c::SAVE_PREEMPTION), Set(f::PREEMPTION_TIMER, 0x40),
            ShowField(f::PREEMPTION_TIMER),
        ]
        { "2: jmp 2b" }
    "timer-saved-later"
        [
            On(c::PREEMPTION), On(c::SAVE_PREEMPTION),
            ShowValue("counted", || u64::from(get(f::PREEMPTION_TIMER) < 0x4000)),
        ]
        { "mov ecx, 200", "2: loop 2b", "vmcall" }
    "timer-not-saved"
        [
            On(c::PREEMPTION), Off(c::SAVE_PREEMPTION), Set(f::PREEMPTION_TIMER, 0x40),
            ShowField(f::PREEMPTION_TIMER),
        ]
        { "2: jmp 2b" }
    "timer-0-saved"
        [
            On(c::PREEMPTION), On(c::SAVE_PREEMPTION), Set(f::PREEMPTION_TIMER, 0),
            ShowField(f::PREEMPTION_TIMER),
        ]
        { "vmcall" }
    "timer-0-halted" [On(c::PREEMPTION), Set(f::PREEMPTION_TIMER, 0), Set(f::GUEST_ACTIVITY, 1)]
        { "vmcall" }
    "timer-0-and-injection"
        [On(c::PREEMPTION), Set(f::PREEMPTION_TIMER, 0), Set(f::ENTRY_INTERRUPTION, 0x8000_0306)]
        { "vmcall" }
    "timer-0-and-window"
        [On(c::PREEMPTION), Set(f::PREEMPTION_TIMER, 0), On(c::INTERRUPT_WINDOW), ENABLED]
        { "vmcall" }
    "timer-0-and-pending-debug"
        [
            On(c::PREEMPTION), Set(f::PREEMPTION_TIMER, 0), Set(f::GUEST_PENDING_DEBUG, 0x1001),
            Set(f::EXCEPTION_BITMAP, 2),
        ]
        { "vmcall" };
}

const TPR: u64 = 0x80;
const SHADOW: Step = All(&[On(c::TPR_SHADOW), Do(|| set(f::VIRTUAL_APIC, vm::page(VIRTUAL_APIC)))]);
const TPR_50: Step = Do(|| guest::store(vm::page(VIRTUAL_APIC) + TPR, 0x50));
const SHOW_TPR: Step = ShowValue("tpr", || guest::load(vm::page(VIRTUAL_APIC) + TPR));
/// The APIC-access page is the first of the window. Bochs 2.7 ends at a fetch from it.
const ACCESSES: Step = All(&[
    On(c::APIC_ACCESSES),
    Do(|| {
        set(f::APIC_ACCESS, vm::page(SPARE));
        ept::set(WINDOW_PHYSICAL, 1, vm::page(SPARE) | ept::LEAF);
        ept::flush();
    }),
]);

/// Makes the APIC-access page read-only.
fn read_only() {
    ept::set(WINDOW_PHYSICAL, 1, vm::page(SPARE) | 1 | ept::WRITE_BACK);
    ept::flush();
}

cases! {
VIRTUAL:
    "cr8-read" [SHADOW, TPR_50, Show(R::Rax)] { "mov rax, cr8", "vmcall" }
    "cr8-write" [SHADOW, SHOW_TPR] { "mov eax, 7", "mov cr8, rax", "vmcall" }
    "cr8-real-stays"
        [SHADOW, Do(|| cpu::set_cr8(2)), ShowValue("real", cpu::cr8), Undo(|| cpu::set_cr8(0))]
        { "mov eax, 7", "mov cr8, rax", "vmcall" }
    "cr8-below-threshold" [SHADOW, TPR_50, Set(f::TPR_THRESHOLD, 3), SHOW_TPR]
        { "mov eax, 2", "mov cr8, rax", "vmcall" }
    "cr8-at-threshold" [SHADOW, TPR_50, Set(f::TPR_THRESHOLD, 3), SHOW_TPR]
        { "mov eax, 3", "mov cr8, rax", "vmcall" }
    "threshold-at-entry" [SHADOW, Set(f::TPR_THRESHOLD, 1)] { "vmcall" }
    "threshold-at-entry-with-accesses" [SHADOW, ACCESSES, Set(f::TPR_THRESHOLD, 1)] { "vmcall" }
    "threshold-at-entry-equal" [SHADOW, TPR_50, Set(f::TPR_THRESHOLD, 5)] { "vmcall" }
    "threshold-undercut-in-memory"
        [
            SHADOW, TPR_50, Set(f::TPR_THRESHOLD, 5), On(c::MSR_BITMAPS),
            Do(|| {
                ept::set(WINDOW_PHYSICAL, 1, vm::page(VIRTUAL_APIC) | ept::LEAF);
                ept::flush();
            }),
        ]
        { "mov byte ptr [0x800080], 0", "mov ecx, 0x8b", "rdmsr", "vmcall" }
    "cr8-exits-before-shadow" [SHADOW, On(c::CR8_LOAD_EXITING)]
        { "mov eax, 7", "mov cr8, rax", "vmcall" }
    "x2apic-tpr" [SHADOW, TPR_50, On(c::X2APIC), On(c::MSR_BITMAPS), Show(R::Rax)]
        { "mov ecx, 0x808", "rdmsr", "vmcall" }
    "x2apic-tpr-write" [SHADOW, On(c::X2APIC), On(c::MSR_BITMAPS), SHOW_TPR]
        { "mov ecx, 0x808", "mov eax, 0x30", "xor edx, edx", "wrmsr", "vmcall" }
    "access-read" [ACCESSES] { "mov eax, [0x800020]" }
    "access-write" [ACCESSES] { "mov [0x8000b0], eax" }
    "access-read-write" [ACCESSES] { "add dword ptr [0x800310], 1" }
    "access-string" [ACCESSES] { "mov edi, 0x800300", "mov ecx, 2", "rep stosd" }
    "access-delivery"
        [
            ACCESSES, Set(f::GUEST_RSP, guest::WINDOW + 0x800),
            Set(f::ENTRY_INTERRUPTION, 0x8000_0306),
        ]
        { "vmcall" }
    "access-tpr" [ACCESSES] { "mov eax, [0x800080]" }
    "access-tpr-shadow" [SHADOW, ACCESSES, TPR_50, Show(R::Rax)] { "mov eax, [0x800080]", "vmcall" }
    "access-tpr-shadow-write" [SHADOW, ACCESSES, SHOW_TPR]
        { "mov dword ptr [0x800080], 0x70", "vmcall" }
    "access-tpr-shadow-below" [SHADOW, ACCESSES, TPR_50, Set(f::TPR_THRESHOLD, 3), SHOW_TPR]
        { "mov dword ptr [0x800080], 0x20", "vmcall" }
    "access-tpr-byte" [SHADOW, ACCESSES, TPR_50, Show(R::Rax)] { "mov al, [0x800080]", "vmcall" }
    "access-tpr-quad" [SHADOW, ACCESSES, TPR_50] { "mov rax, [0x800080]", "vmcall" }
    "access-shadow-other" [SHADOW, ACCESSES] { "mov eax, [0x800030]", "vmcall" }
    "access-registers"
        [
            SHADOW, ACCESSES, On(c::APIC_REGISTERS),
            Do(|| guest::store(vm::page(VIRTUAL_APIC) + 0x30, 0x1234)), Show(R::Rax),
        ]
        { "mov eax, [0x800030]", "vmcall" }
    "access-registers-write" [SHADOW, ACCESSES, On(c::APIC_REGISTERS)]
        { "mov dword ptr [0x8000f0], 0x1ff", "vmcall" }
    "access-read-only-page"
        [
            ACCESSES,
            Do(read_only),
        ]
        { "mov [0x8000b0], eax" }
    "access-next-page" [ACCESSES, Map(WINDOW_PHYSICAL + 0x1000, 1, guest::FRAMES | ept::LEAF)]
        { "mov eax, [0x801020]", "vmcall" };
}

pub(super) fn run() {
    for cases in [INTERRUPTS, NMIS, WINDOWS, TIMER, VIRTUAL] {
        vm::all("interrupt", cases);
    }
}
