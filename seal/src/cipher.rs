//! The one place that knows which algorithm seals pages.

use aegis::aegis128l::Aegis128L;
use zeroize::Zeroize;

use crate::key::{PAGES, VmKey};
use crate::page::{GuestPage, Page};
use crate::record::{Stamp, Tag};

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

/// The tag does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forged;

/// Seals the pages of one launch of one VM.
pub(crate) struct Cipher {
    key: [u8; 16],
    mask: [u8; 16],
}

impl Cipher {
    pub(crate) fn new(root: &VmKey) -> Self {
        let both = root.derive(PAGES, Algorithm::CURRENT.id());
        let (mut key, mut mask) = ([0; 16], [0; 16]);
        let (first, second) = both.bytes().split_at(16);
        key.copy_from_slice(first);
        mask.copy_from_slice(second);
        Self { key, mask }
    }

    /// The number of the page and the stamp, which is the whole nonce: for one key it is another for each
    /// page and version. The mask hides it, as in TLS 1.3 (RFC 8446, section 5.3): what is tried
    /// against one VM then says nothing of another.
    fn start(&self, at: GuestPage, stamp: Stamp) -> Aegis128L<16> {
        let place = u128::from(at.number()) | u128::from(stamp.word()) << 64;
        let nonce = (place ^ u128::from_le_bytes(self.mask)).to_le_bytes();
        Aegis128L::new(&self.key, &nonce)
    }

    /// Encrypts in place.
    pub(crate) fn encrypt(&self, at: GuestPage, stamp: Stamp, page: &mut Page) -> Tag {
        self.start(at, stamp).encrypt_in_place(page, &[])
    }

    /// Decrypts in place. A page that does not fit the tag is zeroed.
    pub(crate) fn decrypt(
        &self,
        at: GuestPage,
        stamp: Stamp,
        page: &mut Page,
        tag: &Tag,
    ) -> Result<(), Forged> {
        self.start(at, stamp).decrypt_in_place(page, tag, &[]).map_err(|_| {
            page.fill(0);
            Forged
        })
    }
}

impl Drop for Cipher {
    fn drop(&mut self) {
        self.key.zeroize();
        self.mask.zeroize();
    }
}
