//! VMs that their hosts start anew.

use ept::direct::Machine;
use ept::frames;
use ticket::audit::Kind;

use super::{PIECE, Vms};
use crate::held::Which;
use crate::vm::{Cause, Vm};
use crate::{Hardware, Progress};

/// What becomes of a VM that its host starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Restart {
    /// It runs again: this launch.
    Launched(u64),
    /// A piece is done. It has to be asked for again.
    Again,
    /// It does not run.
    Refused,
}

impl Vms {
    /// As [`Vms::stop`], and every processor leaves the VM, and views of its pages are gone: what the host
    /// stores from now on is in its own memory.
    pub fn close<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        number: frames::Vm,
        cause: Cause,
    ) {
        self.stop(number, cause, machine.hardware.cpu());
        let _ = self.held.hide(machine, number).flush(machine.hardware);
    }

    /// Takes all pages of a VM that was stopped: they are zeroed and the host's. `None`: a piece of that;
    /// else the VM, if it exists.
    pub(super) fn vacate<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        number: frames::Vm,
    ) -> Option<Option<&mut Vm>> {
        let from = self.held.vm(number).map(|vm| vm.swept);
        let rest = from.and_then(|from| self.held.add_of(machine, number, from, Which::All));
        self.held.give_back(machine, &mut self.audit);
        // It may have no page any more, but processors still remember its tables.
        let _ = machine.ept.stale().flush(machine.hardware);
        let mut vm = self.held.vm_mut(number);
        if let (Some(page), Some(vm)) = (rest, &mut vm) {
            vm.swept = page;
            return None;
        }
        Some(vm)
    }

    /// The host starts the VM of this launch anew, which must have shut down by itself or by this: nothing
    /// is left of what it was, and it runs from its manifest on, if its ticket permits one launch more.
    /// `random` are bytes that were never used before.
    ///
    /// One that runs is stopped, and the host has to ask again. It has loaded the VM's memory before it
    /// has reset its processors, and so far has not reached that memory.
    pub fn restart<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        (number, launch): (frames::Vm, u64),
        random: &[u8; 32],
    ) -> Restart {
        if self.running(number, launch).is_some() {
            self.close(machine, number, Cause::Restarted);
            return Restart::Refused;
        }
        let stopped = self.vm(number).filter(|vm| vm.launch == launch && vm.is_stopped());
        if stopped.is_none_or(|vm| !vm.may_run()) {
            return Restart::Refused;
        }
        let next = self.launches + 1;
        let Some(vm) = self.vacate(machine, number) else { return Restart::Again };
        let Some(vm) = vm else { return Restart::Refused };
        let mut budget = PIECE;
        if vm.pasts.clear(machine.hardware, &mut budget) == Progress::Again {
            return Restart::Again;
        }
        vm.renew(next, random);
        self.launches = next;
        self.record(machine.hardware.cpu(), Kind::Launched, number);
        Restart::Launched(next)
    }
}
