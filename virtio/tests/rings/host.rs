//! A device of the host's, as virtio 1.2 has it: it knows nothing but what was stored to its registers,
//! and reaches nothing but the shared range.

use crate::driver::answers;
use crate::world::{PART, PART_BYTES, World};

/// A request it has taken and not answered.
pub(crate) struct Taken {
    head: u16,
    pub(crate) said: Vec<u8>,
    places: Vec<(u64, u32)>,
}

impl Taken {
    /// Bytes that may be answered.
    pub(crate) fn room(&self) -> u64 {
        self.places.iter().map(|(_, bytes)| u64::from(*bytes)).sum()
    }
}

/// One queue of the device's.
#[derive(Default)]
pub(crate) struct HostQueue {
    size: u16,
    rings: [u64; 3],
    pub(crate) is_ready: bool,
    available: u16,
    used: u16,
    pub(crate) taken: Vec<Taken>,
    /// What it was asked, in order.
    pub(crate) seen: Vec<Vec<u8>>,
}

/// The registers and what is behind them.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) queues: [HostQueue; 4],
    selected: usize,
    pub(crate) status: u64,
    /// Features that the driver accepted.
    pub(crate) accepted: [u64; 2],
    half: usize,
    /// Notifications.
    pub(crate) told: Vec<u64>,
}

fn inside(address: u64, bytes: u64) {
    assert!(
        address >= PART && address + bytes <= PART + PART_BYTES,
        "the host is only told of its own memory, not of {address:#x}"
    );
}

impl HostQueue {
    /// Takes what is available.
    pub(crate) fn take(&mut self, world: &World) {
        let [table, ring, _] = self.rings;
        let index = world.peek16(ring + 2);
        assert_eq!(world.peek16(ring), 0, "the device is always to interrupt");
        while self.available != index {
            let slot = u64::from(self.available % self.size);
            let head = world.peek16(ring + 4 + 2 * slot);
            let mut taken = Taken { head, said: Vec::new(), places: Vec::new() };
            let mut next = Some(head);
            while let Some(at) = next {
                let at = table + 16 * u64::from(at);
                let (address, bytes) = (world.peek64(at), world.peek32(at + 8));
                let flags = world.peek16(at + 12);
                inside(address, u64::from(bytes));
                if flags & 2 == 0 {
                    assert!(taken.places.is_empty(), "what is read comes first");
                    let count = usize::try_from(bytes).unwrap();
                    taken.said.extend(world.peek(address, count));
                } else {
                    taken.places.push((address, bytes));
                }
                next = (flags & 1 != 0).then(|| world.peek16(at + 14));
            }
            self.seen.push(taken.said.clone());
            self.taken.push(taken);
            self.available = self.available.wrapping_add(1);
        }
    }

    /// Answers one request, the `pick`-th that it has, with as much as `share` 256ths of the room.
    pub(crate) fn answer(&mut self, world: &World, (pick, share): (usize, u64)) {
        if !self.is_ready {
            return;
        }
        self.take(world);
        if self.taken.is_empty() {
            return;
        }
        let taken = self.taken.remove(pick % self.taken.len());
        let room = taken.room();
        let length = (room * share).div_ceil(255).min(room);
        // Beyond what it says that it wrote, it writes something else.
        let mut bytes = answers(&taken.said, usize::try_from(room).unwrap());
        bytes[usize::try_from(length).unwrap()..].fill(1);
        self.put(world, &taken, &bytes, length);
    }

    /// Puts `bytes` where the request has room, and says that `length` of them are there.
    pub(crate) fn put(&mut self, world: &World, taken: &Taken, bytes: &[u8], length: u64) {
        let mut rest = bytes;
        for (address, bytes) in &taken.places {
            let (here, behind) = rest.split_at(usize::try_from(*bytes).unwrap());
            world.poke(*address, here);
            rest = behind;
        }
        let [.., ring] = self.rings;
        let place = ring + 4 + 8 * u64::from(self.used % self.size);
        world.poke(place, &u32::from(taken.head).to_le_bytes());
        world.poke(place + 4, &u32::try_from(length).unwrap().to_le_bytes());
        self.used = self.used.wrapping_add(1);
        world.poke(ring + 2, &self.used.to_le_bytes());
    }
}

impl Host {
    /// The VM's store, as the host was shown it.
    pub(crate) fn store(&mut self, offset: u64, value: u64) {
        let queue = self.queues.get_mut(self.selected);
        match (offset, queue) {
            (0x20, _) if self.half < 2 => self.accepted[self.half] = value,
            (0x24, _) => self.half = usize::try_from(value).unwrap(),
            (0x30, _) => self.selected = usize::try_from(value).unwrap(),
            (0x38, Some(queue)) => queue.size = u16::try_from(value).unwrap(),
            (0x44, Some(queue)) => {
                if value != 0 {
                    inside(queue.rings[0], 16 * u64::from(queue.size));
                    inside(queue.rings[1], 6 + 2 * u64::from(queue.size));
                    inside(queue.rings[2], 6 + 8 * u64::from(queue.size));
                }
                queue.is_ready = value != 0;
            }
            (0x50, _) => self.told.push(value),
            (0x70, _) => {
                self.status = value;
                if value == 0 {
                    *self = Self::default();
                }
            }
            (0x80 | 0x84 | 0x90 | 0x94 | 0xa0 | 0xa4, Some(queue)) => {
                let ring = &mut queue.rings[usize::try_from(offset - 0x80).unwrap() / 0x10];
                let shift = 8 * (offset & 4);
                *ring = *ring & !(0xffff_ffff << shift) | value << shift;
            }
            _ => {}
        }
    }

    /// A device of `kind` with all features and queues of 1024 entries.
    pub(crate) fn load(&self, offset: u64, kind: u64) -> u64 {
        match offset {
            0x00 => 0x7472_6976,
            0x04 => 2,
            0x08 => kind,
            0x10 => 0xffff_ffff,
            0x34 => 1024,
            0x44 => self.queues.get(self.selected).map_or(0, |queue| u64::from(queue.is_ready)),
            0x70 => self.status,
            _ => 0,
        }
    }
}
