//! A VM that begins anew.

use ept::addr::GuestFrame;
use ept::ept01::TableMem;

use super::{Cause, Life, Vm};
use crate::Progress;

impl Cause {
    /// It has shut down by itself (triple fault), as systems do that start anew: kind 2 of the causes that
    /// processors have, without a detail.
    pub const SHUT_DOWN: Self = Self::Processor(2);
}

impl Vm {
    /// Begins anew: only what its ticket says stays. It has no page, and what was known of pages that were
    /// outside is gone. `launch` are random bytes that were never used before: what was sealed before is
    /// worth nothing now.
    pub(crate) fn renew(&mut self, launch: &[u8; 32]) {
        self.sealer = self.sealer.anew(launch);
        self.restarts -= 1;
        self.life = Life::Running;
        self.processors = self.processors.anew();
        (self.vcpus, self.touches, self.sealed, self.root) = (0, 0, 0, None);
        self.swept = GuestFrame::containing(0);
    }

    /// Whether it runs, or would if its host started it anew.
    pub(crate) const fn may_run(&self) -> bool {
        match self.life {
            Life::Waiting | Life::Running => true,
            Life::Stopped(Cause::Restarted | Cause::SHUT_DOWN) => self.restarts != 0,
            Life::Stopped(_) => false,
        }
    }

    /// Forgets what pages were that are outside, at most `budget` frames of it.
    pub(crate) fn forget(&mut self, mem: &mut impl TableMem, budget: &mut u32) -> Progress {
        self.pasts.clear(mem, budget)
    }
}
