//! The memory of a protected VM, as its own tables and operands reach it.

use emulate::walk;
use ept::frames::Vm;
use ept::shadow::Access;
use membrane::processors::Processors;
use nested_vmx::guard;

use crate::cpu::low;
use crate::cpu::register::Register;
use crate::machine::Machine;
use crate::memory;

/// What instructions of a protected VM reach that the visor does in its place.
pub(super) struct Space<'a> {
    pub(super) machine: &'a Machine,
    /// The VM, by number and launch.
    pub(super) vm: (Vm, u64),
}

impl walk::Memory for Space<'_> {
    fn read(&self, address: u64) -> Option<u64> {
        let place = (address, Access::READ);
        self.machine.tables.with_guest(self.vm, place, memory::read_u64)
    }

    fn compare_exchange(&self, address: u64, old: u64, new: u64) -> Option<bool> {
        let exchange = |physical| memory::compare_exchange(physical, old, new) == old;
        self.machine.tables.with_guest(self.vm, (address, Access::WRITE), exchange)
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
}
