//! Laws for whatever a host and a careless visor do.

use proptest::prelude::*;

use crate::run::{Run, Step};

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..3_u8;
    // Few bytes and values, so that contents return to what they were.
    let write = (slot.clone(), 0..2_u16, 0..2_u8);
    let back =
        (slot.clone(), any::<u8>(), any::<u16>(), prop_oneof![3 => Just(0), 1 => any::<u8>()]);
    let record = (slot.clone(), any::<u8>(), any::<u8>());
    prop_oneof![
        3 => write.prop_map(|(slot, at, byte)| Step::Write(slot, at, byte)),
        2 => slot.clone().prop_map(Step::Seal),
        3 => (slot, any::<u8>()).prop_map(|(slot, since)| Step::Reseal(slot, since)),
        5 => back.prop_map(|(slot, which, at, flip)| Step::Back(slot, which, at, flip)),
        1 => record.prop_map(|(slot, at, flip)| Step::Record(slot, at, flip)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn nonces_never_repeat_and_only_the_page_itself_comes_back(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut run = Run::new();
        steps.into_iter().for_each(|step| run.step(step));
    }
}
