//! What the visor measures of itself: three events in PCR 19, which only locality 2 and above can extend.
//! `docs/measurements.md` has their form for those who verify.

use core::fmt::{self, Write};

use ept::list::List;
use sha2::{Digest as _, Sha256};

use crate::bytes::put;
use crate::log::Log;
use crate::tpm::{Banks, Digest, Error, LONGEST_EVENT, Registers, Tpm};

/// The register of what was launched after the measured launch.
pub const PCR: u8 = 19;
/// The TCG's number of SHA-256, in whose bank tenants have registers quoted.
const SHA256: u16 = 0xb;
/// The locality of what is launched by a measured launch, which the host cannot use.
pub const LOCALITY: u8 = 2;

/// Identifiers of the events.
const CONFIGURATION: u32 = 0x5653_0001;
const IOMMU: u32 = 0x5653_0002;
const KEY: u32 = 0x5653_0003;
/// Bytes of an event before its data: its identifier, and their length.
const HEAD: usize = 8;

/// How the visor was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// By a measured launch.
    Txt,
    /// By whatever was there.
    Plain,
}

/// What decides what the visor does.
#[derive(Clone, Copy, Debug)]
pub struct Configuration<'a> {
    /// Its version.
    pub version: &'a str,
    /// How it was started.
    pub launch: Launch,
    /// Whether it is the build for tests that does without VMX, so that nothing is protected from the host; and the one
    /// whose TPM is not the machine's.
    pub for_tests: [bool; 2],
    /// Its command line as the boot loader gave it.
    pub command_line: &'a [u8],
    /// Whether tickets are taken in clear.
    pub dev_tickets: bool,
    /// Whether VMs without a ticket may run.
    pub unprotected_vms: bool,
}

/// Something to be measured: a `TCG_PCClientTaggedEvent`.
#[derive(Clone, Debug)]
pub struct Event {
    bytes: List<u8, LONGEST_EVENT>,
}

impl Write for Event {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

impl Event {
    /// An event that holds nothing yet.
    #[must_use]
    pub const fn empty() -> Self {
        Self { bytes: List::new(0) }
    }

    /// Makes it the one with this identifier, and no data.
    fn begin(&mut self, id: u32) -> Result<(), Error> {
        self.bytes.clear();
        Ok([id, 0].iter().try_for_each(|word| put(&mut self.bytes, &word.to_le_bytes()))?)
    }

    /// Appends to its data, of which the length precedes them.
    fn put(&mut self, data: &[u8]) -> Result<(), Error> {
        put(&mut self.bytes, data)?;
        let len = u32::try_from(self.bytes.len().saturating_sub(HEAD)).unwrap_or(u32::MAX);
        let place = self.bytes.get_mut(4..HEAD).ok_or(Error::TooLong)?;
        place.copy_from_slice(&len.to_le_bytes());
        Ok(())
    }

    /// The configuration, as text. A command line for which there is no room is in it by its digest.
    ///
    /// # Errors
    /// [`Error::TooLong`] for a version of hundreds of bytes.
    pub fn configuration(&mut self, of: &Configuration<'_>) -> Result<&Self, Error> {
        self.begin(CONFIGURATION)?;
        if self.configure(of, Line::Whole).is_err() {
            self.begin(CONFIGURATION)?;
            self.configure(of, Line::Digest).map_err(|_| Error::TooLong)?;
        }
        Ok(self)
    }

    fn configure(&mut self, of: &Configuration<'_>, line: Line) -> fmt::Result {
        let launch = match of.launch {
            Launch::Txt => "txt",
            Launch::Plain => "plain",
        };
        let dev_tickets = if of.dev_tickets { "yes" } else { "no" };
        let unprotected_vms = if of.unprotected_vms { "run" } else { "refuse" };
        write!(self, "format=1\nvisor={}\nlaunch={launch}\n", of.version)?;
        let lines = ["vmx=no\n", "tpm=serial\n"].into_iter().zip(of.for_tests);
        lines.filter(|line| line.1).try_for_each(|line| self.write_str(line.0))?;
        match line {
            Line::Whole => writeln!(self, "command-line={}", of.command_line.escape_ascii())?,
            Line::Digest => {
                self.write_str("command-line-sha256=")?;
                let digest = Sha256::digest(of.command_line);
                digest.iter().try_for_each(|byte| write!(self, "{byte:02x}"))?;
                self.write_str("\n")?;
            }
        }
        write!(self, "dev-tickets={dev_tickets}\nunprotected-vms={unprotected_vms}\n")
    }

    /// What keeps devices from memory, in a word, and by how many `units`, as text.
    ///
    /// # Errors
    /// [`Error::TooLong`] for a word of a thousand letters.
    pub fn iommu(&mut self, state: &str, units: usize) -> Result<&Self, Error> {
        self.begin(IOMMU)?;
        let written = write!(self, "iommu={state}\nunits={units}\n");
        written.map_err(|_| Error::TooLong)?;
        Ok(self)
    }

    /// The visor's public keys: X25519, then Ed25519.
    ///
    /// # Errors
    /// None: there is room.
    pub fn key(&mut self, public: &[u8; 64]) -> Result<&Self, Error> {
        self.begin(KEY)?;
        self.put(public)?;
        Ok(self)
    }
}

/// How the command line is told.
#[derive(Clone, Copy)]
enum Line {
    Whole,
    Digest,
}

/// What a register that a measured launch resets held before the first event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// All ones: since the machine's reset there was no measured launch.
    Ones,
    /// Zeros: there was, and nothing has extended it since.
    Zeros,
    /// Something has extended it: whoever verifies needs to know by what.
    Extended,
}

impl Before {
    fn of(value: &Digest) -> Self {
        let is_all = |wanted: u8| value.bytes().iter().all(|byte| *byte == wanted);
        if is_all(0xff) {
            Self::Ones
        } else if is_all(0) {
            Self::Zeros
        } else {
            Self::Extended
        }
    }
}

/// A TPM that measures, at its locality, and what it measures into a log.
#[derive(Debug)]
pub struct Recorder<'t, R> {
    tpm: &'t mut Tpm<R>,
    log: &'t mut Log,
    banks: Banks,
}

impl<'t, R: Registers> Recorder<'t, R> {
    /// Claims the locality of `tpm`, and begins `log` if it has the register in a bank that is known.
    ///
    /// # Errors
    /// What the TPM fails by. The locality is given up then, if the TPM lets it.
    pub fn start(tpm: &'t mut Tpm<R>, log: &'t mut Log) -> Result<Self, Error> {
        let banks = tpm.claim(LOCALITY).and_then(|()| {
            let banks = tpm.banks(PCR)?;
            log.begin(&banks)?;
            Ok(banks)
        });
        match banks {
            Ok(banks) => Ok(Self { tpm, log, banks }),
            Err(error) => {
                let _ = tpm.release();
                Err(error)
            }
        }
    }

    /// The banks that are extended.
    #[must_use]
    pub const fn banks(&self) -> &Banks {
        &self.banks
    }

    /// What the register holds, in the first bank.
    ///
    /// # Errors
    /// What the TPM fails by.
    pub fn before(&mut self) -> Result<Before, Error> {
        let bank = *self.banks.first().ok_or(Error::Banks)?;
        Ok(Before::of(&self.tpm.value(PCR, bank)?))
    }

    /// Whether PCR 17 and 18, in the bank of SHA-256, have been extended since a measured launch began. They are all
    /// ones where there was none, or what software at locality 2 made of that: none can make [`PCR`] zeros.
    ///
    /// # Errors
    /// What the TPM fails by.
    pub fn holds_launch(&mut self) -> Result<bool, Error> {
        let Some(&bank) = self.banks.iter().find(|bank| bank.algorithm == SHA256) else {
            return Ok(false);
        };
        let mut is_extended = |pcr| {
            let value = self.tpm.value(pcr, bank);
            value.map(|value| Before::of(&value) == Before::Extended)
        };
        Ok(is_extended(17)? && is_extended(18)?)
    }

    /// 32 bytes of the TPM's own generator.
    ///
    /// # Errors
    /// What the TPM fails by.
    pub fn random(&mut self) -> Result<[u8; 32], Error> {
        let mut bytes = [0; 32];
        self.tpm.random(&mut bytes).map(|()| bytes)
    }

    /// Extends the register by `event`, then notes that in the log: a log that says more than the register is as
    /// useless to a visor as one that says less.
    ///
    /// # Errors
    /// What the TPM fails by; the log is empty from then on.
    pub fn record(&mut self, event: &Event) -> Result<(), Error> {
        let digests = self.tpm.event(PCR, &event.bytes, &self.banks);
        let done = digests.and_then(|digests| Ok(self.log.note(PCR, &event.bytes, &digests)?));
        done.inspect_err(|_| self.log.clear())
    }

    /// Gives up the locality: the TPM is the host's, at locality 0.
    ///
    /// # Errors
    /// [`Error::Timeout`] if the TPM keeps it.
    pub fn finish(self) -> Result<(), Error> {
        self.tpm.release()
    }
}

#[cfg(test)]
mod tests;
