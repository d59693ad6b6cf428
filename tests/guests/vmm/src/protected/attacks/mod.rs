//! The attacks, each a line of a table: on a VM without a ticket it must succeed.

mod devices;
mod early;
mod pages;
mod read;
mod registers;

use super::guest::Command;
use super::look;
use super::victim::{Kind, Trouble, Victim};
use ticket::port::VmState;

/// What an attack does; whether it got what it wanted. One that wants the guest changed says no, and the
/// guest finds out itself.
type Act = fn(&mut Victim) -> Result<bool, Trouble>;

/// Name, and what is done to a guest that waits for a command.
type Attack = (&'static str, Act);

/// How an attack ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Succeeded,
    /// The guest goes on and finds nothing changed.
    Failed,
    /// The visor stopped the VM, for this cause.
    Stopped(u32),
    /// Something else, which is not what anybody wants.
    Other(String),
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Succeeded => out.write_str("succeeded"),
            Self::Failed => out.write_str("failed"),
            Self::Stopped(cause) => write!(out, "stopped cause={cause}"),
            Self::Other(what) => write!(out, "{what}"),
        }
    }
}

/// Every attack on VMs of these kinds; fails unless each succeeds without a ticket, and only there.
pub(super) fn run(kinds: &[Kind]) -> Result<(), String> {
    for kind in kinds {
        // What no attack has changed must be as it was, or the guest's own word proves nothing.
        let untouched = outcome(started(*kind), |_| Ok(false));
        if untouched != Outcome::Failed {
            return Err(format!("{kind:?}, without any attack: {untouched}"));
        }
    }
    let mut wrong = 0;
    for (name, act) in early::ATTACKS {
        let outcomes = kinds.iter().map(|kind| outcome(Victim::new(*kind), *act));
        wrong += tell(name, kinds, &outcomes.collect::<Vec<_>>());
    }
    for stop in read::STOPS {
        let seen = kinds.iter().map(|kind| readings(*kind, *stop)).collect::<Vec<_>>();
        for (index, (name, _)) in read::READERS.iter().enumerate() {
            let outcomes = seen.iter().map(|all| all[index].clone()).collect::<Vec<_>>();
            wrong += tell(&format!("{name}-at-{}", stop.0), kinds, &outcomes);
        }
    }
    let tables =
        [read::ATTACKS, registers::ATTACKS, devices::ATTACKS, pages::ATTACKS, read::SEARCHES];
    for (name, act) in tables.into_iter().flatten() {
        let outcomes = kinds.iter().map(|kind| outcome(started(*kind), *act));
        wrong += tell(name, kinds, &outcomes.collect::<Vec<_>>());
    }
    for kind in kinds {
        left(*kind)?;
    }
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} attacks ended otherwise")) }
}

/// Has the machine's memory searched from outside for what is left of a VM that is gone.
pub(super) fn left(kind: Kind) -> Result<(), String> {
    let mut victim = started(kind)?;
    for command in [Command::Halt, Command::Spin, Command::Storm, Command::Verify] {
        let done = victim.command(command);
        let _ = done.map_err(|trouble| format!("{command:?}: {trouble:?}"))?;
    }
    // The host has everything once.
    let _ = look::is_anywhere(&victim.secrets)?;
    let secrets = victim.secrets.clone();
    victim.end()?;
    secrets.ask_outside(if kind == Kind::Plain { "unprotected" } else { "protected" });
    Ok(())
}

/// Prints the line of an attack; 1 if it did not end as it must.
fn tell(name: &str, kinds: &[Kind], outcomes: &[Outcome]) -> u32 {
    let mut line = format!("vmm: ATTACK {name}");
    let mut wrong = 0;
    for (kind, outcome) in kinds.iter().zip(outcomes) {
        let (label, is_right) = match kind {
            Kind::Plain => ("unprotected", *outcome == Outcome::Succeeded),
            Kind::Ticketed => {
                ("protected", matches!(outcome, Outcome::Failed | Outcome::Stopped(_)))
            }
        };
        line += &format!(" {label}={outcome}");
        wrong |= u32::from(!is_right);
    }
    println!("{line}");
    wrong
}

fn started(kind: Kind) -> Result<Victim, String> {
    Victim::started(kind).map_err(|trouble| format!("no start: {trouble:?}"))
}

/// Does it to a VM, and looks at what became of that.
fn outcome(victim: Result<Victim, String>, act: Act) -> Outcome {
    let mut victim = match victim {
        Ok(victim) => victim,
        Err(why) => return Outcome::Other(format!("error: {why}")),
    };
    let done = act(&mut victim);
    let judged = judge(&mut victim, done);
    match victim.end() {
        Ok(()) => judged,
        Err(why) => Outcome::Other(format!("{judged}, error at its end: {why}")),
    }
}

fn judge(victim: &mut Victim, done: Result<bool, Trouble>) -> Outcome {
    // An honest guest looks at itself.
    let checked = match done {
        Ok(false) => victim.command(Command::Verify),
        Ok(true) => return Outcome::Succeeded,
        Err(trouble) => Err(trouble),
    };
    match checked {
        Ok(0) => Outcome::Failed,
        Ok(_) | Err(Trouble::Taken) => Outcome::Succeeded,
        Err(Trouble::Shutdown) => match victim.state() {
            Ok(Some((VmState::Stopped, cause))) => Outcome::Stopped(cause),
            Ok(_) => Outcome::Other("crashed".to_owned()),
            Err(why) => Outcome::Other(format!("crashed, error: {why}")),
        },
        Err(Trouble::Hung) => Outcome::Other("hung".to_owned()),
        Err(Trouble::Odd(why)) => Outcome::Other(format!("error: {why}")),
    }
}

/// What each reader finds in one VM that has stopped there.
fn readings(kind: Kind, (_, stop): (&str, read::Stop)) -> Vec<Outcome> {
    let all = |outcome: &Outcome| vec![outcome.clone(); read::READERS.len()];
    let mut victim = match started(kind) {
        Ok(victim) => victim,
        Err(why) => return all(&Outcome::Other(format!("error: {why}"))),
    };
    if let Err(trouble) = stop(&mut victim) {
        return all(&judge(&mut victim, Err(trouble)));
    }
    let found = read::READERS.map(|(_, reader)| reader(&victim));
    let end = victim.finish().map(|_| false);
    // Reading must not change anything, with or without a ticket.
    let end = judge(&mut victim, end);
    let outcome = |found| match found {
        Ok(true) => Outcome::Succeeded,
        Ok(false) => end.clone(),
        Err(why) => Outcome::Other(format!("error: {why}")),
    };
    found.map(outcome).to_vec()
}
