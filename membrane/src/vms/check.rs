//! Looks for tables of VMs that say something else than the frame table. Nothing should be found, ever.

use ept::addr::{Frame, GUEST_END, GuestFrame, PAGE, Span};
use ept::direct::Machine;
use ept::frames::{self, State};
use ept::shadow::Access;

use super::Vms;
use crate::Hardware;

impl Vms {
    /// A frame of `span` that is private and that its VM does not have, or may write to though the host
    /// sees a view of it; or that a VM has and should not.
    #[must_use]
    pub fn disagreement<H: Hardware>(
        &self,
        machine: &Machine<'_, '_, H>,
        span: Span,
    ) -> Option<Frame> {
        let span = span.shrink_to(PAGE);
        let mut frames = (span.start()..span.end()).step_by(4096).map(Frame::containing);
        let is_lost = |frame: &Frame| {
            let Some(State::Private { vm, page, view }) = machine.frames.state(*frame) else {
                return false;
            };
            self.vm(vm).is_none_or(|vm| {
                let rights = vm.tables.rights(machine.hardware, page);
                vm.tables.frame(machine.hardware, page) != Some(*frame)
                    || view.is_some() && rights.allows(Access::WRITE)
            })
        };
        let mut all = (0..frames::Vm::MAX).filter_map(frames::Vm::new);
        frames.find(is_lost).or_else(|| all.find_map(|number| self.foreign(machine, number, span)))
    }

    /// A frame of `span` that a VM has and should not.
    fn foreign<H: Hardware>(
        &self,
        machine: &Machine<'_, '_, H>,
        number: frames::Vm,
        span: Span,
    ) -> Option<Frame> {
        let tables = &self.vm(number)?.tables;
        let mut next = tables.next(machine.hardware, GuestFrame::containing(0), GUEST_END);
        while let Some((page, frame)) = next {
            let is_its = match machine.frames.state(frame) {
                Some(State::Private { vm, page: at, .. }) => (vm, at) == (number, page),
                Some(State::Plain { maps }) => maps != 0,
                Some(
                    State::Visor
                    | State::Fresh { .. }
                    | State::Table { .. }
                    | State::Leaving { .. },
                )
                | None => false,
            };
            if span.contains(frame.base()) && !is_its {
                return Some(frame);
            }
            let after = GuestFrame::at(page.base() + PAGE);
            next = after.and_then(|from| tables.next(machine.hardware, from, GUEST_END));
        }
        None
    }
}
