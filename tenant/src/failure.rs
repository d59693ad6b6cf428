//! What can go wrong, with the codes that scripts rely on.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::policy::NoPolicy;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done; trusted.
    Trusted,
    /// Not trusted.
    NotTrusted,
    /// Words that make no command, or a policy that is none.
    Usage,
    /// The policy waives what does not hold.
    Insecure,
    /// Something that this program does not know.
    Unsupported,
    /// A file that is not there, is there already, or is of another kind.
    WrongState,
    /// A fault of this program's.
    Bug,
}

impl Exit {
    /// The process's exit code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Trusted => 0,
            Self::NotTrusted => 1,
            Self::Usage => 2,
            Self::Insecure => 3,
            Self::Unsupported => 4,
            Self::WrongState => 5,
            Self::Bug => 6,
        }
    }
}

/// Why a command was not done.
#[derive(Debug)]
pub enum Failure {
    /// A file cannot be read or written.
    File(PathBuf, io::Error),
    /// A file is not what it should be.
    Document(PathBuf, evidence::Error),
    /// A file of the other side's is not what it should be.
    Evidence(PathBuf, evidence::Error),
    /// A file's quote has no nonce, or another one than the file says.
    Nonce(PathBuf),
    /// A file is no policy.
    Policy(PathBuf, NoPolicy),
    /// A file has no certificates.
    Certificates(PathBuf),
    /// A file is no revocation list.
    RevocationList(PathBuf),
    /// A key cannot be read, or is of an algorithm that is not known.
    Key(&'static str, crate::tpm::public::NoKey),
    /// No credential can be made for this endorsement key.
    Credential,
    /// The endorsement key is not believed.
    Endorsement(crate::tpm::certificate::Broken),
    /// The endorsement key, or the attestation key, has another name.
    OtherKey(&'static str),
    /// The attestation key signs more than what its TPM says, or can leave it.
    Unrestricted,
    /// The TPM did not give back the secret.
    NotActivated,
    /// The evidence does not hold: these claims.
    NotTrusted(Vec<&'static str>),
    /// The evidence holds only because the policy waives something.
    Insecure(Vec<&'static str>),
    /// The receipt does not hold.
    Receipt(&'static str),
    /// A ticket cannot be made, or sealed.
    Ticket(PathBuf, String),
    /// A disk is not what it should be, or cannot be made.
    Image(image::Error),
    /// A test of a policy came out differently.
    Cases(Vec<String>),
    /// The system has no random numbers.
    Random,
    /// The answer could not be written.
    Output(io::Error),
    /// A fault of this program's.
    Bug(String),
}

impl From<measure::Error> for Failure {
    fn from(why: measure::Error) -> Self {
        match why {
            measure::Error::File(path, why) => Self::File(path, why),
            measure::Error::Kernel(path, why) => Self::Ticket(path, why.to_string()),
            measure::Error::Ticket(path, why) => Self::Ticket(path, why),
            measure::Error::Disk(_, why) => Self::Image(why),
        }
    }
}

impl From<image::Error> for Failure {
    fn from(why: image::Error) -> Self {
        Self::Image(why)
    }
}

impl Failure {
    /// The code in JSON.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::File(..) => "file",
            Self::Document(..) => "document",
            Self::Evidence(..) => "evidence",
            Self::Nonce(_) => "nonce",
            Self::Policy(..) => "policy",
            Self::Certificates(_) => "certificates",
            Self::RevocationList(_) => "revocation-list",
            Self::Key(..) => "key",
            Self::Credential => "credential",
            Self::Endorsement(_) => "endorsement",
            Self::OtherKey(_) => "other-key",
            Self::Unrestricted => "unrestricted",
            Self::NotActivated => "not-activated",
            Self::NotTrusted(_) => "not-trusted",
            Self::Insecure(_) => "insecure",
            Self::Receipt(_) => "receipt",
            Self::Ticket(..) => "ticket",
            Self::Image(why) => why.code(),
            Self::Cases(_) => "cases",
            Self::Random => "random",
            Self::Output(_) => "output",
            Self::Bug(_) => "bug",
        }
    }

    /// How the program ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Document(_, why) | Self::Evidence(_, why) if why.is_version() => {
                Exit::Unsupported
            }
            Self::Evidence(_, evidence::Error::File(_)) => Exit::WrongState,
            Self::Policy(_, NoPolicy::Format(_))
            | Self::Credential
            | Self::Key(_, crate::tpm::public::NoKey::Unsupported(_)) => Exit::Unsupported,
            Self::Policy(..)
            | Self::Certificates(_)
            | Self::RevocationList(_)
            | Self::Ticket(..) => Exit::Usage,
            Self::Insecure(_) => Exit::Insecure,
            Self::File(..) | Self::Document(..) | Self::Random | Self::Output(_) => {
                Exit::WrongState
            }
            Self::Image(why) => image_exit(why),
            Self::Bug(_) => Exit::Bug,
            Self::Evidence(..)
            | Self::Nonce(_)
            | Self::Key(..)
            | Self::Endorsement(_)
            | Self::OtherKey(_)
            | Self::Unrestricted
            | Self::NotActivated
            | Self::NotTrusted(_)
            | Self::Receipt(_)
            | Self::Cases(_) => Exit::NotTrusted,
        }
    }
}

fn image_exit(why: &image::Error) -> Exit {
    match why {
        image::Error::Header(_, image::Refusal::Version(_)) => Exit::Unsupported,
        image::Error::Key(_, why) if why.is_version() => Exit::Unsupported,
        image::Error::Header(..)
        | image::Error::Engine(..)
        | image::Error::Shape(_)
        | image::Error::Forged(..)
        | image::Error::Differs(_) => Exit::NotTrusted,
        image::Error::Plain(..) => Exit::Unsupported,
        image::Error::KeyLength(_) | image::Error::Size(_) => Exit::Usage,
        image::Error::File(..)
        | image::Error::Busy(_)
        | image::Error::Leftover(_)
        | image::Error::Key(..)
        | image::Error::Random => Exit::WrongState,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Document(path, why) | Self::Evidence(path, why) => {
                write!(f, "{}: {why}", path.display())
            }
            Self::Nonce(path) => write!(f, "{}: the quote is for another nonce", path.display()),
            Self::Policy(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Certificates(path) => write!(f, "{}: no certificates in PEM", path.display()),
            Self::RevocationList(path) => {
                write!(f, "{}: no revocation list in DER or PEM", path.display())
            }
            Self::Key(which, why) => write!(f, "the {which} key cannot be used: {why:?}"),
            Self::Credential => f.write_str(
                "no credential can be made for this endorsement key: only the TCG's templates for RSA, P-256 and P-384 are known",
            ),
            Self::Endorsement(why) => write!(f, "the endorsement key is not believed: {why}"),
            Self::OtherKey(which) => write!(f, "the {which} key has another name"),
            Self::Unrestricted => f.write_str(
                "the attestation key is not restricted to what its TPM says, or can leave it",
            ),
            Self::NotActivated => {
                f.write_str("the attestation key is not in the TPM with this endorsement key")
            }
            Self::NotTrusted(claims) => write!(f, "not trusted: {}", claims.join(", ")),
            Self::Insecure(claims) => {
                write!(f, "insecure, as the policy waives: {} (say --insecure to go on)", claims.join(", "))
            }
            Self::Receipt(why) => write!(f, "the receipt does not hold: {why}"),
            Self::Ticket(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Image(why) => why.fmt(f),
            Self::Cases(cases) => write!(f, "came out differently: {}", cases.join("; ")),
            Self::Random => f.write_str("the system gives no random numbers"),
            Self::Output(why) => write!(f, "cannot write the answer: {why}"),
            Self::Bug(why) => write!(f, "this is a bug of tenant's: {why}"),
        }
    }
}
