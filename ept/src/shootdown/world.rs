//! The machine of the models: processors, and one frame that is about to get another use.
//!
//! What a call is for is a frame that gets another use. Whoever uses it as what it was reads a cell
//! that is not atomic: by a translation that the processor remembers, by a root of which it was told
//! that it is fit, or in the visor by what is known of the frame. The caller writes the cell after the
//! call. The test fails unless each read is before that write, and ordered so, which loom checks.
//!
//! An NMI is an increment that anybody does at any time. In VMX root mode the handler does just that; in
//! a VM the NMI is an exit, which ends in the same look at the count; and between the last look and the
//! VM there is nothing (`exit.s` of the visor sees to that). So a processor of the model looks at the
//! count before each thing that it does in a VM.

use core::cell::{Cell, RefCell};
use core::ptr;
use core::sync::atomic::{AtomicBool as Private, AtomicU64 as Count};
use std::vec::Vec;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::thread::{self, Thread};

use super::{Call, Generation, Processor, everywhere, fall_asleep, lock, serve, took_nmi, wake_up};
use atomic::{AtomicU32, Ordering};

std::thread_local! {
    /// Changes so far of a 32-bit atomic.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
    /// Who waits for one. Loom would follow threads that look again and again for ever.
    static WAITING: RefCell<Vec<Thread>> = const { RefCell::new(Vec::new()) };
    /// Threads that have not ended.
    pub(super) static ALIVE: Cell<usize> = const { Cell::new(0) };
}

/// Wakes who waits, if this is a change.
fn changed(before: u32, after: impl Fn(u32) -> u32) -> u32 {
    if after(before) != before {
        CHANGES.set(CHANGES.get() + 1);
        for thread in WAITING.take() {
            thread.unpark();
        }
    }
    before
}

/// Waits for a change since those that are `seen`.
fn pause(seen: &Count) {
    if CHANGES.get() == seen.load(Ordering::Relaxed) {
        WAITING.with_borrow_mut(|waiting| waiting.push(thread::current()));
        assert!(WAITING.with_borrow(Vec::len) < ALIVE.get(), "everybody waits");
        thread::park();
    }
    seen.store(CHANGES.get(), Ordering::Relaxed);
}

/// Loom's atomics, but that nobody sees an old value of a 32-bit one: all of its changes are locked,
/// and on x86 everybody sees these at once. What is seen of the rest of memory is up to the orderings.
pub(super) mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};

    use super::changed;

    #[derive(Debug, Default)]
    pub(crate) struct AtomicU32(loom::sync::atomic::AtomicU32);

    impl AtomicU32 {
        pub(crate) fn new(value: u32) -> Self {
            Self(loom::sync::atomic::AtomicU32::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> u32 {
            self.0.fetch_or(0, order)
        }

        pub(crate) fn swap(&self, value: u32, order: Ordering) -> u32 {
            changed(self.0.swap(value, order), |_| value)
        }
        pub(crate) fn fetch_or(&self, bits: u32, order: Ordering) -> u32 {
            changed(self.0.fetch_or(bits, order), |before| before | bits)
        }
        pub(crate) fn fetch_and(&self, bits: u32, order: Ordering) -> u32 {
            changed(self.0.fetch_and(bits, order), |before| before & bits)
        }
        pub(crate) fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
            changed(self.0.fetch_add(value, order), |before| before + value)
        }
        pub(crate) fn fetch_sub(&self, value: u32, order: Ordering) -> u32 {
            changed(self.0.fetch_sub(value, order), |before| before - value)
        }
        pub(crate) fn fetch_update(
            &self,
            set: Ordering,
            fetch: Ordering,
            change: impl FnMut(u32) -> Option<u32>,
        ) -> Result<u32, u32> {
            let before = self.0.fetch_update(set, fetch, change);
            Ok(changed(before?, |before| !before))
        }
    }
}

/// What is left out, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    None,
    /// INVEPT.
    Invept,
    /// The look at the generation before each entry.
    Look,
    /// The second look, after the wait for a lock, at whether EPT02 must be emptied.
    Stale,
    /// The answer of one that waits for a lock.
    Answer,
}

/// The machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Board {
    /// Two processors.
    Two,
    /// Two, and NMIs to the second one take some time.
    Slow,
    /// Three processors.
    Three,
}

/// What the NMI handler adds.
const NMI: u32 = 1;
/// Somebody sends no more NMIs.
pub(super) const FINISHED: u32 = 1 << 8;

pub(super) struct Cpu {
    flaw: Flaw,
    call: Call,
    /// NMIs on their way, and [`FINISHED`] once everybody has; if they take any time.
    wire: Option<AtomicU32>,
    /// [`NMI`], and [`FINISHED`] as often as somebody has.
    arrived: AtomicU32,
    /// [`CHANGES`] that the processor has seen.
    seen: Count,
    /// Whether the processor remembers the translation to the frame. Its own thread only.
    remembers: Private,
    /// Whether it was told that the root is fit. Its own thread only.
    loaded: Private,
    /// Whether EPT02 leads to the frame, and whether it must be emptied. Its own thread only.
    shadow: Private,
    shadow_is_stale: Private,
    /// NMIs that were taken for its host's.
    pub(super) owed: Count,
    /// NMIs that were its host's.
    pub(super) sent_by_host: Count,
}

impl Cpu {
    /// An NMI arrives.
    fn arrive(&self) {
        let _ = self.arrived.fetch_add(NMI, Ordering::Relaxed);
    }

    fn has_nmi(&self) -> bool {
        !self.arrived.load(Ordering::Relaxed).is_multiple_of(FINISHED)
    }

    fn new(flaw: Flaw, wire: Option<AtomicU32>) -> Self {
        Self {
            flaw,
            wire,
            call: Call::default(),
            arrived: AtomicU32::new(0),
            seen: Count::new(0),
            remembers: Private::new(false),
            loaded: Private::new(true),
            shadow: Private::new(true),
            shadow_is_stale: Private::new(false),
            owed: Count::new(0),
            sent_by_host: Count::new(0),
        }
    }
}

impl Processor for Cpu {
    fn call(&self) -> &Call {
        &self.call
    }

    fn send_nmi(&self) {
        match &self.wire {
            Some(wire) => drop(wire.fetch_add(NMI, Ordering::Relaxed)),
            None => self.arrive(),
        }
    }

    fn take_nmi(&self) -> bool {
        let arrived = self.has_nmi();
        if arrived {
            let _ = self.arrived.fetch_sub(NMI, Ordering::Relaxed);
        }
        arrived
    }

    fn forget(&self) {
        self.shadow_is_stale.store(true, Ordering::Relaxed);
        if self.flaw != Flaw::Invept {
            self.remembers.store(false, Ordering::Relaxed);
        }
    }

    fn pause(&self) {
        pause(&self.seen);
    }
}

/// A machine with one frame that is about to get another use.
pub(super) struct World {
    pub(super) cpus: Vec<Cpu>,
    calls: Generation,
    roots: Generation,
    /// The lock of the tables: 1 while somebody has it.
    lock: AtomicU32,
    /// Whether the frame is as it was; under the lock.
    is_plain: AtomicBool,
    /// An entry of EPT01 that leads to the frame.
    entry: AtomicBool,
    frame: UnsafeCell<()>,
    /// Not loom's: known at once.
    is_reused: Private,
}

impl World {
    pub(super) fn new(board: Board, flaw: Flaw) -> Arc<Self> {
        let cpus = if board == Board::Three { 3 } else { 2 };
        CHANGES.set(0);
        let _ = WAITING.take();
        Arc::new(Self {
            cpus: (0..cpus)
                .map(|index| {
                    let wire = board == Board::Slow && index == 1;
                    Cpu::new(flaw, wire.then(|| AtomicU32::new(0)))
                })
                .collect(),
            calls: Generation::default(),
            roots: Generation::default(),
            lock: AtomicU32::new(0),
            is_plain: AtomicBool::new(true),
            entry: AtomicBool::new(true),
            frame: UnsafeCell::new(()),
            is_reused: Private::new(false),
        })
    }

    /// Uses the frame as what it was.
    fn use_frame(&self) {
        self.frame.with(|_| ());
        assert!(!self.is_reused.load(Ordering::Relaxed), "used after it got another use");
    }

    fn lock(&self, cpu: &Cpu) {
        let attempt = || (self.lock.swap(1, Ordering::Acquire) == 0).then_some(());
        if cpu.flaw == Flaw::Answer {
            while attempt().is_none() {
                cpu.pause();
            }
        } else {
            lock(cpu, attempt);
        }
    }

    fn unlock(&self) {
        let _ = self.lock.swap(0, Ordering::Release);
    }

    /// Whether the frame is as it was.
    pub(super) fn ask(&self, cpu: &Cpu) -> bool {
        self.lock(cpu);
        let answer = self.is_plain.load(Ordering::Relaxed);
        self.unlock();
        answer
    }

    /// Gives the frame another use.
    pub(super) fn reuse(&self, cpu: &Cpu) {
        self.lock(cpu);
        self.is_plain.store(false, Ordering::Relaxed);
        self.entry.store(false, Ordering::Relaxed);
        self.roots.end();
        let others = || self.cpus.iter().filter(|other| !ptr::eq(*other, cpu));
        everywhere(&self.calls, cpu, others);
        self.frame.with_mut(|_| ());
        self.is_reused.store(true, Ordering::Relaxed);
        self.unlock();
    }

    /// The visor's look for NMIs before each entry (`on_late_nmi`). Returns what else has arrived.
    pub(super) fn look(&self, cpu: &Cpu) -> u32 {
        loop {
            let arrived = cpu.arrived.load(Ordering::Relaxed);
            if arrived.is_multiple_of(FINISHED) {
                return arrived;
            }
            let _ = cpu.take_nmi();
            let was_call = took_nmi(cpu);
            serve(cpu);
            if !was_call {
                let _ = cpu.owed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Enters the host, or a VM on EPT01, and uses the frame if it can.
    pub(super) fn run_on_entry(&self, cpu: &Cpu) {
        let _ = self.look(cpu);
        if !cpu.remembers.load(Ordering::Relaxed) {
            cpu.remembers.store(self.entry.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        if cpu.remembers.load(Ordering::Relaxed) {
            self.use_frame();
        }
    }

    /// Enters a VM whose tables are used as they stand, the frame one of them (`before_entry`).
    pub(super) fn run_on_root(&self, cpu: &Cpu) {
        loop {
            let _ = self.look(cpu);
            if cpu.flaw != Flaw::Look && self.roots.current() != 0 {
                cpu.loaded.store(self.ask(cpu), Ordering::Relaxed);
            }
            if !cpu.has_nmi() {
                break;
            }
        }
        if cpu.loaded.load(Ordering::Relaxed) {
            self.use_frame();
        }
    }

    /// Enters a VM on EPT02, after its own tables were tried in vain (`before_entry`).
    pub(super) fn run_on_shadow(&self, cpu: &Cpu) {
        loop {
            let _ = self.look(cpu);
            if cpu.shadow_is_stale.swap(false, Ordering::Relaxed) {
                cpu.shadow.store(false, Ordering::Relaxed);
            }
            let _ = self.ask(cpu);
            let is_fine = cpu.flaw == Flaw::Stale || !cpu.shadow_is_stale.load(Ordering::Relaxed);
            if is_fine && !cpu.has_nmi() {
                break;
            }
        }
        if cpu.shadow.load(Ordering::Relaxed) {
            self.use_frame();
        }
    }

    /// In an exit, uses the frame as memory of the host's, by what it knows (`host_memory::Known`).
    pub(super) fn use_known(&self, cpu: &Cpu, known: &mut Option<u64>) {
        let calls = self.calls.current();
        if *known != Some(calls) {
            *known = self.ask(cpu).then_some(calls);
        }
        if known.is_some() {
            self.use_frame();
        }
        let _ = self.look(cpu);
    }

    /// Sends no more NMIs.
    pub(super) fn finish(&self, cpu: &Cpu) {
        for other in self.cpus.iter().filter(|other| !ptr::eq(*other, cpu)) {
            let _ = other.arrived.fetch_add(FINISHED, Ordering::Relaxed);
            if let Some(wire) = &other.wire {
                let _ = wire.fetch_add(FINISHED, Ordering::Relaxed);
            }
        }
    }

    /// Halts in the VM until so many have finished.
    pub(super) fn halt(&self, cpu: &Cpu, finished: u32) {
        while self.look(cpu) < finished * FINISHED {
            cpu.pause();
        }
    }

    /// Delivers the NMIs that take time, each at any, until so many have finished.
    pub(super) fn deliver(&self, finished: u32) {
        let cpu = &self.cpus[1];
        let Some(wire) = &cpu.wire else { return };
        let seen = Count::new(0);
        loop {
            match wire.load(Ordering::Relaxed) {
                word if word == finished * FINISHED => return,
                word if word % FINISHED == 0 => pause(&seen),
                _ => {
                    let _ = wire.fetch_sub(NMI, Ordering::Relaxed);
                    cpu.arrive();
                }
            }
        }
    }

    /// Takes an INIT (`host::init`).
    pub(super) fn init(&self, cpu: &Cpu) {
        fall_asleep(cpu);
        if cpu.take_nmi() {
            let _ = took_nmi(cpu);
            serve(cpu);
        }
    }

    /// Takes a SIPI.
    pub(super) fn start_up(&self, cpu: &Cpu) {
        assert!(!cpu.take_nmi(), "an NMI was sent to a processor that waits for SIPI");
        wake_up(cpu);
    }
}
