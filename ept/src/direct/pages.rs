//! Pages of RAM between the host and protected VMs.

use super::trees::{Machine, page};
use super::{Hardware, HostMemory, Operand, Refused};
use crate::addr::{Frame, GuestFrame, Span};
use crate::entry::Level;
use crate::ept01::{Flushed, Stale};
use crate::frames::{Event, Guard, State, View, Vm};

/// A store that is about to happen to an entry of a guarded table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// The table.
    pub table: Frame,
    /// Its level.
    pub level: Level,
    /// Index of the entry, below 512.
    pub index: usize,
    /// What the entry is.
    pub old: u64,
    /// What it would be.
    pub new: u64,
}

impl<H: HostMemory> Machine<'_, '_, H> {
    /// What [`Machine::write`] with the same arguments would store now; `None` if not to a guarded
    /// table. That holds as long as nothing is stored to the table, by the visor or a device.
    ///
    /// # Errors
    /// [`Refused::Operand`]: so would it be.
    pub fn before_write(
        &self,
        address: u64,
        bytes: u8,
        change: impl FnOnce(u64) -> u64,
    ) -> Result<Option<Store>, Refused> {
        let place = Operand::at(address, bytes)?;
        let (table, index) = (place.table, place.index);
        let Some(State::Table { level, guard: Guard::Guarded, .. }) = self.frames.state(table)
        else {
            return Ok(None);
        };
        let old = self.hardware.entry(table, index);
        let new = place.set(old, change(place.of(old)));
        Ok(Some(Store { table, level, index, old, new }))
    }
}

impl<H: Hardware> Machine<'_, '_, H> {
    /// Makes `frame` private memory of `vm`, as its page `at`. When this returns, neither the host nor
    /// any other VM can reach the frame. It still has the contents that the host gave it.
    ///
    /// # Errors
    /// [`Refused`] when the frame is not RAM that is the host's alone; it stays what it is.
    pub fn take(&mut self, frame: Frame, vm: Vm, at: GuestFrame) -> Result<(), Refused> {
        self.take_all(page(frame), vm, at).map(|_| ())
    }

    /// The same for all `frames`, with one flush of everything, of which this gives the receipt: they
    /// become the pages from `first` on.
    ///
    /// # Errors
    /// [`Refused`] when they are not whole frames of RAM that are the host's alone; all stay what they are.
    pub fn take_all(
        &mut self,
        frames: Span,
        vm: Vm,
        first: GuestFrame,
    ) -> Result<Flushed, Refused> {
        let _ = self.nameable(frames)?;
        let before = first.base().wrapping_sub(frames.start());
        let at = |frame: Frame| GuestFrame::containing(frame.base().wrapping_add(before));
        let taken = self.frames.apply_each(frames, |frame| Event::Take(vm, at(frame)));
        taken.map_err(Refused::Frame)?;
        // Also what processors remember of VMs that do not map it any more.
        let mut stale = self.ept.stale();
        self.revise(frames, &mut stale);
        let flushed = stale.flush(self.hardware);
        let completed = self.complete(frames, &flushed);
        if completed.is_err() {
            let _ = self.frames.apply(frames, Event::Release);
        }
        completed.map(|()| flushed)
    }

    /// Lets the host see `view` in the place of the private `frame`, which has none. The caller has
    /// seen to it that the view holds nothing that the host must not see, and is no other frame's.
    ///
    /// # Errors
    /// [`Refused`] when the frame is not private, or has a view; nothing has changed then.
    pub fn show(&mut self, frame: Frame, view: View) -> Result<(), Refused> {
        let _ = self.frames.change(frame, Event::View(Some(view))).map_err(Refused::Frame)?;
        let mut stale = Stale::default();
        self.revise(page(frame), &mut stale);
        // It was absent, so there is nothing to flush.
        let flushed = stale.flush(self.hardware);
        self.complete(page(frame), &flushed)
    }

    /// Takes back the view of `frame`, if it has one. Until the flush the host may still use it.
    pub fn hide(&mut self, frame: Frame) -> Stale {
        let mut stale = Stale::default();
        if self.frames.change(frame, Event::View(None)).is_ok() {
            self.revise(page(frame), &mut stale);
        }
        stale
    }

    /// Gives `frames` back to the host, all with one flush. The caller has seen to it that the VM
    /// has them no more, on no processor, and that they hold nothing that the host must not see.
    ///
    /// # Errors
    /// [`Refused`] names the first frame that was not private, or could not be completed; all others
    /// are the host's again.
    pub fn release(&mut self, frames: &[Frame]) -> Result<(), Refused> {
        let mut result = Ok(());
        let mut stale = Stale::default();
        for frame in frames {
            match self.frames.change(*frame, Event::Release) {
                Ok(_) => self.revise(page(*frame), &mut stale),
                Err(refusal) => result = result.and(Err(Refused::Frame(refusal))),
            }
        }
        let flushed = stale.flush(self.hardware);
        for frame in frames {
            result = result.and(self.complete(page(*frame), &flushed));
        }
        result
    }

    /// Counts that a protected VM shares `frame` with the host: that its EPT02 maps it, which is the
    /// host's plain memory and stays so.
    ///
    /// # Errors
    /// [`Refused`] when the frame is not RAM of the host's, or denied; nothing has changed then.
    pub fn share(&mut self, frame: Frame) -> Result<(), Refused> {
        let _ = self.permitted(frame, Level::Pt)?;
        let _ = self.frames.change(frame, Event::Map).map_err(Refused::Frame)?;
        Ok(())
    }

    /// Takes back a [`Machine::share`].
    ///
    /// # Errors
    /// [`Refused`] when there was none.
    pub fn unshare(&mut self, frame: Frame) -> Result<(), Refused> {
        let _ = self.frames.change(frame, Event::Unmap).map_err(Refused::Frame)?;
        Ok(())
    }
}
