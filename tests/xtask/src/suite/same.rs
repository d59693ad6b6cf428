//! `boot/sees-the-same…`: a host finds the machine on the visor that it finds without it.
//!
//! The same Linux boots twice and reports what it sees. A difference that no rule of [`rules::RULES`]
//! explains fails the test, and so does a rule that must apply and does not: nothing passes because
//! two reports are empty or because the visor was not there.

mod comparison;
mod report;
mod rules;

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::{Boot, Host, Rig, Stack, Test};
use crate::machine::End;
use comparison::Comparison;
use report::{Report, captures};

/// What the visor keeps below 1 MiB to start processors with: three pages.
const LOW_LENGTH: u64 = 0x3000;

/// How far MemTotal may lie below what the reservation explains, in KiB: the low pages, and tables
/// whose size follows the memory's layout.
const MEMORY_SLACK: u64 = 256;

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        Test::new("boot/sees-the-same", 190, |rig| sees_the_same(rig, 1, "0")),
        Test::new("boot/sees-the-same-2-cpus", 250, |rig| {
            sees_the_same(rig, 2, "0-1")
        }),
    ]
}

/// The distribution's Linux sees the same machine with `cpus` processors, `online` in its own
/// words, on the visor and without. `differences.txt` in the folder says what differs and why.
fn sees_the_same(rig: &Rig<'_>, cpus: u32, online: &str) -> Result<()> {
    let report = |label, stack: fn(Host) -> Stack| {
        let host = Host::Stock("init.do=report,stats".to_owned());
        let boot = Boot::of(stack(host))
            .on(|machine| {
                machine.cpus = cpus;
                machine.seconds = 450;
            })
            .expect(&["*init: userspace reached*", "=== end", "*init: done"])
            .never("visor: [warn] refused*")
            .ends(End::PowerOff);
        rig.check(label, &boot)
    };
    let bare = report("bare", Stack::bare)?;
    let visor = report("visor", Stack::on_visor)?;
    let comparison = compare(&bare, &visor, online)?;
    let file = rig.dir.join("differences.txt");
    fs::write(&file, comparison.text()).context("cannot write differences.txt")?;
    if !comparison.wrong.is_empty() {
        let (wrong, file) = (comparison.wrong.join("\n    "), file.display());
        bail!("the host does not see the same:\n    {wrong}\n    all differences: {file}");
    }
    Ok(())
}

/// Compares what came over the serial line in both boots.
fn compare(bare: &str, visor: &str, online: &str) -> Result<Comparison> {
    let (bare_report, visor_report) = (Report::of(bare)?, Report::of(visor)?);
    let holes = Holes::of(&bare_report, &visor_report, visor)?;
    let mut comparison = Comparison::of(&bare_report, &visor_report, &holes);
    for (label, report) in [("bare", &bare_report), ("visor", &visor_report)] {
        if report.section("online") != [online] {
            let seen = report.section("online").join(" ");
            comparison.wrong.push(format!(
                "{label}: processors {seen} are online, not {online}"
            ));
        }
    }
    if let Err(error) = memory_lost(&bare_report, &visor_report, &holes) {
        comparison.wrong.push(format!("{error:#}"));
    }
    Ok(comparison)
}

/// Memory that the visor keeps.
#[derive(Clone, Copy, Debug)]
struct Kept {
    first: u64,
    length: u64,
}

/// The low pages and the reservation.
#[derive(Clone, Copy, Debug)]
struct Holes {
    low: Kept,
    top: Kept,
}

impl Holes {
    /// The reservation as the control port has it, the low pages as the memory map shows them.
    fn of(bare: &Report, visor: &Report, serial: &str) -> Result<Self> {
        let value = |name: &str| {
            let line = serial.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|text| text.trim().parse().ok());
            value.with_context(|| format!("no line \"{name}NUMBER\""))
        };
        let top = Kept {
            first: value("stats: reservation.base ")?,
            length: value("stats: reservation.length ")?,
        };
        let new = |line: &&String| !bare.section("dmesg").contains(line);
        let mut low = visor
            .section("dmesg")
            .iter()
            .filter(new)
            .filter_map(|line| {
                let ends = captures("BIOS-e820: [mem 0x*-0x*] reserved", line)?;
                let mut ends = ends.iter().map(|end| u64::from_str_radix(end, 16).ok());
                let (first, last) = (ends.next()??, ends.next()??);
                let length = last.checked_sub(first)? + 1;
                (last < 1 << 20).then_some(Kept { first, length })
            });
        let low = low.next().context("no low memory is reserved")?;
        ensure!(
            low.length == LOW_LENGTH,
            "{} bytes of low memory are reserved",
            low.length
        );
        Ok(Self { low, top })
    }

    /// `pattern` with every edge and size, and with `texts` for `$1`, `$2`…
    fn fill(&self, pattern: &str, texts: &[&str]) -> String {
        let mut line = pattern.to_owned();
        for (name, Kept { first, length }) in [("low", self.low), ("top", self.top)] {
            let after = first.saturating_add(length);
            let before = first.saturating_sub(1);
            line = line
                .replace(&format!("{{{name}.before}}"), &format!("{before:08x}"))
                .replace(&format!("{{{name}.first}}"), &format!("{first:08x}"))
                .replace(
                    &format!("{{{name}.last}}"),
                    &format!("{:08x}", after.saturating_sub(1)),
                )
                .replace(&format!("{{{name}.after}}"), &format!("{after:08x}"))
                .replace(&format!("{{{name}.pages}}"), &(length / 4096).to_string());
        }
        for (at, text) in texts.iter().enumerate() {
            line = line.replace(&format!("${}", at + 1), text);
        }
        line
    }
}

/// Checks that MemTotal lost what the visor keeps, and little more.
fn memory_lost(bare: &Report, visor: &Report, holes: &Holes) -> Result<()> {
    let total = |report: &Report| {
        let line = report.section("meminfo").first()?;
        captures("MemTotal: * kB", line)?
            .first()?
            .parse::<u64>()
            .ok()
    };
    let (bare, visor) = (total(bare), total(visor));
    let lost = bare
        .zip(visor)
        .and_then(|(bare, visor)| bare.checked_sub(visor));
    let lost = lost.context("the host has more memory on the visor")?;
    let kept = holes.top.length / 1024;
    ensure!(
        (kept..=kept + MEMORY_SLACK).contains(&lost),
        "the host lost {lost} KiB of memory to a visor that keeps {kept} KiB"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dev() {
        let read = |name: &str| {
            let file = std::env::var(name).unwrap();
            String::from_utf8_lossy(&fs::read(file).unwrap()).replace('\r', "")
        };
        let c = compare(
            &read("BARE"),
            &read("VISOR"),
            &std::env::var("ONLINE").unwrap(),
        )
        .unwrap();
        println!("{}", c.text());
        assert!(c.wrong.is_empty());
    }
}
