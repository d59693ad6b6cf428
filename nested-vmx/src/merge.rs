//! VMCS12 into VMCS02: what the host wants, with what the visor needs.

use crate::capability::Controls;
use crate::check::{CR4_HIDDEN, EFER_LONG, Wanted};
use crate::control::{EntryControls, ExitControls, Pin, Primary, Secondary};
use crate::field::{self as f, Vmcs};
use crate::vmcs12::{COLD, Class, Vmcs12, encodings, places};

/// The tag of the host's own translations. A VM that the host gives the same tag runs untagged.
pub const HOST_VPID: u16 = 0xffff;

/// What VMCS02 takes from the visor.
#[derive(Clone, Copy, Debug)]
pub struct Environment<'a> {
    /// The controls with which the host itself runs.
    pub host: &'a Controls,
    /// The exit control that saves the VMX-preemption timer, if there is one.
    pub save_timer: ExitControls,
    /// Physical address of the MSR bitmaps for this VM: see [`crate::bitmap`].
    pub msr_bitmap: u64,
    /// Physical addresses of the host's I/O bitmaps.
    pub io_bitmaps: (u64, u64),
    /// Physical address of a virtual-APIC page for VMs whose own cannot be used.
    pub virtual_apic: u64,
}

/// Registers of the host, when it enters a VM, that the VM may inherit.
#[derive(Clone, Copy, Debug)]
pub struct HostRegisters {
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// DR7.
    pub dr7: u64,
    /// IA32_DEBUGCTL.
    pub debugctl: u64,
}

impl HostRegisters {
    /// For a VM that inherits none of them.
    pub const UNUSED: Self = Self { efer: 0, pat: 0, dr7: 0, debugctl: 0 };

    /// Reads them from VMCS01.
    #[must_use]
    pub fn of(v01: &impl Vmcs) -> Self {
        Self {
            efer: v01.read(f::GUEST_EFER),
            pat: v01.read(f::GUEST_PAT),
            dr7: v01.read(f::GUEST_DR7),
            debugctl: v01.read(f::GUEST_DEBUGCTL),
        }
    }
}

/// Whether accesses of the VM to all its ports exit, and the host's bitmaps decide then.
#[must_use]
pub const fn ports_exit(primary: Primary) -> bool {
    primary.intersects(Primary::IO_BITMAPS.union(Primary::UNCONDITIONAL_IO))
}

/// Writes all controls of VMCS02 but the EPT pointer.
pub fn controls(v12: &Vmcs12, env: &Environment<'_>, v02: &mut impl Vmcs) {
    let wanted = Wanted::of(v12);
    v02.write(f::PIN_CONTROLS, pin(wanted.pin).bits());
    v02.write(f::PRIMARY_CONTROLS, primary(wanted.primary).bits());
    let tagged = wanted.secondary.contains(Secondary::VPID) && v12.read(f::VPID) != HOST_VPID;
    let secondary = (wanted.secondary | Secondary::EPT).difference(Secondary::VPID);
    let secondary = if tagged { secondary | Secondary::VPID } else { secondary };
    v02.write(f::SECONDARY_CONTROLS, secondary.bits());
    if tagged {
        v02.write(f::VPID, v12.read(f::VPID));
    }
    let passed = ExitControls::LOAD_PERF_GLOBAL
        | ExitControls::ACKNOWLEDGE_INTERRUPT
        | ExitControls::SAVE_PREEMPTION_TIMER;
    // The timer goes on over exits that the host does not see, whether or not it asks to have it
    // saved.
    let runs = wanted.pin.contains(Pin::PREEMPTION_TIMER);
    let timer = if runs { env.save_timer } else { ExitControls::empty() };
    v02.write(f::EXIT_CONTROLS, env.host.exit | (wanted.exit & passed | timer).bits());
    let always = EntryControls::LOAD_DEBUG | EntryControls::LOAD_PAT | EntryControls::LOAD_EFER;
    v02.write(f::ENTRY_CONTROLS, (wanted.entry | always).bits());
    bitmaps(env, v02);
    execution(v12, &wanted, env, v02);
    if wanted.exit.contains(ExitControls::LOAD_PERF_GLOBAL) {
        v02.write(f::HOST_PERF_GLOBAL, v12.read(f::HOST_PERF_GLOBAL));
    }
}

/// The pin-based controls of VMCS02: every NMI exits. One that is the VM's own is injected then, and
/// blocks others as the VM sees it.
fn pin(wanted: Pin) -> Pin {
    if wanted.contains(Pin::NMI_EXITING) {
        wanted
    } else {
        wanted | Pin::NMI_EXITING | Pin::VIRTUAL_NMIS
    }
}

/// The primary controls of VMCS02: ports and the secondary controls are the visor's business.
fn primary(wanted: Primary) -> Primary {
    let ports = if ports_exit(wanted) { Primary::UNCONDITIONAL_IO } else { Primary::IO_BITMAPS };
    let wanted = wanted.difference(Primary::IO_BITMAPS | Primary::UNCONDITIONAL_IO);
    wanted | ports | Primary::SECONDARY
}

fn bitmaps(env: &Environment<'_>, v02: &mut impl Vmcs) {
    v02.write(f::MSR_BITMAP, env.msr_bitmap);
    v02.write(f::IO_BITMAP_A, env.io_bitmaps.0);
    v02.write(f::IO_BITMAP_B, env.io_bitmaps.1);
    // The visor loads and stores MSRs itself: it must check each.
    for count in [f::EXIT_MSR_STORE_COUNT, f::EXIT_MSR_LOAD_COUNT, f::ENTRY_MSR_LOAD_COUNT] {
        v02.write(count, 0);
    }
}

fn execution(v12: &Vmcs12, wanted: &Wanted, env: &Environment<'_>, v02: &mut impl Vmcs) {
    for field in [f::EXCEPTION_BITMAP, f::PAGE_FAULT_MASK, f::PAGE_FAULT_MATCH, f::CR3_TARGET_COUNT]
    {
        v02.write(field, v12.read(field));
    }
    for target in (0x6008..=0x600e).step_by(2) {
        v02.write_raw(target, v12.read_raw(target));
    }
    for field in [f::CR0_MASK, f::CR0_SHADOW] {
        v02.write(field, v12.read(field));
    }
    let mask = v12.read(f::CR4_MASK);
    v02.write(f::CR4_MASK, mask | CR4_HIDDEN);
    // A hidden bit is 0 in CR4 and reads as 0, unless the host itself shows its guest something else.
    v02.write(f::CR4_SHADOW, v12.read(f::CR4_SHADOW) & (mask | !CR4_HIDDEN));
    if wanted.primary.contains(Primary::TSC_OFFSETTING) {
        v02.write(f::TSC_OFFSET, v12.read(f::TSC_OFFSET));
    }
    if wanted.primary.contains(Primary::TPR_SHADOW) {
        v02.write(f::VIRTUAL_APIC, env.virtual_apic);
    }
    if wanted.secondary.contains(Secondary::XSAVES) {
        v02.write(f::XSS_EXITING_BITMAP, v12.read(f::XSS_EXITING_BITMAP));
    }
    if wanted.secondary.contains(Secondary::TSC_SCALING) {
        v02.write(f::TSC_MULTIPLIER, v12.read(f::TSC_MULTIPLIER));
    }
    if wanted.secondary.contains(Secondary::PAUSE_LOOP) {
        v02.write(f::PAUSE_GAP, v12.read(f::PAUSE_GAP));
        v02.write(f::PAUSE_WINDOW, v12.read(f::PAUSE_WINDOW));
    }
}

/// Fields of the VM's state that [`switched`] and [`kept`] decide about one by one.
const BY_CONTROL: [u32; 8] = [
    f::VMCS_LINK_POINTER.encoding(),
    f::GUEST_DEBUGCTL.encoding(),
    f::GUEST_PAT.encoding(),
    f::GUEST_EFER.encoding(),
    f::GUEST_PERF_GLOBAL.encoding(),
    f::GUEST_DR7.encoding(),
    f::GUEST_SMBASE.encoding(),
    f::PREEMPTION_TIMER.encoding(),
];

/// Fields that follow from no other and pass between the two as they are.
pub(crate) fn plain_guest_fields(wanted: &'static [Class]) -> impl Iterator<Item = u32> {
    encodings(wanted).filter(|encoding| !BY_CONTROL.contains(encoding))
}

/// Those of [`plain_guest_fields`] that are not hot, with their places: found out once, as they are read at
/// many exits.
pub(crate) static PLAIN: [(u32, usize); COLD.len() - 7] = {
    let (all, mut plain, mut at, mut length) = (places(COLD), [(0, 0); COLD.len() - 7], 0, 0);
    while at < all.len() {
        let (mut others, mut is_plain) = (BY_CONTROL.as_slice(), true);
        #[expect(clippy::indexing_slicing, reason = "checked at compile time")]
        while let [other, rest @ ..] = others {
            is_plain &= all[at].0 != *other;
            others = rest;
        }
        #[expect(clippy::indexing_slicing, reason = "checked at compile time")]
        if is_plain {
            plain[length] = all[at];
            length += 1;
        }
        at += 1;
    }
    assert!(length == plain.len(), "7 of them are decided about one by one");
    plain
};

/// Writes the VM's state into VMCS02, but for the hot fields and those of [`switched`].
pub fn guest(v12: &Vmcs12, v02: &mut impl Vmcs) {
    for (encoding, place) in &PLAIN {
        v02.write_raw(*encoding, v12.at(*place));
    }
    // A VM has no use for VMCS shadowing: it is not advertised.
    v02.write(f::VMCS_LINK_POINTER, u64::MAX);
}

/// The state that controls switch: loaded by entries, saved by exits.
const SWITCHES: [(EntryControls, ExitControls); 3] = [
    (EntryControls::LOAD_DEBUG, ExitControls::SAVE_DEBUG),
    (EntryControls::LOAD_PAT, ExitControls::SAVE_PAT),
    (EntryControls::LOAD_EFER, ExitControls::SAVE_EFER),
];

/// Whether a VM inherits any of [`HostRegisters`].
pub(crate) fn inherits(wanted: &Wanted) -> bool {
    !SWITCHES.into_iter().all(|(load, _)| wanted.entry.contains(load))
}

/// Whether [`switched`] writes over what an exit has saved for the host.
pub(crate) fn replaces_saved(wanted: &Wanted) -> bool {
    SWITCHES
        .into_iter()
        .any(|(load, save)| !wanted.entry.contains(load) && wanted.exit.contains(save))
}

/// Writes what controls of the host decide about, always or only if the `wanted` ones do not let
/// VMCS02 keep it from exit to entry: the VM may have changed it, or the host its own.
pub fn switched(v12: &Vmcs12, wanted: &Wanted, host: &HostRegisters, v02: &mut impl Vmcs) {
    let entry = |control| wanted.entry.contains(control);
    let kept = |load, save| entry(load) && wanted.exit.contains(save);
    if !kept(EntryControls::LOAD_DEBUG, ExitControls::SAVE_DEBUG) {
        let own = entry(EntryControls::LOAD_DEBUG);
        v02.write(f::GUEST_DR7, if own { v12.read(f::GUEST_DR7) } else { host.dr7 });
        v02.write(f::GUEST_DEBUGCTL, if own { v12.read(f::GUEST_DEBUGCTL) } else { host.debugctl });
    }
    if !kept(EntryControls::LOAD_PAT, ExitControls::SAVE_PAT) {
        let own = entry(EntryControls::LOAD_PAT);
        v02.write(f::GUEST_PAT, if own { v12.read(f::GUEST_PAT) } else { host.pat });
    }
    if !kept(EntryControls::LOAD_EFER, ExitControls::SAVE_EFER) {
        let efer = if entry(EntryControls::LOAD_EFER) {
            v12.read(f::GUEST_EFER)
        } else {
            derived_efer(wanted, host.efer, v12.read(f::GUEST_CR0))
        };
        v02.write(f::GUEST_EFER, efer);
    }
}

/// Writes what [`switched`] leaves alone, and the performance counters' control.
pub fn kept(v12: &Vmcs12, wanted: &Wanted, v02: &mut impl Vmcs) {
    if wanted.entry.contains(EntryControls::LOAD_DEBUG) {
        v02.write(f::GUEST_DR7, v12.read(f::GUEST_DR7));
        v02.write(f::GUEST_DEBUGCTL, v12.read(f::GUEST_DEBUGCTL));
    }
    if wanted.entry.contains(EntryControls::LOAD_PAT) {
        v02.write(f::GUEST_PAT, v12.read(f::GUEST_PAT));
    }
    if wanted.entry.contains(EntryControls::LOAD_EFER) {
        v02.write(f::GUEST_EFER, v12.read(f::GUEST_EFER));
    }
    if wanted.entry.contains(EntryControls::LOAD_PERF_GLOBAL) {
        v02.write(f::GUEST_PERF_GLOBAL, v12.read(f::GUEST_PERF_GLOBAL));
    }
}

/// IA32_EFER of a VM whose entry does not load it (SDM vol. 3, 28.3.2.1).
pub(crate) fn derived_efer(wanted: &Wanted, host: u64, cr0: u64) -> u64 {
    const LMA: u64 = 1 << 10;
    const PG: u64 = 1 << 31;
    if wanted.entry.contains(EntryControls::IA32E_GUEST) {
        host | EFER_LONG
    } else if cr0 & PG != 0 {
        host & !EFER_LONG
    } else {
        host & !LMA
    }
}

/// Writes one hot field, which has changed to `value`, into VMCS02.
#[inline(always)]
pub fn hot_field(encoding: u32, value: u64, wanted: &Wanted, v02: &mut impl Vmcs) {
    const PRIMARY: u32 = f::PRIMARY_CONTROLS.encoding();
    const THRESHOLD: u32 = f::TPR_THRESHOLD.encoding();
    const TIMER: u32 = f::PREEMPTION_TIMER.encoding();
    match encoding {
        PRIMARY => v02.write(f::PRIMARY_CONTROLS, primary(wanted.primary).bits()),
        // These two exist only with their controls.
        THRESHOLD if !wanted.primary.contains(Primary::TPR_SHADOW) => {}
        TIMER if !wanted.pin.contains(Pin::PREEMPTION_TIMER) => {}
        _ => v02.write_raw(encoding, value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_fields_that_are_not_hot_are_in_the_list_of_them() {
        let plain = plain_guest_fields(&[Class::Guest]);
        assert!(plain.eq(PLAIN.map(|(encoding, _)| encoding)));
    }
}
