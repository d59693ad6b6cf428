//! The words of `tenant image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What can be done with disks.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Makes a key for disks: who has it can read them
    Key {
        /// The key's file, which must not exist yet
        out: PathBuf,
    },
    /// Makes an empty sealed disk, at once whatever its size is
    Create {
        /// The disk's file, which must not exist yet
        out: PathBuf,
        /// What the VM sees, such as 20G: 4K to 16T in whole blocks of 4,096 bytes
        #[arg(long, value_parser = ::image::size)]
        size: u64,
        /// The key (`image key`)
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Makes a sealed disk of a plain one, raw or qcow2, and compares the two; the plain one stays
    ///
    /// What was never written takes no time and no room. Until all is there and compared, the disk is called OUT.partial.
    Seal {
        /// The plain disk; what it does not have of its last block is zeros
        plain: PathBuf,
        /// The disk's file, which must not exist yet
        out: PathBuf,
        /// The key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Makes the disk larger than the plain one
        #[arg(long, value_parser = ::image::size)]
        size: Option<u64>,
        /// How the command goes on, and says how far it is.
        #[command(flatten)]
        long: Long,
    },
    /// Makes a plain, raw disk of a sealed one
    Unseal {
        /// The sealed disk
        image: PathBuf,
        /// The plain disk's file, which must not exist yet
        out: PathBuf,
        /// The key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// How the command goes on, and says how far it is.
        #[command(flatten)]
        long: Long,
    },
    /// Reads all of a disk, and says what is not what was written
    Verify {
        /// The sealed disk
        image: PathBuf,
        /// The key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// How far it is.
        #[command(flatten)]
        telling: Telling,
    },
    /// Says what a disk is
    Info {
        /// The sealed disk
        image: PathBuf,
        /// The key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Makes a disk larger: a new one, with an id and a key of its own, that takes the old one's place when it is complete
    Resize {
        /// The sealed disk
        image: PathBuf,
        /// What the VM sees then
        #[arg(long, value_parser = ::image::size)]
        size: u64,
        /// The key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// How the command goes on, and says how far it is.
        #[command(flatten)]
        long: Long,
    },
    /// Puts a disk under another key
    ///
    /// At once, by new headers. Who has the old key and a copy of an old header, as every host may, can still read
    /// the disk; --data makes a new disk against that.
    Rekey {
        /// The sealed disk
        image: PathBuf,
        /// Its key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The new key
        #[arg(long, value_name = "FILE")]
        new_key: PathBuf,
        /// Seals all data anew, as `image resize` does
        #[arg(long)]
        data: bool,
        /// How the command goes on, and says how far it is.
        #[command(flatten)]
        long: Long,
    },
}

/// How a long command is done.
#[derive(Clone, Copy, Debug, Args)]
pub struct Long {
    /// Goes on where the same command was interrupted
    #[arg(long)]
    pub resume: bool,
    /// How far it is.
    #[command(flatten)]
    pub telling: Telling,
}

/// How a long command says how far it is.
#[derive(Clone, Copy, Debug, Args)]
pub struct Telling {
    /// Says how far it is in JSON, one object a line, on standard error
    #[arg(long)]
    pub progress_json: bool,
}

impl ImageCommand {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Key { .. } => "image key",
            Self::Create { .. } => "image create",
            Self::Seal { .. } => "image seal",
            Self::Unseal { .. } => "image unseal",
            Self::Verify { .. } => "image verify",
            Self::Info { .. } => "image info",
            Self::Resize { .. } => "image resize",
            Self::Rekey { .. } => "image rekey",
        }
    }
}
