//! A qcow2, by the crate `imago`.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use imago::file::File as Storage;
use imago::qcow2::Qcow2 as Driver;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping, StorageOpenOptions};

use super::{Source, around};
use crate::error::Error;
use crate::{BLOCK, Block};

/// A qcow2.
pub struct Qcow2 {
    path: PathBuf,
    image: FormatAccess<Storage>,
}

impl fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Qcow2 {
    /// Other files that the image names, such as a backing file, are not opened: who made the image
    /// would else choose what of this computer goes into the disk.
    pub(super) fn open(path: &Path, file: File) -> Result<Self, Error> {
        let wrong = |why: io::Error| Error::Plain(path.into(), why.to_string());
        let storage = Storage::from_open_file(file, StorageOpenOptions::new()).map_err(wrong)?;
        let driver = Driver::<Storage>::builder(storage)
            .open(DenyImplicitOpenGate::default())
            .map_err(wrong)?;
        Ok(Self { path: path.into(), image: FormatAccess::new(driver) })
    }

    fn wrong(&self, why: io::Error) -> Error {
        Error::File(self.path.clone(), why)
    }
}

impl Source for Qcow2 {
    fn blocks(&self) -> u64 {
        self.image.size().div_ceil(BLOCK)
    }

    fn written(&mut self, from: u64) -> Result<Option<Range<u64>>, Error> {
        let (mut at, size) = (from.saturating_mul(BLOCK), self.image.size());
        while at < size {
            let found = self.image.get_mapping(at, size - at).map_err(|why| self.wrong(why))?;
            match found {
                (Mapping::Zero { .. }, length) if length > 0 => at = at.saturating_add(length),
                (Mapping::Raw { .. } | Mapping::Special { .. }, length) if length > 0 => {
                    let blocks = around(at..at.saturating_add(length).min(size));
                    return Ok(Some(blocks.start.max(from)..blocks.end));
                }
                // A size that the image does not have.
                _ => return Err(self.wrong(io::ErrorKind::UnexpectedEof.into())),
            }
        }
        Ok(None)
    }

    fn read(&mut self, at: u64, blocks: &mut [Block]) -> Result<(), Error> {
        let bytes = blocks.as_flattened_mut();
        let start = at.saturating_mul(BLOCK);
        let there = usize::try_from(self.image.size().saturating_sub(start)).unwrap_or(usize::MAX);
        let (there, beyond) = bytes.split_at_mut(there.min(bytes.len()));
        beyond.fill(0);
        self.image.read(&mut *there, start).map_err(|why| self.wrong(why))
    }
}
