//! Machines to project: registers, RAM, and generators for both.

use ept::addr::{PAGE, Span};
use ept::mtrr::Mtrrs;
use proptest::collection::vec;
use proptest::prelude::*;

pub(crate) const WIDTH: u8 = 36;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// IA32_MTRRCAP of a processor with eight pairs, fixed ranges and write combining.
pub(crate) const CAP: u64 = 1 << 10 | 1 << 8 | 8;

/// MTRRs as raw values.
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    pub(crate) cap: u64,
    pub(crate) default: u64,
    pub(crate) fixed: [u64; 11],
    /// Base and mask.
    pub(crate) variable: Vec<(u64, u64)>,
}

impl Registers {
    /// On, without any range.
    pub(crate) fn plain(default: u64) -> Self {
        Self { cap: CAP, default: default | 1 << 11, fixed: [0; 11], variable: Vec::new() }
    }

    /// Adds a range of `len` bytes, a power of two.
    pub(crate) fn with(mut self, base: u64, len: u64, kind: u64) -> Self {
        let mask = ((1 << WIDTH) - 1) & !(len - 1);
        self.variable.push((base | kind, mask | 1 << 11));
        self
    }

    /// Fixed ranges as firmware sets them: write back, but for 640 KiB to 1 MiB.
    pub(crate) fn with_legacy_hole(mut self) -> Self {
        self.default |= 1 << 10;
        self.fixed = [0; 11];
        self.fixed[..2].fill(0x0606_0606_0606_0606);
        self
    }

    pub(crate) fn msr(&self, index: u32) -> u64 {
        let fixed = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
        if let Some(at) = fixed.iter().position(|f| *f == index) {
            assert!(self.cap & 1 << 8 != 0, "no fixed ranges here");
            return self.fixed[at];
        }
        match index {
            0xfe => self.cap,
            0x2ff => self.default,
            _ => {
                let offset = usize::try_from(index.checked_sub(0x200).unwrap()).unwrap();
                assert!(offset / 2 < usize::from(self.cap.to_le_bytes()[0]), "no such MSR");
                let (base, mask) = self.variable.get(offset / 2).copied().unwrap_or_default();
                [base, mask][offset % 2]
            }
        }
    }

    pub(crate) fn read(&self) -> Mtrrs {
        Mtrrs::read(WIDTH, |index| self.msr(index))
    }
}

/// The address bits that masks in these tests mostly have.
const HIGH: u64 = (1 << WIDTH) - (1 << 22);

/// Arbitrary registers: all encodings, masks with holes, ranges that often meet.
pub(crate) fn registers() -> impl Strategy<Value = Registers> {
    let kind = prop_oneof![8 => proptest::sample::select(vec![0_u64, 1, 4, 5, 6]), 1 => 0..8_u64];
    let weird = (any::<u64>(), any::<u64>(), any::<u64>())
        .prop_map(|(base, a, b)| (base, (a | b) & !0xfff | HIGH));
    let contiguous =
        (any::<u64>(), 12..WIDTH).prop_map(|(base, bits)| (base, (1 << WIDTH) - (1_u64 << bits)));
    let pair = (prop_oneof![weird, contiguous], kind.clone(), prop::bool::weighted(0.9)).prop_map(
        |((base, mask), kind, valid)| {
            // Few distinct high bits, so that ranges overlap and lie where spans are drawn.
            let base = base & 0x2_407f_f000 | kind;
            (base, mask & 0xf_ffff_f000 | u64::from(valid) << 11)
        },
    );
    let on = prop::bool::weighted(0.9);
    (kind, on, on, any::<[u64; 11]>(), vec(pair, 0..=8)).prop_map(
        |(kind, on, fixed_on, fixed, variable)| Registers {
            cap: CAP,
            default: kind | u64::from(fixed_on) << 10 | u64::from(on) << 11,
            fixed: fixed.map(|f| f & 0x0707_0707_0707_0707),
            variable,
        },
    )
}

/// Up to six pieces of RAM in ascending order, below 5 GiB, with ends of all alignments.
pub(crate) fn ram() -> impl Strategy<Value = Vec<Span>> {
    let unit = proptest::sample::select(vec![PAGE, 16 * PAGE, 2 * MIB, GIB]);
    vec((unit.clone(), 0..1024_u64, unit, 1..1024_u64), 1..=6).prop_map(|pieces| {
        let mut ram = Vec::new();
        let mut end = 0_u64;
        for (gap_unit, gap, unit, len) in pieces {
            let start = end + gap_unit * (gap % 4);
            let len = unit * if unit == GIB { 1 + len % 2 } else { len };
            let piece = Span::sized(start, len).unwrap();
            if piece.end() > 5 * GIB {
                break;
            }
            ram.push(piece);
            end = piece.end();
        }
        ram
    })
}

/// A part of `ram` in whole pages, from two arbitrary numbers.
pub(crate) fn part(ram: &[Span], place: u64, len: u64) -> Option<Span> {
    let span = ram.get(usize::try_from(place % 7).unwrap() % ram.len().max(1))?;
    let pages = span.len() / PAGE;
    let first = place / 7 % pages;
    let len = 1 + len % (pages - first).min(2048);
    Span::sized(span.start() + first * PAGE, len * PAGE)
}
