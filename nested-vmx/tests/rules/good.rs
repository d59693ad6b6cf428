//! A processor that has everything, and a VMCS of the host with which a VM can be entered on it.

use nested_vmx::advertise::Advertised;
use nested_vmx::capability::{Controls, RawCapabilities};
use nested_vmx::check::Context;
use nested_vmx::cr::HostMemory;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::vmcs12::Vmcs12;

use crate::fake::FakeVmcs;

/// The capability MSRs of a processor that has every feature, those without a name too.
pub(crate) fn processor() -> RawCapabilities {
    RawCapabilities {
        basic: 0x01da_0400_0000_0004,
        pin: 0xffff_ffff_0000_0016,
        primary: 0xffff_ffff_0400_6172,
        secondary: 0xffff_ffff_0000_0000,
        exit: 0xffff_ffff_0003_6dfb,
        entry: 0xffff_ffff_0000_11fb,
        misc: 0x7004_c1e7,
        ept_vpid: 0x0000_0f01_06f3_41c1,
        cr0_fixed: (0x8000_0021, 0xffff_ffff),
        cr4_fixed: (0x2000, 0x1_03ff_ffff),
    }
}

pub(crate) fn advertised() -> Advertised {
    Advertised::of(&processor())
}

pub(crate) fn host_controls() -> Controls {
    processor().host_controls().unwrap()
}

/// A 64-bit host with 39 bits of physical and 48 of linear addresses.
pub(crate) fn context(advertised: &Advertised) -> Context<'_> {
    Context { advertised, width: 39, long_mode: true, sign_bit: 47 }
}

/// Every optional feature is used that needs no other to be off.
pub(crate) const CONTROLS: [(u32, u64); 5] = [
    (f::PIN_CONTROLS.encoding(), 0x7f),
    (f::PRIMARY_CONTROLS.encoding(), 0x9620_6172 | 1 << 3 | 1 << 7 | 1 << 21 | 1 << 25),
    (f::SECONDARY_CONTROLS.encoding(), 0x0610_14aa),
    (f::EXIT_CONTROLS.encoding(), 0x0003_6fff | 0x7f << 16 & 0x007c_0000 | 1 << 15 | 1 << 12),
    (f::ENTRY_CONTROLS.encoding(), 0x0000_13ff | 0b111 << 13),
];

const ADDRESSES: [(u32, u64); 9] = [
    (f::IO_BITMAP_A.encoding(), 0x1_1000),
    (f::IO_BITMAP_B.encoding(), 0x1_2000),
    (f::MSR_BITMAP.encoding(), 0x1_3000),
    (f::EXIT_MSR_STORE.encoding(), 0x1_4000),
    (f::EXIT_MSR_LOAD.encoding(), 0x1_4010),
    (f::ENTRY_MSR_LOAD.encoding(), 0x1_5ff0),
    (f::VIRTUAL_APIC.encoding(), 0x1_6000),
    (f::EPT_POINTER.encoding(), 0x1_705e),
    (f::VMCS_LINK_POINTER.encoding(), u64::MAX),
];

const OTHER_CONTROLS: [(u32, u64); 14] = [
    (f::VPID.encoding(), 7),
    (f::EXCEPTION_BITMAP.encoding(), 0x6_0042),
    (f::PAGE_FAULT_MASK.encoding(), 1),
    (f::PAGE_FAULT_MATCH.encoding(), 1),
    (f::CR3_TARGET_COUNT.encoding(), 4),
    (f::TPR_THRESHOLD.encoding(), 3),
    (f::EXIT_MSR_STORE_COUNT.encoding(), 1),
    (f::EXIT_MSR_LOAD_COUNT.encoding(), 2),
    (f::ENTRY_MSR_LOAD_COUNT.encoding(), 3),
    (f::CR0_MASK.encoding(), 0x6000_0020),
    (f::CR0_SHADOW.encoding(), 0x8000_0031),
    (f::CR4_MASK.encoding(), 0x2000),
    (f::CR4_SHADOW.encoding(), 0x20),
    (f::TSC_OFFSET.encoding(), 0xffff_ffff_0000_0000),
];

const HOST: [(u32, u64); 23] = [
    (f::HOST_ES_SELECTOR.encoding(), 0x18),
    (f::HOST_CS_SELECTOR.encoding(), 0x10),
    (f::HOST_SS_SELECTOR.encoding(), 0x18),
    (f::HOST_DS_SELECTOR.encoding(), 0),
    (f::HOST_FS_SELECTOR.encoding(), 0),
    (f::HOST_GS_SELECTOR.encoding(), 0x28),
    (f::HOST_TR_SELECTOR.encoding(), 0x40),
    (f::HOST_PAT.encoding(), 0x0007_0406_0007_0406),
    (f::HOST_EFER.encoding(), 0xd01),
    (f::HOST_PERF_GLOBAL.encoding(), 0xf),
    (f::HOST_SYSENTER_CS.encoding(), 0x10),
    (f::HOST_CR0.encoding(), 0x8005_0033),
    (f::HOST_CR3.encoding(), 0x12_3000),
    (f::HOST_CR4.encoding(), 0x2_26f0),
    (f::HOST_FS_BASE.encoding(), 0x7fff_ffff_f000),
    (f::HOST_GS_BASE.encoding(), 0xffff_8880_0000_0000),
    (f::HOST_TR_BASE.encoding(), 0xffff_fe00_0000_3000),
    (f::HOST_GDTR_BASE.encoding(), 0xffff_fe00_0000_1000),
    (f::HOST_IDTR_BASE.encoding(), 0xffff_fe00_0000_0000),
    (f::HOST_SYSENTER_ESP.encoding(), 0xffff_fe00_0000_4000),
    (f::HOST_SYSENTER_EIP.encoding(), 0xffff_ffff_8100_0000),
    (f::HOST_RSP.encoding(), 0xffff_c900_0000_0000),
    (f::HOST_RIP.encoding(), 0xffff_ffff_8100_1000),
];

/// What the visor checks or derives something from; the processor sees to the rest.
const GUEST: [(u32, u64); 6] = [
    (f::GUEST_ACTIVITY.encoding(), 0),
    (f::GUEST_CR0.encoding(), 0x8005_0033),
    (f::GUEST_CR4.encoding(), 0x26f0),
    (f::GUEST_EFER.encoding(), 0xd01),
    (f::GUEST_PAT.encoding(), 0x0007_0406_0007_0406),
    (f::GUEST_DR7.encoding(), 0x400),
];

/// All of the above.
pub(crate) fn fields() -> impl Iterator<Item = (u32, u64)> {
    let parts: [&[(u32, u64)]; 5] = [&CONTROLS, &ADDRESSES, &OTHER_CONTROLS, &HOST, &GUEST];
    parts.into_iter().flatten().copied()
}

/// A page with them.
pub(crate) fn vmcs12() -> Box<Vmcs12> {
    let mut v12 = Box::new(Vmcs12::EMPTY);
    fields().for_each(|(encoding, value)| v12.write_raw(encoding, value));
    v12
}

/// What is different for a 32-bit host.
pub(crate) const OF_32_BIT_HOST: [(u32, u64); 5] = [
    (f::EXIT_CONTROLS.encoding(), CONTROLS[3].1 & !(1 << 9)),
    (f::ENTRY_CONTROLS.encoding(), CONTROLS[4].1 & !(1 << 9)),
    (f::HOST_CR4.encoding(), 0x26f0),
    (f::HOST_EFER.encoding(), 0x801),
    (f::HOST_RIP.encoding(), 0xc100_1000),
];

/// A page of a 32-bit host.
pub(crate) fn vmcs12_of_32_bit_host() -> Box<Vmcs12> {
    let mut v12 = vmcs12();
    OF_32_BIT_HOST.into_iter().for_each(|(encoding, value)| v12.write_raw(encoding, value));
    v12
}

/// VMCS01 as a host has left it that entered its VM in the mode that it is to be in again.
pub(crate) fn left_by(v12: &Vmcs12) -> FakeVmcs {
    const HOST_64_BIT: u32 = 1 << 9;
    let mode = v12.read(f::EXIT_CONTROLS) & HOST_64_BIT;
    let mut v = FakeVmcs::default();
    for fields in Segment::ALL.map(Segment::fields) {
        v.write(fields.selector, 0x2b);
        v.write(fields.base, 0x5555_5000);
        v.write(fields.limit, 0x1234);
        v.write(fields.rights, 0xf3);
    }
    v.with(f::GUEST_CR0, 0xe005_003f)
        .with(f::CR4_SHADOW, 0x2000)
        .with(f::ENTRY_CONTROLS, 0xd1ff | mode)
        .with(f::GUEST_ACTIVITY, 0)
        .with(f::ENTRY_INTERRUPTION, 0)
        .with(f::VMCS_LINK_POINTER, u64::MAX)
}

/// A host whose page tables are all absent.
pub(crate) struct Zero;

impl HostMemory for Zero {
    fn width(&self) -> u8 {
        40
    }

    fn read_u64(&self, _: u64) -> Option<u64> {
        Some(0)
    }
}
