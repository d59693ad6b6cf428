//! A VM that begins anew.

use ept::addr::GuestFrame;

use super::{Cause, Life, Vm};

impl Cause {
    /// It has shut down by itself (triple fault), as systems do that start anew: kind 2 of the causes that
    /// processors have, without a detail.
    pub const SHUT_DOWN: Self = Self::Processor(2);
}

impl Vm {
    /// Begins anew: only what its ticket says stays. It has no page, and what was known of pages that were
    /// outside is gone. `random` are bytes that were never used before: what was sealed before is
    /// worth nothing now.
    pub(crate) fn renew(&mut self, launch: u64, random: &[u8; 32]) {
        self.sealer = self.sealer.anew(random);
        self.restarts -= 1;
        self.life = Life::Running;
        self.processors = self.processors.anew();
        (self.launch, self.vcpus, self.touches) = (launch, 0, 0);
        (self.sealed, self.root, self.gives_up) = (0, None, false);
        self.swept = GuestFrame::containing(0);
        self.asked = (self.swept, 0);
    }

    /// Whether it runs, or would if its host started it anew.
    pub(crate) const fn may_run(&self) -> bool {
        match self.life {
            Life::Waiting | Life::Running => true,
            Life::Stopped(Cause::Restarted | Cause::SHUT_DOWN) => self.restarts != 0,
            Life::Stopped(_) => false,
        }
    }
}
