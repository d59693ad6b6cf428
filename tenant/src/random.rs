//! Random numbers.

use std::convert::Infallible;

use rsa::rand_core::{TryCryptoRng, TryRng};

/// The system's generator. Where it fails, no key and no nonce may be made: the program ends.
#[derive(Debug)]
pub struct Random(());

impl Random {
    /// The system's generator, if it works.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn new() -> Result<Self, getrandom::Error> {
        getrandom::fill(&mut [0; 1]).map(|()| Self(()))
    }

    /// Random bytes.
    #[must_use]
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        // It worked once, and Linux's generator does not cease to.
        while getrandom::fill(bytes).is_err() {}
    }
}

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_le_bytes(self.array()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_le_bytes(self.array()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.fill(bytes);
        Ok(())
    }
}

impl TryCryptoRng for Random {}
