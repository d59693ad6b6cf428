//! Who may reach which memory by DMA. The only policy; how units are told lies elsewhere.

use ept::addr::{Frame, PAGE, Span};
use ept::entry::Level;
use ept::frames::{FrameTable, State};

/// Writes to here are interrupts (SDM vol. 3, "Message Address Register Format", 12.11.1), for
/// interrupt remapping to judge, and nothing else may become one.
const INTERRUPTS: Span = match Span::new(0xfee0_0000, 0xfef0_0000) {
    Some(span) => span,
    None => Span::EMPTY,
};

/// Where a device arrives, and what it may do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// First frame.
    pub frame: Frame,
    /// Whether it may also write; else it may only read.
    pub writable: bool,
}

/// What all the host's devices may do: what the host itself may, in one domain with the host's
/// addresses.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'p> {
    /// Who owns which RAM.
    pub frames: &'p FrameTable<'p>,
    /// Device memory that no device must reach, such as the registers of the units.
    pub denied: &'p [Span],
}

impl Policy<'_> {
    /// Where devices arrive at `frame`; `None`: nowhere.
    #[must_use]
    pub fn of(&self, frame: Frame) -> Option<Target> {
        let target = |frame, writable| Some(Target { frame, writable });
        match self.frames.state(frame) {
            Some(State::Visor | State::Private { view: None, .. }) => None,
            // What the host sees in its place, a device sees: a write of it to a disk is under way.
            Some(State::Private { view: Some(view), .. }) => target(self.frames.view(view)?, true),
            Some(State::Fresh { .. } | State::Table { .. }) => target(frame, false),
            Some(State::Plain { .. } | State::Leaving { .. }) | None => target(frame, true),
        }
    }

    /// The same for `block`, which an entry of `level` translates; `None` if each part has to tell.
    #[must_use]
    pub fn of_block(&self, block: Span, level: Level) -> Option<Option<Target>> {
        let first = Frame::containing(block.start());
        let mut closed = self.denied.iter().map(|span| span.grow_to(PAGE)).chain([INTERRUPTS]);
        if let Some(closed) = closed.find(|closed| closed.overlaps(block)) {
            return closed.covers(block).then_some(None);
        }
        if self.frames.open(block, level) {
            return Some(Some(Target { frame: first, writable: true }));
        }
        (level == Level::Pt).then(|| self.of(first))
    }

    /// The first frame of `reserved`, memory that firmware's own DMA needs (RMRR), that is the
    /// visor's or a VM's. Such memory must never become theirs.
    #[must_use]
    pub fn conflict(&self, reserved: Span) -> Option<Frame> {
        let pages = reserved.grow_to(PAGE);
        let numbers = pages.start() / PAGE..pages.end() / PAGE;
        let mut frames = numbers.map(|number| Frame::containing(number * PAGE));
        frames.find(|frame| {
            matches!(self.frames.state(*frame), Some(State::Visor | State::Private { .. }))
        })
    }
}
