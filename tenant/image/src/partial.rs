//! Files that appear under their name only when they are complete.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::files::{self, Replace};

/// A file that is being made, beside the one that it will be. Who holds it has it alone.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    out: PathBuf,
    replace: Replace,
    file: File,
}

impl Partial {
    /// Opens the file beside `out`, or makes it: readable for its owner only. Whether it was there.
    ///
    /// # Errors
    /// [`Error::Busy`], and [`Error::File`]: also if `out` is in the way, which would else be found out only
    /// in the end.
    pub(crate) fn open(out: &Path, replace: Replace) -> Result<(Self, bool), Error> {
        if replace == Replace::No && out.symlink_metadata().is_ok() {
            return Err(Error::File(out.into(), io::ErrorKind::AlreadyExists.into()));
        }
        let path = beside(out);
        let file = files::make(&path).map_err(|why| Error::File(path.clone(), why))?;
        lock(&file, &path)?;
        // It may have got its name between the two.
        let (ours, there) = (file.metadata(), fs::metadata(&path));
        if !matches!((ours, there), (Ok(ours), Ok(there)) if ours.ino() == there.ino()) {
            return Err(Error::Busy(path));
        }
        let found = length(&file, &path)? > 0;
        Ok((Self { path, out: out.into(), replace, file }, found))
    }

    /// The file.
    pub(crate) fn file(&self) -> Result<File, Error> {
        self.file.try_clone().map_err(|why| Error::File(self.path.clone(), why))
    }

    /// Where it is while it is not complete.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file, with all that is in it, its name.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(crate) fn complete(self) -> Result<(), Error> {
        let wrong = |why: io::Error| Error::File(self.out.clone(), why);
        files::sync(&self.file, &self.path).map_err(wrong)?;
        files::rename(&self.path, &self.out, self.replace).map_err(wrong)?;
        files::sync_folder_of(&self.out).map_err(wrong)
    }
}

/// `out` with `.partial` behind it.
pub(crate) fn beside(out: &Path) -> PathBuf {
    let mut name = OsString::from(out);
    name.push(".partial");
    name.into()
}

/// Keeps other runs of this program from a file.
///
/// # Errors
/// [`Error::Busy`], and [`Error::File`].
pub(crate) fn lock(file: &File, path: &Path) -> Result<(), Error> {
    file.try_lock().map_err(|why| match why {
        TryLockError::WouldBlock => Error::Busy(path.into()),
        TryLockError::Error(why) => Error::File(path.into(), why),
    })
}

fn length(file: &File, path: &Path) -> Result<u64, Error> {
    file.metadata().map(|data| data.len()).map_err(|why| Error::File(path.into(), why))
}
