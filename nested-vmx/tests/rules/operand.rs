//! Operands of VMX instructions: what the exit says of them (SDM vol. 3, tables 29-14 to 29-16), and
//! what the processor checks of an operand in memory (vol. 1, 3.7; vol. 3, 6.3 and 6.5).

use nested_vmx::exit::Event;
use nested_vmx::field::{self as f, Segment};
use nested_vmx::operand::{Address, Operands, Place, Use, permitted, privileged};
use proptest::prelude::*;

use crate::fake::FakeVmcs;

const SIGN_BIT: u8 = 47;
const DATA: u32 = 0xc093;
const CODE_64: u32 = 0xa09b;
const CODE_32: u32 = 0xc09b;

/// Ring 0 with flat segments but for FS and GS.
fn host(efer: u64, code: u32) -> FakeVmcs {
    let mut v = FakeVmcs::default()
        .with(f::GUEST_CR0, 0x8000_0031)
        .with(f::GUEST_RFLAGS, 2)
        .with(f::GUEST_EFER, efer);
    for (segment, base) in Segment::ALL.into_iter().zip([0, 0, 0, 0, 0x1000, 1 << 47, 0, 0]) {
        let fields = segment.fields();
        let base = if segment == Segment::Gs && efer != 0 { !0 << 47 } else { base & 0xffff_ffff };
        let rights = if segment == Segment::Cs { code } else { DATA };
        v = v.with(fields.base, base).with(fields.limit, u32::MAX).with(fields.rights, rights);
    }
    v
}

fn long() -> FakeVmcs {
    host(0xd01, CODE_64)
}

fn legacy() -> FakeVmcs {
    host(0, CODE_32)
}

/// General-purpose registers that tell their number.
fn register(number: u8) -> u64 {
    u64::from(number) * 0x1_0000_0100
}

/// The parts of the instruction information.
#[derive(Clone, Copy, Debug)]
struct Parts {
    scale: u32,
    size: u32,
    segment: u32,
    index: Option<u32>,
    base: Option<u32>,
}

const PLAIN: Parts = Parts { scale: 0, size: 2, segment: 3, index: None, base: None };

impl Parts {
    fn encode(self) -> u32 {
        let index = self.index.map_or(1 << 22 | 9 << 18, |number| number << 18);
        let base = self.base.map_or(1 << 27 | 9 << 23, |number| number << 23);
        self.scale | self.size << 7 | self.segment << 15 | index | base | 5 << 28
    }

    fn address(self, displacement: u64) -> Address {
        let operands = Operands::decode(self.encode(), displacement).unwrap();
        assert_eq!(operands.register, 5);
        match operands.place {
            Place::Memory(address) => address,
            Place::Register(_) => panic!("it is in memory"),
        }
    }

    fn linear(self, displacement: u64, vmcs: &FakeVmcs) -> Result<u64, Event> {
        self.address(displacement).linear(vmcs, register, (8, Use::Read), SIGN_BIT)
    }
}

const GP: Result<u64, Event> = Err(Event::GeneralProtection(0));
const SS: Result<u64, Event> = Err(Event::StackFault);

#[test]
fn a_register_operand_is_told_by_its_number() {
    for (first, second) in [(0, 15), (7, 0), (15, 8)] {
        let information = 1 << 10 | u32::from(first) << 3 | u32::from(second) << 28 | 0x00ff_8000;
        let expected = Operands { place: Place::Register(first), register: second };
        assert_eq!(Operands::decode(information, 0), Some(expected));
    }
}

#[test]
fn what_no_processor_reports_is_no_operand() {
    for parts in [Parts { segment: 6, ..PLAIN }, Parts { segment: 7, ..PLAIN }] {
        assert_eq!(Operands::decode(parts.encode(), 0), None);
    }
    for size in 3..8 {
        assert_eq!(Operands::decode(Parts { size, ..PLAIN }.encode(), 0), None);
    }
}

#[test]
fn an_address_is_the_sum_of_its_parts() {
    let rows = [
        (PLAIN, 0x1234, 0x1234),
        (Parts { base: Some(3), ..PLAIN }, 8, 0x3_0000_0308),
        (Parts { index: Some(2), ..PLAIN }, 0, 0x2_0000_0200),
        (Parts { index: Some(2), scale: 3, ..PLAIN }, 0, 0x10_0000_1000),
        (Parts { base: Some(15), index: Some(1), scale: 1, ..PLAIN }, 1, 0x11_0000_1101),
        (Parts { base: Some(1), ..PLAIN }, !0xff, 0x1_0000_0000),
        // 32 and 16 bits of address
        (Parts { base: Some(3), size: 1, ..PLAIN }, 8, 0x308),
        (Parts { base: Some(1), size: 1, ..PLAIN }, !0x1ff, 0xffff_ff00),
        (Parts { base: Some(1), size: 0, ..PLAIN }, 0xff_ff80, 0x80),
        // only FS and GS have a base
        (Parts { segment: 4, ..PLAIN }, 8, 0x1008),
        (Parts { segment: 5, ..PLAIN }, 8, !0 << 47 | 8),
        (Parts { segment: 4, size: 1, ..PLAIN }, 0xffff_fff8, 0x1_0000_0ff8),
    ];
    for (parts, displacement, expected) in rows {
        assert_eq!(parts.linear(displacement, &long()), Ok(expected), "{parts:?}");
    }
}

#[test]
fn in_64_bit_mode_segments_neither_move_nor_limit() {
    let data = Segment::Ds.fields();
    let v = long().with(data.base, 0x5000).with(data.limit, 0).with(data.rights, 0x1_0000);
    assert_eq!(PLAIN.linear(0x8000, &v), Ok(0x8000));
}

#[test]
fn an_address_that_is_not_canonical_faults_by_its_segment() {
    for displacement in [1 << 47, (1 << 47) - 7, !(1 << 47), 1 << 63] {
        assert_eq!(PLAIN.linear(displacement, &long()), GP, "{displacement:#x}");
        assert_eq!(Parts { segment: 2, ..PLAIN }.linear(displacement, &long()), SS);
        assert_eq!(Parts { segment: 0, ..PLAIN }.linear(displacement, &long()), GP);
    }
    for displacement in [(1 << 47) - 8, !0 << 47, !7] {
        assert_eq!(PLAIN.linear(displacement, &long()), Ok(displacement));
    }
    let wide = PLAIN.address(1 << 47).linear(&long(), register, (8, Use::Read), 56);
    assert_eq!(wide, Ok(1 << 47));
}

#[test]
fn outside_64_bit_mode_segments_move_and_wrap() {
    let v = legacy().with(Segment::Ds.fields().base, 0xffff_f000);
    assert_eq!(Parts { size: 1, ..PLAIN }.linear(0x2000, &v), Ok(0x1000));
    // Even if the exit told of 64 bits.
    assert_eq!(PLAIN.linear(0x5_0000_2000, &v), Ok(0x1000));
    // In legacy mode the L bit of a code segment means nothing.
    let v = host(0, CODE_64).with(Segment::Ds.fields().base, 0x5000);
    assert_eq!(Parts { size: 1, ..PLAIN }.linear(8, &v), Ok(0x5008));
}

/// Limit, access rights, first offset, access, whether it is permitted.
type Row = (u32, u32, u64, Use, bool);

const SEGMENTS: &[Row] = &[
    (0xfff, DATA, 0xff8, Use::Read, true),
    (0xfff, DATA, 0xff9, Use::Read, false),
    (0xfff, DATA, 0x1000, Use::Read, false),
    (0xffff_ffff, DATA, 0xffff_fff8, Use::Write, true),
    (0xffff_ffff, DATA, 0xffff_fff9, Use::Write, false),
    // read-only data
    (0xfff, 0xc091, 0, Use::Read, true),
    (0xfff, 0xc091, 0, Use::Write, false),
    // readable and execute-only code
    (0xfff, 0xc09b, 0, Use::Read, true),
    (0xfff, 0xc09b, 0, Use::Write, false),
    (0xfff, 0xc099, 0, Use::Read, false),
    // conforming code does not expand down
    (0xfff, 0xc09f, 0, Use::Read, true),
    // data that expands down, of 32 and 16 bits
    (0xfff, 0xc097, 0xfff, Use::Read, false),
    (0xfff, 0xc097, 0x1000, Use::Read, true),
    (0xfff, 0xc097, 0xffff_fff8, Use::Write, true),
    (0xfff, 0xc097, 0xffff_fff9, Use::Write, false),
    (0xfff, 0x8097, 0xfff8, Use::Read, true),
    (0xfff, 0x8097, 0xfff9, Use::Read, false),
    (0xfff, 0x8095, 0x1000, Use::Write, false),
    // unusable
    (0xffff_ffff, DATA | 1 << 16, 0, Use::Read, false),
];

#[test]
fn outside_64_bit_mode_a_segment_must_permit_the_access() {
    for (number, segment) in [(0, Segment::Es), (2, Segment::Ss), (3, Segment::Ds)] {
        for &(limit, rights, offset, usage, permitted) in SEGMENTS {
            let fields = segment.fields();
            let v = legacy().with(fields.limit, limit).with(fields.rights, rights);
            let parts = Parts { size: 1, segment: number, ..PLAIN };
            let found = parts.address(offset).linear(&v, register, (8, usage), SIGN_BIT);
            let fault = if segment == Segment::Ss { SS } else { GP };
            let expected = if permitted { Ok(offset) } else { fault };
            assert_eq!(found, expected, "{rights:#x} {offset:#x}");
        }
    }
}

#[test]
fn vmx_instructions_are_for_ring_0_of_protected_and_64_bit_mode() {
    let ud = Err(Event::InvalidOpcode);
    let ring = |v: FakeVmcs, dpl: u32| v.with(Segment::Ss.fields().rights, DATA | dpl << 5);
    assert_eq!(permitted(&long()), Ok(()));
    assert_eq!(permitted(&legacy()), Ok(()));
    assert_eq!(permitted(&host(0, CODE_64)), Ok(()), "the L bit without IA-32e mode");
    assert_eq!(permitted(&host(0xd01, CODE_32)), ud, "compatibility mode");
    assert_eq!(permitted(&host(0x100, CODE_32)), Ok(()), "LME alone is no IA-32e mode");
    assert_eq!(permitted(&legacy().with(f::GUEST_CR0, 0x10)), ud, "real mode");
    assert_eq!(permitted(&ring(legacy().with(f::GUEST_RFLAGS, 0x2_0002), 3)), ud, "virtual 8086");
    for dpl in 1..4 {
        assert_eq!(permitted(&ring(long(), dpl)), Err(Event::GeneralProtection(0)));
    }
    assert_eq!(permitted(&ring(host(0xd01, CODE_32), 3)), ud, "#UD comes first");
}

#[test]
fn vm_entries_are_for_ring_0() {
    let ring = |dpl: u32| long().with(Segment::Ss.fields().rights, DATA | dpl << 5);
    assert_eq!(privileged(&ring(0)), Ok(()));
    for dpl in 1..4 {
        assert_eq!(privileged(&ring(dpl)), Err(Event::GeneralProtection(0)));
    }
}

proptest! {
    #[test]
    fn nothing_that_an_exit_may_say_goes_wrong(
        information: u32, displacement: u64, efer: bool, code: u32, rights: u32,
        base: u64, limit: u32,
    ) {
        let mut v = host(if efer { 0xd01 } else { 0 }, code);
        for segment in [Segment::Ds, Segment::Ss, Segment::Fs] {
            let fields = segment.fields();
            v = v.with(fields.rights, rights).with(fields.base, base).with(fields.limit, limit);
        }
        let operands = Operands::decode(information & !(1 << 10), displacement);
        if let Some(Operands { place: Place::Memory(address), .. }) = operands {
            let found = address.linear(&v, |number| !register(number), (16, Use::Read), SIGN_BIT);
            let code = if information >> 15 & 7 == 1 { rights } else { code };
            let wide = efer && code >> 13 & 1 == 1;
            match found {
                Ok(linear) if wide => prop_assert!(matches!(linear >> 47, 0 | 0x1_ffff)),
                Ok(linear) => prop_assert!(linear >> 32 == 0),
                Err(Event::StackFault) => prop_assert_eq!(information >> 15 & 7, 2),
                Err(event) => prop_assert_eq!(event, Event::GeneralProtection(0)),
            }
        }
    }
}
