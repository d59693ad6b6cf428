//! The ACPI tables that the visor reads (ACPI 6.5, chapter 5).

mod tables;

use core::fmt;

use crate::memory::{self, Memory};
use crate::raw;

pub use tables::{
    ApicId, ECAM_REGIONS, Madt, McfgRegion, PROCESSORS, Power, Processors, TpmStart, mcfg, power,
    tpm,
};

/// Bytes of the header that all tables share.
const HEADER: usize = 36;
/// Longest table that is taken, in bytes; a DSDT, which the visor does not read, is the longest
/// there is and far shorter.
const LONGEST: u32 = 1 << 24;

/// The name of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature(pub [u8; 4]);

impl Signature {
    /// Root table with 32-bit addresses.
    const RSDT: Self = Self(*b"RSDT");
    /// Root table with 64-bit addresses.
    const XSDT: Self = Self(*b"XSDT");
    /// Interrupt controllers, and so processors.
    pub const MADT: Self = Self(*b"APIC");
    /// Memory-mapped PCI configuration space.
    pub const MCFG: Self = Self(*b"MCFG");
    /// Fixed hardware.
    pub const FADT: Self = Self(*b"FACP");
    /// Remapping units of VT-d.
    pub const DMAR: Self = Self(*b"DMAR");
    /// A TPM 2.0.
    pub const TPM2: Self = Self(*b"TPM2");
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// The root table: where the others are.
#[derive(Clone, Copy, Debug)]
pub struct Root<'m> {
    addresses: &'m [u8],
    width: usize,
}

impl<'m> Root<'m> {
    /// Finds the root table from `copy`, the boot loader's copy of the root pointer, or else from
    /// the pointer in the BIOS's memory.
    ///
    /// # Errors
    /// [`AcpiError`] if there is none, or it is broken.
    pub fn find(memory: &'m dyn Memory, copy: Option<&[u8]>) -> Result<Self, AcpiError> {
        let (signature, address) = match copy {
            Some(copy) => pointer(copy).ok_or(AcpiError::BadPointer)?,
            None => scan(memory).ok_or(AcpiError::NoPointer)?,
        };
        let table = read(memory, signature, address)?;
        let addresses = table.get(HEADER..).unwrap_or_default();
        let width = if signature == Signature::XSDT { 8 } else { 4 };
        Ok(Self { addresses, width })
    }

    /// The table called `signature`, whole and with its checksum verified; `None` if there is none.
    ///
    /// # Errors
    /// [`AcpiError`] if a table before it, or it, is broken.
    pub fn table(
        self,
        memory: &'m dyn Memory,
        signature: Signature,
    ) -> Result<Option<&'m [u8]>, AcpiError> {
        let address = self.address(memory, signature)?;
        address.map(|address| read(memory, signature, address)).transpose()
    }

    /// Physical address of the first table called `signature`, whatever is there otherwise; `None` if
    /// there is none.
    ///
    /// # Errors
    /// [`AcpiError`] if the name of a table before it cannot be read.
    pub fn address(
        self,
        memory: &dyn Memory,
        signature: Signature,
    ) -> Result<Option<u64>, AcpiError> {
        self.all(memory, signature).next().transpose()
    }

    /// How many tables are called `signature`.
    ///
    /// # Errors
    /// [`AcpiError`] if the name of a table cannot be read.
    pub fn count(self, memory: &dyn Memory, signature: Signature) -> Result<usize, AcpiError> {
        self.all(memory, signature).try_fold(0, |count, found| found.map(|_| count + 1))
    }

    /// The physical addresses of all tables called `signature`.
    fn all(
        self,
        memory: &dyn Memory,
        signature: Signature,
    ) -> impl Iterator<Item = Result<u64, AcpiError>> {
        self.addresses.chunks_exact(self.width).filter_map(move |entry| {
            let low = raw::word(entry, 0).map(u64::from);
            let address = raw::quad(entry, 0).or(low).unwrap_or_default();
            match memory::bytes(memory, address, 4) {
                Some(name) => (name == signature.0).then_some(Ok(address)),
                None => Some(Err(AcpiError::Unreadable(signature, address))),
            }
        })
    }
}

/// Reads the table at `address` that should be called `signature`.
fn read(memory: &dyn Memory, signature: Signature, address: u64) -> Result<&[u8], AcpiError> {
    let unreadable = AcpiError::Unreadable(signature, address);
    let head = memory::bytes(memory, address, 8).ok_or(unreadable)?;
    let len = raw::word(head, 4).filter(|len| (36..=LONGEST).contains(len));
    let len = len.filter(|_| head.starts_with(&signature.0));
    let table = memory::bytes(memory, address, len.ok_or(unreadable)?.into());
    let table = table.ok_or(unreadable)?;
    let intact = sum(table) == 0;
    intact.then_some(table).ok_or(AcpiError::BadChecksum(signature))
}

/// What takes the place of the first bytes of a table, so that nobody who looks for `signature` finds
/// it and its checksum stays right: all up to the checksum. As Xen does it (`acpi_dmar_zap`,
/// `xen/drivers/passthrough/vtd/dmar.c`).
#[must_use]
pub fn hidden(mut head: [u8; 10]) -> [u8; 10] {
    const OTHER: u8 = b'X';
    let [first, .., checksum] = &mut head;
    *checksum = checksum.wrapping_add(*first).wrapping_sub(OTHER);
    *first = OTHER;
    head
}

/// Sum of all bytes, which is 0 over anything that carries an ACPI checksum.
fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// Name and address of the root table to which the root pointer (RSDP; ACPI 6.5, 5.2.5) at the
/// start of `bytes` points.
fn pointer(bytes: &[u8]) -> Option<(Signature, u64)> {
    /// Bytes of the first version, which have a checksum of their own.
    const OLD: usize = 20;
    let old = bytes.get(..OLD)?;
    if !old.starts_with(b"RSD PTR ") || sum(old) != 0 {
        return None;
    }
    let narrow = (Signature::RSDT, raw::word(old, 16)?.into());
    if raw::byte(old, 15)? < 2 {
        return Some(narrow);
    }
    let all = bytes.get(..raw::length(bytes, OLD)?)?;
    match raw::quad(all, 24).filter(|_| sum(all) == 0)? {
        0 => Some(narrow),
        wide => Some((Signature::XSDT, wide)),
    }
}

/// Looks for the root pointer where a BIOS leaves it, on 16-byte boundaries: in the first KiB of
/// the extended BIOS data area, whose segment is at 0x40e, and in the BIOS itself.
fn scan(memory: &dyn Memory) -> Option<(Signature, u64)> {
    const STEP: usize = 16;
    let segment = memory::bytes(memory, 0x40e, 2).and_then(|bytes| raw::array(bytes, 0));
    let data_area = u64::from(segment.map_or(0, u16::from_le_bytes)) << 4;
    let places = [(data_area, 0x400), (0xe_0000, 0x2_0000)];
    let mut places = places.iter().filter(|(at, _)| *at != 0);
    places.find_map(|&(at, len)| {
        let bytes = memory::bytes(memory, at, len)?;
        let mut starts = (0..bytes.len()).step_by(STEP);
        starts.find_map(|start| pointer(bytes.get(start..)?))
    })
}

/// What is wrong with the ACPI tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// There is no root pointer.
    NoPointer,
    /// The boot loader's copy of the root pointer is not one.
    BadPointer,
    /// There is no such table.
    Missing(Signature),
    /// There is no table of this name at this physical address, where one should be, or it is not
    /// all in memory.
    Unreadable(Signature, u64),
    /// The bytes of a table do not add up.
    BadChecksum(Signature),
    /// The entry at this offset of the table is too short for its type, cut short, or names what
    /// cannot be.
    BadEntry(Signature, usize),
    /// A table lists more than there is room for.
    TooMany(Signature),
    /// No processor is enabled.
    NoProcessor,
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ACPI: ")?;
        match self {
            Self::NoPointer => f.write_str("no root pointer"),
            Self::BadPointer => f.write_str("the boot loader's root pointer is broken"),
            Self::Missing(signature) => write!(f, "no table {signature}"),
            Self::Unreadable(signature, at) => {
                write!(f, "cannot read {signature} at {at:#x}")
            }
            Self::BadChecksum(signature) => write!(f, "checksum of {signature} is wrong"),
            Self::BadEntry(signature, at) => write!(f, "{signature} is broken at offset {at:#x}"),
            Self::TooMany(signature) => write!(f, "{signature} lists more than there is room for"),
            Self::NoProcessor => f.write_str("no processor is enabled"),
        }
    }
}
