//! `key` and `seal`: a ticket leaves the tenant's hands only for a visor whose evidence holds.

use std::fmt;
use std::fs;
use std::path::Path;

use attest::policy::{Policy, Weaknesses};
use attest::seal::{SealError, Tenant};
use evidence::{Bytes, Document, Readers};
use serde::{Deserialize, Serialize};

use crate::bank::Bank;
use crate::check::Verified;
use crate::enroll::write;
use crate::failure::Failure;
use crate::policy::Launch;
use crate::random::Random;
use crate::verify::{State, Verdict};
use crate::visor::Measured;

/// The tenant's private key, by which visors know the tenant's tickets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantKey {
    format: String,
    private: Bytes,
}

impl fmt::Debug for TenantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantKey").finish_non_exhaustive()
    }
}

impl Document for TenantKey {
    const FORMAT: &'static str = "visor-tenant-key-1";
}

/// What is remembered of a sealed ticket, for its receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`Document::FORMAT`].
    pub format: String,
    /// The visor's public keys.
    pub visor: Bytes,
    /// The SHA-256 of the sealed ticket.
    pub file: Bytes,
    /// The hash of what the VM begins with.
    pub measurement: Bytes,
    /// The tenant's public key.
    pub tenant: Bytes,
    /// The VM's name.
    pub vm: Bytes,
    /// The ticket's serial.
    pub serial: u64,
}

impl Document for Record {
    const FORMAT: &'static str = "visor-sealed-1";
}

/// What `key` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// The tenant's public key.
    pub tenant: Bytes,
}

/// What `seal` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Sealed {
    /// The SHA-256 of the sealed ticket.
    pub file: Bytes,
    /// The hash of what the VM begins with.
    pub measurement: Bytes,
    /// The ticket's serial.
    pub serial: u64,
    /// What of the policy was waived.
    pub waived: Vec<&'static str>,
}

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sealed: {}, serial {}", self.file, self.serial)?;
        if self.waived.is_empty() {
            Ok(())
        } else {
            writeln!(f, "INSECURE: {}", self.waived.join(", "))
        }
    }
}

/// Whether a ticket is sealed where the policy waives something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waived {
    /// It is.
    Taken,
    /// It is not.
    Refused,
}

/// What is sealed, and into what.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// The ticket, in clear.
    pub ticket: &'a Path,
    /// The tenant's key.
    pub key: &'a Path,
    /// The sealed ticket's file.
    pub out: &'a Path,
    /// The record's file.
    pub record: &'a Path,
    /// More than that of any ticket before.
    pub serial: u64,
    /// How long the visor takes the ticket, in 2^32 ticks of the TSC.
    pub lifetime: Option<u64>,
}

/// Makes the tenant's key.
///
/// # Errors
/// [`Failure`].
pub fn make_key(out: &Path) -> Result<Key, Failure> {
    let private: [u8; 32] = Random::new().map_err(|_| Failure::Random)?.array();
    let tenant = Tenant::new(&private).ok_or(Failure::Random)?;
    let key = TenantKey { format: TenantKey::FORMAT.into(), private: Bytes(private.to_vec()) };
    write(out, &key, Readers::Owner)?;
    Ok(Key { tenant: Bytes(tenant.public().to_vec()) })
}

/// Seals a ticket for the visor that was verified. What is wrong with that visor is what the ticket then
/// permits, and nothing more.
///
/// # Errors
/// [`Failure::NotTrusted`] and [`Failure::Insecure`]: nothing is written.
pub fn seal(verified: &Verified, waived: Waived, order: &Order<'_>) -> Result<Sealed, Failure> {
    let visor = believed(verified, waived)?;
    let own = |why| Failure::Document(order.key.into(), why);
    let key: TenantKey = evidence::read(order.key).map_err(own)?;
    let wrong = |why: &str| Failure::Ticket(order.key.into(), why.to_owned());
    let private = key.private.array().ok_or_else(|| wrong("no key of 32 bytes"))?;
    let tenant = Tenant::new(&private).ok_or_else(|| wrong("no key"))?;
    let clear = fs::read(order.ticket).map_err(|why| Failure::File(order.ticket.into(), why))?;
    let policy = Policy {
        tenant: tenant.public(),
        serial: order.serial,
        not_after: expiry(verified, order.lifetime)?,
        permits: weaknesses(visor),
    };
    let refused = |why: SealError| Failure::Ticket(order.ticket.into(), why.to_string());
    let sealed = attest::seal::seal(&clear, &policy, &tenant, &visor.key).map_err(refused)?;
    let measurement =
        ticket::build::measurement(&clear).map_err(|why| refused(SealError::Ticket(why)))?;
    // A ticket's header has the name from its 17th byte on.
    let name = clear.get(16..32).unwrap_or_default();
    let record = Record {
        format: Record::FORMAT.into(),
        visor: Bytes(visor.key.to_vec()),
        file: Bytes(Bank::Sha256.hash(&[&sealed])),
        measurement: Bytes(measurement.to_vec()),
        tenant: Bytes(tenant.public().to_vec()),
        vm: Bytes::from(name),
        serial: order.serial,
    };
    write(order.record, &record, Readers::All)?;
    evidence::create(order.out, &sealed, Readers::All)
        .map_err(|why| Failure::File(order.out.into(), why))?;
    let Record { file, measurement, serial, .. } = record;
    Ok(Sealed { file, measurement, serial, waived: verified.ids(&[State::Waived]) })
}

/// The visor, if its evidence holds.
fn believed(verified: &Verified, waived: Waived) -> Result<&Measured, Failure> {
    let broken = || Failure::NotTrusted(verified.ids(&[State::Unmet, State::Unknown]));
    match (verified.verdict, waived) {
        (Verdict::Trusted, _) | (Verdict::Insecure, Waived::Taken) => {
            verified.visor.as_ref().ok_or_else(broken)
        }
        (Verdict::Insecure, Waived::Refused) => {
            Err(Failure::Insecure(verified.ids(&[State::Waived])))
        }
        (Verdict::NotTrusted, _) => Err(broken()),
    }
}

fn expiry(verified: &Verified, lifetime: Option<u64>) -> Result<u64, Failure> {
    match (lifetime, verified.age) {
        (None, _) => Ok(u64::MAX),
        (Some(lifetime), Some(age)) => Ok(age.saturating_add(lifetime)),
        // The policy waived that the visor answers, so nobody knows how old it is.
        (Some(_), None) => Err(Failure::NotTrusted(vec!["visor-alive"])),
    }
}

fn weaknesses(visor: &Measured) -> Weaknesses {
    Weaknesses {
        plain_launch: visor.launch != Launch::Txt.name(),
        no_iommu: !matches!(visor.iommu.as_str(), "on" | "late"),
        development: visor.dev_tickets != "no",
    }
}
