//! The words of `tenant image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What can be done with disks.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Makes a key for disks: who has it can read them, and without it they are lost
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
        /// The disk's key, made by `tenant image key`
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Makes a sealed disk of a plain one, raw or qcow2, and compares the two; the plain one stays
    ///
    /// What was never written takes no time and no room. Until all is there and compared, the disk is called OUT.partial;
    /// after a kill or a power cut the same command with --resume goes on. The plain disk is only read, and must not
    /// change meanwhile; to delete it is left to you.
    Seal {
        /// The plain disk; if it ends within a block of 4,096 bytes, zeros are added
        plain: PathBuf,
        /// The disk's file, which must not exist yet
        out: PathBuf,
        /// The disk's key, made by `tenant image key`
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// What the VM sees, such as 20G, if it is to be more than the plain disk
        #[arg(long, value_parser = ::image::size)]
        size: Option<u64>,
        /// How the command goes on, and says how far it is.
        #[command(flatten)]
        long: Long,
    },
    /// Makes a plain, raw disk of a sealed one, which stays
    ///
    /// Each block is checked when it is read; at the first that was changed, the command ends. Until all is there, the plain disk
    /// is called OUT.partial, readable for you alone, as OUT is.
    Unseal {
        /// The sealed disk
        image: PathBuf,
        /// The plain disk's file, which must not exist yet
        out: PathBuf,
        /// The disk's key, made by `tenant image key`
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// How the command goes on, and says how far it is.
        #[command(flatten)]
        long: Long,
    },
    /// Reads all of a disk, and lists what was changed or damaged since it was written
    ///
    /// Ends with 1 if there is anything. That a host brought back an older state of the whole disk is not seen by this:
    /// compare the moment with the last one that you know.
    Verify {
        /// The sealed disk
        image: PathBuf,
        /// The disk's key, made by `tenant image key`
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// How far it is.
        #[command(flatten)]
        telling: Telling,
    },
    /// Says a disk's id, sizes and moment, without reading its data
    Info {
        /// The sealed disk
        image: PathBuf,
        /// The disk's key, made by `tenant image key`
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Makes a disk larger, by a new one with the same data that takes its place
    ///
    /// It takes as long as sealing all that was ever written, and room for that beside the old disk, which is looked for first. The
    /// new disk is called IMAGE.partial until it is complete and compared; until then the old one is as it was. It has a new
    /// id, which tickets must name from then on, and its moments begin anew. A disk cannot be made smaller.
    Resize {
        /// The sealed disk
        image: PathBuf,
        /// What the VM sees then, such as 40G
        #[arg(long, value_parser = ::image::size)]
        size: u64,
        /// The disk's key, made by `tenant image key`
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// How the command goes on, and says how far it is.
        #[command(flatten)]
        long: Long,
    },
    /// Puts a disk under another key
    ///
    /// At once, by new headers; if that was interrupted, the same command ends it. Who has the old key and a copy of an old
    /// header, as every host may, can still read the disk. Against that --data makes a new disk, which takes the time and the room that
    /// `tenant image resize` does; --resume and --progress-json are for it.
    Rekey {
        /// The sealed disk
        image: PathBuf,
        /// Its key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The new key
        #[arg(long, value_name = "FILE")]
        new_key: PathBuf,
        /// Seals all data anew, in a new disk with a new id
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
