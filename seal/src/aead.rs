//! AEGIS-128L with a tag of 128 bits (RFC 10032), in place.

use aegis::aegis128l::Aegis128L;
use zeroize::Zeroize;

/// Proves that bytes are what was encrypted.
pub type Tag = [u8; 16];

/// The tag does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forged;

/// A key of 128 bits. It is wiped when dropped, and cannot be copied or printed.
pub struct AeadKey([u8; 16]);

impl AeadKey {
    /// Takes the key.
    #[must_use]
    pub const fn new(key: [u8; 16]) -> Self {
        Self(key)
    }

    /// Encrypts `bytes` in place. `nonce` must never have been used with this key and other bytes.
    pub fn encrypt(&self, nonce: &[u8; 16], ad: &[u8], bytes: &mut [u8]) -> Tag {
        Aegis128L::new(&self.0, nonce).encrypt_in_place(bytes, ad)
    }

    /// Decrypts `bytes` in place.
    ///
    /// # Errors
    /// [`Forged`]; `bytes` are zeroed, so nothing of what was decrypted is left.
    pub fn decrypt(
        &self,
        nonce: &[u8; 16],
        ad: &[u8],
        bytes: &mut [u8],
        tag: &Tag,
    ) -> Result<(), Forged> {
        Aegis128L::<16>::new(&self.0, nonce).decrypt_in_place(bytes, tag, ad).map_err(|_| {
            bytes.fill(0);
            Forged
        })
    }
}

impl Drop for AeadKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl core::fmt::Debug for AeadKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AeadKey").finish_non_exhaustive()
    }
}
