//! Power cuts in commands. All that a command does to files is recorded; then it is cut short after each of these things, and of
//! what was not durable then some is lost, out of order, or torn. A name may survive without the content, and the other way round.

mod folder;

use std::fs;
use std::path::{Path, PathBuf};

use image::files::{Change, record};
use image::{Error, Order, Resume, WrappingKey};

use self::folder::{Dice, Left, Loss};
use super::folder::Folder;
use super::sealed::{BLOCK, KEY, OTHER, how, unsealed};

/// Changes of which every subset is tried, if there are no more than these.
const ALL: usize = 5;

/// A command, and what is done in a folder where it was cut short.
struct Case<'a> {
    folder: &'a Folder,
    /// What was there before.
    before: Left,
    changes: Vec<Change>,
}

impl<'a> Case<'a> {
    /// Records `command` in a folder as it is.
    fn of(folder: &'a Folder, command: impl FnOnce()) -> Self {
        let before = read(folder);
        let ((), changes) = record(command);
        Self { folder, before, changes }
    }

    /// Has `look` see the folder after each cut, and whether the command had ended.
    fn each(&self, mut look: impl FnMut(bool, &str)) {
        let mut now = folder::Folder::of(&self.before);
        let mut dice = Dice(7);
        for time in 0..=self.changes.len() {
            if let Some(last) = time.checked_sub(1) {
                now.apply(&self.changes[last]);
            }
            let (files, names) = now.at_stake();
            for names in 0..=names {
                for loss in losses(files) {
                    self.write(&now.cut(names, loss, &mut dice));
                    let story = format!(
                        "{time} of {} things done, {names} names, {loss:?}",
                        self.changes.len()
                    );
                    look(time == self.changes.len(), &story);
                }
            }
        }
    }

    /// Makes the folder what a cut has left.
    fn write(&self, left: &Left) {
        for name in self.folder.names() {
            if !left.contains_key(&self.folder.path(&name)) {
                fs::remove_file(self.folder.path(&name)).unwrap();
            }
        }
        for (path, content) in left {
            // What does not change, as the plain disk, keeps its holes.
            if fs::read(path).ok().as_ref() != Some(content) {
                fs::write(path, content).unwrap();
            }
        }
    }
}

/// What can be lost of so many changes.
fn losses(changes: usize) -> Vec<Loss> {
    if changes > ALL {
        return vec![
            Loss::Torn,
            Loss::After(0),
            Loss::After(changes / 2),
            Loss::After(changes),
            Loss::One(0),
            Loss::One(changes - 2),
            Loss::Some,
        ];
    }
    let torn = if changes == 0 { 0 } else { 6 };
    let sets = (0..1 << changes).map(Loss::Set);
    std::iter::repeat_n(Loss::Torn, torn).chain(sets).collect()
}

fn read(folder: &Folder) -> Left {
    let path = |name: String| folder.path(&name);
    folder
        .names()
        .into_iter()
        .map(path)
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect()
}

/// A raw image of 140 blocks, so that there are two leaves. More are written than the log may speak of, so there is a
/// checkpoint on the way.
fn plain(folder: &Folder) -> (PathBuf, Vec<u8>) {
    let is_hole = |block| (50..120).contains(&block);
    let content: Vec<u8> =
        (1..=140_u8).flat_map(|block| [if is_hole(block) { 0 } else { block }; 4096]).collect();
    let path = folder.path("plain");
    fs::write(&path, &content).unwrap();
    (path, content)
}

/// A disk with it, and nothing else in the folder.
fn sealed(folder: &Folder) -> (PathBuf, Vec<u8>) {
    let (plain, content) = plain(folder);
    let out = folder.path("sealed");
    let order = Order { plain: &plain, out: &out, size: None };
    let _ = image::seal(&order, &KEY, &mut how(Resume::No)).unwrap();
    fs::remove_file(plain).unwrap();
    (out, content)
}

/// What is on a disk.
fn content(path: &Path, key: &WrappingKey) -> Result<Vec<u8>, Error> {
    let folder = path.parent().unwrap().file_name().unwrap();
    let aside = Folder::quick(&format!("content-of-{}", folder.display()));
    unsealed(&aside, path, key)
}

#[test]
fn a_disk_that_is_being_sealed_has_its_name_only_when_it_is_whole() {
    let folder = Folder::quick("power-seal");
    let (plain, expected) = plain(&folder);
    let (out, partial) = (folder.path("sealed"), folder.path("sealed.partial"));
    let order = Order { plain: &plain, out: &out, size: None };
    let seal = || image::seal(&order, &KEY, &mut how(Resume::Yes));
    let case = Case::of(&folder, || drop(seal().unwrap()));
    case.each(|is_done, story| {
        assert!(!is_done || out.exists(), "{story}");
        if out.exists() {
            assert!(!partial.exists(), "{story}");
        } else {
            let resumed = seal();
            assert!(resumed.is_ok(), "{story}: {resumed:?}");
            let both = [0, 1].map(|header| header_sequence(&out, header));
            assert!(both.iter().all(Option::is_some), "{story}: {both:?}");
        }
        assert!(content(&out, &KEY).unwrap() == expected, "{story}");
        assert!(fs::read(&plain).unwrap() == expected, "{story}");
    });
}

#[test]
fn an_empty_disk_has_its_name_only_when_it_is_whole() {
    let folder = Folder::quick("power-create");
    let (out, partial) = (folder.path("new"), folder.path("new.partial"));
    let create = || image::create(&out, &KEY, 40 * BLOCK);
    let case = Case::of(&folder, || drop(create().unwrap()));
    case.each(|is_done, story| {
        assert!(!is_done || out.exists(), "{story}");
        if !out.exists() {
            // What is left is for a person to remove: it could be of another command.
            let _ = fs::remove_file(&partial);
            let _ = create().unwrap();
        }
        assert!(content(&out, &KEY).unwrap() == vec![0; 40 * 4096], "{story}");
    });
}

#[test]
fn a_disk_that_is_made_larger_is_the_old_one_or_the_new_one() {
    let folder = Folder::quick("power-resize");
    let (path, old) = sealed(&folder);
    let mut new = old.clone();
    new.resize(200 * 4096, 0);
    let size = Some(200 * BLOCK);
    let resize = || image::anew(&path, [&KEY, &OTHER], size, &mut how(Resume::Yes));
    let case = Case::of(&folder, || drop(resize().unwrap()));
    case.each(|is_done, story| {
        match content(&path, &KEY) {
            Ok(found) => {
                assert!(found == old && !is_done, "{story}");
                let resumed = resize();
                assert!(resumed.is_ok(), "{story}: {resumed:?}");
            }
            Err(Error::Header(..)) => {}
            Err(other) => panic!("{story}: {other}"),
        }
        assert!(content(&path, &OTHER).unwrap() == new, "{story}");
        assert_eq!(folder.names(), ["sealed"], "{story}");
    });
}

#[test]
fn a_disk_that_is_put_under_another_key_opens_with_one_of_the_two() {
    let folder = Folder::quick("power-rekey");
    let (path, expected) = sealed(&folder);
    let rekey = || image::rekey(&path, [&KEY, &OTHER]);
    let case = Case::of(&folder, || drop(rekey().unwrap()));
    case.each(|is_done, story| {
        let (old, new) = (content(&path, &KEY), content(&path, &OTHER));
        for found in [&old, &new].into_iter().flatten() {
            assert!(*found == expected, "{story}");
        }
        assert!(old.is_ok() && !is_done || new.is_ok(), "{story}");
        let again = rekey();
        assert!(again.is_ok(), "{story}: {again:?}");
        assert!(image::info(&path, &KEY).is_err(), "{story}");
        let both = [0, 1].map(|header| header_sequence(&path, header));
        assert!(both.iter().all(Option::is_none), "{story}: under the old key");
        assert!(content(&path, &OTHER).unwrap() == expected, "{story}");
    });
}

/// What a disk's first or second header says under [`KEY`].
fn header_sequence(path: &Path, header: usize) -> Option<u64> {
    let bytes = fs::read(path).unwrap();
    let total = bytes.len() / 4096;
    let mut block = *bytes[(total - 2 + header) * 4096..].first_chunk().unwrap();
    let header = disk::header::Header::open(&mut block, &KEY, u64::try_from(total).unwrap());
    header.ok().map(|header| header.sequence)
}
