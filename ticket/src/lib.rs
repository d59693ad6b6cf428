#![no_std]
#![doc = include_str!("../README.md")]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod audit;
#[cfg(any(test, feature = "std"))]
pub mod build;
pub mod error;
mod fields;
pub mod parse;
pub mod port;
#[cfg(test)]
mod tests;

use core::fmt;
use core::ops::RangeInclusive;

use zeroize::Zeroize;

/// What every ticket begins with.
pub const MAGIC: [u8; 8] = *b"VISRTKT1";
/// The one version there is.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 128;
/// Bytes of one range.
pub const RANGE_BYTES: usize = 24;
/// Bytes of one sealed disk.
pub const DISK_BYTES: usize = 96;
/// Bytes of one page of the manifest.
pub const PAGE_BYTES: usize = 40;
/// Bytes of the SHA-256 at the end.
pub const TRAILER_BYTES: usize = 32;
/// Ranges that a ticket may have.
pub const MAX_RANGES: usize = 16;
/// Virtio transports that a VM may have.
pub const MAX_TRANSPORTS: usize = 8;
/// Bytes that the shared range of one may have: for its rings and 256 KiB of data at least.
pub const TRANSPORT_SHARED: RangeInclusive<u64> = 0x4_2000..=1 << 26;
/// Blocks of 4 KiB that a sealed disk may have: 16 TiB.
pub const DISK_BLOCKS: RangeInclusive<u64> = 1..=1 << 32;
/// Blocks of a whole disk, with all that it has besides data: none has more.
pub const DISK_TOTAL: u64 = 1 << 33;
/// Processors that a VM may have.
pub const MAX_PROCESSORS: u32 = 64;
/// Bytes in a page of memory.
pub const PAGE: u64 = 4096;
/// One past the highest guest-physical address of a range.
pub const ADDRESS_END: u64 = 1 << 48;

/// What a ticket says of the VM as a whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    /// Names the VM.
    pub vm: [u8; 16],
    /// The tenant's share of the key that the VM's pages are sealed under.
    pub secret: Secret,
    /// The state in which the first vCPU must begin.
    pub state: State,
    /// Number of ranges that follow, 1..=[`MAX_RANGES`].
    pub ranges: u32,
    /// Number of sealed disks, up to [`MAX_TRANSPORTS`].
    pub disks: u32,
    /// Number of pages in the manifest.
    pub pages: u32,
    /// Number of processors that the VM may have, 1..=[`MAX_PROCESSORS`].
    pub processors: u32,
    /// How often the VM may be started anew.
    pub restarts: u32,
}

/// A disk that is sealed: a virtio device of which the host has nothing but sealed blocks.
#[derive(Debug, PartialEq, Eq)]
pub struct Disk {
    /// The number of its transport, below [`MAX_TRANSPORTS`].
    pub transport: u32,
    /// Blocks of 4 KiB that the VM sees.
    pub blocks: u64,
    /// Blocks of the whole disk.
    pub total: u64,
    /// Names the disk.
    pub id: [u8; 16],
    /// The key that its header is wrapped with.
    pub key: Secret,
    /// The least moment that it may be of.
    pub moment: u64,
}

/// Where an accepted ticket is from, and what it was: for receipts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The SHA-256 of all that was submitted.
    pub file: [u8; 32],
    /// [`parse::Parser::measurement`].
    pub measurement: [u8; 32],
    /// The Ed25519 public key of the tenant who signed it; zeros for a ticket in clear.
    pub tenant: [u8; 32],
    /// The tenant's serial; 0 for a ticket in clear.
    pub serial: u64,
}

/// The tenant's secret. It is wiped when dropped, cannot be copied by accident, and is not printed.
#[derive(PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// The secret of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret itself.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

/// The state in which the first vCPU of a VM must begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// That of a processor after reset (SDM vol. 3, table 11-1).
    Reset,
    /// One whose canonical form has this SHA-256.
    Hashed([u8; 32]),
    /// After reset for the host, but the code segment begins at this address, of a page, instead of the last
    /// 64 KiB below 4 GiB: for machines that can have no memory of the VM's there.
    ResetIn(u32),
}

/// Whose memory a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The VM's alone: the host gets its pages only sealed.
    Private,
    /// Memory that VM and host share.
    Shared,
    /// An I/O window: shared memory through which devices move data.
    Window,
    /// No memory, but the registers of virtio devices (virtio 1.2, 4.2.2), those of one behind those of the
    /// other. Each has a shared range for its data: the first the lowest, and so on.
    Virtio,
    /// Likewise, of virtio devices on PCI, each with its structures as QEMU places them (virtio 1.2, 4.1.4).
    VirtioPci,
}

impl Class {
    /// The number in a ticket.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Private => 1,
            Self::Shared => 2,
            Self::Window => 3,
            Self::Virtio => 4,
            Self::VirtioPci => 5,
        }
    }

    /// The class with this number.
    #[must_use]
    pub const fn of_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Private),
            2 => Some(Self::Shared),
            3 => Some(Self::Window),
            4 => Some(Self::Virtio),
            5 => Some(Self::VirtioPci),
            _ => None,
        }
    }

    /// Bytes of registers that each of the range's virtio devices has; `None` if it is none of these.
    #[must_use]
    pub const fn registers(self) -> Option<u64> {
        match self {
            Self::Private | Self::Shared | Self::Window => None,
            Self::Virtio => Some(512),
            Self::VirtioPci => Some(0x4000),
        }
    }
}

/// A piece of guest-physical memory, in whole pages, below [`ADDRESS_END`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Address of the first byte.
    pub start: u64,
    /// Bytes; never 0.
    pub length: u64,
    /// Whose it is.
    pub class: Class,
}

impl Range {
    /// One past the address of the last byte.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }

    /// Whether `address` lies within.
    #[must_use]
    pub const fn contains(&self, address: u64) -> bool {
        self.start <= address && address < self.end()
    }
}
