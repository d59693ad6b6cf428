//! What a sealed ticket holds: a policy, a ticket as it would be in clear, and the tenant's signature.

use sha2::{Digest, Sha256};
use ticket::Origin;
use ticket::error::Error;
use ticket::parse::{Parser, Progress, Sink};

use crate::envelope::{HEADER_BYTES, Visor};
use crate::keys::{SIGNATURE_BYTES, is_signed};
use crate::policy::{POLICY_BYTES, Policy};

/// What comes before the hash that a tenant signs.
const SIGNED: &[u8; 16] = b"visor ticket 1\0\0";

/// The bytes that a tenant signs, for the SHA-256 of header, policy and ticket.
pub(crate) fn signed_message(hash: [u8; 32]) -> [u8; 48] {
    let mut message = [0; 48];
    let (first, second) = message.split_at_mut(SIGNED.len());
    first.copy_from_slice(SIGNED);
    second.copy_from_slice(&hash);
    message
}

#[derive(Clone, Copy)]
enum Stage {
    Policy,
    Ticket,
    Signature,
    Over,
}

/// What is known of it so far.
pub(crate) struct Content {
    stage: Stage,
    element: [u8; 64],
    /// Bytes of the element that have arrived.
    filled: usize,
    /// Bytes of the ticket.
    length: u32,
    policy: Option<Policy>,
    parser: Option<Parser>,
    /// Over what the tenant has signed.
    signed: Sha256,
}
const _: () = assert!(POLICY_BYTES == 64 && SIGNATURE_BYTES == 64, "the same buffer");

impl Content {
    pub(crate) fn new() -> Self {
        Self {
            stage: Stage::Policy,
            element: [0; 64],
            filled: 0,
            length: 0,
            policy: None,
            parser: None,
            signed: Sha256::new(),
        }
    }

    /// There are `length` bytes, behind this header.
    ///
    /// # Errors
    /// [`Error::Length`] if that is too few.
    pub(crate) fn begin(
        &mut self,
        header: &[u8; HEADER_BYTES],
        length: usize,
    ) -> Result<(), Error> {
        let ticket = length.checked_sub(POLICY_BYTES + SIGNATURE_BYTES).ok_or(Error::Length)?;
        self.length = u32::try_from(ticket).map_err(|_| Error::Length)?;
        self.parser = Some(Parser::new(self.length)?);
        self.signed.update(header);
        Ok(())
    }

    /// Takes the next bytes, in whole words.
    ///
    /// # Errors
    /// Why the ticket is refused. The bytes came whole from whoever sealed them, which anybody can.
    pub(crate) fn piece(
        &mut self,
        bytes: &[u8],
        visor: &Visor<'_>,
        sink: &mut impl Sink,
    ) -> Result<Progress, Error> {
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(Error::Content);
        }
        let mut done = Progress::More;
        for word in words {
            done = match self.stage {
                Stage::Policy => self.policy(word, visor)?,
                Stage::Ticket => self.ticket(word, sink)?,
                Stage::Signature => self.signature(word)?,
                Stage::Over => return Err(Error::Content),
            };
        }
        Ok(done)
    }

    /// Collects a policy or a signature; what it is when it is complete.
    fn collect(&mut self, word: &[u8; 4]) -> Result<Option<[u8; 64]>, Error> {
        let place = self.element.get_mut(self.filled..).and_then(<[u8]>::first_chunk_mut);
        *place.ok_or(Error::Content)? = *word;
        self.filled += word.len();
        if self.filled < self.element.len() {
            return Ok(None);
        }
        self.filled = 0;
        Ok(Some(self.element))
    }

    fn policy(&mut self, word: &[u8; 4], visor: &Visor<'_>) -> Result<Progress, Error> {
        self.signed.update(word);
        if let Some(bytes) = self.collect(word)? {
            let policy = Policy::read(&bytes)?;
            policy.check(visor.age, visor.weaknesses)?;
            self.policy = Some(policy);
            self.stage = Stage::Ticket;
        }
        Ok(Progress::More)
    }

    fn ticket(&mut self, word: &[u8; 4], sink: &mut impl Sink) -> Result<Progress, Error> {
        self.signed.update(word);
        let parser = self.parser.as_mut().ok_or(Error::Content)?;
        match parser.word(u32::from_le_bytes(*word), sink) {
            Ok(Progress::More) => {}
            Ok(Progress::Complete) => self.stage = Stage::Signature,
            // Which fault it is would tell the host of what the tenant has sealed.
            Err(error) if error.is_of_ticket() => return Err(Error::Content),
            Err(error) => return Err(error),
        }
        Ok(Progress::More)
    }

    fn signature(&mut self, word: &[u8; 4]) -> Result<Progress, Error> {
        let Some(signature) = self.collect(word)? else { return Ok(Progress::More) };
        let policy = self.policy.as_ref().ok_or(Error::Content)?;
        let message = signed_message(self.signed.clone().finalize().into());
        if !is_signed(&policy.tenant, &message, &signature) {
            return Err(Error::Signature);
        }
        self.stage = Stage::Over;
        Ok(Progress::Complete)
    }

    /// Where the ticket is from, once it is complete.
    pub(crate) fn origin(&self, file: [u8; 32]) -> Option<Origin> {
        let (Stage::Over, Some(policy), Some(parser)) = (self.stage, &self.policy, &self.parser)
        else {
            return None;
        };
        let Policy { tenant, serial, .. } = *policy;
        Some(Origin { file, measurement: parser.measurement(), tenant, serial })
    }
}
