//! Commands that were interrupted.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;

use image::progress::{Progress, Step};
use image::{Error, Found, How, Order, Refusal, Resume, WrappingKey};

use super::folder::Folder;
use super::sealed::{BLOCK, KEY, OTHER, how, plain, seal, unsealed};

/// Keeps a copy of a file at each step: what a kill there would leave.
struct Copies {
    file: PathBuf,
    kept: Rc<RefCell<Vec<Vec<u8>>>>,
}

impl Progress for Copies {
    fn step(&mut self, _: Step) {
        self.kept.borrow_mut().push(fs::read(&self.file).unwrap());
    }
}

#[test]
fn sealing_goes_on_wherever_it_was_interrupted() {
    let folder = Folder::new("resume");
    let (path, content) = plain(&folder);
    let (out, partial) = (folder.path("sealed"), folder.path("sealed.partial"));
    let order = Order { plain: &path, out: &out, size: None };
    let kept = Rc::new(RefCell::new(Vec::new()));
    let progress = Box::new(Copies { file: partial.clone(), kept: Rc::clone(&kept) });
    let _ = image::seal(&order, &KEY, &mut How { resume: Resume::No, progress }).unwrap();
    let kept = kept.borrow();
    assert!(kept.len() > 10);
    let length = kept[0].len();
    // Before the first step there is nothing, or a file without headers.
    for left in kept.iter().chain([&vec![], &vec![0; length]]) {
        fs::remove_file(&out).unwrap();
        fs::write(&partial, left).unwrap();
        if !left.is_empty() {
            let refused = image::seal(&order, &KEY, &mut how(Resume::No));
            assert!(matches!(refused, Err(Error::Leftover(_))));
        }
        let _ = image::seal(&order, &KEY, &mut how(Resume::Yes)).unwrap();
        assert!(!partial.exists());
        assert!(unsealed(&folder, &out, &KEY).unwrap() == content);
    }
}

/// Changes a block of a file at the fifth step.
struct Meddler {
    file: PathBuf,
    block: u64,
    steps: u32,
}

impl Progress for Meddler {
    fn step(&mut self, _: Step) {
        self.steps += 1;
        if self.steps == 5 {
            let file = File::options().write(true).open(&self.file).unwrap();
            file.write_all_at(&[0x11; 4096], self.block * BLOCK).unwrap();
        }
    }
}

#[test]
fn a_plain_disk_that_changes_while_it_is_sealed_is_noticed() {
    let folder = Folder::new("meddler");
    // These were passed then, as data and as a hole.
    for block in [3, 40] {
        let (path, _) = plain(&folder);
        let out = folder.path("sealed");
        let progress = Box::new(Meddler { file: path.clone(), block, steps: 0 });
        let order = Order { plain: &path, out: &out, size: None };
        let result = image::seal(&order, &KEY, &mut How { resume: Resume::No, progress });
        assert!(matches!(result, Err(Error::Differs(found)) if found == block));
        assert!(!out.exists());
        fs::remove_file(folder.path("sealed.partial")).unwrap();
    }
}

/// Goes on with sealing `order`, of which `begun` was all but done: `order.out` has the same content.
fn go_on(order: &Order<'_>, key: &WrappingKey, begun: &[u8]) -> Result<Found, Error> {
    fs::write(order.out.with_extension("partial"), begun).unwrap();
    image::seal(order, key, &mut how(Resume::Yes))
}

#[test]
fn what_was_begun_with_another_key_or_size_is_left_as_it_is() {
    let folder = Folder::new("other");
    let (path, _) = plain(&folder);
    let begun = fs::read(seal(&folder, &path, "sealed")).unwrap();
    let (out, partial) = (folder.path("new"), folder.path("new.partial"));
    let order = Order { plain: &path, out: &out, size: None };
    let refused = go_on(&order, &OTHER, &begun);
    assert!(matches!(refused, Err(Error::Header(_, Refusal::Forged))));
    assert!(fs::read(&partial).unwrap() == begun);
    let refused = go_on(&Order { size: Some(900 * BLOCK), ..order }, &KEY, &begun);
    assert!(matches!(refused, Err(Error::Size(_))));
    // Opening is a change, as a power cut would have to be tidied up; the content is as it was.
    assert!(!out.exists() && fs::read(&partial).unwrap().len() == begun.len());
    let _ = go_on(&order, &KEY, &begun).unwrap();
    let refused = go_on(&order, &KEY, &begun);
    assert!(matches!(refused, Err(Error::File(..))), "another disk is in the way");
}

#[test]
fn what_was_begun_with_another_plain_disk_is_not_gone_on_with() {
    let folder = Folder::new("changed-since");
    let (path, _) = plain(&folder);
    let begun = fs::read(seal(&folder, &path, "sealed")).unwrap();
    let (changed, out) = (folder.path("changed"), folder.path("new"));
    let order = Order { plain: &changed, out: &out, size: None };
    let other = |block: u64, byte| {
        let _ = fs::copy(&path, &changed).unwrap();
        let file = File::options().write(true).open(&changed).unwrap();
        file.write_all_at(&[byte; 4096], block * BLOCK).unwrap();
        go_on(&order, &KEY, &begun)
    };
    // A block is another one, or is not there.
    for byte in [9, 0] {
        assert!(matches!(other(81, byte), Err(Error::Differs(81))));
        assert!(!out.exists());
    }
    // A block that is there besides may just not have been sealed yet.
    let _ = other(79, 9).unwrap();
    assert!(unsealed(&folder, &out, &KEY).unwrap() == fs::read(&changed).unwrap());
}
