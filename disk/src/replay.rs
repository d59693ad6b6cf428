//! Opening: what the log says of the time since the anchor.

use crate::anchor::Anchor;
use crate::bytes::count;
use crate::frame::{Chain, Entry, Head, Kind, LONGEST, What};
use crate::log::Mark;
use crate::reader::Reader;
use crate::storage::{Error, Storage};
use crate::table::{At, Pending};
use crate::volume::{Stage, Volume};

impl Volume<'_> {
    /// Finds the newer anchor.
    pub(crate) fn find_anchor<S: Storage>(&mut self, storage: &mut S) -> Result<Stage, Error> {
        let (sizes, key) = (self.disk.sizes, &self.disk.keys.anchors);
        let both = self.run.blocks.get_mut(..2).unwrap_or_default();
        storage.read(sizes.anchors_at(), both)?;
        let opened = (0..).zip(both);
        let opened =
            opened.filter_map(|(slot, at)| Anchor::open(key, sizes.capacity(), slot, at).ok());
        let newest = opened.max_by_key(|(anchor, _)| anchor.generation);
        let (Anchor { generation, moment, root }, tag) = newest.ok_or(Error::Anchor)?;
        self.tree.set_root(root);
        let start = Mark { at: 0, chain: Chain { generation, index: 0, tag, moment } };
        self.log.begin(start, None);
        self.reader = Reader::new(start);
        Ok(Stage::Scan)
    }

    /// Looks for the end of a checkpoint. If there is one, all before it is durable, and is not looked at:
    /// places that it speaks of may have been written to since.
    pub(crate) fn scan<S: Storage>(&mut self, storage: &mut S) -> Result<Stage, Error> {
        let start = Mark { at: 0, chain: self.log.chain() };
        while let Some(head) = self.reader.head(storage, &self.disk, self.log.blocks)? {
            let entry = self.reader.entry(self.log.blocks, 0)?;
            if let (Kind::Checkpoint, What::Placed(root)) = (head.kind, entry.what) {
                self.next_root = root;
                // The anchor that is still to come is later than the frame.
                self.reader.next();
                self.log.begin(self.reader.mark(), Some(start));
                return Ok(Stage::Recovered);
            }
            self.reader.next();
        }
        self.reader = Reader::new(start);
        Ok(Stage::Replay)
    }

    /// Takes frames, up to the first of which something was lost, or of a checkpoint that did not end.
    pub(crate) fn replay<S: Storage>(&mut self, storage: &mut S) -> Result<Stage, Error> {
        while let Some(head) = self.reader.head(storage, &self.disk, self.log.blocks)? {
            if head.kind != Kind::Changes || !self.is_whole(storage, head)? {
                break;
            }
            self.take(head)?;
            let carrier = (head.carried > 0).then(|| self.reader.mark());
            let carrier = self.log.carrier().or(carrier);
            self.reader.next();
            self.log.begin(self.reader.mark(), carrier);
        }
        Ok(Stage::Opened)
    }

    /// Whether all that the frame speaks of is there.
    fn is_whole<S: Storage>(&mut self, storage: &mut S, head: Head) -> Result<bool, Error> {
        while self.reader.entry < head.entries {
            let number = self.reader.entry;
            let Entry { index, what, .. } = self.reader.entry(self.log.blocks, number)?;
            match what {
                What::Forgotten(_) => self.reader.entry += 1,
                What::Carried(record) => {
                    let (at, _) = self.reader.place(self.reader.carried);
                    let block = self.log.blocks.get_mut(at).ok_or(Error::Log)?;
                    if self.disk.keys.open(0, index, &record, block).is_err() {
                        return Ok(false);
                    }
                    self.reader.entry += 1;
                    self.reader.carried += 1;
                }
                What::Placed(_) => {
                    let most = LONGEST.min(head.entries - number);
                    let follows = |next: &usize| {
                        let entry = self.reader.entry(self.log.blocks, number + next);
                        entry.is_ok_and(|entry| {
                            entry.index == index + count(*next)
                                && matches!(entry.what, What::Placed(_))
                        })
                    };
                    let len = (0..most).take_while(follows).count();
                    if !self.are_placed(storage, index, len)? {
                        return Ok(false);
                    }
                    self.reader.entry += len;
                }
            }
        }
        Ok(true)
    }

    /// Whether `len` blocks from `first` on, of which the next entries speak, are in their places.
    fn are_placed<S: Storage>(
        &mut self,
        storage: &mut S,
        first: u64,
        len: usize,
    ) -> Result<bool, Error> {
        let blocks = self.run.blocks.get_mut(..len).unwrap_or_default();
        storage.read(first, blocks)?;
        for ((index, number), block) in (first..).zip(self.reader.entry..).zip(blocks) {
            let entry = self.reader.entry(self.log.blocks, number)?;
            let What::Placed(record) = entry.what else { return Err(Error::Malformed) };
            if self.disk.keys.open(0, index, &record, block).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Notes what the frame says.
    fn take(&mut self, head: Head) -> Result<(), Error> {
        let mut carried = 0;
        for number in 0..head.entries {
            let Entry { index, what, .. } = self.reader.entry(self.log.blocks, number)?;
            match what {
                What::Forgotten(count) => self.table.forget(index, count)?,
                What::Placed(record) => {
                    self.table.put(Pending { index, at: At::Place, record })?;
                }
                What::Carried(record) => {
                    let (_, position) = self.reader.place(carried);
                    carried += 1;
                    self.table.put(Pending { index, at: At::Log(position), record })?;
                }
            }
        }
        Ok(())
    }
}
