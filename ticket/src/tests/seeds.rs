//! Seeds of the fuzz target `ticket`, kept as files in `tests/fuzz/corpus`. To write them anew after a
//! change here, run the tests with `BLESS=1`.

use std::fs;
use std::path::Path;
use std::vec::Vec;

use super::{EMPTY, small};
use crate::{Class, PAGE};

/// The fuzz target's first byte: repair length and checksum; the sink refuses nothing early.
const REPAIRED: u8 = 0xff;
const AS_IT_IS: u8 = 0xfe;

fn seeds() -> [(&'static str, u8, Vec<u8>); 4] {
    let mut wide = EMPTY;
    for number in 0..16 {
        let class = if number % 2 == 0 { Class::Private } else { Class::Window };
        wide = wide.range(number << 30, 64 * PAGE, class);
    }
    wide.pages = (0..8).map(|page| (page << 31, [0x55; 32])).collect();
    let small = small().bytes().unwrap();
    let virtio = EMPTY
        .range(0, PAGE, Class::Private)
        .range(4 * PAGE, 66 * PAGE, Class::Shared)
        .range(80 * PAGE, PAGE, Class::Virtio);
    let least = EMPTY.range(0, PAGE, Class::Private).bytes().unwrap();
    [
        ("least", REPAIRED, least),
        ("small", AS_IT_IS, small),
        ("virtio", REPAIRED, virtio.bytes().unwrap()),
        ("wide", REPAIRED, wide.bytes().unwrap()),
    ]
}

#[test]
fn the_corpus_holds_these_seeds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/ticket");
    for (name, control, ticket) in seeds() {
        let bytes = [&[control][..], &ticket].concat();
        let path = corpus.join(name);
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(&corpus).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(fs::read(&path).ok(), Some(bytes), "{name}");
    }
}
