//! Single tables: processors (MADT), PCI configuration space (MCFG), resets and sleep (FADT), the TPM (TPM2).

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

/// Where the machine is reset and put to sleep (ACPI 6.5, 4.8.3), as far as that is by I/O ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Power {
    /// The reset register, and the value that resets.
    pub reset: Option<(u16, u8)>,
    /// Bytes of which bit 5 is SLP_EN.
    pub sleep: List<u16, 5>,
    /// Whether the table names other places, in memory or in PCI configuration space.
    pub elsewhere: bool,
}

/// Where the machine is reset and put to sleep.
///
/// # Errors
/// [`AcpiError`] if the table of fixed hardware is missing or broken.
pub fn power(memory: &dyn Memory, root: Root<'_>) -> Result<Power, AcpiError> {
    const FLAGS: usize = 112;
    /// `RESET_REG_SUP` of the flags.
    const HAS_RESET: u32 = 1 << 10;
    const RESET: usize = 116;
    const RESET_VALUE: usize = 128;
    /// PM1a and PM1b control: 16 bits, of which the upper byte counts.
    const PM1_CONTROLS: [usize; 2] = [64, 68];
    const WIDE_PM1_CONTROLS: [usize; 2] = [172, 184];
    const SLEEP_CONTROL: usize = 244;
    let table = root.table(memory, Signature::FADT)?;
    let table = table.ok_or(AcpiError::Missing(Signature::FADT))?;
    let narrow = PM1_CONTROLS.map(|at| (IO, raw::word(table, at).unwrap_or_default().into()));
    let wide = WIDE_PM1_CONTROLS.map(|at| generic_address(table, at));
    let upper_bytes = narrow.into_iter().chain(wide).map(|place| (place, 1));
    let places = upper_bytes.chain([(generic_address(table, SLEEP_CONTROL), 0)]);
    let mut found = Power { reset: None, sleep: List::new(0), elsewhere: false };
    for ((space, address), byte) in places.filter(|((_, address), _)| *address != 0) {
        let port = port(space, address).and_then(|port| port.checked_add(byte));
        // There is room for all of them.
        found.elsewhere |= port.is_none_or(|port| found.sleep.push(port).is_err());
    }
    let has_reset = raw::word(table, FLAGS).is_some_and(|flags| flags & HAS_RESET != 0);
    if let Some(&value) = table.get(RESET_VALUE).filter(|_| has_reset) {
        let (space, address) = generic_address(table, RESET);
        found.reset = port(space, address).map(|port| (port, value));
        found.elsewhere |= found.reset.is_none();
    }
    Ok(found)
}

/// Address space and address of the register that a structure at `at` describes (ACPI 6.5, 5.2.3.2); zeros where
/// the table ends before.
fn generic_address(table: &[u8], at: usize) -> (u8, u64) {
    let space = table.get(at).copied();
    space.zip(raw::quad(table, at + 4)).unwrap_or_default()
}

/// The address space of I/O ports.
const IO: u8 = 1;

/// The I/O port at `address`, if that is one.
fn port(space: u8, address: u64) -> Option<u16> {
    u16::try_from(address).ok().filter(|_| space == IO)
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
