//! Which controls the host runs with, and what a processor may not lack.

use std::collections::BTreeSet;

use nested_vmx::capability::{Controls, Missing, RawCapabilities};
use proptest::prelude::*;

/// One bit that the visor needs, and what the processor lacks without it.
struct Need {
    register: Register,
    bit: u32,
    missing: Missing,
}

#[derive(Clone, Copy, Debug)]
enum Register {
    Pin,
    Primary,
    Secondary,
    Exit,
    Entry,
    Misc,
    EptVpid,
}

fn register(raw: &mut RawCapabilities, which: Register) -> &mut u64 {
    match which {
        Register::Pin => &mut raw.pin,
        Register::Primary => &mut raw.primary,
        Register::Secondary => &mut raw.secondary,
        Register::Exit => &mut raw.exit,
        Register::Entry => &mut raw.entry,
        Register::Misc => &mut raw.misc,
        Register::EptVpid => &mut raw.ept_vpid,
    }
}

/// Numbers from SDM vol. 3, tables 26-5 to 26-16 (in the high half of their MSRs) and A.6, A.10.
fn needs() -> Vec<Need> {
    use Missing as M;
    use Register as R;
    let rows: &[(Register, &[u32], Missing)] = &[
        (R::Pin, &[32 + 3, 32 + 5], M::VirtualNmis),
        (R::Primary, &[32 + 22], M::VirtualNmis),
        (R::Primary, &[32 + 25, 32 + 28], M::Bitmaps),
        (R::Primary, &[32 + 31], M::Ept),
        (R::Secondary, &[32 + 1], M::Ept),
        (R::Secondary, &[32 + 7], M::UnrestrictedGuest),
        (R::Exit, &[32 + 2, 32 + 9, 32 + 18, 32 + 19, 32 + 20, 32 + 21], M::PatEferSwitch),
        (R::Entry, &[32 + 2, 32 + 14, 32 + 15], M::PatEferSwitch),
        (R::Misc, &[8], M::WaitForSipi),
        (R::EptVpid, &[6, 14, 16, 17], M::EptPages),
        (R::EptVpid, &[20, 26], M::Invept),
    ];
    rows.iter()
        .flat_map(|&(register, bits, missing)| {
            bits.iter().map(move |&bit| Need { register, bit, missing })
        })
        .collect()
}

const WRITE_BACK_VMCS: u64 = 6 << 50;
/// VMCS identifier of the processor in these tests.
const REVISION: u32 = 0x12;
/// Forces no control and allows all of them.
const ALL_ALLOWED: u64 = 0xffff_ffff_0000_0000;

/// A processor that can do everything.
const ABLE: RawCapabilities = RawCapabilities {
    basic: WRITE_BACK_VMCS | 0x12,
    pin: ALL_ALLOWED,
    primary: ALL_ALLOWED,
    secondary: ALL_ALLOWED,
    exit: ALL_ALLOWED,
    entry: ALL_ALLOWED,
    misc: u64::MAX,
    ept_vpid: u64::MAX,
    cr0_fixed: (0, u64::MAX),
    cr4_fixed: (0, u64::MAX),
};

/// A processor that can do what the visor needs and nothing else.
fn barely_able() -> RawCapabilities {
    let mut raw = RawCapabilities {
        basic: WRITE_BACK_VMCS,
        pin: 0,
        primary: 0,
        secondary: 0,
        exit: 0,
        entry: 0,
        misc: 0,
        ept_vpid: 0,
        ..ABLE
    };
    for need in needs() {
        *register(&mut raw, need.register) |= 1 << need.bit;
    }
    raw
}

fn halves(capability: u64) -> (u32, u32) {
    let must = u32::try_from(capability & 0xffff_ffff).unwrap();
    (must, u32::try_from(capability >> 32).unwrap())
}

fn values(controls: Controls) -> [u32; 5] {
    [controls.pin, controls.primary, controls.secondary, controls.exit, controls.entry]
}

fn registers(raw: &RawCapabilities) -> [u64; 5] {
    [raw.pin, raw.primary, raw.secondary, raw.exit, raw.entry]
}

#[test]
fn a_processor_with_exactly_what_is_needed_runs_the_host() {
    let controls = barely_able().host_controls().unwrap();
    let needed = |bits: &[u32]| bits.iter().fold(0, |sum, bit| sum | 1 << bit);
    assert_eq!(controls.pin, needed(&[3, 5]));
    assert_eq!(controls.primary, needed(&[25, 28, 31]));
    assert_eq!(controls.secondary, needed(&[1, 7]));
    assert_eq!(controls.exit, needed(&[2, 9, 18, 19, 20, 21]));
    assert_eq!(controls.entry, needed(&[2, 14, 15]));
    assert!(!controls.vpid);
}

#[test]
fn what_software_could_use_without_the_visor_stays_usable() {
    // RDTSCP, VPID, INVPCID, concealment from PT, XSAVES, user wait.
    let optional = [3, 5, 12, 19, 20, 26].map(|bit| 1_u32 << bit);
    let controls = ABLE.host_controls().unwrap();
    let required = barely_able().host_controls().unwrap();
    let all = optional.iter().fold(0, |sum, bit| sum | bit);
    assert_eq!(controls.secondary, required.secondary | all);
    assert!(controls.vpid);
    for bit in optional {
        let mut raw = ABLE;
        raw.secondary &= !(u64::from(bit) << 32);
        let without = raw.host_controls().unwrap();
        assert_eq!(without.secondary, controls.secondary & !bit);
        assert_eq!(without.vpid, bit != 1 << 5);
    }
}

#[test]
fn translations_are_tagged_only_where_all_tags_can_be_flushed() {
    // INVVPID, and its type 2.
    for bit in [32, 42] {
        let mut raw = ABLE;
        raw.ept_vpid &= !(1 << bit);
        let controls = raw.host_controls().unwrap();
        assert!(!controls.vpid);
        assert_eq!(controls.secondary & 1 << 5, 0);
    }
}

#[test]
fn shadow_vmcss_are_used_only_where_the_visor_can_write_what_their_host_reads() {
    assert!(ABLE.has_vmcs_shadowing());
    assert!(!RawCapabilities { secondary: !(1 << 46), ..ABLE }.has_vmcs_shadowing());
    assert!(!RawCapabilities { misc: !(1 << 29), ..ABLE }.has_vmcs_shadowing());
    // TPR threshold and preemption timer are fields only with their controls.
    assert!(!RawCapabilities { primary: !(1 << 53), ..ABLE }.has_vmcs_shadowing());
    assert!(!RawCapabilities { pin: !(1 << 38), ..ABLE }.has_vmcs_shadowing());
}

#[test]
fn every_lack_is_named_by_what_is_missing() {
    for able in [ABLE, barely_able()] {
        for need in needs() {
            let mut raw = able;
            *register(&mut raw, need.register) &= !(1 << need.bit);
            assert_eq!(
                raw.host_controls(),
                Err(need.missing),
                "without bit {} of {:?}",
                need.bit,
                need.register
            );
        }
    }
}

#[test]
fn forced_exits_on_cr3_are_refused() {
    for bit in [15, 16] {
        let mut raw = ABLE;
        raw.primary |= 1 << bit;
        assert_eq!(raw.host_controls(), Err(Missing::Cr3Free));
    }
}

#[test]
fn vmcs_memory_must_be_write_back() {
    for kind in (0..16).filter(|kind| *kind != 6) {
        let raw = RawCapabilities { basic: kind << 50 | !(15 << 50), ..ABLE };
        assert_eq!(raw.host_controls(), Err(Missing::VmcsMemoryType));
    }
}

#[test]
fn a_processor_without_secondary_controls_has_no_ept() {
    let raw =
        RawCapabilities { primary: ABLE.primary & !(1 << 63), secondary: 0, ept_vpid: 0, ..ABLE };
    assert_eq!(raw.host_controls(), Err(Missing::Ept));
}

#[test]
fn the_revision_is_the_low_31_bits() {
    assert_eq!(ABLE.revision(), REVISION);
    let all = RawCapabilities { basic: u64::MAX, ..ABLE };
    assert_eq!(all.revision(), 0x7fff_ffff);
}

#[test]
fn every_lack_has_a_message_of_its_own() {
    let lacks = [
        Missing::Ept,
        Missing::EptPages,
        Missing::Invept,
        Missing::UnrestrictedGuest,
        Missing::VirtualNmis,
        Missing::Bitmaps,
        Missing::PatEferSwitch,
        Missing::WaitForSipi,
        Missing::VmcsMemoryType,
        Missing::Cr3Free,
    ];
    let messages: BTreeSet<String> = lacks.iter().map(ToString::to_string).collect();
    assert_eq!(messages.len(), lacks.len());
    assert!(messages.iter().all(|m| !m.is_empty() && !m.contains('\n')));
}

prop_compose! {
    /// A consistent capability MSR: what must be 1 may be 1. `needed` is mostly allowed and `free`
    /// is mostly not forced, or few processors would do.
    fn capability(needed: u64)(may: u32, lacking: u32, rare in 0..4, must: u32) -> u64 {
        let (_, needed) = halves(needed);
        let may = if rare == 0 { may & !(1 << (lacking % 32)) } else { may | needed };
        u64::from(may) << 32 | u64::from(must & may & 0xf000_00ff)
    }
}

prop_compose! {
    fn processor()(
        pin in capability(barely_able().pin),
        primary in capability(barely_able().primary),
        secondary in capability(barely_able().secondary),
        exit in capability(barely_able().exit),
        entry in capability(barely_able().entry),
        ept_vpid: u64,
    ) -> RawCapabilities {
        let ept_vpid = ept_vpid | barely_able().ept_vpid;
        // No secondary control is ever forced (SDM vol. 3, A.3.3).
        let secondary = secondary & ALL_ALLOWED;
        RawCapabilities { pin, primary, secondary, exit, entry, ept_vpid, ..ABLE }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn controls_have_what_the_processor_demands_and_nothing_that_it_refuses(raw in processor()) {
        let mut lacks = needs().into_iter().filter(|need| {
            *register(&mut { raw }, need.register) & 1 << need.bit == 0
        }).peekable();
        match raw.host_controls() {
            Ok(controls) => {
                prop_assert!(lacks.peek().is_none());
                let needed = registers(&barely_able());
                let rows = values(controls).into_iter().zip(registers(&raw)).zip(needed);
                for ((value, capability), needed) in rows {
                    let (must, may) = halves(capability);
                    prop_assert_eq!(value & !may, 0);
                    prop_assert_eq!(!value & must, 0);
                    let (_, needed) = halves(needed);
                    // NMI-window exiting is only switched on while an NMI waits.
                    prop_assert_eq!(!value & needed & !(1 << 22), 0);
                }
                prop_assert_eq!(controls.vpid, controls.secondary & 1 << 5 != 0);
            }
            Err(missing) => prop_assert!(lacks.any(|need| need.missing == missing)),
        }
    }
}
