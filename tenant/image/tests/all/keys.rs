//! Disks that are put under other keys.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use disk::header::Header;
use image::{Error, Resume};

use super::folder::Folder;
use super::sealed::{KEY, OTHER, how, plain, seal, unsealed};

/// A disk, its bytes before it was put under [`OTHER`], and what is in it.
fn rekeyed(folder: &Folder) -> (PathBuf, Vec<u8>, Vec<u8>) {
    let (path, content) = plain(folder);
    let out = seal(folder, &path, "sealed");
    let before = fs::read(&out).unwrap();
    let id = image::info(&out, &KEY).unwrap().id;
    assert_eq!(image::rekey(&out, [&KEY, &OTHER]).unwrap().id, id);
    (out, before, content)
}

/// Puts bytes of `from` back: those from `start` on, `length` of them.
fn put_back(out: &Path, from: &[u8], start: usize, length: usize) {
    let file = File::options().write(true).open(out).unwrap();
    file.write_all_at(&from[start..start + length], u64::try_from(start).unwrap()).unwrap();
}

#[test]
fn another_key_replaces_the_old_one_in_the_headers() {
    let folder = Folder::new("rekey");
    let (out, before, content) = rekeyed(&folder);
    let old = image::info(&out, &KEY);
    assert!(matches!(old, Err(Error::Header(..))));
    assert!(matches!(image::rekey(&out, [&KEY; 2]), Err(Error::Header(..))));
    // As after an interruption of which nobody knows how far it let the command come.
    assert!(image::rekey(&out, [&KEY, &OTHER]).is_ok());
    assert!(unsealed(&folder, &out, &OTHER).unwrap() == content);
    let headers = before.len() - 8192;
    assert!(before[..headers] == fs::read(&out).unwrap()[..headers]);
}

#[test]
fn who_has_the_old_key_and_an_old_header_reads_the_disk_until_its_data_are_sealed_anew() {
    let folder = Folder::new("old-header");
    let (out, before, content) = rekeyed(&folder);
    let headers = before.len() - 8192;
    put_back(&out, &before, headers, 8192);
    assert!(unsealed(&folder, &out, &KEY).unwrap() == content);
    let _ = image::anew(&out, [&KEY, &OTHER], None, &mut how(Resume::No)).unwrap();
    assert!(unsealed(&folder, &out, &OTHER).unwrap() == content);
    put_back(&out, &before, headers, 8192);
    assert!(matches!(unsealed(&folder, &out, &KEY), Err(Error::Engine(..))));
}

#[test]
fn between_its_two_headers_a_disk_opens_with_either_key() {
    let folder = Folder::new("half");
    let (out, before, content) = rekeyed(&folder);
    let after = fs::read(&out).unwrap();
    let headers = before.len() - 8192;
    for place in [0, 4096] {
        put_back(&out, &before, headers, 8192);
        put_back(&out, &after, headers + place, 4096);
        assert!(unsealed(&folder, &out, &KEY).unwrap() == content);
        assert!(unsealed(&folder, &out, &OTHER).unwrap() == content);
        let _ = image::rekey(&out, [&KEY, &OTHER]).unwrap();
        assert!(matches!(image::info(&out, &KEY), Err(Error::Header(..))));
        assert!(unsealed(&folder, &out, &OTHER).unwrap() == content);
    }
}

#[test]
fn the_only_header_is_the_last_to_be_replaced() {
    let folder = Folder::new("order");
    let (out, before, _) = rekeyed(&folder);
    let headers = before.len() - 8192;
    for lost in [0, 1] {
        put_back(&out, &before, headers, 8192);
        put_back(&out, &vec![0; before.len()], headers + lost * 4096, 4096);
        let _ = image::rekey(&out, [&KEY, &OTHER]).unwrap();
        let after = fs::read(&out).unwrap();
        let total = u64::try_from(before.len() / 4096).unwrap();
        let sequence = |place: usize| {
            let mut block = *after[headers + place * 4096..].first_chunk().unwrap();
            Header::open(&mut block, &OTHER, total).unwrap().sequence
        };
        assert!(sequence(lost) < sequence(1 - lost));
    }
}
