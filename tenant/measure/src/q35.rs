//! QEMU's q35, a PC without firmware to set it up: the stub does what little is needed.
//!
//! Below 4 GiB a PC has a ROM that QEMU has the host map for reading only, as it maps memory that it shares between
//! processes; the visor takes neither for a VM's own. So the stub is memory, at 1 MiB, and the ticket has the VM begin
//! there.
//!
//! Addresses and numbers: QEMU 7.2, hw/pci-host/q35.c and hw/isa/lpc_ich9.c; Intel, 3 Series Express Chipset
//! Family Datasheet, 5.1.15 (PAM).

use crate::layout::MIB;
use crate::pci::Bus;

/// Where the stub is.
pub(crate) const STUB: u32 = 0x10_0000;
/// The most memory that lies below 4 GiB in one piece, in whole MiB.
pub(crate) const MEMORY: u64 = 2815 * MIB;

/// The host bridge has memory at 0xc0000 to 0xfffff once this is set, of which the kernel looks through the whole
/// for tables and ROMs. Before, ROMs of the host's are there.
const PAM: u32 = 0x8000_0090;
pub(crate) const BUS: Bus = Bus {
    first: 1,
    pin: |slot| 20 + slot % 4,
    memory: &[[PAM, 0x3333_3330], [PAM + 4, 0x0033_3333]],
};

#[cfg(test)]
mod tests;
