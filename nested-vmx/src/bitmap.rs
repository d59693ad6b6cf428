//! The MSR bitmaps of a VM.
//!
//! The host may change its bitmaps at any time without telling, and merging 4 KiB at each entry costs
//! more than the exit itself. So the processor's bitmaps let through only what is asked for often, by
//! a copy of the host's bits made at each entry. Everything else exits, and is looked up in the
//! host's bitmaps at that moment.

use crate::msr::BITMAP_BYTES;
use crate::unroll::{UNROLLED, unroll};

/// Registers that a VM uses often, and those that VMX switches, which only the processor can read
/// and write for a VM.
const DIRECT: &[u32] = &[
    0x10,  // IA32_TIME_STAMP_COUNTER
    0x48,  // IA32_SPEC_CTRL
    0x49,  // IA32_PRED_CMD
    0x174, // IA32_SYSENTER_CS, _ESP, _EIP
    0x175,
    0x176,
    0x1d9,       // IA32_DEBUGCTL
    0x277,       // IA32_PAT
    0x38f,       // IA32_PERF_GLOBAL_CTRL
    0xc000_0080, // IA32_EFER
    0xc000_0081, // IA32_STAR
    0xc000_0082, // IA32_LSTAR
    0xc000_0083, // IA32_CSTAR
    0xc000_0084, // IA32_FMASK
    0xc000_0100, // IA32_FS_BASE
    0xc000_0101, // IA32_GS_BASE
    0xc000_0102, // IA32_KERNEL_GS_BASE
    0xc000_0103, // IA32_TSC_AUX
];

/// Whether an access to `index` exits only if the host's bitmaps asked for that when the VM was
/// entered. What they say by now does not matter then.
#[must_use]
pub fn is_direct(index: u32) -> bool {
    DIRECT.contains(&index)
}

/// Number of the 8-byte word, and the bit in it, of `index` in the read bitmaps; words for writes are
/// [`WRITES`] further on (SDM vol. 3, 26.6.9). `None` outside both ranges: such accesses always exit.
#[must_use]
#[inline]
pub fn place(index: u32) -> Option<(usize, u64)> {
    let (base, low) = match index {
        0..0x2000 => (0, index),
        0xc000_0000..0xc000_2000 => (128, index & 0x1fff),
        _ => return None,
    };
    Some((base + usize::try_from(low / 64).ok()?, 1 << (low % 64)))
}

/// Distance from a word for reads to the word for writes.
pub const WRITES: usize = 256;

/// Makes bitmaps let nothing through; `set` sets their words.
pub fn close(mut set: impl FnMut(usize, u64)) {
    (0..BITMAP_BYTES / 8).for_each(|place| set(place, u64::MAX));
}

/// Words of the read bitmaps in which [`DIRECT`] has bits.
const WORDS: usize = 8;
const _: () = assert!(WORDS <= UNROLLED, "see `unroll`");

/// One of those words, and the bits of [`DIRECT`] in it.
type Word = (usize, u64);

const COPIED: [Word; WORDS] = {
    let mut words = [(0, 0); WORDS];
    let (mut used, mut rest) = (0, DIRECT);
    while let [index, after @ ..] = rest {
        let (base, low) = if *index < 0x2000 { (0, *index) } else { (128, *index & 0x1fff) };
        #[expect(clippy::as_conversions, reason = "from a smaller type, at compile time")]
        let place = base + (low / 64) as usize;
        let mut at = 0;
        #[expect(clippy::indexing_slicing, reason = "checked at compile time")]
        {
            while at < used && words[at].0 != place {
                at += 1;
            }
            words[at] = (place, words[at].1 | 1 << (low % 64));
        }
        if at == used {
            used += 1;
        }
        rest = after;
    }
    assert!(used == WORDS, "no word is missing and none is spare");
    words
};

/// What exits whatever the host says, in the words that are copied: see [`always`].
pub type Always = [(u64, u64); WORDS];

/// The bits to read and to write of everything that is not copied, and of what the visor's own rules
/// deny the host: that exits for its VMs as well.
#[must_use]
pub fn always(denied: &[u8; BITMAP_BYTES]) -> Always {
    let word = |at: usize| {
        let bytes = denied.as_chunks().0.get(at).copied();
        bytes.map_or(u64::MAX, u64::from_le_bytes)
    };
    COPIED.map(|(at, bits)| (!bits | word(at), !bits | word(at + WRITES)))
}

/// Copies the host's bits for registers that a VM uses often into the processor's bitmaps: `host` gives
/// words of the host's, as they are now, and `set` sets words of the processor's.
#[inline]
pub fn merge(always: &Always, host: impl Fn(usize) -> u64, set: impl FnMut(usize, u64)) {
    let mut merge = Merge { always, host, set };
    unroll!(merge.word());
}

struct Merge<'a, H, S> {
    always: &'a Always,
    host: H,
    set: S,
}

impl<H: Fn(usize) -> u64, S: FnMut(usize, u64)> Merge<'_, H, S> {
    #[inline(always)]
    fn word<const POSITION: usize>(&mut self) {
        let (Some((at, _)), Some((reads, writes))) =
            (COPIED.get(POSITION), self.always.get(POSITION))
        else {
            return;
        };
        for (place, always) in [(*at, reads), (*at + WRITES, writes)] {
            (self.set)(place, always | (self.host)(place));
        }
    }
}
