//! VT-d: keeps devices from the visor's memory and from VMs', by the rules of the crate `iommu`. Units
//! are started before the host is, and have nothing to do with VMX; from then on devices follow the
//! frame table as EPT01 does, under the lock of `crate::tables`.
#![expect(unsafe_code, reason = "reading PCI configuration space")]

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use boot::acpi::{AcpiError, Root, Signature, hidden, mcfg};
use ept::addr::{Frame, HUGE, Span};
use ept::ept01::Flushed;
use ept::frames::FrameTable;
use ept::list::List;
use iommu::dmar::{Config, Dmar, DmarError, Segment, UNITS, Uncovered};
use iommu::{Cause, Devices, Error, Policy, Registers, Snoop, Source, Unit, Window};
use membrane::audit::{Audit, Entry};
use nested_vmx::io::{PCI_ADDRESS, PCI_DATA, Size};
use spin::{Mutex, MutexGuard};
use ticket::audit::Kind;
use ticket::port::Iommu as State;

use crate::memory::{self, BootMemory, Pool};
use crate::{apic, cpu, stop};

/// The registers of a unit, at this physical address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mmio(u64);

impl Registers for Mmio {
    fn read32(&self, offset: u64) -> u32 {
        memory::read(self.0 + offset)
    }

    fn read64(&self, offset: u64) -> u64 {
        memory::read(self.0 + offset)
    }

    fn write32(&mut self, offset: u64, value: u32) {
        memory::write(self.0 + offset, value);
    }

    fn write64(&mut self, offset: u64, value: u64) {
        memory::write(self.0 + offset, value);
    }

    fn pause(&self) {
        stop::check();
        apic::wait(1);
    }
}

/// Configuration space, by the ports that the host does not use yet.
struct Ports;

impl Config for Ports {
    fn read(&self, source: Source, register: u8) -> u32 {
        let address = 1 << 31 | u32::from(source.0) << 8 | u32::from(register);
        // SAFETY: selecting a configuration register has no effect by itself.
        unsafe { cpu::port_out(PCI_ADDRESS, Size::Dword, address) };
        cpu::port_in(PCI_DATA, Size::Dword)
    }
}

impl iommu::Memory for Pool {
    fn write_back(&mut self, table: Frame, index: usize) {
        cpu::write_back_line(memory::linear(table.base()), index);
    }
}

/// Why no IOMMU keeps devices from memory.
#[derive(Clone, Copy, Debug)]
enum Lack {
    Table,
    /// There is more than one.
    Tables(usize),
    Acpi(AcpiError),
    Dmar(DmarError),
    Unit(Error),
    Uncovered(Uncovered),
    /// The visor cannot reach registers there.
    High(Span),
    /// Whoever can write there is the unit.
    Ram(Span),
    /// Firmware's own DMA needs this memory.
    Reserved(Frame),
    TooManyReserved,
    /// The table cannot be written.
    Visible,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table => f.write_str("the machine has no VT-d, or it is off"),
            Self::Tables(count) => write!(f, "the machine has {count} tables DMAR"),
            Self::Acpi(error) => error.fmt(f),
            Self::Dmar(error) => error.fmt(f),
            Self::Unit(error) => error.fmt(f),
            Self::Uncovered(Uncovered::Device(source)) => {
                write!(f, "DMAR: no unit for the device {source}")
            }
            Self::Uncovered(Uncovered::Segment(Segment(number))) => {
                write!(f, "DMAR: no unit for devices of segment {number} that it does not name")
            }
            Self::High(span) => write!(f, "VT-d unit {:#x}: above 4 GiB", span.start()),
            Self::Ram(span) => write!(f, "VT-d unit {:#x}: in RAM", span.start()),
            Self::Reserved(frame) => {
                write!(f, "firmware's devices need {:#x}, which is the visor's", frame.base())
            }
            Self::TooManyReserved => f.write_str("DMAR: more than 64 pieces of reserved memory"),
            Self::Visible => f.write_str("the table DMAR cannot be hidden from the host"),
        }
    }
}

/// What the table says, and the units that it names.
struct Found {
    units: List<Unit<Mmio>, UNITS>,
    registers: List<Span, UNITS>,
    reserved: List<Span, 64>,
    width: u8,
    /// What is to be said once the units are started.
    state: State,
}

/// The units of the machine, ready to be started.
pub(crate) struct Units {
    units: &'static mut [Unit<Mmio>],
    /// Their registers, which are for nobody else.
    pub(crate) registers: &'static [Span],
    /// Memory that firmware's own DMA needs.
    reserved: &'static [Span],
    /// Bits of addresses.
    width: u8,
    /// What is to be said once they are started.
    state: State,
}

static FOUND: Mutex<Found> = Mutex::new(Found {
    units: List::new(Unit::none(Mmio(0))),
    registers: List::new(Span::EMPTY),
    reserved: List::new(Span::EMPTY),
    width: 0,
    state: State::On,
});
/// What devices reach. Only touched while the lock of `crate::tables` is held.
static DEVICES: Mutex<Option<Devices<'static, Mmio>>> = Mutex::new(None);
/// Whether devices can go round the caches to what units let them reach.
static ROUND_CACHES: AtomicBool = AtomicBool::new(false);
/// Faults of devices so far.
static REFUSED: AtomicU32 = AtomicU32::new(0);
static STATE: AtomicU32 = AtomicU32::new(State::Absent.word());

/// Notes and says that devices reach all memory.
fn give_up(state: State, why: Lack) {
    STATE.store(state.word(), Ordering::Relaxed);
    log::warn!("no IOMMU keeps devices from memory: {why}");
}

/// Whether an IOMMU keeps devices from memory.
pub(crate) fn state() -> State {
    State::of_word(STATE.load(Ordering::Relaxed)).unwrap_or(State::Broken)
}

/// Looks for the units, from the boot loader's copy of ACPI's root pointer on; and has them keep devices
/// from `visor` already, as far as they can, before anything of the visor's is there. RAM is at `ram`.
pub(crate) fn find(rsdp: Option<&[u8]>, visor: Span, ram: &[Span]) {
    let mut found = FOUND.lock();
    match found.search(rsdp, ram).and_then(|()| found.guard(visor)) {
        Ok(()) => return,
        Err(why @ Lack::Table) => give_up(State::Absent, why),
        Err(why) => give_up(State::Broken, why),
    }
    found.units.clear();
}

impl Found {
    /// Reads the table and looks at the units; changes nothing about them.
    fn search(&mut self, rsdp: Option<&[u8]>, ram: &[Span]) -> Result<(), Lack> {
        let root = Root::find(&BootMemory, rsdp).map_err(Lack::Acpi)?;
        let table = root.table(&BootMemory, Signature::DMAR).map_err(Lack::Acpi)?;
        let count = root.count(&BootMemory, Signature::DMAR).map_err(Lack::Acpi)?;
        if count > 1 {
            return Err(Lack::Tables(count));
        }
        let dmar = Dmar::parse(table.ok_or(Lack::Table)?).map_err(Lack::Dmar)?;
        has_all_devices(root, &dmar)?;
        self.width = u8::try_from(dmar.width()).unwrap_or(u8::MAX);
        for reserved in dmar.reserved() {
            self.reserved.push(reserved.memory).map_err(|_| Lack::TooManyReserved)?;
        }
        for place in dmar.units().map(|unit| unit.registers) {
            if place.end() > 4 * HUGE {
                return Err(Lack::High(place));
            }
            if ram.iter().any(|ram| ram.overlaps(place)) {
                return Err(Lack::Ram(place));
            }
            let unit = Unit::probe(Mmio(place.start()), place.start()).map_err(Lack::Unit)?;
            // There is room for as many as the table can have.
            let _ = self.registers.push(place);
            let _ = self.units.push(unit);
        }
        Ok(())
    }

    /// Has the units keep devices from the visor's memory, as far as they can before they have tables.
    fn guard(&mut self, visor: Span) -> Result<(), Lack> {
        for (unit, place) in self.units.iter_mut().zip(self.registers.iter()) {
            let window = unit.guard(visor).map_err(Lack::Unit)?;
            if window != Window::Closed {
                self.state = State::Late;
            }
            let until_then = match window {
                Window::Closed => "keeps devices from the visor from now on",
                Window::Firmware => "is on by firmware, and stays on",
                Window::Open => "stops no device before its tables are on",
            };
            log::info!("VT-d unit {:#x}: {until_then}", place.start());
        }
        Ok(())
    }
}

/// Whether some unit works for each device.
fn has_all_devices(root: Root<'_>, dmar: &Dmar<'_>) -> Result<(), Lack> {
    let regions = mcfg(&BootMemory, root).map_err(Lack::Acpi)?;
    let segments = regions.iter().map(|region| Segment(region.segment));
    dmar.uncovered(segments, &Ports).map_or(Ok(()), |what| Err(Lack::Uncovered(what)))
}

/// Has the host find no units, if the visor has found some. They are its alone from here on.
pub(crate) fn hide(rsdp: Option<&[u8]>) -> Option<Units> {
    let Found { units, registers, reserved, width, state } = MutexGuard::leak(FOUND.lock());
    if units.is_empty() {
        return None;
    }
    hide_table(rsdp).inspect_err(|why| give_up(State::Broken, *why)).ok()?;
    Some(Units { units, registers, reserved, width: *width, state: *state })
}

fn hide_table(rsdp: Option<&[u8]>) -> Result<(), Lack> {
    // Nothing of firmware's memory is borrowed when the name is written.
    let find = || {
        let root = Root::find(&BootMemory, rsdp).map_err(Lack::Acpi)?;
        root.address(&BootMemory, Signature::DMAR).map_err(Lack::Acpi)
    };
    let address = find()?.ok_or(Lack::Table)?;
    let mut head = [0; 10];
    memory::read_bytes(address, &mut head);
    memory::write_bytes(address, &hidden(head));
    if find()?.is_none() { Ok(()) } else { Err(Lack::Visible) }
}

impl Units {
    /// Starts them all, for what `frames` say, with tables in `pool`. Processors have addresses of
    /// `width` bits, and RAM ends at `ram_end`.
    pub(crate) fn start(
        self,
        pool: &mut Pool,
        frames: &FrameTable<'_>,
        (width, ram_end): (u8, u64),
    ) {
        let width = width.min(self.width);
        let registers = self.registers;
        let policy = Policy { frames, denied: registers };
        let conflict = self.reserved.iter().find_map(|memory| policy.conflict(*memory));
        let started = conflict.map_or(Ok(()), |frame| Err(Lack::Reserved(frame))).and_then(|()| {
            let place = (frames, registers);
            Devices::start(self.units, pool, place, (width, ram_end)).map_err(Lack::Unit)
        });
        match started {
            Ok(devices) => {
                if devices.snoop() == Snoop::AsAsked {
                    ROUND_CACHES.store(true, Ordering::Relaxed);
                    log::info!("VT-d: devices may go round the caches, so pages leave them");
                }
                *DEVICES.lock() = Some(devices);
                STATE.store(self.state.word(), Ordering::Relaxed);
                for place in registers {
                    let at = place.start();
                    log::info!("VT-d unit {at:#x}: devices reach only what the host reaches");
                }
            }
            Err(why) => give_up(State::Broken, why),
        }
    }
}

/// Stops the machine if a unit has failed: nobody knows what devices reach then.
fn must(result: Result<(), Error>) {
    match result {
        Ok(()) => {}
        Err(Error { cause: Cause::Exhausted, .. }) => {
            log::error!("no room for tables: devices do not reach all of the host's memory");
        }
        Err(error) => panic!("{error}"),
    }
}

/// As [`Devices::revise`].
pub(crate) fn revise(pool: &mut Pool, frames: &FrameTable<'_>, page: Span) -> Span {
    DEVICES.lock().as_mut().map_or(Span::EMPTY, |devices| devices.revise(pool, frames, page))
}

/// As [`Devices::flush`].
pub(crate) fn flush(pool: &mut Pool) {
    if let Some(devices) = &mut *DEVICES.lock() {
        must(devices.flush(pool));
    }
}

/// Has the caches forget `frame`, which devices do not reach, if they can go round the caches: what a device
/// wrote to memory alone is what the visor reads from here on; and what the visor wrote is in memory before a
/// device may read that alone.
pub(crate) fn leave_caches(frame: Frame) {
    if ROUND_CACHES.load(Ordering::Relaxed) {
        cpu::write_back_page(memory::linear(frame.base()));
    }
}

/// As [`Devices::complete`]. Units have forgotten `page` by then, and have done what devices asked before:
/// what is a table of a VM's from here on is read after it has left the caches.
pub(crate) fn complete(pool: &mut Pool, frames: &FrameTable<'_>, page: Span, leave: &Flushed) {
    (page.start()..page.end()).step_by(4096).map(Frame::containing).for_each(leave_caches);
    if let Some(devices) = &mut *DEVICES.lock() {
        must(devices.complete(pool, frames, page, leave));
    }
}

/// The first frame of `span`, of RAM, at which devices arrive otherwise than `frames` say.
pub(crate) fn disagreement(pool: &Pool, frames: &FrameTable<'_>, span: Span) -> Option<Frame> {
    let devices = DEVICES.lock();
    let devices = devices.as_ref()?;
    let mut bases = (span.start()..span.end()).step_by(4096).map(Frame::containing);
    bases.find(|frame| !devices.agrees(pool, frames, *frame))
}

/// Asks the units, if they were not asked for some time, what they have refused to devices; each of the
/// first accesses goes into the log: whoever has a device try for ever must not fill it.
pub(crate) fn poll(audit: &mut Audit, cpu: u32) {
    const LOGGED: u32 = 64;
    let Some(devices) = &mut *DEVICES.lock() else { return };
    let told = devices.poll(cpu::tsc(), |fault| {
        let before = REFUSED.fetch_add(1, Ordering::Relaxed);
        if before < LOGGED {
            log::warn!("refused: {fault}");
            let [a, b] = fault.words();
            audit.push(cpu, Entry { kind: Kind::Dma, vm: None, a, b });
        } else if before == LOGGED {
            log::warn!("refused: more of devices is not shown");
        }
    });
    must(told.map(drop));
}

/// How many accesses of devices were refused, as far as units have told.
pub(crate) fn refused() -> u32 {
    REFUSED.load(Ordering::Relaxed)
}
