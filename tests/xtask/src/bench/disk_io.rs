//! `disk-io`: what requests of a virtio disk cost a Linux VM in the distribution's QEMU: on the bare machine, on the visor
//! without a ticket, with one, and with one that has the disk sealed.
//!
//! `init` in the VM makes the requests, and has the VM's own clock, which counts instructions. Exits are counted by the
//! visor, or by KVM, and the requests that arrive at the host by QEMU.

use anyhow::{Context, Result};

use super::Figure;
use crate::machine::{End, Machine};
use crate::suite::protected::with_tickets;
use crate::suite::{Boot, Host, Rig, Stack};

const BENCH: &str = "disk-io";

/// What the VM does, and calls so.
const WORKS: [&str; 10] = [
    "read-4k-seq",
    "read-4k-rand",
    "read-128k-seq",
    "read-128k-rand",
    "write-4k-seq",
    "write-4k-rand",
    "write-128k-seq",
    "write-128k-rand",
    "read-4k-rand-8",
    "write-4k-rand-8",
];
/// What it takes to count, without any request.
const NOTHING: &str = "nothing";
/// What is done eight requests at a time, under the name that its figures have besides.
const DEPTH: [(&str, &str); 2] =
    [("read-4k-rand-8", "depth8.read"), ("write-4k-rand-8", "depth8.write")];

/// Of which the disk is sealed, what all others are compared with, and those on the visor.
const BARE: &str = "bare";
const SEALED: &str = "protected";
const ON_VISOR: [&str; 3] = ["visor", "clear", SEALED];

/// As in `guest-work`: with fewer, exits are nearly all ticks of the kernels' clocks.
const MIPS: u64 = 1000;

/// Boots the bare machine and the visor, and compares.
pub(super) fn measure(rig: &Rig<'_>) -> Result<Vec<Figure>> {
    let boot = |stack: fn(Host) -> Stack, configs: &[&str]| {
        let host = Host::Made(format!("init.do=modules,{}", configs.join(",")));
        let lines: Vec<String> =
            configs.iter().map(|config| format!("*init: PASS {config},*")).collect();
        let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        lines.push("*init: done");
        let boot = Boot::of(stack(host)).on(machine).expect(&lines).never("*init: FAIL *");
        rig.check(if configs == [BARE] { BARE } else { "visor" }, &boot.ends(End::PowerOff))
    };
    let bare = boot(Stack::bare, &[BARE])?;
    let visor = boot(with_tickets, &ON_VISOR)?;
    figures(&format!("{bare}\n{visor}"))
}

/// Room for an initial RAM file system of 60 MB, a VM, and what is written to its disk.
fn machine(machine: &mut Machine) {
    (machine.memory_mib, machine.mips, machine.seconds) = (1024, MIPS, 100);
}

/// What the host has counted until then: exits, and requests that read, write and flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    exits: u64,
    requests: u64,
}

impl Counts {
    /// From the last words of a line.
    fn of(words: &[&str]) -> Result<Self> {
        let numbers: Result<Vec<u64>, _> = words.iter().map(|word| word.parse()).collect();
        let numbers = numbers.with_context(|| format!("no numbers: {}", words.join(" ")))?;
        let [exits, reads, writes, flushes] = numbers[..] else {
            anyhow::bail!("not four numbers: {}", words.join(" "));
        };
        Ok(Self { exits, requests: reads + writes + flushes })
    }

    const fn since(self, before: Self) -> Self {
        Self {
            exits: self.exits.saturating_sub(before.exits),
            requests: self.requests.saturating_sub(before.requests),
        }
    }
}

/// What the requests of one kind have taken.
#[derive(Clone, Copy, Debug)]
struct Taken {
    /// Requests of the VM's.
    count: u64,
    instructions: u64,
    host: Counts,
}

impl Taken {
    /// From what `log` says of a work in a configuration, less what is counted when there is nothing to do.
    fn read(log: &str, config: &str, work: &str) -> Result<Self> {
        let nothing = Self::whole(log, config, NOTHING)?;
        let whole = Self::whole(log, config, work)?;
        let instructions = whole.instructions.saturating_sub(nothing.instructions);
        Ok(Self { instructions, host: whole.host.since(nothing.host), ..whole })
    }

    fn whole(log: &str, config: &str, work: &str) -> Result<Self> {
        let words = |what: &str| -> Result<Vec<&str>> {
            let begins = format!("{config} disk-io {what} {work} ");
            let rest = log.lines().find_map(|line| line.strip_prefix(&begins));
            Ok(rest
                .with_context(|| format!("no line that begins with: {begins}"))?
                .split(' ')
                .collect())
        };
        let before = Counts::of(&words("ready")?)?;
        let done = words("done")?;
        let [count, ticks, ref after @ ..] = done[..] else {
            anyhow::bail!("{config} {work}: nothing was done");
        };
        let host = Counts::of(after)?.since(before);
        Ok(Self { count: count.parse()?, instructions: ticks.parse()?, host })
    }

    /// The figures of a configuration for each request of the VM's, under names that begin with `name`.
    fn figures(self, name: &str) -> Result<Vec<Figure>> {
        let sums = [
            ("instructions", self.instructions, "instructions"),
            ("hw_exits", self.host.exits, "exits"),
            ("host_requests", self.host.requests, "requests"),
        ];
        let each = |(what, sum, unit)| {
            Figure::ratio(BENCH, &format!("{name}.{what}"), sum, self.count, unit)
        };
        sums.into_iter().map(each).collect()
    }
}

/// The figures of what both boots have said.
fn figures(log: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for work in WORKS {
        let bare = Taken::read(log, BARE, work)?;
        figures.extend(bare.figures(&format!("{work}.{BARE}"))?);
        for config in ON_VISOR {
            figures.extend(compared(work, (config, Taken::read(log, config, work)?), bare)?);
        }
    }
    Ok(figures)
}

/// The figures of a configuration on the visor.
fn compared(work: &str, (config, taken): (&str, Taken), bare: Taken) -> Result<Vec<Figure>> {
    let name = format!("{work}.{config}");
    let mut figures = taken.figures(&name)?;
    let (with, without) = (taken.instructions, bare.instructions);
    figures.push(Figure::ratio(BENCH, &format!("{name}.to_bare"), with, without, "1")?);
    if config == SEALED {
        figures.extend(sealed(work, taken, bare)?);
    }
    Ok(figures)
}

/// What only a sealed disk has: requests for more than the VM's data; and how many exits more there are for each of
/// several requests at a time.
fn sealed(work: &str, taken: Taken, bare: Taken) -> Result<Vec<Figure>> {
    let metadata = taken.host.requests.saturating_sub(taken.count);
    let name = format!("{work}.metadata_per_data");
    let mut figures = vec![Figure::ratio(BENCH, &name, metadata, taken.count, "requests")?];
    if let Some((_, name)) = DEPTH.into_iter().find(|(known, _)| *known == work) {
        let extra = taken.host.exits.saturating_sub(bare.host.exits);
        let name = format!("{name}.extra_exits_per_request");
        figures.push(Figure::ratio(BENCH, &name, extra, taken.count, "exits")?);
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a configuration in which each request takes so many instructions, exits and requests.
    fn part(config: &str, [instructions, exits, requests]: [u64; 3]) -> String {
        let line = |work: &str, count: u64| {
            let (ticks, exits, reads) =
                (500 + count * instructions, 1030 + count * exits, 7 + count * requests);
            format!(
                "{config} disk-io ready {work} 1000 4 2 1\n\
                 {config} disk-io done {work} {count} {ticks} {exits} {reads} 2 1\n"
            )
        };
        let works = WORKS.iter().map(|work| line(work, 100));
        line(NOTHING, 0) + &works.collect::<String>()
    }

    fn log() -> String {
        [
            part(BARE, [1000, 4, 1]),
            part("visor", [1200, 8, 1]),
            part("clear", [1500, 9, 1]),
            part(SEALED, [3000, 12, 3]),
        ]
        .concat()
    }

    #[test]
    fn what_it_takes_to_count_is_in_no_figure() {
        let lines: Vec<String> = figures(&log()).unwrap().iter().map(Figure::line).collect();
        for line in [
            "read-4k-seq.bare.instructions = 1000.0 instructions",
            "read-4k-seq.visor.hw_exits = 8.0 exits",
            "write-128k-rand.clear.to_bare = 1.5 1",
            "write-128k-rand.protected.host_requests = 3.0 requests",
            "read-4k-rand.metadata_per_data = 2.0 requests",
            "depth8.read.extra_exits_per_request = 8.0 exits",
            "depth8.write.extra_exits_per_request = 8.0 exits",
        ] {
            let line = format!("disk-io: {line}");
            assert!(lines.contains(&line), "no {line} in {lines:?}");
        }
        assert_eq!(lines.len(), WORKS.len() * (4 * 3 + 3 + 1) + 2);
    }

    #[test]
    fn a_work_that_was_not_done_or_counted_gives_no_figures() {
        let log = log();
        for (whole, part) in [
            ("protected disk-io done read-4k-seq 100 ", "protected disk-io gone "),
            ("bare disk-io ready nothing 1000 4 2 1", "bare disk-io ready nothing 1000 4 2"),
            ("clear disk-io done write-4k-seq 100 ", "clear disk-io done write-4k-seq 0 "),
            ("visor disk-io ready read-4k-rand 1000", "visor disk-io ready read-4k-rand "),
        ] {
            assert!(log.contains(whole), "{whole}");
            assert!(figures(&log.replacen(whole, part, 1)).is_err(), "{part}");
        }
    }
}
