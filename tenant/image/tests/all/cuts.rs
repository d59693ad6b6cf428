//! Reading of disks that a power cut has left in the middle of something.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use disk::header::Header;
use disk::storage::{Block, Error, Stop, Storage};
use disk::volume::{LEVELS, LONGEST, Memory, Pending, RANGES, Range, Slot, Step, Volume};
use image::Resume;
use image::progress::Quiet;

use super::folder::Folder;
use super::sealed::{KEY, how, plain, seal, unsealed};

/// A file that fails after some writes.
struct Cut {
    file: File,
    left: u64,
}

impl Storage for Cut {
    fn read(&mut self, at: u64, into: &mut [Block]) -> Result<(), Stop> {
        self.file.read_exact_at(into.as_flattened_mut(), at * 4096).unwrap();
        Ok(())
    }

    fn write(&mut self, at: u64, from: &[Block]) -> Result<(), Stop> {
        self.left = self.left.checked_sub(1).ok_or(Stop::Failed)?;
        self.file.write_all_at(from.as_flattened(), at * 4096).unwrap();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stop> {
        Ok(())
    }
}

/// Writes other blocks to a disk, and then empties its log; after `writes` writes there is no more
/// power. Whether all was done, and whether it came to the second part.
fn change(path: &Path, writes: u64) -> (bool, bool) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let total = file.metadata().unwrap().len() / 4096;
    let mut cut = Cut { file, left: writes };
    let mut headers = [[0; 4096]; 2];
    cut.read(total - 2, &mut headers).unwrap();
    let header = Header::newest(&mut headers, &KEY, total).unwrap();
    let (mut frames, mut run) = (Box::new([[0; 4096]; LONGEST]), Box::new([[0; 4096]; LONGEST]));
    let memory = Memory {
        entries: &mut vec![Pending::EMPTY; 4096],
        ranges: &mut [Range::EMPTY; RANGES],
        nodes: &mut [const { Slot::EMPTY }; 8],
        path: &mut [const { Step::EMPTY }; LEVELS],
        frames: &mut frames,
        run: &mut run,
        notes: &mut [Pending::EMPTY; LONGEST],
    };
    let mut volume = Volume::new(&header, memory, *b"opening 12").unwrap();
    let write = |volume: &mut Volume<'_>, cut: &mut Cut| {
        for block in [0, 40, 400, 799] {
            volume.write(cut, block, &[[0x77; 4096]])?;
        }
        volume.flush(cut)
    };
    let is_flushed = write(&mut volume, &mut cut).is_ok();
    let done = volume.checkpoint(&mut cut);
    assert!(matches!(done, Ok(()) | Err(Error::Failed | Error::Broken)));
    (done.is_ok(), is_flushed)
}

#[test]
fn reading_leaves_a_disk_as_a_power_cut_has_left_it() {
    let folder = Folder::new("cuts");
    let (path, old) = plain(&folder);
    let good = seal(&folder, &path, "sealed");
    let mut new = old.clone();
    for block in [0, 40, 400, 799] {
        new[block * 4096..(block + 1) * 4096].fill(0x77);
    }
    let (cut, larger) = (folder.path("cut"), folder.path("larger"));
    for writes in 0.. {
        let _ = fs::copy(&good, &cut).unwrap();
        let (is_done, is_flushed) = change(&cut, writes);
        let before = fs::read(&cut).unwrap();
        let found = image::verify(&cut, &KEY, &mut Quiet).unwrap();
        assert_eq!(found.broken, Some(Vec::new()), "{writes}");
        let content = unsealed(&folder, &cut, &KEY).unwrap();
        assert!(content == if is_flushed { new.clone() } else { old.clone() }, "{writes}");
        assert!(fs::read(&cut).unwrap() == before, "{writes}");
        // Nor does what makes another disk of it depend on where the blocks are.
        fs::rename(&cut, &larger).unwrap();
        let _ = image::anew(&larger, [&KEY; 2], None, &mut how(Resume::No)).unwrap();
        assert!(unsealed(&folder, &larger, &KEY).unwrap() == content, "{writes}");
        if is_done {
            assert!(writes > 8, "{writes} writes are no checkpoint");
            break;
        }
    }
}
