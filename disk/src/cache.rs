//! Nodes that were read lately. One is found by its record, so what is cached is never out of date.

use core::fmt;

use crate::bytes::{count, fit};
use crate::record::Record;
use crate::storage::Block;

/// Slots that a node may be in.
const WAYS: usize = 4;

/// Room for a node. Lent to a volume by the slice.
pub struct Slot {
    level: u8,
    index: u64,
    /// Of an empty slot: none.
    record: Record,
    used: u64,
    node: Block,
}

impl Slot {
    /// Unused.
    pub const EMPTY: Self =
        Self { level: 0, index: 0, record: Record::NONE, used: 0, node: [0; 4096] };
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("level", &self.level)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache<'m> {
    pub(crate) slots: &'m mut [Slot],
    clock: u64,
}

impl<'m> Cache<'m> {
    /// `None` if nothing is lent.
    pub(crate) fn new(slots: &'m mut [Slot]) -> Option<Self> {
        (!slots.is_empty()).then_some(Self { slots, clock: 0 })
    }

    /// The slots that the node may be in.
    fn ways(&mut self, level: u8, index: u64) -> &mut [Slot] {
        let sets = count(self.slots.len() / WAYS).max(1);
        let first = fit((index + u64::from(level)) % sets) * WAYS;
        let rest = self.slots.get_mut(first..).unwrap_or_default();
        let ways = rest.len().min(WAYS);
        rest.get_mut(..ways).unwrap_or_default()
    }

    /// The node with this record.
    pub(crate) fn get(&mut self, level: u8, index: u64, record: &Record) -> Option<&Block> {
        self.clock += 1;
        let clock = self.clock;
        let is_it =
            |slot: &&mut Slot| slot.level == level && slot.index == index && slot.record == *record;
        let slot = self.ways(level, index).iter_mut().find(is_it)?;
        slot.used = clock;
        Some(&slot.node)
    }

    /// Has `fill` put the node into the slot that was not used for the longest time.
    ///
    /// # Errors
    /// Those of `fill`; then the slot is empty, and will be the next.
    pub(crate) fn load<E>(
        &mut self,
        (level, index): (u8, u64),
        record: &Record,
        fill: impl FnOnce(&mut Block) -> Result<(), E>,
    ) -> Result<(), E> {
        self.clock += 1;
        let clock = self.clock;
        if let Some(slot) = self.ways(level, index).iter_mut().min_by_key(|slot| slot.used) {
            (slot.record, slot.used) = (Record::NONE, 0);
            fill(&mut slot.node)?;
            (slot.level, slot.index, slot.record, slot.used) = (level, index, *record, clock);
        }
        Ok(())
    }
}
