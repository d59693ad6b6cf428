//! Numbers in blocks, and blocks that are sealed as a whole.

use seal::aead::{AeadKey, Forged, Tag};

use crate::storage::Block;

/// The 8 bytes at `at`, little-endian.
pub(crate) fn word(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |word| u64::from_le_bytes(*word))
}

/// The `N` bytes at `at`.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().unwrap_or([0; N])
}

/// Puts `from` at `at`.
pub(crate) fn put(bytes: &mut [u8], at: usize, from: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + from.len()) {
        to.copy_from_slice(from);
    }
}

/// Whether nothing but zeros is there from `at` on.
pub(crate) fn zeros(bytes: &[u8], at: usize) -> bool {
    bytes.iter().skip(at).all(|byte| *byte == 0)
}

/// Where the content of a block that carries its own nonce and tag begins.
pub(crate) const BODY: usize = 16;

/// The parts of such a block.
type Parts<'a> = (&'a mut [u8; 16], &'a mut [u8], &'a mut Tag);

fn parts(block: &mut Block) -> Option<Parts<'_>> {
    let (nonce, rest) = block.split_first_chunk_mut()?;
    let (body, tag) = rest.split_last_chunk_mut()?;
    Some((nonce, body, tag))
}

/// Seals what is between the first and the last 16 bytes, and puts nonce and tag there.
pub(crate) fn seal(key: &AeadKey, nonce: [u8; 16], ad: &[u8], block: &mut Block) -> Tag {
    let Some((to, body, tag)) = parts(block) else { return [0; 16] };
    *to = nonce;
    *tag = key.encrypt(&nonce, ad, body);
    *tag
}

/// Opens it in place.
pub(crate) fn open(key: &AeadKey, ad: &[u8], block: &mut Block) -> Result<Tag, Forged> {
    let (nonce, body, tag) = parts(block).ok_or(Forged)?;
    key.decrypt(nonce, ad, body, tag)?;
    Ok(*tag)
}

/// A number of things in memory.
pub(crate) fn count(things: usize) -> u64 {
    u64::try_from(things).unwrap_or(u64::MAX)
}

/// A number of things that may be more than there is room for.
pub(crate) fn fit(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
