//! Physical memory below 4 GiB, which `bare` maps where it is.

use bare::fault::Local;

pub(crate) const PAGE: u64 = 4096;

/// Frames for the drivers' own structures: the host's.
const POOL: usize = 128;
#[repr(C, align(4096))]
struct Frames([u8; POOL * 4096]);
static FRAMES: Local<Frames> = Local::new(Frames([0; POOL * 4096]));
static TAKEN: Local<u64> = Local::new(0);

/// A value in memory that a device or its registers share.
pub(crate) fn read<T: Copy>(at: u64) -> T {
    // SAFETY: mapped (module documentation); the program owns the machine and reads plain numbers.
    unsafe { (at as *const T).read_volatile() }
}

/// As [`read`], the other way.
pub(crate) fn write<T: Copy>(at: u64, value: T) {
    // SAFETY: mapped; the caller names a register, or memory that is a device's or a test's.
    unsafe { (at as *mut T).write_volatile(value) }
}

/// Sets and clears bits of a 32-bit register.
pub(crate) fn change(at: u64, clear: u32, set: u32) {
    write(at, read::<u32>(at) & !clear | set);
}

/// `count` zeroed frames of the host's, in a row, for good.
pub(crate) fn frames(count: u64) -> u64 {
    // SAFETY: the boot processor alone makes drivers.
    let taken = unsafe { &mut *TAKEN.get() };
    let first = FRAMES.get() as u64 + *taken * PAGE;
    *taken += count;
    assert!(*taken <= POOL as u64, "out of frames for drivers");
    first
}

/// The word that [`fill`] puts at `index`: the last step of SplitMix64.
fn word(seed: u64, index: u64) -> u64 {
    let mut value = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// Fills `bytes` bytes with what only `seed` gives.
pub(crate) fn fill(at: u64, bytes: u64, seed: u64) {
    for index in 0..bytes / 8 {
        write(at + 8 * index, word(seed, index));
    }
}

/// How many of the words of `bytes` bytes are those of `seed`.
pub(crate) fn matching(at: u64, bytes: u64, seed: u64) -> u64 {
    (0..bytes / 8).filter(|index| read::<u64>(at + 8 * index) == word(seed, *index)).count() as u64
}

/// Whether `bytes` bytes are all as [`fill`] left them.
pub(crate) fn holds(at: u64, bytes: u64, seed: u64) -> bool {
    matching(at, bytes, seed) == bytes / 8
}

/// The sum of a page's words, to tell whether it changed.
pub(crate) fn sum(page: u64) -> u64 {
    (0..PAGE / 8).fold(0, |sum: u64, index| sum.wrapping_add(read(page + 8 * index)))
}
