//! Records by number, against a map that everybody trusts.

use std::collections::BTreeMap;

use membrane::Progress;
use membrane::sparse::{NONE, Record, Sparse};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::board::Board;

/// Numbers that share frames, neighbours across each boundary, and both ends.
fn number() -> impl Strategy<Value = u64> {
    let edges = [0_u64, 1 << 7, 1 << 16, 1 << 25, 1 << 34, (1 << 36) - 4];
    (proptest::sample::select(edges.to_vec()), 0..4_u64, any::<bool>())
        .prop_map(|(edge, near, below)| if below { edge.saturating_sub(near) } else { edge + near })
}

/// Half of them say nothing.
fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        Just(NONE),
        any::<Record>(),
        (0..4_usize).prop_map(|word| {
            let mut record = NONE;
            record[word] = 1;
            record
        })
    ]
}

fn all(sparse: &Sparse, board: &Board) -> BTreeMap<u64, Record> {
    let mut found = BTreeMap::new();
    let mut from = 0;
    while let Some((number, record)) = sparse.next(board, from..u64::MAX) {
        assert!(number >= from && record != NONE);
        let _ = found.insert(number, record);
        from = number + 1;
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn records_are_what_was_set_last_and_take_no_memory_when_they_are_none(
        steps in vec((number(), record(), 0..12_usize), 0..60), budget in 1..9_u32,
    ) {
        let (mut sparse, mut board) = (Sparse::new(), Board::new(0));
        let mut model: BTreeMap<u64, Record> = BTreeMap::new();
        for (number, record, left) in steps {
            board.left = left;
            let before = board.used();
            let set = sparse.set(&mut board, number, record);
            if set.is_ok() {
                let _ = model.insert(number, record);
            } else {
                // There was not enough memory, and what was taken has come back.
                prop_assert!(left < 5 && !model.contains_key(&number));
                prop_assert_eq!((board.used(), board.left), (before, left));
            }
            model.retain(|_, record| *record != NONE);
            prop_assert_eq!(sparse.get(&board, number), model.get(&number).copied().unwrap_or(NONE));
            prop_assert_eq!(all(&sparse, &board), model.clone());
            prop_assert_eq!(sparse.len(), u64::try_from(model.len()).unwrap());
            prop_assert_eq!(sparse.is_empty(), model.is_empty());
            prop_assert!(!model.is_empty() || board.used() == 0, "memory of nothing");
            prop_assert!(board.used() <= 5 * model.len());
        }
        let mut rounds = 0;
        loop {
            let (before, mut left) = (board.used(), budget);
            let progress = sparse.clear(&mut board, &mut left);
            prop_assert_eq!(before - board.used(), usize::try_from(budget - left).unwrap());
            rounds += 1;
            if progress == Progress::Done {
                break;
            }
            prop_assert!(left == 0 && rounds < 400);
            let rest = u64::try_from(all(&sparse, &board).len()).unwrap();
            prop_assert!(rest <= sparse.len(), "more than it knows of");
        }
        prop_assert_eq!(board.used(), 0);
        prop_assert_eq!(all(&sparse, &board), BTreeMap::new());
    }
}

#[test]
fn a_number_that_no_page_has_is_refused() {
    let (mut sparse, mut board) = (Sparse::new(), Board::new(100));
    assert!(sparse.set(&mut board, 1 << 36, [1; 4]).is_err());
    assert_eq!(board.used(), 0);
    assert_eq!(sparse.next(&board, 1 << 36..u64::MAX), None);
}
