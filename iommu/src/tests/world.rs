//! A machine: RAM, the visor's memory in it, units and their tables.

use std::boxed::Box;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::vec::Vec;

use ept::addr::{Frame, GuestFrame, HUGE, LARGE, PAGE, Span};
use ept::frames::{Event, FrameTable, View, Vm};

use crate::fake::{Fake, Mem, Ram, Sight, Try};
use ept::ept01::Exhausted;

use crate::{Cause, Domain, Error, Mode, Policy, Stale, Target, Unit, flush, format};

/// The visor's memory, with its views and then its tables.
pub(crate) const VISOR: Span = match Span::new(5 * HUGE - LARGE, 5 * HUGE) {
    Some(span) => span,
    None => Span::EMPTY,
};
/// Registers that no device must reach.
pub(crate) const DENIED: Span = match Span::new(0xfed9_0000, 0xfed9_2000) {
    Some(span) => span,
    None => Span::EMPTY,
};
/// Some device.
pub(crate) const DEVICE: u16 = 0x0310;
/// Some page of the host's, with RAM of its own 2 MiB around.
pub(crate) const PLACE: u64 = 4 * HUGE + 5 * LARGE + 7 * PAGE;

pub(crate) struct World {
    pub(crate) frames: FrameTable<'static>,
    pub(crate) ram: Rc<RefCell<Ram>>,
    pub(crate) mem: Mem,
    pub(crate) fakes: Vec<Fake>,
    pub(crate) units: Vec<Unit<Fake>>,
    pub(crate) domain: Domain,
}

pub(crate) fn frame(address: u64) -> Frame {
    Frame::at(address).expect("a frame")
}

pub(crate) fn page(address: u64) -> Span {
    Span::sized(address, PAGE).expect("a page")
}

/// Takes memory to be private memory of a VM.
pub(crate) fn take(address: u64) -> Event {
    let page = GuestFrame::at(address).expect("a frame of a VM");
    Event::Take(Vm::new(1).expect("a VM"), page)
}

pub(crate) fn frame_table() -> FrameTable<'static> {
    let spans = [(0, 0xa_0000), (0x10_0000, 0x400_0000), (4 * HUGE, 5 * HUGE)];
    let spans = spans.map(|(start, end)| Span::new(start, end).expect("a span"));
    let ram: &'static [Span] = Box::leak(Box::new(spans));
    let words = usize::try_from(FrameTable::entries(ram)).expect("a size");
    let mut frames = FrameTable::new(ram, Box::leak(std::vec![0; words].into())).expect("a table");
    frames.apply(VISOR, Event::Claim).expect("the visor's");
    frames.set_views(Span::sized(VISOR.start(), 8 * PAGE).expect("views"));
    frames
}

impl World {
    /// A machine with units of these capabilities, before they are started.
    pub(crate) fn stopped(sight: Sight, capabilities: &[(u64, u64)]) -> Self {
        let frames = frame_table();
        let ram = Ram::new(VISOR.start() + 0x1_0000, sight);
        let mut mem = Mem(Rc::clone(&ram));
        let fakes: Vec<_> =
            capabilities.iter().map(|(cap, ecap)| Fake::new(&ram, *cap, *ecap)).collect();
        let probed = fakes.iter().zip(1..).map(|(fake, n)| Unit::probe(fake.clone(), n << 12));
        let units: Vec<_> = probed.collect::<Result<_, _>>().expect("units that do");
        let policy = Policy { frames: &frames, denied: &[DENIED] };
        let format = format(&units, 33, 5 * HUGE).expect("a format");
        let domain = Domain::build(&mut mem, &policy, format).expect("tables");
        Self { frames, ram, mem, fakes, units, domain }
    }

    pub(crate) fn started(sight: Sight, capabilities: &[(u64, u64)]) -> Self {
        let mut world = Self::stopped(sight, capabilities);
        for unit in &mut world.units {
            unit.start(&mut world.mem, &world.domain, None, Mode::Legacy).expect("a start");
        }
        world
    }

    pub(crate) fn policy(&self) -> Policy<'_> {
        Policy { frames: &self.frames, denied: &[DENIED] }
    }

    pub(crate) fn change(&mut self, address: u64, event: Event) {
        let _ = self.frames.change(frame(address), event).expect("a change that may be");
    }

    pub(crate) fn follow(&mut self, span: Span) -> Result<(), Error> {
        let policy = Policy { frames: &self.frames, denied: &[DENIED] };
        let (units, mem) = (&mut self.units[..], &mut self.mem);
        let stale = self.domain.revise(mem, &policy, span);
        let mut flushed = flush(units, mem, stale)?;
        while !flushed.is_complete() {
            let (given, filled) = self.domain.complete(mem, &policy, flushed);
            flushed = flush(units, mem, given)?;
            let exhausted = |Exhausted| Error { unit: 0, cause: Cause::Exhausted };
            filled.map_err(exhausted)?;
        }
        Ok(())
    }

    pub(crate) fn revise(&mut self, span: Span) -> Stale {
        let policy = Policy { frames: &self.frames, denied: &[DENIED] };
        self.domain.revise(&mut self.mem, &policy, span)
    }

    pub(crate) fn flush(&mut self, stale: Stale) -> crate::Flushed {
        flush(&mut self.units, &mut self.mem, stale).expect("a flush")
    }

    /// Gives and takes a page, and follows each time.
    pub(crate) fn hand(&mut self, address: u64, event: Event) {
        self.change(address, event);
        self.follow(page(address)).expect("units that follow");
    }

    /// Every unit lets `DEVICE` do with the page at `address` exactly what the policy says.
    pub(crate) fn check(&self, address: u64) {
        let denied = DENIED.contains(address) || (0xfee0_0000..0xfef0_0000).contains(&address);
        let want = if denied { None } else { self.policy().of(frame(address)) };
        for fake in &self.fakes {
            let read = fake.dma(DEVICE, address + 8, Try::Read).ok();
            let write = fake.dma(DEVICE, address + 8, Try::Write).ok();
            let at = |target: Target| target.frame.base() + 8;
            assert_eq!(read, want.map(at), "read of {address:#x}");
            let want = want.filter(|target| target.writable);
            assert_eq!(write, want.map(at), "write of {address:#x}");
        }
    }

    /// What the tables have now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let root = self.domain.root(&self.mem, 4).base();
        let mut ram = self.ram.borrow_mut();
        ram.history.clear();
        let live: Vec<u64> = ram.live.iter().copied().collect();
        let words = |table: u64| (0..512).map(|index| ram.word(table, index)).collect();
        let pages = live.into_iter().map(|table| (table, words(table))).collect();
        Snapshot { root, pages }
    }

    /// Since `old`, each of `addresses` was at all times as then or as now.
    pub(crate) fn check_history(&self, mut old: Snapshot, addresses: &[u64]) {
        let history = self.ram.borrow().history.clone();
        let look = |tables: &Snapshot| -> Vec<_> {
            addresses.iter().map(|address| tables.walk(*address)).collect()
        };
        let before = look(&old);
        let after = look(&self.snapshot());
        for (table, index, raw) in history {
            let words = old.pages.entry(table).or_insert_with(|| std::vec![0; 512]);
            words[index] = raw;
            for (((now, before), after), address) in
                look(&old).iter().zip(&before).zip(&after).zip(addresses)
            {
                assert!(now == before || now == after, "{address:#x} is {now:?} for a moment");
            }
        }
    }
}

/// The words of all tables.
pub(crate) struct Snapshot {
    root: u64,
    pages: HashMap<u64, Vec<u64>>,
}

impl Snapshot {
    /// Where `address` leads to, and the right to write.
    fn walk(&self, address: u64) -> Option<(u64, bool)> {
        let mut table = self.root;
        for bits in [39, 30, 21, 12] {
            let index = usize::try_from(address >> bits & 511).expect("an index");
            let raw = self.pages.get(&table)?[index];
            table = raw & 0xf_ffff_ffff_f000;
            if raw & 3 == 0 {
                return None;
            }
            if bits == 12 || raw & 0x80 != 0 {
                return Some((table + address % (1 << bits), raw & 2 != 0));
            }
        }
        None
    }
}

/// The view of this number.
pub(crate) const fn view(number: u8) -> Event {
    Event::View(Some(View(number)))
}
