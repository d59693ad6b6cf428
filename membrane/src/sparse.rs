//! Records of 32 bytes by the numbers of pages, in as many frames as they need.

use core::ops::Range;

use ept::addr::Frame;
use ept::ept01::{Exhausted, TableMem};

use crate::Progress;

/// What is kept of a page.
pub type Record = [u64; 4];

/// The record that every page has from the start. It takes no memory.
pub const NONE: Record = [0; 4];

/// Bits of the number of a page.
const NUMBER_BITS: u32 = 36;
/// Bits of a number that choose a record in the frame that has it.
const RECORD_BITS: u32 = 7;
/// Where those begin that choose the link, from the root down.
const SHIFTS: [u32; 4] = [34, 25, 16, RECORD_BITS];
/// Words in a frame.
const WORDS: usize = 512;
/// Marks a link. Frames begin with 12 bits of 0.
const LINK: u64 = 1;

/// Records that are [`NONE`] but for some: a radix tree over numbers of pages, below 2^36.
#[derive(Debug)]
pub struct Sparse {
    root: Option<Frame>,
    records: u64,
}

impl Sparse {
    /// All records are [`NONE`].
    #[must_use]
    pub const fn new() -> Self {
        Self { root: None, records: 0 }
    }

    /// Number of records that are not [`NONE`].
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.records
    }

    /// Whether all records are [`NONE`].
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The record of page `number`.
    #[must_use]
    pub fn get(&self, mem: &impl TableMem, number: u64) -> Record {
        let step = |table, shift: &u32| follow(mem, table, index(number, *shift));
        let frame = self.root.and_then(|root| SHIFTS.iter().try_fold(root, step));
        frame.map_or(NONE, |frame| read(mem, frame, number))
    }

    /// Makes `record` that of page `number`.
    ///
    /// # Errors
    /// [`Exhausted`] when `mem` has no frame left. The record is what it was. That never happens to
    /// one that was other than [`NONE`].
    pub fn set(
        &mut self,
        mem: &mut impl TableMem,
        number: u64,
        record: Record,
    ) -> Result<(), Exhausted> {
        if number >> NUMBER_BITS != 0 {
            return Err(Exhausted);
        }
        let made = if record == NONE { Ok(None) } else { self.make(mem, number).map(Some) };
        if let Ok(Some(frame)) = made {
            self.records += u64::from(read(mem, frame, number) == NONE);
            write(mem, frame, number, record);
        } else if self.get(mem, number) == NONE {
            // What was made of the way there.
            self.prune(mem, number);
        } else {
            self.records -= 1;
            self.erase(mem, number);
        }
        made.map(|_| ())
    }

    /// The first record of `pages` that is not [`NONE`], with its number.
    #[must_use]
    pub fn next(&self, mem: &impl TableMem, pages: Range<u64>) -> Option<(u64, Record)> {
        let mut number = pages.start;
        while number < pages.end.min(1 << NUMBER_BITS) {
            let mut frame = self.root?;
            let missing = SHIFTS.into_iter().find(|shift| {
                let next = follow(mem, frame, index(number, *shift));
                frame = next.unwrap_or(frame);
                next.is_none()
            });
            let Some(shift) = missing else {
                let record = read(mem, frame, number);
                if record != NONE {
                    return Some((number, record));
                }
                number += 1;
                continue;
            };
            number = ((number >> shift) + 1) << shift;
        }
        None
    }

    /// Makes all records [`NONE`], with at most `budget` frames given back; what is left of that
    /// stays in `budget`.
    pub fn clear(&mut self, mem: &mut impl TableMem, budget: &mut u32) -> Progress {
        if self.root.is_some_and(|root| !free(mem, root, &SHIFTS, budget)) {
            return Progress::Again;
        }
        (self.root, self.records) = (None, 0);
        Progress::Done
    }

    /// The frame that has the record of page `number`, made if it is not there.
    fn make(&mut self, mem: &mut impl TableMem, number: u64) -> Result<Frame, Exhausted> {
        let mut table = match self.root {
            Some(root) => root,
            None => *self.root.insert(mem.allocate().ok_or(Exhausted)?),
        };
        for shift in SHIFTS {
            let at = index(number, shift);
            table = match follow(mem, table, at) {
                Some(next) => next,
                None => {
                    let next = mem.allocate().ok_or(Exhausted)?;
                    mem.write(table, at, next.base() | LINK);
                    next
                }
            };
        }
        Ok(table)
    }

    /// Makes the record of page `number`, which is there, [`NONE`].
    fn erase(&mut self, mem: &mut impl TableMem, number: u64) {
        if let Ok(frame) = self.make(mem, number) {
            write(mem, frame, number, NONE);
        }
        self.prune(mem, number);
    }

    /// Gives back the frames on the way to page `number` that are empty.
    fn prune(&mut self, mem: &mut impl TableMem, number: u64) {
        if self.root.is_some_and(|root| prune(mem, root, number, &SHIFTS)) {
            self.root = None;
        }
    }
}

impl Default for Sparse {
    fn default() -> Self {
        Self::new()
    }
}

/// Index of a word by the bits of `number` from `shift` on.
fn index(number: u64, shift: u32) -> usize {
    usize::try_from(number >> shift).map_or(0, |index| index % WORDS)
}

/// Where the link at `at` leads.
fn follow(mem: &impl TableMem, table: Frame, at: usize) -> Option<Frame> {
    let raw = mem.read(table, at);
    (raw & LINK != 0).then(|| Frame::containing(raw))
}

/// First word of the record of page `number` in its frame.
fn place(number: u64) -> usize {
    index(number << 2, 0)
}

fn read(mem: &impl TableMem, frame: Frame, number: u64) -> Record {
    let first = place(number);
    [0, 1, 2, 3].map(|word| mem.read(frame, first + word))
}

fn write(mem: &mut impl TableMem, frame: Frame, number: u64, record: Record) {
    for (word, value) in (place(number)..).zip(record) {
        mem.write(frame, word, value);
    }
}

/// Gives back the frames that are empty from `table` on the way to page `number`; true if `table` is
/// among them.
fn prune(mem: &mut impl TableMem, table: Frame, number: u64, shifts: &[u32]) -> bool {
    if let [shift, rest @ ..] = shifts {
        let at = index(number, *shift);
        if follow(mem, table, at).is_some_and(|next| prune(mem, next, number, rest)) {
            mem.write(table, at, 0);
        }
    }
    let empty = (0..WORDS).all(|word| mem.read(table, word) == 0);
    if empty {
        mem.free(table);
    }
    empty
}

/// Gives back `table` and all below it, as far as `budget` goes; true if that was all.
fn free(mem: &mut impl TableMem, table: Frame, shifts: &[u32], budget: &mut u32) -> bool {
    if let [_, rest @ ..] = shifts {
        for at in 0..WORDS {
            let Some(next) = follow(mem, table, at) else { continue };
            if !free(mem, next, rest, budget) {
                return false;
            }
            mem.write(table, at, 0);
        }
    }
    let Some(left) = budget.checked_sub(1) else { return false };
    *budget = left;
    mem.free(table);
    true
}
