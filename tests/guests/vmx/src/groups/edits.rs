//! `edit`: a hypervisor changes the VM's tables while they are in use, by every kind of store, and
//! the VM sees the change after INVEPT. Values read without an invalidation are never shown: the
//! processor may remember the old ones.

use crate::capability as c;
use crate::ept::{self, LARGE, LEAF, RWX, WRITE_BACK};
use crate::field as f;
use crate::guest::{self, BASE, CODE, DATA, FRAMES, WINDOW_PHYSICAL, load, store};
use crate::instruction::{get, invept, set, vmclear, vmptrld, vmxoff};
use crate::log::{self, Line};
use crate::vm::{self, Launch, Reg as R};
use core::arch::asm;

pub(super) const FIRST: u64 = WINDOW_PHYSICAL;
/// Another frame than the first, with other contents.
pub(super) const OTHER: u64 = FRAMES + 0x1000;
const OLD: u64 = FRAMES | LEAF;

/// A store of `new` over [`OLD`], or of what it names, at an entry.
type Edit = fn(u64, u64);

/// Defines stores by instructions: `{0}` is the entry, `{1}` the new value.
macro_rules! edits {
    ($($name:literal $new:expr, [$($text:literal),+];)*) => {
        &[$(($name, $new, |entry, new| {
            // SAFETY: changes an entry of a table that the VM alone is translated by.
            unsafe {
                asm!($($text),+, inout("rdi") entry => _, inout("rsi") new => _,
                     inout("rax") OLD => _, out("rcx") _, out("rdx") _, out("r8") _,
                     out("xmm0") _);
            }
        })),*]
    };
}

const EDITS: &[(&str, u64, Edit)] = edits! {
    "mov" OTHER | LEAF, ["mov [rdi], rsi"];
    "mov-same" OLD, ["mov [rdi], rsi"];
    "mov-zero-immediate" 0, ["mov qword ptr [rdi], 0"];
    "mov-low-half" OTHER | LEAF, ["mov [rdi], esi"];
    "mov-both-halves" OTHER | LEAF, ["mov [rdi], esi", "mov dword ptr [rdi + 4], 0"];
    "mov-high-half-misconfigures" 0x8_0000, ["mov [rdi + 4], esi"];
    "mov-16" 0x1037, ["mov [rdi], si"];
    "mov-byte-rights" 0x30, ["mov byte ptr [rdi], 0x30"];
    "mov-byte-frame" 0x10, ["mov byte ptr [rdi + 1], 0x10"];
    "mov-read-only" FRAMES | 1 | WRITE_BACK, ["mov [rdi], rsi"];
    "mov-misconfigured" 6, ["mov [rdi], rsi"];
    "movnti" OTHER | LEAF, ["movnti [rdi], rsi", "sfence"];
    "xchg" OTHER | LEAF, ["xchg [rdi], rsi"];
    "xchg-zero" 0, ["xchg [rdi], rsi"];
    "xchg-32" OTHER | LEAF, ["xchg [rdi], esi"];
    "cmpxchg" OTHER | LEAF, ["lock cmpxchg [rdi], rsi"];
    "cmpxchg-fails" OTHER | LEAF, ["inc rax", "lock cmpxchg [rdi], rsi"];
    "cmpxchg-unlocked" OTHER | LEAF, ["cmpxchg [rdi], rsi"];
    "cmpxchg-16-bytes" OTHER | LEAF,
        ["mov r8, rbx", "mov rbx, rsi", "xor ecx, ecx", "xor edx, edx", "lock cmpxchg16b [rdi]",
         "mov rbx, r8"];
    "cmpxchg-8-bytes" OTHER | LEAF,
        ["mov r8, rbx", "mov rbx, rsi", "xor ecx, ecx", "xor edx, edx", "lock cmpxchg8b [rdi]",
         "mov rbx, r8"];
    "bts" 12, ["lock bts [rdi], rsi"];
    "bts-32" 12, ["lock bts dword ptr [rdi], esi"];
    "bts-immediate" 0, ["lock bts qword ptr [rdi], 12"];
    "btr-write" 1, ["lock btr [rdi], rsi"];
    "btr-unlocked" 0, ["btr qword ptr [rdi], 1"];
    "btc" 0, ["lock btc qword ptr [rdi], 12"];
    "and" !7, ["lock and [rdi], rsi"];
    "and-byte" 0, ["lock and byte ptr [rdi], 0xf8"];
    "and-32-immediate" 0, ["lock and dword ptr [rdi], 0xfffffffd"];
    "or" 0x1000, ["lock or [rdi], rsi"];
    "or-immediate" 0, ["or qword ptr [rdi], 0x1000"];
    "xor" 0x1002, ["lock xor [rdi], rsi"];
    "add" 0x1000, ["lock add [rdi], rsi"];
    "sub" 2, ["sub [rdi], rsi"];
    "xadd" 0x1000, ["lock xadd [rdi], rsi"];
    "inc-misaligns-rights" 0, ["lock inc qword ptr [rdi]"];
    "not" 0, ["not qword ptr [rdi]"];
    "rep-stosq" OTHER | LEAF, ["mov rax, rsi", "mov ecx, 2", "rep stosq"];
    "rep-stosb-zero" 0, ["xor eax, eax", "mov ecx, 8", "rep stosb"];
    "rep-movsq" OTHER | LEAF, ["push rsi", "mov rsi, rsp", "mov ecx, 1", "rep movsq", "pop rax"];
    "push" OTHER | LEAF, ["mov rax, rsp", "lea rsp, [rdi + 8]", "push rsi", "mov rsp, rax"];
    "movups" OTHER | LEAF,
        ["push 0", "push rsi", "movups xmm0, [rsp]", "movups [rdi], xmm0", "pop rax", "pop rax"];
    "movq-xmm" OTHER | LEAF, ["movq xmm0, rsi", "movq [rdi], xmm0"];
    "unaligned" 0x1000, ["mov dword ptr [rdi + 6], 0"];
    "software-bits" OLD | 0x7f0_0000_0000_0e00, ["mov [rdi], rsi"];
};

/// Contents of the frames: what the VM reads tells which one is mapped.
fn fill() {
    store(FRAMES, 0xaa);
    store(OTHER, 0xbb);
    store(FRAMES + 0x2000, 0xcc);
    store(FRAMES + 0x20_0000 - 0x1000, 0xdd);
}

/// INVEPT of each type makes a change visible, and so does leaving VMX operation.
const FLUSHES: &[(&str, fn())] = &[
    ("single", || {
        let _ = invept(1, [ept::pointer(), 0]);
    }),
    ("all", || {
        let _ = invept(2, [0, 0]);
    }),
    ("vmxoff", || {
        let _ = vmclear(vm::region(0));
        let _ = vmxoff();
        let _ = vm::on();
        let _ = vmptrld(vm::region(0));
    }),
];

fn flushes() {
    for (name, flush) in FLUSHES {
        log::result(format_args!("edit.seen-after-{name}"), |line| {
            running(line);
            ept::touch();
            store(ept::entry_at(FIRST, 1), OTHER | LEAF);
            flush();
            // VMCLEAR made it clear again.
            round(line, if *name == "vmxoff" { Launch::First } else { Launch::Again });
        });
    }
}

/// A VM that reads the window's first word, writes it back, and has read it once.
pub(super) fn running(line: &mut Line) {
    fill();
    vm::fresh(guest::code!("mov rax, [0x800000]", "mov [0x800000], rax", "vmcall"));
    ept::set(FIRST, 1, OLD);
    ept::flush();
    round(line, Launch::First);
}

/// Runs the VM's code once more, and says what it read or why it did not.
fn round(line: &mut Line, launch: Launch) {
    set(f::GUEST_RIP, CODE);
    vm::set_register(R::Rax, 0);
    match vm::enter(launch) {
        Ok(exit) if exit.reason == crate::exit::VMCALL => {
            line.add(format_args!("{:#x} ", vm::register(R::Rax)));
        }
        Ok(exit) => line.add(format_args!("exit {} q={:#x} ", exit.reason, exit.qualification)),
        Err(outcome) => line.add(format_args!("{outcome} ")),
    }
}

pub(super) fn again(line: &mut Line) {
    ept::flush();
    round(line, Launch::Again);
}

/// What is done to the tables of a running VM, by its name.
type Case = (&'static str, fn(&mut Line));

fn all(cases: &[Case]) {
    for (name, run) in cases {
        log::result(format_args!("edit.{name}"), |line| {
            running(line);
            ept::touch();
            run(line);
        });
    }
}

fn stores() {
    for level in [1, 2] {
        for (name, new, edit) in EDITS {
            log::result(
                format_args!("edit.{}.{name}", ["", "leaf", "large-leaf"][level as usize]),
                |line| {
                    running(line);
                    let large = if level == 2 { LARGE } else { 0 };
                    ept::set(FIRST, level, OLD | large);
                    again(line);
                    let entry = ept::entry_at(FIRST, level);
                    edit(entry, *new);
                    again(line);
                    line.add(format_args!("entry {:#x}", load(entry)));
                },
            );
        }
    }
}

/// The table that maps the window's pages, and the entry that leads to it.
fn page_table() -> (u64, u64) {
    let parent = ept::entry_at(FIRST, 2);
    (load(parent) & !0xfff, parent)
}

const STRUCTURES: &[Case] = &[
    ("split", |line| {
        ept::set(FIRST, 2, OLD | LARGE);
        again(line);
        let table = ept::new_table();
        for page in 0..512 {
            store(table + 8 * page, (FRAMES + 0x1000 * page) | LEAF);
        }
        store(ept::entry_at(FIRST, 2), table | RWX);
        again(line);
        store(table, OTHER | LEAF);
        again(line);
    }),
    ("merge", |line| {
        let (_, parent) = page_table();
        store(parent, OLD | LARGE);
        again(line);
    }),
    ("unlink", |line| {
        let (_, parent) = page_table();
        store(parent, 0);
        again(line);
    }),
    ("unlink-top-down", |line| {
        store(ept::entry_at(FIRST, 3), 0);
        again(line);
    }),
    ("unlink-and-link", |line| {
        let at = ept::entry_at(FIRST, 3);
        let old = load(at);
        store(at, 0);
        again(line);
        store(at, old);
        again(line);
    }),
    ("edited-while-unlinked", |line| {
        let (table, parent) = page_table();
        let old = load(parent);
        store(parent, 0);
        again(line);
        store(table, OTHER | LEAF);
        store(parent, old);
        again(line);
    }),
    ("unlinked-is-data", |line| {
        let (table, parent) = page_table();
        store(parent, 0);
        ept::flush();
        for at in (table..table + 4096).step_by(8) {
            store(at, u64::MAX);
        }
        store(parent, OLD | LARGE);
        again(line);
        let intact = (table..table + 4096).step_by(8).all(|at| load(at) == u64::MAX);
        line.add(format_args!("intact {intact}"));
    }),
    ("subtree-unlinked-is-data", |line| {
        let (table, parent) = page_table();
        store(ept::entry_at(FIRST, 3), 0);
        ept::flush();
        store(table, 0x1234_5678_9abc_def0);
        store(parent, 0x0fed_cba9_8765_4321);
        again(line);
        line.add(format_args!("{:#x} {:#x}", load(table), load(parent)));
    }),
    ("table-becomes-vm-memory", |line| {
        let (table, parent) = page_table();
        let new = ept::new_table();
        store(new, table | LEAF);
        store(table, 0x55);
        store(parent, new | RWX);
        again(line);
        line.add(format_args!("{:#x}", load(table)));
    }),
    ("vm-memory-becomes-table", |line| {
        let (_, parent) = page_table();
        store(FRAMES + 0x3000, OTHER | LEAF);
        store(parent, (FRAMES + 0x3000) | RWX);
        again(line);
        store(FRAMES + 0x3000, (FRAMES + 0x2000) | LEAF);
        again(line);
    }),
];

/// Shapes that no hypervisor uses, or few do.
const SHAPES: &[Case] = &[
    ("table-linked-twice", |line| {
        let (table, _) = page_table();
        ept::set(FIRST + 0x20_0000, 2, table | RWX);
        store(table, OTHER | LEAF);
        again(line);
    }),
    ("table-at-two-levels", |line| {
        // The page table as a directory, too: its first entry is a leaf there if bit 7 is set.
        let (table, _) = page_table();
        store(ept::entry_at(FIRST, 3), table | RWX);
        store(table + 8 * 2, OTHER | LEAF);
        store(table + 8 * 2, table | RWX | LARGE | WRITE_BACK);
        again(line);
    }),
    ("root-in-itself", |line| {
        let root = ept::table(0);
        store(ept::entry_at(FIRST, 3), root | RWX);
        again(line);
    }),
    ("loop-at-bottom", |line| {
        let (table, parent) = page_table();
        store(parent, (parent & !0xfff) | RWX);
        again(line);
        store(parent, table | RWX);
        again(line);
    }),
    ("vm-writes-its-table", |line| {
        // The window shows the table that maps the window: the VM reads its own entry.
        let (table, _) = page_table();
        store(table, table | LEAF);
        again(line);
        line.add(format_args!("same {}", vm::register(R::Rax) == (table | LEAF)));
    }),
    ("vm-reads-its-root", |line| {
        let (table, _) = page_table();
        store(table, ept::table(0) | 1 | WRITE_BACK);
        again(line);
    }),
    ("root-replaced", |line| {
        let (old, new) = (ept::table(0), ept::new_table());
        for at in (0..4096).step_by(8) {
            store(new + at, load(old + at));
        }
        set(f::EPT_POINTER, get(f::EPT_POINTER) - old + new);
        again(line);
        store(old, 0xffff_ffff);
        again(line);
        line.add(format_args!("{:#x}", load(old)));
        set(f::EPT_POINTER, get(f::EPT_POINTER) - new + old);
    }),
    ("two-roots-share", |line| {
        let (old, new) = (ept::table(0), ept::new_table());
        store(new, load(old));
        set(f::EPT_POINTER, get(f::EPT_POINTER) - old + new);
        again(line);
        store(page_table().0, OTHER | LEAF);
        again(line);
        set(f::EPT_POINTER, get(f::EPT_POINTER) - new + old);
        again(line);
    }),
    ("whole-table-filled", |line| {
        let (table, _) = page_table();
        for page in 0..512 {
            store(table + 8 * page, OTHER | LEAF);
        }
        again(line);
        for page in 0..512 {
            store(table + 8 * page, 0);
        }
        again(line);
    }),
    ("mmio-entry-and-back", |line| {
        let (table, _) = page_table();
        store(table, 0xffff_8000_0000_0006);
        again(line);
        store(table, OTHER | LEAF);
        again(line);
    }),
    ("beyond-memory-leaf", |line| {
        store(page_table().0, 0xe000_0000 | LEAF);
        again(line);
    }),
    ("write-protected-and-back", |line| {
        let (table, _) = page_table();
        store(table, FRAMES | 5 | WRITE_BACK);
        again(line);
        store(table, OLD);
        again(line);
    }),
];

/// Dirty logging by write protection and by dirty flags.
const DIRTY: &[Case] = &[
    ("dirty-flag", |line| {
        if !c::ept_vpid(21) {
            return line.add(format_args!("unsupported"));
        }
        ept::with_flags();
        set(f::EPT_POINTER, ept::pointer());
        let (table, _) = page_table();
        for clear in ["btr", "and"] {
            again(line);
            line.add(format_args!("{:#x} ", load(table) >> 8 & 3));
            // SAFETY: clears the dirty flag of a table that the VM alone is translated by.
            unsafe {
                match clear {
                    "btr" => asm!("lock btr qword ptr [{}], 9", in(reg) table),
                    _ => asm!("lock and qword ptr [{}], {}", in(reg) table, in(reg) !0x300_u64),
                }
            }
            line.add(format_args!("{:#x} ", load(table) >> 8 & 3));
        }
        again(line);
        line.add(format_args!("{:#x}", load(table) >> 8 & 3));
    }),
    ("dirty-log-by-protection", |line| {
        let (table, _) = page_table();
        for _ in 0..2 {
            // SAFETY: as above, for the right to write.
            unsafe { asm!("lock btr qword ptr [{}], 1", in(reg) table) };
            again(line);
            // SAFETY: as above.
            unsafe { asm!("lock bts qword ptr [{}], 1", in(reg) table) };
            again(line);
        }
    }),
];

/// A VM whose window shows the table that maps it changes the entry of the next page, which is not
/// there before.
fn by_the_vm() {
    type Code = fn() -> &'static [u8];
    let ways: [(&str, Code); 4] = [
        ("mov", || guest::code!("mov [0x800008], rsi", "vmcall", "mov rax, [0x801000]", "vmcall")),
        ("xchg", || {
            guest::code!("xchg [0x800008], rsi", "vmcall", "mov rax, [0x801000]", "vmcall")
        }),
        ("stos", || {
            guest::code!(
                "mov rax, rsi",
                "mov edi, 0x800008",
                "stosq",
                "vmcall",
                "mov rax, [0x801000]",
                "vmcall",
            )
        }),
        ("or-32", || {
            guest::code!("lock or [0x800008], esi", "vmcall", "mov rax, [0x801000]", "vmcall")
        }),
    ];
    for (name, code) in ways {
        log::result(format_args!("edit.by-vm-{name}"), |line| {
            fill();
            vm::fresh(code());
            let table = ept::entry(FIRST, 1);
            ept::set(FIRST, 1, table | LEAF);
            ept::flush();
            vm::set_register(R::Rsi, OTHER | LEAF);
            let first = vm::enter(Launch::First);
            line.add(format_args!("entry {:#x} ", load(table + 8)));
            ept::flush();
            if let Ok(exit) = first {
                vm::skip(&exit);
                match vm::enter(Launch::Again) {
                    Ok(exit) => exit.describe(line),
                    Err(outcome) => line.add(format_args!("{outcome}")),
                }
            }
            line.add(format_args!(" rax={:#x}", vm::register(R::Rax)));
        });
    }
}

/// One VM under one root after another, all of which share their tables but the top one.
fn many_roots() {
    log::result(format_args!("edit.many-roots"), |line| {
        running(line);
        ept::touch();
        let first = ept::table(0);
        let pointer = get(f::EPT_POINTER);
        for round_number in 0..12 {
            let root = ept::new_table();
            store(root, load(first));
            set(f::EPT_POINTER, pointer - first + root);
            store(
                ept::entry_at(FIRST, 1),
                if round_number % 2 == 0 { OTHER } else { FRAMES } | LEAF,
            );
            ept::flush();
            let _ = invept(2, [0, 0]);
            round(line, Launch::Again);
        }
        set(f::EPT_POINTER, pointer);
        again(line);
    });
}

/// All low memory at its own address, the tables and the program themselves included, by leaves of
/// each size; the VM then reads and writes its memory through them, and its own root.
fn identity() {
    for (level, name) in [(1, "4k"), (2, "2m"), (3, "1g")] {
        log::result(format_args!("edit.identity-{name}"), |line| {
            if level == 3 && !c::ept_vpid(17) {
                return line.add(format_args!("unsupported"));
            }
            fill();
            vm::fresh(guest::code!(
                "mov rax, [0x800000]",
                "mov qword ptr [0x400008], 0x99",
                "vmcall",
            ));
            ept::touch();
            store(ept::entry_at(0, 3), 0);
            let (step, bits) =
                ([0, 4096, 2 << 20, 1 << 30][level as usize], if level == 1 { 0 } else { LARGE });
            // By 4 KiB, only what the program uses.
            let end = if level == 1 { 8 << 20 } else { 1_u64 << 30 };
            for at in (0..end).step_by(step) {
                store(ept::entry(at, level), at | LEAF | bits);
            }
            // The window is the page of the root.
            guest::store(guest::PD + 8 * 4, guest::PT | guest::TABLE);
            guest::store(guest::PT, ept::table(0) | guest::LEAF);
            ept::flush();
            round(line, Launch::First);
            let same = vm::register(R::Rax) == load(ept::table(0));
            line.add(format_args!("same {same}, wrote {:#x} ", load(DATA + 8)));
            // Changed under the VM: its data page read-only, and back.
            if level == 1 {
                store(ept::entry_at(BASE, 1), BASE | 5 | WRITE_BACK);
                again(line);
                store(ept::entry_at(BASE, 1), BASE | LEAF);
                again(line);
            }
        });
    }
}

pub(super) fn run() {
    stores();
    flushes();
    all(STRUCTURES);
    all(SHAPES);
    all(DIRTY);
    by_the_vm();
    many_roots();
    identity();
}
