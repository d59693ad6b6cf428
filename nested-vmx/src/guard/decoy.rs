//! What the host finds where the state of a protected VM was.

use super::put;
use crate::control::EntryControls;
use crate::field::{self as f, Segment, Vmcs};
use crate::merge::plain_guest_fields;
use crate::vcpu::Vcpu;
use crate::vmcs12::{Class, INFORMATION};

/// The RIP that the host sees at every exit but those by accesses to devices.
pub const DECOY_RIP: u64 = 0x1000;

const INSTRUCTION_ERROR: u32 = f::INSTRUCTION_ERROR.encoding();
/// Access rights: flat ring-0 code but for D and L, data, busy TSS.
const CODE: u32 = 0x809b;
const DATA: u32 = 0xc093;
const BUSY_TSS: u32 = 0x8b;
const UNUSABLE: u32 = 1 << 16;
/// D and L.
const MODE: u32 = 1 << 14 | 1 << 13;
const PAT: u64 = 0x0007_0406_0007_0406;
/// EFER: IA-32e mode is active.
const LMA: u64 = 1 << 10;
/// RFLAGS: interrupts are enabled; the bit that is always 1.
pub(super) const IF: u64 = 1 << 9;
pub(super) const FIXED: u64 = 1 << 1;

/// Puts constants where the state was, and what a last exit may have told.
pub(super) fn cover(shown: &mut Vcpu<'_>) {
    for encoding in INFORMATION.into_iter().filter(|field| *field != INSTRUCTION_ERROR) {
        shown.tell(encoding, 0);
    }
    for encoding in plain_guest_fields(&[Class::Guest, Class::HotGuest]) {
        put(shown, encoding, 0);
    }
    flatten(shown);
    put(shown, f::GUEST_PAT.encoding(), PAT);
    put(shown, f::GUEST_DR7.encoding(), 0x400);
    put(shown, f::GUEST_DEBUGCTL.encoding(), 0);
    put(shown, f::GUEST_PERF_GLOBAL.encoding(), 0);
}

/// Makes all segments flat. [`uncover`] has the rights of CS and SS right.
pub(super) fn flatten(shown: &mut Vcpu<'_>) {
    for segment in Segment::ALL {
        let fields = segment.fields();
        let (limit, rights) = match segment {
            Segment::Tr => (0x67, Some(BUSY_TSS)),
            Segment::Ldtr => (0, Some(UNUSABLE)),
            Segment::Cs | Segment::Ss => (u32::MAX, None),
            Segment::Es | Segment::Ds | Segment::Fs | Segment::Gs => (u32::MAX, Some(DATA)),
        };
        put(shown, fields.base.encoding(), 0);
        put(shown, fields.limit.encoding(), limit.into());
        if let Some(rights) = rights {
            put(shown, fields.rights.encoding(), rights.into());
        }
    }
}

/// Tells the host what it must know, because it relies on what it has seen of it before, and renews
/// the decoys that it sees most; `hot` has the fields that every exit saves, and `cold` the others.
pub(super) fn uncover(shown: &mut Vcpu<'_>, hot: &impl Vmcs, cold: &impl Vmcs) {
    let rights = CODE | hot.read(Segment::Cs.fields().rights) & MODE;
    let entry = shown.fields().read(f::ENTRY_CONTROLS) & !EntryControls::IA32E_GUEST.bits();
    let long = hot.read(f::ENTRY_CONTROLS) & EntryControls::IA32E_GUEST.bits();
    // All that changes of it without an exit, when CR0 does.
    let active = if long != 0 { LMA } else { 0 };
    put(shown, Segment::Cs.fields().rights.encoding(), rights.into());
    put(shown, Segment::Ss.fields().rights.encoding(), DATA.into());
    put(shown, f::ENTRY_CONTROLS.encoding(), (entry | long).into());
    put(shown, f::GUEST_EFER.encoding(), cold.read(f::GUEST_EFER) & !LMA | active);
    put(shown, f::GUEST_ACTIVITY.encoding(), cold.read(f::GUEST_ACTIVITY).into());
    put(shown, f::GUEST_INTERRUPTIBILITY.encoding(), hot.read(f::GUEST_INTERRUPTIBILITY).into());
    put(shown, f::GUEST_CR0.encoding(), hot.read(f::GUEST_CR0));
    put(shown, f::GUEST_CR3.encoding(), 0);
    put(shown, f::GUEST_CR4.encoding(), hot.read(f::GUEST_CR4));
    put(shown, f::GUEST_RSP.encoding(), 0);
    put(shown, f::GUEST_RIP.encoding(), DECOY_RIP);
    put(shown, f::GUEST_RFLAGS.encoding(), hot.read(f::GUEST_RFLAGS) & IF | FIXED);
}
