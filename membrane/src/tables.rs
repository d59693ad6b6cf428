//! EPT02 of a protected VM: the tables that processors run it with. They lie in the visor's memory,
//! and every vCPU of the VM uses the same ones.
//!
//! An entry without rights still has the frame of its page: the page is the VM's, and the next access
//! to it has to be approved.

use ept::addr::{Frame, GUEST_END, GuestFrame, LARGE};
use ept::entry::{self, ENTRIES, Level};
use ept::ept01::{Exhausted, Flushed, TableMem};
use ept::shadow::Access;

use crate::Progress;

/// Bits 6:3 of a leaf: write-back memory, whatever the guest's PAT says, as KVM has it for VMs without
/// devices of their own. Nothing that a guest writes then goes past the caches in which the visor
/// reads it.
const TYPE: u64 = 6 << 3 | 1 << 6;

/// Makes an entry of a page directory a leaf of 2 MiB.
const LARGE_PAGE: u64 = 1 << 7;
/// Marks the link to the next spare table.
const LINK: u64 = 1;

/// The tables.
///
/// A leaf of 2 MiB is made where all of its pages come at once, and split for good when one of them is to
/// have a right less or to go. Then there must be a table: so each such leaf has one that is spare.
#[derive(Debug)]
pub struct Tables {
    root: Frame,
    /// The first spare table; each begins with a link to the next.
    spare: Option<Frame>,
}

/// Where the leaf of a page lies.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    table: Frame,
    index: usize,
    level: Level,
}

impl Place {
    /// Where that of another `page` lies, in the same 2 MiB.
    #[must_use]
    pub fn beside(self, page: GuestFrame) -> Self {
        Self { index: self.level.index(page.base()), ..self }
    }

    fn read(self, mem: &impl TableMem) -> u64 {
        mem.read(self.table, self.index)
    }

    /// The frame that an entry here, which is `raw`, has for `page`.
    fn frame(self, raw: u64, page: GuestFrame) -> Option<Frame> {
        let inside = page.base() % self.level.bytes();
        frame_of(raw).map(|first| Frame::containing(first.base() + inside))
    }

    fn write(self, mem: &mut impl TableMem, raw: u64) {
        mem.write(self.table, self.index, raw);
    }
}

/// The place of a leaf of 2 MiB, without a page, and the table that was there, which processors may remember
/// until they have flushed.
#[derive(Debug)]
#[must_use = "the table is lost"]
pub struct Gap {
    place: Place,
    table: Frame,
}

impl Tables {
    /// Tables without a page.
    ///
    /// # Errors
    /// [`Exhausted`] when `mem` has no frame left.
    pub fn new(mem: &mut impl TableMem) -> Result<Self, Exhausted> {
        Ok(Self { root: mem.allocate().ok_or(Exhausted)?, spare: None })
    }

    /// The value of the EPTP field: 4 levels, write-back, no accessed and dirty flags.
    #[must_use]
    pub const fn pointer(&self) -> u64 {
        entry::pointer(self.root)
    }

    /// The frame of `page`, with rights or without.
    #[must_use]
    pub fn frame(&self, mem: &impl TableMem, page: GuestFrame) -> Option<Frame> {
        let place = self.find(mem, page).ok()?;
        place.frame(place.read(mem), page)
    }

    /// The frame of `page`, if the VM may access it so without being asked.
    #[must_use]
    pub fn reach(&self, mem: &impl TableMem, page: GuestFrame, access: Access) -> Option<Frame> {
        let place = self.find(mem, page).ok()?;
        let raw = place.read(mem);
        place.frame(raw, page).filter(|_| Access::from_bits(raw).allows(access))
    }

    /// What the VM may do with `page` without being asked.
    #[must_use]
    pub fn rights(&self, mem: &impl TableMem, page: GuestFrame) -> Access {
        let place = self.find(mem, page);
        place.map_or(Access::NONE, |place| Access::from_bits(place.read(mem)))
    }

    /// Where the leaf of `page` lies, with the tables on the way there, made if they are not. It may be one
    /// of 2 MiB if `level` is no smaller.
    ///
    /// # Errors
    /// [`Exhausted`] when `mem` has no frame left.
    pub fn reserve(
        &mut self,
        mem: &mut impl TableMem,
        page: GuestFrame,
        level: Level,
    ) -> Result<Place, Exhausted> {
        let place = self.way(mem, page, Level::Pt)?;
        if place.level != Level::Pt && level == Level::Pt {
            self.split(mem, place);
            return self.way(mem, page, Level::Pt);
        }
        Ok(place)
    }

    /// Makes room for a leaf of 2 MiB for `page` and those around it, of which no one has a frame.
    ///
    /// # Errors
    /// [`Exhausted`] when `mem` has no frame left.
    pub fn clear(&self, mem: &mut impl TableMem, page: GuestFrame) -> Result<Gap, Exhausted> {
        let place = self.way(mem, page, Level::Pd)?;
        let table = frame_of(place.read(mem)).or_else(|| mem.allocate()).ok_or(Exhausted)?;
        place.write(mem, 0);
        Ok(Gap { place, table })
    }

    /// Undoes a [`Tables::clear`].
    pub fn restore(&self, mem: &mut impl TableMem, gap: Gap) {
        gap.place.write(mem, gap.table.base() | Access::ALL.bits());
    }

    /// Maps the 2 MiB from `first` on in the gap. Since that was made everybody has flushed.
    pub fn fill(
        &mut self,
        mem: &mut impl TableMem,
        Gap { place, table }: Gap,
        (first, rights): (Frame, Access),
        _: &Flushed,
    ) {
        mem.write(table, 0, self.spare.map_or(0, |next| next.base() | LINK));
        self.spare = Some(table);
        place.write(mem, first.base() | LARGE_PAGE | TYPE | rights.bits());
    }

    /// Maps the page whose leaf lies at `place`, and which is `frame` already or none. It keeps the
    /// rights that it has: there is never anything to flush.
    pub fn map(&self, mem: &mut impl TableMem, place: Place, frame: Frame, rights: Access) {
        let old = place.read(mem);
        let raw = if old == 0 { frame.base() | TYPE } else { old };
        place.write(mem, raw | rights.bits());
    }

    /// Takes `rights` to `page` away, and leaves it its frame. Processors may use them until they have
    /// flushed.
    pub fn withdraw(&mut self, mem: &mut impl TableMem, page: GuestFrame, rights: Access) {
        if let Some(place) = self.small(mem, page) {
            let raw = place.read(mem);
            place.write(mem, raw & !rights.bits());
        }
    }

    /// Takes all rights away from the leaf of 2 MiB that has `page`, as the above; what they were. `None` if
    /// there is no such leaf.
    pub fn withdraw_block(&self, mem: &mut impl TableMem, page: GuestFrame) -> Option<Access> {
        let place = self.find(mem, page).ok().filter(|place| place.level != Level::Pt)?;
        let raw = place.read(mem);
        place.write(mem, raw & !Access::ALL.bits());
        Some(Access::from_bits(raw))
    }

    /// Forgets the frame of `page`, to which all rights were withdrawn.
    pub fn forget(&mut self, mem: &mut impl TableMem, page: GuestFrame) {
        if let Some(place) = self.small(mem, page) {
            place.write(mem, 0);
        }
    }

    /// The first page from `from` on, below `end`, that has a frame, and that.
    #[must_use]
    pub fn next(
        &self,
        mem: &impl TableMem,
        from: GuestFrame,
        end: u64,
    ) -> Option<(GuestFrame, Frame)> {
        let mut at = from.base();
        while at < end.min(GUEST_END) {
            let page = GuestFrame::containing(at);
            let missing = match self.find(mem, page) {
                Ok(place) => match place.frame(place.read(mem), page) {
                    Some(frame) => return Some((page, frame)),
                    None => Level::Pt,
                },
                Err(level) => level,
            };
            at = at - at % missing.bytes() + missing.bytes();
        }
        None
    }

    /// Gives all tables back, at most `budget` of them; what is left of that stays in `budget`.
    /// Processors have forgotten them, and will not use them again. There is no page, and so no spare table.
    pub fn free(&self, mem: &mut impl TableMem, budget: &mut u32) -> Progress {
        if free(mem, self.root, Level::Pml4, budget) { Progress::Done } else { Progress::Again }
    }

    /// Where the entry of `level` for `page` lies, or that of the larger leaf that it has, with the tables on
    /// the way there.
    fn way(
        &self,
        mem: &mut impl TableMem,
        page: GuestFrame,
        wanted: Level,
    ) -> Result<Place, Exhausted> {
        let (mut table, mut level) = (self.root, Level::Pml4);
        loop {
            let place = Place { table, index: level.index(page.base()), level };
            let raw = place.read(mem);
            let ends = level == wanted || is_large(raw, level);
            let Some(below) = level.below().filter(|_| !ends) else { return Ok(place) };
            table = match frame_of(raw) {
                Some(next) => next,
                None => {
                    let next = mem.allocate().ok_or(Exhausted)?;
                    place.write(mem, next.base() | Access::ALL.bits());
                    next
                }
            };
            level = below;
        }
    }

    /// Where the leaf of `page` lies, or the level of the entry that leads nowhere.
    fn find(&self, mem: &impl TableMem, page: GuestFrame) -> Result<Place, Level> {
        let (mut table, mut level) = (self.root, Level::Pml4);
        loop {
            let place = Place { table, index: level.index(page.base()), level };
            let raw = place.read(mem);
            let ends = is_large(raw, level);
            let Some(below) = level.below().filter(|_| !ends) else { return Ok(place) };
            table = frame_of(raw).ok_or(level)?;
            level = below;
        }
    }

    /// Where the leaf of `page` lies, and of no other one.
    fn small(&mut self, mem: &mut impl TableMem, page: GuestFrame) -> Option<Place> {
        let place = self.find(mem, page).ok()?;
        if place.level == Level::Pt {
            return Some(place);
        }
        self.split(mem, place);
        self.find(mem, page).ok().filter(|place| place.level == Level::Pt)
    }

    /// Has leaves of pages say what the one of 2 MiB at `place` says. What processors remember of that is
    /// what they find now.
    fn split(&mut self, mem: &mut impl TableMem, place: Place) {
        let raw = place.read(mem);
        // There is one for each. Were there none, the VM would better lose the block than keep a page of it.
        let Some(table) = self.spare else { return place.write(mem, raw & !Access::ALL.bits()) };
        self.spare = next_spare(mem, table);
        for (index, at) in (0..LARGE).step_by(4096).enumerate() {
            mem.write(table, index, (raw & !LARGE_PAGE) + at);
        }
        place.write(mem, table.base() | Access::ALL.bits());
    }
}

/// The frame that an entry has, a table or a page. Not even that of frame 0 is 0.
fn frame_of(raw: u64) -> Option<Frame> {
    (raw != 0).then(|| Frame::containing(raw))
}

/// Whether an entry of `level` is a leaf of 2 MiB.
fn is_large(raw: u64, level: Level) -> bool {
    level == Level::Pd && raw & LARGE_PAGE != 0
}

fn next_spare(mem: &impl TableMem, table: Frame) -> Option<Frame> {
    let raw = mem.read(table, 0);
    (raw & LINK != 0).then(|| Frame::containing(raw))
}

/// Gives back `table` and all below it, as far as `budget` goes; true if that was all.
fn free(mem: &mut impl TableMem, table: Frame, level: Level, budget: &mut u32) -> bool {
    if let Some(below) = level.below().filter(|_| level != Level::Pt) {
        for index in (0..ENTRIES).filter_map(|index| usize::try_from(index).ok()) {
            let Some(next) = frame_of(mem.read(table, index)) else { continue };
            if !free(mem, next, below, budget) {
                return false;
            }
            mem.write(table, index, 0);
        }
    }
    let Some(left) = budget.checked_sub(1) else { return false };
    *budget = left;
    mem.free(table);
    true
}
