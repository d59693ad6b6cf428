//! [`Evidence`] as an Entity Attestation Token (RFC 9711): a CBOR Web Token's claims without protection of
//! their own (UCCS, RFC 9781), as what they say is protected by the quote in them.
//!
//! ```text
//! 601({                            / UCCS /
//!   10: h'…',                      / eat_nonce: what the quote has as extraData /
//!   265: "urn:uuid:…",             / eat_profile: PROFILE /
//!   -65537: [h'…', h'…'],          / quote: TPMS_ATTEST, TPMT_SIGNATURE /
//!   -65538: {"sha256": {0: h'…'}}, / values of the quoted PCRs /
//!   -65539: h'…',                  / attestation key: TPMT_PUBLIC /
//!   -65540: h'…',                  / firmware's event log, or null /
//!   -65541: [h'…', h'…', […]]      / visor: log, keys, and [body, signature] or null /
//! })
//! ```
//!
//! The encoding is the deterministic one (RFC 8949, 4.2.1), and no other is read: no two sequences of
//! bytes are the same evidence. Claim keys below -65536 are for private use (RFC 8392, 9.1.1).

use std::collections::BTreeMap;

use minicbor::data::Tag;
use minicbor::{Decoder, Encoder};

use crate::{Bytes, Document, Evidence, Log, Quote, Statement, Visor};

/// The profile that the claims are of (RFC 9711, 4.3.2 and 6).
pub const PROFILE: &str = "urn:uuid:0e2bfd40-fc32-4ed6-98d1-e6d51c0b8763";

/// How many bytes a nonce has (RFC 9711, 4.1).
const NONCE: std::ops::RangeInclusive<usize> = 8..=64;

/// UCCS (RFC 9781, 6).
const TAG: u64 = 601;
/// With what such a token begins.
const BEGIN: [u8; 3] = [0xd9, 0x02, 0x59];

const KEY_NONCE: i32 = 10;
const KEY_PROFILE: i32 = 265;
const KEY_QUOTE: i32 = -65_537;
const KEY_PCRS: i32 = -65_538;
const KEY_AK: i32 = -65_539;
const KEY_FIRMWARE: i32 = -65_540;
const KEY_VISOR: i32 = -65_541;

/// A token: evidence, and the nonce that it says it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What a quote in the evidence has as extraData; nothing here compares the two.
    pub nonce: Bytes,
    /// The evidence.
    pub evidence: Evidence,
}

/// Why bytes are no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoToken {
    /// They have another form than the one that is documented here.
    Form,
    /// They are claims of another profile.
    Profile,
    /// The same token has another encoding, which is the deterministic one.
    Encoding,
    /// There are less than 8 or more than 64 bytes of nonce.
    Nonce,
}

impl std::fmt::Display for NoToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Form => "no evidence as an EAT",
            Self::Profile => "an EAT of another profile",
            Self::Encoding => "an EAT that is not encoded deterministically",
            Self::Nonce => "an EAT's nonce has 8 to 64 bytes",
        })
    }
}

impl From<minicbor::decode::Error> for NoToken {
    fn from(_: minicbor::decode::Error) -> Self {
        Self::Form
    }
}

type Encoded = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

/// Whether `bytes` begin as a token does, and as no JSON does.
#[must_use]
pub fn is_token(bytes: &[u8]) -> bool {
    bytes.starts_with(&BEGIN)
}

impl Token {
    /// The token's bytes.
    ///
    /// # Errors
    /// [`NoToken::Nonce`].
    pub fn encode(&self) -> Result<Vec<u8>, NoToken> {
        if !NONCE.contains(&self.nonce.0.len()) {
            return Err(NoToken::Nonce);
        }
        let mut encoder = Encoder::new(Vec::new());
        self.put(&mut encoder).map_err(|_| NoToken::Form)?;
        Ok(encoder.into_writer())
    }

    /// Reads a token.
    ///
    /// # Errors
    /// [`NoToken`].
    pub fn decode(bytes: &[u8]) -> Result<Self, NoToken> {
        let mut decoder = Decoder::new(bytes);
        let token = take(&mut decoder)?;
        // Lengths and numbers may be written in more than one way, maps in any order, and with more after the end.
        if token.encode()? == bytes { Ok(token) } else { Err(NoToken::Encoding) }
    }

    fn put(&self, e: &mut Encoder<Vec<u8>>) -> Encoded {
        let Evidence { quote, pcrs, ak, firmware, visor, format: _ } = &self.evidence;
        let _ = e.tag(Tag::new(TAG))?.map(7)?;
        put_bytes(e.i32(KEY_NONCE)?, &self.nonce)?;
        let _ = e.i32(KEY_PROFILE)?.str(PROFILE)?;
        put_pair(e.i32(KEY_QUOTE)?, &quote.attest, &quote.signature)?;
        put_pcrs(e.i32(KEY_PCRS)?, pcrs)?;
        put_bytes(e.i32(KEY_AK)?, ak)?;
        let e = e.i32(KEY_FIRMWARE)?;
        match firmware {
            Some(firmware) => put_bytes(e, &firmware.log)?,
            None => put_null(e)?,
        }
        put_visor(e.i32(KEY_VISOR)?, visor)
    }
}

fn put_bytes(e: &mut Encoder<Vec<u8>>, bytes: &Bytes) -> Encoded {
    e.bytes(&bytes.0).map(drop)
}

fn put_null(e: &mut Encoder<Vec<u8>>) -> Encoded {
    e.null().map(drop)
}

fn put_pair(e: &mut Encoder<Vec<u8>>, one: &Bytes, other: &Bytes) -> Encoded {
    put_bytes(e.array(2)?, one)?;
    put_bytes(e, other)
}

fn put_visor(e: &mut Encoder<Vec<u8>>, visor: &Visor) -> Encoded {
    put_bytes(e.array(3)?, &visor.log)?;
    put_bytes(e, &visor.key)?;
    match &visor.alive {
        Some(alive) => put_pair(e, &alive.body, &alive.signature),
        None => put_null(e),
    }
}

type Pcrs = BTreeMap<String, BTreeMap<u8, Bytes>>;

fn put_pcrs(e: &mut Encoder<Vec<u8>>, pcrs: &Pcrs) -> Encoded {
    // Shorter keys come first, as their length is in front.
    let mut banks: Vec<_> = pcrs.iter().collect();
    banks.sort_by_key(|(name, _)| (name.len(), name.as_bytes()));
    let _ = e.map(count(banks.len()))?;
    for (name, values) in banks {
        let _ = e.str(name)?.map(count(values.len()))?;
        for (pcr, value) in values {
            let _ = e.u8(*pcr)?.bytes(&value.0)?;
        }
    }
    Ok(())
}

/// No computer has more.
fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn take(d: &mut Decoder<'_>) -> Result<Token, NoToken> {
    let is_token = d.tag()? == Tag::new(TAG) && d.map()? == Some(7);
    if !is_token {
        return Err(NoToken::Form);
    }
    let nonce = under(d, KEY_NONCE, bytes)?;
    under(d, KEY_PROFILE, |d| if d.str()? == PROFILE { Ok(()) } else { Err(NoToken::Profile) })?;
    let [attest, signature] = under(d, KEY_QUOTE, array)?;
    let pcrs = under(d, KEY_PCRS, take_pcrs)?;
    let ak = under(d, KEY_AK, bytes)?;
    let firmware = under(d, KEY_FIRMWARE, |d| optional(d, bytes))?;
    let visor = under(d, KEY_VISOR, |d| {
        length(d, 3)?;
        Ok(Visor { log: bytes(d)?, key: bytes(d)?, alive: optional(d, take_statement)? })
    })?;
    let evidence = Evidence {
        format: Evidence::FORMAT.into(),
        quote: Quote { attest, signature },
        pcrs,
        ak,
        firmware: firmware.map(|log| Log { log }),
        visor,
    };
    Ok(Token { nonce, evidence })
}

/// What `read` reads behind a claim's key.
fn under<T>(
    d: &mut Decoder<'_>,
    key: i32,
    read: impl FnOnce(&mut Decoder<'_>) -> Result<T, NoToken>,
) -> Result<T, NoToken> {
    if d.i32()? == key { read(d) } else { Err(NoToken::Form) }
}

fn length(d: &mut Decoder<'_>, length: u64) -> Result<(), NoToken> {
    if d.array()? == Some(length) { Ok(()) } else { Err(NoToken::Form) }
}

fn bytes(d: &mut Decoder<'_>) -> Result<Bytes, NoToken> {
    Ok(Bytes::from(d.bytes()?))
}

fn array(d: &mut Decoder<'_>) -> Result<[Bytes; 2], NoToken> {
    length(d, 2)?;
    Ok([bytes(d)?, bytes(d)?])
}

fn take_statement(d: &mut Decoder<'_>) -> Result<Statement, NoToken> {
    array(d).map(|[body, signature]| Statement { body, signature })
}

fn optional<T>(
    d: &mut Decoder<'_>,
    read: impl FnOnce(&mut Decoder<'_>) -> Result<T, NoToken>,
) -> Result<Option<T>, NoToken> {
    if d.datatype()? == minicbor::data::Type::Null {
        d.null()?;
        return Ok(None);
    }
    read(d).map(Some)
}

fn take_pcrs(d: &mut Decoder<'_>) -> Result<Pcrs, NoToken> {
    let mut pcrs = Pcrs::new();
    for _ in 0..d.map()?.ok_or(NoToken::Form)? {
        let name = d.str()?.to_owned();
        let mut values = BTreeMap::new();
        for _ in 0..d.map()?.ok_or(NoToken::Form)? {
            // What comes twice is missing in the encoding that this is compared with.
            let _ = values.insert(d.u8()?, bytes(d)?);
        }
        let _ = pcrs.insert(name, values);
    }
    Ok(pcrs)
}
