//! Plain disk images: raw ones, and QEMU's qcow2.

mod qcow2;
mod raw;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::Error;
use crate::{BLOCK, Block};

pub use qcow2::Qcow2;
pub use raw::Raw;

/// What is at the start of each qcow2 (QEMU, docs/interop/qcow2.rst, "Header").
const QCOW2: [u8; 4] = *b"QFI\xfb";

/// Something that blocks are read from.
pub trait Source {
    /// How many blocks there are. Of the last, what the source does not have is zeros.
    fn blocks(&self) -> u64;

    /// The next blocks from `from` on that may be other than zeros; `None` if all that follow are zeros.
    ///
    /// # Errors
    /// The source cannot be read.
    fn written(&mut self, from: u64) -> Result<Option<Range<u64>>, Error>;

    /// Reads blocks from `at` on.
    ///
    /// # Errors
    /// As above.
    fn read(&mut self, at: u64, blocks: &mut [Block]) -> Result<(), Error>;
}

/// Something that blocks are written to, and read from again.
pub trait Target: Source {
    /// Writes a block. It need not be durable before [`Target::flush`].
    ///
    /// # Errors
    /// The target cannot be written.
    fn write(&mut self, at: u64, block: &Block) -> Result<(), Error>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// As above.
    fn flush(&mut self) -> Result<(), Error>;
}

/// Opens a plain image of either kind: what begins as a qcow2 does is one.
///
/// # Errors
/// [`Error::File`]; [`Error::Plain`] where it is a qcow2 that is not understood.
pub fn open(path: &Path) -> Result<Box<dyn Source>, Error> {
    let wrong = |why| Error::File(path.into(), why);
    let file = File::open(path).map_err(wrong)?;
    let mut magic = [0; 4];
    let is_qcow2 = match file.read_exact_at(&mut magic, 0) {
        Ok(()) => magic == QCOW2,
        Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(why) => return Err(wrong(why)),
    };
    if is_qcow2 {
        Ok(Box::new(Qcow2::open(path, file)?))
    } else {
        Ok(Box::new(Raw::open(path, file)?))
    }
}

/// The blocks that bytes lie in.
fn around(bytes: Range<u64>) -> Range<u64> {
    bytes.start / BLOCK..bytes.end.div_ceil(BLOCK)
}
