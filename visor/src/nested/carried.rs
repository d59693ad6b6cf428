//! Virtio devices of protected VMs, between whose memory and the host's the visor carries data: one set
//! for each VM, locked before the tables.

use core::sync::atomic::{AtomicU64, Ordering};

use ept::frames::Vm;
use ept::shadow::Access;
use membrane::map::Transport;
use membrane::vm::Cause;
use spin::Mutex;
use ticket::{Class, MAX_TRANSPORTS, TRANSPORT_SHARED};
use virtio::device::{Device, LARGEST, SMALLEST};
use virtio::layout::Layout;
use virtio::memory::Missing;
use virtio::sealed::Sealed;

use super::disks;
use super::guest_memory::Space;
use crate::shootdown;
use crate::vectors;

/// Times that devices of a launch break and are said to: a VM can break its own at will.
const SAID: u8 = 4;
/// Faults of a sealed disk that are told in a launch.
const TOLD: u8 = 4;

/// A device, and the launch of the VM whose it is.
struct Carried {
    launch: u64,
    /// Where its registers are.
    registers: u64,
    /// How often it was said to be broken, and faults of its disk were told.
    said: u8,
    told: u8,
    device: &'static mut Device,
    /// Memory of a sealed disk that an earlier VM had.
    spare: Option<&'static mut Sealed>,
}

/// The devices of a VM. Later VMs with the same number use their memory again.
type Set = [Option<Carried>; MAX_TRANSPORTS];

static SETS: [Mutex<Set>; 64] = [const { Mutex::new([const { None }; MAX_TRANSPORTS]) }; 64];
/// A bit for each VM of which the host has requests, or is to be told of some.
static BUSY: AtomicU64 = AtomicU64::new(0);

fn bit(vm: Vm) -> u64 {
    1 << (vm.number() & 63)
}

/// Does something with the devices of the VM, and notes whether there is more to be done.
fn with_set<T>(space: &Space<'_>, work: impl FnOnce(&mut Set) -> T) -> Option<T> {
    let (vm, launch) = space.vm;
    let mut set = shootdown::lock(SETS.get(usize::from(vm.number()))?);
    if set.iter().flatten().any(|carried| carried.launch > launch) {
        // The VM was started anew meanwhile.
        return None;
    }
    let done = work(&mut set);
    let mut failures = set.iter_mut().flatten().filter_map(|carried| {
        let failure = carried.device.failure().filter(|_| carried.said < SAID)?;
        carried.said += 1;
        Some(failure)
    });
    let failure = failures.next();
    drop(failures);
    let fault = (0..).zip(&mut *set).find_map(|(transport, carried)| {
        let carried = carried.as_mut().filter(|carried| carried.told < TOLD)?;
        let fault = carried.device.sealed()?.fault()?;
        carried.told += 1;
        Some((transport, fault))
    });
    let mut own = set.iter().flatten().filter(|carried| carried.launch == launch);
    if own.any(|carried| carried.device.is_waiting()) {
        let _ = BUSY.fetch_or(bit(vm), Ordering::Relaxed);
    } else {
        let _ = BUSY.fetch_and(!bit(vm), Ordering::Relaxed);
    }
    drop(set);
    if let Some(failure) = failure {
        log::warn!("protected VM {}, virtio: {failure}", vm.number());
    }
    if let Some((transport, fault)) = fault {
        log::warn!("protected VM {}, {fault}", vm.number());
        space.machine.tables.disk_refused(vm, fault.words(transport));
    }
    Some(done)
}

/// The virtio device that has its registers at `address`.
fn transport(space: &Space<'_>, address: u64) -> Option<Transport> {
    space.machine.tables.transport(space.vm, address)
}

/// Does something with a device. `None` if the VM is over.
fn with<T>(
    space: &Space<'_>,
    transport: &Transport,
    work: impl FnOnce(&mut Device) -> T,
) -> Option<T> {
    with_set(space, |set| {
        let carried = device(set.get_mut(transport.number)?, space, transport);
        if carried.is_none() {
            space.machine.tables.stop_vm(space.vm, Cause::Memory);
        }
        carried.map(|carried| work(carried.device))
    })?
}

// No ticket has others.
const _: () = assert!(*TRANSPORT_SHARED.start() == SMALLEST && *TRANSPORT_SHARED.end() == LARGEST);

/// The device in `place`, made the one of this launch if it is not.
fn device<'s>(
    place: &'s mut Option<Carried>,
    space: &Space<'_>,
    transport: &Transport,
) -> Option<&'s mut Carried> {
    if place.is_none() {
        let [device] = disks::lend::<_, 1>(|place| place.write(Device::NONE))?;
        *place = Some(Carried { launch: 0, registers: 0, said: 0, told: 0, device, spare: None });
    }
    let (carried, launch) = (place.as_mut()?, space.vm.1);
    if carried.launch != launch {
        let Carried { device, spare, .. } = carried;
        let wanted = space.machine.tables.with_disk(space.vm, transport.number, disks::wanted);
        let wanted = if let Some(wanted) = wanted { Some(wanted?) } else { None };
        let over = device.seal(None).or(spare.take());
        match wanted {
            Some(wanted) => drop(device.seal(Some(disks::renew(over, wanted)?))),
            None => *spare = over,
        }
        let layout = if transport.class == Class::VirtioPci { Layout::Pci } else { Layout::Mmio };
        device.assign(transport.shared.start, transport.shared.length, layout)?;
        (carried.launch, carried.registers) = (launch, transport.registers);
        (carried.said, carried.told) = (0, 0);
    }
    Some(carried)
}

fn needed(missing: Missing) -> (u64, Access) {
    (missing.address, missing.access)
}

/// What the host sees stored at `place` when the VM stores `value`.
pub(super) fn stored(
    space: &Space<'_>,
    (address, bytes): (u64, u8),
    value: u64,
) -> Result<u64, (u64, Access)> {
    let Some(transport) = transport(space, address) else { return Ok(value) };
    // A sealed disk seals.
    let store =
        |device: &mut Device| vectors::with(|| device.store(transport.offset, bytes, value, space));
    with(space, &transport, store).unwrap_or(Ok(0)).map_err(needed)
}

/// What the VM loads from `place` when the host has answered `value`.
pub(super) fn loaded(space: &Space<'_>, (address, bytes): (u64, u8), value: u64) -> u64 {
    let Some(transport) = transport(space, address) else { return value };
    let load = |device: &mut Device| device.loaded(transport.offset, bytes, value);
    with(space, &transport, load).unwrap_or(0)
}

/// Brings the VM what the host has finished.
#[inline(always)]
pub(super) fn deliver(space: &Space<'_>) -> Result<(), (u64, Access)> {
    if BUSY.load(Ordering::Relaxed) & bit(space.vm.0) == 0 { Ok(()) } else { complete(space) }
}

#[cold]
#[inline(never)]
fn complete(space: &Space<'_>) -> Result<(), (u64, Access)> {
    let all = |set: &mut Set| {
        let mut own = set.iter_mut().flatten().filter(|carried| carried.launch == space.vm.1);
        vectors::with(|| own.try_for_each(|carried| carried.device.complete(space)))
    };
    with_set(space, all).unwrap_or(Ok(())).map_err(needed)
}

/// Where what has to be stored for the host to learn of requests that had waited.
#[inline(always)]
pub(super) fn kick(space: &Space<'_>) -> Option<(u64, u64)> {
    if BUSY.load(Ordering::Relaxed) & bit(space.vm.0) == 0 { None } else { owed(space) }
}

#[cold]
#[inline(never)]
fn owed(space: &Space<'_>) -> Option<(u64, u64)> {
    with_set(space, |set| {
        let mut own = set.iter_mut().flatten().filter(|carried| carried.launch == space.vm.1);
        own.find_map(|carried| {
            let (offset, queue) = carried.device.kick()?;
            Some((carried.registers + offset, queue))
        })
    })?
}
