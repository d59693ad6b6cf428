//! A secret that a TPM gives back only if the key of a given name lives in it: TPM2_MakeCredential
//! (TPM 2.0 Library, Part 1, 24; Part 3, 12.6), made without a TPM.

use aes::Aes128;
use aes::cipher::KeyIvInit;
use cfb_mode::Encryptor;
use hmac::{Hmac, KeyInit, Mac};
use rsa::Oaep;
use sha2::Sha256;

use super::public::{Key, Public};
use super::signature;
use crate::bank::Bank;
use crate::random::Random;

/// What tpm2-tools put before a credential: a magic number and a version.
const HEADER: [u8; 8] = [0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1];

/// An endorsement key for which no credential can be made: only those of the TCG's default template are
/// known, RSA of 2048 bits or more with SHA-256 and AES-128 (EK Credential Profile, template L-1).
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
    let is_default = ek.name_hash == Bank::Sha256 && ek.symmetric_bits == Some(128);
    let Key::Rsa { .. } = ek.key else { return Err(Unsupported) };
    let key = signature::rsa(&ek.key).filter(|_| is_default).ok_or(Unsupported)?;
    let seed: [u8; 32] = random.array();
    let padding = Oaep::<Sha256>::new_with_label(&b"IDENTITY\0"[..]);
    let sealed_seed = key.encrypt(random, padding, &seed).map_err(|_| Unsupported)?;

    let storage: [u8; 16] = derive(&seed, b"STORAGE\0", name, 128).ok_or(Unsupported)?;
    let mut identity = sized(secret);
    Encryptor::<Aes128>::new(&storage.into(), &[0; 16].into()).encrypt(&mut identity);
    let integrity: [u8; 32] = derive(&seed, b"INTEGRITY\0", &[], 256).ok_or(Unsupported)?;
    let tag = mac(&integrity, &[&identity, name]);
    let object = [sized(&tag), identity].concat();
    Ok([&HEADER[..], &sized(&object), &sized(&sealed_seed)].concat())
}

/// KDFa (Part 1, 11.4.10.2) with SHA-256, of which one block is enough here. The label ends with a zero.
fn derive<const N: usize>(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Option<[u8; N]> {
    mac(key, &[&1_u32.to_be_bytes(), label, context, &bits.to_be_bytes()]).first_chunk().copied()
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of any length; this one is never refused.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// A TPM2B. Nothing here is longer than a key.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), bytes].concat()
}
