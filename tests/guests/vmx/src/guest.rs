//! The VM's memory: what is where, and its state before every case.
//!
//! Its guest-physical addresses are the machine's, but for the low megabyte of real mode and for
//! the window, which `ept.rs` maps. Ring 3 may use every page.

use core::slice;

/// 2 MiB that the VM may use throughout, by one leaf.
pub(crate) const BASE: u64 = 0x40_0000;
pub(crate) const DATA: u64 = BASE;
pub(crate) const CODE: u64 = BASE + 0x1000;
pub(crate) const GDT: u64 = BASE + 0x2000;
pub(crate) const IDT: u64 = BASE + 0x3000;
/// Code of every interrupt gate: VMCALL, 16 bytes apart, and the way back.
pub(crate) const STUBS: u64 = BASE + 0x4000;
pub(crate) const TASK: u64 = BASE + 0x5000;
pub(crate) const OTHER_TASK: u64 = BASE + 0x5800;
pub(crate) const PML4: u64 = BASE + 0x6000;
pub(crate) const PDPT: u64 = BASE + 0x7000;
pub(crate) const PD: u64 = BASE + 0x8000;
pub(crate) const PT: u64 = BASE + 0x9000;
const STACK: u64 = BASE + 0xa000;
pub(crate) const STACK_TOP: u64 = BASE + 0xb000;
/// Real mode's interrupt vectors and their code, guest-physical 0 and 0x1000.
pub(crate) const VECTORS16: u64 = BASE + 0xc000;
pub(crate) const STUBS16: u64 = BASE + 0xd000;
/// For PAE paging, and for 32-bit paging.
pub(crate) const PDPT_PAE: u64 = BASE + 0xe000;
pub(crate) const PD_32: u64 = BASE + 0xf000;
/// Gates of 32-bit code and theirs.
pub(crate) const IDT_32: u64 = BASE + 0x10000;
const USED: u64 = 0x11000;

/// Linear addresses whose 4 KiB entries are in [`PT`], all absent before a case.
pub(crate) const PAGES: u64 = 0x60_0000;
/// Linear address of the window, 2 MiB, and what it is guest-physically.
pub(crate) const WINDOW: u64 = 0x80_0000;
pub(crate) const WINDOW_PHYSICAL: u64 = 0x4040_0000;
/// 2 MiB of frames for the window.
pub(crate) const FRAMES: u64 = 0x60_0000;

/// Selectors of [`GDT`].
pub(crate) const CODE_32: u64 = 0x08;
pub(crate) const CODE_64: u64 = 0x10;
pub(crate) const DATA_0: u64 = 0x18;
pub(crate) const TASK_64: u64 = 0x40;
pub(crate) const TASK_32: u64 = 0x50;
pub(crate) const GDT_LIMIT: u64 = 0x7f;

const DESCRIPTORS: [u64; 16] = [
    0,
    0x00cf_9b00_0000_ffff, // 0x08 flat 32-bit code
    0x00af_9b00_0000_ffff, // 0x10 64-bit code
    0x00cf_9300_0000_ffff, // 0x18 flat data
    0x00cf_f300_0000_ffff, // 0x20 ring 3 data
    0x00af_fb00_0000_ffff, // 0x28 ring 3 64-bit code
    0x0000_9b00_0000_ffff, // 0x30 16-bit code
    0x0000_9300_0000_ffff, // 0x38 16-bit data
    0x0000_8b40_5000_0067, // 0x40 busy 64-bit task
    0,
    0x0000_8b40_5000_0067, // 0x50 the same as a busy 32-bit task
    0x0000_8940_5800_0067, // 0x58 another 32-bit task
    0x0000_8500_0058_0000, // 0x60 gate of that task
    0x0000_8240_0000_0fff, // 0x68 local table
    0,
    0,
];

/// Present, writable, for ring 3, accessed and dirty: walks need not write.
pub(crate) const TABLE: u64 = 0x67;
pub(crate) const LEAF: u64 = 0x67;
pub(crate) const LARGE_LEAF: u64 = 0xe7;

/// Reads a word of the VM's memory, or of any below 4 GiB.
pub(crate) fn load(at: u64) -> u64 {
    // SAFETY: identity-mapped memory at an address that a test's table gives; volatile, because
    // the VM writes it too.
    unsafe { (at as *const u64).read_volatile() }
}

/// Writes a word of the VM's memory, or of any below 4 GiB that is no Rust object's.
pub(crate) fn store(at: u64, value: u64) {
    // SAFETY: as for `load`.
    unsafe { (at as *mut u64).write_volatile(value) };
}

pub(crate) fn store_bytes(at: u64, bytes: &[u8]) {
    for (address, byte) in (at..).zip(bytes) {
        // SAFETY: as for `store`.
        unsafe { (address as *mut u8).write_volatile(*byte) };
    }
}

/// Clears memory, and stores only where it is not clear: a store to a page that was a table of the
/// VM may be dear.
pub(crate) fn clear(at: u64, bytes: u64) {
    for word in (at..at + bytes).step_by(8) {
        if load(word) != 0 {
            store(word, 0);
        }
    }
}

/// The state before every case, with `code` at [`CODE`].
pub(crate) fn reset(code: &[u8]) {
    clear(BASE, USED);
    store_bytes(CODE, code);
    for (at, descriptor) in (GDT..).step_by(8).zip(DESCRIPTORS) {
        store(at, descriptor);
    }
    for vector in 0..256 {
        let stub = STUBS + 16 * vector;
        store(IDT + 16 * vector, gate(CODE_64, 0x8e00, stub));
        store(IDT_32 + 8 * vector, gate(CODE_32, 0x8e00, stub));
        // VMCALL, and IRETQ or IRET.
        store_bytes(stub, &[0x0f, 0x01, 0xc1, 0x48, 0xcf]);
        // Segment 0, and VMCALL with IRET.
        if vector < 64 {
            store_bytes(VECTORS16 + 4 * vector, &(0x1000 + 16 * vector as u32).to_le_bytes());
            store_bytes(STUBS16 + 16 * vector, &[0x0f, 0x01, 0xc1, 0xcf]);
        }
    }
    tables();
    // The stacks that a task switch between rings, and an interrupt stack, would take.
    store(TASK + 4, STACK_TOP);
    store(TASK + 0x24, STACK_TOP - 0x800);
    store(TASK + 0x64, 0x68_0000);
}

fn tables() {
    store(PML4, PDPT | TABLE);
    store(PDPT, PD | TABLE);
    store(PD + 8 * 2, BASE | LARGE_LEAF);
    store(PD + 8 * 3, PT | TABLE);
    store(PD + 8 * 4, WINDOW_PHYSICAL | LARGE_LEAF);
    store(PDPT_PAE, PD | 1);
    store(PD_32, (BASE | LARGE_LEAF) << 32);
}

/// A 32-bit gate, or the low half of a 64-bit one.
const fn gate(selector: u64, kind: u64, target: u64) -> u64 {
    target & 0xffff | selector << 16 | kind << 32 | (target >> 16 & 0xffff) << 48
}

/// Entry of [`PT`] for the 4 KiB page at `linear`.
pub(crate) const fn page_entry(linear: u64) -> u64 {
    PT + (linear - PAGES) / 4096 * 8
}

/// The bytes of a piece of code that nothing runs where it is.
///
/// # Safety
/// `start..end` is code of the image.
pub(crate) unsafe fn bytes(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: the image is never written.
    unsafe { slice::from_raw_parts(start, end as usize - start as usize) }
}

/// The machine code of some instructions, which run at [`CODE`]: 64-bit unless `.code16` or
/// `.code32` comes first.
macro_rules! code {
    ($($line:literal),* $(,)?) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: the instructions are jumped over; they are code of the image.
        unsafe {
            core::arch::asm!("lea {}, [rip + 88f]", "lea {}, [rip + 89f]", "jmp 89f",
                             "88:", $($line,)* ".code64", "89:",
                             out(reg) start, out(reg) end, options(nomem, nostack));
            $crate::guest::bytes(start, end)
        }
    }};
}
pub(crate) use code;
const _: () = assert!(STACK + 0x1000 == STACK_TOP);
