//! Whatever is done in whatever order, a disk is an array of blocks: with storage that takes its time, with
//! hardly any memory, over openings.

use proptest::collection::vec;
use proptest::prelude::*;

use disk::volume::Volume;

use crate::host::{Dice, Host};
use crate::world::{Room, content, done, filled, header, new_disk, number, opening};

/// What the owner does.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64, usize),
    Read(u64, usize),
    Forget(u64, u64),
    Flush,
    Checkpoint,
    Seek(u64),
    /// Closes the disk without a word, and opens it again.
    Reopen,
}

fn step(capacity: u64) -> impl Strategy<Value = Step> {
    let length = || prop_oneof![1_usize..4, 20_usize..70];
    prop_oneof![
        6 => (0..capacity, length()).prop_map(|(first, count)| Step::Write(first, count)),
        3 => (0..capacity, length()).prop_map(|(first, count)| Step::Read(first, count)),
        2 => (0..capacity, 1..capacity).prop_map(|(first, count)| Step::Forget(first, count)),
        2 => Just(Step::Flush),
        1 => Just(Step::Checkpoint),
        1 => (0..capacity).prop_map(Step::Seek),
        1 => Just(Step::Reopen),
    ]
}

/// Runs steps until the end or a reopening; the array follows.
fn run(
    volume: &mut Volume,
    host: &mut Host,
    model: &mut [u64],
    steps: &mut impl Iterator<Item = (u64, Step)>,
) -> bool {
    for (time, step) in steps {
        match step {
            Step::Write(first, count) => {
                let place = usize::try_from(first).unwrap();
                let count = count.min(model.len() - place);
                let blocks: Vec<_> = (0..).take(count).map(|n| filled(time << 8 | n)).collect();
                done(|| volume.write(host, first, &blocks)).unwrap();
                model[place..].iter_mut().zip(&blocks).for_each(|(to, from)| *to = number(from));
            }
            Step::Read(first, count) => {
                let place = usize::try_from(first).unwrap();
                let mut blocks = vec![[7; 4096]; count.min(model.len() - place)];
                done(|| volume.read(host, first, &mut blocks)).unwrap();
                assert!(
                    blocks.iter().map(number).eq(model[place..].iter().copied().take(blocks.len()))
                );
            }
            Step::Forget(first, count) => {
                let place = usize::try_from(first).unwrap();
                let end = usize::try_from(first + count).unwrap().min(model.len());
                let count = u64::try_from(end - place).unwrap();
                done(|| volume.forget(host, first, count)).unwrap();
                model[place..end].fill(0);
            }
            Step::Flush => done(|| volume.flush(host)).unwrap(),
            Step::Checkpoint => done(|| volume.checkpoint(host)).unwrap(),
            Step::Seek(from) => {
                let expected = (from..).zip(&model[usize::try_from(from).unwrap()..]);
                let expected =
                    expected.filter(|(_, number)| **number != 0).map(|(at, _)| at).next();
                assert_eq!(done(|| volume.next_written(host, from)), Ok(expected));
            }
            Step::Reopen => {
                done(|| volume.flush(host)).unwrap();
                return true;
            }
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_is_an_array(
        capacity in prop_oneof![1_u64..200, Just(128), Just(16_384), 16_300_u64..16_600],
        log in 64_u64..200,
        entries in prop_oneof![1_u64..12, 60_u64..200],
        nodes in prop_oneof![1_usize..3, 3_usize..20],
        slow in any::<Option<u64>>(),
        raw in vec((any::<prop::sample::Index>(), step(1 << 20)), 1..60),
    ) {
        let header = header(capacity, log, entries);
        let mut host = new_disk(&header);
        host.slow = slow.map(Dice);
        let mut model = vec![0; usize::try_from(capacity).unwrap()];
        // Most of what is done is done at the beginning, and some at the end.
        let near = |at: u64| match at % 4 {
            0 => at % capacity,
            1 => capacity - 1 - at % capacity.min(40),
            _ => at % capacity.min(150),
        };
        let steps = raw.into_iter().map(|(_, step)| match step {
            Step::Write(first, count) => Step::Write(near(first), count),
            Step::Read(first, count) => Step::Read(near(first), count),
            Step::Forget(first, count) if count % 3 == 0 => Step::Forget(near(first), count),
            Step::Forget(first, count) => Step::Forget(near(first), count % 9 + 1),
            Step::Seek(from) => Step::Seek(near(from)),
            Step::Flush | Step::Checkpoint | Step::Reopen => step,
        });
        let mut steps = (1..).zip(steps);
        let mut again = true;
        let mut openings = 0;
        while again {
            openings += 1;
            let mut room = Room::new(&header, nodes);
            let mut volume = Volume::new(&header, room.memory(), opening(openings)).unwrap();
            again = run(&mut volume, &mut host, &mut model, &mut steps);
            prop_assert!(content(&mut volume, &mut host) == Ok(model.clone()));
        }
    }
}
