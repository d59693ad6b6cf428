//! Sides that keep to no rule.

use crate::run::{BALLOON, Run, Step};
use crate::world::{Done, PART, PART_BYTES, PRIVATE};

/// Something that happens with one side hostile.
#[derive(Clone, Debug)]
pub(crate) enum Trick {
    /// As always.
    Step(Step),
    /// The host returns something: so far ahead, this head, this length.
    Forge(usize, u16, u32, u32),
    /// It writes to its memory, at this offset.
    Scribble(u64, Vec<u8>),
    /// The VM writes to its memory, at this offset.
    Poke(u64, Vec<u8>),
    /// It stores to a register: offset, bytes, value.
    Store(u64, u8, u64),
    /// It loads, and the host answers.
    Load(u64, u8, u64),
}

/// What the visor may access with an honest VM, whatever the host does.
fn is_due(run: &Run, done: &Done) -> bool {
    if done.is_within(PART, PART_BYTES) {
        return true;
    }
    run.drivers.iter().any(|driver| {
        let (size, [table, available, used]) = (u64::from(driver.size), driver.rings);
        let mut requests = driver.pending.values();
        if done.is_write {
            let within = |place: &(u64, u32)| done.is_within(place.0, u64::from(place.1));
            done.is_within(used, 4 + 8 * size)
                || requests.any(|request| request.places.iter().any(within))
        } else {
            let within = |place: &(u64, u32)| done.is_within(place.0, u64::from(place.1));
            done.is_within(table, 16 * size)
                || done.is_within(available, 4 + 2 * size)
                || requests.any(|request| request.sources.iter().any(within))
        }
    })
}

/// Whether the VM has given this page up, by a word of a request in the first queue of a balloon's.
pub(crate) fn is_given_up(run: &Run, page: u32) -> bool {
    let said = run.drivers.first().into_iter().flat_map(|driver| &driver.offered);
    run.kind == BALLOON && said.flat_map(|said| numbers(said)).any(|number| number == page)
}

/// The numbers of pages in `bytes`.
pub(crate) fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks().0.iter().map(|number| u32::from_le_bytes(*number))
}

/// With a hostile host.
pub(crate) fn host(run: &mut Run, trick: &Trick) {
    match trick {
        Trick::Step(Step::Answer(queue, pick, share)) => {
            let (id, share) = (u32::try_from(pick % 70).unwrap(), u32::try_from(*share).unwrap());
            host(run, &Trick::Forge(*queue, 1, id, share));
        }
        Trick::Step(step) => {
            run.step(step);
        }
        Trick::Forge(queue, ahead, id, length) => {
            let driver = &run.drivers[*queue];
            let used = run.world.peek16(driver.rings[2] + 2);
            let ring = PART + 0x800 * u64::try_from(*queue).unwrap() + 0x500;
            let at = ring + 4 + 8 * u64::from(used % driver.size);
            run.world.poke(at, &id.to_le_bytes());
            run.world.poke(at + 4, &length.to_le_bytes());
            run.world.poke(ring + 2, &used.wrapping_add(*ahead).to_le_bytes());
        }
        Trick::Scribble(offset, bytes) => {
            let most = PART_BYTES - u64::try_from(bytes.len()).unwrap();
            run.world.poke(PART + offset % most, bytes);
        }
        Trick::Poke(..) | Trick::Store(..) | Trick::Load(..) => {}
    }
}

/// With a hostile VM, whose driver is gone.
pub(crate) fn guest(run: &mut Run, trick: &Trick) {
    match trick {
        Trick::Step(Step::Offer(..)) | Trick::Forge(..) | Trick::Scribble(..) => {}
        Trick::Step(step) => run.step(step),
        Trick::Poke(offset, bytes) => {
            let most = 0xc_0000 - u64::try_from(bytes.len()).unwrap();
            run.world.poke(PRIVATE + offset % most, bytes);
        }
        Trick::Store(offset, bytes, value) => run.store_any(*offset, *bytes, *value),
        Trick::Load(offset, bytes, value) => {
            let _ = run.device.loaded(*offset, *bytes, *value);
        }
    }
}

/// Plays `tricks` with a host that lies, from `run` on, which has queues of `sizes`. The VM only ever gets back what it has asked for, nothing else of
/// its memory is touched, and it can begin anew.
pub(crate) fn lying_host(mut run: Run, sizes: &[u16], tricks: &[Trick]) {
    run.drivers.iter_mut().for_each(|driver| driver.host_lies = true);
    let mut is_broken = false;
    for trick in tricks {
        // The driver takes its requests back afterwards.
        if let Trick::Step(Step::Enter) = trick {
            run.complete();
        }
        let log = run.world.log.take();
        assert!(log.iter().all(|done| is_due(&run, done)), "nothing else is touched");
        host(&mut run, trick);
        let forgotten = run.world.forgotten.take();
        assert!(forgotten.iter().all(|page| is_given_up(&run, *page)), "the rest stays");
        let log = run.world.log.take();
        assert!(!is_broken || log.is_empty(), "a device that broke is left alone");
        is_broken |= run.fail().is_some();
    }
    begin_anew(run, sizes);
}

/// Plays `tricks` with a VM that keeps to no rule, likewise: the host is told of nothing but its own memory, and
/// the VM can still begin anew.
pub(crate) fn wild_guest(mut run: Run, sizes: &[u16], tricks: &[Trick]) {
    run.drivers.clear();
    for trick in tricks {
        guest(&mut run, trick);
        assert!(run.world.log.take().len() < 300_000, "work is bounded");
    }
    begin_anew(run, sizes);
}

/// Resets the device: all of the room is there again.
fn begin_anew(mut run: Run, sizes: &[u16]) {
    run.world.fuse.set(u32::MAX);
    run.store(0x70, 0);
    let _ = run.fail();
    run.answers.clear();
    run.set_up(sizes);
    for (queue, size) in sizes.iter().enumerate() {
        for _ in 0..*size {
            run.step(&Step::Offer(queue, Vec::new(), vec![0xe00]));
        }
    }
    run.finish();
    run.check();
}
