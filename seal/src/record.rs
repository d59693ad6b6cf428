//! What the visor remembers of a page.

use crate::aead::Tag;
use crate::cipher::Algorithm;
use crate::page::Refusal;

/// Bits of a stamp that count; the algorithm is above them.
const VERSION_BITS: u32 = 56;

/// The last version: at ten million pages a second it comes after 228 years.
pub(crate) const LAST_VERSION: u64 = (1 << VERSION_BITS) - 1;

/// A version, and the algorithm above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(u64);

impl Stamp {
    /// A page sealed now. `version` is at most [`LAST_VERSION`].
    pub(crate) fn current(version: u64) -> Self {
        Self(version | u64::from(Algorithm::CURRENT.id()) << VERSION_BITS)
    }

    pub(crate) const fn word(self) -> u64 {
        self.0
    }
}

/// What must be remembered of a sealed page: 24 bytes. It is no secret, but whoever can change it can
/// return an old page, so it lies in the visor's memory or is itself sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub(crate) stamp: Stamp,
    pub(crate) tag: Tag,
}

const _: () = assert!(size_of::<Sealed>() == 24);

impl Sealed {
    /// Length of a record that is stored.
    pub const BYTES: usize = 24;

    /// The version: the number of the page among all that were sealed for the VM in this launch, from 1.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.stamp.0 & LAST_VERSION
    }

    /// The record to be stored: version in 7 bytes, little-endian, algorithm, tag.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (stamp, tag) = bytes.split_at_mut(8);
        stamp.copy_from_slice(&self.stamp.0.to_le_bytes());
        tag.copy_from_slice(&self.tag);
        bytes
    }

    /// A record that was stored.
    ///
    /// # Errors
    /// [`Refusal::Algorithm`] if its page was sealed by one that this version of the visor does not have.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Result<Self, Refusal> {
        let (mut stamp, mut tag) = ([0; 8], [0; 16]);
        let (first, second) = bytes.split_at(8);
        stamp.copy_from_slice(first);
        tag.copy_from_slice(second);
        let [.., algorithm] = stamp;
        if algorithm != Algorithm::CURRENT.id() {
            return Err(Refusal::Algorithm(algorithm));
        }
        Ok(Self { stamp: Stamp(u64::from_le_bytes(stamp)), tag })
    }

    /// What is worth remembering of the page while it is in clear.
    #[must_use]
    pub fn resident(&self) -> Resident {
        Resident { stamp: self.stamp, check: check(&self.tag) }
    }
}

/// What may be remembered of a page that came back and is in clear, 16 bytes: enough to seal it to the
/// same bytes again. It may be forgotten, or be wrong in any way, at no other price than a new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    pub(crate) stamp: Stamp,
    pub(crate) check: u64,
}

const _: () = assert!(size_of::<Resident>() == 16);

/// Half of the tag.
pub(crate) fn check(tag: &Tag) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *tag;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
