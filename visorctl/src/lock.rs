//! One program at a time at the port.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::failure::Failure;

/// Where the lock is by default. Not in /run/lock: there, every user may make this file first and hold it.
pub(crate) const DEFAULT: &str = "/run/visorctl.lock";

/// Takes the lock, which ends with the file that is returned.
///
/// # Errors
/// [`Failure::Busy`] if another program has it, [`Failure::Lock`] if there is no lock to be had.
pub(crate) fn take(path: &Path) -> Result<File, Failure> {
    let file = open(path).map_err(|why| Failure::Lock(path.into(), why))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::Busy(path.into())),
        Err(TryLockError::Error(why)) => Err(Failure::Lock(path.into(), why)),
    }
}

fn open(path: &Path) -> io::Result<File> {
    // An initial RAM disk may have no /run yet.
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::take;
    use crate::failure::Failure;
    use crate::tests::Folder;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_lock_is_one_programs_until_it_is_dropped() {
        let folder = Folder::new("lock");
        let path = folder.path("new/lock");
        let first = take(&path).unwrap();
        assert!(matches!(take(&path), Err(Failure::Busy(_))));
        drop(first);
        assert!(take(&path).is_ok());
    }

    #[test]
    fn a_link_is_no_lock() {
        let folder = Folder::new("lock-link");
        let path = folder.path("lock");
        symlink(folder.path("elsewhere"), &path).unwrap();
        assert!(matches!(take(&path), Err(Failure::Lock(..))));
        assert!(!folder.path("elsewhere").exists());
    }
}
