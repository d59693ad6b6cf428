//! A host that gives back something else than it was given.

use disk::header::{Header, Refusal};
use disk::storage::{Block, Error};
use disk::volume::Volume;

use crate::host::{Dice, Host};
use crate::world::{Room, WRAPPING, filled, header, new_disk, opening};

/// A disk of three levels on which there is everything: data in places and in the log, nodes of all levels, both
/// anchors, and a log that is not empty.
struct Story {
    header: Header,
    /// What the host had after each flush, what was on the disk, and when.
    past: Vec<(Host, Vec<u64>, u64)>,
}

impl Story {
    fn now(&self) -> &(Host, Vec<u64>, u64) {
        self.past.last().unwrap()
    }
}

const CAPACITY: u64 = 16_400;

fn story() -> Story {
    let header = header(CAPACITY, 100, 20);
    let mut host = new_disk(&header);
    let mut model = vec![0; 16_400];
    let mut past = Vec::new();
    let mut room = Room::new(&header, 8);
    let mut volume = Volume::new(&header, room.memory(), opening(1)).unwrap();
    let places = [0, 1, 130, 131, 16_000, 16_390];
    for year in 1..=6 {
        for (number, at) in
            (0..).zip(places).filter(|(number, _)| year == 1 || (year + number) % 3 != 0)
        {
            let number = 100 * year + number;
            volume.write(&mut host, at, &[filled(number)]).unwrap();
            model[usize::try_from(at).unwrap()] = number;
        }
        if year == 2 || year == 4 {
            volume.checkpoint(&mut host).unwrap();
        } else {
            volume.flush(&mut host).unwrap();
        }
        past.push((host.clone(), model.clone(), volume.moment().0));
    }
    Story { header, past }
}

/// Blocks that were written.
fn written(story: &Story) -> Vec<usize> {
    (0..).zip(&story.now().1).filter(|(_, number)| **number != 0).map(|(at, _)| at).collect()
}

/// Opens the disk while the host is honest, has it changed, and reads all that was ever written, with next to no
/// cache. What is read is what was written, or an error; how many errors.
fn look_while_open(story: &Story, change: impl FnOnce(&mut Host)) -> usize {
    let (mut host, expected, _) = story.now().clone();
    let mut room = Room::new(&story.header, 1);
    let mut volume = Volume::new(&story.header, room.memory(), opening(2)).unwrap();
    volume.open(&mut host).unwrap();
    change(&mut host);
    let read = |at: usize| {
        let mut block = [[5; 4096]];
        match volume.read(&mut host, u64::try_from(at).unwrap(), &mut block) {
            Ok(()) => {
                assert!(block[0] == filled(expected[at]), "block {at} is not what was written");
                false
            }
            Err(Error::Forged { level, index }) => {
                assert!(level > 0 || index == u64::try_from(at).unwrap());
                assert!(level > 0 || block == [[0; 4096]], "something is left of a forged block");
                true
            }
            Err(other) => panic!("{other}"),
        }
    };
    written(story).into_iter().map(read).filter(|failed| *failed).count()
}

/// Opens a disk. It is as it was at some time, but for blocks that are errors; this time, and their number.
fn look_again(story: &Story, mut host: Host) -> Result<(u64, usize), Error> {
    let mut room = Room::new(&story.header, 1);
    let mut volume = Volume::new(&story.header, room.memory(), opening(3)).unwrap();
    volume.open(&mut host)?;
    let moment = volume.moment().0;
    let mut failed = 0;
    let mut seen = Vec::new();
    for at in written(story) {
        let mut block = [[5; 4096]];
        match volume.read(&mut host, u64::try_from(at).unwrap(), &mut block) {
            Ok(()) => seen.push((at, block[0])),
            Err(_) => failed += 1,
        }
    }
    let was = story.past.iter().rev().find(|(_, _, then)| *then <= moment);
    let nothing = vec![0; 16_400];
    let was = was.map_or(&nothing, |(_, was, _)| was);
    // A log may end between two flushes; with 20 entries, every frame here is one flush.
    for (at, block) in seen {
        assert!(block == filled(was[at]), "block {at} is not of the time of all others");
    }
    Ok((moment, failed))
}

fn flip(block: &mut Block, dice: &mut Dice) {
    let bit = dice.below(4096 * 8);
    block[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
}

#[test]
fn a_flipped_bit_is_an_error_where_it_is_read() {
    let story = story();
    let mut dice = Dice(7);
    let sizes = story.header.geometry;
    for at in story.now().0.durable.keys().copied().collect::<Vec<_>>() {
        for bit in 0..3 {
            let failed = look_while_open(&story, |host| {
                let mut block = host.block(at);
                match bit {
                    0 => block[0] ^= 1,
                    1 => block[4095] ^= 0x80,
                    _ => flip(&mut block, &mut dice),
                }
                host.set(at, block);
            });
            let is_root = at == sizes.place(sizes.top(), 0);
            assert!(!is_root || failed == written(&story).len(), "the root is not looked at");
        }
    }
    assert_eq!(look_while_open(&story, |_| {}), 0);
}

#[test]
fn swapped_and_older_blocks_are_errors_where_they_are_read() {
    let story = story();
    let blocks: Vec<u64> = story.now().0.durable.keys().copied().collect();
    let data: Vec<u64> = blocks.iter().copied().filter(|at| *at < CAPACITY).collect();
    for (one, other) in blocks.iter().zip(&blocks[1..]) {
        let _ = look_while_open(&story, |host| {
            let (a, b) = (host.block(*one), host.block(*other));
            host.set(*one, b);
            host.set(*other, a);
        });
    }
    let mut failed = 0;
    for (past, _, _) in &story.past {
        for at in &blocks {
            failed += look_while_open(&story, |host| host.set(*at, past.block(*at)));
        }
        let _ = look_while_open(&story, |host| {
            data.iter().for_each(|at| host.set(*at, past.block(*at)))
        });
        let _ = look_while_open(&story, |host| *host = past.clone());
    }
    assert!(failed > 20, "old blocks are not looked at");
}

#[test]
fn an_older_disk_is_as_it_was_and_tells_its_time() {
    let story = story();
    for (host, _, moment) in &story.past {
        assert_eq!(look_again(&story, host.clone()), Ok((*moment, 0)));
    }
}

#[test]
fn old_metadata_with_new_data_and_the_reverse_are_no_mixture() {
    let story = story();
    let now = &story.now().0;
    let mut failed = 0;
    for (past, _, _) in &story.past[..5] {
        let mut mixed = past.clone();
        now.durable.range(..CAPACITY).for_each(|(at, block)| mixed.set(*at, *block));
        failed += look_again(&story, mixed).unwrap().1;
        let mut mixed = now.clone();
        past.durable.range(..CAPACITY).for_each(|(at, block)| mixed.set(*at, *block));
        failed += look_again(&story, mixed).unwrap().1;
    }
    assert!(failed > 5, "no mixture was noticed");
}

#[test]
fn a_changed_log_is_an_earlier_disk_and_tells_its_time() {
    let story = story();
    let (now, _, moment) = story.now();
    let sizes = story.header.geometry;
    let log = sizes.log_at()..sizes.anchors_at();
    let blocks: Vec<u64> = now.durable.range(log.clone()).map(|(at, _)| *at).collect();
    let mut earlier = 0;
    for at in &blocks {
        for bit in [0, 100, 4096 * 8 - 1] {
            let mut host = now.clone();
            let mut block = host.block(*at);
            block[bit / 8] ^= 1 << (bit % 8);
            host.set(*at, block);
            let (then, failed) = look_again(&story, host).unwrap();
            assert_eq!(failed, 0);
            earlier += u64::from(then < *moment);
        }
        let mut host = now.clone();
        now.durable.range(*at..log.end).for_each(|(at, _)| host.set(*at, [0; 4096]));
        let (then, failed) = look_again(&story, host).unwrap();
        assert_eq!(failed, 0);
        earlier += u64::from(then < *moment);
    }
    assert!(earlier > 8, "the log is not looked at");
    // Frames of another time or place in the chain.
    let mut host = now.clone();
    for (past, _, _) in &story.past {
        past.durable.range(log.clone()).for_each(|(at, block)| host.set(*at, *block));
        assert_eq!(look_again(&story, host.clone()).unwrap().1, 0);
    }
}

#[test]
fn a_lost_or_changed_anchor_is_an_earlier_disk_or_none() {
    let story = story();
    let now = &story.now().0;
    let anchors = story.header.geometry.anchors_at();
    for at in [anchors, anchors + 1] {
        let mut host = now.clone();
        host.set(at, filled(1));
        let _ = look_again(&story, host).unwrap();
    }
    let mut host = now.clone();
    host.set(anchors, now.block(anchors + 1));
    host.set(anchors + 1, now.block(anchors));
    assert_eq!(look_again(&story, host), Err(Error::Anchor));
}

#[test]
fn the_header_is_believed_only_with_its_key_and_unchanged() {
    let header = header(130, 64, 6);
    let host = new_disk(&header);
    let at = header.geometry.headers_at();
    let total = header.geometry.total();
    let both = [host.block(at), host.block(at + 1)];
    let open = |mut both: [Block; 2], key: &[u8; 32], total| {
        Header::newest(&mut both, key, total).map(|header| header.sequence)
    };
    assert_eq!(open(both, &WRAPPING, total), Ok(1));
    assert_eq!(open(both, &[0; 32], total), Err(Refusal::Forged));
    assert_eq!(open(both, &WRAPPING, total + 1), Err(Refusal::Size));
    assert_eq!(open([[0; 4096]; 2], &WRAPPING, total), Err(Refusal::Absent));
    for bit in (0..4096 * 8).step_by(31).chain(0..48 * 8) {
        let mut changed = both;
        changed[0][bit / 8] ^= 1 << (bit % 8);
        assert_eq!(open(changed, &WRAPPING, total), Ok(1), "the other one counts");
        changed[1][bit / 8] ^= 1 << (bit % 8);
        let refusal = open(changed, &WRAPPING, total).unwrap_err();
        match bit / 8 {
            0..8 => assert_eq!(refusal, Refusal::Absent),
            8..16 => assert_eq!(refusal, Refusal::Version(1 ^ 1 << (bit - 64))),
            _ => assert_eq!(refusal, Refusal::Forged),
        }
    }
}

#[test]
fn the_newer_header_counts() {
    let mut newer = header(130, 64, 6);
    let (sizes, total) = (newer.geometry, newer.geometry.total());
    newer.sequence = 2;
    let host = new_disk(&header(130, 64, 6));
    for slot in [0, 1] {
        let mut both = [host.block(sizes.headers_at()), host.block(sizes.headers_at() + 1)];
        newer.seal(&WRAPPING, &[8; 32], &mut both[slot]);
        assert_eq!(Header::newest(&mut both, &WRAPPING, total).unwrap().sequence, 2);
    }
}

#[test]
fn another_disk_is_none() {
    let story = story();
    let mut other = header(CAPACITY, 100, 20);
    other.volume[0] ^= 1;
    let strange = Story { header: other, past: story.past.clone() };
    assert_eq!(look_again(&strange, story.now().0.clone()), Err(Error::Anchor));
    let mut other = header(CAPACITY, 100, 20);
    other.id[0] ^= 1;
    let strange = Story { header: other, past: story.past.clone() };
    assert_eq!(look_again(&strange, story.now().0.clone()), Err(Error::Anchor));
}

#[test]
fn after_a_forged_node_nothing_is_written_and_other_data_is_read() {
    let story = story();
    let (mut host, expected, _) = story.now().clone();
    let mut room = Room::new(&story.header, 1);
    let mut volume = Volume::new(&story.header, room.memory(), opening(2)).unwrap();
    volume.open(&mut host).unwrap();
    host.set(story.header.geometry.place(1, 1), filled(3));
    let mut block = [[0; 4096]];
    let forged = Error::Forged { level: 1, index: 1 };
    assert_eq!(volume.read(&mut host, 130, &mut block), Err(forged));
    assert_eq!(volume.write(&mut host, 0, &block), Err(Error::Broken));
    assert_eq!(volume.flush(&mut host), Err(Error::Broken));
    volume.read(&mut host, 0, &mut block).unwrap();
    assert!(block[0] == filled(expected[0]));
}
