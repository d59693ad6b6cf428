//! The end of the log: frames that are being made.

use crate::bytes::count;
use crate::frame::{Chain, ENTRIES, Entry, Head, Kind, LONGEST, What};
use crate::record::Record;
use crate::storage::{Block, Error, Storage};
use crate::tree::Disk;

/// A frame to which entries are still added. Its head is one of [`Log::blocks`], in clear.
#[derive(Clone, Copy, Debug)]
struct Open {
    head: usize,
    kind: Kind,
    entries: usize,
    carried: usize,
}

/// Where a frame begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// Position in the log.
    pub(crate) at: u64,
    /// Where it is in the chain.
    pub(crate) chain: Chain,
}

/// The end of the log. Frames are collected until [`LONGEST`] blocks are full, or a flush.
#[derive(Debug)]
pub(crate) struct Log<'m> {
    pub(crate) blocks: &'m mut [Block; LONGEST],
    /// The position in the log of the first of `blocks`, and how many of them are in use.
    at: u64,
    used: usize,
    open: Option<Open>,
    /// Where the next frame to be sealed will be.
    chain: Chain,
    /// The first frame of the generation that carries blocks.
    carrier: Option<Mark>,
}

impl<'m> Log<'m> {
    pub(crate) fn new(blocks: &'m mut [Block; LONGEST]) -> Self {
        let chain = Chain { generation: 0, index: 0, tag: [0; 16], moment: 0 };
        Self { blocks, at: 0, used: 0, open: None, chain, carrier: None }
    }

    /// Begins at `mark`.
    pub(crate) fn begin(&mut self, mark: Mark, carrier: Option<Mark>) {
        (self.at, self.chain) = (mark.at, mark.chain);
        (self.carrier, self.used, self.open) = (carrier, 0, None);
    }

    /// Where the first block after all frames will be.
    pub(crate) fn end(&self) -> u64 {
        self.at + count(self.used)
    }

    pub(crate) const fn chain(&self) -> Chain {
        self.chain
    }

    pub(crate) const fn carrier(&self) -> Option<Mark> {
        self.carrier
    }

    /// The block at a position in the log, if it has not been written yet.
    pub(crate) fn unwritten(&self, position: u64) -> Option<&Block> {
        let at = position.checked_sub(self.at)?;
        self.blocks.get(..self.used)?.get(crate::bytes::fit(at))
    }

    /// Makes room for `entries` entries of a frame of this kind, and for `carried` blocks.
    pub(crate) fn room<S: Storage>(
        &mut self,
        storage: &mut S,
        disk: &mut Disk,
        kind: Kind,
        (entries, carried): (usize, usize),
    ) -> Result<(), Error> {
        loop {
            if let Some(open) = self.open {
                let fits = open.entries + entries <= ENTRIES && self.used + carried <= LONGEST;
                if fits && open.kind == kind {
                    return Ok(());
                }
                self.seal(disk)?;
            } else if self.used + 1 + carried <= LONGEST {
                self.blocks.iter_mut().skip(self.used).take(1).for_each(|head| head.fill(0));
                self.open = Some(Open { head: self.used, kind, entries: 0, carried: 0 });
                self.used += 1;
            } else {
                self.write(storage, disk)?;
            }
        }
    }

    /// Adds an entry, for which there is room.
    pub(crate) fn push(&mut self, entry: &Entry) {
        if let Some(open) = &mut self.open {
            if let Some(head) = self.blocks.get_mut(open.head) {
                entry.store(head, open.entries);
            }
            open.entries += 1;
        }
    }

    /// Has the frame carry `block`, for which there is room, as the node `index` of `level`; its record, and
    /// its position in the log.
    pub(crate) fn carry(
        &mut self,
        disk: &mut Disk,
        (level, index): (u8, u64),
        block: &Block,
    ) -> Result<(Record, u64), Error> {
        let position = self.end();
        let (Some(open), Some(to)) = (&mut self.open, self.blocks.get_mut(self.used)) else {
            return Err(Error::Memory);
        };
        to.copy_from_slice(block);
        let record = disk.keys.seal(level, index, to)?;
        open.carried += 1;
        let at = self.at + count(open.head);
        let _ = self.carrier.get_or_insert(Mark { at, chain: self.chain });
        self.used += 1;
        self.push(&Entry { level, index, what: What::Carried(record) });
        Ok((record, position))
    }

    /// Seals the frame that is open, if one is.
    pub(crate) fn seal(&mut self, disk: &mut Disk) -> Result<(), Error> {
        if let Some(open) = self.open
            && let Some(block) = self.blocks.get_mut(open.head)
        {
            let nonce = disk.keys.nonce()?;
            let Open { kind, entries, carried, .. } = open;
            let head = Head { kind, entries, carried };
            self.chain = self.chain.next(head.seal(&disk.keys.log, nonce, &self.chain, block));
            self.open = None;
        }
        Ok(())
    }

    /// Writes what is sealed. No frame may be open.
    pub(crate) fn write<S: Storage>(&mut self, storage: &mut S, disk: &Disk) -> Result<(), Error> {
        let full = self.blocks.get(..self.used).unwrap_or_default();
        if !full.is_empty() {
            storage.write(disk.sizes.log_at() + self.at, full)?;
        }
        self.at = self.end();
        self.used = 0;
        Ok(())
    }
}
