//! What the visor signs, for whoever knows its key: `docs/ticket.md` has the bytes.

use ept::list::List;
use ticket::Origin;

use crate::keys::{Keys, PUBLIC_BYTES, SIGNATURE_BYTES, is_signed};

/// Bytes that somebody else made up, so that a statement is not older than they are.
pub type Nonce = [u8; 32];

/// Bytes of the longest body.
pub const MAX_BODY: usize = 168;
/// What all signed messages begin with.
const PREFIX: &[u8] = b"visor statement 1\0";
/// Bytes of the longest message, or more.
const MAX_MESSAGE: usize = 256;
const _: () = assert!(PREFIX.len() + "audit-head".len() + 1 + MAX_BODY <= MAX_MESSAGE, "it fits");

/// What is stated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// That the visor runs, and how old it is.
    Nonce,
    /// How one VM was launched.
    Receipt,
    /// What the audit log is bound to.
    AuditHead,
}

impl Kind {
    /// Its name in the signed message.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Nonce => "nonce",
            Self::Receipt => "receipt",
            Self::AuditHead => "audit-head",
        }
    }

    /// What [`ticket::port::INDEX_SIGN`] is written.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Nonce => 1,
            Self::Receipt => 2,
            Self::AuditHead => 3,
        }
    }

    /// The kind with this number.
    #[must_use]
    pub fn of_number(number: u32) -> Option<Self> {
        [Self::Nonce, Self::Receipt, Self::AuditHead]
            .into_iter()
            .find(|kind| kind.number() == number)
    }
}

/// A receipt: a VM that exists, or did until it was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The ticket.
    pub origin: Origin,
    /// The VM's name, as in the ticket.
    pub vm: [u8; 16],
    /// Which launch since boot that is; each has its own.
    pub launch: u64,
    /// [`ticket::port::VmState`].
    pub state: u32,
    /// Why it was stopped; 0 if it was not.
    pub cause: u32,
}

/// A statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement {
    /// That the visor runs, and its age.
    Nonce {
        /// The highest TSC that it has seen, in 2^32 ticks. The host can stop it.
        age: u64,
    },
    /// How one VM was launched.
    Receipt(Receipt),
    /// What the audit log is bound to.
    AuditHead {
        /// Events so far.
        events: u64,
        /// The chain value after the last.
        chain: [u8; 32],
    },
}

/// The bytes of a statement.
pub type Body = List<u8, MAX_BODY>;

impl Statement {
    /// Which kind it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Nonce { .. } => Kind::Nonce,
            Self::Receipt(_) => Kind::Receipt,
            Self::AuditHead { .. } => Kind::AuditHead,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn body(&self, nonce: &Nonce) -> Body {
        let mut body = Body::new(0);
        add(&mut body, nonce);
        match self {
            Self::Nonce { age } => add(&mut body, &age.to_le_bytes()),
            Self::Receipt(receipt) => {
                let Receipt { origin, vm, launch, state, cause } = receipt;
                for hash in [&origin.file, &origin.measurement, &origin.tenant] {
                    add(&mut body, hash);
                }
                add(&mut body, vm);
                add(&mut body, &launch.to_le_bytes());
                add(&mut body, &origin.serial.to_le_bytes());
                add(&mut body, &state.to_le_bytes());
                add(&mut body, &cause.to_le_bytes());
            }
            Self::AuditHead { events, chain } => {
                add(&mut body, &events.to_le_bytes());
                add(&mut body, chain);
            }
        }
        body
    }
}

/// All that is added fits: [`MAX_BODY`] and [`MAX_MESSAGE`] say how much that is.
fn add<const N: usize>(list: &mut List<u8, N>, bytes: &[u8]) {
    for byte in bytes {
        let _ = list.push(*byte);
    }
}

fn message(kind: Kind, body: &[u8]) -> List<u8, MAX_MESSAGE> {
    let mut message = List::new(0);
    for part in [PREFIX, kind.label().as_bytes(), &[0], body] {
        add(&mut message, part);
    }
    message
}

impl Keys {
    /// The signature of a statement (RFC 8032, Ed25519).
    #[must_use]
    pub fn state(&self, kind: Kind, body: &Body) -> [u8; SIGNATURE_BYTES] {
        self.sign(&message(kind, body))
    }
}

/// What a visor with these public keys has stated about `nonce`; `None` if `body` and `signature` do not show
/// that.
#[must_use]
pub fn verify(
    visor: &[u8; PUBLIC_BYTES],
    kind: Kind,
    (body, signature): (&[u8], &[u8; SIGNATURE_BYTES]),
    nonce: &Nonce,
) -> Option<Statement> {
    let statement = parse(kind, body)?;
    let is_whole = *statement.body(nonce) == *body;
    (is_whole && is_signed(visor.last_chunk()?, &message(kind, body), signature))
        .then_some(statement)
}

fn parse(kind: Kind, body: &[u8]) -> Option<Statement> {
    let long = |at: usize| Some(u64::from_le_bytes(*body.get(at..)?.first_chunk()?));
    let word = |at: usize| Some(u32::from_le_bytes(*body.get(at..)?.first_chunk()?));
    let hash = |at: usize| body.get(at..).and_then(<[u8]>::first_chunk).copied();
    Some(match kind {
        Kind::Nonce => Statement::Nonce { age: long(32)? },
        Kind::Receipt => {
            let (file, measurement, tenant) = (hash(32)?, hash(64)?, hash(96)?);
            let origin = Origin { file, measurement, tenant, serial: long(152)? };
            let vm = *body.get(128..)?.first_chunk()?;
            let (launch, state, cause) = (long(144)?, word(160)?, word(164)?);
            Statement::Receipt(Receipt { origin, vm, launch, state, cause })
        }
        Kind::AuditHead => Statement::AuditHead { events: long(32)?, chain: hash(40)? },
    })
}
