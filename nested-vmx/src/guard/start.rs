//! The state in which a protected VM begins to run, which is the one state that its host decides.

use super::{Cause, Guarded, RSP, Registers, decoy, save};
use crate::check::{CR4_HIDDEN, Wanted};
use crate::control::EntryControls;
use crate::cr::{CR0_NE, CR0_PG, CR4_VMXE};
use crate::field::{self as f, Segment, Vmcs};
use crate::merge::{HostRegisters, derived_efer, plain_guest_fields};
use crate::state;
use crate::vcpu::Vcpu;
use crate::vmcs12::{Class, Vmcs12, encodings};

/// The state of a virtual processor that has not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// After reset, at the reset vector.
    Reset,
    /// After INIT and a start-up IPI with this vector.
    StartUp(u8),
    /// Any other.
    Other,
}

/// Takes writes for comparisons.
struct Comparison<'a> {
    fields: &'a Vmcs12,
    differs: bool,
}

/// What differs between [`Start::Reset`] and [`Start::StartUp`], or is looked at as the VM sees it.
const APART: [u32; 9] = [
    Segment::Cs.fields().selector.encoding(),
    Segment::Cs.fields().base.encoding(),
    f::GUEST_RIP.encoding(),
    f::GUEST_CR0.encoding(),
    f::CR0_SHADOW.encoding(),
    f::GUEST_CR4.encoding(),
    f::CR4_SHADOW.encoding(),
    f::GUEST_DR7.encoding(),
    f::ENTRY_INTERRUPTION.encoding(),
];

impl Vmcs for Comparison<'_> {
    fn read_raw(&self, encoding: u32) -> u64 {
        self.fields.read_raw(encoding)
    }

    fn write_raw(&mut self, encoding: u32, value: u64) {
        self.differs |= !APART.contains(&encoding) && self.read_raw(encoding) != value;
    }
}

/// CR0 and CR4 as the VM reads them.
pub(super) fn visible(v12: &Vmcs12) -> (u64, u64) {
    let (cr0, mask) = (v12.read(f::GUEST_CR0), v12.read(f::CR0_MASK));
    (cr0 & !mask | v12.read(f::CR0_SHADOW) & mask, visible_cr4(v12))
}

/// CR4 as the VM reads it.
pub(super) fn visible_cr4(v: &impl Vmcs) -> u64 {
    let mask = v.read(f::CR4_MASK);
    v.read(f::GUEST_CR4) & !mask | v.read(f::CR4_SHADOW) & mask
}

/// Which state the host has set up (SDM vol. 3, table 11-1). What is not in the VMCS and the
/// registers given here is the caller's to set.
#[must_use]
pub fn kind(shown: &Vmcs12, registers: &impl Registers) -> Start {
    const CD_NW: u64 = 0x6000_0000;
    const ET: u64 = 0x10;
    const PAT: u64 = 0x0007_0406_0007_0406;
    /// It is 1, whatever is loaded (SDM vol. 3, 27.3.2.1); Xen loads 0.
    const DR7_FIXED: u64 = 0x400;
    const RDX: usize = 2;
    let code = Segment::Cs.fields();
    let entry = (shown.read(code.selector), shown.read(code.base), shown.read(f::GUEST_RIP));
    let [_, vector] = entry.0.to_le_bytes();
    // First what differs for nearly all that run.
    let start = match entry {
        (0xf000, 0xffff_0000, 0xfff0) => Start::Reset,
        (selector, base, 0) if selector & 0xff == 0 && base == u64::from(selector) << 4 => {
            Start::StartUp(vector)
        }
        _ => return Start::Other,
    };
    let mut comparison = Comparison { fields: shown, differs: false };
    state::init(&mut comparison);
    let loaded = EntryControls::LOAD_DEBUG | EntryControls::LOAD_PAT | EntryControls::LOAD_EFER;
    let (cr0, cr4) = visible(shown);
    let system = [f::GUEST_SYSENTER_ESP, f::GUEST_SYSENTER_EIP].map(|field| shown.read(field));
    let mut file = [0; 16];
    save(registers, &mut file);
    // The processor's signature, of 32 bits.
    let [_, _, rdx, ..] = file;
    if let Some(place) = file.get_mut(RDX) {
        *place = rdx >> 32;
    }
    if comparison.differs
        || !Wanted::of(shown).entry.contains(loaded)
        || (cr0 & !CD_NW, cr4) != (ET, 0)
        || shown.read(f::GUEST_PAT) != PAT
        || shown.read(f::GUEST_DR7) & !DR7_FIXED != 0
        || (shown.read(f::GUEST_SYSENTER_CS), system) != (0, [0, 0])
        || file != [0; 16]
    {
        return Start::Other;
    }
    start
}

/// Fields of the state that are the visor's to set, so that they are the same in every VM.
const FIXED: [u32; 4] = [
    f::VMCS_LINK_POINTER.encoding(),
    f::GUEST_DEBUGCTL.encoding(),
    f::GUEST_PERF_GLOBAL.encoding(),
    f::GUEST_SMBASE.encoding(),
];
/// Page-directory-pointer-table entries: no protected VM uses them.
const PDPTES: core::ops::RangeInclusive<u32> = 0x280a..=0x2810;

/// The canonical form of the state that the host has set up, for the hash in the VM's ticket: words
/// of 64 bits, little-endian. First all fields of the guest state in ascending order of their
/// encodings, but without link pointer, DEBUGCTL, PERF_GLOBAL_CTRL, PDPTEs and SMBASE; CR0 and CR4 as
/// the VM reads them; EFER, PAT and DR7 as they will be loaded. Then the 16 general-purpose registers in
/// the order of their numbers, 0 for RSP, which is among the fields.
pub fn state(
    shown: &Vmcs12,
    host: &HostRegisters,
    registers: &impl Registers,
    mut feed: impl FnMut(u64),
) {
    for encoding in encodings(&[Class::Guest, Class::HotGuest])
        .filter(|encoding| !FIXED.contains(encoding) && !PDPTES.contains(encoding))
    {
        feed(first_value(shown, host, encoding));
    }
    let mut file = [0; 16];
    save(registers, &mut file);
    file.into_iter().for_each(feed);
}

/// What a field of the state is at the first entry, for the VM.
fn first_value(shown: &Vmcs12, host: &HostRegisters, encoding: u32) -> u64 {
    const CR0: u32 = f::GUEST_CR0.encoding();
    const CR4: u32 = f::GUEST_CR4.encoding();
    const EFER: u32 = f::GUEST_EFER.encoding();
    const PAT: u32 = f::GUEST_PAT.encoding();
    const DR7: u32 = f::GUEST_DR7.encoding();
    let wanted = Wanted::of(shown);
    let loads = |control| wanted.entry.contains(control);
    match encoding {
        CR0 => visible(shown).0,
        CR4 => visible(shown).1,
        EFER if !loads(EntryControls::LOAD_EFER) => {
            derived_efer(&wanted, host.efer, shown.read(f::GUEST_CR0))
        }
        PAT if !loads(EntryControls::LOAD_PAT) => host.pat,
        DR7 if !loads(EntryControls::LOAD_DEBUG) => host.dr7,
        _ => shown.read_raw(encoding),
    }
}

/// CR4.MCE: machine checks exit, and must not shut the processor down instead.
pub(super) const CR4_MCE: u64 = 1 << 6;
const CR4_PAE: u64 = 1 << 5;

impl Guarded<'_> {
    /// Takes over the state that the host has set up, for the first entry, and leaves decoys. What the
    /// host has changed there since its last access has been pulled.
    ///
    /// # Errors
    /// [`Cause`], if no VM may start in this state.
    pub fn first_entry(
        &mut self,
        shown: &mut Vcpu<'_>,
        host: &HostRegisters,
        registers: &impl Registers,
    ) -> Result<(), Cause> {
        let fields = shown.fields();
        let (cr0, cr4) = visible(fields);
        let entry = Wanted::of(fields).entry & EntryControls::IA32E_GUEST;
        if shown.has_stale() || cr4 & (CR4_HIDDEN | CR4_VMXE) != 0 {
            return Err(Cause::FirstState);
        }
        if cr0 & CR0_PG != 0 && cr4 & CR4_PAE != 0 && entry.is_empty() {
            return Err(Cause::PaePaging);
        }
        let by_control = [f::GUEST_EFER, f::GUEST_PAT].map(f::Field::encoding);
        let all = plain_guest_fields(&[Class::Guest, Class::HotGuest])
            .chain(by_control)
            .chain([f::GUEST_DR7.encoding()]);
        for encoding in all.filter(|encoding| !PDPTES.contains(encoding)) {
            self.put(encoding, first_value(fields, host, encoding));
        }
        for (encoding, value) in [
            (f::VMCS_LINK_POINTER.encoding(), u64::MAX),
            (f::GUEST_CR0.encoding(), cr0 | CR0_NE),
            (f::CR0_SHADOW.encoding(), cr0),
            (f::GUEST_CR4.encoding(), cr4 | CR4_VMXE | CR4_MCE),
            (f::CR4_SHADOW.encoding(), cr4),
            // `take_controls` sets them as they are to be.
            (f::CR0_MASK.encoding(), u64::MAX),
            (f::CR4_MASK.encoding(), u64::MAX),
            (f::ENTRY_CONTROLS.encoding(), entry.bits().into()),
        ] {
            self.put(encoding, value);
        }
        save(registers, &mut self.secrets.gprs);
        self.secrets.pending = None;
        self.secrets.delivery = None;
        self.secrets.flush = true;
        decoy::cover(shown);
        let effective = self.effective.fields();
        decoy::uncover(shown, effective, effective);
        Ok(())
    }

    /// Moves the code segment of a processor in [`Start::Reset`], which has not run, to `base`.
    pub fn reset_in(&mut self, base: u32) {
        self.put(Segment::Cs.fields().base.encoding(), base.into());
    }
}

const _: () = assert!(RSP == 4, "the canonical form has 0 there");
