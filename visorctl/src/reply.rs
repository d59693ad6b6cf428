//! Answers, for people and as JSON. `schema.json` describes the latter.

use std::fmt;

use clap::error::ContextKind;
use serde::Serialize;

use crate::attest::Collected;
use crate::audit::Audit;
use crate::check::Checked;
use crate::failure::{Exit, Failure};
use crate::make::Made;
use crate::receipt::Receipt;
use crate::status::Status;
use crate::submit::Submitted;
use crate::vms::{Destroyed, Vms};

/// Grows when an answer loses a field or a field changes its meaning; new fields may come at any time.
const SCHEMA: u32 = 1;

/// What a command found or did.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    Status(Status),
    Vms(Vms),
    Submitted(Submitted),
    Audit(Audit),
    Destroyed(Destroyed),
    Receipt(Receipt),
    Checked(Checked),
    Made(Made),
    Collected(Collected),
    Completions { script: String },
    Man {},
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(answer) => answer.fmt(f),
            Self::Vms(answer) => answer.fmt(f),
            Self::Submitted(answer) => answer.fmt(f),
            Self::Audit(answer) => answer.fmt(f),
            Self::Destroyed(answer) => answer.fmt(f),
            Self::Receipt(answer) => answer.fmt(f),
            Self::Checked(answer) => answer.fmt(f),
            Self::Made(answer) => answer.fmt(f),
            Self::Collected(answer) => answer.fmt(f),
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
    /// The number of the visor's refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<u32>,
}

impl Reply<'_> {
    fn json(&self) -> String {
        // Only maps with keys that are no strings, and writers, can fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The JSON of an answer.
pub(crate) fn answer(command: &str, answer: &Answer, exit: Exit) -> String {
    let exit = exit.code();
    Reply { schema: SCHEMA, command: Some(command), exit, answer: Some(answer), error: None }.json()
}

/// The JSON of a failure.
pub(crate) fn failure(command: &str, failure: &Failure) -> String {
    let (code, refusal) = (failure.code(), failure.refusal());
    let error = Error { code, message: failure.to_string(), refusal };
    let exit = failure.exit().code();
    Reply { schema: SCHEMA, command: Some(command), exit, answer: None, error: Some(error) }.json()
}

/// The JSON of words that make no command.
pub(crate) fn usage(error: &clap::Error) -> String {
    let word = error.get(ContextKind::InvalidArg).or(error.get(ContextKind::InvalidSubcommand));
    let message = match word {
        Some(word) => format!("{}: {word}", error.kind()),
        None => error.kind().to_string(),
    };
    let error = Error { code: "usage", message, refusal: None };
    let exit = Exit::Usage.code();
    Reply { schema: SCHEMA, command: None, exit, answer: None, error: Some(error) }.json()
}
