//! What a unit can do, and what all units of a machine can do together.

use ept::addr::{HUGE, Span};

/// The capability registers of a unit (VT-d 4.1, 11.4.2 and 11.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    cap: u64,
    ecap: u64,
}

impl Capabilities {
    /// What the registers CAP and ECAP say.
    #[must_use]
    pub const fn new(cap: u64, ecap: u64) -> Self {
        Self { cap, ecap }
    }

    const fn has(self, bit: u32) -> bool {
        self.cap >> bit & 1 != 0
    }

    const fn extends(self, bit: u32) -> bool {
        self.ecap >> bit & 1 != 0
    }

    /// How it walks tables, in whichever mode.
    #[must_use]
    pub const fn walks(self) -> Walks {
        let coherent = self.extends(0) && (self.extends(48) || !self.extends(43));
        if coherent { Walks::Coherent } else { Walks::Incoherent }
    }

    /// What its leaves can say of caches.
    #[must_use]
    pub const fn snoop(self) -> Snoop {
        if self.extends(7) { Snoop::Always } else { Snoop::AsAsked }
    }

    /// Levels of second-stage tables that it walks, of 3 and 4 the more; `None` if neither.
    #[must_use]
    pub const fn levels(self) -> Option<u8> {
        match (self.has(10), self.has(9)) {
            (true, _) => Some(4),
            (false, true) => Some(3),
            (false, false) => None,
        }
    }

    /// Bits of the addresses that it translates.
    #[must_use]
    pub fn width(self) -> u8 {
        let [offered, ..] = (self.cap >> 16 & 0x3f).to_le_bytes();
        let walked = if self.has(10) { 48 } else { 39 };
        walked.min(offered + 1)
    }

    /// Whether it has leaves of 2 MiB.
    #[must_use]
    pub const fn large(self) -> bool {
        self.has(34)
    }

    /// Whether it has leaves of 1 GiB.
    #[must_use]
    pub const fn huge(self) -> bool {
        self.has(35)
    }

    /// Whether it has an invalidation queue.
    #[must_use]
    pub const fn queue(self) -> bool {
        self.extends(1)
    }

    /// Whether it remaps interrupts.
    #[must_use]
    pub const fn interrupts(self) -> bool {
        self.extends(3)
    }

    /// Whether it remaps interrupts to destinations of 32 bits.
    #[must_use]
    pub const fn wide_destinations(self) -> bool {
        self.extends(4)
    }

    /// Whether it has scalable mode, with second-stage translation.
    #[must_use]
    pub const fn scalable(self) -> bool {
        self.extends(43) && self.extends(46)
    }

    /// Whether it may remember that something was absent (caching mode).
    #[must_use]
    pub const fn remembers_absence(self) -> bool {
        self.has(7)
    }

    /// Whether writes may wait in the chipset until it is told to flush them.
    #[must_use]
    pub const fn buffers_writes(self) -> bool {
        self.has(4)
    }

    /// Whether it has a protected memory region below 4 GiB.
    #[must_use]
    pub const fn protects_low(self) -> bool {
        self.has(5)
    }

    /// Whether it has a protected memory region anywhere.
    #[must_use]
    pub const fn protects_high(self) -> bool {
        self.has(6)
    }

    /// The largest block that it forgets at once, less than everything: its pages are two to the
    /// power of this. `None` if it can only forget everything of a domain.
    #[must_use]
    pub const fn largest_block(self) -> Option<u32> {
        let [largest, ..] = (self.cap >> 48 & 0x3f).to_le_bytes();
        if self.has(39) { Some(u32::from_le_bytes([largest, 0, 0, 0])) } else { None }
    }

    /// Whether an invalidation can wait for the reads and writes that are under way.
    #[must_use]
    pub const fn drains(self) -> bool {
        self.has(54) && self.has(55)
    }

    /// Offset of the first fault record, and how many there are.
    #[must_use]
    pub const fn fault_records(self) -> (u64, u64) {
        ((self.cap >> 24 & 0x3ff) * 16, (self.cap >> 40 & 0xff) + 1)
    }
}

/// How a unit walks tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Walks {
    /// Through the processors' caches.
    Coherent,
    /// In memory alone: what is written must leave the caches.
    Incoherent,
}

/// Whether what devices read and write goes through the processors' caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Snoop {
    /// All of it: leaves say so (snoop control).
    Always,
    /// As a device asks for: with No-Snoop it reads and writes memory alone.
    AsAsked,
}

/// What tables must be like for every unit of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Leaves of 2 MiB.
    pub(crate) large: bool,
    /// Leaves of 1 GiB.
    pub(crate) huge: bool,
    pub(crate) walks: Walks,
    pub(crate) snoop: Snoop,
    /// Some unit must be told of what appears, too.
    pub(crate) announce: bool,
    /// One past the last address that every unit translates.
    pub(crate) end: u64,
}

impl Format {
    /// What addresses of `width` bits need, before any unit is heard; 30 at the least.
    #[must_use]
    pub fn new(width: u8) -> Self {
        let end = if width < 48 { 1_u64 << width } else { 1 << 48 };
        Self {
            large: true,
            huge: true,
            walks: Walks::Coherent,
            snoop: Snoop::Always,
            announce: false,
            end: end.max(HUGE),
        }
    }

    /// The same, such that a unit of these capabilities can use it, too.
    #[must_use]
    pub fn and(self, unit: Capabilities) -> Self {
        Self {
            large: self.large && unit.large(),
            huge: self.huge && unit.huge(),
            walks: self.walks.max(unit.walks()),
            snoop: self.snoop.max(unit.snoop()),
            announce: self.announce || unit.remembers_absence() || unit.buffers_writes(),
            end: self.end.min((1 << unit.width()).max(HUGE)),
        }
    }

    /// All that every unit translates.
    pub(crate) fn all(self) -> Span {
        Span::new(0, self.end).unwrap_or_default()
    }

    /// One past the last address that every unit translates; devices reach nothing beyond.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }
}
