//! Bytes of the other side's: none makes the program panic, and only what was recorded is read.

use evidence::{Challenge, Evidence, Identity};
use proptest::prelude::*;
use tenant::policy::Policy;
use tenant::tpm::certificate;
use tenant::tpm::log::Log;
use tenant::tpm::public::Public;
use tenant::tpm::quote::{Attest, Signature};

use super::record::fixtures;

/// Something recorded.
#[derive(Clone, Copy, Debug)]
enum Part {
    Log,
    Attest,
    Signature,
    Public,
    Certificate,
}

impl Part {
    fn bytes(self) -> Vec<u8> {
        let evidence: Evidence = evidence::read(&fixtures().join("booted/evidence.json")).unwrap();
        let identity: Identity = evidence::read(&fixtures().join("identity.json")).unwrap();
        match self {
            Self::Log => evidence.firmware.unwrap().log.0,
            Self::Attest => evidence.quote.attest.0,
            Self::Signature => evidence.quote.signature.0,
            Self::Public => identity.ek.public.0,
            Self::Certificate => identity.ek.certificates[0].0.clone(),
        }
    }

    /// Whether the bytes can be read as this.
    fn is_read(self, bytes: &[u8]) -> bool {
        match self {
            Self::Log => Log::parse(bytes).is_ok(),
            Self::Attest => Attest::parse(bytes).is_some(),
            Self::Signature => Signature::parse(bytes).is_ok(),
            Self::Public => Public::parse(bytes).is_ok(),
            Self::Certificate => {
                let identity: Identity = evidence::read(&fixtures().join("identity.json")).unwrap();
                let key = Public::parse(&identity.ek.public.0).unwrap().key;
                let known = [certificate::Broken::NoAuthority, certificate::Broken::Expired];
                let checked = certificate::check(&key, &[bytes], &[], 1_800_000_000);
                checked.is_err_and(|why| known.contains(&why))
            }
        }
    }
}

fn parts() -> impl Strategy<Value = Part> {
    let all = [Part::Log, Part::Attest, Part::Signature, Part::Public, Part::Certificate];
    proptest::sample::select(all.to_vec())
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(part in parts(), bytes: Vec<u8>) {
        let _ = part.is_read(&bytes);
    }

    #[test]
    fn what_is_cut_off_or_longer_is_refused(part in parts(), at: prop::sample::Index, more in 1_usize..9) {
        let whole = part.bytes();
        prop_assert!(part.is_read(&whole), "{part:?}");
        let cut = &whole[..at.index(whole.len())];
        // A log may end behind each of its events.
        prop_assert!(!part.is_read(cut) || matches!(part, Part::Log), "{part:?}");
        let longer = [whole.as_slice(), &vec![0; more]].concat();
        prop_assert!(!part.is_read(&longer), "{part:?}");
    }

    #[test]
    fn changed_bytes_are_read_or_refused(
        part in parts(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
    ) {
        let mut bytes = part.bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = part.is_read(&bytes);
    }

    #[test]
    fn any_text_is_a_policy_or_a_challenge_or_is_refused(text: String) {
        prop_assert!(Policy::parse(&text).is_err());
        prop_assert!(evidence::parse::<Challenge>(text.as_bytes()).is_err());
    }
}
