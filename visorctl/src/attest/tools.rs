//! tpm2-tools, version 5. Which TPM they use is theirs to know (`TPM2TOOLS_TCTI`).

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::make::random;

/// Where a TPM has the certificate of its RSA endorsement key (TCG EK Credential Profile 2.5, 2.2.1.4).
const CERTIFICATE: &str = "0x01c00002";

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
    pub(super) fn endorsement_key(&self) -> Result<Vec<u8>, Failure> {
        self.run("tpm2_createek", &["-c", "ek.ctx", "-G", "rsa", "-u", "ek.pub"])?;
        self.read_public("ek.pub")
    }

    /// The key that the TPM keeps at `handle`, if there is one.
    pub(super) fn public(&self, handle: u32) -> Option<Vec<u8>> {
        let handle = format!("{handle:#x}");
        self.run("tpm2_readpublic", &["-c", &handle, "-o", "key.pub"]).ok()?;
        self.read_public("key.pub").ok()
    }

    /// Makes an attestation key and has the TPM keep it at `handle`.
    pub(super) fn make_attestation_key(&self, handle: u32) -> Result<Vec<u8>, Failure> {
        let words = "-C ek.ctx -c ak.ctx -G rsa -g sha256 -s rsassa -u ak.pub";
        self.run("tpm2_createak", &words.split(' ').collect::<Vec<_>>())?;
        let handle = format!("{handle:#x}");
        self.run("tpm2_evictcontrol", &["-C", "o", "-c", "ak.ctx", &handle])?;
        self.read_public("ak.pub")
    }

    /// The certificate of the endorsement key, if the TPM has one.
    pub(super) fn certificate(&self) -> Option<Vec<u8>> {
        self.run("tpm2_nvread", &[CERTIFICATE, "-o", "ek.der"]).ok()?;
        let mut der = self.read("ek.der").ok()?;
        // Some TPMs have more room than the certificate needs. Its length is in its first bytes.
        if let [0x30, 0x82, high, low, ..] = *der {
            der.truncate(4 + usize::from(u16::from_be_bytes([high, low])));
        }
        Some(der)
    }

    /// The secret that is in a credential.
    pub(super) fn activate(&self, handle: u32, credential: &[u8]) -> Result<Vec<u8>, Failure> {
        let _ = self.endorsement_key()?;
        self.write("credential", credential)?;
        let handle = format!("{handle:#x}");
        self.run("tpm2_startauthsession", &["--policy-session", "-S", "session"])?;
        let words = [
            "-c",
            &handle,
            "-C",
            "ek.ctx",
            "-i",
            "credential",
            "-o",
            "secret",
            "-P",
            "session:session",
        ];
        let done = self
            .run("tpm2_policysecret", &["-S", "session", "-c", "e"])
            .and_then(|()| self.run("tpm2_activatecredential", &words));
        let _ = self.start("tpm2_flushcontext", &["session"]);
        done?;
        self.read("secret")
    }

    /// A quote and its signature.
    pub(super) fn quote(
        &self,
        handle: u32,
        list: &str,
        nonce: &str,
    ) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        let handle = format!("{handle:#x}");
        let words = [
            "-c",
            &handle,
            "-l",
            list,
            "-q",
            nonce,
            "-m",
            "quote",
            "-s",
            "signature",
            "-g",
            "sha256",
        ];
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
