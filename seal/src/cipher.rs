//! The one place that knows which algorithm seals pages.

use zeroize::Zeroize;

use crate::aead::{AeadKey, Forged, Tag};
use crate::key::{PAGES, VmKey};
use crate::page::{GuestPage, Page};
use crate::record::Stamp;

/// How a page is sealed. The number is in every record, and in the derivation of the key: no two
/// algorithms share a key, and a record of one cannot be read as one of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// AEGIS-128L with a tag of 128 bits, RFC 10032.
    Aegis128L,
}

impl Algorithm {
    /// What new pages are sealed with.
    pub(crate) const CURRENT: Self = Self::Aegis128L;

    /// The number.
    pub(crate) const fn id(self) -> u8 {
        match self {
            Self::Aegis128L => 1,
        }
    }
}

/// Seals the pages of one launch of one VM.
pub(crate) struct Cipher {
    key: AeadKey,
    mask: [u8; 16],
}

impl Cipher {
    pub(crate) fn new(root: &VmKey) -> Self {
        let both = root.derive(PAGES, Algorithm::CURRENT.id());
        let (mut key, mut mask) = ([0; 16], [0; 16]);
        let (first, second) = both.bytes().split_at(16);
        key.copy_from_slice(first);
        mask.copy_from_slice(second);
        Self { key: AeadKey::new(key), mask }
    }

    /// The number of the page and the stamp, which is the whole nonce: for one key it is another for each
    /// page and version. The mask hides it, as in TLS 1.3 (RFC 8446, section 5.3): what is tried
    /// against one VM then says nothing of another.
    fn nonce(&self, at: GuestPage, stamp: Stamp) -> [u8; 16] {
        let place = u128::from(at.number()) | u128::from(stamp.word()) << 64;
        (place ^ u128::from_le_bytes(self.mask)).to_le_bytes()
    }

    /// Encrypts in place.
    pub(crate) fn encrypt(&self, at: GuestPage, stamp: Stamp, page: &mut Page) -> Tag {
        self.key.encrypt(&self.nonce(at, stamp), &[], page)
    }

    /// Decrypts in place. A page that does not fit the tag is zeroed.
    pub(crate) fn decrypt(
        &self,
        at: GuestPage,
        stamp: Stamp,
        page: &mut Page,
        tag: &Tag,
    ) -> Result<(), Forged> {
        self.key.decrypt(&self.nonce(at, stamp), &[], page, tag)
    }
}

impl Drop for Cipher {
    fn drop(&mut self) {
        self.mask.zeroize();
    }
}
