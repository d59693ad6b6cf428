//! Whether there is room for what is made.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::fs::fstatvfs;

use crate::BLOCK;

/// Looks whether so many blocks can be written to `file`, with nodes and a log besides. What it holds already, it needs
/// no second time. Others may take the room meanwhile: this only spares hours of work of which the end can be foreseen.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`], and where the file system does not answer.
pub(crate) fn check(file: &File, blocks: u64) -> io::Result<()> {
    let system = fstatvfs(file)?;
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    // POSIX leaves the unit open; Linux counts in 512 bytes.
    let held = file.metadata()?.blocks().saturating_mul(512);
    enough(blocks, free.saturating_add(held))
}

/// Whether `there` bytes are enough for so many blocks and the hundredth part that the format adds.
fn enough(blocks: u64, there: u64) -> io::Result<()> {
    let needed = blocks.saturating_add(blocks / 100).saturating_mul(BLOCK);
    if needed <= there {
        return Ok(());
    }
    let (needed, there) = (needed.div_ceil(1 << 20), there >> 20);
    let why = format!("needs {needed} MiB beside the old disk, and there is room for {there} MiB");
    Err(io::Error::new(io::ErrorKind::StorageFull, why))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{check, enough};

    #[test]
    fn a_hundredth_is_added_and_the_last_byte_counts() {
        assert!(enough(0, 0).is_ok());
        assert!(enough(200, 202 * 4096).is_ok());
        let why = enough(25_600, 25_856 * 4096 - 1).unwrap_err().to_string();
        assert_eq!(why, "needs 101 MiB beside the old disk, and there is room for 100 MiB");
        assert!(enough(u64::MAX, u64::MAX - 1).is_err());
    }

    #[test]
    fn no_file_system_has_room_for_all_blocks_that_there_can_be() {
        let here = File::open(".").unwrap();
        assert!(check(&here, 1 << 50).is_err());
        assert!(check(&here, 0).is_ok());
    }
}
