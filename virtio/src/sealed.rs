//! A disk of which the host has nothing but sealed blocks ([`disk`]): the visor does the VM's requests itself (virtio
//! 1.2, 5.2.6), one after the other, and asks the host for blocks.

use core::fmt;
use core::mem;

use disk::header::{Header, Refusal};
use disk::storage::{Block, Error as Trouble, Storage};
use disk::volume::{Memory as Lent, Volume};
use zeroize::Zeroize;

use crate::backend::{Backend, Host};
use crate::chain::{Chain, Error};
use crate::memory::{Failure, Memory};
use crate::queue::Queue;
use crate::request::{BLOCK, FORGOTTEN, Front, HEADER, Kind, Piece, SECTORS, Status};

/// Blocks that are sealed or unsealed at once.
pub const PIECE: usize = 32;

/// The least entries of the queue: the visor's requests have three descriptors.
const DESCRIPTORS: u16 = 4;
/// Requests, or pieces of them, that are done at once: others have to use the processor, too.
const TURNS: u32 = 32;
/// Most buffers of a request.
const SEGMENTS: u32 = 62;

/// FLUSH.
pub(crate) const FLUSH: u64 = 1 << 9;
/// What such a disk has, whatever the host's has: VERSION_1, SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, DISCARD, WRITE_ZEROES
/// (virtio 1.2, 5.2.3).
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 2 | 1 << 6 | FLUSH | 1 << 10 | 1 << 13 | 1 << 14;

/// What a tenant says of a disk.
pub struct Wanted {
    /// Names it.
    pub id: [u8; 16],
    /// Its header is wrapped with that.
    pub key: [u8; 32],
    /// Blocks of 4 KiB that the VM sees.
    pub blocks: u64,
    /// Those of the whole disk.
    pub total: u64,
    /// The least moment that it may be of.
    pub moment: u64,
    /// Random bytes that were never used before, until they are.
    pub opening: Option<[u8; 10]>,
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wanted").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a disk is not, or not any more, what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has no header that can be believed.
    Header(Refusal),
    /// It is another disk, or of another size.
    Other,
    /// It is of a moment before the one that the tenant knows of.
    Old(u64),
    /// What was read, or could not be.
    Volume(Trouble),
}

impl Fault {
    /// Two words for the audit log: of the first, bits 7:0 are `transport`, bits 15:8 the reason, and bits 23:16 the level
    /// of a node that was changed; the second is a block, a node or a moment.
    #[must_use]
    pub const fn words(self, transport: u8) -> (u64, u64) {
        let (reason, level, b) = match self {
            Self::Header(Refusal::Absent) => (1, 0, 0),
            Self::Header(Refusal::Version(version)) => (2, 0, version),
            Self::Header(Refusal::Forged) => (3, 0, 0),
            Self::Header(Refusal::Size) | Self::Other => (4, 0, 0),
            Self::Old(moment) => (5, 0, moment),
            Self::Volume(Trouble::Forged { level, index }) => (6, level, index),
            Self::Volume(Trouble::Anchor | Trouble::Log | Trouble::Malformed) => (7, 0, 0),
            Self::Volume(Trouble::Failed) => (8, 0, 0),
            Self::Volume(Trouble::Memory) => (9, 0, 0),
            Self::Volume(Trouble::Wait | Trouble::Range | Trouble::Exhausted | Trouble::Broken) => {
                (10, 0, 0)
            }
        };
        (u64::from_le_bytes([transport, reason, level, 0, 0, 0, 0, 0]), b)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(why) => why.fmt(f),
            Self::Other => f.write_str("disk: not the one of the ticket"),
            Self::Old(moment) => write!(f, "disk: of moment {moment}, before that of the ticket"),
            Self::Volume(why) => why.fmt(f),
        }
    }
}

/// Why a request is not done.
enum Pause {
    /// The host has to answer first.
    Host,
    /// The VM's memory is not there.
    Vm(Error),
    /// It never will be.
    Fault(Fault),
    /// Nor this, of which was said why.
    Refused,
}

impl From<Error> for Pause {
    fn from(error: Error) -> Self {
        Self::Vm(error)
    }
}

/// What was done with the host's disk.
fn done<T, M>(result: Result<T, Trouble>, host: Host<'_, M>) -> Result<T, Pause> {
    result.map_err(|trouble| match (trouble, host.trouble) {
        (Trouble::Wait, None) => Pause::Host,
        (Trouble::Wait, Some(error)) => Pause::Vm(error),
        (Trouble::Broken, _) => Pause::Refused,
        (other, _) => Pause::Fault(Fault::Volume(other)),
    })
}

/// How far the disk is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Closed,
    Open,
    /// It cannot be opened.
    Refused,
}

/// What a sealed disk needs to work. The content is of no importance.
#[derive(Debug)]
pub struct Room {
    /// For the volume.
    pub volume: Lent<'static>,
    /// For what is sealed or unsealed at once.
    pub buffer: &'static mut [Block; PIECE],
}

/// A sealed disk, and how far the visor is with what the VM asks of it.
pub struct Sealed {
    wanted: Wanted,
    stage: Stage,
    memory: Option<Lent<'static>>,
    volume: Option<Volume<'static>>,
    buffer: &'static mut [Block; PIECE],
    pub(crate) backend: Backend,
    front: Option<Front>,
    /// The VM knows of [`FLUSH`]. Else what it writes is durable when that is done.
    pub(crate) knows_flush: bool,
    /// Something is done that the VM gets no interrupt for yet.
    is_unsaid: bool,
    /// The visor was kept from looking for more.
    is_stalled: bool,
    /// What may still be done at once.
    turns: u32,
    fault: Option<Fault>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl Sealed {
    /// A disk that nobody has used yet.
    #[must_use]
    pub const fn new(wanted: Wanted, room: Room) -> Self {
        Self {
            wanted,
            stage: Stage::Closed,
            memory: Some(room.volume),
            volume: None,
            buffer: room.buffer,
            backend: Backend::NONE,
            front: None,
            knows_flush: false,
            is_unsaid: false,
            is_stalled: false,
            turns: 0,
            fault: None,
        }
    }

    /// Becomes another disk.
    pub fn renew(&mut self, wanted: Wanted) {
        if let Some(volume) = self.volume.take() {
            self.memory = Some(volume.into_memory());
        }
        (self.wanted, self.stage, self.fault) = (wanted, Stage::Closed, None);
        self.reset();
    }

    /// What is wrong with the disk: said once.
    pub const fn fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// The VM has reset the device, and will negotiate features again.
    pub(crate) fn reset(&mut self) {
        self.abandon();
        (self.knows_flush, self.backend.flushes) = (false, false);
    }

    /// The VM has taken its queue away: what it wanted it does not want any more.
    pub(crate) fn abandon(&mut self) {
        self.backend.abandon();
        if let Some(volume) = &mut self.volume {
            volume.abandon();
        }
        (self.front, self.is_unsaid, self.is_stalled) = (None, false, false);
    }

    /// Whether the visor is at a request, or waits for the host.
    pub(crate) const fn is_waiting(&self) -> bool {
        self.is_stalled || self.front.is_some() || self.backend.is_asked()
    }

    /// The host's disk has these features, of the first 32: returns those that the VM can have.
    pub(crate) const fn offer(&mut self, features: u64) -> u64 {
        self.backend.flushes = features & FLUSH != 0;
        FEATURES
    }

    /// The VM accepts these features, of the first 32: returns those that the host's disk has.
    pub(crate) const fn accept(&mut self, features: u64) -> u64 {
        self.knows_flush = features & FLUSH != 0;
        if self.backend.flushes { FLUSH } else { 0 }
    }

    /// The VM has set up its queue, unless it had before: the visor makes requests in its shadow, of which the host has
    /// seen none.
    pub(crate) fn start(
        &mut self,
        queue: &mut Queue,
        room: (u64, u64),
        memory: &impl Memory,
    ) -> Result<(), Error> {
        let (shadow, size) = queue.place();
        if size < DESCRIPTORS {
            return Err(Error::Failed(Failure::Setup));
        }
        if !queue.is_ready {
            queue.start(memory)?;
            self.backend.begin((shadow, size), room);
        }
        Ok(())
    }

    /// What the VM sees of the device's configuration (virtio 1.2, 5.2.4), from `offset` on, up to 8 bytes.
    pub(crate) fn configuration(&self, offset: u64) -> u64 {
        let [discards, segments] = [FORGOTTEN, 1].map(u32::to_le_bytes);
        let mut fields = [0; 72];
        let parts: [(usize, &[u8]); 8] = [
            (0, &(self.wanted.blocks * SECTORS).to_le_bytes()),
            (12, &SEGMENTS.to_le_bytes()),
            (20, &512_u32.to_le_bytes()),
            // Eight sectors in a physical block, the first of which is aligned.
            (24, &[3, 0, 8, 0]),
            (36, &discards),
            (40, &segments),
            (44, &8_u32.to_le_bytes()),
            (48, &discards),
        ];
        for (at, bytes) in parts.into_iter().chain([(52, &segments[..])]) {
            let place = fields.get_mut(at..at + bytes.len());
            place.unwrap_or_default().copy_from_slice(bytes);
        }
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = fields.get(at..).and_then(|rest| rest.first_chunk());
        found.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Goes on with the requests of `queue` as far as the host has answered; `chain` is the one that the visor is
    /// at.
    pub(crate) fn drive(
        &mut self,
        queue: &mut Queue,
        chain: &mut Chain,
        memory: &impl Memory,
    ) -> Result<(), Error> {
        (self.is_stalled, self.turns) = (true, TURNS);
        let is_answered = self.backend.poll(memory)?;
        while self.one(queue, chain, memory)?.is_some() {}
        let is_cut = self.turns == 0;
        // The VM learns that something is done by an interrupt of the host's, and the visor goes on with it.
        if (self.is_unsaid || is_cut) && !is_answered && !self.backend.is_asked() {
            self.backend.nudge(memory)?;
        }
        (self.is_unsaid, self.is_stalled) = (false, is_cut);
        queue.is_owed |= mem::take(&mut self.backend.is_owed);
        Ok(())
    }

    /// Does one request to its end. `None`: there is none, or the host has to answer first.
    fn one(
        &mut self,
        queue: &mut Queue,
        chain: &mut Chain,
        memory: &impl Memory,
    ) -> Result<Option<()>, Error> {
        let mut front = match self.front {
            Some(front) => front,
            None => {
                let Some(head) = queue.offered(memory)?.filter(|_| self.turns > 0) else {
                    return Ok(None);
                };
                self.turns -= 1;
                chain.read(memory, queue.table(), head)?;
                let front = Front::read(chain, memory, (head, self.wanted.blocks))?;
                queue.take();
                front
            }
        };
        let worked = match front.status {
            Some(_) => Ok(()),
            None => self.work(&mut front, chain, memory),
        };
        front.status = front.status.or(match &worked {
            Ok(()) => Some(Status::Ok),
            Err(Pause::Fault(_) | Pause::Refused) => Some(Status::Failed),
            Err(_) => None,
        });
        self.front = Some(front);
        match worked {
            Err(Pause::Host) => return Ok(None),
            Err(Pause::Vm(error)) => return Err(error),
            Err(Pause::Fault(fault)) => self.fault = self.fault.or(Some(fault)),
            Err(Pause::Refused) | Ok(()) => {}
        }
        let status = front.status.unwrap_or(Status::Failed);
        chain.store(memory, chain.writable - 1, &[status.number()])?;
        // Of a request that failed the VM may believe nothing but the status.
        let is_filled = status == Status::Ok && matches!(front.kind, Kind::Read | Kind::Name);
        let written = if is_filled || chain.writable == 1 { chain.writable } else { 0 };
        queue.give_back(memory, front.head, written)?;
        self.front = None;
        self.is_unsaid = true;
        Ok(Some(()))
    }

    /// Does what the VM asks for.
    fn work<M: Memory>(
        &mut self,
        front: &mut Front,
        chain: &Chain,
        memory: &M,
    ) -> Result<(), Pause> {
        if front.kind == Kind::Name {
            return Ok(chain.store(memory, 0, &[0; 20])?);
        }
        self.open(memory)?;
        while front.kind.has_data() && front.done < front.bytes {
            if self.turns == 0 {
                return Err(Pause::Host);
            }
            self.turns -= 1;
            let piece = Piece::of(front);
            self.piece(front, &piece, chain, memory)?;
            (front.is_loaded, front.moved) = (false, 0);
            front.done += piece.bytes;
        }
        let is_durable = self.knows_flush && front.kind != Kind::Flush;
        let Some(volume) = self.volume.as_mut().filter(|_| front.kind.writes() && !is_durable)
        else {
            return Ok(());
        };
        let mut host = Host { backend: &mut self.backend, memory, trouble: None };
        done(volume.flush(&mut host), host)
    }

    /// Does a piece of a request with data.
    fn piece<M: Memory>(
        &mut self,
        front: &mut Front,
        piece: &Piece,
        chain: &Chain,
        memory: &M,
    ) -> Result<(), Pause> {
        let Some(volume) = &mut self.volume else { return Ok(()) };
        let mut host = Host { backend: &mut self.backend, memory, trouble: None };
        if front.kind == Kind::Forget && piece.is_whole {
            return done(volume.forget(&mut host, piece.block, piece.bytes / BLOCK), host);
        }
        let blocks = self.buffer.get_mut(..piece.blocks()).unwrap_or_default();
        if !front.is_loaded && (front.kind == Kind::Read || !piece.is_whole) {
            done(volume.read(&mut host, piece.block, blocks), host)?;
            front.is_loaded = true;
            host = Host { backend: &mut self.backend, memory, trouble: None };
        }
        let bytes = blocks.as_flattened_mut().get_mut(piece.range()).unwrap_or_default();
        // Page by page: there may be one missing for each.
        for bytes in bytes.chunks_mut(4096).skip(front.moved) {
            let at = front.done + BLOCK * u64::try_from(front.moved).unwrap_or(0);
            match front.kind {
                Kind::Read => chain.store(memory, at, bytes)?,
                Kind::Write => chain.fetch(memory, HEADER + at, bytes)?,
                Kind::Flush | Kind::Name | Kind::Forget => bytes.fill(0),
            }
            front.moved += 1;
        }
        if front.kind == Kind::Read {
            return Ok(());
        }
        done(volume.write(&mut host, piece.block, blocks), host)
    }

    /// Opens the disk, if it is not.
    fn open<M: Memory>(&mut self, memory: &M) -> Result<(), Pause> {
        match self.stage {
            Stage::Open => return Ok(()),
            Stage::Refused => return Err(Pause::Refused),
            Stage::Closed => {}
        }
        let opened = self.try_open(memory);
        match opened {
            Ok(()) => self.stage = Stage::Open,
            Err(Pause::Fault(_)) => self.stage = Stage::Refused,
            Err(_) => {}
        }
        opened
    }

    fn try_open<M: Memory>(&mut self, memory: &M) -> Result<(), Pause> {
        if self.volume.is_none() {
            let header = self.header(memory)?;
            self.make(&header).map_err(Pause::Fault)?;
        }
        let Some(volume) = &mut self.volume else { return Ok(()) };
        let mut host = Host { backend: &mut self.backend, memory, trouble: None };
        done(volume.open(&mut host), host)?;
        let (found, _) = volume.moment();
        let is_old = found < self.wanted.moment;
        if is_old { Err(Pause::Fault(Fault::Old(found))) } else { Ok(()) }
    }

    /// Reads the header of the disk that is wanted.
    fn header<M: Memory>(&mut self, memory: &M) -> Result<Header, Pause> {
        let Wanted { id, key, blocks, total, .. } = &self.wanted;
        let Some(headers) = self.buffer.first_chunk_mut() else {
            return Err(Pause::Fault(Fault::Other));
        };
        let mut host = Host { backend: &mut self.backend, memory, trouble: None };
        let read = host.read(total.saturating_sub(2), headers).map_err(Trouble::from);
        done(read, host)?;
        let header = Header::newest(headers, key, *total);
        let header = header.map_err(|why| Pause::Fault(Fault::Header(why)))?;
        let is_it = header.id == *id && header.geometry.capacity() == *blocks;
        if is_it { Ok(header) } else { Err(Pause::Fault(Fault::Other)) }
    }

    /// Makes the volume, once: what is sealed takes its nonces from the random bytes.
    fn make(&mut self, header: &Header) -> Result<(), Fault> {
        let needed = usize::try_from(header.geometry.entries()).unwrap_or(usize::MAX);
        if self.memory.as_ref().is_none_or(|lent| lent.entries.len() < needed) {
            // It is kept for the next disk.
            return Err(Fault::Volume(Trouble::Memory));
        }
        let parts = self.memory.take().zip(self.wanted.opening.take());
        let (lent, opening) = parts.ok_or(Fault::Other)?;
        match Volume::new(header, lent, opening) {
            Ok(volume) => self.volume = Some(volume),
            Err(why) => return Err(Fault::Volume(why)),
        }
        Ok(())
    }
}
