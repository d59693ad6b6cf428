//! The audit log: the last events, and a hash over all there ever were.

use ept::frames;
use ticket::audit::{EVENT_BYTES, Event, GENESIS, Kind, NO_VM, extend};

use crate::vm::Cause;

/// Events that are kept.
const KEPT: usize = 256;

/// What happened to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What.
    pub kind: Kind,
    /// To which VM.
    pub vm: Option<frames::Vm>,
    /// By kind.
    pub a: u64,
    /// By kind.
    pub b: u64,
}

/// The log. Whoever knows its chain value knows every event before it: none can be changed, left out
/// or moved without another value.
#[derive(Debug)]
pub struct Audit {
    ring: [[u8; EVENT_BYTES]; KEPT],
    count: u64,
    chain: [u8; 32],
}

#[expect(clippy::new_without_default, reason = "it is for statics: too large for a stack")]
impl Audit {
    /// Nothing has happened yet.
    #[must_use]
    #[expect(clippy::large_stack_frames, reason = "the compiler runs it")]
    pub const fn new() -> Self {
        Self { ring: [[0; EVENT_BYTES]; KEPT], count: 0, chain: GENESIS }
    }

    /// Adds what happened on processor `cpu`.
    pub fn push(&mut self, cpu: u32, entry: Entry) {
        let event = Event {
            sequence: self.count,
            kind: entry.kind.number(),
            vm: entry.vm.map_or(NO_VM, frames::Vm::number),
            cpu,
            a: entry.a,
            b: entry.b,
        };
        let bytes = event.bytes();
        self.chain = extend(&self.chain, &bytes);
        if let Some(place) = self.ring.get_mut(place(self.count)) {
            *place = bytes;
        }
        self.count += 1;
    }

    /// Adds that a VM was stopped, and for which page.
    pub(crate) fn stopped(&mut self, cpu: u32, vm: frames::Vm, cause: Cause) {
        let number = u64::from(cause.number());
        let entry = |kind, (a, b)| Entry { kind, vm: Some(vm), a, b };
        if let Some(page) = cause.page() {
            self.push(cpu, entry(Kind::PageRefused, (page.base(), number)));
        }
        self.push(cpu, entry(Kind::Stopped, (number, 0)));
    }

    /// Number of events since boot.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Number of the oldest event that is still there.
    #[must_use]
    pub fn oldest(&self) -> u64 {
        self.count.saturating_sub(u64::try_from(KEPT).unwrap_or(u64::MAX))
    }

    /// Event `number`; `None` if it is not there any more, or not yet.
    #[must_use]
    pub fn event(&self, number: u64) -> Option<&[u8; EVENT_BYTES]> {
        let there = self.oldest() <= number && number < self.count;
        self.ring.get(place(number)).filter(|_| there)
    }

    /// The chain value after the last event.
    #[must_use]
    pub const fn chain(&self) -> &[u8; 32] {
        &self.chain
    }
}

fn place(number: u64) -> usize {
    usize::try_from(number).map_or(0, |number| number % KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn entry(number: u64) -> Entry {
        let vm = frames::Vm::new(u8::try_from(number % 65).unwrap());
        Entry { kind: Kind::Touched, vm, a: number * 3, b: number * 5 }
    }

    #[test]
    fn the_ring_has_the_last_256_events_and_the_chain_all_of_them() {
        let mut audit = Audit::new();
        let mut chain = [0; 32];
        for number in 0..600 {
            audit.push(7, entry(number));
            let event = *audit.event(number).unwrap();
            let read = Event::of_bytes(&event).unwrap();
            assert_eq!((read.sequence, read.cpu, read.a), (number, 7, number * 3));
            assert_eq!(
                read.vm,
                if number % 65 == 64 { NO_VM } else { u8::try_from(number % 65).unwrap() }
            );
            chain = Sha256::new().chain_update(chain).chain_update(event).finalize().into();
            assert_eq!(*audit.chain(), chain);
            assert_eq!(audit.count(), number + 1);
            let oldest = (number + 1).saturating_sub(256);
            assert_eq!(audit.oldest(), oldest);
            assert!(audit.event(number + 1).is_none());
            for there in oldest..=number {
                let event = Event::of_bytes(audit.event(there).unwrap()).unwrap();
                assert_eq!(event.sequence, there);
            }
            assert!(oldest == 0 || audit.event(oldest - 1).is_none());
        }
    }
}
