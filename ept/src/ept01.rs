//! EPT01, the host's page tables: the identity map of everything that is not withheld from it, but for
//! views; as a projection of the frame table, the MTRRs and a list of denied device memory.
//!
//! The tables hold no policy. What an address translates to is decided by [`Rules`] alone, once for
//! building and for every later change, and nothing is ever written that the rules do not say.

use core::fmt;

use crate::addr::{Frame, HUGE, LARGE, PAGE, Span};
use crate::entry::{self, Entry, Leaf, Level, Place, Rights};
use crate::frames::{FrameTable, State};
use crate::mtrr::{Mtrrs, Types};

/// Memory for tables, which only the visor can reach. The processor may walk them meanwhile.
pub trait TableMem {
    /// A zeroed frame that has no other use.
    fn allocate(&mut self) -> Option<Frame>;
    /// Takes back a frame that was allocated; no processor remembers it.
    fn free(&mut self, frame: Frame);
    /// Entry `index` of `table`.
    fn read(&self, table: Frame, index: usize) -> u64;
    /// Sets entry `index` of `table` in a single store of 8 bytes.
    fn write(&mut self, table: Frame, index: usize, raw: u64);
}

/// What processors remember of translations, and devices, where an IOMMU stands before memory.
pub trait Tlb {
    /// Makes every processor forget what it remembers of `span` (INVEPT), and the IOMMU what was
    /// revised.
    fn flush(&mut self, span: Span);

    /// Takes from devices what `frames` do not let them have of `page` any more. Until the flush they
    /// may still have what this says. Without an IOMMU there is nothing to take.
    fn revise_devices(&mut self, frames: &FrameTable<'_>, page: Span) -> Span;

    /// Gives devices what `frames` let them have of `page`, with the leave to give it to the host.
    fn complete_devices(&mut self, frames: &FrameTable<'_>, page: Span, leave: &Flushed);
}

/// There was no memory for a table. What could not be translated as it should be is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EPT01: the reservation has no room for more tables")
    }
}

/// One past the last address that EPT01 translates on a processor with `width` physical-address
/// bits.
///
/// Four levels name 48 bits, so what wider processors could name beyond is absent. That costs the
/// widest machine 2 MiB of tables, against 32 MiB for what five levels could name.
#[must_use]
pub const fn end(width: u8) -> u64 {
    if width < 48 { 1 << width } else { TOP }
}

/// Upper bound of the frames that tables up to `end` take, with what may be withheld from the host
/// anywhere in `ram`.
#[must_use]
pub fn tables_needed(end: u64, ram: &[Span]) -> u64 {
    /// Places where rights or memory types may change: both ends of the reservation, of the denied
    /// registers of sixty-four units, of the fixed ranges, and of twenty variable ranges; processors have
    /// ten, and the host may move each, which leaves the tables of the old place behind.
    const EDGES: u64 = 2 * (1 + 64 + 1 + 20);
    // An edge cuts up one huge page and one large one, and so may every page of RAM.
    let blocks = |bytes: u64| ram.iter().map(|ram| ram.grow_to(bytes).len() / bytes).sum::<u64>();
    1 + end.div_ceil(Level::Pml4.bytes()) + 2 * EDGES + blocks(HUGE) + blocks(LARGE)
}

/// One past the last address that four levels of tables name.
const TOP: u64 = 1 << 48;

/// What EPT01 is the projection of.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'r> {
    /// Who owns which RAM.
    pub frames: &'r FrameTable<'r>,
    /// The memory types that the host has asked for.
    pub mtrrs: &'r Mtrrs,
    /// Device memory that the host must not reach.
    pub denied: &'r [Span],
}

impl Rules<'_> {
    /// Where the host arrives at `frame`, and what it may do there; `None`: nowhere.
    fn seen(&self, frame: Frame) -> Option<(Frame, Rights)> {
        match self.frames.state(frame) {
            Some(State::Visor | State::Private { view: None, .. }) => None,
            Some(State::Private { view: Some(view), .. }) => {
                self.frames.view(view).map(|view| (view, Rights::All))
            }
            Some(State::Fresh { .. } | State::Table { .. }) => Some((frame, Rights::Read)),
            Some(State::Plain { .. } | State::Leaving { .. }) | None => Some((frame, Rights::All)),
        }
    }

    /// The same for the block of a leaf of `level`; `None` if a smaller leaf has to tell. Where
    /// anything is withheld, each page tells by itself: that spares counting what is withheld by its
    /// kind.
    fn seen_of(&self, block: Span, level: Level) -> Option<Option<(Frame, Rights)>> {
        let first = Frame::containing(block.start());
        if self.frames.open(block, level) {
            return Some(Some((first, Rights::All)));
        }
        (level == Level::Pt).then(|| self.seen(first))
    }

    /// Whether the host arrives nowhere in `block`, though [`Rules::want`] has each page tell. Asking all
    /// of them takes time, so only where a table is about to be made for that.
    fn withheld(&self, block: Span, level: Level) -> bool {
        let mut pages = (block.start()..block.end()).step_by(4096).map(Frame::containing);
        level == Level::Pd && self.frames.shut(block) && pages.all(|page| self.seen(page).is_none())
    }

    /// What `block`, which an entry of `level` translates, should be; `None` when not all of it
    /// should be the same, so that the next level has to tell.
    fn want(&self, block: Span, level: Level) -> Option<Entry> {
        self.want_of(block, level, Types::Mixed)
    }

    /// The same for a block of larger memory that has one of these `types`.
    fn want_of(&self, block: Span, level: Level, types: Types) -> Option<Entry> {
        if matches!(level, Level::Pml4) {
            return None;
        }
        let mut denied = self.denied.iter().map(|span| span.grow_to(PAGE));
        if let Some(denied) = denied.find(|denied| denied.overlaps(block)) {
            return denied.covers(block).then_some(Entry::Absent);
        }
        // The quickest answer first: most often it says that the block cannot be one.
        let seen = self.seen_of(block, level)?;
        let types = if types == Types::Mixed { self.mtrrs.type_of(block) } else { types };
        let Types::One(memory_type) = types else { return None };
        let leaf = |(frame, rights)| Entry::Leaf(Leaf { frame, rights, memory_type });
        Some(seen.map_or(Entry::Absent, leaf))
    }
}

/// The obligation to flush: until then processors may use translations that the tables no longer
/// have. The default is none.
#[derive(Debug, Default)]
#[must_use = "the old translations stay in use until they are flushed"]
pub struct Stale {
    revised: Span,
    changed: Span,
}

impl Stale {
    /// Adds that devices may still have what lies in `span`.
    pub(crate) fn add_devices(&mut self, span: Span) {
        self.changed = hull(self.changed, span);
    }

    /// Adds another obligation.
    pub fn add(&mut self, other: Self) {
        self.revised = hull(self.revised, other.revised);
        self.changed = hull(self.changed, other.changed);
    }

    /// What must be flushed; empty if no translation has changed.
    #[must_use]
    pub const fn span(&self) -> Span {
        self.changed
    }

    /// Fulfils the obligation.
    pub fn flush(self, tlb: &mut impl Tlb) -> Flushed {
        if !self.changed.is_empty() {
            tlb.flush(self.changed);
        }
        Flushed(hull(self.revised, self.changed))
    }
}

/// Leave to fill in what [`Ept01::revise`] has taken out.
#[derive(Debug)]
#[must_use = "pages that were taken out to be split are absent until they are filled in"]
pub struct Flushed(Span);

/// The smallest span around both; around one alone if the other is empty.
fn hull(a: Span, b: Span) -> Span {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b,
        (_, true) => a,
        _ => Span::new(a.start().min(b.start()), a.end().max(b.end())).unwrap_or(a),
    }
}

/// The tables.
#[derive(Clone, Copy, Debug)]
pub struct Ept01 {
    root: Frame,
    end: u64,
}

impl Ept01 {
    /// Builds the tables for addresses below `end` (see [`end`]) in frames of `mem`, with the
    /// largest leaves that `rules` permit.
    ///
    /// # Errors
    /// [`Exhausted`] when `mem` has no frame left.
    pub fn build(mem: &mut impl TableMem, rules: &Rules<'_>, end: u64) -> Result<Self, Exhausted> {
        let end = end.min(TOP);
        let tables = Self { root: mem.allocate().ok_or(Exhausted)?, end };
        tables.fill(mem, rules, tables.top(), tables.all())?;
        Ok(tables)
    }

    /// The value of the EPTP field.
    #[must_use]
    pub const fn pointer(&self) -> u64 {
        entry::pointer(self.root)
    }

    /// All that the tables can translate.
    #[must_use]
    pub fn all(&self) -> Span {
        Span::new(0, self.end).unwrap_or_default()
    }

    /// The obligation to flush everything, for what changed besides these tables.
    pub fn stale(&self) -> Stale {
        Stale { revised: Span::EMPTY, changed: self.all() }
    }

    /// First half of following a change of `rules` within `span`: takes away what they do not
    /// confirm. A leaf becomes in place what they want, but gets no rights yet that it had not:
    /// somebody may rely on the flush. So one that should lead to another frame becomes absent.
    /// Leaves to be split and tables that one leaf may replace become absent as a whole: a processor
    /// that held translations of two sizes for one address might use either (SDM vol. 3, 5.10.2.3), so
    /// the new ones have to wait for the flush.
    ///
    /// Until [`Ept01::complete`], the host's own accesses to such a leaf cause EPT violations; they
    /// have only to be retried.
    pub fn revise(&self, mem: &mut impl TableMem, rules: &Rules<'_>, span: Span) -> Stale {
        let revised = span.intersect(self.all());
        let mut stale = Stale { revised, changed: Span::EMPTY };
        take_out(mem, rules, self.top(), &mut stale);
        stale
    }

    /// Second half: gives what `rules` permit and is not there, for all that was revised.
    ///
    /// # Errors
    /// [`Exhausted`] when `mem` has no frame left. What could not be filled in stays absent.
    pub fn complete(
        &self,
        mem: &mut impl TableMem,
        rules: &Rules<'_>,
        flushed: Flushed,
    ) -> Result<(), Exhausted> {
        self.fill(mem, rules, self.top(), flushed.0)
    }

    /// The same for one `part` of several that were revised before the flush. The caller leaves none
    /// of them out.
    ///
    /// # Errors
    /// [`Exhausted`] as from [`Ept01::complete`].
    pub fn complete_part(
        &self,
        mem: &mut impl TableMem,
        rules: &Rules<'_>,
        flushed: &Flushed,
        part: Span,
    ) -> Result<(), Exhausted> {
        self.fill(mem, rules, self.top(), part.intersect(flushed.0))
    }

    /// What `address` translates to, as the processor would find it, and the level of the leaf.
    #[must_use]
    pub fn walk(&self, mem: &impl TableMem, address: u64) -> Option<(Leaf, Level)> {
        let mut place = self.top();
        if address >= TOP {
            return None;
        }
        loop {
            let raw = mem.read(place.table, place.level.index(address));
            match Entry::decode(raw, place.level)? {
                Entry::Absent | Entry::Retired(_) => return None,
                Entry::Leaf(leaf) => return Some((leaf, place.level)),
                Entry::Table(table) => place = place.below(table, Span::EMPTY)?,
            }
        }
    }

    /// Whether `page` translates to what `rules` say, and to nothing if they say so.
    #[must_use]
    pub fn agrees(&self, mem: &impl TableMem, rules: &Rules<'_>, page: Frame) -> bool {
        let block = Span::sized(page.base(), PAGE).unwrap_or_default();
        let found = self.walk(mem, page.base()).map_or(Entry::Absent, |(leaf, level)| {
            let inside = page.base() % level.bytes();
            Entry::Leaf(Leaf { frame: Frame::containing(leaf.frame.base() + inside), ..leaf })
        });
        rules.want(block, Level::Pt) == Some(found)
    }

    const fn top(&self) -> Place {
        Place { table: self.root, level: Level::Pml4, base: 0 }
    }

    /// Gives within `span` what should be there and is not, and frees retired tables. A block that
    /// was absent is filled as a whole: it was perhaps taken out as a whole. A table is linked
    /// while it is still empty, so whatever happens on the way, what is there is right and the rest
    /// is absent.
    fn fill(
        &self,
        mem: &mut impl TableMem,
        rules: &Rules<'_>,
        place: Place,
        span: Span,
    ) -> Result<(), Exhausted> {
        // Asked once for all pages of a block.
        let is_last = place.level == Level::Pt;
        let types = if is_last { rules.mtrrs.type_of(place.span()) } else { Types::Mixed };
        for (index, block) in place.blocks(span) {
            let old = Entry::decode(mem.read(place.table, index), place.level);
            let (table, part) = match old {
                Some(Entry::Table(table)) => (table, span),
                Some(Entry::Leaf(Leaf { rights: Rights::All, .. })) => continue,
                Some(Entry::Leaf(leaf)) => {
                    let old = Entry::Leaf(leaf);
                    let more = |new: &Entry| *new != old && new.at_most(leaf) == old;
                    if let Some(new) = rules.want_of(block, place.level, types).filter(more) {
                        set(mem, place, index, new);
                    }
                    continue;
                }
                Some(Entry::Absent | Entry::Retired(_)) | None => {
                    if let Some(Entry::Retired(table)) = old {
                        set(mem, place, index, Entry::Absent);
                        free(mem, place.below(table, block));
                    }
                    if let Some(entry) = rules.want_of(block, place.level, types) {
                        set(mem, place, index, entry);
                        continue;
                    }
                    if rules.withheld(block, place.level) {
                        continue;
                    }
                    let table = mem.allocate().ok_or(Exhausted)?;
                    set(mem, place, index, Entry::Table(table));
                    (table, block.intersect(self.all()))
                }
            };
            if let Some(below) = place.below(table, block) {
                self.fill(mem, rules, below, part)?;
            }
        }
        Ok(())
    }
}

/// Takes out, or changes in place, what was to be revised and should not be as it is.
fn take_out(mem: &mut impl TableMem, rules: &Rules<'_>, place: Place, stale: &mut Stale) {
    for (index, block) in place.blocks(stale.revised) {
        let old = Entry::decode(mem.read(place.table, index), place.level);
        let want = rules.want(block, place.level);
        let new = match old {
            Some(Entry::Absent | Entry::Retired(_)) => continue,
            Some(Entry::Table(table)) if want.is_none() => {
                if let Some(below) = place.below(table, block) {
                    take_out(mem, rules, below, stale);
                }
                continue;
            }
            Some(Entry::Table(table)) => Entry::Retired(table),
            Some(Entry::Leaf(old)) => want.map_or(Entry::Absent, |want| want.at_most(old)),
            None => Entry::Absent,
        };
        if old != Some(new) {
            set(mem, place, index, new);
            stale.changed = hull(stale.changed, block);
        }
    }
}

/// Frees a table that processors have forgotten, and those below.
fn free(mem: &mut impl TableMem, place: Option<Place>) {
    let Some(place) = place else { return };
    // A page table leads to no others.
    let parts = if place.level == Level::Pt { Span::EMPTY } else { place.span() };
    for (index, block) in place.blocks(parts) {
        match Entry::decode(mem.read(place.table, index), place.level) {
            Some(Entry::Table(table) | Entry::Retired(table)) => {
                free(mem, place.below(table, block));
            }
            Some(Entry::Absent | Entry::Leaf(_)) | None => {}
        }
    }
    mem.free(place.table);
}

/// Writes `entry`, or nothing at all should it not exist at that level.
fn set(mem: &mut impl TableMem, place: Place, index: usize, entry: Entry) {
    mem.write(place.table, index, entry.encode(place.level).unwrap_or(0));
}
