//! What is done with disks as a whole.

use std::fmt;
use std::path::Path;

use crate::copy::{compare, copy, written};
use crate::error::Error;
use crate::files::Replace;
use crate::partial::Partial;
use crate::plain::{self, Raw, Source};
use crate::progress::Progress;
use crate::room;
use crate::sealed::{self, Sealed};
use crate::storage::Access;
use crate::{BLOCK, WrappingKey};

/// What is known of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub id: [u8; 16],
    /// How many blocks a VM sees.
    pub capacity: u64,
    /// How many blocks there are, with all that the format adds.
    pub total: u64,
    /// How often it has changed.
    pub moment: u64,
    /// What stands for all that was written until then.
    pub tag: [u8; 16],
    /// How many blocks were written, where all was looked at.
    pub written: Option<u64>,
    /// What is not what was written, where all was looked at.
    pub broken: Option<Vec<Broken>>,
}

/// A part of a disk that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// 0 for a block of data; else the level of the node, from 1 on.
    pub level: u8,
    /// Its number in its level.
    pub index: u64,
}

/// What an interrupted command has left is …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// … where this one goes on.
    Yes,
    /// … in the way.
    No,
}

/// How a long command is done.
pub struct How {
    /// Whether it goes on.
    pub resume: Resume,
    /// Who is told how far it is.
    pub progress: Box<dyn Progress>,
}

impl fmt::Debug for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("How").field("resume", &self.resume).finish_non_exhaustive()
    }
}

/// What is sealed.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// The plain disk.
    pub plain: &'a Path,
    /// The sealed disk, which must not exist yet.
    pub out: &'a Path,
    /// What the VM sees, in bytes; as much as the plain disk has if it is left out.
    pub size: Option<u64>,
}

/// Makes an empty disk of `size` bytes.
///
/// # Errors
/// [`Error`]. Nothing is left then but perhaps `out` with `.partial` behind it.
pub fn create(out: &Path, key: &WrappingKey, size: u64) -> Result<Found, Error> {
    let partial = begin(out, Replace::No, Resume::No)?;
    sealed::create(partial.path(), partial.file()?, key, size / BLOCK)?;
    partial.complete()?;
    info(out, key)
}

/// Makes a sealed disk of a plain one, which stays as it is, and compares the two.
///
/// # Errors
/// [`Error`]. What was done until then is in `out` with `.partial` behind it, for [`Resume::Yes`].
pub fn seal(order: &Order<'_>, key: &WrappingKey, how: &mut How) -> Result<Found, Error> {
    let mut source = plain::open(order.plain)?;
    let blocks = blocks(source.as_ref(), order.size)?;
    let partial = begin(order.out, Replace::No, how.resume)?;
    let found = fill(&partial, source.as_mut(), key, blocks, how)?;
    partial.complete()?;
    Ok(found)
}

/// Makes a plain, raw disk of a sealed one.
///
/// # Errors
/// As [`seal`].
pub fn unseal(image: &Path, out: &Path, key: &WrappingKey, how: &mut How) -> Result<Found, Error> {
    let mut room = sealed::Room::new();
    let mut source = Sealed::open(image, key, Access::Read, &mut room)?;
    let partial = begin(out, Replace::No, how.resume)?;
    let mut target = Raw::make(partial.path(), partial.file()?, source.blocks())?;
    copy(&mut source, &mut target, how.progress.as_mut())?;
    partial.complete()?;
    Ok(source.found())
}

/// Reads all of a disk.
///
/// # Errors
/// [`Error`] where the disk cannot be opened; what is broken in it is in the answer.
pub fn verify(
    image: &Path,
    key: &WrappingKey,
    progress: &mut dyn Progress,
) -> Result<Found, Error> {
    let mut room = sealed::Room::new();
    let mut disk = Sealed::open(image, key, Access::Read, &mut room)?;
    let (written, broken) = disk.check(progress)?;
    Ok(Found { written: Some(written), broken: Some(broken), ..disk.found() })
}

/// Says what a disk is.
///
/// # Errors
/// [`Error`] where the disk cannot be opened.
pub fn info(image: &Path, key: &WrappingKey) -> Result<Found, Error> {
    let mut room = sealed::Room::new();
    Ok(Sealed::open(image, key, Access::Read, &mut room)?.found())
}

/// Puts a disk under the second key. Whoever has the first one, and a copy of a header as it was, can still
/// read the disk.
///
/// # Errors
/// [`Error`]. One of the two headers may be under the second key then; the disk opens with either key.
pub fn rekey(image: &Path, keys: [&WrappingKey; 2]) -> Result<Found, Error> {
    sealed::rekey(image, keys)?;
    info(image, keys[1])
}

/// Makes a new disk with the same data, of `size` bytes or as large as before, under the second key, and
/// has it take the old one's place. Until then there is room for both, and that is looked at before.
///
/// # Errors
/// As [`seal`]; the old disk is as it was.
pub fn anew(
    image: &Path,
    [old, new]: [&WrappingKey; 2],
    size: Option<u64>,
    how: &mut How,
) -> Result<Found, Error> {
    let mut memory = sealed::Room::new();
    let mut source = Sealed::open(image, old, Access::Read, &mut memory)?;
    let blocks = blocks(&source, size)?;
    let partial = begin(image, Replace::Yes, how.resume)?;
    let is_room = room::check(&partial.file()?, written(&mut source)?);
    is_room.map_err(|why| Error::File(partial.path().into(), why))?;
    let found = fill(&partial, &mut source, new, blocks, how)?;
    partial.complete()?;
    Ok(found)
}

/// How many blocks a disk of `size` bytes has that takes all of `source`.
fn blocks(source: &dyn Source, size: Option<u64>) -> Result<u64, Error> {
    let blocks = size.map_or(source.blocks(), |size| size / BLOCK);
    if blocks < source.blocks() {
        return Err(Error::Size("a disk cannot be smaller than what it is made of"));
    }
    Ok(blocks)
}

/// The file in which `out` is made.
fn begin(out: &Path, replace: Replace, resume: Resume) -> Result<Partial, Error> {
    let (partial, was_there) = Partial::open(out, replace)?;
    match (was_there, resume) {
        (true, Resume::No) => Err(Error::Leftover(partial.path().into())),
        (true, Resume::Yes) | (false, _) => Ok(partial),
    }
}

/// Makes of `partial` a sealed disk with all that `source` has, or goes on with that, and compares the two.
fn fill(
    partial: &Partial,
    source: &mut dyn Source,
    key: &WrappingKey,
    blocks: u64,
    how: &mut How,
) -> Result<Found, Error> {
    let (path, progress) = (partial.path(), how.progress.as_mut());
    if !sealed::is_begun(path, partial.file()?, key)? {
        sealed::create(path, partial.file()?, key, blocks)?;
    }
    let mut room = sealed::Room::new();
    let mut target = Sealed::over(path, partial.file()?, key, Access::Write, &mut room)?;
    if target.blocks() != blocks {
        return Err(Error::Size(
            "what an interrupted command left is of another size: remove it, or give that size",
        ));
    }
    copy(source, &mut target, progress)?;
    target.close()?;
    let mut room = sealed::Room::new();
    let mut target = Sealed::over(path, partial.file()?, key, Access::Read, &mut room)?;
    let written = compare(source, &mut target, progress)?;
    Ok(Found { written: Some(written), ..target.found() })
}
