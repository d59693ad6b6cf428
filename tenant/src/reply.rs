//! Answers, for people and as JSON. `schema.json` describes the latter.

use std::fmt;

use clap::error::ContextKind;
use serde::Serialize;

use crate::check::{Challenged, Tested, Verified};
use crate::disks::{Disk, DiskKey};
use crate::eat::{Converted, Form};
use crate::enroll::Enrolled;
use crate::expect::{Differences, Expected};
use crate::failure::{Exit, Failure};
use crate::made::Measured;
use crate::receipt::Receipted;
use crate::seal::{Key, Sealed};

/// Grows when an answer loses a field or a field changes its meaning; new fields may come at any time.
const SCHEMA: u32 = 1;

/// What a command found or did.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// `enroll`.
    Enrolled(Enrolled),
    /// `challenge`.
    Challenged(Challenged),
    /// `verify` and `report`.
    Verified(Box<Verified>),
    /// `key`.
    Key(Key),
    /// `measure`.
    Measured(Measured),
    /// `seal`.
    Sealed(Sealed),
    /// `receipt`.
    Receipt(Receipted),
    /// `image key`.
    DiskKey(DiskKey),
    /// `image`.
    Disk(Disk),
    /// `policy test`.
    Tested(Tested),
    /// `expect`.
    Expected(Expected),
    /// `convert`.
    Converted(Converted),
    /// `diff`.
    Differences(Differences),
    /// `completions`.
    Completions {
        /// The script.
        script: String,
    },
    /// `man`.
    Man {},
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enrolled(answer) if answer.done => {
                writeln!(f, "enrolled: attestation key {}", answer.ak)
            }
            Self::Enrolled(answer) => {
                writeln!(f, "the endorsement key is believed; attestation key {}", answer.ak)?;
                writeln!(
                    f,
                    "next: `visorctl attest activate` on the machine, `tenant enroll finish`"
                )
            }
            Self::Challenged(answer) => {
                let pcrs: Vec<_> = answer.pcrs.iter().map(ToString::to_string).collect();
                writeln!(f, "nonce {}, PCRs {}", answer.nonce, pcrs.join(","))
            }
            Self::Verified(answer) => answer.fmt(f),
            Self::Key(answer) => writeln!(f, "tenant {}", answer.tenant),
            Self::Measured(answer) => answer.fmt(f),
            Self::Sealed(answer) => answer.fmt(f),
            Self::Receipt(answer) => answer.fmt(f),
            Self::DiskKey(DiskKey { disk_key }) => writeln!(f, "a key for disks: {disk_key}"),
            Self::Disk(answer) => answer.fmt(f),
            Self::Tested(answer) => {
                writeln!(f, "the policy is one; {} cases came out as they should", answer.cases)
            }
            Self::Expected(answer) => answer.fmt(f),
            Self::Converted(Converted { form: Form::Json }) => writeln!(f, "written: JSON"),
            Self::Converted(Converted { form: Form::Eat }) => writeln!(f, "written: an EAT"),
            Self::Differences(answer) => answer.fmt(f),
            Self::Completions { script } => f.write_str(script),
            Self::Man {} => Ok(()),
        }
    }
}

#[derive(Serialize)]
struct Reply<'a> {
    schema: u32,
    command: Option<&'a str>,
    exit: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'a Answer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error>,
}

#[derive(Serialize)]
struct Error {
    code: &'static str,
    message: String,
}

impl Reply<'_> {
    fn json(&self) -> String {
        // Only maps with keys that are no strings, and writers, can fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The JSON of an answer.
#[must_use]
pub fn answer(command: &str, answer: &Answer, exit: Exit) -> String {
    let exit = exit.code();
    Reply { schema: SCHEMA, command: Some(command), exit, answer: Some(answer), error: None }.json()
}

/// The JSON of a failure.
#[must_use]
pub fn failure(command: &str, failure: &Failure) -> String {
    let error = Error { code: failure.code(), message: failure.to_string() };
    let exit = failure.exit().code();
    Reply { schema: SCHEMA, command: Some(command), exit, answer: None, error: Some(error) }.json()
}

/// The JSON of words that make no command.
#[must_use]
pub fn usage(error: &clap::Error) -> String {
    let word = error.get(ContextKind::InvalidArg).or(error.get(ContextKind::InvalidSubcommand));
    let message = match word {
        Some(word) => format!("{}: {word}", error.kind()),
        None => error.kind().to_string(),
    };
    let error = Error { code: "usage", message };
    let exit = Exit::Usage.code();
    Reply { schema: SCHEMA, command: None, exit, answer: None, error: Some(error) }.json()
}
