//! A TPM at the end of a serial line, in the place of `src/tis.rs`. For tests only: no emulator has both VMX and a TPM.
//!
//! It has the registers of a command-response buffer (PTP 1.05, 6.5.3) that is never busy. Starting a command sends it
//! over COM2 as it is, and waits for the answer. Localities are chosen as TPMs in software have it, by a command.
//! Whoever has the line, such as the host, can do the same: nothing is kept from it.

use attest::tpm::Registers;
use spin::Mutex;

use crate::serial::Uart;
use crate::tpm::{BASE, Lack};
use crate::{apic, cpu, cpu::size};

/// COM2, 115,200 baud.
const LINE: (u16, u32) = (0x2f8, 115_200);
/// How often the line is looked at for a byte.
const PATIENCE: u32 = 1 << 28;

/// Registers of each locality (PTP 1.05, table 26).
const LOCALITY_STATE: u64 = 0x00;
const LOCALITY_CONTROL: u64 = 0x08;
const INTERFACE: u64 = 0x30;
const STATUS: u64 = 0x44;
const START: u64 = 0x4c;
const COMMAND_SIZE: u64 = 0x58;
const COMMAND_ADDRESS: u64 = 0x5c;
const ANSWER_SIZE: u64 = 0x64;
const ANSWER_ADDRESS: u64 = 0x68;
const DATA: u64 = 0x80;
/// Bytes for a command, and for its answer in its place: a page's rest.
const ROOM: u32 = 0xf80;
/// The command-response buffer's number.
const CRB: u32 = 1;
/// Bytes of a command or an answer up to its parameters; its length is from the third one on.
const HEADER: usize = 10;

static BUFFER: Mutex<[u8; 0xf80]> = Mutex::new([0; 0xf80]);

/// The registers.
#[derive(Debug)]
pub(crate) struct Tis {
    /// The one that is in use.
    locality: Option<u8>,
    /// The last command got no answer.
    failed: bool,
    /// Commands so far, their bytes with those of the answers, and ticks of the TSC for which the line had both.
    commands: u64,
    bytes: usize,
    ticks: u64,
}

/// The TPM, which nothing tells of.
#[expect(clippy::unnecessary_wraps, reason = "as the real one")]
pub(crate) fn find(_: Option<&[u8]>) -> Result<Tis, Lack> {
    log::warn!("TEST BUILD WITH A TPM ON COM2: whoever has that line can measure what it likes");
    Uart(LINE.0).program(LINE.1);
    Ok(Tis { locality: None, failed: false, commands: 0, bytes: 0, ticks: 0 })
}

/// The locality that a register is of, and which of its registers it is.
const fn place(offset: u64) -> (u64, u64) {
    (offset >> 12, offset & 0xfff)
}

impl Registers for Tis {
    fn read8(&self, offset: u64) -> u8 {
        let at = place(offset).1.checked_sub(DATA).map(size);
        at.and_then(|at| BUFFER.lock().get(at).copied()).unwrap_or(0xff)
    }

    fn read32(&self, offset: u64) -> u32 {
        const VALID: u32 = 1 << 7;
        const ASSIGNED: u32 = 1 << 1;
        let (locality, register) = place(offset);
        match register {
            LOCALITY_STATE if self.locality.map(u64::from) == Some(locality) => {
                VALID | ASSIGNED | u32::from(self.locality.unwrap_or(0)) << 2
            }
            LOCALITY_STATE => VALID,
            INTERFACE => CRB,
            STATUS => self.failed.into(),
            COMMAND_SIZE | ANSWER_SIZE => ROOM,
            // Below 4 GiB.
            COMMAND_ADDRESS | ANSWER_ADDRESS => {
                u32::try_from(BASE + (locality << 12) + DATA).unwrap_or(0)
            }
            _ => 0,
        }
    }

    fn write8(&mut self, offset: u64, value: u8) {
        let mut buffer = BUFFER.lock();
        let at = place(offset).1.checked_sub(DATA).map(size);
        if let Some(byte) = at.and_then(|at| buffer.get_mut(at)) {
            *byte = value;
        }
    }

    fn write32(&mut self, offset: u64, value: u32) {
        const REQUEST: u32 = 1;
        const RELINQUISH: u32 = 2;
        let (locality, register) = place(offset);
        match (register, value) {
            (LOCALITY_CONTROL, REQUEST) => self.locality = u8::try_from(locality).ok(),
            (LOCALITY_CONTROL, RELINQUISH) => {
                let begin = cpu::tsc();
                self.locality = None;
                // Who sends commands next is at locality 0.
                let _ = choose(0);
                self.ticks += cpu::tsc() - begin;
                let Self { commands, bytes, ticks, .. } = self;
                log::debug!("COM2: {commands} commands, {bytes} bytes, {ticks} ticks");
            }
            (START, _) => {
                let begin = cpu::tsc();
                let chosen = self.locality.and_then(choose);
                let done = chosen.and_then(|()| exchange(&mut *BUFFER.lock()));
                self.failed = done.is_none();
                self.commands += 1;
                self.bytes += done.unwrap_or(0);
                self.ticks += cpu::tsc() - begin;
            }
            _ => {}
        }
    }

    fn pause(&self) {
        apic::wait(1);
    }
}

/// Has the TPM take commands as from `locality`: a command of TPMs in software (`TPM2_CC_SetLocality` of libtpms).
fn choose(locality: u8) -> Option<()> {
    let mut message = [0x80, 1, 0, 0, 0, 11, 0x20, 0, 0x10, 0, locality];
    let _ = exchange(&mut message)?;
    message.get(6..HEADER).filter(|code| code.iter().all(|byte| *byte == 0)).map(drop)
}

/// Sends the command in `buffer`, and puts the answer in its place; how long both are, or `None` if there is no answer, or
/// no room for it.
fn exchange(buffer: &mut [u8]) -> Option<usize> {
    let line = Uart(LINE.0);
    let len = length(buffer)?;
    buffer.get(..len)?.iter().for_each(|byte| line.send(*byte));
    let mut taken = HEADER;
    for at in 0.. {
        if at == HEADER {
            taken = length(buffer)?;
        }
        if at == taken {
            break;
        }
        *buffer.get_mut(at)? = receive(&line)?;
    }
    Some(len + taken)
}

/// The length of what is in `buffer`, which says so.
fn length(buffer: &[u8]) -> Option<usize> {
    let len = u32::from_be_bytes(*buffer.get(2..)?.first_chunk()?);
    usize::try_from(len).ok().filter(|len| (HEADER..=buffer.len()).contains(len))
}

#[expect(unsafe_code, reason = "a UART's ports")]
fn receive(line: &Uart) -> Option<u8> {
    /// Of the line status: there is a byte.
    const READY: u8 = 1;
    for _ in 0..PATIENCE {
        // SAFETY: reading the line status has no effect on memory.
        if unsafe { line.register(5).read() } & READY != 0 {
            // SAFETY: reading a received byte has no effect on memory.
            return Some(unsafe { line.register(0).read() });
        }
    }
    None
}
