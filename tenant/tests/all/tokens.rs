//! Evidence as an Entity Attestation Token: the same evidence, in one encoding only.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use evidence::eat::{NoToken, PROFILE, Token};
use evidence::{Bytes, Document, Evidence, Log, Quote, Statement, Visor};
use proptest::prelude::*;
use tenant::eat::{Form, convert, parse, read};
use tenant::failure::{Exit, Failure};
use tenant::tpm::quote::Attest;

use super::commands::run_verify;
use super::enrollment::Folder;
use super::record::fixtures;

const NAMES: [&str; 9] = ["plain", "txt", "old", "other", "liar", "lax", "booted", "ecc384", "pss"];

fn evidence(name: &str) -> PathBuf {
    fixtures().join(name).join("evidence.json")
}

/// Recorded evidence as a token.
fn token(name: &str) -> Vec<u8> {
    let evidence = read(&evidence(name)).unwrap();
    let nonce = Bytes(Attest::parse(&evidence.quote.attest.0).unwrap().extra);
    Token { nonce, evidence }.encode().unwrap()
}

#[test]
fn recorded_evidence_is_the_same_after_both_ways() {
    for name in NAMES {
        let folder = Folder::new(&format!("both-{name}"));
        let (json, eat) = (fs::read(evidence(name)).unwrap(), folder.path("eat"));
        assert_eq!(convert(&evidence(name), &eat).unwrap().form, Form::Eat);
        assert_eq!(fs::read(&eat).unwrap(), token(name));
        assert_eq!(convert(&eat, &folder.path("json")).unwrap().form, Form::Json);
        assert_eq!(fs::read(folder.path("json")).unwrap(), json, "{name}");
        assert_eq!(read(&eat).unwrap(), read(&evidence(name)).unwrap());
        // What is there is not written over.
        let again = convert(&eat, &folder.path("json")).unwrap_err();
        assert_eq!(again.exit(), Exit::WrongState);
    }
}

#[test]
fn both_forms_have_the_same_verdict_and_the_same_claims() {
    for name in ["plain", "lax"] {
        let folder = Folder::new(&format!("verdict-{name}"));
        let eat = folder.path("eat");
        fs::write(&eat, token(name)).unwrap();
        let (exit, json) = run_verify(&evidence(name), name);
        assert_eq!(exit == Exit::Trusted, name == "plain");
        assert_eq!(run_verify(&eat, name), (exit, json));
    }
}

#[test]
fn a_token_begins_with_what_others_look_for() {
    let (token, told) = (token("plain"), read(&evidence("plain")).unwrap());
    let nonce = Token::decode(&token).unwrap().nonce;
    assert!(told.quote.attest.0.windows(32).any(|window| window == nonce.0));
    // Tag 601, seven claims; 10 with 32 bytes; 265 with 45 letters (RFC 8949, appendix A).
    let head =
        [&[0xd9, 2, 0x59, 0xa7, 10, 0x58, 32], &nonce.0[..], &[0x19, 1, 9, 0x78, 45]].concat();
    assert!(token.starts_with(&[&head, PROFILE.as_bytes()].concat()));
}

fn parsed(bytes: &[u8]) -> Result<(Evidence, Form), Failure> {
    parse(bytes, Path::new("eat"))
}

#[test]
fn a_token_for_another_nonce_than_its_quote_is_refused() {
    let mut bytes = token("plain");
    bytes[7] ^= 1;
    let refused = parsed(&bytes).unwrap_err();
    assert!(matches!(refused, Failure::Nonce(_)), "{refused}");
    assert_eq!(refused.exit(), Exit::NotTrusted);
    // Nor can one be made of evidence whose quote has none.
    let folder = Folder::new("no-nonce");
    let mut told = read(&evidence("plain")).unwrap();
    told.quote.attest.0.truncate(9);
    let path = folder.write("evidence", &told);
    assert!(matches!(convert(&path, &folder.path("eat")), Err(Failure::Nonce(_))));
    assert!(!folder.path("eat").exists());
}

#[test]
fn a_token_of_another_profile_is_not_supported() {
    let mut bytes = token("plain");
    let at = 7 + 32 + 5 + PROFILE.len() - 1;
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    assert_eq!(parsed(&bytes).unwrap_err().exit(), Exit::Unsupported);
}

/// The same content as the token, encoded in another way.
#[test]
fn another_encoding_of_the_same_token_is_refused() {
    let bytes = token("plain");
    let with =
        |at: usize, remove: usize, put: &[u8]| [&bytes[..at], put, &bytes[at + remove..]].concat();
    let banks = bytes.windows(7).position(|window| window == b"\x66sha256").unwrap();
    let pcrs = banks + 7;
    assert_eq!(bytes[pcrs..pcrs + 4], [0xad, 0, 0x58, 32]);
    let (first, second) = (&bytes[pcrs + 1..pcrs + 36], &bytes[pcrs + 36..pcrs + 71]);
    let others = [
        ("the tag's number in four bytes", with(0, 3, &[0xda, 0, 0, 2, 0x59])),
        ("a key in two bytes", with(4, 1, &[0x18, 10])),
        ("a length in two bytes", with(5, 2, &[0x59, 0, 32])),
        ("a map without a length", [&with(3, 1, &[0xbf])[..], &[0xff]].concat()),
        ("PCRs in another order", with(pcrs + 1, 70, &[second, first].concat())),
        ("a PCR that comes twice", with(pcrs, 1, &[&[0xae], first].concat())),
        ("a bank that comes twice", {
            let bank = &bytes[banks..pcrs + 1 + 13 * 35];
            with(banks - 1, 1, &[&[0xa2], bank].concat())
        }),
        ("a byte behind the end", [&bytes[..], &[0]].concat()),
    ];
    for (name, other) in others {
        let refused = Token::decode(&other);
        assert!(matches!(refused, Err(NoToken::Encoding | NoToken::Form)), "{name}: {refused:?}");
    }
}

/// Keys are in the order of their encodings, in which the length comes first (RFC 8949, 4.2.1).
#[test]
fn shorter_names_of_banks_come_first() {
    let mut told = Token::decode(&token("plain")).unwrap();
    told.evidence.pcrs = [("aa", 1), ("b", 2)]
        .map(|(name, pcr)| (name.to_owned(), BTreeMap::from([(pcr, Bytes::default())])))
        .into();
    let bytes = told.encode().unwrap();
    let expected = b"\xa2\x61b\xa1\x02\x40\x62aa\xa1\x01\x40";
    assert!(bytes.windows(expected.len()).any(|window| window == expected));
}

fn some_bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes)
}

fn some_evidence() -> impl Strategy<Value = Evidence> {
    let values = prop::collection::btree_map(any::<u8>(), some_bytes(), 0..30);
    let pcrs: BoxedStrategy<BTreeMap<String, BTreeMap<u8, Bytes>>> =
        prop::collection::btree_map(any::<String>(), values, 0..4).boxed();
    let alive = prop::option::of((some_bytes(), some_bytes()));
    let bytes = prop::array::uniform5(some_bytes());
    (bytes, pcrs, prop::option::of(some_bytes()), alive).prop_map(
        |([attest, signature, ak, log, key], pcrs, firmware, alive)| Evidence {
            format: Evidence::FORMAT.into(),
            quote: Quote { attest, signature },
            pcrs,
            ak,
            firmware: firmware.map(|log| Log { log }),
            visor: Visor {
                log,
                key,
                alive: alive.map(|(body, signature)| Statement { body, signature }),
            },
        },
    )
}

proptest! {
    #[test]
    fn any_evidence_is_the_same_after_both_ways(
        evidence in some_evidence(),
        nonce in prop::collection::vec(any::<u8>(), 0..70).prop_map(Bytes),
    ) {
        let may = (8..=64).contains(&nonce.0.len());
        let token = Token { nonce, evidence };
        match token.encode() {
            Ok(bytes) => {
                prop_assert!(may);
                prop_assert_eq!(Token::decode(&bytes), Ok(token));
            }
            Err(why) => prop_assert!(!may && why == NoToken::Nonce),
        }
    }

    #[test]
    fn what_is_cut_off_is_no_token(at: prop::sample::Index) {
        let bytes = token("lax");
        prop_assert!(Token::decode(&bytes[..at.index(bytes.len())]).is_err());
    }

    #[test]
    fn changed_bytes_are_another_token_or_none(at: prop::sample::Index, byte: u8) {
        let whole = token("lax");
        let (mut bytes, at) = (whole.clone(), at.index(whole.len()));
        bytes[at] = byte;
        let same = Token::decode(&bytes) == Token::decode(&whole);
        prop_assert_eq!(same, bytes == whole);
    }
}
