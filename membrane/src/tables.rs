//! EPT02 of a protected VM: the tables that processors run it with. They lie in the visor's memory,
//! and every vCPU of the VM uses the same ones.
//!
//! An entry without rights still has the frame of its page: the page is the VM's, and the next access
//! to it has to be approved.

use ept::addr::{Frame, GUEST_END, GuestFrame};
use ept::entry::{self, ENTRIES, Level};
use ept::ept01::{Exhausted, TableMem};
use ept::shadow::Access;

use crate::Progress;

/// Bits 6:3 of a leaf: write-back memory, whatever the guest's PAT says, as KVM has it for VMs without
/// devices of their own. Nothing that a guest writes then goes past the caches in which the visor
/// reads it.
const TYPE: u64 = 6 << 3 | 1 << 6;

/// The tables.
#[derive(Debug)]
pub struct Tables {
    root: Frame,
}

/// Where the leaf of a page lies.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    table: Frame,
    index: usize,
}

impl Tables {
    /// Tables without a page.
    ///
    /// # Errors
    /// [`Exhausted`] when `mem` has no frame left.
    pub fn new(mem: &mut impl TableMem) -> Result<Self, Exhausted> {
        Ok(Self { root: mem.allocate().ok_or(Exhausted)? })
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
        frame_of(mem.read(place.table, place.index))
    }

    /// The frame of `page`, if the VM may access it so without being asked.
    #[must_use]
    pub fn reach(&self, mem: &impl TableMem, page: GuestFrame, access: Access) -> Option<Frame> {
        let place = self.find(mem, page).ok()?;
        let raw = mem.read(place.table, place.index);
        frame_of(raw).filter(|_| Access::from_bits(raw).allows(access))
    }

    /// What the VM may do with `page` without being asked.
    #[must_use]
    pub fn rights(&self, mem: &impl TableMem, page: GuestFrame) -> Access {
        let place = self.find(mem, page);
        place.map_or(Access::NONE, |place| Access::from_bits(mem.read(place.table, place.index)))
    }

    /// Where the leaf of `page` lies, with the tables on the way there, made if they are not.
    ///
    /// # Errors
    /// [`Exhausted`] when `mem` has no frame left.
    pub fn reserve(&self, mem: &mut impl TableMem, page: GuestFrame) -> Result<Place, Exhausted> {
        let (mut table, mut level) = (self.root, Level::Pml4);
        loop {
            let index = level.index(page.base());
            let Some(below) = level.below() else { return Ok(Place { table, index }) };
            table = match frame_of(mem.read(table, index)) {
                Some(next) => next,
                None => {
                    let next = mem.allocate().ok_or(Exhausted)?;
                    mem.write(table, index, next.base() | Access::ALL.bits());
                    next
                }
            };
            level = below;
        }
    }

    /// Maps the page whose leaf lies at `place`, and which is `frame` already or none. It keeps the
    /// rights that it has: there is never anything to flush.
    pub fn map(&self, mem: &mut impl TableMem, place: Place, frame: Frame, rights: Access) {
        let rights = rights.or(Access::from_bits(mem.read(place.table, place.index)));
        mem.write(place.table, place.index, frame.base() | TYPE | rights.bits());
    }

    /// Takes `rights` to `page` away, and leaves it its frame. Processors may use them until they have
    /// flushed.
    pub fn withdraw(&self, mem: &mut impl TableMem, page: GuestFrame, rights: Access) {
        if let Ok(place) = self.find(mem, page) {
            let raw = mem.read(place.table, place.index);
            mem.write(place.table, place.index, raw & !rights.bits());
        }
    }

    /// Forgets the frame of `page`, to which all rights were withdrawn.
    pub fn forget(&self, mem: &mut impl TableMem, page: GuestFrame) {
        if let Ok(place) = self.find(mem, page) {
            mem.write(place.table, place.index, 0);
        }
    }

    /// The first page from `from` on that has a frame, and that.
    #[must_use]
    pub fn next(&self, mem: &impl TableMem, from: GuestFrame) -> Option<(GuestFrame, Frame)> {
        let mut at = from.base();
        while at < GUEST_END {
            let page = GuestFrame::containing(at);
            let missing = match self.find(mem, page) {
                Ok(place) => match frame_of(mem.read(place.table, place.index)) {
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
    /// Processors have forgotten them, and will not use them again.
    pub fn free(&self, mem: &mut impl TableMem, budget: &mut u32) -> Progress {
        if free(mem, self.root, Level::Pml4, budget) { Progress::Done } else { Progress::Again }
    }

    /// Where the leaf of `page` lies, or the level of the entry that leads nowhere.
    fn find(&self, mem: &impl TableMem, page: GuestFrame) -> Result<Place, Level> {
        let (mut table, mut level) = (self.root, Level::Pml4);
        loop {
            let index = level.index(page.base());
            let Some(below) = level.below() else { return Ok(Place { table, index }) };
            table = frame_of(mem.read(table, index)).ok_or(level)?;
            level = below;
        }
    }
}

/// The frame that an entry has, a table or a page. Not even that of frame 0 is 0.
fn frame_of(raw: u64) -> Option<Frame> {
    (raw != 0).then(|| Frame::containing(raw))
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
