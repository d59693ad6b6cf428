//! What the visor tells the host loader: a multiboot2 information structure in which the visor's
//! memory is reserved.

use core::fmt;

use ept::addr::{LARGE, Span};

use crate::efi::EfiMap;
use crate::mbi::{BootInfo, FirmwareMap};
use crate::mbi2::{self, ALIGN, HEADER};
use crate::memmap::{Kind, MemoryMap, Region};

/// Tags that the host gets as the visor got them: BIOS boot device, VBE, framebuffer, APM, EFI
/// system table, SMBIOS, both ACPI root pointers, network.
const VERBATIM: [u32; 9] = [5, 7, mbi2::FRAMEBUFFER, 10, 12, 13, 14, 15, 16];

/// First byte after the memory that the BIOS and its tables use.
const HIGH: u64 = 1 << 20;

/// The place for the host loader: the highest 2 MiB of `map`'s RAM below 4 GiB, aligned, that
/// share nothing with the spans of `avoid`. Never the first 2 MiB, which hold the BIOS's memory.
#[must_use]
pub fn loader_area(map: &MemoryMap, avoid: &[Span]) -> Option<Span> {
    let starts = (1..(1 << 32) / LARGE).rev().map(|number| number * LARGE);
    let mut areas = starts.filter_map(|start| Span::sized(start, LARGE));
    areas.find(|&area| map.is_ram(area) && !avoid.iter().any(|taken| taken.overlaps(area)))
}

/// Writes the structure into `out` and returns its length in bytes.
///
/// `map` is what the host may know: `kept`, in ascending order, was carved from it. The command line is the
/// string of the host's kernel, and the kernel stays the first module.
///
/// # Errors
/// [`HandoffError`]; `out` then holds nothing of use.
pub fn write(
    info: &BootInfo<'_>,
    map: &MemoryMap,
    kept: &[Span],
    out: &mut [u8],
) -> Result<usize, HandoffError> {
    let ours = |region: &Region| kept.iter().any(|span| region.span.overlaps(*span));
    if map.regions().any(|region| region.kind == Kind::RAM && ours(&region)) {
        return Err(HandoffError::NotCarved);
    }
    let mut writer = Writer { out, len: 0 };
    // Total size, filled in at the end, and four reserved bytes.
    writer.put(&[0; HEADER])?;
    writer.strings_and_modules(info)?;
    writer.memory(map)?;
    writer.framebuffer(info.framebuffer)?;
    writer.copies(info.tags)?;
    if let FirmwareMap::Efi(efi) = info.map {
        writer.efi_map(efi, kept)?;
    }
    writer.tag(mbi2::END, |_| Ok(()))?;
    writer.patch(0, writer.len)?;
    Ok(writer.len)
}

/// Appends to a buffer.
struct Writer<'o> {
    out: &'o mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), HandoffError> {
        let rest = self.out.get_mut(self.len..);
        let place = rest.and_then(|rest| rest.get_mut(..bytes.len()));
        place.ok_or(HandoffError::NoRoom)?.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    fn words(&mut self, words: &[u32]) -> Result<(), HandoffError> {
        let mut words = words.iter();
        words.try_for_each(|word| self.put(&word.to_le_bytes()))
    }

    /// Writes the length `len` over the four bytes at `at`.
    fn patch(&mut self, at: usize, len: usize) -> Result<(), HandoffError> {
        let len = u32::try_from(len).map_err(|_| HandoffError::NoRoom)?;
        let place = self.out.get_mut(at..);
        let place = place.and_then(|rest| rest.first_chunk_mut());
        *place.ok_or(HandoffError::NoRoom)? = len.to_le_bytes();
        Ok(())
    }

    /// A tag whose body is written by `body`, and the padding after it.
    fn tag(
        &mut self,
        kind: u32,
        body: impl FnOnce(&mut Self) -> Result<(), HandoffError>,
    ) -> Result<(), HandoffError> {
        let start = self.len;
        self.words(&[kind, 0])?;
        body(self)?;
        self.patch(start + 4, self.len - start)?;
        let padding = self.len.next_multiple_of(ALIGN) - self.len;
        self.put([0; ALIGN].get(..padding).unwrap_or_default())
    }

    fn strings_and_modules(&mut self, info: &BootInfo<'_>) -> Result<(), HandoffError> {
        let text = |writer: &mut Self, bytes: &[u8]| {
            writer.put(bytes)?;
            writer.put(&[0])
        };
        let cmdline = info.modules.first().map_or(&[][..], |kernel| kernel.string);
        self.tag(mbi2::CMDLINE, |writer| text(writer, cmdline))?;
        self.tag(mbi2::LOADER_NAME, |writer| text(writer, info.loader_name))?;
        info.modules.iter().try_for_each(|module| {
            self.tag(mbi2::MODULE, |writer| {
                // Two 32-bit numbers: modules lie below 4 GiB.
                let (start, end) = (module.span.start(), module.span.end());
                writer.put(&(start | end << 32).to_le_bytes())?;
                text(writer, module.string)
            })
        })
    }

    fn memory(&mut self, map: &MemoryMap) -> Result<(), HandoffError> {
        /// Bytes of a map entry, and the version of its format.
        const ENTRY: [u32; 2] = [24, 0];
        /// Where the memory ends that BIOS callers know as conventional.
        const LOW_END: u64 = 640 << 10;
        // KiB of RAM from 0 and from 1 MiB on, up to the first hole.
        let ram = |start| map.ram().find(|ram| ram.contains(start));
        let from = |start| ram(start).map_or(start, Span::end);
        let low = from(0).min(LOW_END) >> 10;
        let high = (from(HIGH) - HIGH) >> 10;
        let kib = |kib| u32::try_from(kib).unwrap_or(u32::MAX);
        self.tag(mbi2::MEMORY, |writer| writer.words(&[kib(low), kib(high)]))?;
        self.tag(mbi2::MEMORY_MAP, |writer| {
            writer.words(&ENTRY)?;
            map.regions().try_for_each(|region| {
                writer.put(&region.span.start().to_le_bytes())?;
                writer.put(&region.span.len().to_le_bytes())?;
                writer.words(&[region.kind.number(), 0])
            })
        })
    }

    /// The framebuffer fields of multiboot1, which multiboot2 has in the same order but for two
    /// reserved bytes. One with a palette is left out: the palette is elsewhere.
    fn framebuffer(&mut self, fields: &[u8]) -> Result<(), HandoffError> {
        const DIRECT: u8 = 1;
        const TEXT: u8 = 2;
        let (common, colors) = fields.split_at_checked(22).unwrap_or_default();
        let colors = match common.last() {
            Some(&DIRECT) => colors,
            Some(&TEXT) => &[],
            _ => return Ok(()),
        };
        self.tag(mbi2::FRAMEBUFFER, |writer| {
            writer.put(common)?;
            writer.put(&[0; 2])?;
            writer.put(colors)
        })
    }

    fn copies(&mut self, tags: &[u8]) -> Result<(), HandoffError> {
        let mut copied = mbi2::tags(tags).filter(|tag| VERBATIM.contains(&tag.kind));
        copied.try_for_each(|tag| self.tag(tag.kind, |writer| writer.put(tag.body)))
    }

    fn efi_map(&mut self, efi: EfiMap<'_>, kept: &[Span]) -> Result<(), HandoffError> {
        self.tag(mbi2::EFI_MAP, |writer| {
            writer.words(&[efi.descriptor_size(), EfiMap::VERSION])?;
            efi.carve(kept, &mut |bytes| writer.put(bytes))
        })
    }
}

/// Why the structure was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandoffError {
    /// It does not fit into the room there is.
    NoRoom,
    /// The map lists a part of what the visor keeps as RAM.
    NotCarved,
}

impl fmt::Display for HandoffError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoom => "handoff: boot information is too large",
            Self::NotCarved => "handoff: the host's memory map lists memory of the visor",
        })
    }
}
