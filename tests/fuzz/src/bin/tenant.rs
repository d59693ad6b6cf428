//! What a tenant reads of machines and of authorities: a first byte that says what the rest is.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use evidence::eat::Token;
use evidence::{Challenge, Evidence, Identity};
use tenant::bank::Bank;
use tenant::machine::Machine;
use tenant::policy::Policy;
use tenant::tpm::certificate;
use tenant::tpm::log::Log;
use tenant::tpm::public::Public;
use tenant::tpm::quote::{Attest, Signature};
use tenant::tpm::revocation::{List, Standing, standing};
use tenant::verify::{Against, Verdict, verify};
use tenant::visor::Measured;

/// A machine with a chain of three certificates, and what it was asked.
struct Recorded {
    evidence: Evidence,
    challenge: Challenge,
    machine: Machine,
    policy: Policy,
    identity: Identity,
}

static RECORDED: LazyLock<Recorded> = LazyLock::new(|| {
    macro_rules! file {
        ($name:literal) => {
            include_bytes!(concat!("../../../../tenant/tests/fixtures/ecc256/", $name))
        };
    }
    let policy = std::str::from_utf8(file!("policy.toml")).expect("text");
    Recorded {
        evidence: evidence::parse(file!("evidence.json")).expect("evidence"),
        challenge: evidence::parse(file!("challenge.json")).expect("a challenge"),
        machine: evidence::parse(file!("machine.json")).expect("a machine"),
        identity: evidence::parse(file!("identity.json")).expect("an identity"),
        policy: Policy::parse(policy).expect("a policy"),
    }
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else {
        return;
    };
    match kind {
        b'j' => match evidence::parse(data) {
            Ok(evidence) => judge(&evidence),
            Err(error) => fuzz::one_line(&error.to_string()),
        },
        b'e' => token(data),
        b'k' => {
            if let Ok(key) = Public::parse(data) {
                assert_eq!(key.name.len(), 2 + key.name_hash.bytes());
            }
        }
        b'q' => drop(Attest::parse(data)),
        b's' => drop(Signature::parse(data)),
        b'l' => log(data),
        b'c' => chain(data),
        b'r' => list(data),
        b'p' => policy(data),
        _ => {}
    }
});

/// Whatever is believed was quoted, and has the key that was measured.
fn judge(evidence: &Evidence) {
    let Recorded { challenge, machine, policy, evidence: good, .. } = &*RECORDED;
    let now = challenge.issued;
    let outcome = verify(evidence, Against { challenge, machine, policy, lists: &[], now });
    assert!(outcome.verdict != Verdict::Insecure, "the policy waives nothing");
    if outcome.verdict == Verdict::Trusted {
        assert_eq!(evidence.quote.attest, good.quote.attest);
        assert_eq!(evidence.visor.key, good.visor.key);
    }
    assert_eq!(outcome.visor.is_some(), outcome.verdict == Verdict::Trusted);
}

/// One encoding for each token, which says the same in JSON.
fn token(data: &[u8]) {
    match Token::decode(data) {
        Ok(token) => {
            assert_eq!(token.encode().as_deref(), Ok(data));
            let text = evidence::text(&token.evidence).expect("text");
            assert_eq!(evidence::parse::<Evidence>(text.as_bytes()).expect("it"), token.evidence);
            let read = tenant::eat::parse(data, Path::new("eat"));
            let quoted = Attest::parse(&token.evidence.quote.attest.0);
            assert_eq!(read.is_ok(), quoted.is_some_and(|quote| quote.extra == token.nonce.0));
            judge(&token.evidence);
        }
        Err(error) => fuzz::one_line(&error.to_string()),
    }
}

fn log(data: &[u8]) {
    match Log::parse(data) {
        Ok(log) => {
            for pcr in 0..24 {
                if let Some(value) = log.replay(Bank::Sha256, pcr, vec![0; 32]) {
                    assert_eq!(value.len(), 32);
                }
            }
            if let Err(error) = Measured::read(&log, Bank::Sha256) {
                fuzz::one_line(&error.to_string());
            }
        }
        Err(error) => fuzz::one_line(&error.to_string()),
    }
}

/// No certificate leads to the root but those between it and the recorded one.
fn chain(data: &[u8]) {
    let Recorded { identity, machine, challenge, .. } = &*RECORDED;
    let key = Public::parse(&identity.ek.public.0).expect("a key").key;
    let [leaf, below, root] = machine.certificates.as_slice() else { unreachable!() };
    let roots = [root.0.as_slice()];
    for chain in [&[data, &below.0][..], &[&leaf.0, data]] {
        match certificate::check(&key, chain, &roots, challenge.issued) {
            Ok(path) => assert_eq!(path.len(), 3),
            Err(error) => fuzz::one_line(&error.to_string()),
        }
    }
}

/// One list is not one of each authority.
fn list(data: &[u8]) {
    let Some(list) = List::parse(data) else { return };
    let Recorded { machine, challenge, .. } = &*RECORDED;
    let chain: Vec<&[u8]> = machine.certificates.iter().map(|der| der.0.as_slice()).collect();
    let standing = standing(&chain, &[list], challenge.issued);
    assert!(standing != Standing::Good);
}

/// A policy asks for PCR 19, and for each PCR once.
fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(policy) = Policy::parse(text) {
        let pcrs = policy.quoted();
        assert!(pcrs.contains(&19) && pcrs.is_sorted_by(|a, b| a < b));
    }
}
