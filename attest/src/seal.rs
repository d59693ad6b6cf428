//! Sealing tickets: for tenants' tools and tests.

use core::fmt;
use std::vec::Vec;

use ed25519_compact::{KeyPair, Seed};
use hpke::aead::{AeadCtxS, ChaCha20Poly1305};
use hpke::inout::InOutBuf;
use hpke::kdf::HkdfSha256;
use hpke::{Deserializable, Kem, OpModeS, Serializable, setup_sender};
use sha2::{Digest, Sha256};
use ticket::build;
use ticket::error::Error;

use crate::content::signed_message;
use crate::envelope::{LAST, MAGIC, NOT_LAST, PIECE, SUITE, TAG, VERSION};
use crate::keys::{PUBLIC_BYTES, TicketKem};
use crate::policy::Policy;

/// Who signs tickets.
pub struct Tenant(KeyPair);

impl Tenant {
    /// The tenant whose Ed25519 private key this is; `None` for zeros.
    #[must_use]
    pub fn new(private: &[u8; 32]) -> Option<Self> {
        KeyPair::try_from_seed(Seed::new(*private)).ok().map(Self)
    }

    /// The Ed25519 public key, by which the visor knows the tenant.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        *self.0.pk
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant").field("public", &self.public()).finish_non_exhaustive()
    }
}

/// Why a ticket is not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealError {
    /// No visor would take the ticket.
    Ticket(Error),
    /// No visor would take the policy: it has a serial of 0, or another tenant's key.
    Policy,
    /// That is no visor's key.
    Key,
    /// The ticket is too long.
    Length,
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ticket(error) => write!(f, "the ticket is wrong: {error}"),
            Self::Policy => f.write_str("the policy has a serial of 0 or another tenant's key"),
            Self::Key => f.write_str("that is no visor's key"),
            Self::Length => f.write_str("the ticket is too long"),
        }
    }
}

impl core::error::Error for SealError {}

/// Seals `ticket`, which is in clear, for the visor with these public keys.
///
/// # Errors
/// [`SealError`]: no visor would take it.
pub fn seal(
    ticket: &[u8],
    policy: &Policy,
    tenant: &Tenant,
    visor: &[u8; PUBLIC_BYTES],
) -> Result<Vec<u8>, SealError> {
    build::parse(ticket, &mut build::Discard).map_err(SealError::Ticket)?;
    let is_right = Policy::read(&policy.bytes()).is_ok() && policy.tenant == tenant.public();
    if !is_right {
        return Err(SealError::Policy);
    }
    seal_unchecked(ticket, policy, tenant, visor)
}

/// The same for a ticket and a policy that may be wrong: for tests.
///
/// # Errors
/// [`SealError::Key`], [`SealError::Length`].
pub fn seal_unchecked(
    ticket: &[u8],
    policy: &Policy,
    tenant: &Tenant,
    visor: &[u8; PUBLIC_BYTES],
) -> Result<Vec<u8>, SealError> {
    let (for_tickets, _) = visor.split_at(32);
    let key = <TicketKem as Kem>::PublicKey::from_bytes(for_tickets).map_err(|_| SealError::Key)?;
    let mut content = Vec::from(policy.bytes());
    content.extend(ticket);
    let length = content.len() + 64;
    let whole = 88 + length + length.div_ceil(PIECE) * TAG;
    let mut sealed = Vec::from(MAGIC);
    sealed.extend(u32::try_from(whole).map_err(|_| SealError::Length)?.to_le_bytes());
    sealed.extend(VERSION.to_le_bytes());
    sealed.extend(SUITE.to_le_bytes());
    sealed.extend([0; 4]);
    sealed.extend(Sha256::digest(visor));
    let (encapsulated, mut sealer): (_, AeadCtxS<ChaCha20Poly1305, HkdfSha256, TicketKem>) =
        setup_sender(&OpModeS::Base, &key, &sealed).map_err(|_| SealError::Key)?;
    sealed.extend(encapsulated.to_bytes());
    let hash = Sha256::new().chain_update(&sealed).chain_update(&content).finalize();
    content.extend(*tenant.0.sk.sign(signed_message(hash.into()), None));
    let last = content.len().div_ceil(PIECE);
    for (piece, number) in content.chunks_mut(PIECE).zip(1..) {
        let bound = if number == last { LAST } else { NOT_LAST };
        let tag = sealer.seal_inout_detached(InOutBuf::from(&mut *piece), bound);
        let tag = tag.map_err(|_| SealError::Length)?;
        sealed.extend(&*piece);
        sealed.extend(tag.to_bytes());
    }
    Ok(sealed)
}
