//! Keys: one per launch of a VM, and sub-keys of it by purpose.

use core::fmt;

use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroize;

/// Names a VM, as its ticket does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VmId(pub [u8; 16]);

/// What a sub-key is for. That of pages never leaves this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Records that lie in frames of the host's.
    Metadata,
    /// The VM's disks.
    Disk,
}

impl Purpose {
    const fn label(self) -> u8 {
        match self {
            Self::Metadata => 2,
            Self::Disk => 3,
        }
    }
}

/// The label of the sub-key for pages; [`Purpose::label`] has the others.
pub(crate) const PAGES: u8 = 1;

/// Begins what every derivation is bound to; its number changes with any part of the format.
const CONTEXT: &[u8; 12] = b"visor seal 1";

/// The key of one launch of one VM. It is wiped when dropped, and cannot be copied.
pub struct VmKey {
    /// HKDF's pseudorandom key.
    root: [u8; 32],
    vm: VmId,
}

impl VmKey {
    /// Makes the key by HKDF-Extract (RFC 5869, section 2.2).
    ///
    /// `secret` is the ticket's, `launch` 32 random bytes that were never used before. They are what
    /// keeps two launches of one ticket apart: both count versions from 1, so under one key they would
    /// use the same nonces.
    #[must_use]
    pub fn launch(vm: VmId, secret: &[u8; 32], launch: &[u8; 32]) -> Self {
        Self { root: extract(launch, secret), vm }
    }

    /// The key of the VM's next launch, made of this one as this one was of the ticket's secret, which is
    /// not kept: whoever learns the new key knows nothing of what was sealed before.
    #[must_use]
    pub fn anew(&self, launch: &[u8; 32]) -> Self {
        Self::launch(self.vm, &self.root, launch)
    }

    /// The sub-key for `purpose`.
    #[must_use]
    pub fn subkey(&self, purpose: Purpose) -> SubKey {
        self.derive(purpose.label(), 0)
    }

    /// HKDF-Expand (RFC 5869, section 2.3) to one block of output. All parts of the context have fixed
    /// lengths, so no two purposes, algorithms or VMs share one.
    pub(crate) fn derive(&self, label: u8, algorithm: u8) -> SubKey {
        expand(&self.root, [CONTEXT, &[label, algorithm], &self.vm.0])
    }
}

impl Drop for VmKey {
    fn drop(&mut self) {
        self.root.zeroize();
    }
}

impl fmt::Debug for VmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmKey").field("vm", &self.vm).finish_non_exhaustive()
    }
}

/// A key of 256 bits for one purpose. It is wiped when dropped, and cannot be copied.
pub struct SubKey([u8; 32]);

impl SubKey {
    /// The key itself.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for SubKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SubKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubKey").finish_non_exhaustive()
    }
}

/// HKDF of SHA-256 with one block of output, 32 bytes (RFC 5869): `info` is its parts, one after the
/// other. A shorter output is the beginning of this one, a shorter salt is one filled up with zeros.
#[must_use]
pub fn hkdf(salt: &[u8; 32], secret: &[u8; 32], info: [&[u8]; 3]) -> SubKey {
    let mut root = extract(salt, secret);
    let key = expand(&root, info);
    root.zeroize();
    key
}

fn extract(salt: &[u8; 32], secret: &[u8; 32]) -> [u8; 32] {
    hmac(salt, &[secret])
}

fn expand(root: &[u8; 32], [first, second, third]: [&[u8]; 3]) -> SubKey {
    SubKey(hmac(root, &[first, second, third, &[1]]))
}

/// HMAC-SHA256 of `parts`, one after the other.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC fills a key up with zeros to SHA-256's block of 64 bytes (RFC 2104, section 2): done here,
    // a key of the wrong length cannot be.
    let mut block = [0; 64];
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = Hmac::<Sha256>::new((&block).into());
    block.zeroize();
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use hkdf::Hkdf;

    use super::*;

    const VM: VmId = VmId([7; 16]);

    fn key() -> VmKey {
        VmKey::launch(VM, &[1; 32], &[2; 32])
    }

    #[test]
    fn derivation_is_hkdf_of_the_launch_the_secret_and_the_context() {
        let info = [&CONTEXT[..], &[3, 9], &VM.0].concat();
        let mut expected = [0; 32];
        Hkdf::<Sha256>::new(Some(&[2; 32]), &[1; 32]).expand(&info, &mut expected).unwrap();
        assert_eq!(key().derive(3, 9).bytes(), &expected);
        let same = hkdf(&[2; 32], &[1; 32], [CONTEXT, &[3, 9], &VM.0]);
        assert_eq!(same.bytes(), &expected);
    }

    #[test]
    fn a_short_salt_is_filled_up_with_zeros_and_a_short_output_is_the_beginning() {
        let mut salt = [0; 32];
        salt[..16].fill(5);
        let mut expected = [0; 16];
        Hkdf::<Sha256>::new(Some(&[5; 16]), &[1; 32]).expand(b"abc", &mut expected).unwrap();
        assert_eq!(hkdf(&salt, &[1; 32], [b"a", b"b", b"c"]).bytes()[..16], expected);
    }

    #[test]
    fn every_purpose_algorithm_vm_secret_and_launch_has_a_key_of_its_own() {
        let mut keys: Vec<[u8; 32]> = Vec::new();
        for label in 0..=3 {
            keys.extend([0, 1, 2].map(|algorithm| *key().derive(label, algorithm).bytes()));
        }
        for other in [
            VmKey::launch(VmId([8; 16]), &[1; 32], &[2; 32]),
            VmKey::launch(VM, &[3; 32], &[2; 32]),
            VmKey::launch(VM, &[1; 32], &[3; 32]),
            key().anew(&[2; 32]),
            key().anew(&[3; 32]),
            key().anew(&[2; 32]).anew(&[2; 32]),
        ] {
            keys.push(*other.derive(PAGES, 1).bytes());
        }
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "key {at} was there before");
        }
    }

    #[test]
    fn purposes_have_labels_of_their_own() {
        let labels = [PAGES, Purpose::Metadata.label(), Purpose::Disk.label()];
        assert_eq!(labels, [1, 2, 3]);
        assert_eq!(key().subkey(Purpose::Disk).bytes(), key().derive(3, 0).bytes());
    }

    #[test]
    fn nothing_of_a_key_is_printed() {
        let printed = std::format!("{:?} {:?}", key(), key().subkey(Purpose::Metadata));
        assert_eq!(printed, std::format!("VmKey {{ vm: {VM:?}, .. }} SubKey {{ .. }}"));
    }
}
