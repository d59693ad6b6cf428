//! The hashes of a TPM's banks.

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};

/// A bank of PCRs, which is also a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bank {
    /// Broken: known so that it can be refused.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Bank {
    /// All that there are.
    pub const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The bank with this TPM_ALG_ID (TCG Algorithm Registry, 6.10).
    #[must_use]
    pub fn of(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|bank| bank.id() == id)
    }

    /// Its TPM_ALG_ID.
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::Sha1 => 4,
            Self::Sha256 => 11,
            Self::Sha384 => 12,
            Self::Sha512 => 13,
        }
    }

    /// The name that tpm2-tools give it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// How many bytes a digest has.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The digest of `parts`, one behind the other.
    #[must_use]
    pub fn hash(self, parts: &[&[u8]]) -> Vec<u8> {
        match self {
            Self::Sha1 => hash::<Sha1>(parts),
            Self::Sha256 => hash::<Sha256>(parts),
            Self::Sha384 => hash::<Sha384>(parts),
            Self::Sha512 => hash::<Sha512>(parts),
        }
    }
}

fn hash<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
    let mut digest = D::new();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::Bank;

    #[test]
    fn a_digest_has_as_many_bytes_as_its_bank_says() {
        for bank in Bank::ALL {
            assert_eq!(bank.hash(&[b"a", b"bc"]), bank.hash(&[b"abc"]));
            assert_eq!(bank.hash(&[]).len(), bank.bytes());
            assert_eq!(Bank::of(bank.id()), Some(bank));
        }
    }
}
