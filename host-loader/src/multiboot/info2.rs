//! The multiboot2 information for the kernel: the handoff, with the modules where they are by now.

use crate::LoadError;
use crate::bytes::put;
use crate::handoff::{END, LOAD_BASE, MODULE};
use crate::layout::Layout;
use crate::scratch::Scratch;

const HEADER: usize = 8;
/// A tag's type and size.
const PREFIX: usize = 8;

/// Writes it; its physical address. `load_base` is where the image of a relocatable kernel went.
pub(super) fn write(
    layout: &Layout<'_, '_>,
    load_base: Option<u64>,
    scratch: &mut Scratch<'_>,
) -> Result<u32, LoadError> {
    let copied = || {
        layout
            .handoff
            .tags()
            .filter(|tag| !matches!(tag.kind, END | MODULE))
    };
    let size_of = |payload: usize| (PREFIX + payload).next_multiple_of(8);
    let copies: usize = copied()
        .map(|tag| tag.bytes.len().next_multiple_of(8))
        .sum();
    let files: usize = layout
        .modules()
        .map(|module| size_of(8 + module.string.len() + 1))
        .sum();
    let base = load_base.map_or(0, |_| size_of(4));
    let total = HEADER + copies + files + base + PREFIX;
    let piece = scratch.piece(total, 8)?;

    put(piece.bytes, 0, &word(total)?);
    let mut at = HEADER;
    for tag in copied() {
        put(piece.bytes, at, tag.bytes);
        at += tag.bytes.len().next_multiple_of(8);
    }
    for module in layout.modules() {
        let payload = 8 + module.string.len() + 1;
        put(piece.bytes, at, &MODULE.to_le_bytes());
        put(piece.bytes, at + 4, &word(PREFIX + payload)?);
        put(piece.bytes, at + 8, &address(module.span.start())?);
        put(piece.bytes, at + 12, &address(module.span.end())?);
        put(piece.bytes, at + 16, module.string);
        at += size_of(payload);
    }
    if let Some(base) = load_base {
        put(piece.bytes, at, &LOAD_BASE.to_le_bytes());
        put(piece.bytes, at + 4, &word(PREFIX + 4)?);
        put(piece.bytes, at + 8, &address(base)?);
        at += size_of(4);
    }
    put(piece.bytes, at + 4, &word(PREFIX)?);
    Ok(piece.at)
}

fn word(number: usize) -> Result<[u8; 4], LoadError> {
    u32::try_from(number)
        .map(u32::to_le_bytes)
        .map_err(|_| LoadError::ScratchFull)
}

fn address(number: u64) -> Result<[u8; 4], LoadError> {
    u32::try_from(number)
        .map(u32::to_le_bytes)
        .map_err(|_| LoadError::ScratchFull)
}
