//! Calls: how a processor makes every other one forget what it remembers of any EPT, and leave its
//! VM. The visor lends the hardware ([`Processor`]); the tests check every interleaving of it, with
//! loom's atomics in the place of the real ones.
//!
//! What always holds:
//!
//! 1. When [`everywhere`] returns, no processor can use a translation from before, and none runs a
//!    VM without having looked, after the call, at everything that the caller changed before it.
//! 2. A processor that waits for the lock which the caller holds answers meanwhile ([`lock`]).
//! 3. Of as many NMIs as arrive, as many are taken for calls as were sent for calls.
//! 4. No NMI is on its way to a processor that waits for SIPI.
//!
//! All that is known of a call is one word, and it only changes by read-modify-writes: so the two
//! sides cannot miss each other, and no fence is needed.

#[cfg(test)]
mod model;
#[cfg(test)]
mod world;

#[cfg(not(test))]
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(test)]
use world::atomic::{AtomicU32, AtomicU64, Ordering};

/// The processor has to forget what it remembers.
const DUE: u32 = 1;
/// It cannot be called: it waits for SIPI, and forgets everything when it starts.
const ASLEEP: u32 = 1 << 1;
/// An NMI is on its way to it. Never are there two.
const SENT: u32 = 1 << 2;

/// How others call a processor. All bits 0: awake, and not called.
#[derive(Debug, Default)]
pub struct Call(AtomicU32);

impl Call {
    /// Whether the processor waits for SIPI. It is only sure to go on doing so if nobody is left who could send one.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.0.load(Ordering::Acquire) & ASLEEP != 0
    }
}

/// One processor's hardware, as calls see it. Only [`send_nmi`](Self::send_nmi) is for others than
/// itself.
pub trait Processor {
    /// How it is called.
    fn call(&self) -> &Call;
    /// Sends it an NMI. A change of [`Call`] made before is seen by what handles the NMI.
    fn send_nmi(&self);
    /// Whether one more NMI has arrived, in VMX root mode, than this was asked for.
    fn take_nmi(&self) -> bool;
    /// Drops all translations, of any EPT.
    fn forget(&self);
    /// Lets some time pass. Does not return if the machine is being stopped.
    fn pause(&self);
}

/// Counts how often something has ended that processors hold for true without a lock: that a root is
/// loaded, or what a frame of the host is.
///
/// What ends it does so before it calls [`everywhere`]. So what a processor has found out at one
/// generation holds, as long as that is the current one, until it next looks for a call: to the end
/// of its exit, or until it waits for a lock.
#[derive(Debug, Default)]
pub struct Generation(AtomicU64);

impl Generation {
    /// The first.
    #[cfg(not(test))]
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The current one.
    #[must_use]
    pub fn current(&self) -> u64 {
        // The call orders it: see above.
        self.0.load(Ordering::Relaxed)
    }

    /// Begins the next.
    pub(crate) fn end(&self) {
        let _ = self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Calls every processor but the caller's `own`, which are the `others`, and counts that in `calls`.
///
/// Returns when every processor has forgotten everything and is outside its VM, or will look again
/// before it enters one. Only one processor at a time may call: who does has a lock that all others
/// wait for by [`lock`].
pub fn everywhere<'p, P: Processor + 'p, O: Iterator<Item = &'p P>>(
    calls: &Generation,
    own: &P,
    others: impl Fn() -> O,
) {
    let ask = |word| Some(if word & ASLEEP == 0 { word | DUE | SENT } else { word | DUE });
    calls.end();
    for other in others() {
        let (Ok(before) | Err(before)) =
            other.call().0.fetch_update(Ordering::Release, Ordering::Relaxed, ask);
        // An NMI that is still on its way does for this call, too.
        if before & (SENT | ASLEEP) == 0 {
            other.send_nmi();
        }
    }
    own.forget();
    for other in others() {
        while other.call().0.load(Ordering::Acquire) & (DUE | ASLEEP) == DUE {
            own.pause();
        }
    }
}

/// Answers a call, if there is one.
pub fn serve(cpu: &impl Processor) {
    let word = &cpu.call().0;
    if word.load(Ordering::Acquire) & DUE != 0 {
        cpu.forget();
        let _ = word.fetch_and(!DUE, Ordering::Release);
    }
}

/// Whether an NMI that has arrived was a call. To be asked once for each, before [`serve`]: the next
/// caller relies on it only as long as it was not asked for.
pub fn took_nmi(cpu: &impl Processor) -> bool {
    cpu.call().0.fetch_and(!SENT, Ordering::Relaxed) & SENT != 0
}

/// Takes a lock, by `attempt`, whose holder may be waiting for this processor's answer.
pub fn lock<G>(cpu: &impl Processor, attempt: impl Fn() -> Option<G>) -> G {
    loop {
        if let Some(guard) = attempt() {
            return guard;
        }
        serve(cpu);
        cpu.pause();
    }
}

/// From now on this processor cannot be called. It is in VMX root mode and remembers what it
/// remembers, but does not use it before it wakes up.
pub fn fall_asleep(cpu: &impl Processor) {
    let word = &cpu.call().0;
    if word.fetch_or(ASLEEP, Ordering::Release) & SENT != 0 {
        // An NMI might not reach it any more later, or only once it has started.
        while !cpu.take_nmi() {
            cpu.pause();
        }
        let _ = word.fetch_and(!SENT, Ordering::Relaxed);
    }
}

/// It can be called again, and remembers nothing.
pub fn wake_up(cpu: &impl Processor) {
    cpu.forget();
    let _ = cpu.call().0.swap(0, Ordering::Acquire);
}
