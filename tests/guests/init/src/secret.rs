//! A secret of this machine: others learn only how it looks in disguise, and can search for it so.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

/// It stays here to the end.
static SECRET: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Makes the secret and says what it is, disguised.
pub(crate) fn make() -> Result<(), String> {
    let mut bytes = [0; 8];
    let mut random = File::open("/dev/urandom").map_err(|why| why.to_string())?;
    for word in &SECRET {
        random.read_exact(&mut bytes).map_err(|why| why.to_string())?;
        word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
    }
    let [first, second] = words().map(disguised);
    println!("init: secret {first:016x} {second:016x}");
    Ok(())
}

/// The secret.
pub(crate) fn words() -> [u64; 2] {
    [0, 1].map(|index: usize| SECRET[index].load(Ordering::Relaxed))
}

/// Leaves the secret in so much memory that the next system does not overwrite all of it.
pub(crate) fn spread() {
    const TIMES: usize = 1 << 20;
    std::mem::forget(std::hint::black_box(words().repeat(TIMES)));
}

/// Has the test harness look where in the machine's memory the secret is, and gives it time for that.
pub(crate) fn look() {
    let [first, second] = words().map(disguised);
    println!("vmm: look for {first:016x} {second:016x} the secret");
    std::thread::sleep(std::time::Duration::from_secs(3));
}

/// As the test harness knows words that it searches for.
fn disguised(word: u64) -> u64 {
    word.wrapping_mul(0xd134_2543_de82_ef95).rotate_left(29)
}
