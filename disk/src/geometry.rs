//! Where things lie on a disk.

/// Levels that the largest disk has.
pub const LEVELS: usize = 5;

/// Blocks that a disk has besides data, nodes and log: two anchors, two headers.
const FIXED: u64 = 4;

/// Sizes of a disk, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    capacity: u64,
    log: u32,
    entries: u32,
}

impl Geometry {
    /// A disk of which `capacity` blocks can be used, with a log of `log` blocks that speaks of at most
    /// `entries` blocks at a time; `None` if the format has no such disk.
    #[must_use]
    pub fn new(capacity: u64, log: u64, entries: u64) -> Option<Self> {
        let log = u32::try_from(log).ok().filter(|log| (64..=1 << 31).contains(log))?;
        let entries = u32::try_from(entries).ok().filter(|count| (1..=1 << 16).contains(count))?;
        (1..=1 << 32).contains(&capacity).then_some(Self { capacity, log, entries })
    }

    /// Blocks that can be used.
    #[must_use]
    pub const fn capacity(self) -> u64 {
        self.capacity
    }

    /// Blocks of the log.
    #[must_use]
    pub const fn log(self) -> u32 {
        self.log
    }

    /// Blocks that the log speaks of at most.
    #[must_use]
    pub const fn entries(self) -> u32 {
        self.entries
    }

    /// Nodes of `level`, or blocks of data for level 0.
    #[must_use]
    pub const fn nodes(self, level: u8) -> u64 {
        self.capacity.div_ceil(span(level))
    }

    /// The level of the root.
    #[must_use]
    pub fn top(self) -> u8 {
        (1..5).find(|level| self.nodes(*level) == 1).unwrap_or(5)
    }

    /// The number of the block where the node `index` of `level` has its place, or data for level 0.
    #[must_use]
    pub fn place(self, level: u8, index: u64) -> u64 {
        (0..level).map(|below| self.nodes(below)).sum::<u64>() + index
    }

    /// Where the log begins.
    #[must_use]
    pub fn log_at(self) -> u64 {
        self.place(self.top() + 1, 0)
    }

    /// Where the first of the two anchors is.
    #[must_use]
    pub fn anchors_at(self) -> u64 {
        self.log_at() + u64::from(self.log)
    }

    /// Where the first of the two headers is.
    #[must_use]
    pub fn headers_at(self) -> u64 {
        self.anchors_at() + 2
    }

    /// Blocks of the whole disk.
    #[must_use]
    pub fn total(self) -> u64 {
        self.log_at() + u64::from(self.log) + FIXED
    }

    /// Blocks at the end of the log that stay free until a checkpoint needs them: for the nodes over
    /// `leaves` leaves and at the borders of `ranges` ranges, 31 in a frame but for the first, and for the
    /// frame that ends it.
    pub(crate) fn reserve(self, leaves: u64, ranges: u64) -> u64 {
        let paths = leaves + 2 * ranges;
        let nodes: u64 = (1..=self.top()).map(|level| self.nodes(level).min(paths)).sum();
        nodes + nodes.div_ceil(31) + 2
    }
}

/// Blocks of data below a node of `level`, which has 128 children.
pub(crate) const fn span(level: u8) -> u64 {
    1 << (7 * level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_lies_side_by_side() {
        for (capacity, top, nodes) in
            [(1, 1, 1), (128, 1, 1), (129, 2, 3), (1 << 14, 2, 129), ((1 << 14) + 1, 3, 132)]
        {
            let disk = Geometry::new(capacity, 64, 1).unwrap();
            assert_eq!(disk.top(), top, "{capacity}");
            assert_eq!(disk.place(1, 0), capacity);
            assert_eq!(disk.log_at(), capacity + nodes);
            assert_eq!(disk.anchors_at(), capacity + nodes + 64);
            assert_eq!(disk.total(), capacity + nodes + 64 + 4);
        }
        let largest = Geometry::new(1 << 32, 1 << 31, 1 << 16).unwrap();
        assert_eq!((largest.top(), largest.nodes(5)), (5, 1));
    }

    #[test]
    fn sizes_that_the_format_does_not_have_are_refused() {
        for (capacity, log, entries) in [
            (0, 64, 1),
            ((1 << 32) + 1, 64, 1),
            (1, 63, 1),
            (1, (1 << 31) + 1, 1),
            (1, 64, 0),
            (1, 64, (1 << 16) + 1),
            (1, 1 << 40, 1),
            (1, 64, 1 << 40),
        ] {
            assert_eq!(Geometry::new(capacity, log, entries), None);
        }
    }
}
