//! All units of a machine and the domain that they share, as they follow the frame table together with
//! EPT01: one flush is for both.

use ept::addr::{Frame, HUGE, PAGE, Span};
use ept::entry::Level;
use ept::ept01::{self, Exhausted};
use ept::frames::FrameTable;

use crate::capabilities::Snoop;
use crate::error::{Cause, Error};
use crate::fault::{Fault, Faults, Looks};
use crate::policy::Policy;
use crate::registers::Registers;
use crate::tables::{Domain, Flushed, Stale};
use crate::unit::{Unit, flush, format};
use crate::{Memory, Mode};

/// What devices can reach, on a machine whose units are all started.
#[derive(Debug)]
pub struct Devices<'d, R> {
    units: &'d mut [Unit<R>],
    pub(crate) domain: Domain,
    denied: &'d [Span],
    /// What was revised since the last flush.
    stale: Stale,
    looks: Looks,
}

/// Bits of addresses below `end`, of 4 GiB at the least: devices are there.
fn bits(end: u64) -> u8 {
    let last = end.max(4 * HUGE) - 1;
    u8::try_from(u64::BITS - last.leading_zeros()).unwrap_or(u8::MAX)
}

/// There was no memory for a table, which all units have in common: the first stands for them.
fn exhausted<R>(units: &[Unit<R>]) -> Error {
    Error { unit: units.first().map_or(0, |unit| unit.base), cause: Cause::Exhausted }
}

impl<'d, R: Registers> Devices<'d, R> {
    /// Builds the domain by `frames`, without what is `denied` to devices, for addresses of `width` bits
    /// and RAM below `ram_end`; and starts the `units` with it. Without leaves of all sizes they
    /// translate no more than RAM and what is below 4 GiB.
    ///
    /// # Errors
    /// [`Error`] of the first unit that cannot be started. Those before it are.
    pub fn start(
        units: &'d mut [Unit<R>],
        mem: &mut impl Memory,
        (frames, denied): (&FrameTable<'_>, &'d [Span]),
        (width, ram_end): (u8, u64),
    ) -> Result<Self, Error> {
        let mut capabilities = units.iter().map(Unit::capabilities);
        let huge = capabilities.all(|unit| unit.large() && unit.huge());
        let width = if huge { width } else { width.min(bits(ram_end)) };
        let format = format(units, width, ram_end)?;
        let domain = Domain::build(mem, &Policy { frames, denied }, format);
        let domain = domain.map_err(|Exhausted| exhausted(units))?;
        for unit in units.iter_mut() {
            unit.start(mem, &domain, None, Mode::Legacy)?;
        }
        let stale = Stale::new(Span::EMPTY);
        Ok(Self { units, domain, denied, stale, looks: Looks::default() })
    }

    /// Whether what devices read and write goes through the processors' caches. If not, a page leaves them
    /// whenever it changes its owner: a device may have written to memory alone, and may read that alone.
    #[must_use]
    pub const fn snoop(&self) -> Snoop {
        self.domain.snoop()
    }

    /// Takes from devices what `frames` do not let them have of `span` any more. Until the flush they may
    /// still have what this says; empty if that is nothing.
    #[must_use]
    pub fn revise(&mut self, mem: &mut impl Memory, frames: &FrameTable<'_>, span: Span) -> Span {
        let stale = self.domain.revise(mem, &Policy { frames, denied: self.denied }, span);
        self.stale.join(&stale);
        let Some(spans) = stale.spans() else { return self.domain.all() };
        let starts = spans.iter().map(|span| span.start()).min();
        let ends = spans.iter().map(|span| span.end()).max();
        starts.zip(ends).and_then(|(start, end)| Span::new(start, end)).unwrap_or_default()
    }

    /// Has all units forget what was revised.
    ///
    /// # Errors
    /// [`Error`] of the first that fails. Nothing that was taken from devices may be used then, ever.
    pub fn flush(&mut self, mem: &mut impl Memory) -> Result<(), Error> {
        let stale = core::mem::replace(&mut self.stale, Stale::new(Span::EMPTY));
        flush(self.units, mem, stale).map(drop)
    }

    /// Gives devices what `frames` let them have of `span`, with the `leave` to give it to the host.
    ///
    /// # Errors
    /// [`Error`] of the first unit that fails, as from [`Devices::flush`]; or [`Cause::Exhausted`], and
    /// what could not be given stays absent.
    pub fn complete(
        &mut self,
        mem: &mut impl Memory,
        frames: &FrameTable<'_>,
        span: Span,
        leave: &ept01::Flushed,
    ) -> Result<(), Error> {
        let policy = Policy { frames, denied: self.denied };
        let mut flushed = Flushed::with(leave, span.intersect(self.domain.all()));
        while !flushed.is_complete() {
            let (given, filled) = self.domain.complete(mem, &policy, flushed);
            flushed = flush(self.units, mem, given)?;
            filled.map_err(|Exhausted| exhausted(self.units))?;
        }
        Ok(())
    }

    /// If it is time to look, `now` by the TSC, reads and frees the fault records of all units, each as
    /// [`Unit::poll`], and sees whether they are as they were programmed.
    ///
    /// # Errors
    /// [`Error`] of the first that is not: nobody knows then what devices reach.
    pub fn poll(&mut self, now: u64, mut each: impl FnMut(Fault)) -> Result<Faults, Error> {
        let mut faults = Faults::default();
        if !self.looks.are_due(now) {
            return Ok(faults);
        }
        for unit in self.units.iter_mut() {
            let Faults { records, lost } = unit.poll(&mut each);
            faults = Faults { records: faults.records + records, lost: faults.lost || lost };
            unit.check()?;
        }
        Ok(faults)
    }

    /// Whether devices find at `page`, of RAM, what `frames` say.
    #[must_use]
    pub fn agrees(&self, mem: &impl Memory, frames: &FrameTable<'_>, page: Frame) -> bool {
        let policy = Policy { frames, denied: self.denied };
        let block = Span::sized(page.base(), PAGE).unwrap_or_default();
        let found = self.domain.walk(mem, page.base()).map(|(target, level)| {
            let inside = page.base() % level.bytes();
            (target.frame.base() + inside, target.writable)
        });
        let wanted = policy.of_block(block, Level::Pt).flatten();
        found == wanted.map(|target| (target.frame.base(), target.writable))
    }
}
