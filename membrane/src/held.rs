//! What VMs hold, and how it goes back to the host.
//!
//! Pages that leave are found by their frames: the frame table says whose page a private frame is, and
//! a record for each shared one the same. So it does not matter where in which tables of the host's a
//! leaf lies. A page that goes though another leaf still names it only costs time: it comes back at
//! the next access.

use core::mem;

use ept::addr::{Frame, GUEST_END, GuestFrame, PAGE, Span};
use ept::direct::{Machine, Meaning};
use ept::entry::Level;
use ept::ept01::{Exhausted, Flushed, Stale, TableMem};
use ept::frames::{self, State, View};
use ept::list::List;
use ept::shadow::Access;
use ticket::Class;

use crate::Hardware;
use crate::audit::Audit;
use crate::sparse::{NONE, Sparse};
use crate::vm::{Cause, Fate, Life, Vm};
use crate::walk::{self, Found};

/// Most VMs.
const MAX: usize = 64;
/// Frames that go back at once, so that one flush is enough for all of them.
const BATCH: usize = 256;
/// Marks a place in the record of a shared frame that is in use.
const USED: u64 = 1 << 63;
/// Where the number of the VM begins in it; its page is below.
const VM: u32 = 48;

/// Which pages of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// All.
    All,
    /// Those that it shares with the host.
    Shared,
}

/// All VMs, and what goes back.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) vms: [Option<Vm>; MAX],
    /// Which pages of which VMs shared frames are, up to four: by the number of the frame, which ends
    /// where EPT01 does, below 2^36.
    shares: Sparse,
    /// Frames that are about to go back.
    batch: List<Frame, BATCH>,
    /// Which frame each view was given out for last. Whether it still has it says the frame table.
    views: [Frame; 256],
    /// The one whose turn it is.
    turn: View,
}

/// A page of a VM.
type Page = (frames::Vm, GuestFrame);

/// The page that a word of a record names.
fn sharer(word: u64) -> Option<Page> {
    let [.., vm, _] = word.to_le_bytes();
    let vm = frames::Vm::new(vm).filter(|_| word & USED != 0)?;
    Some((vm, GuestFrame::containing(word)))
}

fn number(frame: Frame) -> u64 {
    frame.base() / PAGE
}

impl Held {
    #[expect(clippy::large_stack_frames, reason = "the compiler runs it")]
    pub(crate) const fn new() -> Self {
        Self {
            vms: [const { None }; MAX],
            shares: Sparse::new(),
            batch: List::new(Frame::containing(0)),
            views: [Frame::containing(0); 256],
            turn: View(0),
        }
    }

    /// The VM with this number.
    pub(crate) fn vm(&self, number: frames::Vm) -> Option<&Vm> {
        self.vms.get(usize::from(number.number()))?.as_ref()
    }

    /// The VM with this number.
    pub(crate) fn vm_mut(&mut self, number: frames::Vm) -> Option<&mut Vm> {
        self.vms.get_mut(usize::from(number.number()))?.as_mut()
    }

    /// The pages that `frame` is.
    fn pages<H: TableMem>(
        &self,
        machine: &Machine<'_, '_, H>,
        frame: Frame,
    ) -> impl Iterator<Item = Page> + use<H> {
        let state = machine.frames.state(frame);
        let is_shared = matches!(state, Some(State::Plain { maps }) if maps != 0);
        let shared = is_shared.then(|| self.shares.get(machine.hardware, number(frame)));
        let shared = shared.into_iter().flatten().filter_map(sharer);
        let private = match state {
            Some(State::Private { vm, page, .. }) => Some((vm, page)),
            Some(_) | None => None,
        };
        private.into_iter().chain(shared)
    }

    /// Adds `frame` to what goes back; false if that is full.
    pub(crate) fn add(&mut self, frame: Frame) -> bool {
        self.batch.push(frame).is_ok()
    }

    /// Whether nothing was added.
    pub(crate) fn is_idle(&self) -> bool {
        self.batch.is_empty()
    }

    /// Whether a VM may access `frame` without being asked.
    pub(crate) fn can_be_reached<H: TableMem>(
        &self,
        machine: &Machine<'_, '_, H>,
        frame: Frame,
    ) -> bool {
        let rights = |(vm, page)| Some(self.vm(vm)?.tables.rights(machine.hardware, page));
        self.pages(machine, frame).filter_map(rights).any(|rights| rights != Access::NONE)
    }

    /// Adds what VMs hold of `part` of what an entry with `meaning` translates.
    ///
    /// # Errors
    /// Where it had to stop, because there is no room for more.
    pub(crate) fn add_below<H: Hardware>(
        &mut self,
        machine: &Machine<'_, '_, H>,
        meaning: Meaning,
        part: Span,
    ) -> Result<(), u64> {
        walk::scan(machine, (meaning, 0), part, &mut |frame| {
            self.pages(machine, frame).next().is_none() || self.add(frame)
        })
    }

    /// Adds pages of a VM, from page `from` on. Says with which page to go on, if there is no room for
    /// more.
    pub(crate) fn add_of<H: Hardware>(
        &mut self,
        machine: &Machine<'_, '_, H>,
        number: frames::Vm,
        from: GuestFrame,
        which: Which,
    ) -> Option<GuestFrame> {
        let mut at = Some(from);
        while let Some((page, frame)) =
            at.and_then(|at| self.vm(number)?.tables.next(machine.hardware, at, GUEST_END))
        {
            let class = self.vm(number).and_then(|vm| vm.map.class(page));
            let wanted = which == Which::All || class != Some(Class::Private);
            if wanted && !self.add(frame) {
                return Some(page);
            }
            at = page.base().checked_add(PAGE).and_then(GuestFrame::at);
        }
        None
    }

    /// Takes from VMs all rights to what was added, until they ask again, and forgets what that was.
    pub(crate) fn weaken<H: Hardware>(&mut self, machine: &mut Machine<'_, '_, H>) -> Stale {
        let stale = self.withdraw(machine);
        self.batch.clear();
        stale
    }

    /// The same for the leaf of 2 MiB that a VM has from `frame` on; `None` if none has one there.
    pub(crate) fn weaken_block<H: Hardware>(
        &self,
        machine: &mut Machine<'_, '_, H>,
        frame: Frame,
    ) -> Option<Stale> {
        let Some(State::Private { vm, page, .. }) = machine.frames.state(frame) else {
            return None;
        };
        let before = self.vm(vm)?.tables.withdraw_block(machine.hardware, page)?;
        // Without rights, everybody knows that.
        Some(if before == Access::NONE { Stale::default() } else { machine.ept.stale() })
    }

    fn withdraw<H: Hardware>(&mut self, machine: &mut Machine<'_, '_, H>) -> Stale {
        for frame in self.batch.iter() {
            for (vm, page) in self.pages(machine, *frame) {
                let vm = self.vms.get_mut(usize::from(vm.number())).and_then(Option::as_mut);
                if let Some(vm) = vm {
                    vm.tables.withdraw(machine.hardware, page, Access::ALL);
                }
            }
        }
        machine.ept.stale()
    }

    /// Lets the host see `page` sealed in a view, while the VM keeps it in `frame`, though without the right
    /// to write to it. The view is the one that was given out longest ago; who has it still, loses it.
    ///
    /// `None` if there are no views, or the page cannot be sealed.
    pub(crate) fn show<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        (number, page): Page,
        frame: Frame,
    ) -> Option<()> {
        let place = |view| machine.frames.view(view).map(|copy| (view, copy));
        let (view, copy) = place(self.turn).or_else(|| place(View(0)))?;
        self.turn = View(view.0.wrapping_add(1));
        let last = self.views.get_mut(usize::from(view.0))?;
        let last = mem::replace(last, frame);
        let mut stale = machine.ept.stale();
        if matches!(machine.frames.state(last), Some(State::Private { view: Some(has), .. }) if has == view)
        {
            stale.add(machine.hide(last));
        }
        let vm = self.vm_mut(number)?;
        vm.tables.withdraw(machine.hardware, page, Access::WRITE);
        let _ = stale.flush(machine.hardware);
        machine.hardware.copy(frame, copy);
        vm.copied(machine.hardware, page, copy).ok()?;
        machine.show(frame, view).ok()
    }

    /// Takes all views of a VM's pages back.
    pub(crate) fn hide<H: Hardware>(
        &self,
        machine: &mut Machine<'_, '_, H>,
        number: frames::Vm,
    ) -> Stale {
        let mut stale = machine.ept.stale();
        for (turn, frame) in (0..=u8::MAX).zip(&self.views) {
            let state = machine.frames.state(*frame);
            if matches!(state, Some(State::Private { vm, view: Some(View(view)), .. }) if vm == number && view == turn)
            {
                stale.add(machine.hide(*frame));
            }
        }
        stale
    }

    /// Takes what was added out of VMs: the host gets private frames sealed, or zeroed.
    pub(crate) fn give_back<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        audit: &mut Audit,
    ) {
        self.give_back_as(machine, audit, Fate::Kept);
    }

    /// The same; if the VMs that have it need it, is for the caller to say.
    pub(crate) fn give_back_as<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        audit: &mut Audit,
        fate: Fate,
    ) {
        if self.batch.is_empty() {
            return;
        }
        let flushed = self.withdraw(machine).flush(machine.hardware);
        let mut at = 0;
        while let Some(frame) = self.batch.get(at).copied() {
            if self.vacate(machine, audit, frame, (fate, &flushed)) {
                at += 1;
            } else {
                let _ = self.batch.swap_remove(at);
            }
        }
        // What is left are private frames that were made fit for the host.
        let _ = machine.release(&self.batch);
        self.batch.clear();
    }

    /// Takes `frame` out of VMs. True if it is private, and may be the host's now.
    fn vacate<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        audit: &mut Audit,
        frame: Frame,
        how: (Fate, &Flushed),
    ) -> bool {
        let Some(State::Private { vm: number, page, .. }) = machine.frames.state(frame) else {
            self.unshare(machine, frame);
            return false;
        };
        let Some(vm) = self.vm_mut(number) else { return false };
        // What was added twice has gone already.
        if vm.tables.frame(machine.hardware, page) != Some(frame) {
            return false;
        }
        if let Err(cause) = vm.vacate(machine.hardware, page, frame, how) {
            self.stop(audit, machine.hardware.cpu(), number, cause);
        }
        true
    }

    /// Makes a shared `frame` the host's alone.
    fn unshare<H: Hardware>(&mut self, machine: &mut Machine<'_, '_, H>, frame: Frame) {
        for (vm, page) in self.pages(machine, frame) {
            if let Some(vm) = self.vm_mut(vm) {
                vm.tables.forget(machine.hardware, page);
            }
            // It was counted.
            let _ = machine.unshare(frame);
        }
        // To forget takes no memory.
        let _ = self.shares.set(machine.hardware, number(frame), NONE);
    }

    /// Gives a VM a shared page: the host's frame of `found`, as long as the host's tables have it there.
    pub(crate) fn share<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        audit: &mut Audit,
        (vm_number, page): Page,
        found: &Found,
    ) -> Result<(), Cause> {
        let vm = self.vm_mut(vm_number).ok_or(Cause::Destroyed)?;
        let place = vm.tables.reserve(machine.hardware, page, Level::Pt);
        let place = place.map_err(|Exhausted| Cause::Memory)?;
        let before = vm.tables.frame(machine.hardware, page);
        if before != Some(found.frame) {
            // The page of before; and to begin anew, if all places in the record are in use.
            let full = !self.shares.get(machine.hardware, number(found.frame)).contains(&0);
            for frame in before.into_iter().chain(full.then_some(found.frame)) {
                let _ = self.add(frame);
            }
            self.give_back(machine, audit);
            machine.share(found.frame).map_err(|_| Cause::Frame(page))?;
            if self.remember(machine.hardware, found.frame, (vm_number, page)).is_err() {
                let _ = machine.unshare(found.frame);
                return Err(Cause::Memory);
            }
        }
        if let Some(vm) = self.vm(vm_number) {
            vm.tables.map(machine.hardware, place, found.frame, found.rights);
        }
        Ok(())
    }

    /// Remembers that `frame` is the page, too.
    fn remember(
        &mut self,
        mem: &mut impl TableMem,
        frame: Frame,
        (vm, page): Page,
    ) -> Result<(), Exhausted> {
        let mut record = self.shares.get(mem, number(frame));
        let place = record.iter_mut().find(|word| **word == 0).ok_or(Exhausted)?;
        *place = USED | u64::from(vm.number()) << VM | page.base();
        self.shares.set(mem, number(frame), record)
    }

    /// Stops a VM for good, unless it is stopped already.
    pub(crate) fn stop(&mut self, audit: &mut Audit, cpu: u32, number: frames::Vm, cause: Cause) {
        if let Some(vm) = self.vm_mut(number).filter(|vm| !vm.is_stopped()) {
            vm.life = Life::Stopped(cause);
            audit.stopped(cpu, number, cause);
        }
    }
}
