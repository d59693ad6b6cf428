//! A part of the disk, and what must be on it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::SECTOR;
use crate::buffer::Buffer;

/// Requests of a thread.
const REQUESTS: u64 = 300;
/// Sectors of the longest one: three blocks of 4 KiB.
const LONGEST: usize = 24;
/// What is read at once where all is read.
const PIECE: usize = 64 << 10;
/// By how much a part is longer than a multiple of 4 KiB, so that the next begins in its last block.
const ODD: usize = 3 * SECTOR;

/// From byte `first` of the disk on, what must be there.
pub(crate) struct Part<'a> {
    pub(crate) disk: &'a File,
    pub(crate) first: u64,
    pub(crate) model: &'a mut [u8],
}

impl<'a> Part<'a> {
    /// Takes what is on the disk for what must be there.
    pub(crate) fn learn(&mut self) -> Result<(), String> {
        let mut buffer = Buffer::new(PIECE, 1);
        for at in (0..self.model.len()).step_by(PIECE) {
            let end = self.model.len().min(at + PIECE);
            self.read(at, buffer.bytes(end - at))?;
            self.model[at..end].copy_from_slice(buffer.bytes(end - at));
        }
        Ok(())
    }

    /// In so many parts, of which each shares a block of the disk with the next.
    pub(crate) fn split(self, count: usize) -> Vec<Self> {
        let each = self.model.len() / count / 4096 * 4096 + ODD;
        let Self { disk, mut first, model } = self;
        let mut parts = Vec::new();
        for model in model.chunks_mut(each) {
            let bytes = model.len() as u64;
            parts.push(Self { disk, first, model });
            first += bytes;
        }
        parts
    }

    /// Writes and reads at random.
    pub(crate) fn play(self, seed: u64) -> Result<(), String> {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for number in 0..REQUESTS {
            let sectors = self.model.len() / SECTOR;
            let at = dice.below(sectors);
            let length = (1 + dice.below(LONGEST)).min(sectors - at) * SECTOR;
            let mut buffer = Buffer::new(length, dice.below(8));
            let bytes = buffer.bytes(length);
            let at = at * SECTOR;
            if number % 2 == 0 {
                bytes
                    .chunks_mut(8)
                    .for_each(|word| word.copy_from_slice(&dice.next().to_le_bytes()));
                let to = self.first + at as u64;
                self.disk.write_all_at(bytes, to).map_err(|why| format!("byte {to}: {why}"))?;
                self.model[at..at + length].copy_from_slice(bytes);
            } else {
                self.read(at, bytes)?;
                compared(bytes, &self.model[at..at + length], self.first + at as u64)?;
            }
        }
        Ok(())
    }

    /// Whether all is on the disk that must be.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut buffer = Buffer::new(PIECE, 7);
        for (wanted, at) in self.model.chunks(PIECE).zip((0..).step_by(PIECE)) {
            let found = buffer.bytes(wanted.len());
            self.read(at, found)?;
            compared(found, wanted, self.first + at as u64)?;
        }
        Ok(())
    }

    fn read(&self, at: usize, bytes: &mut [u8]) -> Result<(), String> {
        let from = self.first + at as u64;
        self.disk.read_exact_at(bytes, from).map_err(|why| format!("byte {from}: {why}"))
    }
}

/// Whether `found`, from byte `first` of the disk on, is as `wanted`.
pub(crate) fn compared(found: &[u8], wanted: &[u8], first: u64) -> Result<(), String> {
    match found.iter().zip(wanted).position(|(one, other)| one != other) {
        Some(at) => Err(format!("wrong byte at {}", first + at as u64)),
        None => Ok(()),
    }
}

/// Numbers that look random and are the same in each run: xorshift64.
struct Dice(u64);

impl Dice {
    const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    const fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_of_it_and_share_blocks() {
        let disk = File::open("/dev/null").unwrap();
        let mut model = vec![0; 1 << 20];
        let parts = Part { disk: &disk, first: 8192, model: &mut model }.split(4);
        assert_eq!(parts.iter().map(|part| part.model.len()).sum::<usize>(), 1 << 20);
        let mut next = 8192;
        for (number, part) in parts.iter().enumerate() {
            assert_eq!(part.first, next);
            assert_eq!(part.first % 512, 0);
            assert_eq!(part.first % 4096 == 0, number == 0);
            next += part.model.len() as u64;
        }
    }

    #[test]
    fn the_first_wrong_byte_is_told() {
        assert_eq!(compared(b"abc", b"abc", 7), Ok(()));
        assert_eq!(compared(b"abx", b"abc", 7), Err("wrong byte at 9".to_owned()));
    }
}
