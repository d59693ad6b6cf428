//! The interrupt-remapping table (VT-d 4.1, 5.1 and 9.9): which device may raise which interrupt.

use ept::addr::Frame;

use crate::Memory;
use crate::capabilities::Walks;
use crate::error::Error;
use crate::fault::Source;
use crate::queue::Request;
use crate::registers::{Registers, WIDE_DESTINATIONS};
use crate::tables::{fresh, store};
use crate::unit::Unit;

/// How processors are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destinations {
    /// By 8 bits, as xAPICs do.
    Xapic,
    /// By 32 bits, as x2APICs do.
    X2apic,
}

/// How an interrupt is delivered. There is no other way for devices: NMI, SMI, INIT and ExtINT could
/// stop or steer the visor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To every processor of the destination.
    Fixed,
    /// To one of them.
    Lowest,
}

/// When an interrupt counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Once.
    Edge,
    /// As long as its line is up.
    Level,
}

/// How the destination is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// One processor's APIC id.
    Physical,
    /// A set of processors.
    Logical,
}

/// An interrupt that a device may raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// The only one who may.
    pub source: Source,
    /// Vector at the processor: 16 to 255.
    pub vector: u8,
    /// Processor or processors.
    pub destination: u32,
    /// What `destination` is.
    pub addressing: Addressing,
    /// How it is delivered.
    pub delivery: Delivery,
    /// When it counts.
    pub trigger: Trigger,
}

impl Interrupt {
    /// The two words of its entry.
    fn encode(self, destinations: Destinations) -> [u64; 2] {
        const PRESENT: u64 = 1;
        /// Check all 16 bits of the source.
        const CHECK_SOURCE: u64 = 1 << 18;
        let shift = match destinations {
            Destinations::Xapic => 40,
            Destinations::X2apic => 32,
        };
        let low = PRESENT
            | u64::from(self.addressing == Addressing::Logical) << 2
            // Lowest priority is a redirection hint as well, as in an MSI's address.
            | u64::from(self.delivery == Delivery::Lowest) << 3
            | u64::from(self.trigger == Trigger::Level) << 4
            | u64::from(self.delivery == Delivery::Lowest) << 5
            | u64::from(self.vector) << 16
            | u64::from(self.destination) << shift;
        [low, u64::from(self.source.0) | CHECK_SOURCE]
    }
}

/// A table of 256 interrupts: one unit's, all absent at first. Interrupts in compatibility format are
/// refused.
#[derive(Clone, Copy, Debug)]
pub struct Interrupts {
    table: Frame,
    destinations: Destinations,
    walks: Walks,
}

/// What a device is told to write, and where, to raise the interrupt of an index (VT-d 4.1, 5.1.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Address, below 4 GiB.
    pub address: u32,
    /// Data.
    pub data: u32,
}

impl Message {
    /// The message for `index`.
    #[must_use]
    pub fn remappable(index: u8) -> Self {
        /// Remappable format, in the range of interrupts; the data count for nothing.
        const REMAPPABLE: u32 = 0xfee0_0000 | 1 << 4;
        Self { address: REMAPPABLE | u32::from(index) << 5, data: 0 }
    }
}

impl Interrupts {
    /// An empty table for a unit `unit`.
    #[must_use]
    pub fn new<R: Registers>(
        mem: &mut impl Memory,
        unit: &Unit<R>,
        destinations: Destinations,
    ) -> Option<Self> {
        let walks = unit.capabilities().walks();
        Some(Self { table: fresh(mem, walks).ok()?, destinations, walks })
    }

    /// Lets `interrupt` be raised by `index`, or none; what was raised by it before is no more.
    ///
    /// # Errors
    /// [`Error`] when `unit`, whose table this is, fails: then both may be raised.
    pub fn set<R: Registers>(
        &self,
        mem: &mut impl Memory,
        unit: &mut Unit<R>,
        index: u8,
        interrupt: Option<Interrupt>,
    ) -> Result<(), Error> {
        let (low, high) = (usize::from(index) * 2, usize::from(index) * 2 + 1);
        // An entry is never seen half changed: absent first.
        store(mem, self.walks, (self.table, low), 0);
        unit.forget(mem, [Request::Interrupt(index)].into_iter())?;
        let Some(interrupt) = interrupt else {
            return Ok(());
        };
        let words = interrupt.encode(self.destinations);
        store(mem, self.walks, (self.table, high), words[1]);
        store(mem, self.walks, (self.table, low), words[0]);
        unit.forget(mem, [Request::Interrupt(index)].into_iter())
    }

    /// The value of the interrupt table's register: 2^(7+1) entries.
    pub(crate) fn register(&self) -> u64 {
        let wide = if self.is_wide() { WIDE_DESTINATIONS } else { 0 };
        self.table.base() | wide | 7
    }

    pub(crate) fn is_wide(&self) -> bool {
        self.destinations == Destinations::X2apic
    }
}
