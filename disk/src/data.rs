//! Reading, writing and forgetting, on a volume that is open.

use crate::bytes::{count, fit};
use crate::frame::{Entry, Kind, LONGEST, What};
use crate::record::Record;
use crate::storage::{Block, Error, Storage};
use crate::table::{At, Pending};
use crate::tree::Leaf;
use crate::volume::{Stage, Volume};

/// Where the content of a block is.
#[derive(Clone, Copy, Debug)]
enum Found {
    /// Nowhere: it is zeros.
    Zero,
    /// On the disk, at this block.
    Stored(u64, Record),
    /// In the log, at this position, and not written yet.
    Unwritten(u64, Record),
}

impl Volume<'_> {
    /// Where the content of `block` is, to whose leaf the tree was just gone down.
    fn find(&mut self, block: u64, leaf: Leaf) -> Found {
        let (at, record) = match self.table.get(block) {
            Some(pending) => (pending.at, pending.record),
            None if self.table.forgotten(block).is_some() => return Found::Zero,
            None => (At::Place, self.tree.record(block, leaf)),
        };
        match at {
            At::Gone => Found::Zero,
            At::Place if record.is_none() => Found::Zero,
            At::Place => Found::Stored(block, record),
            At::Log(position) if self.log.unwritten(position).is_some() => {
                Found::Unwritten(position, record)
            }
            At::Log(position) => Found::Stored(self.disk.sizes.log_at() + position, record),
        }
    }

    pub(crate) fn read_all<S: Storage>(
        &mut self,
        storage: &mut S,
        first: u64,
        into: &mut [Block],
    ) -> Result<(), Error> {
        while let Some(rest @ [_, ..]) = into.get_mut(self.done..) {
            let block = first + count(self.done);
            let leaf = self.tree.leaf(storage, &self.disk, block)?;
            self.done += self.read_some(storage, (block, leaf), rest)?;
        }
        Ok(())
    }

    /// Reads at least one block, and all that can be read with it in one request.
    fn read_some<S: Storage>(
        &mut self,
        storage: &mut S,
        (block, leaf): (u64, Leaf),
        into: &mut [Block],
    ) -> Result<usize, Error> {
        let found = self.find(block, leaf);
        let Found::Stored(at, _) = found else {
            let Some(into) = into.first_mut() else { return Ok(0) };
            match found {
                Found::Unwritten(position, record) => {
                    into.copy_from_slice(self.log.unwritten(position).ok_or(Error::Log)?);
                    self.disk.keys.open(0, block, &record, into)?;
                }
                Found::Zero | Found::Stored(..) => into.fill(0),
            }
            return Ok(1);
        };
        let most = (128 - block % 128).min(count(into.len()));
        let follows = |next: &u64| matches!(self.find(block + next, leaf), Found::Stored(place, _) if place == at + next);
        let run = fit(count((1..most).take_while(follows).count())) + 1;
        let into = into.get_mut(..run).unwrap_or_default();
        storage.read(at, into)?;
        for (block, into) in (block..).zip(into) {
            if let Found::Stored(_, record) = self.find(block, leaf) {
                self.disk.keys.open(0, block, &record, into)?;
            }
        }
        Ok(run)
    }

    /// Whether the log has room for `entries` more, which may be in one more leaf or be a range.
    fn fits(&self, entries: usize) -> bool {
        let (leaves, ranges) = self.table.extent();
        let reserve = self.disk.sizes.reserve(leaves + 1, ranges + 1);
        // One more, since the frame that is open may have to end.
        self.log.end() + count(entries) + 1 + reserve <= self.disk.sizes.log().into()
    }

    pub(crate) fn write_all<S: Storage>(
        &mut self,
        storage: &mut S,
        first: u64,
        from: &[Block],
    ) -> Result<(), Error> {
        while let Some(rest @ [_, ..]) = from.get(self.done..) {
            let block = first + count(self.done);
            if self.run.len > 0 {
                let len = self.run.len;
                self.run.write(storage)?;
                self.placed(len)?;
                self.done += len;
                continue;
            }
            if self.table.free() == 0 || !self.fits(1) {
                self.stage = Stage::Tree(0);
                self.settle(storage)?;
            }
            let leaf = self.tree.leaf(storage, &self.disk, block)?;
            let most = rest.len().min(self.table.free()).min(LONGEST);
            let most = count(most).min(128 - block % 128);
            let is_free = |next: &u64| self.is_free(block + next, leaf);
            match fit(count((0..most).take_while(is_free).count())) {
                0 => self.replace(storage, block, rest)?,
                free => self.place(storage, block, rest.get(..free).unwrap_or_default())?,
            }
        }
        Ok(())
    }

    /// Whether nothing is in the block's place that a power cut could bring back.
    fn is_free(&mut self, block: u64, leaf: Leaf) -> bool {
        self.table.get(block).is_none() && self.tree.record(block, leaf).is_none()
    }

    /// Puts the first block of `from` into the log.
    fn replace<S: Storage>(
        &mut self,
        storage: &mut S,
        block: u64,
        from: &[Block],
    ) -> Result<(), Error> {
        self.log.room(storage, &mut self.disk, Kind::Changes, (1, 1))?;
        let Some(content) = from.first() else { return Ok(()) };
        let (record, position) = self.log.carry(&mut self.disk, (0, block), content)?;
        self.done += 1;
        self.table.put(Pending { index: block, at: At::Log(position), record })
    }

    /// Seals blocks whose places are free, to be written there.
    fn place<S: Storage>(
        &mut self,
        storage: &mut S,
        block: u64,
        from: &[Block],
    ) -> Result<(), Error> {
        self.log.room(storage, &mut self.disk, Kind::Changes, (from.len(), 0))?;
        self.run.at = block;
        let to = self.run.blocks.iter_mut().zip(&mut *self.run.notes);
        for ((index, from), (to, note)) in (block..).zip(from).zip(to) {
            to.copy_from_slice(from);
            let record = self.disk.keys.seal(0, index, to)?;
            *note = Pending { index, at: At::Place, record };
        }
        self.run.len = from.len();
        Ok(())
    }

    /// Notes that the first `len` blocks of the run are in their places.
    fn placed(&mut self, len: usize) -> Result<(), Error> {
        for note in self.run.notes.iter().take(len) {
            let Pending { index, record, .. } = *note;
            self.log.push(&Entry { level: 0, index, what: What::Placed(record) });
            self.table.put(*note)?;
        }
        Ok(())
    }

    pub(crate) fn forget_all<S: Storage>(
        &mut self,
        storage: &mut S,
        first: u64,
        count: u64,
    ) -> Result<(), Error> {
        if self.seek(storage, first, first + count)?.is_none() {
            return Ok(());
        }
        if self.table.free_ranges() == 0 || !self.fits(0) {
            self.stage = Stage::Tree(0);
            self.settle(storage)?;
        }
        self.log.room(storage, &mut self.disk, Kind::Changes, (1, 0))?;
        self.log.push(&Entry { level: 0, index: first, what: What::Forgotten(count) });
        self.table.forget(first, count)
    }

    /// Writes the frames that there are, and flushes.
    pub(crate) fn flush_all<S: Storage>(&mut self, storage: &mut S) -> Result<(), Error> {
        self.log.seal(&mut self.disk)?;
        self.log.write(storage, &self.disk)?;
        Ok(storage.flush()?)
    }

    /// The first block from `first` on and before `end` that was written and not forgotten. `done` counts
    /// blocks that were passed.
    pub(crate) fn seek<S: Storage>(
        &mut self,
        storage: &mut S,
        first: u64,
        end: u64,
    ) -> Result<Option<u64>, Error> {
        loop {
            let block = first + count(self.done);
            if block >= end {
                return Ok(None);
            }
            let entry = self.table.next(block);
            let limit = entry.map_or(end, |entry| entry.index.min(end));
            let next = match (entry, self.table.forgotten(block)) {
                (Some(entry), _) if entry.index == block => match entry.at {
                    At::Gone => block + 1,
                    At::Place | At::Log(_) => return Ok(Some(block)),
                },
                (_, Some(forgotten)) => forgotten.min(limit),
                (_, None) => match self.tree.leaf(storage, &self.disk, block)? {
                    Leaf::Hole(hole) => hole.min(limit),
                    leaf if self.tree.record(block, leaf).is_none() => block + 1,
                    Leaf::Node(_) => return Ok(Some(block)),
                },
            };
            self.done += fit(next - block);
        }
    }
}
