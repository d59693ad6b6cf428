//! Multiboot1 information, and what the visor hands on of it.
#![no_main]

use boot::mbi::MAGIC1;
use fuzz::{INFO, Window, hand_over};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    hand_over(&Window::new(INFO.into(), data), MAGIC1);
});
