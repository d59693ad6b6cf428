//! The frame table and EPT01: who owns which frame, and what the host can therefore reach.
#![expect(unsafe_code, reason = "storage of the frame table")]

mod protected;

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ept::addr::{Frame, HUGE, LARGE, PAGE, Span};
use ept::direct::{self, Direct, Generation};
use ept::entry::Level;
use ept::entry::Rights;
use ept::ept01::{self, Ept01, Flushed, Rules, TableMem, Tlb};
use ept::frames::{Event, FrameTable, Guard, Owner, State as FrameState};
use ept::list::List;
use ept::mtrr::{self, Mtrrs};
use ept::shadow::Permission;
use membrane::{Pages, Progress};
use spin::{Mutex, MutexGuard};

use crate::cpu::{read_msr, size, vmx};
use crate::events;
use crate::iommu::{self, Units};
use crate::machine::Machine;
use crate::memory::{self, POOL, Pool};
use crate::percpu::PerCpu;
use crate::{shootdown, tpm};

/// Roots of VMs without a ticket.
static UNPROTECTED: AtomicU32 = AtomicU32::new(0);
/// Device memory that is not the host's.
static DENIED: Mutex<List<Span, { ::iommu::dmar::UNITS + tpm::DENIED.len() }>> =
    Mutex::new(List::new(Span::EMPTY));
/// Whether there was any.
static SEEN: AtomicBool = AtomicBool::new(false);

pub(crate) use protected::{any_protected, tickets_wait};

/// What the host can reach, and why.
pub(crate) struct HostTables {
    state: Mutex<State>,
    pointer: u64,
    width: u8,
    entry_width: u8,
    ram: &'static [Span],
    /// Device memory that is not the host's.
    denied: &'static [Span],
}

struct State {
    frames: FrameTable<'static>,
    /// What the host has written, and what it means.
    registers: mtrr::Registers,
    mtrrs: Mtrrs,
    ept: Ept01,
    direct: Direct<'static, ROOTS>,
}

/// Roots of VMs' tables that can be in use as they stand: more than processors.
const ROOTS: usize = 576;

/// Most frames of the host's that show views at once: what protected VMs have in them, sealed.
const VIEWS: u64 = 256;

/// Bytes of RAM for each byte of views.
const PER_VIEW: u64 = 2048;

/// Counts how often one was given up.
static GENERATION: Generation = Generation::new();

impl State {
    const fn rules<'s>(&'s self, denied: &'s [Span]) -> Rules<'s> {
        Rules { frames: &self.frames, mtrrs: &self.mtrrs, denied }
    }
}

impl fmt::Debug for HostTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EPT01 at {:#x}", self.pointer)
    }
}

/// The pool for tables, the host's memory, and every processor's cached translations.
pub(crate) struct AllProcessors<'p>(&'p mut Pool);

/// What VMs' tables are checked against.
pub(crate) type Trees<'a, 'p> = direct::Machine<'a, 'static, AllProcessors<'p>>;

impl TableMem for AllProcessors<'_> {
    fn allocate(&mut self) -> Option<Frame> {
        self.0.allocate()
    }
    fn free(&mut self, frame: Frame) {
        self.0.free(frame);
    }
    fn read(&self, table: Frame, index: usize) -> u64 {
        memory::read_entry(table, index)
    }
    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        memory::write_entry(table, index, raw);
    }
}

impl direct::HostMemory for AllProcessors<'_> {
    fn entry(&self, table: Frame, index: usize) -> u64 {
        memory::read_entry(table, index)
    }
    fn exchange(&mut self, table: Frame, index: usize, old: u64, new: u64) -> bool {
        let offset = u64::try_from(index & 511).unwrap_or(0) * 8;
        memory::compare_exchange(table.base() + offset, old, new) == old
    }
}

impl membrane::Pages for AllProcessors<'_> {
    fn with_page<T>(&mut self, frame: Frame, work: impl FnOnce(&mut [u8; 4096]) -> T) -> T {
        // All content that changes its owner passes here or through `copy`: what is admitted (unsealed,
        // compared with the manifest, zeroed), what is sealed, in place or in a view, and what is zeroed
        // because its VM was stopped or could not have it.
        iommu::leave_caches(frame);
        // SAFETY: `membrane` only names frames that it has taken from the host, which nobody else
        // reaches, under the lock of `HostTables`, and keeps no reference.
        let done = work(unsafe { memory::page_mut(frame) });
        iommu::leave_caches(frame);
        done
    }

    fn copy(&mut self, from: Frame, to: Frame) {
        // The VM's page only ever changed through the caches. The view was a device's to write.
        iommu::leave_caches(to);
        // SAFETY: its VM can only read it meanwhile, nobody else reaches it: under the lock of
        // `HostTables`, as for `with_page`.
        let from = unsafe { memory::page_mut(from) };
        // SAFETY: a view that nobody sees; the same.
        unsafe { memory::page_mut(to) }.copy_from_slice(from);
        iommu::leave_caches(to);
    }

    fn cpu(&self) -> u32 {
        PerCpu::current().index.get()
    }

    fn may_spend(&self) -> bool {
        self.0.may_spend()
    }

    fn window_word(index: usize, window: u64) -> u64 {
        nested_vmx::guard::window::word(index, window)
    }
}

impl Tlb for AllProcessors<'_> {
    fn flush(&mut self, _: Span) {
        iommu::flush(self.0);
        shootdown::everywhere();
    }

    fn revise_devices(&mut self, frames: &FrameTable<'_>, page: Span) -> Span {
        iommu::revise(self.0, frames, page)
    }

    fn complete_devices(&mut self, frames: &FrameTable<'_>, page: Span, leave: &Flushed) {
        iommu::complete(self.0, frames, page, leave);
    }
}

/// Device memory that is not the host's, with the `registers` of VT-d's units.
fn denied(registers: &[Span]) -> &'static [Span] {
    let denied = MutexGuard::leak(DENIED.lock());
    for span in tpm::DENIED.iter().chain(registers) {
        // There is room for as many as there can be.
        let _ = denied.push(*span);
    }
    denied
}

impl HostTables {
    /// The frame table over `ram`, with what is `claimed` the visor's; EPT01; and what devices reach, by
    /// the `units` that are started for it; all in `pool`.
    #[expect(clippy::large_stack_frames, reason = "runs once, on the boot stack of 64 KiB")]
    pub(crate) fn build(
        pool: &mut Pool,
        ram: &'static [Span],
        claimed: [Span; 2],
        (width, units): (u8, Option<Units>),
    ) -> Option<Self> {
        let entries = FrameTable::entries(ram);
        let storage = pool.take(entries * 8)?;
        let first = memory::pointer::<u64>(Frame::containing(storage.start()))?;
        // SAFETY: the frames were just taken, are zeroed and mapped, hold this many entries, and
        // nothing else names them.
        let storage = unsafe { core::slice::from_raw_parts_mut(first.as_ptr(), size(entries)) };
        let mut frames = FrameTable::new(ram, storage).ok()?;
        for span in claimed {
            frames.apply(span, Event::Claim).ok()?;
        }
        let all: u64 = ram.iter().map(|ram| ram.len()).sum();
        frames.set_views(pool.take((all / PER_VIEW).min(VIEWS * PAGE))?);
        let registers = mtrr::Registers::read(read_msr);
        let mtrrs = Mtrrs::read(width, |index| registers.value(index).unwrap_or(0));
        let registers_of_units = units.as_ref().map_or(&[][..], |units| units.registers);
        let denied = denied(registers_of_units);
        let rules = Rules { frames: &frames, mtrrs: &mtrrs, denied };
        let ept = Ept01::build(pool, &rules, ept01::end(width)).ok()?;
        let mut kept = ept01::tables_needed(ept01::end(width), ram) * PAGE;
        if let Some(units) = units {
            // Devices' tables are split as EPT01 is.
            kept *= 2;
            units.start(pool, &frames, (width, ram.last().map_or(0, |ram| ram.end())));
        }
        pool.keep(kept);
        let pointer = ept.pointer();
        let direct = Direct::new(&GENERATION);
        let state = State { frames, registers, mtrrs, ept, direct };
        let entry_width = crate::vmcs::entry_width();
        Some(Self { state: Mutex::new(state), pointer, width, entry_width, ram, denied })
    }

    /// The EPT pointer for the VMCS.
    pub(crate) fn pointer(&self) -> u64 {
        self.pointer
    }

    /// The host's MTRR `index`; `None` if there is none.
    pub(crate) fn read_mtrr(&self, index: u32) -> Option<u64> {
        shootdown::lock(&self.state).registers.value(index)
    }

    /// Writes the host's MTRR `index` and lets EPT01 follow; `false` if there is none or it does not
    /// take `value`. The processor's own MTRRs stay as firmware set them: they also rule how the
    /// visor reaches its memory, while under EPT they do not count for the host's.
    pub(crate) fn write_mtrr(&self, cpu: u32, index: u32, value: u64) -> bool {
        let mut state = shootdown::lock(&self.state);
        if !state.registers.write(index, value, self.width) {
            return false;
        }
        if !state.registers.enabled() {
            // In the middle of a change, with the caches off (SDM vol. 3, 13.11.8).
            return true;
        }
        let mtrrs = Mtrrs::read(self.width, |index| state.registers.value(index).unwrap_or(0));
        if mtrrs != state.mtrrs {
            state.mtrrs = mtrrs;
            let mut pool = POOL.lock();
            let mut all = AllProcessors(&mut pool);
            let (rules, ept) = (state.rules(self.denied), state.ept);
            let stale = ept.revise(&mut all, &rules, ept.all());
            let flushed = stale.flush(&mut all);
            if let Err(error) = ept.complete(&mut all, &rules, flushed) {
                log::error!("EPT01 is incomplete after a change of memory types: {error}");
            }
            events::record(cpu, events::Event::MemoryTypes);
        }
        vmx::invept_all();
        true
    }

    /// Whether the host may by now do what it was stopped from, by the qualification of its EPT
    /// violation: another processor was changing the tables.
    pub(crate) fn reaches(&self, address: u64, qualification: u64) -> bool {
        const READ: u64 = 1;
        let state = shootdown::lock(&self.state);
        let pool = POOL.lock();
        state.ept.walk(&*pool, address).is_some_and(|(leaf, _)| match leaf.rights {
            Rights::All => true,
            Rights::ReadWrite | Rights::Read => qualification & 7 == READ,
        })
    }

    /// Does something with the tables of VMs.
    fn with_vms<T>(
        &self,
        work: impl FnOnce(&mut Direct<'static, ROOTS>, &mut Trees<'_, '_>) -> T,
    ) -> T {
        let mut guard = shootdown::lock(&self.state);
        let state = &mut *guard;
        let mut pool = POOL.lock();
        let mut hardware = AllProcessors(&mut pool);
        let mut vms = direct::Machine {
            frames: &mut state.frames,
            mtrrs: &state.mtrrs,
            denied: self.denied,
            ept: state.ept,
            // Bits that name a memory-encryption key are no reserved ones to the processor.
            width: self.entry_width,
            hardware: &mut hardware,
        };
        work(&mut state.direct, &mut vms)
    }

    /// A VM without a ticket runs, or is refused: the first one since boot is recorded.
    pub(crate) fn saw_unprotected(&self) {
        if !SEEN.swap(true, Ordering::Relaxed) {
            self.with_protected(|vms, trees| vms.saw_unprotected(trees.hardware.cpu()));
        }
    }

    /// How many roots were entered without a ticket.
    pub(crate) fn unprotected(&self) -> u32 {
        UNPROTECTED.load(Ordering::Relaxed)
    }

    /// The generation for which the tables at `root` can be used as they stand; `None` if they
    /// cannot.
    pub(crate) fn load_root(&self, root: Frame) -> Option<u64> {
        let loaded = self.with_vms(|direct, vms| {
            let is_new = !direct.is_loaded(vms, root);
            let loaded = direct.load(vms, root, Guard::Counted, is_in_use);
            loaded.map(|generation| (generation, is_new))
        });
        if let Ok((_, true)) = loaded {
            let _ = UNPROTECTED.fetch_add(1, Ordering::Relaxed);
            self.saw_unprotected();
        }
        let loaded = loaded.map(|(generation, _)| generation);
        loaded.inspect_err(|why| log::debug!("a VM runs on shadow tables: {why}")).ok()
    }

    /// Whether what was loaded at `generation` can still be used.
    pub(crate) fn is_current(&self, generation: u64) -> bool {
        GENERATION.current() == generation
    }

    /// Gives up every root: no processor of the host is in VMX operation any more.
    pub(crate) fn release_roots(&self) {
        while any_protected()
            && self.with_protected(|vms, trees| vms.seal_all(trees)) == Progress::Again
        {}
        self.with_vms(|direct, vms| direct.release_all(vms));
    }

    /// Gives up every root that leads to `table`, which then is ordinary memory. `Again`: not yet, as
    /// nothing of a protected VM's may be in clear while nobody sees what the host does with its
    /// tables.
    pub(crate) fn demote(&self, table: Frame) -> Progress {
        self.with_vms(|direct, trees| {
            let sealed = !trees.is_guarded(table) || protected::seal_all(trees) == Progress::Done;
            if sealed {
                direct.demote(trees, table);
            }
            if sealed { Progress::Done } else { Progress::Again }
        })
    }

    /// Every frame of RAM.
    fn frames(&self) -> impl Iterator<Item = Frame> {
        let bases = self.ram.iter().flat_map(|span| (span.start()..span.end()).step_by(4096));
        bases.map(Frame::containing)
    }

    /// How many frames are tables of VMs, in use as they stand. Looks at every frame.
    pub(crate) fn count_tables(&self) -> u32 {
        let state = shootdown::lock(&self.state);
        let tables = self.frames().filter(|frame| {
            let found = state.frames.state(*frame);
            matches!(found, Some(FrameState::Fresh { .. } | FrameState::Table { .. }))
        });
        u32::try_from(tables.count()).unwrap_or(u32::MAX)
    }

    /// The frames of protected VMs. A frame that was about to change its owner is a VM's as long as there is anything
    /// of it in clear.
    ///
    /// # Safety
    /// No other processor runs any more, and this one does not go on with what it did before.
    pub(crate) unsafe fn private(&self) -> impl Iterator<Item = Frame> {
        // SAFETY: whoever had the lock does not go on; each word of the table is whole.
        unsafe { self.state.force_unlock() };
        let state = self.state.lock();
        let is_private = |owner| matches!(owner, Some(Owner::Vm(_)));
        self.frames().filter(move |frame| is_private(state.frames.owner(*frame)))
    }

    /// Whether `frame` is a protected VM's table.
    pub(crate) fn is_guarded(&self, frame: Frame) -> bool {
        self.with_vms(|_, trees| trees.is_guarded(frame))
    }

    /// One past the last GiB of physical memory with RAM.
    pub(crate) fn gibs(&self) -> u32 {
        let end = self.ram.iter().map(|span| span.end().div_ceil(HUGE)).max();
        u32::try_from(end.unwrap_or(0)).unwrap_or(u32::MAX)
    }

    /// Compares tables with the frame table, for the RAM in a GiB of physical memory: 0, or one more than the
    /// number of the first frame on which they disagree.
    pub(crate) fn check(&self, gib: u32) -> u32 {
        let whole = Span::sized(u64::from(gib) * HUGE, HUGE).unwrap_or_default();
        let found = self.with_vms(|_, trees| {
            self.ram.iter().find_map(|ram| {
                let part = ram.intersect(whole);
                let devices = || iommu::disagreement(trees.hardware.0, trees.frames, part);
                let of_vms = || protected::disagreement(trees, part);
                trees.disagreement(part).or_else(devices).or_else(of_vms)
            })
        });
        let number = found.map_or(0, |frame| frame.base() / PAGE + 1);
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Whether `frame` is a VM's table, in use as it stands.
    pub(crate) fn is_table(&self, frame: Frame) -> bool {
        let state = shootdown::lock(&self.state).frames.state(frame);
        matches!(state, Some(FrameState::Table { .. } | FrameState::Fresh { .. }))
    }

    /// Performs the host's store to a VM's table. `None` if it cannot be performed as long as the
    /// table is in use; `Again` if the instruction must be executed again for that: much of a
    /// protected VM's memory is to be sealed first.
    pub(crate) fn store(
        &self,
        address: u64,
        bytes: u8,
        mut change: impl FnMut(u64) -> u64,
    ) -> Option<Progress> {
        self.with_vms(|direct, vms| {
            if any_protected()
                && protected::release_first(vms, (address, bytes), &mut change)? == Progress::Again
            {
                return Some(Progress::Again);
            }
            let level = vms.write(address, bytes, change);
            let level = level.inspect_err(|why| log::debug!("a store was not to be: {why}"));
            if level.ok()? == Level::Pml4 {
                direct.release_empty(vms, address);
            }
            Some(Progress::Done)
        })
    }

    /// Whether `frame` is RAM that the host may use for anything.
    pub(crate) fn is_plain(&self, frame: Frame) -> bool {
        matches!(shootdown::lock(&self.state).frames.state(frame), Some(FrameState::Plain { .. }))
    }

    /// What the host itself may do with `span`.
    pub(crate) fn permitted(&self, span: Span) -> Permission {
        let state = shootdown::lock(&self.state);
        let level = match span.len() {
            PAGE => Level::Pt,
            LARGE => Level::Pd,
            _ => Level::Pdpt,
        };
        if self.denied.iter().any(|denied| denied.overlaps(span)) {
            return if level == Level::Pt { Permission::None } else { Permission::Mixed };
        }
        match (state.frames.open(span, level), level) {
            (true, _) => Permission::All,
            (false, Level::Pt) => match state.frames.state(Frame::containing(span.start())) {
                Some(FrameState::Fresh { .. } | FrameState::Table { .. }) => Permission::ReadOnly,
                _ => Permission::None,
            },
            _ => Permission::Mixed,
        }
    }

    /// The 8 bytes at `address`, if the host may read them.
    pub(crate) fn read_host(&self, address: u64) -> Option<u64> {
        // Nobody else may get the frame between the question and the read.
        let state = shootdown::lock(&self.state);
        let owner = state.frames.owner(Frame::containing(address));
        let is_hosts = owner == Some(Owner::Host) && address.is_multiple_of(8);
        is_hosts.then(|| memory::read_u64(address))
    }
}

/// Whether a processor runs a VM with the tables at `root`.
fn is_in_use(root: Frame) -> bool {
    let uses = |cpu: &PerCpu| cpu.root.load(Ordering::SeqCst) == root.base();
    Machine::running().each().any(uses)
}
