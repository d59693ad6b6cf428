//! The log of what was measured, in the TCG's crypto-agile format (*PC Client Platform Firmware Profile* 1.06,
//! chapter 10), which the usual tools read. Numbers are of the lowest byte first.

use ept::list::{Full, List};

use crate::bytes::put;
use crate::tpm::{Banks, Digests};

/// Most bytes of a log: with a header of 16 bytes, a page.
pub const CAPACITY: usize = 4080;
/// `EV_NO_ACTION`.
const NO_ACTION: u32 = 3;
/// `EV_EVENT_TAG`.
const EVENT_TAG: u32 = 6;

/// A log.
#[derive(Debug)]
pub struct Log {
    bytes: List<u8, CAPACITY>,
}

impl Log {
    /// A log that was not begun.
    #[must_use]
    #[expect(clippy::large_stack_frames, reason = "made once, at compile time in the visor")]
    pub const fn empty() -> Self {
        Self { bytes: List::new(0) }
    }

    /// Its bytes; none if it was not begun.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets all of it.
    pub const fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Begins it, with the event that names the `banks` and the version of the format (10.4.5.1). That has the
    /// form of a TPM 1.2 event, of which the digest is zeros.
    pub(crate) fn begin(&mut self, banks: &Banks) -> Result<(), Full> {
        self.clear();
        let banks_bytes = length(banks.len() * 4)?;
        self.words(&[0, NO_ACTION])?;
        self.put(&[0; 20])?;
        self.words(&[29 + banks_bytes])?;
        self.put(b"Spec ID Event03\0")?;
        // Platform class of clients; version 2.0, errata 0, numbers of 64 bits.
        self.put(&[0, 0, 0, 0, 0, 2, 0, 2])?;
        self.words(&[length(banks.len())?])?;
        for bank in banks.iter() {
            self.put(&bank.algorithm.to_le_bytes())?;
            self.put(&bank.size.to_le_bytes())?;
        }
        // No information of the vendor's.
        self.put(&[0])
    }

    /// Notes that `pcr` was extended by `digests` for the tagged `event`.
    pub(crate) fn note(&mut self, pcr: u8, event: &[u8], digests: &Digests) -> Result<(), Full> {
        self.words(&[pcr.into(), EVENT_TAG, length(digests.len())?])?;
        for digest in digests.iter() {
            self.put(&digest.bank.algorithm.to_le_bytes())?;
            self.put(digest.bytes())?;
        }
        self.words(&[length(event.len())?])?;
        self.put(event)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Full> {
        put(&mut self.bytes, bytes)
    }

    fn words(&mut self, words: &[u32]) -> Result<(), Full> {
        words.iter().try_for_each(|word| self.put(&word.to_le_bytes()))
    }
}

fn length(len: usize) -> Result<u32, Full> {
    u32::try_from(len).map_err(|_| Full)
}
