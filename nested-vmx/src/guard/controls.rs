//! Controls of a protected VM: the host's where they are its business, the visor's otherwise.
//!
//! What the host may not have is left out without a word, as an exit that never comes tells it
//! nothing: exits after each instruction, on debug registers, CR3, INVLPG, RDTSC, RDRAND, RDSEED and
//! descriptor tables, and exceptions but for #MC. Its lists of MSRs for entries are not loaded,
//! those for exits are not stored.

use super::start::{CR4_MCE, visible};
use super::{Guarded, put};
use crate::check::{CR4_HIDDEN, Wanted};
use crate::control::{EntryControls, ExitControls, Pin, Primary, Secondary};
use crate::cr::{CR0_CACHE, CR0_NE, CR4_VMXE};
use crate::field::{self as f, Vmcs};
use crate::vmcs12::Vmcs12;

/// Interrupts and NMIs of the machine are never the VM's own.
const PIN: Pin = Pin::INTERRUPT_EXITING.union(Pin::NMI_EXITING).union(Pin::VIRTUAL_NMIS);
/// Reserved controls that are 1 (SDM vol. 3, A.3.1 to A.5).
const PIN_RESERVED: u32 = 0x16;
const PRIMARY_RESERVED: u32 = 0x0400_6172;
const EXIT_RESERVED: u32 = 0x0003_6dfb;
const ENTRY_RESERVED: u32 = 0x11fb;

const PRIMARY_OF_HOST: Primary = Primary::INTERRUPT_WINDOW
    .union(Primary::NMI_WINDOW)
    .union(Primary::TSC_OFFSETTING)
    .union(Primary::HLT)
    .union(Primary::MWAIT)
    .union(Primary::MONITOR)
    .union(Primary::PAUSE)
    .union(Primary::CR8_LOAD)
    .union(Primary::CR8_STORE)
    .union(Primary::TPR_SHADOW);
const PRIMARY: Primary = Primary::UNCONDITIONAL_IO
    .union(Primary::MSR_BITMAPS)
    .union(Primary::RDPMC)
    .union(Primary::SECONDARY);
const SECONDARY_OF_HOST: Secondary = Secondary::WBINVD
    .union(Secondary::PAUSE_LOOP)
    .union(Secondary::CONCEAL_VMX_FROM_PT)
    .union(Secondary::TSC_SCALING);
/// The host's until the first entry: without them instructions raise exceptions.
const SECONDARY_OF_FIRST: Secondary = Secondary::RDTSCP
    .union(Secondary::UNRESTRICTED_GUEST)
    .union(Secondary::INVPCID)
    .union(Secondary::XSAVES);
const EXIT_OF_HOST: ExitControls = ExitControls::ACKNOWLEDGE_INTERRUPT
    .union(ExitControls::SAVE_PREEMPTION_TIMER)
    .union(ExitControls::HOST_64_BIT);
const EXIT: ExitControls =
    ExitControls::SAVE_DEBUG.union(ExitControls::SAVE_PAT).union(ExitControls::SAVE_EFER);
const ENTRY: EntryControls =
    EntryControls::LOAD_DEBUG.union(EntryControls::LOAD_PAT).union(EntryControls::LOAD_EFER);

/// #AC and #DB, whose delivery can raise them again for ever, and #MC, which is the host's.
const EXCEPTIONS: u64 = 1 << 17 | 1 << 1 | 1 << 18;

impl Guarded<'_> {
    /// Takes over from the host's controls what is its business.
    pub(super) fn take_controls(&mut self, shown: &Vmcs12) {
        let wanted = Wanted::of(shown);
        let tag = self.secrets.tag;
        let tagged = if tag == 0 { Secondary::empty() } else { Secondary::VPID };
        let pin = wanted.pin & Pin::PREEMPTION_TIMER | PIN;
        let primary = wanted.primary & PRIMARY_OF_HOST | PRIMARY;
        let before = Wanted::of(self.effective.fields()).secondary;
        let first = if before.contains(Secondary::EPT) { before } else { wanted.secondary };
        let secondary = wanted.secondary & SECONDARY_OF_HOST | first & SECONDARY_OF_FIRST;
        let secondary = secondary | Secondary::EPT | tagged;
        let exit = wanted.exit & EXIT_OF_HOST | EXIT;
        let entry = Wanted::of(self.effective.fields()).entry & EntryControls::IA32E_GUEST;
        let entry = entry | ENTRY;
        let (cr0, cr4) = visible(self.effective.fields());
        let own = &mut self.effective;
        // What the VM has written itself, the shadows do not have.
        put(own, f::CR0_SHADOW.encoding(), cr0);
        put(own, f::CR4_SHADOW.encoding(), cr4);
        put(own, f::VPID.encoding(), u64::from(tag));
        put(own, f::PIN_CONTROLS.encoding(), (pin.bits() | PIN_RESERVED).into());
        put(own, f::PRIMARY_CONTROLS.encoding(), (primary.bits() | PRIMARY_RESERVED).into());
        put(own, f::SECONDARY_CONTROLS.encoding(), secondary.bits().into());
        put(own, f::EXIT_CONTROLS.encoding(), (exit.bits() | EXIT_RESERVED).into());
        put(own, f::ENTRY_CONTROLS.encoding(), (entry.bits() | ENTRY_RESERVED).into());
        let (cr0_mask, cr4_mask) = (shown.read(f::CR0_MASK), shown.read(f::CR4_MASK));
        put(own, f::CR0_MASK.encoding(), cr0_mask | CR0_NE | CR0_CACHE);
        put(own, f::CR4_MASK.encoding(), cr4_mask | CR4_HIDDEN | CR4_VMXE | CR4_MCE);
        // Always the same.
        put(own, f::EXCEPTION_BITMAP.encoding(), EXCEPTIONS);
        put(own, f::PAGE_FAULT_MASK.encoding(), 0);
        put(own, f::PAGE_FAULT_MATCH.encoding(), 0);
        put(own, f::CR3_TARGET_COUNT.encoding(), 0);
        put(own, f::XSS_EXITING_BITMAP.encoding(), u64::MAX);
        put(own, f::ENTRY_MSR_LOAD_COUNT.encoding(), 0);
        put(own, f::EXIT_MSR_STORE_COUNT.encoding(), 0);
        put(own, f::EXIT_MSR_LOAD_COUNT.encoding(), 0);
        // The host's.
        put(own, f::TSC_OFFSET.encoding(), shown.read(f::TSC_OFFSET));
        put(own, f::TSC_MULTIPLIER.encoding(), shown.read(f::TSC_MULTIPLIER));
        put(own, f::VIRTUAL_APIC.encoding(), shown.read(f::VIRTUAL_APIC));
        put(own, f::TPR_THRESHOLD.encoding(), shown.read(f::TPR_THRESHOLD).into());
        put(own, f::PREEMPTION_TIMER.encoding(), shown.read(f::PREEMPTION_TIMER).into());
        put(own, f::PAUSE_GAP.encoding(), shown.read(f::PAUSE_GAP).into());
        put(own, f::PAUSE_WINDOW.encoding(), shown.read(f::PAUSE_WINDOW).into());
        put(own, f::EPT_POINTER.encoding(), shown.read(f::EPT_POINTER));
    }
}
