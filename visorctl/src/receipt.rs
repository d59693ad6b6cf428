//! `receipt`, and what else the visor signs.

use std::fmt;
use std::fs;
use std::path::Path;

use evidence::Bytes;
use serde::Serialize;
use ticket::port::{
    INDEX_NONCE, INDEX_SIGN, INDEX_SIGNATURE, INDEX_STATEMENT, INDEX_UNPROTECTED, VmState,
};

use crate::failure::Failure;
use crate::port::Port;
use crate::visor::Visor;

/// What [`INDEX_SIGN`] is written for the nonce alone.
pub(crate) const NONCE: u32 = 1;
/// Likewise.
const RECEIPT: u32 = 2;
/// Likewise.
const AUDIT_HEAD: u32 = 3;
/// Bytes that a statement may have.
const LONGEST: u32 = (INDEX_UNPROTECTED - INDEX_STATEMENT) * 4;

/// Something that the visor has signed: whether it is true, whoever knows the visor's key can say.
#[derive(Debug, Serialize)]
pub(crate) struct Signed {
    pub(crate) body: Bytes,
    pub(crate) signature: Bytes,
}

/// A receipt, as `tenant receipt` reads it.
#[derive(Debug, Serialize)]
pub(crate) struct Receipt {
    format: &'static str,
    #[serde(flatten)]
    signed: Signed,
}

/// Has the visor sign how the VM in slot `vm` was launched, and writes that to `out`, which must not exist yet.
///
/// # Errors
/// As [`Visor::find_with_keys`]; [`Failure::NoVm`], [`Failure::File`].
pub(crate) fn receipt(
    port: impl Port,
    vm: u32,
    nonce: &[u8; 32],
    out: Option<&Path>,
) -> Result<Receipt, Failure> {
    let mut visor = Visor::find_with_keys(port)?;
    if visor.vm(vm)? == VmState::None {
        return Err(Failure::NoVm(vm));
    }
    let signed = sign(&mut visor, RECEIPT, nonce)?.ok_or(Failure::NoVm(vm))?;
    let receipt = Receipt { format: "visor-receipt-1", signed };
    if let Some(path) = out {
        let file = fs::OpenOptions::new().write(true).create_new(true).open(path);
        let written = file.and_then(|mut file| {
            std::io::Write::write_all(&mut file, receipt.to_string().as_bytes())
        });
        written.map_err(|why| Failure::File(path.into(), why))?;
    }
    Ok(receipt)
}

/// The audit log's head, signed.
///
/// # Errors
/// [`Failure::Protocol`].
pub(crate) fn audit_head<P: Port>(
    visor: &mut Visor<P>,
    nonce: &[u8; 32],
) -> Result<Signed, Failure> {
    let none = Failure::Protocol { index: INDEX_SIGN, value: 0 };
    sign(visor, AUDIT_HEAD, nonce)?.ok_or(none)
}

/// What the visor signs; `None` if there is nothing of the kind.
pub(crate) fn sign<P: Port>(
    visor: &mut Visor<P>,
    kind: u32,
    nonce: &[u8; 32],
) -> Result<Option<Signed>, Failure> {
    for (word, index) in nonce.as_chunks().0.iter().zip(INDEX_NONCE..) {
        visor.put(index, u32::from_le_bytes(*word));
    }
    visor.put(INDEX_SIGN, kind);
    let length = visor.value(INDEX_SIGN);
    if length > LONGEST || !length.is_multiple_of(4) {
        return Err(Failure::Protocol { index: INDEX_SIGN, value: length });
    }
    if length == 0 {
        return Ok(None);
    }
    let words = INDEX_STATEMENT..INDEX_STATEMENT + length / 4;
    let body: Vec<u8> = words.flat_map(|index| visor.value(index).to_le_bytes()).collect();
    let signature: [u8; 64] = visor.bytes(INDEX_SIGNATURE);
    Ok(Some(Signed { body: Bytes(body), signature: Bytes(signature.to_vec()) }))
}

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.body, self.signature)
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only maps with keys that are no strings, and writers, can fail.
        writeln!(f, "{}", serde_json::to_string(self).unwrap_or_default())
    }
}
