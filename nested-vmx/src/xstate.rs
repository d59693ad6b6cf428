//! Which components of the XSAVE feature set a protected VM may have (SDM vol. 1, chapter 13).

use crate::cpuid::Answer;

/// Bytes that the visor has for them, laid out as by XSAVE.
pub const AREA: u32 = 3072;
/// x87 and SSE: there whatever XCR0 says.
pub const LEGACY: u64 = 0b11;
/// PKRU: usable whatever XCR0 says, so not switched by it.
pub const PKRU: u64 = 1 << 9;
/// x87, SSE, AVX, the three of AVX-512, PKRU.
const KNOWN: u64 = 0b1110_0111 | PKRU;

/// The bits that XCR0 may have: those that the processor has, that are known here, and that fit into
/// [`AREA`]. `leaf` is CPUID leaf 0xD by subleaf.
#[must_use]
pub fn available(leaf: impl Fn(u32) -> Answer) -> u64 {
    let fits = |component: &u32| {
        let Answer { eax: size, ebx: offset, .. } = leaf(*component);
        size.checked_add(offset).is_some_and(|end| end <= AREA)
    };
    let has = KNOWN & u64::from(leaf(0).eax);
    let extended = (2..32).filter(|component| has >> component & 1 != 0 && fits(component));
    extended.fold(LEGACY, |sum, component| sum | 1 << component)
}

/// The XCR0 with which registers are saved or loaded: `now`, if it has all that was ever `used`.
///
/// A component that left XCR0 keeps its registers. SSE can be used without being in it.
#[must_use]
pub const fn covering(now: u64, used: u64) -> u64 {
    if now & used == used { now } else { used }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cr::xsetbv_is_valid;

    /// Component, offset and size as on a Sapphire Rapids: AVX, bounds, AVX-512, PKRU, tiles.
    const PLACES: [(u32, u32, u32); 9] = [
        (2, 576, 256),
        (3, 960, 64),
        (4, 1024, 64),
        (5, 1088, 64),
        (6, 1152, 512),
        (7, 1664, 1024),
        (9, 2688, 8),
        (17, 2752, 64),
        (18, 2816, 8192),
    ];

    fn processor(places: &[(u32, u32, u32)], subleaf: u32) -> Answer {
        let found = places.iter().find(|(component, ..)| *component == subleaf);
        match (subleaf, found) {
            (0, _) => {
                let eax = places.iter().fold(0b11, |sum, (component, ..)| sum | 1 << component);
                Answer { eax, ..Answer::default() }
            }
            (_, Some((_, offset, size))) => {
                Answer { eax: *size, ebx: *offset, ..Answer::default() }
            }
            (_, None) => Answer::default(),
        }
    }

    #[test]
    fn vms_have_avx_512_and_protection_keys_but_neither_bounds_nor_tiles() {
        assert_eq!(available(|subleaf| processor(&PLACES, subleaf)), 0x2e7);
        assert_eq!(available(|subleaf| processor(&PLACES[..1], subleaf)), 0x7);
        assert_eq!(available(|subleaf| processor(&[], subleaf)), 0x3);
    }

    #[test]
    fn what_ends_past_the_area_vms_do_not_have() {
        let mut places = PLACES;
        places[5] = (7, AREA - 1024, 1024);
        assert_eq!(available(|subleaf| processor(&places, subleaf)), 0x2e7);
        for beyond in [AREA - 1023, u32::MAX] {
            places[5] = (7, beyond, 1024);
            let rest = available(|subleaf| processor(&places, subleaf));
            assert_eq!(rest, 0x267);
            assert!(!xsetbv_is_valid(0, 0xe7, rest), "without one part there is no AVX-512");
        }
    }

    #[test]
    fn registers_are_switched_with_all_that_was_used_and_without_need_nothing_changes() {
        for (now, used, wanted) in
            [(1, 3, 3), (7, 3, 7), (7, 7, 7), (3, 7, 7), (1, 0xe7, 0xe7), (0xe7, 0x7, 0xe7)]
        {
            assert_eq!(covering(now, used), wanted, "{now:#x} {used:#x}");
        }
    }
}
