//! QEMU's q35, a PC without firmware to set it up: the stub does what little is needed.
//!
//! Below 4 GiB a PC has a ROM that QEMU has the host map for reading only, as it maps memory that it shares between
//! processes; the visor takes neither for a VM's own. So the stub is memory, at 1 MiB, and the ticket has the VM begin
//! there.
//!
//! Addresses and numbers: QEMU 7.2, hw/pci-host/q35.c and hw/isa/lpc_ich9.c; Intel, 3 Series Express Chipset
//! Family Datasheet, 5.1.15 (PAM).

use super::layout::MIB;

/// The hole below 1 MiB, where a display's memory would be.
pub(super) const VGA: u64 = 0xa_0000;
/// Memory again, once the stub has said so.
pub(super) const SHADOW: u64 = 0xc_0000;
/// Where the stub is.
pub(super) const STUB: u32 = 0x10_0000;
/// The most memory that lies below 4 GiB in one piece, in whole MiB.
pub(super) const MEMORY: u64 = 2815 * MIB;
/// Where the kernel may place devices.
pub(super) const HOLE: u32 = 0xc000_0000;

/// Where the registers of virtio devices are: the ticket's range, and each device's part of it.
pub(super) const DEVICES: u32 = 0xfe00_0000;
pub(super) const DEVICES_LENGTH: u64 = 8 << 14;
const DEVICE: usize = 1 << 14;

/// Slots of the PCI bus that have virtio devices, if the VM has so many.
const SLOTS: std::ops::RangeInclusive<u8> = 1..=8;

/// What the stub sets: addresses for port 0xcf8, values.
///
/// The host bridge has memory at 0xc0000 to 0xfffff then, of which the kernel looks through the whole for
/// tables and ROMs. Before, ROMs of the host's are there.
///
/// Each virtio device gets its place in the ticket, in its fourth base address register. The kernel leaves it there.
pub(super) fn registers(devices: u8) -> Vec<[u32; 2]> {
    const PAM: u32 = 0x8000_0090;
    const BAR: u32 = 0x8000_0020;
    let mut registers = vec![[PAM, 0x3333_3330], [PAM + 4, 0x0033_3333]];
    let places = (DEVICES..).step_by(DEVICE);
    registers.extend(SLOTS.zip(places).take(devices.into()).map(|(slot, place)| {
        let address = BAR | u32::from(slot) << 11;
        [address, place]
    }));
    registers
}

/// The lines of the PCI bus: slot and pin as in MP tables, pin of the I/O APIC. Each device has pin A.
pub(super) fn lines() -> impl Iterator<Item = (u8, u8)> {
    SLOTS.map(|slot| (slot << 2, 20 + slot % 4))
}

#[cfg(test)]
mod tests;
