//! The second-stage tables: the identity map of what devices may reach, as a projection of a [`Policy`].
//!
//! A processor repeats an access that found a page absent; a device does not. So, unlike EPT01's,
//! these tables never take away for a moment what is permitted before and after: a large page is
//! split, and a table merged, by one store that leaves every permitted address as it was.

use ept::addr::{Frame, PAGE, Span};
use ept::entry::{ENTRIES, Level};
use ept::ept01::{self, Exhausted};
use ept::list::List;

use crate::Memory;
use crate::capabilities::{Format, Snoop, Walks};
use crate::entry::Entry;
use crate::policy::{Policy, Target};

/// Spans that are flushed one by one; if there are more, everything is.
const SPANS: usize = 8;
/// Tables that are merged before a flush.
const MERGED: usize = 8;

/// The obligation to flush: until then units may use translations that the tables no longer have.
#[derive(Debug)]
#[must_use = "the old translations stay in use until they are flushed"]
pub struct Stale {
    /// What is still to be filled in, or to be merged.
    revised: Span,
    /// Whole leaves that have changed, or everything.
    spans: List<Span, SPANS>,
    everything: bool,
    /// Tables that no entry leads to any more.
    retired: List<Frame, MERGED>,
}

impl Stale {
    pub(crate) fn new(revised: Span) -> Self {
        let filler = Frame::containing(0);
        let (spans, retired) = (List::new(Span::EMPTY), List::new(filler));
        Self { revised, spans, everything: false, retired }
    }

    /// What must be flushed; `None`: everything.
    #[must_use]
    pub fn spans(&self) -> Option<&[Span]> {
        if self.everything { None } else { Some(&self.spans) }
    }

    /// Whether nothing has to be flushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.everything && self.spans.is_empty()
    }

    /// Adds what [`Domain::revise`] has found, which never retires a table.
    pub(crate) fn join(&mut self, other: &Self) {
        self.everything |= other.everything;
        other.spans.iter().for_each(|span| self.add(*span));
    }

    fn add(&mut self, block: Span) {
        if let Some(last) = self.spans.last_mut()
            && block.start() <= last.end()
            && last.start() <= block.end()
        {
            let (start, end) = (last.start().min(block.start()), last.end().max(block.end()));
            *last = Span::new(start, end).unwrap_or(*last);
        } else if self.spans.push(block).is_err() {
            self.everything = true;
        }
    }

    /// The units have forgotten.
    pub(crate) fn flushed(self, mem: &mut impl Memory) -> Flushed {
        for table in self.retired.iter() {
            mem.free(*table);
        }
        Flushed(self.revised)
    }
}

/// Leave to fill in what [`Domain::revise`] has left out.
#[derive(Debug)]
#[must_use = "what the policy newly permits is absent until it is filled in"]
pub struct Flushed(Span);

impl Flushed {
    /// The same leave, given with that for EPT01, whose flush was the units' flush, too.
    pub(crate) const fn with(_: &ept01::Flushed, span: Span) -> Self {
        Self(span)
    }

    /// Whether nothing is left to be filled in, or to be merged.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.0.is_empty()
    }
}

/// The tables that all units share.
#[derive(Clone, Copy, Debug)]
pub struct Domain {
    root: Frame,
    format: Format,
}

/// A table on the way to a page.
#[derive(Clone, Copy)]
struct Place {
    table: Frame,
    level: Level,
    base: u64,
}

/// An entry of it, and what that translates.
#[derive(Clone, Copy)]
struct Slot {
    place: Place,
    index: usize,
    block: Span,
}

impl Place {
    /// The entries that concern `span`.
    fn slots(self, span: Span) -> impl Iterator<Item = Slot> + use<> {
        let bytes = self.level.bytes();
        let first = span.start().saturating_sub(self.base) / bytes;
        let end = span.end().saturating_sub(self.base).div_ceil(bytes);
        (first..end.min(ENTRIES)).filter_map(move |index| {
            let block = Span::sized(self.base + index * bytes, bytes)?;
            Some(Slot { place: self, index: usize::try_from(index).ok()?, block })
        })
    }
}

impl Slot {
    /// The table that `entry` leads to from here.
    fn below(self, entry: Entry) -> Option<Place> {
        let Entry::Table(table) = entry else { return None };
        Some(Place { table, level: self.place.level.below()?, base: self.block.start() })
    }

    /// All entries of that table.
    fn parts(self, entry: Entry) -> impl Iterator<Item = Slot> {
        self.below(entry).into_iter().flat_map(move |place| place.slots(self.block))
    }

    /// What `leaf` here is in the place of `part`.
    fn part_of(self, leaf: Target, part: Self) -> Entry {
        let offset = part.block.start() - self.block.start();
        Entry::Leaf(Target { frame: Frame::containing(leaf.frame.base() + offset), ..leaf })
    }
}

impl Domain {
    /// Builds the tables in frames of `mem`, with the largest leaves that `policy` and `format` permit.
    ///
    /// # Errors
    /// [`Exhausted`] when `mem` has no frame left.
    pub fn build(
        mem: &mut impl Memory,
        policy: &Policy<'_>,
        format: Format,
    ) -> Result<Self, Exhausted> {
        let domain = Self { root: fresh(mem, format.walks)?, format };
        // No unit has seen it, so there is nothing to flush.
        let (_new, built) = domain.complete(mem, policy, Flushed(domain.all()));
        built.map(|()| domain)
    }

    /// All that the tables can translate.
    #[must_use]
    pub fn all(&self) -> Span {
        self.format.all()
    }

    /// The table that a unit of so many levels begins at; the table of level 3 is there from the
    /// beginning and stays.
    pub(crate) fn root(&self, mem: &impl Memory, levels: u8) -> Frame {
        match Entry::decode(mem.read(self.root, 0), Level::Pml4) {
            Entry::Table(table) if levels == 3 => table,
            Entry::Table(_) | Entry::Absent | Entry::Leaf(_) => self.root,
        }
    }

    pub(crate) const fn walks(&self) -> Walks {
        self.format.walks
    }

    pub(crate) const fn snoop(&self) -> Snoop {
        self.format.snoop
    }

    /// First half of following a change of `policy` within `span`: takes away what it does not
    /// confirm. A leaf that leads to another frame than it should is redirected at once, with no more
    /// rights than it had: the caller has made ready what is seen there.
    pub fn revise(&self, mem: &mut impl Memory, policy: &Policy<'_>, span: Span) -> Stale {
        let stale = Stale::new(span.intersect(self.all()));
        let mut pass = Pass { format: self.format, mem, policy, stale };
        pass.take_out(self.top(), pass.stale.revised);
        pass.stale
    }

    /// Second half: gives what `policy` permits and is not there, and merges tables, for all that was
    /// revised. What is to be flushed then is a matter of order only for tables that were merged; and
    /// of function, where units remember that something was absent. If tables may be left to be merged,
    /// the next [`Flushed`] is not complete.
    ///
    /// [`Exhausted`] when `mem` has no frame left: what could not be filled in stays absent. What was given and
    /// merged before that is to be flushed all the same.
    pub fn complete(
        &self,
        mem: &mut impl Memory,
        policy: &Policy<'_>,
        flushed: Flushed,
    ) -> (Stale, Result<(), Exhausted>) {
        let stale = Stale::new(Span::EMPTY);
        let mut pass = Pass { format: self.format, mem, policy, stale };
        let filled = pass.fill(self.top(), flushed.0);
        let mut stale = pass.stale;
        if filled.is_ok() && stale.retired.len() == MERGED {
            stale.revised = flushed.0;
        }
        (stale, filled)
    }

    /// What `address` translates to, as a unit would find it, and the level of the leaf.
    #[must_use]
    pub fn walk(&self, mem: &impl Memory, address: u64) -> Option<(Target, Level)> {
        let mut place = self.top();
        let page = Span::sized(address, 1).filter(|page| self.all().covers(*page))?;
        loop {
            let at = place.slots(page).next()?;
            match Entry::decode(mem.read(place.table, at.index), place.level) {
                Entry::Leaf(target) => return Some((target, place.level)),
                entry @ (Entry::Absent | Entry::Table(_)) => place = at.below(entry)?,
            }
        }
    }

    const fn top(&self) -> Place {
        Place { table: self.root, level: Level::Pml4, base: 0 }
    }
}

/// One way through the tables, to make them follow `policy`.
struct Pass<'a, M> {
    format: Format,
    mem: &'a mut M,
    policy: &'a Policy<'a>,
    stale: Stale,
}

impl<M: Memory> Pass<'_, M> {
    fn read(&self, at: Slot) -> Entry {
        Entry::decode(self.mem.read(at.place.table, at.index), at.place.level)
    }

    fn set(&mut self, at: Slot, entry: Entry) {
        let raw = entry.encode(at.place.level, self.format.snoop);
        store(self.mem, self.format.walks, (at.place.table, at.index), raw);
    }

    fn fresh(&mut self) -> Result<Frame, Exhausted> {
        fresh(self.mem, self.format.walks)
    }

    /// What should be at `at`; `None` if the next level has to tell.
    fn want(&self, at: Slot) -> Option<Entry> {
        let leaves = match at.place.level {
            Level::Pml4 => false,
            Level::Pdpt => self.format.huge,
            Level::Pd => self.format.large,
            Level::Pt => true,
        };
        let target = leaves.then(|| self.policy.of_block(at.block, at.place.level)).flatten()?;
        Some(target.map_or(Entry::Absent, Entry::Leaf))
    }

    fn take_out(&mut self, place: Place, span: Span) {
        for at in place.slots(span) {
            let old = self.read(at);
            let new = match (old, self.want(at)) {
                (Entry::Absent, _) => continue,
                (Entry::Table(_), _) => old,
                (Entry::Leaf(old), Some(Entry::Leaf(new))) => {
                    Entry::Leaf(Target { writable: new.writable && old.writable, ..new })
                }
                (Entry::Leaf(leaf), None) => self.split(at, leaf),
                (Entry::Leaf(_), Some(Entry::Absent | Entry::Table(_))) => Entry::Absent,
            };
            if new != old {
                self.set(at, new);
                self.stale.add(at.block);
            }
            if let Some(below) = at.below(new) {
                self.take_out(below, span);
            }
        }
    }

    /// A table that translates as `leaf` does at `at`; absent if there is no memory for it.
    fn split(&mut self, at: Slot, leaf: Target) -> Entry {
        let table = self.fresh().map_or(Entry::Absent, Entry::Table);
        for part in at.parts(table) {
            self.set(part, at.part_of(leaf, part));
        }
        table
    }

    /// A table is linked while it is still empty, so whatever happens on the way, what is there is
    /// right and the rest is absent.
    fn fill(&mut self, place: Place, span: Span) -> Result<(), Exhausted> {
        for at in place.slots(span) {
            let (mut old, want) = (self.read(at), self.want(at));
            let mut part = span;
            match (old, want) {
                (Entry::Table(_), _) => {}
                (Entry::Absent, None) => {
                    old = Entry::Table(self.fresh()?);
                    part = self.format.all().intersect(at.block);
                    self.set(at, old);
                }
                (Entry::Absent, Some(new)) => self.give(at, old, new),
                (Entry::Leaf(leaf), Some(new @ Entry::Leaf(target)))
                    if target.frame == leaf.frame && target.writable =>
                {
                    self.give(at, old, new);
                }
                (Entry::Leaf(_), _) => {}
            }
            if let Some(below) = at.below(old) {
                self.fill(below, part)?;
                if let Some(Entry::Leaf(leaf)) = want {
                    self.merge(at, old, leaf);
                }
            }
        }
        Ok(())
    }

    /// Writes what gives more than `old`. Units may remember rights, and some absence.
    fn give(&mut self, at: Slot, old: Entry, new: Entry) {
        if new != old {
            self.set(at, new);
            if old != Entry::Absent || self.format.announce {
                self.stale.add(at.block);
            }
        }
    }

    /// Puts `leaf` in the place of `table`, if that translates the same.
    fn merge(&mut self, at: Slot, table: Entry, leaf: Target) {
        let Entry::Table(frame) = table else { return };
        let same = at.parts(table).all(|part| self.read(part) == at.part_of(leaf, part));
        if same && self.stale.retired.push(frame).is_ok() {
            self.set(at, Entry::Leaf(leaf));
            self.stale.add(at.block);
        }
    }
}

/// Words of a page.
const WORDS: usize = 512;
/// Words of a line of the caches.
const LINE: usize = 8;

/// Writes a word for units to see.
pub(crate) fn store(mem: &mut impl Memory, walks: Walks, (table, index): (Frame, usize), raw: u64) {
    mem.write(table, index, raw);
    if walks == Walks::Incoherent {
        mem.write_back(table, index);
    }
}

/// An empty table, for units to see.
pub(crate) fn fresh(mem: &mut impl Memory, walks: Walks) -> Result<Frame, Exhausted> {
    let table = mem.allocate().ok_or(Exhausted)?;
    if walks == Walks::Incoherent {
        for line in (0..WORDS).step_by(LINE) {
            mem.write_back(table, line);
        }
    }
    Ok(table)
}

const _: () = assert!(PAGE == 4096);
