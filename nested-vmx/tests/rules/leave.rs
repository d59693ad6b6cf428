//! Back to the host: what VMCS01 holds after an exit of a VM (SDM vol. 3, 29.5).

use nested_vmx::cr::HostMemory;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::leave::{Abort, Cause, Inherited, load_host};
use nested_vmx::vmcs12::Vmcs12;
use proptest::prelude::*;

use crate::entry_checks::refusals;
use crate::fake::FakeVmcs;
use crate::good::{self, Zero, left_by, vmcs12, vmcs12_of_32_bit_host};

const INHERITED: Inherited =
    Inherited { efer: 0x901, pat: 0x0606_0606_0606_0606, interruptibility: 0b1011 };

/// Page-directory-pointer-table entries at 0x12_3000.
struct Memory([u64; 4]);

impl HostMemory for Memory {
    fn width(&self) -> u8 {
        40
    }

    fn read_u64(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(0x12_3000)? / 8).ok()?;
        self.0.get(at).copied()
    }
}

const PDPTES: Memory = Memory([0x5001, 0, 0x6001, 0x7001]);

fn load(v12: &Vmcs12, cause: Cause) -> FakeVmcs {
    let mut v01 = left_by(v12);
    load_host(v12, INHERITED, cause, &PDPTES, &mut v01).unwrap();
    v01
}

#[test]
fn a_64_bit_host_goes_on_as_its_host_state_says() {
    let v01 = load(&vmcs12(), Cause::Other);
    assert_eq!(refusals(&v01), Vec::<&str>::new());
    let expected: [(u32, u64); 22] = [
        // CD, NW and ET are as before.
        (f::GUEST_CR0.encoding(), 0xe005_0033),
        (f::CR0_SHADOW.encoding(), 0xe005_0033),
        (f::GUEST_CR3.encoding(), 0x12_3000),
        (f::GUEST_CR4.encoding(), 0x2_26f0),
        // Of what the visor owns, VMXE is 1.
        (f::CR4_SHADOW.encoding(), 0x2000),
        (f::GUEST_EFER.encoding(), 0xd01),
        (f::GUEST_PAT.encoding(), 0x0007_0406_0007_0406),
        (f::ENTRY_CONTROLS.encoding(), 0xd3ff),
        (f::GUEST_RIP.encoding(), 0xffff_ffff_8100_1000),
        (f::GUEST_RSP.encoding(), 0xffff_c900_0000_0000),
        (f::GUEST_RFLAGS.encoding(), 2),
        (f::GUEST_DR7.encoding(), 0x400),
        (f::GUEST_DEBUGCTL.encoding(), 0),
        (f::GUEST_SYSENTER_CS.encoding(), 0x10),
        (f::GUEST_SYSENTER_ESP.encoding(), 0xffff_fe00_0000_4000),
        (f::GUEST_SYSENTER_EIP.encoding(), 0xffff_ffff_8100_0000),
        (f::GUEST_ACTIVITY.encoding(), 0),
        (f::GUEST_PENDING_DEBUG.encoding(), 0),
        (f::ENTRY_INTERRUPTION.encoding(), 0),
        (f::GUEST_GDTR_BASE.encoding(), 0xffff_fe00_0000_1000),
        (f::GUEST_IDTR_BASE.encoding(), 0xffff_fe00_0000_0000),
        (f::GUEST_GDTR_LIMIT.encoding(), 0xffff),
    ];
    for (encoding, value) in expected {
        assert_eq!(v01.read_raw(encoding), value, "{encoding:#x}");
    }
    assert_eq!(v01.read(f::GUEST_IDTR_LIMIT), 0xffff);
}

/// Selector, base, limit and access rights; `None` for what is undefined.
type Expected = (Segment, u16, Option<u64>, Option<u32>, u32);

fn check_segments(v01: &FakeVmcs, expected: &[Expected]) {
    for &(segment, selector, base, limit, rights) in expected {
        let fields = segment.fields();
        assert_eq!(v01.read(fields.selector), selector, "{segment:?}");
        assert_eq!(v01.read(fields.rights), rights, "{segment:?}");
        assert!(base.is_none_or(|base| base == v01.read(fields.base)), "{segment:?}");
        assert!(limit.is_none_or(|limit| limit == v01.read(fields.limit)), "{segment:?}");
    }
}

const FLAT: Option<u32> = Some(u32::MAX);
const UNUSABLE: u32 = 1 << 16;

#[test]
fn the_segments_of_a_64_bit_host_are_flat() {
    check_segments(
        &load(&vmcs12(), Cause::Other),
        &[
            (Segment::Es, 0x18, Some(0), FLAT, 0xc093),
            (Segment::Cs, 0x10, Some(0), FLAT, 0xa09b),
            (Segment::Ss, 0x18, Some(0), FLAT, 0xc093),
            (Segment::Ds, 0, None, None, UNUSABLE),
            // In 64-bit mode a null selector has a base all the same.
            (Segment::Fs, 0, Some(0x7fff_ffff_f000), None, UNUSABLE),
            (Segment::Gs, 0x28, Some(0xffff_8880_0000_0000), FLAT, 0xc093),
            (Segment::Ldtr, 0, None, None, UNUSABLE),
            (Segment::Tr, 0x40, Some(0xffff_fe00_0000_3000), Some(0x67), 0x8b),
        ],
    );
}

#[test]
fn a_32_bit_host_goes_on_in_32_bits_with_its_page_directories() {
    let v01 = load(&vmcs12_of_32_bit_host(), Cause::Other);
    assert_eq!(v01.read(f::GUEST_EFER), 0x801);
    assert_eq!(v01.read(f::ENTRY_CONTROLS), 0xd1ff);
    assert_eq!(v01.read(f::GUEST_RIP), 0xc100_1000);
    check_segments(&v01, &[(Segment::Cs, 0x10, Some(0), FLAT, 0xc09b)]);
    let fields = [f::GUEST_PDPTE0, f::GUEST_PDPTE1, f::GUEST_PDPTE2, f::GUEST_PDPTE3];
    assert_eq!(fields.map(|field| v01.read(field)), PDPTES.0);
}

#[test]
fn a_32_bit_host_whose_page_directories_are_invalid_shuts_down() {
    let v12 = vmcs12_of_32_bit_host();
    for memory in [Memory([0x5003, 0, 0, 0]), Memory([1 << 63 | 1, 0, 0, 0])] {
        let result = load_host(&v12, INHERITED, Cause::Other, &memory, &mut left_by(&v12));
        assert_eq!(result, Err(Abort(2)));
    }
    let mut v12 = vmcs12_of_32_bit_host();
    v12.write(f::HOST_CR4, 0x26d0);
    let result = load_host(&v12, INHERITED, Cause::Other, &Memory([!0; 4]), &mut left_by(&v12));
    assert_eq!(result, Ok(()), "without PAE there are none");
}

#[test]
fn what_the_exit_does_not_load_is_the_vms() {
    let mut v12 = vmcs12();
    let exit = v12.read(f::EXIT_CONTROLS);
    v12.write(f::EXIT_CONTROLS, exit & !(1 << 19));
    assert_eq!(load(&v12, Cause::Other).read(f::GUEST_PAT), INHERITED.pat);
    v12.write(f::EXIT_CONTROLS, exit & !(1 << 21));
    // But LMA and LME are those of the host's mode.
    assert_eq!(load(&v12, Cause::Other).read(f::GUEST_EFER), 0xd01);
    assert_eq!(load(&v12, Cause::Other).read(f::GUEST_PAT), 0x0007_0406_0007_0406);
    let mut v12 = vmcs12_of_32_bit_host();
    let exit = v12.read(f::EXIT_CONTROLS);
    v12.write(f::EXIT_CONTROLS, exit & !(1 << 21));
    assert_eq!(load(&v12, Cause::Other).read(f::GUEST_EFER), 0x801);
}

#[test]
fn control_registers_end_as_vmx_operation_wants_them() {
    let mut v12 = vmcs12();
    v12.write(f::HOST_CR4, 0x2_2000);
    assert_eq!(load(&v12, Cause::Other).read(f::GUEST_CR4), 0x2_2020, "PAE in 64-bit mode");
    let mut v12 = vmcs12_of_32_bit_host();
    v12.write(f::HOST_CR4, 0x2_2020);
    assert_eq!(load(&v12, Cause::Other).read(f::GUEST_CR4), 0x2020, "no PCIDE outside of it");
    v12.write(f::HOST_CR4, 0);
    assert_eq!(load(&v12, Cause::Other).read(f::GUEST_CR4), 0x2000, "VMXE always");
    v12.write(f::HOST_CR0, 0x8000_0001);
    let v01 = load(&v12, Cause::Other);
    assert_eq!((v01.read(f::GUEST_CR0), v01.read(f::CR0_SHADOW)), (0xe000_0031, 0xe000_0011));
}

#[test]
fn nmis_are_blocked_by_an_exit_for_one_or_as_the_vm_had_them() {
    let blocking = |pin_flip: u32, cause, of_vm| {
        let mut v12 = vmcs12();
        let pin = v12.read(f::PIN_CONTROLS);
        v12.write(f::PIN_CONTROLS, pin ^ pin_flip);
        let inherited = Inherited { interruptibility: of_vm, ..INHERITED };
        let mut v01 = left_by(&v12);
        load_host(&v12, inherited, cause, &PDPTES, &mut v01).unwrap();
        v01.read(f::GUEST_INTERRUPTIBILITY)
    };
    // With virtual NMIs, the VM's blocking is not the host's.
    assert_eq!(blocking(0, Cause::Other, 0b1011), 0);
    assert_eq!(blocking(0, Cause::Nmi, 0), 8);
    assert_eq!(blocking(1 << 5, Cause::Other, 0b1011), 8);
    assert_eq!(blocking(1 << 5, Cause::Other, 0b0011), 0);
    assert_eq!(blocking(1 << 5, Cause::Nmi, 0), 8);
}

#[test]
fn what_the_host_inherits_is_read_from_the_vms_vmcs() {
    let v02 = FakeVmcs::default()
        .with(f::GUEST_EFER, INHERITED.efer)
        .with(f::GUEST_PAT, INHERITED.pat)
        .with(f::GUEST_INTERRUPTIBILITY, INHERITED.interruptibility);
    let mut v12 = vmcs12();
    v12.write(f::EXIT_CONTROLS, v12.read(f::EXIT_CONTROLS) & !(1 << 19 | 1 << 21));
    v12.write(f::PIN_CONTROLS, v12.read(f::PIN_CONTROLS) & !(1 << 5));
    assert_eq!(Inherited::of(&v02, &v12), INHERITED);
}

/// Changes of the host's state that may pass the checks.
fn hosts() -> impl Strategy<Value = Vec<(u32, u64)>> {
    let encodings = [0x0c00, 0x2c00, 0x4c00, 0x6c00].map(|first| first..first + 0x18_u32);
    let any_field =
        (0..4_usize, 0..12_u32).prop_map(move |(type_, index)| encodings[type_].start + index * 2);
    let value = prop_oneof![
        any::<u64>().prop_map(|value| value & 0x7fff_ffff_ffff),
        any::<u64>().prop_map(|value| value & 0xfff8),
        any::<u64>().prop_map(|value| 0x8000_0021 | value & 0xffff_ffff),
        any::<u64>().prop_map(|value| 0x2020 | value & 0x0137_3fff),
    ];
    proptest::collection::vec((any_field, value), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// If not, the visor would stop the machine.
    #[test]
    fn whatever_host_state_passes_the_checks_can_be_entered(edits in hosts(), long: bool) {
        let advertised = good::advertised();
        let context = nested_vmx::check::Context { long_mode: long, ..good::context(&advertised) };
        let mut v12 = if long { vmcs12() } else { vmcs12_of_32_bit_host() };
        edits.iter().for_each(|(encoding, value)| v12.write_raw(*encoding, *value));
        if nested_vmx::check::host_state(&v12, &context).is_ok() {
            let mut v01 = left_by(&v12);
            load_host(&v12, INHERITED, Cause::Other, &Zero, &mut v01).unwrap();
            prop_assert_eq!(refusals(&v01), Vec::<&str>::new());
        }
    }
}
