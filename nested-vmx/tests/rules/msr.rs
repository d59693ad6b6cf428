//! Which MSR accesses exit, and the answer to each.

use nested_vmx::msr::{BITMAP_BYTES, Read, Write, fill_bitmap, read, write};
use proptest::prelude::*;

/// What the manuals and the visor's purpose ask of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing: no exit.
    Free,
    Absent,
    ReadOnly,
    Ignored,
    ApicBase,
    FeatureControl,
    VmxCapability,
    MiscEnable,
    Mtrr,
}

fn kind(index: u32) -> Kind {
    match index {
        0x1b => Kind::ApicBase,
        0x3a => Kind::FeatureControl,
        // microcode update; switches of TSX and of microcode's cures
        0x79 | 0x122 | 0x123 => Kind::Ignored,
        0x480..=0x493 => Kind::VmxCapability,
        // SMM monitor; overclocking mailbox; Processor Trace; Key Locker
        0x9b | 0x150 => Kind::Absent,
        0x560 | 0x561 | 0x570..=0x572 | 0x580..=0x58f | 0xd91 | 0xd92 => Kind::Absent,
        // PEBS; last branch records; hardware feedback
        0x3f4 | 0x3f5 | 0x14ce | 0x14cf | 0x17d0..=0x17d4 => Kind::Absent,
        // PEBS; debug store; memory encryption; silicon debugging
        0x3f1 | 0x3f2 | 0x600 | 0x981..=0x984 | 0x9ff | 0xc80 => Kind::ReadOnly,
        0x1a0 => Kind::MiscEnable,
        // IA32_MTRRCAP, the variable ranges, IA32_MTRR_DEF_TYPE
        0xfe | 0x200..=0x24f | 0x2ff => Kind::Mtrr,
        // 64 KiB; 16 KiB; 4 KiB
        0x250 | 0x258 | 0x259 | 0x268..=0x26f => Kind::Mtrr,
        _ => Kind::Free,
    }
}

fn bitmap() -> Vec<u8> {
    let mut bitmap = vec![0x5a; BITMAP_BYTES];
    fill_bitmap(bitmap.as_mut_slice().try_into().unwrap());
    bitmap
}

/// Whether the bitmap at `offset` has the bit of the MSR with these low bits.
fn exits(bitmap: &[u8], offset: usize, low: u32) -> bool {
    bitmap[offset + usize::try_from(low / 8).unwrap()] & 1 << (low % 8) != 0
}

/// Both ranges: first index, and where their reads and writes are in the bitmap.
const RANGES: [(u32, usize, usize); 2] = [(0, 0, 2048), (0xc000_0000, 1024, 3072)];

#[test]
fn exactly_the_accesses_with_a_rule_exit() {
    let bitmap = bitmap();
    for (first, reads, writes) in RANGES {
        for low in 0..0x2000 {
            let kind = kind(first + low);
            let read_exits = matches!(
                kind,
                Kind::Absent | Kind::FeatureControl | Kind::VmxCapability | Kind::Mtrr
            );
            assert_eq!(exits(&bitmap, reads, low), read_exits, "{:#x}", first + low);
            let write_exits = kind != Kind::Free;
            assert_eq!(exits(&bitmap, writes, low), write_exits, "{:#x}", first + low);
        }
    }
}

#[test]
fn registers_that_software_switches_often_are_free() {
    let bitmap = bitmap();
    // TSC deadline, x2APIC ICR, spec control; EFER, LSTAR, FS base, GS base.
    for (range, low) in [(0, 0x6e0), (0, 0x830), (0, 0x48), (1, 0x80), (1, 0x82), (1, 0x100)] {
        let (_, reads, writes) = RANGES[range];
        assert!(!exits(&bitmap, reads, low) && !exits(&bitmap, writes, low));
    }
}

fn check_read(index: u32) {
    let shown = Read::Masked { clear: 0, set: 0 };
    let expected = match kind(index) {
        Kind::Free | Kind::Absent => Read::Fault,
        // SENTER enables 15:8, VMX inside SMX 1; VMX outside 2, the lock.
        Kind::FeatureControl => Read::Masked { clear: 0xff02, set: 5 },
        Kind::VmxCapability => Read::VmxCapability,
        Kind::Mtrr => Read::Mtrr,
        Kind::ReadOnly | Kind::Ignored | Kind::ApicBase | Kind::MiscEnable => shown,
    };
    assert_eq!(read(index), expected, "{index:#x}");
}

fn check_write(index: u32, value: u64, current: u64) {
    // The base is bits 51:12.
    let base = |value: u64| value >> 12 & ((1 << 40) - 1);
    let expected = match kind(index) {
        Kind::Free | Kind::Absent | Kind::ReadOnly | Kind::FeatureControl | Kind::VmxCapability => {
            Write::Fault
        }
        Kind::Ignored => Write::Ignore,
        Kind::ApicBase if base(value) == base(current) => Write::Perform,
        Kind::ApicBase => Write::Fault,
        // Limiting CPUID; no XD.
        Kind::MiscEnable if value >> 22 & 1 == 0 && value >> 34 & 1 == 0 => Write::Perform,
        Kind::MiscEnable => Write::Fault,
        Kind::Mtrr => Write::Mtrr,
    };
    assert_eq!(write(index, value, current), expected, "{index:#x}");
}

#[test]
fn every_register_in_reach_of_the_bitmap_has_its_answers() {
    for (first, _, _) in RANGES {
        for index in first..first + 0x2000 {
            check_read(index);
            check_write(index, 0, 0);
            check_write(index, u64::MAX, u64::MAX);
        }
    }
}

#[test]
fn the_local_apic_changes_its_mode_but_not_its_place() {
    let base = 0xfee0_0000;
    for bit in 0..64 {
        let moved = (12..52).contains(&bit);
        let expected = if moved { Write::Fault } else { Write::Perform };
        assert_eq!(write(0x1b, base ^ 1 << bit, base), expected, "bit {bit}");
    }
}

#[test]
fn no_execute_pages_and_the_leaves_of_cpuid_stay() {
    for bit in 0..64 {
        let lost = [22, 34].contains(&bit);
        let expected = if lost { Write::Fault } else { Write::Perform };
        assert_eq!(write(0x1a0, 1 << bit, 0), expected, "bit {bit}");
    }
}

#[test]
fn a_locked_feature_control_keeps_its_other_bits() {
    let Read::Masked { clear, set } = read(0x3a) else {
        panic!("IA32_FEATURE_CONTROL must be readable");
    };
    // As firmware sets it up: VMX on, SGX on, LMCE on.
    assert_eq!(0x16_ff07 & !clear | set, 0x16_0005);
    assert_eq!(0x02 & !clear | set, 5);
}

proptest! {
    #[test]
    fn registers_outside_of_the_bitmap_do_not_exist(index: u32, value: u64) {
        let inside = RANGES.iter().any(|(first, _, _)| (*first..first + 0x2000).contains(&index));
        prop_assume!(!inside);
        prop_assert_eq!(read(index), Read::Fault);
        prop_assert_eq!(write(index, value, value), Write::Fault);
    }

    #[test]
    fn the_value_of_a_write_only_matters_to_two_registers(
        index in 0..0x2000_u32,
        value: u64,
        current: u64,
    ) {
        check_write(index, value, current);
        check_write(0x1b, value, current);
        check_write(0x1a0, value, current);
    }
}

#[test]
fn vmx_is_used_only_where_firmware_allows_it() {
    use nested_vmx::msr::{Permission, vmx_permission};
    for (value, permission) in [
        (0b000, Permission::Open(0b101)),
        (0b100, Permission::Open(0b101)),
        (1 << 20, Permission::Open(1 << 20 | 0b101)),
        (0b001, Permission::LockedOff),
        (0b011, Permission::LockedOff),
        (0b101, Permission::Granted),
        (0b111, Permission::Granted),
    ] {
        assert_eq!(vmx_permission(value), permission, "{value:#b}");
    }
}
