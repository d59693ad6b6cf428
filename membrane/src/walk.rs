//! Where the host would like pages to be: walks through EPT12, in the host's memory.

use ept::addr::{Frame, GuestFrame, PAGE, Span};
use ept::direct::{HostMemory, Machine, Meaning};
use ept::entry::{ENTRIES, Level};
use ept::frames::{Guard, State};
use ept::shadow::Access;

/// EPTP: accessed and dirty flags are in use (SDM vol. 3, "Extended-Page-Table Pointer", 25.6.11).
const FLAGS: u64 = 1 << 6;
/// The entry has been used.
const ACCESSED: u64 = 1 << 8;
/// The page has been written.
const DIRTY: u64 = 1 << 9;

/// What EPT12 has for a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// The leaf, and where it lies.
    table: Frame,
    index: usize,
    raw: u64,
    /// What all entries on the way permit.
    pub(crate) rights: Access,
    /// The frame of the page itself, also within a large leaf.
    pub(crate) frame: Frame,
    /// The level of the leaf.
    pub(crate) level: Level,
}

/// The root is not loaded as that of a protected VM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unloaded;

/// What the tables at `root` have for `page`. Every entry is read once; between two the host can
/// change nothing, because its stores to guarded tables trap.
pub(crate) fn walk<H: HostMemory>(
    machine: &Machine<'_, '_, H>,
    root: Frame,
    page: GuestFrame,
) -> Result<Option<Found>, Unloaded> {
    let (mut table, mut level, mut rights) = (root, Level::Pml4, Access::ALL);
    loop {
        is_guarded(machine, table, level).then_some(()).ok_or(Unloaded)?;
        let index = level.index(page.base());
        let raw = machine.hardware.entry(table, index);
        rights = rights.and(Access::from_bits(raw));
        (table, level) = match machine.meaning(raw, level) {
            Meaning::Nothing => return Ok(None),
            Meaning::Table(next, below) => (next, below),
            Meaning::Leaf(first, level) => {
                let frame = Frame::containing(first.base() + page.base() % level.bytes());
                return Ok(Some(Found { table, index, raw, rights, frame, level }));
            }
        };
    }
}

/// Whether `table` is a table of `level` that only the visor walks.
fn is_guarded<H>(machine: &Machine<'_, '_, H>, table: Frame, level: Level) -> bool {
    let state = machine.frames.state(table);
    matches!(state, Some(State::Table { level: found, guard: Guard::Guarded, .. }) if found == level)
}

/// Whether an entry that leads to the same place as before takes rights or flags back, so that the next
/// access has to come here.
pub(crate) const fn loses(old: u64, new: u64) -> bool {
    old & !new & (Access::ALL.bits() | ACCESSED | DIRTY) != 0
}

/// Whether `new`, in the place of `old`, a leaf of 2 MiB, leads to a table that has the same frames for the same
/// pages; and then whether it takes rights or flags back. Only where all of these are of VMs: the table is
/// not watched yet, and a host that changes it meanwhile loses nothing by that but pages.
pub(crate) fn splits<H: HostMemory>(
    machine: &Machine<'_, '_, H>,
    old: u64,
    new: u64,
) -> Option<bool> {
    let (Meaning::Leaf(first, Level::Pd), Meaning::Table(table, Level::Pt)) =
        (machine.meaning(old, Level::Pd), machine.meaning(new, Level::Pd))
    else {
        return None;
    };
    let block = Span::sized(first.base(), Level::Pd.bytes())?;
    // What the visor reads here the host learns something of.
    let is_hosts = matches!(machine.frames.state(table), Some(State::Plain { .. }));
    let mut less = old & !new & Access::ALL.bits() != 0;
    for (index, frame) in (block.start()..block.end()).step_by(4096).enumerate() {
        let same = Meaning::Leaf(Frame::containing(frame), Level::Pt);
        let raw = is_hosts.then(|| machine.hardware.entry(table, index))?;
        less |= loses(old, raw);
        (machine.meaning(raw, Level::Pt) == same).then_some(())?;
    }
    machine.frames.shut(block).then_some(less)
}

impl Found {
    /// Sets the flags that a processor would, with `eptp` as its EPTP: the VM may write to what it may
    /// write to without the visor's being told. False if the host changed the entry meanwhile.
    pub(crate) fn mark<H: HostMemory>(&self, hardware: &mut H, eptp: u64) -> bool {
        let written = self.rights.allows(Access::WRITE);
        let bits = if written { ACCESSED | DIRTY } else { ACCESSED };
        if eptp & FLAGS == 0 || self.raw & bits == bits {
            return true;
        }
        hardware.exchange(self.table, self.index, self.raw, self.raw | bits)
    }
}

/// All that an entry with `meaning` translates, from 0 on.
pub(crate) fn extent(meaning: Meaning) -> Span {
    let bytes = match meaning {
        Meaning::Nothing => 0,
        Meaning::Leaf(_, level) => level.bytes(),
        Meaning::Table(_, level) => level.bytes() * ENTRIES,
    };
    Span::sized(0, bytes).unwrap_or_default()
}

/// Calls `each` with every frame that `meaning` makes reachable within `part` of what it translates,
/// which begins at `base`. Stops when `each` is false, and says where.
///
/// That may be many frames, if the host links tables again and again. It is the host's own time.
pub(crate) fn scan<H: HostMemory>(
    machine: &Machine<'_, '_, H>,
    (meaning, base): (Meaning, u64),
    part: Span,
    each: &mut impl FnMut(Frame) -> bool,
) -> Result<(), u64> {
    match meaning {
        Meaning::Nothing => {}
        Meaning::Leaf(first, level) => {
            let mut at = part.start().max(base);
            while at < part.end().min(base + level.bytes()) {
                let frame = Frame::containing(first.base() + (at - base));
                each(frame).then_some(()).ok_or(at)?;
                at += PAGE;
            }
        }
        Meaning::Table(table, level) => {
            for number in 0..ENTRIES {
                let start = base + number * level.bytes();
                if start >= part.end() || start + level.bytes() <= part.start() {
                    continue;
                }
                let raw = machine.hardware.entry(table, level.index(start));
                scan(machine, (machine.meaning(raw, level), start), part, each)?;
            }
        }
    }
    Ok(())
}
