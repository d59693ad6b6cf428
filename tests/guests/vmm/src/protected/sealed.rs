//! Sealed tickets, where the visor takes no others: this program is their tenant and the host at once.
//!
//! What is submitted has a line `vmm: SEALED name what`, with the number of the refusal, or `accepted`; and
//! `vmm: COST name instructions exits bytes`, the instructions being those in the visor.

use super::guest::Command;
use super::launch::{self, Id, Visor};
use super::victim::{Kind as Subject, Victim};
use crate::meter::{Meter, Reading};
use attest::keys::{Keys, PUBLIC_BYTES};
use attest::policy::{Policy, Weaknesses};
use attest::seal::{self, Tenant};
use attest::statement::{Kind, Nonce, Receipt, Statement, verify};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicU64, Ordering};
use ticket::Class;
use ticket::build;
use ticket::port::{Submission, VmState};

/// Where a sealed ticket has its visor's name.
const NAME: std::ops::Range<usize> = 24..56;
/// Bytes of a message.
const MESSAGE: usize = 4112;
const HEADER: usize = 88;
/// The name of a VM that is never started.
const NEVER: Id = *b"never launched\0\0";

/// This process: children are tenants on their own, as they do not know of their parents' tickets.
fn tenant() -> Result<Tenant, String> {
    let mut private = [0x77; 32];
    private[..4].copy_from_slice(&std::process::id().to_le_bytes());
    Tenant::new(&private).ok_or_else(|| "no tenant".to_owned())
}

/// The policy of the next ticket: whatever the visor is, for ever.
pub(super) fn policy() -> Result<Policy, String> {
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    let permits = Weaknesses { plain_launch: true, no_iommu: true, development: true };
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    Ok(Policy { tenant: tenant()?.public(), serial, not_after: u64::MAX, permits })
}

/// Seals a ticket in the name of this process.
pub(super) fn seal(
    ticket: &[u8],
    policy: &Policy,
    visor: &[u8; PUBLIC_BYTES],
) -> Result<Vec<u8>, String> {
    seal::seal(ticket, policy, &tenant()?, visor).map_err(|why| why.to_string())
}

/// What is submitted: its name, and its bytes.
type Offer = (&'static str, Vec<u8>);

pub(super) fn run() -> Result<(), String> {
    let mut visor = Visor::find()?;
    let keys = visor.keys()?;
    // Of three messages, when it is sealed.
    let (range, image) = ((0, 1 << 24, Class::Private), vec![1; 200 << 12]);
    let clear = launch::ticket_of(NEVER, &[range], &[(0, &image)])?;
    for (name, bytes) in forgeries(&clear, &keys)? {
        offer(&mut visor, name, &bytes)?;
    }
    same("tickets that wait", visor.waiting()?, 0)?;
    let first = seal(&clear, &policy()?, &keys)?;
    let second = seal(&clear, &policy()?, &keys)?;
    offer(&mut visor, "sealed", &second)?;
    offer(&mut visor, "with-the-same-name", &seal(&clear, &policy()?, &keys)?)?;
    let _ = visor.destroy(NEVER)?;
    offer(&mut visor, "replayed", &second)?;
    offer(&mut visor, "older-than-another", &first)?;
    nothing_is_said_of_what_is_not_there(&mut visor)?;
    statements(&mut visor, &keys)
}

fn offer(visor: &mut Visor, name: &str, bytes: &[u8]) -> Result<(), String> {
    let mut meter = Meter::new()?;
    let mut read = || meter.visor().ok_or("no visor counts");
    let (first, before) = (read()?, read()?);
    let state = visor.offer(bytes)?;
    let after = read()?;
    // To read costs as much each time.
    let cost = |of: fn(&Reading) -> u64| of(&after) + of(&first) - 2 * of(&before);
    let what = match state {
        Submission::Accepted => "accepted".to_owned(),
        Submission::Refused(why) => why.number().to_string(),
        other => format!("{other:?}"),
    };
    println!("vmm: SEALED {name} {what}");
    let (ticks, exits) = (cost(|read| read.ticks), cost(|read| read.exits));
    println!("vmm: COST {name} {ticks} {exits} {}", bytes.len());
    Ok(())
}

/// All but the first name the key of their visor right.
fn forgeries(clear: &[u8], keys: &[u8; PUBLIC_BYTES]) -> Result<Vec<Offer>, String> {
    let good = seal(clear, &policy()?, keys)?;
    let with = |at: usize, bit: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= bit;
        bytes
    };
    let elsewhere = Keys::new(&[0x5a; 64], None).ok_or("no keys")?;
    let elsewhere = seal(clear, &policy()?, elsewhere.public())?;
    let mut renamed = elsewhere.clone();
    renamed[NAME].copy_from_slice(&good[NAME]);
    let mut cut = good[..HEADER + MESSAGE].to_vec();
    let length = u32::try_from(cut.len()).map_err(|why| why.to_string())?;
    cut[8..12].copy_from_slice(&length.to_le_bytes());
    let unsigned = {
        let other = Tenant::new(&[0x66; 32]).ok_or("no tenant")?;
        seal::seal_unchecked(clear, &policy()?, &other, keys).map_err(|why| why.to_string())?
    };
    let mut damaged = clear.to_vec();
    damaged[40] ^= 1;
    let damaged = seal::seal_unchecked(&damaged, &policy()?, &tenant()?, keys);
    let strict = |permits| policy().and_then(|all| seal(clear, &Policy { permits, ..all }, keys));
    let permits = policy()?.permits;
    Ok(vec![
        ("in-clear", clear.to_vec()),
        ("another-version", with(12, 3)),
        ("for-another-visor", elsewhere),
        ("for-another-visor-renamed", renamed),
        ("with-another-key", with(60, 1)),
        ("changed", with(HEADER + 100, 1)),
        ("changed-at-its-end", with(good.len() - 1, 0x80)),
        ("cut", cut),
        ("damaged-inside", damaged.map_err(|why| why.to_string())?),
        ("signed-by-another-tenant", unsigned),
        ("wants-a-measured-launch", strict(Weaknesses { plain_launch: false, ..permits })?),
        ("wants-an-iommu", strict(Weaknesses { no_iommu: false, ..permits })?),
        ("expired", seal(clear, &Policy { not_after: 0, ..policy()? }, keys)?),
    ])
}

fn nothing_is_said_of_what_is_not_there(visor: &mut Visor) -> Result<(), String> {
    let gone = visor.state_of(Kind::Receipt, Some(NEVER), &[1; 32])?;
    same("receipts of a VM that is gone", gone.is_some(), false)
}

/// A VM with a sealed ticket runs, and what the visor signs about it is right, as is what else it signs.
fn statements(visor: &mut Visor, keys: &[u8; PUBLIC_BYTES]) -> Result<(), String> {
    let nonce: Nonce = Sha256::digest(b"a nonce").into();
    let signed = visor.state_of(Kind::Nonce, None, &nonce)?;
    let Some(Statement::Nonce { .. }) = checked(keys, Kind::Nonce, signed.as_ref(), &nonce) else {
        return Err(format!("the nonce: {signed:?}"));
    };
    // Said of another nonce, or by another key, it counts for nothing.
    let others = Keys::new(&[0x5a; 64], None).ok_or("no keys")?;
    let elsewhere = checked(others.public(), Kind::Nonce, signed.as_ref(), &nonce);
    same("statements of another visor", elsewhere, None)?;
    let stale = checked(keys, Kind::Nonce, signed.as_ref(), &[0; 32]);
    same("statements of another time", stale, None)?;
    let signed = visor.state_of(Kind::AuditHead, None, &nonce)?;
    let head = checked(keys, Kind::AuditHead, signed.as_ref(), &nonce);
    let Some(Statement::AuditHead { events: 1.., .. }) = head else {
        return Err(format!("the audit log's head: {head:?}"));
    };
    let mut victim = Victim::started(Subject::Ticketed).map_err(|why| format!("{why:?}"))?;
    let _ = victim.command(Command::Verify).map_err(|why| format!("{why:?}"))?;
    let signed = visor.state_of(Kind::Receipt, Some(victim.id), &nonce)?;
    let receipt = checked(keys, Kind::Receipt, signed.as_ref(), &nonce);
    let result = expect(receipt, victim.id, &launch::ticket(victim.id, &victim.image())?);
    victim.end()?;
    result.map(|()| println!("vmm: SEALED receipt right"))
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: {found:x?}, not {wanted:x?}"))
}

fn checked(
    keys: &[u8; PUBLIC_BYTES],
    kind: Kind,
    signed: Option<&launch::Signed>,
    nonce: &Nonce,
) -> Option<Statement> {
    let (body, signature) = signed?;
    verify(keys, kind, (body, signature), nonce)
}

fn expect(receipt: Option<Statement>, id: Id, ticket: &[u8]) -> Result<(), String> {
    let Some(Statement::Receipt(receipt)) = receipt else {
        return Err("no receipt that the visor has signed".to_owned());
    };
    let Receipt { origin, vm, launch, state, cause } = receipt;
    let measurement = build::measurement(ticket).map_err(|why| why.to_string())?;
    same("the receipt's VM", vm, id)?;
    same("its measurement", origin.measurement, measurement)?;
    same("its tenant", origin.tenant, tenant()?.public())?;
    same("its state", (state, cause), (VmState::Running.word(), 0))?;
    let is_numbered = launch > 0 && origin.serial > 0;
    same("launch and serial", is_numbered, true)
}
