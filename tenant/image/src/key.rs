//! The wrapping key: who has it can read a disk. It is the tenant's, and goes to the visor in a ticket.

use std::fmt;
use std::path::Path;

use evidence::{Bytes, Document, Readers};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::random;

/// A file with a wrapping key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskKey {
    format: String,
    key: Bytes,
}

impl fmt::Debug for DiskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskKey").finish_non_exhaustive()
    }
}

impl Document for DiskKey {
    const FORMAT: &'static str = "visor-disk-key-1";
}

/// Makes a key, in a file that only its owner can read and that must not exist yet.
///
/// # Errors
/// [`Error::Key`] and [`Error::Random`].
pub fn make(path: &Path) -> Result<(), Error> {
    let key: [u8; 32] = random::array()?;
    let document = DiskKey { format: DiskKey::FORMAT.into(), key: Bytes(key.to_vec()) };
    evidence::write(path, &document, Readers::Owner).map_err(|why| Error::Key(path.into(), why))
}

/// The key in a file.
///
/// # Errors
/// [`Error::Key`], also where it has not 32 bytes.
pub fn read(path: &Path) -> Result<[u8; 32], Error> {
    let document: DiskKey = evidence::read(path).map_err(|why| Error::Key(path.into(), why))?;
    document.key.array().ok_or_else(|| Error::KeyLength(path.into()))
}
