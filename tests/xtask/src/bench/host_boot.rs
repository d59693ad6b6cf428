//! `host-boot`: the small kernel from power-on to userspace, on the visor and without it.
//!
//! The emulated TSC counts instructions from power-on, so a ratio of its values at the same point
//! of the same boot is a ratio of instructions.

use anyhow::{Context, Result};

use super::Figure;
use crate::machine::{End, Loader, Machine};
use crate::suite::{Boot, Host, Rig, Stack};

const BENCH: &str = "host-boot";

/// Boots both ways and compares.
pub(super) fn measure(rig: &Rig<'_>) -> Result<Vec<Figure>> {
    let host = Host::Small("init.do=stats".to_owned());
    // GRUB 2 loads both; what isolinux and mboot.c32 do before the hand-over differs more than this.
    let by_grub = |machine: &mut Machine| machine.loader = Loader::Grub2;
    let boot = |label, stack| {
        let boot = Boot::of(stack).expect(&["init: userspace reached tsc=*", "init: done"]);
        rig.check(label, &boot.on(by_grub).ends(End::PowerOff))
    };
    let bare = boot("bare", Stack::bare(host.clone()))?;
    let visor = boot("visor", Stack::on_visor(host))?;
    figures(&bare, &visor)
}

fn figures(bare: &str, visor: &str) -> Result<Vec<Figure>> {
    let (without, with) = (userspace(bare)?, userspace(visor)?);
    let stats = stats(visor);
    let stat = |name: &str| stats.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let ticks = stat("ticks").context("the host found no count of ticks in the visor")?;
    let exits = stat("exits").context("the host found no count of exits")?;
    let mut figures = vec![
        Figure::ratio(BENCH, "ratio", with, without, "1")?,
        Figure::count(BENCH, "instructions_without", without, "instructions"),
        Figure::count(BENCH, "instructions_with", with, "instructions"),
        Figure::ratio(BENCH, "visor_instructions_per_exit", ticks, exits, "instructions")?,
    ];
    let reasons = stats.iter().filter(|(name, _)| name.starts_with("exits."));
    figures.extend(reasons.map(|(name, count)| Figure::count(BENCH, *name, *count, "exits")));
    Ok(figures)
}

/// The emulated TSC when userspace was reached.
fn userspace(serial: &str) -> Result<u64> {
    let line = serial.lines().find_map(|line| line.split_once("init: userspace reached tsc="));
    let digits = line.and_then(|(_, rest)| rest.split_whitespace().next());
    digits.and_then(|digits| digits.parse().ok()).context("no time of reaching userspace")
}

/// The values that the host read from the visor's control port.
fn stats(serial: &str) -> Vec<(&str, u64)> {
    let lines = serial.lines().filter_map(|line| line.split_once("stats: "));
    let pairs = lines.filter_map(|(_, rest)| rest.split_once(' '));
    pairs.filter_map(|(name, value)| Some((name, value.trim().parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_come_from_the_two_serial_logs() {
        let bare = "noise\ninit: userspace reached tsc=1000\n";
        let visor = "init: userspace reached tsc=1005\nstats: ticks 900\n\
                     stats: exits.cpuid 7\nstats: exits 9\n";
        let lines: Vec<String> = figures(bare, visor).unwrap().iter().map(Figure::line).collect();
        assert_eq!(
            lines,
            [
                "host-boot: ratio = 1.005 1",
                "host-boot: instructions_without = 1000 instructions",
                "host-boot: instructions_with = 1005 instructions",
                "host-boot: visor_instructions_per_exit = 100.0 instructions",
                "host-boot: exits.cpuid = 7 exits",
            ]
        );
    }

    #[test]
    fn a_host_that_found_no_visor_gives_no_figures() {
        let text = "init: userspace reached tsc=1000\n";
        assert!(figures(text, text).is_err());
    }
}
