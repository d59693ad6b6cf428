//! Seals and unseals 64 pages again and again for two seconds, and prints for each the bytes and the
//! median of the nanoseconds: a turn is so short that what else runs on the machine spoils few. The
//! bench `seal` builds this as the visor is built, and runs it.
#![expect(
    clippy::expect_used,
    clippy::large_stack_frames,
    reason = "a tool for measuring, not a part of the visor"
)]

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use seal::HARDWARE_AES;
use seal::key::{VmId, VmKey};
use seal::page::{GuestPage, Page, Sealer};

/// Pages sealed one after the other, and then unsealed. They fit any second-level cache.
const PAGES: u64 = 64;

fn main() -> Result<(), Box<dyn Error>> {
    if !HARDWARE_AES {
        return Err("to be built with -Ctarget-feature=+aes".into());
    }
    let sealer = Sealer::new(VmKey::launch(VmId([1; 16]), &[2; 32], &[3; 32]));
    let places: Vec<_> = (0..PAGES).filter_map(|page| GuestPage::at(page << 12)).collect();
    let clear: Page = [0x42; 4096];
    let mut pages = vec![clear; places.len()];
    let (mut sealing, mut unsealing) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let begin = Instant::now();
        let each = places.iter().zip(black_box(&mut pages));
        let records: Vec<_> =
            each.map(|(at, page)| sealer.seal(*at, page).expect("versions are left")).collect();
        sealing.push(begin.elapsed());
        let begin = Instant::now();
        for ((at, page), record) in places.iter().zip(black_box(&mut pages)).zip(&records) {
            let _ = black_box(sealer.unseal(*at, page, record)?);
        }
        unsealing.push(begin.elapsed());
    }
    assert!(pages.iter().all(|page| *page == clear), "pages did not come back as they were");
    for (name, mut times) in [("seal", sealing), ("unseal", unsealing)] {
        times.sort_unstable();
        let median = times.get(times.len() / 2).expect("there was a turn");
        println!("{name} {} {}", PAGES << 12, median.as_nanos());
    }
    Ok(())
}
