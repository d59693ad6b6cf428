//! What the host sees of VMX: nothing beyond what somebody has thought about, and nothing beyond the
//! processor.

use nested_vmx::advertise::{Advertised, FIRST_MSR, LAST_MSR};
use nested_vmx::capability::RawCapabilities;
use nested_vmx::control::Secondary;
use nested_vmx::vmcs12::REVISION;
use proptest::prelude::*;

use crate::good::{advertised, processor};

fn bits(numbers: &[u32]) -> u64 {
    numbers.iter().map(|number| 1 << number).sum()
}

/// Bits by their numbers in the manual: MSR, those that may be 1, those that must.
type Row = (u32, &'static [u32], &'static [u32]);

const CONTROLS: [Row; 5] = [
    (0x48d, &[0, 1, 2, 3, 4, 5, 6], &[1, 2, 4]),
    (
        0x48e,
        &[
            1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 19, 20, 21, 22, 23, 24, 25, 26,
            27, 28, 29, 30, 31,
        ],
        &[1, 4, 5, 6, 8, 13, 14, 26],
    ),
    (0x48b, &[1, 2, 3, 5, 6, 7, 10, 11, 12, 16, 20, 25, 26], &[]),
    (
        0x48f,
        &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22],
        &[0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 13, 14, 16, 17],
    ),
    (0x490, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15], &[0, 1, 3, 4, 5, 6, 7, 8, 12]),
];

#[test]
fn of_a_processor_that_has_everything_exactly_what_is_supported_is_advertised() {
    let advertised = advertised();
    for (index, may, must) in CONTROLS {
        let value = advertised.msr(index).unwrap();
        assert_eq!(value >> 32, bits(may), "{index:#x} may");
        assert_eq!(value & 0xffff_ffff, bits(must), "{index:#x} must");
    }
}

#[test]
fn the_other_capabilities_are_those_that_the_visor_can_keep() {
    let advertised = advertised();
    let rows = [
        (0x480, 0x01d8_1000_0000_0000 | u64::from(REVISION)),
        // no wait for SIPI, PT, SMM, VMWRITE of read-only fields
        (0x485, 0x4004_00e7),
        (0x486, 0x8000_0021),
        (0x487, 0xffff_ffff),
        (0x488, 0x2000),
        // no SMX, Key Locker, CET, FRED
        (0x489, 0x1_03ff_ffff & !(1 << 14 | 1 << 19 | 1 << 23 | 1 << 32)),
        // TSC multiplier, index 25
        (0x48a, 25 << 1),
        // no 5-level walks, shadow stacks, advanced exit information
        (0x48c, 0xf01_0633_4141),
    ];
    for (index, expected) in rows {
        assert_eq!(advertised.msr(index), Some(expected), "{index:#x}");
    }
}

/// Features that stay hidden: MSR, bit.
const HIDDEN: &[(&str, u32, u32)] = &[
    ("dual-monitor treatment of SMM", 0x480, 49),
    ("posted interrupts", 0x48d, 32 + 7),
    ("tertiary controls", 0x48e, 32 + 17),
    ("virtualized APIC accesses", 0x48b, 32),
    ("x2APIC virtualization", 0x48b, 32 + 4),
    ("APIC-register virtualization", 0x48b, 32 + 8),
    ("virtual-interrupt delivery", 0x48b, 32 + 9),
    ("VM functions", 0x48b, 32 + 13),
    ("VMCS shadowing", 0x48b, 32 + 14),
    ("ENCLS exiting", 0x48b, 32 + 15),
    ("page-modification log", 0x48b, 32 + 17),
    ("EPT-violation #VE", 0x48b, 32 + 18),
    ("PT conceals VMX", 0x48b, 32 + 19),
    ("PASID translation", 0x48b, 32 + 21),
    ("mode-based execute control", 0x48b, 32 + 22),
    ("sub-page write permissions", 0x48b, 32 + 23),
    ("PT through EPT", 0x48b, 32 + 24),
    ("PCONFIG", 0x48b, 32 + 27),
    ("ENCLV exiting", 0x48b, 32 + 28),
    ("clear BNDCFGS on exit", 0x48f, 32 + 23),
    ("exit concealed from PT", 0x48f, 32 + 24),
    ("clear RTIT_CTL", 0x48f, 32 + 25),
    ("clear LBR_CTL", 0x48f, 32 + 26),
    ("load CET state on exit", 0x48f, 32 + 28),
    ("load PKRS on exit", 0x48f, 32 + 29),
    ("save IA32_PERF_GLOBAL_CTRL", 0x48f, 32 + 30),
    ("secondary exit controls", 0x48f, 32 + 31),
    ("entry to SMM", 0x490, 32 + 10),
    ("deactivate dual monitor", 0x490, 32 + 11),
    ("load BNDCFGS", 0x490, 32 + 16),
    ("entry concealed from PT", 0x490, 32 + 17),
    ("load RTIT_CTL", 0x490, 32 + 18),
    ("load CET state", 0x490, 32 + 20),
    ("load LBR_CTL", 0x490, 32 + 21),
    ("load PKRS", 0x490, 32 + 22),
    ("wait for SIPI", 0x485, 8),
    ("PT in VMX operation", 0x485, 14),
    ("IA32_SMBASE in SMM", 0x485, 15),
    ("SMI blocking by VMXOFF", 0x485, 28),
    ("VMWRITE of any field", 0x485, 29),
    ("EPT of 5 levels", 0x48c, 7),
    ("EPT exit information", 0x48c, 22),
    ("supervisor shadow stacks in EPT", 0x48c, 23),
    ("CR4.SMXE", 0x489, 14),
    ("CR4.KL", 0x489, 19),
    ("CR4.CET", 0x489, 23),
    ("CR4.FRED", 0x489, 32),
];

#[test]
fn each_hidden_feature_is_hidden() {
    let mut all = processor();
    (all.misc, all.ept_vpid, all.basic) = (u64::MAX, u64::MAX, all.basic | 1 << 49);
    let advertised = Advertised::of(&all);
    for (name, index, bit) in HIDDEN {
        assert_eq!(advertised.msr(*index).unwrap() >> bit & 1, 0, "{name}");
    }
}

#[test]
fn msrs_of_hidden_features_do_not_exist() {
    let advertised = advertised();
    for index in 0x470..0x4a0 {
        let exists = (FIRST_MSR..=LAST_MSR).contains(&index);
        assert_eq!(advertised.msr(index).is_some(), exists, "{index:#x}");
    }
}

#[test]
fn a_processor_without_true_msrs_shows_none() {
    let mut raw = processor();
    raw.basic &= !(1 << 55);
    let advertised = Advertised::of(&raw);
    for index in FIRST_MSR..=LAST_MSR {
        assert_eq!(advertised.msr(index).is_some(), index < 0x48d, "{index:#x}");
    }
}

#[test]
fn the_old_msrs_demand_what_is_1_by_default() {
    let advertised = advertised();
    let rows = [(0x481, 0x16), (0x482, 0x0401_e172), (0x483, 0x0003_6dff), (0x484, 0x0000_11ff)];
    for (index, default) in rows {
        let (old, new) = (advertised.msr(index).unwrap(), advertised.msr(index + 12).unwrap());
        assert_eq!(old & 0xffff_ffff, default | new & 0xffff_ffff, "{index:#x}");
        assert_eq!(old >> 32, new >> 32, "{index:#x}");
    }
}

#[test]
fn a_default_1_control_that_a_later_processor_can_switch_off_stays_on() {
    let mut raw = processor();
    raw.primary &= !(1 << 13);
    let value = Advertised::of(&raw).msr(0x48e).unwrap();
    assert_eq!((value >> 13 & 1, value >> 45 & 1), (1, 1));
}

#[test]
fn a_field_exists_if_its_control_does() {
    let rows = [
        (0x0000, Secondary::VPID),
        (0x202c, Secondary::XSAVES),
        (0x202d, Secondary::XSAVES),
        (0x2032, Secondary::TSC_SCALING),
        (0x4020, Secondary::PAUSE_LOOP),
        (0x4022, Secondary::PAUSE_LOOP),
    ];
    for (encoding, control) in rows {
        let mut raw = processor();
        assert!(Advertised::of(&raw).has_field(encoding), "{encoding:#x}");
        raw.secondary &= !(u64::from(control.bits()) << 32);
        assert!(!Advertised::of(&raw).has_field(encoding), "{encoding:#x}");
    }
    let mut raw = processor();
    raw.pin &= !(1 << (32 + 6));
    assert!(!Advertised::of(&raw).has_field(0x482e));
    raw.exit &= !(1 << (32 + 12));
    for encoding in [0x2808, 0x2809, 0x2c04, 0x2c05] {
        assert!(!Advertised::of(&raw).has_field(encoding), "{encoding:#x}");
    }
}

#[test]
fn the_highest_index_is_that_of_a_field_that_exists() {
    let mut raw = processor();
    raw.secondary &= !(1 << (32 + 25));
    assert_eq!(Advertised::of(&raw).msr(0x48a), Some(23 << 1), "the preemption timer");
    raw.pin &= !(1 << (32 + 6));
    assert_eq!(Advertised::of(&raw).msr(0x48a), Some(22 << 1), "the XSS-exiting bitmap");
    raw.secondary &= !(1 << (32 + 20));
    assert_eq!(Advertised::of(&raw).msr(0x48a), Some(21 << 1), "SYSENTER_CS");
}

/// A capability as processors have it: what must be 1 may be 1, and so may what is 1 by default.
fn capability(default: u64) -> impl Strategy<Value = u64> {
    any::<(u32, u32)>().prop_map(move |(must, may)| {
        let must = u64::from(must) & default;
        (u64::from(may) | must | default) << 32 | must
    })
}

fn processors() -> impl Strategy<Value = RawCapabilities> {
    let controls = (
        capability(0x16),
        capability(0x0401_e172),
        capability(0),
        capability(0x0003_6dff),
        capability(0x11ff),
    );
    (any::<[u64; 3]>(), controls, any::<u64>()).prop_map(|([basic, misc, ept_vpid], c, cr4)| {
        RawCapabilities {
            basic,
            pin: c.0,
            primary: c.1,
            secondary: c.2,
            exit: c.3,
            entry: c.4,
            misc,
            ept_vpid,
            cr0_fixed: (0x8000_0021, 0xffff_ffff),
            cr4_fixed: (0x2000, cr4 | 0x2000),
        }
    })
}

proptest! {
    #[test]
    fn of_any_processor_only_a_part_is_advertised(raw in processors()) {
        let advertised = Advertised::of(&raw);
        let msr = |index| advertised.msr(index).unwrap();
        let old = [(0x481, raw.pin), (0x482, raw.primary), (0x483, raw.exit), (0x484, raw.entry)];
        for (index, own) in old.into_iter().chain([(0x48b, raw.secondary)]) {
            let (must, may) = (msr(index) & 0xffff_ffff, msr(index) >> 32);
            prop_assert_eq!(may & !(own >> 32), 0, "{:#x} may", index);
            prop_assert_eq!(must & !may, 0, "{:#x} must and may not", index);
            prop_assert_eq!(own & 0xffff_ffff & !must, 0, "{:#x} must", index);
            if let Some(exact) = advertised.msr(index + 12).filter(|_| index != 0x48b) {
                prop_assert_eq!(exact >> 32, may);
                prop_assert_eq!(exact & 0xffff_ffff & !must, 0);
            }
        }
        let masked = [(0x485, raw.misc), (0x48c, raw.ept_vpid), (0x489, raw.cr4_fixed.1)];
        for (index, own) in masked {
            let targets = if index == 0x485 { 0x1ff << 16 } else { 0 };
            prop_assert_eq!(msr(index) & !own & !targets, 0, "{:#x}", index);
        }
        prop_assert!(msr(0x485) >> 16 & 0x1ff <= 4);
    }
}
