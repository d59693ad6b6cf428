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

/// What accesses a leaf permits; each permits what the one before does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rights {
    /// Data reads.
    Read,
    /// Data reads and writes.
    ReadWrite,
    /// Everything.
    All,
}

impl Rights {
    const EVERY: [Self; 3] = [Self::Read, Self::ReadWrite, Self::All];

    const fn bits(self) -> u64 {
        match self {
            Self::Read => 0b001,
            Self::ReadWrite => 0b011,
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
    /// No translation, but there was this table, which a processor may still remember.
    Retired(Frame),
    /// Translates.
    Leaf(Leaf),
}

/// Permits reads, writes and fetches.
const RWX: u64 = 0b111;
/// Makes a PDPT or PD entry a leaf.
const LARGE_PAGE: u64 = 1 << 7;
/// Marks an absent entry, of which the processor ignores all other bits, as one with a table.
const KEPT: u64 = 1 << 3;
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
            Self::Retired(frame) => level.below().map(|_| frame.base() | KEPT),
            Self::Leaf(leaf) => {
                let base = Some(leaf.frame.base()).filter(|b| b.is_multiple_of(level.bytes()))?;
                let kind = u64::from(leaf.memory_type.number()) << 3;
                Some(base | level.leaf_bits()? | kind | leaf.rights.bits())
            }
        }
    }

    /// This entry without the rights of a leaf that `old` does not give, at the same frame.
    #[must_use]
    pub fn at_most(self, old: Leaf) -> Self {
        match self {
            Self::Leaf(leaf) if leaf.frame != old.frame => Self::Absent,
            Self::Leaf(leaf) => Self::Leaf(Leaf { rights: leaf.rights.min(old.rights), ..leaf }),
            Self::Absent | Self::Table(_) | Self::Retired(_) => self,
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
            Some(Self::Leaf(Leaf { frame, rights, memory_type }))
        };
        let rights = Rights::EVERY.into_iter().find(|rights| rights.bits() == raw & RWX);
        let tables = [Self::Absent, Self::Table(frame), Self::Retired(frame)];
        let mut entries = tables.into_iter().chain(rights.and_then(leaf));
        entries.find(|entry| entry.encode(level) == Some(raw))
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
        Some(Self { table, level: self.level.below()?, base: block.start() })
    }

    /// All that it translates.
    pub(crate) fn span(self) -> Span {
        Span::sized(self.base, ENTRIES * self.level.bytes()).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PHYSICAL_END;
    use proptest::prelude::*;
    use std::vec;

    const LEVELS: [Level; 4] = [Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt];

    fn any_entry() -> impl Strategy<Value = Entry> {
        let frame = (0..PHYSICAL_END, proptest::sample::select(vec![PAGE, LARGE, HUGE]))
            .prop_map(|(base, align)| Frame::containing(base & !(align - 1)));
        let leaf = (
            frame.clone(),
            proptest::sample::select(Rights::EVERY.to_vec()),
            proptest::sample::select(MemoryType::ALL.to_vec()),
        );
        prop_oneof![
            Just(Entry::Absent),
            frame.clone().prop_map(Entry::Table),
            frame.prop_map(Entry::Retired),
            leaf.prop_map(|(frame, rights, memory_type)| {
                Entry::Leaf(Leaf { frame, rights, memory_type })
            }),
        ]
    }

    fn may_exist(entry: Entry, level: Level) -> bool {
        match entry {
            Entry::Absent => true,
            Entry::Table(_) | Entry::Retired(_) => level != Level::Pt,
            Entry::Leaf(leaf) => level != Level::Pml4 && leaf.frame.base() % level.bytes() == 0,
        }
    }

    proptest! {
        #[test]
        fn every_entry_survives_the_hardware_format(entry in any_entry()) {
            for level in LEVELS {
                let raw = entry.encode(level);
                prop_assert_eq!(raw.is_some(), may_exist(entry, level));
                if let Some(raw) = raw {
                    prop_assert_eq!(Entry::decode(raw, level), Some(entry));
                }
            }
        }

        #[test]
        fn an_entry_with_any_bit_changed_is_another_or_none(entry in any_entry(), bit in 0..64_u32) {
            for level in LEVELS {
                if let Some(raw) = entry.encode(level) {
                    let changed = raw ^ (1_u64 << bit);
                    let decoded = Entry::decode(changed, level);
                    prop_assert_ne!(decoded, Some(entry));
                    prop_assert!(decoded.is_none_or(|e| e.encode(level) == Some(changed)));
                    // Bits 8 to 11 and 52 to 63 are flags that nobody sets.
                    prop_assert!(decoded.is_none() || !matches!(bit, 8..12 | 52..64));
                }
            }
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bits(raw in any::<u64>(), low in 0..0x200_u64) {
            for raw in [raw, raw & FRAME & !(HUGE - 1) | low] {
                for level in LEVELS {
                    if let Some(entry) = Entry::decode(raw, level) {
                        prop_assert_eq!(entry.encode(level), Some(raw));
                    }
                }
            }
        }
    }

    #[test]
    fn the_bits_are_those_of_the_manual() {
        let frame = Frame::containing(0x12_4000_0000);
        let leaf = |rights, memory_type| Entry::Leaf(Leaf { frame, rights, memory_type });
        for (entry, level, raw) in [
            (Entry::Table(frame), Level::Pml4, 0x12_4000_0007),
            (Entry::Table(frame), Level::Pd, 0x12_4000_0007),
            (leaf(Rights::All, MemoryType::Wb), Level::Pdpt, 0x12_4000_00b7),
            (leaf(Rights::Read, MemoryType::Uc), Level::Pd, 0x12_4000_0081),
            (leaf(Rights::ReadWrite, MemoryType::Wp), Level::Pt, 0x12_4000_002b),
        ] {
            assert_eq!(entry.encode(level), Some(raw), "{entry:?}");
        }
        assert_eq!(pointer(frame), 0x12_4000_001e);
    }

    #[test]
    fn the_index_is_that_of_the_block_that_holds_the_address() {
        let address = 3 << 39 | 5 << 30 | 7 << 21 | 9 << 12 | 11;
        assert_eq!(LEVELS.map(|level| level.index(address)), [3, 5, 7, 9]);
    }

    #[test]
    fn a_table_visits_the_blocks_that_share_a_byte_with_the_span() {
        let table = Frame::containing(0);
        let place = Place { table, level: Level::Pd, base: HUGE };
        let visited = |start, end| {
            let span = Span::new(start, end).unwrap();
            place.blocks(span).map(|(index, _)| index).collect::<vec::Vec<_>>()
        };
        assert_eq!(visited(HUGE + LARGE - 1, HUGE + 2 * LARGE + 1), [0, 1, 2]);
        assert_eq!(visited(HUGE + LARGE, HUGE + 2 * LARGE), [1]);
        assert_eq!(visited(0, HUGE + 1), [0]);
        assert_eq!(visited(2 * HUGE - 1, 4 * HUGE), [511]);
        assert!(visited(0, HUGE).is_empty() && visited(2 * HUGE, 3 * HUGE).is_empty());
        assert!(visited(HUGE + 5, HUGE + 5).is_empty());
    }
}
