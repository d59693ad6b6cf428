//! VMX instructions and how they fail: numbers of SDM vol. 3, 31.4, conditions of chapter 31.

use ept::addr::Frame;
use nested_vmx::advertise::Advertised;
use nested_vmx::operation::{
    Answer, Error, Operation, Scope, enterable, field, invept, invvpid, writable,
};
use nested_vmx::vmcs12::{Launch, REVISION};

use crate::good::{advertised, context, processor};

/// Regions of the right revision are at pages with an even number.
fn revision(frame: Frame) -> Option<u32> {
    match frame.base() >> 12 & 3 {
        0 | 2 => Some(REVISION),
        1 => Some(REVISION | 1 << 31),
        _ => None,
    }
}

const VMXON: u64 = 0x1_0000;
const FIRST: u64 = 0x1_2000;
const SECOND: u64 = 0x1_4000;
/// Not a page, beyond 39 bits.
const BAD: [u64; 5] = [0x1_0008, 0x1_0fff, 1 << 39, 1 << 63, u64::MAX];
/// Another revision, not RAM.
const OTHER: [u64; 2] = [0x1_1000, 0x1_3000];

fn at(base: u64) -> Frame {
    Frame::at(base).unwrap()
}

fn on(advertised: &Advertised) -> Operation {
    let mut operation = Operation::OFF;
    assert_eq!(operation.vmxon(VMXON, revision, &context(advertised)), Answer::Succeed);
    operation
}

#[test]
fn errors_have_the_numbers_of_the_manual() {
    let table = [
        (Error::Vmcall, 1),
        (Error::ClearAddress, 2),
        (Error::ClearVmxon, 3),
        (Error::LaunchNotClear, 4),
        (Error::ResumeNotLaunched, 5),
        (Error::LoadAddress, 9),
        (Error::LoadVmxon, 10),
        (Error::LoadRevision, 11),
        (Error::NoField, 12),
        (Error::ReadOnlyField, 13),
        (Error::VmxonTwice, 15),
        (Error::BlockedByMovSs, 26),
        (Error::InvalidOperand, 28),
    ];
    for (error, number) in table {
        assert_eq!(Answer::from(error), Answer::Fail(number));
    }
}

#[test]
fn an_answer_is_given_by_the_flags_and_by_the_error_field() {
    let current = Some(at(FIRST));
    let rows = [
        (Answer::Succeed, current, 0, None),
        (Answer::Succeed, None, 0, None),
        (Answer::FailInvalid, current, 1, None),
        (Answer::FailInvalid, None, 1, None),
        (Answer::Fail(12), current, 0x40, Some(12)),
        // Without a VMCS there is no field for the number.
        (Answer::Fail(12), None, 1, None),
    ];
    for (answer, current, flag, number) in rows {
        assert_eq!(answer.conclude(2, current), (2 | flag, number));
        // CF, PF, AF, ZF, SF and OF follow the answer; the others stay.
        assert_eq!(answer.conclude(0x3f_7fd7, current), (0x3f_7702 | flag, number));
    }
}

#[test]
fn vmxon_takes_a_region_of_the_revision() {
    let advertised = advertised();
    for pointer in BAD.into_iter().chain(OTHER) {
        let mut operation = Operation::OFF;
        let answer = operation.vmxon(pointer, revision, &context(&advertised));
        assert_eq!(answer, Answer::FailInvalid, "{pointer:#x}");
        assert!(!operation.is_on());
    }
    let operation = on(&advertised);
    assert!(operation.is_on());
    assert_eq!(operation.current(), None);
}

#[test]
fn a_second_vmxon_changes_nothing() {
    let advertised = advertised();
    let context = context(&advertised);
    let mut operation = on(&advertised);
    let _ = operation.vmptrld(FIRST, revision, &context).unwrap();
    let before = operation;
    for pointer in [VMXON, SECOND, BAD[0]] {
        assert_eq!(operation.vmxon(pointer, revision, &context), Answer::Fail(15));
        assert_eq!(operation, before);
    }
}

#[test]
fn vmxoff_ends_it_all() {
    let advertised = advertised();
    let mut operation = on(&advertised);
    let _ = operation.vmptrld(FIRST, revision, &context(&advertised)).unwrap();
    assert_eq!(operation.vmxoff(), Answer::Succeed);
    assert_eq!(operation, Operation::OFF);
    assert_eq!(operation, Operation::default());
}

#[test]
fn vmptrld_makes_a_region_current_or_fails_by_number() {
    let advertised = advertised();
    let context = context(&advertised);
    let mut operation = on(&advertised);
    let rows = BAD.map(|pointer| (pointer, 9)).into_iter();
    for (pointer, number) in rows.chain([(VMXON, 10)]).chain(OTHER.map(|pointer| (pointer, 11))) {
        let answer = operation.vmptrld(pointer, revision, &context);
        assert_eq!(answer, Err(Answer::Fail(number)), "{pointer:#x}");
        assert_eq!(operation.current(), None);
    }
    for pointer in [FIRST, SECOND, SECOND] {
        assert_eq!(operation.vmptrld(pointer, revision, &context), Ok(at(pointer)));
        assert_eq!(operation.current(), Some(at(pointer)));
    }
    assert_eq!(operation.vmptrld(VMXON, revision, &context), Err(Answer::Fail(10)));
    assert_eq!(operation.current(), Some(at(SECOND)), "a failure leaves the current one");
}

#[test]
fn vmclear_takes_any_region_but_that_of_vmxon() {
    let advertised = advertised();
    let context = context(&advertised);
    let mut operation = on(&advertised);
    let _ = operation.vmptrld(FIRST, revision, &context).unwrap();
    for pointer in BAD {
        let answer = operation.vmclear(pointer, &context);
        assert_eq!(answer, Err(Answer::Fail(2)), "{pointer:#x}");
    }
    assert_eq!(operation.vmclear(VMXON, &context), Err(Answer::Fail(3)));
    // Its revision is not looked at.
    for pointer in OTHER.into_iter().chain([SECOND]) {
        assert_eq!(operation.vmclear(pointer, &context), Ok(at(pointer)));
        assert_eq!(operation.current(), Some(at(FIRST)));
    }
    assert_eq!(operation.vmclear(FIRST, &context), Ok(at(FIRST)));
    assert_eq!(operation.current(), None);
}

#[test]
fn a_field_is_named_by_all_64_bits_of_the_operand() {
    let advertised = advertised();
    let context = context(&advertised);
    for encoding in [0, 0x2001, 0x4002, 0x681e, 0x440e] {
        assert_eq!(field(encoding.into(), &context), Ok(encoding));
    }
    for operand in [2, 0x200e, 0x2014, 0x4003, 0x681f, 0x8000, 1 << 32, 1 << 63 | 0x4002] {
        assert_eq!(field(operand, &context), Err(Error::NoField), "{operand:#x}");
    }
}

#[test]
fn a_field_of_a_feature_that_is_not_advertised_does_not_exist() {
    let mut raw = processor();
    raw.secondary &= !(1 << (32 + 25));
    let advertised = Advertised::of(&raw);
    for operand in [0x2032, 0x2033] {
        assert_eq!(field(operand, &context(&advertised)), Err(Error::NoField));
    }
}

#[test]
fn exit_information_cannot_be_written() {
    for encoding in [0x2400, 0x2401, 0x4400, 0x440e, 0x6400, 0x640a] {
        assert_eq!(writable(encoding), Err(Error::ReadOnlyField), "{encoding:#x}");
    }
    for encoding in [0x0000, 0x2000, 0x2800, 0x4002, 0x482e, 0x681e, 0x6c16] {
        assert_eq!(writable(encoding), Ok(()), "{encoding:#x}");
    }
}

#[test]
fn an_entry_needs_the_right_launch_state_and_no_mov_ss() {
    use Launch::{Clear, Launched};
    assert_eq!(enterable(Clear, Clear, 0), Ok(()));
    assert_eq!(enterable(Launched, Launched, 0), Ok(()));
    assert_eq!(enterable(Launched, Clear, 0), Err(Error::LaunchNotClear));
    assert_eq!(enterable(Clear, Launched, 0), Err(Error::ResumeNotLaunched));
    for (state, asks) in [(Clear, Clear), (Launched, Clear)] {
        assert_eq!(enterable(state, asks, 2), Err(Error::BlockedByMovSs));
    }
    // Blocking by STI, SMI or NMI does not matter.
    assert_eq!(enterable(Clear, Clear, 0b1_1101), Ok(()));
}

#[test]
fn invept_takes_the_types_that_exist_and_a_pointer_that_an_entry_would_take() {
    let advertised = advertised();
    let context = context(&advertised);
    assert_eq!(invept(1, [0x705e, 0], &context), Ok(Scope::Root(0x705e)));
    assert_eq!(invept(2, [u64::MAX, 0], &context), Ok(Scope::AllRoots));
    // The reserved half of the descriptor is not looked at.
    assert_eq!(invept(1, [0x705e, 1], &context), Ok(Scope::Root(0x705e)));
    for pointer in [0, 0x705f, 0x7066, 0x70de, 1 << 39 | 0x1e] {
        assert_eq!(invept(1, [pointer, 0], &context), Err(Error::InvalidOperand), "{pointer:#x}");
    }
    for kind in [0, 3, 1 << 32 | 1, u64::MAX] {
        assert_eq!(invept(kind, [0x705e, 0], &context), Err(Error::InvalidOperand), "{kind}");
    }
}

#[test]
fn invept_of_a_type_that_the_processor_lacks_fails() {
    for (kind, bit) in [(1, 25), (2, 26)] {
        let mut raw = processor();
        raw.ept_vpid &= !(1 << bit);
        let advertised = Advertised::of(&raw);
        let result = invept(kind, [0x705e, 0], &context(&advertised));
        assert_eq!(result, Err(Error::InvalidOperand));
        assert!(invept(3 - kind, [0x705e, 0], &context(&advertised)).is_ok());
    }
}

#[test]
fn invvpid_takes_a_tag_and_for_type_0_a_canonical_address() {
    const ODD: u64 = 1 << 47;
    let advertised = advertised();
    let context = context(&advertised);
    let bad = Err(Error::InvalidOperand);
    let rows = [
        (0, [5, 0x1000], Ok(Scope::Tag(0, 5, 0x1000))),
        (0, [5, !0], Ok(Scope::Tag(0, 5, !0))),
        (0, [5, ODD], bad),
        (0, [0, 0x1000], bad),
        (1, [0xffff, ODD], Ok(Scope::Tag(1, 0xffff, ODD))),
        (1, [0, 0], bad),
        (2, [0, ODD], Ok(Scope::AllTags)),
        (3, [5, ODD], Ok(Scope::Tag(3, 5, ODD))),
        (3, [0, 0], bad),
        (4, [5, 0], bad),
        (u64::MAX, [5, 0], bad),
        (1 << 32, [5, 0], bad),
    ];
    for (kind, descriptor, expected) in rows {
        assert_eq!(invvpid(kind, descriptor, &context), expected, "{kind} {descriptor:x?}");
    }
    for kind in 0..4 {
        assert_eq!(invvpid(kind, [0x1_0005, 0], &context), bad, "reserved bits of the descriptor");
    }
}

#[test]
fn invvpid_of_a_type_that_the_processor_lacks_fails() {
    for kind in 0..4 {
        let mut raw = processor();
        raw.ept_vpid &= !(1 << (40 + kind));
        let advertised = Advertised::of(&raw);
        for tried in 0..4 {
            let works = invvpid(tried, [5, 0], &context(&advertised)).is_ok();
            assert_eq!(works, tried != kind, "{tried} without {kind}");
        }
    }
}
