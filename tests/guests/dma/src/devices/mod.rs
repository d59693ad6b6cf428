//! Devices that do DMA, with drivers that are just big enough to have them do it.
//!
//! Each keeps what it took from memory and can store it elsewhere, so one test fits all.

mod ahci;
mod e1000e;
mod edu;
mod nvme;
mod virtio;

use crate::pci::Function;
use bare::time;

pub(crate) use ahci::Ahci;
pub(crate) use e1000e::E1000e;
pub(crate) use edu::Edu;
pub(crate) use nvme::Nvme;
pub(crate) use virtio::Virtio;

/// What a transfer came to, as far as the device says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// Done, it says. What an IOMMU drops, some do not notice.
    Done,
    /// With an error.
    Failed,
    /// Not in time.
    Hangs,
}

/// A device with a driver.
pub(crate) trait Device {
    fn name(&self) -> &'static str;
    /// The function that is programmed.
    fn function(&self) -> Function;
    /// The requester id that its DMA carries.
    fn source(&self) -> u16 {
        self.function().0
    }
    /// Bytes that one transfer moves, from the beginning of a page on.
    fn bytes(&self) -> u64;
    /// Has the device take these bytes from memory at `from`.
    fn take(&mut self, from: u64) -> Ended;
    /// Has it store what it took last in memory at `to`.
    fn store(&mut self, to: u64) -> Ended;
}

/// Waits, as a driver does, at most two seconds.
fn wait(ready: impl FnMut() -> bool) -> Ended {
    if time::wait_us(2_000_000, ready) { Ended::Done } else { Ended::Hangs }
}
