//! Forgeries of keys, quotes and challenges.

use std::collections::BTreeMap;
use std::fs;

use evidence::{Bytes, Challenge, Statement};
use tenant::policy::Binding;

use super::super::boot::Visor;
use super::super::record::fixtures;
use super::{Case, Forgeries, read};

pub(super) fn by_keys() -> Forgeries {
    let plain = || Case::of("plain");
    let restricted = |ak: &mut Bytes| ak.0[5] ^= 1;
    vec![
        (
            "a quote of another TPM's",
            plain().with(|case| case.evidence = read("other/evidence.json")),
            &["ak-enrolled", "quote-signature"],
        ),
        (
            "the same, with the enrolled key beside it",
            plain().with(|case| {
                case.evidence = read("other/evidence.json");
                case.evidence.ak = case.machine.ak.clone();
            }),
            &["quote-signature"],
        ),
        (
            "a key that signs whatever the host likes",
            plain().with(|case| {
                restricted(&mut case.evidence.ak);
                restricted(&mut case.machine.ak);
            }),
            &["ak-restricted"],
        ),
        (
            "a machine that was believed without a certificate",
            plain().with(|case| case.machine.binding = Binding::PinnedAk),
            &["ak-binding"],
        ),
    ]
}

pub(super) fn by_quote() -> Forgeries {
    let plain = || Case::of("plain");
    vec![
        (
            "a quote that is cut off",
            plain().with(|case| case.evidence.quote.attest.0.truncate(100)),
            &["quote-form", "quote-signature", "quote-kind", "quote-nonce", "quote-selection"],
        ),
        (
            "a signature by HMAC",
            plain().with(|case| case.evidence.quote.signature.0[1] = 5),
            &["quote-form", "quote-signature"],
        ),
        (
            "a signature over SHA-1",
            plain().with(|case| case.evidence.quote.signature.0[3] = 4),
            &["quote-signature", "quote-values"],
        ),
        (
            "a signature with one bit changed",
            plain().with(|case| case.evidence.quote.signature.0[100] ^= 1),
            &["quote-signature"],
        ),
        (
            "an old quote with the new nonce put in",
            Case::of("old").with(|case| {
                let new: Challenge = read("plain/challenge.json");
                let attest = &mut case.evidence.quote.attest.0;
                let old = case.challenge.nonce.0.clone();
                let at = attest.windows(32).position(|window| window == old).unwrap();
                attest[at..at + 32].copy_from_slice(&new.nonce.0);
                let (body, signature) = Visor::new("plain").alive(&new.nonce.0);
                let statement = Statement { body: Bytes(body), signature: Bytes(signature) };
                case.evidence.visor.alive = Some(statement);
                case.challenge = new;
            }),
            &["quote-signature"],
        ),
        (
            "the TPM's time, signed with the nonce",
            plain().with(|case| {
                let file =
                    |name: &str| Bytes(fs::read(fixtures().join("plain").join(name)).unwrap());
                case.evidence.quote.attest = file("time.attest");
                case.evidence.quote.signature = file("time.signature");
            }),
            &["quote-kind", "quote-selection"],
        ),
    ]
}

pub(super) fn by_values() -> Forgeries {
    let plain = || Case::of("plain");
    vec![
        (
            "a quote of the bank SHA-1",
            plain().with(|case| case.evidence = read("plain/sha1.json")),
            &["quote-selection", "quote-values"],
        ),
        (
            "a quote of the bank SHA-1 whose values are said to be of SHA-256",
            plain().with(|case| {
                let values = case.evidence.pcrs.clone();
                case.evidence = read("plain/sha1.json");
                case.evidence.pcrs = values;
            }),
            &["quote-selection", "quote-values"],
        ),
        (
            "a quote that leaves out the firmware's PCRs",
            Case::of("txt").with(|case| case.policy = plain().policy),
            &["quote-selection", "launch-accepted", "pcr-accepted 17", "pcr-accepted 18"],
        ),
        (
            "a value that is not the quoted one",
            plain().with(|case| {
                case.evidence.pcrs.get_mut("sha256").unwrap().get_mut(&4).unwrap().0[0] ^= 1
            }),
            &["quote-values"],
        ),
        (
            "a value that is not there",
            plain().with(|case| {
                drop(case.evidence.pcrs.get_mut("sha256").unwrap().remove(&4));
            }),
            &["quote-values"],
        ),
        ("no values", plain().with(|case| case.evidence.pcrs = BTreeMap::new()), &["quote-values"]),
    ]
}

pub(super) fn by_time() -> Forgeries {
    let plain = || Case::of("plain");
    vec![
        (
            "evidence for an earlier challenge",
            plain().with(|case| case.evidence = read("old/evidence.json")),
            &["quote-nonce", "visor-alive"],
        ),
        (
            "evidence for a challenge of another tenant's",
            plain().with(|case| case.challenge.nonce.0[31] ^= 1),
            &["quote-nonce", "visor-alive"],
        ),
        (
            "a challenge without a nonce",
            plain().with(|case| case.challenge.nonce = Bytes::default()),
            &["quote-nonce", "visor-alive"],
        ),
        (
            "an answer that comes too late",
            plain().with(|case| case.now = case.challenge.expires + 1),
            &["challenge-age"],
        ),
        (
            "an answer that comes before the question",
            plain().with(|case| case.now = case.challenge.issued - 1),
            &["challenge-age"],
        ),
    ]
}
