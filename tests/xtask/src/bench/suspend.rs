//! `suspend`: what it takes to suspend a protected VM, by its size, with the membrane's own data
//! structures on hardware that only counts.
//!
//! All figures but the time are counts, the same on every machine.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::plot::{self, Line};
use super::{Figure, native};
use crate::suite::Rig;
use crate::{paths, tool};

const BENCH: &str = "suspend";

/// What the host does to a VM's memory: takes it away as a whole memory slot, or page by page, or reads
/// all of it.
const MODES: [&str; 3] = ["slot", "page", "read"];

/// The plot in the documentation.
const PLOT: &str = "docs/suspend.svg";

/// What one suspension takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    pages: u64,
    exits: u64,
    /// Of tables, the visor's and the host's, read or written.
    words: u64,
    flushes: u64,
    /// Bytes of the visor's while all pages are the VM's, and while all are sealed.
    resident: u64,
    sealed: u64,
    /// Bytes more of EPT01 while all are the VM's.
    split: u64,
    nanoseconds: u64,
}

impl Taken {
    /// All of `mode` in what the example prints, from the smallest VM to the largest.
    fn read(said: &str, mode: &str) -> Result<Vec<Self>> {
        let prefix = format!("suspend {mode} ");
        let lines = said.lines().filter_map(|line| line.strip_prefix(&prefix));
        let taken = lines.map(|line| {
            let numbers = line.split(' ').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
            let [pages, exits, words, flushes, resident, sealed, split, nanoseconds] =
                numbers.try_into().ok().with_context(|| format!("not eight numbers: {line}"))?;
            Ok(Self { pages, exits, words, flushes, resident, sealed, split, nanoseconds })
        });
        let taken = taken.collect::<Result<Vec<_>>>()?;
        ensure!(!taken.is_empty(), "no line that begins with: {prefix}");
        Ok(taken)
    }
}

/// Lets the example run; writes the plot.
pub(super) fn measure(_: &Rig<'_>) -> Result<Vec<Figure>> {
    let program = native::example("membrane", "suspend")?;
    let said = tool::output(&mut Command::new(program))?;
    let path = paths::root().join(PLOT);
    fs::write(&path, plot(&said)?).with_context(|| format!("cannot write {}", path.display()))?;
    figures(&said)
}

fn figures(said: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for mode in MODES {
        let all = Taken::read(said, mode)?;
        for taken in &all {
            let metric = |what: &str| format!("{mode}.{what}@{}", taken.pages);
            let Taken { exits, words, flushes, .. } = *taken;
            figures.push(Figure::count(BENCH, metric("exits"), exits, "exits"));
            figures.push(Figure::count(BENCH, metric("words"), words, "words"));
            figures.push(Figure::count(BENCH, metric("flushes"), flushes, "flushes"));
            let time = metric("ns_per_page");
            figures.push(Figure::ratio(BENCH, &time, taken.nanoseconds, taken.pages, "ns")?);
        }
        let (Some(small), Some(large)) = (all.first(), all.last()) else { continue };
        // 1 for what is linear.
        let (part, whole) = (large.words * small.pages, small.words * large.pages);
        figures.push(Figure::ratio(BENCH, &format!("{mode}.growth"), part, whole, "1")?);
        if mode == MODES[0] {
            for (what, bytes) in
                [("resident", large.resident), ("sealed", large.sealed), ("ept01", large.split)]
            {
                let name = format!("{what}.bytes_per_page");
                figures.push(Figure::ratio(BENCH, &name, bytes, large.pages, "bytes")?);
            }
        }
    }
    Ok(figures)
}

fn plot(said: &str) -> Result<String> {
    let [slot, page, read] = MODES.map(|mode| Taken::read(said, mode));
    let (slot, page, read) = (slot?, page?, read?);
    let sizes: Vec<u64> = slot.iter().map(|taken| taken.pages).collect();
    let line = |name, of: &[Taken], value: fn(&Taken) -> u64| Line {
        name,
        values: of.iter().map(value).collect(),
    };
    let lines = [
        line("words of tables, page by page", &page, |taken| taken.words),
        line("exits, by reading all pages", &read, |taken| taken.exits),
        line("exits, a whole slot", &slot, |taken| taken.exits),
    ];
    Ok(plot::svg("Suspending a protected VM", &sizes, &lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "suspend slot 1024 4 1000 9 24000 40960 0 2048\n\
                        suspend slot 2048 8 2100 10 32768 81920 16384 8192\n\
                        suspend page 1024 1024 1024 1024 0 0 0 1024\n\
                        suspend page 2048 2048 2048 2048 0 0 0 2048\n\
                        suspend read 1024 1024 1024 1024 0 0 0 1024\n\
                        suspend read 2048 2048 1024 2048 0 0 0 2048\n";

    #[test]
    fn growth_is_1_where_twice_the_pages_take_twice_the_words() {
        let lines: Vec<String> = figures(SAID).unwrap().iter().map(Figure::line).collect();
        for line in [
            "suspend: slot.exits@1024 = 4 exits",
            "suspend: slot.growth = 1.05 1",
            "suspend: page.growth = 1.0 1",
            "suspend: read.growth = 0.5 1",
            "suspend: slot.ns_per_page@2048 = 4.0 ns",
            "suspend: resident.bytes_per_page = 16.0 bytes",
            "suspend: sealed.bytes_per_page = 40.0 bytes",
            "suspend: ept01.bytes_per_page = 8.0 bytes",
        ] {
            assert!(lines.iter().any(|found| found == line), "no {line} in {lines:?}");
        }
    }

    #[test]
    fn a_way_that_was_not_measured_gives_no_figures() {
        let one = SAID.split("suspend page").next().unwrap();
        assert!(figures(one).is_err() && plot(one).is_err());
        assert!(figures(&SAID.replace(" 9 24000", "")).is_err());
        assert!(plot(SAID).unwrap().contains("a whole slot"));
    }
}
