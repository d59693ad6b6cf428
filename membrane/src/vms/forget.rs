//! Pages that VMs have given up, as one does whose host asks for memory by a balloon.

use ept::addr::GuestFrame;
use ept::direct::Machine;
use ept::frames;
use ticket::Class;

use super::Vms;
use crate::Hardware;
use crate::vm::{Cause, Fate};

impl Vms {
    /// The VM of this launch has no use any more for what is in these pages, by its own word: the host gets
    /// their frames, zeroed, and each begins anew, with zeros, when the VM touches it again. What is
    /// not private memory of a VM that runs stays as it is.
    ///
    /// # Errors
    /// Why the VM has to be stopped.
    pub fn forget<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        (number, launch): (frames::Vm, u64),
        pages: impl Iterator<Item = GuestFrame> + Clone,
    ) -> Result<(), Cause> {
        let Some(vm) = self.running(number, launch) else { return Ok(()) };
        let map = vm.map.clone();
        let pages = pages.filter(|page| map.class(*page) == Some(Class::Private));
        for page in pages.clone() {
            let frame = self.vm(number).and_then(|vm| vm.tables.frame(machine.hardware, page));
            if frame.is_some_and(|frame| !self.held.add(frame)) {
                self.held.give_back_as(machine, &mut self.audit, Fate::GivenUp);
                let _ = frame.map(|frame| self.held.add(frame));
            }
        }
        self.held.give_back_as(machine, &mut self.audit, Fate::GivenUp);
        let vm = self.held.vm_mut(number).ok_or(Cause::Destroyed)?;
        pages.into_iter().try_for_each(|page| vm.forget(machine.hardware, page))
    }
}
