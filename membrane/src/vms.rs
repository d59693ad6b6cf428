//! All protected VMs, and the tickets that wait for theirs.

use ept::addr::{Frame, GUEST_END, GuestFrame, Span};
use ept::direct::{Machine, Meaning};
use ept::entry::Level;
use ept::ept01::TableMem;
use ept::frames::{self, State};
use ept::shadow::Access;
use ticket::audit::Kind;
use ticket::error::Error;
use ticket::{Class, Disk, Header, Origin, Range, parse};

use crate::audit::{Audit, Entry};
use crate::held::{Held, Which};
use crate::processors::Processors;
use crate::vm::{Cause, Fault, Filled, Life, Vm};
use crate::walk::{self, Unloaded};
use crate::{Hardware, Progress};

mod check;
mod forget;
mod restart;

pub use restart::Restart;

/// Accesses of the host's to a VM's private pages that are recorded. More say no more.
const TOUCHES: u32 = 16;
/// Frames that are given back at once when a VM is destroyed.
const PIECE: u32 = 1 << 12;

/// The VMs. What can be large of them lies in frames of its own.
#[derive(Debug)]
pub struct Vms {
    held: Held,
    draft: Draft,
    launches: u64,
    cursor: Cursor,
    ahead: Ahead,
    /// What happened.
    pub audit: Audit,
}

/// A ticket that is being read.
#[derive(Debug)]
struct Draft {
    /// Random bytes, until its header has come.
    launch: Option<[u8; 32]>,
    vm: Option<Vm>,
}

/// Where a long release goes on: an entry of a table, and an offset in what it translates. Only a hint:
/// each release ends with a look at everything.
#[derive(Debug)]
struct Cursor {
    place: (Frame, usize),
    at: u64,
}

/// How many entries of a table of leaves are done at once. A host changes a range entry by entry, and every
/// change would call all processors. So when the next one follows, twice as many are done as before: no more
/// too early than the host has changed in a row.
#[derive(Debug)]
struct Ahead {
    next: (Frame, usize),
    entries: usize,
}

/// Most of them.
const AHEAD: usize = 64;
/// Entries in a table.
const TABLE: usize = 512;

/// Takes a ticket in.
#[derive(Debug)]
pub struct Sink<'a, M> {
    draft: &'a mut Draft,
    mem: &'a mut M,
}

impl<M: Hardware> parse::Sink for Sink<'_, M> {
    fn header(&mut self, header: &Header) -> Result<(), Error> {
        let launch = self.draft.launch.take().ok_or(Error::NotBegun)?;
        Vm::new(self.mem, header, &launch).map(|vm| self.draft.vm = Some(vm))
    }

    fn range(&mut self, range: Range) -> Result<(), Error> {
        self.draft.vm.as_mut().ok_or(Error::NotBegun)?.add_range(range)
    }

    fn disk(&mut self, disk: Disk) -> Result<(), Error> {
        self.draft.vm.as_mut().ok_or(Error::NotBegun)?.add_disk(self.mem, &disk)
    }

    fn page(&mut self, address: u64, hash: &[u8; 32]) -> Result<(), Error> {
        if !self.mem.may_spend() {
            return Err(Error::Memory);
        }
        let vm = self.draft.vm.as_mut().ok_or(Error::NotBegun)?;
        vm.add_page(self.mem, GuestFrame::containing(address), hash)
    }
}

#[expect(clippy::new_without_default, reason = "it is for statics: too large for a stack")]
impl Vms {
    /// There are none.
    #[must_use]
    #[expect(clippy::large_stack_frames, reason = "the compiler runs it")]
    pub const fn new() -> Self {
        Self {
            held: Held::new(),
            draft: Draft { launch: None, vm: None },
            launches: 0,
            cursor: Cursor { place: (Frame::containing(0), 0), at: 0 },
            ahead: Ahead { next: (Frame::containing(0), 0), entries: 1 },
            audit: Audit::new(),
        }
    }

    /// Begins to take in a ticket; an unfinished one is dropped. `launch` are random bytes that were
    /// never used before.
    pub fn begin(&mut self, mem: &mut impl TableMem, launch: [u8; 32]) {
        self.cancel(mem);
        self.draft.launch = Some(launch);
    }

    /// Drops an unfinished ticket.
    pub fn cancel(&mut self, mem: &mut impl TableMem) {
        self.draft.launch = None;
        if let Some(mut vm) = self.draft.vm.take() {
            let mut all = u32::MAX;
            // It was never used, so nobody remembers anything of it.
            let _ = vm.free(mem, &mut all);
        }
    }

    /// What the parser of the ticket is to be given.
    pub const fn sink<'a, M: Hardware>(&'a mut self, mem: &'a mut M) -> Sink<'a, M> {
        Sink { draft: &mut self.draft, mem }
    }

    /// The ticket is complete: it waits for its VM.
    ///
    /// # Errors
    /// [`Error::NotBegun`], [`Error::Duplicate`] if there is a VM of that name that may run,
    /// [`Error::Slots`]. The ticket has been [refused](Self::refused) then.
    pub fn accept(
        &mut self,
        mem: &mut impl TableMem,
        cpu: u32,
        origin: &Origin,
    ) -> Result<frames::Vm, Error> {
        let accepted = self.admit(origin);
        match accepted {
            Ok(number) => self.record(cpu, Kind::Accepted, number),
            Err(error) => self.refused(mem, error, cpu),
        }
        accepted
    }

    fn admit(&mut self, origin: &Origin) -> Result<frames::Vm, Error> {
        let draft = self.draft.vm.as_ref().ok_or(Error::NotBegun)?;
        let mut others = self.held.vms.iter().flatten();
        if others.any(|vm| vm.id() == draft.id() && vm.may_run()) {
            return Err(Error::Duplicate);
        }
        let free = (0..).zip(&mut self.held.vms).find(|(_, slot)| slot.is_none());
        let (number, slot) = free.ok_or(Error::Slots)?;
        let number = frames::Vm::new(number).ok_or(Error::Slots)?;
        self.launches += 1;
        *slot = self.draft.vm.take();
        if let Some(vm) = slot {
            vm.launch = self.launches;
            vm.origin = *origin;
        }
        Ok(number)
    }

    /// Drops the unfinished ticket, because of `error`.
    pub fn refused(&mut self, mem: &mut impl TableMem, error: Error, cpu: u32) {
        self.cancel(mem);
        let a = u64::from(error.number());
        self.audit.push(cpu, Entry { kind: Kind::Refused, vm: None, a, b: 0 });
    }

    /// Number of tickets that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.held.vms.iter().flatten().filter(|vm| vm.life == Life::Waiting).count()
    }

    /// The oldest ticket that waits gets its VM: it runs now.
    pub fn launch(&mut self, cpu: u32) -> Option<frames::Vm> {
        let slots = (0..).zip(&mut self.held.vms);
        let vms = slots.filter_map(|(number, slot)| Some((number, slot.as_mut()?)));
        let waiting = vms.filter(|(_, vm)| vm.life == Life::Waiting);
        let (number, vm) = waiting.min_by_key(|(_, vm)| vm.launch)?;
        vm.life = Life::Running;
        let number = frames::Vm::new(number)?;
        self.record(cpu, Kind::Launched, number);
        Some(number)
    }

    /// The VM with this number.
    #[must_use]
    pub fn vm(&self, number: frames::Vm) -> Option<&Vm> {
        self.held.vm(number)
    }

    /// Whether this launch of the VM will not run again, nor be followed by another one.
    #[must_use]
    pub fn is_over(&self, number: frames::Vm, launch: u64) -> bool {
        self.vm(number).is_none_or(|vm| vm.launch != launch || !vm.may_run())
    }

    /// The VM of this launch, if it runs.
    #[must_use]
    pub fn running(&self, number: frames::Vm, launch: u64) -> Option<&Vm> {
        self.vm(number).filter(|vm| vm.launch == launch && vm.life == Life::Running)
    }

    /// The EPTP that processors run the VM with, if it runs, and is the one of this launch.
    #[must_use]
    pub fn pointer_if_running(&self, number: frames::Vm, launch: u64) -> Option<u64> {
        Some(self.running(number, launch)?.pointer())
    }

    /// The processors of the VM of this launch, if it runs.
    pub fn processors(&mut self, number: frames::Vm, launch: u64) -> Option<&mut Processors> {
        let _ = self.running(number, launch)?;
        Some(&mut self.held.vm_mut(number)?.processors)
    }

    /// The VM that has one more processor by this: with the tables at `root`, and in the state after a
    /// start-up IPI with this vector. The root only tells VMs apart that could both have one so: which of
    /// them has it is the host's to say.
    pub fn begin_processor(&mut self, root: Frame, vector: u8) -> Option<(frames::Vm, u64)> {
        let (number, vm) = (0..).zip(&mut self.held.vms).find_map(|(number, slot)| {
            let vm = slot.as_mut()?;
            let is_it = vm.life == Life::Running && vm.root == Some(root);
            (is_it && vm.processors.begin(vector)).then_some((number, vm))
        })?;
        Some((frames::Vm::new(number)?, vm.launch))
    }

    /// A vCPU was added to the VM.
    pub fn vcpu_added(&mut self, number: frames::Vm, cpu: u32) {
        if let Some(vm) = self.held.vm_mut(number) {
            vm.vcpus = vm.vcpus.saturating_add(1);
            self.record(cpu, Kind::CpuAdded, number);
        }
    }

    /// The first VM without a ticket since boot runs, or was refused.
    pub fn saw_unprotected(&mut self, cpu: u32) {
        self.audit.push(cpu, Entry { kind: Kind::Unprotected, vm: None, a: 0, b: 0 });
    }

    /// Stops the VM for good, unless it is stopped already.
    pub fn stop(&mut self, number: frames::Vm, cause: Cause, cpu: u32) {
        self.held.stop(&mut self.audit, cpu, number, cause);
    }

    fn record(&mut self, cpu: u32, kind: Kind, vm: frames::Vm) {
        self.audit.push(cpu, Entry { kind, vm: Some(vm), a: 0, b: 0 });
    }

    /// Answers an access that EPT02 has no translation for, by what the host's tables have for it. `eptp`
    /// is the EPTP of VMCS12, with its flags.
    pub fn fill<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        number: frames::Vm,
        eptp: u64,
        fault: Fault,
    ) -> Filled {
        let filled = self.try_fill(machine, number, eptp, fault);
        let filled = filled.unwrap_or_else(|cause| {
            self.stop(number, cause, machine.hardware.cpu());
            Filled::Stopped(cause)
        });
        if let Some(vm) = self.held.vm_mut(number) {
            vm.answered(fault.at, filled);
        }
        filled
    }

    fn try_fill<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        number: frames::Vm,
        eptp: u64,
        fault: Fault,
    ) -> Result<Filled, Cause> {
        let vm = self.held.vm_mut(number).ok_or(Cause::Destroyed)?;
        match vm.life {
            Life::Running => {}
            Life::Stopped(cause) => return Err(cause),
            // Nobody enters it.
            Life::Waiting => return Ok(Filled::Unloaded),
        }
        vm.root = Some(Frame::containing(eptp));
        let page = GuestFrame::containing(fault.at);
        let class = vm.map.class(page).filter(|_| fault.at < GUEST_END);
        let Some(class) = class else { return device(vm, machine, eptp, fault) };
        let found = match walk::walk(machine, Frame::containing(eptp), page) {
            Ok(Some(found)) if found.rights.allows(Access::READ) => found,
            Ok(_) => return Ok(Filled::Absent(page)),
            Err(Unloaded) => return Ok(Filled::Unloaded),
        };
        // A frame that even the host may only read is perhaps not the VM's alone.
        let new = class == Class::Private && vm.tables.frame(machine.hardware, page).is_none();
        if new && !found.rights.allows(Access::WRITE) {
            return Ok(Filled::Absent(page));
        }
        if !found.rights.allows(fault.access) {
            return Ok(Filled::Denied { at: page, rights: found.rights });
        }
        if !found.mark(machine.hardware, eptp) {
            // The host was quicker.
            return Ok(Filled::Mapped);
        }
        if class == Class::Private {
            vm.fill(machine, number, page, &found)?;
        } else {
            self.held.share(machine, &mut self.audit, (number, page), &found)?;
        }
        Ok(Filled::Mapped)
    }

    /// To be called before the host's store of `new` to entry `index` of a guarded `table`, in the same
    /// hold of the lock: what the entry made reachable and will not any more leaves the VMs.
    ///
    /// [`Progress::Again`]: the store must not be performed yet; the host is to repeat it.
    pub fn release_before<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        table: Frame,
        index: usize,
        new: u64,
    ) -> Progress {
        let Some(State::Table { level, .. }) = machine.frames.state(table) else {
            return Progress::Done;
        };
        let old = machine.hardware.entry(table, index);
        let (was, becomes) = (machine.meaning(old, level), machine.meaning(new, level));
        let split = if level == Level::Pd { walk::splits(machine, old, new) } else { None };
        if was != becomes && split.is_none() {
            return self.release(machine, (table, index), was);
        }
        if split.unwrap_or_else(|| walk::loses(old, new)) {
            self.weaken(machine, (table, index), was);
        }
        Progress::Done
    }

    /// To be called before the host's tables are not watched any more: everything leaves the VMs.
    ///
    /// [`Progress::Again`]: they still have to be watched.
    pub fn seal_all<H: Hardware>(&mut self, machine: &mut Machine<'_, '_, H>) -> Progress {
        let first = GuestFrame::containing(0);
        let all = (0..frames::Vm::MAX).filter_map(frames::Vm::new);
        let mut added = all.map(|number| self.held.add_of(machine, number, first, Which::All));
        let rest = added.any(|rest| rest.is_some());
        self.held.give_back(machine, &mut self.audit);
        if rest { Progress::Again } else { Progress::Done }
    }

    /// Takes what `meaning` makes reachable out of VMs, as much of it as is done at once. Goes on where it
    /// left off, and comes round to what VMs have touched again meanwhile.
    fn release<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        place: (Frame, usize),
        meaning: Meaning,
    ) -> Progress {
        let whole = walk::extent(meaning);
        let here = self.cursor.place == place && whole.contains(self.cursor.at);
        let start = if here { self.cursor.at } else { 0 };
        let mut add = |from, to| {
            let part = Span::new(from, to).unwrap_or_default();
            self.held.add_below(machine, meaning, part)
        };
        let added = add(start, whole.end()).and_then(|()| add(0, start));
        self.go_ahead(machine, place, meaning);
        self.held.give_back(machine, &mut self.audit);
        let Err(at) = added else { return Progress::Done };
        self.cursor = Cursor { place, at };
        Progress::Again
    }

    /// Adds what entries after that at `place` make reachable, if that is a leaf of which something was added.
    /// What leaves a VM too early comes back at the next access, as long as the host's entry is there.
    fn go_ahead<H: Hardware>(
        &mut self,
        machine: &Machine<'_, '_, H>,
        (table, index): (Frame, usize),
        meaning: Meaning,
    ) {
        let Meaning::Leaf(_, Level::Pt) = meaning else { return };
        if self.held.is_idle() {
            return;
        }
        // Over entries for pages that the VM does not have. Which table follows the end of one is not known.
        let ((last, next), before) = (self.ahead.next, self.ahead.entries);
        let follows =
            last == table && (next..=next + before).contains(&index) || next == TABLE && index == 0;
        let entries = if follows { (2 * before).min(AHEAD) } else { 1 };
        let end = (index + entries).min(TABLE);
        for index in index + 1..end {
            let meaning = machine.meaning(machine.hardware.entry(table, index), Level::Pt);
            let _ = self.held.add_below(machine, meaning, walk::extent(meaning));
        }
        self.ahead = Ahead { next: (table, end), entries };
    }

    /// Takes from VMs all rights to what `meaning` makes reachable, until they ask again.
    fn weaken<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        place: (Frame, usize),
        meaning: Meaning,
    ) {
        if let Meaning::Leaf(frame, Level::Pt) = meaning
            && !self.held.can_be_reached(machine, frame)
        {
            // By what was done ahead, everybody knows that.
            return;
        }
        if let Meaning::Leaf(frame, Level::Pd) = meaning
            && let Some(stale) = self.held.weaken_block(machine, frame)
        {
            let _ = stale.flush(machine.hardware);
            return;
        }
        let whole = walk::extent(meaning);
        let mut stale = machine.ept.stale();
        let mut rest = Some(whole);
        while let Some(part) = rest {
            let added = self.held.add_below(machine, meaning, part);
            self.go_ahead(machine, place, meaning);
            stale.add(self.held.weaken(machine));
            rest = added.err().and_then(|at| Span::new(at, whole.end()));
        }
        let _ = stale.flush(machine.hardware);
    }

    /// The host cannot go on at `frame`: if that is private memory of a VM's, the host sees it sealed from
    /// now on, in a view if there are some, and may repeat its access. False if it is not.
    pub fn touched<H: Hardware>(&mut self, machine: &mut Machine<'_, '_, H>, frame: Frame) -> bool {
        let Some(State::Private { vm: number, page, view }) = machine.frames.state(frame) else {
            return false;
        };
        // Another processor was quicker, or that VM's pages are worth nothing any more.
        let runs = self.vm(number).is_some_and(|vm| vm.life == Life::Running);
        if view.is_none() && runs && self.held.show(machine, (number, page), frame).is_some() {
            self.record_touch(machine.hardware.cpu(), number, page);
            return true;
        }
        view.is_some() || self.give_up(machine, frame)
    }

    /// The same, for who does not see frames as the host does: a VM without a ticket. The frame itself is
    /// the host's then, and what the host stores there comes back to the VM.
    pub fn give_up<H: Hardware>(&mut self, machine: &mut Machine<'_, '_, H>, frame: Frame) -> bool {
        let Some(State::Private { vm: number, page, .. }) = machine.frames.state(frame) else {
            return false;
        };
        self.record_touch(machine.hardware.cpu(), number, page);
        let _ = self.held.add(frame);
        self.held.give_back(machine, &mut self.audit);
        true
    }

    /// The host has accessed private memory.
    fn record_touch(&mut self, cpu: u32, number: frames::Vm, page: GuestFrame) {
        let Some(vm) = self.held.vm_mut(number) else { return };
        vm.touches = vm.touches.saturating_add(1);
        if vm.touches <= TOUCHES {
            let entry = Entry { kind: Kind::Touched, vm: Some(number), a: page.base(), b: 0 };
            self.audit.push(cpu, entry);
        }
    }

    /// Forgets the shared pages of the VM, since the host may have changed its tables unseen. To be
    /// called when a root of it was not loaded any more and is again.
    pub fn unwatched<H: Hardware>(&mut self, machine: &mut Machine<'_, '_, H>, number: frames::Vm) {
        let mut from = Some(GuestFrame::containing(0));
        while let Some(page) = from {
            from = self.held.add_of(machine, number, page, Which::Shared);
            self.held.give_back(machine, &mut self.audit);
        }
    }

    /// Destroys the VM: its pages are zeroed and given to the host, all memory that it had from the
    /// visor is given back. [`Progress::Again`]: a piece of that.
    pub fn destroy<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        number: frames::Vm,
    ) -> Progress {
        let cpu = machine.hardware.cpu();
        self.stop(number, Cause::Destroyed, cpu);
        let Some(vm) = self.held.vm_mut(number) else { return Progress::Done };
        // Between two pieces it has a part of its manifest.
        vm.restarts = 0;
        let Some(vm) = self.vacate(machine, number) else { return Progress::Again };
        let mut budget = PIECE;
        if vm.is_some_and(|vm| vm.free(machine.hardware, &mut budget) == Progress::Again) {
            return Progress::Again;
        }
        if let Some(slot) = self.held.vms.get_mut(usize::from(number.number())) {
            *slot = None;
        }
        self.record(cpu, Kind::Destroyed, number);
        Progress::Done
    }
}

/// Answers an access to what is a device's by the ticket: makes the window page fit, in which the host is
/// shown it. The page is the host's, and what it makes of it then is its own loss.
fn device<H: Hardware>(
    vm: &Vm,
    machine: &mut Machine<'_, '_, H>,
    eptp: u64,
    Fault { at, word: own, .. }: Fault,
) -> Result<Filled, Cause> {
    let root = Frame::containing(eptp);
    let Some(page) = GuestFrame::at(at & !0xfff) else { return Err(Cause::Device(at)) };
    match walk::walk(machine, root, page) {
        // The host has memory where the ticket has none: it would not take this for a device's.
        Ok(Some(found)) if found.rights.allows(Access::READ) => return Err(Cause::Device(at)),
        Ok(_) => {}
        Err(Unloaded) => return Ok(Filled::Unloaded),
    }
    let window = vm.map.window().ok_or(Cause::Device(at))?;
    let found = match walk::walk(machine, root, window) {
        Ok(Some(found)) if found.rights.allows(Access::READ) => found,
        Ok(_) => return Ok(Filled::Absent(window)),
        Err(Unloaded) => return Ok(Filled::Unloaded),
    };
    // The host could otherwise have the visor overwrite whatever it likes.
    if !matches!(machine.frames.state(found.frame), Some(State::Plain { .. })) {
        return Err(Cause::Frame(window));
    }
    let (hardware, word) = (&mut *machine.hardware, |index| H::window_word(index, window.base()));
    let (own, entry) = (own.into(), H::window_word(0, page.base()));
    let is_made = hardware.entry(found.frame, 0) == word(0);
    if !is_made || hardware.entry(found.frame, own) != entry {
        if !found.rights.allows(Access::WRITE) {
            return Ok(Filled::Denied { at: window, rights: found.rights });
        }
        let mut set = |index, word| {
            let old = hardware.entry(found.frame, index);
            let _ = hardware.exchange(found.frame, index, old, word);
        };
        if !is_made {
            // The first word last: where it is, so is the rest.
            (0..512).rev().for_each(|index| set(index, word(index)));
        }
        set(own, entry);
    }
    Ok(Filled::Device { at, window })
}
