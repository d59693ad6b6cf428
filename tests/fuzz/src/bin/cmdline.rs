//! The visor's command line.
#![no_main]

use boot::cmdline::{WORDS, cook, parse};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let line = cook(data, b"GRUB 2.06");
    match parse(line) {
        Ok(_) => {
            let line = str::from_utf8(line).expect("what was taken is text");
            let mut names: Vec<_> =
                line.split_whitespace().map(|word| word.split('=').next()).collect();
            assert!(names.iter().all(|name| WORDS.iter().any(|word| Some(word.name) == *name)));
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count);
        }
        Err(error) => fuzz::one_line(&error.to_string()),
    }
    assert!(data.ends_with(cook(data, b"qemu")) || cook(data, b"qemu").is_empty());
});
