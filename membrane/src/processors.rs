//! The processors of a VM, by the ids of their local APICs, and which of them may begin.
//!
//! The VM starts a processor by INIT and a start-up IPI. The host carries them out, so it can do so
//! whenever it likes, or not at all; but never what the VM has not sent. Each INIT lets one processor
//! begin once, as systems send two start-up IPIs for one processor, and two processors on one stack
//! would be the end of it.
//!
//! Nothing that the host sets up for a processor says which one it is. So of all that may begin with the
//! same vector, it is the one that the host first tells it to be when it asks for its id; and if that is
//! none of them, then any of them. Either way, no two have the same.

use ticket::MAX_PROCESSORS;

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Processor {
    /// It has not begun.
    Off,
    /// Likewise, and has been sent an INIT.
    Waiting,
    /// Likewise, and after that a start-up IPI with this vector.
    Ready(u8),
    /// It has not begun, but one that has begun with this vector does not know yet which it is, and may be it.
    Begun(u8),
    /// It runs.
    On,
    /// Likewise, and has been sent an INIT.
    OnWaiting,
    /// Likewise, and after that a start-up IPI with this vector.
    OnReady(u8),
}

use Processor::{Begun, Off, On, OnReady, OnWaiting, Ready, Waiting};

/// All processors that a VM may ever have.
#[derive(Clone, Debug)]
pub struct Processors {
    by_id: [Processor; COUNT],
    most: usize,
}

const COUNT: usize = 64;
const _: () = assert!(MAX_PROCESSORS == 64, "the ids of as many as a ticket may permit");

impl Processors {
    /// Processor 0 runs, and `most` may in all.
    #[must_use]
    pub fn new(most: u32) -> Self {
        let mut by_id = [Off; COUNT];
        let [first, ..] = &mut by_id;
        *first = On;
        Self { by_id, most: usize::try_from(most).unwrap_or(1) }
    }

    /// Those of the same VM when it begins anew.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self { most: self.most, ..Self::new(1) }
    }

    /// One of them has written `command` to its interrupt command register, in the form of x2APIC mode (SDM
    /// vol. 3, 12.12.9). Destinations that are logical or more than one are no way to start processors, but
    /// for all others at once.
    pub fn signal(&mut self, command: u64) {
        let Some((to, vector)) = decode(command) else { return };
        for (id, processor) in (0..).zip(&mut self.by_id) {
            let named = to == Some(id);
            if named || to.is_none() {
                *processor = match (*processor, vector) {
                    (Off | Waiting | Ready(_), None) => Waiting,
                    (Waiting, Some(vector)) => Ready(vector),
                    (On | OnWaiting | OnReady(_), None) if named => OnWaiting,
                    (OnWaiting, Some(vector)) if named => OnReady(vector),
                    (as_it_is, _) => as_it_is,
                };
            }
        }
    }

    /// Whether one more may begin, with this vector; then it has.
    #[must_use]
    pub fn begin(&mut self, vector: u8) -> bool {
        let begun = self.by_id.iter().filter(|id| !matches!(id, Off | Waiting | Ready(_))).count();
        let ready = self.by_id.iter_mut().find(|id| **id == Ready(vector));
        let Some(ready) = ready.filter(|_| begun < self.most) else { return false };
        *ready = Begun(vector);
        true
    }

    /// Which one it is that has begun with this vector and asks for the first time; `told` is what the host
    /// says. `None` if there is none, which no caller sees.
    pub fn name(&mut self, vector: u8, told: u32) -> Option<u8> {
        let begun = self.by_id.iter().position(|id| *id == Begun(vector))?;
        let may_be = [Begun(vector), Ready(vector)];
        let told = usize::try_from(told).ok();
        let told = told.filter(|id| self.by_id.get(*id).is_some_and(|id| may_be.contains(id)));
        let id = told.unwrap_or(begun);
        // The others of these are as many as before.
        self.by_id.swap(begun, id);
        *self.by_id.get_mut(id)? = On;
        u8::try_from(id).ok()
    }

    /// Whether processor `id`, which runs, is to begin anew with this vector; then it has.
    #[must_use]
    pub fn restart(&mut self, id: u8, vector: u8) -> bool {
        let processor = self.by_id.get_mut(usize::from(id));
        let processor = processor.filter(|id| **id == OnReady(vector));
        processor.map(|id| *id = On).is_some()
    }
}

/// To whom an INIT or start-up IPI is sent, `None` being all others, and the vector of the latter.
const fn decode(command: u64) -> Option<(Option<u32>, Option<u8>)> {
    const INIT: u8 = 5;
    const START_UP: u8 = 6;
    const LOGICAL: u8 = 1 << 3;
    const ASSERTED: u8 = 1 << 6;
    const LEVEL: u8 = 1 << 7;
    let [vector, mode, shorthand, _, a, b, c, d] = command.to_le_bytes();
    let to = match shorthand >> 2 & 3 {
        0 if mode & LOGICAL == 0 => Some(u32::from_le_bytes([a, b, c, d])),
        3 => None,
        _ => return None,
    };
    match mode & 7 {
        // One that is taken back does nothing.
        INIT if mode & (LEVEL | ASSERTED) == LEVEL => None,
        INIT => Some((to, None)),
        START_UP => Some((to, Some(vector))),
        _ => None,
    }
}
