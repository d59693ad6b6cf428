//! The VM's memory, as the visor reaches it.

use core::fmt;

use ept::shadow::Access;

/// A page that the host has to bring in. What was begun is then begun again, with the same arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// A guest-physical address in it.
    pub address: u64,
    /// What is to be done there.
    pub access: Access,
}

/// Why memory was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreached {
    /// It is not there at the moment.
    Missing(Missing),
    /// No memory of the VM's is ever at this guest-physical address.
    Nowhere(u64),
}

/// The VM's memory by guest-physical address: its private pages, and the shared range. Ranges may begin
/// anywhere and cross pages.
///
/// Accesses are done in program order, and once: two or four bytes at an address aligned to their
/// number are read or written at once, as processors of the VM or the host use them meanwhile.
pub trait Memory {
    /// Fills `into` from `address` on.
    ///
    /// # Errors
    /// [`Unreached`]; `into` may have been filled in part.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreached>;

    /// Puts `bytes` at `address`.
    ///
    /// # Errors
    /// [`Unreached`]; a part may have been written.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unreached>;

    /// The VM has given up what is in the pages of 4 KiB with these numbers, little-endian.
    fn forget(&self, pages: &[[u8; 4]]);
}

/// What a side has done that no driver or device does. The device is not served any more until the VM
/// resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The VM made a queue ready without VERSION_1, or with a size that it cannot have.
    Setup,
    /// The VM's available index is further ahead than the queue is long.
    AvailableIndex(u16),
    /// The VM made a chain available that does not exist, or that it had not got back.
    AvailableHead(u16),
    /// A descriptor of the VM's in the chain with this head leads nowhere, or is of an unknown kind.
    Chain(u16),
    /// A request of the VM's is longer than all of the room, in bytes.
    TooLong(u64),
    /// A ring or a buffer of the VM's is at an address where it has no memory.
    Nowhere(u64),
    /// The host's used index is further ahead than there are requests.
    UsedIndex(u16),
    /// The host returned what it does not have.
    UsedHead(u32),
    /// The host claims to have written more than there was room for, in bytes.
    UsedLength(u32),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup => write!(f, "the VM set up a queue without VERSION_1 or of no valid size"),
            Self::AvailableIndex(index) => write!(f, "the VM's available index {index} is too far"),
            Self::AvailableHead(head) => write!(f, "the VM offers chain {head}, which is not its"),
            Self::Chain(head) => write!(f, "the VM's chain {head} is malformed"),
            Self::TooLong(bytes) => {
                write!(f, "a request of {bytes} bytes exceeds the shared range")
            }
            Self::Nowhere(address) => write!(f, "the VM has no memory at {address:#x} for a queue"),
            Self::UsedIndex(index) => write!(f, "the host's used index {index} is too far"),
            Self::UsedHead(head) => write!(f, "the host returned chain {head}, which it has not"),
            Self::UsedLength(bytes) => write!(f, "the host claims {bytes} bytes, above the buffer"),
        }
    }
}
