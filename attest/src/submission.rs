//! What is submitted to the visor: a sealed ticket, or one in clear.

use core::fmt;

use sha2::{Digest, Sha256};
use ticket::Origin;
use ticket::error::Error;
use ticket::parse::{Parser, Progress, Sink};

use zeroize::Zeroize;

use crate::envelope::{self, Envelope, Message, PIECE, TAG, Visor};

/// The first four bytes of both.
const FIRST: u32 = u32::from_le_bytes(*b"VISR");
/// The four bytes after them.
const fn second_of([_, _, _, _, a, b, c, d]: [u8; 8]) -> u32 {
    u32::from_le_bytes([a, b, c, d])
}

/// Which of both it is.
#[expect(clippy::large_enum_variant, reason = "there is one, and no heap")]
enum Kind {
    /// None is awaited: why.
    Over(Error),
    /// Nothing has come.
    Nothing,
    /// [`FIRST`] has.
    Unknown,
    Clear(Parser),
    Sealed(Envelope),
}

/// The submission that is being received, one at a time.
pub struct Submission {
    kind: Kind,
    length: u32,
    message: Message,
    /// Over all that came.
    file: Option<Sha256>,
    origin: Option<Origin>,
}

#[expect(clippy::new_without_default, reason = "it is for statics: too large for a stack")]
impl Submission {
    /// There is none.
    #[must_use]
    #[expect(clippy::large_stack_frames, reason = "the compiler runs it")]
    pub const fn new() -> Self {
        let kind = Kind::Over(Error::NotBegun);
        Self { kind, length: 0, message: [0; PIECE + TAG], file: None, origin: None }
    }

    /// Prepares for `length` bytes; what came of another one is forgotten.
    ///
    /// # Errors
    /// [`Error::Length`] if no ticket is that long.
    pub fn begin(&mut self, length: u32) -> Result<(), Error> {
        self.end();
        ticket::parse::check_length(length)?;
        self.length = length;
        self.file = Some(Sha256::new());
        self.kind = Kind::Nothing;
        Ok(())
    }

    /// Forgets all that came.
    pub fn end(&mut self) {
        self.kind = Kind::Over(Error::NotBegun);
        self.origin = None;
        self.message.zeroize();
    }

    /// Takes the next four bytes, the first of them lowest.
    ///
    /// # Errors
    /// Why the ticket is refused; then, and after the last word, every further word is an error too.
    pub fn word(
        &mut self,
        word: u32,
        visor: &Visor<'_>,
        sink: &mut impl Sink,
    ) -> Result<Progress, Error> {
        if let Some(file) = &mut self.file {
            file.update(word.to_le_bytes());
        }
        let taken = self.take(word, visor, sink);
        match taken {
            Ok(Progress::More) => {}
            Ok(Progress::Complete) => {
                self.origin = self.whence();
                self.kind = Kind::Over(Error::NotBegun);
            }
            Err(error) => self.kind = Kind::Over(error),
        }
        taken
    }

    #[expect(clippy::large_stack_frames, reason = "counts moves that are made in place")]
    fn take(
        &mut self,
        word: u32,
        visor: &Visor<'_>,
        sink: &mut impl Sink,
    ) -> Result<Progress, Error> {
        match &mut self.kind {
            Kind::Nothing if word == FIRST => {
                self.kind = Kind::Unknown;
                Ok(Progress::More)
            }
            Kind::Nothing => Err(Error::Magic),
            Kind::Unknown => {
                self.kind = self.recognize(word, visor)?;
                let _ = self.take(FIRST, visor, sink)?;
                self.take(word, visor, sink)
            }
            Kind::Clear(parser) => parser.word(word, sink),
            Kind::Sealed(envelope) => envelope.word((word, &mut self.message), visor, sink),
            Kind::Over(error) => Err(*error),
        }
    }

    /// What begins with [`FIRST`] and this.
    #[expect(clippy::large_stack_frames, reason = "counts moves that are made in place")]
    fn recognize(&self, second: u32, visor: &Visor<'_>) -> Result<Kind, Error> {
        if second == second_of(ticket::MAGIC) {
            let parser = Parser::new(self.length)?;
            return visor
                .weaknesses
                .development
                .then_some(Kind::Clear(parser))
                .ok_or(Error::ClearTickets);
        }
        if second != second_of(envelope::MAGIC) {
            return Err(Error::Magic);
        }
        let length = usize::try_from(self.length).map_err(|_| Error::Length)?;
        Ok(Kind::Sealed(Envelope::new(length)))
    }

    fn whence(&self) -> Option<Origin> {
        let file = self.file.clone()?.finalize().into();
        match &self.kind {
            Kind::Clear(parser) => {
                let measurement = parser.measurement();
                Some(Origin { file, measurement, ..Origin::default() })
            }
            Kind::Sealed(envelope) => envelope.origin(file),
            Kind::Nothing | Kind::Unknown | Kind::Over(_) => None,
        }
    }

    /// Where the ticket is from, once it is complete.
    #[must_use]
    pub const fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }
}

impl fmt::Debug for Submission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submission").field("length", &self.length).finish_non_exhaustive()
    }
}
