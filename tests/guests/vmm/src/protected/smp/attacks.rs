//! Processors that the guest did not start, or not so. Each attack succeeds on a VM without a ticket; one
//! with a ticket must go on undisturbed.

use super::WRONG;
use super::guest::{self, Command, GADGET_VECTOR, VECTOR};
use super::team::{Options, Prepare, Team};
use crate::kvm::gives;
use crate::protected::victim::{Kind, Trouble};
use crate::vm::Vcpu;

/// Name, how the VM is made, and what is done; whether it succeeded.
type Attack = (&'static str, fn() -> Options, fn(&mut Team) -> Result<bool, Trouble>);

const ATTACKS: &[Attack] = &[
    (
        "start-without-init",
        || impostors(&[2], starts_up),
        |team| {
            let _ =
                team.command_with(Command::Start, guest::START_UP | u32::from(VECTOR) << 8 | 1)?;
            begun(team, 2)
        },
    ),
    (
        "start-without-start-up",
        || impostors(&[2], starts_up),
        |team| {
            let _ = team.command_with(Command::Start, guest::INIT | 1)?;
            begun(team, 2)
        },
    ),
    (
        "start-at-other-vector",
        || impostors(&[2], starts_elsewhere),
        |team| {
            let _ = team.command_with(Command::Start, guest::START | 1)?;
            let _ = begun(team, 2)?;
            Ok(team.is_taken())
        },
    ),
    (
        "two-on-one-start",
        || impostors(&[2, 3], starts_up),
        |team| {
            let _ = team.command_with(Command::Start, guest::START | 1)?;
            begun(team, 3)
        },
    ),
    (
        "second-in-reset-state",
        || impostors(&[2], runs),
        |team| {
            let _ = team.command_with(Command::Start, guest::START | 1)?;
            begun(team, 2)
        },
    ),
    (
        "more-than-permitted",
        || Options { permitted: 2, ..Options::of(3) },
        |team| {
            team.bring_up(1)?;
            let _ = team.command_with(Command::Start, guest::START | 2)?;
            team.reaches(Command::Begun, 3)
        },
    ),
    (
        "same-id-twice",
        || Options { shown: Some(0), ..Options::of(2) },
        |team| {
            let _ = team.command_with(Command::Start, guest::START | 1)?;
            let _ = team.reaches(Command::Ids, 3)?;
            Ok(team.command(Command::Ids)? != 3)
        },
    ),
];

/// Lets the impostors run; whether so many processors come to have begun.
fn begun(team: &mut Team, count: u32) -> Result<bool, Trouble> {
    team.release();
    team.reaches(Command::Begun, count)
}

/// VMs whose first processor is the guest's, and the others are the host's inventions: KVM itself does not
/// know of the one with the id that the guest starts. They run when they are let go.
fn impostors(others: &'static [u64], prepare: Prepare) -> Options {
    Options { permitted: 4, others, prepare, shown: None, held: true }
}

/// In the state after a start-up IPI that the guest sends.
fn starts_up(vcpu: &Vcpu, _: u64) -> Result<(), String> {
    starts_at(vcpu, VECTOR)
}

fn starts_elsewhere(vcpu: &Vcpu, _: u64) -> Result<(), String> {
    starts_at(vcpu, GADGET_VECTOR)
}

fn starts_at(vcpu: &Vcpu, vector: u8) -> Result<(), String> {
    let mut sregs = vcpu.sregs()?;
    sregs.cs.selector = u16::from(vector) << 8;
    sregs.cs.base = u64::from(vector) << 12;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.regs()?;
    regs.rip = 0;
    vcpu.set_regs(&regs)?;
    runs(vcpu, 0)
}

/// `KVM_MP_STATE_RUNNABLE`.
fn runs(vcpu: &Vcpu, _: u64) -> Result<(), String> {
    vcpu.handle.give(gives::<[u8; 4]>(0x99), &[0; 4])
}

/// All of them; how many ended otherwise than they must.
pub(super) fn run(kinds: &[Kind]) -> Result<u32, String> {
    let mut wrong = 0;
    for (name, options, act) in ATTACKS {
        let mut line = format!("vmm: SMP-ATTACK {name}");
        for kind in kinds {
            let started = Team::started(*kind, options());
            let mut team = started.map_err(|trouble| format!("{name}: {kind:?}: {trouble:?}"))?;
            let how = act(&mut team).and_then(|succeeded| match (succeeded, kind) {
                (true, _) => Ok("succeeded"),
                // Undisturbed.
                (false, Kind::Plain) => Ok("failed"),
                (false, Kind::Ticketed) if team.command(Command::Ids)? & WRONG == 0 => Ok("failed"),
                (false, Kind::Ticketed) => Ok("disturbed"),
            });
            let wanted = if *kind == Kind::Plain { "succeeded" } else { "failed" };
            wrong += u32::from(how != Ok(wanted));
            line += &match how {
                Ok(how) => format!(" {}={how}", team.label()),
                Err(trouble) => format!(" {}={trouble:?}", team.label()),
            };
            line += &format!(" ({:?})", team.ends());
            team.end()?;
        }
        println!("{line}");
    }
    Ok(wrong)
}
