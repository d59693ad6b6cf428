//! Evidence in either of its forms: JSON, and an Entity Attestation Token.

use std::path::Path;

use evidence::eat::{Token, is_token};
use evidence::{Bytes, Error, Evidence, Readers};
use serde::Serialize;

use crate::failure::Failure;
use crate::tpm::quote::Attest;

/// What `convert` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Converted {
    /// What was written.
    pub form: Form,
}

/// A form of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A JSON file.
    Json,
    /// An Entity Attestation Token.
    Eat,
}

/// The evidence in `bytes`, and the form that it is in.
///
/// # Errors
/// [`Failure::Evidence`], and [`Failure::Nonce`] where the token says it is for another nonce than its quote.
pub fn parse(bytes: &[u8], path: &Path) -> Result<(Evidence, Form), Failure> {
    let wrong = |why| Failure::Evidence(path.into(), why);
    if !is_token(bytes) {
        return Ok((evidence::parse(bytes).map_err(wrong)?, Form::Json));
    }
    let Token { nonce, evidence } = Token::decode(bytes).map_err(|why| wrong(Error::Token(why)))?;
    // Others may believe the claim without a look at the quote.
    if quoted(&evidence) != Some(nonce) {
        return Err(Failure::Nonce(path.into()));
    }
    Ok((evidence, Form::Eat))
}

/// The evidence in a file, in either form.
///
/// # Errors
/// As [`parse`].
pub fn read(path: &Path) -> Result<Evidence, Failure> {
    let bytes = evidence::read_bytes(path).map_err(|why| Failure::Evidence(path.into(), why))?;
    Ok(parse(&bytes, path)?.0)
}

/// Writes the evidence in `path` to `out`, which must not exist yet, in the other form. Nothing is checked.
///
/// # Errors
/// As [`parse`], and [`Failure::File`].
pub fn convert(path: &Path, out: &Path) -> Result<Converted, Failure> {
    let wrong = |why| Failure::Evidence(path.into(), why);
    let bytes = evidence::read_bytes(path).map_err(wrong)?;
    let (bytes, form) = match parse(&bytes, path)? {
        (evidence, Form::Eat) => {
            (evidence::text(&evidence).map_err(wrong)?.into_bytes(), Form::Json)
        }
        (evidence, Form::Json) => {
            let nonce = quoted(&evidence).ok_or_else(|| Failure::Nonce(path.into()))?;
            let token = Token { nonce, evidence };
            (token.encode().map_err(|why| wrong(Error::Token(why)))?, Form::Eat)
        }
    };
    evidence::create(out, &bytes, Readers::All).map_err(|why| Failure::File(out.into(), why))?;
    Ok(Converted { form })
}

/// The nonce in the quote.
fn quoted(evidence: &Evidence) -> Option<Bytes> {
    Attest::parse(&evidence.quote.attest.0).map(|attest| Bytes(attest.extra))
}
