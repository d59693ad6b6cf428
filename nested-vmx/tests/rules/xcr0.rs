//! XSETBV, against the list of combinations that the manual forbids (SDM vol. 2, XSETBV; vol. 1, 13.3).

use nested_vmx::cr::xsetbv_is_valid;
use proptest::prelude::*;

/// Features of XCR0 by the number of their bit.
#[derive(Clone, Copy)]
enum Bit {
    X87,
    Sse,
    Avx,
    BndRegs,
    BndCsr,
    Opmask,
    ZmmHi256,
    Hi16Zmm,
    TileConfig,
    TileData,
}

fn has(value: u64, bit: Bit) -> bool {
    let number = match bit {
        Bit::X87 => 0,
        Bit::Sse => 1,
        Bit::Avx => 2,
        Bit::BndRegs => 3,
        Bit::BndCsr => 4,
        Bit::Opmask => 5,
        Bit::ZmmHi256 => 6,
        Bit::Hi16Zmm => 7,
        Bit::TileConfig => 17,
        Bit::TileData => 18,
    };
    value >> number & 1 == 1
}

fn model(index: u32, value: u64, supported: u64) -> bool {
    let on = |bit| has(value, bit);
    let any_512 = on(Bit::Opmask) || on(Bit::ZmmHi256) || on(Bit::Hi16Zmm);
    let all_512 = on(Bit::Opmask) && on(Bit::ZmmHi256) && on(Bit::Hi16Zmm);
    let forbidden = [
        index != 0,
        (0..64).any(|bit| value >> bit & 1 == 1 && supported >> bit & 1 == 0),
        !on(Bit::X87),
        on(Bit::Avx) && !on(Bit::Sse),
        on(Bit::BndRegs) != on(Bit::BndCsr),
        any_512 && !(all_512 && on(Bit::Avx)),
        on(Bit::TileConfig) != on(Bit::TileData),
    ];
    !forbidden.contains(&true)
}

#[test]
fn all_combinations_of_the_features_are_judged_as_by_the_manual() {
    // Bits 9:0 and 18:17; 8 and 9 stand for features without a condition.
    for low in 0..1024_u64 {
        for tile in 0..4 {
            let value = low | tile << 17;
            assert_eq!(
                xsetbv_is_valid(0, value, u64::MAX),
                model(0, value, u64::MAX),
                "{value:#x}"
            );
        }
    }
}

#[test]
fn a_processor_of_today_takes_what_it_supports() {
    for supported in [0x3, 0x7, 0x207, 0xe7, 0x2e7, 0x6_02e7] {
        assert!(xsetbv_is_valid(0, supported, supported));
        assert!(!xsetbv_is_valid(1, supported, supported));
    }
}

#[test]
fn a_feature_that_the_processor_lacks_is_refused() {
    for bit in 0..64 {
        assert!(!xsetbv_is_valid(0, 1 | 1 << bit, !(1 << bit)));
    }
}

proptest! {
    #[test]
    fn any_value_is_judged_as_by_the_manual(
        index in prop_oneof![9 => Just(0_u32), 1 => any::<u32>()],
        value: u64,
        lacking in prop_oneof![Just(0_u64), any::<u64>()],
    ) {
        prop_assert_eq!(xsetbv_is_valid(index, value, !lacking), model(index, value, !lacking));
        let possible = value & !lacking;
        prop_assert_eq!(xsetbv_is_valid(index, possible, !lacking), model(index, possible, !lacking));
    }
}
