//! What a tenant remembers of a machine.

use evidence::{Bytes, Document};
use serde::{Deserialize, Serialize};

use crate::policy::Binding;

/// A machine whose attestation key is known. Whoever can write this file decides what the tenant
/// believes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// [`Document::FORMAT`].
    pub format: String,
    /// The attestation key's TPMT_PUBLIC.
    pub ak: Bytes,
    /// Why it is believed.
    pub binding: Binding,
    /// The name of the endorsement key, where that is the reason.
    pub ek: Option<Bytes>,
    /// The certificates that the endorsement key was believed for, as DER, from its own to the root.
    #[serde(default)]
    pub certificates: Vec<Bytes>,
    /// When, in seconds since 1970.
    pub enrolled: u64,
}

impl Document for Machine {
    const FORMAT: &'static str = "visor-machine-1";
}

/// A machine that still has to show that the attestation key is in its TPM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// [`Document::FORMAT`].
    pub format: String,
    /// The attestation key's TPMT_PUBLIC.
    pub ak: Bytes,
    /// What the endorsement key is believed for.
    pub binding: Binding,
    /// The name of the endorsement key.
    pub ek: Bytes,
    /// As in [`Machine`].
    #[serde(default)]
    pub certificates: Vec<Bytes>,
    /// What only that TPM can give back.
    pub secret: Bytes,
}

impl Document for Pending {
    const FORMAT: &'static str = "visor-pending-1";
}
