//! `receipt`: what became of a sealed ticket, by the visor's own word.

use std::fmt;
use std::path::Path;

use attest::statement::{Kind, Receipt, Statement, verify};
use evidence::{Bytes, Challenge};
use serde::Serialize;
use ticket::port::VmState;

use crate::failure::Failure;
use crate::seal::Record;

/// What `receipt` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Receipted {
    /// The VM's name.
    pub vm: Bytes,
    /// Which launch since the visor's boot it is.
    pub launch: u64,
    /// What it does: `waiting`, `running`, `stopped`.
    pub state: &'static str,
    /// Why it was stopped; 0 if it was not.
    pub cause: u32,
}

impl fmt::Display for Receipted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VM {}, launch {}: {}", self.vm, self.launch, self.state)?;
        if self.cause == 0 { writeln!(f) } else { writeln!(f, ", cause {}", self.cause) }
    }
}

/// Checks a receipt: the visor that the ticket was sealed for has signed it, after the challenge was made,
/// and it is about this ticket.
///
/// # Errors
/// [`Failure::Receipt`], with what does not fit.
pub fn check(
    receipt: &Path,
    record: &Path,
    challenge: &Path,
    now: u64,
) -> Result<Receipted, Failure> {
    let own = |path: &Path, why| Failure::Document(path.into(), why);
    let record: Record = evidence::read(record).map_err(|why| own(record, why))?;
    let asked: Challenge = evidence::read(challenge).map_err(|why| own(challenge, why))?;
    let told: evidence::Receipt =
        evidence::read(receipt).map_err(|why| Failure::Evidence(receipt.into(), why))?;
    if !(asked.issued..=asked.expires).contains(&now) {
        return Err(Failure::Receipt("the challenge has expired, or is of the future"));
    }
    compare(&record, &asked, &told).map_err(Failure::Receipt)
}

fn compare(
    record: &Record,
    asked: &Challenge,
    told: &evidence::Receipt,
) -> Result<Receipted, &'static str> {
    let visor = record.visor.array().ok_or("the record has no visor's keys")?;
    let nonce = asked.nonce.array().ok_or("the challenge has no nonce of 32 bytes")?;
    if !told.body.0.starts_with(&nonce) {
        return Err("it answers another challenge");
    }
    let signature = told.signature.array().ok_or("it has no signature of 64 bytes")?;
    let stated = verify(&visor, Kind::Receipt, (&told.body.0, &signature), &nonce);
    let Some(Statement::Receipt(stated)) = stated else {
        return Err("the visor that the ticket was sealed for has not signed it");
    };
    let Receipt { origin, vm, launch, state, cause } = stated;
    let fits = [
        (&record.file, &origin.file[..], "it is about another sealed ticket"),
        (&record.measurement, &origin.measurement, "the VM began with something else"),
        (&record.tenant, &origin.tenant, "it is about another tenant's ticket"),
        (&record.vm, &vm, "it is about another VM"),
    ];
    if let Some((.., why)) = fits.into_iter().find(|(ours, theirs, _)| ours.0 != **theirs) {
        return Err(why);
    }
    if record.serial != origin.serial {
        return Err("it is about a ticket with another serial");
    }
    let state = match VmState::of_word(state) {
        Some(VmState::Waiting) => "waiting",
        Some(VmState::Running) => "running",
        Some(VmState::Stopped) => "stopped",
        Some(VmState::None) | None => return Err("it says nothing of what the VM does"),
    };
    Ok(Receipted { vm: record.vm.clone(), launch, state, cause })
}
