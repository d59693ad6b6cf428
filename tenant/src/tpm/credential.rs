//! A secret that a TPM gives back only if the key of a given name lives in it: TPM2_MakeCredential
//! (TPM 2.0 Library, Part 1, 24; Part 3, 12.6), made without a TPM.

use aes::cipher::KeyIvInit;
use aes::{Aes128, Aes256};
use cfb_mode::Encryptor;
use hmac::{Hmac, KeyInit, Mac};
use p256::NistP256;
use p256::elliptic_curve::ecdh::EphemeralSecret;
use p256::elliptic_curve::point::AffineCoordinates;
use p256::elliptic_curve::sec1::{FromSec1Point, ModulusSize, ToSec1Point};
use p256::elliptic_curve::{AffinePoint, CurveArithmetic, FieldBytesSize, Generate, PublicKey};
use p384::NistP384;
use rsa::Oaep;
use sha2::{Sha256, Sha384};

use super::public::{Key, Public};
use super::signature::{padded, point, rsa};
use crate::bank::Bank;
use crate::random::Random;

/// What tpm2-tools put before a credential: a magic number and a version.
const HEADER: [u8; 8] = [0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1];

/// An endorsement key for which no credential can be made. Known are those of three of the TCG's templates
/// (EK Credential Profile 2.5, B): RSA (L-1) and P-256 (L-2) with SHA-256 and AES-128, P-384 (H-3) with
/// SHA-384 and AES-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported;

/// The file that `tpm2_activatecredential -i` takes: `secret`, readable for the TPM with the endorsement
/// key `ek`, which gives it out only if it holds the key with this name.
///
/// # Errors
/// [`Unsupported`].
pub fn make(
    ek: &Public,
    name: &[u8],
    secret: &[u8; 32],
    random: &mut Random,
) -> Result<Vec<u8>, Unsupported> {
    let (seed, sealed_seed) = match (&ek.key, ek.name_hash, ek.symmetric_bits) {
        (Key::Rsa { .. }, Bank::Sha256, Some(128)) => seal(&ek.key, random),
        (Key::Ecc { curve: 3, x, y }, Bank::Sha256, Some(128)) => {
            agree::<NistP256, 32>((x, y), ek.name_hash, random)
        }
        (Key::Ecc { curve: 4, x, y }, Bank::Sha384, Some(256)) => {
            agree::<NistP384, 48>((x, y), ek.name_hash, random)
        }
        _ => None,
    }
    .ok_or(Unsupported)?;
    let object = protect(ek.name_hash, &seed, name, secret).ok_or(Unsupported)?;
    Ok([&HEADER[..], &sized(&object), &sized(&sealed_seed)].concat())
}

/// A fresh seed, and how a TPM with this RSA key learns it (Part 1, B.10.4).
fn seal(key: &Key, random: &mut Random) -> Option<(Vec<u8>, Vec<u8>)> {
    let seed: [u8; 32] = random.array();
    let padding = Oaep::<Sha256>::new_with_label(&b"IDENTITY\0"[..]);
    let sealed = rsa(key)?.encrypt(random, padding, &seed).ok()?;
    Some((seed.to_vec(), sealed))
}

/// The same with an elliptic key, by a key of this one use (Part 1, C.6.4): the seed, and the point that
/// the TPM needs for it. `None` where the key is no point of its curve.
fn agree<C, const N: usize>(
    (x, y): (&[u8], &[u8]),
    hash: Bank,
    random: &mut Random,
) -> Option<(Vec<u8>, Vec<u8>)>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C> + AffineCoordinates,
{
    let theirs = PublicKey::<C>::from_sec1_bytes(&point::<N>(x, y)?).ok()?;
    let secret = EphemeralSecret::<C>::generate_from_rng(random);
    let shared = secret.diffie_hellman(&theirs);
    let ours = secret.public_key().to_sec1_point(false);
    let (our_x, our_y) = (ours.x()?, ours.y()?);
    let seed = seed_of(hash, shared.raw_secret_bytes(), (our_x, &padded::<N>(x)?));
    Some((seed, [sized(our_x), sized(our_y)].concat()))
}

/// KDFe (Part 1, 11.4.10.3) of as many bits as the hash has, and so of one block, from what was agreed on
/// and the x of the key of one use and of the TPM's.
fn seed_of(hash: Bank, shared: &[u8], (ours, theirs): (&[u8], &[u8])) -> Vec<u8> {
    hash.hash(&[&1_u32.to_be_bytes(), shared, b"IDENTITY\0", ours, theirs])
}

/// The secret, encrypted and bound to the name, by keys made of `seed` (Part 1, 24.4 and 24.5).
fn protect(hash: Bank, seed: &[u8], name: &[u8], secret: &[u8; 32]) -> Option<Vec<u8>> {
    let mut identity = sized(secret);
    match hash {
        Bank::Sha256 => {
            let key: [u8; 16] = *derive(hash, seed, (b"STORAGE\0", name), 128)?.first_chunk()?;
            Encryptor::<Aes128>::new(&key.into(), &[0; 16].into()).encrypt(&mut identity);
        }
        Bank::Sha384 => {
            let key: [u8; 32] = *derive(hash, seed, (b"STORAGE\0", name), 256)?.first_chunk()?;
            Encryptor::<Aes256>::new(&key.into(), &[0; 16].into()).encrypt(&mut identity);
        }
        Bank::Sha1 | Bank::Sha512 => return None,
    }
    let bits = u32::try_from(hash.bytes()).ok()?.checked_mul(8)?;
    let integrity = derive(hash, seed, (b"INTEGRITY\0", &[]), bits)?;
    let tag = mac(hash, &integrity, &[&identity, name])?;
    Some([sized(&tag), identity].concat())
}

/// KDFa (Part 1, 11.4.10.2): the first block, of which nothing here needs more. The label ends with a zero.
fn derive(hash: Bank, key: &[u8], (label, context): (&[u8], &[u8]), bits: u32) -> Option<Vec<u8>> {
    mac(hash, key, &[&1_u32.to_be_bytes(), label, context, &bits.to_be_bytes()])
}

fn mac(hash: Bank, key: &[u8], parts: &[&[u8]]) -> Option<Vec<u8>> {
    fn feed(mut mac: impl Mac, parts: &[&[u8]]) -> Vec<u8> {
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().to_vec()
    }
    match hash {
        Bank::Sha256 => Some(feed(Hmac::<Sha256>::new_from_slice(key).ok()?, parts)),
        Bank::Sha384 => Some(feed(Hmac::<Sha384>::new_from_slice(key).ok()?, parts)),
        Bank::Sha1 | Bank::Sha512 => None,
    }
}

/// A TPM2B. Nothing here is longer than a key.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::Reader;

    fn key<C>(curve: u16, hash: Bank, bits: u16) -> (EphemeralSecret<C>, Public)
    where
        C: CurveArithmetic,
        FieldBytesSize<C>: ModulusSize,
        AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    {
        let secret = EphemeralSecret::<C>::generate_from_rng(&mut Random::new().unwrap());
        let point = secret.public_key().to_sec1_point(false);
        let (x, y) = (point.x().unwrap().to_vec(), point.y().unwrap().to_vec());
        let key = Key::Ecc { curve, x, y };
        let symmetric_bits = Some(bits);
        (secret, Public { name_hash: hash, attributes: 0, symmetric_bits, key, name: Vec::new() })
    }

    /// Does what the TPM with this key does, up to the tag: whether the credential is for the name.
    fn opens<C>(secret: &EphemeralSecret<C>, ek: &Public, credential: &[u8], name: &[u8]) -> bool
    where
        C: CurveArithmetic,
        FieldBytesSize<C>: ModulusSize,
        AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    {
        let mut r = Reader(credential);
        assert_eq!(r.array(), Some(HEADER));
        let (mut object, mut sealed) = (Reader(r.sized().unwrap()), Reader(r.sized().unwrap()));
        assert!(r.is_done());
        let (x, y) = (sealed.sized().unwrap(), sealed.sized().unwrap());
        let theirs = PublicKey::<C>::from_sec1_bytes(&[&[4], x, y].concat()).unwrap();
        let shared = secret.diffie_hellman(&theirs);
        let Key::Ecc { x: own, .. } = &ek.key else { unreachable!() };
        let hash = ek.name_hash;
        let seed = seed_of(hash, shared.raw_secret_bytes(), (x, own));
        let bits = u32::try_from(hash.bytes() * 8).unwrap();
        let integrity = derive(hash, &seed, (b"INTEGRITY\0", &[]), bits).unwrap();
        let tag = object.sized().unwrap();
        mac(hash, &integrity, &[object.0, name]).unwrap() == tag
    }

    #[test]
    fn the_holder_of_an_elliptic_key_opens_its_credential_for_one_name_only() {
        let mut random = Random::new().unwrap();
        let (secret, ek) = key::<NistP256>(3, Bank::Sha256, 128);
        let made = make(&ek, b"name", &[7; 32], &mut random).unwrap();
        assert!(opens(&secret, &ek, &made, b"name") && !opens(&secret, &ek, &made, b"another"));
        let (secret, ek) = key::<NistP384>(4, Bank::Sha384, 256);
        let made = make(&ek, b"name", &[7; 32], &mut random).unwrap();
        assert!(opens(&secret, &ek, &made, b"name") && !opens(&secret, &ek, &made, b"another"));
    }

    #[test]
    fn no_credential_is_made_for_other_templates_or_beside_the_curve() {
        let mut random = Random::new().unwrap();
        let mut refused =
            |ek: &Public| make(ek, b"name", &[7; 32], &mut random) == Err(Unsupported);
        let (_, good) = key::<NistP256>(3, Bank::Sha256, 128);
        assert!(!refused(&good));
        assert!(refused(&Public { symmetric_bits: None, ..good.clone() }));
        assert!(refused(&Public { symmetric_bits: Some(256), ..good.clone() }));
        assert!(refused(&Public { name_hash: Bank::Sha384, ..good.clone() }));
        let Key::Ecc { x, mut y, .. } = good.key.clone() else { unreachable!() };
        y[31] ^= 1;
        assert!(refused(&Public { key: Key::Ecc { curve: 3, x, y }, ..good }));
    }
}
