//! Why a TPM cannot be used.

use core::fmt;

use ept::list::Full;

/// What is wrong with a TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No register answers.
    Silent,
    /// An interface of this number, which the visor does not know.
    Interface(u32),
    /// No locality was claimed.
    NoLocality,
    /// It did not finish this in time.
    Timeout(Step),
    /// Its buffer for commands, or for answers, is not among its registers, or too small.
    Buffer,
    /// It failed at a command without saying why.
    Failed,
    /// It refused a command, with this response code.
    Refused(u32),
    /// Its answer is no answer to the command.
    Reply,
    /// No bank with the register, too many, or one of an unknown algorithm.
    Banks,
    /// A command or an event is longer than it takes.
    TooLong,
}

/// What a TPM may not finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Granting a locality.
    Locality,
    /// Letting go of one.
    Release,
    /// Getting ready for a command.
    Ready,
    /// Taking a command, or giving an answer, once begun.
    Bytes,
    /// A command.
    Command,
}

impl Step {
    /// How long it may take. PTP's time-outs A (750 ms), B (2 s), and, for what should take C (200 ms) or D (30 ms),
    /// A as well: nothing depends on a TPM that fails failing soon. A command may include a self test.
    pub(super) const fn microseconds(self) -> u32 {
        match self {
            Self::Locality | Self::Release | Self::Bytes => 750_000,
            Self::Ready => 2_000_000,
            Self::Command => 20_000_000,
        }
    }
}

impl From<Full> for Error {
    fn from(_: Full) -> Self {
        Self::TooLong
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Locality => "granting the locality",
            Self::Release => "letting go of a locality",
            Self::Ready => "getting ready",
            Self::Bytes => "moving a message",
            Self::Command => "a command",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("its registers do not answer"),
            Self::Interface(number) => write!(f, "interface {number} is unknown"),
            Self::NoLocality => f.write_str("no locality was claimed"),
            Self::Timeout(step) => write!(f, "it did not finish {step} in time"),
            Self::Buffer => f.write_str("its buffers are not where they should be"),
            Self::Failed => f.write_str("it failed at a command"),
            Self::Refused(code) => write!(f, "it refused a command with code {code:#x}"),
            Self::Reply => f.write_str("its answer makes no sense"),
            Self::Banks => f.write_str("its banks of PCRs are unknown, too many, or none"),
            Self::TooLong => f.write_str("a message is longer than it takes"),
        }
    }
}
