//! Seeds of the fuzz target `emulate`, kept as files in `tests/fuzz/corpus`. To write them anew
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

#[test]
fn the_corpus_holds_these_seeds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/emulate");
    for (name, bytes) in seeds() {
        let path = corpus.join(&name);
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(&corpus).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(fs::read(&path).ok(), Some(bytes), "{name}");
    }
}
