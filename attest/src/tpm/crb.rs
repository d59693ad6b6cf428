//! The command-response buffer (PTP 1.05, 6.5.3).

use ept::list::List;

use super::command::{HEADER, reply_len};
use super::error::{Error, Step};
use super::registers::{Registers, page, wait};

/// Bits of the register that asks for a locality.
pub(super) const REQUEST_ACCESS: u32 = 1;
pub(super) const RELINQUISH: u32 = 1 << 1;

const REQUEST: u64 = 0x40;
const GET_READY: u32 = 1;
const GO_IDLE: u32 = 1 << 1;
const STATUS: u64 = 0x44;
const FAILED: u32 = 1;
const IDLE: u32 = 1 << 1;
const START: u64 = 0x4c;
/// Size and address of the command's buffer.
const COMMAND: (u64, u64) = (0x58, 0x5c);
/// Of the answer's.
const ANSWER: (u64, u64) = (0x64, 0x68);
/// Where buffers may begin, and a page ends.
const DATA: u64 = 0x80;
const PAGE: u64 = 1 << 12;
/// Where the registers are in memory: buffers are named by their addresses.
const BASE: u64 = 0xfed4_0000;

/// Whether `state`, read at `locality`, says that it is the active one.
pub(super) fn is_active(state: u32, locality: u8) -> bool {
    /// The established bit, which is as it is, does not count; all others that are reserved are 0.
    const ESTABLISHED: u32 = 1;
    const ASSIGNED: u32 = 1 << 1;
    const VALID: u32 = 1 << 7;
    state & !ESTABLISHED == VALID | ASSIGNED | u32::from(locality) << 2
}

/// Sends `command` at `locality`, and puts the answer into `reply`.
pub(super) fn transmit<R: Registers, const N: usize>(
    registers: &mut R,
    locality: u8,
    command: &[u8],
    reply: &mut List<u8, N>,
) -> Result<(), Error> {
    let page = page(locality);
    request(registers, page, GET_READY)?;
    wait(registers, Step::Ready, |registers| registers.read32(page + STATUS) & IDLE == 0)?;
    let done = exchange(registers, page, command, reply);
    // What was exchanged does not depend on how the TPM rests.
    let _ = request(registers, page, GO_IDLE);
    done
}

fn request<R: Registers>(registers: &mut R, page: u64, bit: u32) -> Result<(), Error> {
    registers.write32(page + REQUEST, bit);
    wait(registers, Step::Ready, |registers| registers.read32(page + REQUEST) & bit == 0)
}

/// Where one of the buffers begins among the registers, and its length. It may not leave the page of the locality;
/// some TPMs name that of locality 0, whoever asks.
fn buffer<R: Registers>(
    registers: &R,
    page: u64,
    (size, address): (u64, u64),
) -> Result<(u64, usize), Error> {
    let len = u64::from(registers.read32(page + size));
    let low = u64::from(registers.read32(page + address));
    let high = u64::from(registers.read32(page + address + 4));
    let address = high << 32 | low;
    let offset = address.checked_sub(BASE + page).or_else(|| address.checked_sub(BASE));
    let offset = offset.filter(|offset| (DATA..PAGE).contains(offset)).ok_or(Error::Buffer)?;
    let len = usize::try_from(len.min(PAGE - offset)).map_err(|_| Error::Buffer)?;
    Ok((page + offset, len))
}

fn exchange<R: Registers, const N: usize>(
    registers: &mut R,
    page: u64,
    command: &[u8],
    reply: &mut List<u8, N>,
) -> Result<(), Error> {
    let (at, len) = buffer(registers, page, COMMAND)?;
    if command.len() > len {
        return Err(Error::TooLong);
    }
    for (at, byte) in (at..).zip(command) {
        registers.write8(at, *byte);
    }
    registers.write32(page + START, 1);
    wait(registers, Step::Command, |registers| registers.read32(page + START) & 1 == 0)?;
    if registers.read32(page + STATUS) & FAILED != 0 {
        return Err(Error::Failed);
    }
    let (at, room) = buffer(registers, page, ANSWER)?;
    let room = room.min(N);
    let mut places = at..;
    let head = places.by_ref().take(HEADER.min(room));
    head.map(|at| registers.read8(at)).try_for_each(|byte| reply.push(byte))?;
    let len = reply_len(reply).filter(|len| (HEADER..=room).contains(len)).ok_or(Error::Reply)?;
    let body = places.take(len - HEADER);
    body.map(|at| registers.read8(at)).try_for_each(|byte| reply.push(byte))?;
    Ok(())
}
