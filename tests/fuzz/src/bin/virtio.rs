//! Shadow rings: a byte for the hostile side and the kinds of transport and device, one for the sizes of the queues, then 12 bytes for each
//! thing that a side does. What must hold is in the tests of `virtio`.
#![no_main]

#[path = "../../../../virtio/tests/rings/driver.rs"]
mod driver;
#[path = "../../../../virtio/tests/rings/host.rs"]
mod host;
#[path = "../../../../virtio/tests/rings/hostile.rs"]
mod hostile;
#[path = "../../../../virtio/tests/rings/run.rs"]
mod run;
#[path = "../../../../virtio/tests/rings/world.rs"]
mod world;

use hostile::{Trick, lying_host, wild_guest};
use run::{BALLOON, LONGEST, Run, Step};
use virtio::layout::Layout;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [side, sizes, tricks @ ..] = data else {
        return;
    };
    let size = |raw: u8| [1, 2, 8, 64][usize::from(raw & 3)];
    let sizes = [size(*sizes), size(*sizes >> 4)];
    let tricks: Vec<Trick> = tricks.chunks_exact(12).take(100).map(trick).collect();
    let layout = if side / 3 % 2 == 0 { Layout::Mmio } else { Layout::Pci };
    let mut run = Run::on(layout, &sizes);
    // Of these an honest driver offers nothing but lists of pages.
    if side / 6 % 2 == 1 && side % 3 != 0 && layout == Layout::Mmio {
        run.kind = BALLOON;
        run.set_up(&sizes);
    }
    match side % 3 {
        0 => honest(run, &tricks),
        1 => lying_host(run, &sizes, &tricks),
        _ => wild_guest(run, &sizes, &tricks),
    }
});

/// Every request is seen once and answered once.
fn honest(mut run: Run, tricks: &[Trick]) {
    for trick in tricks {
        if let Trick::Step(step) = trick {
            run.step(step);
        }
    }
    run.finish();
    run.check();
}

/// A kind, a queue, two bytes, and two words.
fn trick(bytes: &[u8]) -> Trick {
    let [kind, queue, a, b, words @ ..] = bytes else {
        return Trick::Step(Step::Enter);
    };
    let queue = usize::from(queue & 1);
    let word = |at: usize| u32::from_le_bytes(words[at..at + 4].try_into().expect("4 of the 8"));
    let (first, second) = (word(0), word(4));
    let both = u64::from(first) | u64::from(second) << 32;
    let lengths = |count: u8, of: u32| {
        (0..count % 5).map(|at| of.rotate_right(u32::from(at) * 5) % LONGEST + 1).collect()
    };
    // The VM's rings; what it pokes is near them.
    let ring = [0xf90, 0x1ffe, 0x2ffc, 0x5_0f90][usize::from(*a & 3)] + u64::from(*b);
    match kind % 10 {
        0 | 1 => Trick::Step(Step::Offer(queue, lengths(*a, first), lengths(*b, second))),
        2 => Trick::Step(Step::Notify(queue)),
        3 => Trick::Step(Step::Answer(queue, usize::from(*a), u64::from(*b))),
        4 => Trick::Step(Step::Enter),
        5 => Trick::Step(Step::Miss(u32::from(*a))),
        6 => Trick::Forge(queue, u16::from_le_bytes([*a, *b]), first, second),
        7 => Trick::Scribble(u64::from(*a) << 4 | u64::from(*b) << 12, words.to_vec()),
        8 => Trick::Poke(ring, words.to_vec()),
        _ if *b & 1 == 0 => {
            let bytes = if *b < 240 { 4 } else { *b & 15 };
            // On PCI there are registers of 1 and 2 bytes, and far from each other.
            let offset = if queue == 0 {
                u64::from(*a) << 2 & 0x1ff
            } else {
                u64::from(first >> 16 & 0x3fff)
            };
            Trick::Store(offset, bytes, both)
        }
        _ => Trick::Load(u64::from(*a) << 1, 4, both),
    }
}
