//! The tree as the last checkpoint left it.

use crate::cache::{Cache, Slot};
use crate::geometry::{Geometry, span};
use crate::key::Keys;
use crate::record::Record;
use crate::storage::{Block, Error, Storage};

/// A disk's sizes and keys.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) sizes: Geometry,
    pub(crate) keys: Keys,
}

/// How far the way from the root down to a leaf has been gone: to the node at `level`, whose record is
/// known. What has been gone is not lost to the cache, so each request brings the end nearer.
#[derive(Clone, Copy, Debug)]
struct Walk {
    leaf: u64,
    level: u8,
    record: Record,
}

/// What is at the end of the way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leaf {
    /// Nothing was written to the blocks up to this one, excluded.
    Hole(u64),
    /// The leaf, which has this record, is in the cache.
    Node(Record),
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree<'m> {
    root: Record,
    pub(crate) cache: Cache<'m>,
    walk: Option<Walk>,
}

impl<'m> Tree<'m> {
    /// An empty tree; `None` if no room for nodes is lent.
    pub(crate) fn new(slots: &'m mut [Slot]) -> Option<Self> {
        Some(Self { root: Record::NONE, cache: Cache::new(slots)?, walk: None })
    }

    pub(crate) const fn root(&self) -> Record {
        self.root
    }

    /// From now on the tree is the one with this root.
    pub(crate) const fn set_root(&mut self, root: Record) {
        (self.root, self.walk) = (root, None);
    }

    /// The node with this record.
    pub(crate) fn node<S: Storage>(
        &mut self,
        storage: &mut S,
        disk: &Disk,
        (level, index): (u8, u64),
        record: &Record,
    ) -> Result<&Block, Error> {
        if self.cache.get(level, index, record).is_none() {
            self.cache.load((level, index), record, |block| {
                storage.read(disk.sizes.place(level, index), core::slice::from_mut(block))?;
                disk.keys.open(level, index, record, block)
            })?;
        }
        // It was put there just now.
        self.cache.get(level, index, record).ok_or(Error::Memory)
    }

    /// Remembers a node that was written.
    pub(crate) fn keep(&mut self, at: (u8, u64), record: &Record, node: &Block) {
        let Ok(()) = self.cache.load(at, record, |block| {
            block.copy_from_slice(node);
            Ok::<_, core::convert::Infallible>(())
        });
    }

    /// Goes down to the leaf that `block` belongs to.
    pub(crate) fn leaf<S: Storage>(
        &mut self,
        storage: &mut S,
        disk: &Disk,
        block: u64,
    ) -> Result<Leaf, Error> {
        let leaf = block / 128;
        let start = Walk { leaf, level: disk.sizes.top(), record: self.root };
        let mut walk = self.walk.filter(|walk| walk.leaf == leaf).unwrap_or(start);
        loop {
            self.walk = Some(walk);
            let Walk { level, record, .. } = walk;
            let index = block / span(level);
            if record.is_none() {
                return Ok(Leaf::Hole((index + 1) * span(level)));
            }
            let node = self.node(storage, disk, (level, index), &record)?;
            if level == 1 {
                return Ok(Leaf::Node(record));
            }
            let below = Record::of(node, block / span(level - 1));
            walk = Walk { leaf, level: level - 1, record: below };
        }
    }

    /// The record of `block`, to whose leaf [`Self::leaf`] has just led.
    pub(crate) fn record(&mut self, block: u64, leaf: Leaf) -> Record {
        match leaf {
            Leaf::Hole(_) => Record::NONE,
            Leaf::Node(record) => {
                let node = self.cache.get(1, block / 128, &record);
                node.map_or(Record::NONE, |node| Record::of(node, block))
            }
        }
    }
}
