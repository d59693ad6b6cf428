//! What stands between devices and memory: the IOMMU, or nothing.

use bare::apic;

/// A transfer that was stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stopped {
    /// The requester id it carried.
    pub(crate) source: u16,
    /// The page it was for.
    pub(crate) page: u64,
    /// Whether it would have changed memory.
    pub(crate) is_write: bool,
}

/// Who owns memory, as far as devices are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// Devices reach it.
    Host,
    /// None does.
    Vm,
}

/// What a device writes to signal an interrupt.
#[derive(Clone, Copy)]
pub(crate) struct Message {
    pub(crate) address: u32,
    pub(crate) data: u16,
}

/// The IOMMUs of the machine.
pub(crate) struct Guard {}

impl Guard {
    /// No IOMMU is programmed.
    pub(crate) const fn open() -> Self {
        Self {}
    }

    /// Gives the bytes `start..end`, whole pages, to `owner`: when this returns, no device reaches what is
    /// not the host's.
    pub(crate) fn give(&mut self, _start: u64, _end: u64, _owner: Owner) {}

    /// The next transfer that was stopped and not yet told of.
    pub(crate) fn stopped(&mut self) -> Option<Stopped> {
        None
    }

    /// The message by which the device with this requester id signals `vector` here.
    pub(crate) fn message(&mut self, _source: u16, vector: u8) -> Message {
        Message { address: 0xfee0_0000 | apic::id() << 12, data: u16::from(vector) }
    }

    /// A message that nobody was given, for `vector` if it means anything.
    pub(crate) fn missing(&mut self, vector: u8) -> Message {
        Message { address: 0xfee0_0000 | apic::id() << 12, data: u16::from(vector) }
    }

    /// Forgets those not yet told of.
    pub(crate) fn forget(&mut self) {
        while self.stopped().is_some() {}
    }
}
