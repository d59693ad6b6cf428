//! Frames that are read back.

use seal::aead::Tag;

use crate::bytes::{count, fit};
use crate::frame::{Entry, Head, LONGEST};
use crate::log::Mark;
use crate::storage::{Block, Error, Storage};
use crate::tree::Disk;

/// Reads frames one after the other, through a window of [`LONGEST`] blocks that the caller lends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader {
    /// Where the frame begins.
    mark: Mark,
    /// It, once it has been opened.
    head: Option<(Head, Tag)>,
    /// The position in the log of the window, and how many blocks are there.
    window: u64,
    loaded: u64,
    /// Entries and carried blocks that the caller is done with.
    pub(crate) entry: usize,
    pub(crate) carried: usize,
}

impl Reader {
    pub(crate) const fn new(mark: Mark) -> Self {
        Self { mark, head: None, window: 0, loaded: 0, entry: 0, carried: 0 }
    }

    pub(crate) const fn mark(&self) -> Mark {
        self.mark
    }

    /// The frame here; `None` if the chain ends.
    pub(crate) fn head<S: Storage>(
        &mut self,
        storage: &mut S,
        disk: &Disk,
        blocks: &mut [Block; LONGEST],
    ) -> Result<Option<Head>, Error> {
        while self.head.is_none() && self.mark.at < u64::from(disk.sizes.log()) {
            self.fill(storage, disk, blocks)?;
            let Some(block) = blocks.get_mut(self.offset()) else { return Err(Error::Log) };
            match Head::open(&disk.keys.log, disk.sizes, &self.mark.chain, block) {
                Err(Error::Log) => {
                    self.loaded = 0;
                    return Ok(None);
                }
                Err(other) => return Err(other),
                Ok((head, tag)) => {
                    if count(self.offset() + head.carried) < self.loaded {
                        (self.head, self.entry, self.carried) = (Some((head, tag)), 0, 0);
                    } else if self.offset() > 0 {
                        self.loaded = 0;
                    } else {
                        return Err(Error::Malformed);
                    }
                }
            }
        }
        Ok(self.head.map(|(head, _)| head))
    }

    /// Moves the window if the frame's head is not in it.
    fn fill<S: Storage>(
        &mut self,
        storage: &mut S,
        disk: &Disk,
        blocks: &mut [Block; LONGEST],
    ) -> Result<(), Error> {
        let at = self.mark.at;
        if !(self.window..self.window + self.loaded).contains(&at) {
            let left = u64::from(disk.sizes.log()) - at;
            let into = blocks.get_mut(..fit(left).min(LONGEST)).unwrap_or_default();
            (self.window, self.loaded) = (at, 0);
            storage.read(disk.sizes.log_at() + at, into)?;
            self.loaded = count(into.len());
        }
        Ok(())
    }

    /// Where in the window the head is.
    fn offset(&self) -> usize {
        fit(self.mark.at - self.window)
    }

    /// Entry `number` of the frame here.
    pub(crate) fn entry(&self, blocks: &[Block; LONGEST], number: usize) -> Result<Entry, Error> {
        Entry::load(blocks.get(self.offset()).ok_or(Error::Log)?, number)
    }

    /// Where in the window, and where in the log, the carried block with this number is.
    pub(crate) fn place(&self, carried: usize) -> (usize, u64) {
        (self.offset() + 1 + carried, self.mark.at + 1 + count(carried))
    }

    /// Goes on to the next frame.
    pub(crate) fn next(&mut self) {
        if let Some((head, tag)) = self.head.take() {
            let at = self.mark.at + 1 + count(head.carried);
            self.mark = Mark { at, chain: self.mark.chain.next(tag) };
        }
    }
}
