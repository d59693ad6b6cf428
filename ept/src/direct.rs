//! Direct mode: the processor runs a VM with the tables that the host built for it, an EPT12, as
//! they stand; and the same watch over the tables of protected VMs, which it does not use. (SDM
//! vol. 3, "EPT Translation Mechanism", 29.3.2.)
//!
//! Every table that hangs from a loaded root is read-only to the host, and what its entries lead to
//! is counted in the frame table: leaves per frame or block, links per table. The host's stores to
//! tables trap and come to [`Machine::write`], which lets nothing in that leads to the visor's
//! memory, to denied memory, to private memory of a protected VM, or to a table as if it were a
//! page.
//!
//! What always holds, at every single store and for whatever processors still remember:
//!
//! 1. No translation from a loaded root ends in a frame of the visor's, in denied memory, or in
//!    private memory.
//! 2. None ends in a table that a processor may walk, and neither can the host write to one.
//! 3. The host's memory has what the host stored, but for accessed and dirty flags.
//! 4. What no loaded root leads to is plain memory of the host's again, with nothing counted.
//!
//! # Guarded tables
//!
//! The tables that the host builds for a protected VM are *guarded*: processors never walk them.
//! They have an EPT02 of the visor's, into which the visor copies what it finds in the host's
//! tables and agrees with. So a page can be taken out of the VM's reach with the host's tables as
//! they are, and what these say harms nobody. The other tables are *counted*. A root is loaded as
//! one of the two, and all that hangs from it is the same; no table is both.
//!
//! Of what is above, 3 and 4 hold for guarded tables too, and they are read-only: a store is known
//! before it happens ([`Machine::before_write`]), when the visor still can take out of EPT02 what it
//! takes back. Links are counted, so that all that can be reached from a root is RAM, is one level,
//! and stays a table. Leaves are *not*: they may name anything. Whoever follows one asks
//! [`Machine::take`] or [`Machine::share`] for the page.
//!
//! Once a guarded root is released, stores to its tables go unseen. The generation has ended then,
//! and every processor has left its VM; before one enters again, what EPT02 has from these tables
//! must be forgotten.
//!
//! # Obligations
//!
//! A table is read after everybody who could write to it has been stopped: `link`, flush, read. It
//! is given back after everybody has forgotten it: store, `unlink`, flush, `give_back`. `Moving` and
//! `Moved` are the obligation to flush and its receipt. Both go level by level, so that even
//! the largest tree takes four flushes, and memory for a list of tables is never needed: the list
//! runs through the frame table. In the same way a page becomes private: it is closed, flushed, and
//! only then the VM's.
//!
//! Only changes *to other frames* are the visor's concern here. When the host takes a leaf away or
//! takes rights away, processors remember the old one until the host's own INVEPT, as without a
//! visor; should the frame become a table or private before, the flush for that comes first.

mod check;
mod meaning;
mod pages;
mod trees;

use core::fmt;

pub use crate::shootdown::Generation;
pub use meaning::Meaning;
pub use pages::Store;
pub use trees::Machine;

use trees::Moving;

use crate::addr::{Frame, PAGE, Span};
use crate::entry::Level;
use crate::ept01::{Exhausted, TableMem, Tlb};
use crate::frames::{Guard, Refusal, State};
use crate::list::List;

/// Tables in the host's memory. Processors and devices may write to it meanwhile.
pub trait HostMemory {
    /// Entry `index`, below 512, of `table`, in a single read of 8 bytes.
    fn entry(&self, table: Frame, index: usize) -> u64;
    /// Sets that entry from `old` to `new` by a locked compare-exchange; `false` if it was not
    /// `old`.
    fn exchange(&mut self, table: Frame, index: usize, old: u64, new: u64) -> bool;
}

/// What direct mode works with: tables of the visor's, tables of the host's, and a [`Tlb`] whose
/// flush makes every processor leave its VM and forget *everything* that it remembers of *any* EPT,
/// before it returns.
pub trait Hardware: TableMem + HostMemory + Tlb {}

impl<T: TableMem + HostMemory + Tlb> Hardware for T {}

/// Why tables cannot be used as they stand, or a store to one be performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// An entry leads to a frame that does not take part in it.
    Frame(Refusal),
    /// A leaf maps memory that is denied to the host, or that EPT01 cannot name.
    Denied(Span),
    /// The frame is no table that a processor walks.
    NoTable(Frame),
    /// The operand at this address is not within one entry.
    Operand(u64),
    /// The entry at this address changed again and again.
    Contended(u64),
    /// All roots are in use.
    Full,
    /// There was no memory for EPT01.
    Exhausted(Exhausted),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(refusal) => write!(f, "EPT12: {refusal}"),
            Self::Denied(span) => write!(f, "EPT12: {span} is not for the host"),
            Self::NoTable(frame) => write!(f, "EPT12: {:#x} is no table", frame.base()),
            Self::Operand(at) => write!(f, "EPT12: the operand at {at:#x} is not in one entry"),
            Self::Contended(at) => write!(f, "EPT12: the entry at {at:#x} does not stay"),
            Self::Full => f.write_str("EPT12: too many roots in use"),
            Self::Exhausted(exhausted) => write!(f, "EPT12: {exhausted}"),
        }
    }
}

/// The loaded roots, up to `N`.
#[derive(Debug)]
pub struct Direct<'g, const N: usize> {
    roots: List<Frame, N>,
    generation: &'g Generation,
}

/// Entries that [`Direct::demote`] reads in its search, before it takes the rest for a match: a
/// host that links one table from everywhere could else keep it busy for hours.
const SEARCH: u32 = 1 << 20;

impl<'g, const N: usize> Direct<'g, N> {
    /// No root is loaded.
    #[must_use]
    pub const fn new(generation: &'g Generation) -> Self {
        Self { roots: List::new(Frame::containing(0)), generation }
    }

    /// Whether `root` is loaded, under either guard.
    #[must_use]
    pub fn is_loaded<H>(&self, machine: &Machine<'_, '_, H>, root: Frame) -> bool {
        // Nothing else is a table of this level.
        matches!(machine.frames.state(root), Some(State::Table { level: Level::Pml4, .. }))
    }

    /// Makes the tables at `root` fit for whom `guard` says, and tells for which generation. When
    /// there is no room for one more, a root that is neither guarded nor `in_use` is released.
    ///
    /// # Errors
    /// [`Refused`] says why the tables are not fit; they are ordinary memory again.
    pub fn load<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        root: Frame,
        guard: Guard,
        in_use: impl Fn(Frame) -> bool,
    ) -> Result<u64, Refused> {
        let guarded = guard == Guard::Guarded;
        if !self.is_loaded(machine, root) || machine.is_guarded(root) != guarded {
            if self.roots.len() == N {
                // A protected VM's pages are to be sealed before its tables are out of sight.
                let is_idle = |root: &&Frame| !in_use(**root) && !machine.is_guarded(**root);
                let idle = self.roots.iter().find(is_idle);
                let idle = *idle.ok_or(Refused::Full)?;
                self.release(machine, idle);
            }
            // Refuses one that is loaded under the other guard.
            machine.gain(Meaning::Table(root, Level::Pml4), guard)?;
            // There was room, or has been made.
            let _ = self.roots.push(root);
        }
        Ok(self.generation.current())
    }

    /// Releases `root`, if it is loaded.
    pub fn release<H: Hardware>(&mut self, machine: &mut Machine<'_, '_, H>, root: Frame) {
        self.release_each(machine, |_, each| each == root);
    }

    /// Releases the root at `address`, if there is one and nothing hangs from it. To be asked after
    /// a store to a root: a host that empties one is about to use the page for something else, and
    /// every store to it would trap for as long as the values look harmless.
    pub fn release_empty<H: Hardware>(&mut self, machine: &mut Machine<'_, '_, H>, address: u64) {
        let root = Frame::containing(address);
        if self.is_loaded(machine, root) && machine.is_empty(root) {
            self.release(machine, root);
        }
    }

    /// Releases every root.
    pub fn release_all<H: Hardware>(&mut self, machine: &mut Machine<'_, '_, H>) {
        self.release_each(machine, |_, _| true);
    }

    /// Releases every root that leads to `table`, which then is ordinary memory.
    pub fn demote<H: Hardware>(&mut self, machine: &mut Machine<'_, '_, H>, table: Frame) {
        let mut budget = SEARCH;
        self.release_each(machine, |machine, root| match machine.frames.state(table) {
            Some(State::Table { level, .. }) => {
                machine.holds((root, Level::Pml4), (table, level), &mut budget)
            }
            // Not any more.
            Some(
                State::Visor
                | State::Plain { .. }
                | State::Fresh { .. }
                | State::Leaving { .. }
                | State::Private { .. },
            )
            | None => false,
        });
    }

    /// Releases the roots that `choose` names. The generation ends before the flush, so whoever was
    /// made to leave a VM by that does not enter it again with what is being given back.
    fn release_each<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        mut choose: impl FnMut(&Machine<'_, '_, H>, Frame) -> bool,
    ) {
        let mut leaving = Moving::new(machine.ept);
        let mut at = 0;
        while let Some(root) = self.roots.get(at).copied() {
            if choose(machine, root) {
                self.generation.end();
                let _ = self.roots.swap_remove(at);
                machine.unlink(root, &mut leaving);
            } else {
                at += 1;
            }
        }
        machine.give_back(leaving);
    }
}

/// Where an operand of 1, 2, 4 or 8 bytes lies in an entry.
#[derive(Clone, Copy, Debug)]
struct Operand {
    table: Frame,
    index: usize,
    shift: u32,
    mask: u64,
}

impl Operand {
    #[inline]
    fn at(address: u64, bytes: u8) -> Result<Self, Refused> {
        let offset = address % 8;
        let fits = matches!(bytes, 1 | 2 | 4 | 8) && offset + u64::from(bytes) <= 8;
        let index = usize::try_from(address % PAGE / 8).ok().filter(|_| fits);
        Ok(Self {
            table: Frame::containing(address),
            index: index.ok_or(Refused::Operand(address))?,
            shift: u32::try_from(offset * 8).unwrap_or(0),
            mask: u64::MAX >> (64 - 8 * u32::from(bytes)),
        })
    }

    const fn of(self, entry: u64) -> u64 {
        entry >> self.shift & self.mask
    }

    const fn set(self, entry: u64, operand: u64) -> u64 {
        entry & !(self.mask << self.shift) | (operand & self.mask) << self.shift
    }
}

/// Attempts at a store, against a processor that sets accessed and dirty flags meanwhile: two
/// flags, each set at most once.
const ATTEMPTS: u32 = 8;

impl<H: Hardware> Machine<'_, '_, H> {
    /// Performs the host's store to a table, and says of which level: `change` gives the new value of
    /// the `bytes` at `address` for the old one; what it was asked last has happened.
    ///
    /// # Errors
    /// [`Refused`]: nothing has changed. Should the host be allowed to store this, the table has to
    /// be [demoted](Direct::demote) first.
    pub fn write(
        &mut self,
        address: u64,
        bytes: u8,
        mut change: impl FnMut(u64) -> u64,
    ) -> Result<Level, Refused> {
        let place = Operand::at(address, bytes)?;
        let Some(State::Table { level, guard, .. }) = self.frames.state(place.table) else {
            return Err(Refused::NoTable(place.table));
        };
        for _ in 0..ATTEMPTS {
            let entry = self.hardware.entry(place.table, place.index);
            let stored = place.set(entry, change(place.of(entry)));
            let done = if Meaning::stays(entry, stored) {
                self.hardware.exchange(place.table, place.index, entry, stored)
            } else {
                self.exchange(place, (level, guard), (entry, stored))?
            };
            if done {
                return Ok(level);
            }
        }
        Err(Refused::Contended(address))
    }

    /// Sets an entry of a table of this level and guard from `old` to `new`, which does not mean the
    /// same; `false` if it was not `old`.
    #[inline(never)]
    fn exchange(
        &mut self,
        place: Operand,
        (level, guard): (Level, Guard),
        (old, new): (u64, u64),
    ) -> Result<bool, Refused> {
        let (was, becomes) = (self.meaning(old, level), self.meaning(new, level));
        self.gain(becomes, guard)?;
        let stored = self.hardware.exchange(place.table, place.index, old, new);
        self.lose(if stored { was } else { becomes }, guard);
        Ok(stored)
    }
}
