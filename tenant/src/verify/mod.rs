//! One verdict from evidence: every claim, what was expected, what is there, and what to do.

mod boot;
mod claim;
mod quote;
mod seen;

use evidence::{Challenge, Evidence};
use serde::Serialize;

pub(crate) use self::boot::tell;
pub use self::claim::{Check, Claim, Link, State};
pub(crate) use self::quote::is_attestation_key;

use self::claim::Claims;
use crate::machine::Machine;
use crate::policy::Policy;
use crate::tpm::revocation::List;
use crate::visor::Measured;

/// What a tenant may conclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything is as the policy asks for.
    Trusted,
    /// Something is not.
    NotTrusted,
    /// Something is not as it should be, and the policy waives it.
    Insecure,
}

/// The verdict and its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What a tenant may conclude.
    pub verdict: Verdict,
    /// All that was looked at, in the order of the chain.
    pub claims: Vec<Claim>,
    /// What the visor measured, where the claims about it are met or waived.
    pub visor: Option<Measured>,
}

/// What evidence is held against.
#[derive(Clone, Copy, Debug)]
pub struct Against<'a> {
    /// The question that was asked.
    pub challenge: &'a Challenge,
    /// The machine that was asked.
    pub machine: &'a Machine,
    /// What is accepted.
    pub policy: &'a Policy,
    /// Who is believed no more.
    pub lists: &'a [List],
    /// The time, in seconds since 1970.
    pub now: u64,
}

/// Checks evidence. It asks nobody and changes nothing.
#[must_use]
pub fn verify(evidence: &Evidence, against: Against<'_>) -> Outcome {
    let mut claims = Claims::default();
    quote::check_keys(&mut claims, evidence, against);
    let values = quote::check_quote(&mut claims, evidence, against);
    let logs = boot::read_logs(&mut claims, evidence, against);
    let visor = seen::read_visor(&mut claims, &logs);
    boot::check_launch(&mut claims, &values, visor.as_ref(), against.policy);
    boot::check_pcrs(&mut claims, &values, &logs, (visor.as_ref(), against.policy));
    seen::check_visor(&mut claims, (visor.as_ref(), &logs), against.policy);
    seen::check_key(&mut claims, evidence, visor.as_ref(), against);
    let verdict = verdict(&claims.0);
    let visor = visor.filter(|_| verdict != Verdict::NotTrusted);
    Outcome { verdict, claims: claims.0, visor }
}

/// Trusted only if there is at least one claim, and all are met.
fn verdict(claims: &[Claim]) -> Verdict {
    let is_broken = |claim: &Claim| matches!(claim.state, State::Unmet | State::Unknown);
    if claims.is_empty() || claims.iter().any(is_broken) {
        Verdict::NotTrusted
    } else if claims.iter().any(|claim| claim.state == State::Waived) {
        Verdict::Insecure
    } else {
        Verdict::Trusted
    }
}

#[cfg(test)]
mod tests {
    use super::claim::{Check, Claims, compared};
    use super::{State, Verdict, verdict};

    #[test]
    fn what_is_not_known_is_not_trusted() {
        let of = |states: &[State]| {
            let mut claims = Claims::default();
            for state in states {
                claims.add(Check::Iommu, *state, compared("", "", ""));
            }
            verdict(&claims.0)
        };
        assert_eq!(of(&[]), Verdict::NotTrusted);
        assert_eq!(of(&[State::Met, State::Unknown]), Verdict::NotTrusted);
        assert_eq!(of(&[State::Waived, State::Unmet, State::Met]), Verdict::NotTrusted);
        assert_eq!(of(&[State::Met, State::Waived]), Verdict::Insecure);
        assert_eq!(of(&[State::Met]), Verdict::Trusted);
    }
}
