//! The ACPI tables that the visor reads (ACPI 6.5, chapter 5).

mod tables;

use core::fmt;

use ept::addr::Span;

use crate::memory::{self, Memory};
use crate::raw;

pub use tables::{
    ApicId, ECAM_REGIONS, Madt, McfgRegion, PROCESSORS, Processors, ResetRegister, mcfg,
    reset_register,
};

/// Bytes of the header that all tables share.
const HEADER: usize = 36;
/// Longest table that is taken, in bytes; a DSDT, which the visor does not read, is the longest
/// there is and far shorter.
const LONGEST: u64 = 1 << 24;

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
        let pointer = match copy {
            Some(copy) => Pointer::parse(copy).ok_or(AcpiError::BadPointer)?,
            None => Pointer::scan(memory).ok_or(AcpiError::NoPointer)?,
        };
        let table = read(memory, pointer.signature, pointer.address)?;
        let addresses = table.get(HEADER..).unwrap_or_default();
        Ok(Self {
            addresses,
            width: pointer.width,
        })
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
        for entry in self.addresses.chunks_exact(self.width) {
            let low = raw::word(entry, 0).map(u64::from);
            let address = raw::quad(entry, 0).or(low).unwrap_or_default();
            let unreadable = AcpiError::Unreadable { signature, address };
            let name = memory::bytes(memory, address, 4).ok_or(unreadable)?;
            if name == signature.0 {
                return read(memory, signature, address).map(Some);
            }
        }
        Ok(None)
    }
}

/// Reads the table at `address` that should be called `signature`.
fn read(memory: &dyn Memory, signature: Signature, address: u64) -> Result<&[u8], AcpiError> {
    let unreadable = AcpiError::Unreadable { signature, address };
    let head = memory::bytes(memory, address, 8).ok_or(unreadable)?;
    let len = raw::word(head, 4)
        .map(u64::from)
        .filter(|&len| len <= LONGEST);
    let named = head.starts_with(&signature.0);
    let table = memory::bytes(memory, address, len.filter(|_| named).ok_or(unreadable)?);
    let table = table
        .filter(|table| table.len() >= HEADER)
        .ok_or(unreadable)?;
    if sum(table) == 0 {
        Ok(table)
    } else {
        Err(AcpiError::BadChecksum(signature))
    }
}

/// Sum of all bytes, which is 0 over anything that carries an ACPI checksum.
fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// What a root pointer (RSDP; ACPI 6.5, 5.2.5) points to.
struct Pointer {
    signature: Signature,
    address: u64,
    width: usize,
}

impl Pointer {
    /// Reads the pointer at the start of `bytes`.
    fn parse(bytes: &[u8]) -> Option<Self> {
        /// Bytes of the first version, which have a checksum of their own.
        const OLD: usize = 20;
        let old = bytes.get(..OLD)?;
        if !old.starts_with(b"RSD PTR ") || sum(old) != 0 {
            return None;
        }
        let narrow = raw::word(bytes, 16)?.into();
        if raw::byte(bytes, 15)? < 2 {
            return Some(Self {
                signature: Signature::RSDT,
                address: narrow,
                width: 4,
            });
        }
        let all = bytes.get(..raw::length(bytes, OLD)?)?;
        let wide = raw::quad(all, 24).filter(|_| sum(all) == 0)?;
        Some(match wide {
            0 => Self {
                signature: Signature::RSDT,
                address: narrow,
                width: 4,
            },
            address => Self {
                signature: Signature::XSDT,
                address,
                width: 8,
            },
        })
    }

    /// Looks where a BIOS leaves it, on 16-byte boundaries: in the first KiB of the extended BIOS
    /// data area, whose segment is at 0x40e, and in the BIOS itself.
    fn scan(memory: &dyn Memory) -> Option<Self> {
        const STEP: usize = 16;
        let segment = memory::bytes(memory, 0x40e, 2).and_then(|bytes| raw::array(bytes, 0));
        let data_area = u64::from(segment.map_or(0, u16::from_le_bytes)) << 4;
        let places = [
            Span::sized(data_area, 1 << 10)?,
            Span::new(0xe_0000, 0x10_0000)?,
        ];
        places.into_iter().find_map(|place| {
            let bytes = memory.bytes(place).filter(|_| place.start() != 0)?;
            (0..bytes.len())
                .step_by(STEP)
                .find_map(|at| Self::parse(bytes.get(at..)?))
        })
    }
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
    /// A table is not in memory, has another name, or a length that cannot be.
    Unreadable {
        /// The table that was looked for.
        signature: Signature,
        /// Where a table should be.
        address: u64,
    },
    /// The bytes of a table do not add up.
    BadChecksum(Signature),
    /// An entry of a table is too short for its type, cut short, or names what cannot be.
    BadEntry {
        /// The table.
        signature: Signature,
        /// Offset of the entry in the table.
        offset: usize,
    },
    /// A table lists more than there is room for.
    TooMany(Signature),
    /// Two enabled processors have the same local-APIC id.
    SameProcessor(ApicId),
    /// No processor is enabled.
    NoProcessor,
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ACPI: ")?;
        match self {
            Self::NoPointer => f.write_str("no root pointer"),
            Self::BadPointer => f.write_str("the boot loader's copy of the root pointer is broken"),
            Self::Missing(signature) => write!(f, "no table {signature}"),
            Self::Unreadable { signature, address } => {
                write!(f, "looking for {signature}: no table at {address:#x}")
            }
            Self::BadChecksum(signature) => write!(f, "checksum of {signature} is wrong"),
            Self::BadEntry { signature, offset } => {
                write!(f, "entry at offset {offset:#x} of {signature} is broken")
            }
            Self::TooMany(signature) => write!(f, "{signature} lists more than there is room for"),
            Self::SameProcessor(ApicId(id)) => write!(f, "two processors have the APIC id {id:#x}"),
            Self::NoProcessor => f.write_str("no processor is enabled"),
        }
    }
}
