//! The multiboot2 header (Multiboot2 Specification 2.0, section 3.1).

use super::header1::flat;
use super::{PAGES, Relocation, Request};
use crate::LoadError;
use crate::bytes::{index, u16_at, u32_at};
use crate::handoff::{FRAMEBUFFER, Firmware, Handoff, LOAD_BASE, MODULE};
use crate::plan::Protocol;
use ept::addr::Span;

const MAGIC: u32 = 0xe852_50d6;
const ARCHITECTURE_386: u32 = 0;
const WITHIN: usize = 32768;

const END: u16 = 0;
const INFORMATION: u16 = 1;
const ADDRESSES: u16 = 2;
const ENTRY: u16 = 3;
const CONSOLE: u16 = 4;
const SCREEN: u16 = 5;
const ALIGN_MODULES: u16 = 6;
const EFI_ENTRIES: [u16; 2] = [8, 9];
const RELOCATABLE: u16 = 10;
/// Flag of a tag that a loader may ignore.
const OPTIONAL: u16 = 1;

/// The header of `file`, if it has one.
pub(super) fn find(file: &[u8], handoff: Handoff<'_>) -> Option<Result<Request, LoadError>> {
    let last = file.len().min(WITHIN).saturating_sub(15);
    let at = (0..last).step_by(8).find(|&at| is_header(file, at))?;
    Some(read(file, at, handoff))
}

fn is_header(file: &[u8], at: usize) -> bool {
    let word = |offset| u32_at(file, at + offset).unwrap_or(0);
    let sum = word(0).wrapping_add(word(4)).wrapping_add(word(8)).wrapping_add(word(12));
    word(0) == MAGIC && word(4) == ARCHITECTURE_386 && sum == 0
}

/// One tag of the header.
struct Tag<'k> {
    kind: u16,
    flags: u16,
    bytes: &'k [u8],
}

impl Tag<'_> {
    fn word(&self, at: usize) -> Result<u32, LoadError> {
        u32_at(self.bytes, at).ok_or(LoadError::Truncated)
    }

    const fn is_optional(&self) -> bool {
        self.flags & OPTIONAL != 0
    }
}

fn read(file: &[u8], at: usize, handoff: Handoff<'_>) -> Result<Request, LoadError> {
    let len = u32_at(file, at + 8).ok_or(LoadError::Truncated)?;
    let header = at.checked_add(index(len.into())).and_then(|end| file.get(at..end));
    let header = header.ok_or(LoadError::Truncated)?;
    let mut request = Request::plain(Protocol::Multiboot2);
    let mut place = 16_usize;
    loop {
        let tag = tag(header, place).ok_or(LoadError::Truncated)?;
        if tag.kind == END {
            return Ok(request);
        }
        place = (place + tag.bytes.len()).next_multiple_of(8);
        if EFI_ENTRIES.contains(&tag.kind) {
            request.firmware = Firmware::Bios;
        }
        match apply(&mut request, &tag, at, handoff) {
            Err(_) if tag.is_optional() => {}
            outcome => outcome?,
        }
    }
}

fn tag(header: &[u8], at: usize) -> Option<Tag<'_>> {
    let size = index(u32_at(header, at.checked_add(4)?)?.into());
    let bytes = header.get(at..at.checked_add(size)?).filter(|bytes| bytes.len() >= 8)?;
    Some(Tag { kind: u16_at(bytes, 0)?, flags: u16_at(bytes, 2)?, bytes })
}

/// Adds what `tag` asks for to `request`; `at` is the header's file offset.
fn apply(
    request: &mut Request,
    tag: &Tag<'_>,
    at: usize,
    handoff: Handoff<'_>,
) -> Result<(), LoadError> {
    match tag.kind {
        INFORMATION => return informed(tag, handoff),
        ADDRESSES => {
            let words = [tag.word(8)?, tag.word(12)?, tag.word(16)?, tag.word(20)?];
            request.flat = Some(flat(at, words)?);
        }
        ENTRY => request.entry = Some(tag.word(8)?),
        // A console is there whatever the tag wants of it: the machine's own.
        CONSOLE => {}
        SCREEN if handoff.tag(FRAMEBUFFER).is_some() => {}
        ALIGN_MODULES => request.align = PAGES,
        RELOCATABLE => request.relocation = Some(relocation(tag)?),
        other => return Err(LoadError::HeaderTag(other)),
    }
    Ok(())
}

/// Checks an information request: whatever is asked for must be there. Modules may be none.
fn informed(tag: &Tag<'_>, handoff: Handoff<'_>) -> Result<(), LoadError> {
    let (wanted, _) = tag.bytes.get(8..).unwrap_or_default().as_chunks::<4>();
    let wanted = wanted.iter().map(|bytes| u32::from_le_bytes(*bytes));
    let mut missing =
        wanted.filter(|&kind| !matches!(kind, MODULE | LOAD_BASE) && handoff.tag(kind).is_none());
    missing.next().map_or(Ok(()), |kind| Err(LoadError::Information(kind)))
}

fn relocation(tag: &Tag<'_>) -> Result<Relocation, LoadError> {
    // The highest address is that of the last byte.
    let end = u64::from(tag.word(12)?) + 1;
    let within = Span::new(tag.word(8)?.into(), end).ok_or(LoadError::Truncated)?;
    let align = u64::from(tag.word(16)?.max(1));
    if align.is_power_of_two() {
        Ok(Relocation { within, align })
    } else {
        Err(LoadError::HeaderTag(RELOCATABLE))
    }
}
