//! What ran before the visor, and how it was launched.

use std::collections::BTreeSet;

use evidence::{Bytes, Evidence};

use super::Against;
use super::claim::{Check, Claims, State, compared};
use super::quote::Values;
use crate::bank::Bank;
use crate::policy::{Accepted, DYNAMIC, Launch, Policy, STATIC};
use crate::tpm::log::Log;
use crate::visor::{self, Measured};

/// The bank that is believed.
pub(super) const BANK: Bank = Bank::Sha256;

/// The logs, empty where they cannot be read.
#[derive(Debug)]
pub(super) struct Logs {
    pub(super) boot: Log,
    pub(super) visor: Option<Log>,
}

impl Logs {
    /// The log that must explain this PCR: the firmware's ends with its own PCRs.
    pub(super) fn of(&self, pcr: u8) -> Option<&Log> {
        if pcr < 17 { Some(&self.boot) } else { self.visor.as_ref() }
    }
}

/// Reads both logs.
pub(super) fn read_logs(claims: &mut Claims, evidence: &Evidence, against: Against<'_>) -> Logs {
    let boot = evidence.firmware.as_ref().map(|log| Log::parse(&log.log.0));
    let tell = |log: &Result<Log, _>| match log {
        Ok(log) => format!("{} events", log.events.len()),
        Err(why) => format!("{why}"),
    };
    let actual = boot.as_ref().map_or_else(|| "none".to_owned(), tell);
    // Without it, its PCRs cannot be explained; where none is asked for, none is needed.
    let mut needed = against.policy.quoted();
    needed.retain(|pcr| STATIC.contains(pcr));
    let is_good = boot.as_ref().map_or(needed.is_empty(), Result::is_ok);
    let unexplained = &against.policy.insecure.unexplained;
    let is_waived = boot.is_none() && needed.iter().all(|pcr| unexplained.contains(pcr));
    claims.add(
        Check::BootLog,
        State::from(is_good).or_waived(is_waived.into()),
        compared("a log", actual, "evidence, firmware"),
    );
    let visor = Log::parse(&evidence.visor.log.0);
    let logs = compared("a log", tell(&visor), "evidence, visor: log");
    claims.add(Check::VisorLog, State::from(visor.is_ok()), logs);
    Logs { boot: boot.and_then(Result::ok).unwrap_or_default(), visor: visor.ok() }
}

fn launch(visor: Option<&Measured>) -> Option<Launch> {
    [Launch::Txt, Launch::Plain]
        .into_iter()
        .find(|launch| visor.is_some_and(|visor| visor.launch == launch.name()))
}

/// How the visor says that it was launched, and whether that can be.
pub(super) fn check_launch(
    claims: &mut Claims,
    values: &Values,
    visor: Option<&Measured>,
    policy: &Policy,
) {
    let source = "visor's log, event 0: launch";
    let accepted: Vec<_> = policy.launches.iter().map(|launch| launch.name()).collect();
    let launch = launch(visor);
    let state =
        launch.map_or(State::Unknown, |launch| State::from(policy.launches.contains(&launch)));
    let names =
        compared(accepted.join(" or "), launch.map(Launch::name).unwrap_or_default(), source);
    claims.add(Check::LaunchAccepted, state, names);
    if launch != Some(Launch::Txt) {
        return;
    }
    // All ones: no launch since power-on. All zeros: one that measured nothing, which there is not.
    let is_launched =
        |pcr| values.get(pcr).is_some_and(|value| !is_all(value, 0xff) && !is_all(value, 0));
    let actual: Vec<_> = DYNAMIC
        .iter()
        .map(|pcr| format!("{pcr}: {}", Bytes(values.get(pcr).cloned().unwrap_or_default())))
        .collect();
    let launched =
        compared("neither all ones nor all zeros", actual.join(", "), "quote, PCR 17 and 18");
    claims.add(Check::LaunchMeasured, State::from(DYNAMIC.iter().all(is_launched)), launched);
}

fn is_all(value: &[u8], byte: u8) -> bool {
    value.iter().all(|each| *each == byte)
}

/// What a PCR begins with (PC Client Platform TPM Profile 1.06, 4.6.2): those of a measured launch with
/// all ones, and with zeros after one; PCR 0 with the locality that the firmware started the TPM from.
fn first_value(pcr: u8, logs: &Logs, launch: Option<Launch>) -> Vec<u8> {
    let mut value = vec![0; BANK.bytes()];
    if (17..=22).contains(&pcr) && launch != Some(Launch::Txt) {
        value.fill(0xff);
    }
    if let (0, Some(last)) = (pcr, value.last_mut()) {
        *last = logs.boot.startup_locality().unwrap_or(0);
    }
    value
}

/// Holds the PCRs against the logs and the policy.
pub(super) fn check_pcrs(
    claims: &mut Claims,
    values: &Values,
    logs: &Logs,
    (visor, policy): (Option<&Measured>, &Policy),
) {
    let launch = launch(visor);
    for (pcr, value) in values {
        let replayed =
            logs.of(*pcr).and_then(|log| log.replay(BANK, *pcr, first_value(*pcr, logs, launch)));
        let is_explained = replayed.as_ref() == Some(value);
        let replayed =
            replayed.map_or_else(|| "no log".to_owned(), |value| Bytes(value).to_string());
        let source = if *pcr < 17 { "firmware's log" } else { "visor's log" };
        let compare = compared(replayed, Bytes(value.clone()), format!("quote, and {source}"));
        let is_waived = policy.insecure.unexplained.contains(pcr);
        let state = State::from(is_explained).or_waived(is_waived.into());
        claims.add_pcr(Check::PcrExplained, *pcr, state, compare);
        let is_boots = STATIC.contains(pcr) && launch != Some(Launch::Txt);
        let is_launchs = DYNAMIC.contains(pcr) && launch == Some(Launch::Txt);
        let rule = policy.pcrs.get(pcr);
        if rule.is_some() && !DYNAMIC.contains(pcr) || is_boots || is_launchs {
            check_accepted(claims, (*pcr, value), logs, policy);
        }
    }
}

fn check_accepted(claims: &mut Claims, (pcr, value): (u8, &[u8]), logs: &Logs, policy: &Policy) {
    let rule = policy.pcrs.get(&pcr);
    let (expected, actual, is_accepted) = match rule {
        Some(Accepted::Values(values)) => {
            let value = Bytes(value.to_vec());
            (join(values), value.to_string(), values.contains(&value))
        }
        Some(Accepted::Events(events)) => {
            let unknown = unknown_event(logs.of(pcr), pcr, (events, &policy.builds));
            let actual = unknown.clone().unwrap_or_else(|| "known events only".to_owned());
            (format!("events of {} digests", events.len()), actual, unknown.is_none())
        }
        Some(Accepted::Explained) => ("any".to_owned(), Bytes(value.to_vec()).to_string(), true),
        None => ("a rule".to_owned(), "the policy says nothing of this PCR".to_owned(), false),
    };
    let is_waived = policy.insecure.any_value.contains(&pcr);
    let compare = compared(expected, actual, "policy, pcr");
    claims.add_pcr(
        Check::PcrAccepted,
        pcr,
        State::from(is_accepted).or_waived(is_waived.into()),
        compare,
    );
}

fn join(values: &BTreeSet<Bytes>) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// The first event of the PCR's that is neither in the list nor a build of the visor.
fn unknown_event(
    log: Option<&Log>,
    pcr: u8,
    (events, builds): (&BTreeSet<Bytes>, &BTreeSet<Bytes>),
) -> Option<String> {
    let is_unknown = |digest: &Bytes| !events.contains(digest) && !builds.contains(digest);
    let Some(log) = log else { return Some("no log".to_owned()) };
    log.extending(pcr).enumerate().find_map(|(at, event)| {
        let digest = Bytes(event.digests.get(&BANK).cloned().unwrap_or_default());
        let told = || format!("event {at}: {digest} {}", tell(&event.data));
        is_unknown(&digest).then(told)
    })
}

/// An event's data, as far as it is text. It comes from the other side.
pub(crate) fn tell(data: &[u8]) -> String {
    let text = data.strip_suffix(b"\0").unwrap_or(data);
    match std::str::from_utf8(text) {
        Ok(text) if !text.chars().any(char::is_control) => {
            format!("{:?}", text.chars().take(80).collect::<String>())
        }
        _ => format!("({} bytes)", data.len()),
    }
}

/// The event that proves the build: a file that GRUB loaded, or what a measured launch measured.
pub(super) fn find_build(
    logs: &Logs,
    visor: &Measured,
    policy: &Policy,
) -> Option<(String, Bytes)> {
    let pcrs: &[u8] = if visor.launch == Launch::Txt.name() { &DYNAMIC } else { &[9] };
    pcrs.iter().find_map(|pcr| {
        let events = logs.of(*pcr)?.extending(*pcr).enumerate();
        let digests = events
            .map(|(at, event)| (at, Bytes(event.digests.get(&BANK).cloned().unwrap_or_default())));
        let mut known = digests.filter(|(_, digest)| policy.builds.contains(digest));
        known.next().map(|(at, digest)| (format!("PCR {pcr}, event {at}"), digest))
    })
}

const _: () = assert!(visor::PCR == 19);
