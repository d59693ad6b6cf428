//! Reader of the handoff: the multiboot2 information that the visor left for the loader.
//!
//! Tag layouts: Multiboot2 specification 2.0, section 3.6.

use crate::LoadError;
use crate::area::{Area, HANDOFF, LOW_END};
use crate::bytes::{index, put, u32_at, u64_at};
use ept::addr::{PAGE, Span};

pub(crate) const END: u32 = 0;
pub(crate) const COMMAND_LINE: u32 = 1;
pub(crate) const LOADER_NAME: u32 = 2;
pub(crate) const MODULE: u32 = 3;
pub(crate) const MEMORY_INFO: u32 = 4;
pub(crate) const MEMORY_MAP: u32 = 6;
pub(crate) const FRAMEBUFFER: u32 = 8;
pub(crate) const EFI64: u32 = 12;
pub(crate) const ACPI_OLD: u32 = 14;
pub(crate) const ACPI_NEW: u32 = 15;
pub(crate) const EFI_MAP: u32 = 17;
pub(crate) const LOAD_BASE: u32 = 21;

/// E820 type of RAM that its finder may use.
pub(crate) const RAM: u32 = 1;
/// E820 type of memory that nobody but its owner may use.
const RESERVED: u32 = 2;
/// EFI memory types that hold nothing of the firmware's: loader code and data, conventional.
const EFI_FREE: [u32; 3] = [1, 2, 7];

/// A checked handoff.
#[derive(Clone, Copy, Debug)]
pub struct Handoff<'h> {
    bytes: &'h [u8],
    area: Area,
    /// RAM that the host is not told of.
    hidden: Span,
}

/// One tag: its type, its bytes from the type on, and where they are in the structure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tag<'h> {
    pub(crate) kind: u32,
    pub(crate) bytes: &'h [u8],
    pub(crate) offset: usize,
}

/// A file that the boot loader loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Module<'h> {
    /// Where it is.
    pub span: Span,
    /// Its string, uncooked and without the zero.
    pub string: &'h [u8],
}

/// What a kernel is told that it was started by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Firmware {
    Bios,
    Efi,
}

/// One entry of the firmware's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapEntry {
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) kind: u32,
}

impl MapEntry {
    /// What is left of RAM before `hidden`, what is reserved of it, and what is left after; of other
    /// memory everything is left before. Empty pieces are pieces too.
    fn without(self, hidden: Span) -> [Self; 3] {
        let end = self.base.saturating_add(self.len);
        let kept = if self.kind == RAM { hidden } else { Span::default() };
        let (from, to) = if kept.is_empty() {
            (end, end)
        } else {
            let within = |at: u64| at.clamp(self.base, end);
            (within(kept.start()), within(kept.end()))
        };
        let piece = |base, end, kind| Self { base, len: end - base, kind };
        [piece(self.base, from, self.kind), piece(from, to, RESERVED), piece(to, end, self.kind)]
    }

    /// As Linux's `boot_e820_entry`: base, length and type.
    pub(crate) fn e820(&self) -> [u8; 20] {
        let mut entry = [0; 20];
        put(&mut entry, 0, &self.base.to_le_bytes());
        put(&mut entry, 8, &self.len.to_le_bytes());
        put(&mut entry, 16, &self.kind.to_le_bytes());
        entry
    }
}

/// The tags of a structure, its end tag included, up to the first that is malformed.
struct Tags<'h> {
    bytes: &'h [u8],
    at: Option<usize>,
}

impl<'h> Iterator for Tags<'h> {
    type Item = Tag<'h>;

    fn next(&mut self) -> Option<Tag<'h>> {
        let offset = self.at.take()?;
        let kind = u32_at(self.bytes, offset)?;
        let size = index(u64::from(u32_at(self.bytes, offset.checked_add(4)?)?));
        let end = offset.checked_add(size)?;
        let bytes = self.bytes.get(offset..end).filter(|tag| tag.len() >= 8)?;
        self.at = (kind != END).then_some(end.next_multiple_of(8));
        Some(Tag { kind, bytes, offset })
    }
}

impl<'h> Handoff<'h> {
    /// Checks the structure that begins `bytes`, the handoff part of `area`.
    ///
    /// # Errors
    /// [`LoadError::Handoff`] for a structure or tag that is cut short or inverted,
    /// [`LoadError::ModuleInArea`] for a module that the loader's own memory overlaps.
    pub fn parse(bytes: &'h [u8], area: Area) -> Result<Self, LoadError> {
        let total = u32_at(bytes, 0).map(|total| index(u64::from(total)));
        let bytes = total.and_then(|total| bytes.get(..total)).ok_or(LoadError::Handoff(0))?;
        let handoff = Self { bytes, area, hidden: Span::default() };
        let mut last = None;
        for tag in handoff.tags() {
            if !is_sound(&tag) {
                return Err(LoadError::Handoff(tag.offset));
            }
            last = Some(tag);
        }
        match last {
            Some(Tag { kind: END, .. }) => {}
            Some(tag) => return Err(LoadError::Handoff(tag.offset)),
            None => return Err(LoadError::Handoff(8)),
        }
        let inside = handoff.modules().position(|module| module.span.overlaps(area.span()));
        inside.map_or(Ok(handoff), |number| Err(LoadError::ModuleInArea(number)))
    }

    /// The host's kernel: the first module.
    ///
    /// # Errors
    /// [`LoadError::NoKernel`] without modules.
    pub fn kernel(&self) -> Result<Module<'h>, LoadError> {
        self.modules().next().ok_or(LoadError::NoKernel)
    }

    /// The loader area, which the structure lies in.
    #[must_use]
    pub const fn area(&self) -> Area {
        self.area
    }

    /// Every tag, the end tag included.
    pub(crate) fn tags(&self) -> impl Iterator<Item = Tag<'h>> {
        Tags { bytes: self.bytes, at: Some(8) }
    }

    /// The first tag of type `kind`.
    pub(crate) fn tag(&self, kind: u32) -> Option<Tag<'h>> {
        self.tags().find(|tag| tag.kind == kind)
    }

    /// Physical address of the byte at `offset`.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.area
            .span()
            .start()
            .saturating_add(HANDOFF)
            .saturating_add(u64::try_from(offset).unwrap_or(u64::MAX))
    }

    /// The host kernel's string, uncooked.
    pub(crate) fn command_line(&self) -> &'h [u8] {
        self.string(COMMAND_LINE)
    }

    /// The name of the boot loader that started the visor; empty when it gave none.
    pub(crate) fn loader_name(&self) -> &'h [u8] {
        self.string(LOADER_NAME)
    }

    fn string(&self, kind: u32) -> &'h [u8] {
        self.tag(kind).and_then(|tag| text(tag.bytes, 8)).unwrap_or_default()
    }

    /// The modules; the first is the host's kernel.
    pub(crate) fn modules(&self) -> impl Iterator<Item = Module<'h>> {
        self.tags().filter(|tag| tag.kind == MODULE).filter_map(|tag| module(tag.bytes))
    }

    /// The same handoff, but that its map reserves the RAM in `hidden`.
    pub(crate) const fn without(self, hidden: Span) -> Self {
        Self { hidden, ..self }
    }

    /// KiB of RAM below and above 1 MiB, if the boot loader told.
    pub(crate) fn sizes(&self) -> Option<(u32, u32)> {
        let tag = self.tag(MEMORY_INFO)?.bytes;
        let (low, high) = (u32_at(tag, 8)?, u32_at(tag, 12)?);
        let end = (!self.hidden.is_empty()).then(|| self.hidden.start() >> 10);
        let end = end.and_then(|end| u32::try_from(end).ok());
        Some((low.min(end.unwrap_or(low)), high))
    }

    /// The firmware's memory map, as the host sees it.
    pub(crate) fn map(&self) -> impl Iterator<Item = MapEntry> + use<'h> {
        let hidden = self.hidden;
        let tag = self.tag(MEMORY_MAP).map(|tag| tag.bytes).unwrap_or_default();
        entries(tag, 8, 16)
            .filter_map(|entry| {
                let (base, len) = (u64_at(entry, 0)?, u64_at(entry, 8)?);
                let kind = u32_at(entry, 16)?;
                Some(MapEntry { base, len, kind })
            })
            .flat_map(move |entry| entry.without(hidden))
            .filter(|piece| piece.len > 0)
    }

    /// Free RAM below 4 GiB in whole pages, neighbours joined.
    pub(crate) fn ram(&self) -> impl Iterator<Item = Span> + use<'h> {
        joined(self.map().filter(|entry| entry.kind == RAM).filter_map(low))
    }

    /// RAM below 4 GiB that holds none of the tables that EFI firmware left in boot-services memory;
    /// without an EFI map all of [`Self::ram`].
    pub(crate) fn quiet_ram(&self) -> impl Iterator<Item = Span> + use<'h> {
        let tag = self.tag(EFI_MAP).map(|tag| tag.bytes);
        let efi = entries(tag.unwrap_or_default(), 8, 16).filter_map(|entry| {
            let kind = u32_at(entry, 0).filter(|kind| EFI_FREE.contains(kind))?;
            let len = u64_at(entry, 24)?.checked_mul(PAGE)?;
            low(MapEntry { base: u64_at(entry, 8)?, len, kind })
        });
        let plain = tag.is_none().then(|| self.ram());
        joined(efi).chain(plain.into_iter().flatten())
    }
}

/// Whether everything that is read from `tag` later is there.
fn is_sound(tag: &Tag<'_>) -> bool {
    match tag.kind {
        COMMAND_LINE | LOADER_NAME => text(tag.bytes, 8).is_some(),
        MODULE => module(tag.bytes).is_some(),
        MEMORY_MAP => u32_at(tag.bytes, 8).is_some_and(|size| size >= 24),
        EFI_MAP => u32_at(tag.bytes, 8).is_some_and(|size| size >= 40),
        FRAMEBUFFER => tag.bytes.len() >= 32,
        EFI64 => tag.bytes.len() >= 16,
        _ => true,
    }
}

/// The bytes of the zero-terminated string at `at`.
fn text(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let bytes = bytes.get(at..)?;
    bytes.get(..bytes.iter().position(|&byte| byte == 0)?)
}

fn module(tag: &[u8]) -> Option<Module<'_>> {
    let (start, end) = (u32_at(tag, 8)?, u32_at(tag, 12)?);
    Some(Module { span: Span::new(start.into(), end.into())?, string: text(tag, 16)? })
}

/// The fixed-size entries of a map tag: their size is the number at `size_at`, they begin at `first`.
fn entries(tag: &[u8], size_at: usize, first: usize) -> impl Iterator<Item = &[u8]> {
    let size = u32_at(tag, size_at).map_or(1, |size| index(u64::from(size)).max(1));
    tag.get(first..).unwrap_or_default().chunks_exact(size)
}

/// The whole pages of `entry` below 4 GiB.
fn low(entry: MapEntry) -> Option<Span> {
    let end = entry.base.saturating_add(entry.len).min(LOW_END);
    Some(Span::new(entry.base, end)?.shrink_to(PAGE)).filter(|span| !span.is_empty())
}

/// `spans` with each run of neighbours made one.
fn joined(spans: impl Iterator<Item = Span>) -> impl Iterator<Item = Span> {
    let mut spans = spans.peekable();
    core::iter::from_fn(move || {
        let mut span = spans.next()?;
        while let Some(next) = spans.next_if(|next| next.start() == span.end()) {
            span = Span::new(span.start(), next.end())?;
        }
        Some(span)
    })
}
