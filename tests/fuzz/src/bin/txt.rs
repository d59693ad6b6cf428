//! What is there of a measured launch: eight registers, of which the first byte says which are as they should be; then
//! the heap, and behind it tboot's page.
#![no_main]

use std::cell::Cell;

use boot::memory::Memory;
use boot::txt::{TxtError, check, part};
use ept::addr::Span;
use fuzz::Window;

/// Where the heap is, unless its register says otherwise.
const HEAP: u64 = 0x7ff2_0000;
/// Offsets of the registers, and what they read after a launch.
const REGISTERS: [(u64, u64); 8] = [
    (0x000, 0x1_8091),
    (0x008, 0),
    (0x030, 0),
    (0x110, 0x1_b003_8086),
    (0x270, 0x7ff0_0000),
    (0x278, 0x2_0000),
    (0x300, HEAP),
    (0x308, 0x2000),
];

/// Memory of which each byte is looked at once, as it is by whoever only goes forward.
struct Once {
    window: Window,
    end: Cell<u64>,
}

impl Memory for Once {
    fn bytes(&self, span: Span) -> Option<&[u8]> {
        assert!(span.start() >= self.end.get(), "{span:?} is read again");
        self.end.set(span.end());
        self.window.bytes(span)
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = part(data);
    let Some((&good, rest)) = data.split_first() else { return };
    let (words, memory) = rest.split_at(rest.len().min(64));
    let register = |at: u64| {
        let index = REGISTERS.iter().position(|(offset, _)| *offset == at).expect("a register");
        let found = words.as_chunks().0.get(index).copied().map_or(0, u64::from_le_bytes);
        if good >> index & 1 == 0 { found } else { REGISTERS[index].1 }
    };
    let memory = Once { window: Window::new(HEAP, memory), end: Cell::new(0) };
    match check(register, &memory, None) {
        Ok(()) => {
            let heap = Span::sized(register(0x300), register(0x308)).expect("a region");
            // What was taken lies in the heap, and nothing else was looked at.
            assert!(memory.end.get() <= heap.end() && register(0x000) & 0b11 == 1);
            let page = u32::try_from(HEAP + 0x1000).ok();
            if let Err(why) = check(register, &memory.window, page) {
                assert!(matches!(why, TxtError::Shared | TxtError::Waiting));
            }
        }
        Err(why) => {
            assert!(why != TxtError::Unmeasured && why != TxtError::Forgetful);
            fuzz::one_line(&why.to_string());
        }
    }
});
