//! `store`: a hypervisor changes the VM's tables by instructions that themselves change between two
//! stores, or lie elsewhere at the same linear address. What is stored must be what the instruction
//! says that the processor executes by then.

use super::edits::{FIRST, OTHER, again, running};
use crate::ept::{self, LEAF};
use crate::guest::{FRAMES, load, store, store_bytes};
use crate::log::{self, Line};
use bare::{cpu, paging};
use core::arch::asm;

/// Frames for code.
const CODE: [u64; 2] = [FRAMES + 0x10_0000, FRAMES + 0x10_1000];
/// Where the window shows them: a 4 KiB page and the next, and a 2 MiB region with a table of its own.
const SLOT: usize = 8;
const REGION: usize = 3;

/// `mov [rdi], rsi`, `rax` or `rdx`, and RET: as many bytes each.
const RSI: [u8; 4] = [0x48, 0x89, 0x37, 0xc3];
const RAX: [u8; 4] = [0x48, 0x89, 0x07, 0xc3];
const RDX: [u8; 4] = [0x48, 0x89, 0x17, 0xc3];

/// Executes the code at `linear`, and says what it has stored in the entry for the first page.
fn execute(line: &mut Line, linear: u64) {
    let entry = ept::entry_at(FIRST, 1);
    // SAFETY: the code is one of the above: it changes an entry of a table that the VM alone is
    // translated by.
    unsafe {
        asm!("call {}", in(reg) linear, in("rdi") entry, in("rsi") OTHER | LEAF,
             in("rax") FRAMES | LEAF, in("rdx") (FRAMES + 0x2000) | LEAF);
    }
    line.add(format_args!("{:#x} ", load(entry) & !LEAF));
}

/// Code in frame 0, and other code in frame 1.
fn place() -> u64 {
    store_bytes(CODE[0], &RSI);
    store_bytes(CODE[1], &RDX);
    paging::page(SLOT, CODE[0])
}

type Case = (&'static str, fn(&mut Line));

const CASES: &[Case] = &[
    ("code-is-changed", |line| {
        let at = place();
        execute(line, at);
        store_bytes(CODE[0], &RAX);
        execute(line, at);
        store_bytes(CODE[0], &RSI);
        execute(line, at);
    }),
    ("code-is-near", |line| {
        let at = place();
        store_bytes(CODE[0] + 4, &RAX);
        for offset in [0, 4, 0] {
            execute(line, at + offset);
        }
    }),
    ("code-is-mapped-elsewhere", |line| {
        for frame in [0, 1, 0] {
            let _ = place();
            execute(line, paging::page(SLOT, CODE[frame]));
        }
    }),
    ("code-crosses-pages", |line| {
        let at = place() + 0xffe;
        store_bytes(CODE[0] + 0xffe, &RSI);
        for rest in [&RSI[2..], &RAX[2..]] {
            store_bytes(CODE[1], rest);
            let _ = paging::page(SLOT + 1, CODE[1]);
            execute(line, at);
        }
        let other = ept::new_table();
        store_bytes(other, &RDX[2..]);
        let _ = paging::page(SLOT + 1, other);
        // Bochs forgets what crosses into a page only when that is written to.
        store_bytes(CODE[1], &RSI[2..]);
        execute(line, at);
    }),
    ("code-is-in-another-table", |line| {
        let _ = place();
        let tables = CODE.map(|frame| {
            let table = ept::new_table();
            store(table, paging::table_entry(frame));
            table
        });
        for number in [0, 1, 0] {
            let entry = paging::table_entry(tables[number]);
            execute(line, paging::directory_entry(REGION, entry));
        }
        let _ = paging::directory_entry(REGION, 0);
    }),
    ("code-is-in-another-space", |line| {
        let at = place();
        let (own, root) = (cpu::cr3(), ept::new_table());
        for offset in (0..4096).step_by(8) {
            store(root + offset, load(own + offset));
        }
        // The tables on the way to the page, from the top.
        let mut parent = root;
        for shift in [39, 30, 21] {
            let table = ept::new_table();
            store(parent + (at >> shift & 511) * 8, paging::table_entry(table));
            parent = table;
        }
        store(parent + (at >> 12 & 511) * 8, paging::table_entry(CODE[1]));
        for space in [own, root, own] {
            cpu::set_cr3(space);
            execute(line, at);
        }
        cpu::set_cr3(own);
    }),
];

pub(super) fn run() {
    for (name, case) in CASES {
        log::result(format_args!("store.{name}"), |line| {
            running(line);
            ept::touch();
            case(line);
            again(line);
        });
    }
}
