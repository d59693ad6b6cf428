//! How fast this machine does something: programs of ours beside the machine's OpenSSL.
//!
//! They take turns, so that all meet the machine in all its moods, and the best turn of each counts:
//! other work only makes slower. Each is timed by what it does itself: `openssl speed` by its processor
//! time, ours by the median of turns of some 17 µs, which the scheduler rarely breaks.

use std::process::Command;

use anyhow::{Context, Result};

use super::Figure;
use crate::tool;

/// Turns of each.
const ROUNDS: usize = 5;

/// Bytes in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Speed {
    bytes: u64,
    nanoseconds: u64,
}

impl Speed {
    /// The faster of two.
    fn best(self, other: Self) -> Self {
        let product = |a: u64, b: u64| u128::from(a) * u128::from(b);
        let faster =
            product(other.bytes, self.nanoseconds) > product(self.bytes, other.nanoseconds);
        if faster { other } else { self }
    }

    /// The speed of doing the one and then the other to the same bytes: the times add up.
    pub(super) fn and_then(self, other: Self) -> Result<Self> {
        let (one, two) = (u128::from(self.rate()?), u128::from(other.rate()?));
        let rate = (one * two).checked_div(one + two).context("a speed of 0")?;
        Ok(Self { bytes: u64::try_from(rate)?, nanoseconds: 1_000_000_000 })
    }

    /// GB/s under a name.
    pub(super) fn figure(self, bench: &'static str, metric: &str) -> Result<Figure> {
        Figure::ratio(bench, metric, self.bytes, self.nanoseconds, "GB/s")
    }

    /// How much faster than `peer`, under a name.
    pub(super) fn ratio(self, peer: Self, bench: &'static str, metric: &str) -> Result<Figure> {
        Figure::ratio(bench, metric, self.rate()?, peer.rate()?, "1")
    }

    /// Bytes per second.
    fn rate(self) -> Result<u64> {
        let scaled = u128::from(self.bytes) * 1_000_000_000;
        let rate = scaled.checked_div(self.nanoseconds.into()).context("no time passed")?;
        Ok(u64::try_from(rate)?)
    }
}

/// The best of each of what `turn` times, of [`ROUNDS`] turns.
pub(super) fn best<const N: usize>(turn: impl Fn() -> Result<[Speed; N]>) -> Result<[Speed; N]> {
    let mut best = turn()?;
    for _ in 1..ROUNDS {
        best.iter_mut().zip(turn()?).for_each(|(best, now)| *best = best.best(now));
    }
    Ok(best)
}

/// One second of what OpenSSL calls by these words, on pieces of 4 KiB.
pub(super) fn openssl(words: [&str; 2]) -> Result<Speed> {
    let mut command = Command::new("openssl");
    let _ = command.args(["speed", "-mr", "-bytes", "4096", "-seconds", "1"]).args(words);
    let said = tool::output(&mut command)
        .context("the peer is OpenSSL's program: apt-get install openssl")?;
    peer(&said)
}

/// The speed after `name` in what an example prints: bytes and nanoseconds.
pub(super) fn line(said: &str, name: &str) -> Result<Speed> {
    let (bytes, nanoseconds) =
        super::text(said, name)?.split_once(' ').context("a speed is two numbers")?;
    Ok(Speed { bytes: bytes.parse()?, nanoseconds: nanoseconds.parse()? })
}

/// The speed that `openssl speed -mr` prints: bytes per second in the last column, with decimals.
fn peer(said: &str) -> Result<Speed> {
    let row =
        said.lines().find(|line| line.starts_with("+F:")).context("OpenSSL printed no rate")?;
    let rate = row.rsplit(':').next().and_then(|rate| rate.split('.').next());
    let bytes = rate.and_then(|rate| rate.parse().ok()).context("OpenSSL's rate is no number")?;
    Ok(Speed { bytes, nanoseconds: 1_000_000_000 })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_fastest_turn_of_each_counts() {
        let turns = Cell::new(0);
        let both = best(|| {
            turns.set(turns.get() + 1);
            let speed = |bytes| Speed { bytes, nanoseconds: 30 + turns.get() };
            Ok([speed(100), speed(100 * turns.get())])
        });
        let slow = Speed { bytes: 100, nanoseconds: 31 };
        let fast = Speed { bytes: 500, nanoseconds: 35 };
        assert_eq!((both.unwrap(), turns.get()), ([slow, fast], 5));
    }

    #[test]
    fn what_is_done_twice_takes_the_time_of_both() {
        let (one, two) = (Speed { bytes: 6, nanoseconds: 1 }, Speed { bytes: 6, nanoseconds: 2 });
        assert_eq!(one.and_then(two).unwrap().rate().unwrap(), 2_000_000_000);
        assert!(
            Speed { bytes: 0, nanoseconds: 1 }
                .and_then(Speed { bytes: 0, nanoseconds: 1 })
                .is_err()
        );
    }

    #[test]
    fn what_the_example_and_openssl_print_is_understood() {
        let said = "seal 262144 16590\nunseal 262144 17400\n";
        assert_eq!(line(said, "unseal ").unwrap(), Speed { bytes: 262_144, nanoseconds: 17_400 });
        let said = "+H:4096\n+F:25:AES-256-GCM:2533141942.86\n";
        assert_eq!(peer(said).unwrap().rate().unwrap(), 2_533_141_942);
        assert!(peer("+F:25:AES-256-GCM:fast").is_err());
        assert!(Speed { bytes: 1, nanoseconds: 0 }.rate().is_err());
    }
}
