//! Trees of the host's tables as they enter and leave use.

use super::{Hardware, HostMemory, Meaning, Refused};
use crate::addr::{Frame, PAGE, Span};
use crate::entry::{ENTRIES, Level};
use crate::ept01::{Ept01, Flushed, Rules, Stale, Tlb};
use crate::frames::{Event, FrameTable, Guard, State};
use crate::mtrr::Mtrrs;

/// Everything that the host's tables are checked against and that follows from them.
#[derive(Debug)]
pub struct Machine<'m, 't, H> {
    /// What each frame is.
    pub frames: &'m mut FrameTable<'t>,
    /// The memory types of EPT01.
    pub mtrrs: &'m Mtrrs,
    /// Device memory that the host must not reach.
    pub denied: &'m [Span],
    /// The host's own tables.
    pub ept: Ept01,
    /// Number of physical-address bits.
    pub width: u8,
    /// The tables' memory and the processors that use it.
    pub hardware: &'m mut H,
}

/// Tables that processors may use otherwise than the frame table says, until the flush: to write to
/// them, if they are about to be used; to walk them, if they are not used any more.
#[derive(Debug)]
#[must_use = "they are not what the frame table says until processors have flushed"]
pub(super) struct Moving {
    /// The list that runs through the frame table.
    first: Option<Frame>,
    stale: Stale,
}

/// The same when every processor has forgotten them.
#[derive(Debug)]
#[must_use = "their part of EPT01 may be absent until it is completed"]
struct Moved {
    first: Option<Frame>,
    flushed: Flushed,
}

impl Moving {
    /// None yet, for tables that the host sees through `ept`.
    pub(super) fn new(ept: Ept01) -> Self {
        Self { first: None, stale: ept.stale() }
    }

    fn flush(self, tlb: &mut impl Tlb) -> Moved {
        Moved { first: self.first, flushed: self.stale.flush(tlb) }
    }
}

impl<H> Machine<'_, '_, H> {
    /// What an entry of a table of `level` that holds `raw` makes reachable.
    #[must_use]
    pub fn meaning(&self, raw: u64, level: Level) -> Meaning {
        Meaning::of(raw, level, self.width)
    }

    /// Whether `frame` is a table of a protected VM's, in use.
    #[must_use]
    pub fn is_guarded(&self, frame: Frame) -> bool {
        matches!(self.frames.state(frame), Some(State::Table { guard: Guard::Guarded, .. }))
    }
}

impl<H: HostMemory> Machine<'_, '_, H> {
    /// Whether nothing hangs from the root `table`.
    pub(super) fn is_empty(&self, table: Frame) -> bool {
        let mut entries = indexes().map(|index| self.hardware.entry(table, index));
        entries.all(|raw| self.meaning(raw, Level::Pml4) == Meaning::Nothing)
    }

    /// Whether `table` is, or leads to, the table that is `sought`, each given with its level. An
    /// empty `budget` of entries to read makes it `true`.
    pub(super) fn holds(
        &self,
        (table, level): (Frame, Level),
        sought: (Frame, Level),
        budget: &mut u32,
    ) -> bool {
        if (table, level) == sought || *budget == 0 {
            return true;
        }
        level != sought.1
            && indexes().any(|index| {
                *budget = budget.saturating_sub(1);
                match self.meaning(self.hardware.entry(table, index), level) {
                    Meaning::Table(child, below) => self.holds((child, below), sought, budget),
                    Meaning::Nothing | Meaning::Leaf(..) => false,
                }
            })
    }
}

impl<H: Hardware> Machine<'_, '_, H> {
    /// Counts what an entry of a table under this `guard` is about to make reachable; a tree that is
    /// new becomes fit for it.
    #[inline(always)]
    pub(super) fn gain(&mut self, meaning: Meaning, guard: Guard) -> Result<(), Refused> {
        match meaning {
            Meaning::Nothing => Ok(()),
            Meaning::Leaf(first, level) => self.map(first, level, guard),
            Meaning::Table(table, level) => self.grow(table, level, guard),
        }
    }

    /// Takes back what an entry of such a table made reachable that does so no more.
    pub(super) fn lose(&mut self, meaning: Meaning, guard: Guard) {
        match meaning {
            Meaning::Nothing => {}
            Meaning::Leaf(first, level) => self.unmap(first, level, guard),
            Meaning::Table(table, _) => {
                let mut leaving = Moving::new(self.ept);
                self.unlink(table, &mut leaving);
                self.give_back(leaving);
            }
        }
    }

    /// Counts a leaf of `level` that maps the block from `first`, if processors use it.
    fn map(&mut self, first: Frame, level: Level, guard: Guard) -> Result<(), Refused> {
        match guard {
            Guard::Counted => {
                let block = self.permitted(first, level)?;
                self.frames.map(block, level).map_err(Refused::Frame)
            }
            Guard::Guarded => Ok(()),
        }
    }

    /// The block of a leaf of `level` from `first`, if EPT01 can name it and none of it is denied.
    pub(super) fn permitted(&self, first: Frame, level: Level) -> Result<Span, Refused> {
        self.nameable(Span::sized(first.base(), level.bytes()).unwrap_or_default())
    }

    /// `block`, if EPT01 can name it and none of it is denied.
    pub(super) fn nameable(&self, block: Span) -> Result<Span, Refused> {
        let mut denied = self.denied.iter().map(|span| span.grow_to(PAGE));
        if !self.ept.all().covers(block) || denied.any(|denied| denied.overlaps(block)) {
            return Err(Refused::Denied(block));
        }
        Ok(block)
    }

    /// Takes back a [`Machine::map`].
    fn unmap(&mut self, first: Frame, level: Level, guard: Guard) {
        if guard == Guard::Counted {
            let block = Span::sized(first.base(), level.bytes()).unwrap_or_default();
            // What was counted can be taken back.
            let _ = self.frames.unmap(block, level);
        }
    }

    /// Counts a link to `table`, and if it is new, all that hangs from it.
    fn grow(&mut self, table: Frame, level: Level, guard: Guard) -> Result<(), Refused> {
        let mut fresh = Moving::new(self.ept);
        self.link((table, level, guard), &mut fresh)?;
        let mut leaving = Moving::new(self.ept);
        let read = self.read(fresh, &mut leaving);
        if read.is_err() {
            self.unlink(table, &mut leaving);
            self.give_back(leaving);
        }
        read
    }

    /// Counts a link to `table`, which joins `fresh` if it is new.
    fn link(
        &mut self,
        (table, level, guard): (Frame, Level, Guard),
        fresh: &mut Moving,
    ) -> Result<(), Refused> {
        let event = Event::Link(level, guard, fresh.first);
        let state = self.frames.change(table, event).map_err(Refused::Frame)?;
        if matches!(state, State::Fresh { links: 1, .. }) {
            fresh.first = Some(table);
            self.revise(page(table), &mut fresh.stale);
        }
        Ok(())
    }

    /// Takes back what was counted for an entry of a table under this `guard`. Tables that nothing
    /// leads to any more join `leaving`.
    fn discount(&mut self, meaning: Meaning, guard: Guard, leaving: &mut Moving) {
        match meaning {
            Meaning::Nothing => {}
            Meaning::Leaf(first, level) => self.unmap(first, level, guard),
            Meaning::Table(table, _) => self.unlink(table, leaving),
        }
    }

    /// Takes back one link to `table`. Its level bounds the recursion: it is linked as a table of
    /// one level, and leads only to lower ones.
    pub(super) fn unlink(&mut self, table: Frame, leaving: &mut Moving) {
        let before = self.frames.state(table);
        let after = self.frames.change(table, Event::Unlink(leaving.first));
        if !matches!(after, Ok(State::Leaving { .. })) {
            return;
        }
        leaving.first = Some(table);
        self.revise(page(table), &mut leaving.stale);
        if let Some(State::Table { level, guard, .. }) = before {
            for index in indexes() {
                let raw = self.hardware.entry(table, index);
                self.discount(self.meaning(raw, level), guard, leaving);
            }
        }
    }

    /// Counts what the entries of all `fresh` tables make reachable, and so on, level by level: the
    /// host can write to none when it is read. What must be undone joins `leaving`.
    fn read(&mut self, mut fresh: Moving, leaving: &mut Moving) -> Result<(), Refused> {
        while fresh.first.is_some() {
            let Moved { first, flushed } = fresh.flush(self.hardware);
            fresh = Moving::new(self.ept);
            let mut next = first;
            while let Some(table) = next {
                next = self.after(table);
                self.complete(page(table), &flushed)?;
            }
            next = first;
            while let Some(table) = next {
                next = self.after(table);
                self.read_table(table, &mut fresh, leaving)?;
            }
        }
        Ok(())
    }

    /// Counts what the entries of `table` make reachable, or nothing of it.
    fn read_table(
        &mut self,
        table: Frame,
        fresh: &mut Moving,
        leaving: &mut Moving,
    ) -> Result<(), Refused> {
        let Some(State::Fresh { level, guard, .. }) = self.frames.state(table) else {
            return Err(Refused::NoTable(table));
        };
        for index in indexes() {
            let raw = self.hardware.entry(table, index);
            let counted = match self.meaning(raw, level) {
                Meaning::Nothing => continue,
                Meaning::Leaf(first, level) => self.map(first, level, guard),
                Meaning::Table(table, level) => self.link((table, level, guard), fresh),
            };
            if let Err(refused) = counted {
                for index in indexes().take(index) {
                    let raw = self.hardware.entry(table, index);
                    self.discount(self.meaning(raw, level), guard, leaving);
                }
                return Err(refused);
            }
        }
        let _ = self.frames.change(table, Event::Count).map_err(Refused::Frame)?;
        Ok(())
    }

    /// Makes the tables in `leaving` plain memory of the host's again.
    pub(super) fn give_back(&mut self, leaving: Moving) {
        if leaving.first.is_none() {
            return;
        }
        let Moved { mut first, flushed } = leaving.flush(self.hardware);
        while let Some(table) = first {
            first = self.after(table);
            // There is memory for every table that EPT01 can need. What it had none for would be
            // absent, and the host's accesses to it be retried until there is.
            let _ = self.complete(page(table), &flushed);
            let _ = self.frames.change(table, Event::Forget);
        }
    }

    /// The next on the list that `table` is on.
    fn after(&self, table: Frame) -> Option<Frame> {
        match self.frames.state(table)? {
            State::Fresh { next, .. } | State::Leaving { next } => next,
            State::Visor | State::Plain { .. } | State::Table { .. } | State::Private { .. } => {
                None
            }
        }
    }

    /// Takes from the host and its devices what they may not do with `part` any more.
    pub(super) fn revise(&mut self, part: Span, stale: &mut Stale) {
        let Self { frames, mtrrs, denied, ept, hardware, .. } = self;
        let rules = Rules { frames, mtrrs, denied };
        stale.add(ept.revise(*hardware, &rules, part));
        stale.add_devices(hardware.revise_devices(frames, part));
    }

    /// Gives the host and its devices what they may do with `part`, and the host what lay in one large
    /// page with it.
    pub(super) fn complete(&mut self, part: Span, flushed: &Flushed) -> Result<(), Refused> {
        let Self { frames, mtrrs, denied, ept, hardware, .. } = self;
        let rules = Rules { frames, mtrrs, denied };
        let completed = ept.complete_part(*hardware, &rules, flushed, part);
        hardware.complete_devices(frames, part, flushed);
        completed.map_err(Refused::Exhausted)
    }
}

/// The indexes of a table's entries.
pub(super) fn indexes() -> impl Iterator<Item = usize> {
    0..usize::try_from(ENTRIES).unwrap_or(0)
}

/// The bytes of `frame`.
pub(super) fn page(frame: Frame) -> Span {
    Span::sized(frame.base(), PAGE).unwrap_or_default()
}
