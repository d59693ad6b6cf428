//! Linux's `boot_params` ("zero page").
//!
//! Offsets: Linux 6.1, Documentation/x86/zero-page.rst, arch/x86/include/uapi/asm/bootparam.h and
//! include/uapi/linux/screen_info.h.

use crate::LoadError;
use crate::bytes::{put, u64_at};
use crate::handoff::{EFI_MAP, EFI64, FRAMEBUFFER, Firmware, Handoff};
use crate::linux::HEADER;
use crate::scratch::{Piece, Scratch};
use crate::screen;
use ept::addr::Span;

/// The end of the room for the setup header.
pub(crate) const HEADER_END: usize = 0x290;
const SIZE: usize = 4096;
const EXT_MEM_K: usize = 0x002;
const EFI_INFO: usize = 0x1c0;
const ALT_MEM_K: usize = 0x1e0;
const E820_COUNT: usize = 0x1e8;
const LOADER_TYPE: usize = 0x210;
const CODE32_START: usize = 0x214;
const RAMDISK: usize = 0x218;
const COMMAND_LINE: usize = 0x228;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY: usize = 20;
const E820_MAX: usize = 128;
/// `setup_data` type of further E820 entries, and the size of the header before them.
const SETUP_E820_EXT: u32 = 1;
const SETUP_HEADER: usize = 16;
/// "A boot loader without an assigned number".
const UNDEFINED_LOADER: u8 = 0xff;

/// What is known only when everything is placed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    pub(crate) eip: u32,
    pub(crate) line: u32,
    /// Empty when there is none.
    pub(crate) initrd: Span,
}

/// Writes everything that follows from the handoff and the kernel's own setup `header`.
pub(crate) fn write<'s>(
    handoff: Handoff<'_>,
    header: &[u8],
    scratch: &'s mut Scratch<'_>,
) -> Result<Piece<'s>, LoadError> {
    let more = more_e820(handoff, scratch)?;
    let page = scratch.piece(SIZE, SIZE)?;
    put(page.bytes, HEADER, header);
    put(page.bytes, SETUP_DATA, &u64::from(more).to_le_bytes());
    memory(handoff, page.bytes);
    let firmware = handoff.tag(EFI64).map_or(Firmware::Bios, |_| Firmware::Efi);
    screen::fill(page.bytes, handoff.tag(FRAMEBUFFER).map(|tag| tag.bytes), firmware);
    efi(handoff, page.bytes);
    Ok(page)
}

/// Writes the places.
pub(crate) fn complete(page: &mut [u8], places: &Places) {
    let word = |address: u64| u32::try_from(address).unwrap_or(0).to_le_bytes();
    put(page, LOADER_TYPE, &[UNDEFINED_LOADER]);
    put(page, CODE32_START, &places.eip.to_le_bytes());
    put(page, COMMAND_LINE, &places.line.to_le_bytes());
    put(page, RAMDISK, &word(places.initrd.start()));
    put(page, RAMDISK + 4, &word(places.initrd.len()));
}

/// The memory map's first 128 entries, and the sizes that kernels used before there was a map.
fn memory(handoff: Handoff<'_>, page: &mut [u8]) {
    let mut count = 0_u8;
    for (place, entry) in (E820_TABLE..).step_by(E820_ENTRY).zip(handoff.map()).take(E820_MAX) {
        put(page, place, &entry.e820());
        count += 1;
    }
    put(page, E820_COUNT, &[count]);
    let (_, upper) = handoff.sizes().unwrap_or_default();
    put(page, ALT_MEM_K, &upper.to_le_bytes());
    put(page, EXT_MEM_K, &u16::try_from(upper).unwrap_or(u16::MAX).to_le_bytes());
}

/// The memory map's further entries as `setup_data`; its address, or 0 when there are none.
fn more_e820(handoff: Handoff<'_>, scratch: &mut Scratch<'_>) -> Result<u32, LoadError> {
    let len = handoff.map().skip(E820_MAX).count() * E820_ENTRY;
    if len == 0 {
        return Ok(0);
    }
    let piece = scratch.piece(SETUP_HEADER + len, 8)?;
    let stored = u32::try_from(len).map_err(|_| LoadError::ScratchFull)?;
    put(piece.bytes, 8, &SETUP_E820_EXT.to_le_bytes());
    put(piece.bytes, 12, &stored.to_le_bytes());
    let entries = handoff.map().skip(E820_MAX);
    for (place, entry) in (SETUP_HEADER..).step_by(E820_ENTRY).zip(entries) {
        put(piece.bytes, place, &entry.e820());
    }
    Ok(piece.at)
}

/// `efi_info`, when EFI firmware started the machine.
fn efi(handoff: Handoff<'_>, page: &mut [u8]) {
    let system_table = handoff.tag(EFI64).and_then(|tag| u64_at(tag.bytes, 8));
    let (Some(table), Some(map)) = (system_table, handoff.tag(EFI_MAP)) else {
        return;
    };
    let halves = |value: u64| {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        ([a, b, c, d], [e, f, g, h])
    };
    let (table_low, table_high) = halves(table);
    let (map_low, map_high) = halves(handoff.address(map.offset + 16));
    let map_len = u32::try_from(map.bytes.len().saturating_sub(16)).unwrap_or(0);
    let fields: [&[u8]; 8] = [
        b"EL64",
        &table_low,
        map.bytes.get(8..12).unwrap_or_default(),
        map.bytes.get(12..16).unwrap_or_default(),
        &map_low,
        &map_len.to_le_bytes(),
        &table_high,
        &map_high,
    ];
    for (place, field) in (EFI_INFO..).step_by(4).zip(fields) {
        put(page, place, field);
    }
}
