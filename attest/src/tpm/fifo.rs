//! The FIFO interface (PTP 1.05, 6.5.2 and 6.5.3; TIS 1.3).

use ept::list::List;

use super::command::{HEADER, reply_len};
use super::error::{Error, Step};
use super::registers::{FIFO_DATA, FIFO_STATUS, Registers, page, wait};
use crate::bytes::put;

/// Bits of the status register.
const VALID: u32 = 1 << 7;
const READY: u32 = 1 << 6;
const GO: u8 = 1 << 5;
const AVAILABLE: u32 = 1 << 4;
const EXPECTS: u32 = 1 << 3;
const REPEAT: u8 = 1 << 1;
/// How often a reply is asked for again that came badly.
const REPEATS: u32 = 3;

struct Fifo<'r, R> {
    registers: &'r mut R,
    page: u64,
}

/// Sends `command` at `locality`, and puts the answer into `reply`.
pub(super) fn transmit<R: Registers, const N: usize>(
    registers: &mut R,
    locality: u8,
    command: &[u8],
    reply: &mut List<u8, N>,
) -> Result<(), Error> {
    let mut fifo = Fifo { registers, page: page(locality) };
    fifo.set(1 << 6);
    fifo.wait(Step::Ready, READY, READY)?;
    let done = fifo.send(command).and_then(|()| fifo.receive(reply));
    // Ends the answer, or gives up a command that has not ended.
    fifo.set(1 << 6);
    done
}

impl<R: Registers> Fifo<'_, R> {
    fn status(&self) -> u32 {
        self.registers.read32(self.page + FIFO_STATUS)
    }

    fn set(&mut self, bit: u8) {
        self.registers.write8(self.page + FIFO_STATUS, bit);
    }

    /// Waits until the bits of `mask` are `bits`.
    fn wait(&self, step: Step, mask: u32, bits: u32) -> Result<(), Error> {
        let at = self.page + FIFO_STATUS;
        wait(self.registers, step, |registers| registers.read32(at) & mask == bits)
    }

    /// How many bytes can be moved now: at least one.
    fn burst(&self) -> Result<usize, Error> {
        let at = self.page + FIFO_STATUS;
        wait(self.registers, Step::Bytes, |registers| count(registers.read32(at)) > 0)?;
        Ok(usize::from(count(self.status())).max(1))
    }

    fn send(&mut self, command: &[u8]) -> Result<(), Error> {
        let (last, first) = command.split_last().ok_or(Error::TooLong)?;
        self.write(first)?;
        self.wait(Step::Bytes, VALID | EXPECTS, VALID | EXPECTS)?;
        self.write(&[*last])?;
        self.wait(Step::Bytes, VALID | EXPECTS, VALID)?;
        self.set(GO);
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(self.burst()?.min(bytes.len()));
            now.iter().for_each(|byte| self.registers.write8(self.page + FIFO_DATA, *byte));
            bytes = rest;
        }
        Ok(())
    }

    fn receive<const N: usize>(&mut self, reply: &mut List<u8, N>) -> Result<(), Error> {
        self.wait(Step::Command, VALID | AVAILABLE, VALID | AVAILABLE)?;
        let mut left = REPEATS;
        loop {
            reply.clear();
            match self.collect(reply) {
                Err(Error::Reply) if left > 0 => {
                    left -= 1;
                    self.set(REPEAT);
                }
                done => return done,
            }
        }
    }

    /// Takes an answer, no more and no less.
    fn collect<const N: usize>(&mut self, reply: &mut List<u8, N>) -> Result<(), Error> {
        self.read(reply, HEADER)?;
        let len = reply_len(reply).filter(|len| (HEADER..=N).contains(len)).ok_or(Error::Reply)?;
        self.read(reply, len - HEADER)?;
        self.wait(Step::Bytes, VALID, VALID)?;
        if self.status() & AVAILABLE == 0 { Ok(()) } else { Err(Error::Reply) }
    }

    fn read<const N: usize>(
        &mut self,
        reply: &mut List<u8, N>,
        mut len: usize,
    ) -> Result<(), Error> {
        while len > 0 {
            let ready = self.wait(Step::Bytes, VALID | AVAILABLE, VALID | AVAILABLE);
            ready.map_err(|_| Error::Reply)?;
            let now = self.burst()?.min(len);
            for _ in 0..now {
                put(reply, &[self.registers.read8(self.page + FIFO_DATA)])?;
            }
            len -= now;
        }
        Ok(())
    }
}

/// The burst count of a status.
fn count(status: u32) -> u16 {
    let [_, low, high, _] = status.to_le_bytes();
    u16::from_le_bytes([low, high])
}
