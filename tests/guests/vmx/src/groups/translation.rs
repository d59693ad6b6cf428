//! `ept`: violations and misconfigurations by access, rights, page size and level, with accessed
//! and dirty flags and without; `vpid`: translations by VPID.

use crate::capability as c;
use crate::ept::{self, ACCESSED_DIRTY, LARGE, LEAF, RWX, WRITE_BACK};
use crate::field as f;
use crate::guest::{
    self, CODE, DATA, FRAMES, LARGE_LEAF, PAGES, PD, PDPT, PML4, TABLE, WINDOW_PHYSICAL, page_entry,
};
use crate::instruction::{self, set};
use crate::log;
use crate::vm::Step::{
    All, Do, Map, Needs, On, Reg, Set, Show, ShowField, ShowValue, ShowWord, Store,
};
use crate::vm::{self, Launch, Reg as R, Step, cases};

const VMCALL: u64 = 0x00c1_010f;
const FIRST: u64 = WINDOW_PHYSICAL;
/// A guest-physical address with a top-level entry of its own, where the window is put for it.
const FAR: u64 = 1 << 39;

struct Size {
    name: &'static str,
    level: u32,
    leaf: u64,
    exists: fn() -> bool,
}

/// The leaves of 1 GiB map the VM's own memory a second time, the others its frames.
const SIZES: [Size; 3] = [
    Size { name: "4k", level: 1, leaf: FRAMES | WRITE_BACK, exists: || true },
    Size { name: "2m", level: 2, leaf: FRAMES | WRITE_BACK | LARGE, exists: || c::ept_vpid(16) },
    Size { name: "1g", level: 3, leaf: WRITE_BACK | LARGE, exists: || c::ept_vpid(17) },
];

type Code = fn() -> &'static [u8];
const ACCESSES: [(&str, Code); 4] = [
    ("read", || guest::code!("mov eax, [0x800000]", "vmcall")),
    ("write", || guest::code!("mov dword ptr [0x800000], 1", "vmcall")),
    ("change", || guest::code!("lock inc dword ptr [0x800000]", "vmcall")),
    ("fetch", || guest::code!("mov eax, 0x800800", "jmp rax")),
];

fn matrix() {
    for size in &SIZES {
        for flags in [0, ACCESSED_DIRTY] {
            for rights in 0..8 {
                for (access, code) in ACCESSES {
                    one_access(size, flags, rights, (access, code()));
                }
            }
        }
    }
}

fn one_access(size: &Size, flags: u64, rights: u64, (access, code): (&str, &[u8])) {
    let letters = ["---", "r--", "-w-", "rw-", "--x", "r-x", "-wx", "rwx"][rights as usize];
    let suffix = if flags == 0 { "" } else { "-ad" };
    let name = format_args!("ept.{}{suffix}.{letters}.{access}", size.name);
    log::result(name, |line| {
        if !(size.exists)() || flags != 0 && !c::ept_vpid(21) {
            return line.add(format_args!("unsupported"));
        }
        vm::fresh(code);
        for at in [FRAMES, DATA] {
            guest::store(at, 0);
            guest::store(at + 0x800, VMCALL);
        }
        if flags != 0 {
            with_flags();
        }
        ept::set(FIRST, size.level, size.leaf | rights);
        ept::flush();
        vm::run(line, &[]);
        if flags != 0 {
            let leaf = guest::load(ept::entry(FIRST, size.level));
            line.add(format_args!(" leaf={:#x}", leaf >> 8 & 3));
        }
    });
}

fn with_flags() {
    ept::with_flags();
    set(f::EPT_POINTER, ept::pointer());
}

const FLAGS: Step = All(&[Needs(|| c::ept_vpid(21)), Do(with_flags)]);
/// The window maps a frame that is the page table of PAGES; its first entry is that of a data page.
const fn page_table(leaf: u64, entry: u64) -> [Step; 3] {
    [Map(FIRST, 1, FRAMES | leaf), Store(PD + 8 * 3, FIRST | TABLE), Store(FRAMES, entry)]
}
/// Takes rights away from the entry for the window at `level`.
fn withdraw(level: u32, rights: u64) {
    let at = ept::entry(FIRST, level);
    guest::store(at, guest::load(at) & !rights);
    ept::flush();
}

const LEAF_ENTRY: Step = ShowWord(FRAMES);
const READ_ONLY: u64 = 1 | WRITE_BACK;
const FAR_WINDOW: Step = Store(PD + 8 * 4, FAR | LARGE_LEAF);
const AFTER: Step = ShowValue("leaf", || guest::load(ept::entry(FIRST, 1)) >> 8 & 3);

cases! {
WALKS:
    "table-absent" [Store(PD + 8 * 3, FIRST | TABLE)] { "mov eax, [0x600000]" }
    "table-read-only" [All(&page_table(READ_ONLY, DATA | 0x67))] { "mov eax, [0x600000]", "vmcall" }
    "table-read-only-write" [All(&page_table(READ_ONLY, DATA | 0x67))]
        { "mov [0x600000], eax", "vmcall" }
    "table-read-only-sets-accessed" [All(&page_table(READ_ONLY, DATA | 7)), LEAF_ENTRY]
        { "mov eax, [0x600000]", "vmcall" }
    "table-read-only-sets-dirty" [All(&page_table(READ_ONLY, DATA | 0x27)), LEAF_ENTRY]
        { "mov [0x600000], eax", "vmcall" }
    "table-writable-sets-both" [All(&page_table(LEAF, DATA | 7)), LEAF_ENTRY]
        { "mov [0x600000], eax", "vmcall" }
    "table-no-read" [All(&page_table(WRITE_BACK, DATA | 0x67))] { "mov eax, [0x600000]" }
    "table-misconfigured" [All(&page_table(2 | WRITE_BACK, DATA | 0x67))] { "mov eax, [0x600000]" }
    "table-flags-read-only" [FLAGS, All(&page_table(READ_ONLY, DATA | 0x67)), AFTER]
        { "mov eax, [0x600000]", "vmcall" }
    "table-flags-writable" [FLAGS, All(&page_table(LEAF, DATA | 0x67)), AFTER]
        { "mov eax, [0x600000]", "vmcall" }
    "table-flags-fetch" [FLAGS, All(&page_table(READ_ONLY, CODE | 0x67))]
        { "mov eax, 0x600000", "jmp rax" }
    "directory-absent" [Store(PDPT + 8, FIRST | TABLE)] { "mov eax, [0x40000000]" }
    "pointers-absent" [Store(PML4 + 8, FIRST | TABLE)] { "mov rax, 0x8000000000", "mov rax, [rax]" }
    "top-absent" [Set(f::GUEST_CR3, FIRST)] { "vmcall" }
    "top-absent-later" [] { "mov eax, 0x40400000", "mov cr3, rax", "vmcall" }
    "pae-pointers-absent" [super::PAE]
        { ".code32", "mov eax, 0x40400000", "mov cr3, eax", "vmcall" }
    "fetch-through-absent-table" [Store(PD + 8 * 3, FIRST | TABLE)]
        { "mov eax, 0x600000", "jmp rax" }
    "gdt-absent" [Set(f::GUEST_GDTR_BASE, guest::WINDOW)] { "mov eax, 0x18", "mov ds, eax" }
    "task-absent" [super::RING3, Set(f::GUEST_TR_BASE, guest::WINDOW)] { "ud2" }
    "idt-absent" [Set(f::GUEST_IDTR_BASE, guest::WINDOW)] { "int 0x30" }
    "io-map-absent" [super::RING3, Set(f::GUEST_TR_BASE, guest::WINDOW)] { "in al, 0x80" };
RIGHTS:
    "absent-at-4" [FAR_WINDOW] { "mov eax, [0x800000]" }
    "absent-at-3" [] { "mov eax, [0x800000]" }
    "absent-at-2" [Map(FIRST, 2, 0)] { "mov eax, [0x800000]" }
    "absent-with-contents" [Map(FIRST, 1, !7)] { "mov eax, [0x800000]" }
    "absent-with-contents-at-2" [Map(FIRST, 2, !7)] { "mov eax, [0x800000]" }
    "intersected"
        [
            Map(FIRST, 1, FRAMES | LEAF),
            Do(|| withdraw(2, 2)),
        ]
        { "mov [0x800000], eax" }
    "intersected-twice"
        [
            Map(FIRST, 1, FRAMES | 3 | WRITE_BACK),
            Do(|| withdraw(3, 2)),
        ]
        { "mov eax, 0x800000", "jmp rax" }
    "intersected-empty"
        [
            Map(FIRST, 1, FRAMES | 1 | WRITE_BACK),
            Do(|| withdraw(2, 3)),
        ]
        { "mov eax, [0x800000]" }
    "straddles" [Map(FIRST, 1, FRAMES | LEAF)] { "mov eax, [0x800ffe]" }
    "straddles-write"
        [
            Map(FIRST, 1, FRAMES | LEAF), Map(FIRST + 0x1000, 1, FRAMES | READ_ONLY),
            Store(FRAMES + 0xff8, 0), ShowWord(FRAMES + 0xff8),
        ]
        { "mov qword ptr [0x800ffc], -1" }
    "ring3" [super::RING3, Map(FIRST, 1, FRAMES | READ_ONLY)] { "mov [0x800000], eax" }
    "string" [Map(FIRST, 1, FRAMES | LEAF), Reg(R::Rcx, 0x1001), Show(R::Rcx), Show(R::Rdi)]
        { "mov edi, 0x800000", "rep stosb" }
    "push" [Map(FIRST, 1, FRAMES | READ_ONLY), Set(f::GUEST_RSP, guest::WINDOW + 0x100)]
        { "push rax" }
    "pop" [Set(f::GUEST_RSP, guest::WINDOW)] { "pop rax" }
    "prefetch" [] { "prefetcht0 [0x800000]", "vmcall" }
    "locked-read-only" [Map(FIRST, 1, FRAMES | READ_ONLY), Store(FRAMES, 5)]
        { "mov eax, 1", "lock cmpxchg [0x800000], ecx", "vmcall" }
    "fxsave" [Map(FIRST, 1, FRAMES | READ_ONLY)] { "fxsave64 [0x800000]" }
    "vmx-operand" [] { "vmptrld [0x800000]" }
    "retried-after-map" [Map(FIRST, 1, FRAMES | LEAF), Store(FRAMES, 0x77), Show(R::Rax)]
        { "mov eax, [0x800000]", "vmcall" };
MISCONFIGURED:
    "4.bit-3" [FAR_WINDOW, Map(FAR, 4, FRAMES | RWX | 8)] { "mov eax, [0x800000]" }
    "4.bit-7" [FAR_WINDOW, Map(FAR, 4, FRAMES | RWX | 0x80)] { "mov eax, [0x800000]" }
    "4.write-only" [FAR_WINDOW, Map(FAR, 4, FRAMES | 2)] { "mov eax, [0x800000]" }
    "4.write-execute" [FAR_WINDOW, Map(FAR, 4, FRAMES | 6)] { "mov eax, [0x800000]" }
    "4.execute-only" [FAR_WINDOW, Map(FAR, 4, FRAMES | 4)] { "mov eax, [0x800000]" }
    "4.beyond" [FAR_WINDOW, Map(FAR, 4, 1 << 51 | RWX)] { "mov eax, [0x800000]" }
    "3.bit-4" [Map(FIRST, 3, FRAMES | RWX | 0x10)] { "mov eax, [0x800000]" }
    "3.write-only" [Map(FIRST, 3, FRAMES | 2)] { "mov eax, [0x800000]" }
    "3.beyond" [Map(FIRST, 3, 1 << 50 | RWX)] { "mov eax, [0x800000]" }
    "3.leaf-type-2" [Map(FIRST, 3, RWX | LARGE | 2 << 3)] { "mov eax, [0x800000]" }
    "3.leaf-unaligned" [Map(FIRST, 3, LEAF | LARGE | 1 << 29)] { "mov eax, [0x800000]" }
    "3.leaf-write-only" [Map(FIRST, 3, 2 | WRITE_BACK | LARGE)] { "mov eax, [0x800000]" }
    "2.bit-6" [Map(FIRST, 2, FRAMES | RWX | 0x40)] { "mov eax, [0x800000]" }
    "2.write-execute" [Map(FIRST, 2, FRAMES | 6)] { "mov eax, [0x800000]" }
    "2.leaf-type-3" [Map(FIRST, 2, FRAMES | RWX | LARGE | 3 << 3)] { "mov eax, [0x800000]" }
    "2.leaf-unaligned" [Map(FIRST, 2, FRAMES | LEAF | LARGE | 1 << 20)] { "mov eax, [0x800000]" }
    "2.leaf-beyond" [Map(FIRST, 2, LEAF | LARGE | 1 << 51)] { "mov eax, [0x800000]" }
    "1.type-2" [Map(FIRST, 1, FRAMES | RWX | 2 << 3)] { "mov eax, [0x800000]" }
    "1.type-3" [Map(FIRST, 1, FRAMES | RWX | 3 << 3)] { "mov eax, [0x800000]" }
    "1.type-7" [Map(FIRST, 1, FRAMES | RWX | 7 << 3)] { "mov eax, [0x800000]" }
    "1.write-only" [Map(FIRST, 1, FRAMES | 2 | WRITE_BACK)] { "mov eax, [0x800000]" }
    "1.write-execute" [Map(FIRST, 1, FRAMES | 6 | WRITE_BACK)] { "mov [0x800000], eax" }
    "1.beyond" [Map(FIRST, 1, LEAF | 1 << 48)] { "mov eax, [0x800000]" }
    "1.all-but-present" [Map(FIRST, 1, !1)] { "mov eax, [0x800000]" }
    "1.kvm-mmio" [Map(FIRST, 1, 0xffff_8000_0000_0006)] { "mov eax, [0x800000]" }
    "1.while-delivering"
        [
            Map(FIRST, 1, 6), Set(f::GUEST_IDTR_BASE, guest::WINDOW),
            Set(f::ENTRY_INTERRUPTION, 0x8000_0306),
        ]
        { "vmcall" }
    "1.type-0-fine" [Map(FIRST, 1, FRAMES | RWX)] { "mov eax, [0x800000]", "vmcall" }
    "1.type-1-fine" [Map(FIRST, 1, FRAMES | RWX | 1 << 3)] { "mov eax, [0x800000]", "vmcall" }
    "1.type-5-fine" [Map(FIRST, 1, FRAMES | RWX | 5 << 3)] { "mov eax, [0x800000]", "vmcall" }
    "1.ignores-pat-fine" [Map(FIRST, 1, FRAMES | LEAF | 0x40)] { "mov eax, [0x800000]", "vmcall" }
    "1.software-bits-fine" [Map(FIRST, 1, FRAMES | LEAF | 0xff0_0000_0000_0f80)]
        { "mov eax, [0x800000]", "vmcall" };
}

/// A VM of each of two VPIDs reads the same linear address, which its tables map otherwise.
pub(super) fn run_vpid() {
    log::result(format_args!("vpid.kept-apart"), |line| {
        if !c::VPIDS.exists() {
            return line.add(format_args!("unsupported"));
        }
        guest::store(FRAMES, 0xaa);
        guest::store(FRAMES + 0x1000, 0xbb);
        vm::fresh(guest::code!("mov eax, [0x600000]", "vmcall"));
        ept::set(FIRST, 2, FRAMES | LEAF | LARGE);
        ept::flush();
        for (vpid, frame) in [(1, FIRST), (2, FIRST + 0x1000)] {
            vm::prepare(&[
                On(c::VPIDS),
                Set(f::VPID, vpid),
                Set(f::GUEST_RIP, CODE),
                Store(page_entry(PAGES), frame | guest::LEAF),
            ]);
            let launch = if vpid == 1 { Launch::First } else { Launch::Again };
            let _ = vm::enter(launch);
            line.add(format_args!("vpid {vpid} reads {:#x} ", vm::register(R::Rax)));
        }
    });
    many_tags();
    for (name, kind) in [("address", 0), ("single", 1), ("all", 2), ("globals", 3)] {
        invalidated(name, &|| {
            instruction::invvpid(
                kind,
                [if kind == 2 { 0 } else { 1 }, if kind == 0 { PAGES } else { 0 }],
            )
        });
    }
    invalidated("invept", &|| instruction::invept(1, [ept::pointer(), 0]));
}

/// More VPIDs than a processor may have tags for, all of which see the same.
fn many_tags() {
    log::result(format_args!("vpid.many"), |line| {
        if !c::VPIDS.exists() {
            return line.add(format_args!("unsupported"));
        }
        vm::fresh(guest::code!("mov eax, [0x600000]", "vmcall"));
        ept::set(FIRST, 2, FRAMES | LEAF | LARGE);
        ept::flush();
        vm::prepare(&[On(c::VPIDS), Store(page_entry(PAGES), FIRST | guest::LEAF)]);
        let mut launch = Launch::First;
        let mut right = 0;
        for vpid in (1..=20).chain(0xfff0..=0xffff) {
            guest::store(FRAMES, vpid);
            vm::prepare(&[Set(f::VPID, vpid), Set(f::GUEST_RIP, CODE)]);
            let _ = vm::enter(launch);
            launch = Launch::Again;
            right += u64::from(vm::register(R::Rax) == vpid);
        }
        line.add(format_args!("{right} right"));
    });
}

/// A changed guest page table is seen after an invalidation.
fn invalidated(name: &str, flush: &dyn Fn() -> instruction::Outcome) {
    log::result(format_args!("vpid.seen-after-{name}"), |line| {
        if !c::VPIDS.exists() {
            return line.add(format_args!("unsupported"));
        }
        guest::store(FRAMES, 0xaa);
        guest::store(FRAMES + 0x1000, 0xbb);
        vm::fresh(guest::code!("mov eax, [0x600000]", "vmcall"));
        ept::set(FIRST, 2, FRAMES | LEAF | LARGE);
        ept::flush();
        vm::prepare(&[
            On(c::VPIDS),
            Set(f::VPID, 1),
            Store(page_entry(PAGES), FIRST | guest::LEAF),
        ]);
        let _ = instruction::invvpid(1, [1, 0]);
        let _ = vm::enter(Launch::First);
        line.add(format_args!("{:#x}", vm::register(R::Rax)));
        vm::prepare(&[
            Set(f::GUEST_RIP, CODE),
            Store(page_entry(PAGES), (FIRST + 0x1000) | guest::LEAF),
        ]);
        line.add(format_args!(", {}", flush()));
        let _ = vm::enter(Launch::Again);
        line.add(format_args!(", {:#x}", vm::register(R::Rax)));
    });
}

const DIRTY: u64 = 1 << 9;

/// Page-modification logging: the log is the spare page.
const LOGGED: Step = All(&[
    On(c::PML),
    FLAGS,
    Map(FIRST, 1, FRAMES | LEAF),
    Do(|| set(f::PML_ADDRESS, vm::page(vm::SPARE))),
    Set(f::PML_INDEX, 511),
    ShowField(f::PML_INDEX),
    ShowValue("logged", || guest::load(vm::page(vm::SPARE) + 511 * 8)),
]);

cases! {
LOGS:
    "write" [LOGGED] { "mov dword ptr [0x800010], 1", "vmcall" }
    "read" [LOGGED] { "mov eax, [0x800010]", "vmcall" }
    "dirty-already" [LOGGED, Map(FIRST, 1, FRAMES | LEAF | DIRTY)]
        { "mov dword ptr [0x800010], 1", "vmcall" }
    "full" [LOGGED, Set(f::PML_INDEX, 512)] { "mov dword ptr [0x800010], 1", "vmcall" }
    "last" [LOGGED, Set(f::PML_INDEX, 0)] { "mov dword ptr [0x800010], 1", "vmcall" }
    "full-while-delivering"
        [
            LOGGED, Set(f::PML_INDEX, 512), Set(f::GUEST_RSP, guest::WINDOW + 0x800),
            Set(f::ENTRY_INTERRUPTION, 0x8000_0306),
        ]
        { "vmcall" };
}

pub(super) fn run() {
    vm::all("ept.log", LOGS);
    matrix();
    vm::all("ept.walk", WALKS);
    vm::all("ept.rights", RIGHTS);
    vm::all("ept.misconfigured", MISCONFIGURED);
}
