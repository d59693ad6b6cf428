//! A debugger at QEMU's stub (GDB's manual, "Remote Serial Protocol"). The VM stands still meanwhile.

use crate::monitor::connected;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// GDB's numbers of registers on this processor.
pub(crate) const R12: u8 = 12;
pub(crate) const RIP: u8 = 16;

/// A session; the VM goes on when it is dropped.
pub(crate) struct Debugger(UnixStream);

impl Debugger {
    /// At the socket `path`.
    pub(crate) fn open(path: &str) -> Result<Self, String> {
        let mut debugger = Self(connected(path)?);
        let _ = debugger.ask("?")?;
        // The VM's stop may be told of by a packet of its own.
        while debugger.awaited(Duration::from_millis(100))?.is_some() {}
        Ok(debugger)
    }

    /// Sends a packet; its answer.
    pub(crate) fn ask(&mut self, packet: &str) -> Result<String, String> {
        self.send(packet)?;
        self.answer()?.ok_or_else(|| format!("the debugger has no answer to {packet}"))
    }

    fn send(&mut self, packet: &str) -> Result<(), String> {
        let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
        let packet = format!("${packet}#{sum:02x}");
        self.0.write_all(packet.as_bytes()).map_err(|why| format!("debugger: {why}"))
    }

    /// The next packet; `None` if it does not come in time.
    fn answer(&mut self) -> Result<Option<String>, String> {
        let (mut text, mut byte) = (Vec::new(), [0]);
        let mut left = None;
        while left != Some(0) {
            match self.0.read(&mut byte) {
                Ok(0) => return Err("the debugger's stub is gone".to_owned()),
                Ok(_) => {}
                Err(_) => return Ok(None),
            }
            match (left, byte[0]) {
                (Some(count), _) => left = Some(count - 1),
                (None, b'#') => left = Some(2),
                (None, b'$') => text.clear(),
                (None, byte) => text.push(byte),
            }
        }
        let _ = self.0.write_all(b"+");
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }

    /// As [`Self::answer`], for `time` only.
    fn awaited(&mut self, time: Duration) -> Result<Option<String>, String> {
        let failed = |why: std::io::Error| format!("debugger: {why}");
        let before = self.0.read_timeout().map_err(failed)?;
        self.0.set_read_timeout(Some(time)).map_err(failed)?;
        let answer = self.answer()?;
        self.0.set_read_timeout(before).map_err(failed)?;
        Ok(answer)
    }

    /// All registers, as the stub sends them.
    pub(crate) fn registers(&mut self) -> Result<Vec<u8>, String> {
        Ok(bytes(&self.ask("g")?))
    }

    /// The next instruction's address.
    pub(crate) fn rip(&mut self) -> Result<u64, String> {
        let all = self.registers()?;
        let at = usize::from(RIP) * 8;
        let word = all.get(at..at + 8).and_then(|word| word.try_into().ok());
        word.map(u64::from_le_bytes).ok_or_else(|| "too few registers".to_owned())
    }

    /// Sets a register; the stub must say it did.
    pub(crate) fn set(&mut self, register: u8, value: u64) -> Result<(), String> {
        let (mut all, at) = (self.registers()?, usize::from(register) * 8);
        all.get_mut(at..at + 8).ok_or("too few registers")?.copy_from_slice(&value.to_le_bytes());
        match self.ask(&format!("G{}", hex(&all)))?.as_str() {
            "OK" => Ok(()),
            other => Err(format!("a register is not set: {other}")),
        }
    }

    /// Memory at an address of the program's.
    pub(crate) fn read(&mut self, at: u64, count: usize) -> Result<Vec<u8>, String> {
        Ok(bytes(&self.ask(&format!("m{at:x},{count:x}"))?))
    }

    /// Has the VM go on by `packet`; whether it stops again within `time`. If not, it is stopped by force.
    pub(crate) fn resume(&mut self, packet: &str, time: Duration) -> Result<bool, String> {
        self.send(packet)?;
        let stops = self.awaited(time)?;
        if stops.is_none() {
            self.0.write_all(&[3]).map_err(|why| format!("debugger: {why}"))?;
            let _ = self.answer()?;
        }
        Ok(stops.is_some_and(|how| how.starts_with("T05")))
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        let _ = self.ask("D");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = (0..hex.len() / 2).map(|index| hex.get(2 * index..2 * index + 2));
    pairs.map(|pair| pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).unwrap_or(0)).collect()
}
