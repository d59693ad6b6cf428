//! Power cuts. Between two flushes the host may lose, reorder and tear what it likes; an opened disk holds
//! all that was flushed, and of what was not, each block as it was at some time since.

use std::collections::BTreeSet;

use disk::header::Header;
use disk::volume::Volume;

use crate::host::{Dice, Event, Host};
use crate::world::{Room, content, filled, header, new_disk, opening};

/// What the owner does. A write of 0 forgets.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64, u64),
    Forget(u64, u64),
    Flush,
    Checkpoint,
}

/// What blocks may hold: all that was written since the last flush, and what was flushed; and the moment of that, before
/// which the disk may not be.
#[derive(Clone, Debug)]
struct Allowed(Vec<BTreeSet<u64>>, u64);

impl Allowed {
    fn exactly(content: &[u64], moment: u64) -> Self {
        Self(content.iter().map(|number| BTreeSet::from([*number])).collect(), moment)
    }

    fn check(&self, (found, moment): &(Vec<u64>, u64), story: &str) {
        assert!(*moment >= self.1, "{story}: moment {moment}, before {}", self.1);
        for (at, (allowed, found)) in self.0.iter().zip(found).enumerate() {
            assert!(allowed.contains(found), "{story}: block {at} is {found}, not of {allowed:?}");
        }
    }
}

/// The disk and what its owner knows of it.
struct Owner {
    header: Header,
    content: Vec<u64>,
    allowed: Allowed,
    openings: u64,
}

impl Owner {
    fn new(header: Header) -> Self {
        let content = vec![0; usize::try_from(header.geometry.capacity()).unwrap()];
        Self { header, allowed: Allowed::exactly(&content, 0), content, openings: 0 }
    }

    /// Opens the disk and does `steps`; what may be lost after how many of the host's doings.
    fn work(&mut self, host: &mut Host, steps: &[Step]) -> Vec<(usize, Allowed)> {
        let mut history = vec![(host.events.len(), self.allowed.clone())];
        self.openings += 1;
        let mut room = Room::new(&self.header, 4);
        let mut volume = Volume::new(&self.header, room.memory(), opening(self.openings)).unwrap();
        for step in steps {
            self.expect(step);
            history.push((host.events.len(), self.allowed.clone()));
            match *step {
                Step::Write(at, number) => volume.write(host, at, &[filled(number)]).unwrap(),
                Step::Forget(at, count) => volume.forget(host, at, count).unwrap(),
                Step::Flush => volume.flush(host).unwrap(),
                Step::Checkpoint => volume.checkpoint(host).unwrap(),
            }
            if matches!(step, Step::Flush | Step::Checkpoint) {
                self.allowed = Allowed::exactly(&self.content, volume.moment().0);
                history.push((host.events.len(), self.allowed.clone()));
            }
        }
        history
    }

    /// Allows what the step is about to do.
    fn expect(&mut self, step: &Step) {
        let (first, count, number) = match *step {
            Step::Write(at, number) => (at, 1, number),
            Step::Forget(at, count) => (at, count, 0),
            Step::Flush | Step::Checkpoint => return,
        };
        for at in (first..first + count).map(|at| usize::try_from(at).unwrap()) {
            self.content[at] = number;
            let _ = self.allowed.0[at].insert(number);
        }
    }

    /// What a disk holds when it is opened, and its moment.
    fn look(&mut self, host: &mut Host) -> (Vec<u64>, u64) {
        self.openings += 1;
        let mut room = Room::new(&self.header, 4);
        let mut volume = Volume::new(&self.header, room.memory(), opening(self.openings)).unwrap();
        let found = content(&mut volume, host).expect("a disk opens after any power cut");
        (found, volume.moment().0)
    }

    /// Opens the disk; what it holds is what counts from now on.
    fn resume(&mut self, host: &mut Host, story: &str) {
        let found = self.look(host);
        self.allowed.check(&found, story);
        self.allowed = Allowed::exactly(&found.0, found.1);
        self.content = found.0;
    }
}

/// The host as it was after the first `events` of what it has done since it was `start`.
fn rewind(start: &Host, events: &[Event]) -> Host {
    let mut host = start.clone();
    for event in events {
        match event {
            Event::Read(..) => {}
            Event::Write(at, blocks) => host.recent.extend((*at..).zip(blocks.iter().copied())),
            Event::Flush => host.durable.extend(host.recent.drain(..)),
        }
    }
    host
}

/// Ways to lose something of `count` blocks: all of them if they are few, else many.
fn losses(count: usize, dice: &mut Dice) -> Vec<Vec<u8>> {
    let mut ways = Vec::new();
    if count <= 5 {
        ways.extend((0..1_usize << count).map(|set| {
            (0..count).map(|number| if set & 1 << number == 0 { 0 } else { 0xff }).collect()
        }));
    } else {
        ways.extend([vec![0; count], vec![0xff; count]]);
        for number in 0..count {
            for (kept, rest) in [(0, 0xff), (0xff, 0)] {
                let mut way = vec![rest; count];
                way[number] = kept;
                ways.push(way);
            }
        }
    }
    for _ in 0..4 {
        let tear = |_| match dice.below(3) {
            0 => 0,
            1 => 0xff,
            _ => dice.roll().to_le_bytes()[0],
        };
        ways.push((0..count).map(tear).collect());
    }
    ways
}

/// Cuts the power after each thing the host does, loses all that can be lost, and opens the disk; and cuts the
/// power again after each thing done for that.
fn every_cut(header: Header, steps: &[Step]) {
    let start = new_disk(&header);
    let mut host = Host { events: Vec::new(), ..start.clone() };
    let mut owner = Owner::new(header);
    let history = owner.work(&mut host, steps);
    let mut dice = Dice(1);
    let changes = |events: &[Event]| !matches!(events.last(), Some(Event::Read(..)));
    for time in (0..=host.events.len()).filter(|time| changes(&host.events[..*time])) {
        // An operation that begins now may already do something.
        let allowed = &history.iter().rev().find(|(then, _)| *then <= time).unwrap().1;
        let before = rewind(&start, &host.events[..time]);
        for way in losses(before.recent.len(), &mut dice) {
            let cut = before.cut(|number| way[number]);
            let mut opened = cut.clone();
            let found = owner.look(&mut opened);
            allowed.check(&found, "a power cut");
            let events = opened.events.clone();
            for time in (0..events.len()).filter(|time| matches!(events[*time], Event::Write(..))) {
                let before = rewind(&cut, &events[..=time]);
                let way = dice.roll().to_le_bytes();
                let mut again =
                    before.cut(
                        |number| {
                            if number % 3 == 0 { way[number % 8] } else { 0xff * (way[0] & 1) }
                        },
                    );
                let (content, moment) = owner.look(&mut again);
                assert_eq!(content, found.0, "another power cut while it is opened");
                assert!(moment >= allowed.1, "moment {moment}, before {}", allowed.1);
            }
        }
    }
}

#[test]
fn a_disk_survives_every_power_cut() {
    use Step::{Checkpoint, Flush, Forget, Write};
    let steps = [
        Write(0, 1),
        Write(129, 2),
        Flush,
        Write(0, 3),
        Write(5, 4),
        Flush,
        Write(0, 5),
        Forget(5, 1),
        Write(5, 6),
        Checkpoint,
        Write(5, 7),
        Forget(129, 1),
        Flush,
        Write(129, 8),
        Write(6, 9),
        Checkpoint,
        Forget(0, 130),
        Write(1, 10),
        Flush,
        Write(129, 11),
        Write(0, 12),
        Checkpoint,
        Write(0, 13),
    ];
    every_cut(header(130, 64, 6), &steps);
}

/// Kills the program after each thing the host does, goes on with another, and cuts the power after each thing done
/// then. What the other one has read when it was open is there.
#[test]
fn what_was_read_after_a_kill_is_durable() {
    use Step::{Checkpoint, Flush, Forget, Write};
    let steps = [
        Write(0, 1),
        Write(129, 2),
        Checkpoint,
        Write(0, 3),
        Write(5, 4),
        Flush,
        Forget(5, 1),
        Checkpoint,
        Write(0, 5),
        Checkpoint,
    ];
    let start = new_disk(&header(130, 64, 6));
    let mut host = Host { events: Vec::new(), ..start.clone() };
    let mut owner = Owner::new(header(130, 64, 6));
    let history = owner.work(&mut host, &steps);
    let mut dice = Dice(2);
    let changes = |time: &usize| !matches!(host.events[*time], Event::Read(..));
    for time in (0..host.events.len()).filter(changes) {
        let killed = Host { events: Vec::new(), ..rewind(&start, &host.events[..time]) };
        let before = history.iter().rev().find(|(then, _)| *then <= time).unwrap().1.clone();
        let found = owner.look(&mut killed.clone());
        before.check(&found, "a kill");
        owner.allowed = Allowed::exactly(&found.0, found.1);
        owner.content.clone_from(&found.0);
        let mut other = killed.clone();
        let _ = owner.work(&mut other, &[Write(0, 50), Write(6, 51), Flush]);
        let opened = other.events.iter().position(|event| *event == Event::Flush).unwrap();
        let mut after = Allowed::exactly(&found.0, found.1);
        for (at, number) in [(0, 50), (6, 51)] {
            let _ = after.0[at].insert(number);
        }
        let changes = |time: &usize| !matches!(other.events[*time], Event::Read(..));
        for cut in (0..other.events.len()).filter(changes) {
            let allowed = if cut > opened { &after } else { &before };
            for _ in 0..4 {
                let left = rewind(&killed, &other.events[..cut]);
                let mut left = left.cut(|_| 0xff * u8::from(dice.below(2) == 0));
                allowed.check(&owner.look(&mut left), "a power cut after a kill");
            }
        }
    }
}

/// A disk of 60 blocks that are all written, with an empty log.
fn full_disk() -> (Owner, Host) {
    let mut owner = Owner::new(header(60, 200, 60));
    let mut host = new_disk(&owner.header);
    let steps: Vec<Step> =
        (0..60).map(|at| Step::Write(at, 1 + at)).chain([Step::Checkpoint]).collect();
    let _ = owner.work(&mut host, &steps);
    (owner, host)
}

#[test]
fn frames_that_were_given_up_do_not_come_back() {
    let (mut owner, mut host) = full_disk();
    let start = Host { events: Vec::new(), ..host.clone() };
    host = start.clone();
    // A frame that carries 31 blocks and one that carries 9, without a flush between.
    let steps: Vec<Step> =
        (0..40).map(|at| Step::Write(at, 100 + at)).chain([Step::Flush]).collect();
    let _ = owner.work(&mut host, &steps);
    let last = host.events.iter().rposition(|event| *event == Event::Flush).unwrap();
    let before = rewind(&start, &host.events[..last]);
    assert_eq!(before.recent.len(), 42);
    // One of the 31 is lost, so both frames are given up; then one as long takes the place of the first.
    let mut host = before.cut(|number| if number == 5 { 0 } else { 0xff });
    let old: Vec<u64> = (1..=60).collect();
    assert_eq!(owner.look(&mut host).0, old);
    let steps: Vec<Step> =
        (0..31).map(|at| Step::Write(at, 200 + at)).chain([Step::Flush]).collect();
    let _ = owner.work(&mut host, &steps);
    let expected: Vec<u64> = (200..231).chain(32..=60).collect();
    assert_eq!(owner.look(&mut host).0, expected);
}

#[test]
fn frames_of_two_histories_do_not_mix() {
    let (mut owner, host) = full_disk();
    let mut one = host.clone();
    let _ =
        owner.work(&mut one, &[Step::Write(0, 100), Step::Flush, Step::Write(1, 101), Step::Flush]);
    let mut other = host.clone();
    let _ = owner
        .work(&mut other, &[Step::Write(2, 202), Step::Flush, Step::Write(3, 203), Step::Flush]);
    // The first frame of one, the second of the other, each with the block that it carries.
    let log = owner.header.geometry.log_at();
    let mut mixed = one.clone();
    for at in [log + 2, log + 3] {
        mixed.set(at, other.block(at));
    }
    let mut expected: Vec<u64> = (1..=60).collect();
    expected[0] = 100;
    assert_eq!(owner.look(&mut mixed).0, expected);
}

#[test]
fn a_disk_survives_power_cuts_and_kills_for_years() {
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let capacity = [40, 130, 300, 16_400][usize::try_from(seed % 4).unwrap()];
        let mut owner = Owner::new(header(capacity, 64 + dice.below(40), 1 + dice.below(40)));
        let mut host = new_disk(&owner.header);
        let mut number = 0;
        for year in 0..12 {
            let steps: Vec<Step> =
                (0..dice.below(60)).map(|_| step(&mut dice, capacity, &mut number)).collect();
            let start = Host { events: Vec::new(), ..host.clone() };
            host = start.clone();
            let history = owner.work(&mut host, &steps);
            let story = format!("seed {seed}, year {year}");
            if dice.below(3) == 0 {
                // The program ends, and the power stays.
                owner.resume(&mut host, &story);
                continue;
            }
            let time =
                usize::try_from(dice.below(1 + u64::try_from(host.events.len()).unwrap())).unwrap();
            owner.allowed = history.into_iter().rev().find(|(then, _)| *then <= time).unwrap().1;
            let way = dice.below(4);
            host = rewind(&start, &host.events[..time]).cut(|_| match way {
                0 => 0,
                1 => 0xff * u8::from(dice.below(8) != 0),
                2 => 0xff * u8::from(dice.below(2) == 0),
                _ => dice.roll().to_le_bytes()[0],
            });
            owner.resume(&mut host, &story);
        }
    }
}

fn step(dice: &mut Dice, capacity: u64, number: &mut u64) -> Step {
    *number += 1;
    let at = if dice.below(2) == 0 { dice.below(capacity.min(8)) } else { dice.below(capacity) };
    match dice.below(16) {
        0 => Step::Checkpoint,
        1 | 2 => Step::Flush,
        3 => Step::Forget(at, 1 + dice.below(capacity - at)),
        4 | 5 => Step::Forget(at, 1),
        _ => Step::Write(at, *number),
    }
}
