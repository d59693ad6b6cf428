//! The second-stage tables: the identity map of what devices may reach, as a projection of a [`Policy`].
//!
//! A processor repeats an access that found a page absent; a device does not. So, unlike EPT01's,
//! these tables never take away for a moment what is permitted before and after: a large page is
//! split, and a table merged, by one store that leaves every permitted address as it was.

use ept::addr::{Frame, PAGE, PHYSICAL_END, Span};
use ept::entry::{ENTRIES, Level};
use ept::ept01::Exhausted;
use ept::list::List;

use crate::Memory;
use crate::capabilities::{Format, Walks};
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
    fn new(revised: Span) -> Self {
        let filler = Frame::containing(0);
        let (spans, retired) = (List::new(Span::EMPTY), List::new(filler));
        Self { revised, spans, everything: false, retired }
    }

    /// Everything, for what changed besides these tables.
    pub fn all() -> Self {
        Self { everything: true, ..Self::new(Span::EMPTY) }
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

impl Place {
    fn below(self, table: Frame, block: Span) -> Option<Self> {
        Some(Self { table, level: self.level.below()?, base: block.start() })
    }

    /// Indexes of the entries that concern `span`, each with what it translates.
    fn blocks(self, span: Span) -> impl Iterator<Item = (usize, Span)> {
        let bytes = self.level.bytes();
        let first = span.start().saturating_sub(self.base) / bytes;
        let end = span.end().saturating_sub(self.base).div_ceil(bytes);
        (first..end.min(ENTRIES)).filter_map(move |index| {
            let block = Span::sized(self.base + index * bytes, bytes)?;
            Some((usize::try_from(index).ok()?, block))
        })
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
        let _new = domain.complete(mem, policy, Flushed(domain.all()))?;
        Ok(domain)
    }

    /// All that the tables can translate.
    #[must_use]
    pub fn all(&self) -> Span {
        Span::new(0, self.format.end).unwrap_or_default()
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

    /// First half of following a change of `policy` within `span`: takes away what it does not
    /// confirm. A leaf that leads to another frame than it should is redirected at once, with no more
    /// rights than it had: the caller has made ready what is seen there.
    pub fn revise(&self, mem: &mut impl Memory, policy: &Policy<'_>, span: Span) -> Stale {
        let mut stale = Stale::new(span.intersect(self.all()));
        self.take_out(mem, policy, self.top(), &mut stale);
        stale
    }

    /// Second half: gives what `policy` permits and is not there, and merges tables, for all that was
    /// revised. What is to be flushed then is a matter of order only for tables that were merged; and
    /// of function, where units remember that something was absent. If tables may be left to be merged,
    /// the next [`Flushed`] is not complete.
    ///
    /// # Errors
    /// [`Exhausted`] when `mem` has no frame left. What could not be filled in stays absent.
    pub fn complete(
        &self,
        mem: &mut impl Memory,
        policy: &Policy<'_>,
        flushed: Flushed,
    ) -> Result<Stale, Exhausted> {
        let mut stale = Stale::new(Span::EMPTY);
        self.fill(mem, policy, (self.top(), flushed.0), &mut stale)?;
        if stale.retired.len() == MERGED {
            stale.revised = flushed.0;
        }
        Ok(stale)
    }

    /// What `address` translates to, as a unit would find it, and the level of the leaf.
    #[must_use]
    pub fn walk(&self, mem: &impl Memory, address: u64) -> Option<(Target, Level)> {
        let mut place = self.top();
        if !self.all().contains(address) {
            return None;
        }
        loop {
            match Entry::decode(mem.read(place.table, place.level.index(address)), place.level) {
                Entry::Absent => return None,
                Entry::Leaf(target) => return Some((target, place.level)),
                Entry::Table(table) => place = place.below(table, Span::EMPTY)?,
            }
        }
    }

    const fn top(&self) -> Place {
        Place { table: self.root, level: Level::Pml4, base: 0 }
    }

    /// What `block` should be; `None` if the next level has to tell.
    fn want(&self, policy: &Policy<'_>, block: Span, level: Level) -> Option<Entry> {
        let leaves = match level {
            Level::Pml4 => false,
            Level::Pdpt => self.format.huge,
            Level::Pd => self.format.large,
            Level::Pt => true,
        };
        let target = leaves.then(|| policy.of_block(block, level)).flatten()?;
        Some(target.map_or(Entry::Absent, Entry::Leaf))
    }

    fn take_out(
        &self,
        mem: &mut impl Memory,
        policy: &Policy<'_>,
        place: Place,
        stale: &mut Stale,
    ) {
        for (index, block) in place.blocks(stale.revised) {
            let old = Entry::decode(mem.read(place.table, index), place.level);
            let new = match (old, self.want(policy, block, place.level)) {
                (Entry::Absent, _) => continue,
                (Entry::Table(_), _) => old,
                (Entry::Leaf(old), Some(Entry::Leaf(new))) => {
                    Entry::Leaf(Target { writable: new.writable && old.writable, ..new })
                }
                (Entry::Leaf(leaf), None) => self.split(mem, place, leaf),
                (Entry::Leaf(_), Some(Entry::Absent | Entry::Table(_))) => Entry::Absent,
            };
            if new != old {
                self.set(mem, place, index, new);
                stale.add(block);
            }
            if let Entry::Table(table) = new
                && let Some(below) = place.below(table, block)
            {
                self.take_out(mem, policy, below, stale);
            }
        }
    }

    /// A table that translates as `leaf` does at `place`; absent if there is no memory for it.
    fn split(&self, mem: &mut impl Memory, place: Place, leaf: Target) -> Entry {
        let below = fresh(mem, self.format.walks).ok().zip(place.level.below());
        let Some((table, level)) = below else {
            return Entry::Absent;
        };
        let place = Place { table, level, base: leaf.frame.base() };
        let all = Span::new(0, PHYSICAL_END).unwrap_or_default();
        for (index, block) in place.blocks(all) {
            let frame = Frame::containing(block.start());
            self.set(mem, place, index, Entry::Leaf(Target { frame, ..leaf }));
        }
        Entry::Table(table)
    }

    /// Fills what `part` has of a place and a span. A table is linked while it is still empty, so
    /// whatever happens on the way, what is there is right and the rest is absent.
    fn fill(
        &self,
        mem: &mut impl Memory,
        policy: &Policy<'_>,
        part: (Place, Span),
        stale: &mut Stale,
    ) -> Result<(), Exhausted> {
        let (place, span) = part;
        for (index, block) in place.blocks(span) {
            let old = Entry::decode(mem.read(place.table, index), place.level);
            let want = self.want(policy, block, place.level);
            let (table, part) = match (old, want) {
                (Entry::Table(table), _) => (table, span),
                (Entry::Absent, None) => {
                    let table = fresh(mem, self.format.walks)?;
                    self.set(mem, place, index, Entry::Table(table));
                    (table, block.intersect(self.all()))
                }
                (Entry::Absent, Some(new)) => {
                    self.give(mem, (place, index, block), (old, new), stale);
                    continue;
                }
                (Entry::Leaf(leaf), Some(new @ Entry::Leaf(target)))
                    if target.frame == leaf.frame && target.writable =>
                {
                    self.give(mem, (place, index, block), (old, new), stale);
                    continue;
                }
                (Entry::Leaf(_), _) => continue,
            };
            if let Some(below) = place.below(table, block) {
                self.fill(mem, policy, (below, part), stale)?;
                if let Some(Entry::Leaf(leaf)) = want {
                    self.merge(mem, (place, index, block), (below, leaf), stale);
                }
            }
        }
        Ok(())
    }

    /// Writes what gives more than `old`. Units may remember rights, and some absence.
    fn give(
        &self,
        mem: &mut impl Memory,
        (place, index, block): (Place, usize, Span),
        (old, new): (Entry, Entry),
        stale: &mut Stale,
    ) {
        if new != old {
            self.set(mem, place, index, new);
            if old != Entry::Absent || self.format.announce {
                stale.add(block);
            }
        }
    }

    /// Puts `leaf` in the place of the table `below`, if that translates the same.
    fn merge(
        &self,
        mem: &mut impl Memory,
        (place, index, block): (Place, usize, Span),
        (below, leaf): (Place, Target),
        stale: &mut Stale,
    ) {
        let mut parts = below.blocks(block);
        let same = parts.all(|(index, part)| {
            let offset = part.start() - block.start();
            let frame = Frame::containing(leaf.frame.base() + offset);
            let part = Entry::Leaf(Target { frame, ..leaf });
            mem.read(below.table, index) == part.encode(below.level)
        });
        if same && stale.retired.push(below.table).is_ok() {
            self.set(mem, place, index, Entry::Leaf(leaf));
            stale.add(block);
        }
    }

    fn set(&self, mem: &mut impl Memory, place: Place, index: usize, entry: Entry) {
        store(mem, self.format.walks, (place.table, index), entry.encode(place.level));
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
