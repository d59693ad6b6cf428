//! A kernel as pieces of its file and the places they go to.

use crate::LoadError;
use crate::bytes::{array, index, length, u16_at, u32_at, u64_at};
use crate::layout::Layout;
use crate::plan::Step;
use ept::addr::Span;
use ept::list::List;

const SEGMENTS: usize = 16;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const LOADABLE: u32 = 1;
/// The largest file that a 32-bit loader can have loaded: keeps offsets far from overflow.
const FILE_MAX: u64 = 1 << 32;

/// A piece of the file and where it goes; `memory` is at least as long as `file`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) file: Span,
    pub(crate) memory: Span,
}

/// What is loaded, at the addresses it was linked for.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    segments: List<Segment, SEGMENTS>,
    entry: u64,
}

/// Addresses in a multiboot header, for files that are not (or not to be treated as) ELF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flat {
    /// Where in the file the loaded part begins.
    pub(crate) offset: u64,
    /// Where its first byte goes.
    pub(crate) load: u32,
    /// One past where its last byte goes; 0: the rest of the file.
    pub(crate) load_end: u32,
    /// One past the last byte to be zeroed; 0: none.
    pub(crate) bss_end: u32,
}

impl Image {
    /// The image that a multiboot header describes by addresses.
    pub(crate) fn flat(file: &[u8], flat: &Flat, entry: u32) -> Result<Self, LoadError> {
        let rest = length(file).checked_sub(flat.offset).ok_or(LoadError::Truncated)?;
        let load = u64::from(flat.load);
        let end = if flat.load_end == 0 { load + rest } else { flat.load_end.into() };
        let len = end.checked_sub(load).ok_or(LoadError::Truncated)?;
        let file_span = Span::sized(flat.offset, len).ok_or(LoadError::Truncated)?;
        let memory = Span::new(load, end.max(flat.bss_end.into())).ok_or(LoadError::Truncated)?;
        let mut image = Self { segments: List::new(Segment::default()), entry: entry.into() };
        image.add(file, Segment { file: file_span, memory })?;
        Ok(image)
    }

    /// The image that an ELF executable describes (System V ABI, chapters 4 and 5).
    pub(crate) fn elf(file: &[u8]) -> Result<Self, LoadError> {
        let class = match array::<6>(file, 0) {
            Some([0x7f, b'E', b'L', b'F', 1, 1]) => Class::Elf32,
            Some([0x7f, b'E', b'L', b'F', 2, 1]) => Class::Elf64,
            Some(_) | None => return Err(LoadError::Elf),
        };
        if !matches!(u16_at(file, 18), Some(MACHINE_386 | MACHINE_X86_64)) {
            return Err(LoadError::Elf);
        }
        let headers = class.headers(file).ok_or(LoadError::Truncated)?;
        let mut image = Self { segments: List::new(Segment::default()), entry: headers.entry };
        for number in 0..headers.count {
            let at = headers.at.saturating_add(number.saturating_mul(headers.size));
            let header = file.get(at..).ok_or(LoadError::Truncated)?;
            if u32_at(header, 0).ok_or(LoadError::Truncated)? == LOADABLE {
                let load = class.load(header).ok_or(LoadError::Truncated)?;
                image.add(file, load.segment()?)?;
                // Only a kernel that is linked high needs this; elsewhere the two are equal.
                let inside = headers.entry.checked_sub(load.virt).filter(|&at| at < load.memory);
                if let Some(inside) = inside {
                    image.entry = load.phys.saturating_add(inside);
                }
            }
        }
        if image.segments.is_empty() { Err(LoadError::Elf) } else { Ok(image) }
    }

    fn add(&mut self, file: &[u8], segment: Segment) -> Result<(), LoadError> {
        if segment.file.end() > length(file) || segment.file.len() > segment.memory.len() {
            return Err(LoadError::Truncated);
        }
        if segment.memory.is_empty() {
            return Ok(());
        }
        self.segments.push(segment).map_err(|_| LoadError::Segments)
    }

    /// From the first byte of the lowest segment to the last of the highest.
    pub(crate) fn hull(&self) -> Span {
        let start = self.segments.iter().map(|segment| segment.memory.start()).min();
        let end = self.segments.iter().map(|segment| segment.memory.end()).max();
        start.zip(end).and_then(|(start, end)| Span::new(start, end)).unwrap_or_default()
    }

    /// The entry point `linked` (by default the file's own) after the hull went to `target`.
    pub(crate) fn entry(&self, linked: Option<u32>, target: Span) -> Result<u32, LoadError> {
        let entry = linked.map_or(self.entry, u64::from);
        if !self.segments.iter().any(|segment| segment.memory.contains(entry)) {
            return Err(LoadError::Entry(entry));
        }
        let moved = target.start() + (entry - self.hull().start());
        u32::try_from(moved).map_err(|_| LoadError::Entry(entry))
    }

    /// Adds the steps that load the file so that its hull is `target`.
    pub(crate) fn load(&self, layout: &mut Layout<'_, '_>, target: Span) -> Result<(), LoadError> {
        let (base, source) = (self.hull().start(), layout.kernel());
        for Segment { file, memory } in self.segments.iter() {
            let to = target.start() + (memory.start() - base);
            let from = Span::sized(source.start() + file.start(), file.len());
            let bss = Span::new(to + file.len(), to + memory.len());
            layout.fill(Step::Copy { from: from.ok_or(LoadError::Truncated)?, to })?;
            layout.fill(Step::Zero(bss.ok_or(LoadError::Truncated)?))?;
        }
        Ok(())
    }
}

/// ELF's two layouts of the same headers.
#[derive(Clone, Copy)]
enum Class {
    Elf32,
    Elf64,
}

/// The entry point and the table of program headers.
struct Headers {
    entry: u64,
    at: usize,
    size: usize,
    count: usize,
}

/// A program header of a loadable segment.
struct Load {
    offset: u64,
    virt: u64,
    phys: u64,
    stored: u64,
    memory: u64,
}

impl Class {
    fn headers(self, file: &[u8]) -> Option<Headers> {
        let (entry, at, rest) = match self {
            Self::Elf32 => (u32_at(file, 24)?.into(), u32_at(file, 28)?.into(), 42),
            Self::Elf64 => (u64_at(file, 24)?, u64_at(file, 32)?, 54),
        };
        let (size, count) = (u16_at(file, rest)?, u16_at(file, rest + 2)?);
        Some(Headers { entry, at: index(at), size: size.into(), count: count.into() })
    }

    fn load(self, header: &[u8]) -> Option<Load> {
        let [offset, virt, phys, stored, memory] = match self {
            Self::Elf32 => {
                let word = |at| u32_at(header, at).map(u64::from);
                [word(4)?, word(8)?, word(12)?, word(16)?, word(20)?]
            }
            Self::Elf64 => {
                let word = |at| u64_at(header, at);
                [word(8)?, word(16)?, word(24)?, word(32)?, word(40)?]
            }
        };
        Some(Load { offset, virt, phys, stored, memory })
    }
}

impl Load {
    fn segment(&self) -> Result<Segment, LoadError> {
        let outside = LoadError::NoRoomForKernel(self.phys, self.memory);
        let memory = Span::sized(self.phys, self.memory).ok_or(outside)?;
        let file = Span::sized(self.offset, self.stored).filter(|file| file.end() <= FILE_MAX);
        Ok(Segment { file: file.ok_or(LoadError::Truncated)?, memory })
    }
}
