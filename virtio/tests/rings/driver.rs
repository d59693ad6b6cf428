//! A driver in the VM, as virtio 1.2 has it (2.7.13, 2.7.14), which checks what it gets.

use std::collections::BTreeMap;

use crate::world::{PRIVATE, World};

/// `count` bytes that begin with `seed`.
pub(crate) fn pattern(seed: u8, count: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..251).map(|at| seed.wrapping_add(at)).collect();
    let mut bytes = period.repeat(count.div_ceil(period.len()));
    bytes.truncate(count);
    bytes
}

/// The `count` bytes that a device answers to a request that says `said`.
pub(crate) fn answers(said: &[u8], count: usize) -> Vec<u8> {
    let seed = said.iter().fold(7_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte));
    pattern(seed, count)
}

/// A request that the device has.
pub(crate) struct Request {
    pub(crate) said: Vec<u8>,
    /// Where the device may write.
    pub(crate) places: Vec<(u64, u32)>,
    /// Where it may read.
    pub(crate) sources: Vec<(u64, u32)>,
    descriptors: Vec<u16>,
}

/// One queue of the driver's.
pub(crate) struct Driver {
    pub(crate) size: u16,
    /// Descriptor table, available ring, used ring.
    pub(crate) rings: [u64; 3],
    free: Vec<u16>,
    available: u16,
    used: u16,
    /// Where buffers are: `stride` bytes for each descriptor.
    buffers: u64,
    pub(crate) pending: BTreeMap<u16, Request>,
    /// The host says one thing and then another.
    pub(crate) host_lies: bool,
    /// It looks at all of its buffers, as drivers of disks look at the last byte.
    pub(crate) looks_at_all: bool,
    /// Requests that were offered, in order.
    pub(crate) offered: Vec<Vec<u8>>,
}

/// Most bytes of a buffer.
pub(crate) const BUFFER: u32 = 0x1000;

impl Driver {
    /// Queue `number`; its rings cross pages.
    pub(crate) fn new(world: &World, number: u64, size: u16) -> Self {
        let base = PRIVATE + number * 0x5_0000;
        let rings = [base + 0xf90, base + 0x1ffe, base + 0x2ffc];
        world.poke(rings[1], &[0; 6 + 2 * 64]);
        world.poke(rings[2], &[0; 6 + 8 * 64]);
        Self {
            size,
            rings,
            free: (0..size).rev().collect(),
            available: 0,
            used: 0,
            buffers: base + 0x4000,
            pending: BTreeMap::new(),
            host_lies: false,
            looks_at_all: false,
            offered: Vec::new(),
        }
    }

    /// Makes a request available, if there are descriptors: what it says in pieces, and what may be
    /// answered. Returns whether there were.
    pub(crate) fn offer(&mut self, world: &World, said: &[Vec<u8>], places: &[u32]) -> bool {
        let count = said.len() + places.len();
        if count == 0 || count > self.free.len() {
            return false;
        }
        let descriptors: Vec<u16> = (0..count).map(|_| self.free.pop().unwrap()).collect();
        // Later buffers are at lower addresses, and none at the beginning of a page.
        let address =
            |at: u16| self.buffers + u64::from(self.size - 1 - at) * u64::from(BUFFER) + 0x123;
        let mut request = Request {
            said: said.concat(),
            places: Vec::new(),
            sources: Vec::new(),
            descriptors: Vec::new(),
        };
        for (at, descriptor) in descriptors.iter().enumerate() {
            let (bytes, kind) = if let Some(piece) = said.get(at) {
                world.poke(address(*descriptor), piece);
                let bytes = u32::try_from(piece.len()).unwrap();
                request.sources.push((address(*descriptor), bytes));
                (bytes, 0_u16)
            } else {
                let bytes = places[at - said.len()];
                world.poke(address(*descriptor), &vec![0xee; usize::try_from(bytes).unwrap()]);
                request.places.push((address(*descriptor), bytes));
                (bytes, 2)
            };
            let next = descriptors.get(at + 1);
            let place = self.rings[0] + 16 * u64::from(*descriptor);
            world.poke(place, &address(*descriptor).to_le_bytes());
            world.poke(place + 8, &bytes.to_le_bytes());
            world.poke(place + 12, &(kind | u16::from(next.is_some())).to_le_bytes());
            world.poke(place + 14, &next.copied().unwrap_or(0xdead).to_le_bytes());
        }
        let head = descriptors[0];
        let slot = u64::from(self.available % self.size);
        world.poke(self.rings[1] + 4 + 2 * slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        world.poke(self.rings[1] + 2, &self.available.to_le_bytes());
        self.offered.push(request.said.clone());
        request.descriptors = descriptors;
        assert!(self.pending.insert(head, request).is_none());
        true
    }

    /// What the device has answered to: each is checked to be one of the driver's own. Returns what was
    /// said, and the bytes that the device wrote.
    pub(crate) fn collect(&mut self, world: &World) -> Vec<(Vec<u8>, Vec<u8>)> {
        let index = world.peek16(self.rings[2] + 2);
        let mut answers = Vec::new();
        while self.used != index {
            let at = self.rings[2] + 4 + 8 * u64::from(self.used % self.size);
            let (id, length) = (world.peek32(at), world.peek32(at + 4));
            let request = self.pending.remove(&u16::try_from(id).unwrap());
            let request = request.expect("only what the device has comes back");
            let mut bytes: Vec<u8> = Vec::new();
            for (address, room) in &request.places {
                bytes.extend(world.peek(*address, usize::try_from(*room).unwrap()));
            }
            let length = usize::try_from(length).unwrap();
            assert!(length <= bytes.len(), "no more than there is room for comes back");
            let untouched = bytes[length..].iter().all(|byte| *byte == 0xee);
            assert!(untouched || self.host_lies || self.looks_at_all, "nothing else was written");
            if !self.looks_at_all {
                bytes.truncate(length);
            }
            self.free.extend(&request.descriptors);
            self.used = self.used.wrapping_add(1);
            answers.push((request.said, bytes));
        }
        answers
    }
}
