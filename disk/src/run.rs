//! Blocks that are written side by side.

use crate::bytes::count;
use crate::frame::LONGEST;
use crate::storage::{Block, Error, Stop, Storage};
use crate::table::Pending;

/// Sealed blocks that are written side by side in one request.
#[derive(Debug)]
pub(crate) struct Run<'m> {
    pub(crate) blocks: &'m mut [Block; LONGEST],
    pub(crate) at: u64,
    pub(crate) len: usize,
    /// What is to be noted of them, if they are data.
    pub(crate) notes: &'m mut [Pending; LONGEST],
}

impl Run<'_> {
    /// Writes what there is.
    pub(crate) fn write<S: Storage>(&mut self, storage: &mut S) -> Result<(), Stop> {
        let full = self.blocks.get(..self.len).unwrap_or_default();
        if !full.is_empty() {
            storage.write(self.at, full)?;
        }
        self.len = 0;
        Ok(())
    }

    /// Room for the block at `at`, which is written together with what there is if it can be.
    pub(crate) fn room<S: Storage>(
        &mut self,
        storage: &mut S,
        at: u64,
    ) -> Result<&mut Block, Error> {
        if self.len == LONGEST || at != self.at + count(self.len) {
            self.write(storage)?;
        }
        if self.len == 0 {
            self.at = at;
        }
        self.len += 1;
        self.blocks.get_mut(self.len - 1).ok_or(Error::Memory)
    }
}
