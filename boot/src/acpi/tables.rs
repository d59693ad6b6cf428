//! Single tables: processors (MADT), PCI configuration space (MCFG), the reset register (FADT), the TPM (TPM2).

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

/// An entry of it.
struct Entry<'m> {
    kind: u8,
    bytes: &'m [u8],
    /// What to say if it is too short for its kind.
    broken: AcpiError,
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
        let table = table.ok_or(AcpiError::Missing(Signature::MADT))?;
        Ok(Self { table })
    }

    /// The entries in order; after a broken one, nothing.
    fn entries(self) -> impl Iterator<Item = Result<Entry<'m>, AcpiError>> {
        let mut offset = Self::ENTRIES;
        core::iter::from_fn(move || {
            let rest = self.table.get(offset..).filter(|rest| !rest.is_empty())?;
            let broken = AcpiError::BadEntry(Signature::MADT, offset);
            let [kind, len] = raw::array(rest, 0).unwrap_or_default();
            let bytes = rest.get(..len.into()).filter(|bytes| bytes.len() >= 2);
            offset += bytes.map_or(rest.len(), <[u8]>::len);
            let entry = |bytes| Entry { kind, bytes, broken };
            Some(bytes.map(entry).ok_or(broken))
        })
    }

    /// Fills `ids`, which is empty, with the local-APIC ids of the enabled processors in the
    /// table's order, each once: some firmware lists one processor as APIC and as x2APIC. One that
    /// could be enabled later is not among them.
    ///
    /// # Errors
    /// [`AcpiError`] for a broken entry, too many processors or none.
    pub fn processors(self, ids: &mut Processors) -> Result<(), AcpiError> {
        for entry in self.entries() {
            let Some(id) = entry?.processor()? else {
                continue;
            };
            if ids.contains(&id) {
                continue;
            }
            let pushed = ids.push(id);
            pushed.map_err(|_| AcpiError::TooMany(Signature::MADT))?;
        }
        let first = ids.first().ok_or(AcpiError::NoProcessor);
        first.map(|_| ())
    }

    /// Physical address of the local APICs.
    ///
    /// # Errors
    /// [`AcpiError`] for a broken entry.
    pub fn local_apic(self) -> Result<u64, AcpiError> {
        const OVERRIDE: u8 = 5;
        let narrow = raw::word(self.table, HEADER).map(u64::from);
        let mut address = narrow.ok_or(AcpiError::BadEntry(Signature::MADT, HEADER))?;
        for entry in self.entries() {
            let entry = entry?;
            if entry.kind == OVERRIDE {
                address = raw::quad(entry.bytes, 4).ok_or(entry.broken)?;
            }
        }
        Ok(address)
    }
}

impl Entry<'_> {
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
        let (id, flags) = id.zip(flags).ok_or(self.broken)?;
        match flags & ENABLED {
            0 => Ok(None),
            _ if id == broadcast => Err(self.broken),
            _ => Ok(Some(ApicId(id))),
        }
    }
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
        let entry = entry.first_chunk::<16>()?;
        let segment = u16::from_le_bytes(raw::array(entry, 8)?);
        let [first_bus, last_bus] = raw::array(entry, 10)?;
        // The address is that of bus 0, even where bus 0 is not mapped.
        let base = raw::quad(entry, 0).filter(|base| base.is_multiple_of(BUS))?;
        let bus = |number: u64| base.checked_add(number * BUS);
        let span = Span::new(bus(first_bus.into())?, bus(u64::from(last_bus) + 1)?)?;
        let region = Self { segment, first_bus, last_bus, span };
        (first_bus <= last_bus).then_some(region)
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
        let broken = AcpiError::BadEntry(Signature::MCFG, ENTRIES + number * ENTRY);
        let pushed = regions.push(McfgRegion::parse(entry).ok_or(broken)?);
        pushed.map_err(|_| AcpiError::TooMany(Signature::MCFG))?;
    }
    Ok(regions)
}

/// What resets the machine (ACPI 6.5, 4.8.3.6): the write of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetRegister {
    /// To this physical address, of this value.
    Memory(u64, u8),
    /// To this I/O port, of this value.
    Port(u16, u8),
}

/// The reset register; `None` if the machine has none, or has it in PCI configuration space.
///
/// # Errors
/// [`AcpiError`] if the table of fixed hardware is missing or broken.
pub fn reset_register(
    memory: &dyn Memory,
    root: Root<'_>,
) -> Result<Option<ResetRegister>, AcpiError> {
    /// `RESET_REG_SUP` of `Flags`.
    const SUPPORTED: u32 = 1 << 10;
    const FLAGS: usize = 112;
    const SPACE: usize = 116;
    const ADDRESS: usize = 120;
    const VALUE: usize = 128;
    let table = root.table(memory, Signature::FADT)?;
    let table = table.ok_or(AcpiError::Missing(Signature::FADT))?;
    // Tables of ACPI 1.0 end before these fields.
    let (Some(flags), Some(&value)) = (raw::word(table, FLAGS), table.get(VALUE)) else {
        return Ok(None);
    };
    let address = raw::quad(table, ADDRESS).unwrap_or_default();
    let broken = AcpiError::BadEntry(Signature::FADT, ADDRESS);
    match table.get(SPACE).filter(|_| flags & SUPPORTED != 0) {
        Some(0) => Ok(Some(ResetRegister::Memory(address, value))),
        Some(1) => {
            let port = u16::try_from(address).map_err(|_| broken)?;
            Ok(Some(ResetRegister::Port(port, value)))
        }
        _ => Ok(None),
    }
}

/// How a TPM 2.0 takes commands (TCG ACPI Specification 1.4, 7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TpmStart {
    /// By the FIFO among its registers.
    Fifo,
    /// By the buffer of which the control area is at this physical address.
    Crb(u64),
    /// By this other method.
    Other(u32),
}

/// How the TPM 2.0 takes commands; `None` if the machine has none.
///
/// # Errors
/// [`AcpiError`] if the table is broken.
pub fn tpm(memory: &dyn Memory, root: Root<'_>) -> Result<Option<TpmStart>, AcpiError> {
    const CONTROL_AREA: usize = 40;
    const METHOD: usize = 48;
    let Some(table) = root.table(memory, Signature::TPM2)? else { return Ok(None) };
    let broken = AcpiError::BadEntry(Signature::TPM2, METHOD);
    let area = raw::quad(table, CONTROL_AREA).ok_or(broken)?;
    Ok(Some(match raw::word(table, METHOD).ok_or(broken)? {
        6 => TpmStart::Fifo,
        7 => TpmStart::Crb(area),
        other => TpmStart::Other(other),
    }))
}
