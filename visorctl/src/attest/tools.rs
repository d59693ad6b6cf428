//! tpm2-tools, version 5. Which TPM they use is theirs to know (`TPM2TOOLS_TCTI`).

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::ValueEnum;
use measure::random;

use crate::failure::Failure;

/// The endorsement keys that TPMs have (TCG EK Credential Profile 2.5, B.3 and B.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// RSA of 2048 bits (template L-1)
    Rsa,
    /// NIST P-256 (template L-2)
    Ecc256,
    /// NIST P-384 (template H-3)
    Ecc384,
}

impl Kind {
    /// Its name, as tpm2-tools have it.
    const fn algorithm(self) -> &'static str {
        match self {
            Self::Rsa => "rsa",
            Self::Ecc256 => "ecc256",
            Self::Ecc384 => "ecc384",
        }
    }

    /// Where a TPM has its certificate (TCG EK Credential Profile 2.5, 2.2.1.4 and 2.2.1.5).
    const fn certificate(self) -> &'static str {
        match self {
            Self::Rsa => "0x01c00002",
            Self::Ecc256 => "0x01c0000a",
            Self::Ecc384 => "0x01c00016",
        }
    }

    /// What an attestation key under it is like.
    const fn attestation(self) -> [&'static str; 3] {
        match self {
            Self::Rsa => ["rsa", "sha256", "rsassa"],
            Self::Ecc256 => ["ecc256", "sha256", "ecdsa"],
            Self::Ecc384 => ["ecc384", "sha384", "ecdsa"],
        }
    }
}

/// The scheme and the hash that an attestation key signs with, as tpm2-tools name them: they are in its
/// TPMT_PUBLIC, behind type, hash, attributes, policy and no symmetric algorithm (TPM 2.0 Library, Part 2,
/// 12.2.4).
fn scheme(public: &[u8]) -> Option<(&'static str, &'static str)> {
    let policy = public.get(8..10)?.try_into().ok().map(u16::from_be_bytes)?;
    let at = 10_usize.checked_add(policy.into())?.checked_add(2)?;
    let (scheme, rest) = public.get(at..)?.split_first_chunk()?;
    let scheme = match u16::from_be_bytes(*scheme) {
        0x0014 => "rsassa",
        0x0016 => "rsapss",
        0x0018 => "ecdsa",
        _ => return None,
    };
    let hash = match u16::from_be_bytes(*rest.first_chunk()?) {
        0x000b => "sha256",
        0x000c => "sha384",
        0x000d => "sha512",
        _ => return None,
    };
    Some((scheme, hash))
}

/// A folder for what the tools read and write, gone afterwards.
pub(super) struct Tools(PathBuf);

impl Tools {
    pub(super) fn new() -> Result<Self, Failure> {
        let folder = std::env::temp_dir().join(format!("visorctl-attest-{}", unique()?));
        let wrong = |why| Failure::File(folder.clone(), why);
        let mut builder = fs::DirBuilder::new();
        let _ = std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&folder).map_err(wrong)?;
        Ok(Self(folder))
    }

    /// Runs one of the tools, and then makes room in a TPM without a resource manager.
    fn run(&self, tool: &'static str, words: &[&str]) -> Result<(), Failure> {
        let done = self.start(tool, words);
        let _ = self.start("tpm2_flushcontext", &["-t"]);
        done
    }

    fn start(&self, tool: &'static str, words: &[impl AsRef<OsStr>]) -> Result<(), Failure> {
        let mut command = Command::new(tool);
        let _ = command.args(words).current_dir(&self.0).stdin(Stdio::null());
        let output = command.output().map_err(|why| Failure::Tool(tool, why.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        // The first line of these says why, the last one only that it was not done.
        let why = text.lines().find(|line| line.contains("ERROR")).or(text.lines().next());
        Err(Failure::Tool(tool, why.unwrap_or("failed").trim().to_owned()))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, Failure> {
        let path = self.0.join(name);
        fs::read(&path).map_err(|why| Failure::File(path, why))
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), Failure> {
        let path = self.0.join(name);
        fs::write(&path, content).map_err(|why| Failure::File(path, why))
    }

    /// A TPM2B_PUBLIC's TPMT_PUBLIC.
    fn read_public(&self, name: &str) -> Result<Vec<u8>, Failure> {
        let sized = self.read(name)?;
        let public = sized.get(2..).ok_or(Failure::Tool("tpm2-tools", "no key".to_owned()))?;
        Ok(public.to_vec())
    }

    /// Makes the endorsement key, as `ek.ctx`: the TPM makes the same one each time.
    pub(super) fn endorsement_key(&self, kind: Kind) -> Result<Vec<u8>, Failure> {
        let words = ["-c", "ek.ctx", "-G", kind.algorithm(), "-u", "ek.pub"];
        self.run("tpm2_createek", &words)?;
        self.read_public("ek.pub")
    }

    /// The key that the TPM keeps at `handle`, if there is one.
    pub(super) fn public(&self, handle: u32) -> Option<Vec<u8>> {
        let handle = format!("{handle:#x}");
        self.run("tpm2_readpublic", &["-c", &handle, "-o", "key.pub"]).ok()?;
        self.read_public("key.pub").ok()
    }

    /// Makes an attestation key and has the TPM keep it at `handle`.
    pub(super) fn make_attestation_key(&self, handle: u32, ek: Kind) -> Result<Vec<u8>, Failure> {
        let [algorithm, hash, scheme] = ek.attestation();
        let mut words = vec!["-C", "ek.ctx", "-c", "ak.ctx", "-u", "ak.pub"];
        words.extend(["-G", algorithm, "-g", hash, "-s", scheme]);
        self.run("tpm2_createak", &words)?;
        let handle = format!("{handle:#x}");
        self.run("tpm2_evictcontrol", &["-C", "o", "-c", "ak.ctx", &handle])?;
        self.read_public("ak.pub")
    }

    /// The certificate of the endorsement key, if the TPM has one.
    pub(super) fn certificate(&self, kind: Kind) -> Option<Vec<u8>> {
        self.run("tpm2_nvread", &[kind.certificate(), "-o", "ek.der"]).ok()?;
        let mut der = self.read("ek.der").ok()?;
        // Some TPMs have more room than the certificate needs. Its length is in its first bytes.
        if let [0x30, 0x82, high, low, ..] = *der {
            der.truncate(4 + usize::from(u16::from_be_bytes([high, low])));
        }
        Some(der)
    }

    /// The secret that is in a credential.
    pub(super) fn activate(
        &self,
        handle: u32,
        ek: Kind,
        credential: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        let _ = self.endorsement_key(ek)?;
        self.write("credential", credential)?;
        let handle = format!("{handle:#x}");
        let mut words = vec!["-c", &handle, "-C", "ek.ctx", "-i", "credential", "-o", "secret"];
        if ek == Kind::Ecc384 {
            // Keys of the profile's upper range can be used with their own password, which is empty.
            self.run("tpm2_activatecredential", &words)?;
            return self.read("secret");
        }
        words.extend(["-P", "session:session"]);
        self.run("tpm2_startauthsession", &["--policy-session", "-S", "session"])?;
        let done = self
            .run("tpm2_policysecret", &["-S", "session", "-c", "e"])
            .and_then(|()| self.run("tpm2_activatecredential", &words));
        let _ = self.start("tpm2_flushcontext", &["session"]);
        done?;
        self.read("secret")
    }

    /// A quote by the key that `public` describes, and its signature.
    pub(super) fn quote(
        &self,
        (handle, public): (u32, &[u8]),
        list: &str,
        nonce: &str,
    ) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        let unknown =
            || Failure::Tool("tpm2_quote", "the key signs in no way that is known".into());
        let (scheme, hash) = scheme(public).ok_or_else(unknown)?;
        let handle = format!("{handle:#x}");
        let mut words = vec!["-c", &handle, "-l", list, "-q", nonce, "-m", "quote"];
        words.extend(["-s", "signature", "-g", hash, "--scheme", scheme]);
        self.run("tpm2_quote", &words)?;
        Ok((self.read("quote")?, self.read("signature")?))
    }

    /// The values of PCRs, one behind the other.
    pub(super) fn values(&self, list: &str) -> Result<Vec<u8>, Failure> {
        self.run("tpm2_pcrread", &[list, "-o", "values"])?;
        self.read("values")
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        // It is in a folder for what may be lost.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A name that nobody can guess.
fn unique() -> Result<String, Failure> {
    let path = PathBuf::from("/dev/urandom");
    let bytes: [u8; 16] = random().map_err(|why| Failure::File(path, why))?;
    Ok(crate::hex::encode(&bytes))
}

#[cfg(test)]
mod tests {
    use super::scheme;

    #[test]
    fn a_keys_scheme_is_behind_its_policy() {
        // RSA, SHA-256, attributes; a policy; no symmetric algorithm; scheme and hash.
        let key = |policy: &[u8], scheme: u8, hash: u8| {
            let length = u8::try_from(policy.len()).unwrap();
            let head = [0, 1, 0, 11, 0, 5, 0, 0x72, 0, length];
            [&head[..], policy, &[0, 0x10, 0, scheme, 0, hash, 8, 0]].concat()
        };
        assert_eq!(scheme(&key(&[], 0x14, 11)), Some(("rsassa", "sha256")));
        assert_eq!(scheme(&key(&[7; 32], 0x16, 12)), Some(("rsapss", "sha384")));
        assert_eq!(scheme(&key(&[7; 32], 0x18, 13)), Some(("ecdsa", "sha512")));
        assert_eq!(scheme(&key(&[], 0x10, 11)), None);
        assert_eq!(scheme(&key(&[], 0x14, 4)), None);
        assert_eq!(scheme(&key(&[7; 32], 0x14, 11)[..43]), None);
    }
}
