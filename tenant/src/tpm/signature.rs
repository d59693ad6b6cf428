//! Signatures of TPMs and of certificates.

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::traits::SignatureScheme;
use rsa::{BoxedUint, Pkcs1v15Sign, Pss, PublicKey};
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::public::Key;
use super::quote::Kind;
use crate::bank::Bank;

/// The shortest RSA modulus that is believed, in bits.
const LEAST_BITS: usize = 2048;
const MOST_BITS: usize = 4096;

/// Whether `kind` is `key`'s signature over `message`, hashed with `hash`. Nothing is signed with SHA-1,
/// with a short key, or with a key of the other kind.
#[must_use]
pub fn verify(key: &Key, hash: Bank, message: &[u8], kind: &Kind) -> bool {
    let digest = hash.hash(&[message]);
    match (key, kind) {
        (Key::Rsa { .. }, Kind::Rsassa(signature)) => {
            let (Some(key), Some(scheme)) = (rsa(key), scheme(hash)) else { return false };
            key.verify(scheme, &digest, signature).is_ok()
        }
        (Key::Rsa { .. }, Kind::Rsapss(signature)) => {
            rsa(key).is_some_and(|key| verify_pss(&key, hash, &digest, signature))
        }
        (Key::Ecc { curve: 3, x, y }, Kind::Ecdsa(r, s)) => {
            hash != Bank::Sha1 && p256(x, y, r, s, &digest).is_some()
        }
        (Key::Ecc { curve: 4, x, y }, Kind::Ecdsa(r, s)) => {
            hash != Bank::Sha1 && p384(x, y, r, s, &digest).is_some()
        }
        (
            Key::Rsa { .. } | Key::Ecc { .. },
            Kind::Rsassa(_) | Kind::Rsapss(_) | Kind::Ecdsa(..),
        ) => false,
    }
}

/// The RSA key, if it is one that can be believed.
pub(crate) fn rsa(key: &Key) -> Option<PublicKey> {
    let Key::Rsa { modulus, exponent } = key else { return None };
    let number = BoxedUint::from_be_slice_vartime(modulus);
    let limits = LEAST_BITS..=MOST_BITS;
    PublicKey::new_with_size_limits(number, BoxedUint::from(*exponent), limits).ok()
}

fn scheme(hash: Bank) -> Option<Pkcs1v15Sign> {
    match hash {
        Bank::Sha1 => None,
        Bank::Sha256 => Some(Pkcs1v15Sign::new::<Sha256>()),
        Bank::Sha384 => Some(Pkcs1v15Sign::new::<Sha384>()),
        Bank::Sha512 => Some(Pkcs1v15Sign::new::<Sha512>()),
    }
}

/// The salt may have any length: some TPMs take as much as fits, others as much as the hash has (TPM 2.0
/// Library, Part 1, B.7).
fn verify_pss(key: &PublicKey, hash: Bank, digest: &[u8], signature: &[u8]) -> bool {
    fn verify<D>(key: &PublicKey, digest: &[u8], signature: &[u8]) -> bool
    where
        D: Digest,
        Pss<D>: SignatureScheme,
    {
        let scheme = Pss { blinded: false, digest: D::new(), salt_len: None };
        key.verify(scheme, digest, signature).is_ok()
    }
    match hash {
        Bank::Sha1 => false,
        Bank::Sha256 => verify::<Sha256>(key, digest, signature),
        Bank::Sha384 => verify::<Sha384>(key, digest, signature),
        Bank::Sha512 => verify::<Sha512>(key, digest, signature),
    }
}

/// A number with as many bytes as the curve has.
pub(super) fn padded<const N: usize>(number: &[u8]) -> Option<[u8; N]> {
    let first = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    let digits = number.get(first..)?;
    let mut padded = [0; N];
    padded.get_mut(N.checked_sub(digits.len())?..)?.copy_from_slice(digits);
    Some(padded)
}

/// A point as SEC 1 writes it, uncompressed.
pub(super) fn point<const N: usize>(x: &[u8], y: &[u8]) -> Option<Vec<u8>> {
    Some([&[4][..], &padded::<N>(x)?, &padded::<N>(y)?].concat())
}

fn p256(x: &[u8], y: &[u8], r: &[u8], s: &[u8], digest: &[u8]) -> Option<()> {
    use p256::ecdsa::{Signature, VerifyingKey};
    let key = VerifyingKey::from_sec1_bytes(&point::<32>(x, y)?).ok()?;
    let signature = Signature::from_scalars(padded::<32>(r)?, padded::<32>(s)?).ok()?;
    key.verify_prehash(digest, &signature).ok()
}

fn p384(x: &[u8], y: &[u8], r: &[u8], s: &[u8], digest: &[u8]) -> Option<()> {
    use p384::ecdsa::{Signature, VerifyingKey};
    let key = VerifyingKey::from_sec1_bytes(&point::<48>(x, y)?).ok()?;
    let signature = Signature::from_scalars(padded::<48>(r)?, padded::<48>(s)?).ok()?;
    key.verify_prehash(digest, &signature).ok()
}

#[cfg(test)]
mod tests {
    use super::padded;

    #[test]
    fn numbers_are_padded_in_front_and_never_cut() {
        assert_eq!(padded::<4>(&[1, 2]), Some([0, 0, 1, 2]));
        assert_eq!(padded::<4>(&[0, 0, 0, 1, 2]), Some([0, 0, 1, 2]));
        assert_eq!(padded::<4>(&[1, 0, 0, 0, 0]), None);
        assert_eq!(padded::<4>(&[]), Some([0; 4]));
    }
}
