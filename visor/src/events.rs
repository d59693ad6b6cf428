//! The last security-relevant events, typed and of fixed size: never the host's or a VM's data.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use ept::list::List;
use spin::Mutex;

/// Something that an auditor would want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The host started to run.
    HostStarted,
    /// A processor of the host was started at this page.
    StartUp(u8),
    /// The host touched memory that is not its own.
    ForbiddenAccess {
        /// Guest-physical address.
        address: u64,
        /// Bits 2:0 for read, write, execute.
        access: u8,
        /// Instruction pointer.
        rip: u64,
    },
    /// The host was refused an MSR write.
    RefusedMsr(u32),
    /// The host tried to configure the host bridge: configuration address.
    RefusedConfig(u32),
    /// The host changed memory types by its MTRRs.
    MemoryTypes,
    /// The host triple-faulted.
    TripleFault,
}

impl Event {
    /// Whether it is an attempt at something forbidden.
    const fn is_violation(self) -> bool {
        match self {
            Self::ForbiddenAccess { .. } | Self::RefusedMsr(_) | Self::RefusedConfig(_) => true,
            Self::HostStarted | Self::StartUp(_) | Self::MemoryTypes | Self::TripleFault => false,
        }
    }
}

/// One entry of the ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    tsc: u64,
    cpu: u32,
    event: Event,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>16} cpu {} {:x?}", self.tsc, self.cpu, self.event)
    }
}

const CAPACITY: usize = 128;

struct Ring {
    entries: List<Entry, CAPACITY>,
    next: usize,
}

static RING: Mutex<Ring> = Mutex::new(Ring {
    entries: List::new(Entry { tsc: 0, cpu: 0, event: Event::HostStarted }),
    next: 0,
});
static VIOLATIONS: AtomicU32 = AtomicU32::new(0);

/// Records `event` of processor `cpu`. The first violations also go to the log: a host that keeps
/// trying must not be able to fill the serial line.
pub(crate) fn record(cpu: u32, event: Event) {
    const LOGGED: u32 = 16;
    let entry = Entry { tsc: crate::cpu::tsc(), cpu, event };
    let mut ring = RING.lock();
    if ring.entries.push(entry).is_err() {
        let next = ring.next;
        if let Some(oldest) = ring.entries.get_mut(next) {
            *oldest = entry;
        }
    }
    ring.next = (ring.next + 1) % CAPACITY;
    drop(ring);
    if event.is_violation() {
        let before = VIOLATIONS.fetch_add(1, Ordering::Relaxed);
        if before < LOGGED {
            log::warn!("refused: cpu {cpu} {event:x?}");
        } else if before == LOGGED {
            log::warn!("refused: more of the same is not shown");
        }
    } else {
        log::debug!("event: cpu {cpu} {event:x?}");
    }
}

/// How many violations there were.
pub(crate) fn violations() -> u32 {
    VIOLATIONS.load(Ordering::Relaxed)
}

/// Shows the last `count` events, oldest first, without waiting for a lock: for a panic.
pub(crate) fn show_last(count: usize, mut show: impl FnMut(&Entry)) {
    let Some(ring) = RING.try_lock() else { return };
    let filled = ring.entries.len();
    let start = if filled < CAPACITY { 0 } else { ring.next };
    let skip = filled.saturating_sub(count);
    for place in (start..start + filled).skip(skip) {
        if let Some(entry) = ring.entries.get(place % CAPACITY) {
            show(entry);
        }
    }
}
