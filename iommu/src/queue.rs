//! Queued invalidation (VT-d 4.1, 6.5.2): what a unit is asked to forget, and when it has.

use ept::addr::{Frame, PAGE, Span};

use crate::Memory;
use crate::capabilities::Capabilities;
use crate::directory::{DOMAIN, Mode};
use crate::tables::Stale;

/// What a unit may forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// All context entries.
    Contexts,
    /// All PASID-table entries.
    Pasids,
    /// All translations and paging structures of all domains.
    Everything,
    /// The same of the one domain.
    Domain,
    /// The same, for so many pages (a power of two, given by its exponent) around an address.
    Block(u64, u32),
    /// All interrupts.
    Interrupts,
    /// That interrupt.
    Interrupt(u8),
}

impl Request {
    /// The descriptor; those of translations also wait for the reads and writes under way.
    fn encode(self) -> [u64; 2] {
        const CONTEXTS: u64 = 1;
        const TRANSLATIONS: u64 = 2;
        const INTERRUPTS: u64 = 4;
        const PASIDS: u64 = 7;
        const DRAIN: u64 = 0b11 << 6;
        let translations = |granularity: u64| TRANSLATIONS | granularity << 4 | DRAIN;
        match self {
            Self::Contexts => [CONTEXTS | 1 << 4, 0],
            Self::Pasids => [PASIDS | 3 << 4, 0],
            Self::Everything => [translations(1), 0],
            Self::Domain => [translations(2) | DOMAIN << 16, 0],
            Self::Block(address, order) => {
                [translations(3) | DOMAIN << 16, address | u64::from(order)]
            }
            Self::Interrupts => [INTERRUPTS, 0],
            Self::Interrupt(index) => [INTERRUPTS | 1 << 4 | u64::from(index) << 32, 0],
        }
    }

    /// The smallest block that a unit can forget and that has all of `span`.
    pub(crate) fn around(span: Span, unit: Capabilities) -> Self {
        let last = span.end().saturating_sub(1).max(span.start());
        let different = (span.start() ^ last) / PAGE;
        let order = u64::BITS - different.leading_zeros();
        match unit.largest_block() {
            Some(largest) if order <= largest => {
                let bytes = PAGE << order;
                Self::Block(span.start() - span.start() % bytes, order)
            }
            Some(_) | None => Self::Domain,
        }
    }

    /// Calls `each` with what a unit has to forget for `stale`.
    pub(crate) fn for_stale(stale: &Stale, unit: Capabilities, mut each: impl FnMut(Self)) {
        match stale.spans() {
            Some(spans) => spans.iter().for_each(|span| each(Self::around(*span, unit))),
            None => each(Self::Domain),
        }
    }
}

/// The queue of a unit: one frame of descriptors, and a word that the unit sets when it is through.
/// Units read it through the caches, whatever they do with tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    ring: Frame,
    status: Frame,
    /// Index of the next descriptor, in descriptors.
    tail: usize,
    /// Words of a descriptor.
    words: usize,
    token: u32,
}

impl Queue {
    pub(crate) fn new(mem: &mut impl Memory, mode: Mode) -> Option<Self> {
        let words = match mode {
            Mode::Legacy => 2,
            Mode::Scalable => 4,
        };
        Some(Self { ring: mem.allocate()?, status: mem.allocate()?, tail: 0, words, token: 0 })
    }

    /// Where the descriptors are.
    pub(crate) const fn ring(&self) -> Frame {
        self.ring
    }

    /// Adds a request. There are at most a handful before each [`Queue::end`], and the unit has done
    /// all of them before the next, so there is always room.
    pub(crate) fn push(&mut self, mem: &mut impl Memory, request: Request) {
        self.write(mem, request.encode());
    }

    /// Asks the unit to tell when it has done all that was asked before; the value of its tail
    /// register.
    pub(crate) fn end(&mut self, mem: &mut impl Memory) -> u64 {
        const WAIT: u64 = 5;
        const TELL: u64 = 1 << 5;
        self.token = self.token.wrapping_add(1);
        self.write(mem, [WAIT | TELL | u64::from(self.token) << 32, self.status.base()]);
        u64::try_from(self.tail * self.words * 8).unwrap_or_default()
    }

    /// Whether the unit is through.
    pub(crate) fn is_through(&self, mem: &impl Memory) -> bool {
        mem.read(self.status, 0) & u64::from(u32::MAX) == u64::from(self.token)
    }

    fn write(&mut self, mem: &mut impl Memory, descriptor: [u64; 2]) {
        const RING: usize = 512;
        let first = self.tail * self.words;
        mem.write(self.ring, first, descriptor[0]);
        mem.write(self.ring, first + 1, descriptor[1]);
        self.tail = (self.tail + 1) % (RING / self.words);
    }
}
