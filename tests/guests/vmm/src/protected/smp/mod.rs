//! VMs with several processors, with tickets and without: that they live, and what a host can do with
//! processors that the VM did not start, or not so.
//!
//! Each step of the life has a line `vmm: SMP name unprotected=ok protected=ok`, each attack one
//! `vmm: SMP-ATTACK name unprotected=succeeded protected=failed`.

mod attacks;
mod guest;
mod team;

use super::launch;
use super::victim::{Kind, Trouble};
use guest::Command;
use team::{Options, Team};

/// Bits of [`Command::Ids`] that are not ids.
const WRONG: u32 = !0xffff;
const PAGES: u32 = 512;

/// Something that is done to a VM of which all processors work.
type Step = fn(&mut Team) -> Result<(), Trouble>;

const STEPS: &[(&str, Step)] = &[
    ("starts", |team| same("ids", team.command(Command::Ids)?, (1 << team.count()) - 1)),
    ("pings", |team| {
        let all = 100 * (team.count() - 1);
        same("pings", team.command_with(Command::Ping, 100)?, all)
    }),
    ("storms", |team| (0..8).try_for_each(|_| storm(team))),
    ("racing-slots", |team| {
        team.beside(|team| (0..6).try_for_each(|_| storm(team)), team::renew_slot)
    }),
    ("racing-reads", |team| {
        team.beside(
            |team| (0..6).try_for_each(|_| storm(team)),
            |_, memory| {
                let _ = team::read_all(memory);
                Ok(())
            },
        )
    }),
    ("migrations", |team| {
        (0..24).try_for_each(|round| {
            team.scatter(round);
            let _ = team.command_with(Command::Ping, 3)?;
            if round % 4 == 0 { storm(team) } else { Ok(()) }
        })
    }),
    ("off-and-on", |team| {
        (0..8).try_for_each(|_| {
            for id in 1..team.count() {
                let left = team.count() - 2;
                same("at work", team.command_with(Command::Off, id)?, left)?;
                team.bring_up(id)?;
                same("at work again", team.command(Command::Count)?, left + 1)?;
            }
            storm(team)
        })
    }),
    ("wakes", |team| {
        let ids = team.command(Command::Ids)?;
        same("what is wrong", ids & WRONG, 0)
    }),
];

fn storm(team: &mut Team) -> Result<(), Trouble> {
    same("pages", team.command(Command::Storm)?, PAGES)
}

fn same(what: &str, found: u32, wanted: u32) -> Result<(), Trouble> {
    Ok(crate::tests::same(what, found, wanted)?)
}

/// The life of a VM with `count` processors of each kind, and the attacks.
pub(super) fn run(kinds: &[Kind], counts: &[u32]) -> Result<(), String> {
    let mut wrong = 0;
    for count in counts {
        wrong += life(kinds, *count)?;
    }
    wrong += attacks::run(kinds)?;
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} went otherwise")) }
}

fn life(kinds: &[Kind], count: u32) -> Result<u32, String> {
    let mut teams = Vec::new();
    for kind in kinds {
        let started = Team::started(*kind, Options::of(count)).and_then(|mut team| {
            (1..count).try_for_each(|id| team.bring_up(id))?;
            Ok(team)
        });
        teams.push(started.map_err(|trouble| format!("{kind:?}: {trouble:?}"))?);
    }
    let mut wrong = 0;
    for (name, step) in STEPS {
        let mut line = format!("vmm: SMP {name}-{count}");
        for team in &mut teams {
            let label = team.label();
            line += &match step(team) {
                Ok(()) => format!(" {label}=ok"),
                Err(trouble) => {
                    wrong += 1;
                    format!(" {label}={trouble:?} {:?} {:?}", team.state(), team.ends())
                }
            };
        }
        println!("{line}");
    }
    teams.into_iter().try_for_each(Team::end)?;
    Ok(wrong)
}
