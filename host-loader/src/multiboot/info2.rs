//! The multiboot2 information for the kernel: the handoff, with the map and the modules as they are
//! by now.

use crate::LoadError;
use crate::bytes::put;
use crate::handoff::{EFI_MAP, EFI64, END, Firmware, LOAD_BASE, MEMORY_INFO, MEMORY_MAP, MODULE};
use crate::layout::Layout;
use crate::scratch::Scratch;

const HEADER: usize = 8;
/// A tag's type and size.
const PREFIX: usize = 8;
/// Bytes in a memory map entry.
const MAP_ENTRY: usize = 24;

/// What depends on the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    /// For a kernel that may not be told of EFI: BIOS.
    pub(super) firmware: Firmware,
    /// Where the image of a relocatable kernel went.
    pub(super) load_base: Option<u64>,
}

/// Writes it; its physical address.
pub(super) fn write(
    layout: &Layout<'_, '_>,
    told: Told,
    scratch: &mut Scratch<'_>,
) -> Result<u32, LoadError> {
    let mut counter = Writer { out: &mut [], at: HEADER };
    counter.tags(layout, told)?;
    let total = counter.at;
    let piece = scratch.piece(total, 8)?;
    put(piece.bytes, 0, &word(total)?);
    Writer { out: piece.bytes, at: HEADER }.tags(layout, told)?;
    Ok(piece.at)
}

/// Appends tags; past the end of `out` it only counts.
struct Writer<'o> {
    out: &'o mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn tags(&mut self, layout: &Layout<'_, '_>, told: Told) -> Result<(), LoadError> {
        let handoff = layout.handoff;
        for tag in handoff.tags() {
            match tag.kind {
                END | MODULE | MEMORY_INFO | MEMORY_MAP => {}
                EFI64 | EFI_MAP if told.firmware == Firmware::Bios => {}
                _ => self.tag(tag.kind, &[tag.bytes.get(PREFIX..).unwrap_or_default()])?,
            }
        }
        if let Some((lower, upper)) = handoff.sizes() {
            self.tag(MEMORY_INFO, &[&lower.to_le_bytes(), &upper.to_le_bytes()])?;
        }
        self.map(layout)?;
        for module in layout.modules() {
            let ends = [address(module.span.start())?, address(module.span.end())?];
            self.tag(MODULE, &[ends.as_flattened(), module.string, &[0]])?;
        }
        if let Some(base) = told.load_base {
            self.tag(LOAD_BASE, &[&address(base)?])?;
        }
        self.tag(END, &[])
    }

    fn map(&mut self, layout: &Layout<'_, '_>) -> Result<(), LoadError> {
        let map = layout.handoff.map();
        let start = self.at;
        self.tag(MEMORY_MAP, &[&word(MAP_ENTRY)?, &word(0)?])?;
        for entry in map {
            put(self.out, self.at, &entry.e820());
            self.at += MAP_ENTRY;
        }
        put(self.out, start + 4, &word(self.at - start)?);
        Ok(())
    }

    fn tag(&mut self, kind: u32, parts: &[&[u8]]) -> Result<(), LoadError> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        put(self.out, self.at, &kind.to_le_bytes());
        put(self.out, self.at + 4, &word(PREFIX + len)?);
        let mut at = self.at + PREFIX;
        for part in parts {
            put(self.out, at, part);
            at += part.len();
        }
        self.at = at.next_multiple_of(8);
        Ok(())
    }
}

fn word(number: usize) -> Result<[u8; 4], LoadError> {
    u32::try_from(number).map(u32::to_le_bytes).map_err(|_| LoadError::ScratchFull)
}

fn address(number: u64) -> Result<[u8; 4], LoadError> {
    u32::try_from(number).map(u32::to_le_bytes).map_err(|_| LoadError::ScratchFull)
}
