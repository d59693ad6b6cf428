//! A folder from which the power can be cut: it holds what a list of changes has made of it, and knows what of that
//! is not durable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image::files::Change;

/// The unit that storage writes whole.
const SECTOR: usize = 512;

/// A small generator of numbers that look random (SplitMix64).
#[derive(Clone, Copy, Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True in one of `of` cases.
    fn is_one(&mut self, of: u64) -> bool {
        self.roll().is_multiple_of(of)
    }
}

/// What survives of that which is not durable. Names survive in their order, as in a journal, and
/// apart from what is in the files.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    /// This many of the changes to files, from the first on.
    After(usize),
    /// All of those but this one.
    One(usize),
    /// The changes whose bits are set.
    Set(u32),
    /// Half of the changes, each whole.
    Some,
    /// Half of the sectors.
    Torn,
}

/// A file, whatever its name is.
#[derive(Clone, Debug, Default)]
struct Content {
    durable: Vec<u8>,
    /// Changes since.
    recent: Vec<Change>,
}

/// Names, and which file each of them is.
type Names = BTreeMap<PathBuf, usize>;

/// What is in the folder after a power cut.
pub(super) type Left = BTreeMap<PathBuf, Vec<u8>>;

/// The folder.
#[derive(Clone, Debug, Default)]
pub(super) struct Folder {
    files: Vec<Content>,
    names: Names,
    durable: Names,
    /// What the names were after each change since.
    recent: Vec<Names>,
}

impl Folder {
    /// With these files, which are durable.
    pub(super) fn of(files: &Left) -> Self {
        let content = |bytes: &Vec<u8>| Content { durable: bytes.clone(), recent: Vec::new() };
        let names: Names = files.keys().cloned().zip(0..).collect();
        Self {
            files: files.values().map(content).collect(),
            durable: names.clone(),
            names,
            recent: Vec::new(),
        }
    }

    /// Does what was done.
    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Make(path) if self.names.contains_key(path) => {}
            Change::Make(path) => {
                let _ = self.names.insert(path.clone(), self.files.len());
                self.files.push(Content::default());
                self.recent.push(self.names.clone());
            }
            Change::Length(path, _) | Change::Write(path, ..) => {
                self.file(path).recent.push(change.clone());
            }
            Change::Sync(path) => {
                let file = self.file(path);
                for change in std::mem::take(&mut file.recent) {
                    keep(&mut file.durable, &change, |_| true);
                }
            }
            Change::Rename(from, to) => {
                let file = self.names.remove(from).unwrap();
                let _ = self.names.insert(to.clone(), file);
                self.recent.push(self.names.clone());
            }
            Change::SyncFolder(_) => {
                self.recent.clear();
                self.durable.clone_from(&self.names);
            }
        }
    }

    fn file(&mut self, path: &Path) -> &mut Content {
        &mut self.files[self.names[path]]
    }

    /// How many changes to files a power cut can take back, and how many to names.
    pub(super) fn at_stake(&self) -> (usize, usize) {
        (self.files.iter().map(|file| file.recent.len()).sum(), self.recent.len())
    }

    /// What a power cut may leave: of what is not durable so many changes to names, and to files what `loss` says.
    pub(super) fn cut(&self, names: usize, loss: Loss, dice: &mut Dice) -> Left {
        let names = names.checked_sub(1).map_or(&self.durable, |last| &self.recent[last]);
        let mut contents = Vec::new();
        let mut number = 0;
        for file in &self.files {
            let mut bytes = file.durable.clone();
            for change in &file.recent {
                let is_whole = match loss {
                    Loss::After(count) => number < count,
                    Loss::One(lost) => number != lost,
                    Loss::Set(kept) => kept & 1 << number != 0,
                    Loss::Some => dice.is_one(2),
                    Loss::Torn => false,
                };
                let is_torn = matches!(loss, Loss::Torn);
                keep(&mut bytes, change, |_| is_whole || is_torn && dice.is_one(2));
                number += 1;
            }
            contents.push(bytes);
        }
        names.iter().map(|(path, file)| (path.clone(), contents[*file].clone())).collect()
    }
}

/// Does to a file what was done, as far as `is_kept` says for each sector.
fn keep(file: &mut Vec<u8>, change: &Change, mut is_kept: impl FnMut(usize) -> bool) {
    match change {
        Change::Length(_, bytes) if is_kept(0) => file.resize(usize::try_from(*bytes).unwrap(), 0),
        Change::Write(_, at, bytes) => {
            let start = usize::try_from(*at).unwrap();
            for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                if is_kept(number) {
                    let place = start + number * SECTOR..start + number * SECTOR + sector.len();
                    file.resize(file.len().max(place.end), 0);
                    file[place].copy_from_slice(sector);
                }
            }
        }
        Change::Length(..)
        | Change::Make(_)
        | Change::Sync(_)
        | Change::Rename(..)
        | Change::SyncFolder(_) => {}
    }
}
