//! The multiboot2 information structure (Multiboot2 Specification 2.0, section 3.4).

use ept::addr::Span;

use crate::efi::EfiMap;
use crate::mbi::{BootInfo, FirmwareMap, MbiError};
use crate::mbi1::load_entry;
use crate::memmap::{MapError, MemoryMap};
use crate::memory::{self, Memory};
use crate::raw;

/// Types of tags that the visor reads or writes.
pub(crate) const END: u32 = 0;
pub(crate) const CMDLINE: u32 = 1;
pub(crate) const LOADER_NAME: u32 = 2;
pub(crate) const MODULE: u32 = 3;
pub(crate) const MEMORY: u32 = 4;
pub(crate) const MEMORY_MAP: u32 = 6;
pub(crate) const FRAMEBUFFER: u32 = 8;
pub(crate) const ACPI_OLD: u32 = 14;
pub(crate) const ACPI_NEW: u32 = 15;
pub(crate) const EFI_MAP: u32 = 17;
const BOOT_SERVICES: u32 = 18;

/// Alignment of the structure and of each tag.
pub(crate) const ALIGN: usize = 8;
/// Bytes before the first tag, and bytes before the body of a tag.
pub(crate) const HEADER: usize = 8;
/// Longest structure that is taken, in bytes: far more than 32 modules, long strings and the
/// largest EFI map need.
const LONGEST: u32 = 1 << 20;

/// A tag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tag<'m> {
    pub(crate) kind: u32,
    pub(crate) body: &'m [u8],
}

/// Takes the first tag off `tags`.
fn take<'m>(tags: &mut &'m [u8]) -> Result<Tag<'m>, MbiError> {
    let kind = raw::word(tags, 0).ok_or(MbiError::NoEndTag)?;
    let size = raw::length(tags, 4).unwrap_or_default();
    let body = tags.get(HEADER..size).ok_or(MbiError::BadTag(kind))?;
    let rest = tags.get(size.next_multiple_of(ALIGN)..);
    *tags = rest.unwrap_or_default();
    Ok(Tag { kind, body })
}

/// The tags before the end tag, or before the first broken one: [`read`] has refused those.
pub(crate) fn tags(mut tags: &[u8]) -> impl Iterator<Item = Tag<'_>> {
    core::iter::from_fn(move || take(&mut tags).ok().filter(|tag| tag.kind != END))
}

/// The bodies of the tags of type `kind`.
pub(crate) fn bodies(all: &[u8], kind: u32) -> impl Iterator<Item = &[u8]> {
    let same = tags(all).filter(move |tag| tag.kind == kind);
    same.map(|tag| tag.body)
}

/// The body of the only tag of type `kind`, if there is one.
fn only(all: &[u8], kind: u32) -> Result<Option<&[u8]>, MbiError> {
    let mut bodies = bodies(all, kind);
    match (bodies.next(), bodies.next()) {
        (_, Some(_)) => Err(MbiError::RepeatedTag(kind)),
        (body, None) => Ok(body),
    }
}

/// Size and bytes of the entries of the map in the tag of type `kind`, if there is one.
fn entries(all: &[u8], kind: u32) -> Result<Option<(u32, &[u8])>, MbiError> {
    let body = only(all, kind)?;
    let parts = |body| raw::word(body, 0).zip(body.get(8..));
    let parts = body.map(|body| parts(body).ok_or(MbiError::BadTag(kind)));
    parts.transpose()
}

/// The string that is the tag of type `kind`; empty if there is none.
fn string(all: &[u8], kind: u32) -> Result<&[u8], MbiError> {
    let body = only(all, kind)?.unwrap_or(&[0]);
    raw::until_nul(body).ok_or(MbiError::BadTag(kind))
}

/// Reads the structure at `address` into `info`, which is empty.
pub(crate) fn read<'m>(
    info: &mut BootInfo<'m>,
    memory: &'m dyn Memory,
    address: u32,
) -> Result<(), MbiError> {
    let (all, span) = structure(memory, address).ok_or(MbiError::BadStructure(address))?;
    let mut rest = all;
    while take(&mut rest)?.kind != END {}
    if bodies(all, BOOT_SERVICES).next().is_some() {
        return Err(MbiError::BootServices);
    }
    // The map of EFI if there is one: the other was derived from it.
    info.map = match (entries(all, EFI_MAP)?, entries(all, MEMORY_MAP)?) {
        (Some((size, bytes)), _) => {
            FirmwareMap::Efi(EfiMap::parse(bytes, size).map_err(MbiError::Map)?)
        }
        (None, Some((size, bytes))) => FirmwareMap::Multiboot2 { bytes, size },
        (None, None) => return Err(MbiError::NoMemoryMap),
    };
    info.tags = all;
    info.cmdline = string(all, CMDLINE)?;
    info.loader_name = string(all, LOADER_NAME)?;
    // There is room: it is the only piece.
    let _room = info.pieces.push(span);
    bodies(all, MODULE).try_for_each(|body| {
        let addresses = raw::word(body, 0).zip(raw::word(body, 4));
        let string = body.get(8..).and_then(raw::until_nul);
        let parts = addresses.zip(string);
        let ((start, end), string) = parts.ok_or(MbiError::BadTag(MODULE))?;
        info.push_module(start, end, string)
    })
}

/// The tags of the structure at `address`, and where all of it is.
fn structure(memory: &dyn Memory, address: u32) -> Option<(&[u8], Span)> {
    let at = u64::from(address);
    let head = memory::bytes(memory, at, 8).filter(|_| at.is_multiple_of(8))?;
    let len = raw::word(head, 0).filter(|&len| len <= LONGEST)?;
    let span = Span::sized(at, len.into())?;
    Some((memory.bytes(span)?.get(HEADER..)?, span))
}

/// Adds the entries of a multiboot2 memory map, `size` bytes each, to `map`.
pub(crate) fn load_map(bytes: &[u8], size: u32, map: &mut MemoryMap) -> Result<(), MapError> {
    let bad = MapError::BadEntrySize(size);
    let len = usize::try_from(size).map_err(|_| bad)?;
    if len == 0 || !bytes.len().is_multiple_of(len) {
        return Err(bad);
    }
    let mut entries = bytes.chunks_exact(len);
    entries.try_for_each(|entry| load_entry(entry, bad, map))
}
