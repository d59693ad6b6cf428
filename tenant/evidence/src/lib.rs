//! The files that go between a machine and a tenant who checks it: JSON, one object each, whose first
//! word is `format`.
//!
//! | file | made by | for |
//! |---|---|---|
//! | [`Identity`] | `visorctl attest identity` | `tenant enroll begin` |
//! | [`Activation`] | `tenant enroll begin` | `visorctl attest activate` |
//! | [`Activated`] | `visorctl attest activate` | `tenant enroll finish` |
//! | [`Challenge`] | `tenant challenge` | `visorctl attest quote`, and `tenant verify` |
//! | [`Evidence`] | `visorctl attest quote` | `tenant verify` |
//!
//! Evidence can also be an Entity Attestation Token: [`eat`].
//!
//! Nothing here is checked but the form. Keys that are not known are errors, as is a file of more than
//! [`LIMIT`] bytes.

mod bytes;
pub mod eat;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::bytes::{Bytes, NotHex};

/// No file is longer, in bytes.
pub const LIMIT: u64 = 16 << 20;

/// A file of one kind.
pub trait Document: Serialize + DeserializeOwned {
    /// What its key `format` says: the kind, `-`, and the version.
    const FORMAT: &'static str;
}

/// A machine's TPM, as its host shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// [`Document::FORMAT`].
    pub format: String,
    /// The endorsement key.
    pub ek: Endorsement,
    /// The attestation key's TPMT_PUBLIC.
    pub ak: Bytes,
}

impl Document for Identity {
    const FORMAT: &'static str = "visor-identity-1";
}

/// A TPM's endorsement key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endorsement {
    /// Its TPMT_PUBLIC.
    pub public: Bytes,
    /// Its certificate and those of the authorities between it and a root, as DER. The first is the
    /// key's; it may have none.
    pub certificates: Vec<Bytes>,
}

/// A secret that only one TPM can give back, and only if it holds one attestation key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    /// [`Document::FORMAT`].
    pub format: String,
    /// What `tpm2_activatecredential -i` reads.
    pub credential: Bytes,
}

impl Document for Activation {
    const FORMAT: &'static str = "visor-activation-1";
}

/// The answer to an [`Activation`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activated {
    /// [`Document::FORMAT`].
    pub format: String,
    /// The secret.
    pub secret: Bytes,
}

impl Document for Activated {
    const FORMAT: &'static str = "visor-activated-1";
}

/// What a tenant asks a machine to sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// [`Document::FORMAT`].
    pub format: String,
    /// 32 random bytes.
    pub nonce: Bytes,
    /// When it was made, in seconds since 1970.
    pub issued: u64,
    /// When it is worth nothing any more, in the same.
    pub expires: u64,
    /// The bank of PCRs, as tpm2-tools name it.
    pub bank: String,
    /// The PCRs, ascending.
    pub pcrs: Vec<u8>,
}

impl Document for Challenge {
    const FORMAT: &'static str = "visor-challenge-1";
}

/// What a machine says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// [`Document::FORMAT`].
    pub format: String,
    /// The TPM's statement.
    pub quote: Quote,
    /// The values of the quoted PCRs, by bank and number.
    pub pcrs: BTreeMap<String, BTreeMap<u8, Bytes>>,
    /// The attestation key's TPMT_PUBLIC.
    pub ak: Bytes,
    /// The firmware's event log, if the host has one.
    pub firmware: Option<Log>,
    /// What the visor says.
    pub visor: Visor,
}

impl Document for Evidence {
    const FORMAT: &'static str = "visor-evidence-1";
}

/// A quote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quote {
    /// The TPMS_ATTEST that is signed.
    pub attest: Bytes,
    /// The TPMT_SIGNATURE.
    pub signature: Bytes,
}

/// An event log in the format of the TCG's PC Client Platform Firmware Profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The whole log.
    pub log: Bytes,
}

/// What the visor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Visor {
    /// Its event log; that of a measured launch comes first.
    pub log: Bytes,
    /// Its two public keys, X25519 and Ed25519.
    pub key: Bytes,
    /// That it is alive, where it can be asked.
    pub alive: Option<Statement>,
}

/// A statement that the visor has signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// What it says.
    pub body: Bytes,
    /// The Ed25519 signature of the kind and the body.
    pub signature: Bytes,
}

/// A [`Statement`] in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// [`Document::FORMAT`].
    pub format: String,
    /// What it says.
    pub body: Bytes,
    /// The Ed25519 signature of the kind and the body.
    pub signature: Bytes,
}

impl Document for Receipt {
    const FORMAT: &'static str = "visor-receipt-1";
}

/// Why a file is not what it should be.
#[derive(Debug)]
pub enum Error {
    /// It cannot be read or written.
    File(io::Error),
    /// It has more than [`LIMIT`] bytes.
    TooLong,
    /// It is not of this kind, or has words that this kind has not.
    Form {
        /// The format that was asked for.
        expected: &'static str,
        /// What is wrong.
        why: serde_json::Error,
    },
    /// It begins as an Entity Attestation Token, and is none, or not one of evidence.
    Token(eat::NoToken),
    /// It is of another kind, or of another version.
    Format {
        /// The format that was asked for.
        expected: &'static str,
        /// What the file says it is.
        found: String,
    },
}

impl Error {
    /// Whether the file is of the right kind, but of a version that this program does not know.
    #[must_use]
    pub fn is_version(&self) -> bool {
        let kind = |format: &str| format.rsplit_once('-').map(|(kind, _)| kind.to_owned());
        match self {
            Self::Format { expected, found } => kind(expected) == kind(found),
            Self::Token(why) => *why == eat::NoToken::Profile,
            Self::File(_) | Self::TooLong | Self::Form { .. } => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(why) => why.fmt(f),
            Self::Token(why) => why.fmt(f),
            Self::TooLong => write!(f, "longer than {} MiB", LIMIT >> 20),
            Self::Form { expected, why } => {
                let text = short(&why.to_string());
                write!(f, "no {expected}: {text} (line {}, column {})", why.line(), why.column())
            }
            Self::Format { expected, found } => {
                write!(f, "no {expected}, but \"{}\"", short(found))
            }
        }
    }
}

impl std::error::Error for Error {}

/// The beginning of a text with words of the other side's, in letters that every terminal shows.
fn short(text: &str) -> String {
    text.escape_default().take(50).collect()
}

#[derive(Deserialize)]
struct Head {
    format: String,
}

/// The document that `text` is.
///
/// # Errors
/// [`Error::Form`] and [`Error::Format`].
pub fn parse<T: Document>(text: &[u8]) -> Result<T, Error> {
    let expected = T::FORMAT;
    let form = |why| Error::Form { expected, why };
    let head: Head = serde_json::from_slice(text).map_err(form)?;
    if head.format != expected {
        return Err(Error::Format { expected, found: head.format });
    }
    serde_json::from_slice(text).map_err(form)
}

/// The document in a file.
///
/// # Errors
/// All of [`Error`].
pub fn read<T: Document>(path: &Path) -> Result<T, Error> {
    parse(&read_bytes(path)?)
}

/// The bytes in a file.
///
/// # Errors
/// [`Error::File`] and [`Error::TooLong`].
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(Error::File)?;
    let bytes = file.take(LIMIT + 1).read_to_end(&mut text).map_err(Error::File)?;
    if u64::try_from(bytes).map_or(true, |bytes| bytes > LIMIT) {
        return Err(Error::TooLong);
    }
    Ok(text)
}

/// Who may read a file that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Its owner only.
    Owner,
    /// Whoever the process's mask lets.
    All,
}

/// Writes `document` to a file, which must not exist yet.
///
/// # Errors
/// [`Error::File`].
pub fn write<T: Document>(path: &Path, document: &T, readers: Readers) -> Result<(), Error> {
    create(path, text(document)?.as_bytes(), readers).map_err(Error::File)
}

/// `document` as a file has it.
///
/// # Errors
/// [`Error::Form`].
pub fn text<T: Document>(document: &T) -> Result<String, Error> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|why| Error::Form { expected: T::FORMAT, why })?;
    Ok(text + "\n")
}

/// Writes `content` to a file, which must not exist yet.
///
/// # Errors
/// The system's.
pub fn create(path: &Path, content: &[u8], readers: Readers) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let _ = options.write(true).create_new(true);
    #[cfg(unix)]
    if readers == Readers::Owner {
        let _ = std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    options.open(path)?.write_all(content)
}

#[cfg(test)]
mod tests {
    use super::{Activated, Bytes, Document, Error, parse};

    fn text(format: &str, rest: &str) -> Vec<u8> {
        format!(r#"{{"format":"{format}","secret":"00ff"{rest}}}"#).into_bytes()
    }

    #[test]
    fn a_document_is_read_as_it_was_written() {
        let read: Activated = parse(&text(Activated::FORMAT, "")).unwrap();
        assert_eq!(read.secret, Bytes(vec![0, 255]));
        let again = serde_json::to_vec(&read).unwrap();
        assert_eq!(parse::<Activated>(&again).unwrap(), read);
    }

    #[test]
    fn words_that_are_not_known_and_words_that_come_twice_are_errors() {
        for rest in [r#","more":1"#, r#","secret":"00""#, r#","format":"visor-activated-1""#] {
            let read = parse::<Activated>(&text(Activated::FORMAT, rest));
            assert!(matches!(read, Err(Error::Form { .. })), "{rest}");
        }
    }

    #[test]
    fn what_is_wrong_is_one_short_line_whatever_the_other_side_writes() {
        let long = "\u{1b}[2J\u{e9}".repeat(1000);
        let word = parse::<Activated>(&text(Activated::FORMAT, &format!(r#","{long}":1"#)));
        let raw = parse::<Activated>(&text(&long.replace('\u{1b}', "\\u001b"), ""));
        let key = format!(r#","{}":1"#, long.replace('\u{1b}', "\\u001b"));
        let key = parse::<Activated>(&text(Activated::FORMAT, &key));
        for wrong in [word, raw, key] {
            let line = wrong.unwrap_err().to_string();
            assert!(
                line.len() < 120 && line.bytes().all(|byte| matches!(byte, b' '..=b'~')),
                "{line}"
            );
        }
    }

    #[test]
    fn another_version_is_told_from_another_kind() {
        let newer = parse::<Activated>(&text("visor-activated-2", "")).unwrap_err();
        assert!(newer.is_version());
        let other = parse::<Activated>(&text("visor-evidence-1", "")).unwrap_err();
        assert!(!other.is_version());
        assert!(matches!(other, Error::Format { .. }));
    }
}
