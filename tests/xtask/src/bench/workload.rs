//! What a piece of work in a VM takes on the bare machine and on the visor.

use anyhow::Result;

use super::{Figure, number};

/// Cycles that an exit of the hardware and the entry after it are reckoned with.
///
/// The emulator counts instructions only. The figure stands for what a processor adds to them.
const CYCLES_PER_EXIT: u64 = 1_500;

/// What one piece of work takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) instructions: u64,
    pub(super) exits: u64,
}

impl Taken {
    /// From the lines of `serial` that begin with these words.
    pub(super) fn read(serial: &str, instructions: &str, exits: &str) -> Result<Self> {
        let (instructions, exits) = (number(serial, instructions)?, number(serial, exits)?);
        Ok(Self { instructions, exits })
    }

    const fn cycles(self) -> u64 {
        self.instructions.saturating_add(self.exits.saturating_mul(CYCLES_PER_EXIT))
    }
}

/// The figures of `work`, with and without the visor.
pub(super) fn figures(
    bench: &'static str,
    work: &str,
    bare: Taken,
    visor: Taken,
) -> Result<Vec<Figure>> {
    let metric = |what: &str| format!("{work}.{what}");
    let mut figures = Vec::new();
    for (config, taken) in [("bare", bare), ("visor", visor)] {
        let Taken { instructions, exits } = taken;
        let name = metric(&format!("{config}.instructions"));
        figures.push(Figure::count(bench, name, instructions, "instructions"));
        let name = metric(&format!("{config}.hw_exits"));
        figures.push(Figure::count(bench, name, exits, "exits"));
    }
    let (with, without) = (visor.instructions, bare.instructions);
    figures.push(Figure::ratio(bench, &metric("visor.ratio"), with, without, "1")?);
    let extra = visor.exits.saturating_sub(bare.exits);
    figures.push(Figure::count(bench, metric("visor.extra_exits"), extra, "exits"));
    let name = metric(&format!("visor.ratio@c={CYCLES_PER_EXIT}"));
    figures.push(Figure::ratio(bench, &name, visor.cycles(), bare.cycles(), "1")?);
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_model_adds_cycles_for_each_exit() {
        let bare = Taken::read("t 1000000\ne 100\n", "t ", "e ").unwrap();
        let visor = Taken { instructions: 1_100_000, exits: 200 };
        let figures = figures("guest-boot", "linux", bare, visor).unwrap();
        let lines: Vec<String> = figures.iter().map(Figure::line).collect();
        assert_eq!(lines[4], "guest-boot: linux.visor.ratio = 1.1 1");
        assert_eq!(lines[5], "guest-boot: linux.visor.extra_exits = 100 exits");
        // 1,400,000 / 1,150,000
        assert_eq!(lines[6], "guest-boot: linux.visor.ratio@c=1500 = 1.217391 1");
    }
}
