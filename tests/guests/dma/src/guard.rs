//! What stands between devices and memory: the IOMMU, programmed with the visor's code, or nothing.

use crate::pci;
use crate::registers::Mmio;
use crate::visor::{self, Physical, Tables};
use bare::info::Info;
use bare::{apic, console, cpu};
use boot::acpi::{Root, Signature};
use core::fmt::Display;
use ept::addr::{Frame, PAGE, Span};
use ept::entry::Level;
use ept::frames::{Event, FrameTable, State};
use iommu::dmar::{Dmar, Segment};
use iommu::{
    Access, Addressing, Delivery, Destinations, Domain, Fault, Interrupt, Interrupts, Mode, Policy,
    Registers, Source, Trigger, Unit,
};

/// Offset of the register that says what is on (VT-d 4.1, 11.4.4.2).
const STATUS: u64 = 0x1c;

/// Where a message's address has the entry's index (VT-d 4.1, 5.1.2.2).
const INDEX: u32 = 5;

/// A transfer that was stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stopped {
    /// The requester id it carried.
    pub(crate) source: u16,
    /// The page it was for.
    pub(crate) page: u64,
    /// Whether it would have changed memory.
    pub(crate) is_write: bool,
}

/// Who owns memory, as far as devices are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// Devices reach it.
    Host,
    /// None does.
    Vm,
    /// They reach [`visor::VIEW`] in its place.
    VmWithView,
    /// They may read it only: it is a table for VMs.
    HostAsTable,
}

/// What a device writes to signal an interrupt.
#[derive(Clone, Copy)]
pub(crate) struct Message {
    pub(crate) address: u32,
    pub(crate) data: u16,
}

/// The unit of the machine, with all that is behind it.
struct Iommu {
    tables: Tables,
    frames: FrameTable<'static>,
    /// The unit's own registers.
    denied: [Span; 1],
    domain: Domain,
    units: [Unit<Mmio>; 1],
    interrupts: Interrupts,
    /// Entries in use.
    entries: u8,
    setting: Setting,
}

/// How the unit is programmed.
#[derive(Clone, Copy)]
struct Setting {
    registers: Mmio,
    /// Where its registers are, which no device must reach.
    place: Span,
    /// Bits of addresses.
    width: u8,
    mode: Mode,
    ram_end: u64,
}

/// The IOMMU of the machine, if it is used.
pub(crate) struct Guard(Option<Iommu>);

/// What must not happen to the test's own setting.
fn must<T>(result: Result<T, impl Display>) -> T {
    match result {
        Ok(value) => value,
        Err(why) => panic!("{why}"),
    }
}

/// Where the registers of the machine's unit are, and how wide its addresses.
fn unit() -> (Span, u8) {
    let root = must(Root::find(&Physical, None));
    let Some(table) = must(root.table(&Physical, Signature::DMAR)) else {
        panic!("there is no IOMMU");
    };
    let dmar = must(Dmar::parse(table));
    let mut units = dmar.units();
    let (Some(unit), None) = (units.next(), units.next()) else {
        panic!("there is more than one IOMMU");
    };
    assert!(dmar.remaps_interrupts(), "interrupts are not remapped");
    for function in pci::all() {
        let works_for = dmar.unit_of(Segment(0), Source(function.0), &pci::Bridges);
        assert!(works_for == Some(0), "{:#06x} has no IOMMU", function.0);
    }
    (unit.registers, dmar.width().min(cpu::physical_bits() as u16) as u8)
}

/// Lets every frame of `start..end` become the `owner`'s, in the frame table.
fn change(frames: &mut FrameTable<'_>, start: u64, end: u64, owner: Owner) {
    for page in (start..end).step_by(PAGE as usize) {
        let frame = Frame::containing(page);
        let table = Event::Link(Level::Pt, ept::frames::Guard::Counted, None);
        let events: &[Event] = match (owner, frames.state(frame)) {
            (Owner::Host, Some(State::Private { .. })) => &[Event::Release],
            (Owner::Host, _) => &[Event::Unlink(None), Event::Forget],
            (Owner::Vm, _) => &[visor::take(frame)],
            (Owner::VmWithView, _) => &[visor::take(frame), Event::View(Some(visor::VIEW))],
            (Owner::HostAsTable, _) => &[table],
        };
        for event in events {
            let _ = must(frames.change(frame, *event));
        }
    }
}

/// Programs the unit for what `frames` says, whatever it does now.
fn start(setting: Setting, mut tables: Tables, frames: FrameTable<'static>) -> Iommu {
    let Setting { registers, place, width, mode, ram_end } = setting;
    let (at, denied) = (place.start(), [place]);
    let policy = Policy { frames: &frames, denied: &denied };
    let mut units = [must(Unit::probe(registers, at))];
    let format = must(iommu::format(&units, width, ram_end));
    let domain = must(Domain::build(&mut tables, &policy, format));
    let [unit] = &mut units;
    let window = must(unit.guard(Span::new(visor::START, visor::END).unwrap_or_default()));
    let Some(interrupts) = Interrupts::new(&mut tables, unit, Destinations::Xapic) else {
        panic!("no room for interrupts");
    };
    must(unit.start(&mut tables, &domain, Some(&interrupts), mode));
    let status = unit.registers().read32(STATUS);
    console::line(format_args!(
        "unit at {at:#x}: {mode:?}, {window:?} until on, status {status:#x}, {} tables for {:?}",
        tables.used,
        domain.all()
    ));
    Iommu { tables, frames, denied, domain, units, interrupts, entries: 0, setting }
}

impl Guard {
    /// No IOMMU is programmed.
    pub(crate) const fn open() -> Self {
        Self(None)
    }

    /// The IOMMU is programmed as the command line says: in mode `scalable`, and without what it is to leave.
    pub(crate) fn closed(info: &Info) -> Self {
        let has = |word| info.command_line().split_ascii_whitespace().any(|other| other == word);
        let (place, width) = unit();
        let mut registers = Mmio::new(place.start());
        if has("leave=translations") {
            registers.spare_translations();
        }
        let mode = if has("scalable") { Mode::Scalable } else { Mode::Legacy };
        let ends = info.regions().iter().filter(|region| region.kind == 1).map(|ram| ram.end());
        let ram_end = ends.max().unwrap_or(0);
        let setting = Setting { registers, place, width, mode, ram_end };
        Self(Some(start(setting, Tables::new(), visor::frames(info))))
    }

    /// Programs the unit once more, from what it was left with, as after firmware that had it on. Frames in
    /// `start..end` are a VM's from then on, of which the tables before know nothing.
    pub(crate) fn take_over(&mut self, from: u64, to: u64) {
        let Some(Iommu { tables, mut frames, setting, .. }) = self.0.take() else {
            return;
        };
        change(&mut frames, from, to, Owner::Vm);
        self.0 = Some(start(setting, tables, frames));
    }

    /// Gives the bytes `start..end`, whole pages, to `owner`: when this returns, no device reaches what is
    /// not the host's.
    pub(crate) fn give(&mut self, start: u64, end: u64, owner: Owner) {
        let Some(Iommu { tables, frames, denied, domain, units, .. }) = &mut self.0 else {
            return;
        };
        change(frames, start, end, owner);
        let span = Span::new(start, end).unwrap_or_default();
        let policy = Policy { frames, denied };
        let stale = domain.revise(tables, &policy, span);
        let mut flushed = must(iommu::flush(units, tables, stale));
        while !flushed.is_complete() {
            let (given, filled) = domain.complete(tables, &policy, flushed);
            must(filled);
            flushed = must(iommu::flush(units, tables, given));
        }
    }

    /// Where the unit's registers are.
    pub(crate) fn registers(&self) -> Option<u64> {
        self.0.as_ref().map(|iommu| iommu.setting.place.start())
    }

    /// Bytes of the leaf through which devices reach `address`; 0: they do not.
    pub(crate) fn leaf(&self, address: u64) -> u64 {
        let Some(Iommu { tables, domain, .. }) = &self.0 else {
            return 0;
        };
        domain.walk(tables, address).map_or(0, |(_, level)| level.bytes())
    }

    /// Tables in use, and entries that were queued so far.
    pub(crate) fn counts(&mut self) -> [u64; 2] {
        let Some(Iommu { tables, units: [unit], .. }) = &mut self.0 else {
            return [0; 2];
        };
        [tables.used, unit.registers().asked]
    }

    /// The next transfer that was stopped and not yet told of.
    pub(crate) fn stopped(&mut self) -> Option<Stopped> {
        let [unit] = &mut self.0.as_mut()?.units;
        let mut told = None;
        let _ = unit.poll(|fault| told = told.or(Some(fault)));
        let Fault { source, access, .. } = told?;
        let (page, is_write) = match access {
            Access::Read(page) => (page, false),
            Access::Write(page) => (page, true),
            Access::Other(_) | Access::Interrupt(_) => panic!("{}", told?),
        };
        Some(Stopped { source: source.0, page, is_write })
    }

    /// The message by which the device with this requester id signals `vector` at `destination`.
    pub(crate) fn message(&mut self, source: u16, vector: u8, destination: u32) -> Message {
        let Some(Iommu { tables, units: [unit], interrupts, entries, .. }) = &mut self.0 else {
            return Message { address: 0xfee0_0000 | destination << 12, data: u16::from(vector) };
        };
        let interrupt = Interrupt {
            source: Source(source),
            vector,
            destination,
            addressing: Addressing::Physical,
            delivery: Delivery::Fixed,
            trigger: Trigger::Edge,
        };
        let index = *entries;
        must(interrupts.set(tables, unit, index, Some(interrupt)));
        *entries += 1;
        remappable(index)
    }

    /// A message that nobody was given, for `vector` if it means anything.
    pub(crate) fn missing(&mut self, vector: u8) -> Message {
        match &self.0 {
            Some(iommu) => remappable(iommu.entries),
            None => self.message(0, vector, apic::id()),
        }
    }

    /// As [`Guard::missing`], by the first index past the table.
    pub(crate) fn beyond(&mut self, vector: u8) -> Message {
        if self.0.is_none() {
            return self.missing(vector);
        }
        let last = remappable(u8::MAX);
        Message { address: last.address + (1 << INDEX), ..last }
    }

    /// The message `other`, as a device makes it of its `own` by another subhandle (VT-d 4.1, 5.1.2.2).
    pub(crate) fn by_subhandle(&self, own: Message, other: Message) -> Message {
        const HAS_SUBHANDLE: u32 = 1 << 3;
        if self.0.is_none() {
            return other;
        }
        let further = (other.address >> INDEX) - (own.address >> INDEX);
        Message { address: own.address | HAS_SUBHANDLE, data: further as u16 }
    }

    /// Takes the entry of `message` back.
    pub(crate) fn withdraw(&mut self, message: Message) {
        if let Some(Iommu { tables, units: [unit], interrupts, .. }) = &mut self.0 {
            must(interrupts.set(tables, unit, (message.address >> INDEX) as u8, None));
        }
    }

    /// Forgets those not yet told of.
    pub(crate) fn forget(&mut self) {
        while self.stopped().is_some() {}
    }
}

fn remappable(index: u8) -> Message {
    let message = iommu::Message::remappable(index);
    Message { address: message.address, data: message.data as u16 }
}
