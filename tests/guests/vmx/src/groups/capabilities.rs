//! `capability`: the capability MSRs, each of which may differ between machines, and whether they
//! agree with each other, which may not.

use crate::capability::{self as c, Set};
use crate::log;
use bare::{cpu, fault};

const MSRS: &[(&str, u32)] = &[
    ("feature-control", c::FEATURE_CONTROL),
    ("basic", c::BASIC),
    ("pin", 0x481),
    ("primary", 0x482),
    ("exit", 0x483),
    ("entry", 0x484),
    ("misc", c::MISC),
    ("cr0-fixed-0", 0x486),
    ("cr0-fixed-1", 0x487),
    ("cr4-fixed-0", 0x488),
    ("cr4-fixed-1", 0x489),
    ("vmcs-enumeration", 0x48a),
    ("secondary", 0x48b),
    ("ept-vpid", c::EPT_VPID),
    ("true-pin", 0x48d),
    ("true-primary", 0x48e),
    ("true-exit", 0x48f),
    ("true-entry", 0x490),
    ("vmfunc", 0x491),
];

/// Controls that are 1 in every processor unless the "true" MSRs say otherwise (A.2 to A.5).
const DEFAULT_1: [u64; 5] = [0x16, 0x0401_e172, 0, 0x3_6dff, 0x11ff];

pub(super) fn run() {
    log::result(format_args!("capability.cpuid"), |line| {
        line.add(format_args!("{}", cpu::cpuid(1, 0)[2] >> 5 & 1));
    });
    for (name, msr) in MSRS {
        log::result(format_args!("capability.{name}"), |line| {
            match fault::catch(|| cpu::rdmsr(*msr)) {
                Ok(value) => line.add(format_args!("{value:#x}")),
                Err(fault) => line.add(format_args!("{fault:?}")),
            }
        });
    }
    for (set, default) in Set::ALL.into_iter().zip(DEFAULT_1) {
        let [old, new] = set.msrs().map(cpu::rdmsr);
        let rules = [
            ("must-is-may", set.must() & !set.may() == 0),
            ("old-keeps-defaults", old & default == default),
            ("may-agree", old >> 32 == new >> 32),
            ("only-defaults-freed", (old ^ new) & 0xffff_ffff & !default == 0),
        ];
        for (rule, holds) in rules {
            agree(set.name(), rule, holds);
        }
    }
    let basic = cpu::rdmsr(c::BASIC);
    agree("basic", "bit-31", basic >> 31 & 1 == 0);
    agree("basic", "size", (1..=4096).contains(&(basic >> 32 & 0x1fff)));
    agree("basic", "write-back", basic >> 50 & 15 == 6);
    agree("basic", "exit-information", basic >> 54 & 1 == 1);
    agree("basic", "true-controls", basic >> 55 & 1 == 1);
    let fixed = [0x486, 0x487, 0x488, 0x489].map(cpu::rdmsr);
    agree("cr0", "fixed", fixed[0] & !fixed[1] == 0 && cpu::cr0() & fixed[0] == fixed[0]);
    agree("cr4", "fixed", fixed[2] & !fixed[3] == 0 && cpu::cr4() & fixed[2] == fixed[2]);
    dependencies();
}

#[expect(clippy::fn_params_excessive_bools, reason = "the condition of an assertion")]
fn agree(subject: &str, rule: &str, holds: bool) {
    log::result(format_args!("capability.{subject}.{rule}"), |line| {
        line.add(format_args!("{holds}"))
    });
}

/// Controls that make sense only with others.
fn dependencies() {
    let needs = [
        ("virtual-nmis", c::VIRTUAL_NMIS, c::NMI_EXITING),
        ("nmi-window", c::NMI_WINDOW, c::VIRTUAL_NMIS),
        ("unrestricted", c::UNRESTRICTED, c::EPT),
        ("ept", c::EPT, c::SECONDARY),
        ("vpids", c::VPIDS, c::SECONDARY),
        ("save-preemption", c::SAVE_PREEMPTION, c::PREEMPTION),
        ("x2apic", c::X2APIC, c::TPR_SHADOW),
        ("pml", c::PML, c::EPT),
        ("vmfunc", c::VMFUNC, c::SECONDARY),
    ];
    for (name, one, other) in needs {
        agree("needs", name, !one.exists() || other.exists());
    }
    agree("needs", "invept", !c::EPT.exists() || c::ept_vpid(20));
    agree("needs", "invvpid", !c::VPIDS.exists() || c::ept_vpid(32));
    agree("needs", "ept-walk-of-4", !c::EPT.exists() || c::ept_vpid(6));
    agree("needs", "ept-write-back", !c::EPT.exists() || c::ept_vpid(14));
}
