//! Where the registers are, and how long a TPM may take (PTP 1.05, 6.5).

use super::error::{Error, Step};

/// The registers of all localities.
pub trait Registers {
    /// The byte at `offset`, below [`SIZE`].
    fn read8(&self, offset: u64) -> u8;
    /// The 32 bits at `offset`.
    fn read32(&self, offset: u64) -> u32;
    /// Sets the byte at `offset`.
    fn write8(&mut self, offset: u64, value: u8);
    /// Sets the 32 bits at `offset`.
    fn write32(&mut self, offset: u64, value: u32);
    /// Lets about a microsecond pass.
    fn pause(&self);
}

/// Localities there are.
pub const LOCALITIES: u8 = 5;
/// Bytes of registers: a page for each locality.
pub const SIZE: u64 = 5 << 12;

/// Where the registers of `locality` begin.
pub(super) fn page(locality: u8) -> u64 {
    u64::from(locality) << 12
}

/// The interface that drives a TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Driver {
    /// A FIFO, as of TIS 1.3.
    Fifo,
    /// A command-response buffer.
    Crb,
}

/// Which interface it is.
pub(super) const INTERFACE: u64 = 0x30;

/// FIFO: who may send.
pub(super) const FIFO_ACCESS: u64 = 0x00;
/// Bits of it.
pub(super) const VALID: u8 = 1 << 7;
pub(super) const ACTIVE: u8 = 1 << 5;
pub(super) const REQUEST: u8 = 1 << 1;
/// FIFO: what it expects and has.
pub(super) const FIFO_STATUS: u64 = 0x18;
/// FIFO: bytes in and out.
pub(super) const FIFO_DATA: u64 = 0x24;

/// CRB: whose turn it is.
pub(super) const LOCALITY_STATE: u64 = 0x00;
/// CRB: asks for a turn, gives it up.
pub(super) const CRB_LOCALITY: u64 = 0x08;

/// Waits until `is_done`, for as long as `step` may take.
pub(super) fn wait<R: Registers>(
    registers: &R,
    step: Step,
    is_done: impl Fn(&R) -> bool,
) -> Result<(), Error> {
    for _ in 0..=step.microseconds() {
        if is_done(registers) {
            return Ok(());
        }
        registers.pause();
    }
    Err(Error::Timeout(step))
}
