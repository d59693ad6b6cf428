//! What each part of physical memory is, told from the firmware's map.
//!
//! A [`MemoryMap`] is a step function over physical addresses: its steps are sorted by
//! construction, so no entry can overlap another, and the only operation, [`MemoryMap::paint`],
//! lets a more restrictive kind win. What firmware left ambiguous is thus never RAM.

use core::cell::Cell;
use core::fmt;

use ept::addr::{PAGE, PHYSICAL_END, Span};

/// A kind of memory, by its E820 number (ACPI 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(u32);

impl Kind {
    /// Not in the map.
    const HOLE: Self = Self(0);
    /// Memory for anybody to use.
    pub const RAM: Self = Self(1);
    /// In use by firmware or devices.
    pub const RESERVED: Self = Self(2);
    /// Holds ACPI tables; RAM once these were read.
    pub const ACPI: Self = Self(3);
    /// Kept by firmware over sleep states.
    pub const NVS: Self = Self(4);
    /// Faulty memory.
    pub const UNUSABLE: Self = Self(5);
    /// Persistent memory.
    pub const PERSISTENT: Self = Self(7);

    /// The kind with this E820 number. Unknown ones keep theirs, so that the host sees them too;
    /// 0, which names none, is reserved.
    #[must_use]
    pub const fn e820(number: u32) -> Self {
        if number == 0 { Self::RESERVED } else { Self(number) }
    }

    /// Its E820 number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// How much it forbids: where two kinds meet, the higher one holds.
    const fn rank(self) -> (u32, u32) {
        let class = match self {
            Self::HOLE => 0,
            Self::RAM => 1,
            Self::ACPI => 2,
            Self::NVS => 3,
            Self::RESERVED => 5,
            Self::UNUSABLE => 6,
            Self(_) => 4,
        };
        (class, self.0)
    }
}

/// Memory of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where.
    pub span: Span,
    /// Of which kind.
    pub kind: Kind,
}

/// From an address up to that of the next step, memory is of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step(u64, Kind);

/// Most regions, if no two of them touch.
const REGIONS: usize = 256;
/// A region takes two steps; the last place is always unused.
const STEPS: usize = 2 * REGIONS + 1;
/// Occupies the unused places; sorts behind every step.
const UNUSED: Step = Step(PHYSICAL_END, Kind::HOLE);

/// What each part of physical memory is. 8 KiB: keep it in a static, not on a stack.
#[derive(Debug)]
pub struct MemoryMap([Step; STEPS]);

impl MemoryMap {
    /// The map that lists nothing.
    pub const EMPTY: Self = Self([UNUSED; STEPS]);

    /// Lists `span` as `kind`, except where a more restrictive kind is listed already.
    ///
    /// # Errors
    /// [`MapError::Full`]; the map then says what it said before.
    pub fn paint(&mut self, span: Span, kind: Kind) -> Result<(), MapError> {
        if span.is_empty() {
            return Ok(());
        }
        let first = self.split(span.start())?;
        let end = self.split(span.end())?;
        for step in self.0.get_mut(first..end).unwrap_or_default() {
            if step.1.rank() < kind.rank() {
                step.1 = kind;
            }
        }
        self.merge();
        Ok(())
    }

    /// Takes `span` out of what the host may use: lists it as reserved.
    ///
    /// # Errors
    /// [`MapError::Full`]; the map then says what it said before.
    pub fn carve(&mut self, span: Span) -> Result<(), MapError> {
        self.paint(span, Kind::RESERVED)
    }

    /// Every region, by address; neighbours differ in kind or do not touch.
    pub fn regions(&self) -> impl Iterator<Item = Region> + Clone {
        let pairs = self.0.array_windows().take_while(|pair| pair[0] != UNUSED);
        pairs.filter_map(|&[Step(start, kind), Step(end, _)]| {
            let span = Span::new(start, end)?;
            (kind != Kind::HOLE).then_some(Region { span, kind })
        })
    }

    /// The whole page frames of RAM, by address, in spans that do not touch.
    pub fn ram(&self) -> impl Iterator<Item = Span> + Clone {
        let ram = self.regions().filter(|region| region.kind == Kind::RAM);
        let pages = ram.map(|region| region.span.shrink_to(PAGE));
        pages.filter(|span| !span.is_empty())
    }

    /// Whether all of `span` is RAM.
    #[must_use]
    pub fn is_ram(&self, span: Span) -> bool {
        let mut ram = self.regions().filter(|region| region.kind == Kind::RAM);
        ram.any(|region| region.span.covers(span))
    }

    /// Makes a step begin at `at` without changing what the map says; returns its place.
    fn split(&mut self, at: u64) -> Result<usize, MapError> {
        let place = self.0.partition_point(|step| step.0 < at);
        let (before, after) = self.0.split_at_mut(place);
        if after.first().is_some_and(|step| step.0 == at) {
            return Ok(place);
        }
        let kind = before.last().map_or(Kind::HOLE, |step| step.1);
        let [moved @ .., _unused] = after else {
            return Err(MapError::Full);
        };
        match moved.last_mut() {
            Some(last) if *last == UNUSED => *last = Step(at, kind),
            _ => return Err(MapError::Full),
        }
        moved.rotate_right(1);
        Ok(place)
    }

    /// Drops the steps that change nothing.
    fn merge(&mut self) {
        let steps = Cell::from_mut(self.0.as_mut_slice()).as_slice_of_cells();
        let mut kept = steps.iter();
        let mut kind = Kind::HOLE;
        for step in steps.iter().map(Cell::get) {
            if step.1 != kind {
                kind = step.1;
                let _place = kept.next().inspect(|place| place.set(step));
            }
        }
        kept.for_each(|place| place.set(UNUSED));
    }
}

/// What is wrong with a memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// It has more regions than there is room for.
    Full,
    /// The entry of this address ends past the 52 bits of a physical address, or it is from an EFI
    /// map and does not begin on a page.
    BadEntry(u64),
    /// It does not divide into whole entries of this many bytes.
    BadEntrySize(u32),
    /// It lists memory that a confidential VM must accept first.
    Unaccepted(u64),
    /// It lists no RAM.
    NoRam,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory map: ")?;
        match self {
            Self::Full => write!(f, "more than {REGIONS} regions"),
            Self::BadEntry(base) => write!(f, "entry at {base:#x} names no physical memory"),
            Self::BadEntrySize(size) => write!(f, "does not divide into entries of {size} bytes"),
            Self::Unaccepted(base) => write!(f, "memory at {base:#x} is not accepted yet"),
            Self::NoRam => f.write_str("lists no RAM"),
        }
    }
}
