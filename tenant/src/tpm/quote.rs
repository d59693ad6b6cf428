//! What a TPM signs: TPMS_ATTEST with TPMS_QUOTE_INFO (TPM 2.0 Library, Part 2, 10.12).

use crate::bank::Bank;
use crate::reader::Reader;

/// TPM_GENERATED_VALUE: a restricted key signs nothing else that begins so.
pub const GENERATED: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_QUOTE.
pub const QUOTE: u16 = 0x8018;

/// What a signature covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attest {
    /// [`GENERATED`], or it is none of a TPM's.
    pub magic: u32,
    /// [`QUOTE`], or another structure.
    pub kind: u16,
    /// What was given along: the nonce.
    pub extra: Vec<u8>,
    /// How often the TPM was reset.
    pub resets: u32,
    /// How often it was resumed since.
    pub restarts: u32,
    /// What is quoted, if it is a quote.
    pub quote: Option<Quoted>,
}

/// What a quote says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// The PCRs, ascending, of each bank in order.
    pub selection: Vec<(u16, Vec<u8>)>,
    /// The hash of all values, one behind the other.
    pub digest: Vec<u8>,
}

impl Attest {
    /// Reads a TPMS_ATTEST. Nothing of it is believed before its signature is checked.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(bytes);
        let (magic, kind) = (r.be32()?, r.be16()?);
        let _signer = r.sized()?;
        let extra = r.sized()?.to_vec();
        let _clock = r.be64()?;
        let (resets, restarts) = (r.be32()?, r.be32()?);
        let _is_safe = r.byte()?;
        let _firmware = r.be64()?;
        let is_quote = (magic, kind) == (GENERATED, QUOTE);
        let quote = if is_quote { Some(quoted(&mut r)?) } else { None };
        let is_whole = quote.is_none() || r.is_done();
        is_whole.then_some(Self { magic, kind, extra, resets, restarts, quote })
    }
}

fn quoted(r: &mut Reader<'_>) -> Option<Quoted> {
    let banks = r.be32()?;
    let mut selection = Vec::new();
    for _ in 0..banks {
        let bank = r.be16()?;
        let length = r.byte()?;
        let bits = r.take(usize::from(length))?;
        let is_selected = |pcr: &u8| {
            bits.get(usize::from(pcr / 8)).is_some_and(|byte| byte >> (pcr % 8) & 1 == 1)
        };
        selection.push((bank, (0..=u8::MAX).filter(is_selected).collect()));
    }
    Some(Quoted { selection, digest: r.sized()?.to_vec() })
}

/// A signature: TPMT_SIGNATURE (Part 2, 11.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The hash of what is signed.
    pub hash: Bank,
    /// Its numbers.
    pub kind: Kind,
}

/// A signature's numbers, big-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PKCS #1, version 1.5.
    Rsassa(Vec<u8>),
    /// PKCS #1, probabilistic (PSS).
    Rsapss(Vec<u8>),
    /// ECDSA: r and s.
    Ecdsa(Vec<u8>, Vec<u8>),
}

/// Why bytes are no signature that can be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSignature {
    /// They are no TPMT_SIGNATURE.
    Malformed,
    /// They are, of an algorithm that this program does not know.
    Unsupported(u16),
}

impl Signature {
    /// Reads a TPMT_SIGNATURE.
    ///
    /// # Errors
    /// [`NoSignature`], also where bytes are left over.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoSignature> {
        let mut r = Reader(bytes);
        let missing = NoSignature::Malformed;
        let scheme = r.be16().ok_or(missing)?;
        let hash = r.be16().ok_or(missing)?;
        let hash = Bank::of(hash).ok_or(NoSignature::Unsupported(hash))?;
        let mut number = || r.sized().map(<[u8]>::to_vec).ok_or(missing);
        let kind = match scheme {
            0x0014 => Kind::Rsassa(number()?),
            0x0016 => Kind::Rsapss(number()?),
            0x0018 => Kind::Ecdsa(number()?, number()?),
            other => return Err(NoSignature::Unsupported(other)),
        };
        if r.is_done() { Ok(Self { hash, kind }) } else { Err(missing) }
    }
}
