//! `attest`: collects what proves this machine to a tenant, by the host's own tpm2-tools.
//!
//! Nothing here is trusted. The TPM signs; the tenant checks.

mod logs;
mod tools;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use evidence::eat::{PROFILE, Token};
use evidence::{
    Activated, Activation, Bytes, Challenge, Document, Endorsement, Evidence, Identity, Log, Quote,
    Readers, Visor,
};
use serde::Serialize;

use self::tools::{Kind, Tools};
use crate::failure::Failure;
use crate::port::Port;

/// A digest's bytes, by the names that tpm2-tools have for banks.
const BANKS: [(&str, usize); 4] = [("sha1", 20), ("sha256", 32), ("sha384", 48), ("sha512", 64)];

/// What can be collected.
#[derive(Debug, Subcommand)]
pub(crate) enum Attest {
    /// Writes the TPM's keys for `tenant enroll begin`, and makes the attestation key if there is none
    Identity {
        /// The file, which must not exist yet
        out: PathBuf,
        #[command(flatten)]
        keys: Keys,
    },
    /// Has the TPM give out a secret of a tenant's, which shows that it holds the attestation key
    Activate {
        /// What `tenant enroll begin` wrote for this machine
        activation: PathBuf,
        /// The file, which must not exist yet
        out: PathBuf,
        #[command(flatten)]
        keys: Keys,
    },
    /// Collects evidence for a tenant's challenge
    Quote {
        /// What `tenant challenge` wrote
        challenge: PathBuf,
        /// The file, which must not exist yet
        out: PathBuf,
        #[command(flatten)]
        key: Key,
        /// The firmware's event log
        #[arg(long, value_name = "FILE", default_value = logs::FIRMWARE)]
        firmware_log: PathBuf,
        /// The visor's event log; without it, the visor is asked at its port
        #[arg(long, value_name = "FILE")]
        visor_log: Option<PathBuf>,
        /// Writes an Entity Attestation Token (RFC 9711) in place of JSON
        #[arg(long)]
        eat: bool,
    },
}

/// The attestation key.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Key {
    /// Where the TPM keeps the attestation key
    #[arg(long, value_name = "HANDLE", default_value = "0x81005653", value_parser = handle)]
    ak: u32,
}

/// The attestation key, and the endorsement key that it is under.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Keys {
    #[command(flatten)]
    attestation: Key,
    /// Which of the TPM's endorsement keys is used; the attestation key, if it is made, is of the same kind
    #[arg(long, value_name = "KIND", default_value = "rsa")]
    ek: Kind,
}

/// A persistent handle of the owner's (TPM 2.0 Library, Part 2, 7.4; Registry of Reserved Handles, 2.3).
fn handle(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0x").ok_or("not a handle such as 0x81005653")?;
    match u32::from_str_radix(digits, 16) {
        Ok(handle @ 0x8100_0000..=0x817f_ffff) => Ok(handle),
        Ok(_) => Err("not between 0x81000000 and 0x817fffff".to_owned()),
        Err(why) => Err(why.to_string()),
    }
}

/// What was written.
#[derive(Debug, Serialize)]
pub(crate) struct Collected {
    /// The file's format.
    format: &'static str,
    /// The PCRs that are quoted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pcrs: Vec<u8>,
}

impl fmt::Display for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "written: {}", self.format)
    }
}

impl Attest {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Identity { .. } => "attest identity",
            Self::Activate { .. } => "attest activate",
            Self::Quote { .. } => "attest quote",
        }
    }
}

/// Does what `command` says.
///
/// # Errors
/// [`Failure::Tool`], [`Failure::Document`], [`Failure::File`], and those of the port.
pub(crate) fn attest<P: Port>(
    command: &Attest,
    port: impl FnOnce() -> Result<P, Failure>,
) -> Result<Collected, Failure> {
    match command {
        Attest::Identity { out, keys } => identity(out, *keys),
        Attest::Activate { activation, out, keys } => activate(activation, out, *keys),
        Attest::Quote { challenge, out, key, firmware_log, visor_log, eat } => {
            let challenge: Challenge = read(challenge)?;
            let nonce = challenge.nonce.array().ok_or(Failure::Nonce)?;
            let visor = logs::visor(visor_log.as_deref(), &nonce, port)?;
            let firmware = logs::firmware(firmware_log)?;
            let nonce = challenge.nonce.clone();
            let (evidence, pcrs) = quote(challenge, *key, (firmware, visor))?;
            let written = if *eat {
                write_token(out, Token { nonce, evidence })?
            } else {
                write(out, &evidence, Readers::All)?
            };
            Ok(Collected { pcrs, ..written })
        }
    }
}

fn read<T: Document>(path: &Path) -> Result<T, Failure> {
    evidence::read(path).map_err(|why| Failure::Document(path.into(), why))
}

fn write<T: Document>(path: &Path, document: &T, readers: Readers) -> Result<Collected, Failure> {
    evidence::write(path, document, readers).map_err(|why| Failure::Document(path.into(), why))?;
    Ok(Collected { format: T::FORMAT, pcrs: Vec::new() })
}

fn write_token(out: &Path, token: Token) -> Result<Collected, Failure> {
    let wrong = |why| Failure::Document(out.into(), why);
    let bytes = token.encode().map_err(|why| wrong(evidence::Error::Token(why)))?;
    evidence::create(out, &bytes, Readers::All).map_err(|why| wrong(evidence::Error::File(why)))?;
    Ok(Collected { format: PROFILE, pcrs: Vec::new() })
}

fn identity(out: &Path, keys: Keys) -> Result<Collected, Failure> {
    let tools = Tools::new()?;
    let handle = keys.attestation.ak;
    let ek = tools.endorsement_key(keys.ek)?;
    let ak = match tools.public(handle) {
        Some(ak) => ak,
        None => tools.make_attestation_key(handle, keys.ek)?,
    };
    let certificates = tools.certificate(keys.ek).into_iter().map(Bytes).collect();
    let ek = Endorsement { public: Bytes(ek), certificates };
    let identity = Identity { format: Identity::FORMAT.into(), ek, ak: Bytes(ak) };
    write(out, &identity, Readers::All)
}

fn activate(activation: &Path, out: &Path, keys: Keys) -> Result<Collected, Failure> {
    let activation: Activation = read(activation)?;
    let (handle, credential) = (keys.attestation.ak, &activation.credential.0);
    let secret = Tools::new()?.activate(handle, keys.ek, credential)?;
    let activated = Activated { format: Activated::FORMAT.into(), secret: Bytes(secret) };
    write(out, &activated, Readers::Owner)
}

fn quote(
    asked: Challenge,
    key: Key,
    (firmware, visor): (Option<Vec<u8>>, Visor),
) -> Result<(Evidence, Vec<u8>), Failure> {
    let tools = Tools::new()?;
    let unknown = || Failure::Bank(asked.bank.clone());
    let (bank, bytes) =
        BANKS.into_iter().find(|(name, _)| *name == asked.bank).ok_or_else(unknown)?;
    let pcrs: Vec<_> = asked.pcrs.iter().map(ToString::to_string).collect();
    let list = format!("{bank}:{}", pcrs.join(","));
    let ak = tools.public(key.ak).ok_or(Failure::NoKey(key.ak))?;
    let (attest, signature) = tools.quote((key.ak, &ak), &list, &asked.nonce.to_string())?;
    let values = tools.values(&list)?;
    // Where there are too few, the tenant will say so.
    let values = values.chunks(bytes).map(Bytes::from);
    let values: BTreeMap<u8, Bytes> = asked.pcrs.iter().copied().zip(values).collect();
    let evidence = Evidence {
        format: Evidence::FORMAT.into(),
        quote: Quote { attest: Bytes(attest), signature: Bytes(signature) },
        pcrs: BTreeMap::from([(bank.to_owned(), values)]),
        ak: Bytes(ak),
        firmware: firmware.map(|log| Log { log: Bytes(log) }),
        visor,
    };
    Ok((evidence, asked.pcrs))
}

#[cfg(test)]
mod tests {
    use super::handle;

    #[test]
    fn a_handle_is_a_persistent_one_of_the_owners() {
        assert_eq!(handle("0x81005653"), Ok(0x8100_5653));
        for wrong in ["81005653", "0x80ffffff", "0x81800000", "0x", "-1"] {
            assert!(handle(wrong).is_err(), "{wrong}");
        }
    }
}
