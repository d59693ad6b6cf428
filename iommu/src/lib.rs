#![no_std]
#![doc = include_str!("../README.md")]

#[cfg(test)]
extern crate std;

mod capabilities;
mod devices;
mod directory;
pub mod dmar;
mod entry;
mod error;
#[cfg(test)]
mod fake;
mod fault;
mod interrupts;
mod policy;
mod queue;
mod registers;
mod tables;
#[cfg(test)]
mod tests;
mod unit;

use ept::addr::Frame;
use ept::ept01::TableMem;

pub use capabilities::{Capabilities, Format, Snoop, Walks};
pub use devices::Devices;
pub use directory::Mode;
pub use error::{Cause, Error, Feature, Step};
pub use fault::{Access, Fault, Faults, Reason, Source};
pub use interrupts::{Addressing, Delivery, Destinations, Interrupt, Interrupts, Message, Trigger};
pub use policy::{Policy, Target};
pub use registers::Registers;
pub use tables::{Domain, Flushed, Stale};
pub use unit::{Unit, Window, flush, format};

/// Memory for tables, which only the visor can reach. Units walk them meanwhile, and write a status
/// there: reads see what a unit has written.
pub trait Memory: TableMem {
    /// Makes what was written to entry `index` of `table` visible to units that do not look into the
    /// processors' caches: it leaves the cache, with its line of 64 bytes, before anything that
    /// follows (CLFLUSH and a fence).
    fn write_back(&mut self, table: Frame, index: usize);
}
