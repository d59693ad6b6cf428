//! What a piece of work in a VM takes on the bare machine, and on the visor without a ticket and with
//! one.

use anyhow::Result;

use super::{Figure, number};
use crate::suite::protected::with_tickets;
use crate::suite::{Host, Stack};

/// Whether VMs with tickets are measured too.
pub(super) const PROTECTED: bool = true;

/// What the names of VMs with tickets end in, and nothing for the same VMs without.
pub(super) const TICKETED: &str = "-protected";

/// The VMs of a boot, by what their names end in: those on the bare machine, and on the visor.
pub(super) const PLAIN: &[&str] = &[""];
pub(super) const ON_VISOR: &[&str] = if PROTECTED { &["", TICKETED] } else { PLAIN };

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

    /// What is left without `part` of it.
    pub(super) const fn without(self, part: Self) -> Self {
        Self {
            instructions: self.instructions.saturating_sub(part.instructions),
            exits: self.exits.saturating_sub(part.exits),
        }
    }

    const fn cycles(self) -> u64 {
        self.instructions.saturating_add(self.exits.saturating_mul(CYCLES_PER_EXIT))
    }
}

/// The visor with a host that may have VMs with tickets.
pub(super) fn on_visor(host: Host) -> Stack {
    if PROTECTED { with_tickets(host) } else { Stack::on_visor(host) }
}

/// What a work takes in each configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Configs {
    pub(super) bare: Taken,
    pub(super) visor: Taken,
    /// With a ticket, if that was measured.
    pub(super) protected: Option<Taken>,
}

impl Configs {
    /// The figures of `work`: what it takes, and against the bare machine.
    pub(super) fn figures(self, bench: &'static str, work: &str) -> Result<Vec<Figure>> {
        let Self { bare, visor, protected } = self;
        let mut figures = plain(bench, &format!("{work}.bare"), bare);
        for (config, taken) in [("visor", Some(visor)), ("protected", protected)] {
            let Some(taken) = taken else { continue };
            let name = format!("{work}.{config}");
            figures.extend(plain(bench, &name, taken));
            figures.extend(against(bench, &name, taken, bare)?);
        }
        if let Some(protected) = protected {
            let (with, without) = (protected.instructions, visor.instructions);
            let metric = format!("{work}.protected.to_visor");
            figures.push(Figure::ratio(bench, &metric, with, without, "1")?);
        }
        Ok(figures)
    }
}

fn plain(bench: &'static str, name: &str, taken: Taken) -> Vec<Figure> {
    let Taken { instructions, exits } = taken;
    vec![
        Figure::count(bench, format!("{name}.instructions"), instructions, "instructions"),
        Figure::count(bench, format!("{name}.hw_exits"), exits, "exits"),
    ]
}

fn against(bench: &'static str, name: &str, taken: Taken, bare: Taken) -> Result<[Figure; 3]> {
    let metric = |what: &str| format!("{name}.{what}");
    let (with, without) = (taken.instructions, bare.instructions);
    let extra = taken.exits.saturating_sub(bare.exits);
    let modelled = metric(&format!("ratio@c={CYCLES_PER_EXIT}"));
    Ok([
        Figure::ratio(bench, &metric("ratio"), with, without, "1")?,
        Figure::count(bench, metric("extra_exits"), extra, "exits"),
        Figure::ratio(bench, &modelled, taken.cycles(), bare.cycles(), "1")?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_model_adds_cycles_for_each_exit() {
        let bare = Taken::read("t 1000000\ne 100\n", "t ", "e ").unwrap();
        let visor = Taken { instructions: 1_100_000, exits: 200 };
        let protected = Some(Taken { instructions: 2_200_000, exits: 300 });
        let lines = |protected| {
            let figures = Configs { bare, visor, protected }.figures("guest-boot", "linux");
            figures.unwrap().iter().map(Figure::line).collect::<Vec<_>>()
        };
        let without = lines(None);
        assert_eq!(without[4], "guest-boot: linux.visor.ratio = 1.1 1");
        assert_eq!(without[5], "guest-boot: linux.visor.extra_exits = 100 exits");
        // 1,400,000 / 1,150,000
        assert_eq!(without[6], "guest-boot: linux.visor.ratio@c=1500 = 1.217391 1");
        let with = lines(protected);
        assert_eq!(with[..7], without);
        assert_eq!(with[8], "guest-boot: linux.protected.hw_exits = 300 exits");
        assert_eq!(with[9], "guest-boot: linux.protected.ratio = 2.2 1");
        assert_eq!(with[12], "guest-boot: linux.protected.to_visor = 2.0 1");
    }
}
