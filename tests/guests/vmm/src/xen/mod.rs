//! VMs of Xen's, made and attacked from dom0 by hypercalls, with tickets and without.

mod attacks;
mod call;
mod domain;
mod dump;
mod guest;

use std::thread::sleep;
use std::time::Duration;

use crate::protected::ask_outside;
use crate::protected::launch::Visor;
use call::Xen;
use domain::{Domain, Health};
pub(crate) use dump::dump;

/// The attacks on VMs without tickets alone: Xen may be on the bare machine.
pub(crate) fn control() -> Result<(), String> {
    each(None)
}

/// The attacks on VMs without tickets, and on VMs with.
pub(crate) fn attacks() -> Result<(), String> {
    each(Some(Visor::find()?))
}

/// One VM, with a ticket, told step by step.
pub(crate) fn first() -> Result<(), String> {
    let (mut xen, mut visor) = (Xen::open()?, Visor::find()?);
    let mut domain = Domain::start(&mut xen, Some(&mut visor))?;
    println!("vmm: domain {} runs", domain.number());
    for round in 0..3 {
        let health = domain.health(&mut xen, Some(&mut visor))?;
        println!("vmm: round {round}: {health}");
        if health != Health::Well {
            return Err("it is not well".to_owned());
        }
    }
    domain.destroy(&xen)
}

fn each(mut visor: Option<Visor>) -> Result<(), String> {
    let mut xen = Xen::open()?;
    for (name, attack) in attacks::ALL {
        let plain = outcome(&mut xen, None, *attack)?;
        let protected = match &mut visor {
            Some(visor) => format!(" protected={}", outcome(&mut xen, Some(visor), *attack)?),
            None => String::new(),
        };
        println!("vmm: ATTACK {name} unprotected={plain}{protected}");
    }
    let domain = Domain::start(&mut xen, None)?;
    println!("vmm: XEN gdbsx: {:?}", attacks::debugger_memory(&xen, &domain));
    domain.destroy(&xen)?;
    left_of(&mut xen, visor)
}

/// What is left of a VM of each kind, for those who look from outside.
pub(crate) fn left() -> Result<(), String> {
    left_of(&mut Xen::open()?, Some(Visor::find()?))
}

/// One without a ticket, while it runs; and one with, if there is a visor, that has come and gone.
fn left_of(xen: &mut Xen, mut visor: Option<Visor>) -> Result<(), String> {
    let left = Domain::start(xen, None)?;
    ask_outside(&left.disguised(), "unprotected");
    if let Some(visor) = &mut visor {
        let mut domain = Domain::start(xen, Some(visor))?;
        let health = domain.health(xen, Some(visor))?;
        if health != Health::Well {
            return Err(format!("the last VM: {health}"));
        }
        let (words, id) = (domain.disguised(), domain.id());
        domain.destroy(xen)?;
        // Else the visor keeps the registers of one that is gone until the next one starts. Xen lets go of a
        // domain's VMCS a while after the domain.
        sleep(Duration::from_millis(500));
        let _ = id.map(|id| visor.destroy(id)).transpose()?;
        ask_outside(&words, "protected");
    }
    left.destroy(xen)
}

/// What an attack does to a VM of its own.
fn outcome(
    xen: &mut Xen,
    mut visor: Option<&mut Visor>,
    attack: attacks::Attack,
) -> Result<String, String> {
    let is_protected = visor.is_some();
    let mut domain = Domain::start(xen, visor.as_deref_mut())?;
    let found = attack(xen, &domain)?;
    let outcome = if found {
        "succeeded".to_owned()
    } else {
        match domain.health(xen, visor)? {
            Health::Well => "failed".to_owned(),
            Health::Harmed => "succeeded".to_owned(),
            // A VM that its attacker has thrown off its course is harmed; one with a ticket has been denied
            // service, which a host always can.
            Health::Ended | Health::Silent if !is_protected => "succeeded".to_owned(),
            Health::Silent => "failed (it says nothing more)".to_owned(),
            other => other.to_string(),
        }
    };
    domain.destroy(xen)?;
    Ok(outcome)
}
