//! Which processor of its VM one is, and how it begins anew.

use super::start::{Start, kind};
use super::{File, Guarded, Registers, Space, decoy, low, msr};
use crate::disclosure::Exit;
use crate::field::{self as f, Vmcs};
use crate::vmcs12::Vmcs12;

/// Registers of the local APIC in xAPIC mode, where every system leaves them: the id in bits 31:24, and the
/// interrupt command, of which bits 63:32 are in a register of their own.
const APIC_ID: u64 = 0xfee0_0020;
const APIC_COMMAND: u64 = 0xfee0_0300;
const APIC_COMMAND_HIGH: u64 = 0xfee0_0310;

/// Which processor one is.
#[derive(Clone, Copy)]
pub(super) enum Name {
    /// The one with this id of its local APIC.
    Is(u8),
    /// One that has begun with this vector and has not asked for its id.
    Begun(u8),
}

impl Guarded<'_> {
    /// The id of the local APIC is the visor's to say, wherever the VM asks for it: two processors with the
    /// same would have the same stack.
    pub(super) fn take_id(&mut self, exit: Exit, answer: &mut File, space: &impl Space) {
        let [eax, _, edx, ebx, ..] = answer;
        let [leaf, index, ..] = self.secrets.gprs;
        let (place, shift) = match (exit, low(leaf), low(index)) {
            (Exit::Cpuid, 1, _) => (ebx, 24),
            (Exit::Cpuid, 0xb | 0x1f, _) => (edx, 0),
            (Exit::ReadMsr, _, msr::X2APIC_ID) => {
                *edx = 0;
                (eax, 0)
            }
            _ => return,
        };
        *place = self.with_id(*place, shift, space);
    }

    /// The host's answer to the access to a device that it has completed, likewise.
    pub(super) fn answer_of_access(&mut self, space: &impl Space) -> u64 {
        let [rax, ..] = self.secrets.outside;
        let is_id = matches!(self.access(), Some((Exit::DeviceRead, APIC_ID, 4, _)));
        if is_id { self.with_id(rax, 24, space) } else { rax }
    }

    /// `value` with the id from bit `shift` on, where the host has one. At the first time the host says which
    /// processor it is, if it may be that.
    fn with_id(&mut self, value: u64, shift: u32, space: &impl Space) -> u64 {
        let id = match self.secrets.name {
            Name::Is(id) => id,
            Name::Begun(vector) => space.name(vector, low(value) >> shift),
        };
        self.secrets.name = Name::Is(id);
        value & ((1 << shift) - 1) | u64::from(id) << shift
    }

    /// The command in the form of x2APIC mode, if the access to a device that the host is told of is a store
    /// to the local APIC's registers that sends an INIT or start-up IPI.
    pub(super) fn sends(&mut self) -> Option<u64> {
        match self.access()? {
            (Exit::DeviceWrite, APIC_COMMAND_HIGH, 4, data) => {
                self.secrets.destination = low(data) >> 24;
                None
            }
            (Exit::DeviceWrite, APIC_COMMAND, 4, data) => {
                msr::start(u64::from(self.secrets.destination) << 32 | u64::from(low(data)))
            }
            _ => None,
        }
    }

    /// Whether the processor waits with interrupts closed, as one does that was taken out of service, and
    /// the VM and its host have it begin anew.
    pub(super) fn restarts(
        &self,
        shown: &Vmcs12,
        registers: &impl Registers,
        space: &impl Space,
    ) -> bool {
        let Some(pending) = self.secrets.pending else { return false };
        let Name::Is(id) = self.secrets.name else { return false };
        // A HLT that is completed or not never has the host enter at 0.
        if !self.is_off(pending) || shown.read(f::GUEST_RIP) != 0 {
            return false;
        }
        let Start::StartUp(vector) = kind(shown, registers) else { return false };
        !self.effective.has_stale() && space.restarts(id, vector)
    }

    /// Whether the exit is a HLT with interrupts closed.
    pub(super) fn is_off(&self, exit: Exit) -> bool {
        exit == Exit::Halt && self.effective.fields().read(f::GUEST_RFLAGS) & decoy::IF == 0
    }
}
