//! A split virtqueue twice (virtio 1.2, 2.7): the VM's own, and its shadow in the shared range, whose
//! buffers are in the shared range too.
//!
//! A chain has the same head in both, and entries of the rings the same positions. In the shadow it has
//! two descriptors at most: all that the device reads, and all that it writes. Nothing that was written to
//! the shadow is ever read back from it but by the device.

use crate::chain::{Chain, Error, NEXT, WRITE, place};
use crate::device::WORD;
use crate::memory::{Failure, Memory};
use crate::room::{End, Room, Run, Taken};

/// Most entries of a queue.
pub(crate) const LONGEST: usize = 64;

/// Where the rings are in a shadow, and what it takes.
pub(crate) const AVAILABLE: u64 = 0x400;
pub(crate) const USED: u64 = 0x500;
pub(crate) const BYTES: u64 = 0x800;

/// What a device writes begins at a multiple of this in the shared range, as disks like it.
const ALIGNMENT: u64 = 512;

/// A request that the host has.
#[derive(Clone, Copy, Debug)]
struct Held {
    run: Run,
    /// Where the device writes, from the beginning of `run`, and how much at most.
    answer: u32,
    writable: u32,
}

/// What the queues of a device have in common: room, and which chain one is at.
pub(crate) struct Shared {
    pub(crate) room: Room,
    pub(crate) chain: Chain,
}

/// A queue and its shadow.
pub(crate) struct Queue {
    /// Entries, as the VM has said: 0 unless it is a valid number.
    size: u16,
    /// The VM's descriptor table, available ring and used ring.
    pub(crate) rings: [u64; 3],
    /// Of which of them the host has both halves of the shadow's address, a bit for each half.
    shown: u8,
    /// The shadow.
    shadow: u64,
    pub(crate) is_ready: bool,
    /// Entries that the host got, and that the VM got back; both wrap.
    available: u16,
    used: u16,
    held: [Option<Held>; LONGEST],
    /// Requests wait for room, or for a page.
    pub(crate) is_stalled: bool,
    /// The host has to be told of requests.
    pub(crate) is_owed: bool,
    /// What the device is to read are numbers of pages that the VM gives up.
    pub(crate) gives_up: bool,
}

pub(crate) fn read_index(memory: &impl Memory, ring: u64) -> Result<u16, Error> {
    let mut index = [0; 2];
    memory.read(place(ring, 2)?, &mut index)?;
    Ok(u16::from_le_bytes(index))
}

/// With no flags: both sides always tell each other.
pub(crate) fn write_index(memory: &impl Memory, ring: u64, index: u16) -> Result<(), Error> {
    Ok(memory.write(ring, &(u32::from(index) << 16).to_le_bytes())?)
}

impl Queue {
    /// A queue that is not set up, and has no shadow.
    pub(crate) const NONE: Self = Self {
        size: 0,
        rings: [0; 3],
        shown: 0,
        shadow: 0,
        is_ready: false,
        available: 0,
        used: 0,
        held: [None; LONGEST],
        is_stalled: false,
        is_owed: false,
        gives_up: false,
    };

    /// Its shadow is at `shadow`.
    pub(crate) const fn assign(&mut self, shadow: u64) {
        self.shadow = shadow;
    }

    /// The guest-physical addresses in the shadow that stand for [`Self::rings`].
    pub(crate) const fn shadow_rings(&self) -> [u64; 3] {
        [self.shadow, self.shadow + AVAILABLE, self.shadow + USED]
    }

    /// The VM says what the 32 bits from `shift` on are, 0 or 32, of the address of ring number `ring`. Returns what the host
    /// is to see there.
    pub(crate) fn locate(&mut self, ring: usize, shift: usize, value: u64) -> u64 {
        if let Some(place) = self.rings.get_mut(ring) {
            *place = *place & !(WORD << shift) | value << shift;
            self.shown |= 1 << (2 * ring + shift / 32);
        }
        self.shadow_rings().get(ring).map_or(0, |place| place >> shift & WORD)
    }

    /// The VM says what the size is, which counts until the queue is ready. Returns what it is then.
    pub(crate) fn resize(&mut self, size: u64) -> u64 {
        let size = u16::try_from(size).unwrap_or(0);
        if !self.is_ready {
            let is_valid = size.is_power_of_two() && usize::from(size) <= LONGEST;
            self.size = if is_valid { size } else { 0 };
        }
        u64::from(self.size)
    }

    /// Requests that the host has.
    const fn outstanding(&self) -> u16 {
        self.available.wrapping_sub(self.used)
    }

    /// Makes the queue ready, unless it is.
    pub(crate) fn start(&mut self, memory: &impl Memory) -> Result<(), Error> {
        // The host would take an address that it was not shown to be that of something else.
        const ALL: u8 = 0b11_1111;
        if self.size == 0 || self.shadow == 0 || self.shown != ALL {
            return Err(Error::Failed(Failure::Setup));
        }
        if !self.is_ready {
            write_index(memory, self.shadow + AVAILABLE, 0)?;
            write_index(memory, self.shadow + USED, 0)?;
            self.is_ready = true;
        }
        Ok(())
    }

    /// Forgets the VM's queue and everything in it.
    pub(crate) fn stop(&mut self, shared: &mut Shared) {
        shared.chain.settle();
        for held in self.held.iter().flatten() {
            shared.room.mark(held.run, Taken::No);
        }
        // Field by field: a queue is too long to be moved around.
        self.held.fill(None);
        (self.is_ready, self.is_stalled, self.is_owed) = (false, false, false);
        (self.size, self.available, self.used) = (0, 0, 0);
        (self.rings, self.shown) = ([0; 3], 0);
    }

    /// The position of an entry in both rings.
    fn slot(&self, index: u16) -> u64 {
        u64::from(index & self.size.wrapping_sub(1))
    }

    /// The VM's descriptor table, and entries of it.
    pub(crate) const fn table(&self) -> (u64, u16) {
        let [table, ..] = self.rings;
        (table, self.size)
    }

    /// Where the shadow is, and entries of its rings.
    pub(crate) const fn place(&self) -> (u64, u16) {
        (self.shadow, self.size)
    }

    /// The head of the next chain that the VM has made available, if there is one: for those that do without the
    /// shadow.
    pub(crate) fn offered(&self, memory: &impl Memory) -> Result<Option<u16>, Error> {
        let [_, ring, _] = self.rings;
        if !self.is_ready {
            return Ok(None);
        }
        let index = read_index(memory, ring)?;
        match index.wrapping_sub(self.available) {
            0 => return Ok(None),
            count if count > self.size => {
                return Err(Error::Failed(Failure::AvailableIndex(index)));
            }
            _ => {}
        }
        let mut head = [0; 2];
        memory.read(place(ring, 4 + 2 * self.slot(self.available))?, &mut head)?;
        let head = u16::from_le_bytes(head);
        if head < self.size {
            Ok(Some(head))
        } else {
            Err(Error::Failed(Failure::AvailableHead(head)))
        }
    }

    /// Takes what is offered.
    pub(crate) const fn take(&mut self) {
        self.available = self.available.wrapping_add(1);
    }

    /// Gives a chain that was taken back to the VM, with so many bytes written.
    pub(crate) fn give_back(
        &mut self,
        memory: &impl Memory,
        head: u16,
        bytes: u64,
    ) -> Result<(), Error> {
        let [.., ring] = self.rings;
        let entry = bytes << 32 | u64::from(head);
        memory.write(place(ring, 4 + 8 * self.slot(self.used))?, &entry.to_le_bytes())?;
        let next = self.used.wrapping_add(1);
        write_index(memory, ring, next)?;
        self.used = next;
        Ok(())
    }

    /// Gives the host what the VM has made available, as far as there is room.
    pub(crate) fn publish(
        &mut self,
        shared: &mut Shared,
        memory: &impl Memory,
    ) -> Result<(), Error> {
        if !self.is_ready {
            return Ok(());
        }
        let [_, ring, _] = self.rings;
        let index = read_index(memory, ring)?;
        if index.wrapping_sub(self.available) > self.size {
            return Err(Error::Failed(Failure::AvailableIndex(index)));
        }
        // Also while a page is missing.
        self.is_stalled = true;
        while self.available != index {
            let mut head = [0; 2];
            memory.read(place(ring, 4 + 2 * self.slot(self.available))?, &mut head)?;
            if self.publish_one(shared, memory, u16::from_le_bytes(head))?.is_none() {
                return Ok(());
            }
        }
        self.is_stalled = false;
        Ok(())
    }

    /// `None`: there is no room at the moment. Nothing of the visor's changes before the host may see the request: until then it can be begun again.
    fn publish_one(
        &mut self,
        shared: &mut Shared,
        memory: &impl Memory,
        head: u16,
    ) -> Result<Option<()>, Error> {
        let (size, [table, ..]) = (self.size, self.rings);
        let owner = self.held.get_mut(usize::from(head));
        let owner = owner.filter(|held| head < size && held.is_none());
        let owner = owner.ok_or(Error::Failed(Failure::AvailableHead(head)))?;
        let Shared { room, chain } = shared;
        chain.read(memory, (table, size), head)?;
        let answer = chain.readable.next_multiple_of(ALIGNMENT);
        let bytes = answer + chain.writable;
        if bytes >= room.bytes() {
            return Err(Error::Failed(Failure::TooLong(bytes)));
        }
        let end = if chain.readable == 0 { End::Low } else { End::High };
        let Some(run) = room.find(bytes, end) else {
            return Ok(None);
        };
        let base = room.address(run);
        chain.gather(memory, self.shadow + u64::from(head), base)?;
        if self.gives_up {
            chain.forget(memory)?;
        }
        let describe = |at: u16, (address, bytes): (u64, u64), flags: u16| {
            let next = u128::from(chain.second) << 112 | u128::from(flags) << 96;
            let raw = next | u128::from(bytes) << 64 | u128::from(address);
            memory.write(self.shadow + 16 * u64::from(at), &raw.to_le_bytes())
        };
        let more = if chain.writable > 0 { NEXT } else { 0 };
        if chain.readable > 0 || more == 0 {
            describe(head, (base, chain.readable), more)?;
        }
        if more != 0 {
            let at = if chain.readable > 0 { chain.second } else { head };
            describe(at, (base + answer, chain.writable), WRITE)?;
        }
        // Both are less than the room, which is below 4 GiB.
        let small = |bytes: u64| u32::try_from(bytes).unwrap_or(0);
        let held = Held { run, answer: small(answer), writable: small(chain.writable) };
        let (next, slot) = (self.available.wrapping_add(1), u64::from(self.available & (size - 1)));
        memory.write(self.shadow + AVAILABLE + 4 + 2 * slot, &head.to_le_bytes())?;
        write_index(memory, self.shadow + AVAILABLE, next)?;
        room.mark(run, Taken::Yes);
        *owner = Some(held);
        self.available = next;
        self.is_owed = true;
        Ok(Some(()))
    }

    /// Whether the host has requests, or is to get some.
    pub(crate) const fn is_waiting(&self) -> bool {
        self.is_stalled || self.outstanding() != 0
    }

    /// Gives the VM what the host has returned.
    pub(crate) fn complete(
        &mut self,
        shared: &mut Shared,
        memory: &impl Memory,
    ) -> Result<(), Error> {
        if self.outstanding() == 0 {
            return Ok(());
        }
        let index = read_index(memory, self.shadow + USED)?;
        if index.wrapping_sub(self.used) > self.outstanding() {
            return Err(Error::Failed(Failure::UsedIndex(index)));
        }
        while self.used != index {
            self.complete_one(shared, memory)?;
        }
        Ok(())
    }

    /// Nothing of the visor's changes before the VM may see that a request is done.
    fn complete_one(&mut self, shared: &mut Shared, memory: &impl Memory) -> Result<(), Error> {
        let at = 4 + 8 * self.slot(self.used);
        let mut entry = [0; 8];
        memory.read(self.shadow + USED + at, &mut entry)?;
        let [a, b, c, d, e, f, g, h] = entry;
        let (id, length) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let unknown = Error::Failed(Failure::UsedHead(id));
        let head = u16::try_from(id).map_err(|_| unknown)?;
        let owner = self.held.get_mut(usize::from(head)).ok_or(unknown)?;
        let held = owner.ok_or(unknown)?;
        if length > held.writable {
            return Err(Error::Failed(Failure::UsedLength(length)));
        }
        let [table, _, ring] = self.rings;
        let Shared { room, chain } = shared;
        chain.read(memory, (table, self.size), head)?;
        let answer = room.address(held.run) + u64::from(held.answer);
        let key = self.shadow + u64::from(head);
        chain.scatter(memory, key, (answer, u64::from(length)))?;
        memory.write(place(ring, at)?, &entry)?;
        let next = self.used.wrapping_add(1);
        write_index(memory, ring, next)?;
        chain.settle();
        room.mark(held.run, Taken::No);
        *owner = None;
        self.used = next;
        Ok(())
    }
}
