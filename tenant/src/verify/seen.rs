//! The visor and its key.

use std::collections::BTreeSet;

use evidence::{Bytes, Evidence};

use super::Against;
use super::boot::{BANK, Logs, find_build};
use super::claim::{Check, Claims, State, Waiver, compared};
use crate::policy::Policy;
use crate::visor::{Kind, Measured, has_signed};

/// Reads what the visor measured. It is believed only where PCR 19 is explained by it.
pub(super) fn read_visor(claims: &mut Claims, logs: &Logs) -> Option<Measured> {
    let expected = "configuration, IOMMU, key";
    let source = "visor's log, PCR 19";
    let Some(log) = &logs.visor else {
        claims.add(Check::VisorEvents, State::Unknown, compared(expected, "", source));
        return None;
    };
    let measured = Measured::read(log, BANK);
    let actual = match &measured {
        Ok(visor) => format!("{expected}, of version {}", visor.version),
        Err(why) => why.to_string(),
    };
    claims.add(
        Check::VisorEvents,
        State::from(measured.is_ok()),
        compared(expected, actual, source),
    );
    measured.ok()
}

/// Holds the visor against the policy.
pub(super) fn check_visor(
    claims: &mut Claims,
    (visor, logs): (Option<&Measured>, &Logs),
    policy: &Policy,
) {
    let insecure = &policy.insecure;
    let build = visor.and_then(|visor| find_build(logs, visor, policy));
    let (source, digest) = build.clone().unwrap_or_else(|| {
        ("firmware's log, PCR 9, or visor's log, PCR 17 and 18".to_owned(), Bytes::default())
    });
    let actual = if build.is_some() { digest.to_string() } else { "none of these".to_owned() };
    let builds: Vec<_> = policy.builds.iter().map(ToString::to_string).collect();
    let state = State::from(build.is_some()).or_waived(insecure.any_build.into());
    claims.add(Check::VisorBuild, state, compared(builds.join(" or "), actual, source));

    let words = |policy: &BTreeSet<String>| policy.iter().cloned().collect::<Vec<_>>().join(" or ");
    let mut add = |check, accepted: &BTreeSet<String>, actual: Option<&String>, waiver| {
        let state = actual.map_or(State::Unknown, |actual| State::from(accepted.contains(actual)));
        let actual = actual.cloned().unwrap_or_default();
        let compare = compared(words(accepted), actual, "visor's log");
        claims.add(check, state.or_waived(waiver), compare);
    };
    let quoted: BTreeSet<_> = policy.command_lines.iter().map(|line| format!("{line:?}")).collect();
    let line = visor.map(|visor| format!("{:?}", visor.command_line));
    add(Check::CommandLine, &quoted, line.as_ref(), Waiver::Refused);
    add(Check::Iommu, &policy.iommu, visor.map(|visor| &visor.iommu), insecure.any_iommu.into());
    let yes = BTreeSet::from(["yes".to_owned()]);
    add(Check::Vmx, &yes, visor.map(|visor| &visor.vmx), insecure.without_vmx.into());
    let machine = BTreeSet::from(["machine".to_owned()]);
    add(Check::Tpm, &machine, visor.map(|visor| &visor.tpm), insecure.serial_tpm.into());
    let no = BTreeSet::from(["no".to_owned()]);
    add(Check::DevTickets, &no, visor.map(|visor| &visor.dev_tickets), insecure.dev_tickets.into());
    let vms = visor.map(|visor| &visor.unprotected_vms);
    add(Check::UnprotectedVms, &policy.unprotected_vms, vms, Waiver::Refused);
}

/// Whether the visor's key is the measured one, and the visor has it.
pub(super) fn check_key(
    claims: &mut Claims,
    evidence: &Evidence,
    visor: Option<&Measured>,
    against: Against<'_>,
) {
    let given = &evidence.visor.key;
    let measured = visor.map(|visor| Bytes(visor.key.to_vec()));
    let state = measured.as_ref().map_or(State::Unknown, |measured| State::from(measured == given));
    let keys = compared(
        measured.unwrap_or_default(),
        given,
        "visor's log, event 2, and evidence, visor: key",
    );
    claims.add(Check::VisorKey, state, keys);

    let (actual, is_alive) = match (&evidence.visor.alive, visor) {
        (None, _) => ("no signature", false),
        (Some(_), None) => ("no measured key", false),
        (Some(statement), Some(visor)) => {
            let nonce = against.challenge.nonce.0.as_slice();
            let is_nonce = nonce.len() == 32 && statement.body.0.starts_with(nonce);
            let is_signed = statement.signature.array().is_some_and(|signature| {
                has_signed(&visor.key, Kind::Nonce, &statement.body.0, &signature)
            });
            match (is_nonce && statement.body.0.len() == 40, is_signed) {
                (true, true) => ("the nonce, signed", true),
                (false, true) => ("another nonce, signed", false),
                (_, false) => ("not the visor's signature", false),
            }
        }
    };
    let state = State::from(is_alive).or_waived(against.policy.insecure.no_signature.into());
    claims.add(
        Check::VisorAlive,
        state,
        compared("the nonce, signed", actual, "evidence, visor: alive"),
    );
}
