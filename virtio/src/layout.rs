//! Where registers are.

use crate::device as r;

/// The two ways in which a transport has its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As with virtio-mmio (virtio 1.2, 4.2.2): 512 bytes.
    Mmio,
    /// As QEMU has them on PCI: 16 KiB, with four structures of 4 KiB: common configuration, ISR status,
    /// configuration of the device, notifications (virtio 1.2, 4.1.4.3 to 4.1.4.6) with 4 bytes for each queue.
    Pci,
}

/// What virtio-mmio does not have, at offsets that it does not have: the number of queues, where the selected one is
/// notified, and its size, the most at first.
pub(crate) const NUM_QUEUES: u64 = 0x1000;
pub(crate) const NOTIFY_OFF: u64 = 0x1001;
pub(crate) const QUEUE_SIZE: u64 = 0x1002;

/// Where QEMU's structures are.
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const END: u64 = 0x4000;

impl Layout {
    /// The register of virtio-mmio that an access means, for configuration of the device and what is as
    /// harmless always the first; `None` if it has no rule.
    pub(crate) const fn register(self, offset: u64, bytes: u8) -> Option<u64> {
        match self {
            Self::Mmio if offset >= r::CONFIG => Some(r::CONFIG),
            Self::Mmio if bytes == 4 => Some(offset),
            Self::Mmio => None,
            Self::Pci => pci(offset, bytes),
        }
    }

    /// Where in the configuration of the device an access is, if it is one to that.
    pub(crate) const fn configuration(self, offset: u64) -> Option<u64> {
        match self {
            Self::Mmio => offset.checked_sub(r::CONFIG),
            Self::Pci if offset < NOTIFY => offset.checked_sub(DEVICE),
            Self::Pci => None,
        }
    }

    /// Where queue `queue` is notified.
    pub(crate) const fn notify(self, queue: u64) -> u64 {
        match self {
            Self::Mmio => r::QUEUE_NOTIFY,
            Self::Pci => NOTIFY + 4 * queue,
        }
    }
}

const fn pci(offset: u64, bytes: u8) -> Option<u64> {
    Some(match (offset, bytes) {
        (0x00, 4) => r::DEVICE_FEATURES_SEL,
        (0x04, 4) => r::DEVICE_FEATURES,
        (0x08, 4) => r::DRIVER_FEATURES_SEL,
        (0x0c, 4) => r::DRIVER_FEATURES,
        // Vectors of interrupts.
        (0x10 | 0x1a, 2) => r::CONFIG,
        (0x12, 2) => NUM_QUEUES,
        (0x14, 1) => r::STATUS,
        (0x15, 1) => r::CONFIG_GENERATION,
        (0x16, 2) => r::QUEUE_SEL,
        (0x18, 2) => QUEUE_SIZE,
        (0x1c, 2) => r::QUEUE_READY,
        (0x1e, 2) => NOTIFY_OFF,
        (0x20, 4) => r::QUEUE_DESC_LOW,
        (0x24, 4) => r::QUEUE_DESC_HIGH,
        (0x28, 4) => r::QUEUE_DRIVER_LOW,
        (0x2c, 4) => r::QUEUE_DRIVER_HIGH,
        (0x30, 4) => r::QUEUE_DEVICE_LOW,
        (0x34, 4) => r::QUEUE_DEVICE_HIGH,
        (ISR, 1) => r::INTERRUPT_STATUS,
        (DEVICE..NOTIFY, _) => r::CONFIG,
        (NOTIFY..END, 2) => r::QUEUE_NOTIFY,
        _ => return None,
    })
}
