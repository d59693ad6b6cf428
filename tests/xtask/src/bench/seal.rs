//! `seal`: how fast pages are sealed and unsealed, natively on one core, beside AES-256-GCM of the
//! machine's OpenSSL.
//!
//! The two take turns, so that both meet the machine in all its moods, and the best turn of each
//! counts: other work only makes slower. Each is timed by what it does itself: `openssl speed` by its
//! processor time, the pages by the median of turns of some 17 µs, which the scheduler rarely breaks.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Figure, native};
use crate::suite::Rig;
use crate::tool;

const BENCH: &str = "seal";

/// Turns of each.
const ROUNDS: usize = 5;

/// Bytes in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Speed {
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

    /// GB/s under a name.
    fn figure(self, metric: &str) -> Result<Figure> {
        Figure::ratio(BENCH, metric, self.bytes, self.nanoseconds, "GB/s")
    }

    /// Bytes per second.
    fn rate(self) -> Result<u64> {
        let scaled = u128::from(self.bytes) * 1_000_000_000;
        let rate = scaled.checked_div(self.nanoseconds.into()).context("no time passed")?;
        Ok(u64::try_from(rate)?)
    }
}

/// Lets both run and compares them.
pub(super) fn measure(_: &Rig<'_>) -> Result<Vec<Figure>> {
    let program = native::example("seal", "speed")?;
    let mut best: Option<[Speed; 3]> = None;
    for _ in 0..ROUNDS {
        let turn = turn(&program)?;
        best = Some(best.map_or(turn, |mut best| {
            best.iter_mut().zip(turn).for_each(|(best, turn)| *best = best.best(turn));
            best
        }));
    }
    let [sealing, unsealing, peer] = best.context("no round")?;
    Ok(vec![
        sealing.figure("seal.gbps")?,
        unsealing.figure("unseal.gbps")?,
        peer.figure("openssl_aes256gcm.gbps")?,
        Figure::ratio(BENCH, "ratio", sealing.rate()?, peer.rate()?, "1")?,
    ])
}

/// One turn of sealing, unsealing and OpenSSL.
fn turn(program: &Path) -> Result<[Speed; 3]> {
    let said = tool::output(&mut Command::new(program))?;
    Ok([line(&said, "seal ")?, line(&said, "unseal ")?, openssl()?])
}

/// One second of OpenSSL.
fn openssl() -> Result<Speed> {
    let words = ["speed", "-mr", "-evp", "aes-256-gcm", "-bytes", "4096", "-seconds", "1"];
    let said = tool::output(Command::new("openssl").args(words))
        .context("the peer is OpenSSL's program: apt-get install openssl")?;
    peer(&said)
}

/// The speed after `name` in what the example prints: bytes and nanoseconds.
fn line(said: &str, name: &str) -> Result<Speed> {
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
    use super::*;

    #[test]
    fn the_faster_turn_counts() {
        let slow = Speed { bytes: 100, nanoseconds: 30 };
        let fast = Speed { bytes: 200, nanoseconds: 40 };
        assert_eq!([slow.best(fast), fast.best(slow)], [fast, fast]);
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
