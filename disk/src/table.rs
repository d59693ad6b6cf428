//! What has changed since the anchor, by block.

use crate::geometry::span;
use crate::record::Record;
use crate::storage::Error;

/// Ranges that are forgotten in one generation, at most.
pub const RANGES: usize = 128;

/// Where the content of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// In its place.
    Place,
    /// In the log, at this position.
    Log(u64),
    /// Nowhere: it reads as zeros. What is in its place may still be needed after a power cut.
    Gone,
}

const _: () = assert!(size_of::<Pending>() <= 56);

/// A block that has changed. Lent to a volume by the slice.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    pub(crate) index: u64,
    pub(crate) at: At,
    pub(crate) record: Record,
}

impl Pending {
    /// Unused.
    pub const EMPTY: Self = Self { index: 0, at: At::Gone, record: Record::NONE };
}

/// Blocks that read as zeros, unless they were written later. Lent to a volume by the array.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    first: u64,
    end: u64,
}

impl Range {
    /// Unused.
    pub const EMPTY: Self = Self { first: 0, end: 0 };
}

/// A record that the tree has to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) level: u8,
    pub(crate) index: u64,
    pub(crate) record: Record,
}

/// All that has changed, by index.
#[derive(Debug)]
pub(crate) struct Table<'m> {
    pub(crate) entries: &'m mut [Pending],
    len: usize,
    /// How many entries there may be.
    limit: usize,
    leaves: u64,
    pub(crate) ranges: &'m mut [Range; RANGES],
    used: usize,
}

impl<'m> Table<'m> {
    /// `None` if fewer than `limit` entries are lent.
    pub(crate) fn new(
        entries: &'m mut [Pending],
        ranges: &'m mut [Range; RANGES],
        limit: usize,
    ) -> Option<Self> {
        (limit <= entries.len()).then_some(Self {
            entries,
            len: 0,
            limit,
            leaves: 0,
            ranges,
            used: 0,
        })
    }

    pub(crate) fn clear(&mut self) {
        (self.len, self.leaves, self.used) = (0, 0, 0);
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0 && self.used == 0
    }

    /// How many entries more there may be.
    pub(crate) const fn free(&self) -> usize {
        self.limit - self.len
    }

    /// How many ranges more there may be.
    pub(crate) const fn free_ranges(&self) -> usize {
        RANGES - self.used
    }

    /// Leaves of the tree that entries are in, and ranges.
    pub(crate) fn extent(&self) -> (u64, u64) {
        (self.leaves, crate::bytes::count(self.used))
    }

    fn list(&self) -> &[Pending] {
        self.entries.get(..self.len).unwrap_or_default()
    }

    fn ranges(&self) -> &[Range] {
        self.ranges.get(..self.used).unwrap_or_default()
    }

    fn find(&self, index: u64) -> Result<usize, usize> {
        self.list().binary_search_by_key(&index, |entry| entry.index)
    }

    pub(crate) fn get(&self, index: u64) -> Option<&Pending> {
        self.list().get(self.find(index).ok()?)
    }

    /// The first entry from `index` on.
    pub(crate) fn next(&self, index: u64) -> Option<&Pending> {
        self.list().get(self.find(index).unwrap_or_else(|after| after))
    }

    /// Where the range ends in which the block is forgotten, if it is and has no entry.
    pub(crate) fn forgotten(&self, index: u64) -> Option<u64> {
        let around = |range: &&Range| (range.first..range.end).contains(&index);
        self.ranges().iter().filter(around).map(|range| range.end).max()
    }

    /// Puts an entry in, or in the place of another of the block.
    ///
    /// # Errors
    /// [`Error::Malformed`] if there is no room, which no writer lets happen.
    pub(crate) fn put(&mut self, entry: Pending) -> Result<(), Error> {
        let at = match self.find(entry.index) {
            Ok(at) => at,
            Err(_) if self.len >= self.limit => return Err(Error::Malformed),
            Err(at) => {
                let near = [at.checked_sub(1), Some(at)];
                let near = near.iter().flatten().filter_map(|at| self.list().get(*at));
                let shared = near.into_iter().any(|other| other.index / 128 == entry.index / 128);
                self.leaves += u64::from(!shared);
                self.entries.copy_within(at..self.len, at + 1);
                self.len += 1;
                at
            }
        };
        if let Some(to) = self.entries.get_mut(at) {
            *to = entry;
        }
        Ok(())
    }

    /// Forgets `count` blocks from `first` on.
    ///
    /// # Errors
    /// [`Error::Malformed`] if there is no room, which no writer lets happen.
    pub(crate) fn forget(&mut self, first: u64, count: u64) -> Result<(), Error> {
        let end = first + count;
        *self.ranges.get_mut(self.used).ok_or(Error::Malformed)? = Range { first, end };
        self.used += 1;
        let entries = self.entries.get_mut(..self.len).unwrap_or_default();
        for entry in entries.iter_mut().filter(|entry| (first..end).contains(&entry.index)) {
            (entry.at, entry.record) = (At::Gone, Record::NONE);
        }
        Ok(())
    }

    /// The first record from block `from` on that the tree, whose root is of level `top`, has to take
    /// over. Whole subtrees that are forgotten are one change.
    pub(crate) fn change(&self, from: u64, top: u8) -> Option<Change> {
        let entry = self.next(from);
        let limit = entry.map_or(u64::MAX, |entry| entry.index);
        let after = self.ranges().iter().filter(|range| range.end > from);
        let start = after.map(|range| range.first.max(from)).min().filter(|start| *start < limit);
        let Some(start) = start else {
            let entry = entry?;
            return Some(Change { level: 0, index: entry.index, record: entry.record });
        };
        let end = self.forgotten(start)?.min(limit);
        let whole = |level: &u8| start % span(*level) == 0 && start + span(*level) <= end;
        let level = (1..top).rev().find(whole).unwrap_or(0);
        Some(Change { level, index: start / span(level), record: Record::NONE })
    }
}
