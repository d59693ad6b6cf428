//! Back to the host after an exit of its VM: what VMCS01 then holds (SDM vol. 3, 29.5).

use crate::check::{EFER_LONG, Wanted};
use crate::control::{ExitControls, Pin};
use crate::cr::{self, CR0_CACHE, CR0_NE, CR4_VMXE, HostMemory};
use crate::field::{self as f, Segment, Vmcs};
use crate::vmcs12::Vmcs12;

/// What the host inherits from its VM, where its exit controls do not say otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The VM's IA32_EFER.
    pub efer: u64,
    /// The VM's IA32_PAT.
    pub pat: u64,
    /// The VM's interruptibility.
    pub interruptibility: u32,
}

impl Inherited {
    /// Reads it from VMCS02, as far as the controls in `v12` have the host inherit anything.
    #[must_use]
    #[inline(always)]
    pub fn of(v02: &impl Vmcs, v12: &Vmcs12) -> Self {
        let Wanted { exit, pin, .. } = Wanted::of(v12);
        let (mut efer, mut pat, mut interruptibility) = (0, 0, 0);
        if !exit.contains(ExitControls::LOAD_EFER) {
            efer = v02.read(f::GUEST_EFER);
        }
        if !exit.contains(ExitControls::LOAD_PAT) {
            pat = v02.read(f::GUEST_PAT);
        }
        if !pin.contains(Pin::VIRTUAL_NMIS) {
            interruptibility = v02.read(f::GUEST_INTERRUPTIBILITY);
        }
        Self { efer, pat, interruptibility }
    }
}

/// What the exit does to the blocking of NMIs in the host (SDM vol. 3, 29.5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The exit is by an NMI, which blocks others.
    Nmi,
    /// The blocking stays as the VM had it, unless that was virtual.
    Other,
}

/// The exit cannot be completed: the processor would shut down (28.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort(pub u32);

/// Page-directory-pointer-table entries of the host are invalid.
const ABORT_PDPTES: u32 = 2;
const CR4_PAE: u64 = 1 << 5;
const CR4_PCIDE: u64 = 1 << 17;
const CR0_ET: u64 = 1 << 4;
const BLOCKED_BY_NMI: u32 = 1 << 3;

/// Loads the host's state from VMCS12 into VMCS01, in which the exit by the host's VM-entry instruction
/// has left an active processor and no event to inject. The host's mode stays (28.2.4), and so does
/// what it sees of CR4, where the visor owns bits: VMXE, which cannot be cleared in VMX operation.
///
/// # Errors
/// [`Abort`] when the host's page tables cannot be used.
#[inline(always)]
pub fn load_host(
    v12: &Vmcs12,
    inherited: Inherited,
    cause: Cause,
    memory: &impl HostMemory,
    v01: &mut impl Vmcs,
) -> Result<(), Abort> {
    let wanted = Wanted::of(v12);
    let long = wanted.exit.contains(ExitControls::HOST_64_BIT);
    control_registers(v12, &wanted, v01);
    model_specific(v12, &wanted, inherited, v01);
    segments(v12, &wanted, v01);
    v01.write(f::GUEST_RIP, v12.read(f::HOST_RIP));
    v01.write(f::GUEST_RSP, v12.read(f::HOST_RSP));
    v01.write(f::GUEST_RFLAGS, 2);
    v01.write(f::GUEST_DR7, 0x400);
    v01.write(f::GUEST_PENDING_DEBUG, 0);
    let physical = !wanted.pin.contains(Pin::VIRTUAL_NMIS);
    let kept = if physical { inherited.interruptibility & BLOCKED_BY_NMI } else { 0 };
    v01.write(
        f::GUEST_INTERRUPTIBILITY,
        match cause {
            Cause::Nmi => BLOCKED_BY_NMI,
            Cause::Other => kept,
        },
    );
    if !long && v12.read(f::HOST_CR4) & CR4_PAE != 0 {
        cr::load_pdptes(v01, memory).map_err(|cr::Fault| Abort(ABORT_PDPTES))?;
    }
    Ok(())
}

fn control_registers(v12: &Vmcs12, wanted: &Wanted, v01: &mut impl Vmcs) {
    // These bits no exit changes.
    let kept = CR0_CACHE | CR0_ET;
    let cr0 = v12.read(f::HOST_CR0) & !kept | v01.read(f::GUEST_CR0) & kept;
    v01.write(f::GUEST_CR0, cr0 | CR0_NE);
    v01.write(f::CR0_SHADOW, cr0);
    v01.write(f::GUEST_CR3, v12.read(f::HOST_CR3));
    let cr4 = v12.read(f::HOST_CR4);
    let long = wanted.exit.contains(ExitControls::HOST_64_BIT);
    let cr4 = if long { cr4 | CR4_PAE } else { cr4 & !CR4_PCIDE };
    v01.write(f::GUEST_CR4, cr4 | CR4_VMXE);
}

fn model_specific(v12: &Vmcs12, wanted: &Wanted, inherited: Inherited, v01: &mut impl Vmcs) {
    let long = wanted.exit.contains(ExitControls::HOST_64_BIT);
    let efer = if wanted.exit.contains(ExitControls::LOAD_EFER) {
        v12.read(f::HOST_EFER)
    } else if long {
        inherited.efer | EFER_LONG
    } else {
        inherited.efer & !EFER_LONG
    };
    v01.write(f::GUEST_EFER, efer);
    let load_pat = wanted.exit.contains(ExitControls::LOAD_PAT);
    v01.write(f::GUEST_PAT, if load_pat { v12.read(f::HOST_PAT) } else { inherited.pat });
    v01.write(f::GUEST_DEBUGCTL, 0);
    v01.write(f::GUEST_SYSENTER_CS, v12.read(f::HOST_SYSENTER_CS));
    v01.write(f::GUEST_SYSENTER_ESP, v12.read(f::HOST_SYSENTER_ESP));
    v01.write(f::GUEST_SYSENTER_EIP, v12.read(f::HOST_SYSENTER_EIP));
}

/// Access rights (SDM vol. 3, 29.5.2): flat ring-0 code of 64 and 32 bits, data, busy TSS.
const CODE_64: u32 = 0xa09b;
const CODE_32: u32 = 0xc09b;
const DATA: u32 = 0xc093;
const BUSY_TSS: u32 = 0x8b;
const UNUSABLE: u32 = 1 << 16;

#[inline(always)]
fn segments(v12: &Vmcs12, wanted: &Wanted, v01: &mut impl Vmcs) {
    let long = wanted.exit.contains(ExitControls::HOST_64_BIT);
    let fs = v12.read(f::HOST_FS_BASE);
    let gs = v12.read(f::HOST_GS_BASE);
    data(v01, Segment::Es, v12.read(f::HOST_ES_SELECTOR), 0);
    data(v01, Segment::Ss, v12.read(f::HOST_SS_SELECTOR), 0);
    data(v01, Segment::Ds, v12.read(f::HOST_DS_SELECTOR), 0);
    data(v01, Segment::Fs, v12.read(f::HOST_FS_SELECTOR), fs);
    data(v01, Segment::Gs, v12.read(f::HOST_GS_SELECTOR), gs);
    let code = if long { CODE_64 } else { CODE_32 };
    set(v01, Segment::Cs, (v12.read(f::HOST_CS_SELECTOR), 0, u32::MAX, code));
    let task = (v12.read(f::HOST_TR_SELECTOR), v12.read(f::HOST_TR_BASE), 0x67, BUSY_TSS);
    set(v01, Segment::Tr, task);
    let local = Segment::Ldtr.fields();
    v01.write(local.selector, 0);
    v01.write(local.rights, UNUSABLE);
    v01.write(f::GUEST_GDTR_BASE, v12.read(f::HOST_GDTR_BASE));
    v01.write(f::GUEST_IDTR_BASE, v12.read(f::HOST_IDTR_BASE));
    v01.write(f::GUEST_GDTR_LIMIT, 0xffff);
    v01.write(f::GUEST_IDTR_LIMIT, 0xffff);
}

// Inlined, these are constants and VMWRITEs: this is on the way of every exit to the host.

#[inline(always)]
fn data(v01: &mut impl Vmcs, segment: Segment, selector: u16, base: u64) {
    if selector != 0 {
        return set(v01, segment, (selector, base, u32::MAX, DATA));
    }
    let fields = segment.fields();
    v01.write(fields.selector, 0);
    v01.write(fields.rights, UNUSABLE);
    // All else is undefined then, but for these two in 64-bit mode.
    if matches!(segment, Segment::Fs | Segment::Gs) {
        v01.write(fields.base, base);
    }
}

/// Selector, base, limit, access rights.
type Descriptor = (u16, u64, u32, u32);

#[inline(always)]
fn set(v01: &mut impl Vmcs, segment: Segment, (selector, base, limit, rights): Descriptor) {
    let fields = segment.fields();
    v01.write(fields.selector, selector);
    v01.write(fields.base, base);
    v01.write(fields.limit, limit);
    v01.write(fields.rights, rights);
}
