//! Which processor of its VM one is, and how it begins anew.

use super::start::{Start, kind};
use super::{File, Guarded, Registers, Space, decoy, low, msr};
use crate::disclosure::Exit;
use crate::field::{self as f, Vmcs};
use crate::vmcs12::Vmcs12;

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
        if let Name::Begun(vector) = self.secrets.name {
            self.secrets.name = Name::Is(space.name(vector, low(*place) >> shift));
        }
        if let Name::Is(id) = self.secrets.name {
            *place = *place & ((1 << shift) - 1) | u64::from(id) << shift;
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
