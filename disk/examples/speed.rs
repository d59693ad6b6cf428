//! Seals and opens 64 blocks again and again for two seconds, and prints for each the bytes and the
//! median of the nanoseconds: a turn is so short that what else runs on the machine spoils few. The
//! bench `block-seal` builds this as the visor is built, and runs it.
#![expect(
    clippy::expect_used,
    clippy::large_stack_frames,
    reason = "a tool for measuring, not a part of the visor"
)]

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use disk::storage::Block;
use seal::HARDWARE_AES;
use seal::aead::AeadKey;

/// Blocks sealed one after the other, and then opened. They fit any second-level cache.
const BLOCKS: u128 = 64;

fn main() -> Result<(), Box<dyn Error>> {
    if !HARDWARE_AES {
        return Err("to be built with -Ctarget-feature=+aes".into());
    }
    let key = AeadKey::new([1; 16]);
    let clear: Block = [0x42; 4096];
    let mut blocks: Vec<Block> = (0..BLOCKS).map(|_| clear).collect();
    let (mut sealing, mut opening) = (Vec::new(), Vec::new());
    let (start, mut count) = (Instant::now(), 0_u128);
    while start.elapsed() < Duration::from_secs(2) {
        let begin = Instant::now();
        // A nonce that counts, and the block's number beside it, as on a disk.
        let each = (0..BLOCKS).zip(black_box(&mut blocks));
        let records: Vec<_> = each
            .map(|(at, block)| {
                count += 1;
                let nonce = count.to_le_bytes();
                (nonce, key.encrypt(&nonce, &at.to_le_bytes(), block))
            })
            .collect();
        sealing.push(begin.elapsed());
        let begin = Instant::now();
        for ((at, block), (nonce, tag)) in (0..BLOCKS).zip(black_box(&mut blocks)).zip(&records) {
            key.decrypt(nonce, &at.to_le_bytes(), block, tag).map_err(|_| "a block was changed")?;
        }
        opening.push(begin.elapsed());
    }
    assert!(blocks.iter().all(|block| *block == clear), "blocks did not come back as they were");
    for (name, mut times) in [("seal", sealing), ("open", opening)] {
        times.sort_unstable();
        let median = times.get(times.len() / 2).expect("there was a turn");
        println!("{name} {} {}", BLOCKS << 12, median.as_nanos());
    }
    Ok(())
}
