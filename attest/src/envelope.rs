//! Opening a sealed ticket, one word at a time: `docs/ticket.md` has the format.

use hpke::Deserializable;
use hpke::aead::{AeadTag, ChaCha20Poly1305};
use hpke::inout::InOutBuf;
use ticket::Origin;
use ticket::error::Error;
use ticket::parse::{Progress, Sink};
use zeroize::Zeroize;

use crate::content::Content;
use crate::keys::{Keys, Opener};
use crate::policy::Weaknesses;

/// What every sealed ticket begins with.
pub const MAGIC: [u8; 8] = *b"VISRTKS1";
/// The one version there is.
pub const VERSION: u32 = 1;
/// DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and ChaCha20-Poly1305 (RFC 9180, 7).
pub const SUITE: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 88;
/// Bytes of the header without the encapsulated key at its end: HPKE's `info`.
pub const INFO_BYTES: usize = 56;
/// Bytes that a message seals, except perhaps the last.
pub const PIECE: usize = 4096;
/// Bytes that it is longer by.
pub const TAG: usize = 16;
/// What a message is bound to: whether it is the last.
pub const NOT_LAST: &[u8] = &[0];
/// See [`NOT_LAST`].
pub const LAST: &[u8] = &[1];
/// What a visor is, and how.
#[derive(Clone, Copy, Debug)]
pub struct Visor<'k> {
    /// Its keys.
    pub keys: &'k Keys,
    /// What is wrong with it.
    pub weaknesses: Weaknesses,
    /// The highest TSC that it has seen, in 2^32 ticks. The host can stop it, so this is no defence.
    pub age: u64,
}

/// What arrives.
enum Part {
    Header,
    Messages(Opener),
}

/// Where one message of a sealed ticket is collected, and opened.
pub(crate) type Message = [u8; PIECE + TAG];

/// A sealed ticket that is being received: one message of it at a time.
pub(crate) struct Envelope {
    part: Part,
    /// Bytes of the whole, as announced.
    length: usize,
    /// Bytes that follow what is being collected, or are part of it.
    left: usize,
    /// Bytes of a message that have arrived.
    filled: usize,
    content: Content,
}

impl Envelope {
    /// Prepares for `length` bytes, a multiple of 4.
    pub(crate) fn new(length: usize) -> Self {
        Self { part: Part::Header, length, left: length, filled: 0, content: Content::new() }
    }

    /// Takes the next four bytes. `message` is the same each time.
    ///
    /// # Errors
    /// Why the ticket is refused.
    pub(crate) fn word(
        &mut self,
        (word, message): (u32, &mut Message),
        visor: &Visor<'_>,
        sink: &mut impl Sink,
    ) -> Result<Progress, Error> {
        let size = match &self.part {
            Part::Header => HEADER_BYTES,
            Part::Messages(_) => self.left.min(PIECE + TAG),
        };
        let rest = message.get_mut(self.filled..size).ok_or(Error::Length)?;
        *rest.first_chunk_mut().ok_or(Error::Length)? = word.to_le_bytes();
        self.filled += size_of::<u32>();
        if self.filled < size {
            return Ok(Progress::More);
        }
        self.filled = 0;
        self.left = self.left.checked_sub(size).ok_or(Error::Length)?;
        let Part::Messages(opener) = &mut self.part else {
            self.begin(message, visor)?;
            return Ok(Progress::More);
        };
        let (sealed, tag) = message
            .get_mut(..size)
            .and_then(|message| message.split_last_chunk_mut::<TAG>())
            .ok_or(Error::Sealed)?;
        let tag = AeadTag::<ChaCha20Poly1305>::from_bytes(tag).map_err(|_| Error::Sealed)?;
        let bound = if self.left == 0 { LAST } else { NOT_LAST };
        opener
            .open_inout_detached(InOutBuf::from(&mut *sealed), bound, &tag)
            .map_err(|_| Error::Sealed)?;
        let done = self.content.piece(sealed, visor, sink);
        sealed.zeroize();
        done
    }

    /// The header is complete.
    fn begin(&mut self, message: &Message, visor: &Visor<'_>) -> Result<(), Error> {
        let header = message.first_chunk::<HEADER_BYTES>().ok_or(Error::Length)?;
        let (info, encapsulated) = header.split_first_chunk::<INFO_BYTES>().ok_or(Error::Length)?;
        let word = |at: usize| header.get(at..).and_then(<[u8]>::first_chunk);
        let word = |at| word(at).copied().map(u32::from_le_bytes);
        if !header.starts_with(&MAGIC) {
            return Err(Error::Magic);
        }
        if word(12) != Some(VERSION) || word(16) != Some(SUITE) {
            return Err(Error::Version);
        }
        if word(8).and_then(|said| usize::try_from(said).ok()) != Some(self.length) {
            return Err(Error::OtherLength);
        }
        if word(20) != Some(0) {
            return Err(Error::Reserved);
        }
        if info.last_chunk() != Some(&visor.keys.name()) {
            return Err(Error::Recipient);
        }
        let encapsulated = encapsulated.first_chunk().ok_or(Error::Length)?;
        let messages = self.left.div_ceil(PIECE + TAG);
        let said = self.left.checked_sub(messages * TAG).ok_or(Error::Length)?;
        self.content.begin(header, said)?;
        let opener = visor.keys.opener(encapsulated, info).ok_or(Error::Sealed)?;
        self.part = Part::Messages(opener);
        Ok(())
    }

    /// Where the ticket is from, once it is complete.
    pub(crate) fn origin(&self, file: [u8; 32]) -> Option<Origin> {
        self.content.origin(file)
    }
}
