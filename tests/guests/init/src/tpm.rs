//! The host's own TPM, at locality 0: it works, tells what the visor measured, and does not extend that. And root's
//! way around the kernel: the registers of locality 2.

use crate::{devmem, edu};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

/// The visor's register.
const PCR: u32 = 19;
/// The registers of a measured launch, and the visor's.
const SHOWN: [u32; 3] = [17, 18, PCR];
/// The TCG's numbers of SHA-1, SHA-256, SHA-384, SHA-512.
const ALGORITHMS: [u16; 4] = [0x4, 0xb, 0xc, 0xd];

/// A command with this tag, code and body.
fn command(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(10 + body.len()).unwrap_or(0);
    [&tag.to_be_bytes()[..], &len.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

/// Reads register `pcr`, one of those from 16 to 23, in the bank of `algorithm`.
fn read_pcr(pcr: u32, algorithm: u16) -> Vec<u8> {
    let selection = [3, 0, 0, 1 << (pcr - 16)];
    let body = [&1_u32.to_be_bytes()[..], &algorithm.to_be_bytes(), &selection].concat();
    command(0x8001, 0x17e, &body)
}

/// Extends the register, in the bank of SHA-256, by sevens.
fn extend() -> Vec<u8> {
    let password = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
    let body = [&PCR.to_be_bytes()[..], &password, &[0, 0, 0, 1, 0, 0xb], &[7; 32]].concat();
    command(0x8002, 0x182, &body)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The response code of an answer.
fn code(answer: &[u8]) -> u32 {
    answer
        .get(6..10)
        .map_or(u32::MAX, |code| u32::from_be_bytes(code.try_into().unwrap_or_default()))
}

struct Tpm(File);

impl Tpm {
    fn open() -> Result<Self, String> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/tpm0");
        file.map(Self).map_err(|why| format!("/dev/tpm0: {why}"))
    }

    fn ask(&mut self, command: &[u8]) -> Result<Vec<u8>, String> {
        self.0.write_all(command).map_err(|why| format!("cannot send: {why}"))?;
        let mut answer = vec![0; 4096];
        let len = self.0.read(&mut answer).map_err(|why| format!("no answer: {why}"))?;
        answer.truncate(len);
        Ok(answer)
    }

    /// Register `pcr` in the bank of `algorithm`, if there is one.
    fn pcr(&mut self, pcr: u32, algorithm: u16) -> Result<Option<Vec<u8>>, String> {
        let answer = self.ask(&read_pcr(pcr, algorithm))?;
        // Header, counter, selection, count, length.
        let value = answer.get(30..).filter(|value| code(&answer) == 0 && !value.is_empty());
        Ok(value.map(<[u8]>::to_vec))
    }
}

/// Says what the host sees of its TPM.
pub(crate) fn look() -> Result<(), String> {
    let mut tpm = Tpm::open()?;
    let random = tpm.ask(&command(0x8001, 0x17b, &[0, 16]))?;
    println!("init: the TPM answers {} bytes, code {:#x}", random.len(), code(&random));
    let mut before = Vec::new();
    for (pcr, algorithm) in SHOWN.into_iter().flat_map(|pcr| ALGORITHMS.map(|bank| (pcr, bank))) {
        if let Some(value) = tpm.pcr(pcr, algorithm)? {
            println!("init: PCR {pcr} {algorithm} {}", hex(&value));
            before.push((pcr, algorithm, value));
        }
    }
    let refused = code(&tpm.ask(&extend())?);
    println!("init: extends PCR 19 at locality 0: code {refused:#x}");
    for (pcr, algorithm, value) in before {
        if tpm.pcr(pcr, algorithm)? != Some(value) {
            println!("init: PCR {pcr} has changed in bank {algorithm}");
        }
    }
    log()
}

/// Prints the log that the visor without VMX has left in its memory.
fn log() -> Result<(), String> {
    let (_, end) = edu::reservation().ok_or("no reservation in /proc/iomem")?;
    let page = devmem::read_bytes(end - 8192, 4096)?;
    let (head, rest) = page.split_at(16);
    let len =
        head.get(8..12).map_or(0, |len| u32::from_le_bytes(len.try_into().unwrap_or_default()));
    let log = usize::try_from(len).ok().and_then(|len| rest.get(..len));
    let log = log.filter(|_| head.starts_with(b"VISRTLOG")).ok_or("no log")?;
    for line in log.chunks(64) {
        println!("init: log {}", hex(line));
    }
    println!("init: log of {} bytes", log.len());
    Ok(())
}

/// Registers of locality 2.
const LOCALITY: u64 = 0xfed4_2000;
const STATUS: u64 = 0x18;
const DATA: u64 = 0x24;

struct Registers(*mut u8);

impl Registers {
    fn read(&self, at: u64) -> u8 {
        // SAFETY: within the page that is mapped.
        unsafe { self.0.byte_add(usize::try_from(at).unwrap_or(0)).read_volatile() }
    }

    fn write(&self, at: u64, value: u8) {
        // SAFETY: as above; what the TPM does then is what is wanted of it.
        unsafe { self.0.byte_add(usize::try_from(at).unwrap_or(0)).write_volatile(value) }
    }

    fn wait(&self, at: u64, bits: u8) -> Result<(), String> {
        let start = Instant::now();
        while self.read(at) & bits != bits {
            if start.elapsed() > Duration::from_secs(5) {
                return Err(format!("the TPM stays at {:#x} at {at:#x}", self.read(at)));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Extends the visor's register by the registers of locality 2.
pub(crate) fn attack() -> Result<(), String> {
    let registers = Registers(devmem::map_page(LOCALITY)?.cast());
    registers.write(0, 1 << 1);
    registers.wait(0, 1 << 5)?;
    registers.write(STATUS, 1 << 6);
    registers.wait(STATUS, 1 << 6)?;
    for byte in extend() {
        registers.write(DATA, byte);
    }
    registers.write(STATUS, 1 << 5);
    registers.wait(STATUS, 1 << 7 | 1 << 4)?;
    let answer: Vec<u8> = (0..10).map(|_| registers.read(DATA)).collect();
    registers.write(STATUS, 1 << 6);
    registers.write(0, 1 << 5);
    println!("init: extends PCR 19 at locality 2: code {:#x}", code(&answer));
    Ok(())
}
