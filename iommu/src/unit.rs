//! A unit: taken over at start without a gap, and told what changes.

use ept::addr::Span;
use ept::ept01::Exhausted;

use crate::Memory;
use crate::capabilities::{Capabilities, Format};
use crate::directory::{self, Mode};
use crate::error::{Cause, Error, Feature, Step};
use crate::fault::{self, Fault, Faults};
use crate::interrupts::Interrupts;
use crate::queue::{Queue, Request};
use crate::registers::{self as at, Registers};
use crate::tables::{Domain, Flushed, Stale};

/// How often a unit is asked whether it is through, a microsecond apart.
const PATIENCE: u32 = 1_000_000;

/// A remapping unit. A handle, as [`Domain`] is one: of several copies only one may go on.
#[derive(Clone, Copy, Debug)]
pub struct Unit<R> {
    registers: R,
    pub(crate) base: u64,
    capabilities: Capabilities,
    levels: u8,
    queue: Option<Queue>,
    mode: Mode,
    /// What its root register read, and what was on, when it was started.
    programmed: (u64, u32),
}

/// What devices can do before the visor's translation is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Nothing to the span.
    Closed,
    /// What firmware lets them: its translation is on, or its protected regions are, elsewhere; and stay on.
    Firmware,
    /// Anything: the unit has no protected region for the span.
    Open,
}

impl<R> Unit<R> {
    /// No unit, for the unused places of lists.
    #[must_use]
    pub const fn none(registers: R) -> Self {
        let capabilities = Capabilities::new(0, 0);
        let (queue, mode, programmed) = (None, Mode::Legacy, (0, 0));
        Self { registers, base: 0, capabilities, levels: 0, queue, mode, programmed }
    }
}

impl<R: Registers> Unit<R> {
    /// Looks at the unit whose registers are at physical address `base`. Changes nothing.
    ///
    /// # Errors
    /// [`Error`] when it lacks what the visor needs.
    pub fn probe(registers: R, base: u64) -> Result<Self, Error> {
        let lacks = |feature| Error { unit: base, cause: Cause::Lacks(feature) };
        let (cap, ecap) = (registers.read64(at::CAPABILITY), registers.read64(at::EXTENDED));
        if cap == u64::MAX || cap == 0 {
            return Err(lacks(Feature::Registers));
        }
        let capabilities = Capabilities::new(cap, ecap);
        let levels = capabilities.levels().ok_or(lacks(Feature::SecondStage))?;
        if !capabilities.queue() {
            return Err(lacks(Feature::Queue));
        }
        // A write that is on its way must not arrive at a page that has another owner by then.
        if !capabilities.drains() {
            return Err(lacks(Feature::Drain));
        }
        Ok(Self { base, capabilities, levels, ..Self::none(registers) })
    }

    /// What it can do.
    #[must_use]
    pub const fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Its registers.
    pub const fn registers(&mut self) -> &mut R {
        &mut self.registers
    }

    /// Keeps devices from `span`, the visor's memory, until [`Unit::start`] has switched translation
    /// on; by protected memory regions (VT-d 4.1, 11.4.8), unless firmware has left them on, or
    /// translation.
    ///
    /// # Errors
    /// [`Error`] when the unit does not answer.
    pub fn guard(&mut self, span: Span) -> Result<Window, Error> {
        let protects = self.registers.read32(at::PROTECTED_ENABLE) & at::PROTECTED != 0;
        // Regions are not sure to count for what is translated.
        if self.registers.read32(at::STATUS) & at::TRANSLATION != 0 {
            return Ok(Window::Firmware);
        }
        if protects {
            let closed = self.protects(span);
            return Ok(if closed { Window::Closed } else { Window::Firmware });
        }
        let low = span.end() <= 1 << 32;
        let covered = if low && self.capabilities.protects_low() {
            self.protect_low(span)
        } else {
            self.capabilities.protects_high() && self.protect_high(span)
        };
        if !covered {
            return Ok(Window::Open);
        }
        // The other region, if there is one, is empty: its base is above its limit.
        self.switch_protection(at::PROTECT)?;
        Ok(Window::Closed)
    }

    /// Takes the unit over: `domain` for every device, and `interrupts` for every interrupt, or
    /// remapping of interrupts off. Translation that firmware has left on stays on throughout.
    ///
    /// # Errors
    /// [`Error`] when it does not answer, or lacks what `mode` or `interrupts` need.
    pub fn start(
        &mut self,
        mem: &mut impl Memory,
        domain: &Domain,
        interrupts: Option<&Interrupts>,
        mode: Mode,
    ) -> Result<(), Error> {
        if mode == Mode::Scalable && !self.capabilities.scalable() {
            return Err(self.error(Cause::Lacks(Feature::Scalable)));
        }
        self.mode = mode;
        self.registers.write32(at::FAULT_CONTROL, at::MASKED);
        self.start_queue(mem)?;
        let root = directory::build(mem, domain, mode, self.levels);
        let root = root.map_err(|Exhausted| self.error(Cause::Exhausted))?;
        self.flush_writes()?;
        let old = self.registers.read64(at::ROOT);
        // The mode must not change under translation (VT-d 4.1, 11.4.5).
        if (old ^ root) & at::MODES != 0 {
            self.command(0, at::TRANSLATION, Step::Translation)?;
        }
        self.registers.write64(at::ROOT, root);
        self.command(at::SET_ROOT, 0, Step::Root)?;
        let requests = [Request::Contexts, Request::Pasids, Request::Everything];
        let used = |request: &Request| *request != Request::Pasids || mode == Mode::Scalable;
        self.forget(mem, requests.into_iter().filter(used))?;
        self.start_interrupts(mem, interrupts)?;
        self.command(at::TRANSLATION, 0, Step::Translation)?;
        self.switch_protection(0)?;
        self.programmed = self.as_it_is();
        Ok(())
    }

    /// Whether the unit is still where it was, and as it was programmed: whoever can move its registers, or
    /// reaches them in a way that nobody knew, can switch it off.
    ///
    /// # Errors
    /// [`Cause::Changed`] if not.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.as_it_is() == self.programmed { Ok(()) } else { Err(self.error(Cause::Changed)) }
    }

    /// Its root register and what is on.
    fn as_it_is(&self) -> (u64, u32) {
        let on = self.registers.read32(at::STATUS) & at::LASTING;
        (self.registers.read64(at::ROOT), on)
    }

    /// Reads and frees the fault records, at most as many as the unit has.
    pub fn poll(&mut self, each: impl FnMut(Fault)) -> Faults {
        fault::poll(&mut self.registers, self.capabilities.fault_records(), each)
    }

    /// Makes the unit forget what it remembers by `requests`, and waits until it has.
    pub(crate) fn forget(
        &mut self,
        mem: &mut impl Memory,
        requests: impl Iterator<Item = Request>,
    ) -> Result<(), Error> {
        self.ask(mem, |each| requests.for_each(each))?;
        self.wait(mem)
    }

    /// Asks the unit to forget, after everything that was written before.
    fn ask(
        &mut self,
        mem: &mut impl Memory,
        requests: impl FnOnce(&mut dyn FnMut(Request)),
    ) -> Result<(), Error> {
        self.flush_writes()?;
        let Some(queue) = self.queue.as_mut() else {
            return Err(self.error(Cause::Lacks(Feature::Queue)));
        };
        requests(&mut |request| queue.push(mem, request));
        let tail = queue.end(mem);
        self.registers.write64(at::QUEUE_TAIL, tail);
        Ok(())
    }

    /// Makes the unit see what was written before.
    fn flush_writes(&mut self) -> Result<(), Error> {
        if self.capabilities.buffers_writes() {
            self.command(at::FLUSH_WRITES, 0, Step::Writes)?;
        }
        Ok(())
    }

    /// Waits until the unit has done what it was asked for.
    fn wait(&self, mem: &impl Memory) -> Result<(), Error> {
        for _ in 0..PATIENCE {
            if self.queue.as_ref().is_some_and(|queue| queue.is_through(mem)) {
                return Ok(());
            }
            let status = self.registers.read32(at::FAULT_STATUS) & at::QUEUE_ERRORS;
            if status != 0 {
                return Err(self.error(Cause::Queue(status)));
            }
            self.registers.pause();
        }
        Err(self.error(Cause::Timeout(Step::Invalidation)))
    }

    /// An empty queue of the visor's in the place of firmware's.
    fn start_queue(&mut self, mem: &mut impl Memory) -> Result<(), Error> {
        if self.registers.read32(at::STATUS) & at::QUEUED != 0 {
            let read = |offset| move |registers: &R| registers.read64(offset);
            let (head, tail) = (read(at::QUEUE_HEAD), read(at::QUEUE_TAIL));
            self.until(Step::Queue, |registers| head(registers) == tail(registers))?;
            self.command(0, at::QUEUED, Step::Queue)?;
        }
        // What it says of firmware's queue is over.
        self.registers.write32(at::FAULT_STATUS, at::QUEUE_ERRORS);
        let queue = Queue::new(mem, self.mode).ok_or_else(|| self.error(Cause::Exhausted))?;
        let wide = match self.mode {
            Mode::Legacy => 0,
            Mode::Scalable => at::WIDE_DESCRIPTORS,
        };
        self.registers.write64(at::QUEUE_TAIL, 0);
        self.registers.write64(at::QUEUE_ADDRESS, queue.ring().base() | wide);
        self.queue = Some(queue);
        self.command(at::QUEUED, 0, Step::Queue)
    }

    fn start_interrupts(
        &mut self,
        mem: &mut impl Memory,
        interrupts: Option<&Interrupts>,
    ) -> Result<(), Error> {
        let Some(interrupts) = interrupts else {
            return self.command(0, at::REMAP_INTERRUPTS, Step::Interrupts);
        };
        if !self.capabilities.interrupts() {
            return Err(self.error(Cause::Lacks(Feature::Interrupts)));
        }
        if interrupts.is_wide() && !self.capabilities.wide_destinations() {
            return Err(self.error(Cause::Lacks(Feature::WideDestinations)));
        }
        self.registers.write64(at::INTERRUPT_TABLE, interrupts.register());
        self.command(at::SET_INTERRUPTS, 0, Step::Interrupts)?;
        self.forget(mem, [Request::Interrupts].into_iter())?;
        self.command(0, at::COMPATIBILITY, Step::Interrupts)?;
        self.command(at::REMAP_INTERRUPTS, 0, Step::Interrupts)
    }

    /// Sets and clears bits of the command register, one at a time, and waits until the unit has
    /// obeyed.
    fn command(&mut self, set: u32, clear: u32, step: Step) -> Result<(), Error> {
        let status = self.registers.read32(at::STATUS);
        let (now, then) = (status & !at::ONCE, status & !at::ONCE & !clear | set);
        if now == then {
            return Ok(());
        }
        self.registers.write32(at::COMMAND, then);
        let mask = set | clear;
        // This bit is set while the buffer is being flushed; every other one when it is done.
        let wanted = if set == at::FLUSH_WRITES { 0 } else { set };
        self.until(step, |registers| registers.read32(at::STATUS) & mask == wanted)
    }

    fn until(&self, step: Step, done: impl Fn(&R) -> bool) -> Result<(), Error> {
        for _ in 0..PATIENCE {
            if done(&self.registers) {
                return Ok(());
            }
            self.registers.pause();
        }
        Err(self.error(Cause::Timeout(step)))
    }

    /// Switches the protected regions on or off.
    fn switch_protection(&mut self, to: u32) -> Result<(), Error> {
        if !(self.capabilities.protects_low() || self.capabilities.protects_high()) {
            return Ok(());
        }
        self.registers.write32(at::PROTECTED_ENABLE, to);
        let wanted = if to == 0 { 0 } else { at::PROTECTED };
        self.until(Step::Protection, |registers| {
            registers.read32(at::PROTECTED_ENABLE) & at::PROTECTED == wanted
        })
    }

    /// Whether the regions that are on cover `span`, even if they end at the last byte that their registers
    /// name: how much more it is, nobody can find out now.
    fn protects(&self, span: Span) -> bool {
        let end = span.end().saturating_sub(1);
        let covers = |base: u64, last: u64| base <= span.start() && end <= last;
        let registers = &self.registers;
        let word = |offset| u64::from(registers.read32(offset));
        let low = || covers(word(at::LOW_BASE), word(at::LOW_LIMIT));
        let high = || covers(registers.read64(at::HIGH_BASE), registers.read64(at::HIGH_LIMIT));
        self.capabilities.protects_low() && low() || self.capabilities.protects_high() && high()
    }

    /// Makes the low region cover `span`; whether it does.
    fn protect_low(&mut self, span: Span) -> bool {
        let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        if self.capabilities.protects_high() {
            self.registers.write64(at::HIGH_BASE, u64::MAX);
            self.registers.write64(at::HIGH_LIMIT, 0);
        }
        self.registers.write32(at::LOW_BASE, u32::MAX);
        let granule = !u64::from(self.registers.read32(at::LOW_BASE));
        self.registers.write32(at::LOW_BASE, word(span.start()));
        self.registers.write32(at::LOW_LIMIT, word(span.end().saturating_sub(1)));
        let base = u64::from(self.registers.read32(at::LOW_BASE));
        let limit = u64::from(self.registers.read32(at::LOW_LIMIT)) | granule & 0xffff_ffff;
        base <= span.start() && span.end() <= limit + 1
    }

    /// The same for the high region.
    fn protect_high(&mut self, span: Span) -> bool {
        if self.capabilities.protects_low() {
            self.registers.write32(at::LOW_BASE, u32::MAX);
            self.registers.write32(at::LOW_LIMIT, 0);
        }
        self.registers.write64(at::HIGH_BASE, u64::MAX);
        let implemented = self.registers.read64(at::HIGH_BASE);
        let granule = (1_u64 << implemented.trailing_zeros().min(63)) - 1;
        self.registers.write64(at::HIGH_BASE, span.start());
        self.registers.write64(at::HIGH_LIMIT, span.end().saturating_sub(1));
        let base = self.registers.read64(at::HIGH_BASE);
        let limit = self.registers.read64(at::HIGH_LIMIT) | granule;
        base <= span.start() && span.end().saturating_sub(1) <= limit
    }

    const fn error(&self, cause: Cause) -> Error {
        Error { unit: self.base, cause }
    }
}

/// Fulfils the obligation `stale` on all `units`, which work on it at the same time. After an error
/// nothing that was taken away may be used: some device may still reach it.
///
/// # Errors
/// [`Error`] of the first unit that fails.
pub fn flush<R: Registers, M: Memory>(
    units: &mut [Unit<R>],
    mem: &mut M,
    stale: Stale,
) -> Result<Flushed, Error> {
    if !stale.is_empty() {
        for unit in units.iter_mut() {
            let capabilities = unit.capabilities;
            unit.ask(mem, |each| Request::for_stale(&stale, capabilities, each))?;
        }
        for unit in units.iter() {
            unit.wait(mem)?;
            unit.check()?;
        }
    }
    Ok(stale.flushed(mem))
}

/// Asks each unit for what it needs of tables for addresses of `width` bits and RAM below `ram_end`.
///
/// # Errors
/// [`Feature::Width`] for the first unit that cannot translate all of RAM.
pub fn format<R: Registers>(units: &[Unit<R>], width: u8, ram_end: u64) -> Result<Format, Error> {
    units.iter().try_fold(Format::new(width), |format, unit| {
        let format = format.and(unit.capabilities);
        let fits = ram_end <= format.end();
        fits.then_some(format).ok_or(unit.error(Cause::Lacks(Feature::Width)))
    })
}
