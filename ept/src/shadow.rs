//! Shadow mode: EPT02, the tables with which one processor runs a VM whose EPT12 cannot be used as
//! it stands.
//!
//! A shadow is filled at EPT violations, page by page, with what EPT12 says at that moment, cut by
//! what the host itself may reach. It is a translation cache, with the promises of one and no others
//! (SDM vol. 3, "Caching Translation Information", 29.4): the host's stores to EPT12 need not be
//! seen before its INVEPT, at which the shadow is emptied, and anything may be forgotten at any
//! time. So EPT12 is never write-protected, and may be any garbage.
//!
//! What always holds: no translation gives more than [`Host::permitted`] said when it was made.
//! Whoever takes something away from the host must therefore have every processor
//! [reset](Shadow::reset) its shadow, and flush, before it enters a VM again; also one that is in
//! the middle of [`Shadow::fill`].
//!
//! One difference from hardware is left: a processor with accessed and dirty flags for EPT treats
//! its reads of the guest's page tables as writes. EPT02 has no such flags, so these reads pass
//! where EPT12 permits reads only, and leave the page clean.

use crate::addr::{Frame, PAGE, Span};
use crate::entry::{self, ENTRIES, Level};
use crate::ept01::TableMem;
use crate::list::List;
use crate::mtrr::MemoryType;

/// Fewest frames that a shadow works with. With `n` frames at least `(n - 1) / 3` pages can be
/// mapped at once, however far apart they lie; an instruction that needs more of them (each step of
/// the guest's own page walks counts) may never complete. 64 are enough for any VM in practice.
pub const MIN_FRAMES: u64 = 8;

/// Bits 2:0: permits reads, writes and fetches.
const RWX: u64 = 0b111;
/// Bits 6:3 of a leaf: the memory type, and whether the guest's PAT is ignored.
const TYPE: u64 = 0b1111 << 3;
/// Bits 7:3, which are reserved where an entry leads to a table.
const RESERVED_IN_LINKS: u64 = 0b1_1111 << 3;
/// Makes a PDPT or PD entry a leaf.
const LARGE_PAGE: u64 = 1 << 7;
/// The entry has been used.
const ACCESSED: u64 = 1 << 8;
/// The page has been written.
const DIRTY: u64 = 1 << 9;
/// EPTP: accessed and dirty flags are in use (SDM vol. 3, "Extended-Page-Table Pointer", 25.6.11).
const FLAGS: u64 = 1 << 6;
/// Bits of a guest-physical address that four levels translate.
const WALKED: u32 = 48;

/// Kinds of access, with the bits that entries (2:0) and exit qualifications (2:0 and 5:3) have for
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access(u64);

impl Access {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// Data reads.
    pub const READ: Self = Self(1 << 0);
    /// Data writes.
    pub const WRITE: Self = Self(1 << 1);
    /// Instruction fetches.
    pub const FETCH: Self = Self(1 << 2);
    /// All of them.
    pub const ALL: Self = Self(RWX);

    /// Those in bits 2:0 of `raw`.
    #[must_use]
    pub const fn from_bits(raw: u64) -> Self {
        Self(raw & RWX)
    }

    /// In bits 2:0.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Those in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of `other` are among them.
    #[must_use]
    pub const fn allows(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }
}

/// What the host itself may do with physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Nothing, with all of it.
    None,
    /// Reads, of all of it.
    ReadOnly,
    /// Everything, with all of it.
    All,
    /// It depends on the page.
    Mixed,
}

/// The host's memory, in which EPT12 lies.
pub trait Host {
    /// The aligned 8 bytes at `address`, which may be any; `None` where the host has no RAM.
    fn read(&self, address: u64) -> Option<u64>;
    /// Sets `bits` of the aligned 8 bytes at `address` by a locked operation, if they still are
    /// what [`Host::read`] gave. False when they are not; true, and no effect, where the host could
    /// not store either.
    fn set_bits(&self, address: u64, expected: u64, bits: u64) -> bool;
    /// What the host may do with `span`: a page, or an aligned block of 2 MiB or 1 GiB.
    fn permitted(&self, span: Span) -> Permission;
}

/// What the processor says of EPT entries.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Physical-address bits; those above are reserved.
    pub width: u8,
    /// Whether an entry may permit fetches alone.
    pub execute_only: bool,
}

impl Format {
    /// Whether `raw` at `level` is a leaf; the exit that it causes if it cannot be used (SDM vol. 3,
    /// "EPT Misconfigurations" and "EPT Violations", 29.3.3.1 and 29.3.3.2).
    fn is_leaf(self, raw: u64, level: Level) -> Result<bool, Outcome> {
        let rights = Access::from_bits(raw);
        if rights == Access::NONE {
            return Err(Outcome::Violation { rights });
        }
        let leaf = match level {
            Level::Pml4 => false,
            Level::Pdpt | Level::Pd => raw & LARGE_PAGE != 0,
            Level::Pt => true,
        };
        let [kind, ..] = (raw >> 3 & 0b111).to_le_bytes();
        let reserved = if leaf { level.bytes() - PAGE } else { RESERVED_IN_LINKS };
        let beyond = Frame::containing(raw).base().checked_shr(self.width.into());
        let usable = match (rights.allows(Access::READ), rights.allows(Access::WRITE)) {
            (true, _) => true,
            (false, true) => false,
            (false, false) => self.execute_only,
        };
        let good = usable
            && raw & reserved == 0
            && beyond.is_none_or(|high| high == 0)
            && (!leaf || MemoryType::from_number(kind).is_some());
        if good { Ok(leaf) } else { Err(Outcome::Misconfigured) }
    }
}

/// How a fill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// EPT02 has the translation: resume the VM.
    Mapped,
    /// The host has changed EPT12 meanwhile: resume the VM, which repeats the access.
    Raced,
    /// An EPT violation for the host.
    Violation {
        /// What EPT12 permits: bits 5:3 of the exit qualification.
        rights: Access,
    },
    /// An EPT misconfiguration for the host.
    Misconfigured,
    /// EPT12 permits what the host itself may not do.
    Forbidden,
}

/// The obligation to INVEPT this processor's EPT02 before it is used again: until then the processor
/// may use translations, and tables, that are no longer there.
#[derive(Debug)]
#[must_use = "the old translations stay in use until they are flushed"]
pub struct Stale(bool);

impl Stale {
    /// Fulfils the obligation by `invept`, of the single context of [`Shadow::pointer`]; calls it
    /// only if something has to be forgotten.
    pub fn flush(self, invept: impl FnOnce()) {
        if self.0 {
            invept();
        }
    }
}

/// An entry of EPT12 on the way to a page.
#[derive(Clone, Copy, Debug)]
struct Step {
    address: u64,
    raw: u64,
}

/// The way through EPT12 to a page.
struct Walk {
    steps: List<Step, 4>,
    /// What all of its entries permit.
    rights: Access,
    /// The last entry, and its level.
    leaf: u64,
    level: Level,
}

impl Walk {
    /// Sets the flags that the processor would set for `access` (SDM vol. 3, "Accessed and Dirty
    /// Flags for EPT", 29.3.5).
    fn mark(&self, host: &impl Host, access: Access) -> Result<(), Outcome> {
        for (number, step) in (1..).zip(self.steps.iter()) {
            let writes = number == self.steps.len() && access.allows(Access::WRITE);
            let bits = if writes { ACCESSED | DIRTY } else { ACCESSED };
            if step.raw & bits != bits && !host.set_bits(step.address, step.raw, bits) {
                return Err(Outcome::Raced);
            }
        }
        Ok(())
    }
}

/// A translation to be made.
struct Leaf {
    /// Host-physical address of the byte that was accessed.
    target: u64,
    /// Bits 6:0.
    bits: u64,
    /// Of the largest page that it may be.
    level: Level,
}

/// EPT02 of one processor.
#[derive(Debug)]
pub struct Shadow {
    root: Frame,
    /// Every frame but the root.
    tables: Span,
    /// Those of them not in use.
    rest: Span,
    format: Format,
    eptp12: u64,
}

impl Shadow {
    /// An empty shadow in `frames`, whole frames that only the visor can reach and that have no
    /// other use. `None` if they are not whole or fewer than [`MIN_FRAMES`].
    #[must_use]
    pub fn new(mem: &mut impl TableMem, frames: Span, format: Format) -> Option<Self> {
        let whole = frames.shrink_to(PAGE) == frames && frames.len() >= MIN_FRAMES * PAGE;
        let root = Frame::at(frames.start()).filter(|_| whole)?;
        let tables = Span::new(root.base() + PAGE, frames.end())?;
        clear(mem, root);
        // No VM entry accepts an EPTP of 0, so the first `load` is always a change.
        Some(Self { root, tables, rest: tables, format, eptp12: 0 })
    }

    /// The value of the EPTP field.
    #[must_use]
    pub const fn pointer(&self) -> u64 {
        entry::pointer(self.root)
    }

    /// Makes it the shadow of `eptp12`; empties it if it was another's.
    pub fn load(&mut self, mem: &mut impl TableMem, eptp12: u64) -> Stale {
        if eptp12 == self.eptp12 {
            return Stale(false);
        }
        self.eptp12 = eptp12;
        self.reset(mem)
    }

    /// Forgets every translation.
    pub fn reset(&mut self, mem: &mut impl TableMem) -> Stale {
        // Every translation takes tables.
        let used = self.rest != self.tables;
        if used {
            self.rest = self.tables;
            clear(mem, self.root);
        }
        Stale(used)
    }

    /// Answers an EPT violation at guest-physical address `gpa`. `access` is what the VM tried,
    /// which is also a write where the processor walks the guest's page tables and EPT12 has
    /// accessed and dirty flags.
    ///
    /// A page that cannot be accessed as asked is forgotten, as the processor does at its own EPT
    /// violations (SDM vol. 3, "Operations that Invalidate Cached Mappings", 29.4.3.1): the host
    /// may put another in its place without INVEPT.
    pub fn fill(
        &mut self,
        mem: &mut impl TableMem,
        host: &impl Host,
        gpa: u64,
        access: Access,
    ) -> (Outcome, Stale) {
        match self.translate(host, gpa, access) {
            Ok(leaf) => (Outcome::Mapped, self.map(mem, gpa, &leaf)),
            Err(outcome) => {
                let (table, level) = self.lowest(mem, gpa);
                (outcome, Stale(replace(mem, table, level.index(gpa), 0)))
            }
        }
    }

    /// What EPT02 should have for `gpa`, and the accessed and dirty flags set for it.
    fn translate(&self, host: &impl Host, gpa: u64, access: Access) -> Result<Leaf, Outcome> {
        let walk = self.walk(host, gpa)?;
        if !walk.rights.allows(access) {
            return Err(Outcome::Violation { rights: walk.rights });
        }
        let target = Frame::containing(walk.leaf).base() + gpa % walk.level.bytes();
        let (permitted, level) = permitted(host, target, walk.level);
        let mut rights = walk.rights.and(permitted);
        if !rights.allows(access) {
            return Err(Outcome::Forbidden);
        }
        if self.eptp12 & FLAGS != 0 {
            walk.mark(host, access)?;
            if walk.leaf & DIRTY == 0 && !access.allows(Access::WRITE) {
                // The first write has to come here, to be noted.
                rights = rights.and(Access::READ.or(Access::FETCH));
            }
        }
        Ok(Leaf { target, bits: walk.leaf & TYPE | rights.bits(), level })
    }

    /// Where EPT12 leads for `gpa`: a host-physical address, whoever may use it.
    #[must_use]
    pub fn leads_to(&self, host: &impl Host, gpa: u64) -> Option<u64> {
        let walk = self.walk(host, gpa).ok()?;
        Some(Frame::containing(walk.leaf).base() + gpa % walk.level.bytes())
    }

    /// Walks EPT12, as the processor would.
    fn walk(&self, host: &impl Host, gpa: u64) -> Result<Walk, Outcome> {
        if gpa >> WALKED != 0 {
            return Err(Outcome::Violation { rights: Access::NONE });
        }
        let mut steps = List::new(Step { address: 0, raw: 0 });
        let mut rights = Access::ALL;
        let mut table = Frame::containing(self.eptp12);
        let mut level = Level::Pml4;
        loop {
            let address = table.base() + gpa / level.bytes() % ENTRIES * 8;
            // Nothing answers there, so hardware would read ones, reserved bits among them.
            let raw = host.read(address).ok_or(Outcome::Misconfigured)?;
            let is_leaf = self.format.is_leaf(raw, level)?;
            rights = rights.and(Access::from_bits(raw));
            // The list has room for one of each level.
            let _ = steps.push(Step { address, raw });
            match level.below().filter(|_| !is_leaf) {
                Some(below) => (table, level) = (Frame::containing(raw), below),
                None => return Ok(Walk { steps, rights, leaf: raw, level }),
            }
        }
    }

    /// Puts `leaf` in the place of what EPT02 has for `gpa`. Where it has smaller pages around, they
    /// stay, and `leaf` becomes one of them.
    fn map(&mut self, mem: &mut impl TableMem, gpa: u64, leaf: &Leaf) -> Stale {
        const MOST_NEEDED: u64 = 3;
        let Stale(mut stale) =
            if self.rest.len() < MOST_NEEDED * PAGE { self.reset(mem) } else { Stale(false) };
        let (mut table, mut level) = self.lowest(mem, gpa);
        while level.bytes() > leaf.level.bytes() {
            let Some((below, next)) = level.below().zip(self.allocate(mem)) else {
                return Stale(stale);
            };
            stale |= replace(mem, table, level.index(gpa), next.base() | RWX);
            (table, level) = (next, below);
        }
        let base = leaf.target - leaf.target % level.bytes();
        let large = if level == Level::Pt { 0 } else { LARGE_PAGE };
        stale |= replace(mem, table, level.index(gpa), base | large | leaf.bits);
        Stale(stale)
    }

    /// The lowest of EPT02's tables on the way to `gpa`, and its level.
    fn lowest(&self, mem: &impl TableMem, gpa: u64) -> (Frame, Level) {
        let (mut table, mut level) = (self.root, Level::Pml4);
        while let Some(below) = level.below() {
            let raw = mem.read(table, level.index(gpa));
            if raw & RWX == 0 || raw & LARGE_PAGE != 0 {
                break;
            }
            (table, level) = (Frame::containing(raw), below);
        }
        (table, level)
    }

    /// An empty table.
    fn allocate(&mut self, mem: &mut impl TableMem) -> Option<Frame> {
        let start = self.rest.start();
        let rest = Span::new(start + PAGE, self.rest.end())?;
        let table = Frame::at(start)?;
        clear(mem, table);
        self.rest = rest;
        Some(table)
    }
}

/// What the host may do with the page at `target`, and the level of the largest leaf around it, of
/// `level` at most, for which all of that holds.
fn permitted(host: &impl Host, target: u64, level: Level) -> (Access, Level) {
    let start = target - target % level.bytes();
    let found = Span::sized(start, level.bytes()).map(|block| host.permitted(block));
    match (found, level.below()) {
        (Some(Permission::All), _) => (Access::ALL, level),
        (Some(Permission::ReadOnly), _) => (Access::READ, level),
        (Some(Permission::Mixed), Some(below)) => permitted(host, target, below),
        (Some(Permission::None | Permission::Mixed) | None, _) => (Access::NONE, level),
    }
}

/// Sets an entry of EPT02. True if the processor may remember something else: unless there was
/// nothing before, or the same with fewer rights.
fn replace(mem: &mut impl TableMem, table: Frame, index: usize, new: u64) -> bool {
    let old = mem.read(table, index);
    mem.write(table, index, new);
    let grown = (old ^ new) & !RWX == 0 && Access::from_bits(new).allows(Access::from_bits(old));
    old & RWX != 0 && !grown
}

/// Makes every entry of `table` absent.
fn clear(mem: &mut impl TableMem, table: Frame) {
    for index in (0..ENTRIES).filter_map(|index| usize::try_from(index).ok()) {
        mem.write(table, index, 0);
    }
}
