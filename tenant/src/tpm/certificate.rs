//! Certificates of endorsement keys, from the key to an authority that the tenant trusts (RFC 5280; TCG
//! EK Credential Profile 2.5, 3). What was revoked since is [`super::revocation`]'s.

use std::time::Duration;

use x509_cert::Certificate;
use x509_cert::der::asn1::{AnyRef, BitString, ObjectIdentifier, UintRef};
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages};

use super::public::Key;
use super::quote::Kind;
use super::signature;
use crate::bank::Bank;

/// More certificates than any manufacturer puts between a key and a root.
const DEEPEST: usize = 5;

/// tcg-kp-EKCertificate.
const ENDORSEMENT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.1");
/// id-ce-subjectAltName, which says the TPM's maker and model; id-ce-certificatePolicies.
const IGNORED: [ObjectIdentifier; 2] =
    [ObjectIdentifier::new_unwrap("2.5.29.17"), ObjectIdentifier::new_unwrap("2.5.29.32")];
const BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const EXTENDED: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");

const RSA_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// Why a chain of certificates proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The TPM has no certificate.
    Missing,
    /// A certificate is malformed.
    Malformed,
    /// The certificate is another key's.
    OtherKey,
    /// The certificate is not for an endorsement key.
    NotEndorsement,
    /// A certificate has expired, or is not valid yet.
    Expired,
    /// A certificate says something that must be understood, and is not here.
    Critical,
    /// No authority that is trusted has signed it, nor one of those that it has with it.
    NoAuthority,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Missing => "the TPM has no certificate",
            Self::Malformed => "a certificate is malformed",
            Self::OtherKey => "the certificate is another key's",
            Self::NotEndorsement => "the certificate is not for an endorsement key",
            Self::Expired => "a certificate has expired, or is not valid yet",
            Self::Critical => "a certificate has a critical extension that is not known here",
            Self::NoAuthority => "no authority that is trusted has signed it",
        })
    }
}

/// Checks that `chain`, of which the first is the certificate of `key`, leads to one of `roots` at `now`,
/// in seconds since 1970. All are DER. The roots are believed because the tenant says so; those of
/// `chain` may stand in any order. Gives the certificates that lead there, from the key's to the root.
///
/// # Errors
/// [`Broken`].
pub fn check(
    key: &Key,
    chain: &[&[u8]],
    roots: &[&[u8]],
    now: u64,
) -> Result<Vec<Vec<u8>>, Broken> {
    let parse = |der: &&[u8]| Certificate::from_der(der).map_err(|_| Broken::Malformed);
    let chain = chain.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let roots = roots.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let leaf = chain.first().ok_or(Broken::Missing)?;
    if key_of(leaf).as_ref() != Some(key) {
        return Err(Broken::OtherKey);
    }
    let names = leaf.tbs_certificate().get_extension::<ExtendedKeyUsage>();
    let is_endorsement = matches!(names, Ok(Some((_, names))) if names.0.contains(&ENDORSEMENT));
    if !is_endorsement || is_authority(leaf, 0) {
        return Err(Broken::NotEndorsement);
    }
    let now = Duration::from_secs(now);
    let mut certificate = leaf;
    let mut path = Vec::new();
    for depth in 0..DEEPEST {
        is_acceptable(certificate, now)?;
        path.push(certificate.to_der().map_err(|_| Broken::Malformed)?);
        let is_issuer =
            |issuer: &&Certificate| is_authority(issuer, depth) && has_signed(issuer, certificate);
        if let Some(root) = roots.iter().find(is_issuer) {
            is_acceptable(root, now)?;
            path.extend(upwards(root, &roots).ok_or(Broken::Malformed)?);
            return Ok(path);
        }
        certificate = chain.iter().find(is_issuer).ok_or(Broken::NoAuthority)?;
    }
    Err(Broken::NoAuthority)
}

/// The root and, where it is one of an authority between others, those above it, as DER: it is believed
/// without them, but they may have revoked it.
fn upwards(root: &Certificate, roots: &[Certificate]) -> Option<Vec<Vec<u8>>> {
    let above =
        |below: &&Certificate| roots.iter().find(|root| root != below && has_signed(root, below));
    let path = std::iter::successors(Some(root), above).take(DEEPEST);
    path.map(|certificate| certificate.to_der().ok()).collect()
}

fn is_acceptable(certificate: &Certificate, now: Duration) -> Result<(), Broken> {
    let certificate = certificate.tbs_certificate();
    let validity = certificate.validity();
    let begin = validity.not_before.to_unix_duration();
    if !(begin..=validity.not_after.to_unix_duration()).contains(&now) {
        return Err(Broken::Expired);
    }
    let known = [BASIC, USAGE, EXTENDED];
    let mut extensions = certificate.extensions().into_iter().flatten();
    let is_known = extensions.all(|extension| {
        !extension.critical
            || known.contains(&extension.extn_id)
            || IGNORED.contains(&extension.extn_id)
    });
    if is_known { Ok(()) } else { Err(Broken::Critical) }
}

/// Whether the certificate is an authority's, with as many others as `below` between it and the key.
fn is_authority(certificate: &Certificate, below: usize) -> bool {
    let certificate = certificate.tbs_certificate();
    let Ok(Some((_, basic))) = certificate.get_extension::<BasicConstraints>() else {
        return false;
    };
    let is_deep_enough = basic.path_len_constraint.is_none_or(|most| usize::from(most) >= below);
    let may_sign = match certificate.get_extension::<KeyUsage>() {
        Ok(Some((_, usage))) => usage.0.contains(KeyUsages::KeyCertSign),
        Ok(None) => true,
        Err(_) => false,
    };
    basic.ca && is_deep_enough && may_sign
}

fn has_signed(issuer: &Certificate, certificate: &Certificate) -> bool {
    if issuer.tbs_certificate().subject() != certificate.tbs_certificate().issuer() {
        return false;
    }
    // What is signed is DER, and so has one encoding only.
    let Ok(message) = certificate.tbs_certificate().to_der() else { return false };
    let algorithm = certificate.signature_algorithm();
    certificate.tbs_certificate().signature() == algorithm
        && is_signature(issuer, &message, (&algorithm.oid, certificate.signature()))
}

/// Whether this is the signature, by this algorithm, over `message` by the key that `issuer` is about.
pub(super) fn is_signature(
    issuer: &Certificate,
    message: &[u8],
    (algorithm, bits): (&ObjectIdentifier, &BitString),
) -> bool {
    let (Some(key), Some((hash, kind))) = (key_of(issuer), signature_of(algorithm, bits)) else {
        return false;
    };
    signature::verify(&key, hash, message, &kind)
}

fn signature_of(algorithm: &ObjectIdentifier, bits: &BitString) -> Option<(Bank, Kind)> {
    let algorithm = algorithm.to_string();
    let bytes = bits.as_bytes()?;
    let (hash, is_rsa) = match algorithm.as_str() {
        "1.2.840.113549.1.1.11" => (Bank::Sha256, true),
        "1.2.840.113549.1.1.12" => (Bank::Sha384, true),
        "1.2.840.113549.1.1.13" => (Bank::Sha512, true),
        "1.2.840.10045.4.3.2" => (Bank::Sha256, false),
        "1.2.840.10045.4.3.3" => (Bank::Sha384, false),
        "1.2.840.10045.4.3.4" => (Bank::Sha512, false),
        _ => return None,
    };
    let kind = if is_rsa {
        Kind::Rsassa(bytes.to_vec())
    } else {
        let (r, s) = pair(bytes)?;
        Kind::Ecdsa(r, s)
    };
    Some((hash, kind))
}

/// A SEQUENCE of two numbers: an RSA key, or an ECDSA signature.
fn pair(der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut reader = SliceReader::new(der).ok()?;
    let numbers = reader.sequence(|inner| -> Result<_, x509_cert::der::Error> {
        let first = UintRef::decode(inner)?.as_bytes().to_vec();
        Ok((first, UintRef::decode(inner)?.as_bytes().to_vec()))
    });
    numbers.ok().filter(|_| reader.is_finished())
}

fn key_of(certificate: &Certificate) -> Option<Key> {
    let info = certificate.tbs_certificate().subject_public_key_info();
    let bits = info.subject_public_key.as_bytes()?;
    if info.algorithm.oid == RSA_KEY {
        let (modulus, exponent) = pair(bits)?;
        let exponent = exponent.iter().try_fold(0_u32, |number, byte| {
            number.checked_mul(256).map(|number| number | u32::from(*byte))
        })?;
        return Some(Key::Rsa { modulus, exponent });
    }
    let curve: ObjectIdentifier =
        AnyRef::from(info.algorithm.parameters.as_ref()?).decode_as().ok()?;
    let (curve, size) = match curve {
        P256 => (3, 32),
        P384 => (4, 48),
        _ => return None,
    };
    let (first, point) = bits.split_first()?;
    let is_point = info.algorithm.oid == EC_KEY && *first == 4 && point.len() == 2 * size;
    let (x, y) = point.split_at_checked(size).filter(|_| is_point)?;
    Some(Key::Ecc { curve, x: x.to_vec(), y: y.to_vec() })
}
