//! Blocks from one disk to another, and whether they are the same.

use std::ops::Range;

use crate::error::Error;
use crate::plain::{Source, Target};
use crate::progress::{Phase, Progress, Step};
use crate::{BLOCK, Block};

/// How many blocks are read at once: 1 MiB.
const AT_ONCE: u64 = 256;

/// Copies what is not zero from `source` to `target`, which is not smaller, and begins where an earlier
/// copy was interrupted: what `target` has is compared and not written again.
///
/// # Errors
/// [`Error::Differs`] where `target` has something else than `source`; what either cannot do.
pub(crate) fn copy(
    source: &mut dyn Source,
    target: &mut dyn Target,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let total = written(source)?;
    let (mut done, mut at) = (0, 0);
    let mut here = buffer();
    let mut there = buffer();
    while let Some(run) = source.written(at)? {
        at = run.end;
        for piece in pieces(run) {
            let (here, there) = (part(&mut here, &piece), part(&mut there, &piece));
            source.read(piece.start, here)?;
            target.read(piece.start, there)?;
            for (index, (from, to)) in piece.clone().zip(here.iter().zip(there.iter())) {
                if from == to {
                    continue;
                }
                if to.iter().any(|byte| *byte != 0) {
                    return Err(Error::Differs(index));
                }
                target.write(index, from)?;
            }
            done += piece.end - piece.start;
            progress.step(Step { phase: Phase::Write, done: done * BLOCK, total: total * BLOCK });
        }
    }
    target.flush()
}

/// Checks that two disks read the same, as far as the smaller one goes, and that the rest of the larger one
/// is zeros. The number of blocks that are other than zeros.
///
/// # Errors
/// [`Error::Differs`] where they do not; what either cannot do.
pub(crate) fn compare(
    one: &mut dyn Source,
    two: &mut dyn Source,
    progress: &mut dyn Progress,
) -> Result<u64, Error> {
    let total = written(two)?;
    let (mut done, mut at, mut used) = (0, 0, 0);
    let mut here = buffer();
    let mut there = buffer();
    while let Some(run) = either(one, two, at)? {
        at = run.end;
        for piece in pieces(run) {
            let (here, there) = (part(&mut here, &piece), part(&mut there, &piece));
            read(one, &piece, here)?;
            read(two, &piece, there)?;
            for (index, (one, two)) in piece.clone().zip(here.iter().zip(there.iter())) {
                if one != two {
                    return Err(Error::Differs(index));
                }
                used += u64::from(one.iter().any(|byte| *byte != 0));
            }
            done += piece.end - piece.start;
            let done = done.min(total) * BLOCK;
            progress.step(Step { phase: Phase::Verify, done, total: total * BLOCK });
        }
    }
    Ok(used)
}

/// How many blocks may be other than zeros.
///
/// # Errors
/// `source` cannot be read.
pub(crate) fn written(source: &mut dyn Source) -> Result<u64, Error> {
    let (mut count, mut at) = (0, 0);
    while let Some(run) = source.written(at)? {
        count += run.end - run.start;
        at = run.end;
    }
    Ok(count)
}

/// The next blocks that may be other than zeros in one of two.
fn either(
    one: &mut dyn Source,
    two: &mut dyn Source,
    from: u64,
) -> Result<Option<Range<u64>>, Error> {
    Ok(match (one.written(from)?, two.written(from)?) {
        (Some(one), Some(two)) => Some(if one.start <= two.start { one } else { two }),
        (one, two) => one.or(two),
    })
}

/// Reads blocks of which a source may have none: zeros then.
fn read(source: &mut dyn Source, piece: &Range<u64>, blocks: &mut [Block]) -> Result<(), Error> {
    let there = source.blocks().saturating_sub(piece.start);
    let there = usize::try_from(there).unwrap_or(usize::MAX).min(blocks.len());
    let (there, beyond) = blocks.split_at_mut(there);
    beyond.as_flattened_mut().fill(0);
    if there.is_empty() { Ok(()) } else { source.read(piece.start, there) }
}

/// A run, as it is read.
pub(crate) fn pieces(run: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let steps = (run.end - run.start).div_ceil(AT_ONCE);
    (0..steps).map(move |step| {
        let start = run.start + step * AT_ONCE;
        start..run.end.min(start + AT_ONCE)
    })
}

/// Room for a piece.
pub(crate) fn buffer() -> Vec<Block> {
    (0..AT_ONCE).map(|_| [0; 4096]).collect()
}

/// As much of that room as `piece` takes.
pub(crate) fn part<'a>(buffer: &'a mut [Block], piece: &Range<u64>) -> &'a mut [Block] {
    let length = usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX);
    buffer.get_mut(..length).unwrap_or_default()
}
