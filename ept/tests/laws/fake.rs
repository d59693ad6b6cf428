//! Table memory that judges every store, and a processor that walks it and remembers.

use std::cell::Cell;
use std::collections::BTreeMap;

use ept::addr::{Frame, PAGE, Span};
use ept::ept01::{Flushed, TableMem, Tlb};
use ept::frames::FrameTable;

/// Where the fake's tables lie: outside everything that tests map on purpose.
const TABLES: u64 = 1 << 47;

/// Tables, and what must hold after each store.
#[derive(Debug)]
pub(crate) struct Fake {
    tables: Vec<Vec<u64>>,
    /// Tables that are linked: by number, log2 of the bytes of an entry and the first address.
    places: BTreeMap<usize, (u32, u64)>,
    /// Frames that may still be given.
    pub(crate) left: usize,
    /// Addresses at which no walk may ever arrive.
    pub(crate) secret: Vec<u64>,
    /// Removed or changed translations that a processor may still use.
    stale: BTreeMap<u64, Span>,
    /// Whether the tables are in use, so that what is removed must be flushed.
    pub(crate) live: bool,
    /// Stores so far.
    pub(crate) stores: usize,
    /// Reads so far.
    pub(crate) reads: Cell<usize>,
}

impl Fake {
    pub(crate) fn new(left: usize) -> Self {
        Self {
            tables: Vec::new(),
            places: BTreeMap::from([(0, (39, 0))]),
            left,
            secret: Vec::new(),
            stale: BTreeMap::new(),
            live: false,
            stores: 0,
            reads: Cell::new(0),
        }
    }

    /// Frames in use.
    pub(crate) fn used(&self) -> usize {
        self.places.len()
    }

    /// Frames given.
    pub(crate) fn given(&self) -> usize {
        self.tables.len()
    }

    pub(crate) fn number(table: u64) -> usize {
        usize::try_from((table - TABLES) / PAGE).unwrap()
    }

    /// The processor's walk: where `address` leads, and bits 11:0 of the leaf. Written from the
    /// manual, not from the crate.
    pub(crate) fn hardware_walk(&self, address: u64) -> Option<(u64, u64)> {
        let mut table = self.tables.first()?;
        for shift in [39, 30, 21, 12] {
            let entry = table[usize::try_from(address >> shift & 0x1ff).unwrap()];
            if entry & 7 == 0 {
                return None;
            }
            let base = entry & 0x000f_ffff_ffff_f000;
            if shift == 12 || entry & 0x80 != 0 {
                assert!(shift < 39, "reserved bit 7 is set in {entry:#x}");
                let offset = address & ((1 << shift) - 1);
                assert_eq!(base & ((1 << shift) - 1), 0, "reserved bits in {entry:#x}");
                return Some((base + offset, entry & 0xfff));
            }
            assert_eq!(entry & 0xfff, 7, "reserved bits in {entry:#x}");
            table = &self.tables[Self::number(base)];
        }
        None
    }

    /// Whether a processor may still use what `address` translated to.
    pub(crate) fn is_stale(&self, address: u64) -> bool {
        self.stale.values().any(|stale| stale.contains(address))
    }

    /// What entry `index` of table number `table` translates.
    pub(crate) fn block_of(&self, table: usize, index: usize) -> Option<Span> {
        let (shift, base) = self.places.get(&table)?;
        let index = u64::try_from(index).unwrap();
        Span::sized(base + (index << shift), 1 << shift)
    }
}

impl TableMem for Fake {
    fn free(&mut self, frame: Frame) {
        let number = Self::number(frame.base());
        let (shift, base) = self.places.remove(&number).expect("freed and not in use");
        let block = Span::sized(base, 512 << shift).unwrap();
        assert!(!self.stale.values().any(|stale| stale.overlaps(block)), "freed before the flush");
        self.left += 1;
        // Whoever walks it now arrives nowhere that a test permits.
        self.tables[number].fill(0x000f_dead_beef_0fff);
    }

    fn allocate(&mut self) -> Option<Frame> {
        self.left = self.left.checked_sub(1)?;
        let at = TABLES + u64::try_from(self.tables.len()).unwrap() * PAGE;
        self.tables.push(vec![0; 512]);
        Frame::at(at)
    }

    fn read(&self, table: Frame, index: usize) -> u64 {
        self.reads.set(self.reads.get() + 1);
        self.tables[Self::number(table.base())][index]
    }

    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        let number = Self::number(table.base());
        let old = std::mem::replace(&mut self.tables[number][index], raw);
        self.stores += 1;
        let block = self.block_of(number, index).expect("a store to a table that is not linked");
        let shift = block.len().ilog2();
        if raw & 7 != 0 && (shift == 39 || shift > 12 && raw & 0x80 == 0) {
            let below = Self::number(raw & 0x000f_ffff_ffff_f000);
            let other = self.places.insert(below, (shift - 9, block.start()));
            assert_eq!(other, None, "a table has two places");
        }
        let more = raw & !old & !7 == 0 && old & !raw == 0;
        if self.live && old & 7 != 0 && old != raw && !more {
            // Of the same size and place, or nothing.
            let retired = raw == old & 0x000f_ffff_ffff_f000 | 8;
            let change = (old ^ raw) & !0x38;
            let less = change & raw == 0 && change & !7 == 0;
            assert!(raw == 0 || retired || less, "{old:#x} becomes {raw:#x} at once");
            let _ = self.stale.insert(block.start(), block);
        } else if self.live
            && raw & 7 != 0
            && let Some(stale) = self.stale.values().find(|stale| stale.overlaps(block))
        {
            panic!("{raw:#x} is stored before {stale:x?} was flushed");
        }
        // The store changed only walks to where its entry leads.
        for address in self.secret.iter().filter(|address| block.contains(**address)) {
            assert_eq!(self.hardware_walk(*address), None, "{address:#x} is reachable");
        }
    }
}

impl Tlb for Fake {
    fn flush(&mut self, span: Span) {
        self.stale.retain(|_, stale| !span.covers(*stale));
    }

    fn revise_devices(&mut self, _: &FrameTable<'_>, _: Span) -> Span {
        Span::EMPTY
    }

    fn complete_devices(&mut self, _: &FrameTable<'_>, _: Span, _: &Flushed) {}
}

impl Drop for Fake {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.stale.is_empty(), "never flushed: {:x?}", self.stale);
        }
    }
}
