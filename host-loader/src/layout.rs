//! Who lies where: the kernel's destination is chosen first, then what is in its way moves.

use crate::area::LOW_END;
use crate::handoff::{Handoff, Module};
use crate::plan::{Step, Steps};
use crate::search::{Need, highest, lowest};
use crate::{LoadError, MODULES};
use ept::addr::{PAGE, Span};
use ept::list::List;

/// Nothing is placed below this: the real-mode interrupt vectors, the BIOS's data, the EBDA.
const MODULE_FLOOR: u64 = 0x10_0000;

/// What the kernel asks of the places of its modules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    /// A power of two.
    pub(crate) align: u64,
    /// One past the last byte that a module may have.
    pub(crate) below: u64,
}

/// Where the kernel may be put.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Site {
    /// Only here.
    Fixed(Span),
    /// Here if that is free RAM, otherwise anywhere that meets the need.
    Preferred(Span, Need),
}

/// The modules on their way to their final places.
#[derive(Debug)]
pub(crate) struct Layout<'h, 's> {
    pub(crate) handoff: Handoff<'h>,
    /// Where each module is by now.
    places: List<Span, MODULES>,
    steps: &'s mut Steps,
}

impl<'h, 's> Layout<'h, 's> {
    /// Everything where the boot loader left it.
    pub(crate) fn new(handoff: Handoff<'h>, steps: &'s mut Steps) -> Result<Self, LoadError> {
        let mut places = List::new(Span::default());
        for module in handoff.modules() {
            places.push(module.span).map_err(|_| LoadError::Modules)?;
        }
        Ok(Self { handoff, places, steps })
    }

    /// Where the host kernel's file is by now.
    pub(crate) fn kernel(&self) -> Span {
        self.places.first().copied().unwrap_or_default()
    }

    /// The host's modules where they are by now.
    pub(crate) fn modules(&self) -> impl Iterator<Item = Module<'h>> {
        let named = self.handoff.modules().zip(self.places.iter()).skip(1);
        named.map(|(module, &span)| Module { span, ..module })
    }

    /// Picks the kernel's destination; modules in it are moved later by [`Self::clear`].
    ///
    /// On EFI a kernel that can be anywhere spares the firmware's boot-services memory, which may
    /// hold tables that an operating system still reads.
    pub(crate) fn site(&self, site: Site) -> Result<Span, LoadError> {
        let busy = [self.handoff.area().span()];
        let (quiet, ram) = (|| self.handoff.quiet_ram(), || self.handoff.ram());
        let (wanted, found) = match site {
            Site::Fixed(wanted) => (wanted, exact(ram(), wanted, &busy)),
            Site::Preferred(wanted, need) => {
                let found = exact(quiet(), wanted, &busy)
                    .or_else(|| lowest(quiet(), &need, &busy))
                    .or_else(|| exact(ram(), wanted, &busy))
                    .or_else(|| lowest(ram(), &need, &busy));
                (wanted, found)
            }
        };
        found.ok_or(LoadError::NoRoomForKernel(wanted.start(), wanted.len()))
    }

    /// Moves every file out of `image`, and every module to where the kernel wants modules.
    pub(crate) fn clear(&mut self, image: Span, manners: Manners) -> Result<(), LoadError> {
        // The old places stay busy, so that no move overwrites what a later one still has to copy.
        let mut busy: List<Span, { 2 * MODULES + 2 }> = List::new(Span::default());
        for span in self.places.iter().copied().chain([image, self.handoff.area().span()]) {
            busy.push(span).map_err(|_| LoadError::Modules)?;
        }
        for (number, place) in self.places.iter_mut().enumerate() {
            // The kernel's own file only has to survive until it is loaded.
            let wanted = if number == 0 { ANYWHERE } else { manners };
            if wanted.suits(*place) && !place.overlaps(image) {
                continue;
            }
            let within = Span::new(MODULE_FLOOR, wanted.below).unwrap_or_default();
            let len = place.len();
            let need = Need { len, align: wanted.align, within };
            let to = highest(self.handoff.quiet_ram(), &need, &busy)
                .or_else(|| highest(self.handoff.ram(), &need, &busy))
                .ok_or(LoadError::NoRoomForModule(number, len))?;
            self.steps.push(Step::Copy { from: *place, to: to.start() })?;
            busy.push(to).map_err(|_| LoadError::Modules)?;
            *place = to;
        }
        Ok(())
    }

    /// Adds a step that fills the kernel's destination.
    pub(crate) fn fill(&mut self, step: Step) -> Result<(), LoadError> {
        self.steps.push(step)
    }
}

/// For the kernel's own file.
const ANYWHERE: Manners = Manners { align: 1, below: LOW_END };

impl Manners {
    fn suits(self, span: Span) -> bool {
        span.start().is_multiple_of(self.align) && span.end() <= self.below
    }
}

/// `span`, if it is free RAM above the interrupt vectors.
fn exact(mut ram: impl Iterator<Item = Span>, span: Span, busy: &[Span]) -> Option<Span> {
    let free = span.start() >= PAGE && !busy.iter().any(|other| other.overlaps(span));
    (free && ram.any(|room| room.covers(span))).then_some(span)
}
