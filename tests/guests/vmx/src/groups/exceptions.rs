//! `exception`: by the bitmap, or to the VM; page faults by error code; `inject`: events that
//! entries deliver, and exits in the middle of a delivery.

use crate::capability as c;
use crate::field as f;
use crate::guest::{self, DATA, IDT, LARGE_LEAF, PAGES, PD, WINDOW, page_entry};
use crate::log;
use crate::vm::Step::{
    All, Do, Exits, Map, On, Or, Reg, Set, Show, ShowField, ShowValue, ShowWord, Store,
};
use crate::vm::{self, GUEST_CR0, GUEST_CR4, Reg as R, Step, cases};
use bare::cpu;

/// Every exception exits.
const EVERY: Step = Set(f::EXCEPTION_BITMAP, 0xffff_ffff);
const CR2: Step = ShowValue("cr2", cpu::cr2);
const NO_CR2: Step = Do(|| cpu::set_cr2(0));
/// A page that is mapped to the data page with these bits.
const fn mapped(bits: u64) -> Step {
    Store(page_entry(PAGES), DATA | bits)
}
/// A selector of a segment that is not present.
const ABSENT: Step = Store(guest::GDT + 0x70, 0x00cf_1300_0000_ffff);
const NX: u64 = 1 << 63;

cases! {
BITMAP:
    "divide" [EVERY] { "xor ecx, ecx", "div ecx" }
    "debug-int1" [EVERY] { ".byte 0xf1" }
    "debug-trap" [EVERY] { "pushfq", "or dword ptr [rsp], 0x100", "popfq", "nop", "nop" }
    "debug-breakpoint" [EVERY]
        {
            "lea rax, [rip + 2f]", "mov dr0, rax", "mov eax, 0x402", "mov dr7, rax", "nop",
            "2: nop", "vmcall",
        }
    "debug-data" [EVERY]
        {
            "mov eax, 0x400000", "mov dr1, rax", "mov eax, 0x100408", "bts eax, 20", "bts eax, 22",
            "mov dr7, rax", "mov dword ptr [0x400000], 1", "nop", "vmcall",
        }
    "breakpoint" [EVERY] { "int3" }
    "breakpoint-two-bytes" [EVERY] { ".byte 0xcd, 3", "vmcall" }
    "undefined" [EVERY] { "ud2" }
    "no-device" [EVERY, Or(f::GUEST_CR0, 8)] { "fninit" }
    "double-fault" [Set(f::EXCEPTION_BITMAP, 1 << 8), Set(f::GUEST_IDTR_LIMIT, 0x8f)]
        { "mov eax, 0x70", "mov ds, eax" }
    "not-present" [EVERY, ABSENT] { "mov eax, 0x70", "mov ds, eax" }
    "stack" [EVERY, ABSENT] { "mov eax, 0x73", "mov ss, eax" }
    "stack-absent" [EVERY, ABSENT] { "mov eax, 0x70", "mov ss, eax" }
    "stack-not-canonical" [EVERY] { "mov rax, 0x8000000000000000", "mov rsp, rax", "push rax" }
    "protection-selector" [EVERY] { "mov eax, 0x100", "mov ds, eax" }
    "protection-null" [EVERY] { "mov rax, 0x8000000000000000", "mov rax, [rax]" }
    "protection-interrupt" [EVERY, Set(f::GUEST_IDTR_LIMIT, 0x1ff)] { "int 0x80" }
    "x87" [EVERY]
        {
            "fninit", "mov eax, 0x400000", "mov word ptr [rax], 0x37b", "fldcw [rax]", "fldz",
            "fld1", "fdivrp", "fwait",
        }
    "alignment" [super::RING3, EVERY, Or(f::GUEST_CR0, 1 << 18), Set(f::GUEST_RFLAGS, 0x4_0002)]
        { "mov eax, [0x400001]" }
    "simd" [EVERY]
        {
            "mov eax, 0x400000", "mov dword ptr [rax], 0x1f00", "ldmxcsr [rax]", "pxor xmm0, xmm0",
            "divss xmm0, xmm0", "vmcall",
        }
    "not-in-bitmap" [Set(f::EXCEPTION_BITMAP, !(1 << 6))] { "ud2" }
    "to-vm-divide" [] { "xor ecx, ecx", "div ecx" }
    "to-vm-breakpoint" [] { "int3" }
    "to-vm-int" [] { "int 0x42" }
    "to-vm-protection" [] { "mov eax, 0x100", "mov ds, eax" }
    "to-vm-x87" []
        {
            "fninit", "mov eax, 0x400000", "mov word ptr [rax], 0x37b", "fldcw [rax]", "fldz",
            "fld1", "fdivrp", "fwait",
        }
    "to-vm-double-fault" [Store(IDT + 16 * 13, 0)] { "mov eax, 0x100", "mov ds, eax" }
    "to-vm-returns" [Exits(2)] { "int 0x42", "nop", "cpuid" }
    "int-absent-gate" [EVERY, Store(IDT + 16 * 0x42, 0)] { "int 0x42" }
    "int3-absent-gate" [Set(f::EXCEPTION_BITMAP, 1 << 11 | 1 << 13), Store(IDT + 16 * 3, 0)]
        { "int3" }
    "fault-absent-gate" [Set(f::EXCEPTION_BITMAP, 1 << 11 | 1 << 13), Store(IDT + 16 * 6, 0)]
        { "ud2" }
    "fault-in-delivery" [Set(f::EXCEPTION_BITMAP, 1 << 14), Set(f::GUEST_IDTR_BASE, PAGES)]
        { "ud2" }
    "double-fault-by-page-fault" [Set(f::EXCEPTION_BITMAP, 1 << 8), Store(IDT + 16 * 14, 0)]
        { "mov al, [0x600000]" };
PAGE_FAULT:
    "read" [NO_CR2, EVERY, CR2] { "mov al, [0x600123]" }
    "write" [NO_CR2, EVERY, CR2] { "mov [0x600123], al" }
    "write-protected" [EVERY, mapped(5)] { "mov [0x600123], al" }
    "write-protected-no-wp"
        [EVERY, mapped(5), Set(f::GUEST_CR0, GUEST_CR0 & !(1 << 16)), ShowWord(page_entry(PAGES))]
        { "mov [0x600123], al", "vmcall" }
    "fetch" [EVERY] { "mov eax, 0x600800", "jmp rax" }
    "fetch-nx"
        [
            EVERY, mapped(7 | NX), On(c::ENTRY_LOAD_EFER), On(c::EXIT_LOAD_EFER),
            Set(f::GUEST_EFER, 0xd00),
        ]
        { "mov eax, 0x600800", "jmp rax" }
    "reserved-nx" [EVERY, mapped(7 | NX)] { "mov al, [0x600123]" }
    "reserved" [EVERY, mapped(7 | 1 << 51)] { "mov al, [0x600123]" }
    "user" [super::RING3, EVERY, mapped(3)] { "mov al, [0x600123]" }
    "user-write" [super::RING3, EVERY, mapped(5)] { "mov [0x600123], al" }
    "smep" [EVERY, mapped(7), Set(f::GUEST_CR4, GUEST_CR4 | 1 << 20)]
        { "mov eax, 0x600800", "jmp rax" }
    "match"
        [Set(f::EXCEPTION_BITMAP, 1 << 14), Set(f::PAGE_FAULT_MASK, 2), Set(f::PAGE_FAULT_MATCH, 2)]
        { "mov [0x600123], al" }
    "no-match"
        [
            NO_CR2, Set(f::EXCEPTION_BITMAP, 1 << 14), Set(f::PAGE_FAULT_MASK, 2),
            Set(f::PAGE_FAULT_MATCH, 2), CR2,
        ]
        { "mov al, [0x600123]" }
    "match-inverted" [Set(f::PAGE_FAULT_MASK, 2), Set(f::PAGE_FAULT_MATCH, 2)]
        { "mov [0x600123], al" }
    "no-match-inverted" [Set(f::PAGE_FAULT_MASK, 2), Set(f::PAGE_FAULT_MATCH, 2)]
        { "mov al, [0x600123]" }
    "never" [Set(f::EXCEPTION_BITMAP, 1 << 14), Set(f::PAGE_FAULT_MATCH, 1)]
        { "mov al, [0x600123]" }
    "accessed-dirty" [EVERY, mapped(7), ShowWord(page_entry(PAGES))]
        { "mov al, [0x600123]", "mov [0x600123], al", "vmcall" };
}

pub(super) fn run() {
    vm::all("exception", BITMAP);
    vm::all("page-fault", PAGE_FAULT);
}

/// An event in the form of the VM-entry interruption-information field (25.8.3).
struct Event {
    name: &'static str,
    information: u64,
    length: u64,
}

macro_rules! events {
    ($($name:literal $kind:literal $vector:literal $error:literal $length:literal;)*) => {
        &[$(Event {
            name: $name,
            information: 1 << 31 | $kind << 8 | $vector | $error << 11,
            length: $length,
        }),*]
    };
}

/// Name, type, vector, whether an error code is delivered, instruction length.
/// Type 7 is not among them: Bochs 2.7 ends at it.
const EVENTS: &[Event] = events! {
    "external-32" 0 32 0 0; "external-128" 0 128 0 0; "external-255" 0 255 0 0; "external-3" 0 3 0 0;
    "external-error" 0 32 1 0; "reserved-type" 1 32 0 0;
    "nmi" 2 2 0 0; "nmi-vector-3" 2 3 0 0; "nmi-error" 2 2 1 0;
    "divide" 3 0 0 0; "debug" 3 1 0 0; "exception-2" 3 2 0 0; "exception-3" 3 3 0 0;
    "overflow" 3 4 0 0; "bound" 3 5 0 0; "undefined" 3 6 0 0; "no-device" 3 7 0 0;
    "double-fault" 3 8 1 0; "double-fault-no-error" 3 8 0 0; "exception-9" 3 9 0 0;
    "task" 3 10 1 0; "not-present" 3 11 1 0; "stack" 3 12 1 0; "protection" 3 13 1 0;
    "protection-no-error" 3 13 0 0; "page-fault" 3 14 1 0; "page-fault-no-error" 3 14 0 0;
    "x87" 3 16 0 0; "alignment" 3 17 1 0; "machine-check" 3 18 0 0; "simd" 3 19 0 0;
    "divide-error" 3 0 1 0; "undefined-error" 3 6 1 0; "exception-31" 3 31 0 0;
    "exception-32" 3 32 0 0; "exception-255" 3 255 0 0;
    "interrupt-33" 4 33 0 2; "interrupt-3" 4 3 0 2; "interrupt-length-1" 4 33 0 1;
    "interrupt-length-15" 4 33 0 15; "interrupt-length-16" 4 33 0 16;
    "interrupt-length-0" 4 33 0 0; "interrupt-error" 4 33 1 2;
    "int1" 5 1 0 1; "int1-length-0" 5 1 0 0; "privileged-3" 5 3 0 1;
    "int3" 6 3 0 1; "into" 6 4 0 1; "int3-length-0" 6 3 0 0; "software-error" 6 13 1 1;
    "reserved-bit-12" 3 0x1006 0 0; "reserved-bit-30" 3 0x4000_0006 0 0;
};

/// What the VM is in when the event comes.
const STATES: &[(&str, &[Step])] = &[
    ("plain", &[Set(f::GUEST_RFLAGS, 0x202)]),
    ("disabled", &[]),
    ("sti", &[Set(f::GUEST_RFLAGS, 0x202), Set(f::GUEST_INTERRUPTIBILITY, 1)]),
    ("mov-ss", &[Set(f::GUEST_INTERRUPTIBILITY, 2)]),
    ("nmi-blocked", &[Set(f::GUEST_RFLAGS, 0x202), Set(f::GUEST_INTERRUPTIBILITY, 8)]),
    ("halted", &[Set(f::GUEST_RFLAGS, 0x202), Set(f::GUEST_ACTIVITY, 1)]),
    ("shutdown", &[Set(f::GUEST_RFLAGS, 0x202), Set(f::GUEST_ACTIVITY, 2)]),
    ("ring3", &[super::RING3, Set(f::GUEST_RFLAGS, 0x202)]),
    (
        "no-gates",
        &[
            Set(f::GUEST_RFLAGS, 0x202),
            Set(f::GUEST_IDTR_LIMIT, 0),
            Set(f::EXCEPTION_BITMAP, 0x2100),
        ],
    ),
    ("no-table", &[Set(f::GUEST_RFLAGS, 0x202), Set(f::GUEST_IDTR_BASE, WINDOW)]),
];

/// Events that every state gets; the others come in the first only.
const EVERYWHERE: &[&str] = &[
    "external-32",
    "nmi",
    "debug",
    "undefined",
    "double-fault",
    "protection",
    "interrupt-33",
    "int1",
    "int3",
];

cases! {
INJECTIONS:
    "error-code" [Set(f::ENTRY_INTERRUPTION, 0x8000_0b0d), Set(f::ENTRY_ERROR_CODE, 0x7ff8)]
        { "nop" }
    "error-code-bit-15" [Set(f::ENTRY_INTERRUPTION, 0x8000_0b0d), Set(f::ENTRY_ERROR_CODE, 0x8000)]
        { "nop" }
    "error-code-bit-16"
        [Set(f::ENTRY_INTERRUPTION, 0x8000_0b0d), Set(f::ENTRY_ERROR_CODE, 0x1_0000)]
        { "nop" }
    "not-valid" [Set(f::ENTRY_INTERRUPTION, 0x7fff_ffff)] { "vmcall" }
    "once" [Set(f::ENTRY_INTERRUPTION, 0x8000_0020), Set(f::GUEST_RFLAGS, 0x202), Exits(3)]
        { "vmcall", "hlt" }
    "nmi-then-iret" [Set(f::ENTRY_INTERRUPTION, 0x8000_0202), Exits(2)] { "vmcall" }
    "nmi-then-iret-virtual"
        [On(c::NMI_EXITING), On(c::VIRTUAL_NMIS), Set(f::ENTRY_INTERRUPTION, 0x8000_0202), Exits(2)]
        { "vmcall" }
    "nmi-virtual-blocked"
        [
            On(c::NMI_EXITING), On(c::VIRTUAL_NMIS), Set(f::GUEST_INTERRUPTIBILITY, 8),
            Set(f::ENTRY_INTERRUPTION, 0x8000_0202),
        ]
        { "vmcall" }
    "external-needs-if" [Set(f::ENTRY_INTERRUPTION, 0x8000_0020)] { "vmcall" }
    "stack-unmapped" [Set(f::ENTRY_INTERRUPTION, 0x8000_0306), Set(f::GUEST_RSP, WINDOW + 0x1000)]
        { "vmcall" }
    "stack-page-fault"
        [Set(f::ENTRY_INTERRUPTION, 0x8000_0306), Set(f::GUEST_RSP, PAGES + 0x1000), EVERY]
        { "vmcall" }
    "page-fault-and-cr2"
        [
            Do(|| cpu::set_cr2(0x1234)), Set(f::ENTRY_INTERRUPTION, 0x8000_0b0e),
            Set(f::ENTRY_ERROR_CODE, 2), CR2,
        ]
        { "vmcall" }
    "interrupt-ring3-refused"
        [
            super::RING3, Set(f::ENTRY_INTERRUPTION, 0x8000_0421),
            Set(f::ENTRY_INSTRUCTION_LENGTH, 2), Set(f::EXCEPTION_BITMAP, 1 << 13),
        ]
        { "vmcall" }
    "int3-ring3-refused"
        [
            super::RING3, Set(f::ENTRY_INTERRUPTION, 0x8000_0603),
            Set(f::ENTRY_INSTRUCTION_LENGTH, 1), Set(f::EXCEPTION_BITMAP, 1 << 13),
        ]
        { "vmcall" }
    "int1-ring3"
        [super::RING3, Set(f::ENTRY_INTERRUPTION, 0x8000_0501), Set(f::ENTRY_INSTRUCTION_LENGTH, 1)]
        { "vmcall" }
    "debug-in-bitmap" [EVERY, Set(f::ENTRY_INTERRUPTION, 0x8000_0301)] { "vmcall" }
    "gate-in-window"
        [
            Map(guest::WINDOW_PHYSICAL, 1, guest::FRAMES | 0x31), Set(f::GUEST_IDTR_BASE, WINDOW),
            Set(f::ENTRY_INTERRUPTION, 0x8000_0306),
        ]
        { "vmcall" }
    "own-interrupt-table-of-ring3"
        [
            super::RING3, Set(f::GUEST_TR_LIMIT, 3), Set(f::EXCEPTION_BITMAP, 1 << 10),
            Set(f::ENTRY_INTERRUPTION, 0x8000_0306),
        ]
        { "vmcall" }
    "interrupt-stack-table"
        [
            Store(IDT + 16 * 6, 0x0040_8e01_0010_4060), Set(f::ENTRY_INTERRUPTION, 0x8000_0306),
            ShowField(f::GUEST_RSP), Reg(R::Rax, 1), Show(R::Rax),
        ]
        { "vmcall" }
    "large-window"
        [
            Store(PD + 8 * 4, DATA | LARGE_LEAF), Set(f::GUEST_IDTR_BASE, WINDOW + 0x3000),
            Set(f::ENTRY_INTERRUPTION, 0x8000_0306), All(&[]),
        ]
        { "vmcall" };
}

pub(super) fn run_injections() {
    for (state, steps) in STATES {
        for event in EVENTS {
            if *state == "plain" || EVERYWHERE.contains(&event.name) {
                inject(state, steps, event);
            }
        }
    }
    vm::all("inject", INJECTIONS);
}

fn inject(state: &str, steps: &[Step], event: &Event) {
    log::result(format_args!("inject.{state}.{}", event.name), |line| {
        vm::fresh(guest::code!("vmcall"));
        vm::prepare(steps);
        vm::prepare(&[
            Set(f::ENTRY_INTERRUPTION, event.information),
            Set(f::ENTRY_ERROR_CODE, 0x18),
            Set(f::ENTRY_INSTRUCTION_LENGTH, event.length),
        ]);
        vm::run(line, &[]);
    });
}
