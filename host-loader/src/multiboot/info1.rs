//! The multiboot1 information for the kernel (Multiboot Specification 0.6.96, section 3.3).

use crate::LoadError;
use crate::bytes::put;
use crate::handoff::{Handoff, LOADER_NAME};
use crate::layout::Layout;
use crate::scratch::Scratch;

/// Up to the end of the VBE fields, which are left zero.
const SIZE: usize = 88;
const MODULE: usize = 16;
const MAP_ENTRY: usize = 24;
/// The size that a map entry gives of itself leaves out the field that holds it.
const MAP_ENTRY_REST: u32 = 20;

const HAS_MEMORY: u32 = 1;
const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MAP: u32 = 1 << 6;
const HAS_LOADER_NAME: u32 = 1 << 9;

/// Writes it; its physical address.
pub(super) fn write(layout: &Layout<'_, '_>, scratch: &mut Scratch<'_>) -> Result<u32, LoadError> {
    let handoff = layout.handoff;
    let line = scratch.string(handoff.command_line())?;
    let loader_name = scratch.string(handoff.loader_name())?;
    let list = module_list(layout, scratch)?;
    let (map, map_len) = map(handoff, scratch)?;
    let mut flags = HAS_COMMAND_LINE | HAS_MODULES | HAS_MAP;
    let info = scratch.piece(SIZE, 8)?;
    if let Some((lower, upper)) = handoff.sizes() {
        flags |= HAS_MEMORY;
        put(info.bytes, 4, &lower.to_le_bytes());
        put(info.bytes, 8, &upper.to_le_bytes());
    }
    if handoff.tag(LOADER_NAME).is_some() {
        flags |= HAS_LOADER_NAME;
        put(info.bytes, 64, &loader_name.to_le_bytes());
    }
    let count = u32::try_from(layout.modules().count()).map_err(|_| LoadError::Modules)?;
    put(info.bytes, 0, &flags.to_le_bytes());
    put(info.bytes, 16, &line.to_le_bytes());
    put(info.bytes, 20, &count.to_le_bytes());
    put(info.bytes, 24, &list.to_le_bytes());
    put(info.bytes, 44, &map_len.to_le_bytes());
    put(info.bytes, 48, &map.to_le_bytes());
    Ok(info.at)
}

fn module_list(layout: &Layout<'_, '_>, scratch: &mut Scratch<'_>) -> Result<u32, LoadError> {
    let address = |at: u64| u32::try_from(at).map_err(|_| LoadError::ScratchFull);
    let mut strings = [0; crate::MODULES];
    for (place, module) in strings.iter_mut().zip(layout.modules()) {
        *place = scratch.string(module.string)?;
    }
    let list = scratch.piece(layout.modules().count() * MODULE, 8)?;
    for ((entry, module), string) in
        list.bytes.chunks_exact_mut(MODULE).zip(layout.modules()).zip(strings)
    {
        put(entry, 0, &address(module.span.start())?.to_le_bytes());
        put(entry, 4, &address(module.span.end())?.to_le_bytes());
        put(entry, 8, &string.to_le_bytes());
    }
    Ok(list.at)
}

/// The memory map's address and length.
fn map(handoff: Handoff<'_>, scratch: &mut Scratch<'_>) -> Result<(u32, u32), LoadError> {
    let len = handoff.map().count() * MAP_ENTRY;
    let piece = scratch.piece(len, 8)?;
    for (place, entry) in piece.bytes.chunks_exact_mut(MAP_ENTRY).zip(handoff.map()) {
        put(place, 0, &MAP_ENTRY_REST.to_le_bytes());
        put(place, 4, &entry.e820());
    }
    let len = u32::try_from(len).map_err(|_| LoadError::ScratchFull)?;
    Ok((piece.at, len))
}
