//! Protected VMs, under the lock of the tables that decide whose frame is whose.

use core::sync::atomic::{AtomicU32, Ordering};

use ept::addr::{Frame, GuestFrame, Span};
use ept::direct::Store;
use ept::frames::{Guard, State as FrameState, Vm};
use ept::shadow::Access;
use membrane::audit::Entry;
use membrane::map::Transport;
use membrane::processors::Processors;
use membrane::vm::{Cause, Fault, Filled};
use membrane::vms::{Restart, Vms};
use membrane::{Pages, Progress};
use spin::Mutex;
use ticket::Disk;
use ticket::audit::Kind;

use super::{HostTables, Trees, is_in_use};
use crate::iommu;
use crate::memory::{POOL, Pool};
use crate::random;
use crate::shootdown;
use crate::vectors;

/// Cause of a stop: the host's tables cannot be watched.
const TABLES: u16 = 0xd;

/// Protected VMs that were launched so far.
static RUNNING: AtomicU32 = AtomicU32::new(0);
/// Tickets that wait for their VM.
static WAITING: AtomicU32 = AtomicU32::new(0);

/// Whether a ticket waits for its VM.
pub(crate) fn tickets_wait() -> bool {
    WAITING.load(Ordering::Relaxed) != 0
}

/// Whether there was a protected VM since the visor runs.
pub(crate) fn any_protected() -> bool {
    RUNNING.load(Ordering::Relaxed) != 0
}

/// The protected VMs. Only touched while the lock of [`HostTables`] is held.
static PROTECTED: Mutex<Vms> = Mutex::new(Vms::new());

impl HostTables {
    /// Does something with the protected VMs, which may seal and hash.
    pub(crate) fn with_protected<T>(
        &self,
        work: impl FnOnce(&mut Vms, &mut Trees<'_, '_>) -> T,
    ) -> T {
        vectors::with(|| {
            self.with_vms(|_, trees| {
                let vms = &mut PROTECTED.lock();
                iommu::poll(&mut vms.audit, trees.hardware.cpu());
                work(vms, trees)
            })
        })
    }

    /// The VM that takes the oldest ticket that waits, by number and launch, with the first state that the
    /// ticket asks for. `None` if `root` is not a new VM's, or no ticket waits.
    pub(crate) fn launch(&self, root: Frame) -> Option<((Vm, u64), ticket::State)> {
        if self.with_vms(|direct, trees| direct.is_loaded(trees, root)) {
            return None;
        }
        self.with_protected(|vms, trees| {
            let number = vms.launch(trees.hardware.cpu())?;
            let vm = vms.vm(number)?;
            let _ = RUNNING.fetch_add(1, Ordering::Relaxed);
            note_waiting(vms);
            Some(((number, vm.launch()), vm.state()))
        })
    }

    /// The EPT pointer of the VM with this number and launch, if it may run.
    pub(crate) fn ept_of(&self, (number, launch): (Vm, u64)) -> Option<u64> {
        let _lock = shootdown::lock(&self.state);
        PROTECTED.lock().pointer_if_running(number, launch)
    }

    /// Whether this launch of the VM will not run again, nor be followed by another one.
    pub(crate) fn is_over(&self, (number, launch): (Vm, u64)) -> bool {
        let _lock = shootdown::lock(&self.state);
        PROTECTED.lock().is_over(number, launch)
    }

    /// Does something with a VM, if it runs, and the tables that it has.
    fn with_running<T>(
        &self,
        (number, launch): (Vm, u64),
        work: impl FnOnce(&membrane::vm::Vm, &Pool) -> T,
    ) -> Option<T> {
        let _lock = shootdown::lock(&self.state);
        let pool = POOL.lock();
        let vms = PROTECTED.lock();
        vms.running(number, launch).map(|vm| work(vm, &pool))
    }

    /// Whether the VM has a device at this guest-physical address; one that does not run has nothing else.
    pub(crate) fn is_device(&self, vm: (Vm, u64), address: u64) -> bool {
        self.with_running(vm, |vm, _| vm.is_device(address)).unwrap_or(true)
    }

    /// The virtio device of the VM's that has its registers at this guest-physical address.
    pub(crate) fn transport(&self, vm: (Vm, u64), address: u64) -> Option<Transport> {
        self.with_running(vm, |vm, _| vm.transport(address))?
    }

    /// Does something with what the ticket of a VM says of a virtio device, if that is a sealed disk.
    pub(crate) fn with_disk<T>(
        &self,
        vm: (Vm, u64),
        transport: usize,
        work: impl FnOnce(&Disk) -> T,
    ) -> Option<T> {
        let transport = u32::try_from(transport).ok()?;
        self.with_running(vm, |vm, pool| vm.disk(pool, transport).as_ref().map(work))?
    }

    /// Notes that a sealed disk of the VM's is not what it should be.
    pub(crate) fn disk_refused(&self, vm: Vm, (a, b): (u64, u64)) {
        self.with_protected(|vms, trees| {
            let cpu = trees.hardware.cpu();
            vms.audit.push(cpu, Entry { kind: Kind::Disk, vm: Some(vm), a, b });
        });
    }

    /// Does something with what is in the page from a guest-physical address of the VM's on, which `work` is
    /// given the host-physical one of. `None` if the VM may not access it so.
    pub(crate) fn with_guest<T>(
        &self,
        vm: (Vm, u64),
        (address, access): (u64, Access),
        work: impl FnOnce(u64) -> T,
    ) -> Option<T> {
        // Nobody else may get the frame meanwhile.
        self.with_running(vm, |vm, pool| vm.reach(pool, address, access).map(work))?
    }

    /// Does something with the processors of a VM, if it runs.
    pub(crate) fn with_processors<T>(
        &self,
        (number, launch): (Vm, u64),
        work: impl FnOnce(&mut Processors) -> T,
    ) -> Option<T> {
        let _lock = shootdown::lock(&self.state);
        PROTECTED.lock().processors(number, launch).map(work)
    }

    /// The VM that has one more processor by this: with the tables at `root`, beginning with this vector.
    pub(crate) fn begin_processor(&self, root: Frame, vector: u8) -> Option<(Vm, u64)> {
        let _lock = shootdown::lock(&self.state);
        PROTECTED.lock().begin_processor(root, vector)
    }

    /// The host starts the VM anew. Like [`launch`](Self::launch), once it is done.
    pub(crate) fn restart(&self, vm: (Vm, u64)) -> (Restart, Option<ticket::State>) {
        let random = random::bytes32();
        self.with_protected(|vms, trees| {
            let restart = random.map_or(Restart::Refused, |bytes| vms.restart(trees, vm, &bytes));
            (restart, vms.vm(vm.0).map(membrane::vm::Vm::state))
        })
    }

    /// One more vCPU.
    pub(crate) fn vcpu_added(&self, number: Vm) {
        self.with_protected(|vms, trees| vms.vcpu_added(number, trees.hardware.cpu()));
    }

    /// Stops a VM for good.
    pub(crate) fn stop_vm(&self, (number, launch): (Vm, u64), cause: Cause) {
        log::warn!("protected VM {} is stopped, cause {}", number.number(), cause.number());
        self.with_protected(|vms, trees| {
            if vms.vm(number).is_some_and(|vm| vm.launch() == launch) {
                vms.close(trees, number, cause);
            }
        });
    }

    /// Whether protected VMs may have more of the visor's memory.
    pub(crate) fn may_spend(&self) -> bool {
        shootdown::lock(&POOL).may_spend()
    }

    /// Lets a VM have the page that it has touched, by what the host's tables at `eptp` say.
    pub(crate) fn fill(&self, (number, launch): (Vm, u64), eptp: u64, fault: Fault) -> Filled {
        loop {
            let filled = self.with_protected(|vms, trees| {
                match vms.vm(number).filter(|vm| vm.launch() == launch) {
                    Some(_) => vms.fill(trees, number, eptp, fault),
                    None => Filled::Stopped(Cause::Destroyed),
                }
            });
            if let Filled::Stopped(_) = filled {
                self.with_vms(|_, trees| leave(trees));
                return filled;
            }
            if !self.may_spend() {
                self.stop_vm((number, launch), Cause::Memory);
                return Filled::Stopped(Cause::Memory);
            }
            match filled {
                Filled::Unloaded if self.guard(number, eptp) => {}
                Filled::Unloaded => {
                    self.stop_vm((number, launch), Cause::Processor(TABLES));
                    return filled;
                }
                Filled::Mapped
                | Filled::Absent(_)
                | Filled::Denied { .. }
                | Filled::Device { .. }
                | Filled::Stopped(_) => return filled,
            }
        }
    }

    /// Has the host's stores to a protected VM's tables come to the visor from now on; `false` if they
    /// cannot be used so.
    fn guard(&self, number: Vm, eptp: u64) -> bool {
        let root = Frame::containing(eptp);
        let is_loaded = self.with_vms(|direct, trees| {
            if direct.is_loaded(trees, root) && !trees.is_guarded(root) {
                direct.release(trees, root);
            }
            let loaded = direct.load(trees, root, Guard::Guarded, is_in_use);
            loaded.inspect_err(|why| log::warn!("a protected VM's tables: {why}")).is_ok()
        });
        if is_loaded {
            // What the host has stored before nobody has seen.
            self.with_protected(|vms, trees| vms.unwatched(trees, number));
        }
        is_loaded
    }

    /// Counts again how many tickets wait.
    pub(crate) fn count_tickets(&self) {
        self.with_protected(|vms, _| note_waiting(vms));
    }

    /// Shows the host that was stopped at `frame` what it may see of it, if it is a protected VM's.
    pub(crate) fn show(&self, frame: Frame) -> bool {
        self.is_private(frame) && self.with_protected(|vms, trees| vms.touched(trees, frame))
    }

    /// A VM has given up what is in these pages.
    pub(crate) fn forget(&self, vm: (Vm, u64), pages: impl Iterator<Item = GuestFrame> + Clone) {
        if let Err(cause) = self.with_protected(|vms, trees| vms.forget(trees, vm, pages)) {
            self.stop_vm(vm, cause);
        }
    }

    /// Gives `frame` to the host, sealed, if it is a protected VM's: another VM wants it.
    pub(crate) fn give_back(&self, frame: Frame) -> bool {
        self.is_private(frame) && self.with_protected(|vms, trees| vms.give_up(trees, frame))
    }

    fn is_private(&self, frame: Frame) -> bool {
        let state = shootdown::lock(&self.state).frames.state(frame);
        matches!(state, Some(FrameState::Private { .. }))
    }
}

/// Has protected VMs give up what the host's store is about to unmap; `None` if there can be no such
/// store.
#[cold]
#[inline(never)]
pub(super) fn release_first(
    trees: &mut Trees<'_, '_>,
    (address, bytes): (u64, u8),
    change: &mut dyn FnMut(u64) -> u64,
) -> Option<Progress> {
    let Some(store) = trees.before_write(address, bytes, change).ok()? else {
        return Some(Progress::Done);
    };
    let Store { table, index, new, .. } = store;
    Some(vectors::with(|| PROTECTED.lock().release_before(trees, table, index, new)))
}

/// Has every processor leave its VM, and ask anew what it may run: one was stopped.
fn leave(trees: &mut Trees<'_, '_>) {
    let _ = trees.ept.stale().flush(trees.hardware);
}

/// Seals whatever protected VMs have, as much as is done at once.
pub(super) fn seal_all(trees: &mut Trees<'_, '_>) -> Progress {
    vectors::with(|| PROTECTED.lock().seal_all(trees))
}

/// As [`Vms::disagreement`].
pub(super) fn disagreement(trees: &Trees<'_, '_>, part: Span) -> Option<Frame> {
    PROTECTED.lock().disagreement(trees, part)
}

/// Notes how many tickets wait.
fn note_waiting(vms: &Vms) {
    WAITING.store(u32::try_from(vms.waiting()).unwrap_or(u32::MAX), Ordering::Relaxed);
}
