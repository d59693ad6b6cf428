//! Single tables: processors (MADT), PCI configuration space (MCFG), the reset register (FADT).

use ept::addr::Span;
use ept::list::List;

use super::{AcpiError, HEADER, Root, Signature};
use crate::memory::Memory;
use crate::raw;

/// Most processors that are taken.
pub const PROCESSORS: usize = 512;
/// Most regions of PCI configuration space that are taken.
pub const ECAM_REGIONS: usize = 16;

/// The number of a local APIC, as IPIs name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApicId(pub u32);

/// The processors of the machine.
pub type Processors = List<ApicId, PROCESSORS>;

/// The table of interrupt controllers (ACPI 6.5, 5.2.12).
#[derive(Clone, Copy, Debug)]
pub struct Madt<'m> {
    table: &'m [u8],
}

/// An entry of it, without type and length.
struct Entry<'m> {
    offset: usize,
    kind: u8,
    bytes: &'m [u8],
}

impl<'m> Madt<'m> {
    /// Where the entries begin.
    const ENTRIES: usize = HEADER + 8;

    /// Finds the table.
    ///
    /// # Errors
    /// [`AcpiError`] if it is missing or broken.
    pub fn find(memory: &'m dyn Memory, root: Root<'m>) -> Result<Self, AcpiError> {
        let table = root.table(memory, Signature::MADT)?;
        Ok(Self {
            table: table.ok_or(AcpiError::Missing(Signature::MADT))?,
        })
    }

    /// The entries in order; after a broken one, nothing.
    fn entries(self) -> impl Iterator<Item = Result<Entry<'m>, AcpiError>> {
        let mut offset = Self::ENTRIES;
        core::iter::from_fn(move || {
            let rest = self.table.get(offset..).filter(|rest| !rest.is_empty())?;
            let found = Entry::first(rest, offset);
            offset += found.as_ref().map_or(rest.len(), |entry| entry.bytes.len());
            Some(found)
        })
    }

    /// Fills `ids`, which is empty, with the local-APIC ids of the enabled processors in the
    /// table's order. One that could be enabled later is not among them.
    ///
    /// # Errors
    /// [`AcpiError`] for a broken entry, an id given twice, too many processors or none.
    pub fn processors(self, ids: &mut Processors) -> Result<(), AcpiError> {
        for entry in self.entries() {
            let Some(id) = entry?.processor()? else {
                continue;
            };
            if ids.contains(&id) {
                return Err(AcpiError::SameProcessor(id));
            }
            ids.push(id)
                .map_err(|_| AcpiError::TooMany(Signature::MADT))?;
        }
        if ids.is_empty() {
            Err(AcpiError::NoProcessor)
        } else {
            Ok(())
        }
    }

    /// Physical address of the local APICs.
    ///
    /// # Errors
    /// [`AcpiError`] for a broken entry.
    pub fn local_apic(self) -> Result<u64, AcpiError> {
        const OVERRIDE: u8 = 5;
        let narrow = raw::word(self.table, HEADER).map(u64::from);
        let mut address = narrow.ok_or(broken(Signature::MADT, HEADER))?;
        for entry in self.entries() {
            let entry = entry?;
            if entry.kind == OVERRIDE {
                address = raw::quad(entry.bytes, 4).ok_or(entry.broken())?;
            }
        }
        Ok(address)
    }
}

impl<'m> Entry<'m> {
    /// The entry at the start of `rest`, which is at `offset` of its table.
    fn first(rest: &'m [u8], offset: usize) -> Result<Self, AcpiError> {
        let [kind, len] = raw::array(rest, 0).ok_or(broken(Signature::MADT, offset))?;
        let bytes = rest.get(..len.into()).filter(|bytes| bytes.len() >= 2);
        Ok(Self {
            offset,
            kind,
            bytes: bytes.ok_or(broken(Signature::MADT, offset))?,
        })
    }

    fn broken(&self) -> AcpiError {
        broken(Signature::MADT, self.offset)
    }

    /// The enabled processor that it lists, if it lists one.
    fn processor(&self) -> Result<Option<ApicId>, AcpiError> {
        const LOCAL_APIC: u8 = 0;
        const LOCAL_X2APIC: u8 = 9;
        const ENABLED: u32 = 1;
        // The highest id of each kind addresses all processors, so it can be nobody's.
        let (id, flags, broadcast) = match self.kind {
            LOCAL_APIC => (raw::byte(self.bytes, 3), raw::word(self.bytes, 4), 0xff),
            LOCAL_X2APIC => (raw::word(self.bytes, 4), raw::word(self.bytes, 8), u32::MAX),
            _ => return Ok(None),
        };
        let (id, flags) = id.zip(flags).ok_or(self.broken())?;
        match flags & ENABLED {
            0 => Ok(None),
            _ if id == broadcast => Err(self.broken()),
            _ => Ok(Some(ApicId(id))),
        }
    }
}

const fn broken(signature: Signature, offset: usize) -> AcpiError {
    AcpiError::BadEntry { signature, offset }
}

/// Memory-mapped configuration space of some PCI buses (PCI Firmware Specification 3.3, 4.1.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct McfgRegion {
    /// PCI segment group.
    pub segment: u16,
    /// First bus that is mapped.
    pub first_bus: u8,
    /// Last bus that is mapped.
    pub last_bus: u8,
    /// Where the configuration space of these buses lies, a MiB for each.
    pub span: Span,
}

impl McfgRegion {
    fn parse(entry: &[u8]) -> Option<Self> {
        const BUS: u64 = 1 << 20;
        let segment = u16::from_le_bytes(raw::array(entry, 8)?);
        let [first_bus, last_bus] = raw::array(entry, 10)?;
        // The address is that of bus 0, even where bus 0 is not mapped.
        let base = raw::quad(entry, 0).filter(|base| base.is_multiple_of(BUS))?;
        let bus = |number: u64| base.checked_add(number * BUS);
        let span = Span::new(bus(first_bus.into())?, bus(u64::from(last_bus) + 1)?)?;
        (first_bus <= last_bus).then_some(Self {
            segment,
            first_bus,
            last_bus,
            span,
        })
    }
}

/// The regions of memory-mapped PCI configuration space; none if there is no such table.
///
/// # Errors
/// [`AcpiError`] if the table is broken or lists too many.
pub fn mcfg(
    memory: &dyn Memory,
    root: Root<'_>,
) -> Result<List<McfgRegion, ECAM_REGIONS>, AcpiError> {
    /// Header and eight reserved bytes.
    const ENTRIES: usize = HEADER + 8;
    const ENTRY: usize = 16;
    let mut regions = List::new(McfgRegion::default());
    let table = root.table(memory, Signature::MCFG)?.unwrap_or_default();
    let entries = table.get(ENTRIES..).unwrap_or_default();
    for (number, entry) in entries.chunks(ENTRY).enumerate() {
        let offset = ENTRIES + number * ENTRY;
        let region = McfgRegion::parse(entry).ok_or(broken(Signature::MCFG, offset))?;
        regions
            .push(region)
            .map_err(|_| AcpiError::TooMany(Signature::MCFG))?;
    }
    Ok(regions)
}

/// What resets the machine (ACPI 6.5, 4.8.3.6): the write of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetRegister {
    /// To physical memory.
    Memory {
        /// Physical address.
        address: u64,
        /// What to write.
        value: u8,
    },
    /// To an I/O port.
    Port {
        /// The port.
        port: u16,
        /// What to write.
        value: u8,
    },
    /// To the configuration space of a device on bus 0.
    Pci {
        /// Bits 47:32 device, 31:16 function, 15:0 offset.
        address: u64,
        /// What to write.
        value: u8,
    },
}

/// The reset register, if the machine has one.
///
/// # Errors
/// [`AcpiError`] if the table of fixed hardware is missing or broken.
pub fn reset_register(
    memory: &dyn Memory,
    root: Root<'_>,
) -> Result<Option<ResetRegister>, AcpiError> {
    /// `RESET_REG_SUP` of `Flags`.
    const SUPPORTED: u32 = 1 << 10;
    const REGISTER: usize = 116;
    let table = root.table(memory, Signature::FADT)?;
    let table = table.ok_or(AcpiError::Missing(Signature::FADT))?;
    // Tables of ACPI 1.0 end before these fields.
    let flags = raw::word(table, 112).unwrap_or_default();
    let fields = raw::byte(table, REGISTER).zip(raw::quad(table, REGISTER + 4));
    let Some(((space, address), &value)) = fields.zip(table.get(128)) else {
        return Ok(None);
    };
    if flags & SUPPORTED == 0 {
        return Ok(None);
    }
    let bad = broken(Signature::FADT, REGISTER);
    match space {
        0 => Ok(Some(ResetRegister::Memory { address, value })),
        1 => {
            let port = u16::try_from(address).map_err(|_| bad)?;
            Ok(Some(ResetRegister::Port { port, value }))
        }
        2 => Ok(Some(ResetRegister::Pci { address, value })),
        _ => Err(bad),
    }
}
