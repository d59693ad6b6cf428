//! All that this crate does to files, so that a test can know each thing of which a power cut may leave a part, or
//! nothing: see the feature `recorded`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A file was made, if there was none.
    Make(PathBuf),
    /// It got so many bytes.
    Length(PathBuf, u64),
    /// Bytes were written at this place.
    Write(PathBuf, u64, Vec<u8>),
    /// All that was done to the file is durable now, but for its name.
    Sync(PathBuf),
    /// The first name became the second one.
    Rename(PathBuf, PathBuf),
    /// All names in this folder are durable now.
    SyncFolder(PathBuf),
}

/// Whether a file that is there already is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replace {
    /// It is.
    Yes,
    /// It is in the way.
    No,
}

/// Opens a file, or makes it, readable for its owner only.
pub(crate) fn make(path: &Path) -> io::Result<File> {
    tell(|| Change::Make(path.into()));
    let mut options = OpenOptions::new();
    let _ = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path)
}

/// Gives a file so many bytes.
pub(crate) fn set_length(file: &File, path: &Path, bytes: u64) -> io::Result<()> {
    tell(|| Change::Length(path.into(), bytes));
    file.set_len(bytes)
}

/// Writes all of `bytes` at `at`.
pub(crate) fn write(file: &File, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
    tell(|| Change::Write(path.into(), at, bytes.into()));
    file.write_all_at(bytes, at)
}

/// Makes a file's content and length durable.
pub(crate) fn sync(file: &File, path: &Path) -> io::Result<()> {
    tell(|| Change::Sync(path.into()));
    file.sync_data()
}

/// Gives a file another name.
pub(crate) fn rename(from: &Path, to: &Path, replace: Replace) -> io::Result<()> {
    tell(|| Change::Rename(from.into(), to.into()));
    match replace {
        Replace::Yes => fs::rename(from, to),
        Replace::No => Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?),
    }
}

/// Makes durable which names are in the folder that `path` is in.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    tell(|| Change::SyncFolder(folder.into()));
    File::open(folder)?.sync_all()
}

#[cfg(not(feature = "recorded"))]
fn tell(_: impl FnOnce() -> Change) {}

#[cfg(feature = "recorded")]
pub use recorded::record;
#[cfg(feature = "recorded")]
use recorded::tell;

#[cfg(feature = "recorded")]
mod recorded {
    use std::cell::RefCell;

    use super::Change;

    thread_local! {
        static CHANGES: RefCell<Vec<Change>> = const { RefCell::new(Vec::new()) };
    }

    /// What `work` does to files in this thread, in its order.
    pub fn record<T>(work: impl FnOnce() -> T) -> (T, Vec<Change>) {
        drop(CHANGES.take());
        let result = work();
        (result, CHANGES.take())
    }

    pub(super) fn tell(change: impl FnOnce() -> Change) {
        CHANGES.with_borrow_mut(|changes| changes.push(change()));
    }
}
