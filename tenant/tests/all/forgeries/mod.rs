//! Forgeries of recorded evidence: each breaks the claims that it should, and no other.

mod logs;
mod quote;
mod revocation;
mod visor;

use std::fs;

use evidence::{Bytes, Challenge, Document, Evidence};
use tenant::machine::Machine;
use tenant::policy::Policy;
use tenant::tpm::revocation::List;
use tenant::verify::{Against, Check, State, Verdict, verify};

use super::boot::{self, Event, IPL, Visor, event, log};
use super::record::fixtures;

/// Evidence and what it is held against.
pub(crate) struct Case {
    pub(crate) evidence: Evidence,
    challenge: Challenge,
    pub(crate) machine: Machine,
    pub(crate) lists: Vec<List>,
    policy: String,
    pub(crate) now: u64,
}

fn read<T: Document>(name: &str) -> T {
    evidence::read(&fixtures().join(name)).unwrap()
}

impl Case {
    pub(crate) fn of(name: &str) -> Self {
        let challenge: Challenge = read(&format!("{name}/challenge.json"));
        let machine = format!("{name}/machine.json");
        Self {
            evidence: read(&format!("{name}/evidence.json")),
            machine: if fixtures().join(&machine).exists() {
                read(&machine)
            } else {
                read("machine.json")
            },
            policy: fs::read_to_string(fixtures().join(name).join("policy.toml")).unwrap(),
            now: challenge.issued + 1,
            challenge,
            lists: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The policy with other words.
    pub(crate) fn policy(self, from: &str, to: &str) -> Self {
        assert!(self.policy.contains(from), "{}", self.policy);
        self.with(|case| case.policy = case.policy.replace(from, to))
    }

    /// Lets so many seconds pass, for the challenge as well.
    fn later(&mut self, seconds: u64) {
        self.now += seconds;
        self.challenge.expires += seconds;
    }

    /// What does not hold, with its PCR.
    pub(crate) fn broken(&self) -> Vec<String> {
        let policy = Policy::parse(&self.policy).unwrap();
        let against = Against {
            challenge: &self.challenge,
            machine: &self.machine,
            policy: &policy,
            lists: &self.lists,
            now: self.now,
        };
        let outcome = verify(&self.evidence, against);
        let is_broken = |state| matches!(state, State::Unmet | State::Waived | State::Unknown);
        let broken = outcome.claims.iter().filter(|claim| is_broken(claim.state));
        let name = |pcr: Option<u8>| pcr.map_or_else(String::new, |pcr| format!(" {pcr}"));
        let mark = |state| if state == State::Waived { " waived" } else { "" };
        let broken: Vec<_> = broken
            .filter(|claim| claim.state != State::Unknown)
            .map(|claim| format!("{}{}{}", claim.id, name(claim.pcr), mark(claim.state)))
            .collect();
        // What is not signed says nothing of PCRs.
        let is_signed = !broken.iter().any(|claim| claim == "quote-signature");
        assert!(is_signed || outcome.claims.iter().all(|claim| claim.pcr.is_none()));
        let only_waived = broken.iter().all(|claim| claim.ends_with("waived"));
        let expected = match (broken.is_empty(), only_waived) {
            (true, _) => Verdict::Trusted,
            (false, true) => Verdict::Insecure,
            (false, false) => Verdict::NotTrusted,
        };
        assert_eq!(outcome.verdict, expected);
        assert_eq!(outcome.visor.is_some(), expected != Verdict::NotTrusted);
        broken
    }
}

/// The forgeries by their names, and what each must break.
type Forgeries = Vec<(&'static str, Case, &'static [&'static str])>;

/// The firmware's log, made of other events.
fn boot_log(change: impl FnOnce(&mut Vec<Event>)) -> Case {
    Case::of("plain").with(|case| {
        let mut events = boot::firmware();
        change(&mut events);
        case.evidence.firmware.as_mut().unwrap().log = Bytes(log(&events));
    })
}

fn other_key() -> Visor {
    Visor { random: 0x43, ..Visor::new("plain") }
}

#[test]
fn recorded_evidence_is_trusted() {
    for name in ["plain", "txt", "old"] {
        assert_eq!(Case::of(name).broken(), [""; 0], "{name}");
    }
}

/// The visor's image without VMX, booted by SeaBIOS in QEMU with a TPM in software; a Linux host quoted by its own
/// driver. Nothing measures the image there, and without VMX there is no port at which the visor could sign.
#[test]
fn a_machine_that_was_booted_is_believed_but_for_what_it_cannot_show() {
    let booted = || Case::of("booted");
    assert_eq!(booted().broken(), ["visor-build", "visor-alive"]);
    let waived = booted().with(|case| {
        case.policy += "\n[insecure]\nany-build = true\nno-signature = true\n";
    });
    assert_eq!(waived.broken(), ["visor-build waived", "visor-alive waived"]);
    assert_eq!(
        booted().policy("\"late\"", "\"none\"").broken(),
        ["visor-build", "iommu", "visor-alive"]
    );
}

#[test]
fn every_forgery_breaks_what_it_should_and_nothing_else() {
    let all = [
        quote::by_keys(),
        quote::by_quote(),
        quote::by_values(),
        quote::by_time(),
        revocation::by_lists(),
        logs::by_boot_log(),
        logs::by_visor_log(),
        logs::by_launch(),
        visor::by_policy(),
        visor::by_visor_key(),
    ];
    let forgeries: Vec<_> = all.into_iter().flatten().collect();
    let mut wrong = Vec::new();
    for (name, case, expected) in &forgeries {
        let broken = case.broken();
        if broken != *expected {
            wrong.push(format!("{name}: {broken:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(forgeries.len() >= 40, "{}", forgeries.len());
    for check in Check::ALL {
        let name = |claim: &&str| claim.split(' ').next() == Some(check.id());
        let is_broken = forgeries.iter().any(|(_, _, claims)| claims.iter().any(&name));
        assert!(is_broken, "no forgery breaks {}", check.id());
    }
}

#[test]
fn what_a_policy_waives_is_insecure_and_never_trusted() {
    let waive = |case: Case, words: &str| {
        case.with(|case| case.policy += &format!("\n[insecure]\n{words}\n"))
    };
    let lax = || Case::of("lax").policy("console=com1", "dev-tickets insecure-no-iommu");
    let waived = waive(lax(), "dev-tickets = true\nany-iommu = true\nwithout-vmx = true");
    assert_eq!(waived.broken(), ["iommu waived", "vmx waived", "dev-tickets waived"]);
    assert_eq!(waive(lax(), "any-iommu = true").broken(), ["iommu waived", "vmx", "dev-tickets"]);
    assert_eq!(waive(Case::of("serial"), "serial-tpm = true").broken(), ["tpm waived"]);
    assert_eq!(waive(Case::of("serial"), "without-vmx = true").broken(), ["tpm"]);
    let silent = Case::of("plain").with(|case| case.evidence.visor.alive = None);
    assert_eq!(waive(silent, "no-signature = true").broken(), ["visor-alive waived"]);
    let other = Case::of("plain").policy(
        &Bytes(tenant::bank::Bank::Sha256.hash(&[boot::VISOR])).to_string(),
        &"0".repeat(64),
    );
    let other = waive(other, "any-build = true\nany-value = [9]");
    assert_eq!(other.broken(), ["pcr-accepted 9 waived", "visor-build waived"]);
    let longer = boot_log(|log| log.push(event(9, IPL, boot::VISOR, b"/visor.elf\0")));
    assert_eq!(waive(longer, "unexplained = [9]").broken(), ["pcr-explained 9 waived"]);
    // Who wants nothing of the log explained needs none; who wants it of one register does.
    let mute = || Case::of("plain").with(|case| case.evidence.firmware = None);
    let words = "any-build = true\nunexplained = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]";
    assert!(waive(mute(), words).broken().iter().all(|claim| claim.ends_with(" waived")));
    let words = words.replace("5, ", "");
    let broken = waive(mute(), &words).broken();
    let broken: Vec<_> = broken.iter().filter(|claim| !claim.ends_with(" waived")).collect();
    assert_eq!(broken, ["boot-log", "pcr-explained 5"]);
    // One that is there must be one.
    let torn =
        Case::of("plain").with(|case| case.evidence.firmware.as_mut().unwrap().log.0[35] ^= 1);
    let words = "any-build = true\nunexplained = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]";
    assert!(waive(torn, words).broken().contains(&"boot-log".to_owned()));
    // A waiver that is not needed does not make good evidence worse.
    assert_eq!(waive(Case::of("plain"), "dev-tickets = true").broken(), [""; 0]);
}

#[test]
fn a_log_cut_off_anywhere_is_never_trusted() {
    let whole = Case::of("plain");
    let bytes = whole.evidence.visor.log.0.len();
    for length in 0..bytes {
        let case = Case::of("plain").with(|case| case.evidence.visor.log.0.truncate(length));
        assert!(!case.broken().is_empty(), "{length}");
    }
}
