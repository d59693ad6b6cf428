//! The visor, as it answers at its port.

use ticket::port::{
    self, INDEX_MAGIC, INDEX_VERSION, INDEX_VM, INDEX_VM_ID, INDEX_VM_STATE, MAGIC, VMS, VmState,
};

use crate::failure::Failure;
use crate::port::Port;

/// A visor that has answered.
pub(crate) struct Visor<P: Port> {
    port: P,
    version: u32,
}

impl<P: Port> Visor<P> {
    /// Finds the visor at `port`.
    ///
    /// # Errors
    /// [`Failure::NoVisor`], and [`Failure::Protocol`] if its interface has another major version.
    pub(crate) fn find(port: P) -> Result<Self, Failure> {
        let mut visor = Self { port, version: 0 };
        let found = visor.value(INDEX_MAGIC);
        if found != MAGIC {
            return Err(Failure::NoVisor(found));
        }
        visor.version = visor.value(INDEX_VERSION);
        if visor.version >> 16 != port::VERSION >> 16 {
            return Err(Failure::Protocol { index: INDEX_VERSION, value: visor.version });
        }
        Ok(visor)
    }

    /// Finds a visor that knows of tickets.
    ///
    /// # Errors
    /// As [`Self::find`], and [`Failure::OldVisor`].
    pub(crate) fn find_with_tickets(port: P) -> Result<Self, Failure> {
        let visor = Self::find(port)?;
        if visor.has_tickets() { Ok(visor) } else { Err(Failure::OldVisor(visor.version)) }
    }

    /// Version of the interface: major in the high half, minor in the low.
    pub(crate) const fn version(&self) -> u32 {
        self.version
    }

    /// Whether the interface has tickets, VMs and audit.
    pub(crate) const fn has_tickets(&self) -> bool {
        self.version >= port::WITH_TICKETS
    }

    /// Finds a visor that signs statements.
    ///
    /// # Errors
    /// As [`Self::find`], and [`Failure::OldVisor`].
    pub(crate) fn find_with_keys(port: P) -> Result<Self, Failure> {
        let visor = Self::find(port)?;
        if visor.has_keys() { Ok(visor) } else { Err(Failure::OldVisor(visor.version)) }
    }

    /// Whether it has keys, signs statements and takes sealed tickets.
    pub(crate) const fn has_keys(&self) -> bool {
        self.version >= port::WITH_KEYS
    }

    /// The value at `index`.
    pub(crate) fn value(&mut self, index: u32) -> u32 {
        self.port.select(index);
        self.port.read()
    }

    /// The 64 bits at `index` and the next one.
    pub(crate) fn wide(&mut self, index: u32) -> u64 {
        let low = self.value(index);
        u64::from(self.value(index + 1)) << 32 | u64::from(low)
    }

    /// The bytes of the words from `index` on.
    pub(crate) fn bytes<const N: usize>(&mut self, index: u32) -> [u8; N] {
        let mut bytes = [0; N];
        for (chunk, index) in bytes.as_chunks_mut().0.iter_mut().zip(index..) {
            *chunk = self.value(index).to_le_bytes();
        }
        bytes
    }

    /// Writes `value` to `index`.
    pub(crate) fn put(&mut self, index: u32, value: u32) {
        self.port.select(index);
        self.port.write(value);
    }

    /// Writes all `values` to `index`, one after the other.
    pub(crate) fn put_all(&mut self, index: u32, values: impl Iterator<Item = u32>) {
        self.port.select(index);
        for value in values {
            self.port.write(value);
        }
    }

    /// Selects the VM in `slot` and says how it is.
    ///
    /// # Errors
    /// [`Failure::Protocol`].
    pub(crate) fn vm(&mut self, slot: u32) -> Result<VmState, Failure> {
        self.put(INDEX_VM, slot);
        let value = self.value(INDEX_VM_STATE);
        VmState::of_word(value).ok_or(Failure::Protocol { index: INDEX_VM_STATE, value })
    }

    /// The slot of the VM with this id.
    ///
    /// # Errors
    /// [`Failure::Protocol`].
    pub(crate) fn slot_of(&mut self, id: [u8; 16]) -> Result<Option<u32>, Failure> {
        for slot in 0..VMS {
            if self.vm(slot)? != VmState::None && self.bytes(INDEX_VM_ID) == id {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }
}

impl<P: Port> Drop for Visor<P> {
    fn drop(&mut self) {
        // Whatever comes to the data port by mistake now does nothing.
        self.port.select(INDEX_MAGIC);
    }
}
