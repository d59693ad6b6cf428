//! A raw image: a file, or a block device.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom as Find, seek};
use rustix::io::Errno;

use super::{Source, Target, around};
use crate::error::Error;
use crate::files;
use crate::{BLOCK, Block};

/// A raw image.
#[derive(Debug)]
pub struct Raw {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Raw {
    pub(super) fn open(path: &Path, mut file: File) -> Result<Self, Error> {
        // A device says 0 when asked for its metadata.
        let bytes = file.seek(SeekFrom::End(0)).map_err(|why| Error::File(path.into(), why))?;
        Ok(Self { path: path.into(), file, bytes })
    }

    /// Makes of a file an image of so many blocks. What is in it already stays.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn make(path: &Path, file: File, blocks: u64) -> Result<Self, Error> {
        let bytes = blocks.saturating_mul(BLOCK);
        files::set_length(&file, path, bytes).map_err(|why| Error::File(path.into(), why))?;
        Ok(Self { path: path.into(), file, bytes })
    }

    /// Where the next data or the next hole is; `None` behind the last.
    fn find(&self, what: Find) -> Result<Option<u64>, Error> {
        match seek(&self.file, what) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(why) => Err(Error::File(self.path.clone(), why.into())),
        }
    }

    /// The next data from byte `from` on. What cannot have holes is all data.
    fn data(&self, from: u64) -> Result<Option<Range<u64>>, Error> {
        if from >= self.bytes {
            return Ok(None);
        }
        match self.find(Find::Data(from)) {
            Ok(None) => Ok(None),
            Ok(Some(start)) => {
                let end = self.find(Find::Hole(start))?.unwrap_or(self.bytes);
                Ok((start < self.bytes).then_some(start..end.min(self.bytes)))
            }
            Err(Error::File(_, why)) if why.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                Ok(Some(from..self.bytes))
            }
            Err(why) => Err(why),
        }
    }
}

impl Source for Raw {
    fn blocks(&self) -> u64 {
        self.bytes.div_ceil(BLOCK)
    }

    fn written(&mut self, from: u64) -> Result<Option<Range<u64>>, Error> {
        let data = self.data(from.saturating_mul(BLOCK))?;
        Ok(data.map(|data| {
            let blocks = around(data);
            blocks.start.max(from)..blocks.end
        }))
    }

    fn read(&mut self, at: u64, blocks: &mut [Block]) -> Result<(), Error> {
        let bytes = blocks.as_flattened_mut();
        let start = at.saturating_mul(BLOCK);
        let there = usize::try_from(self.bytes.saturating_sub(start)).unwrap_or(usize::MAX);
        let (there, beyond) = bytes.split_at_mut(there.min(bytes.len()));
        beyond.fill(0);
        let done = self.file.read_exact_at(there, start);
        done.map_err(|why| Error::File(self.path.clone(), why))
    }
}

impl Target for Raw {
    fn write(&mut self, at: u64, block: &Block) -> Result<(), Error> {
        let done = files::write(&self.file, &self.path, at.saturating_mul(BLOCK), block);
        done.map_err(|why| Error::File(self.path.clone(), why))
    }

    fn flush(&mut self) -> Result<(), Error> {
        files::sync(&self.file, &self.path).map_err(|why| Error::File(self.path.clone(), why))
    }
}
