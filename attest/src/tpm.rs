//! A TPM 2.0 behind memory-mapped registers: the two interfaces of the TCG's *PC Client Platform TPM
//! Profile* (PTP, 1.05, chapter 6), and the few commands that the visor needs.
//!
//! Whatever a TPM says is checked: its answers come from outside of the processor.

mod command;
mod crb;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod fifo;
mod registers;
#[cfg(test)]
mod tests;

use ept::list::List;

use command::{Command, Reply};

pub use command::{BANKS, Bank, Banks, Digest, Digests, LONGEST_EVENT};
pub use error::{Error, Step};
pub use registers::{LOCALITIES, Registers, SIZE};

use registers::{
    ACTIVE, CRB_LOCALITY, Driver, FIFO_ACCESS, INTERFACE, LOCALITY_STATE, REQUEST, page, wait,
};

/// A TPM, and whether a locality of its is the visor's.
#[derive(Debug)]
pub struct Tpm<R> {
    registers: R,
    driver: Driver,
    locality: Option<u8>,
    command: Command,
    reply: Reply,
}

impl<R: Registers> Tpm<R> {
    /// The TPM behind `registers`, of which ACPI says that they are its.
    ///
    /// # Errors
    /// [`Error::Silent`] or [`Error::Interface`] if nothing, or nothing known, answers there.
    #[expect(clippy::large_stack_frames, reason = "runs once, on the boot stack of 64 KiB")]
    pub fn find(registers: R) -> Result<Self, Error> {
        const FIFO: u32 = 0;
        const CRB: u32 = 1;
        const OLD_FIFO: u32 = 0xf;
        let id = registers.read32(INTERFACE);
        let driver = match id & 0xf {
            _ if id == u32::MAX && registers.read32(0) == u32::MAX => return Err(Error::Silent),
            FIFO | OLD_FIFO => Driver::Fifo,
            CRB => Driver::Crb,
            other => return Err(Error::Interface(other)),
        };
        let (command, reply) = (List::new(0), List::new(0));
        Ok(Self { registers, driver, locality: None, command, reply })
    }

    /// Which of the two interfaces it has, in a word.
    #[must_use]
    pub const fn interface(&self) -> &'static str {
        match self.driver {
            Driver::Fifo => "FIFO",
            Driver::Crb => "CRB",
        }
    }

    /// Has the TPM take commands from `locality`, 0..[`LOCALITIES`], alone. What firmware still has is given up
    /// for it: firmware does not run any more.
    ///
    /// # Errors
    /// [`Error::Timeout`] if the TPM does not let go of another locality, or does not grant this one.
    pub fn claim(&mut self, locality: u8) -> Result<(), Error> {
        for other in 0..LOCALITIES {
            if self.is_active(other) {
                self.relinquish(other)?;
            }
        }
        let page = page(locality);
        match self.driver {
            Driver::Fifo => self.registers.write8(page + FIFO_ACCESS, REQUEST),
            Driver::Crb => self.registers.write32(page + CRB_LOCALITY, crb::REQUEST_ACCESS),
        }
        wait(&self.registers, Step::Locality, |_| self.is_active(locality))?;
        self.locality = Some(locality);
        Ok(())
    }

    /// Gives up the locality that was claimed, for whoever asks for one next.
    ///
    /// # Errors
    /// [`Error::Timeout`] if the TPM keeps it.
    pub fn release(&mut self) -> Result<(), Error> {
        self.locality.take().map_or(Ok(()), |locality| self.relinquish(locality))
    }

    fn relinquish(&mut self, locality: u8) -> Result<(), Error> {
        let page = page(locality);
        match self.driver {
            Driver::Fifo => self.registers.write8(page + FIFO_ACCESS, ACTIVE),
            Driver::Crb => self.registers.write32(page + CRB_LOCALITY, crb::RELINQUISH),
        }
        wait(&self.registers, Step::Release, |_| !self.is_active(locality))
    }

    fn is_active(&self, locality: u8) -> bool {
        let page = page(locality);
        match self.driver {
            Driver::Fifo => {
                let access = self.registers.read8(page + FIFO_ACCESS);
                // Bit 6 is reserved: a locality that is not there reads as all ones, or as zeros.
                access & (registers::VALID | 1 << 6 | ACTIVE) == registers::VALID | ACTIVE
            }
            Driver::Crb => {
                let state = self.registers.read32(page + LOCALITY_STATE);
                crb::is_active(state, locality)
            }
        }
    }

    /// Has the TPM execute the command that was made; its answer, of which the header was checked.
    fn execute(&mut self) -> Result<&[u8], Error> {
        /// Answers that ask for the same once more (TPM 2.0 Library, part 2, 6.6.3).
        const AGAIN: [u32; 3] = [0x908, 0x90a, 0x922];
        const TRIES: u32 = 200;
        const PAUSES: u32 = 10_000;
        let locality = self.locality.ok_or(Error::NoLocality)?;
        let mut tries = 0;
        loop {
            self.reply.clear();
            let (registers, reply) = (&mut self.registers, &mut self.reply);
            match self.driver {
                Driver::Fifo => fifo::transmit(registers, locality, &self.command, reply),
                Driver::Crb => crb::transmit(registers, locality, &self.command, reply),
            }?;
            match command::check(&self.command, &self.reply) {
                Err(Error::Refused(code)) if AGAIN.contains(&code) && tries < TRIES => {
                    tries += 1;
                    (0..PAUSES).for_each(|_| self.registers.pause());
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(&self.reply),
            }
        }
    }

    /// The banks that have PCR number `pcr`.
    ///
    /// # Errors
    /// [`Error::Banks`] if there is none, or one with an algorithm that has no known size; or what the TPM fails
    /// by.
    pub fn banks(&mut self, pcr: u8) -> Result<Banks, Error> {
        command::banks(&mut self.command)?;
        command::read_banks(self.execute()?, pcr)
    }

    /// Random bytes, as many as `into` has: 32 at most, which is what every TPM gives at once.
    ///
    /// # Errors
    /// [`Error::Reply`] if there are fewer; or what the TPM fails by.
    pub fn random(&mut self, into: &mut [u8]) -> Result<(), Error> {
        command::random(&mut self.command, into.len())?;
        command::read_random(self.execute()?, into)
    }

    /// Extends PCR number `pcr` in all banks by what each of them makes of `event`, at most
    /// [`LONGEST_EVENT`] bytes; the digests for `banks`.
    ///
    /// # Errors
    /// [`Error::Reply`] if the TPM does not tell the digest for each of the banks; or what it fails by.
    pub fn event(&mut self, pcr: u8, event: &[u8], banks: &Banks) -> Result<Digests, Error> {
        command::event(&mut self.command, pcr, event)?;
        command::read_event(self.execute()?, banks)
    }

    /// What PCR number `pcr` holds in `bank`.
    ///
    /// # Errors
    /// [`Error::Reply`] if that is not what the TPM tells; or what it fails by.
    pub fn value(&mut self, pcr: u8, bank: Bank) -> Result<Digest, Error> {
        command::value(&mut self.command, pcr, bank)?;
        command::read_value(self.execute()?, bank)
    }
}
