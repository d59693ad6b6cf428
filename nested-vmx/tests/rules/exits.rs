//! Exit reasons, events, and what becomes of a fault while an event is being delivered.

use nested_vmx::cr;
use nested_vmx::exit::{COUNTED_REASONS, Event, Outcome, Reason, fault_during, is_nmi};
use proptest::prelude::*;

/// The rule by the reason's name in the manual (SDM vol. 3D, appendix C).
fn by_name(basic: u16) -> Reason {
    let name = REASON_NAMES.get(usize::from(basic)).copied();
    match name.unwrap_or_default() {
        "exception-or-nmi" => Reason::ExceptionOrNmi,
        "triple-fault" => Reason::TripleFault,
        "init" => Reason::Init,
        "sipi" => Reason::Sipi,
        "nmi-window" => Reason::NmiWindow,
        "cpuid" => Reason::Cpuid,
        "getsec" => Reason::Getsec,
        "invd" => Reason::Invd,
        "vmcall" | "vmclear" | "vmlaunch" | "vmptrld" | "vmptrst" | "vmread" | "vmresume"
        | "vmwrite" | "vmxoff" | "vmxon" | "invept" | "invvpid" | "vmfunc" => {
            Reason::VmxInstruction
        }
        "cr-access" => Reason::ControlRegister,
        "io" => Reason::Io,
        "rdmsr" => Reason::ReadMsr,
        "wrmsr" => Reason::WriteMsr,
        "ept-violation" => Reason::EptViolation,
        "xsetbv" => Reason::Xsetbv,
        _ => Reason::Other(basic),
    }
}

#[test]
fn every_16_bit_reason_has_the_rule_of_its_name_or_none() {
    for basic in 0..=u16::MAX {
        assert_eq!(Reason::decode(basic.into()), by_name(basic), "{basic}");
    }
}

#[test]
fn reasons_have_the_numbers_of_the_manual() {
    for (number, reason) in [
        (0, Reason::ExceptionOrNmi),
        (2, Reason::TripleFault),
        (3, Reason::Init),
        (4, Reason::Sipi),
        (8, Reason::NmiWindow),
        (10, Reason::Cpuid),
        (11, Reason::Getsec),
        (13, Reason::Invd),
        (18, Reason::VmxInstruction),
        (27, Reason::VmxInstruction),
        (28, Reason::ControlRegister),
        (30, Reason::Io),
        (31, Reason::ReadMsr),
        (32, Reason::WriteMsr),
        (48, Reason::EptViolation),
        (50, Reason::VmxInstruction),
        (53, Reason::VmxInstruction),
        (55, Reason::Xsetbv),
        (59, Reason::VmxInstruction),
        (9, Reason::Other(9)),
        (12, Reason::Other(12)),
        (17, Reason::Other(17)),
        (29, Reason::Other(29)),
        (49, Reason::Other(49)),
    ] {
        assert_eq!(Reason::decode(number), reason);
    }
}

#[test]
fn an_entry_failure_is_no_exit() {
    for basic in 0..=u16::MAX {
        let raw = 1 << 31 | u32::from(basic);
        assert_eq!(Reason::decode(raw), Reason::EntryFailure(basic));
    }
}

#[test]
fn only_instructions_for_ring_0_are_privileged() {
    for basic in 0..=u16::MAX {
        let privileged = [13, 28, 31, 32, 55].contains(&basic);
        let reason = Reason::decode(basic.into());
        assert_eq!(reason.is_privileged_instruction(), privileged, "{basic}");
    }
    assert!(!Reason::EntryFailure(31).is_privileged_instruction());
}

#[test]
fn no_two_reasons_share_a_name() {
    let mut names: Vec<&str> = REASON_NAMES.into_iter().filter(|n| !n.is_empty()).collect();
    names.sort_unstable();
    let before = names.len();
    names.dedup();
    assert_eq!(names.len(), before);
    // 35, 38 and 42 are the only numbers below the last that the manual leaves out.
    let unnamed = (0..COUNTED_REASONS).filter(|&n| REASON_NAMES[n].is_empty());
    assert_eq!(unnamed.collect::<Vec<_>>(), [35, 38, 42]);
    // Ones from the middle of every stretch between the gaps.
    for (number, name) in [(28, "cr-access"), (36, "mwait"), (40, "pause"), (54, "wbinvd")] {
        assert_eq!(REASON_NAMES[number], name);
    }
    assert_eq!(REASON_NAMES[COUNTED_REASONS - 1], "other");
}

#[test]
fn events_are_encoded_as_the_processor_wants_them() {
    // Valid, deliver an error code, type, vector (SDM vol. 3, table 26-17).
    let information =
        |error_code: u32, kind: u32, vector: u32| 1 << 31 | error_code << 11 | kind << 8 | vector;
    for (event, expected) in [
        (Event::Nmi, (information(0, 2, 2), 0)),
        (Event::InvalidOpcode, (information(0, 3, 6), 0)),
        (Event::GeneralProtection(0), (information(1, 3, 13), 0)),
        (Event::GeneralProtection(1), (information(1, 3, 13), 1)),
        (Event::DoubleFault, (information(1, 3, 8), 0)),
    ] {
        assert_eq!(event.encode(), expected);
    }
}

#[test]
fn an_nmi_is_known_by_its_type() {
    for kind in 0..8 {
        for rest in [0x0002, 0x1002, 0x000d, 0x08ff] {
            let information = kind << 8 | rest;
            assert_eq!(is_nmi(1 << 31 | information), kind == 2, "{information:#x}");
            assert!(!is_nmi(information));
        }
    }
}

/// Classes of exceptions (SDM vol. 3, table 7-4).
#[derive(PartialEq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(vector: u32) -> Class {
    match vector {
        // #DE, #TS, #NP, #SS, #GP, #CP
        0 | 10 | 11 | 12 | 13 | 21 => Class::Contributory,
        // #PF, #VE
        14 | 20 => Class::PageFault,
        8 => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// What #GP, which is contributory, becomes by table 7-5, and its EXT bit: 0 after INT n, INT3 and
/// INTO alone (SDM vol. 2, INT n: "otherwise (including INT1), EXT is 1").
fn gp_after(kind: u32, vector: u32) -> Outcome {
    const INT_N: u32 = 4;
    const INT3_OR_INTO: u32 = 6;
    const HARDWARE_EXCEPTION: u32 = 3;
    let first = if kind == HARDWARE_EXCEPTION { class(vector) } else { Class::Benign };
    match first {
        Class::Benign => Outcome::Inject(Event::GeneralProtection(u32::from(
            kind != INT_N && kind != INT3_OR_INTO,
        ))),
        Class::Contributory | Class::PageFault => Outcome::Inject(Event::DoubleFault),
        Class::DoubleFault => Outcome::TripleFault,
    }
}

/// External interrupt, NMI, hardware exception, software interrupt, privileged software exception,
/// software exception.
const TYPES: [u32; 6] = [0, 2, 3, 4, 5, 6];

#[test]
fn a_fault_during_delivery_becomes_what_the_manual_says() {
    for kind in TYPES {
        for vector in 0..256 {
            // Bit 11: an error code; bit 12: undefined, or NMI unblocking.
            for flags in [0, 1 << 11, 1 << 12, 3 << 11] {
                let vectoring = 1 << 31 | flags | kind << 8 | vector;
                assert_eq!(
                    fault_during(vectoring),
                    gp_after(kind, vector),
                    "type {kind}, vector {vector}"
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn a_fault_outside_of_delivery_is_just_that(vectoring in 0..1_u32 << 31) {
        let plain = Outcome::Inject(Event::GeneralProtection(0));
        prop_assert_eq!(fault_during(vectoring), plain);
    }

    #[test]
    fn bits_16_to_30_of_the_reason_do_not_matter(basic: u16, rest in 0..1_u32 << 15) {
        let raw = rest << 16 | u32::from(basic);
        prop_assert_eq!(Reason::decode(raw), Reason::decode(basic.into()));
    }

    #[test]
    fn control_register_accesses_are_decoded_by_register_and_type(
        number in 0..16_u64,
        kind in 0..4_u64,
        register in 0..16_u8,
        rest: u64,
    ) {
        // Bits 3:0, 5:4 and 11:8; the others belong to LMSW or are undefined.
        let others = rest & !0xf3f;
        let raw = others | u64::from(register) << 8 | kind << 4 | number;
        let expected = match (number, kind) {
            (0, 0) => cr::Access::WriteCr0(register),
            (4, 0) => cr::Access::WriteCr4(register),
            _ => cr::Access::Unexpected,
        };
        prop_assert_eq!(cr::Access::decode(raw), expected);
    }
}

/// Names of basic exit reasons (SDM vol. 3D, appendix C); empty where the manual has none.
const REASON_NAMES: [&str; COUNTED_REASONS] = [
    "exception-or-nmi",
    "external-interrupt",
    "triple-fault",
    "init",
    "sipi",
    "io-smi",
    "other-smi",
    "interrupt-window",
    "nmi-window",
    "task-switch",
    "cpuid",
    "getsec",
    "hlt",
    "invd",
    "invlpg",
    "rdpmc",
    "rdtsc",
    "rsm",
    "vmcall",
    "vmclear",
    "vmlaunch",
    "vmptrld",
    "vmptrst",
    "vmread",
    "vmresume",
    "vmwrite",
    "vmxoff",
    "vmxon",
    "cr-access",
    "mov-dr",
    "io",
    "rdmsr",
    "wrmsr",
    "entry-guest-state",
    "entry-msr-load",
    "",
    "mwait",
    "monitor-trap",
    "",
    "monitor",
    "pause",
    "entry-machine-check",
    "",
    "tpr-threshold",
    "apic-access",
    "virtual-eoi",
    "gdtr-idtr",
    "ldtr-tr",
    "ept-violation",
    "ept-misconfiguration",
    "invept",
    "rdtscp",
    "preemption-timer",
    "invvpid",
    "wbinvd",
    "xsetbv",
    "apic-write",
    "rdrand",
    "invpcid",
    "vmfunc",
    "encls",
    "rdseed",
    "page-modification-log-full",
    "xsaves",
    "xrstors",
    "pconfig",
    "spp",
    "umwait",
    "tpause",
    "other",
];
