//! A PCI bus with virtio devices, of a machine whose firmware is the stub: it does what little is needed.

use crate::{Machine, q35, xen};

/// The hole below 1 MiB, where a display's memory would be, and where memory goes on.
pub(crate) const VGA: u64 = 0xa_0000;
pub(crate) const SHADOW: u64 = 0xc_0000;
/// Where the kernel may place devices.
pub(crate) const HOLE: u32 = 0xc000_0000;

/// Where the registers of virtio devices are: the ticket's range, and each device's part of it.
pub(crate) const DEVICES: u32 = 0xfe00_0000;
pub(crate) const DEVICES_LENGTH: u64 = 8 << 14;
const DEVICE: usize = 1 << 14;
/// The most devices that a VM has.
const MOST: usize = 8;

/// The bus of a machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bus {
    /// The first slot that is free for virtio devices.
    pub(crate) first: u8,
    /// The pin of the I/O APIC for pin A of the device in a slot.
    pub(crate) pin: fn(u8) -> u8,
    /// Registers that must be set before the memory is as the ticket says.
    pub(crate) memory: &'static [[u32; 2]],
}

impl Bus {
    /// The bus of `machine` with so many virtio devices; none where the kernel is told that there is no PCI.
    pub(crate) fn of(machine: Machine, devices: u8) -> Option<Self> {
        match machine {
            Machine::Q35 => Some(q35::BUS),
            Machine::Xen if devices != 0 => Some(xen::BUS),
            Machine::Qemu | Machine::Xen => None,
        }
    }

    fn slots(self) -> impl Iterator<Item = u8> {
        (self.first..).take(MOST)
    }

    /// What the stub sets: addresses for port 0xcf8, values.
    ///
    /// Each virtio device gets its place in the ticket, in its fourth base address register. The kernel leaves it
    /// there.
    pub(crate) fn registers(self, devices: u8) -> Vec<[u32; 2]> {
        const BAR: u32 = 0x8000_0020;
        let places = (DEVICES..).step_by(DEVICE);
        let mut registers = self.memory.to_vec();
        registers.extend(self.slots().zip(places).take(devices.into()).map(|(slot, place)| {
            let address = BAR | u32::from(slot) << 11;
            [address, place]
        }));
        registers
    }

    /// The lines of the bus: slot and pin as in MP tables, pin of the I/O APIC. Each device has pin A.
    pub(crate) fn lines(self) -> impl Iterator<Item = (u8, u8)> {
        self.slots().map(move |slot| (slot << 2, (self.pin)(slot)))
    }
}
