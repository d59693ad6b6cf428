//! Room for data in the shared range: which units of it are taken.

use core::num::NonZeroU16;

/// How many units there are.
const UNITS: u16 = 512;

/// The least room, in bytes: units are multiples of a disk's sectors.
pub(crate) const LEAST: u64 = 512 * 512;

/// Which units are taken.
pub(crate) struct Room {
    taken: [bool; 512],
    /// Where the first unit is, and the bytes of each.
    base: u64,
    unit: u64,
}

/// Units next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    first: u16,
    count: NonZeroU16,
}

/// From which end room is looked for: long-lived buffers and others are kept apart, so that they do not
/// leave gaps in one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Low,
    High,
}

impl Room {
    /// No room.
    pub(crate) const NONE: Self = Self { taken: [false; 512], base: 0, unit: 0 };

    /// As much of `bytes`, at least [`LEAST`], from `base` on as units make up. None may be taken.
    pub(crate) const fn assign(&mut self, base: u64, bytes: u64) {
        (self.base, self.unit) = (base, bytes / LEAST * 512);
    }

    /// Where it is, and its bytes.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.base, self.bytes())
    }

    /// All of it, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.unit * u64::from(UNITS)
    }

    /// Where there is room for `bytes`; it is not taken yet.
    pub(crate) fn find(&self, bytes: u64, end: End) -> Option<Run> {
        let count = u16::try_from(bytes.checked_div(self.unit)?).ok()?;
        let count = NonZeroU16::MIN.saturating_add(count);
        let last = UNITS.checked_sub(count.get())?;
        let mut runs = (0..=last).map(|first| Run { first, count });
        let is_free = |run: &Run| run.units().all(|at| self.taken.get(at) == Some(&false));
        match end {
            End::Low => runs.find(is_free),
            End::High => runs.rfind(is_free),
        }
    }

    /// The guest-physical address of the first byte of `run`.
    pub(crate) fn address(&self, run: Run) -> u64 {
        self.base + u64::from(run.first) * self.unit
    }

    /// From now on `run` is taken, or free again.
    pub(crate) fn mark(&mut self, run: Run, is_taken: Taken) {
        for at in run.units() {
            if let Some(unit) = self.taken.get_mut(at) {
                *unit = is_taken == Taken::Yes;
            }
        }
    }
}

impl Run {
    fn units(self) -> impl Iterator<Item = usize> {
        (self.first..self.first + self.count.get()).map(usize::from)
    }
}

/// Whether units are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Yes,
    No,
}
