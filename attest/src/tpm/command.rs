//! The commands (TPM 2.0 Library, parts 2 and 3), each made in one place and its answer read in one: numbers are
//! of the highest byte first.

use ept::list::List;

use super::error::Error;
use crate::bytes::{Reader, put};

/// Bytes of the header of a command or an answer.
pub(super) const HEADER: usize = 10;
/// Longest event that a TPM takes (`TPM2B_EVENT`).
pub const LONGEST_EVENT: usize = 1024;
/// Longest command: an event's.
const COMMAND: usize = HEADER + 19 + LONGEST_EVENT;
/// Longest answer that the visor reads: digests of more banks than there are algorithms.
const REPLY: usize = 1024;

/// Banks there may be: the TCG has given numbers to this many algorithms.
pub const BANKS: usize = 8;

/// A bank of PCRs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bank {
    /// The TCG's number of its algorithm.
    pub algorithm: u16,
    /// Bytes of its digests.
    pub size: u16,
}

impl Bank {
    /// The bank of this algorithm; `None` for one that the visor does not know (TCG Algorithm Registry, 1.34).
    #[must_use]
    pub const fn of(algorithm: u16) -> Option<Self> {
        let size = match algorithm {
            0x04 => 20,
            0x0b | 0x12 | 0x27 => 32,
            0x0c | 0x28 => 48,
            0x0d | 0x29 => 64,
            _ => return None,
        };
        Some(Self { algorithm, size })
    }
}

/// The banks that have a PCR.
pub type Banks = List<Bank, BANKS>;

/// A digest of a bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The bank.
    pub bank: Bank,
    bytes: [u8; 64],
}

impl Digest {
    const NONE: Self = Self { bank: Bank { algorithm: 0, size: 0 }, bytes: [0; 64] };

    /// Takes the digest of `bank` off the front of `from`.
    fn read(from: &mut Reader<'_>, bank: Bank) -> Option<Self> {
        let taken = from.take(bank.size.into())?;
        let mut bytes = [0; 64];
        bytes.get_mut(..taken.len())?.copy_from_slice(taken);
        Some(Self { bank, bytes })
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.bank.size.into()).unwrap_or_default()
    }
}

/// The digests of an event, one for each bank, in the order of the banks.
pub type Digests = List<Digest, BANKS>;

/// Tags: a command without and with an authorization.
const PLAIN: u16 = 0x8001;
const AUTHORIZED: u16 = 0x8002;

/// A command as it is sent.
pub(super) type Command = List<u8, COMMAND>;
/// An answer as it came.
pub(super) type Reply = List<u8, REPLY>;

/// Makes `command` the one with this tag, code, and parts.
fn make(command: &mut Command, (tag, code): (u16, u32), parts: &[&[u8]]) -> Result<(), Error> {
    let len = HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
    let len = u32::try_from(len).map_err(|_| Error::TooLong)?;
    command.clear();
    put(command, &tag.to_be_bytes())?;
    put(command, &len.to_be_bytes())?;
    put(command, &code.to_be_bytes())?;
    parts.iter().try_for_each(|part| Ok(put(command, part)?))
}

/// `TPM2_GetCapability` of `TPM_CAP_PCRS`.
pub(super) fn banks(command: &mut Command) -> Result<(), Error> {
    let words = [5_u32, 0, 1].map(u32::to_be_bytes);
    make(command, (PLAIN, 0x17a), &[words.as_flattened()])
}

/// `TPM2_GetRandom`.
pub(super) fn random(command: &mut Command, bytes: usize) -> Result<(), Error> {
    let bytes = u16::try_from(bytes).map_err(|_| Error::TooLong)?;
    make(command, (PLAIN, 0x17b), &[&bytes.to_be_bytes()])
}

/// `TPM2_PCR_Event`, authorized by the empty password.
pub(super) fn event(command: &mut Command, pcr: u8, event: &[u8]) -> Result<(), Error> {
    const PASSWORD: u32 = 0x4000_0009;
    let len = u16::try_from(event.len()).map_err(|_| Error::TooLong)?;
    if event.len() > LONGEST_EVENT {
        return Err(Error::TooLong);
    }
    // PCR, bytes of the authorization; in it, no nonce, no attributes, no password.
    let words = [u32::from(pcr), 9, PASSWORD].map(u32::to_be_bytes);
    let parts = [words.as_flattened(), &[0; 5], &len.to_be_bytes(), event];
    make(command, (AUTHORIZED, 0x13c), &parts)
}

/// `TPM2_PCR_Read` of one PCR in one bank.
pub(super) fn value(command: &mut Command, pcr: u8, bank: Bank) -> Result<(), Error> {
    let mut bits = [0; 3];
    let byte = bits.get_mut(usize::from(pcr / 8)).ok_or(Error::TooLong)?;
    *byte = 1 << (pcr % 8);
    let bank = bank.algorithm.to_be_bytes();
    make(command, (PLAIN, 0x17e), &[&1_u32.to_be_bytes(), &bank, &[3], &bits])
}

/// Whether `reply` says that `command` was done.
pub(super) fn check(command: &[u8], reply: &[u8]) -> Result<(), Error> {
    /// What a TPM 1.2 answers to commands that it does not know.
    const OLD: u16 = 0x00c4;
    let mut rest = Reader(reply);
    let (tag, len, code) = (rest.half(), rest.word(), rest.word());
    let (Some(tag), Some(_), Some(code)) = (tag, len, code) else { return Err(Error::Reply) };
    if reply_len(reply) != Some(reply.len()) {
        return Err(Error::Reply);
    }
    match code {
        0 if command.starts_with(&tag.to_be_bytes()) => Ok(()),
        1.. if matches!(tag, PLAIN | OLD) => Err(Error::Refused(code)),
        _ => Err(Error::Reply),
    }
}

/// The length that the header of an answer says.
pub(super) fn reply_len(reply: &[u8]) -> Option<usize> {
    let len = reply.get(2..6)?.first_chunk().copied().map(u32::from_be_bytes)?;
    usize::try_from(len).ok()
}

fn body(reply: &[u8]) -> Reader<'_> {
    Reader(reply.get(HEADER..).unwrap_or_default())
}

/// The banks with `pcr` in the answer to [`banks`].
pub(super) fn read_banks(reply: &[u8], pcr: u8) -> Result<Banks, Error> {
    const PCRS: u32 = 5;
    let mut rest = body(reply);
    let (more, kind) = (rest.byte(), rest.word());
    if (more, kind) != (Some(0), Some(PCRS)) {
        return Err(Error::Reply);
    }
    let mut found = Banks::new(Bank::default());
    for _ in 0..rest.word().ok_or(Error::Reply)? {
        let algorithm = rest.half().ok_or(Error::Reply)?;
        let size = rest.byte().ok_or(Error::Reply)?;
        let bits = rest.take(size.into()).ok_or(Error::Reply)?;
        let byte = bits.get(usize::from(pcr / 8)).copied().unwrap_or_default();
        if byte >> (pcr % 8) & 1 == 0 {
            continue;
        }
        let bank = Bank::of(algorithm).filter(|bank| !found.contains(bank)).ok_or(Error::Banks)?;
        found.push(bank).map_err(|_| Error::Banks)?;
    }
    if found.is_empty() { Err(Error::Banks) } else { end(rest, found) }
}

/// The bytes in the answer to [`random`].
pub(super) fn read_random(reply: &[u8], into: &mut [u8]) -> Result<(), Error> {
    let mut rest = body(reply);
    let len = rest.half().map(usize::from).filter(|len| *len == into.len()).ok_or(Error::Reply)?;
    let bytes = rest.take(len).ok_or(Error::Reply)?;
    end(rest, ())?;
    into.copy_from_slice(bytes);
    Ok(())
}

/// The digests for `banks` in the answer to [`event`]: a TPM may tell those of banks that do not have
/// the PCR, too.
pub(super) fn read_event(reply: &[u8], banks: &Banks) -> Result<Digests, Error> {
    let mut rest = body(reply);
    let len = rest.word().and_then(|len| usize::try_from(len).ok()).ok_or(Error::Reply)?;
    // What follows is the answer of the authorization.
    let mut rest = Reader(rest.take(len).ok_or(Error::Reply)?);
    let mut told = Digests::new(Digest::NONE);
    for _ in 0..rest.word().ok_or(Error::Reply)? {
        let bank = rest.half().and_then(Bank::of).ok_or(Error::Reply)?;
        let digest = Digest::read(&mut rest, bank).ok_or(Error::Reply)?;
        if told.iter().any(|other| other.bank == bank) {
            return Err(Error::Reply);
        }
        told.push(digest).map_err(|_| Error::Reply)?;
    }
    end(rest, ())?;
    let mut digests = Digests::new(Digest::NONE);
    for bank in banks.iter() {
        let digest = told.iter().find(|digest| digest.bank == *bank).ok_or(Error::Reply)?;
        digests.push(*digest)?;
    }
    Ok(digests)
}

/// The value in the answer to [`value`].
pub(super) fn read_value(reply: &[u8], bank: Bank) -> Result<Digest, Error> {
    let mut rest = body(reply);
    // The counter of changes; the selection, which is the one that was asked for; one digest.
    let found = rest.word().and_then(|_| {
        let one = (rest.word()?, rest.half()?, rest.byte()?) == (1, bank.algorithm, 3);
        let _ = rest.take(3).filter(|_| one)?;
        let one = (rest.word()?, rest.half()?) == (1, bank.size);
        Digest::read(&mut rest, bank).filter(|_| one)
    });
    end(rest, found.ok_or(Error::Reply)?)
}

/// `value`, if nothing is left.
fn end<T>(rest: Reader<'_>, value: T) -> Result<T, Error> {
    if rest.0.is_empty() { Ok(value) } else { Err(Error::Reply) }
}
