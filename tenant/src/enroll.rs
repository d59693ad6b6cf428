//! `enroll`: why an attestation key is believed to be in the machine's TPM.

use std::fs;
use std::path::{Path, PathBuf};

use evidence::{Activated, Activation, Bytes, Document, Identity, Readers};
use serde::Serialize;
use x509_cert::Certificate;
use x509_cert::der::Encode;

use crate::failure::Failure;
use crate::machine::{Machine, Pending};
use crate::policy::Binding;
use crate::random::Random;
use crate::tpm::certificate;
use crate::tpm::credential;
use crate::tpm::public::Public;
use crate::verify::is_attestation_key;

/// What `enroll` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Enrolled {
    /// The attestation key's name.
    pub ak: Bytes,
    /// The endorsement key's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ek: Option<Bytes>,
    /// Why the attestation key is believed, or will be.
    pub binding: Binding,
    /// Whether it is.
    pub done: bool,
}

/// Why an endorsement key is believed.
#[derive(Debug)]
pub enum Believed<'a> {
    /// One of the authorities with certificates in these files.
    Roots(&'a [PathBuf]),
    /// Its name is known.
    Name(&'a Bytes),
}

/// The two files that [`begin`] writes.
#[derive(Debug)]
pub struct Files<'a> {
    /// For the tenant.
    pub pending: &'a Path,
    /// For the machine.
    pub activation: &'a Path,
}

fn read<T: Document>(path: &Path) -> Result<T, Failure> {
    evidence::read(path).map_err(|why| Failure::Evidence(path.into(), why))
}

pub(crate) fn write<T: Document>(path: &Path, document: &T, to: Readers) -> Result<(), Failure> {
    evidence::write(path, document, to).map_err(|why| Failure::Document(path.into(), why))
}

fn attestation_key(public: &Bytes) -> Result<Public, Failure> {
    let key = Public::parse(&public.0).map_err(|why| Failure::Key("attestation", why))?;
    if is_attestation_key(&key) { Ok(key) } else { Err(Failure::Unrestricted) }
}

/// Checks the endorsement key, and writes a secret that only its TPM can give back.
///
/// # Errors
/// [`Failure`].
pub fn begin(
    identity: &Path,
    believed: &Believed<'_>,
    files: &Files<'_>,
    now: u64,
) -> Result<Enrolled, Failure> {
    let identity: Identity = read(identity)?;
    let ak = attestation_key(&identity.ak)?;
    let ek =
        Public::parse(&identity.ek.public.0).map_err(|why| Failure::Key("endorsement", why))?;
    let (binding, certificates) = match believed {
        Believed::Name(name) if name.0 == ek.name => (Binding::PinnedEk, Vec::new()),
        Believed::Name(_) => return Err(Failure::OtherKey("endorsement")),
        Believed::Roots(paths) => (Binding::Certificate, check_chain(&identity, &ek, paths, now)?),
    };
    let mut random = Random::new().map_err(|_| Failure::Random)?;
    let secret: [u8; 32] = random.array();
    let credential = credential::make(&ek, &ak.name, &secret, &mut random)
        .map_err(|credential::Unsupported| Failure::Credential)?;
    let pending = Pending {
        format: Pending::FORMAT.into(),
        ak: identity.ak,
        binding,
        ek: Bytes(ek.name.clone()),
        certificates,
        secret: Bytes(secret.to_vec()),
    };
    let activation =
        Activation { format: Activation::FORMAT.into(), credential: Bytes(credential) };
    write(files.pending, &pending, Readers::Owner)?;
    write(files.activation, &activation, Readers::All)?;
    Ok(Enrolled { ak: Bytes(ak.name), ek: Some(Bytes(ek.name)), binding, done: false })
}

fn check_chain(
    identity: &Identity,
    ek: &Public,
    paths: &[PathBuf],
    now: u64,
) -> Result<Vec<Bytes>, Failure> {
    let mut roots = Vec::new();
    for path in paths {
        let pem = fs::read(path).map_err(|why| Failure::File(path.clone(), why))?;
        let none = || Failure::Certificates(path.clone());
        let certificates = Certificate::load_pem_chain(&pem).map_err(|_| none())?;
        for certificate in &certificates {
            roots.push(certificate.to_der().map_err(|_| none())?);
        }
        if certificates.is_empty() {
            return Err(none());
        }
    }
    let chain: Vec<&[u8]> = identity.ek.certificates.iter().map(|der| der.0.as_slice()).collect();
    let roots: Vec<&[u8]> = roots.iter().map(Vec::as_slice).collect();
    let path = certificate::check(&ek.key, &chain, &roots, now).map_err(Failure::Endorsement)?;
    Ok(path.into_iter().map(Bytes).collect())
}

/// Checks that the TPM gave the secret back, and writes what is known of the machine.
///
/// # Errors
/// [`Failure`].
pub fn finish(
    pending: &Path,
    activated: &Path,
    machine: &Path,
    now: u64,
) -> Result<Enrolled, Failure> {
    let pending: Pending =
        evidence::read(pending).map_err(|why| Failure::Document(pending.into(), why))?;
    let activated: Activated = read(activated)?;
    if pending.secret.0.len() != 32 || pending.secret != activated.secret {
        return Err(Failure::NotActivated);
    }
    let ak = attestation_key(&pending.ak)?;
    let Pending { binding, ek, certificates, .. } = pending;
    let known = Machine {
        format: Machine::FORMAT.into(),
        ak: pending.ak,
        binding,
        ek: Some(ek.clone()),
        certificates,
        enrolled: now,
    };
    write(machine, &known, Readers::All)?;
    Ok(Enrolled { ak: Bytes(ak.name), ek: Some(ek), binding, done: true })
}

/// Believes the attestation key with this name.
///
/// # Errors
/// [`Failure`].
pub fn pin(identity: &Path, name: &Bytes, machine: &Path, now: u64) -> Result<Enrolled, Failure> {
    let identity: Identity = read(identity)?;
    let ak = attestation_key(&identity.ak)?;
    if ak.name != name.0 {
        return Err(Failure::OtherKey("attestation"));
    }
    let known = Machine {
        format: Machine::FORMAT.into(),
        ak: identity.ak,
        binding: Binding::PinnedAk,
        ek: None,
        certificates: Vec::new(),
        enrolled: now,
    };
    write(machine, &known, Readers::All)?;
    Ok(Enrolled { ak: Bytes(ak.name), ek: None, binding: Binding::PinnedAk, done: true })
}
