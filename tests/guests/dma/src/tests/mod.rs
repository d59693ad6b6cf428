//! The tests, by the words that the command line may name.

mod figures;
mod interrupts;
mod load;
mod owners;
mod sizes;
mod storm;

use crate::devices::{Ahci, Device, E1000e, Edu, Ended, Nvme, Virtio};
use crate::guard::Guard;
use crate::memory::{self, PAGE};
use bare::console;
use bare::report::{Checks, Outcome};

/// Memory that nothing but tests uses.
const ARENA: u64 = 64 << 20;

type Test = (&'static str, fn(&mut Machine) -> Outcome);

/// Every test.
pub(crate) const TESTS: &[Test] = &[
    ("works", works),
    ("owners", owners::run),
    ("load", load::run),
    ("storm", storm::run),
    ("interrupts", interrupts::run),
    ("visor", owners::visor),
    ("roles", owners::roles),
    ("take-over", owners::take_over),
    ("sizes", sizes::run),
    ("figures", figures::run),
];

/// The machine: what does DMA, and what stands before memory.
pub(crate) struct Machine {
    guard: Guard,
    edus: [Option<Edu>; 2],
    ahci: Option<Ahci>,
    nvme: Option<Nvme>,
    card: Option<E1000e>,
    virtio: Option<Virtio>,
}

fn some<T: Device>(device: &mut Option<T>) -> Option<&mut dyn Device> {
    device.as_mut().map(|device| device as &mut dyn Device)
}

impl Machine {
    /// All devices there are, behind `guard`.
    pub(crate) fn new(guard: Guard) -> Self {
        let mut edus = Edu::all();
        Self {
            guard,
            edus: core::array::from_fn(|_| edus.next()),
            ahci: Ahci::find(),
            nvme: Nvme::find(),
            card: E1000e::find(),
            virtio: Virtio::find(),
        }
    }

    /// The guard, and each device.
    fn parts(&mut self) -> (&mut Guard, impl Iterator<Item = &mut dyn Device>) {
        let [first, second] = &mut self.edus;
        let devices = [
            some(&mut self.ahci),
            some(&mut self.nvme),
            some(&mut self.card),
            some(&mut self.virtio),
            some(first),
            some(second),
        ];
        (&mut self.guard, devices.into_iter().flatten())
    }
}

/// Has `device` carry `seed`'s bytes from one page to the other: what it says, and how many of the words
/// arrive.
fn carry(device: &mut dyn Device, [from, to]: [u64; 2], seed: u64) -> ([Ended; 2], u64) {
    let bytes = device.bytes();
    memory::fill(from, bytes, seed);
    memory::fill(to, bytes, !seed);
    let ended = [device.take(from), device.store(to)];
    (ended, memory::matching(to, bytes, seed))
}

/// What each device takes from memory it stores elsewhere.
fn works(machine: &mut Machine) -> Outcome {
    let mut checks = Checks::new();
    let (_, devices) = machine.parts();
    for (seed, device) in (1..).zip(devices) {
        let (name, at) = (device.name(), device.source());
        let (ended, words) = carry(device, [ARENA, ARENA + PAGE], seed);
        console::line(format_args!("{name} at {at:#06x} moves {} bytes", device.bytes()));
        checks.that(ended == [Ended::Done; 2], format_args!("{name} at {at:#06x}: {ended:?}"));
        checks
            .that(words == device.bytes() / 8, format_args!("{name} at {at:#06x}: {words} words"));
    }
    checks.finish()
}
