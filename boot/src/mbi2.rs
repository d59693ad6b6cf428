//! The multiboot2 information structure (Multiboot2 Specification 2.0, section 3.4).

use ept::addr::Span;

use crate::efi::EfiMap;
use crate::mbi::{BootInfo, Extras, FirmwareMap, MbiError, Text};
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
const LONGEST: u64 = 1 << 20;

/// A tag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tag<'m> {
    pub(crate) kind: u32,
    pub(crate) body: &'m [u8],
}

/// Takes the first tag off `tags`.
fn take<'m>(tags: &mut &'m [u8]) -> Result<Tag<'m>, MbiError> {
    let kind = raw::word(tags, 0).ok_or(MbiError::NoEndTag)?;
    let bad = MbiError::BadTag(kind);
    let size = raw::length(tags, 4).ok_or(bad)?;
    let body = tags.get(HEADER..size).ok_or(bad)?;
    *tags = tags.get(size.next_multiple_of(ALIGN)..).unwrap_or_default();
    Ok(Tag { kind, body })
}

/// The tags before the end tag, or before the first broken one: [`parse`] has refused those.
pub(crate) fn tags(mut tags: &[u8]) -> impl Iterator<Item = Tag<'_>> {
    core::iter::from_fn(move || take(&mut tags).ok().filter(|tag| tag.kind != END))
}

/// What the tags say that are one of a kind.
#[derive(Default)]
struct Found<'m> {
    cmdline: Option<&'m [u8]>,
    loader_name: Option<&'m [u8]>,
    map: Option<&'m [u8]>,
    efi: Option<&'m [u8]>,
}

impl<'m> Found<'m> {
    fn gather(mut rest: &'m [u8]) -> Result<Self, MbiError> {
        let mut found = Self::default();
        loop {
            let Tag { kind, body } = take(&mut rest)?;
            let place = match kind {
                END => return Ok(found),
                BOOT_SERVICES => return Err(MbiError::BootServices),
                CMDLINE => &mut found.cmdline,
                LOADER_NAME => &mut found.loader_name,
                MEMORY_MAP => &mut found.map,
                EFI_MAP => &mut found.efi,
                _ => continue,
            };
            if place.replace(body).is_some() {
                return Err(MbiError::RepeatedTag(kind));
            }
        }
    }

    /// The map: of EFI if there is one, since the other was derived from it.
    fn firmware_map(&self) -> Result<FirmwareMap<'m>, MbiError> {
        let parts = |body: &'m [u8], kind| {
            let size = raw::word(body, 0).zip(body.get(8..));
            size.ok_or(MbiError::BadTag(kind))
        };
        match (self.efi, self.map) {
            (Some(body), _) => {
                let (size, bytes) = parts(body, EFI_MAP)?;
                Ok(FirmwareMap::Efi(EfiMap::parse(bytes, size)?))
            }
            (None, Some(body)) => {
                let (size, bytes) = parts(body, MEMORY_MAP)?;
                Ok(FirmwareMap::Multiboot2 { bytes, size })
            }
            (None, None) => Err(MbiError::NoMemoryMap),
        }
    }
}

/// The string in the body of a tag.
fn string(body: Option<&[u8]>, text: Text) -> Result<&[u8], MbiError> {
    body.map_or(Ok(&[]), |body| {
        raw::until_nul(body).ok_or(MbiError::Unterminated(text))
    })
}

/// Reads the structure at `address` into `info`, which is empty.
pub(crate) fn read<'m>(
    info: &mut BootInfo<'m>,
    memory: &'m dyn Memory,
    address: u32,
) -> Result<(), MbiError> {
    let bad = MbiError::BadStructure(address);
    let at = u64::from(address);
    let head = memory::bytes(memory, at, 8)
        .filter(|_| address.is_multiple_of(8))
        .ok_or(bad)?;
    let len = raw::word(head, 0)
        .map(u64::from)
        .filter(|&len| len <= LONGEST)
        .ok_or(bad)?;
    let all = memory::bytes(memory, at, len)
        .and_then(|all| all.get(HEADER..))
        .ok_or(bad)?;
    let found = Found::gather(all)?;
    info.map = found.firmware_map()?;
    info.extras = Extras::Multiboot2(all);
    info.cmdline = string(found.cmdline, Text::Cmdline)?;
    info.loader_name = string(found.loader_name, Text::LoaderName)?;
    info.pieces
        .push(Span::sized(at, len).ok_or(bad)?)
        .map_err(|_| bad)?;
    for (number, tag) in tags(all).filter(|tag| tag.kind == MODULE).enumerate() {
        let field = |at| raw::word(tag.body, at).ok_or(MbiError::BadTag(MODULE));
        let (start, end) = (field(0)?, field(4)?);
        let text = string(tag.body.get(8..), Text::Module(number))?;
        info.push_module(start, end, text)?;
    }
    Ok(())
}

/// Adds the entries of a multiboot2 memory map, `size` bytes each, to `map`.
pub(crate) fn load_map(bytes: &[u8], size: u32, map: &mut MemoryMap) -> Result<(), MapError> {
    /// Base, length and type, and 4 bytes without meaning.
    const LEAST: usize = 24;
    let bad = MapError::BadEntrySize(size);
    let size = usize::try_from(size).map_err(|_| bad)?;
    if size < LEAST || !bytes.len().is_multiple_of(size) {
        return Err(bad);
    }
    bytes
        .chunks_exact(size)
        .try_for_each(|entry| load_entry(entry, bad, map))
}
