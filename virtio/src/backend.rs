//! The host's disk as the visor uses it: the driver of the shadow of a VM's queue, with one request at a time
//! (virtio 1.2, 5.2.6).

use core::ops::Range;

use disk::storage::{Block, Stop, Storage};

use crate::chain::{Error, NEXT, WRITE};
use crate::memory::{Failure, Memory, Unreached};
use crate::queue::{AVAILABLE, USED, read_index, write_index};
use crate::request::{BLOCK, SECTORS};

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
}

/// A request to the host: blocks from `at` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    kind: Kind,
    at: u64,
    blocks: u64,
}

/// How far the visor's request has come.
#[derive(Clone, Copy, Debug)]
enum State {
    /// There is none.
    Idle,
    /// Its data comes to its place.
    Begun(Request),
    /// The host has it. `None`: nobody waits for the answer.
    Asked(Option<Request>),
    /// The host has answered, that it was done or not.
    Answered(Request, bool),
}

/// The host's end of a queue.
pub(crate) struct Backend {
    /// Where the shadow is, and the entries of its rings.
    shadow: u64,
    size: u16,
    /// Where header and status of a request are; a page later its data, for so many blocks.
    room: u64,
    blocks: u64,
    /// Requests so far; it wraps.
    count: u16,
    state: State,
    /// Bytes of data that came to their place, or back, by now: there may be a page missing for each that is touched.
    moved: usize,
    /// The host has to be told of a request.
    pub(crate) is_owed: bool,
    /// The host's disk can be flushed. Else what it has done is durable.
    pub(crate) flushes: bool,
}

/// What the host says when it has not written it.
const NO_STATUS: u8 = 0xff;
const STATUS: u64 = 16;

impl Backend {
    pub(crate) const NONE: Self = Self {
        shadow: 0,
        size: 0,
        room: 0,
        blocks: 0,
        count: 0,
        state: State::Idle,
        moved: 0,
        is_owed: false,
        flushes: false,
    };

    /// Begins to use a shadow of `size` entries, of which the host has seen none, and the `bytes` from `room` on.
    pub(crate) fn begin(&mut self, (shadow, size): (u64, u16), (room, bytes): (u64, u64)) {
        let blocks = (bytes / BLOCK).saturating_sub(1);
        *self = Self { shadow, size, room, blocks, flushes: self.flushes, ..Self::NONE };
    }

    /// The device is reset, and the host has forgotten what it was asked.
    pub(crate) const fn abandon(&mut self) {
        (self.state, self.is_owed) = (State::Idle, false);
    }

    /// Whether the host has a request.
    pub(crate) const fn is_asked(&self) -> bool {
        matches!(self.state, State::Asked(_))
    }

    /// Takes the host's answer; returns whether there is one.
    pub(crate) fn poll(&mut self, memory: &impl Memory) -> Result<bool, Error> {
        let State::Asked(request) = self.state else { return Ok(false) };
        let index = read_index(memory, self.shadow + USED)?;
        if index == self.count.wrapping_sub(1) {
            return Ok(false);
        } else if index != self.count {
            return Err(Error::Failed(Failure::UsedIndex(index)));
        }
        let mut status = [0];
        memory.read(self.room + STATUS, &mut status)?;
        self.state = request.map_or(State::Idle, |of| State::Answered(of, status == [0]));
        Ok(true)
    }

    /// Has the host answer something, so that it interrupts the VM.
    pub(crate) fn nudge(&mut self, memory: &impl Memory) -> Result<(), Error> {
        self.ask(memory, Request { kind: Kind::Read, at: 0, blocks: 1 })?;
        self.state = State::Asked(None);
        Ok(())
    }

    /// Gives the host a request, of which the data is in place.
    fn ask(&mut self, memory: &impl Memory, request: Request) -> Result<(), Error> {
        let Request { kind, at, blocks } = request;
        let (header, data) = (self.room, self.room + BLOCK);
        let number: u128 = match kind {
            Kind::Read => 0,
            Kind::Write => 1,
            Kind::Flush => 4,
        };
        memory.write(
            header,
            &u128::to_le_bytes(u128::from(at.saturating_mul(SECTORS)) << 64 | number),
        )?;
        memory.write(header + STATUS, &[NO_STATUS])?;
        let writes = if kind == Kind::Read { WRITE } else { 0 };
        let second = if blocks == 0 { 2 } else { 1 };
        for (index, (address, bytes, flags, next)) in (0..).zip([
            (header, 16, NEXT, second),
            (data, blocks * BLOCK, NEXT | writes, 2),
            (header + STATUS, 1, WRITE, 0_u16),
        ]) {
            let raw = u128::from(next) << 112 | u128::from(flags) << 96;
            let raw = raw | u128::from(bytes) << 64 | u128::from(address);
            memory.write(self.shadow + 16 * index, &raw.to_le_bytes())?;
        }
        let slot = u64::from(self.count & self.size.wrapping_sub(1));
        memory.write(self.shadow + AVAILABLE + 4 + 2 * slot, &[0; 2])?;
        let count = self.count.wrapping_add(1);
        write_index(memory, self.shadow + AVAILABLE, count)?;
        (self.count, self.is_owed) = (count, true);
        self.state = State::Asked(Some(request));
        Ok(())
    }
}

/// The host's disk while one thing is done with it.
pub(crate) struct Host<'a, M> {
    pub(crate) backend: &'a mut Backend,
    pub(crate) memory: &'a M,
    /// Why it has to wait, if it is not for the host's answer.
    pub(crate) trouble: Option<Error>,
}

impl<M: Memory> Host<'_, M> {
    /// Goes on when the host has done `request`, with `data` if it is to write that.
    fn done(&mut self, request: Request, data: &[u8]) -> Result<(), Stop> {
        match self.backend.state {
            State::Answered(of, is_done) if of == request => {
                if !is_done {
                    self.backend.state = State::Idle;
                    return Err(Stop::Failed);
                }
                return Ok(());
            }
            State::Asked(_) => return Err(Stop::Wait),
            State::Begun(of) if of == request => {}
            State::Idle | State::Begun(_) | State::Answered(..) => {
                (self.backend.state, self.backend.moved) = (State::Begun(request), 0);
            }
        }
        if request.blocks > self.backend.blocks {
            return Err(Stop::Failed);
        }
        self.moves(data.len(), |memory, at, range| {
            memory.write(at, data.get(range).unwrap_or_default())
        })?;
        match self.backend.ask(self.memory, request) {
            Ok(()) => self.backend.moved = 0,
            Err(error) => self.trouble = Some(error),
        }
        Err(Stop::Wait)
    }

    /// Moves `bytes` bytes of data, page by page, from where it was left: `one` is given the address and the place in the data.
    fn moves(
        &mut self,
        bytes: usize,
        mut one: impl FnMut(&M, u64, Range<usize>) -> Result<(), Unreached>,
    ) -> Result<(), Stop> {
        while self.backend.moved < bytes {
            let moved = self.backend.moved;
            let range = moved..bytes.min(moved + 4096);
            let at = self.backend.room + BLOCK + u64::try_from(moved).unwrap_or(0);
            if let Err(unreached) = one(self.memory, at, range.clone()) {
                self.trouble = Some(unreached.into());
                return Err(Stop::Wait);
            }
            self.backend.moved = range.end;
        }
        Ok(())
    }
}

fn count(blocks: &[Block]) -> u64 {
    u64::try_from(blocks.len()).unwrap_or(u64::MAX)
}

impl<M: Memory> Storage for Host<'_, M> {
    fn read(&mut self, at: u64, into: &mut [Block]) -> Result<(), Stop> {
        self.done(Request { kind: Kind::Read, at, blocks: count(into) }, &[])?;
        let into = into.as_flattened_mut();
        // Once: what is checked is this copy.
        self.moves(into.len(), |memory, at, range| {
            memory.read(at, into.get_mut(range).unwrap_or_default())
        })?;
        self.backend.state = State::Idle;
        Ok(())
    }

    fn write(&mut self, at: u64, from: &[Block]) -> Result<(), Stop> {
        self.done(Request { kind: Kind::Write, at, blocks: count(from) }, from.as_flattened())?;
        self.backend.state = State::Idle;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stop> {
        if !self.backend.flushes {
            return Ok(());
        }
        self.done(Request { kind: Kind::Flush, at: 0, blocks: 0 }, &[])?;
        self.backend.state = State::Idle;
        Ok(())
    }
}
