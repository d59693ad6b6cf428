//! A unit's registers, and what a test leaves out of what is asked of the unit.

use crate::memory::{read, write};
use bare::time;
use iommu::Registers;

/// The invalidation queue (VT-d 4.1, 11.4.7): the offset of its next entry, and where it is.
const TAIL: u64 = 0x88;
const ADDRESS: u64 = 0x90;
const WIDE: u64 = 1 << 11;
/// Types of entries: to forget translations, and interrupts.
const TRANSLATIONS: u64 = 2;
const EVERY_INTERRUPT: u64 = 4;

/// The registers at an address.
#[derive(Clone, Copy)]
pub(crate) struct Mmio {
    at: u64,
    /// Whether requests to forget translations are turned into others.
    forgetful: bool,
    /// Entries that were queued so far.
    pub(crate) asked: u64,
}

impl Mmio {
    pub(crate) const fn new(at: u64) -> Self {
        Self { at, forgetful: false, asked: 0 }
    }

    /// From now on the unit is not asked to forget translations, as if the visor had a mistake.
    pub(crate) const fn spare_translations(&mut self) {
        self.forgetful = true;
    }

    /// Looks at the queue's entries up to the new tail before the unit does.
    fn queued(&mut self, tail: u64) {
        let queue = self.read64(ADDRESS);
        let bytes = if queue & WIDE == 0 { 16 } else { 32 };
        let mut next = self.read64(TAIL);
        while next != tail {
            let entry = (queue & !0xfff) + next;
            if self.forgetful && read::<u64>(entry) & 0xf == TRANSLATIONS {
                write(entry, [EVERY_INTERRUPT, 0]);
            }
            self.asked += 1;
            next = (next + bytes) % 4096;
        }
    }
}

impl Registers for Mmio {
    fn read32(&self, offset: u64) -> u32 {
        read(self.at + offset)
    }

    fn read64(&self, offset: u64) -> u64 {
        read(self.at + offset)
    }

    fn write32(&mut self, offset: u64, value: u32) {
        write(self.at + offset, value);
    }

    fn write64(&mut self, offset: u64, value: u64) {
        if offset == TAIL {
            self.queued(value);
        }
        write(self.at + offset, value);
    }

    fn pause(&self) {
        time::delay_us(1);
    }
}
