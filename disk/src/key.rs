//! Keys and nonces of an opened disk.

use seal::aead::AeadKey;
use seal::key::hkdf;

use crate::bytes::{array, put};
use crate::record::Record;
use crate::storage::{Block, Error};

/// Begins what every derivation is bound to; its number changes with any part of the format.
const CONTEXT: &[u8] = b"visor disk 1";

/// The key for `purpose`: 0 the header, 1 data, 2 nodes, 3 the log, 4 anchors.
pub(crate) fn derive(salt: &[u8; 32], secret: &[u8; 32], purpose: u8) -> AeadKey {
    let key = hkdf(salt, secret, [CONTEXT, &[purpose], &[]]);
    AeadKey::new(array(key.bytes(), 0))
}

/// What blocks are sealed with.
#[derive(Debug)]
pub(crate) struct Keys {
    data: AeadKey,
    nodes: AeadKey,
    pub(crate) log: AeadKey,
    pub(crate) anchors: AeadKey,
    /// Random for each opening: a host may bring back an older disk, and any count on the disk with it.
    opening: [u8; 10],
    /// The nonce given out last.
    count: u64,
}

impl Keys {
    pub(crate) fn new(id: &[u8; 16], volume: &[u8; 32], opening: [u8; 10]) -> Self {
        let mut salt = [0; 32];
        put(&mut salt, 0, id);
        let key = |purpose| derive(&salt, volume, purpose);
        Self { data: key(1), nodes: key(2), log: key(3), anchors: key(4), opening, count: 0 }
    }

    /// A nonce that was never given out. One count serves all keys.
    pub(crate) fn nonce(&mut self) -> Result<[u8; 16], Error> {
        let next = self.count + 1;
        if next >= 1 << 48 {
            return Err(Error::Exhausted);
        }
        self.count = next;
        let mut nonce = [0; 16];
        put(&mut nonce, 0, &self.opening);
        put(&mut nonce, 10, &array::<6>(&next.to_le_bytes(), 0));
        Ok(nonce)
    }

    /// Seals in place what will be the node `index` of `level`, or data for level 0.
    pub(crate) fn seal(
        &mut self,
        level: u8,
        index: u64,
        block: &mut Block,
    ) -> Result<Record, Error> {
        let nonce = self.nonce()?;
        let tag = self.key(level).encrypt(&nonce, &ad(level, index), block);
        Ok(Record::new(nonce, tag))
    }

    /// Opens it in place. If it is not what `record` says it is zeroed.
    pub(crate) fn open(
        &self,
        level: u8,
        index: u64,
        record: &Record,
        block: &mut Block,
    ) -> Result<(), Error> {
        let opened =
            self.key(level).decrypt(&record.nonce(), &ad(level, index), block, &record.tag());
        opened.map_err(|_| Error::Forged { level, index })
    }

    const fn key(&self, level: u8) -> &AeadKey {
        if level == 0 { &self.data } else { &self.nodes }
    }
}

fn ad(level: u8, index: u64) -> [u8; 16] {
    (u128::from(index) | u128::from(level) << 64).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_are_the_opening_and_a_count_that_ends() {
        let mut keys = Keys::new(&[1; 16], &[2; 32], [3; 10]);
        assert_eq!(keys.nonce(), Ok([3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 1, 0, 0, 0, 0, 0]));
        keys.count = (1 << 48) - 2;
        assert_eq!(keys.nonce(), Ok([3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 255, 255, 255, 255, 255, 255]));
        assert_eq!(keys.nonce(), Err(Error::Exhausted));
        assert_eq!(keys.nonce(), Err(Error::Exhausted));
    }

    #[test]
    fn a_block_opens_only_as_what_it_was_sealed_as() {
        let mut keys = Keys::new(&[1; 16], &[2; 32], [3; 10]);
        let mut sealed = [5; 4096];
        let record = keys.seal(1, 7, &mut sealed).unwrap();
        for (level, index) in [(1, 7), (1, 8), (2, 7), (0, 7)] {
            let mut block = sealed;
            let opened = keys.open(level, index, &record, &mut block);
            let is_it = (level, index) == (1, 7);
            assert_eq!(opened, if is_it { Ok(()) } else { Err(Error::Forged { level, index }) });
            assert_eq!(block, [if is_it { 5 } else { 0 }; 4096]);
        }
    }
}
