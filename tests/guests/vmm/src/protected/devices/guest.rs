//! Where things are in the VM that uses devices, and its launch image.

use super::cases::{Case, cases};
use super::program::{handlers, program};
use crate::memory::PAGE;
use ticket::Class;

/// Guest-physical addresses; [the code](super::program) has them as literals.
const CODE: usize = 0x1000;
const HANDLERS: u64 = 0x3000;
const GDT: usize = 0x5000;
/// How many cases each mode has: words of 4 bytes, by its number.
const COUNTS: usize = 0x5e00;
const GDT_POINTER: usize = 0x5f00;
const IDT_POINTER: usize = 0x5f10;
const IDT: usize = 0x6000;
/// Records of cases for 16, 32 and 64 bits.
const RECORDS: [usize; 3] = [0x8000, 0x2_8000, 0x4_8000];
/// Where the guest has the record that it works on.
const CURRENT: u64 = 0x4400;
/// The size of one.
pub(super) const RECORD: usize = 0x100;
/// Where in a record the code is for each world.
pub(super) const RECORD_CODE: [usize; 2] = [0x90, 0xc8];
/// Of 64 bits, for each world; 0x4000 further, of 32 bits.
const TABLES: [usize; 2] = [0x7_0000, 0x7_8000];
const TABLES_END: usize = 0x8_0000;
/// The five pages, in each world.
const PLACES: [u64; 2] = [0x8_0000, 0xb_7000];
/// The device.
pub(super) const DEVICE: u64 = 0xb_8000;
pub(super) const DEVICE_SIZE: usize = 2 * PAGE;
const BELOW: usize = 0xb_8000;
const ABOVE: usize = 0xb_a000;
/// What the visor tells of device memory by.
const WINDOW: usize = 0xb_c000;
const ABOVE_PAGES: usize = 3;
/// The page of the reset vector, in this program's memory and in the VM's.
const RESET: usize = 0xb_d000;
const RESET_AT: u64 = 0xffff_f000;
pub(super) const SIZE: usize = 0xb_e000;

/// Linear addresses of the five pages with paging; of all tables, by one entry of the third level.
pub(super) const LINEAR: u64 = 0x3f_0000;
/// The same once more, in 64-bit mode.
pub(super) const HIGH: u64 = 0x40_0000_0000 + LINEAR;
/// Pairs of pages for faults: the second of the device, or the last of memory, before a page that is not
/// there; then one of memory that is read-only.
pub(super) const DEVICE_THEN_NONE: u64 = 0x3e_0000;
pub(super) const MEMORY_THEN_NONE: u64 = 0x3e_8000;
pub(super) const READ_ONLY: u64 = 0x3e_a000;

/// Memory slots: number, guest-physical address, and the part of this program's memory.
pub(super) fn slots() -> [(u32, u64, std::ops::Range<usize>); 3] {
    [(0, 0, 0..BELOW), moving(), (2, RESET_AT, RESET..RESET + PAGE)]
}

/// The slot that has the memory behind the device, and the window.
pub(super) fn moving() -> (u32, u64, std::ops::Range<usize>) {
    (1, ABOVE as u64, ABOVE..ABOVE + ABOVE_PAGES * PAGE)
}

/// The memory map of the VM's ticket.
pub(super) fn ranges() -> [(u64, u64, Class); 4] {
    let page = PAGE as u64;
    [
        (0, BELOW as u64, Class::Private),
        (ABOVE as u64, (WINDOW - ABOVE) as u64, Class::Private),
        (WINDOW as u64, page, Class::Window),
        (RESET_AT, page, Class::Private),
    ]
}

/// The cases of each mode of the program, by its number.
pub(super) fn table() -> [Vec<Case>; 3] {
    [cases(16), cases(32), cases(64)]
}

/// The table of a mode of the program.
pub(super) const fn table_of(mode: usize) -> usize {
    match mode {
        0 => 0,
        1 | 2 => 1,
        _ => 2,
    }
}

/// The launch image: whole pages, and where they are in this program's memory.
pub(super) fn image(table: &[Vec<Case>; 3]) -> Result<Vec<(u64, usize, Vec<u8>)>, String> {
    let mut low = vec![0; TABLES_END];
    put(&mut low, CODE, program());
    put(&mut low, HANDLERS as usize, handlers());
    if CODE + program().len() > HANDLERS as usize {
        return Err("the program is too long".to_owned());
    }
    for (index, descriptor) in descriptors().iter().enumerate() {
        word(&mut low, GDT + index * 8, *descriptor);
    }
    word(&mut low, GDT_POINTER, (GDT as u64) << 16 | 0xff);
    word(&mut low, IDT_POINTER, (IDT as u64) << 16 | 0xfff);
    for vector in 0..256 {
        let offset = match vector {
            2 => 0x200,
            14 => 0,
            0..32 => 0x300,
            _ => 0x100,
        };
        word(&mut low, IDT + vector * 16, crate::protected::guest::gate(HANDLERS + offset));
    }
    for mode in 0..7 {
        let count = table[table_of(mode)].len() as u32;
        put(&mut low, COUNTS + mode * 4, &count.to_le_bytes());
    }
    for (cases, start) in table.iter().zip(RECORDS) {
        for (index, case) in cases.iter().enumerate() {
            let at = start + index * RECORD;
            put(&mut low, at, &case.record(CURRENT)?);
        }
    }
    let ends = [RECORDS[1], RECORDS[2], TABLES[0]];
    for (cases, (start, end)) in table.iter().zip(RECORDS.into_iter().zip(ends)) {
        if cases.len() > (end - start) / RECORD {
            return Err(format!("too many cases: {}", cases.len()));
        }
    }
    for (tables, place) in TABLES.into_iter().zip(PLACES) {
        tables_of_64_bits(&mut low, tables, place);
        tables_of_32_bits(&mut low, tables + 0x4000, place);
    }
    let mut reset = vec![0; PAGE];
    put(&mut reset, 0xff0, &[0xea, 0x00, 0x10, 0, 0]);
    let pages = low.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0));
    let mut image: Vec<_> =
        pages.map(|(index, page)| ((index * PAGE) as u64, index * PAGE, page.to_vec())).collect();
    image.push((RESET_AT, RESET, reset));
    Ok(image)
}

/// Code of 64 bits, data, code of 32 and 16 bits; then data whose offsets [`LINEAR`] is at the five pages
/// of each world, and the same 0x100 bytes further; data 0x100 bytes further than flat.
fn descriptors() -> [u64; 10] {
    let [code, data, code_32, code_16] =
        [0x00af_9b00, 0x00cf_9300, 0x00cf_9b00, 0x0000_9b00].map(|high: u64| high << 32 | 0xffff);
    let based = |base: u64| {
        let base = base & 0xffff_ffff;
        data | (base & 0xff_ffff) << 16 | (base >> 24) << 56
    };
    let [first, second] = PLACES.map(|place| place.wrapping_sub(LINEAR));
    [
        0,
        code,
        data,
        code_32,
        code_16,
        based(first),
        based(second),
        based(first.wrapping_add(0x100)),
        based(second.wrapping_add(0x100)),
        based(0x100),
    ]
}

/// What a linear page from 2 MiB on leads to, where it is no page of the same address: the number of one
/// of the five pages, and the entry's rights.
fn special(linear: u64) -> Option<Option<(u64, u64)>> {
    let (present, writable) = (1, 2);
    let page = PAGE as u64;
    Some(match linear {
        DEVICE_THEN_NONE => Some((2, present | writable)),
        MEMORY_THEN_NONE => Some((4, present | writable)),
        READ_ONLY => Some((3, present)),
        _ if linear == DEVICE_THEN_NONE + page || linear == MEMORY_THEN_NONE + page => None,
        _ if (LINEAR..LINEAR + 5 * page).contains(&linear) => {
            Some(((linear - LINEAR) / page, present | writable))
        }
        _ => return None,
    })
}

fn leaf(linear: u64, place: u64) -> u64 {
    match special(linear) {
        Some(Some((page, rights))) => (place + page * PAGE as u64) | rights,
        Some(None) => 0,
        None => linear | 3,
    }
}

/// Of four levels: the first 2 MiB by a large page, the next by small ones, and the APICs.
fn tables_of_64_bits(low: &mut [u8], at: usize, place: u64) {
    let table = |index: usize| (at + index * PAGE) as u64 | 3;
    let (large, uncached) = (0x83, 0x10);
    word(low, at, table(1));
    word(low, at + PAGE, table(2));
    // Also from 256 GiB on.
    word(low, at + PAGE + 256 * 8, table(2));
    word(low, at + PAGE + 3 * 8, table(6));
    word(low, at + 2 * PAGE, large);
    word(low, at + 2 * PAGE + 8, table(3));
    for index in 0..512 {
        let linear = 0x20_0000 + index * PAGE as u64;
        word(low, at + 3 * PAGE + index as usize * 8, leaf(linear, place));
    }
    for apic in [0xfec0_0000_u64, 0xfee0_0000] {
        let index = (apic >> 21 & 0x1ff) as usize;
        word(low, at + 6 * PAGE + index * 8, apic | large | uncached);
    }
}

/// Of two levels: the first 4 MiB.
fn tables_of_32_bits(low: &mut [u8], at: usize, place: u64) {
    put(low, at, &((at + PAGE) as u32 | 3).to_le_bytes());
    for index in 0..1024 {
        let entry = leaf(index * PAGE as u64, place) as u32;
        put(low, at + PAGE + index as usize * 4, &entry.to_le_bytes());
    }
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

fn word(bytes: &mut [u8], at: usize, value: u64) {
    put(bytes, at, &value.to_le_bytes());
}
