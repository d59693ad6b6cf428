//! The MSR bitmaps of VMs.

use nested_vmx::bitmap::{WRITES, always, close, merge, place};
use proptest::prelude::*;

/// MSRs that a VM may reach without an exit, if its host lets it: what VMX switches, and what every
/// system uses all the time.
const FREE: [u32; 18] = [
    0x10,
    0x48,
    0x49,
    0x174,
    0x175,
    0x176,
    0x1d9,
    0x277,
    0x38f,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
];

#[test]
fn a_register_has_its_bit_where_the_manual_says() {
    let rows = [
        (0, Some((0, 1))),
        (63, Some((0, 1 << 63))),
        (64, Some((1, 1))),
        (0x1fff, Some((127, 1 << 63))),
        (0x2000, None),
        (0xbfff_ffff, None),
        (0xc000_0000, Some((128, 1))),
        (0xc000_0103, Some((128 + 4, 8))),
        (0xc000_1fff, Some((255, 1 << 63))),
        (0xc000_2000, None),
        (u32::MAX, None),
    ];
    for (index, expected) in rows {
        assert_eq!(place(index), expected, "{index:#x}");
    }
    assert_eq!(WRITES * 8, 2048);
}

#[test]
fn closed_bitmaps_let_nothing_through() {
    let mut bitmaps: Bitmaps = [0; 512];
    close(|place, value| bitmaps[place] = value);
    assert!(bitmaps.iter().all(|word| *word == u64::MAX));
}

type Bitmaps = [u64; 512];

/// One bit of 32,768.
fn exits(bitmaps: &Bitmaps, number: usize) -> bool {
    bitmaps[number / 64] >> (number % 64) & 1 == 1
}

fn bytes(bitmaps: &Bitmaps) -> Box<[u8; 4096]> {
    let bytes: Vec<u8> = bitmaps.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.try_into().unwrap()
}

/// Number of the bit for reads of `index`.
fn number(index: u32) -> usize {
    let base = if index < 0x2000 { 0 } else { 8192 };
    base + usize::try_from(index & 0x1fff).unwrap()
}

fn page() -> impl Strategy<Value = Box<Bitmaps>> {
    prop_oneof![
        Just(vec![0; 512].try_into().unwrap()),
        proptest::collection::vec(any::<u64>(), 512).prop_map(|words| words.try_into().unwrap()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_access_is_free_if_the_host_and_the_visor_and_the_list_say_so(
        before in page(), host in page(), denied in page()
    ) {
        let mut bitmap: Box<Bitmaps> = vec![0; 512].try_into().unwrap();
        close(|place, value| bitmap[place] = value);
        let always = always(&bytes(&denied));
        // What an earlier entry of another VM has left there must not matter.
        merge(&always, |at| before[at], |place, value| bitmap[place] = value);
        merge(&always, |at| host[at], |place, value| bitmap[place] = value);
        for bit in 0..32768 {
            let listed = FREE.into_iter().any(|index| bit % 16384 == number(index));
            let free = listed && !exits(&host, bit) && !exits(&denied, bit);
            prop_assert_eq!(exits(&bitmap, bit), !free, "bit {}", bit);
        }
    }
}
