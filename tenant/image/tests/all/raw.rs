//! Raw images, with holes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::folder::Folder;
use super::qcow2::read;

#[test]
fn holes_of_a_raw_image_are_skipped_and_all_else_is_read() {
    let folder = Folder::new("raw");
    let path = folder.path("plain");
    let file = File::create(&path).unwrap();
    let bytes = (64 << 20) + 700;
    file.set_len(bytes).unwrap();
    let mut expected = vec![0; usize::try_from(bytes).unwrap().next_multiple_of(4096)];
    for at in [0, 4095, 9 << 20, bytes - 3] {
        file.write_all_at(&[1, 2, 3], at).unwrap();
        let at = usize::try_from(at).unwrap();
        expected[at..at + 3].copy_from_slice(&[1, 2, 3]);
    }
    let (content, written) = read(&path);
    assert!(content == expected);
    assert!(written < 64, "{written} blocks for four");
    fs::write(&path, [5; 10]).unwrap();
    let mut short = image::plain::open(&path).unwrap();
    assert_eq!((short.blocks(), short.written(0).unwrap()), (1, Some(0..1)));
    fs::write(&path, []).unwrap();
    assert_eq!(image::plain::open(&path).unwrap().written(0).unwrap(), None);
}
