//! Sealed disks: made, read, changed behind their back, put under other keys.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use image::progress::Quiet;
use image::{Broken, Error, How, Order, Refusal, Resume, WrappingKey};

use super::folder::Folder;
use super::qcow2::{Cluster, qcow2};

pub(crate) const KEY: WrappingKey = [0x4b; 32];
pub(crate) const OTHER: WrappingKey = [0x4f; 32];
pub(crate) const BLOCK: u64 = 4096;

pub(crate) fn how(resume: Resume) -> How {
    How { resume, progress: Box::new(Quiet) }
}

/// A raw image of 800 blocks: some ten runs of data, each block different, between holes.
pub(crate) fn plain(folder: &Folder) -> (PathBuf, Vec<u8>) {
    let path = folder.path("plain");
    let file = File::create(&path).unwrap();
    let mut content = vec![0; 800 * 4096];
    for block in (0..800).filter(|block| block % 80 < 30) {
        let place = block * 4096..(block + 1) * 4096;
        content[place.clone()].fill(0xc3);
        content[block * 4096..block * 4096 + 8].copy_from_slice(&block.to_le_bytes());
        file.write_all_at(&content[place], u64::try_from(block).unwrap() * BLOCK).unwrap();
    }
    file.set_len(800 * BLOCK).unwrap();
    (path, content)
}

/// Seals a plain disk as `name` under [`KEY`].
pub(crate) fn seal(folder: &Folder, plain: &Path, name: &str) -> PathBuf {
    let out = folder.path(name);
    let order = Order { plain, out: &out, size: None };
    let found = image::seal(&order, &KEY, &mut how(Resume::No)).unwrap();
    assert_eq!(found.total * BLOCK, fs::metadata(&out).unwrap().len());
    out
}

/// What a sealed disk has in it.
pub(crate) fn unsealed(folder: &Folder, image: &Path, key: &WrappingKey) -> Result<Vec<u8>, Error> {
    let out = folder.path("unsealed");
    let _ = fs::remove_file(&out);
    let _ = fs::remove_file(folder.path("unsealed.partial"));
    let found = image::unseal(image, &out, key, &mut how(Resume::No))?;
    assert_eq!(found.capacity * BLOCK, fs::metadata(&out).unwrap().len());
    Ok(fs::read(&out).unwrap())
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_raw_disk_comes_back_as_it_was_and_nothing_of_it_is_in_the_sealed_one() {
    let folder = Folder::new("round");
    let (path, content) = plain(&folder);
    let out = seal(&folder, &path, "sealed");
    assert!(unsealed(&folder, &out, &KEY).unwrap() == content);
    let bytes = fs::read(&out).unwrap();
    assert!(!bytes.windows(16).any(|piece| piece == [0xc3; 16]));
    let found = image::verify(&out, &KEY, &mut Quiet).unwrap();
    assert_eq!((found.written, found.broken), (Some(300), Some(Vec::new())));
    assert_eq!(found.capacity, 800);
    let used = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    assert!(used(&out) < 450 * BLOCK, "{} bytes for 300 blocks", used(&out));
    assert!(used(&folder.path("unsealed")) < 400 * BLOCK);
    assert_eq!(folder.names(), ["plain", "sealed", "unsealed"]);
}

#[test]
fn a_qcow2_comes_back_as_the_raw_disk_that_it_is() {
    let folder = Folder::new("round-qcow2");
    let path = folder.path("plain");
    let clusters = [Cluster::Filled(3), Cluster::Absent, Cluster::Zero, Cluster::Filled(4)];
    fs::write(&path, qcow2(3 * 65_536 + 1000, &clusters, "")).unwrap();
    let out = seal(&folder, &path, "sealed");
    let content = unsealed(&folder, &out, &KEY).unwrap();
    assert_eq!(content.len(), 3 * 65_536 + 4096);
    assert!(content[..65_536].iter().all(|byte| *byte == 3));
    assert!(content[65_536..3 * 65_536].iter().all(|byte| *byte == 0));
    assert!(content[3 * 65_536..][..1000].iter().all(|byte| *byte == 4));
    assert!(content[3 * 65_536..][1000..].iter().all(|byte| *byte == 0));
}

#[test]
fn an_empty_disk_takes_no_room_whatever_its_size_is() {
    let folder = Folder::new("create");
    let out = folder.path("sealed");
    let found = image::create(&out, &KEY, 1 << 40).unwrap();
    assert_eq!(found.capacity, 1 << 28);
    assert_eq!(found.total * BLOCK, fs::metadata(&out).unwrap().len());
    assert!(found.total < (1 << 28) + (1 << 28) / 100, "more than 1 % of overhead");
    assert!(fs::metadata(&out).unwrap().blocks() * 512 < 1 << 20);
    let found = image::verify(&out, &KEY, &mut Quiet).unwrap();
    assert_eq!((found.written, found.broken), (Some(0), Some(Vec::new())));
    assert_eq!(image::info(&out, &KEY).unwrap().id, found.id);
    // Another one is not even begun in its place.
    assert!(matches!(image::create(&out, &KEY, BLOCK), Err(Error::File(..))));
    assert_eq!(
        (image::info(&out, &KEY).unwrap().id, folder.names()),
        (found.id, vec!["sealed".into()])
    );
}

#[test]
fn with_another_key_or_cut_short_there_is_no_disk() {
    let folder = Folder::new("refused");
    let (path, _) = plain(&folder);
    let out = seal(&folder, &path, "sealed");
    assert!(matches!(image::info(&out, &OTHER), Err(Error::Header(_, Refusal::Forged))));
    let file = File::options().write(true).open(&out).unwrap();
    let bytes = fs::metadata(&out).unwrap().len();
    // One of two headers is left, but the disk is of another size than that says.
    for less in [BLOCK, 5 * BLOCK] {
        file.set_len(bytes - less).unwrap();
        assert!(matches!(image::info(&out, &KEY), Err(Error::Header(..))), "{less}");
    }
    file.set_len(bytes - 6 * BLOCK - 1).unwrap();
    assert!(matches!(image::info(&out, &KEY), Err(Error::Shape(_))));
    assert!(matches!(image::info(&path, &KEY), Err(Error::Header(_, Refusal::Absent))));
    fs::write(&path, []).unwrap();
    assert!(matches!(image::info(&path, &KEY), Err(Error::Shape(_))));
}

#[test]
fn what_was_changed_is_named_and_never_comes_back() {
    let folder = Folder::new("changed");
    let (path, _) = plain(&folder);
    let good = seal(&folder, &path, "sealed");
    // Levels 1 and 2 have 7 nodes and 1.
    let parts = [(0, 81, 81), (1, 800 + 3, 3), (2, 807, 0)];
    for (level, place, index) in parts {
        let bad = folder.path("bad");
        let _ = fs::copy(&good, &bad).unwrap();
        flip(&bad, place * BLOCK + 100);
        let broken = image::verify(&bad, &KEY, &mut Quiet).unwrap().broken.unwrap();
        assert_eq!(broken, [Broken { level, index }]);
        let refused = unsealed(&folder, &bad, &KEY);
        assert!(matches!(refused, Err(Error::Forged(_, i, l)) if (i, l) == (index, level)));
        assert!(!folder.path("unsealed").exists());
    }
    // Two blocks that are exchanged, each as it was sealed.
    let bytes = fs::read(&good).unwrap();
    let bad = File::options().write(true).open(folder.path("bad")).unwrap();
    bad.write_all_at(&bytes, 0).unwrap();
    bad.write_all_at(&bytes[4096..8192], 0).unwrap();
    bad.write_all_at(&bytes[..4096], BLOCK).unwrap();
    let broken = image::verify(&folder.path("bad"), &KEY, &mut Quiet).unwrap().broken.unwrap();
    assert_eq!(broken, [0, 1].map(|index| Broken { level: 0, index }));
}

#[test]
fn a_larger_disk_has_the_same_data_and_a_smaller_one_is_refused() {
    let folder = Folder::new("resize");
    let (path, mut content) = plain(&folder);
    let out = seal(&folder, &path, "sealed");
    let before = fs::read(&out).unwrap();
    let smaller = image::anew(&out, [&KEY; 2], Some(799 * BLOCK), &mut how(Resume::No));
    assert!(matches!(smaller, Err(Error::Size(_))));
    assert!(fs::read(&out).unwrap() == before);
    assert!(!folder.path("sealed.partial").exists());
    let found = image::anew(&out, [&KEY; 2], Some(20_000 * BLOCK), &mut how(Resume::No)).unwrap();
    assert_eq!(found.capacity, 20_000);
    content.resize(20_000 * 4096, 0);
    assert!(unsealed(&folder, &out, &KEY).unwrap() == content);
}

#[test]
fn a_disk_that_is_in_use_is_left_alone() {
    let folder = Folder::new("busy");
    let out = folder.path("sealed");
    let _ = image::create(&out, &KEY, BLOCK).unwrap();
    let file = File::open(&out).unwrap();
    file.lock().unwrap();
    assert!(matches!(image::info(&out, &KEY), Err(Error::Busy(_))));
    assert!(matches!(image::rekey(&out, [&KEY, &OTHER]), Err(Error::Busy(_))));
    drop(file);
    let _ = image::rekey(&out, [&KEY, &OTHER]).unwrap();
}
