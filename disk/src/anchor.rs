//! Anchors: the root of the tree, as the last checkpoint left it.

use seal::aead::{AeadKey, Forged, Tag};

use crate::bytes::{self, BODY, array, put, word};
use crate::record::Record;
use crate::storage::Block;

/// What an anchor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    /// Counts checkpoints. The anchor is in the slot that is this modulo 2.
    pub(crate) generation: u64,
    /// Counts frames and anchors in the disk's life.
    pub(crate) moment: u64,
    pub(crate) root: Record,
}

impl Anchor {
    /// Seals it into `block`, for a disk of this capacity.
    pub(crate) fn seal(
        &self,
        key: &AeadKey,
        nonce: [u8; 16],
        capacity: u64,
        block: &mut Block,
    ) -> Tag {
        block.fill(0);
        put(block, BODY, &self.generation.to_le_bytes());
        put(block, BODY + 8, &self.moment.to_le_bytes());
        put(block, BODY + 16, &self.root.0);
        bytes::seal(key, nonce, &ad(capacity, self.generation % 2), block)
    }

    /// Opens the one in `block`, which comes from `slot`.
    pub(crate) fn open(
        key: &AeadKey,
        capacity: u64,
        slot: u64,
        block: &mut Block,
    ) -> Result<(Self, Tag), Forged> {
        let tag = bytes::open(key, &ad(capacity, slot), block)?;
        let (generation, moment) = (word(block, BODY), word(block, BODY + 8));
        // No disk lives so long; what counts on from there shall not overflow.
        if generation >= 1 << 63 || moment >= 1 << 63 {
            return Err(Forged);
        }
        Ok((Self { generation, moment, root: Record(array(block, BODY + 16)) }, tag))
    }
}

fn ad(capacity: u64, slot: u64) -> [u8; 16] {
    (u128::from(capacity) | u128::from(slot) << 64).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_of_another_size_or_with_numbers_that_could_overflow_are_none() {
        let key = AeadKey::new([1; 16]);
        for (generation, moment) in
            [(0, 0), ((1 << 63) - 1, (1 << 63) - 1), (1 << 63, 0), (0, u64::MAX)]
        {
            let anchor = Anchor { generation, moment, root: Record([3; 32]) };
            let mut block = [0; 4096];
            let tag = anchor.seal(&key, [2; 16], 130, &mut block);
            assert_eq!(Anchor::open(&key, 131, generation % 2, &mut block.clone()), Err(Forged));
            let opened = Anchor::open(&key, 130, generation % 2, &mut block);
            let counts = generation < 1 << 63 && moment < 1 << 63;
            assert_eq!(opened, counts.then_some((anchor, tag)).ok_or(Forged));
        }
    }
}
