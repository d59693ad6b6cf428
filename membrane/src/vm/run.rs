//! Several pages at once, at the first touch of one.

use ept::addr::{Frame, GuestFrame, LARGE, PAGE, Span};
use ept::direct::Machine;
use ept::entry::Level;
use ept::ept01::{Exhausted, Flushed, TableMem};
use ept::frames;
use ept::list::List;

use super::{Cause, Vm};
use crate::Hardware;
use crate::walk::Found;

/// Bytes of an aligned block of pages that come at once. To zero so much takes about as long as to seal
/// what leaves at once.
const RUN: u64 = LARGE;
/// Most pages that come at once if they have to be compared with the manifest, which takes longer.
const COMPARED: usize = 8;
const COMPARED_BYTES: u64 = 8 * PAGE;

impl Vm {
    /// Gives the VM `page` with those around it in the host's large leaf that `found` is of, by one call of
    /// all processors: as many as it has never touched and its manifest does not have, so that they are all
    /// zeros, whatever the host has there. False: none of them.
    pub(super) fn fill_run<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        number: frames::Vm,
        page: GuestFrame,
        found: &Found,
    ) -> Result<bool, Cause> {
        let Some(run) = self.run(machine.hardware, page, found) else {
            return self.fill_known(machine, number, page, found);
        };
        let (first, frames) = run;
        let memory = |Exhausted| Cause::Memory;
        if frames.len() == LARGE {
            let gap = self.tables.clear(machine.hardware, page).map_err(memory)?;
            let Some(flushed) = self.take_run(machine, number, run) else {
                self.tables.restore(machine.hardware, gap);
                return Ok(false);
            };
            let leaf = (Frame::containing(frames.start()), found.rights);
            self.tables.fill(machine.hardware, gap, leaf, &flushed);
            return Ok(true);
        }
        let place = self.tables.reserve(machine.hardware, page, Level::Pt).map_err(memory)?;
        let taken = self.take_run(machine, number, run).is_some();
        for (frame, at) in pages(frames).zip(first.number()..).filter(|_| taken) {
            let place = place.beside(GuestFrame::containing(at * PAGE));
            self.tables.map(machine.hardware, place, frame, found.rights);
        }
        Ok(taken)
    }

    /// The same for a `page` that the manifest has, and those after it that it has too. What is not as the
    /// ticket says, of another page than this one, stays as the host left it: perhaps it is not done yet.
    fn fill_known<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        number: frames::Vm,
        page: GuestFrame,
        found: &Found,
    ) -> Result<bool, Cause> {
        let Some((first, frames)) = self.known(machine.hardware, page, found) else {
            return Ok(false);
        };
        let place = self.tables.reserve(machine.hardware, page, Level::Pt);
        let place = place.map_err(|Exhausted| Cause::Memory)?;
        if machine.take_all(frames, number, first).is_err() {
            return Ok(false);
        }
        let mut back = List::<_, COMPARED>::new(Frame::containing(0));
        let mut result = Ok(true);
        for (frame, at) in pages(frames).zip(first.number()..) {
            let at = GuestFrame::containing(at * PAGE);
            if let Err(cause) = self.admit_fresh(machine.hardware, at, frame) {
                if at == page {
                    machine.hardware.with_page(frame, |bytes| bytes.fill(0));
                    result = Err(cause);
                }
                // There is room for all.
                let _ = back.push(frame);
                continue;
            }
            self.resident += 1;
            self.tables.map(machine.hardware, place.beside(at), frame, found.rights);
        }
        // They were taken just now.
        let _ = machine.release(&back);
        result
    }

    /// Makes `frames` the VM's, as its pages from `first` on, zeroed; `None`: none of them.
    fn take_run<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        number: frames::Vm,
        (first, frames): (GuestFrame, Span),
    ) -> Option<Flushed> {
        let flushed = machine.take_all(frames, number, first).ok()?;
        for frame in pages(frames) {
            machine.hardware.with_page(frame, |bytes| bytes.fill(0));
        }
        self.resident += frames.len() / PAGE;
        Some(flushed)
    }

    /// The first of the fresh pages around `page`, and the frames of all, if it is one.
    fn run(
        &self,
        mem: &impl TableMem,
        page: GuestFrame,
        found: &Found,
    ) -> Option<(GuestFrame, Span)> {
        let range = self.map.range(page).filter(|_| found.level != Level::Pt)?;
        let block = page.base() - page.base() % RUN;
        let (start, end) = (block.max(range.start), (block + RUN).min(range.end()));
        let run = [start, page.base()].into_iter().map(|from| {
            let known = self.manifest.next(mem, from / PAGE..end / PAGE);
            let known = known.map_or(end, |(number, _)| number * PAGE);
            (from, self.untouched(mem, from, known))
        });
        let (from, end) = run.into_iter().find(|(_, end)| *end > page.base())?;
        let before = found.frame.base().checked_sub(page.base() - from)?;
        Some((GuestFrame::containing(from), Span::sized(before, end - from)?))
    }

    /// The same for `page` and those after it that the VM has never had, if the manifest has it.
    fn known(
        &self,
        mem: &impl TableMem,
        page: GuestFrame,
        found: &Found,
    ) -> Option<(GuestFrame, Span)> {
        let range = self.map.range(page).filter(|_| found.level != Level::Pt)?;
        let from = page.base();
        let most = COMPARED_BYTES.min(RUN - from % RUN).min(range.end() - from);
        let end = self.untouched(mem, from, from + most);
        Some((page, Span::sized(found.frame.base(), end - from)?)).filter(|_| end != from)
    }

    /// Up to which page from `from` on, at most to `end`, the VM has had none.
    fn untouched(&self, mem: &impl TableMem, from: u64, end: u64) -> u64 {
        let past = self.pasts.next(mem, from / PAGE..end / PAGE);
        let held = self.tables.next(mem, GuestFrame::containing(from), end);
        let past = past.map_or(end, |(number, _)| number * PAGE);
        held.map_or(past, |(page, _)| page.base().min(past))
    }
}

fn pages(frames: Span) -> impl Iterator<Item = Frame> {
    (frames.start()..frames.end()).step_by(4096).map(Frame::containing)
}
