//! What the engine needs of its surroundings, and why it fails.

use core::fmt;

/// What is read, written, encrypted and verified as one.
pub type Block = [u8; 4096];

/// Why a request is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is under way. The next call is the same request, with the same content, and so on until it is
    /// done. A read may fill a part of its buffer at each call: it is the same one, and nobody else uses it in
    /// between. If the operation is given up the next call may be another request: the storage is to end the one
    /// under way first.
    Wait,
    /// The host's storage failed.
    Failed,
}

/// The host's storage, in blocks. It may lose, reorder, or tear into sectors of 512 bytes whatever was
/// written since the last flush, as long as there is no next one.
pub trait Storage {
    /// Reads blocks from number `at` on.
    ///
    /// # Errors
    /// [`Stop`].
    fn read(&mut self, at: u64, into: &mut [Block]) -> Result<(), Stop>;

    /// Writes blocks from number `at` on.
    ///
    /// # Errors
    /// [`Stop`].
    fn write(&mut self, at: u64, from: &[Block]) -> Result<(), Stop>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// [`Stop`].
    fn flush(&mut self) -> Result<(), Stop>;
}

/// Why an operation is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The storage is at work. The operation is to be called again, with the same arguments.
    Wait,
    /// The storage failed. After a failed write or flush nobody knows what is durable, so the volume
    /// is not written to any more until it is opened again.
    Failed,
    /// What came back for the node with this index is not what was written; level 0 is data.
    /// After a node, the volume is not written to any more.
    Forged {
        /// 0 for data, or the level of the node.
        level: u8,
        /// Its number in the level.
        index: u64,
    },
    /// Neither anchor is of this disk.
    Anchor,
    /// The log does not hold what was written to it while the volume was open.
    Log,
    /// The log holds what no writer writes.
    Malformed,
    /// Blocks beyond the capacity.
    Range,
    /// The memory lent is less than the disk needs.
    Memory,
    /// 2^48 blocks were written since the volume was opened.
    Exhausted,
    /// The volume is not written to any more: see [`Error::Failed`] and [`Error::Forged`].
    Broken,
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Wait => Self::Wait,
            Stop::Failed => Self::Failed,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("disk: ")?;
        match self {
            Self::Wait => f.write_str("the storage is at work"),
            Self::Failed => f.write_str("the storage failed"),
            Self::Forged { level: 0, index } => write!(f, "block {index} came back changed"),
            Self::Forged { level, index } => {
                write!(f, "node {index} of level {level} came back changed")
            }
            Self::Anchor => f.write_str("no anchor of this disk was found"),
            Self::Log => f.write_str("the log came back changed"),
            Self::Malformed => f.write_str("the log holds what no writer writes"),
            Self::Range => f.write_str("blocks beyond the end"),
            Self::Memory => f.write_str("too little memory for this disk's table"),
            Self::Exhausted => f.write_str("no nonce is left until it is opened again"),
            Self::Broken => f.write_str("not written to any more, after an earlier failure"),
        }
    }
}

impl core::error::Error for Error {}
