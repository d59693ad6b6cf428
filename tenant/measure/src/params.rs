//! Linux's `boot_params` ("zero page").
//!
//! Offsets: Linux 6.1, Documentation/x86/zero-page.rst, arch/x86/include/uapi/asm/bootparam.h.

use crate::bytes::put;
use crate::kernel::{HEADER, Kernel};
use crate::layout::{Kind, Layout, PAGE_LEN};
use crate::{efi, rom};

const ACPI_RSDP: usize = 0x070;
const EFI_INFO: usize = 0x1c0;
const E820_COUNT: usize = 0x1e8;
const LOADER_TYPE: usize = 0x210;
const CODE32_START: usize = 0x214;
const RAMDISK: usize = 0x218;
const COMMAND_LINE: usize = 0x228;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY: usize = 20;
/// "A boot loader without an assigned number".
const UNDEFINED_LOADER: u8 = 0xff;
/// RAM in which nothing lies: an address that is given ends the search for ACPI tables, of which there are
/// none, before it begins. It would go through the ROM.
const NOTHING: u32 = rom::PARAMS + 0x4000;

/// Kinds of memory.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// The page for `kernel`, which [`rom::PARAMS`] is the place of.
pub(crate) fn page(kernel: &Kernel<'_>, layout: &Layout) -> [u8; PAGE_LEN] {
    let mut page = [0; PAGE_LEN];
    put(&mut page, HEADER, kernel.header);
    put(&mut page, LOADER_TYPE, &[UNDEFINED_LOADER]);
    let initrd = if layout.initrd == 0 { 0 } else { layout.start() };
    for (at, value) in [
        (ACPI_RSDP, NOTHING),
        (CODE32_START, layout.kernel),
        (RAMDISK, initrd),
        (RAMDISK + 4, layout.initrd),
        (COMMAND_LINE, rom::LINE),
    ] {
        put(&mut page, at, &value.to_le_bytes());
    }
    put(&mut page, EFI_INFO, &efi::info(layout));
    let mut count = 0;
    for (at, (start, end, kind)) in (E820_TABLE..).step_by(E820_ENTRY).zip(layout.map()) {
        let kind = match kind {
            Kind::Ram => RAM,
            Kind::Reserved => RESERVED,
        };
        put(&mut page, at, &u64::from(start).to_le_bytes());
        put(&mut page, at + 8, &u64::from(end - start).to_le_bytes());
        put(&mut page, at + 16, &kind.to_le_bytes());
        count += 1;
    }
    put(&mut page, E820_COUNT, &[count]);
    page
}
