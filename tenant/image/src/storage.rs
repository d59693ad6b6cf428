//! A sealed disk's file, for the engine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use disk::storage::{Stop, Storage};

use crate::error::Error;
use crate::files;
use crate::partial::lock;
use crate::{BLOCK, Block};

/// What may be done with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It is read. Where the engine has to tidy up after a power cut, that stays in memory.
    Read,
    /// It is written.
    Write,
}

/// A file of blocks.
#[derive(Debug)]
pub(crate) struct Blocks {
    path: PathBuf,
    file: File,
    /// What was written, where nothing may be.
    aside: Option<BTreeMap<u64, Block>>,
    /// Why the file failed last.
    why: Option<io::Error>,
}

impl Blocks {
    /// Opens a file that nobody else has open for writing.
    ///
    /// # Errors
    /// [`Error::Busy`], and [`Error::File`].
    pub(crate) fn open(path: &Path, access: Access) -> Result<Self, Error> {
        let write = access == Access::Write;
        let file = File::options().read(true).write(write).open(path);
        let file = file.map_err(|why| Error::File(path.into(), why))?;
        lock(&file, path)?;
        Ok(Self::over(path, file, access))
    }

    /// Takes a file that is open.
    pub(crate) fn over(path: &Path, file: File, access: Access) -> Self {
        let aside = (access == Access::Read).then(BTreeMap::new);
        Self { path: path.into(), file, aside, why: None }
    }

    /// How many blocks there are.
    ///
    /// # Errors
    /// [`Error::Shape`] if the last one is cut short; [`Error::File`].
    pub(crate) fn count(&self) -> Result<u64, Error> {
        let bytes = self.file.metadata().map_err(|why| Error::File(self.path.clone(), why))?.len();
        if bytes.is_multiple_of(BLOCK) { Ok(bytes / BLOCK) } else { Err(self.shape()) }
    }

    /// Whether it can be a disk's: whole blocks, and two at least.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(crate) fn is_disk(&self) -> Result<bool, Error> {
        match self.count() {
            Ok(count) => Ok(count >= 2),
            Err(Error::Shape(_)) => Ok(false),
            Err(why) => Err(why),
        }
    }

    /// The two headers, as they are.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::File`].
    pub(crate) fn headers(&self) -> Result<[Block; 2], Error> {
        let at = self.count()?.checked_sub(2).ok_or_else(|| self.shape())?;
        let mut headers = [[0; 4096]; 2];
        let done = self.file.read_exact_at(headers.as_flattened_mut(), at * BLOCK);
        done.map_err(|why| Error::File(self.path.clone(), why))?;
        Ok(headers)
    }

    /// Whose it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file so many blocks.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(crate) fn set_count(&self, blocks: u64) -> Result<(), Error> {
        let set = files::set_length(&self.file, &self.path, blocks * BLOCK);
        set.map_err(|why| Error::File(self.path.clone(), why))
    }

    /// What the engine says, as an error of this crate's.
    pub(crate) fn wrong(&mut self, why: disk::storage::Error) -> Error {
        match (why, self.why.take()) {
            (disk::storage::Error::Forged { level, index }, _) => {
                Error::Forged(self.path.clone(), index, level)
            }
            (disk::storage::Error::Failed, Some(why)) => Error::File(self.path.clone(), why),
            (why, _) => Error::Engine(self.path.clone(), why),
        }
    }

    fn shape(&self) -> Error {
        Error::Shape(self.path.clone())
    }

    fn done(&mut self, result: io::Result<()>) -> Result<(), Stop> {
        result.map_err(|why| {
            self.why = Some(why);
            Stop::Failed
        })
    }
}

impl Storage for Blocks {
    fn read(&mut self, at: u64, into: &mut [Block]) -> Result<(), Stop> {
        let read = self.file.read_exact_at(into.as_flattened_mut(), at.saturating_mul(BLOCK));
        self.done(read)?;
        if let Some(aside) = &self.aside {
            for (number, block) in (at..).zip(into) {
                if let Some(newer) = aside.get(&number) {
                    *block = *newer;
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, at: u64, from: &[Block]) -> Result<(), Stop> {
        if let Some(aside) = &mut self.aside {
            aside.extend((at..).zip(from.iter().copied()));
            return Ok(());
        }
        let written =
            files::write(&self.file, &self.path, at.saturating_mul(BLOCK), from.as_flattened());
        self.done(written)
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let flushed =
            if self.aside.is_some() { Ok(()) } else { files::sync(&self.file, &self.path) };
        self.done(flushed)
    }
}
