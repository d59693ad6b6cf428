//! What can go wrong.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why something was not done.
#[derive(Debug)]
pub enum Error {
    /// A file cannot be read or written.
    File(PathBuf, io::Error),
    /// A file is in use: by another run of this program, for instance.
    Busy(PathBuf),
    /// An interrupted command left this file, and nobody said to go on.
    Leftover(PathBuf),
    /// A plain image is of a kind that is not understood.
    Plain(PathBuf, String),
    /// A file is no key.
    Key(PathBuf, evidence::Error),
    /// A key has not 32 bytes.
    KeyLength(PathBuf),
    /// No header is right: the key is another's, or the disk is no sealed one, or it was changed.
    Header(PathBuf, disk::header::Refusal),
    /// The disk is of a size that a sealed one cannot have.
    Shape(PathBuf),
    /// What is asked for cannot be a disk's size.
    Size(&'static str),
    /// A block is not what was written: its number, and 0, or the level of the node.
    Forged(PathBuf, u64, u8),
    /// The disk cannot be read or written any more.
    Engine(PathBuf, disk::storage::Error),
    /// Two disks are not the same from this block on.
    Differs(u64),
    /// The system has no random numbers.
    Random,
}

impl Error {
    /// The code in JSON.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::File(..) => "file",
            Self::Busy(_) | Self::Leftover(_) => "in-the-way",
            Self::Plain(..) => "plain-disk",
            Self::Key(..) => "document",
            Self::KeyLength(_) => "disk-key",
            Self::Size(_) => "disk-size",
            Self::Header(..) | Self::Shape(_) | Self::Forged(..) | Self::Engine(..) => "disk",
            Self::Differs(_) => "disks-differ",
            Self::Random => "random",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Busy(path) => write!(f, "{}: in use by another run, or locked", path.display()),
            Self::Leftover(path) => {
                let path = path.display();
                write!(
                    f,
                    "{path}: left by an interrupted command: go on with that by --resume, or remove it"
                )
            }
            Self::Plain(path, why) => write!(f, "{}: not understood: {why}", path.display()),
            Self::Key(path, why) => write!(f, "{}: {why}", path.display()),
            Self::KeyLength(path) => write!(f, "{}: no key of 32 bytes", path.display()),
            Self::Header(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Engine(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Shape(path) => {
                write!(f, "{}: a size that no sealed disk has: cut short?", path.display())
            }
            Self::Size(why) => f.write_str(why),
            Self::Forged(path, index, 0) => {
                write!(f, "{}: block {index} is not what was written", path.display())
            }
            Self::Forged(path, index, level) => write!(
                f,
                "{}: node {index} of level {level} is not what was written",
                path.display()
            ),
            Self::Differs(block) => {
                write!(
                    f,
                    "block {block} is not the same on both disks: did the first one change meanwhile?"
                )
            }
            Self::Random => f.write_str("the system gives no random numbers"),
        }
    }
}

impl std::error::Error for Error {}
