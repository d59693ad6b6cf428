//! What an entry of the host's makes reachable.

use crate::addr::Frame;
use crate::entry::Level;

/// What an entry makes reachable, at most: whatever a processor might make of bits that are
/// reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing.
    Nothing,
    /// The block that begins with this frame, by a leaf of this level.
    Leaf(Frame, Level),
    /// What hangs from this table, which is of this level.
    Table(Frame, Level),
}

impl Meaning {
    /// What `raw` at `level` makes reachable, on a processor with `width` physical-address bits
    /// (SDM vol. 3, 29.3.2 and 29.3.3.1).
    ///
    /// Nothing: what permits no access, or writes without reads, and what names an address that no
    /// processor has. Hosts use such entries to mark device memory. The visor offers no mode-based
    /// control of execution, under which bit 10 alone would permit an access, and nothing else that
    /// gives a meaning to bits 63:52.
    ///
    /// Other reserved bits are taken as if they were ignored, which reaches more than the
    /// misconfiguration that they are: memory types, low bits of the address of a large page, low
    /// bits of an entry that leads to a table.
    #[must_use]
    #[inline]
    pub(super) fn of(raw: u64, level: Level, width: u8) -> Self {
        let address = raw & ADDRESS;
        if raw & 0b111 == 0 || raw & 0b011 == 0b010 || address >> width.min(52) != 0 {
            return Self::Nothing;
        }
        let leaf = match level {
            Level::Pml4 => false,
            Level::Pdpt | Level::Pd => raw & LARGE_PAGE != 0,
            Level::Pt => true,
        };
        match level.below() {
            Some(below) if !leaf => Self::Table(Frame::containing(address), below),
            Some(_) | None => {
                let start = address - address % level.bytes();
                Self::Leaf(Frame::containing(start), level)
            }
        }
    }

    /// Whether `old` and `new` surely mean the same, of whatever level: both permit reads, and differ
    /// only in other rights and in bits that are ignored or flags.
    #[must_use]
    pub(super) const fn stays(old: u64, new: u64) -> bool {
        const READ: u64 = 1;
        old & new & READ != 0 && (old ^ new) & !FREE == 0
    }
}

/// Rights other than to read, flags, and ignored bits.
const FREE: u64 = 0xfff0_0000_0000_0f06;
/// Bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Makes a PDPT or PD entry a leaf.
const LARGE_PAGE: u64 = 1 << 7;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{HUGE, LARGE, PAGE};
    use proptest::prelude::*;

    const LEVELS: [Level; 4] = [Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt];
    const AT: u64 = 3 * HUGE + 5 * LARGE + 7 * PAGE;

    fn leaf(start: u64, level: Level) -> Meaning {
        Meaning::Leaf(Frame::at(start).unwrap(), level)
    }

    fn table(level: Level) -> Meaning {
        Meaning::Table(Frame::at(AT).unwrap(), level)
    }

    #[test]
    fn an_entry_leads_to_a_table_or_a_page_by_its_level_and_bit_7() {
        for (low, level, meaning) in [
            (0x07, Level::Pml4, table(Level::Pdpt)),
            (0x07, Level::Pdpt, table(Level::Pd)),
            (0x07, Level::Pd, table(Level::Pt)),
            (0x07, Level::Pt, leaf(AT, Level::Pt)),
            (0x87, Level::Pt, leaf(AT, Level::Pt)),
            (0x87, Level::Pml4, table(Level::Pdpt)),
            // The low bits of the address are reserved.
            (0x87, Level::Pd, leaf(3 * HUGE + 5 * LARGE, Level::Pd)),
            (0x87, Level::Pdpt, leaf(3 * HUGE, Level::Pdpt)),
            // As is all but bit 7 of bits 7:3 where a table follows, and memory type 7.
            (0x7f, Level::Pd, table(Level::Pt)),
            (0x3f, Level::Pt, leaf(AT, Level::Pt)),
        ] {
            assert_eq!(Meaning::of(AT | low, level, 40), meaning, "{low:#x} {level:?}");
        }
    }

    #[test]
    fn every_way_to_permit_an_access_counts_and_writes_without_reads_do_not() {
        for level in LEVELS {
            for (low, something) in
                [(0, false), (1, true), (2, false), (3, true), (4, true), (5, true), (6, false)]
            {
                let meaning = Meaning::of(AT | low, level, 40);
                assert_eq!(meaning != Meaning::Nothing, something, "{low} {level:?}");
            }
            // What KVM writes for device memory, and to mark an entry as being changed.
            for raw in [0xfff8_0000_fee0_0006, 0x5a0] {
                assert_eq!(Meaning::of(raw, level, 40), Meaning::Nothing);
            }
        }
    }

    #[test]
    fn an_address_beyond_the_processors_is_nowhere() {
        for level in LEVELS {
            assert_eq!(Meaning::of(1 << 40 | 7, level, 40), Meaning::Nothing);
            assert_eq!(Meaning::of(1 << 51 | 7, level, 40), Meaning::Nothing);
            assert_ne!(Meaning::of(1 << 39 | 7, level, 40), Meaning::Nothing);
            assert_ne!(Meaning::of(1 << 51 | 7, level, 52), Meaning::Nothing);
        }
    }

    #[test]
    fn what_can_be_read_stays_without_other_rights_and_flags() {
        for new in [AT | 0x35, AT | 0x31, AT | 0x337, AT | 0xfff0_0000_0000_0f31] {
            assert!(Meaning::stays(AT | 0x37, new), "{new:#x}");
        }
        for new in [AT | 0x36, AT | 0xb7, (AT + PAGE) | 0x37, AT | 0x27, AT | 1 << 51 | 0x37, 0] {
            assert!(!Meaning::stays(AT | 0x37, new), "{new:#x}");
        }
        assert!(!Meaning::stays(AT | 0x36, AT | 0x32));
    }

    proptest! {
        #[test]
        fn flags_and_ignored_bits_do_not_matter(raw in any::<u64>(), flags in any::<u64>()) {
            // Accessed, dirty, execution by users, and bits 63:52 and 11.
            let flags = flags & 0xfff0_0000_0000_0f00;
            for level in LEVELS {
                prop_assert_eq!(Meaning::of(raw, level, 40), Meaning::of(raw ^ flags, level, 40));
            }
        }

        #[test]
        fn what_stays_means_the_same_at_every_level(
            old in any::<u64>(), change in any::<u64>(), bit in 0..64_u32, far in any::<bool>(),
        ) {
            // One bit, or many; an address that there is, or not.
            let old = if far { old } else { old & !(0xfff << 40) };
            for new in [old ^ 1 << bit, old ^ change, old ^ change & FREE] {
                for level in LEVELS {
                    let same = Meaning::of(old, level, 40) == Meaning::of(new, level, 40);
                    prop_assert!(same || !Meaning::stays(old, new), "{old:#x} {new:#x} {level:?}");
                }
            }
        }
    }
}
