//! Memory of a VM in the test: a private part and the shared range, with a history of what was done.

use std::cell::{Cell, RefCell};

use ept::shadow::Access;
use virtio::device::SMALLEST;
use virtio::memory::{Memory, Missing, Unreached};

/// Where the VM's own memory is, and how much.
pub(crate) const PRIVATE: u64 = 0x10_0000;
pub(crate) const PRIVATE_BYTES: u64 = 0x18_0000;
/// Where the device's part of the shared range is: next to others' on both sides.
pub(crate) const PART: u64 = 0x4000_2000;
pub(crate) const PART_BYTES: u64 = SMALLEST;
const SHARED: u64 = 0x4000_0000;
const SHARED_BYTES: u64 = SMALLEST + 0x4000;

/// One access that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) address: u64,
    pub(crate) bytes: u64,
    pub(crate) is_write: bool,
}

impl Done {
    /// Whether all of it is within.
    pub(crate) fn is_within(self, address: u64, bytes: u64) -> bool {
        self.address >= address && self.address + self.bytes <= address + bytes
    }
}

pub(crate) struct World {
    private: RefCell<Vec<u8>>,
    shared: RefCell<Vec<u8>>,
    /// Accesses that succeed before one whose page is missing.
    pub(crate) fuse: Cell<u32>,
    pub(crate) log: RefCell<Vec<Done>>,
    /// Numbers of pages that the VM has given up.
    pub(crate) forgotten: RefCell<Vec<u32>>,
}

impl World {
    pub(crate) fn new() -> Self {
        let bytes = |bytes: u64| RefCell::new(vec![0xee; usize::try_from(bytes).unwrap()]);
        Self {
            private: bytes(PRIVATE_BYTES),
            shared: bytes(SHARED_BYTES),
            fuse: Cell::new(u32::MAX),
            log: RefCell::new(Vec::new()),
            forgotten: RefCell::new(Vec::new()),
        }
    }

    /// The memory around `address`, and where in it that is.
    fn find(&self, address: u64, bytes: usize) -> Option<(&RefCell<Vec<u8>>, usize)> {
        let end = address.checked_add(u64::try_from(bytes).unwrap())?;
        let (memory, base, size) = if address < SHARED {
            (&self.private, PRIVATE, PRIVATE_BYTES)
        } else {
            (&self.shared, SHARED, SHARED_BYTES)
        };
        let at = usize::try_from(address.checked_sub(base)?).unwrap();
        (end <= base + size).then_some((memory, at))
    }

    /// What the VM or the host reads.
    pub(crate) fn peek(&self, address: u64, bytes: usize) -> Vec<u8> {
        let (memory, at) = self.find(address, bytes).unwrap();
        memory.borrow()[at..at + bytes].to_vec()
    }

    /// What the VM or the host writes.
    pub(crate) fn poke(&self, address: u64, bytes: &[u8]) {
        let (memory, at) = self.find(address, bytes.len()).unwrap();
        memory.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn peek16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.peek(address, 2).try_into().unwrap())
    }

    pub(crate) fn peek32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.peek(address, 4).try_into().unwrap())
    }

    pub(crate) fn peek64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.peek(address, 8).try_into().unwrap())
    }

    fn enter(
        &self,
        address: u64,
        bytes: usize,
        access: Access,
    ) -> Result<(&RefCell<Vec<u8>>, usize), Unreached> {
        let found = self.find(address, bytes).ok_or(Unreached::Nowhere(address))?;
        if self.fuse.get() == 0 {
            self.fuse.set(u32::MAX);
            return Err(Unreached::Missing(Missing { address, access }));
        }
        self.fuse.set(self.fuse.get() - 1);
        let bytes = u64::try_from(bytes).unwrap();
        self.log.borrow_mut().push(Done { address, bytes, is_write: access == Access::WRITE });
        Ok(found)
    }
}

impl Memory for World {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreached> {
        let (memory, at) = self.enter(address, into.len(), Access::READ)?;
        into.copy_from_slice(&memory.borrow()[at..at + into.len()]);
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unreached> {
        let (memory, at) = self.enter(address, bytes.len(), Access::WRITE)?;
        memory.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn forget(&self, pages: &[[u8; 4]]) {
        self.forgotten.borrow_mut().extend(pages.iter().map(|number| u32::from_le_bytes(*number)));
    }
}
