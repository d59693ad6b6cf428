//! Looking for a guest's secrets in everything that the host can read.
//!
//! This program must not hold them itself: whoever then searches all memory would find its copy. So it
//! knows words only disguised, by a multiplication that it does to whatever it compares with them.

use super::guest::SECRET;
use crate::memory::{Memory, PAGE};
use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;

/// A word behind a disguise: two of them are the same if the words are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disguised(u64);

impl Disguised {
    pub(crate) const fn of(word: u64) -> Self {
        Self(word.wrapping_mul(0xd134_2543_de82_ef95).rotate_left(29))
    }

    /// It, as whoever searches wants it.
    pub(crate) const fn word(self) -> u64 {
        self.0
    }
}

/// What a guest with a certain seed makes of it.
#[derive(Clone, Debug)]
pub(super) struct Secrets {
    words: Vec<Disguised>,
}

/// Which words of the generator are what.
const GENERAL: usize = 4;
const VECTOR: usize = GENERAL + 16;
const CR2: usize = VECTOR + 32;
const DR0: usize = CR2 + 1;
const LSTAR: usize = DR0 + 1;
const KERNEL_GS: usize = LSTAR + 1;
const FS: usize = KERNEL_GS + 1;

impl Secrets {
    pub(super) fn of(seed: u64) -> Self {
        let shaped = |index: usize, word: u64| match index {
            GENERAL => word & !0xff,
            LSTAR | KERNEL_GS | FS => ((word as i64) >> 17) as u64,
            _ => word,
        };
        let words = (0..=FS).map(|index| Disguised::of(shaped(index, nth(seed, index as u64))));
        Self { words: words.collect() }
    }

    /// Whether `word` is the first of the secret.
    pub(super) fn is_first(&self, word: u64) -> bool {
        Disguised::of(word) == self.words[0]
    }

    /// Whether any 8 bytes of `bytes`, aligned, are in a register.
    pub(super) fn has_register(&self, bytes: &[u8]) -> bool {
        let (words, _) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        words.any(|word| self.is_register(word))
    }

    /// Whether `word` is in a register.
    pub(super) fn is_register(&self, word: u64) -> bool {
        self.words.contains(&Disguised::of(word))
    }

    /// Whether the first half of the secret is in `memory` at an aligned place.
    pub(super) fn is_in(&self, memory: &Memory) -> bool {
        let [first, second] = [self.words[0], self.words[1]];
        let words = memory.size() / 8;
        (0..words - 1).any(|at| {
            Disguised::of(memory.word(at * 8)) == first
                && Disguised::of(memory.word(at * 8 + 8)) == second
        })
    }

    /// The same for a page's bytes.
    fn is_in_bytes(&self, bytes: &[u8]) -> bool {
        let (words, _) = bytes.as_chunks::<8>();
        words.windows(2).any(|pair| {
            Disguised::of(u64::from_le_bytes(pair[0])) == self.words[0]
                && Disguised::of(u64::from_le_bytes(pair[1])) == self.words[1]
        })
    }

    /// Whether `bytes` begin with the secret.
    pub(super) fn begins(&self, bytes: &[u8]) -> bool {
        bytes.get(..16).is_some_and(|bytes| self.is_in_bytes(bytes))
    }

    /// Has the machine's memory searched for the secret.
    pub(super) fn ask_outside(&self, what: &str) {
        ask_outside(&self.disguise(), what);
    }

    /// How the secret begins, for who searches.
    pub(super) fn disguise(&self) -> String {
        let [first, second] = [self.words[0].0, self.words[1].0];
        format!("{first:016x} {second:016x}")
    }
}

/// Asks whoever watches the serial line to search the machine's memory from outside for two words in
/// disguise.
pub(crate) fn ask_outside(words: &str, what: &str) {
    println!("vmm: look for {words} {what}");
    // The machine does not wait for whoever looks: seconds of the real clock must pass.
    for turn in 0..30_000_000_u64 {
        let _ = black_box(turn);
    }
}

/// Output `index` of splitmix64 from `seed` on.
fn nth(seed: u64, index: u64) -> u64 {
    let step = 0x9e37_79b9_7f4a_7c15_u64;
    let mixed = black_box(seed).wrapping_add(step.wrapping_mul(index + 1));
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Whether an AES-128 key schedule is in `memory`: any, as one looks for them without knowing the key.
pub(super) fn has_key_schedule(memory: &Memory) -> bool {
    let boxes = substitutions();
    let substituted = |word: u32| {
        let bytes = word.to_le_bytes().map(|byte| boxes[usize::from(byte)]);
        u32::from_le_bytes(bytes)
    };
    let word = |at: usize| (memory.word(at & !7) >> (at % 8 * 8)) as u32;
    let mut constants = [0_u32; 10];
    let mut constant = 1_u8;
    for slot in &mut constants {
        *slot = u32::from(constant);
        constant = doubled(constant);
    }
    let is_next = |at: usize, round: u32| {
        let mut last = substituted(word(at + 12).rotate_right(8)) ^ round;
        [0, 4, 8, 12].into_iter().all(|column| {
            last ^= word(at + column);
            word(at + 16 + column) == last
        })
    };
    (0..(memory.size() - 176) / 16).map(|index| index * 16).any(|at| {
        let is_zero = word(at) == 0 && word(at + 4) == 0;
        !is_zero
            && (0..10).zip(constants).all(|(round, constant)| is_next(at + round * 16, constant))
    })
}

/// AES' multiplication by 2.
const fn doubled(byte: u8) -> u8 {
    byte << 1 ^ if byte & 0x80 == 0 { 0 } else { 0x1b }
}

/// AES' substitutions, by the powers of 3 and their inverses.
fn substitutions() -> [u8; 256] {
    let mut boxes = [0; 256];
    let (mut power, mut inverse) = (1_u8, 1_u8);
    loop {
        power ^= doubled(power);
        inverse ^= inverse << 1;
        inverse ^= inverse << 2;
        inverse ^= inverse << 4;
        if inverse & 0x80 != 0 {
            inverse ^= 9;
        }
        let turned = (1..5).fold(inverse, |sum, by| sum ^ inverse.rotate_left(by));
        boxes[usize::from(power)] = turned ^ 0x63;
        if power == 1 {
            break;
        }
    }
    boxes[0] = 0x63;
    boxes
}

/// Where the page at `offset` of `memory` is in the machine's; `None` while it is nowhere.
pub(super) fn frame(memory: &Memory, offset: usize) -> Result<Option<u64>, String> {
    let map = File::open("/proc/self/pagemap").map_err(|why| format!("pagemap: {why}"))?;
    let page = memory.part(offset..offset + PAGE).host / PAGE as u64;
    let mut entry = [0; 8];
    map.read_exact_at(&mut entry, page * 8).map_err(|why| format!("pagemap: {why}"))?;
    let entry = u64::from_le_bytes(entry);
    let (present, number) = (entry >> 63 != 0, entry & ((1 << 55) - 1));
    Ok((present && number != 0).then_some(number * PAGE as u64))
}

/// Whether the secret is in a frame of `memory`, seen by `/dev/mem`.
pub(super) fn is_in_frames(secrets: &Secrets, memory: &Memory) -> Result<bool, String> {
    let (machine, mut bytes) = (devmem()?, vec![0; PAGE]);
    let Some(at) = frame(memory, SECRET)? else { return Ok(false) };
    machine.read_exact_at(&mut bytes, at).map_err(|why| format!("/dev/mem: {why}"))?;
    Ok(secrets.is_in_bytes(&bytes))
}

/// Whether the secret is anywhere in the memory that the host has, seen by `/dev/mem`.
pub(super) fn is_anywhere(secrets: &Secrets) -> Result<bool, String> {
    const STEP: u64 = 1 << 20;
    let map = fs::read_to_string("/proc/iomem").map_err(|why| format!("iomem: {why}"))?;
    let (machine, mut found) = (devmem()?, false);
    for (start, end) in map.lines().filter_map(ram) {
        for at in (start..end).step_by(1 << 20) {
            let mut bytes = vec![0; STEP.min(end - at) as usize];
            machine.read_exact_at(&mut bytes, at).map_err(|why| format!("/dev/mem: {why}"))?;
            found |= secrets.is_in_bytes(&bytes);
        }
    }
    Ok(found)
}

/// All memory of the machine. As it is memory, the kernel lets it be read and written, not mapped.
pub(super) fn devmem() -> Result<File, String> {
    let file = fs::OpenOptions::new().read(true).write(true).open("/dev/mem");
    file.map_err(|why| format!("/dev/mem: {why}"))
}

/// The first byte and the end of a line's range, if it is memory; whole pages of it.
fn ram(line: &str) -> Option<(u64, u64)> {
    let (range, "System RAM") = line.split_once(" : ")? else { return None };
    let (start, last) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let page = PAGE as u64;
    Some((number(start)?.next_multiple_of(page), (number(last)? + 1) / page * page))
}

/// 16 bytes of `memory` at `offset`, which the kernel copies out of it.
pub(super) fn by_proc_mem(memory: &Memory, offset: usize) -> Result<[u8; 16], String> {
    let mut bytes = [0; 16];
    let file = File::open("/proc/self/mem").map_err(|why| format!("mem: {why}"))?;
    let at = memory.part(offset..offset + 16).host;
    file.read_exact_at(&mut bytes, at).map_err(|why| format!("/proc/self/mem: {why}"))?;
    Ok(bytes)
}

/// The same, by way of a pipe.
pub(super) fn by_pipe(memory: &Memory, offset: usize) -> Result<[u8; 16], String> {
    use std::io::Read;
    use std::os::fd::{AsRawFd, FromRawFd};
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    let _ = crate::kvm::checked(unsafe { libc::pipe(ends.as_mut_ptr()) })?;
    // SAFETY: both are new.
    let [mut reader, writer] = ends.map(|end| unsafe { File::from_raw_fd(end) });
    let at = memory.part(offset..offset + 16).host as *const libc::c_void;
    // SAFETY: the kernel reads 16 bytes of a mapping that outlives the call.
    let written = unsafe { libc::write(writer.as_raw_fd(), at, 16) };
    if written != 16 {
        return Err(format!("write: {}", std::io::Error::last_os_error()));
    }
    let mut bytes = [0; 16];
    reader.read_exact(&mut bytes).map_err(|why| why.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{doubled, has_key_schedule, nth, ram, substitutions};
    use crate::memory::{Backing, Memory};

    #[test]
    fn the_generator_is_splitmix64() {
        // Reference outputs for the seed 1234567.
        let outputs = [0, 1].map(|index| nth(1_234_567, index));
        assert_eq!(outputs, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn substitutions_are_those_of_the_standard() {
        let boxes = substitutions();
        assert_eq!([boxes[0], boxes[1], boxes[0x53], boxes[0xff]], [0x63, 0x7c, 0xed, 0x16]);
        assert_eq!([doubled(0x57), doubled(0xae)], [0xae, 0x47]);
    }

    #[test]
    fn a_key_schedule_is_found_and_one_with_an_error_is_not() {
        // FIPS 197, appendix A.1.
        let schedule = "2b7e151628aed2a6abf7158809cf4f3ca0fafe1788542cb123a339392a6c7605\
                        f2c295f27a96b9435935807a7359f67f3d80477d4716fe3e1e237e446d7a883b\
                        ef44a541a8525b7fb671253bdb0bad00d4d1c6f87c839d87caf2b8bc11f915bc\
                        6d88a37a110b3efddbf98641ca0093fd4e54f70e5f5fc9f384a64fb24ea6dc4f\
                        ead27321b58dbad2312bf5607f8d292fac7766f319fadc2128d12941575c006e\
                        d014f9a8c9ee2589e13f0cc8b6630ca6";
        let byte = |at: usize| u8::from_str_radix(&schedule[2 * at..2 * at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..176).map(byte).collect();
        let memory = Memory::new(0x4000, Backing::Small).unwrap();
        assert!(!has_key_schedule(&memory));
        memory.write(0x1230, &bytes);
        assert!(has_key_schedule(&memory));
        memory.write(0x1230 + 170, &[1]);
        assert!(!has_key_schedule(&memory));
    }

    #[test]
    fn memory_is_found_in_the_kernels_map() {
        assert_eq!(ram("00001000-0009fbff : System RAM"), Some((0x1000, 0x9f000)));
        assert_eq!(ram("  01000000-01ffffff : Kernel code"), None);
    }
}
