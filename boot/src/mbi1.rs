//! The multiboot1 information structure (Multiboot Specification 0.6.96, section 3.3).

use ept::addr::Span;

use crate::mbi::{BootInfo, Extras, FirmwareMap, MODULES, MbiError, Text};
use crate::memmap::{Kind, MapError, MemoryMap};
use crate::memory::{self, Memory};
use crate::raw;

/// Bytes in the structure.
const LEN: u64 = 116;
/// Where the framebuffer fields begin in it.
const FRAMEBUFFER_AT: usize = 88;
/// Bytes of them: address, pitch, width, height, depth, type and what the type adds.
pub(crate) const FRAMEBUFFER: usize = 28;

/// Bits of `flags`: which fields hold something.
mod flag {
    pub(super) const CMDLINE: u32 = 1 << 2;
    pub(super) const MODULES: u32 = 1 << 3;
    pub(super) const MEMORY_MAP: u32 = 1 << 6;
    pub(super) const LOADER_NAME: u32 = 1 << 9;
    pub(super) const FRAMEBUFFER: u32 = 1 << 12;
}

/// Reads memory and takes note of where.
struct Reader<'m> {
    memory: &'m dyn Memory,
    fields: &'m [u8],
    flags: u32,
}

impl<'m> Reader<'m> {
    fn new(memory: &'m dyn Memory, address: u32) -> Result<Self, MbiError> {
        let bad = MbiError::BadStructure(address);
        let fields = memory::bytes(memory, address.into(), LEN).ok_or(bad)?;
        let flags = raw::word(fields, 0).ok_or(bad)?;
        Ok(Self {
            memory,
            fields,
            flags,
        })
    }

    /// The field at `at`, or 0 if `flag` says that it holds nothing.
    fn field(&self, flag: u32, at: usize) -> u64 {
        let field = raw::word(self.fields, at).filter(|_| self.flags & flag != 0);
        field.unwrap_or_default().into()
    }

    /// The string at `at`, which is empty if `at` is null.
    fn string(&self, info: &mut BootInfo<'m>, at: u64, text: Text) -> Result<&'m [u8], MbiError> {
        if at == 0 {
            return Ok(&[]);
        }
        let string = memory::string(self.memory, at).ok_or(MbiError::Unterminated(text))?;
        note(
            info,
            at,
            u64::try_from(string.len()).unwrap_or_default() + 1,
        )?;
        Ok(string)
    }

    fn modules(&self, info: &mut BootInfo<'m>) -> Result<(), MbiError> {
        const ENTRY: usize = 16;
        let count = self.field(flag::MODULES, 20);
        if count > u64::try_from(MODULES).unwrap_or_default() {
            return Err(MbiError::TooManyModules);
        }
        let (at, len) = (self.field(flag::MODULES, 24), count * 16);
        let list = memory::bytes(self.memory, at, len).ok_or(MbiError::ModulesUnreadable)?;
        note(info, at, len)?;
        for (number, entry) in list.chunks_exact(ENTRY).enumerate() {
            let field = |at| raw::word(entry, at).unwrap_or_default();
            let string = self.string(info, field(8).into(), Text::Module(number))?;
            info.push_module(field(0), field(4), string)?;
        }
        Ok(())
    }
}

/// Takes note that the `len` bytes at `at` are in use.
fn note(info: &mut BootInfo<'_>, at: u64, len: u64) -> Result<(), MbiError> {
    let span = Span::sized(at, len).unwrap_or_default();
    // A piece per module and five more: never too many.
    info.pieces.push(span).map_err(|_| MbiError::TooManyModules)
}

/// Reads the structure at `address` into `info`, which is empty.
pub(crate) fn read<'m>(
    info: &mut BootInfo<'m>,
    memory: &'m dyn Memory,
    address: u32,
) -> Result<(), MbiError> {
    let reader = Reader::new(memory, address)?;
    let (at, len) = (
        reader.field(flag::MEMORY_MAP, 48),
        reader.field(flag::MEMORY_MAP, 44),
    );
    let map = memory::bytes(memory, at, len).filter(|map| !map.is_empty());
    info.map = FirmwareMap::Multiboot1(map.ok_or(MbiError::NoMemoryMap)?);
    let framebuffer = reader
        .fields
        .get(FRAMEBUFFER_AT..)
        .and_then(|fields| fields.first_chunk());
    let framebuffer = framebuffer.filter(|_| reader.flags & flag::FRAMEBUFFER != 0);
    info.extras = Extras::Multiboot1(framebuffer);
    note(info, address.into(), LEN)?;
    note(info, at, len)?;
    info.cmdline = reader.string(info, reader.field(flag::CMDLINE, 16), Text::Cmdline)?;
    let name = reader.field(flag::LOADER_NAME, 64);
    info.loader_name = reader.string(info, name, Text::LoaderName)?;
    reader.modules(info)
}

/// Adds the entries of a multiboot1 memory map to `map`: each begins with its own size.
pub(crate) fn load_map(mut entries: &[u8], map: &mut MemoryMap) -> Result<(), MapError> {
    const SIZE: usize = 4;
    const LEAST: usize = 20;
    while !entries.is_empty() {
        let size = raw::length(entries, 0).unwrap_or_default();
        let entry = entries
            .get(SIZE..)
            .and_then(|rest| rest.split_at_checked(size));
        let bad = MapError::BadEntrySize(raw::word(entries, 0).unwrap_or_default());
        let (entry, rest) = entry.filter(|_| size >= LEAST).ok_or(bad)?;
        load_entry(entry, bad, map)?;
        entries = rest;
    }
    Ok(())
}

/// Adds the entry `base`, `length`, `type`, which both versions of multiboot share.
pub(crate) fn load_entry(entry: &[u8], bad: MapError, map: &mut MemoryMap) -> Result<(), MapError> {
    let field = |at| raw::quad(entry, at).ok_or(bad);
    let kind = raw::word(entry, 16).ok_or(bad)?;
    map.add(field(0)?, field(8)?, Kind::e820(kind))
}
