//! Checkpoints: the tree takes over what has changed, and the log is empty again.

use core::fmt;

use crate::anchor::Anchor;
use crate::bytes::{count, zeros};
use crate::frame::{Chain, Entry, Kind, What};
use crate::geometry::span;
use crate::log::Mark;
use crate::reader::Reader;
use crate::record::Record;
use crate::storage::{Block, Error, Storage};
use crate::table::{At, Change};
use crate::volume::{Stage, Volume};

/// A node that a checkpoint is changing. Lent to a volume by the array.
pub struct Step {
    is_loaded: bool,
    index: u64,
    /// Its record in the tree as it was.
    was: Record,
    node: Block,
}

impl Step {
    /// Unused.
    pub const EMPTY: Self = Self { is_loaded: false, index: 0, was: Record::NONE, node: [0; 4096] };

    pub(crate) const fn clear(&mut self) {
        self.is_loaded = false;
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Volume<'_> {
    /// Does what must be done before the next operation: opens the volume, or ends a checkpoint.
    pub(crate) fn settle<S: Storage>(&mut self, storage: &mut S) -> Result<(), Error> {
        loop {
            self.stage = match self.stage {
                Stage::Idle => return Ok(()),
                Stage::Anchors => self.find_anchor(storage)?,
                Stage::Scan => self.scan(storage)?,
                Stage::Replay => self.replay(storage)?,
                Stage::Opened => {
                    storage.flush()?;
                    Stage::Idle
                }
                // What was read may still be lost. Its places are written to next, so it must not.
                Stage::Recovered => {
                    storage.flush()?;
                    self.copy_from_carrier()
                }
                Stage::Tree(from) => self.change(storage, from)?,
                Stage::Nodes => self.mark(storage)?,
                Stage::Marked => {
                    self.flush_all(storage)?;
                    self.copy_from_carrier()
                }
                Stage::Copy => self.copy(storage)?,
                Stage::Copied => self.seal_anchor(storage)?,
                Stage::Anchored => self.anchored(storage)?,
            }
        }
    }

    /// Brings the next change into the tree, from block `from` on.
    fn change<S: Storage>(&mut self, storage: &mut S, from: u64) -> Result<Stage, Error> {
        let top = self.disk.sizes.top();
        let Some(change) = self.table.change(from, top) else {
            for level in 1..=top {
                self.finish(storage, level)?;
            }
            return Ok(Stage::Nodes);
        };
        let Change { level, index, record } = change;
        let block = index * span(level);
        for above in 1..=top {
            if self.step(above)?.index != block / span(above) {
                self.finish(storage, above)?;
            }
        }
        for above in (level + 1..=top).rev() {
            self.load(storage, above, block / span(above))?;
        }
        record.store(&mut self.step(level + 1)?.node, index);
        Ok(Stage::Tree(block + span(level)))
    }

    /// The node of `level` that is being changed.
    fn step(&mut self, level: u8) -> Result<&mut Step, Error> {
        self.path.get_mut(usize::from(level) - 1).ok_or(Error::Memory)
    }

    /// Makes the node `index` the one of `level` that is changed. Those above it are.
    fn load<S: Storage>(&mut self, storage: &mut S, level: u8, index: u64) -> Result<(), Error> {
        if self.step(level)?.is_loaded {
            return Ok(());
        }
        let was = if level == self.disk.sizes.top() {
            self.tree.root()
        } else {
            Record::of(&self.step(level + 1)?.node, index)
        };
        let Some(step) = self.path.get_mut(usize::from(level) - 1) else {
            return Err(Error::Memory);
        };
        if was.is_none() {
            step.node.fill(0);
        } else {
            let node = self.tree.node(storage, &self.disk, (level, index), &was)?;
            step.node.copy_from_slice(node);
        }
        (step.is_loaded, step.index, step.was) = (true, index, was);
        Ok(())
    }

    /// Seals the node of `level` that was changed, if one was, and puts its record into the one above it.
    fn finish<S: Storage>(&mut self, storage: &mut S, level: u8) -> Result<(), Error> {
        let Some(step) = self.path.get(usize::from(level) - 1) else { return Err(Error::Memory) };
        if !step.is_loaded {
            return Ok(());
        }
        let at = (level, step.index);
        let record = if zeros(&step.node, 0) {
            Record::NONE
        } else if step.was.is_none() {
            let to = self.run.room(storage, self.disk.sizes.place(level, step.index))?;
            to.copy_from_slice(&step.node);
            self.disk.keys.seal(level, step.index, to)?
        } else {
            self.log.room(storage, &mut self.disk, Kind::Nodes, (1, 1))?;
            self.log.carry(&mut self.disk, at, &step.node)?.0
        };
        if !record.is_none() {
            self.tree.keep(at, &record, &step.node);
        }
        self.step(level)?.is_loaded = false;
        if level == self.disk.sizes.top() {
            self.next_root = record;
        } else {
            record.store(&mut self.step(level + 1)?.node, at.1);
        }
        Ok(())
    }

    /// Makes durable what the checkpoint needs, and seals the frame that says so.
    fn mark<S: Storage>(&mut self, storage: &mut S) -> Result<Stage, Error> {
        self.run.write(storage)?;
        self.flush_all(storage)?;
        self.log.room(storage, &mut self.disk, Kind::Checkpoint, (1, 0))?;
        let level = self.disk.sizes.top();
        self.log.push(&Entry { level, index: 0, what: What::Placed(self.next_root) });
        self.log.seal(&mut self.disk)?;
        Ok(Stage::Marked)
    }

    fn copy_from_carrier(&mut self) -> Stage {
        let Some(mark) = self.log.carrier() else { return Stage::Copied };
        self.reader = Reader::new(mark);
        Stage::Copy
    }

    /// Writes what the log carries, and is not replaced by something later, to its places.
    fn copy<S: Storage>(&mut self, storage: &mut S) -> Result<Stage, Error> {
        loop {
            let head = self.reader.head(storage, &self.disk, self.log.blocks)?.ok_or(Error::Log)?;
            if head.kind == Kind::Checkpoint {
                return Ok(Stage::Copied);
            }
            while self.reader.entry < head.entries {
                self.copy_some(storage, head.entries)?;
            }
            self.reader.next();
        }
    }

    /// Does so with the next blocks that can be written together.
    fn copy_some<S: Storage>(&mut self, storage: &mut S, entries: usize) -> Result<(), Error> {
        let (mut entry, mut carried) = (self.reader.entry, self.reader.carried);
        let mut run = None;
        while entry < entries {
            let found = self.reader.entry(self.log.blocks, entry)?;
            let (at, _) = self.reader.place(carried);
            run = match (run, self.destination(&found, carried)) {
                (None, None) => None,
                (None, Some(place)) => Some((place, at, 1)),
                (Some((to, from, len)), Some(place)) if place == to + count(len) => {
                    Some((to, from, len + 1))
                }
                (Some(_), _) => break,
            };
            entry += 1;
            carried += usize::from(matches!(found.what, What::Carried(_)));
        }
        if let Some((to, from, len)) = run {
            storage.write(to, self.log.blocks.get(from..from + len).unwrap_or_default())?;
        }
        (self.reader.entry, self.reader.carried) = (entry, carried);
        Ok(())
    }

    /// Where the carried block with this number, of which `entry` speaks, is to be written.
    fn destination(&self, entry: &Entry, carried: usize) -> Option<u64> {
        let Entry { level, index, what: What::Carried(_) } = *entry else { return None };
        let here = At::Log(self.reader.place(carried).1);
        let is_last = self.table.get(index).is_none_or(|pending| pending.at == here);
        (level > 0 || is_last).then(|| self.disk.sizes.place(level, index))
    }

    fn seal_anchor<S: Storage>(&mut self, storage: &mut S) -> Result<Stage, Error> {
        storage.flush()?;
        let Chain { generation, moment, .. } = self.log.chain();
        let (generation, moment, sizes) = (generation + 1, moment + 1, self.disk.sizes);
        let nonce = self.disk.keys.nonce()?;
        let anchor = Anchor { generation, moment, root: self.next_root };
        let block = self.run.room(storage, sizes.anchors_at() + generation % 2)?;
        let tag = anchor.seal(&self.disk.keys.anchors, nonce, sizes.capacity(), block);
        let chain = Chain { generation, index: 0, tag, moment };
        self.log.begin(Mark { at: 0, chain }, None);
        Ok(Stage::Anchored)
    }

    fn anchored<S: Storage>(&mut self, storage: &mut S) -> Result<Stage, Error> {
        self.run.write(storage)?;
        storage.flush()?;
        self.tree.set_root(self.next_root);
        self.table.clear();
        Ok(Stage::Idle)
    }
}
