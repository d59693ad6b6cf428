//! A TPM's answers, to all that the visor asks of one: each begins with two bytes that say how long it is and how
//! much of its header is as it should be.
#![no_main]

use std::cell::RefCell;

use attest::log::{CAPACITY, Log};
use attest::measure::{Event, Recorder};
use attest::tpm::{Registers, SIZE, Tpm};

/// A command-response buffer that works, and answers what it likes.
struct Answers<'a>(RefCell<State<'a>>);

struct State<'a> {
    data: &'a [u8],
    active: bool,
    memory: Vec<u8>,
}

impl State<'_> {
    /// Puts the next answer into the place of a command.
    fn answer(&mut self) {
        let Some(([len, kind], rest)) = self.data.split_first_chunk() else { return };
        let (body, rest) = rest.split_at(rest.len().min(usize::from(*len) * 2));
        self.data = rest;
        let is_authorized = self.memory[1] == 2;
        self.memory[..body.len()].copy_from_slice(body);
        if kind & 1 == 0 {
            let tag = 1 + u8::from(is_authorized);
            self.memory[..2].copy_from_slice(&[0x80, tag]);
        }
        if kind & 2 == 0 {
            let len = u32::try_from(body.len()).unwrap_or(0);
            self.memory[2..6].copy_from_slice(&len.to_be_bytes());
        }
        if kind & 4 == 0 {
            self.memory[6..10].fill(0);
        }
    }
}

impl Registers for Answers<'_> {
    fn read8(&self, offset: u64) -> u8 {
        assert!(offset < SIZE);
        self.0.borrow().memory[usize::try_from((offset & 0xfff) - 0x80).expect("a buffer")]
    }

    fn read32(&self, offset: u64) -> u32 {
        let (locality, at) = (u32::try_from(offset >> 12).expect("a locality"), offset & 0xfff);
        match at {
            0x00 if self.0.borrow().active => 0x82 | 2 << 2,
            0x00 => 0x80,
            0x30 => 1,
            0x58 | 0x64 => 0xf80,
            0x5c | 0x68 => 0xfed4_0080 + (locality << 12),
            _ => 0,
        }
    }

    fn write8(&mut self, offset: u64, value: u8) {
        let at = usize::try_from((offset & 0xfff) - 0x80).expect("a buffer");
        self.0.borrow_mut().memory[at] = value;
    }

    fn write32(&mut self, offset: u64, value: u32) {
        let state = &mut *self.0.borrow_mut();
        match (offset & 0xfff, value) {
            (0x08, 1) => state.active = true,
            (0x08, 2) => state.active = false,
            (0x4c, 1) => state.answer(),
            _ => {}
        }
    }

    fn pause(&self) {}
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let state = State { data, active: false, memory: vec![0; 0xf80] };
    let mut tpm = Tpm::find(Answers(RefCell::new(state))).expect("a TPM");
    let mut log = Log::empty();
    let mut recorder = match Recorder::start(&mut tpm, &mut log) {
        Ok(recorder) => recorder,
        Err(error) => return fuzz::one_line(&error.to_string()),
    };
    let banks = *recorder.banks();
    let (_, _) = (recorder.before(), recorder.random());
    let mut event = Event::empty();
    let done = event.iommu("on", 1).and_then(|event| recorder.record(event));
    let _ = recorder.finish();
    // Header and event: what the banks take, and nothing of the TPM's choosing besides.
    let digests: usize = banks.iter().map(|bank| usize::from(bank.size) + 2).sum();
    let header = 32 + 29 + banks.len() * 4;
    let length = if done.is_ok() { header + 12 + digests + 4 + 25 } else { 0 };
    assert_eq!(log.bytes().len(), length);
    assert!(length < CAPACITY);
});
