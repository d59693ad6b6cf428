//! The VM's extended page tables, edited in place as a hypervisor does.

use crate::guest::{BASE, DATA, STACK_TOP, STUBS16, VECTORS16, load, store};
use crate::instruction;
use crate::{capability, guest};
use bare::fault::Local;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Readable, writable, executable.
pub(crate) const RWX: u64 = 7;
pub(crate) const WRITE_BACK: u64 = 6 << 3;
pub(crate) const LARGE: u64 = 1 << 7;
pub(crate) const LEAF: u64 = RWX | WRITE_BACK;
pub(crate) const ACCESSED_DIRTY: u64 = 1 << 6;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

const TABLES: usize = 24;
type Table = Local<[u64; 512]>;
static POOL: [Table; TABLES] = [const { Local::new([0; 512]) }; TABLES];
static TAKEN: AtomicUsize = AtomicUsize::new(0);
/// Whether the tables differ from what a case starts with.
static EDITED: AtomicUsize = AtomicUsize::new(1);
/// Bits of the pointer beyond the table's address.
static POINTER_BITS: AtomicU64 = AtomicU64::new(0);

/// The table number `index` of the pool; 0 is the root.
pub(crate) fn table(index: usize) -> u64 {
    POOL[index].get() as u64
}

/// Takes an empty table.
pub(crate) fn new_table() -> u64 {
    let at = table(TAKEN.fetch_add(1, Ordering::Relaxed));
    guest::clear(at, 4096);
    at
}

/// The EPT pointer: write-back, four levels, accessed and dirty flags if they were asked for.
pub(crate) fn pointer() -> u64 {
    table(0) | 0x1e | POINTER_BITS.load(Ordering::Relaxed)
}

/// Lets the processor set accessed and dirty flags until the next case.
pub(crate) fn with_flags() {
    touch();
    POINTER_BITS.store(ACCESSED_DIRTY, Ordering::Relaxed);
}

/// Says that tables will change, so that the next case begins with new ones.
pub(crate) fn touch() {
    EDITED.store(1, Ordering::Relaxed);
}

/// The place of the entry for `physical` at `level` (4 to 1), with tables down to there.
pub(crate) fn entry(physical: u64, level: u32) -> u64 {
    let index = |level: u32| (physical >> (12 + 9 * (level - 1)) & 511) * 8;
    let mut at = table(0) + index(4);
    for below in (level..4).rev() {
        if load(at) & RWX == 0 {
            let new = new_table();
            store(at, new | RWX);
        }
        at = (load(at) & FRAME) + index(below);
    }
    at
}

/// The place of the entry for `physical` at `level`, where the tables lead: none is made.
pub(crate) fn entry_at(physical: u64, level: u32) -> u64 {
    let index = |level: u32| (physical >> (12 + 9 * (level - 1)) & 511) * 8;
    (level..4).rev().fold(table(0) + index(4), |at, below| (load(at) & FRAME) + index(below))
}

/// Sets the entry for `physical` at `level`.
pub(crate) fn set(physical: u64, level: u32, value: u64) {
    touch();
    store(entry(physical, level), value);
}

/// Builds what every case starts with, unless it is there.
pub(crate) fn reset() {
    POINTER_BITS.store(0, Ordering::Relaxed);
    if EDITED.swap(0, Ordering::Relaxed) == 0 {
        return;
    }
    TAKEN.store(0, Ordering::Relaxed);
    let _ = new_table();
    store(entry(BASE, 2), BASE | LEAF | LARGE);
    for (physical, frame) in [
        (0, VECTORS16),
        (0x1000, STUBS16),
        (0x1_0000, guest::CODE),
        (0x1_1000, STACK_TOP - 0x1000),
        (0x1_2000, DATA),
    ] {
        store(entry(physical, 1), frame | LEAF);
    }
    flush();
}

/// Forgets all translations made from the tables.
pub(crate) fn flush() {
    if capability::ept_vpid(20) {
        let _ = instruction::invept(if capability::ept_vpid(25) { 1 } else { 2 }, [pointer(), 0]);
        let _ = instruction::invept(1, [pointer() ^ ACCESSED_DIRTY, 0]);
    }
}
