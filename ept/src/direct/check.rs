//! Looks for tables that say something else than the frame table. Nothing should be found, ever.

use super::trees::indexes;
use super::{Hardware, Machine, Meaning};
use crate::addr::{Frame, PAGE, Span};
use crate::ept01::Rules;
use crate::frames::{Guard, State};

impl<H: Hardware> Machine<'_, '_, H> {
    /// The first frame of RAM in `span` that EPT01 does not translate as it should, or that is a table
    /// of a VM's with an entry that should not be there.
    #[must_use]
    pub fn disagreement(&self, span: Span) -> Option<Frame> {
        let span = span.shrink_to(PAGE);
        let frames = (span.start()..span.end()).step_by(4096).map(Frame::containing);
        frames.filter(|frame| self.frames.state(*frame).is_some()).find(|frame| {
            let rules = Rules { frames: self.frames, mtrrs: self.mtrrs, denied: self.denied };
            !self.ept.agrees(self.hardware, &rules, *frame) || !self.table_agrees(*frame)
        })
    }

    /// Whether `frame` is no table in use, or one whose entries all lead to what they may.
    fn table_agrees(&self, frame: Frame) -> bool {
        let Some(State::Table { level, guard, .. }) = self.frames.state(frame) else { return true };
        indexes().all(|index| match self.meaning(self.hardware.entry(frame, index), level) {
            Meaning::Nothing => true,
            Meaning::Table(next, below) => matches!(
                self.frames.state(next),
                Some(State::Table { level, guard: other, .. }) if (level, other) == (below, guard)
            ),
            Meaning::Leaf(first, level) => {
                let open = |block| self.frames.open(block, level);
                guard == Guard::Guarded || self.permitted(first, level).is_ok_and(open)
            }
        })
    }
}
