//! Seeds of the fuzz targets `emulate` and `instruction`, kept as files in `tests/fuzz/corpus`. To write them anew
//! after a change here, run the tests with `BLESS=1`.

use std::fs;
use std::path::Path;

use crate::encodings::{BITS32, BITS64};

/// What the target reads as an instruction of `mode` with plain registers.
fn instruction(mode: u8, bytes: &[u8]) -> Vec<u8> {
    let registers = (1..=17_u64).flat_map(|number| (number * 0x0101_0101_0202).to_le_bytes());
    let len = u8::try_from(bytes.len()).unwrap();
    [mode, len].into_iter().chain(bytes.iter().copied()).chain(registers).collect()
}

/// What the target reads as a walk with these CR0, CR4 and IA32_EFER, through tables that repeat
/// `words`.
fn walk(registers: [u64; 3], words: &[u64]) -> Vec<u8> {
    let [cr0, cr4, efer] = registers;
    let context = [cr0, 0x1000, cr4, efer, 0, 0x1001, 0x2001, 0x3001, 0, 0, 0x0001_2e00];
    let linear = 0x0000_7654_3210_9876;
    let numbers = context.iter().chain([&linear]).chain(words).copied();
    [2].into_iter().chain(numbers.flat_map(u64::to_le_bytes)).collect()
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let tables = [0x1007, 0x2027, 0x3067, 0x00e3, 0x1005];
    let mut seeds = vec![
        ("walk-32".to_owned(), walk([0x8001_0000, 0x10, 0], &tables)),
        ("walk-pae".to_owned(), walk([0x8001_0000, 0x20, 0x800], &tables)),
        ("walk-4".to_owned(), walk([0x8001_0000, 0x70_0020, 0xc00], &tables)),
        ("walk-5".to_owned(), walk([0x8001_0000, 0x70_1020, 0xc00], &tables)),
    ];
    // The fuzzer finds the others by itself.
    for (mode, rows) in [(0, BITS64), (1, BITS32)] {
        for (number, (_, bytes, ..)) in (0..).zip(rows).step_by(4) {
            seeds.push((format!("store-{mode}-{number}"), instruction(mode, bytes)));
        }
    }
    seeds
}

/// One instruction of each kind: its name, bytes, the mode.
const ACCESSES: [(&str, &[u8], u8); 12] = [
    ("mov-load", &[0x8b, 0x43, 0x10], 0),
    ("movzx", &[0x48, 0x0f, 0xb6, 0x04, 0x8b], 0),
    ("movsxd", &[0x48, 0x63, 0x05, 0, 1, 0, 0], 0),
    ("add-load", &[0x65, 0x48, 0x03, 0x07], 0),
    ("lock-or", &[0xf0, 0x83, 0x0b, 1], 0),
    ("test", &[0x67, 0xf6, 0x03, 1], 0),
    ("rep-movs", &[0xf3, 0x48, 0xa5], 0),
    ("cmp", &[0x3b, 0x03], 1),
    ("rep-ins", &[0xf3, 0x6d], 1),
    ("outs", &[0x2e, 0x6e], 1),
    ("mov-16", &[0x26, 0x89, 0x42, 0xff], 2),
    ("lods-16", &[0x66, 0x67, 0xad], 2),
];

/// What the target `instruction` reads as one of those, with segments that begin at 0.
fn access((name, bytes, mode): (&str, &[u8], u8)) -> (String, Vec<u8>) {
    let end =
        [0x1000, 0, 0, 0, 0, 0, 0, 0xffff_ffff, 0b0101].into_iter().flat_map(u64::to_le_bytes);
    (name.to_owned(), instruction(mode, bytes).into_iter().chain(end).collect())
}

fn check(target: &str, seeds: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target);
    for (name, bytes) in seeds {
        let path = corpus.join(&name);
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(&corpus).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(fs::read(&path).ok(), Some(bytes), "{name}");
    }
}

#[test]
fn the_corpus_holds_these_seeds() {
    check("emulate", seeds());
    check("instruction", ACCESSES.map(access));
}
