//! Memory types of physical addresses: the memory type range registers (SDM vol. 3, "Memory Type
//! Range Registers (MTRRs)", 12.11).
//!
//! Without a monitor the processor applies them itself; under EPT it ignores them and takes the
//! type from the leaf, so EPT01 has to repeat what they say.

use crate::addr::{PAGE, Span};
use crate::list::List;

/// IA32_MTRRCAP.
pub const CAP: u32 = 0xfe;
/// IA32_MTRR_DEF_TYPE.
pub const DEFAULT: u32 = 0x2ff;
/// IA32_MTRR_PHYSBASE0; the mask follows its base, pair by pair.
const VARIABLE: u32 = 0x200;
/// The fixed-range registers, in the order of the addresses that they describe.
const FIXED: [u32; 11] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// Pairs that fit before the first fixed-range register, so that no count can exceed this.
const PAIRS: usize = 40;
/// One past the last variable-range register that can exist.
const VARIABLE_END: u32 = 0x250;
/// One past the last address with a fixed range.
const FIXED_END: u64 = 1 << 20;
/// Eight fields of one byte in each of the fixed-range registers.
const FIELDS: usize = FIXED.len() * 8;

/// IA32_MTRRCAP: fixed ranges exist.
const CAP_FIXED: u64 = 1 << 8;
/// IA32_MTRRCAP: write combining exists.
const CAP_COMBINING: u64 = 1 << 10;
/// IA32_MTRR_DEF_TYPE: the fixed ranges count.
const FIXED_ENABLE: u64 = 1 << 10;
/// IA32_MTRR_DEF_TYPE: the MTRRs count; without it all memory is uncacheable.
const ENABLE: u64 = 1 << 11;
/// IA32_MTRR_PHYSMASK: the pair counts.
const VALID: u64 = 1 << 11;

/// How the processor caches memory; the numbers are those of MTRRs and of EPT leaves (SDM vol. 3,
/// table 12-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemoryType {
    /// Uncacheable.
    Uc = 0,
    /// Write combining.
    Wc = 1,
    /// Write through.
    Wt = 4,
    /// Write protected.
    Wp = 5,
    /// Write back.
    Wb = 6,
}

impl MemoryType {
    /// Every type.
    pub const ALL: [Self; 5] = [Self::Uc, Self::Wc, Self::Wt, Self::Wp, Self::Wb];

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Uc => 0,
            Self::Wc => 1,
            Self::Wt => 4,
            Self::Wp => 5,
            Self::Wb => 6,
        }
    }

    /// The type with this number; `None` for the reserved ones.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// The type in the low byte of a register; a reserved one is uncacheable, which is always
    /// correct if slow.
    fn in_low_byte(raw: u64) -> Self {
        let [number, ..] = raw.to_le_bytes();
        Self::from_number(number).unwrap_or(Self::Uc)
    }

    /// What two variable ranges that both hold an address make of it (12.11.4.1); combinations that
    /// the manual leaves undefined are uncacheable.
    fn with(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (Self::Wt, Self::Wb) | (Self::Wb, Self::Wt) => Self::Wt,
            _ => Self::Uc,
        }
    }
}

/// The memory types within a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Types {
    /// Every byte has this one.
    One(MemoryType),
    /// More than one, or the span is empty.
    Mixed,
}

/// A variable range: the addresses that agree with `base` in every bit of `mask`. The type stays in
/// the low byte of `base`, where no mask reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    base: u64,
    mask: u64,
}

/// How much of an aligned block a variable range holds.
#[derive(PartialEq)]
enum Share {
    None,
    Part,
    All,
}

impl Range {
    fn kind(&self) -> MemoryType {
        MemoryType::in_low_byte(self.base)
    }

    /// The mask need not be contiguous: bits within the block that it names cut the block up.
    fn share_of(&self, block: Span) -> Share {
        let within = block.len() - 1;
        if (block.start() ^ self.base) & self.mask & !within != 0 {
            Share::None
        } else if self.mask & within != 0 {
            Share::Part
        } else {
            Share::All
        }
    }
}

/// What one processor's MTRRs say. Equal values give equal memory types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mtrrs {
    /// For what no range holds; uncacheable when the MTRRs are off.
    default: MemoryType,
    /// Types below 1 MiB, if the fixed ranges are on.
    fixed: Option<[MemoryType; FIELDS]>,
    variable: List<Range, PAIRS>,
}

impl Mtrrs {
    /// Reads the registers that exist through `msr`; `width` is the number of physical-address
    /// bits.
    #[must_use]
    pub fn read(width: u8, mut msr: impl FnMut(u32) -> u64) -> Self {
        let cap = msr(CAP);
        let control = msr(DEFAULT);
        let nothing = Range { base: 0, mask: 0 };
        let mut mtrrs = Self { default: MemoryType::Uc, fixed: None, variable: List::new(nothing) };
        if control & ENABLE == 0 {
            return mtrrs;
        }
        mtrrs.default = MemoryType::in_low_byte(control);
        if cap & CAP_FIXED != 0 && control & FIXED_ENABLE != 0 {
            let mut types = [MemoryType::Uc; FIELDS];
            for (fields, index) in types.chunks_exact_mut(8).zip(FIXED) {
                let raw = msr(index);
                for (byte, field) in (0_u8..).zip(fields) {
                    *field = MemoryType::in_low_byte(raw >> (8 * byte));
                }
            }
            mtrrs.fixed = Some(types);
        }
        for index in (VARIABLE..variable_end(cap)).step_by(2) {
            let (base, mask) = (msr(index), msr(index + 1));
            if mask & VALID != 0 {
                let mask = mask & address_bits(width);
                let base = base & (mask | 0xff);
                // The list has room for every pair that `variable_end` allows.
                let _ = mtrrs.variable.push(Range { base, mask });
            }
        }
        mtrrs
    }

    /// The types within `span`, counted in whole pages. Exact for every mask; the cost grows with
    /// the number of places where a range begins or ends within the span, not with its length.
    #[must_use]
    pub fn type_of(&self, span: Span) -> Types {
        let span = span.grow_to(PAGE);
        let mut start = span.start();
        let mut found = None;
        while start < span.end() {
            let size = 1 << (span.end() - start).ilog2().min(start.trailing_zeros());
            let Some(kind) = Span::sized(start, size).and_then(|block| self.block(block)) else {
                return Types::Mixed;
            };
            if *found.get_or_insert(kind) != kind {
                return Types::Mixed;
            }
            start += size;
        }
        found.map_or(Types::Mixed, Types::One)
    }

    /// The one type of `block`, whose length is a power of two and divides its start.
    fn block(&self, block: Span) -> Option<MemoryType> {
        if let Some(types) = self.fixed.as_ref().filter(|_| block.start() < FIXED_END) {
            return if block.len() == PAGE {
                types.get(fixed_field(block.start())?).copied()
            } else {
                self.halves(block, u64::MAX)
            };
        }
        let ranges = |share| {
            let all = self.variable.iter();
            all.filter(move |range| range.share_of(block) == share)
        };
        let certain = ranges(Share::All).map(Range::kind).reduce(MemoryType::with);
        let kind = certain.unwrap_or(self.default);
        // Ranges of the type that the rest has anyway change nothing.
        if ranges(Share::Part).all(|range| range.kind() == kind) {
            Some(kind)
        } else {
            let cuts = ranges(Share::Part).fold(0, |cuts, range| cuts | range.mask);
            self.halves(block, cuts)
        }
    }

    /// The one type of both halves of `block`. Address bits outside `cuts` decide nothing, so that
    /// halves that differ in one of those are the same.
    fn halves(&self, block: Span, cuts: u64) -> Option<MemoryType> {
        let half = block.len() / 2;
        let low = self.block(Span::sized(block.start(), half)?)?;
        let same = cuts & half == 0 || self.block(Span::sized(block.start() + half, half)?)? == low;
        same.then_some(low)
    }
}

/// Which of the fixed ranges' fields describes `address`: eight of 64 KiB, sixteen of 16 KiB, then
/// 4 KiB each (SDM vol. 3, table 12-9).
fn fixed_field(address: u64) -> Option<usize> {
    let field = match address {
        0..0x8_0000 => address >> 16,
        0x8_0000..0xc_0000 => 8 + ((address - 0x8_0000) >> 14),
        _ => 24 + ((address - 0xc_0000) >> 12),
    };
    usize::try_from(field).ok()
}

/// Bits 51:12 of an address, those that `width` physical-address bits leave out excepted.
const fn address_bits(width: u8) -> u64 {
    let width = if width < 52 { width } else { 52 };
    ((1 << width) - 1) & !(PAGE - 1)
}

/// One past the last variable-range register that exists.
fn variable_end(cap: u64) -> u32 {
    let [pairs, ..] = cap.to_le_bytes();
    (VARIABLE + 2 * u32::from(pairs)).min(VARIABLE_END)
}

/// The registers as their owner has written them, where that is not the processor's own business.
#[derive(Clone, Debug)]
pub struct Registers {
    cap: u64,
    values: List<(u32, u64), REGISTERS>,
}

/// IA32_MTRR_DEF_TYPE, the fixed ranges, and all pairs there can be.
const REGISTERS: usize = 1 + FIXED.len() + 2 * PAIRS;

impl Registers {
    /// Copies the registers that exist.
    #[must_use]
    #[expect(clippy::large_stack_frames, reason = "runs once, at boot, on a stack of 64 KiB")]
    pub fn read(mut msr: impl FnMut(u32) -> u64) -> Self {
        let cap = msr(CAP);
        let mut values = List::new((0, 0));
        let fixed: &[u32] = if cap & CAP_FIXED != 0 { &FIXED } else { &[] };
        let variable = VARIABLE..variable_end(cap);
        for index in [DEFAULT].into_iter().chain(fixed.iter().copied()).chain(variable) {
            // There is room for every register that can exist.
            let _ = values.push((index, msr(index)));
        }
        Self { cap, values }
    }

    /// The value of register `index`; `None` if it does not exist.
    #[must_use]
    pub fn value(&self, index: u32) -> Option<u64> {
        let found = self.values.iter().find(|(known, _)| *known == index);
        found.map(|(_, value)| *value).or((index == CAP).then_some(self.cap))
    }

    /// Writes `value` to register `index` of a processor with `width` physical-address bits; `false`
    /// where WRMSR raises #GP(0).
    pub fn write(&mut self, index: u32, value: u64, width: u8) -> bool {
        let valid = is_valid_write(index, value, self.cap, width);
        let place = self.values.iter_mut().find(|(known, _)| *known == index);
        match place.filter(|_| valid) {
            Some(place) => {
                place.1 = value;
                true
            }
            None => false,
        }
    }

    /// Whether the MTRRs are on.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.value(DEFAULT).is_some_and(|control| control & ENABLE != 0)
    }
}

/// Whether some processor has an MTRR of this index: writes to these must exit.
#[must_use]
pub fn is_mtrr(index: u32) -> bool {
    index == CAP
        || index == DEFAULT
        || (VARIABLE..VARIABLE_END).contains(&index)
        || FIXED.contains(&index)
}

/// Whether a processor whose IA32_MTRRCAP is `cap` and that has `width` physical-address bits
/// takes `value` in MTRR `index`; otherwise WRMSR raises #GP(0).
#[must_use]
pub fn is_valid_write(index: u32, value: u64, cap: u64, width: u8) -> bool {
    let valid_type = |number: u8| {
        MemoryType::from_number(number)
            .is_some_and(|kind| kind != MemoryType::Wc || cap & CAP_COMBINING != 0)
    };
    let [low, ..] = value.to_le_bytes();
    if index == DEFAULT {
        let fixed = if cap & CAP_FIXED != 0 { FIXED_ENABLE } else { 0 };
        value & !(0xff | fixed | ENABLE) == 0 && valid_type(low)
    } else if FIXED.contains(&index) {
        cap & CAP_FIXED != 0 && value.to_le_bytes().into_iter().all(valid_type)
    } else if !(VARIABLE..variable_end(cap)).contains(&index) {
        false
    } else if index.is_multiple_of(2) {
        value & !(0xff | address_bits(width)) == 0 && valid_type(low)
    } else {
        value & !(VALID | address_bits(width)) == 0
    }
}
