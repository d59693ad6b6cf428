//! Revocation lists that say, or hide, that a certificate is believed no more.

use std::fs;

use tenant::policy::Binding;
use tenant::tpm::revocation::List;

use super::super::record::fixtures;
use super::{Case, Forgeries};

const REVOKED: &[&str] = &["ek-revocation"];
const DAY: u64 = 24 * 60 * 60;

fn bytes(name: &str) -> Vec<u8> {
    fs::read(fixtures().join("ecc256").join(name)).unwrap()
}

/// Evidence with these lists, for a policy that needs them all.
fn with(names: &[&str]) -> Case {
    Case::of("ecc256").policy("\"if-given\"", "\"required\"").with(|case| {
        case.lists = names.iter().map(|name| List::parse(&bytes(name)).unwrap()).collect();
    })
}

/// The same for a policy that needs none.
fn given(names: &[&str]) -> Case {
    with(names).policy("\"required\"", "\"if-given\"")
}

/// The list with one bit of its signature, or of what is signed, changed.
fn changed(name: &str, from_end: usize) -> List {
    let mut der = bytes(name);
    let at = der.len() - from_end;
    der[at] ^= 1;
    List::parse(&der).unwrap()
}

pub(super) fn by_lists() -> Forgeries {
    // A serial number of the only entry, which lies before the number of the list and the signature.
    let der = bytes("below-revokes.der");
    let serial = der.len() - der.windows(2).position(|pair| pair == [0x12, 0x34]).unwrap() - 1;
    vec![
        ("a key whose certificate is revoked", with(&["root.crl", "below-revokes.crl"]), REVOKED),
        ("the same, in DER", with(&["root.crl", "below-revokes.der"]), REVOKED),
        ("an authority that is revoked", with(&["root-revokes.crl", "below.crl"]), REVOKED),
        ("a revoked key, where no list is needed", given(&["below-revokes.crl"]), REVOKED),
        (
            "a revoked key, and a list without it",
            with(&["root.crl", "below.crl", "below-revokes.crl"]),
            REVOKED,
        ),
        (
            "a list that has the key and is too old",
            given(&["below-revokes.crl"]).with(|case| case.later(365 * DAY)),
            REVOKED,
        ),
        ("no lists", with(&[]), REVOKED),
        ("no list of the root", with(&["below.crl"]), REVOKED),
        ("no list of the authority below", with(&["root.crl", "root.crl"]), REVOKED),
        (
            "lists that are too old",
            with(&["root.crl", "below.crl"]).with(|case| case.later(31 * DAY)),
            REVOKED,
        ),
        (
            "a list that is too old, where none is needed",
            given(&["below.crl"]).with(|case| case.later(31 * DAY)),
            REVOKED,
        ),
        ("a list of a part of the certificates", with(&["root.crl", "partial.crl"]), REVOKED),
        ("the same beside a whole one", with(&["root.crl", "below.crl", "partial.crl"]), REVOKED),
        (
            "a list with another entry than was signed",
            given(&[]).with(|case| case.lists = vec![changed("below-revokes.der", serial)]),
            REVOKED,
        ),
        (
            "a list with a changed signature",
            given(&[]).with(|case| case.lists = vec![changed("below-revokes.der", 1)]),
            REVOKED,
        ),
        (
            "a list where the machine's certificates are not known",
            given(&["root.crl", "below.crl"]).with(|case| case.machine.certificates.clear()),
            REVOKED,
        ),
    ]
}

#[test]
fn lists_of_each_authority_without_the_certificates_are_good() {
    assert_eq!(with(&["root.crl", "below.crl"]).broken(), [""; 0]);
    assert_eq!(given(&["below.crl"]).broken(), [""; 0]);
    assert_eq!(given(&[]).with(|case| case.later(31 * DAY)).broken(), [""; 0]);
}

#[test]
fn a_policy_that_does_not_say_it_needs_all_lists() {
    let silent = |names| with(names).policy("revocation-lists = \"required\"\n", "");
    assert_eq!(silent(&["root.crl", "below.crl"]).broken(), [""; 0]);
    assert_eq!(silent(&["below.crl"]).broken(), REVOKED);
}

#[test]
fn an_authority_that_may_not_sign_lists_has_none() {
    // swtpm's authorities may sign certificates only.
    let case = Case::of("ecc384").policy("\"if-given\"", "\"required\"");
    assert_eq!(case.broken(), REVOKED);
    let signed = Case::of("ecc384").with(|case| {
        let path = fixtures().join("ecc384/issuer.crl");
        case.lists = vec![List::parse(&fs::read(path).unwrap()).unwrap()];
    });
    assert_eq!(signed.broken(), REVOKED);
}

#[test]
fn a_key_that_was_pinned_rests_on_no_certificate() {
    let pinned = with(&[]).policy("[\"certificate\"]", "[\"pinned-ek\"]");
    assert_eq!(pinned.with(|case| case.machine.binding = Binding::PinnedEk).broken(), [""; 0]);
}
