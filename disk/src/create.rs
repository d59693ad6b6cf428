//! New disks, for tools.

use crate::anchor::Anchor;
use crate::geometry::Geometry;
use crate::header::Header;
use crate::key::Keys;
use crate::record::Record;
use crate::storage::{Block, Error, Storage};

/// Blocks that the log of a new disk speaks of at most: each takes a volume 48 bytes of memory.
pub const MOST_ENTRIES: u64 = 4_096;

/// The disk that `total` blocks make: with as much capacity as there can be beside a log of at least 1/512,
/// 64 blocks at least and 32,768 at most. `None` if there are too few or too many.
#[must_use]
pub fn sizes(total: u64) -> Option<Geometry> {
    let log = (total / 512).clamp(64, 32_768);
    let body = total.checked_sub(log + 4)?;
    let (mut low, mut high) = (0, body.min(1 << 32));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let needs = Geometry::new(middle, 64, 1)?.log_at();
        if needs <= body { low = middle } else { high = middle - 1 }
    }
    let taken = Geometry::new(low, 64, 1)?.log_at();
    // One block more may need more than one node more: what is left over is the log's.
    let sizes = Geometry::new(low, total - taken - 4, low.min(MOST_ENTRIES))?;
    (sizes.total() == total).then_some(sizes)
}

/// Random bytes that a new disk needs, besides those in its header.
#[derive(Debug)]
pub struct Seeds {
    /// The salts of the two headers.
    pub salts: [[u8; 32]; 2],
    /// As of an opening.
    pub opening: [u8; 10],
}

/// Makes an empty disk, by writing three blocks: whatever else the storage holds is never read. The storage must
/// not answer [`Error::Wait`]. `block` is room for one.
///
/// # Errors
/// [`Error::Failed`].
pub fn create<S: Storage>(
    storage: &mut S,
    header: &Header,
    wrapping: &[u8; 32],
    seeds: &Seeds,
    block: &mut Block,
) -> Result<(), Error> {
    let sizes = header.geometry;
    let mut keys = Keys::new(&header.id, &header.volume, seeds.opening);
    let nonce = keys.nonce()?;
    let anchor = Anchor { generation: 0, moment: 0, root: Record::NONE };
    let _ = anchor.seal(&keys.anchors, nonce, sizes.capacity(), block);
    storage.write(sizes.anchors_at(), core::slice::from_ref(block))?;
    storage.flush()?;
    for (at, salt) in (sizes.headers_at()..).zip(&seeds.salts) {
        header.seal(wrapping, salt, block);
        storage.write(at, core::slice::from_ref(block))?;
        storage.flush()?;
    }
    Ok(())
}
