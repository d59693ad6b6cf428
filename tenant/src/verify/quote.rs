//! The TPM and what it says.

use std::collections::BTreeMap;

use evidence::{Bytes, Evidence};

use super::Against;
use super::claim::{Check, Claims, State, compared};
use crate::bank::Bank;
use crate::policy::{Binding, Revocation};
use crate::tpm::public::{Public, attribute};
use crate::tpm::quote::{Attest, GENERATED, QUOTE, Quoted, Signature};
use crate::tpm::revocation::{Standing, standing};
use crate::tpm::signature;

/// The values of the quoted PCRs; none where the quote proves none.
pub(super) type Values = BTreeMap<u8, Vec<u8>>;

/// What an attestation key must be, and must not be.
const NEEDED: u32 = attribute::FIXED_TPM
    | attribute::FIXED_PARENT
    | attribute::SENSITIVE_DATA_ORIGIN
    | attribute::RESTRICTED
    | attribute::SIGN;

/// Whether this key signs only what its TPM says, and cannot leave it.
pub(crate) const fn is_attestation_key(key: &Public) -> bool {
    // What binds it to its TPM is its name.
    let is_named = !matches!(key.name_hash, Bank::Sha1);
    is_named && key.attributes & (NEEDED | attribute::DECRYPT) == NEEDED
}

/// Holds the attestation key against the enrolled one.
pub(super) fn check_keys(claims: &mut Claims, evidence: &Evidence, against: Against<'_>) {
    let machine = against.machine;
    let name = |public: &Bytes| match Public::parse(&public.0) {
        Ok(key) => Bytes(key.name).to_string(),
        Err(_) => "no key".to_owned(),
    };
    let names = compared(name(&machine.ak), name(&evidence.ak), "evidence, ak");
    claims.add(Check::AkEnrolled, State::from(evidence.ak == machine.ak), names);
    let attributes = Public::parse(&evidence.ak.0).map(|key| key.attributes);
    let restricted = Public::parse(&evidence.ak.0).is_ok_and(|key| is_attestation_key(&key));
    let actual = attributes.map_or_else(|_| "no key".to_owned(), |bits| format!("{bits:#010x}"));
    let kinds = compared(
        format!("{NEEDED:#010x} set, {:#010x} clear", attribute::DECRYPT),
        actual,
        "evidence, ak: attributes",
    );
    claims.add(Check::AkRestricted, State::from(restricted), kinds);
    let accepted: Vec<_> = against.policy.bindings.iter().map(|binding| binding.name()).collect();
    let binding = compared(accepted.join(" or "), machine.binding.name(), "enrollment");
    claims.add(
        Check::AkBinding,
        State::from(against.policy.bindings.contains(&machine.binding)),
        binding,
    );
    check_revocation(claims, against);
}

/// Holds the certificates that the machine was enrolled by against the lists.
fn check_revocation(claims: &mut Claims, against: Against<'_>) {
    let Against { machine, policy, lists, now, .. } = against;
    if machine.binding != Binding::Certificate {
        let none = compared("no certificate revoked", "none is relied on", "enrollment");
        return claims.add(Check::EkRevocation, State::Met, none);
    }
    let chain: Vec<&[u8]> = machine.certificates.iter().map(|der| der.0.as_slice()).collect();
    let standing = standing(&chain, lists, now);
    // Lists that cannot be held against anything are no reason to believe.
    let is_given = chain.is_empty() && !lists.is_empty();
    let state = match (standing, policy.revocation) {
        (Standing::Good, _) => State::Met,
        (Standing::Missing, Revocation::IfGiven) => State::from(!is_given),
        (Standing::Missing, Revocation::Required)
        | (Standing::Stale | Standing::Unusable | Standing::Revoked, _) => State::Unmet,
    };
    let expected = match policy.revocation {
        Revocation::Required => "no certificate revoked, as a current list of each authority says",
        Revocation::IfGiven => "no certificate revoked, as far as lists are given",
    };
    let lists = compared(expected, standing, "enrollment, and revocation lists");
    claims.add(Check::EkRevocation, state, lists);
}

/// Checks the quote, and says which values it proves.
pub(super) fn check_quote(
    claims: &mut Claims,
    evidence: &Evidence,
    against: Against<'_>,
) -> Values {
    let attest = Attest::parse(&evidence.quote.attest.0);
    let signature = Signature::parse(&evidence.quote.signature.0);
    let form = match (&attest, &signature) {
        (Some(_), Ok(_)) => "a quote and a signature".to_owned(),
        (None, _) => "a quote that cannot be read".to_owned(),
        (_, Err(why)) => format!("a signature that cannot be read: {why:?}"),
    };
    let is_readable = attest.is_some() && signature.is_ok();
    let form = compared("a quote and a signature", form, "evidence, quote");
    claims.add(Check::QuoteForm, State::from(is_readable), form);
    // The enrolled key, not the one that comes along.
    let key = Public::parse(&against.machine.ak.0);
    let is_signed = match (&key, &signature) {
        (Ok(key), Ok(sign)) => {
            signature::verify(&key.key, sign.hash, &evidence.quote.attest.0, &sign.kind)
        }
        (Err(_), _) | (_, Err(_)) => false,
    };
    let signer =
        compared("the attestation key's", if is_signed { "it is" } else { "it is not" }, "quote");
    claims.add(Check::QuoteSignature, State::from(is_signed), signer);
    check_fresh(claims, attest.as_ref(), against);
    let quoted = attest.as_ref().and_then(|attest| attest.quote.as_ref());
    // The TPM hashes the values as it hashes what it signs.
    let hash = signature.as_ref().map_or(Bank::Sha256, |signature| signature.hash);
    let values = check_values(claims, evidence, (quoted, hash), against);
    if is_signed { values } else { Values::new() }
}

fn check_fresh(claims: &mut Claims, attest: Option<&Attest>, against: Against<'_>) {
    let kind = attest.map(|attest| (attest.magic, attest.kind));
    let name = |(magic, kind): (u32, u16)| format!("{magic:#010x}, {kind:#06x}");
    let kinds = compared(name((GENERATED, QUOTE)), kind.map(name).unwrap_or_default(), "quote");
    claims.add(Check::QuoteKind, State::from(kind == Some((GENERATED, QUOTE))), kinds);
    let challenge = against.challenge;
    let is_timely = (challenge.issued..=challenge.expires).contains(&against.now);
    let time = compared(
        format!("{} to {}", challenge.issued, challenge.expires),
        against.now,
        "challenge, in seconds since 1970",
    );
    claims.add(Check::ChallengeAge, State::from(is_timely), time);
    let extra = attest.map(|attest| Bytes(attest.extra.clone()));
    let is_fresh = challenge.nonce.0.len() == 32 && extra.as_ref() == Some(&challenge.nonce);
    let nonces = compared(&challenge.nonce, extra.unwrap_or_default(), "quote, extraData");
    claims.add(Check::QuoteNonce, State::from(is_fresh), nonces);
}

fn check_values(
    claims: &mut Claims,
    evidence: &Evidence,
    (quoted, hash): (Option<&Quoted>, Bank),
    against: Against<'_>,
) -> Values {
    let bank = Bank::Sha256;
    let list = |bank: u16, pcrs: &[u8]| {
        let bank =
            Bank::of(bank).map_or_else(|| format!("{bank:#x}"), |bank| bank.name().to_owned());
        let pcrs: Vec<_> = pcrs.iter().map(ToString::to_string).collect();
        format!("{bank}:{}", pcrs.join(","))
    };
    // The policy's, in case that the challenge was made for another.
    let needed = against.policy.quoted();
    let selection = quoted.map(|quoted| quoted.selection.as_slice()).unwrap_or_default();
    let actual: Vec<_> = selection.iter().map(|(bank, pcrs)| list(*bank, pcrs)).collect();
    let pcrs = match selection {
        [(id, pcrs)] if *id == bank.id() => pcrs.as_slice(),
        _ => &[],
    };
    let is_whole = needed.iter().all(|pcr| pcrs.contains(pcr));
    let selections = compared(list(bank.id(), &needed), actual.join("+"), "quote, pcrSelect");
    claims.add(Check::QuoteSelection, State::from(is_whole), selections);
    let given = evidence.pcrs.get(bank.name());
    let values: Option<Values> = pcrs
        .iter()
        .map(|pcr| {
            let value = given?.get(pcr)?.0.clone();
            (value.len() == bank.bytes()).then_some((*pcr, value))
        })
        .collect();
    let all: Vec<u8> = values.iter().flat_map(BTreeMap::values).flatten().copied().collect();
    let digest = quoted.map(|quoted| quoted.digest.clone()).unwrap_or_default();
    let is_same = !pcrs.is_empty() && values.is_some() && hash.hash(&[&all]) == digest;
    let state = if quoted.is_some() { State::from(is_same) } else { State::Unknown };
    let digests = compared(Bytes(digest), Bytes(hash.hash(&[&all])), "evidence, pcrs");
    claims.add(Check::QuoteValues, state, digests);
    values.filter(|_| is_same).unwrap_or_default()
}
