//! The frame table and EPT01: who owns which frame, and what the host can therefore reach.
#![expect(unsafe_code, reason = "storage of the frame table")]

use core::fmt;

use ept::addr::{Frame, Span};
use ept::ept01::{self, Ept01, Rules, Tlb};
use ept::frames::{Event, FrameTable, Owner};
use ept::mtrr::{self, Mtrrs};
use spin::Mutex;

use crate::cpu::{read_msr, size, vmx};
use crate::events;
use crate::memory::{self, POOL, Pool};

/// What the host can reach, and why.
pub(crate) struct HostTables {
    state: Mutex<State>,
    pointer: u64,
    width: u8,
}

struct State {
    frames: FrameTable<'static>,
    /// What the host has written, and what it means.
    registers: mtrr::Registers,
    mtrrs: Mtrrs,
    ept: Ept01,
}

impl State {
    fn rules(&self) -> Rules<'_> {
        Rules { frames: &self.frames, mtrrs: &self.mtrrs, denied: &[] }
    }
}

impl fmt::Debug for HostTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EPT01 at {:#x}", self.pointer)
    }
}

/// This processor's cached translations. Whoever changes the memory types does it on every
/// processor, and each then flushes its own; until then another one uses the old types, as it
/// would without the visor.
struct Local;

impl Tlb for Local {
    fn flush(&mut self, _: Span) {
        vmx::invept_all();
    }
}

impl HostTables {
    /// The frame table over `ram`, with what is `claimed` the visor's, and EPT01; all in `pool`.
    #[expect(clippy::large_stack_frames, reason = "runs once, on the boot stack of 64 KiB")]
    pub(crate) fn build(
        pool: &mut Pool,
        ram: &'static [Span],
        claimed: [Span; 2],
        width: u8,
    ) -> Option<Self> {
        let entries = FrameTable::entries(ram);
        let storage = pool.take(entries * 8)?;
        let first = memory::pointer::<u64>(Frame::containing(storage.start()))?;
        // SAFETY: the frames were just taken, are zeroed and mapped, hold this many entries, and
        // nothing else names them.
        let storage = unsafe { core::slice::from_raw_parts_mut(first.as_ptr(), size(entries)) };
        let mut frames = FrameTable::new(ram, storage).ok()?;
        for span in claimed {
            frames.apply(span, Event::Claim).ok()?;
        }
        let registers = mtrr::Registers::read(read_msr);
        let mtrrs = Mtrrs::read(width, |index| registers.value(index).unwrap_or(0));
        let rules = Rules { frames: &frames, mtrrs: &mtrrs, denied: &[] };
        let ept = Ept01::build(pool, &rules, ept01::end(width)).ok()?;
        let pointer = ept.pointer();
        Some(Self { state: Mutex::new(State { frames, registers, mtrrs, ept }), pointer, width })
    }

    /// The EPT pointer for the VMCS.
    pub(crate) fn pointer(&self) -> u64 {
        self.pointer
    }

    /// The host's MTRR `index`; `None` if there is none.
    pub(crate) fn read_mtrr(&self, index: u32) -> Option<u64> {
        self.state.lock().registers.value(index)
    }

    /// Writes the host's MTRR `index` and lets EPT01 follow; `false` if there is none or it does not
    /// take `value`. The processor's own MTRRs stay as firmware set them: they also rule how the
    /// visor reaches its memory, while under EPT they do not count for the host's.
    pub(crate) fn write_mtrr(&self, cpu: u32, index: u32, value: u64) -> bool {
        let mut state = self.state.lock();
        if !state.registers.write(index, value, self.width) {
            return false;
        }
        if !state.registers.enabled() {
            // In the middle of a change, with the caches off (SDM vol. 3, 13.11.8).
            return true;
        }
        let mtrrs = Mtrrs::read(self.width, |index| state.registers.value(index).unwrap_or(0));
        if mtrrs != state.mtrrs {
            state.mtrrs = mtrrs;
            let mut pool = POOL.lock();
            let (rules, ept) = (state.rules(), state.ept);
            let stale = ept.revise(&mut *pool, &rules, ept.all());
            let flushed = stale.flush(&mut Local);
            if let Err(error) = ept.complete(&mut *pool, &rules, flushed) {
                log::error!("EPT01 is incomplete after a change of memory types: {error}");
            }
            events::record(cpu, events::Event::MemoryTypes);
        }
        vmx::invept_all();
        true
    }

    /// Whether the host may by now do what it was stopped from: another processor was changing the
    /// tables.
    pub(crate) fn reaches(&self, address: u64) -> bool {
        let state = self.state.lock();
        let pool = POOL.lock();
        state.ept.walk(&*pool, address).is_some()
    }

    /// The 8 bytes at `address`, if the host owns that RAM.
    pub(crate) fn read_host(&self, address: u64) -> Option<u64> {
        let state = self.state.lock();
        let owner = state.frames.owner(Frame::containing(address));
        (owner == Some(Owner::Host) && address.is_multiple_of(8)).then(|| memory::read_u64(address))
    }
}
