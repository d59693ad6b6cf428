//! Decoding, against another decoder.

use emulate::decode::{Mode, decode};
use emulate::instruction::instruction;
use proptest::prelude::*;
use proptest::sample::select;

use crate::devices::{Bases, compare as compare_access, is_string, known};
use crate::instructions::{access, number, registers, tidy, wild};
use crate::other::{compare, is_supported, other};

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![2 => Just(Mode::Bits64), 1 => Just(Mode::Bits32), 1 => Just(Mode::Bits16)]
}

/// Segments as they are mostly, or any.
fn bases() -> impl Strategy<Value = Bases> {
    let base = prop_oneof![2 => Just(0), 1 => number()];
    let limit = select(vec![0xffff_ffff, 0xffff_ffff, 0xffff, 0x7fff]);
    (proptest::array::uniform6(base), limit).prop_map(|(bases, limit)| Bases(bases, limit))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn what_is_decoded_is_what_another_decoder_says(
        bytes in wild(), mode in mode(), registers in registers(),
    ) {
        if let Some(store) = decode(&bytes, mode) {
            compare(&store, &bytes, mode, &registers);
        }
    }

    #[test]
    fn every_store_with_the_usual_prefixes_is_decoded(
        bytes in tidy(), mode in mode(), registers in registers(),
    ) {
        let Some(found) = other(&bytes, mode).filter(is_supported) else {
            prop_assert_eq!(decode(&bytes, mode), None);
            return Ok(());
        };
        let old_alias = bytes.contains(&0x82);
        let prefixed = found.has_rep_prefix() || found.has_repne_prefix();
        if !old_alias && !prefixed {
            let store = decode(&bytes, mode);
            prop_assert!(store.is_some(), "{:?} is not decoded", found.code());
            compare(&store.unwrap(), &bytes, mode, &registers);
        }
    }

    #[test]
    fn what_is_accessed_is_what_another_decoder_says(
        bytes in prop_oneof![wild(), access()], mode in mode(), rip in number(),
        registers in registers(), bases in bases(),
    ) {
        let _known = compare_access(&bytes, (mode, rip), &registers, &bases);
    }

    #[test]
    fn every_access_with_the_usual_prefixes_is_known(
        bytes in access(), mode in mode(), rip in number(), registers in registers(),
        bases in bases(),
    ) {
        if let Some((found, _)) = known(&bytes, mode, rip) {
            // Encodings that the manual lacks: 0x82 for 0x80, /1 for /0 of test.
            let test = format!("{:?}", found.code());
            prop_assume!(!bytes.contains(&0x82) && !test.ends_with("7r1") && !test.ends_with("6r1"));
            prop_assume!(!found.has_repne_prefix());
            prop_assume!(!found.has_rep_prefix() || is_string(&found));
            let known = compare_access(&bytes, (mode, rip), &registers, &bases);
            prop_assert!(known, "{:?} is not known", found.code());
        }
    }

    #[test]
    fn bytes_behind_the_instruction_do_not_matter_and_missing_ones_do(
        bytes in tidy(), mode in mode(),
    ) {
        if let Some(store) = decode(&bytes, mode) {
            let length = usize::try_from(store.length).unwrap();
            prop_assert_eq!(decode(&bytes[..length], mode), Some(store));
            for cut in 0..length {
                prop_assert_eq!(decode(&bytes[..cut], mode), None);
                prop_assert_eq!(instruction(&bytes[..cut], mode, 0), None);
            }
        }
    }
}

#[test]
fn an_instruction_of_more_than_15_bytes_is_none() {
    let movl = [0xc7, 0x04, 0x25, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = |prefixes: usize| [vec![0x3e; prefixes], movl.to_vec()].concat();
    let decoded = |bytes: &[u8]| decode(bytes, Mode::Bits64);
    assert_eq!(decoded(&long(4)).unwrap().length, 15);
    assert_eq!(decoded(&long(5)), None);
    assert_eq!(other(&long(5), Mode::Bits64), None);
}
