//! `random-io DISK FIRST BYTES`: reads and writes at random a part of a disk, from byte FIRST on, that nobody else uses.
//!
//! Requests go past the kernel's cache (`O_DIRECT`), begin and end at multiples of 512 bytes, as do their buffers in
//! memory, and hardly ever at those of 4 KiB. Several threads do them side by side, each in a part of its own, which
//! begins within the block of 4 KiB that the part before it ends in. Each keeps in memory what must be on the disk, and
//! compares what it reads with that; so is all of it in the end, past the cache and through it.
//!
//! It prints `random-io: found SUM` for what was there, and `random-io: left SUM`: FNV-1a, 64 bits.

mod buffer;
mod part;

use std::env;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::thread;

use part::{Part, compared};

const SECTOR: usize = 512;
const THREADS: usize = 4;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("random-io: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<(), String> {
    let [name, first, bytes] = words else {
        return Err("wants a disk, a first byte and a number of bytes".to_owned());
    };
    let first: u64 = first.parse().map_err(|why| format!("{first}: {why}"))?;
    let bytes: usize = bytes.parse().map_err(|why| format!("{bytes}: {why}"))?;
    let fail = |why: std::io::Error| format!("{name}: {why}");
    let mut options = OpenOptions::new();
    let disk = options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let disk = disk.open(name).map_err(fail)?;
    let mut model = vec![0; bytes];
    let mut whole = Part { disk: &disk, first, model: &mut model };
    whole.learn()?;
    println!("random-io: found {:016x}", sum(whole.model));
    play(whole.split(THREADS))?;
    disk.sync_data().map_err(fail)?;
    Part { disk: &disk, first, model: &mut model }.check()?;
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(|why| why.to_string())?;
    let mut cached = vec![0; bytes];
    File::open(name).and_then(|disk| disk.read_exact_at(&mut cached, first)).map_err(fail)?;
    compared(&cached, &model, first)?;
    println!("random-io: left {:016x}", sum(&model));
    Ok(())
}

/// Has a thread for each of the parts.
fn play(parts: Vec<Part<'_>>) -> Result<(), String> {
    thread::scope(|scope| {
        let threads: Vec<_> = parts
            .into_iter()
            .zip(1..)
            .map(|(part, seed)| scope.spawn(move || part.play(seed)))
            .collect();
        let mut ends = threads.into_iter().map(|thread| thread.join());
        ends.try_for_each(|end| end.unwrap_or_else(|_| Err("a thread died".to_owned())))
    })
}

/// FNV-1a, 64 bits.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_fnv_1a() {
        assert_eq!(sum(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(sum(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
