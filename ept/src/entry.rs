//! The format of EPT entries (SDM vol. 3, "EPT Translation Mechanism", 29.3.2, tables 29-1 to
//! 29-7).

use crate::addr::{Frame, HUGE, LARGE, PAGE, Span};
use crate::mtrr::MemoryType;

/// Entries in a table.
pub const ENTRIES: u64 = 512;

/// Which of the four tables on the way to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// PML4: entries of 512 GiB, never leaves.
    Pml4,
    /// Page-directory-pointer table: entries of 1 GiB.
    Pdpt,
    /// Page directory: entries of 2 MiB.
    Pd,
    /// Page table: entries of 4 KiB, always leaves.
    Pt,
}

impl Level {
    /// Bytes that one entry translates.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Pml4 => 512 * HUGE,
            Self::Pdpt => HUGE,
            Self::Pd => LARGE,
            Self::Pt => PAGE,
        }
    }

    /// The level of the tables that entries of this level lead to.
    #[must_use]
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::Pml4 => Some(Self::Pdpt),
            Self::Pdpt => Some(Self::Pd),
            Self::Pd => Some(Self::Pt),
            Self::Pt => None,
        }
    }

    /// Index of the entry for `address`.
    #[must_use]
    pub fn index(self, address: u64) -> usize {
        usize::try_from(address / self.bytes() % ENTRIES).unwrap_or_default()
    }

    /// The bits that make an entry of this level a leaf; `None` where there are no leaves.
    const fn leaf_bits(self) -> Option<u64> {
        match self {
            Self::Pml4 => None,
            Self::Pdpt | Self::Pd => Some(LARGE_PAGE),
            Self::Pt => Some(0),
        }
    }
}

/// What accesses a leaf permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Data reads.
    Read,
    /// Data reads and writes.
    ReadWrite,
    /// Data reads and instruction fetches.
    ReadExecute,
    /// Everything.
    All,
}

impl Rights {
    const EVERY: [Self; 4] = [Self::Read, Self::ReadWrite, Self::ReadExecute, Self::All];

    const fn bits(self) -> u64 {
        match self {
            Self::Read => 0b001,
            Self::ReadWrite => 0b011,
            Self::ReadExecute => 0b101,
            Self::All => RWX,
        }
    }
}

/// A translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First frame of the page.
    pub frame: Frame,
    /// Permitted accesses.
    pub rights: Rights,
    /// The type that the processor combines with the guest's PAT, as it does with an MTRR's.
    pub memory_type: MemoryType,
}

/// What an entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// No translation.
    Absent,
    /// Leads to the next table. Permits everything: rights are the leaf's alone.
    Table(Frame),
    /// Translates.
    Leaf(Leaf),
}

/// Permits reads, writes and fetches.
const RWX: u64 = 0b111;
/// Makes a PDPT or PD entry a leaf.
const LARGE_PAGE: u64 = 1 << 7;
/// Bits 51:12.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

impl Entry {
    /// The entry in the processor's format; `None` when it cannot exist at `level`: a leaf in the
    /// PML4 or one that is not aligned to its size, or a table below a page table.
    #[must_use]
    pub fn encode(self, level: Level) -> Option<u64> {
        match self {
            Self::Absent => Some(0),
            Self::Table(frame) => level.below().map(|_| frame.base() | RWX),
            Self::Leaf(leaf) => {
                let base = Some(leaf.frame.base()).filter(|b| b.is_multiple_of(level.bytes()))?;
                let kind = u64::from(leaf.memory_type.number()) << 3;
                Some(base | level.leaf_bits()? | kind | leaf.rights.bits())
            }
        }
    }

    /// The meaning of `raw` at `level`; `None` for every bit pattern that [`Entry::encode`] never
    /// gives, such as reserved or ignored bits set.
    #[must_use]
    pub fn decode(raw: u64, level: Level) -> Option<Self> {
        let frame = Frame::at(raw & FRAME)?;
        let [low, ..] = (raw >> 3 & 0b111).to_le_bytes();
        let leaf = |rights| {
            let memory_type = MemoryType::from_number(low)?;
            Some(Self::Leaf(Leaf {
                frame,
                rights,
                memory_type,
            }))
        };
        let rights = Rights::EVERY
            .into_iter()
            .find(|rights| rights.bits() == raw & RWX);
        [
            Some(Self::Absent),
            Some(Self::Table(frame)),
            rights.and_then(leaf),
        ]
        .into_iter()
        .flatten()
        .find(|entry| entry.encode(level) == Some(raw))
    }
}

/// The EPTP for the tables whose PML4 is `root`: walked through write-back memory, in 4 steps,
/// without accessed and dirty flags, which nobody reads (SDM vol. 3, "Extended-Page-Table Pointer",
/// 25.6.11).
#[must_use]
pub const fn pointer(root: Frame) -> u64 {
    const WRITE_BACK: u64 = 6;
    const STEPS: u64 = (4 - 1) << 3;
    root.base() | STEPS | WRITE_BACK
}

/// A table on the way to a page: where it lies, what it translates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) table: Frame,
    pub(crate) level: Level,
    /// First address that it translates.
    pub(crate) base: u64,
}

impl Place {
    /// `table`, to which the entry here for `block` leads.
    pub(crate) fn below(self, table: Frame, block: Span) -> Option<Self> {
        Some(Self {
            table,
            level: self.level.below()?,
            base: block.start(),
        })
    }

    /// Indexes of the entries that concern `span`, each with the addresses that it translates.
    pub(crate) fn blocks(self, span: Span) -> impl Iterator<Item = (usize, Span)> {
        let bytes = self.level.bytes();
        let first = span.start().saturating_sub(self.base) / bytes;
        let end = span.end().saturating_sub(self.base).div_ceil(bytes);
        (first..end.min(ENTRIES))
            .filter_map(move |index| {
                let block = Span::sized(self.base + index * bytes, bytes)?;
                Some((usize::try_from(index).ok()?, block))
            })
            .filter(move |(_, block)| block.overlaps(span))
    }
}
