//! Records: what is to be known of a sealed block in order to open it.

use crate::bytes::{array, put, zeros};
use crate::storage::Block;

/// Nonce and tag of a sealed block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record(pub(crate) [u8; 32]);

impl Record {
    /// Of what was never written: it reads as zeros, and so does all that is below a node.
    pub(crate) const NONE: Self = Self([0; 32]);

    pub(crate) fn new(nonce: [u8; 16], tag: [u8; 16]) -> Self {
        let mut both = Self::NONE;
        put(&mut both.0, 0, &nonce);
        put(&mut both.0, 16, &tag);
        both
    }

    pub(crate) fn is_none(&self) -> bool {
        zeros(&self.0, 0)
    }

    pub(crate) fn nonce(&self) -> [u8; 16] {
        array(&self.0, 0)
    }

    pub(crate) fn tag(&self) -> [u8; 16] {
        array(&self.0, 16)
    }

    /// The record in `node` of the child with number `index` in its level.
    pub(crate) fn of(node: &Block, index: u64) -> Self {
        Self(array(node, offset(index)))
    }

    /// Puts it there.
    pub(crate) fn store(&self, node: &mut Block, index: u64) {
        put(node, offset(index), &self.0);
    }
}

/// Where the record of the child with number `index` in its level is in its node.
fn offset(index: u64) -> usize {
    usize::from((index % 128).to_le_bytes()[0]) * 32
}
