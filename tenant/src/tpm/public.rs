//! A TPM's public keys: TPMT_PUBLIC (TPM 2.0 Library, Part 2, 12.2.4).

use crate::bank::Bank;
use crate::reader::Reader;

/// Algorithms (TCG Algorithm Registry, 6.10).
const RSA: u16 = 0x0001;
const NULL: u16 = 0x0010;
const RSASSA: u16 = 0x0014;
const RSAPSS: u16 = 0x0016;
const ECDSA: u16 = 0x0018;
const ECC: u16 = 0x0023;

/// The attributes of an object (Part 2, 8.3).
pub mod attribute {
    /// It cannot leave its TPM.
    pub const FIXED_TPM: u32 = 1 << 1;
    /// It cannot move under another parent.
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// The TPM made its secret part.
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// It signs only what the TPM itself says.
    pub const RESTRICTED: u32 = 1 << 16;
    /// It decrypts.
    pub const DECRYPT: u32 = 1 << 17;
    /// It signs.
    pub const SIGN: u32 = 1 << 18;
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    /// The hash of its name.
    pub name_hash: Bank,
    /// [`attribute`]s.
    pub attributes: u32,
    /// The bits of the AES key that protects its children, for a storage key.
    pub symmetric_bits: Option<u16>,
    /// The key itself.
    pub key: Key,
    /// Its name: the id of the hash, and the hash.
    pub name: Vec<u8>,
}

/// A key's numbers, big-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// RSA.
    Rsa {
        /// The modulus.
        modulus: Vec<u8>,
        /// The public exponent.
        exponent: u32,
    },
    /// A point on NIST P-256 or P-384.
    Ecc {
        /// The curve's TPM_ECC_CURVE: 3 or 4.
        curve: u16,
        /// The point's x.
        x: Vec<u8>,
        /// The point's y.
        y: Vec<u8>,
    },
}

/// Why bytes are no key that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKey {
    /// They are no TPMT_PUBLIC.
    Malformed,
    /// They are, with an algorithm that this program does not know.
    Unsupported(u16),
}

impl Public {
    /// Reads a TPMT_PUBLIC.
    ///
    /// # Errors
    /// [`NoKey`], also where bytes are left over.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoKey> {
        let mut reader = Reader(bytes);
        let r = &mut reader;
        let kind = r.be16().ok_or(NoKey::Malformed)?;
        let hash = r.be16().ok_or(NoKey::Malformed)?;
        let name_hash = Bank::of(hash).ok_or(NoKey::Unsupported(hash))?;
        let attributes = r.be32().ok_or(NoKey::Malformed)?;
        let _policy = r.sized().ok_or(NoKey::Malformed)?;
        let symmetric_bits = symmetric(r).ok_or(NoKey::Malformed)?;
        scheme(r)?;
        let key = match kind {
            RSA => rsa(r).ok_or(NoKey::Malformed)?,
            ECC => ecc(r)?,
            other => return Err(NoKey::Unsupported(other)),
        };
        if !reader.is_done() {
            return Err(NoKey::Malformed);
        }
        let mut name = name_hash.id().to_be_bytes().to_vec();
        name.extend(name_hash.hash(&[bytes]));
        Ok(Self { name_hash, attributes, symmetric_bits, key, name })
    }
}

/// TPMT_SYM_DEF_OBJECT: the key's bits, if there is an algorithm.
fn symmetric(r: &mut Reader<'_>) -> Option<Option<u16>> {
    if r.be16()? == NULL {
        return Some(None);
    }
    let bits = r.be16()?;
    let _mode = r.be16()?;
    Some(Some(bits))
}

/// The scheme that signatures must have. They say theirs themselves.
fn scheme(r: &mut Reader<'_>) -> Result<(), NoKey> {
    match r.be16().ok_or(NoKey::Malformed)? {
        NULL => Ok(()),
        RSASSA | RSAPSS | ECDSA => r.be16().map(drop).ok_or(NoKey::Malformed),
        other => Err(NoKey::Unsupported(other)),
    }
}

fn rsa(r: &mut Reader<'_>) -> Option<Key> {
    let _bits = r.be16()?;
    let exponent = match r.be32()? {
        0 => 65_537,
        other => other,
    };
    Some(Key::Rsa { modulus: r.sized()?.to_vec(), exponent })
}

fn ecc(r: &mut Reader<'_>) -> Result<Key, NoKey> {
    let curve = r.be16().ok_or(NoKey::Malformed)?;
    if !matches!(curve, 3 | 4) {
        return Err(NoKey::Unsupported(curve));
    }
    let derivation = r.be16().ok_or(NoKey::Malformed)?;
    if derivation != NULL {
        return Err(NoKey::Unsupported(derivation));
    }
    let point = |r: &mut Reader<'_>| r.sized().map(<[u8]>::to_vec).ok_or(NoKey::Malformed);
    Ok(Key::Ecc { curve, x: point(r)?, y: point(r)? })
}
