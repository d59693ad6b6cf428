//! The tables of a UEFI firmware that has nothing (UEFI 2.7, sections 4.3, 4.6, 7.2).
//!
//! A kernel that was started by a BIOS goes through the last 64 KiB below 1 MiB for descriptions of the
//! machine: the ROM once more. One that was started by UEFI looks for them where this says.

use crate::bytes::put;
use crate::layout::{Kind, Layout};
use crate::rom;

/// Offsets in the page at [`rom::EFI`].
const VENDOR: usize = 0x080;
const CONFIGURATION: usize = 0x100;
const MAP: usize = 0x200;

const HEADER: u32 = 120;
const REVISION: u32 = 2 << 16 | 70;
const DESCRIPTOR: u32 = 40;
const DESCRIPTOR_VERSION: u32 = 1;
/// Kinds of memory.
const RESERVED: u32 = 0;
const CONVENTIONAL: u32 = 7;
const WRITE_BACK: u64 = 8;
/// The size of EFI's pages, as a shift.
const PAGE_SHIFT: u32 = 12;

/// The system table and what it points to: a vendor, one configuration table of no kind, as without
/// any Linux takes the firmware for none, and no services. Linux does not look at checksums.
pub(crate) fn tables(layout: &Layout) -> Vec<u8> {
    let mut tables = vec![0; MAP];
    put(&mut tables, 0, b"IBI SYST");
    for (at, value) in [(8, REVISION), (12, HEADER)] {
        put(&mut tables, at, &value.to_le_bytes());
    }
    for (at, value) in [(24, address(VENDOR)), (104, 1), (112, address(CONFIGURATION))] {
        put(&mut tables, at, &u64::from(value).to_le_bytes());
    }
    let vendor: Vec<u8> = "visor".encode_utf16().flat_map(u16::to_le_bytes).collect();
    put(&mut tables, VENDOR, &vendor);
    for (start, end, kind) in layout.map() {
        let (kind, attribute) = match kind {
            Kind::Ram => (CONVENTIONAL, WRITE_BACK),
            Kind::Reserved => (RESERVED, 0),
        };
        let pages = u64::from((end - start) >> PAGE_SHIFT);
        for field in [kind.into(), start.into(), 0, pages, attribute] {
            tables.extend(u64::to_le_bytes(field));
        }
    }
    tables
}

/// `efi_info` of the boot parameters (arch/x86/include/uapi/asm/bootparam.h).
pub(crate) fn info(layout: &Layout) -> [u8; 32] {
    let mut info = [0; 32];
    put(&mut info, 0, b"EL64");
    let size = layout.map().iter().fold(0, |size, _| size + DESCRIPTOR);
    let words = [rom::EFI, DESCRIPTOR, DESCRIPTOR_VERSION, address(MAP), size];
    for (at, word) in (4..).step_by(4).zip(words) {
        put(&mut info, at, &word.to_le_bytes());
    }
    info
}

fn address(at: usize) -> u32 {
    rom::EFI + u32::try_from(at).unwrap_or_default()
}
