//! `measure`: what a VM begins with, by the same crate as `visorctl ticket linux`.

use std::fmt;

use evidence::Bytes;
use measure::{Made, Order};
use serde::Serialize;

use crate::failure::Failure;

/// What `measure` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// The VM's name.
    pub vm: Bytes,
    /// The hash of what it begins with, as `seal` and receipts have it: the same whatever its name and secret are.
    pub measurement: Bytes,
    /// How many ranges of memory it has.
    pub ranges: usize,
    /// How many pages are in its manifest.
    pub pages: usize,
    /// How long its ticket is.
    pub bytes: usize,
}

/// Makes the VM of `order`, and its ticket.
///
/// # Errors
/// [`Failure::File`], and [`Failure::Ticket`] where kernel and what goes along make no VM.
pub fn measure(order: &Order) -> Result<Measured, Failure> {
    let Made { ticket, bytes } = measure::make(order)?;
    let measurement = ticket::build::measurement(&bytes);
    let measurement = measurement.map_err(|why| Failure::Bug(why.to_string()))?;
    Ok(Measured {
        vm: Bytes(ticket.vm.to_vec()),
        measurement: Bytes(measurement.to_vec()),
        ranges: ticket.ranges.len(),
        pages: ticket.pages.len(),
        bytes: bytes.len(),
    })
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, measurement, ranges, pages, bytes } = self;
        writeln!(f, "ticket of VM {vm}: {ranges} ranges, {pages} pages, {bytes} bytes, in CLEAR")?;
        writeln!(f, "begins with: {measurement}")
    }
}
