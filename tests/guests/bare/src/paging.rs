//! A window at 512 GiB through which a test sees any physical memory, by 4 KiB, 2 MiB and 1 GiB
//! pages, and by paging structures of its own making.

use crate::cpu;
use crate::fault::Local;
use core::sync::atomic::{AtomicU64, Ordering};

/// Present, writable, open to ring 3.
const ALL: u64 = 7;
const LARGE: u64 = 1 << 7;

pub const PAGE: u64 = 4096;
pub const MIB2: u64 = 2 << 20;
pub const GIB: u64 = 1 << 30;
/// First byte that PML4 entry `1` maps.
const WINDOW: u64 = 1 << 39;

type Table = Local<[u64; 512]>;
static PDPT: Table = Local::new([0; 512]);
static PD: Table = Local::new([0; 512]);
static PT: Table = Local::new([0; 512]);

unsafe extern "C" {
    static mut pml4: [u64; 512];
}

/// A range that the functions below map as not present.
static HIDDEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Hides `base..end` from the window: what a visor would refuse by #GP then raises #PF.
pub fn hide(base: u64, end: u64) {
    HIDDEN[0].store(base, Ordering::Relaxed);
    HIDDEN[1].store(end, Ordering::Relaxed);
}

/// An entry for `physical`, which need not be aligned, of the given size.
fn entry(physical: u64, size: u64, bits: u64) -> u64 {
    let [base, end] = [0, 1].map(|index| HIDDEN[index].load(Ordering::Relaxed));
    let present = if (base..end).contains(&physical) { 0 } else { bits };
    (physical & !(size - 1)) | present
}

fn store(table: &Table, index: usize, entry: u64) {
    // SAFETY: the boot processor alone maps windows; the tables are in the identity map, and the
    // write is volatile because the page walker reads it.
    unsafe { (&raw mut (*table.get())[index]).write_volatile(entry) };
}

/// Hangs the window into the page tables that `boot.s` made.
pub fn init() {
    store(&PDPT, 0, PD.get() as u64 | ALL);
    store(&PD, 0, PT.get() as u64 | ALL);
    set_pml4(1, PDPT.get() as u64 | ALL);
}

/// Sets an entry of the top table; 0 and 1 are taken.
pub fn set_pml4(index: usize, entry: u64) {
    // SAFETY: the boot processor alone changes it, and never the entry it runs on.
    unsafe { (&raw mut pml4[index]).write_volatile(entry) };
    cpu::set_cr3(cpu::cr3());
}

/// Where PML4 entry `index` maps its first byte.
pub fn pml4_address(index: usize) -> u64 {
    (index as u64) << 39
}

/// Maps one 4 KiB page in `slot` (0 to 511); the result is its address.
pub fn page(slot: usize, physical: u64) -> u64 {
    page_entry(slot, entry(physical, PAGE, ALL))
}

/// As [`page`], by the raw entry.
pub fn page_entry(slot: usize, entry: u64) -> u64 {
    let address = WINDOW + slot as u64 * PAGE;
    store(&PT, slot, entry);
    cpu::invlpg(address);
    address
}

/// Maps one 2 MiB page in `slot` (1 to 511).
pub fn large(slot: usize, physical: u64) -> u64 {
    directory_entry(slot, entry(physical, MIB2, ALL | LARGE))
}

/// Sets the raw page-directory entry of `slot` (1 to 511).
pub fn directory_entry(slot: usize, entry: u64) -> u64 {
    let address = WINDOW + slot as u64 * MIB2;
    store(&PD, slot, entry);
    cpu::set_cr3(cpu::cr3());
    address
}

/// Maps one 1 GiB page in `slot` (1 to 511), or sets the raw entry by [`pointer_entry`].
pub fn huge(slot: usize, physical: u64) -> u64 {
    pointer_entry(slot, entry(physical, GIB, ALL | LARGE))
}

/// Sets the raw page-directory-pointer entry of `slot` (1 to 511).
pub fn pointer_entry(slot: usize, entry: u64) -> u64 {
    let address = WINDOW + slot as u64 * GIB;
    store(&PDPT, slot, entry);
    cpu::set_cr3(cpu::cr3());
    address
}

/// The entry of a 4 KiB page, or of a table, at `physical`.
pub fn table_entry(physical: u64) -> u64 {
    entry(physical, PAGE, ALL)
}

/// Whether 1 GiB pages exist (CPUID 0x8000_0001 EDX bit 26).
pub fn has_huge() -> bool {
    cpu::cpuid(0x8000_0000, 0)[0] >= 0x8000_0001 && cpu::cpuid(0x8000_0001, 0)[3] & 1 << 26 != 0
}
