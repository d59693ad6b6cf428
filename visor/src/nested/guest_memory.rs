//! The memory of a protected VM, as its own tables and operands reach it.

use core::cell::Cell;

use emulate::walk;
use ept::addr::{GuestFrame, PAGE};
use ept::frames::Vm;
use ept::shadow::Access;
use membrane::processors::Processors;
use membrane::vm::{Fault, Filled};
use nested_vmx::guard;
use virtio::memory::{Missing, Unreached};

use super::carried;
use crate::cpu::register::Register;
use crate::cpu::{low, size};
use crate::machine::Machine;
use crate::memory;
use crate::shootdown;

/// What instructions of a protected VM reach that the visor does in its place.
pub(super) struct Space<'a> {
    pub(super) machine: &'a Machine,
    /// The VM, by number and launch.
    pub(super) vm: (Vm, u64),
    /// The host's EPT pointer for it.
    pub(super) pointer: u64,
    /// What its processor has read before.
    pub(super) reached: &'a Reached,
}

/// Where pages are that a processor of a VM has read: as in `host_memory::Known`, that holds until the next
/// call, since no page leaves its VM without one. An instruction reads several page tables, and the next one
/// mostly the same.
#[derive(Debug)]
pub(super) struct Reached {
    /// When that was found out.
    calls: Cell<u64>,
    /// Guest-physical and host-physical addresses of pages, by the low bits of their numbers.
    pages: [Cell<(u64, u64)>; 8],
}

impl Reached {
    /// No page has this address.
    const NONE: (u64, u64) = (1, 0);

    pub(super) const fn new() -> Self {
        Self { calls: Cell::new(0), pages: [const { Cell::new(Self::NONE) }; 8] }
    }

    /// The place for the page at `page`, if it was found out at the current count of calls, or by `find`.
    fn page(&self, page: u64, find: impl FnOnce() -> Option<u64>) -> Option<u64> {
        let calls = shootdown::calls();
        if self.calls.replace(calls) != calls {
            self.pages.iter().for_each(|place| place.set(Self::NONE));
        }
        let place = self.pages.get(size(page / PAGE % 8))?;
        let (known, physical) = place.get();
        if known == page {
            return Some(physical);
        }
        let physical = find()?;
        // While this processor waited for the lock it may have been called.
        if shootdown::calls() == calls {
            place.set((page, physical));
        }
        Some(physical)
    }
}

impl Space<'_> {
    /// Does something with what is in one page from `address` on; `None` if the VM may not access it so.
    fn with<T>(&self, address: u64, access: Access, work: impl FnOnce(u64) -> T) -> Option<T> {
        self.machine.tables.with_guest(self.vm, (address, access), work)
    }

    fn unreached(&self, address: u64, access: Access) -> Unreached {
        if guard::Space::is_device(self, address) {
            Unreached::Nowhere(address)
        } else {
            Unreached::Missing(Missing { address, access })
        }
    }
}

/// Bytes from `address` to the end of its page, `left` at most.
fn in_page(address: u64, left: usize) -> usize {
    left.min(size(PAGE - address % PAGE))
}

fn after(address: u64, count: usize) -> u64 {
    address.wrapping_add(u64::try_from(count).unwrap_or(0))
}

impl walk::Memory for Space<'_> {
    fn read(&self, address: u64) -> Option<u64> {
        let (page, offset) = (address & !(PAGE - 1), address % PAGE);
        let find = || self.with(page, Access::READ, |physical| physical);
        let physical = self.reached.page(page, find).filter(|_| offset.is_multiple_of(8))?;
        Some(memory::read_u64(physical | offset))
    }

    fn compare_exchange(&self, address: u64, old: u64, new: u64) -> Option<bool> {
        let exchange = |physical| memory::compare_exchange(physical, old, new) == old;
        address.is_multiple_of(8).then(|| self.with(address, Access::WRITE, exchange))?
    }
}

impl virtio::memory::Memory for Space<'_> {
    fn read(&self, mut address: u64, mut into: &mut [u8]) -> Result<(), Unreached> {
        while !into.is_empty() {
            let (piece, rest) = into.split_at_mut(in_page(address, into.len()));
            let next = after(address, piece.len());
            self.with(address, Access::READ, |physical| memory::read_bytes(physical, piece))
                .ok_or_else(|| self.unreached(address, Access::READ))?;
            (address, into) = (next, rest);
        }
        Ok(())
    }

    fn write(&self, mut address: u64, mut bytes: &[u8]) -> Result<(), Unreached> {
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(in_page(address, bytes.len()));
            self.with(address, Access::WRITE, |physical| memory::write_bytes(physical, piece))
                .ok_or_else(|| self.unreached(address, Access::WRITE))?;
            (address, bytes) = (after(address, piece.len()), rest);
        }
        Ok(())
    }

    fn forget(&self, pages: &[[u8; 4]]) {
        let pages = pages.iter().map(|number| u64::from(u32::from_le_bytes(*number)) * PAGE);
        self.machine.tables.forget(self.vm, pages.map(GuestFrame::containing));
    }
}

impl guard::Space for Space<'_> {
    fn is_device(&self, address: u64) -> bool {
        self.machine.tables.is_device(self.vm, address)
    }

    /// As long as the processor has the VM's registers.
    fn pkru(&self) -> u32 {
        if Register::Pkru.exists() { low(Register::Pkru.read()) } else { 0 }
    }

    fn physical_bits(&self) -> u32 {
        self.machine.width.into()
    }

    fn name(&self, vector: u8, told: u32) -> u8 {
        let name = |processors: &mut Processors| processors.name(vector, told);
        // A VM that does not run asks for nothing.
        self.machine.tables.with_processors(self.vm, name).flatten().unwrap_or(u8::MAX)
    }

    fn restarts(&self, id: u8, vector: u8) -> bool {
        let restart = |processors: &mut Processors| processors.restart(id, vector);
        self.machine.tables.with_processors(self.vm, restart).unwrap_or(false)
    }

    fn stored(&self, (address, bytes): (u64, u8), value: u64) -> Result<u64, (u64, Access)> {
        carried::stored(self, (address, bytes), value)
    }

    fn loaded(&self, (address, bytes): (u64, u8), value: u64) -> u64 {
        carried::loaded(self, (address, bytes), value)
    }

    fn kick(&self) -> Option<(u64, u64)> {
        carried::kick(self)
    }

    fn open(&self, address: u64, word: u8) -> Result<u64, (u64, Access)> {
        let fault = Fault { at: address, access: Access::READ, word };
        match self.machine.tables.fill(self.vm, self.pointer, fault) {
            Filled::Device { window, .. } => Ok(window.base()),
            Filled::Absent(page) | Filled::Denied { at: page, .. } => {
                Err((page.base(), Access::READ.or(Access::WRITE)))
            }
            // The VM stops, or has stopped.
            Filled::Mapped | Filled::Unloaded | Filled::Stopped(_) => Err((address, Access::READ)),
        }
    }

    fn deliver(&self) -> Result<(), (u64, Access)> {
        carried::deliver(self)
    }
}
