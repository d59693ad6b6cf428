//! The states in which a processor of the host begins to run.

use crate::control::EntryControls;
use crate::cr::{CR0_NE, CR4_VMXE};
use crate::field::{
    CR0_SHADOW, CR4_SHADOW, ENTRY_CONTROLS, ENTRY_INTERRUPTION, GUEST_ACTIVITY, GUEST_CR0,
    GUEST_CR3, GUEST_CR4, GUEST_DEBUGCTL, GUEST_DR7, GUEST_EFER, GUEST_GDTR_BASE, GUEST_GDTR_LIMIT,
    GUEST_IDTR_BASE, GUEST_IDTR_LIMIT, GUEST_INTERRUPTIBILITY, GUEST_PENDING_DEBUG, GUEST_RFLAGS,
    GUEST_RIP, GUEST_RSP, Segment, Vmcs,
};

const ACTIVE: u32 = 0;
const WAIT_FOR_SIPI: u32 = 3;

/// CR0 after INIT apart from CD and NW, which INIT leaves alone (SDM vol. 3, table 11-1), as VM
/// entries do.
const CR0_AFTER_INIT: u64 = 0x10;

/// Access rights: present, DPL 0, accessed (table 26-2).
const CODE_16: u32 = 0x9b;
const DATA_16: u32 = 0x93;
const LDT: u32 = 0x82;
/// Busy TSS: of 32 bits outside and of 64 bits inside IA-32e mode.
const BUSY_TSS: u32 = 0x8b;
const CODE_32: u32 = 0xc09b;
const DATA_32: u32 = 0xc093;

/// Makes the processor wait for a start-up IPI, as INIT does with every processor but the bootstrap
/// processor. The rest of what INIT does can wait until then: a host may send the start-up IPI
/// microseconds later, and one that arrives in VMX root mode is lost.
pub fn wait_for_sipi(vmcs: &mut impl Vmcs) {
    vmcs.write(GUEST_PENDING_DEBUG, 0);
    vmcs.write(GUEST_INTERRUPTIBILITY, 0);
    vmcs.write(ENTRY_INTERRUPTION, 0);
    vmcs.write(GUEST_ACTIVITY, WAIT_FOR_SIPI);
}

/// Puts the processor into its state after INIT, at the reset vector (SDM vol. 3, 11.1.4 and
/// table 11-1). General-purpose registers are not in the VMCS: all are 0 but for EDX, which is
/// CPUID.1 EAX.
pub fn init(vmcs: &mut impl Vmcs) {
    vmcs.write(GUEST_CR0, CR0_AFTER_INIT | CR0_NE);
    vmcs.write(CR0_SHADOW, CR0_AFTER_INIT);
    vmcs.write(GUEST_CR3, 0);
    vmcs.write(GUEST_CR4, CR4_VMXE);
    vmcs.write(CR4_SHADOW, 0);
    vmcs.write(GUEST_EFER, 0);
    vmcs.write(GUEST_DR7, 0x400);
    vmcs.write(GUEST_DEBUGCTL, 0);
    vmcs.write(GUEST_RFLAGS, 2);
    vmcs.write(GUEST_RIP, 0xfff0);
    vmcs.write(GUEST_RSP, 0);
    vmcs.write(GUEST_PENDING_DEBUG, 0);
    vmcs.write(GUEST_INTERRUPTIBILITY, 0);
    vmcs.write(ENTRY_INTERRUPTION, 0);
    let entry = vmcs.read(ENTRY_CONTROLS) & !EntryControls::IA32E_GUEST.bits();
    vmcs.write(ENTRY_CONTROLS, entry);
    for (base, limit) in [(GUEST_GDTR_BASE, GUEST_GDTR_LIMIT), (GUEST_IDTR_BASE, GUEST_IDTR_LIMIT)]
    {
        vmcs.write(base, 0);
        vmcs.write(limit, 0xffff);
    }
    for segment in Segment::ALL {
        set_segment(vmcs, segment, 0, 0, real_mode_rights(segment));
    }
    set_segment(vmcs, Segment::Cs, 0xf000, 0xffff_0000, CODE_16);
    vmcs.write(GUEST_ACTIVITY, ACTIVE);
}

/// Starts a waiting processor at the page of `vector`, in real mode (SDM vol. 3, 10.4.4.1).
pub fn start_up(vmcs: &mut impl Vmcs, vector: u8) {
    init(vmcs);
    let page = u16::from(vector) << 8;
    set_segment(vmcs, Segment::Cs, page, u64::from(page) << 4, CODE_16);
    vmcs.write(GUEST_RIP, 0);
}

/// Puts the processor into flat 32-bit protected mode without paging at `entry`, as a multiboot
/// loader leaves it (Multiboot 2, 3.3).
pub fn flat_32_bit(vmcs: &mut impl Vmcs, entry: u32) {
    init(vmcs);
    let cr0 = CR0_AFTER_INIT | 1;
    vmcs.write(GUEST_CR0, cr0 | CR0_NE);
    vmcs.write(CR0_SHADOW, cr0);
    vmcs.write(GUEST_RIP, entry.into());
    for segment in [Segment::Es, Segment::Ss, Segment::Ds, Segment::Fs, Segment::Gs] {
        set_segment(vmcs, segment, 0x18, 0, DATA_32);
        vmcs.write(segment.fields().limit, u32::MAX);
    }
    set_segment(vmcs, Segment::Cs, 0x10, 0, CODE_32);
    vmcs.write(Segment::Cs.fields().limit, u32::MAX);
}

const fn real_mode_rights(segment: Segment) -> u32 {
    match segment {
        Segment::Cs => CODE_16,
        Segment::Es | Segment::Ss | Segment::Ds | Segment::Fs | Segment::Gs => DATA_16,
        Segment::Ldtr => LDT,
        Segment::Tr => BUSY_TSS,
    }
}

fn set_segment(vmcs: &mut impl Vmcs, segment: Segment, selector: u16, base: u64, rights: u32) {
    let fields = segment.fields();
    vmcs.write(fields.selector, selector);
    vmcs.write(fields.base, base);
    vmcs.write(fields.limit, 0xffff);
    vmcs.write(fields.rights, rights);
}
