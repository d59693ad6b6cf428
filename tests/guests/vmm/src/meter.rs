//! Counts of exits: the visor's, which sees every one, or KVM's own; and how a VM gets to read them.

use crate::port::Control;
use crate::vm::Vcpu;
use control::{INDEX_COUNTER, INDEX_COUNTERS, INDEX_MAGIC, MAGIC, Status};
use std::arch::x86_64::_rdtsc;

/// The basic reason of exits by which the visor learns of stores to tables of VMs.
const EPT_VIOLATION: u32 = 48;

/// Who counts the exits of this machine.
pub(crate) struct Meter(Option<Status<Control>>);

/// What the visor says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// Exits for all reasons.
    pub(crate) exits: u64,
    /// Those that are EPT violations, of the host or of a VM.
    pub(crate) violations: u64,
    /// Ticks in the visor.
    pub(crate) ticks: u64,
}

impl Meter {
    /// The visor's counters if it is there.
    pub(crate) fn new() -> Result<Self, String> {
        Ok(Self(Status::find(Control::new()?).ok()))
    }

    /// Exits so far: all of the machine's, or those of `vcpu` if nobody counts more.
    pub(crate) fn exits(&mut self, vcpu: &Vcpu) -> Result<u64, String> {
        self.0.as_mut().map(all).map_or_else(|| vcpu.statistic("exits"), Ok)
    }

    /// What the visor says, if there is one.
    pub(crate) fn visor(&mut self) -> Option<Reading> {
        let status = self.0.as_mut()?;
        let (ticks, exits) = (status.ticks(), all(status));
        Some(Reading { exits, violations: status.exits(EPT_VIOLATION).unwrap_or(0), ticks })
    }
}

fn all(status: &mut Status<Control>) -> u64 {
    (0..status.counters()).filter_map(|reason| status.exits(reason)).sum()
}

/// The machine's clock, which counts instructions in Bochs.
pub(crate) fn clock() -> u64 {
    // SAFETY: RDTSC is always allowed here and touches no memory.
    unsafe { _rdtsc() }
}

/// The visor's port as a VM of this program finds it: with one counter, that of all exits here.
pub(crate) struct Served {
    meter: Meter,
    index: u32,
    high: u32,
}

impl Served {
    pub(crate) fn new() -> Result<Self, String> {
        Ok(Self { meter: Meter::new()?, index: 0, high: 0 })
    }

    /// The VM selects a value.
    pub(crate) fn select(&mut self, bytes: &[u8]) {
        self.index = <[u8; 4]>::try_from(bytes).map_or(0, u32::from_le_bytes);
    }

    /// The VM reads it.
    pub(crate) fn read(&mut self, vcpu: &Vcpu) -> Result<u32, String> {
        const HIGH: u32 = INDEX_COUNTER + 1;
        Ok(match self.index {
            INDEX_MAGIC => MAGIC,
            INDEX_COUNTERS => 1,
            INDEX_COUNTER => {
                let exits = self.meter.exits(vcpu)?;
                self.high = (exits >> 32) as u32;
                exits as u32
            }
            HIGH => self.high,
            _ => u32::MAX,
        })
    }
}
