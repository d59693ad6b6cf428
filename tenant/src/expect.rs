//! `expect` and `diff`.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use evidence::{Bytes, Evidence};
use serde::Serialize;

use crate::bank::Bank;
use crate::eat;
use crate::failure::Failure;
use crate::tpm::log::{Event, Log};
use crate::verify::tell;

/// What `expect` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// The SHA-256 of the build: the event that GRUB's `multiboot2` adds to PCR 9, and what a policy
    /// has in `builds`.
    pub build: Bytes,
    /// The hash of the command line: with `sha256:` before it, what a policy has in place of a long one.
    pub command_line_sha256: Bytes,
    /// The command line as the visor's log has it.
    pub command_line: String,
    /// What tboot adds to PCR 18 for its first module, in SHA-256's bank, if GRUB 2 has loaded it; to PCR 17 if it maps
    /// details and authorities (tboot's `common/policy.c`, `hash_module`).
    pub tboot: Bytes,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "builds = [\"{}\"]", self.build)?;
        writeln!(f, "command-lines = [{:?}]", self.command_line)?;
        writeln!(f, "# tboot's event: {}", self.tboot)
    }
}

/// Computes what a build and its command line will measure.
///
/// # Errors
/// [`Failure::File`].
pub fn expect(visor: &Path, command_line: &str) -> Result<Expected, Failure> {
    let build = fs::read(visor).map_err(|why| Failure::File(visor.into(), why))?;
    let build = Bank::Sha256.hash(&[&build]);
    let words = Bank::Sha256.hash(&[command_line.as_bytes()]);
    Ok(Expected {
        tboot: Bytes(Bank::Sha256.hash(&[&words, &build])),
        build: Bytes(build),
        command_line_sha256: Bytes(words),
        command_line: command_line.as_bytes().escape_ascii().to_string(),
    })
}

/// What `diff` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// PCRs with other values. PCR 19 always is one: it has a fresh key in it.
    pub pcrs: Vec<u8>,
    /// Events, by PCR, that only one of the two has.
    pub events: Vec<Difference>,
}

/// An event that only one of two boots has.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The PCR that it extends.
    pub pcr: u32,
    /// Its number among the events of its PCR.
    pub event: usize,
    /// Which of the two has it.
    pub side: Side,
    /// Its digest.
    pub digest: Bytes,
    /// What it says of itself.
    pub data: String,
}

/// One of two boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The first.
    Before,
    /// The second.
    After,
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pcrs: Vec<_> = self.pcrs.iter().map(ToString::to_string).collect();
        let pcrs = if pcrs.is_empty() { "none".to_owned() } else { pcrs.join(", ") };
        writeln!(f, "PCRs that differ: {pcrs}")?;
        self.events.iter().try_for_each(|event| {
            let sign = match event.side {
                Side::Before => '-',
                Side::After => '+',
            };
            writeln!(
                f,
                "{sign} PCR {} event {} {} {}",
                event.pcr, event.event, event.digest, event.data
            )
        })
    }
}

/// Compares the boots behind two pieces of evidence. Nothing is checked.
///
/// # Errors
/// [`Failure::Evidence`].
pub fn diff(before: &Path, after: &Path) -> Result<Differences, Failure> {
    let (before, after) = (eat::read(before)?, eat::read(after)?);
    let values = |evidence: &Evidence, pcr: u8| {
        evidence.pcrs.get(Bank::Sha256.name()).and_then(|bank| bank.get(&pcr)).cloned()
    };
    let pcrs = (0..24).filter(|pcr| values(&before, *pcr) != values(&after, *pcr)).collect();
    let (before, after) = (events(&before), events(&after));
    let only = |side, these: &[Difference], others: &[Difference]| -> Vec<Difference> {
        let key = |event: &Difference| (event.pcr, event.digest.clone());
        let others: BTreeSet<_> = others.iter().map(key).collect();
        let rest = these.iter().filter(|event| !others.contains(&key(event)));
        rest.map(|event| Difference {
            side,
            data: event.data.clone(),
            digest: event.digest.clone(),
            ..*event
        })
        .collect()
    };
    let mut events = only(Side::Before, &before, &after);
    events.extend(only(Side::After, &after, &before));
    events.sort_by_key(|event| (event.pcr, event.event));
    Ok(Differences { pcrs, events })
}

fn events(evidence: &Evidence) -> Vec<Difference> {
    let firmware = evidence.firmware.as_ref().map(|log| log.log.0.as_slice());
    let logs = firmware.into_iter().chain([evidence.visor.log.0.as_slice()]);
    let logs: Vec<Log> = logs.filter_map(|log| Log::parse(log).ok()).collect();
    let of = |(event, entry): (usize, &Event)| Difference {
        pcr: entry.pcr,
        event,
        side: Side::Before,
        digest: Bytes(entry.digests.get(&Bank::Sha256).cloned().unwrap_or_default()),
        data: tell(&entry.data),
    };
    let all =
        (0..24).flat_map(|pcr| logs.iter().flat_map(move |log| log.extending(pcr).enumerate()));
    all.map(of).collect()
}
