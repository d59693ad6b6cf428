//! Checks of a VM entry that the visor makes: each rule of the manual, broken alone.

use nested_vmx::advertise::Advertised;
use nested_vmx::check::{self, Context, Invalid};
use nested_vmx::field::{self as f, Vmcs};
use nested_vmx::vmcs12::Vmcs12;
use proptest::prelude::*;

use crate::good::{
    CONTROLS, advertised, context, processor, vmcs12, vmcs12_of_32_bit_host as vmcs12_32,
};

/// A change of a field.
#[derive(Clone, Copy, Debug)]
enum Edit {
    Set(u32, u64),
    Flip(u32, u64),
}
use Edit::{Flip, Set};

/// What is wrong, and how to get there.
type Row = (&'static str, &'static [Edit]);

fn edit(v12: &mut Vmcs12, edits: &[Edit]) {
    for edit in edits {
        match *edit {
            Set(encoding, value) => v12.write_raw(encoding, value),
            Flip(encoding, bits) => v12.write_raw(encoding, v12.read_raw(encoding) ^ bits),
        }
    }
}

fn verdict(v12: &Vmcs12, context: &Context<'_>) -> Result<(), Invalid> {
    check::controls(v12, context)?;
    check::host_state(v12, context)
}

fn all_refused(base: impl Fn() -> Box<Vmcs12>, context: &Context<'_>, rows: &[Row], with: Invalid) {
    for (what, edits) in rows {
        let mut v12 = base();
        edit(&mut v12, edits);
        assert_eq!(verdict(&v12, context), Err(with), "{what}");
    }
}

fn all_accepted(context: &Context<'_>, rows: &[Row]) {
    for (what, edits) in rows {
        let mut v12 = vmcs12();
        edit(&mut v12, edits);
        assert_eq!(verdict(&v12, context), Ok(()), "{what}");
    }
}

const PIN: u32 = f::PIN_CONTROLS.encoding();
const PRIMARY: u32 = f::PRIMARY_CONTROLS.encoding();
const SECONDARY: u32 = f::SECONDARY_CONTROLS.encoding();
const EXIT: u32 = f::EXIT_CONTROLS.encoding();
const ENTRY: u32 = f::ENTRY_CONTROLS.encoding();
const EPTP: u32 = f::EPT_POINTER.encoding();
/// The first address that 39 bits do not reach.
const BEYOND: u64 = 1 << 39;
const ODD: u64 = 0x8000_0000_0000;

#[test]
fn good_hosts_of_64_and_32_bits_pass() {
    let advertised = advertised();
    let context = context(&advertised);
    assert_eq!(verdict(&vmcs12(), &context), Ok(()));
    let context = Context { long_mode: false, ..context };
    assert_eq!(verdict(&vmcs12_32(), &context), Ok(()));
}

#[test]
fn a_refusal_has_the_number_of_the_manual() {
    assert_eq!((Invalid::Control.number(), Invalid::Host.number()), (7, 8));
}

/// 28.2.1.1 and 28.2.1.2; the processor checks the event to inject.
const CONTROL_RULES: &[Row] = &[
    ("five CR3 targets", &[Set(f::CR3_TARGET_COUNT.encoding(), 5)]),
    ("I/O bitmap A inside a page", &[Flip(f::IO_BITMAP_A.encoding(), 0x800)]),
    ("I/O bitmap B inside a page", &[Flip(f::IO_BITMAP_B.encoding(), 1)]),
    ("I/O bitmap A out of reach", &[Flip(f::IO_BITMAP_A.encoding(), BEYOND)]),
    ("I/O bitmap B out of reach", &[Flip(f::IO_BITMAP_B.encoding(), 1 << 63)]),
    ("MSR bitmaps inside a page", &[Flip(f::MSR_BITMAP.encoding(), 8)]),
    ("MSR bitmaps out of reach", &[Flip(f::MSR_BITMAP.encoding(), BEYOND)]),
    ("virtual-APIC page inside a page", &[Flip(f::VIRTUAL_APIC.encoding(), 0x10)]),
    ("virtual-APIC page out of reach", &[Flip(f::VIRTUAL_APIC.encoding(), BEYOND)]),
    ("virtual NMIs without NMI exiting", &[Flip(PIN, 1 << 3)]),
    ("NMI window without virtual NMIs", &[Flip(PIN, 1 << 5), Flip(PRIMARY, 1 << 22)]),
    ("timer saved but not used", &[Flip(PIN, 1 << 6)]),
    ("VPID 0", &[Set(f::VPID.encoding(), 0)]),
    ("unrestricted guest without EPT", &[Flip(SECONDARY, 2)]),
    ("EPT in write-combining memory", &[Flip(EPTP, 7)]),
    ("EPT in a reserved memory type", &[Flip(EPTP, 1)]),
    ("EPT walk of 5 steps", &[Flip(EPTP, 0x38)]),
    ("EPT walk of 3 steps", &[Flip(EPTP, 0x08)]),
    ("EPT pointer with shadow-stack control", &[Flip(EPTP, 0x80)]),
    ("EPT pointer with bit 8", &[Flip(EPTP, 0x100)]),
    ("EPT pointer with bit 11", &[Flip(EPTP, 0x800)]),
    ("EPT pointer out of reach", &[Flip(EPTP, BEYOND)]),
    ("store list unaligned", &[Flip(f::EXIT_MSR_STORE.encoding(), 8)]),
    ("exit load list unaligned", &[Flip(f::EXIT_MSR_LOAD.encoding(), 4)]),
    ("entry load list unaligned", &[Flip(f::ENTRY_MSR_LOAD.encoding(), 1)]),
    ("store list out of reach", &[Flip(f::EXIT_MSR_STORE.encoding(), BEYOND)]),
    ("exit load list ends out of reach", &[Set(f::EXIT_MSR_LOAD.encoding(), BEYOND - 16)]),
    ("entry load list wraps", &[Set(f::ENTRY_MSR_LOAD.encoding(), !0xf)]),
    (
        "a list longer than memory",
        &[
            Set(f::ENTRY_MSR_LOAD_COUNT.encoding(), 0xffff_ffff),
            Set(f::ENTRY_MSR_LOAD.encoding(), BEYOND - (1 << 35)),
        ],
    ),
];

#[test]
fn every_broken_rule_about_controls_alone_is_error_7() {
    let advertised = advertised();
    all_refused(vmcs12, &context(&advertised), CONTROL_RULES, Invalid::Control);
}

#[test]
fn fields_of_controls_that_are_off_are_not_looked_at() {
    const ROWS: &[Row] = &[
        (
            "I/O bitmaps",
            &[
                Flip(PRIMARY, 1 << 25),
                Set(f::IO_BITMAP_A.encoding(), 1),
                Set(f::IO_BITMAP_B.encoding(), BEYOND),
            ],
        ),
        ("MSR bitmaps", &[Flip(PRIMARY, 1 << 28), Set(f::MSR_BITMAP.encoding(), u64::MAX)]),
        (
            "TPR shadow",
            &[
                Flip(PRIMARY, 1 << 21),
                Set(f::VIRTUAL_APIC.encoding(), 1),
                Set(f::TPR_THRESHOLD.encoding(), 0x10),
            ],
        ),
        ("VPID", &[Flip(SECONDARY, 1 << 5), Set(f::VPID.encoding(), 0)]),
        ("EPT", &[Flip(SECONDARY, 1 << 7 | 1 << 1), Set(EPTP, u64::MAX)]),
        (
            "secondary controls",
            &[
                Flip(PRIMARY, 1 << 31),
                Set(SECONDARY, 0xffff_ffff),
                Set(EPTP, 0),
                Set(f::VPID.encoding(), 0),
            ],
        ),
        (
            "an empty list",
            &[
                Set(f::EXIT_MSR_STORE_COUNT.encoding(), 0),
                Set(f::EXIT_MSR_STORE.encoding(), u64::MAX),
            ],
        ),
        ("host PAT", &[Flip(EXIT, 1 << 19), Set(f::HOST_PAT.encoding(), 2)]),
        ("host EFER", &[Flip(EXIT, 1 << 21), Set(f::HOST_EFER.encoding(), u64::MAX)]),
    ];
    let advertised = advertised();
    all_accepted(&context(&advertised), ROWS);
}

#[test]
fn the_last_values_that_are_valid_are_accepted() {
    const ROWS: &[Row] = &[
        ("uncacheable EPT", &[Flip(EPTP, 6)]),
        ("EPT without accessed and dirty flags", &[Flip(EPTP, 0x40)]),
        ("EPT at the last page", &[Set(EPTP, (BEYOND - 0x1000) | 0x1e)]),
        ("a list up to the last byte", &[Set(f::EXIT_MSR_LOAD.encoding(), BEYOND - 32)]),
        ("VPID 0xffff", &[Set(f::VPID.encoding(), 0xffff)]),
        ("null SS of a 64-bit host", &[Set(f::HOST_SS_SELECTOR.encoding(), 0)]),
        (
            "null data selectors",
            &[Set(f::HOST_ES_SELECTOR.encoding(), 0), Set(f::HOST_GS_SELECTOR.encoding(), 0)],
        ),
        ("the highest canonical RIP", &[Set(f::HOST_RIP.encoding(), u64::MAX)]),
        ("the highest canonical RIP of the lower half", &[Set(f::HOST_RIP.encoding(), ODD - 1)]),
        ("NMI window with virtual NMIs", &[Flip(PRIMARY, 1 << 22)]),
    ];
    let advertised = advertised();
    all_accepted(&context(&advertised), ROWS);
}

/// 28.2.2 to 28.2.4.
const HOST_RULES: &[Row] = &[
    ("CR0 without PE", &[Flip(f::HOST_CR0.encoding(), 1)]),
    ("CR0 without NE", &[Flip(f::HOST_CR0.encoding(), 1 << 5)]),
    ("CR0 without PG", &[Flip(f::HOST_CR0.encoding(), 1 << 31)]),
    ("CR0 with an upper bit", &[Flip(f::HOST_CR0.encoding(), 1 << 32)]),
    ("CR4 without VMXE", &[Flip(f::HOST_CR4.encoding(), 1 << 13)]),
    ("CR4 with SMXE, which is hidden", &[Flip(f::HOST_CR4.encoding(), 1 << 14)]),
    ("CR4 with Key Locker", &[Flip(f::HOST_CR4.encoding(), 1 << 19)]),
    ("CR4 with CET", &[Flip(f::HOST_CR4.encoding(), 1 << 23)]),
    ("CR4 with FRED", &[Flip(f::HOST_CR4.encoding(), 1 << 32)]),
    ("CR4 with a reserved bit", &[Flip(f::HOST_CR4.encoding(), 1 << 63)]),
    ("CR3 out of reach", &[Flip(f::HOST_CR3.encoding(), BEYOND)]),
    ("SYSENTER_ESP not canonical", &[Set(f::HOST_SYSENTER_ESP.encoding(), ODD)]),
    ("SYSENTER_EIP not canonical", &[Set(f::HOST_SYSENTER_EIP.encoding(), ODD)]),
    ("FS base not canonical", &[Set(f::HOST_FS_BASE.encoding(), ODD)]),
    ("GS base not canonical", &[Set(f::HOST_GS_BASE.encoding(), !ODD)]),
    ("TR base not canonical", &[Set(f::HOST_TR_BASE.encoding(), 1 << 63)]),
    ("GDTR base not canonical", &[Set(f::HOST_GDTR_BASE.encoding(), ODD)]),
    ("IDTR base not canonical", &[Set(f::HOST_IDTR_BASE.encoding(), !(1 << 62))]),
    ("PAT with type 2", &[Set(f::HOST_PAT.encoding(), 0x0007_0406_0007_0402)]),
    ("PAT with type 3 last", &[Set(f::HOST_PAT.encoding(), 0x0307_0406_0007_0406)]),
    ("PAT with type 8", &[Set(f::HOST_PAT.encoding(), 0x0007_0406_0807_0406)]),
    ("EFER with a reserved bit", &[Flip(f::HOST_EFER.encoding(), 1 << 1)]),
    ("EFER without LMA", &[Flip(f::HOST_EFER.encoding(), 1 << 10)]),
    ("EFER without LME", &[Flip(f::HOST_EFER.encoding(), 1 << 8)]),
    ("EFER of 32 bits", &[Flip(f::HOST_EFER.encoding(), 0x500)]),
    ("ES with RPL", &[Flip(f::HOST_ES_SELECTOR.encoding(), 1)]),
    ("CS with RPL", &[Flip(f::HOST_CS_SELECTOR.encoding(), 2)]),
    ("SS with TI", &[Flip(f::HOST_SS_SELECTOR.encoding(), 4)]),
    ("DS with RPL", &[Flip(f::HOST_DS_SELECTOR.encoding(), 3)]),
    ("FS with TI", &[Flip(f::HOST_FS_SELECTOR.encoding(), 4)]),
    ("GS with RPL", &[Flip(f::HOST_GS_SELECTOR.encoding(), 1)]),
    ("TR with TI", &[Flip(f::HOST_TR_SELECTOR.encoding(), 4)]),
    ("null CS", &[Set(f::HOST_CS_SELECTOR.encoding(), 0)]),
    ("null TR", &[Set(f::HOST_TR_SELECTOR.encoding(), 0)]),
    ("RIP not canonical", &[Set(f::HOST_RIP.encoding(), ODD)]),
    ("64-bit host without PAE", &[Flip(f::HOST_CR4.encoding(), 1 << 5)]),
    ("64-bit mode left", &[Flip(EXIT, 1 << 9), Flip(f::HOST_EFER.encoding(), 0x500)]),
];

#[test]
fn every_broken_rule_about_the_host_alone_is_error_8() {
    let advertised = advertised();
    all_refused(vmcs12, &context(&advertised), HOST_RULES, Invalid::Host);
}

const HOST_32_RULES: &[Row] = &[
    ("null SS", &[Set(f::HOST_SS_SELECTOR.encoding(), 0)]),
    ("RIP of 33 bits", &[Flip(f::HOST_RIP.encoding(), 1 << 32)]),
    ("PCIDE", &[Flip(f::HOST_CR4.encoding(), 1 << 17)]),
    ("EFER with LME", &[Flip(f::HOST_EFER.encoding(), 1 << 8)]),
    ("EFER with LMA", &[Flip(f::HOST_EFER.encoding(), 1 << 10)]),
    ("a VM in IA-32e mode", &[Flip(ENTRY, 1 << 9)]),
    ("64-bit mode entered", &[Flip(EXIT, 1 << 9), Flip(f::HOST_EFER.encoding(), 0x500)]),
];

#[test]
fn every_broken_rule_about_a_32_bit_host_alone_is_error_8() {
    let advertised = advertised();
    let context = Context { long_mode: false, ..context(&advertised) };
    all_refused(vmcs12_32, &context, HOST_32_RULES, Invalid::Host);
}

#[test]
fn with_57_bits_of_linear_addresses_more_is_canonical() {
    let advertised = advertised();
    let context = Context { sign_bit: 56, ..context(&advertised) };
    let mut v12 = vmcs12();
    edit(&mut v12, &[Set(f::HOST_RIP.encoding(), ODD)]);
    assert_eq!(verdict(&v12, &context), Ok(()));
    edit(&mut v12, &[Set(f::HOST_RIP.encoding(), 1 << 56)]);
    assert_eq!(verdict(&v12, &context), Err(Invalid::Host));
}

/// Which MSR says what a control field may hold.
const FIELDS: [(u32, u32); 5] =
    [(PIN, 0x48d), (PRIMARY, 0x48e), (SECONDARY, 0x48b), (EXIT, 0x48f), (ENTRY, 0x490)];

fn msr(advertised: &Advertised, index: u32) -> (u64, u64) {
    let value = advertised.msr(index).unwrap();
    (value & 0xffff_ffff, value >> 32)
}

#[test]
fn a_control_that_is_not_advertised_or_a_missing_fixed_one_is_error_7() {
    let advertised = advertised();
    let context = context(&advertised);
    for (field, index) in FIELDS {
        let (must, may) = msr(&advertised, index);
        for bit in (0..32).map(|number| 1 << number).filter(|bit| must & bit != 0 || may & bit == 0)
        {
            let mut v12 = vmcs12();
            edit(&mut v12, &[Flip(field, bit)]);
            assert_eq!(
                check::controls(&v12, &context),
                Err(Invalid::Control),
                "{field:#x} {bit:#x}"
            );
        }
    }
}

#[test]
fn features_that_the_processor_lacks_are_refused_in_an_ept_pointer() {
    let mut raw = processor();
    raw.ept_vpid &= !(1 << 21 | 1 << 8);
    let advertised = Advertised::of(&raw);
    let context = context(&advertised);
    let mut v12 = vmcs12();
    assert_eq!(check::controls(&v12, &context), Err(Invalid::Control), "accessed and dirty flags");
    v12.write(f::EPT_POINTER, 0x1_701e);
    assert_eq!(check::controls(&v12, &context), Ok(()));
    v12.write(f::EPT_POINTER, 0x1_7018);
    assert_eq!(check::controls(&v12, &context), Err(Invalid::Control), "uncacheable tables");
}

/// What of the VM's state is checked, and the exit qualification that a refusal has.
const GUEST_ROWS: &[(&str, &[Edit], Result<(), u64>)] = &[
    ("as it is", &[], Ok(())),
    ("halted", &[Set(f::GUEST_ACTIVITY.encoding(), 1)], Ok(())),
    ("shut down", &[Set(f::GUEST_ACTIVITY.encoding(), 2)], Ok(())),
    ("waiting for SIPI, which is hidden", &[Set(f::GUEST_ACTIVITY.encoding(), 3)], Err(0)),
    ("an unknown state", &[Set(f::GUEST_ACTIVITY.encoding(), 4)], Err(0)),
    ("far from any state", &[Set(f::GUEST_ACTIVITY.encoding(), 0xffff_ffff)], Err(0)),
    ("SMXE", &[Flip(f::GUEST_CR4.encoding(), 1 << 14)], Err(0)),
    ("Key Locker", &[Flip(f::GUEST_CR4.encoding(), 1 << 19)], Err(0)),
    ("CET", &[Flip(f::GUEST_CR4.encoding(), 1 << 23)], Err(0)),
    ("FRED", &[Flip(f::GUEST_CR4.encoding(), 1 << 32)], Err(0)),
];

#[test]
fn a_vm_that_could_see_what_is_hidden_is_an_entry_failure() {
    let advertised = advertised();
    for (what, edits, expected) in GUEST_ROWS {
        let mut v12 = vmcs12();
        edit(&mut v12, edits);
        assert_eq!(check::guest_state(&v12, &context(&advertised)), *expected, "{what}");
    }
}

#[test]
fn a_vm_halts_or_shuts_down_only_where_the_processor_lets_it() {
    for (misc, state) in [(1 << 6, 1), (1 << 7, 2)] {
        let mut raw = processor();
        raw.misc &= !misc;
        let advertised = Advertised::of(&raw);
        let mut v12 = vmcs12();
        v12.write(f::GUEST_ACTIVITY, state);
        assert_eq!(check::guest_state(&v12, &context(&advertised)), Err(0), "{state}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Nothing is accepted that the MSRs do not allow, whatever else holds.
    #[test]
    fn controls_that_are_accepted_are_allowed_by_the_msrs(
        flips in proptest::collection::vec((0..5_usize, 0..32_u32), 0..6),
    ) {
        let advertised = advertised();
        let mut v12 = vmcs12();
        for (field, bit) in flips {
            edit(&mut v12, &[Flip(CONTROLS[field].0, 1 << bit)]);
        }
        if check::controls(&v12, &context(&advertised)).is_ok() {
            for (field, index) in FIELDS {
                let (must, may) = msr(&advertised, index);
                let counts = field != SECONDARY || v12.read_raw(PRIMARY) >> 31 & 1 == 1;
                let value = v12.read_raw(field);
                prop_assert!(!counts || value & must == must && value & !may == 0, "{:#x}", field);
            }
        }
    }
}
