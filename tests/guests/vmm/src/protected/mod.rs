//! VMs with tickets: what the host can do to them and to others, and that they live as others do.
//!
//! Each attack is done twice, to a VM without a ticket, where it must succeed, and to one with a ticket,
//! and has a line `vmm: ATTACK name unprotected=OUTCOME protected=OUTCOME`. So is each step of a life:
//! `vmm: LIFE name unprotected=ok protected=ok`. Both need the visor with `dev-tickets`; the control run
//! does the unprotected half alone, wherever KVM is.

mod attacks;
mod devices;
mod guest;
pub(crate) mod launch;
mod life;
mod look;
mod program;
mod resets;
mod sealed;
mod smp;
mod victim;

pub(crate) use look::{Disguised, ask_outside};
use victim::Kind;
pub(crate) use victim::Ticket;

const BOTH: &[Kind] = &[Kind::Plain, Kind::Ticketed];

/// One VM of each kind does each of its commands, which are told one by one: for who looks for an error.
pub(crate) fn first() -> Result<(), String> {
    life::first(BOTH)
}

/// What is left of a VM of each kind, for those who look from outside.
pub(crate) fn left() -> Result<(), String> {
    BOTH.iter().try_for_each(|kind| attacks::left(*kind))
}

/// Resets and sleep while VMs run, by one way after the other.
pub(crate) fn resets() -> Result<(), String> {
    resets::run()
}

/// The half without tickets.
pub(crate) fn control() -> Result<(), String> {
    let plain = &[Kind::Plain];
    attacks::run(plain)?;
    life::run(life::STEPS, plain)
}

/// The same with two processors, without attacks.
pub(crate) fn control_on_two() -> Result<(), String> {
    life::run(life::STEPS_ON_TWO, &[Kind::Plain])
}

/// The attacks.
pub(crate) fn attacks() -> Result<(), String> {
    attacks::run(BOTH)
}

/// Sealed tickets: forgeries that are refused, and one that is not.
pub(crate) fn sealed() -> Result<(), String> {
    sealed::run()
}

/// VMs with two and four processors.
pub(crate) fn smp() -> Result<(), String> {
    smp::run(BOTH, &[2, 4])
}

/// The same without tickets.
pub(crate) fn smp_control() -> Result<(), String> {
    smp::run(&[Kind::Plain], &[2, 4])
}

/// What a host does to VMs in good faith.
pub(crate) fn life() -> Result<(), String> {
    life::run(life::STEPS, BOTH)?;
    life::ends()
}

/// The same with two processors.
pub(crate) fn life_on_two() -> Result<(), String> {
    life::run(life::STEPS_ON_TWO, BOTH)
}

/// Devices in memory and strings of INs and OUTs, by every instruction.
pub(crate) fn devices() -> Result<(), String> {
    devices::run(BOTH)
}

/// The same without tickets.
pub(crate) fn devices_control() -> Result<(), String> {
    devices::run(&[Kind::Plain])
}
