//! The multiboot1 information structure (Multiboot Specification 0.6.96, section 3.3).

use ept::addr::Span;

use crate::mbi::{BootInfo, FirmwareMap, MbiError};
use crate::memmap::{Kind, MapError, MemoryMap};
use crate::memory::{self, Memory};
use crate::raw;

/// Bytes in the structure.
const LEN: u64 = 116;
/// Where the framebuffer fields begin in it, the last ones: address, pitch, width, height, depth,
/// type and what the type adds.
const FRAMEBUFFER: usize = 88;

/// Bits of `flags`: which fields hold something.
mod flag {
    pub(super) const CMDLINE: u32 = 1 << 2;
    pub(super) const MODULES: u32 = 1 << 3;
    pub(super) const MEMORY_MAP: u32 = 1 << 6;
    pub(super) const LOADER_NAME: u32 = 1 << 9;
    pub(super) const FRAMEBUFFER: u32 = 1 << 12;
}

/// Reads memory, and notes in `info` where it did.
struct Reader<'i, 'm> {
    memory: &'m dyn Memory,
    info: &'i mut BootInfo<'m>,
}

impl<'m> Reader<'_, 'm> {
    /// The `len` bytes at `at`.
    fn bytes(&mut self, at: u64, len: u64) -> Option<&'m [u8]> {
        let span = Span::sized(at, len)?;
        self.info.pieces.push(span).ok()?;
        self.memory.bytes(span)
    }

    /// The string at `at`, which is empty if `at` is null.
    fn string(&mut self, at: u32) -> Result<&'m [u8], MbiError> {
        if at == 0 {
            return Ok(&[]);
        }
        let len = memory::string_length(self.memory, at.into());
        let string = len.and_then(|len| self.bytes(at.into(), len));
        string.ok_or(MbiError::Unterminated(at))
    }

    /// Adds the modules, `count` entries of which are at `at`.
    fn modules(&mut self, at: u32, count: u32) -> Result<(), MbiError> {
        let len = u64::from(count) * 16;
        let list = self.bytes(at.into(), len);
        for entry in list.ok_or(MbiError::BadStructure(at))?.chunks_exact(16) {
            let field = |at| raw::word(entry, at).unwrap_or_default();
            let string = self.string(field(8))?;
            self.info.push_module(field(0), field(4), string)?;
        }
        Ok(())
    }
}

/// Reads the structure at `address` into `info`, which is empty.
pub(crate) fn read<'m>(
    info: &mut BootInfo<'m>,
    memory: &'m dyn Memory,
    address: u32,
) -> Result<(), MbiError> {
    let mut reader = Reader { memory, info };
    let fields = reader.bytes(address.into(), LEN);
    let fields = fields.ok_or(MbiError::BadStructure(address))?;
    let flags = raw::word(fields, 0).unwrap_or_default();
    // A field is 0 if its flag says that it holds nothing.
    let field = |flag, at| {
        let field = raw::word(fields, at).filter(|_| flags & flag != 0);
        field.unwrap_or_default()
    };
    let (len, at) = (field(flag::MEMORY_MAP, 44), field(flag::MEMORY_MAP, 48));
    let map = reader.bytes(at.into(), len.into());
    let map = map.filter(|map| !map.is_empty());
    reader.info.map = FirmwareMap::Multiboot1(map.ok_or(MbiError::NoMemoryMap)?);
    let framebuffer = fields.get(FRAMEBUFFER..);
    let framebuffer = framebuffer.filter(|_| flags & flag::FRAMEBUFFER != 0);
    reader.info.framebuffer = framebuffer.unwrap_or_default();
    reader.info.cmdline = reader.string(field(flag::CMDLINE, 16))?;
    reader.info.loader_name = reader.string(field(flag::LOADER_NAME, 64))?;
    reader.modules(field(flag::MODULES, 24), field(flag::MODULES, 20))
}

/// Adds the entries of a multiboot1 memory map to `map`: each begins with its own size.
pub(crate) fn load_map(mut entries: &[u8], map: &mut MemoryMap) -> Result<(), MapError> {
    while !entries.is_empty() {
        let size = raw::word(entries, 0).unwrap_or_default();
        let bad = MapError::BadEntrySize(size);
        let end = raw::length(entries, 0).map_or(0, |size| size + 4);
        let (entry, rest) = entries.split_at_checked(end).ok_or(bad)?;
        load_entry(entry.get(4..).unwrap_or_default(), bad, map)?;
        entries = rest;
    }
    Ok(())
}

/// Adds an entry of base, length and type, as both versions of multiboot have it; it is `bad` if
/// it is shorter than that.
pub(crate) fn load_entry(entry: &[u8], bad: MapError, map: &mut MemoryMap) -> Result<(), MapError> {
    let field = |at| raw::quad(entry, at).ok_or(bad);
    let (base, len) = (field(0)?, field(8)?);
    let kind = raw::word(entry, 16).ok_or(bad)?;
    let span = Span::sized(base, len).ok_or(MapError::BadEntry(base))?;
    map.paint(span, Kind::e820(kind))
}
