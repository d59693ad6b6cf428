//! Memory for sealed disks of protected VMs: taken once, and used again by later VMs.
#![expect(
    unsafe_code,
    reason = "what is lent lies in memory of its own, which is never given back"
)]

use core::mem::MaybeUninit;
use core::slice;

use disk::storage::Block;
use disk::volume::{LEVELS, LONGEST, Memory, Pending, RANGES, Range, Slot, Step};
use ept::addr::Frame;
use ticket::Disk;
use virtio::sealed::{Room, Sealed, Wanted};

use crate::memory::{self, POOL};
use crate::random;
use crate::shootdown;

/// Entries of a disk's log that there is memory for: 16 MiB of changes.
const ENTRIES: usize = 4096;
/// Nodes of a disk's tree that are remembered: 128 MiB of data in each 256 of them at the lowest level.
const NODES: usize = 32;

/// Memory for `N`, each of which `fill` puts in its place.
pub(super) fn lend<T, const N: usize>(
    mut fill: impl FnMut(&mut MaybeUninit<T>) -> &mut T,
) -> Option<&'static mut [T; N]> {
    let bytes = u64::try_from(N * size_of::<T>()).ok()?;
    let mut pool = shootdown::lock(&POOL);
    let span = pool.may_spend().then(|| pool.take(bytes))??;
    drop(pool);
    let place = memory::pointer::<MaybeUninit<T>>(Frame::at(span.start())?)?;
    // SAFETY: the frames were given just now, and to nobody else; they have room for N of them.
    let places = unsafe { slice::from_raw_parts_mut(place.as_ptr(), N) };
    for place in &mut *places {
        let _ = fill(place);
    }
    // SAFETY: each was filled just now.
    unsafe { places.assume_init_mut() }.try_into().ok()
}

/// Memory for `N` blocks.
fn blocks<const N: usize>() -> Option<&'static mut [Block; N]> {
    const EMPTY: Block = [0; 4096];
    lend(|place| place.write(EMPTY))
}

/// What a disk needs.
fn room() -> Option<Room> {
    let volume = Memory {
        entries: lend::<_, ENTRIES>(|place| place.write(Pending::EMPTY))?,
        ranges: lend::<_, RANGES>(|place| place.write(Range::EMPTY))?,
        nodes: lend::<_, NODES>(|place| place.write(Slot::EMPTY))?,
        path: lend::<_, LEVELS>(|place| place.write(Step::EMPTY))?,
        frames: blocks::<LONGEST>()?,
        run: blocks::<LONGEST>()?,
        notes: lend::<_, LONGEST>(|place| place.write(Pending::EMPTY))?,
    };
    Some(Room { volume, buffer: blocks()? })
}

/// What a ticket says of a disk, and random bytes; `None` if there are none.
pub(super) fn wanted(disk: &Disk) -> Option<Wanted> {
    let random = random::bytes32()?;
    Some(Wanted {
        id: disk.id,
        key: *disk.key.bytes(),
        blocks: disk.blocks,
        total: disk.total,
        moment: disk.moment,
        opening: random.first_chunk().copied(),
    })
}

/// The disk that is wanted, in the memory of one that is over, or in new memory.
pub(super) fn renew(
    over: Option<&'static mut Sealed>,
    wanted: Wanted,
) -> Option<&'static mut Sealed> {
    if let Some(over) = over {
        over.renew(wanted);
        return Some(over);
    }
    let mut disk = Some(Sealed::new(wanted, room()?));
    let [place] = lend::<_, 1>(|place| place.write(disk.take()))?;
    place.as_mut()
}
